"""What is run on one seed: the two tasks with wrong labels, and addition without, in which a
look-up is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from experiments.reason_to_rote.decoding import decoded
from experiments.reason_to_rote.distributed import perturbed, positions
from experiments.reason_to_rote.erasing import erased, patched
from experiments.reason_to_rote.lookup import planted
from experiments.reason_to_rote.neurons import heuristics, outliers, shared
from experiments.reason_to_rote.overlap import circuits, components
from experiments.reason_to_rote.presets import Preset
from experiments.reason_to_rote.study import Study, Tables, study
from experiments.reason_to_rote.tasks import Learned, learned, network, task
from interp.experiment.jobs import Folder, Job, job


def jobs(settings: Preset, seed: int) -> list[Job]:
    """Three jobs per seed."""
    return [
        job(part, settings, seed, Folder("models")) for part in (addition, relations, without_noise)
    ]


def addition(settings: Preset, seed: int, out: Path) -> Tables:
    """FDA with wrong labels: all analyses."""
    known, end = _learned("FDA", settings, seed, out)
    last, doses, draws = end.blocks - 1, settings.doses, settings.draws
    neurons = [
        outliers(end, doses, draws, seed),
        shared(end, last),
        heuristics(end, settings.knocked_out),
    ]
    if known.generalized is not None:
        neurons.append(
            {
                "outliers": outliers(end.of("generalized", known.generalized), doses[:1], 1, seed)[
                    "outliers"
                ]
            }
        )
    return joined(_common(known, end, settings, seed), *neurons)


def relations(settings: Preset, seed: int, out: Path) -> Tables:
    """THR with wrong labels: all analyses but those of digits."""
    known, end = _learned("THR", settings, seed, out)
    return _common(known, end, settings, seed)


def without_noise(settings: Preset, seed: int, out: Path) -> Tables:
    """FDA with right labels only. The labels that were wrong in the other run are never seen; then
    they are planted as a look-up."""
    preset = settings.FDA
    of = task("FDA", preset.data, seed)
    training = {**preset.training, **settings.without_noise}
    known = learned(of, preset.model, training, seed, out / f"FDA-clean-seed{seed}", clean=True)
    sizes = {
        "clean": settings.clean,
        "at_most": settings.items,
        "memorized": np.ones(len(of.noisy), dtype=bool),
    }
    free = study(of, known.subject, "without noise", **sizes)
    table = planted(known.subject, of.noisy)
    looked_up = study(of, table, "look-up", **sizes)
    tables = [
        erased(looked_up, settings.draws, settings.rounds, seed),
        patched(looked_up, seed),
        components(looked_up),
    ]
    tables += [perturbed(looked_up, seed), positions(looked_up)]
    history = known.history.assign(task="FDA", stage="without noise")
    return joined(
        *tables,
        {"dynamics": history, "outliers": outliers(free, settings.doses[:1], 1, seed)["outliers"]},
    )


def _learned(name: str, settings: Preset, seed: int, out: Path) -> tuple[Learned, Study]:
    preset = settings.recipe(name)
    of = task(name, preset.data, seed)
    known = learned(of, preset.model, preset.training, seed, out / f"{name}-seed{seed}")
    return known, study(of, known.subject, "end", clean=settings.clean, at_most=settings.items)


def _common(known: Learned, end: Study, settings: Preset, seed: int) -> Tables:
    """What is asked of both tasks: at the end, of the same items when the test was first passed,
    and of an untrained model."""
    preset, name = settings.recipe(known.task.name), known.task.name
    untrained = end.of(
        "untrained", network(known.task, preset.model, 1000 + seed, like=known.subject)
    )
    early = [] if known.generalized is None else [end.of("generalized", known.generalized)]
    history = known.history.assign(task=name, stage="end")
    found: list[Tables] = [
        {"dynamics": history},
        *(decoded(each, seed) for each in (end, *early, untrained)),
    ]
    found += [erased(end, settings.draws, settings.rounds, seed), patched(end, seed)]
    found += [
        circuits(end, untrained, settings.circuit_items, settings.resamples, seed),
        components(end),
    ]
    found += [perturbed(end, seed), positions(end)]
    return joined(*found)


def joined(*parts: Tables) -> Tables:
    """Tables of one name as one."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: pd.concat([part[name] for part in parts if name in part], ignore_index=True)
        for name in names
    }
