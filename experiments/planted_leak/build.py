"""What is run on one seed: the demo of the toolkit, whose results become tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from experiments.planted_leak.presets import Preset
from interp.cli.demo import Leak, Recipe, planted_leak
from interp.experiment.jobs import Folder, Job, job


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per seed: a model is fine-tuned, scanned, localized in and ablated."""
    yield job(leak, preset.recipe, seed, Folder("runs"))


def leak(recipe: Recipe, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of one seed; the demo's own files stay in `folder`."""
    made = planted_leak(folder / f"seed{seed}", seed, recipe, tell=_silent)
    return tables_of(made)


def tables_of(made: Leak) -> dict[str, pd.DataFrame]:
    """The tables of one leak.

    Args:
        made: the results of the demo.

    Returns:
        `drops`: one row per selection of neurons, fraction, data and measure, as in the demo's
        report. `scans`: one row per window. `equal_damage`: one row about the random neurons that
        hurt held-out text as much as the selection; the columns are those of `EqualDamage`, with
        the ends of each interval as `_low` and `_high`.
    """
    equal = made.report.equal_damage
    row = {
        "k": equal.k,
        "reached": equal.reached,
        "distinguishable": equal.distinguishable,
        "accuracy": equal.accuracy,
        "windows": equal.advantage.n,
    }
    for name in ("advantage", "damage", "random_damage"):
        interval = getattr(equal, name)
        row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {
        "drops": made.report.frame,
        "scans": made.scan.drop(columns=["tokens"]),
        "equal_damage": pd.DataFrame([row]),
    }


def _silent(_: str) -> None:
    return
