"""What is run on one seed: both tasks with wrong labels, and addition without any, into which a
look-up table is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from experiments.reason_to_rote.decoding import decode, read_by_head
from experiments.reason_to_rote.distributed import perturb, positions
from experiments.reason_to_rote.erasing import erase, patch_donors
from experiments.reason_to_rote.lookup import plant_lookup
from experiments.reason_to_rote.neurons import heuristics, outliers, shared_neurons
from experiments.reason_to_rote.overlap import circuits, components
from experiments.reason_to_rote.presets import Preset
from experiments.reason_to_rote.study import Study, Tables, study
from experiments.reason_to_rote.tasks import Learned, dynamics, network, task, train_or_load
from interp.experiment.jobs import Folder, Job, job


def jobs(settings: Preset, seed: int) -> list[Job]:
    """Four jobs per seed: both tasks with wrong labels, and both without."""
    models = Folder("models")
    parts = (addition, relations, addition_without_noise, relations_without_noise)
    return [job(part, settings, seed, models) for part in parts]


def addition(settings: Preset, seed: int, out: Path) -> Tables:
    """All analyses of FDA with wrong labels."""
    known, end = _trained("FDA", settings, seed, out)
    parts = [
        _common(known, end, settings, seed),
        outliers(end, settings.doses, settings.draws, seed),
        shared_neurons(end, end.blocks - 1),
        heuristics(end, settings.knocked_out),
    ]
    if known.generalized is not None:
        early = end.of("generalized", known.generalized)
        # At that time hardly any noisy item was memorized: what is an outlier already then is not
        # one because of memory.
        parts.append(_distances_alone(early, settings, seed))
    return join_tables(*parts)


def relations(settings: Preset, seed: int, out: Path) -> Tables:
    """All analyses of THR with wrong labels; those that are about digits do not apply."""
    known, end = _trained("THR", settings, seed, out)
    return _common(known, end, settings, seed)


def addition_without_noise(settings: Preset, seed: int, out: Path) -> Tables:
    """The controls of FDA: a model that was trained with right labels only, and the same model with
    a look-up table planted into it, which holds the labels that are wrong in the other run."""
    known = _trained_without_noise("FDA", settings, seed, out)
    of = known.task

    # The model has not seen the wrong labels, so that none of them would count as memorized: all
    # noisy items are taken.
    every_noisy_item = np.ones(len(of.noisy), dtype=bool)
    noise_free = study(
        of,
        known.subject,
        "without noise",
        clean=settings.clean,
        at_most=settings.items,
        memorized=every_noisy_item,
    )
    looked_up = study(
        of,
        plant_lookup(known.subject, of.noisy),
        "look-up",
        clean=settings.clean,
        at_most=settings.items,
        memorized=every_noisy_item,
    )
    return join_tables(
        erase(looked_up, settings.draws, settings.rounds, seed),
        patch_donors(looked_up, seed),
        components(looked_up),
        perturb(looked_up, seed),
        positions(looked_up),
        {"dynamics": dynamics(known, "without noise")},
        _distances_alone(noise_free, settings, seed),
    )


def relations_without_noise(settings: Preset, seed: int, out: Path) -> Tables:
    """The control of THR: how a model learns that is trained with right labels only."""
    known = _trained_without_noise("THR", settings, seed, out)
    return {"dynamics": dynamics(known, "without noise")}


def _trained_without_noise(name: str, settings: Preset, seed: int, out: Path) -> Learned:
    """The model of a task that is trained with right labels only."""
    recipe = settings.recipe(name)
    folder = out / f"{name}-clean-seed{seed}"
    of = task(recipe.data, seed)
    return train_or_load(of, recipe.model, recipe.without_noise, seed, folder, clean=True)


def _trained(name: str, settings: Preset, seed: int, out: Path) -> tuple[Learned, Study]:
    """The trained model of a task, and the items that it is studied on."""
    recipe = settings.recipe(name)
    folder = out / f"{name}-seed{seed}"
    known = train_or_load(task(recipe.data, seed), recipe.model, recipe.training, seed, folder)
    end = study(known.task, known.subject, "end", clean=settings.clean, at_most=settings.items)
    return known, end


def _common(known: Learned, end: Study, settings: Preset, seed: int) -> Tables:
    """The analyses of both tasks. Probes are repeated on the same items in an untrained model; the
    logit lens there, and in the model when it first passed the test."""
    name = known.task.name
    model = settings.recipe(name).model
    # Another seed than the model's own: its initial weights are where the training started, and may
    # still resemble where it ended.
    untrained = end.of("untrained", network(known.task, model, 1000 + seed, like=known.subject))
    parts = [decode(end, seed), decode(untrained, seed)]
    if known.generalized is not None:
        early = end.of("generalized", known.generalized)
        parts.append({"lens": read_by_head(early)})
    return join_tables(
        {"dynamics": dynamics(known, "end")},
        *parts,
        erase(end, settings.draws, settings.rounds, seed),
        patch_donors(end, seed),
        circuits(end, untrained, settings.circuit_items, settings.resamples, seed),
        components(end),
        perturb(end, seed),
        positions(end),
    )


def _distances_alone(of: Study, settings: Preset, seed: int) -> Tables:
    """The table `outliers` of a model, without its dose curves."""
    # The dose curves take most of the time: one dose and one draw, which are not kept.
    found = outliers(of, settings.doses[:1], 1, seed)
    return {"outliers": found["outliers"]}


def join_tables(*parts: Tables) -> Tables:
    """Joins the tables of all parts: those with the same name become one table, in the order of the
    parts."""
    by_name: dict[str, list[pd.DataFrame]] = {}
    for part in parts:
        for name, table in part.items():
            by_name.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in by_name.items()}
