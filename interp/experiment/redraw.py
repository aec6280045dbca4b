"""Results that exist: their figures drawn and their claims judged again, from their tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from interp.experiment.checks import Check, adjust_families, of_each_seed
from interp.experiment.claims import NOT_TESTABLE, Claim, both_verdicts, judge
from interp.experiment.experiment import Results, find_experiment, plain_fields
from interp.reporting.stats import Interval

_ROUNDED = ("measured", "low", "high", "p_value", "adjusted_p_value")


def redraw(folder: str | Path, *, rejudged: bool = False) -> Results:
    """Returns the claims and figures that follow from the tables of a folder of results.

    Claims whose tables were not kept keep their numbers: they are judged from these, and get
    today's statements.

    Args:
        folder: folder of results, as `interp reproduce` wrote it, with the experiment and the
            preset in config.json, and the measurements in claims.json.
        rejudged: whether today's checks may give other numbers, verdicts or claims than those in
            claims.json.

    Returns:
        The claims, the figures and, as the only table, that of the verdicts.

    Raises:
        OSError: a file is missing.
        LookupError: config.json names an experiment that does not exist.
        ValueError: the tables give other numbers, verdicts or claims than those in claims.json, and
            not `rejudged`; or config.json says that the results are outdated.
    """
    place = Path(folder)
    config = json.loads((place / "config.json").read_text())
    if "outdated" in config:
        raise ValueError(f"{place} cannot be drawn again, only made again: {config['outdated']}")
    written = json.loads((place / "claims.json").read_text())
    before = [Claim(**claim) for claim in written]
    files = sorted((place / "tables").glob("*.parquet"))
    tables = {file.stem: pd.read_parquet(file) for file in files}

    experiment = find_experiment(config["experiment"])
    preset = experiment.preset(config["preset"])
    # Results that were made before a field existed lack it, and keep the preset's value.
    given = {name: config[name] for name in plain_fields(preset) if name in config}
    settings = replace(preset, **given)
    measured: dict[str, pd.DataFrame] = {}
    for name in experiment.tables:
        if name in tables and "seed" in tables[name]:
            measured[name] = tables[name]
    first_seed = config["seed"]
    seeds = range(first_seed, first_seed + settings.seeds)
    each = of_each_seed(measured, seeds)

    checks = experiment.checks(settings)
    found: list[Claim] = []
    for check in checks:
        try:
            found += check.claims(each)
        except KeyError as error:
            # A check that looks up a table which was not kept raises the name of the table. Any
            # other KeyError is a mistake in the check.
            (name,) = error.args
            if name in measured or name not in experiment.tables:
                raise
            for claim in before:
                check_id, _, _ = claim.id.partition(", seed ")
                if check_id == check.id:
                    found.append(_without_tables(check, claim, settings.seeds))
    found = _with_rounding_of(before, adjust_families(checks, found))
    if not rejudged:
        _check_unchanged(place, before, found)

    results = experiment.draw(checks, found, tables)
    # Only the verdicts are made again: the other tables were read from the folder, and stay.
    verdicts = {name: table for name, table in results.tables.items() if name == "verdicts"}
    return replace(results, tables=verdicts)


def changed_verdicts(folder: str | Path, results: Results) -> list[str]:
    """Returns one line per claim whose verdict, adjusted or not, differs from that in claims.json,
    with what it was and what it is.

    Args:
        folder: folder of results.
        results: what `redraw` returned for it.
    """
    written = json.loads((Path(folder) / "claims.json").read_text())
    before = {claim["id"]: both_verdicts(claim) for claim in written}
    now = {claim.id: both_verdicts(asdict(claim)) for claim in results.claims}
    lines: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old = before.get(name, "no claim")
        new = now.get(name, "no claim")
        if old != new:
            lines.append(f"{name}: {old} -> {new}")
    return lines


def _without_tables(check: Check, claim: Claim, seeds: int) -> Claim:
    """A claim whose tables were not kept, in today's words, and judged from its own numbers: a
    statement with another threshold must not stand over a verdict on the one before."""
    verdict = NOT_TESTABLE
    if claim.seeds < seeds:
        # Not judged, but for a premise that failed where nothing was measured.
        if check.requires is not None and claim.verdict == "not reproduced":
            verdict = claim.verdict
    elif (
        claim.seeds > 1
        and check.testable
        and claim.measured is not None
        and claim.low is not None
        and claim.high is not None
    ):
        found = Interval(claim.measured, claim.low, claim.high, claim.seeds)
        verdict = judge(found, check.threshold, check.opposite)
        # Only the tables show whether the premise holds. Where it did not, the number may pass.
        if check.requires is not None and verdict == "reproduced":
            passed = ("reproduced", "not reproduced")
            verdict = claim.verdict if claim.verdict in passed else verdict
    return replace(claim, statement=check.text, paper=check.paper, verdict=verdict)


def _with_rounding_of(before: Sequence[Claim], found: Sequence[Claim]) -> list[Claim]:
    """Claims with the numbers that are written where they are the same but for rounding. Another
    processor, or another version of scipy, rounds the last digits in another way."""
    by_id = {claim.id: claim for claim in before}
    settled: list[Claim] = []
    for claim in found:
        written = by_id.get(claim.id)
        same: dict[str, Any] = {}
        if written is not None:
            for name in _ROUNDED:
                now, then = getattr(claim, name), getattr(written, name)
                if now is not None and then is not None and _is_close(now, then):
                    same[name] = then
        settled.append(replace(claim, **same))
    return settled


def _is_close(now: float, then: float) -> bool:
    return math.isclose(now, then, rel_tol=1e-9, abs_tol=1e-12)


def _check_unchanged(place: Path, before: Sequence[Claim], found: Sequence[Claim]) -> None:
    numbers = {claim.id: _numbers(claim) for claim in found}
    for claim in before:
        if numbers.get(claim.id) != _numbers(claim):
            now = numbers.get(claim.id, "no such claim")
            raise ValueError(
                f"{place}: {claim.id} was {_numbers(claim)}, today's checks of its tables give "
                f"{now}; if the change is meant, run the experiment again"
            )
    known = {claim.id for claim in before}
    new = [claim.id for claim in found if claim.id not in known]
    if new:
        raise ValueError(
            f"{place}: today's checks of its tables also give {', '.join(new)}, and claims.json "
            "has no such claim; if it is meant, run the experiment again"
        )


def _numbers(claim: Claim) -> dict[str, Any]:
    names = (*_ROUNDED, "seeds", "verdict", "adjusted_verdict")
    return {name: getattr(claim, name) for name in names}
