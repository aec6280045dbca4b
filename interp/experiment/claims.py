"""Claims: what a paper says, what was measured, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from interp.reporting.stats import Interval, false_discovery

Source = Literal["found", "inferred", "chosen", "measured"]
Verdict = Literal["reproduced", "not reproduced", "opposite", "not testable at this scale"]
NOT_TESTABLE: Verdict = "not testable at this scale"
FALSE_DISCOVERY_RATE = 0.05


@dataclass(frozen=True)
class Claim:
    """One statement with its measurement, control and verdict.

    Attributes:
        id: short and unique in its experiment; the claim of a single seed ends in `, seed N`.
        statement: what is claimed, with its threshold.
        source: where the claim is known from: `found` in a paper or its code, `inferred` from it,
            `chosen` by us, or `measured` in a pilot.
        paper: what the source reports, if anything.
        measured, low, high: our measurement, with its 95% interval; None where nothing that could
            be compared was measured.
        control: the measurements that this one is compared with.
        seeds: number of seeds that it was measured on.
        verdict: whether the claim held, by its own interval.
        evidence: the table or figure to look at.
        p_value: that of the claim, or of its opposite where this is smaller; two-sided. None where
            nothing is judged, or not by an interval of a mean.
        adjusted_p_value: the same, adjusted for the number of claims of the family.
        adjusted_verdict: the verdict that is left after the adjustment.
    """

    id: str
    statement: str
    source: Source
    paper: float | str | None
    measured: float | None
    low: float | None
    high: float | None
    control: str
    seeds: int
    verdict: Verdict
    evidence: str
    p_value: float | None = None
    adjusted_p_value: float | None = None
    adjusted_verdict: Verdict = NOT_TESTABLE


def judge(
    interval: Interval,
    holds: Callable[[float], bool],
    opposite: Callable[[float], bool] | None = None,
) -> Verdict:
    """Returns the verdict about a measurement: `reproduced` if the whole interval satisfies the
    claim, `opposite` if the whole interval satisfies the opposite claim, and otherwise `not
    reproduced`.

    Falling short of a threshold is not the opposite of a claim, so the opposite is stated
    separately. For a rise of at least 5%, for example, it is a fall.

    Args:
        interval: the measurement.
        holds: whether a value satisfies the claim.
        opposite: whether a value satisfies the opposite claim.

    Example:
        >>> from interp.experiment.checks import at_least, below
        >>> from interp.experiment.claims import judge
        >>> from interp.reporting.stats import Interval
        >>> judge(Interval(0.02, 0.01, 0.03, 5), at_least(0.05), below(0))
        'not reproduced'
    """
    # A claim and its opposite are each about one side of a value: what holds at both ends of an
    # interval holds in between.
    values = (interval.low, interval.estimate, interval.high)
    if all(map(holds, values)):
        return "reproduced"
    if opposite is not None and all(map(opposite, values)):
        return "opposite"
    return "not reproduced"


def adjust(family: Sequence[Claim]) -> list[Claim]:
    """Returns the claims of a family with the verdicts that are left after the false discovery rate
    is controlled: of those that are still `reproduced` or `opposite`, at most 5% are expected to be
    so by chance.

    A claim without a p-value keeps its verdict: it says something about each seed that was run, or
    is not judged.

    Source: Benjamini & Hochberg (1995).

    Args:
        family: the claims over seeds that are read together.

    Example:
        >>> from dataclasses import replace
        >>> from interp.experiment.claims import Claim, adjust
        >>> claim = Claim("P1", "", "chosen", None, 1, 0.9, 1.1, "", 3, "reproduced", "", 0.04)
        >>> [adjusted] = adjust([claim])
        >>> adjusted.adjusted_verdict
        'reproduced'
        >>> by_chance = replace(claim, id="P2", p_value=0.9, verdict="not reproduced")
        >>> [adjusted, _] = adjust([claim, by_chance])
        >>> adjusted.adjusted_p_value, adjusted.adjusted_verdict
        (0.08, 'not reproduced')
    """
    p_values = false_discovery([claim.p_value for claim in family])
    found: list[Claim] = []
    for claim, p_value in zip(family, p_values, strict=True):
        lost = p_value is not None and p_value > FALSE_DISCOVERY_RATE
        # Only a verdict that says something is lost: the others stay what they are, since "not
        # testable" must not become a result by being counted with others.
        decided = claim.verdict in ("reproduced", "opposite")
        verdict = "not reproduced" if lost and decided else claim.verdict
        adjusted = replace(claim, adjusted_p_value=p_value, adjusted_verdict=verdict)
        found.append(adjusted)
    return found


def measured_in_words(claim: Mapping[str, Any], digits: int) -> str:
    """Returns the measurement of a claim with its interval, as text.

    Args:
        claim: the fields of a claim.
        digits: number of decimals.

    Example:
        >>> from interp.experiment.claims import measured_in_words
        >>> measured_in_words({"measured": 0.5, "low": 0.25, "high": 0.75}, 2)
        '0.50 [0.25, 0.75]'
    """
    if claim["measured"] is None:
        return "not measured"
    spec = f".{digits}f"
    estimate = format(claim["measured"], spec)
    low = format(claim["low"], spec)
    high = format(claim["high"], spec)
    return f"{estimate} [{low}, {high}]"


def both_verdicts(claim: Mapping[str, Any]) -> str:
    """Returns the verdict of a claim and, where it does not survive the control of the false
    discovery rate, the one that is left.

    Example:
        >>> from interp.experiment.claims import both_verdicts
        >>> both_verdicts({"verdict": "opposite", "adjusted_verdict": "not reproduced"})
        'opposite (adjusted: not reproduced)'
    """
    verdict = claim["verdict"]
    adjusted = claim["adjusted_verdict"]
    return verdict if adjusted == verdict else f"{verdict} (adjusted: {adjusted})"


def committed_claims(experiments: Path, name: str | None = None) -> list[dict[str, Any]]:
    """Returns every claim in `experiments`/*/results/*/claims.json, as it is stored, with the
    fields `experiment` and `result` in front.

    Args:
        experiments: the folder that holds one folder per experiment.
        name: name of one experiment; all by default.

    Raises:
        LookupError: no results are stored under that name.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(experiments.glob(f"{name or '*'}/results/*/claims.json")):
        # experiments/NAME/results/RESULT/claims.json
        place = {"experiment": path.parents[2].name, "result": path.parent.name}
        stored = json.loads(path.read_text())
        found += [{**place, **claim} for claim in stored]
    if not found:
        folder = experiments / (name or "*") / "results"
        raise LookupError(f"no claims in {folder}: run `interp reproduce {name or 'NAME'}` first")
    return found
