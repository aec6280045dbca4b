"""Pages about papers: short prose whose every number is read from committed claims.

An experiment with results to report keeps a template, `experiments/NAME/paper.md`. In it

- `{small:P2}` is the measurement of claim P2 in `results/small/claims.json`, with its interval;
- `{small:P2|value}` is the measurement alone, `{small:P2|verdict}` the verdict, with the one that
  is left when the false discovery rate is controlled where this differs;
- `{small:P2|sentence}` is what the claim says and what was measured, as a sentence of its own, and
  `{small:P2|control}` what its controls gave: what a number is a share of, or from how many tokens,
  then stands in the claim alone and cannot drift from it;
- `{seeds small}` is the number of seeds;
- `{claims small}` on a line of its own is the table of all claims of that result over its seeds;
- `{verdicts small}` counts the verdicts in words, and those that are left.

So no number is typed twice, and a page cannot drift away from what was measured.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.errors import closest
from interp.experiment.claims import both_verdicts, committed_claims, measured_in_words
from interp.files import replaced

Claims = Mapping[str, Mapping[str, Any]]

_TABLE = re.compile(r"^\{claims (\w+)\}$", re.MULTILINE)
_VERDICTS = re.compile(r"\{verdicts (\w+)\}")
_SEEDS = re.compile(r"\{seeds (\w+)\}")
_NUMBER = re.compile(r"\{(\w+):([^{}|\n]+)(?:\|(\w+))?\}")
_ORDER = ("reproduced", "not reproduced", "opposite", "not testable at this scale")
_COLUMNS = (
    "claim",
    "what it says",
    "the paper",
    "measured [95% interval]",
    "controls",
    "seeds",
    "verdict",
    "adjusted for the number of claims",
)


def write_pages(experiments: Path, pages: Path) -> list[Path]:
    """Writes `pages`/NAME.md for every `experiments`/NAME/paper.md, and returns these files.

    Args:
        experiments: the folder that holds one folder per experiment.
        pages: folder of the pages.

    Raises:
        ValueError: a template names a result, a claim or a format that does not exist.
    """
    written: list[Path] = []
    for template in sorted(experiments.glob("*/paper.md")):
        name = template.parent.name
        results = claims_by_result(experiments, name)
        name_in_errors = str(template.relative_to(experiments.parent))
        text = page(template.read_text(), results, name_in_errors)
        title, _, rest = text.partition("\n")
        # Above everything else: who reads a number must have read that it is to change.
        notes: list[str] = []
        for result, why in outdated_results(template.parent).items():
            notes.append(f"\n> The result `{result}` is to be made again: {why}\n")
        text = "\n".join([title, *notes, rest])
        file = pages / f"{name}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as temporary:
            temporary.write_text(text)
        written.append(file)
    return written


def outdated_results(experiment: Path) -> dict[str, str]:
    """Returns the results of an experiment that its own code of today would not give, with the
    reason: the field `outdated` of their config.json.

    Args:
        experiment: folder of the experiment.
    """
    found: dict[str, str] = {}
    for file in sorted(experiment.glob("results/*/config.json")):
        config = json.loads(file.read_text())
        if "outdated" in config:
            found[file.parent.name] = config["outdated"]
    return found


def claims_by_result(experiments: Path, name: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Returns the committed claims of an experiment, by result and id."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for claim in committed_claims(experiments, name):
        of_result = found.setdefault(claim["result"], {})
        of_result[claim["id"]] = claim
    return found


def page(template: str, results: Mapping[str, Claims], name: str = "template") -> str:
    """Returns a template with its tables, counts and numbers filled in.

    Args:
        template: the text.
        results: claims by id, for each result.
        name: name of the template, for messages.

    Example:
        >>> from interp.experiment.paper_pages import page
        >>> claim = {"id": "P1", "measured": 0.5774, "low": 0.492, "high": 0.662}
        >>> page("It falls by {small:P1}.", {"small": {"P1": claim}})
        'It falls by 0.58 [0.49, 0.66].'

    Raises:
        ValueError: see `write_pages`.
    """

    def result(wanted: str) -> Claims:
        if wanted not in results:
            nearest = closest(wanted, results)
            raise ValueError(f"{name}: no result {wanted!r}; nearest: {nearest}")
        return results[wanted]

    def number(match: re.Match[str]) -> str:
        of, claim_id, form = match.groups()
        claims = result(of)
        if claim_id not in claims:
            nearest = closest(claim_id, claims)
            raise ValueError(f"{name}: no claim {claim_id!r} in {of}; nearest: {nearest}")
        return _formatted(claims[claim_id], form or "interval", name)

    def table(match: re.Match[str]) -> str:
        return claims_table(result(match[1]))

    def counted(match: re.Match[str]) -> str:
        return _counted(result(match[1]))

    def seeds(match: re.Match[str]) -> str:
        return str(_seeds(result(match[1])))

    text = _TABLE.sub(table, template)
    text = _VERDICTS.sub(counted, text)
    text = _SEEDS.sub(seeds, text)
    return _NUMBER.sub(number, text)


def claims_table(claims: Claims) -> str:
    """Returns a Markdown table of the claims over seeds, without those of single seeds."""
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for claim in claims.values():
        if _is_of_one_seed(claim):
            continue
        paper = "" if claim["paper"] is None else str(claim["paper"])
        cells = [
            claim["id"],
            claim["statement"],
            paper,
            _formatted(claim, "interval", "table"),
            claim["control"],
            str(claim["seeds"]),
            claim["verdict"],
            _adjusted(claim),
        ]
        # A bar within a cell would end it.
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)


def _adjusted(claim: Mapping[str, Any]) -> str:
    """The verdict that is left when the false discovery rate is controlled, with its p-value."""
    p_value = claim["adjusted_p_value"]
    if p_value is None:
        return str(claim["adjusted_verdict"])
    return f"{claim['adjusted_verdict']} (p {p_value:.2g})"


def _is_of_one_seed(claim: Mapping[str, Any]) -> bool:
    return ", seed " in claim["id"]


def _formatted(claim: Mapping[str, Any], form: str, name: str) -> str:
    estimate = claim["measured"]
    low = claim["low"]
    high = claim["high"]
    if form == "verdict":
        return both_verdicts(claim)
    if form == "control":
        return str(claim["control"])
    if form == "sentence":
        return _sentence(claim, name)
    if estimate is None:
        return "not measured"
    # All three numbers get the decimals of the largest: they are read next to each other.
    largest = max(abs(estimate), abs(low), abs(high))
    digits = _digits(largest)
    if form == "value":
        return f"{estimate:.{digits}f}"
    if form == "interval":
        return measured_in_words(claim, digits)
    known = ("interval", "value", "verdict", "control", "sentence")
    raise ValueError(f"{name}: no format {form!r}; nearest: {closest(form, known)}")


def _sentence(claim: Mapping[str, Any], name: str) -> str:
    statement = str(claim["statement"])
    # Not `capitalize`, which would put the rest into lower case.
    sentence = statement[0].upper() + statement[1:]
    measured = _formatted(claim, "interval", name)
    return f"{sentence}: {measured}, {both_verdicts(claim)}."


def _seeds(claims: Claims) -> int:
    """The number of seeds of a result; a claim that was not measured on some of them has fewer."""
    return max(int(claim["seeds"]) for claim in claims.values())


def _digits(largest: float) -> int:
    """Decimals that show about three significant digits of the largest number."""
    if 0 < largest < 0.1:
        return 3
    return 2 if largest < 10 else 1


def _counted(claims: Claims) -> str:
    over_seeds = [claim for claim in claims.values() if not _is_of_one_seed(claim)]
    own = _count([claim["verdict"] for claim in over_seeds])
    adjusted = _count([claim["adjusted_verdict"] for claim in over_seeds])
    if own == adjusted:
        return own
    return f"{own} (adjusted for the number of claims: {adjusted})"


def _count(verdicts: Sequence[str]) -> str:
    count = Counter(verdicts)
    found = [verdict for verdict in _ORDER if count[verdict]]
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in found)
