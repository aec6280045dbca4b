"""The measures that checks are made of: each maps the tables of one seed to a number with its
interval over items. Also the values that choose rows of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.reason_to_rote.distributed import participation
from interp.experiment.checks import Measure, Tables, bounded, rows
from interp.reporting.stats import (
    Bounds,
    Interval,
    bootstrap,
    paired_interval,
    statistic_interval,
    unpaired_interval,
)

Values = Float[np.ndarray, " items"]
Rows = Mapping[str, Any]  # the values that rows of a table have in some of its columns

SHARE = (0.0, 1.0)  # bounds of the share of some items
DIFFERENCE = (-1.0, 1.0)  # of the difference of two shares, and of a correlation

# Fewer than usual, where the statistic is computed one resample at a time.
_RESAMPLES = 500

# A claim about the edges of a circuit needs a circuit that does what the model does, on the items
# that it was found on...
FAITHFUL = 0.8
# ...and so many edges that one of them does not decide: one that is exchanged changes the
# intersection over union of two circuits of n edges by about 2 / (n + 1), which should be less than
# the 0.1 that claims are about.
FEWEST_EDGES = 20

# The models of FDA at the end of training on wrong labels, and with the planted look-up.
FDA: Rows = {"task": "FDA", "stage": "end"}
LOOKUP: Rows = {"task": "FDA", "stage": "look-up"}

# The sets of items.
MEMORIZED: Rows = {"set": "memorized"}
TEST: Rows = {"set": "test"}


def donor(kind: str, of: Rows, items: Rows = MEMORIZED) -> Rows:
    """Rows of `donors` with the residual stream replaced after the first block, at the position of
    the intermediate result, by that of donors with the same or another intermediate result."""
    return {"place": "intermediate", "donor": kind, "block": 0, **of, **items}


def dose(selection: str, k: int, block: int) -> Rows:
    """Rows of `doses` about the memorized items of FDA with k neurons of a block reset."""
    return {"selection": selection, "k": k, "block": block, **FDA, **MEMORIZED}


def at_first(column: str, passed: float, **where: Any) -> Measure:
    """An accuracy at the time when the test accuracy first reached `passed`; not measured if it
    never did."""

    def measure(tables: Tables) -> Interval | None:
        history = rows(tables["dynamics"], where)
        reached = history[history["test"] >= passed]
        return None if reached.empty else _accuracy(reached.iloc[0], column)

    return bounded(measure, *SHARE)


def before_memory(column: str, memorized: float, **where: Any) -> Measure:
    """The largest value of an accuracy while at most a fraction of the noisy items was
    memorized."""

    def measure(tables: Tables) -> Interval | None:
        history = rows(tables["dynamics"], where)
        before = history[history["memorized"] <= memorized]
        return None if before.empty else _accuracy(before.loc[before[column].idxmax()], column)

    return bounded(measure, *SHARE)


def steps_ratio(memorized: float, passed: float, **where: Any) -> Callable[[Tables], float | None]:
    """Optimizer steps until a fraction of the noisy items is memorized, divided by those until the
    test accuracy reaches `passed`; not measured where either never happened."""

    def measure(tables: Tables) -> float | None:
        history = rows(tables["dynamics"], where)
        memorizing = _steps_until(history, "memorized", memorized)
        passing = _steps_until(history, "test", passed)
        return None if memorizing is None or passing is None else memorizing / passing

    return measure


def _steps_until(history: pd.DataFrame, column: str, value: float) -> int | None:
    """The number of steps until an accuracy reached a value; None if it never did."""
    reached = history.loc[history[column] >= value, "step"]
    # Steps are numbered from 0.
    return None if reached.empty else 1 + int(reached.iloc[0])


def last(column: str, **where: Any) -> Measure:
    """An accuracy at the end of training."""

    def measure(tables: Tables) -> Interval:
        return _accuracy(rows(tables["dynamics"], where).iloc[-1], column)

    return bounded(measure, *SHARE)


def largest(column: str, **where: Any) -> Measure:
    """The largest value of an accuracy during training."""

    def measure(tables: Tables) -> Interval:
        history = rows(tables["dynamics"], where)
        return _accuracy(history.loc[history[column].idxmax()], column)

    return bounded(measure, *SHARE)


def _accuracy(row: pd.Series, column: str) -> Interval:
    """An accuracy of one row of `dynamics`, with its interval over the items it is measured on."""
    return proportion(float(row[column]), int(row[f"n_{column}"]))


def less(one: Callable[[Tables], Any], other: Callable[[Tables], Any]) -> Measure:
    """The difference of two shares of different items, with Newcombe's interval (1998, Statistics
    in Medicine 17:873, method 10): not measured where either is not.

    Args:
        one: the share that the other is subtracted from, with Wilson's interval.
        other: the other share, with Wilson's interval.
    """

    def measure(tables: Tables) -> Interval | None:
        first = one(tables)
        second = other(tables)
        if first is None or second is None:
            return None
        difference = first.estimate - second.estimate
        below = np.hypot(first.estimate - first.low, second.high - second.estimate)
        above = np.hypot(first.high - first.estimate, second.estimate - second.low)
        low = float(difference - below)
        high = float(difference + above)
        return Interval(difference, low, high, min(first.n, second.n))

    return bounded(measure, *DIFFERENCE)


def probe(
    variable: str,
    depth: float,
    reading: str = "true",
    *,
    position: int,
    of: Rows,
    column: str = "accuracy",
    **where: Any,
) -> Measure:
    """The accuracy of a probe, with Wilson's interval over the items it was tested on.

    Args:
        variable: what is probed.
        depth: where, in blocks.
        reading: whether the probe is compared with its "true" or its "noisy" value.
        position: the position that is probed.
        of: the model.
        column: "accuracy", or "shuffled" for a probe of shuffled labels.
        where: another set than the memorized items, or `apart=True` for items with combinations of
            inputs that the probe was not trained on.
    """
    wanted = {
        **MEMORIZED,
        "apart": False,
        "variable": variable,
        "depth": depth,
        "reading": reading,
        "position": position,
        **of,
        **where,
    }

    def measure(tables: Tables) -> Interval:
        found = rows(tables["probes"], wanted).iloc[0]
        return proportion(float(found[column]), int(found["n"]))

    return bounded(measure, *SHARE)


def probe_at_best(
    variable: str, reading: str = "true", *, position: int, of: Rows, **where: Any
) -> Measure:
    """The accuracy of a probe where it is read best on test items, before the last MLP.

    The depth is chosen on test items, so that the items it is judged on have no part in the choice.
    What leaves the last MLP is the answer itself, on which memorized items differ by definition.

    Args:
        variable, reading, position, of, where: as for `probe`.
    """

    def measure(tables: Tables) -> Interval | float | None:
        apart = where.get("apart", False)
        wanted = {"variable": variable, "reading": "true", "position": position, "apart": apart}
        on_test = rows(tables["probes"], {**wanted, **of, **TEST})
        inside = on_test[on_test["depth"] < on_test["depth"].max()]
        depth = inside.loc[inside["accuracy"].idxmax(), "depth"]
        return probe(variable, depth, reading, position=position, of=of, **where)(tables)

    return bounded(measure, *SHARE)


def proportion(fraction: float, n: int) -> Interval:
    """A fraction of n items with Wilson's 95% interval."""
    from scipy.stats import binomtest

    found = binomtest(round(fraction * n), n).proportion_ci(method="wilson")
    # Where all items or none count, the end of Wilson's interval is the fraction itself, and
    # rounding must not put it on the wrong side.
    return Interval(fraction, min(found.low, fraction), max(found.high, fraction), n)


