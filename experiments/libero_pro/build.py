"""What is run on one seed: for each regime a training, episodes, and what carries the memory."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.libero_pro import study
from experiments.libero_pro.presets import CONTROL, SUITE_OF, Preset, Regime
from interp.data.tabletop.expert import demonstrations
from interp.data.tabletop.frames import demonstration_batch
from interp.experiment.jobs import Job, job
from interp.memorization.rollouts import arms

TABLES = (
    "trainings",
    "episodes",
    "blind",
    "extraction",
    "inputs",
    "places",
    "patching",
    "ablation",
)
Tables = dict[str, pd.DataFrame]

_REFERENCES = 60  # demonstrations in decorrelated scenes


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per policy, the control first: it takes longest."""
    for regime in sorted(preset.regimes, key=lambda regime: -regime.steps):
        yield job(of_regime, preset, regime, seed)


def of_regime(preset: Preset, regime: Regime, seed: int) -> Tables:
    """Trains a policy and measures it. The control is also tried in the very scenes of the others,
    so that a scene in which nobody succeeds cannot pass for memorization."""
    trained = study.train(preset, regime, seed)
    is_control = regime.name == CONTROL
    tried_in = [each.name for each in preset.regimes] if is_control else [regime.name]
    tables: Tables = {
        "trainings": study.trainings(trained),
        "episodes": pd.concat(
            [study.episodes(preset, trained, scenes, seed) for scenes in tried_in],
            ignore_index=True,
        ),
        "blind": study.blind(preset, trained, seed),
        "extraction": study.extraction(trained, seed),
        "inputs": study.inputs(preset, trained, seed),
        "places": pd.concat(
            [study.places(preset, trained, scenes, seed) for scenes in tried_in],
            ignore_index=True,
        ),
        "patching": study.patching(preset, trained, seed),
    }
    if not is_control:
        # Seeds that `study` does not use: scenes of their own.
        shown = demonstrations(SUITE_OF[CONTROL], _REFERENCES, 30_000 + seed)
        reference = demonstration_batch(shown)
        tried = arms(SUITE_OF[regime.name], ["swap"], preset.ablated_episodes, 40_000 + seed)
        tables["ablation"] = study.ablation(preset, trained, reference, tried, seed)
    return tables
