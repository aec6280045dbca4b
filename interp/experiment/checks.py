"""Checks: a measure and the threshold that it has to pass, and how they become claims, for each
seed and over all seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.experiment.claims import NOT_TESTABLE, Claim, Source, Verdict, judge
from interp.reporting.stats import Interval, student_interval

Tables = Mapping[str, pd.DataFrame]
Measured = Callable[[Tables], Interval | float]
Relation = Literal["at least", "at most", "above", "below"]

_VERDICT_COLUMNS = [
    "claim",
    "seed",
    "measured",
    "low",
    "high",
    "verdict",
    "seeds",
    "threshold",
    "upwards",
    "statement",
]


@dataclass(frozen=True)
class Threshold:
    """A value, and the side of it on which a claim holds.

    Attributes:
        relation: "at least", "at most", "above" or "below".
        value: the value.

    Example:
        >>> from interp.experiment.checks import at_least
        >>> at_least(0.9)(0.95), str(at_least(0.9))
        (True, 'at least 0.9')
    """

    relation: Relation
    value: float

    def __call__(self, measured: float) -> bool:
        """Returns whether a value is on the right side."""
        if self.relation == "at least":
            return measured >= self.value
        if self.relation == "at most":
            return measured <= self.value
        if self.relation == "above":
            return measured > self.value
        return measured < self.value

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"

    @property
    def upwards(self) -> bool:
        """Whether larger values are on the right side."""
        return self.relation in ("at least", "above")


def at_least(value: float) -> Threshold:
    """Returns the threshold that `value` and everything above it passes."""
    return Threshold("at least", value)


def at_most(value: float) -> Threshold:
    """Returns the threshold that `value` and everything below it passes."""
    return Threshold("at most", value)


def above(value: float) -> Threshold:
    """Returns the threshold that only what is above `value` passes."""
    return Threshold("above", value)


def below(value: float) -> Threshold:
    """Returns the threshold that only what is below `value` passes."""
    return Threshold("below", value)


@dataclass(frozen=True)
class Measure:
    """A number that is read from the tables of one seed.

    Attributes:
        label: its name in a statement.
        of: maps the tables of one seed to the number, or to its interval over items.
    """

    label: str
    of: Measured

    def __call__(self, tables: Tables) -> Interval | float:
        """Returns the number, or its interval over items."""
        return self.of(tables)


def rows(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the rows of a table that have the given values.

    Raises:
        LookupError: there are none.

    Example:
        >>> from interp.experiment.checks import rows
        >>> table = pd.DataFrame({"name": ["up", "down"], "value": [1.0, -1.0]})
        >>> rows(table, {"name": "down"})
           name  value
        1  down   -1.0
    """
    found: Any = frame
    for name, value in where.items():
        found = found[found[name] == value]
    if found.empty:
        raise LookupError(f"no rows with {dict(where)}")
    return found


def mean(table: str, column: str, **where: Any) -> Measure:
    """Returns the measure that is the mean of a column over the rows with the given values.

    Args:
        table: name of a table.
        column: name of its column.
        where: values of other columns.

    Example:
        >>> from interp.experiment.checks import mean
        >>> measure = mean("numbers", "value", name="up")
        >>> measure.label
        'mean value in numbers (name up)'
        >>> measure({"numbers": pd.DataFrame({"name": ["up", "down"], "value": [1.0, -1.0]})})
        1.0
    """
    chosen = ", ".join(f"{name} {value}" for name, value in where.items())

    def of(tables: Tables) -> float:
        return float(np.mean(rows(tables[table], where)[column]))

    return Measure(f"mean {column} in {table} ({chosen})", of)


def minus(one: Measured, other: Measured) -> Measure:
    """Returns the measure that is the difference of two measures, without an interval."""

    def of(tables: Tables) -> float:
        return interval(one(tables)).estimate - interval(other(tables)).estimate

    return Measure(f"{_label(one)} minus {_label(other)}", of)


def constant(value: float) -> Measure:
    """Returns the measure of a number that is known without measuring, such as chance."""
    return Measure(f"{value:g}", lambda _: value)


def interval(measured: Interval | float) -> Interval:
    """Returns an interval as it is, and a plain number as an interval of no width."""
    if isinstance(measured, Interval):
        return measured
    number = float(measured)
    return Interval(number, number, number, 1)


