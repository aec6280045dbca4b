"""How much do the results depend on the recipe? Addition with other fractions and kinds of noise,
other sizes and other initial weights, one change at a time.

`python -m experiments.reason_to_rote.sweep --preset small --seed 10` takes about 16 minutes on two
cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.reason_to_rote.decoding import decode
from experiments.reason_to_rote.distributed import positions
from experiments.reason_to_rote.erasing import erase
from experiments.reason_to_rote.measures import (
    DIFFERENCE,
    FDA,
    MEMORIZED,
    TEST,
    dose,
    effective_positions,
    erasure,
    largest,
    last,
    mean,
    probe,
    steps_ratio,
)
from experiments.reason_to_rote.neurons import TOP, outliers
from experiments.reason_to_rote.presets import PRESETS, Recipe
from experiments.reason_to_rote.study import Reasoning, Tables, study
from experiments.reason_to_rote.tasks import dynamics, exact, task, train_or_load
from interp.experiment.checks import Measured, interval
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Folder, Job, job
from interp.reporting.plotting import intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Other values of fields of a recipe's data or model.
CHANGES: dict[str, Mapping[str, Mapping[str, Any]]] = {
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
_SPELLED = {
    "as in small": "unchanged recipe",
    "initial weights .02": "initial weights 0.02",
    "initial weights .05": "initial weights 0.05",
}
_MEASURED = {
    "memorized": "noisy items memorized",
    "most corrected": "most noisy items answered truly",
    "true after 10 reset": "true answers, 10 neurons reset",
    "true after 10 random reset": "true answers, 10 random neurons reset",
    "kept without the digit": "memorized answers without the digit",
    "kept without a random subspace": "memorized answers, random subspace",
    "test kept without the digit": "test answers without the digit",
}
# Of measures that are no fractions of items.
_UNITS = {
    "steps to memorize by steps to pass": "ratio of optimizer steps",
    "inputs depended on": "effective number of digits",
    "profile correlation": "correlation",
}
FEW = ("as in small", "10% noise", "3 blocks")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Which changes of addition are tried, by their names in `CHANGES`, and on how many seeds; the
    other fields are those of `presets.Preset`."""

    seeds: int = 1
    FDA: Recipe
    clean: int
    items: int
    draws: int
    changes: tuple[str, ...]

    def __post_init__(self) -> None:
        # A change of a field that does not exist fails here, before anything is trained.
        for name in self.changes:
            self.recipe(name)

    def recipe(self, change: str) -> Recipe:
        """The recipe of FDA with one change."""
        changes = CHANGES[change]
        return replace(
            self.FDA,
            data=replace(self.FDA.data, **changes.get("data", {})),
            model=replace(self.FDA.model, **changes.get("model", {})),
        )


def jobs(preset: Preset, seed: int) -> list[Job]:
    """One model per change."""
    return [job(of_change, name, preset, seed, Folder("models")) for name in preset.changes]


def of_change(name: str, preset: Preset, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """The table of one change."""
    return {"sweep": train_changed(name, preset, seed, folder)}


def train_changed(name: str, settings: Preset, seed: int, folder: Path) -> pd.DataFrame:
    """What is measured on the model of one change.

    Returns:
        One row per measure: `change`, `measure`, `estimate`, its interval over items (`low`,
        `high`) and their number `n`, which is 1 where there is no such interval. Where nothing was
        memorized or no test passed, there are only the measures of how the model learned; and what
        could not be measured has no row.
    """
    recipe = settings.recipe(name)
    of = task(recipe.data, seed)
    known = train_or_load(of, recipe.model, recipe.training, seed, folder / name.replace(" ", "-"))
    tables: Tables = {"dynamics": dynamics(known, "end")}
    measures = _learning()
    memorized = exact(known.subject, of.noisy.batch())
    passed = exact(known.subject, of.tests["test"].batch())
    if not memorized.any() or not passed.any():
        return measured(name, measures, tables)

    end = study(of, known.subject, "end", clean=settings.clean, at_most=settings.items)
    tables |= decode(end, seed)
    tables |= positions(end)
    tables |= outliers(end, (TOP,), settings.draws, seed)
    measures |= _mechanism(end.reasoning, end.blocks - 1)
    # Subspaces are removed after every block but the last, so a model of one block has none.
    if end.blocks > 1:
        # Without rounds of INLP, of which nothing is reported here.
        tables |= erase(end, settings.draws, 0, seed)
        measures |= _erasing()
    return measured(name, measures, tables)


def _learning() -> dict[str, Measured]:
    return {
        "test accuracy": last("test", **FDA),
        "memorized": last("memorized", **FDA),
        "most corrected": largest("corrected", **FDA),
        "steps to memorize by steps to pass": steps_ratio(0.5, 0.9, **FDA),
    }


def _mechanism(of: Reasoning, block: int) -> dict[str, Measured]:
    return {
        "true digit read behind block 0": probe(of.variable, 1.0, position=of.read, of=FDA),
        "inputs depended on": effective_positions(inputs=len(of.inputs), depth=0, **FDA),
        "profile correlation": mean(
            "outliers", "profile", DIFFERENCE, block=block, **FDA, **MEMORIZED
        ),
        f"true after {TOP} reset": mean("doses", "true", **dose("largest", TOP, block)),
        f"true after {TOP} random reset": mean("doses", "true", **dose("random", TOP, block)),
    }


def _erasing() -> dict[str, Measured]:
    return {
        "kept without the digit": erasure("class means", FDA),
        "kept without a random subspace": erasure("random", FDA),
        "test kept without the digit": erasure("class means", FDA, TEST),
    }


def measured(name: str, measures: Mapping[str, Measured], tables: Tables) -> pd.DataFrame:
    """One row per measure of a change, without those that were not measured."""
    rows: list[tuple[Any, ...]] = []
    for label, measure in measures.items():
        found = interval(measure(tables))
        if found is not None:
            rows.append((name, label, found.estimate, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["change", "measure", "estimate", "low", "high", "n"])


def figure(table: pd.DataFrame) -> Figure:
    """Every measure for every change. There is one seed, so intervals are over items only."""
    shown = table.replace({"change": _SPELLED, "measure": _MEASURED})
    is_unchanged = shown["change"] == _SPELLED["as in small"]
    unchanged = shown[is_unchanged].set_index("measure")["estimate"]
    measures = shown["measure"].unique()
    return intervals(
        shown,
        "change",
        "measure",
        labels={name: _UNITS.get(name, "fraction of items") for name in measures},
        titles={name: name for name in measures},
        levels=unchanged.to_dict(),
        level="unchanged recipe",
        title="How much the results about addition depend on the recipe: one change at a time",
        key="points: one model each (one seed, so no verdicts); lines: 95% intervals over items, "
        "where there are any",
        across=4,
    )


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
    # Jobs run in other processes, which import their functions by module: that of a file run as a
    # program is called __main__, and they could not find it.
    from experiments.reason_to_rote.sweep import EXPERIMENT as PROGRAM

    PROGRAM.command()