def erasure(removed: str, of: Rows, items: Rows = MEMORIZED) -> Measure:
    """The fraction of answers that stay the same when a subspace is removed after the first
    block."""
    return mean("erasure", "kept", removed=removed, block=0, **of, **items)


def erasure_of_all(removed: str, of: Rows, items: Rows = MEMORIZED) -> Measure:
    """`erasure` of all that several rounds have removed: of the subspaces of that name, those of
    the largest rank."""

    def measure(tables: Tables) -> Interval:
        found = rows(tables["erasure"], {"removed": removed, "block": 0, **of, **items})
        after_last_round: Any = found[found["rank"] == found["rank"].max()]
        return bootstrap(_by_item(after_last_round, "kept"))

    return bounded(measure, *SHARE)


def if_removed(removed: str, of: Rows, measure: Measure) -> Measure:
    """A measure that is not taken where there was no such subspace to remove."""

    def found(tables: Tables) -> Interval | float | None:
        names = rows(tables["erasure"], {"block": 0, **of})["removed"]
        return measure(tables) if (names == removed).any() else None

    return replace(measure, of=found)


def erased_variance(removed: str, of: Rows) -> Measure:
    """The share of the variance of clean items in a subspace that is removed after the first
    block, as the mean over draws."""
    return of_subspaces("variance", removed, of)


