"""One fine-tuned model: the demo with one seed, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from experiments.planted_leak.presets import Preset
from interp.cli.demo import Leak, Recipe, planted_leak
from interp.experiment.jobs import Folder, Job, job


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per seed: a model is fine-tuned, scanned, localized and ablated."""
    yield job(leak, preset.recipe, seed, Folder("runs"))


def leak(recipe: Recipe, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of one seed; what the demo writes of it stays in `folder`."""
    return tables_of(planted_leak(folder / f"seed{seed}", seed, recipe, tell=_silent))


def tables_of(made: Leak) -> dict[str, pd.DataFrame]:
    """The tables of one leak.

    `drops`: one row per selection, fraction, data and measure, as in the demo's report. `scans`:
    one row per window. `equal_damage`: one row, random neurons that hurt held-out text as much as
    the selection.
    """
    equal = made.report.equal_damage
    row = {
        "k": equal.k,
        "reached": equal.reached,
        "accuracy": equal.accuracy,
        "advantage": equal.advantage.estimate,
    }
    return {
        "drops": made.report.frame,
        "scans": made.scan.drop(columns=["tokens"]),
        "equal_damage": pd.DataFrame([row]),
    }


def _silent(_: str) -> None:
    return
