"""Checks: a measure and the threshold that it has to pass, and how they become claims, for each
seed and over all seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.experiment.claims import NOT_TESTABLE, Claim, Source, Verdict, adjust, judge
from interp.reporting.stats import (
    Bounds,
    Interval,
    MeanOverSeeds,
    bootstrap,
    paired_interval,
    unpaired_interval,
)

Tables = Mapping[str, pd.DataFrame]
Measured = Callable[[Tables], Interval | float | None]
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
    "adjusted_verdict",
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
        of: maps the tables of one seed to the number, or to its interval over items; to None where
            what it compares was not measured on this seed.
        bounds: the least and the largest value that it can have, such as (0, 1) of a share; its
            interval over seeds stays within them.
        by_item: maps the tables of one seed to the value of each item (text, image, sequence),
            where `of` is their mean.
    """

    label: str
    of: Measured
    bounds: Bounds | None = None
    by_item: Callable[[Tables], pd.Series] | None = None

    def __call__(self, tables: Tables) -> Interval | float | None:
        """Returns the number, or its interval over items, or None where it was not measured."""
        return self.of(tables)


def bounded(measure: Measured, low: float, high: float) -> Measure:
    """Returns a measure whose values lie between two bounds.

    Args:
        measure: the measure.
        low, high: its bounds.

    Example:
        >>> from interp.experiment.checks import bounded
        >>> bounded(lambda tables: 0.5, 0, 1).bounds
        (0, 1)
    """
    if isinstance(measure, Measure):
        return replace(measure, bounds=(low, high))
    return Measure(_label(measure), measure, (low, high))


@dataclass(frozen=True)
class _Difference(Measure):
    """A difference of two measures, whose own differences can be paired again.

    Attributes:
        by_pair: maps the tables of one seed to the difference within each item; None where the two
            measures have different items.
    """

    by_pair: Callable[[Tables], pd.Series | None] = field(kw_only=True)


def over_items(
    label: str, by_item: Callable[[Tables], pd.Series], bounds: Bounds | None = None
) -> Measure:
    """Returns the measure that is the mean over items, with its bootstrap interval.

    Args:
        label: its name in a statement.
        by_item: maps the tables of one seed to the value of each item; to none where there is
            nothing to measure it on.
        bounds: the least and the largest value that it can have.
    """

    def of(tables: Tables) -> Interval | None:
        values = by_item(tables)
        return None if values.empty else bootstrap(values)

    return Measure(label, of, bounds, by_item)


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
    # One mask for all columns: taking the rows once per column is most of the time of a claim.
    wanted = np.ones(len(frame), dtype=bool)
    for name, value in where.items():
        wanted &= (frame[name] == value).to_numpy(dtype=bool)
    found: Any = frame[wanted]
    if found.empty:
        raise LookupError(f"no rows with {dict(where)}")
    return found


def mean(
    table: str,
    column: str,
    *,
    item: str | Sequence[str] | None = None,
    bounds: Bounds | None = None,
    **where: Any,
) -> Measure:
    """Returns the measure that is the mean of a column over the rows with the given values.

    Args:
        table: name of a table.
        column: name of its column.
        item: the column (or columns) that names the item of a row. The mean then has an interval
            over items; where an item has several rows, their mean counts.
        bounds: the least and the largest value that the column can have.
        where: values of other columns.

    Example:
        >>> from interp.experiment.checks import mean
        >>> measure = mean("numbers", "value", name="up")
        >>> measure.label
        'mean value in numbers (name up)'
        >>> measure({"numbers": pd.DataFrame({"name": ["up", "down"], "value": [1.0, -1.0]})})
        1.0
    """
    label = f"mean {column} in {table}"
    if where:
        conditions = [f"{name} {value}" for name, value in where.items()]
        label = f"{label} ({', '.join(conditions)})"
    if item is not None:
        columns = [item] if isinstance(item, str) else list(item)

        def by_item(tables: Tables) -> pd.Series:
            groups: Any = rows(tables[table], where).groupby(columns, sort=False)
            return groups[column].mean()

        return over_items(label, by_item, bounds)

    def of(tables: Tables) -> float:
        chosen = rows(tables[table], where)
        return float(np.mean(chosen[column]))

    return Measure(label, of, bounds)