def of_subspaces(column: str, removed: str, of: Rows) -> Measure:
    """A property of a subspace that is removed after the first block, as the mean over draws."""

    def measure(tables: Tables) -> float:
        found = rows(tables["erasure"], {"removed": removed, "block": 0, **of})
        return float(found.groupby("draw")[column].first().mean())

    return bounded(measure, *SHARE)


def still_read(removed: str, of: Rows) -> Measure:
    """The accuracy of a new classifier for the intermediate result after the last removal, minus
    that of the most frequent value, after the first block."""

    def measure(tables: Tables) -> float:
        found = rows(tables["inlp"], {"removed": removed, "block": 0, **of}).iloc[-1]
        return float(found["accuracy"] - found["chance"])

    return bounded(measure, *DIFFERENCE)


def mean(table: str, column: str, bounds: Bounds | None = SHARE, **where: Any) -> Measure:
    """The mean over items. Where an item has several draws, their mean counts.

    Args:
        table, column: what is averaged.
        bounds: the least and the largest value that it can have.
        where: values of other columns, which choose the rows.
    """

    def measure(tables: Tables) -> Interval:
        return bootstrap(_by_item(rows(tables[table], where), column))

    return Measure(f"mean {column}", measure, bounds)


def _by_item(frame: pd.DataFrame, column: str) -> Values:
    return frame.groupby("item")[column].mean().dropna().to_numpy(dtype=float)


def difference(table: str, column: str, one: Rows, other: Rows) -> Measure:
    """The mean over some rows minus the mean over others, paired by item."""

    def measure(tables: Tables) -> Interval:
        return paired_interval(
            _by_item(rows(tables[table], one), column),
            _by_item(rows(tables[table], other), column),
        )

    return bounded(measure, *DIFFERENCE)


def between(table: str, one: str, other: str, **where: Any) -> Measure:
    """The mean of one column minus the mean of another, paired by item."""

    def measure(tables: Tables) -> Interval:
        frame = rows(tables[table], where)
        return paired_interval(_by_item(frame, one), _by_item(frame, other))

    return bounded(measure, *DIFFERENCE)


def apart(table: str, column: str, one: Rows, other: Rows) -> Measure:
    """The mean over some rows minus the mean over others, whose items are different."""

    def measure(tables: Tables) -> Interval:
        return unpaired_interval(
            _by_item(rows(tables[table], one), column),
            _by_item(rows(tables[table], other), column),
        )

    return bounded(measure, *DIFFERENCE)


def ratio(table: str, column: str, one: Rows, other: Rows) -> Callable[[Tables], Interval]:
    """The mean over some rows divided by the mean over others, whose items are different."""

    def ratio_of_means(a: Values, b: Values, axis: int = -1) -> Any:
        return a.mean(axis) / b.mean(axis)

    def measure(tables: Tables) -> Interval:
        samples = [
            _by_item(rows(tables[table], one), column),
            _by_item(rows(tables[table], other), column),
        ]
        return statistic_interval(samples, ratio_of_means)

    return measure


