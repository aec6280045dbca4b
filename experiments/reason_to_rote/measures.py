"""The measures that checks are made of: each maps the tables of one seed to a number with its
interval over items. Also the values that choose rows of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.reason_to_rote.distributed import participation
from interp.reporting.stats import Interval, bootstrap, paired_interval, statistic_interval

Tables = Mapping[str, pd.DataFrame]
Measure = Callable[[Tables], Interval]
Rows = Mapping[str, Any]  # the values that rows of a table have in some of its columns

# Fewer than usual, where the statistic is computed one resample at a time.
_RESAMPLES = 500

# The models: at the end of training on wrong labels; the model with the planted look-up; the model
# that was trained without wrong labels.
FDA: Rows = {"task": "FDA", "stage": "end"}
THR: Rows = {"task": "THR", "stage": "end"}
LOOKUP: Rows = {"task": "FDA", "stage": "look-up"}
NOISE_FREE: Rows = {"task": "FDA", "stage": "without noise"}

# The sets of items.
MEMORIZED: Rows = {"set": "memorized"}
TEST: Rows = {"set": "test"}


def rows(tables: Tables, name: str, **where: Any) -> pd.DataFrame:
    """The rows of a table that have the given values. Raises ValueError when there are none."""
    frame = tables[name]
    # One mask for all columns: taking the rows of a large table once per column is most of the time
    # of a claim.
    wanted = np.ones(len(frame), dtype=bool)
    for column, value in where.items():
        wanted &= (frame[column] == value).to_numpy(dtype=bool)
    found = frame[wanted]
    if found.empty:
        raise ValueError(f"{name}: no row with {where}")
    return found


def point(value: float) -> Interval:
    """A number that has no interval within one seed."""
    return Interval(value, value, value, 1)


def donor(kind: str, of: Rows, items: Rows = MEMORIZED) -> Rows:
    """Rows of `donors` with the residual stream replaced after the first block, at the position of
    the intermediate result, by that of donors with the same or another intermediate result."""
    return {"place": "intermediate", "donor": kind, "block": 0, **of, **items}


def dose(selection: str, k: int, block: int) -> Rows:
    """Rows of `doses` about the memorized items of FDA with k neurons of a block reset."""
    return {"selection": selection, "k": k, "block": block, **FDA, **MEMORIZED}


def at_first(column: str, passed: float, never: float, **where: Any) -> Measure:
    """An accuracy at the time when the test accuracy first reached `passed`; `never` if it did
    not."""

    def measure(tables: Tables) -> Interval:
        history = rows(tables, "dynamics", **where)
        reached = history[history["test"] >= passed]
        if reached.empty:
            return point(never)
        return point(reached.iloc[0][column])

    return measure


def steps_ratio(**where: Any) -> Measure:
    """Optimizer steps until half of the noisy items are memorized, divided by those until the test
    accuracy is 0.9; what was never reached counts as all steps."""

    def measure(tables: Tables) -> Interval:
        history = rows(tables, "dynamics", **where)
        memorizing = _steps_until(history, "memorized", 0.5)
        passing = _steps_until(history, "test", 0.9)
        return point(memorizing / passing)

    return measure


def _steps_until(history: pd.DataFrame, column: str, value: float) -> int:
    """The number of steps until an accuracy reached a value; all steps if it never did."""
    reached = history.loc[history[column] >= value, "step"]
    # Steps are numbered from 0.
    return 1 + (history["step"].iloc[-1] if reached.empty else reached.iloc[0])


def last(column: str, **where: Any) -> Measure:
    """An accuracy at the end of training."""

    def measure(tables: Tables) -> Interval:
        return point(rows(tables, "dynamics", **where).iloc[-1][column])

    return measure


def largest(column: str, **where: Any) -> Measure:
    """The largest value of an accuracy during training."""

    def measure(tables: Tables) -> Interval:
        return point(rows(tables, "dynamics", **where)[column].max())

    return measure


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
        found = rows(tables, "probes", **wanted).iloc[0]
        return _proportion(float(found[column]), int(found["n"]))

    return measure


def _proportion(fraction: float, n: int) -> Interval:
    from scipy.stats import binomtest

    found = binomtest(round(fraction * n), n).proportion_ci(method="wilson")
    return Interval(fraction, min(found.low, fraction), max(found.high, fraction), n)


def erasure(removed: str, of: Rows, items: Rows = MEMORIZED) -> Measure:
    """The fraction of answers that stay the same when a subspace is removed after the first
    block."""
    return mean("erasure", "kept", removed=removed, block=0, **of, **items)


def mean(table: str, column: str, **where: Any) -> Measure:
    """The mean over items. Where an item has several draws, their mean counts."""

    def measure(tables: Tables) -> Interval:
        return bootstrap(_by_item(rows(tables, table, **where), column))

    return measure


def _by_item(frame: pd.DataFrame, column: str) -> Float[np.ndarray, " items"]:
    return frame.groupby("item")[column].mean().dropna().to_numpy(dtype=float)


def difference(table: str, column: str, one: Rows, other: Rows) -> Measure:
    """The mean over some rows minus the mean over others, paired by item."""

    def measure(tables: Tables) -> Interval:
        return paired_interval(
            _by_item(rows(tables, table, **one), column),
            _by_item(rows(tables, table, **other), column),
        )

    return measure


def between(table: str, one: str, other: str, **where: Any) -> Measure:
    """The mean of one column minus the mean of another, paired by item."""

    def measure(tables: Tables) -> Interval:
        frame = rows(tables, table, **where)
        return paired_interval(_by_item(frame, one), _by_item(frame, other))

    return measure


def apart(table: str, column: str, one: Rows, other: Rows) -> Measure:
    """The mean over some rows minus the mean over others, whose items are different."""
    return _unpaired(table, column, one, other, lambda a, b: float(a.mean() - b.mean()))


def ratio(table: str, column: str, one: Rows, other: Rows) -> Measure:
    """The mean over some rows divided by the mean over others, whose items are different."""
    return _unpaired(table, column, one, other, lambda a, b: float(a.mean() / b.mean()))


def _unpaired(
    table: str, column: str, one: Rows, other: Rows, statistic: Callable[..., float]
) -> Measure:
    """A statistic of two samples of different items."""

    def measure(tables: Tables) -> Interval:
        samples = [
            _by_item(rows(tables, table, **one), column),
            _by_item(rows(tables, table, **other), column),
        ]
        return statistic_interval(samples, statistic)

    return measure


def overlap(fraction: float, less: str | None = None, other: str = "test", **where: Any) -> Measure:
    """The overlap (intersection over union) of the edges that matter most for memorized items and
    for another set.

    Args:
        fraction: fraction of all edges that each circuit has.
        less: a control whose intersection over union with the memorized items is subtracted.
        other: the other set.
        where: values of other columns, which choose the rows.

    Returns:
        The measure, with the 95% percentile bootstrap interval over items.
    """

    def measure(tables: Tables) -> Interval:
        found = rows(tables, "overlap", fraction=fraction, **where)
        iou = found.pivot_table(index="sample", columns="other", values="iou")
        values = iou[other]
        if less is not None:
            values = values - iou[less]
        # Sample 0 is all items, the others are resamples.
        estimate, *resampled = values.to_numpy()
        low, high = np.quantile(resampled, [0.025, 0.975])
        return Interval(estimate, min(low, estimate), max(high, estimate), len(resampled))

    return measure


def component_correlation(kind: str = "head|MLP", **where: Any) -> Measure:
    """Pearson's correlation, over components, between the share of memorized answers and the share
    of test answers that survive when the component is ablated.

    Args:
        kind: a regular expression that the names of the components match.
        where: values of other columns, which choose the rows.
    """

    def measure(tables: Tables) -> Interval:
        found = rows(tables, "components", **where)
        found = found[found["component"].str.contains(kind)]
        memorized = _wide(found[found["set"] == "memorized"], "component")
        test = _wide(found[found["set"] == "test"], "component")
        return _over_items([memorized, test], _correlation_of_means)

    return measure


def _correlation_of_means(
    one: Float[np.ndarray, "items columns"], other: Float[np.ndarray, "items columns"]
) -> float:
    return float(np.corrcoef(one.mean(0), other.mean(0))[0, 1])


def effective_positions(*, less_test: bool = False, **where: Any) -> Measure:
    """The effective number of input positions that memorized answers depend on, see
    `participation`; with `less_test`, minus that of test answers."""

    def measure(tables: Tables) -> Interval:
        found = rows(tables, "positions", **where)
        memorized = _wide(found[found["set"] == "memorized"], "position")
        if not less_test:
            return _over_items([memorized], _effective)
        test = _wide(found[found["set"] == "test"], "position")
        return _over_items([memorized, test], lambda a, b: _effective(a) - _effective(b))

    return measure


def _effective(kept: Float[np.ndarray, "items positions"]) -> float:
    """The effective number of positions; every item was right before."""
    return participation(1 - kept.mean(0))


def survival(
    statistic: Callable[[Float[np.ndarray, " positions"]], float], **where: Any
) -> Measure:
    """A statistic, over exchanged positions, of how often the memorized answer stays when the token
    at a position is exchanged."""

    def measure(tables: Tables) -> Interval:
        changed = rows(tables, "perturbed", set="memorized", **where)
        # Where the memorized answer happens to be the right one for the changed question, giving it
        # shows nothing: these questions are left out.
        kept = changed["kept"].astype(float).mask(changed["same"])
        survived = _wide(changed.assign(kept=kept), "position")
        return _over_items([survived], lambda kept: float(statistic(np.nanmean(kept, 0))))

    return measure


def _wide(frame: pd.DataFrame, columns: str) -> Float[np.ndarray, "items columns"]:
    """Which answers were kept, one row per item and one column per component or position."""
    wide = frame.pivot_table(index="item", columns=columns, values="kept", sort=False)
    return wide.to_numpy(dtype=float)


def _over_items(
    tables: Sequence[Float[np.ndarray, "items columns"]], statistic: Callable[..., float]
) -> Interval:
    """The bootstrap interval of a statistic of tables whose items are resampled, those of each
    table independently."""
    # `statistic_interval` resamples vectors: it is given the numbers of the items, and takes their
    # rows here.
    items = [np.arange(len(table)) for table in tables]

    def of_items(*chosen: np.ndarray) -> float:
        sampled = [
            table[numbers.astype(int)] for table, numbers in zip(tables, chosen, strict=True)
        ]
        return statistic(*sampled)

    return statistic_interval(items, of_items, resamples=_RESAMPLES)