def minus(one: Measured, other: Measured) -> Measure:
    """Returns the measure that is the difference of two measures.

    It has bounds if both have. Its interval over items is that of pairs where both have the same
    items, and of two independent samples where they have others. Differences of the same items have
    items themselves, so that the difference of two such differences is one of pairs too. Where only
    their intervals are known, these are combined as for independent estimates, which is too wide
    for pairs.

    Source: Newcombe (1998), Statistics in Medicine 17:873, for combining intervals.
    """
    first = _items_of(one)
    second = _items_of(other)

    def of(tables: Tables) -> Interval | None:
        a = first(tables)
        b = second(tables)
        if a is None or b is None:
            return _difference(interval(one(tables)), interval(other(tables)))
        if a.empty or b.empty:
            return None
        # The difference within an item is free of what makes items differ, so that pairs give the
        # shorter interval wherever there are any.
        if _are_pairs(a, b):
            return paired_interval(a, b.reindex(a.index))
        return unpaired_interval(a, b)

    def by_pair(tables: Tables) -> pd.Series | None:
        a = first(tables)
        b = second(tables)
        if a is None or b is None or not _are_pairs(a, b):
            return None
        return a - b.reindex(a.index)

    label = f"{_label(one)} minus {_label(other)}"
    return _Difference(label, of, _bounds_of_difference(one, other), by_pair=by_pair)


def _are_pairs(a: pd.Series, b: pd.Series) -> bool:
    return a.index.symmetric_difference(b.index).empty


def _difference(a: Interval | None, b: Interval | None) -> Interval | None:
    """The difference of two independent estimates with intervals; None where one is not known."""
    if a is None or b is None:
        return None
    estimate = a.estimate - b.estimate
    # The difference is low where the one is low and the other high. Newcombe adds up the squares of
    # these two distances, each on its own side.
    below_a = a.estimate - a.low
    above_a = a.high - a.estimate
    below_b = b.estimate - b.low
    above_b = b.high - b.estimate
    low = estimate - float(np.hypot(below_a, above_b))
    high = estimate + float(np.hypot(above_a, below_b))
    return Interval(estimate, low, high, max(a.n, b.n))


def _items_of(measure: Measured) -> Callable[[Tables], pd.Series | None]:
    """Maps the tables of one seed to the value of each item; to None where there are no items."""
    if isinstance(measure, _Difference):
        return measure.by_pair
    if isinstance(measure, Measure) and measure.by_item is not None:
        return measure.by_item
    return lambda _: None


def _bounds_of(measure: Measured) -> Bounds | None:
    return measure.bounds if isinstance(measure, Measure) else None


def _bounds_of_difference(one: Measured, other: Measured) -> Bounds | None:
    first = _bounds_of(one)
    second = _bounds_of(other)
    if first is None or second is None:
        return None
    first_low, first_high = first
    second_low, second_high = second
    return first_low - second_high, first_high - second_low


def constant(value: float) -> Measure:
    """Returns the measure of a number that is known without measuring, such as chance."""
    return Measure(f"{value:g}", lambda _: value, (value, value))


