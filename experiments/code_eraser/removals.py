"""Which removal is cheapest and deepest, and what comes back?

`python -m experiments.code_eraser.removals --preset small --jobs 2` compares the methods of
unlearning, unlearning in a few neurons, the ablation of neurons and the curvature edit on one
model, at equal forgetting and at equal damage, each with its controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path as Place
from typing import Any

import pandas as pd

import interp
from experiments.code_eraser import figures_of_removals
from experiments.code_eraser.build import Tables
from experiments.code_eraser.checks_of_removals import checks
from experiments.code_eraser.comparison import summaries
from experiments.code_eraser.paths import (
    BATCH_SIZE,
    Edited,
    Measures,
    Path,
    noise,
    of_edits,
    of_unlearning,
)
from experiments.code_eraser.presets import (
    ABLATION,
    CURVATURE,
    LOCALIZED,
    NOISE,
    REMOVALS,
    RemovalsPreset,
)
from experiments.code_eraser.study import Study, build
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Folder, Job, job
from interp.mitigation.curvature import (
    Drop,
    Spectrum,
    curvature_edit,
    decompose,
    kronecker_factors,
    mlp_maps,
    singular_spectra,
)
from interp.mitigation.depth import UnlearningDepth, log_p_drops
from interp.progress import track
from interp.sites.site import Site
from interp.sites.units import UnitScores

# Of a map whose largest input direction has more than half of all curvature, an edit keeps that
# direction alone, and the model breaks.
_LARGEST_CONCENTRATION = 0.5


def jobs(preset: RemovalsPreset, seed: int) -> Iterator[Job]:
    """Two jobs; the one that comes first also trains the models."""
    yield job(unlearning, preset, seed, Folder("models"))
    yield job(edits, preset, seed, Folder("models"))


def unlearning(preset: RemovalsPreset, seed: int, folder: Place) -> Tables:
    """Every method of unlearning, in all weights."""
    comparison = Comparison(build(preset.setup, seed, folder), preset)
    for method in track(preset.methods, "methods"):
        path = of_unlearning(comparison.measures, method, until_damage=True)
        comparison.add(method.name, path)
    return comparison.tables()


def edits(preset: RemovalsPreset, seed: int, folder: Place) -> Tables:
    """Unlearning in a few neurons, ablation and the curvature edit, each with its own controls."""
    study = build(preset.setup, seed, folder)
    comparison = Comparison(study, preset)
    measures = comparison.measures
    scores = interp.localize(
        study.model, study.forget, study.twins, method="absolute_gradient_x_activation"
    )

    chosen = scores.top(preset.localized_neurons)
    local = partial(of_unlearning, measures, preset.localized, until_damage=True)
    comparison.add(LOCALIZED, local(units=chosen))
    for draw in range(preset.draws):
        path = local(units=chosen.draw_matched(draw))
        comparison.add_control(LOCALIZED, "random neurons", draw, path)

    comparison.add(ABLATION, of_edits(measures, _ablations(scores, preset.neurons)))
    for draw in range(preset.draws):
        random = of_edits(measures, _ablations(scores, preset.neurons, draw))
        comparison.add_control(ABLATION, "random neurons", draw, random)

    _add_curvature(comparison)

    for draw in range(preset.draws):
        path = of_edits(measures, noise(study, preset.scales, draw))
        comparison.add_control(NOISE, "noise", draw, path)
    return comparison.tables()


def _ablations(
    scores: UnitScores, counts: Sequence[int], draw: int | None = None
) -> Iterator[tuple[float, Edited]]:
    """Ablations of more and more of the best neurons, or of others at the same sites."""
    for count in counts:
        units = scores.top(count)
        if draw is not None:
            # The same number in each block. Each count is a draw of its own, and does not hold the
            # smaller.
            others = units.draw_matched(draw)
            if len(others) < count:
                return  # more than half of a site is chosen, and too few others are left
            units = others
        yield count, interp.Zero(units)


def _add_curvature(comparison: Comparison) -> None:
    """The curvature edit with its controls, if there is a map to edit."""
    preset = comparison.preset
    measures = comparison.measures
    spectra = _spectra(comparison.study)
    if not spectra:
        return
    comparison.add(CURVATURE, of_edits(measures, _curvature(spectra, preset.masses)))
    for draw in range(preset.draws):
        random = of_edits(measures, _curvature(spectra, preset.masses, "random", draw))
        comparison.add_control(CURVATURE, "random components", draw, random)
    truncated = singular_spectra(comparison.study.model, list(spectra))
    # Here a mass is a share of the energy of a weight, so that doses are not those of the edit. The
    # two are compared at equal damage alone.
    low_rank = of_edits(measures, _curvature(truncated, preset.masses))
    comparison.add_control(CURVATURE, "low rank", 0, low_rank)


def _spectra(study: Study) -> dict[Site, Spectrum]:
    """The MLPs' weights in the eigenbases of their curvature on ordinary code."""
    model = study.model
    # In many models the first position has activations so large that they would be most of A.
    factors = kronecker_factors(model, study.ordinary, mlp_maps(model), skip=1, batch_size=16)
    spectra = decompose(model, factors)
    return {
        site: spectrum
        for site, spectrum in spectra.items()
        if spectrum.concentration <= _LARGEST_CONCENTRATION
    }


