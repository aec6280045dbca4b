"""Means over models of what was measured, and the two published tables next to ours in the same
form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.localization_benchmarks import published
from interp.experiment.checks import Tables
from interp.reporting.stats import Bounds, MeanOverSeeds, bootstrap

TABLES = (
    "models",
    "injection",
    "lookup",
    "deletion",
    "related",
    "confusion",
    "blocks",
    "sums",
    "correlation",
)
_NOT_MEASURES = ("blocks", "method", "fraction", "target", "k", "seed")


def summaries(tables: Tables) -> dict[str, pd.DataFrame]:
    """INJ and DEL as means over seeds with intervals, and the same next to what was published."""
    recalls = over_seeds(
        tables["injection"],
        ["condition", "fraction", "method", "multiple"],
        {"recall": (0, 1)},
        item="window",
    )
    # How well the sequences were memorized at all: where they were not, there is nothing that a
    # method could find.
    memorized = tables["injection"].groupby("condition")["accuracy"].mean()
    recalls["memorized"] = recalls["condition"].map(memorized)
    measures = [name for name in tables["deletion"].columns if name not in _NOT_MEASURES]
    # A change of accuracy is at most 1 either way; the other changes have no bounds.
    bounds: dict[str, Bounds | None] = {
        name: (-1, 1) if name.endswith("_accuracy") else None for name in measures
    }
    changes = over_seeds(
        tables["deletion"], ["blocks", "method", "fraction"], bounds, item="target"
    )
    return {
        "injection_summary": recalls,
        "deletion_summary": changes,
        **with_published(recalls, changes),
    }


def with_published(recalls: pd.DataFrame, changes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The two published tables with ours in the same form, as the model "ours": by condition, and
    by the blocks in which neurons were dropped."""
    ours = recalls.assign(model="ours, " + recalls["condition"], recall=recalls["estimate"])
    injection = [published.injection(), ours[["model", "fraction", "method", "multiple", "recall"]]]
    dropped = changes.assign(model="ours, " + changes["blocks"], change=changes["estimate"])
    deletion = [published.deletion(), dropped[["model", "fraction", "method", "measure", "change"]]]
    return {
        "injection_and_published": pd.concat(injection, ignore_index=True),
        "deletion_and_published": pd.concat(deletion, ignore_index=True),
    }


def over_seeds(
    frame: pd.DataFrame, keys: Sequence[str], measures: Mapping[str, Bounds | None], item: str
) -> pd.DataFrame:
    """Means over seeds with their 95% intervals over seeds and items; each seed counts once.

    Args:
        frame: a table of one or several seeds, with a column `seed`.
        keys: the columns that rows are grouped by.
        measures: the columns that are averaged, with the bounds of their values.
        item: the column that names the item of a row; where an item has several, their mean counts.

    Returns:
        One row per combination of keys and `measure`: `estimate`, `low`, `high`, `seeds`.
    """
    found: list[dict[str, Any]] = []
    groups: Any = frame.groupby(list(keys), sort=False)
    for key, group in groups:
        for measure, bounds in measures.items():
            # Rows of one item are not independent of each other, so that items are resampled and
            # not rows.
            by_item = group.groupby(["seed", item])[measure].mean()
            seeds = [bootstrap(values) for _, values in by_item.groupby(level="seed")]
            mean = seeds[0] if len(seeds) == 1 else MeanOverSeeds(seeds, bounds).interval
            row = dict(zip(keys, key, strict=True))
            row |= {
                "measure": measure,
                "estimate": mean.estimate,
                "low": mean.low,
                "high": mean.high,
                "seeds": len(seeds),
            }
            found.append(row)
    return pd.DataFrame(found)
