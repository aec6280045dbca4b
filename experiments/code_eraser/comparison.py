"""The table in which all removals are compared, at both points of their paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.code_eraser.checks_of_removals import at_damage, at_forgetting
from experiments.code_eraser.paths import DAMAGE, FORGETTING
from interp.experiment.checks import Tables

_OF_PATHS = ("dose", "ma", "rise", "context", "retained", "memorized", "other_secrets")
_READ = {FORGETTING: at_forgetting, DAMAGE: at_damage}
_OF_REPORTS = {
    ("relearning", "forget, not trained on"): "relearned",
    ("relearning", "never seen, not trained on"): "relearned of never-seen secrets",
    ("rounding", "forget"): "rounded",
}
_COLUMNS = ["seed", "point", "removal", "control", "measure", "value"]


def summaries(tables: Tables) -> dict[str, pd.DataFrame]:
    """Returns the table `comparison`: one row per seed, point (see `paths`), removal, control and
    measure, with its value.

    The measures are those of the paths (of controls the mean over draws; a draw that does not get
    to the point leaves its control out); depth, clipped and not; what is recited after relearning
    of other files, by the number of steps, with never-seen secrets; and after rounding, by bits.
    """
    found = [*_of_paths(tables), *_of_depths(tables), *_of_reports(tables)]
    return {"comparison": pd.DataFrame(found, columns=_COLUMNS)}


def _of_paths(tables: Tables) -> Iterator[dict[str, Any]]:
    groups: Any = tables["paths"].groupby(["seed", "removal", "control"], sort=False)
    for (seed, removal, control), draws in groups:
        for point, read in _READ.items():
            for measure in _OF_PATHS:
                values = [read(path, measure) for _, path in draws.groupby("draw")]
                known = [value for value in values if value is not None]
                # A mean over the draws that get there alone would be one over those that do most.
                if len(known) == len(values):
                    mean = sum(known) / len(known)
                    yield _row(seed, point, removal, measure, mean, control)


def _of_depths(tables: Tables) -> Iterator[dict[str, Any]]:
    groups: Any = tables["depth"].groupby(["seed", "point", "removal"], sort=False)
    for (seed, point, removal), items in groups:
        for measure in ("depth", "unclipped"):
            mean = float(items[measure].mean())
            yield _row(seed, point, removal, measure, mean)


def _of_reports(tables: Tables) -> Iterator[dict[str, Any]]:
    reports: Any = tables["reports"]
    own = reports[(reports["model"] == "after") & (reports["measure"] == "ma")]
    for _, row in own.iterrows():
        name = _OF_REPORTS.get((row["group"], row["data"]))
        if name is not None:
            unit = "bits" if row["group"] == "rounding" else "steps"
            measure = f"{name}, {row['at']} {unit}"
            yield _row(row["seed"], row["point"], row["removal"], measure, row["estimate"])


def _row(
    seed: int, point: str, removal: str, measure: str, value: float, control: str = ""
) -> dict[str, Any]:
    return dict(zip(_COLUMNS, (seed, point, removal, control, measure, value), strict=True))
