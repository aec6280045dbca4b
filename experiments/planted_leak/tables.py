"""The drop over fine-tuning seeds, as the figure shows it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from interp.experiment.checks import Tables
from interp.reporting.stats import Bounds, Interval, MeanOverSeeds

_KEYS = ["selection", "fraction", "k", "data", "measure"]


def summaries(tables: Tables) -> dict[str, pd.DataFrame]:
    """The table `over_seeds`: the mean over fine-tuning seeds of each row of `drops`."""
    return {"over_seeds": over_seeds(tables["drops"])}


def over_seeds(drops: pd.DataFrame) -> pd.DataFrame:
    """The mean of every estimate over fine-tuning seeds, with its interval over seeds and windows.

    Args:
        drops: the table of that name, which holds the mean over random draws for each seed.

    Returns:
        One row per selection, fraction, data and measure: the mean `before`, `estimate` and
        `change`, the bounds of both intervals, and the number of `seeds`.
    """
    rows: list[dict[str, Any]] = []
    for key, group in drops.groupby(_KEYS, sort=False):
        row = dict(zip(_KEYS, key, strict=True))
        # Shares have bounds, within which their intervals have to stay; a loss has none.
        is_share = row["measure"] != "loss"
        after = _mean(group, ("estimate", "low", "high"), (0, 1) if is_share else None)
        change = _mean(
            group, ("change", "change_low", "change_high"), (-1, 1) if is_share else None
        )
        row |= {
            "before": group["before"].mean(),
            "estimate": after.estimate,
            "low": after.low,
            "high": after.high,
            "change": change.estimate,
            "change_low": change.low,
            "change_high": change.high,
            "seeds": len(group),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(group: pd.DataFrame, columns: tuple[str, str, str], bounds: Bounds | None) -> Interval:
    """The mean over the seeds of a group, whose columns hold an estimate and its interval."""
    values = group[[*columns, "windows"]].itertuples(index=False)
    seeds = [Interval(*map(float, row[:3]), n=int(row[3])) for row in values]
    if len(seeds) == 1:
        return seeds[0]
    return MeanOverSeeds(seeds, bounds).interval
