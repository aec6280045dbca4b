"""The checks as claims, on every seed and over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.reason_to_rote.checks import checks
from experiments.reason_to_rote.measures import Tables
from experiments.reason_to_rote.terms import Check
from interp.experiment.claims import Claim, judged
from interp.reporting.stats import Interval, student


def claims(tables: Tables, seeds: Sequence[int], about: Mapping[str, Any]) -> list[Claim]:
    """Every check over all seeds, then on each."""
    found: list[Claim] = []
    for check in checks(about):
        each = {seed: _of_seed(tables, seed) for seed in seeds}
        measured = {seed: check.measure(own) for seed, own in each.items()}
        held = {name: {seed: control(own) for seed, own in each.items()} for name, control in check.controls.items()}
        found.append(_claim(check, check.id, _over(measured), {name: _over(values) for name, values in held.items()}, len(seeds)))
        found += [_claim(check, f"{check.id}, seed {s}", measured[s], {name: values[s] for name, values in held.items()}, 1) for s in seeds]
    return found


def _of_seed(tables: Tables, seed: int) -> Tables:
    return {name: table[table["seed"] == seed] for name, table in tables.items()}


def _over(values: Mapping[int, Interval]) -> Interval:
    """Student's interval over seeds; of one seed its own."""
    found = list(values.values())
    return found[0] if len(found) == 1 else student([one.estimate for one in found])


def _claim(check: Check, name: str, found: Interval, controls: Mapping[str, Interval], seeds: int) -> Claim:
    beside = "; ".join(f"{control}: {value}" for control, value in controls.items())
    ours = found.estimate, found.low, found.high
    return Claim(name, check.statement, check.source, check.paper, *ours, beside, seeds, judged(found, check.holds), check.evidence)


def verdicts(found: Sequence[Claim]) -> pd.DataFrame:
    """One row a check and seed, and one for all: `claim`, `seed` ("all" or its number), `measured`, `low`, `high`, `verdict`."""
    named = [(*claim.id.partition(", seed ")[::2], claim) for claim in found]
    rows = [(name, seed or "all", claim.measured, claim.low, claim.high, claim.verdict) for name, seed, claim in named]
    return pd.DataFrame(rows, columns=["claim", "seed", "measured", "low", "high", "verdict"])
