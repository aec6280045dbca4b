"""What claims are made of: numbers with their intervals over items, from the tables of one seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.reason_to_rote.distributed import participation
from interp.reporting.stats import Interval, bootstrap, paired, several

Tables = Mapping[str, pd.DataFrame]
Measure = Callable[[Tables], Interval]
_RESAMPLES = 500  # where the statistic is computed one resample at a time


def rows(tables: Tables, name: str, **where: Any) -> pd.DataFrame:
    """The rows of a table with these values. Raises ValueError when there are none."""
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


def at_first(column: str, passed: float, never: float, **where: Any) -> Measure:
    """A measure of the history when the test accuracy first reached `passed`; `never` where it did
    not."""

    def measure(tables: Tables) -> Interval:
        history = rows(tables, "dynamics", **where)
        reached = history[history["test"] >= passed]
        return point(reached.iloc[0][column] if len(reached) else never)

    return measure


def steps_ratio(**where: Any) -> Measure:
    """Steps until half of the noisy items are memorized, by steps until the test accuracy is .9;
    all steps where it never was."""

    def measure(tables: Tables) -> Interval:
        history = rows(tables, "dynamics", **where)
        reached = [
            history.loc[history[column] >= passed, "step"]
            for column, passed in (("memorized", 0.5), ("test", 0.9))
        ]
        memorized, passed = (
            1 + (steps.iloc[0] if len(steps) else history["step"].iloc[-1]) for steps in reached
        )
        return point(memorized / passed)

    return measure


def last(column: str, **where: Any) -> Measure:
    """A measure at the end of training."""
    return lambda tables: point(rows(tables, "dynamics", **where).iloc[-1][column])


def largest(column: str, **where: Any) -> Measure:
    """The largest value on the way."""
    return lambda tables: point(rows(tables, "dynamics", **where)[column].max())


def decoded(column: str, **where: Any) -> Measure:
    """What a probe reads; Wilson's interval over the items tested."""

    def measure(tables: Tables) -> Interval:
        found = rows(tables, "probes", **where).iloc[0]
        return _proportion(float(found[column]), int(found["n"]))

    return measure


def _proportion(share: float, n: int) -> Interval:
    from scipy.stats import binomtest

    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return Interval(share, min(found.low, share), max(found.high, share), n)


def mean(table: str, column: str, **where: Any) -> Measure:
    """The mean over items; where there are several draws, of their mean."""
    return lambda tables: bootstrap(_by_item(rows(tables, table, **where), column))


def _by_item(frame: pd.DataFrame, column: str) -> np.ndarray:
    return frame.groupby("item")[column].mean().dropna().to_numpy(dtype=float)


def difference(
    table: str, column: str, one: Mapping[str, Any], other: Mapping[str, Any]
) -> Measure:
    """The mean of one less that of another, over the same items."""
    return lambda tables: paired(
        *(_by_item(rows(tables, table, **where), column) for where in (one, other))
    )


def between(table: str, one: str, other: str, **where: Any) -> Measure:
    """The mean of one column less that of another, over the same items."""
    return lambda tables: paired(
        *(_by_item(rows(tables, table, **where), column) for column in (one, other))
    )


def apart(table: str, column: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Measure:
    """The mean of one less that of another, over different items."""
    return lambda tables: several(
        [_by_item(rows(tables, table, **where), column) for where in (one, other)], _minus
    )


def ratio(table: str, column: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Measure:
    """The mean of one by that of another, over different items."""
    return lambda tables: several(
        [_by_item(rows(tables, table, **where), column) for where in (one, other)], _by
    )


def _minus(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


def _by(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() / b.mean())


def overlap(fraction: float, less: str | None = None, other: str = "test", **where: Any) -> Measure:
    """Intersection over union with the edges of memorized items, less that of a control;
    percentiles over resamples of the items."""

    def measure(tables: Tables) -> Interval:
        found = rows(tables, "overlap", fraction=fraction, **where).pivot_table(
            index="sample", columns="other", values="iou"
        )
        values = (found[other] - (0 if less is None else found[less])).to_numpy()
        low, high = np.quantile(values[1:], [0.025, 0.975])
        return Interval(values[0], min(low, values[0]), max(high, values[0]), len(values) - 1)

    return measure


def component_correlation(kind: str = "head|MLP", **where: Any) -> Measure:
    """Pearson's correlation, over components (of a kind), of what ablating one costs memorized and
    test items."""

    def measure(tables: Tables) -> Interval:
        whole, sets = rows(tables, "components", **where), ("memorized", "test")
        kept = [
            _wide(
                whole[(whole["set"] == name) & whole["component"].str.contains(kind)], "component"
            )
            for name in sets
        ]
        return _over_items(kept, lambda a, b: float(np.corrcoef(a.mean(0), b.mean(0))[0, 1]))

    return measure


def effective_positions(*, less_test: bool = False, **where: Any) -> Measure:
    """The effective number of positions that memorized items depend on, or how many more than test
    items do."""

    def measure(tables: Tables) -> Interval:
        table, sets = (
            rows(tables, "positions", **where),
            ("memorized", "test") if less_test else ("memorized",),
        )
        kept = [_wide(table[table["set"] == name], "position") for name in sets]
        return _over_items(
            kept, lambda *of: _participation(of[0]) - (_participation(of[1]) if less_test else 0.0)
        )

    return measure


def _participation(kept: np.ndarray) -> float:
    return participation(1 - kept.mean(0))


def survival(statistic: Callable[[np.ndarray], float], **where: Any) -> Measure:
    """A statistic of how often the memorized answer survives another token, over the positions
    exchanged; without the questions to which it happens to be the right answer now."""

    def measure(tables: Tables) -> Interval:
        changed = rows(tables, "perturbed", set="memorized", **where)
        kept = _wide(
            changed.assign(kept=changed["kept"].astype(float).mask(changed["same"])), "position"
        )
        return _over_items([kept], lambda of: float(statistic(np.nanmean(of, 0))))

    return measure


def _wide(frame: pd.DataFrame, columns: str) -> np.ndarray:
    """[items, columns] of what was kept."""
    return frame.pivot_table(index="item", columns=columns, values="kept", sort=False).to_numpy(
        dtype=float
    )


def _over_items(tables: list[np.ndarray], statistic: Callable[..., float]) -> Interval:
    """The interval of a statistic of tables [items, columns] whose items are resampled, each
    table's by themselves."""
    items = [np.arange(len(table)) for table in tables]

    def of(*chosen: np.ndarray) -> float:
        return statistic(
            *(table[index.astype(int)] for table, index in zip(tables, chosen, strict=True))
        )

    return several(items, of, resamples=_RESAMPLES)