def is_comparable(tables: Tables, fraction: float, **of: Any) -> bool:
    """Whether circuits of a fraction of all edges can be compared: they have at least
    `FEWEST_EDGES`, and those of memorized and of test items each give at least `FAITHFUL` of the
    model's effect on their own items."""
    found = rows(tables["overlap"], {"fraction": fraction, **of})
    faithful = [
        faithfulness(name, fraction, **of)(tables) >= FAITHFUL for name in ("memorized", "test")
    ]
    return bool(found["edges"].iloc[0] >= FEWEST_EDGES and all(faithful))


def faithfulness(name: str, fraction: float, **of: Any) -> Callable[[Tables], float]:
    """How much of the model's effect on a set of items the circuit of the same items gives."""

    def measure(tables: Tables) -> float:
        wanted = {"circuit": name, "on": name, "fraction": fraction}
        return float(rows(tables["faithfulness"], {**wanted, **of})["faithfulness"].iloc[0])

    return measure


def smallest_comparable(tables: Tables, **of: Any) -> float | None:
    """The smallest fraction of all edges at which circuits can be compared, see `is_comparable`;
    None if there is none."""
    fractions = rows(tables["overlap"], of)["fraction"]
    for fraction in sorted(fractions.unique()):
        if is_comparable(tables, fraction, **of):
            return float(fraction)
    return None


def overlap(
    fraction: float, items: int, less: str | None = None, other: str = "test", **of: Any
) -> Measure:
    """The overlap (intersection over union) of the edges that matter most for memorized items and
    for another set, however well these edges explain the answers.

    Args:
        fraction: fraction of all edges that each circuit has.
        items: number of items of each set that circuits are found on.
        less: a control whose intersection over union with the memorized items is subtracted.
        other: the other set.
        of: the model.

    Returns:
        The measure, with the 95% percentile bootstrap interval over items.
    """

    def measure(tables: Tables) -> Interval:
        found = rows(tables["overlap"], {"fraction": fraction, **of})
        iou = found.pivot_table(index="sample", columns="other", values="iou")
        values = iou[other]
        if less is not None:
            # Sample by sample: both overlaps are those of one resample of the memorized items.
            values = values - iou[less]
        # Sample 0 is all items, the others are resamples.
        estimate, *resampled = values.to_numpy()
        low, high = np.quantile(resampled, [0.025, 0.975])
        # A resample has fewer different items, which makes circuits agree less: the estimate on all
        # items may lie above the interval.
        return Interval(estimate, min(low, estimate), max(high, estimate), items)

    return bounded(measure, *(SHARE if less is None else DIFFERENCE))


def overlap_if_faithful(fraction: float, items: int, less: str, **of: Any) -> Measure:
    """`overlap` with test items minus that with a control, where the circuits can be compared; not
    measured elsewhere."""

    def measure(tables: Tables) -> Interval | float | None:
        if not is_comparable(tables, fraction, **of):
            return None
        return overlap(fraction, items, less, **of)(tables)

    return bounded(measure, *DIFFERENCE)


def overlap_of_smallest(items: int, less: str, **of: Any) -> Measure:
    """`overlap` with test items minus that with a control, of the smallest circuits that can be
    compared; not measured if there are none."""

    def measure(tables: Tables) -> Interval | float | None:
        fraction = smallest_comparable(tables, **of)
        return None if fraction is None else overlap(fraction, items, less, **of)(tables)

    return bounded(measure, *DIFFERENCE)


def component_correlation(kind: str = "head|MLP", **where: Any) -> Measure:
    """Pearson's correlation, over components, between the share of memorized answers and the share
    of test answers that survive when the component is ablated.

    Args:
        kind: a regular expression that the names of the components match.
        where: values of other columns, which choose the rows.
    """

    def measure(tables: Tables) -> Interval | None:
        found = rows(tables["components"], where)
        found = found[found["component"].str.contains(kind)]
        memorized = _wide(found[found["set"] == "memorized"], "component")
        test = _wide(found[found["set"] == "test"], "component")
        # Of what is kept: the correlation of what is lost is the same.
        return _over_items([memorized, test], _correlation_of_means)

    return bounded(measure, *DIFFERENCE)