def _label(measure: Measured) -> str:
    if isinstance(measure, Measure):
        return measure.label
    return getattr(measure, "__name__", "measure")


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
        over: what is judged. "seeds": Student's interval of the mean over seeds. "every": the range
            of the seeds, so that the claim must hold on each of them.
        statement: the claim in words, where "`measure` is `threshold`" does not say it well;
            `{threshold}` in it is filled in.
        testable: False for a claim about a model that we do not have. Such a claim is measured on
            another model, and is not judged.
        requires: a premise about the tables of one seed. If it fails on any seed, the claim is not
            reproduced.

    Raises:
        ValueError: neither a statement nor a measure with a label that makes one.

    Example:
        >>> from interp.experiment.checks import Check, at_least, mean
        >>> check = Check(
        ...     id="P1",
        ...     measure=mean("drop", "accuracy", selection="random"),
        ...     threshold=at_least(0.8),
        ...     evidence="tables/drop.parquet",
        ... )
        >>> check.text
        'mean accuracy in drop (selection random) is at least 0.8'
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
                f"check {self.id!r}: expected a statement, "
                "or a Measure whose label makes one, got neither"
            )

    @property
    def text(self) -> str:
        """The statement, made from measure and threshold where it is not given."""
        if self.statement is None:
            return f"{_label(self.measure)} is {self.threshold}"
        return self.statement.replace("{threshold}", str(self.threshold))

    def claims(self, each: Mapping[int, Tables]) -> list[Claim]:
        """Returns the claim over all seeds, followed by the claim for each seed if there are
        several.

        Args:
            each: the tables of each seed.
        """
        measured = _by_seed(self.measure, each)
        controls = {name: _by_seed(control, each) for name, control in self.controls.items()}

        over_seeds = _range if self.over == "every" else _student
        found = over_seeds(list(measured.values()))
        controls_over_seeds = {
            name: _student(list(values.values())) for name, values in controls.items()
        }
        verdict = self._verdict(found, each)
        claims = [self._claim(self.id, found, controls_over_seeds, len(each), verdict)]
        if len(each) == 1:
            return claims

        for seed, own in measured.items():
            own_controls = {name: values[seed] for name, values in controls.items()}
            name = f"{self.id}, seed {seed}"
            claims.append(self._claim(name, own, own_controls, 1, NOT_TESTABLE))
        return claims

    def _verdict(self, found: Interval, each: Mapping[int, Tables]) -> Verdict:
        if len(each) < 2 or not self.testable:
            return NOT_TESTABLE
        verdict = judge(found, self.threshold, self.opposite)
        if verdict != "reproduced" or self.requires is None:
            return verdict
        premise_holds = all(self.requires(tables) for tables in each.values())
        return "reproduced" if premise_holds else "not reproduced"

    def _claim(
        self,
        name: str,
        found: Interval,
        controls: Mapping[str, Interval],
        seeds: int,
        verdict: Verdict,
    ) -> Claim:
        return Claim(
            id=name,
            statement=self.text,
            source=self.source,
            paper=self.paper,
            measured=found.estimate,
            low=found.low,
            high=found.high,
            control="; ".join(f"{other}: {value:.3f}" for other, value in controls.items()),
            seeds=seeds,
            verdict=verdict,
            evidence=self.evidence,
        )


def _by_seed(measure: Measured, each: Mapping[int, Tables]) -> dict[int, Interval]:
    return {seed: interval(measure(tables)) for seed, tables in each.items()}


def _student(values: Sequence[Interval]) -> Interval:
    """Student's interval of the estimates; for a single seed its own interval over items."""
    if len(values) == 1:
        return values[0]
    return student_interval([value.estimate for value in values])


def _range(values: Sequence[Interval]) -> Interval:
    """The mean and the range of the estimates; for a single seed its own interval over items."""
    if len(values) == 1:
        return values[0]
    estimates = [value.estimate for value in values]
    mean = float(np.mean(estimates))
    return Interval(mean, min(estimates), max(estimates), n=len(estimates))


def claims(checks: Sequence[Check], tables: Tables, seeds: Sequence[int]) -> list[Claim]:
    """Returns the claims of all checks, over all seeds and for each seed.

    Args:
        checks: the checks.
        tables: the tables of all seeds, with a column `seed`.
        seeds: the seeds.

    Raises:
        ValueError: an id that occurs twice.

    Example:
        >>> from interp.experiment.checks import Check, above, claims, mean
        >>> tables = {"t": pd.DataFrame({"value": [1.0, 1.1, 1.2], "seed": [0, 1, 2]})}
        >>> check = Check(id="P1", measure=mean("t", "value"), threshold=above(0), evidence="t")
        >>> [(claim.id, claim.verdict) for claim in claims([check], tables, [0, 1, 2])][:2]
        [('P1', 'reproduced'), ('P1, seed 0', 'not testable at this scale')]
    """
    ids = [check.id for check in checks]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"check ids have to be unique, got twice: {', '.join(twice)}")

    each = of_each_seed(tables, seeds)
    found: list[Claim] = []
    for check in checks:
        found += check.claims(each)
    return found


def of_each_seed(tables: Tables, seeds: Sequence[int]) -> dict[int, Tables]:
    """Returns the tables of each seed.

    Args:
        tables: the tables of all seeds, with a column `seed`.
        seeds: the seeds.
    """
    each: dict[int, Any] = {}
    for seed in seeds:
        of_seed: dict[str, Any] = {}
        for name, table in tables.items():
            of_seed[name] = table[table["seed"] == seed]
        each[seed] = of_seed
    return each


def verdicts(checks: Sequence[Check], found: Sequence[Claim]) -> pd.DataFrame:
    """Returns one row per claim: `claim` (the id of its check), `seed` ("all" or a number),
    `measured`, `low`, `high`, `verdict`, `seeds` (how many), the `threshold` with whether
    larger values pass it (`upwards`), and the `statement`.

    Args:
        checks: the checks.
        found: their claims, from `claims`.
    """
    by_id = {check.id: check for check in checks}
    table: list[dict[str, Any]] = []
    for claim in found:
        # An id may itself contain ", seed ", so ids are looked up before they are taken apart.
        if claim.id in by_id:
            name = claim.id
            seed = "all"
        else:
            name, _, seed = claim.id.partition(", seed ")
        threshold = by_id[name].threshold
        row = {
            "claim": name,
            "seed": seed,
            "measured": claim.measured,
            "low": claim.low,
            "high": claim.high,
            "verdict": claim.verdict,
            "seeds": claim.seeds,
            "threshold": threshold.value,
            "upwards": threshold.upwards,
            "statement": claim.statement,
        }
        table.append(row)
    return pd.DataFrame(table, columns=_VERDICT_COLUMNS)
