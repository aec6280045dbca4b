"""Checks: a measure, the threshold it has to pass, and how both become claims, on every seed and
over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.experiment.claims import NOT_TESTABLE, Claim, Source, Verdict, judged
from interp.reporting.stats import Interval, student

Tables = Mapping[str, pd.DataFrame]
Measured = Callable[[Tables], Interval | float]
Relation = Literal["at least", "at most", "above", "below"]


@dataclass(frozen=True)
class Threshold:
    """A bar and the side of it on which a claim holds.

    >>> at_least(0.9)(0.95), str(at_least(0.9))
    (True, 'at least 0.9')
    """

    relation: Relation
    value: float

    def __call__(self, measured: float) -> bool:
        """Whether a value is on the right side."""
        if self.relation == "at least":
            return measured >= self.value
        if self.relation == "at most":
            return measured <= self.value
        return measured > self.value if self.relation == "above" else measured < self.value

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"

    @property
    def upwards(self) -> bool:
        """Whether larger values are on the right side."""
        return self.relation in ("at least", "above")


def at_least(value: float) -> Threshold:
    """Holds from `value` upwards."""
    return Threshold("at least", value)


def at_most(value: float) -> Threshold:
    """Holds up to `value`."""
    return Threshold("at most", value)


def above(value: float) -> Threshold:
    """Holds strictly above `value`."""
    return Threshold("above", value)


def below(value: float) -> Threshold:
    """Holds strictly below `value`."""
    return Threshold("below", value)


@dataclass(frozen=True)
class Measure:
    """A number read from the tables of one seed, with the words that a statement calls it by."""

    label: str
    of: Measured

    def __call__(self, tables: Tables) -> Interval | float:
        """The number, or its interval over items."""
        return self.of(tables)


def rows(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a table with the given values. Raises LookupError when there are none."""
    found: Any = frame
    for name, value in where.items():
        found = found[found[name] == value]
    if found.empty:
        raise LookupError(f"no rows with {dict(where)}")
    return found


def mean(table: str, column: str, **where: Any) -> Measure:
    """The mean of a column over the rows with the given values."""
    chosen = ", ".join(f"{name} {value}" for name, value in where.items())
    return Measure(
        f"mean {column} in {table} ({chosen})",
        lambda tables: float(np.mean(rows(tables[table], where)[column])),
    )


def minus(one: Measured, other: Measured) -> Measure:
    """The difference of two measures, without an interval."""
    label = f"{_label(one)} minus {_label(other)}"
    return Measure(
        label, lambda tables: interval(one(tables)).estimate - interval(other(tables)).estimate
    )


def constant(value: float) -> Measure:
    """A number known without measuring, such as chance."""
    return Measure(f"{value:g}", lambda _: value)


def interval(measured: Interval | float) -> Interval:
    """A plain number as an interval of no width."""
    return (
        measured
        if isinstance(measured, Interval)
        else Interval(float(measured), float(measured), float(measured), 1)
    )


def _label(measure: Measured) -> str:
    return (
        measure.label if isinstance(measure, Measure) else getattr(measure, "__name__", "measure")
    )


