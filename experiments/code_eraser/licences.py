"""What a released model of code has memorized by itself: does an edit that needs no list of what to
forget remove it as well as the ablation of neurons that were found for it?

`python -m experiments.code_eraser.licences --preset small --set model=PATH --jobs 1`, with
Qwen2.5-Coder-0.5B. There is one model, so intervals are over texts and nothing is judged.

Licence headers that the model continues word for word are measured under the curvature edit of two
blocks and under the ablation of neurons, each with random controls. Utility is the loss on code and
prose, and not the tasks of HumanEval, each of which needs a continuation of hundreds of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import interp
from experiments.code_eraser.build import Tables
from experiments.localization_benchmarks.real import sets_of, spread_over_sources
from interp.data import corpora
from interp.experiment.checks import Check, Measure, above, at_most, minus, over_items
from interp.experiment.checks import Tables as Joined
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Folder, Job, job
from interp.interventions.plan import Plan
from interp.memorization.evaluation import measure_under, with_unchanged
from interp.mitigation.controls import Selection
from interp.mitigation.curvature import curvature_edit, decompose, kronecker_factors, mlp_maps
from interp.reporting.looks import in_percent
from interp.reporting.panels import over_seeds
from interp.reporting.plotting import intervals
from interp.subject.batch import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVATURE = "curvature edit"
ABLATION = "ablation"
# The sets of windows, and how many of each are measured.
_MEASURED = {
    "texts_test": 10,
    "memorized": 8,
    "rules": 4,
    "paraphrased": 8,
    "code": 8,
    "prose": 8,
}
_ROW = 128  # tokens of a row of ordinary text


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is measured.

    Attributes:
        model: see `interp.load`.
        blocks: blocks whose MLPs are edited, fixed beforehand by their depth.
        rows: rows of ordinary text that the curvature is taken over, code and prose.
        masses: shares of the curvature that are kept.
        method: the localization method; of those in the study of licences, the one that removes
            most without damage.
        fractions: shares of the neurons that are zeroed.
        draws: number of draws of each random control.
        dtype: precision of the weights.
        seeds: number of seeds that controls are drawn from.
    """

    model: str = "models/Qwen2.5-Coder-0.5B-Instruct"
    blocks: tuple[int, ...] = (17, 21)
    rows: int = 80
    masses: tuple[float, ...] = (0.99, 0.95, 0.9)
    method: str = "z_score"
    fractions: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    draws: int = 2
    dtype: str = "float32"
    seeds: int = 1


