"""What is run on one seed: INJ and the look-up, where the memory was put in known neurons, and DEL,
where training put it anywhere."""

from __future__ import annotations

import pandas as pd

from experiments.localization_benchmarks.memorizer import memorizer
from experiments.localization_benchmarks.presets import Preset
from experiments.localization_benchmarks.study import (
    BLOCKS,
    SPREAD,
    Tables,
    choices,
    confusion,
    correlation,
    fall_by_block,
    knowledge,
    look_up,
    measure_injection,
    memorized_only,
    sums,
)
from interp.experiment.jobs import Job, job
from interp.localization.benchmarks.known_answers import (
    by_target,
    deletion,
    falls_by_category,
    scored_each,
    single_block,
)
from interp.localization.registry import find


def jobs(preset: Preset, seed: int) -> list[Job]:
    """Two jobs per seed, the longer one first. Each makes the same model.

    Raises:
        ValueError: a localization method or option that does not exist, with the nearest one.
    """
    # Before anything is trained: a misspelled method would otherwise be found out only after that.
    for method, options in preset.options.items():
        find(method, options)
    for method in preset.not_deleted:
        find(method, {})
    return [job(natural, preset, seed), job(hidden, preset, seed)]


def hidden(preset: Preset, seed: int) -> Tables:
    """INJ and the look-up: memory in known neurons."""
    known = memorizer(preset.recipe, seed)
    every = choices(preset.options)
    conditions = [
        measure_injection(known, every, condition, preset, seed) for condition in preset.injections
    ]
    return {
        "models": knowledge(known),
        "injection": pd.concat(conditions, ignore_index=True),
        "lookup": look_up(known, every, preset.lookups, seed),
    }


def natural(preset: Preset, seed: int) -> Tables:
    """DEL, and the other measures of a memory that training put anywhere, on the same model."""
    known = memorized_only(memorizer(preset.recipe, seed), preset.least)
    memorized = known.repeated
    length = memorized.targets.shape[1]
    methods = choices(preset.options, preset.not_deleted)
    scores = scored_each(known.subject, memorized, methods, known.reference)

    deletions: list[pd.DataFrame] = []
    relations: list[pd.DataFrame] = []
    for name, spare_first in BLOCKS.items():
        frame = deletion(
            known.subject,
            memorized,
            known.held_out,
            scores,
            preset.fractions,
            spare_first=spare_first,
        )
        deletions.append(by_target(frame, length).assign(blocks=name))
        relations.append(falls_by_category(frame, known.kinds).assign(blocks=name))
    relation = pd.concat(relations, ignore_index=True)

    blocks = [
        single_block(known.subject, memorized, scores[name], preset.headline).assign(method=name)
        for name in SPREAD
    ]
    return {
        "deletion": pd.concat(deletions, ignore_index=True),
        "related": relation,
        "confusion": confusion(relation, preset.headline),
        "blocks": fall_by_block(pd.concat(blocks, ignore_index=True)),
        "sums": sums(known, scores["zero_out"], preset.fractions),
        "correlation": correlation(scores),
    }
