"""Claims: what a paper says, what was measured, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.reporting.stats import Interval

Source = Literal["found", "inferred", "chosen", "measured"]
Verdict = Literal["reproduced", "not reproduced", "opposite", "not testable at this scale"]
NOT_TESTABLE: Verdict = "not testable at this scale"


@dataclass(frozen=True)
class Claim:
    """One statement with its measurement, control and verdict.

    Attributes:
        id: short and unique in its experiment; the claim of a single seed ends in `, seed N`.
        statement: what is claimed, with its threshold.
        source: where the claim is known from: `found` in a paper or its code, `inferred` from it,
            `chosen` by us, or `measured` in a pilot.
        paper: what the source reports, if anything.
        measured, low, high: our measurement, with its 95% interval.
        control: the measurements that this one is compared with.
        seeds: number of seeds.
        verdict: whether the claim held.
        evidence: the table or figure to look at.
    """

    id: str
    statement: str
    source: Source
    paper: float | str | None
    measured: float
    low: float
    high: float
    control: str
    seeds: int
    verdict: Verdict
    evidence: str


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
    values = (interval.low, interval.estimate, interval.high)
    if all(map(holds, values)):
        return "reproduced"
    if opposite is not None and all(map(opposite, values)):
        return "opposite"
    return "not reproduced"


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
        place = {"experiment": path.parents[2].name, "result": path.parent.name}
        found += [{**place, **claim} for claim in json.loads(path.read_text())]
    if not found:
        folder = experiments / (name or "*") / "results"
        raise LookupError(f"no claims in {folder}: run `interp reproduce {name or 'NAME'}` first")
    return found
