"""How much hangs on the recipe: addition with other shares of noise, kinds of noise, sizes and
initial weights, one change at a time.

`python -m experiments.reason_to_rote.sweep --preset small --seed 10` takes about 16 minutes on two
cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.reason_to_rote.decoding import decoded
from experiments.reason_to_rote.distributed import positions
from experiments.reason_to_rote.erasing import erased
from experiments.reason_to_rote.measures import (
    Measure,
    effective_positions,
    largest,
    last,
    mean,
    steps_ratio,
)
from experiments.reason_to_rote.neurons import TOP, outliers
from experiments.reason_to_rote.presets import PRESETS, Recipe
from experiments.reason_to_rote.study import Tables, study
from experiments.reason_to_rote.tasks import exact, learned, task
from experiments.reason_to_rote.terms import FDA, MEM, TEST, dose, erasure, probe
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Folder, Job, job
from interp.reporting.panels import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Change = Mapping[str, Mapping[str, Any]]
CHANGES: dict[str, Change] = {
    "as in small": {},
    "2% noise": {"data": {"noise": 0.02}},
    "10% noise": {"data": {"noise": 0.1}},
    "20% noise": {"data": {"noise": 0.2}},
    "one digit wrong": {"data": {"rule": "one_digit"}},
    "3 blocks": {"model": {"blocks": 3}},
    "width 64": {"model": {"width": 64}},
    "initial weights .02": {"model": {"spread": 0.02}},
    "initial weights .05": {"model": {"spread": 0.05}},
}
FEW = ("as in small", "10% noise", "3 blocks")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Which changes of addition are tried, on how many seeds; otherwise as `presets.Preset`."""

    seeds: int = 1
    FDA: Recipe
    clean: int
    items: int
    draws: int
    changes: tuple[str, ...]


def jobs(preset: Preset, seed: int) -> list[Job]:
    """One model per change."""
    return [job(of_change, name, preset, seed, Folder("models")) for name in preset.changes]


def of_change(name: str, preset: Preset, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """The table of one change."""
    return {"sweep": changed(name, preset, seed, folder)}


def changed(name: str, settings: Preset, seed: int, folder: Path) -> pd.DataFrame:
    """What is measured on the model of one change: `change`, `measure`, `estimate`, `low`, `high`;
    only how it learned where nothing was memorized or passed."""
    preset = {
        part: {**getattr(settings.FDA, part), **CHANGES[name].get(part, {})}
        for part in ("data", "model", "training")
    }
    of = task("FDA", preset["data"], seed)
    known = learned(of, preset["model"], preset["training"], seed, folder / name.replace(" ", "-"))
    tables: Tables = {"dynamics": known.history.assign(task="FDA", stage="end")}
    asked = _learning()
    if (
        not exact(known.subject, of.noisy.batch()).any()
        or not exact(known.subject, of.tests["test"].batch()).any()
    ):
        return _measured(name, asked, tables)
    end = study(of, known.subject, "end", clean=settings.clean, at_most=settings.items)
    tables |= decoded(end, seed) | positions(end) | outliers(end, (TOP,), settings.draws, seed)
    asked |= _mechanism(end.reasoning.variable, end.reasoning.position, end.blocks - 1)
    if end.blocks > 1:
        tables |= erased(end, settings.draws, 0, seed)
        asked |= {"kept without the digit": erasure("class means", FDA), "kept without a random subspace": erasure("random", FDA),
                  "test kept without the digit": erasure("class means", FDA, TEST)}  # fmt: skip
    return _measured(name, asked, tables)


def _learning() -> dict[str, Measure]:
    return {
        "test accuracy": last("test", **FDA),
        "memorized": last("memorized", **FDA),
        "most corrected": largest("corrected", **FDA),
        "steps to memorize by steps to pass": steps_ratio(**FDA),
    }


def _mechanism(digit: str, position: int, block: int) -> dict[str, Measure]:
    of: dict[str, Any] = {"block": block, **FDA}
    return {
        "true digit read behind block 0": probe(digit, 1.0, position=position, of=FDA),
        "inputs depended on": effective_positions(depth=0, **FDA),
        "profile correlation": mean("outliers", "profile", **of, **MEM),
        f"true after {TOP} reset": mean("doses", "true", **dose("largest", TOP, block)),
        f"true after {TOP} random reset": mean("doses", "true", **dose("random", TOP, block)),
    }


def _measured(name: str, asked: Mapping[str, Measure], tables: Tables) -> pd.DataFrame:
    found = {measure: of(tables) for measure, of in asked.items()}
    rows = [(name, measure, one.estimate, one.low, one.high) for measure, one in found.items()]
    return pd.DataFrame(rows, columns=["change", "measure", "estimate", "low", "high"])


def figure(table: pd.DataFrame) -> Figure:
    """Every measure for every change, with intervals over items."""

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        sides = [part["estimate"] - part["low"], part["high"] - part["estimate"]]
        axes.errorbar(part["estimate"], part["change"], xerr=sides, fmt="o", markersize=5)
        axes.invert_yaxis()

    return panels(table, ["measure"], draw, across=4, height=3.0)


def _preset(name: str, changes: tuple[str, ...]) -> Preset:
    of = PRESETS[name]
    return Preset(FDA=of.FDA, clean=of.clean, items=of.items, draws=of.draws, changes=changes)


EXPERIMENT = Experiment(
    name="reason_to_rote.sweep",
    question=__doc__,
    presets={"smoke": _preset("smoke", FEW), "small": _preset("small", tuple(CHANGES))},
    jobs=jobs,
    tables=("sweep",),
    checks=lambda _: [],
    figures={"sweep": lambda tables: figure(tables["sweep"])},
)

if __name__ == "__main__":
    # jobs are functions of a module that other processes can import, which __main__ is not
    from experiments.reason_to_rote.sweep import EXPERIMENT as PROGRAM

    PROGRAM.command()