def _correlation_of_means(
    one: Float[np.ndarray, "items columns"], other: Float[np.ndarray, "items columns"]
) -> float:
    """NaN where all components of either cost the same."""
    means = [one.mean(0), other.mean(0)]
    if any(np.ptp(values) == 0 for values in means):
        return np.nan
    return float(np.corrcoef(*means)[0, 1])


def effective_positions(*, inputs: int, less_test: bool = False, **where: Any) -> Measure:
    """The effective number of input positions that memorized answers depend on, see
    `participation`; with `less_test`, minus that of test answers. Not measured where no position
    costs any answer.

    Args:
        inputs: number of input positions.
        less_test: whether that of test answers is subtracted.
        where: values of other columns, which choose the rows.
    """

    def measure(tables: Tables) -> Interval | None:
        found = rows(tables["positions"], where)
        memorized = _wide(found[found["set"] == "memorized"], "position")
        if not less_test:
            return _over_items([memorized], _effective)
        test = _wide(found[found["set"] == "test"], "position")
        return _over_items([memorized, test], lambda a, b: _effective(a) - _effective(b))

    return bounded(measure, *((1 - inputs, inputs - 1) if less_test else (1, inputs)))


def _effective(kept: Float[np.ndarray, "items positions"]) -> float:
    """The effective number of positions; every item was right before."""
    return participation(1 - kept.mean(0))


def different_neurons(column: str, **where: Any) -> Measure:
    """The fraction of the neurons of an MLP that are among those chosen for any item.

    Args:
        column: "items" for the first contributors, "by chance" for as many random ones.
        where: values of other columns, which choose the rows.
    """

    def measure(tables: Tables) -> float:
        counts = rows(tables["shared"], where)[column]
        return float((counts > 0).mean())

    return bounded(measure, *SHARE)


def survival(
    statistic: Callable[[Float[np.ndarray, " positions"]], float], **where: Any
) -> Measure:
    """A statistic, over exchanged positions, of how often the memorized answer stays when the token
    at a position is exchanged."""

    def measure(tables: Tables) -> Interval | None:
        changed = rows(tables["perturbed"], {"set": "memorized", **where})
        # Where the memorized answer happens to be the right one for the changed question, giving it
        # shows nothing: these questions are left out.
        kept = changed["kept"].astype(float).mask(changed["same"])
        survived = _wide(changed.assign(kept=kept), "position")
        return _over_items([survived], lambda kept: float(statistic(_mean_of_known(kept))))

    return bounded(measure, *SHARE)


def _mean_of_known(kept: Float[np.ndarray, "items positions"]) -> Float[np.ndarray, " positions"]:
    """The mean over the items that are known at each position, NaN where none is."""
    known = ~np.isnan(kept)
    total = np.where(known, kept, 0.0).sum(0)
    count = known.sum(0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _wide(frame: pd.DataFrame, columns: str) -> Float[np.ndarray, "items columns"]:
    """Which answers were kept, one row per item and one column per component or position."""
    # Columns in the order of the table, so that those of two sets mean the same.
    wide = frame.pivot_table(index="item", columns=columns, values="kept", sort=False)
    return wide.to_numpy(dtype=float)


def _over_items(
    tables: Sequence[Float[np.ndarray, "items columns"]], statistic: Callable[..., float]
) -> Interval | None:
    """The 95% percentile bootstrap interval of a statistic of tables whose items are resampled,
    those of each table independently.

    None where the statistic is NaN: not defined for these items. Resamples for which it is not
    defined are left out.
    """
    estimate = statistic(*tables)
    if np.isnan(estimate):
        return None
    rng = np.random.default_rng(0)
    resampled: list[float] = []
    for _ in range(_RESAMPLES):
        drawn = [table[rng.integers(0, len(table), len(table))] for table in tables]
        resampled.append(statistic(*drawn))
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    items = min(map(len, tables))
    return Interval(estimate, min(low, estimate), max(high, estimate), items)
