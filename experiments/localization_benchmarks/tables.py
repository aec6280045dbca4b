"""Means over models of what was measured, and the two published tables next to ours in the same
form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.localization_benchmarks import published
from interp.experiment.checks import Tables
from interp.reporting.stats import student_interval

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
        tables["injection"], ["condition", "fraction", "method", "multiple"], ["recall"]
    )
    measures = [name for name in tables["deletion"].columns if name not in _NOT_MEASURES]
    changes = over_seeds(tables["deletion"], ["blocks", "method", "fraction"], measures)
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


def over_seeds(frame: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Means over seeds with Student's 95% intervals; each seed counts once.

    Args:
        frame: a table of several seeds, with a column `seed`.
        keys: the columns that rows are grouped by.
        values: the columns that are averaged.

    Returns:
        One row per combination of keys and value (`measure`): `estimate`, `low`, `high`, `seeds`.
    """
    found: list[dict[str, Any]] = []
    groups: Any = frame.groupby(list(keys), sort=False)
    for key, group in groups:
        for value in values:
            mean = student_interval(group.groupby("seed")[value].mean())
            row = dict(zip(keys, key, strict=True))
            row |= {
                "measure": value,
                "estimate": mean.estimate,
                "low": mean.low,
                "high": mean.high,
                "seeds": mean.n,
            }
            found.append(row)
    return pd.DataFrame(found)