@dataclass(frozen=True)
class Check:
    """A claim before it is measured.

    Attributes:
        id: short and unique in its experiment.
        measure: maps the tables of one seed to a number or an interval over items.
        threshold: what the number has to pass.
        evidence: the table or figure to look at.
        paper: what the source reports.
        source: where the claim is known from, as in `Claim`.
        controls: measures that are reported with this one.
        opposite: the threshold of the opposite claim.
        over: "seeds" judges Student's interval of the mean over seeds; "every" the range, so that
        the claim must hold on every seed.
        statement: in other words than "`measure` is `threshold`"; `{threshold}` in it is filled in.
        testable: False for what is measured here, but claimed of a model that is not among ours.
        requires: a premise on the tables of one seed; where it fails on any seed the claim is not
        reproduced.
    """

    _: KW_ONLY
    id: str
    measure: Measured
    threshold: Threshold
    evidence: str
    paper: float | str | None = None
    source: Source = "found"
    controls: Mapping[str, Measured] = field(default_factory=dict[str, Measured])
    opposite: Threshold | None = None
    over: Literal["seeds", "every"] = "seeds"
    statement: str | None = None
    testable: bool = True
    requires: Callable[[Tables], bool] | None = None

    def __post_init__(self) -> None:
        if self.statement is None and not isinstance(self.measure, Measure):
            raise ValueError(
                f"check {self.id!r}: expected a statement, or a Measure whose label makes one, got neither"
            )

    @property
    def text(self) -> str:
        """The statement, made from measure and threshold where it is not given."""
        if self.statement is None:
            return f"{_label(self.measure)} is {self.threshold}"
        return self.statement.replace("{threshold}", str(self.threshold))

    def claims(self, each: Mapping[int, Tables]) -> list[Claim]:
        """The claim over all seeds and, where there are several, of each one; `each` is the tables
        by seed."""
        measured = {seed: interval(self.measure(tables)) for seed, tables in each.items()}
        controls = {
            name: {seed: interval(control(tables)) for seed, tables in each.items()}
            for name, control in self.controls.items()
        }
        found = (
            _range(list(measured.values()))
            if self.over == "every"
            else _student(list(measured.values()))
        )
        beside = {name: _student(list(values.values())) for name, values in controls.items()}
        overall = self._claim(self.id, found, beside, len(each), self._verdict(found, each))
        if len(each) == 1:
            return [overall]
        claims = [overall]
        for seed, own in measured.items():
            beside = {name: values[seed] for name, values in controls.items()}
            claims.append(self._claim(f"{self.id}, seed {seed}", own, beside, 1, NOT_TESTABLE))
        return claims

    def _verdict(self, found: Interval, each: Mapping[int, Tables]) -> Verdict:
        if len(each) < 2 or not self.testable:
            return NOT_TESTABLE
        verdict = judged(found, self.threshold, self.opposite)
        if (
            verdict == "reproduced"
            and self.requires is not None
            and not all(map(self.requires, each.values()))
        ):
            return "not reproduced"
        return verdict

    def _claim(
        self,
        name: str,
        found: Interval,
        controls: Mapping[str, Interval],
        seeds: int,
        verdict: Verdict,
    ) -> Claim:
        control = "; ".join(f"{other}: {value:.3f}" for other, value in controls.items())
        ours = found.estimate, found.low, found.high
        return Claim(
            name, self.text, self.source, self.paper, *ours, control, seeds, verdict, self.evidence
        )


def _student(values: Sequence[Interval]) -> Interval:
    """Student's interval of the estimates; of a single seed its own."""
    return values[0] if len(values) == 1 else student([value.estimate for value in values])


def _range(values: Sequence[Interval]) -> Interval:
    estimates = [value.estimate for value in values]
    if len(values) == 1:
        return values[0]
    return Interval(float(np.mean(estimates)), min(estimates), max(estimates), len(estimates))


def claims(checks: Sequence[Check], tables: Tables, seeds: Sequence[int]) -> list[Claim]:
    """Every check over all seeds and on each. Raises ValueError for an id that occurs twice."""
    ids = [check.id for check in checks]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"check ids have to be unique, got twice: {', '.join(twice)}")
    each: Any = {
        seed: {name: table[table["seed"] == seed] for name, table in tables.items()}
        for seed in seeds
    }
    return [claim for check in checks for claim in check.claims(each)]


def verdicts(checks: Sequence[Check], found: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim: `claim` (the id of its check), `seed` ("all" or a number), `measured`,
    `low`, `high`, `verdict`, and the `threshold` with whether larger values pass it (`upwards`)."""
    by_id = {check.id: check for check in checks}
    found_rows: list[dict[str, Any]] = []
    for claim in found:
        name, _, seed = (
            claim.id.partition(", seed ") if claim.id not in by_id else (claim.id, "", "")
        )
        threshold = by_id[name].threshold
        row = {
            "claim": name,
            "seed": seed or "all",
            "measured": claim.measured,
            "low": claim.low,
            "high": claim.high,
        }
        row |= {
            "verdict": claim.verdict,
            "seeds": claim.seeds,
            "threshold": threshold.value,
            "upwards": threshold.upwards,
        }
        found_rows.append(row)
    columns = [
        "claim",
        "seed",
        "measured",
        "low",
        "high",
        "verdict",
        "seeds",
        "threshold",
        "upwards",
    ]
    return pd.DataFrame(found_rows, columns=columns)