def interval(measured: Interval | float | None) -> Interval | None:
    """Returns an interval as it is, a plain number as an interval of no width, and None for what
    was not measured."""
    if measured is None or isinstance(measured, Interval):
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
        over: what is judged. "seeds": the interval of the mean over seeds, see `MeanOverSeeds`.
            "every": the range of the seeds, so that the claim must hold on each of them.
        statement: the claim in words, where "`measure` is `threshold`" does not say it well;
            `{threshold}` in it is filled in.
        testable: False for a claim about a model that we do not have. Such a claim is measured on
            another model, and is not judged.
        requires: a premise about the tables of one seed. If it fails on any seed, the claim is not
            reproduced, whether or not something was measured on that seed.
        family: the claims that are read together with this one, so that the false discovery rate is
            controlled within them; by default all of the experiment.

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
    family: str = ""

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

        A seed on which the comparison was not measured does not count as a value. The claim is then
        about the other seeds, says how many there are, and is not judged: the seeds that are left
        are those where it happened to be measurable. But a premise that fails is a failure on that
        seed, and the claim is then not reproduced.

        Args:
            each: the tables of each seed.
        """
        measured = _by_seed(self.measure, each)
        controls: dict[str, dict[int, Interval | None]] = {}
        controls_over_seeds: dict[str, Interval | None] = {}
        for name, control in self.controls.items():
            values = _by_seed(control, each)
            controls[name] = values
            known_values = _known(values)
            if known_values:
                over_seeds = _mean_over_seeds(known_values, _bounds_of(control))
            else:
                over_seeds = None
            controls_over_seeds[name] = over_seeds

        known = _known(measured)
        found = self._over_seeds(known) if known else None
        # Not judged yet: a claim that lacks a seed, or has but one, stays so.
        claim = self._claim(self.id, found, controls_over_seeds, len(known), len(each))
        on_every_seed = len(known) == len(each)
        if self._judged(len(each)):
            if found is not None and on_every_seed:
                verdict = self._verdict(found, each)
                claim = replace(claim, verdict=verdict, p_value=self._p_value(known))
            elif not self._premise_holds(each):
                claim = replace(claim, verdict="not reproduced")
        claims = [claim]
        # With one seed, the claim over seeds is that of the seed.
        if len(each) == 1:
            return claims

        for seed, own in measured.items():
            own_controls = {name: values[seed] for name, values in controls.items()}
            count = 0 if own is None else 1
            of_seed = self._claim(f"{self.id}, seed {seed}", own, own_controls, count, 1)
            claims.append(of_seed)
        return claims

    def _judged(self, seeds: int) -> bool:
        # One seed has no spread over seeds: its interval over items says nothing of other seeds.
        return seeds > 1 and self.testable

    def _over_seeds(self, values: Sequence[Interval]) -> Interval:
        if self.over == "every":
            return _range(values)
        return _mean_over_seeds(values, _bounds_of(self.measure))

    def _p_value(self, values: Sequence[Interval]) -> float | None:
        """That of the claim or of its opposite, whichever is smaller: at most one can be small."""
        bounds = _bounds_of(self.measure)
        if self.over == "every" or _fix_the_value(bounds):
            return None
        mean = MeanOverSeeds(values, bounds)
        found: list[float] = []
        for threshold in (self.threshold, self.opposite):
            if threshold is not None:
                p_value = mean.p_value(threshold.value, upwards=threshold.upwards)
                if p_value is None:
                    return None
                found.append(p_value)
        return min(found)

    def _verdict(self, found: Interval, each: Mapping[int, Tables]) -> Verdict:
        # A premise that fails takes a reproduction away; one that holds gives none.
        verdict = judge(found, self.threshold, self.opposite)
        if verdict == "reproduced" and not self._premise_holds(each):
            return "not reproduced"
        return verdict

    def _premise_holds(self, each: Mapping[int, Tables]) -> bool:
        return self.requires is None or all(self.requires(tables) for tables in each.values())

    def _claim(
        self,
        name: str,
        found: Interval | None,
        controls: Mapping[str, Interval | None],
        seeds: int,
        of: int,
    ) -> Claim:
        """The claim about the `seeds` of `of` seeds on which it was measured, not judged."""
        notes: list[str] = []
        for other, value in controls.items():
            notes.append(f"{other}: {_in_words(value)}")
        if seeds < of:
            notes.append(f"seeds without a comparison: {of - seeds} of {of}")
        return Claim(
            id=name,
            statement=self.text,
            source=self.source,
            paper=self.paper,
            measured=None if found is None else found.estimate,
            low=None if found is None else found.low,
            high=None if found is None else found.high,
            control="; ".join(notes),
            seeds=seeds,
            verdict=NOT_TESTABLE,
            evidence=self.evidence,
        )


def _by_seed(measure: Measured, each: Mapping[int, Tables]) -> dict[int, Interval | None]:
    return {seed: interval(measure(tables)) for seed, tables in each.items()}


def _known(values: Mapping[int, Interval | None]) -> list[Interval]:
    return [value for value in values.values() if value is not None]


def _in_words(value: Interval | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _mean_over_seeds(values: Sequence[Interval], bounds: Bounds | None) -> Interval:
    """The interval of the mean; for a single seed its own interval over items."""
    if len(values) == 1:
        return values[0]
    if _fix_the_value(bounds):
        return values[0]
    return MeanOverSeeds(values, bounds).interval


def _fix_the_value(bounds: Bounds | None) -> bool:
    """Whether bounds leave a single value, as those of a constant do."""
    return bounds is not None and bounds[0] == bounds[1]


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
    times_used = Counter(check.id for check in checks)
    twice = sorted(name for name, times in times_used.items() if times > 1)
    if twice:
        raise ValueError(f"check ids have to be unique, got twice: {', '.join(twice)}")

    each = of_each_seed(tables, seeds)
    found: list[Claim] = []
    for check in checks:
        found += check.claims(each)
    return adjust_families(checks, found)


def adjust_families(checks: Sequence[Check], found: Sequence[Claim]) -> list[Claim]:
    """Returns the claims with the verdicts that are left after the false discovery rate is
    controlled within each family; see `claims.adjust`.

    Args:
        checks: the checks.
        found: their claims, over seeds and of each seed.
    """
    # Claims of single seeds are not in `family_of`: each repeats a claim over seeds, and would be
    # counted as a further test.
    family_of = {check.id: check.family for check in checks}
    families: dict[str, list[Claim]] = {}
    for claim in found:
        if claim.id in family_of:
            family = families.setdefault(family_of[claim.id], [])
            family.append(claim)
    adjusted: dict[str, Claim] = {}
    for family in families.values():
        adjusted |= {claim.id: claim for claim in adjust(family)}
    return [adjusted.get(claim.id, claim) for claim in found]


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
    larger values pass it (`upwards`), the `statement`, and the `adjusted_verdict`, which is left
    after the false discovery rate is controlled.

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
            "adjusted_verdict": claim.adjusted_verdict,
        }
        table.append(row)
    return pd.DataFrame(table, columns=_VERDICT_COLUMNS)
