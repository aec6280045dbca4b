"""The terms that checks are written in, and how a check becomes a claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from experiments.iar_memorization.study import Tables
from interp.experiment.claims import Claim, Source, judged
from interp.reporting.stats import Interval, student

Measure = Callable[[Tables], float]
Test = Callable[[float], bool]


@dataclass(frozen=True)
class Check:
    """A claim, what it is measured by on one seed, and what that is held against; `paper` is what the paper says.

    `testable` is False for what is said of a public model alone: it is measured here and not judged. What must hold of `every` seed is
    given with the range over seeds, all else with Student's interval of the mean.
    """

    id: str
    statement: str
    measure: Measure
    holds: Test
    evidence: str
    controls: Mapping[str, Measure] = field(default_factory=dict[str, Measure])
    paper: str | None = None
    source: Source = "found"
    opposite: Test | None = None
    testable: bool = True
    every: bool = False

    def claim(self, each: Sequence[Tables]) -> Claim:
        """Over the tables of each seed, or the number itself on a single one."""
        values = [self.measure(own) for own in each]
        found = Interval(float(np.mean(values)), min(values), max(values), len(values)) if self.every else _over(values)
        beside = "; ".join(f"{name}: {_over([control(own) for own in each]):.3f}" for name, control in self.controls.items())
        verdict = judged(found, self.holds, self.opposite) if self.testable else "not testable at this scale"
        ours = found.estimate, found.low, found.high
        return Claim(self.id, self.statement, self.source, self.paper, *ours, beside, len(each), verdict, self.evidence)


def _over(values: Sequence[float]) -> Interval:
    return student(values) if len(values) > 1 else Interval(values[0], values[0], values[0], 1)


def above(value: float) -> Test:
    """The strict test of a threshold from below."""
    return lambda measured: measured > value


def below(value: float) -> Test:
    """The strict test of a threshold from above."""
    return lambda measured: measured < value


def rows(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with some values. Raises LookupError when there are none."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    if frame.empty:
        raise LookupError(f"no rows with {dict(where)}")
    return frame


def mean(table: str, column: str, **where: Any) -> Measure:
    """The mean of a column over the rows with some values."""
    return lambda tables: float(rows(tables[table], where)[column].mean())


def minus(one: Measure, other: Measure) -> Measure:
    """The difference of two measures."""
    return lambda tables: one(tables) - other(tables)


def constant(value: float) -> Measure:
    """What is known without measuring, such as chance."""
    return lambda _: value
