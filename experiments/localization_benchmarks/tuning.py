"""What other options of the mask learners give: recall in INJ, on sequences and a model that no
result uses.

`python -m experiments.localization_benchmarks.tuning --preset small --seed 100`: seed 100 is kept
for this; results use others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

import interp
from experiments.localization_benchmarks.memorizer import Recipe, memorizer
from experiments.localization_benchmarks.presets import PRESETS
from interp.experiment.checks import Tables
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Job, job
from interp.localization.benchmarks.known_answers import Choice, Training, injection
from interp.localization.registry import find


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Which options are tried.

    Attributes:
        seeds: number of models.
        recipe: how each model is made.
        sequences: number of sequences that are hidden, one at a time.
        fraction: fraction of the neurons in which each is hidden.
        training: how they are hidden.
        tried: a method and its options, by the name that the results give them.
    """

    seeds: int = 1
    recipe: Recipe
    sequences: int
    fraction: float
    training: Training
    tried: Mapping[str, tuple[str, Mapping[str, Any]]]


def jobs(preset: Preset, seed: int) -> list[Job]:
    """One model, on which all options are tried.

    Raises:
        ValueError: a localization method or option that does not exist, with the nearest one.
    """
    for method, options in preset.tried.values():
        find(method, options)
    return [job(try_options, preset, seed)]


def try_options(preset: Preset, seed: int) -> dict[str, pd.DataFrame]:
    """INJ with all options, on the first of the sequences that are kept to tune methods on."""
    known = memorizer(preset.recipe, seed)
    # Of the model of another seed, and of a set that no result uses: options fitted to the
    # sequences that methods are judged on would flatter the methods that have options.
    windows = interp.Batch(known.dev.tokens[: preset.sequences])
    every = {name: Choice(method, options) for name, (method, options) in preset.tried.items()}
    found = injection(
        known.subject,
        windows,
        every,
        preset.fraction,
        seed=seed,
        training=preset.training,
    )
    return {"injection": found}


def summaries(tables: Tables) -> dict[str, pd.DataFrame]:
    """`tuning`: the mean recall by `method` and `multiple` of the injected fraction."""
    means: Any = tables["injection"].groupby(["method", "multiple"], sort=False)["recall"].mean()
    return {"tuning": means.reset_index()}


_SLIMMING = {
    f"slimming, pressure {pressure}": ("slimming", {"pressure": pressure})
    for pressure in (0.05, 0.1, 0.2, 0.4)
}
_HARD_CONCRETE = {
    f"hard_concrete, pressure {pressure}": ("hard_concrete", {"pressure": pressure, "steps": 500})
    for pressure in (0.03, 0.1, 0.3)
}
EXPERIMENT = Experiment(
    name="localization_benchmarks.tuning",
    question=__doc__,
    presets={
        "smoke": Preset(
            recipe=PRESETS["smoke"].recipe,
            sequences=1,
            fraction=0.1,
            training=Training(lr=0.05, steps=50),
            tried={"slimming, pressure 0.1": ("slimming", {"pressure": 0.1, "steps": 20})},
        ),
        "small": Preset(
            recipe=Recipe(),
            sequences=5,
            fraction=0.05,
            training=Training(lr=0.05),
            tried=_SLIMMING | _HARD_CONCRETE,
        ),
    },
    jobs=jobs,
    tables=("injection",),
    checks=lambda _: [],
    summaries=summaries,
)

if __name__ == "__main__":
    # Jobs are functions of a module that other processes can import, which __main__ is not.
    from experiments.localization_benchmarks.tuning import EXPERIMENT as PROGRAM

    PROGRAM.command()