PRESETS = {
    "smoke": Preset(rows=8, masses=(0.95,), fractions=(1e-3,), draws=1),
    "small": Preset(),
}


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job: the model is loaded once."""
    yield job(study, preset, seed, Folder("shared"))


def study(preset: Preset, seed: int, folder: Path) -> Tables:
    """Every window under every edit and ablation."""
    model = interp.load(preset.model, dtype=preset.dtype)
    sets = sets_of(model, folder)
    plans = [*_edits(model, preset, seed), *_ablations(model, preset, seed, sets)]
    about = pd.DataFrame([description for description, _ in plans])
    data = {name: spread_over_sources(sets[name], count) for name, count in _MEASURED.items()}
    # Plan 0 changes nothing: `with_unchanged` puts its measures next to those of each other plan.
    measured = measure_under(model, [[], *(plan for _, plan in plans)], data)
    found = with_unchanged(measured, about.assign(plan=range(1, len(plans) + 1)))
    sources: list[str] = []
    for name, window in zip(found["data"], found["window"], strict=True):
        # The windows of a text are not independent, so that intervals are over texts; with the set
        # in front, since two sets may have the same name for a text.
        sources.append(f"{name}: {data[name]['source'].iloc[window]}")
    return {"effects": found.assign(source=sources)}


def _edits(
    model: interp.Subject, preset: Preset, seed: int
) -> Iterator[tuple[dict[str, Any], Plan]]:
    """The curvature edit at each mass, and the same number of components at random."""
    maps = mlp_maps(model, preset.blocks)
    factors = kronecker_factors(model, _ordinary(model, preset.rows), maps, skip=1)
    spectra = decompose(model, factors, torch.float32)
    for mass in preset.masses:
        about = {"removal": CURVATURE, "dose": 1 - mass}
        yield {**about, "control": "", "draw": 0}, curvature_edit(spectra, mass)
        for draw in range(seed, seed + preset.draws):
            random = curvature_edit(spectra, mass, "random", draw)
            yield {**about, "control": "random components", "draw": draw}, random


def _ablations(
    model: interp.Subject, preset: Preset, seed: int, sets: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Plan]]:
    """The ablation of the best neurons at each fraction, and of random ones of the same blocks."""
    scores = interp.localize(model, sets["texts_score"], sets["contrast"], preset.method)
    for fraction in preset.fractions:
        selection = Selection(scores.top(fraction), fraction)
        about = {"removal": ABLATION, "dose": fraction}
        yield {**about, "control": "", "draw": 0}, selection.trial().plan
        for trial in selection.random(range(seed, seed + preset.draws)):
            yield {**about, "control": "random neurons", "draw": trial.seed}, trial.plan


def _ordinary(model: interp.Subject, rows: int) -> Batch:
    """Rows of code and of prose in equal numbers, without licences, which stand at the beginnings
    of files."""
    half = rows // 2
    found: list[list[int]] = []
    for name in ("stdlib", "python-docs"):
        own: list[list[int]] = []
        for document in corpora.load(name, head=4_000):
            tokens = model.tokens(document.text)[_ROW : 2 * _ROW]
            if len(tokens) == _ROW:
                own.append(tokens)
        if len(own) < half:
            raise ValueError(f"{name} has {len(own)} documents that are long enough, not {half}")
        found += [own[number] for number in np.linspace(0, len(own) - 1, half).astype(int)]
    return Batch(torch.tensor(found))


def of_texts(
    removal: str, dose: float, data: tuple[str, ...], column: str, control: str = ""
) -> Measure:
    """Returns the mean over texts of a measure under an edit (`column`), or of its change from the
    unedited model (`column` with "change of " before it)."""
    name = column.removeprefix("change of ")

    def by_item(tables: Joined) -> pd.Series:
        table: Any = tables["effects"]
        chosen = (table["removal"] == removal) & (table["control"] == control)
        # A dose of the edit is 1 minus a mass, which is not exact.
        chosen &= np.isclose(table["dose"], dose) & table["data"].isin(data)
        found = table[chosen]
        values = found[name]
        if name != column:
            values = values - found[f"{name}_before"]
        return values.groupby(found["source"]).mean()

    bounds = None if name == "loss" or name != column else (0.0, 1.0)
    return over_items(f"{column} of {', '.join(data)}", by_item, bounds)


_LICENCES = ("texts_test",)
_ORDINARY = ("code", "prose")


def checks(preset: Preset) -> list[Check]:
    """L1 to L3: what each removes, what it costs, and which removes more."""
    # Claims are about the edit that keeps most, and the fraction in the middle.
    mass, fraction = preset.masses[0], preset.fractions[len(preset.fractions) // 2]
    doses = {CURVATURE: 1 - mass, ABLATION: fraction}
    own_controls = {CURVATURE: "random components", ABLATION: "random neurons"}
    found: list[Check] = []
    for removal, dose in doses.items():
        control = own_controls[removal]
        costs = of_texts(removal, dose, _ORDINARY, "change of loss")
        found.append(
            Check(
                id=f"L1 {removal}",
                measure=of_texts(removal, dose, _LICENCES, "exact"),
                threshold=at_most(0.1),
                source="chosen",
                statement=f"the {removal} ends the exact recitation of licences: the share that is "
                "still extracted is {threshold}",
                controls={
                    "accuracy on licences": of_texts(removal, dose, _LICENCES, "accuracy"),
                    "accuracy on other memorized text": of_texts(
                        removal, dose, ("memorized", "rules"), "accuracy"
                    ),
                    f"{control}, exact": of_texts(removal, dose, _LICENCES, "exact", control),
                    f"{control}, rise of the loss on code and prose": of_texts(
                        removal, dose, _ORDINARY, "change of loss", control
                    ),
                },
                evidence="figures/licences.png",
            )
        )
        found.append(
            Check(
                id=f"L2 {removal}",
                measure=costs,
                threshold=at_most(0.05),
                source="chosen",
                statement=f"the {removal} leaves the model as it was: the loss on code and prose "
                "rises by {threshold} nats per token",
                controls={
                    name: of_texts(removal, dose, (name,), "change of loss") for name in _ORDINARY
                },
                evidence="figures/licences.png",
            )
        )
    accuracy = {
        removal: of_texts(removal, dose, _LICENCES, "accuracy") for removal, dose in doses.items()
    }
    found.append(
        Check(
            id="L3",
            # Pairs: the same texts under both. Their damage differs, and is in the figure.
            measure=minus(accuracy[CURVATURE], accuracy[ABLATION]),
            threshold=above(0),
            source="chosen",
            statement=f"the ablation of {in_percent(fraction)} of the neurons leaves less of "
            f"the licences than the curvature edit that keeps {in_percent(mass)}: the "
            "difference in accuracy is {threshold}",
            controls=accuracy,
            evidence="figures/licences.png",
        )
    )
    return found


def licences(tables: Joined) -> Figure:
    """What each edit leaves of licences and other memorized text, and what it costs."""
    table: Any = tables["effects"]
    names: list[str] = []
    for removal, control, dose in zip(
        table["removal"], table["control"], table["dose"], strict=True
    ):
        kind = control or ("flattest components" if removal == CURVATURE else "chosen neurons")
        names.append(f"{removal}, {in_percent(dose)}: {kind}")
    shown = table.assign(edit=names, cost=table["loss"] - table["loss_before"])
    panels = {
        "licences": (_LICENCES, "accuracy"),
        "other memorized text": (("memorized", "rules"), "accuracy"),
        "code and prose": (_ORDINARY, "cost"),
    }
    rows: list[dict[str, Any]] = []
    for panel, (data, column) in panels.items():
        own = shown[shown["data"].isin(data)]
        for edit, windows in own.groupby("edit", sort=False):
            found = interp.stats.bootstrap(windows.groupby("source")[column].mean())
            row = {"edit": edit, "panel": panel, "estimate": found.estimate}
            rows.append({**row, "low": found.low, "high": found.high})
    return intervals(
        pd.DataFrame(rows),
        "edit",
        labels={
            "licences": "share of tokens",
            "other memorized text": "share of tokens",
            "code and prose": "rise of the loss (nats per token)",
        },
        titles={name: name for name in panels},
        levels={"licences": float(table[table["data"] == "texts_test"]["accuracy_before"].mean())},
        level="before",
        title="Memorized licences in Qwen2.5-Coder-0.5B under edits of its weights and ablations",
        key=f"{over_seeds(table, 'point', 'line')}; 95% intervals over texts",
    )


EXPERIMENT = Experiment(
    name="code_eraser.licences",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=("effects",),
    checks=checks,
    figures={"licences": licences},
)

if __name__ == "__main__":
    # Jobs are functions of a module that other processes can import, which __main__ is not.
    from experiments.code_eraser.licences import EXPERIMENT as PROGRAM

    PROGRAM.command()
