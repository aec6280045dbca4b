"""What is run on one seed: INJ and the look-up, where the place of the memory is known, and DEL,
where training left it where it would."""

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
    injected,
    knowledge,
    look_up,
    memorized_only,
    sums,
)
from interp.experiment.jobs import Job, job
from interp.localization.benchmarks.known_answers import (
    by_target,
    deletion,
    related,
    scored_each,
    single_block,
)


def jobs(preset: Preset, seed: int) -> list[Job]:
    """Two jobs per seed, each of which makes the same model; the longer one first."""
    return [job(part, preset, seed) for part in (natural, hidden)]


def hidden(preset: Preset, seed: int) -> Tables:
    """INJ, and the look-up: memory whose place is known."""
    known = memorizer(preset.recipe, seed)
    every = choices(preset.options)
    conditions = [
        injected(known, every, condition, preset, seed) for condition in preset.injections
    ]
    return {
        "models": knowledge(known),
        "injection": pd.concat(conditions, ignore_index=True),
        "lookup": look_up(known, every, preset.lookups, seed),
    }


def natural(preset: Preset, seed: int) -> Tables:
    """DEL, and what else is asked of memory that training left where it would: on the same model."""
    known = memorized_only(memorizer(preset.recipe, seed), preset.least)
    memorized = known.repeated
    asked = choices(preset.options, preset.not_deleted)
    scores = scored_each(known.subject, memorized, asked, known.reference)
    length = memorized.targets.shape[1]
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
        relations.append(related(frame, known.kinds).assign(blocks=name))
    fallen_together = pd.concat(relations, ignore_index=True)
    blocks = [
        single_block(known.subject, memorized, scores[name], preset.headline).assign(method=name)
        for name in SPREAD
    ]
    return {
        "deletion": pd.concat(deletions, ignore_index=True),
        "related": fallen_together,
        "confusion": confusion(fallen_together, preset.headline),
        "blocks": fall_by_block(pd.concat(blocks, ignore_index=True)),
        "sums": sums(known, scores["zero_out"], preset.fractions),
        "correlation": correlation(scores),
    }