def _curvature(
    spectra: dict[Site, Spectrum],
    masses: Sequence[float],
    drop: Drop = "flattest",
    draw: int = 0,
) -> Iterator[tuple[float, Edited]]:
    """Edits that drop more and more of the curvature; the dose is the share that is dropped."""
    for mass in masses:
        yield 1 - mass, curvature_edit(spectra, mass, drop, draw)


class Comparison:
    """Collects what is measured of each removal at the two points of its path.

    Args:
        study: the models and sets.
        preset: how much is measured.
    """

    def __init__(self, study: Study, preset: RemovalsPreset) -> None:
        self.study = study
        self.preset = preset
        # Of MA alone, which takes no decoding: reports have EL_10 too.
        self.measures = Measures(study, {"ma": study.thresholds["ma"]})
        self._reference = log_p_drops(study.model, study.clean, study.forget)
        self._parts: dict[str, list[pd.DataFrame]] = {}

    def add(self, name: str, path: Path) -> None:
        """Measures a removal where it was compared."""
        self._add_path(path, name, "", 0)
        for point, edited in path.at.items():
            self._add_report(name, point, edited)

    def add_control(self, removal: str, control: str, draw: int, path: Path) -> None:
        """Keeps the path of a control of a removal."""
        self._add_path(path, removal, control, draw)

    def tables(self) -> Tables:
        """The tables."""
        return {name: pd.concat(parts, ignore_index=True) for name, parts in self._parts.items()}

    def _add(self, table: str, frame: pd.DataFrame, **about: Any) -> None:
        self._parts.setdefault(table, []).append(frame.assign(**about))

    def _add_path(self, path: Path, removal: str, control: str, draw: int) -> None:
        about = {"removal": removal, "control": control, "draw": draw}
        compared = {"damage": self.preset.setup.damage, "threshold": self.study.thresholds["ma"]}
        self._add("paths", path.frame, **about, **compared)

    def _add_report(self, name: str, point: str, edited: Edited) -> None:
        study = self.study
        drops = log_p_drops(study.model, edited, study.forget)
        depth = UnlearningDepth.from_drops(drops, self._reference)
        report = interp.removal_report(
            study.model,
            edited,
            study.forget,
            twins=study.twins,
            retain=study.retain,
            memorized=study.memorized,
            others=study.others,
            held_out=study.held_out,
            thresholds=self.measures.stop.thresholds,
            ngrams=(10,),
            relearning=self.preset.relearning,
            depths={"after": depth.score},
            batch_size=BATCH_SIZE,
        )
        about = {"removal": name, "point": point}
        self._add("reports", report.frame, **about)
        verdict = {"outcome": report.outcome, "verdict": report.verdict}
        self._add("outcomes", pd.DataFrame([verdict]), **about)
        self._add("depth", depth.items, **about)


EXPERIMENT = Experiment(
    name="code_eraser.removals",
    question=__doc__,
    presets=REMOVALS,
    jobs=jobs,
    tables=("paths", "reports", "outcomes", "depth"),
    checks=checks,
    figures=figures_of_removals.FIGURES,
    summaries=summaries,
)

if __name__ == "__main__":
    # Jobs are functions of a module that other processes can import, which __main__ is not.
    from experiments.code_eraser.removals import EXPERIMENT as PROGRAM

    PROGRAM.command()
