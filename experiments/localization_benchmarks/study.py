"""What is measured on one model: INJ, DEL, what falls together, one block against all, effects that
add up or not, and the look-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

import interp
from experiments.localization_benchmarks.memorizer import Memorizer
from experiments.localization_benchmarks.presets import Condition, Preset
from interp.experiment.checks import rows
from interp.localization import localize, methods
from interp.localization.benchmarks.known_answers import (
    Choice,
    Training,
    injection,
    planted_lookup,
)
from interp.memorization.evaluation import effects

_COMPARES = ("unitmem", "z_score", "neuron_flipping")
SPREAD = (
    "hard_concrete",
    "slimming",
    "zero_out",
)  # the methods that "one block against all" is asked of
BLOCKS = {
    "all but the first": True,
    "all": False,
}  # what DEL drops neurons of: as published, and our variant
Tables = dict[str, pd.DataFrame]


def choices(
    options: Mapping[str, Mapping[str, Any]], skipped: Sequence[str] = ()
) -> dict[str, Choice]:
    """Every method, with its options of this preset; only those that must compare see the
    reference."""
    return {
        name: Choice(name, options.get(name, {}), name in _COMPARES)
        for name in methods()
        if name not in skipped
    }


def memorized_only(known: Memorizer, least: float) -> Memorizer:
    """Without the repeated windows of which the model says less than `least` of the suffix's
    tokens. Raises ValueError if none is left."""
    accuracy = effects(known.subject, [[]], {"repeated": known.repeated})["accuracy"].to_numpy()
    kept = np.flatnonzero(accuracy >= least)
    if not len(kept):
        raise ValueError(
            f"no repeated window was memorized: the best has accuracy {accuracy.max():.2f}, expected {least}"
        )
    windows = interp.Batch(known.repeated.tokens[torch.from_numpy(kept)], known.repeated.prompt)
    return replace(known, repeated=windows, kinds=tuple(known.kinds[n] for n in kept))


def knowledge(known: Memorizer) -> pd.DataFrame:
    """What the model knows of each kind of text, and of text that it has not seen."""
    sets: dict[str, Any] = {"repeated": known.repeated, "held_out": known.held_out}
    measured = effects(known.subject, [[]], sets).drop(columns="plan")
    kinds = [*known.kinds, *["held_out"] * len(known.held_out)]
    return (
        measured.assign(kind=kinds)
        .groupby("kind", sort=False)[["exact", "accuracy", "loss"]]
        .mean()
        .reset_index()
    )


def injected(
    known: Memorizer, every: Mapping[str, Choice], condition: Condition, preset: Preset, seed: int
) -> pd.DataFrame:
    """INJ under one condition, on the first windows of text that the model has not seen."""
    windows = next(iter(known.inject.split(preset.sequences)))
    reference = interp.Batch(known.reference.tokens[: preset.references], windows.prompt)
    training = Training(**condition.training)
    found = injection(
        known.subject,
        windows,
        every,
        condition.fraction,
        reference,
        seed=1000 * seed,
        training=training,
    )
    return found.assign(condition=condition.name, fraction=condition.fraction)


def confusion(fallen_together: pd.DataFrame, headline: float) -> pd.DataFrame:
    """The rows of `related` that the confusion matrix is made of: hard_concrete, all blocks, the
    headline fraction."""
    where = {"method": "hard_concrete", "blocks": "all", "fraction": headline}
    return rows(fallen_together, where)[["category", "evaluated", "fall"]]


def fall_by_block(falls: pd.DataFrame) -> pd.DataFrame:
    """The mean fall of accuracy of targets themselves and of other memorized windows."""
    named = falls.assign(evaluated=np.where(falls["target"] == falls["window"], "self", "negative"))
    return (
        named.groupby(["method", "target", "block", "k", "evaluated"], sort=False)["fall"]
        .mean()
        .reset_index()
    )


def sums(
    known: Memorizer, scores: Sequence[interp.UnitScores], fractions: Sequence[float]
) -> pd.DataFrame:
    """For each target and fraction, the rise of its loss when its top units by zero_out go
    together, and the `sum` of their own effects."""
    trials = [
        (n, share, one.top_per_site(share)) for n, one in enumerate(scores) for share in fractions
    ]
    windows = list(known.repeated.split(1))
    found: list[tuple[int, float, float, float]] = []
    for target, share, units in trials:
        measured = effects(known.subject, [[], interp.Zero(units)], {"target": windows[target]})[
            "loss"
        ].to_numpy()
        found.append(
            (
                target,
                share,
                measured[1] - measured[0],
                float(sum(scores[target][site][unit] for site, unit in units)),
            )
        )
    return pd.DataFrame(found, columns=["target", "fraction", "joint", "sum"])


def correlation(scores: Mapping[str, Sequence[interp.UnitScores]]) -> pd.DataFrame:
    """Spearman's rank correlation of every two methods over all neurons, mean over targets:
    `method`, `other`, `correlation`."""
    per_target = [
        pd.DataFrame(
            {name: np.concatenate(list(each[n].values.values())) for name, each in scores.items()}
        ).corr("spearman")
        for n in range(len(next(iter(scores.values()))))
    ]
    mean = sum(per_target[1:], per_target[0]) / len(per_target)
    return (
        mean.rename_axis("method")
        .reset_index()
        .melt("method", var_name="other", value_name="correlation")
    )


def look_up(known: Memorizer, every: Mapping[str, Choice], count: int, seed: int) -> pd.DataFrame:
    """Which methods find a planted look-up: `recall` among the highest-scoring units, as many as it
    has, and whether its block scores highest of all blocks (`block_first`)."""
    recalls: list[dict[str, Any]] = []
    blocks = len(known.subject.anatomy.blocks())
    for number, window in enumerate(list(known.held_out.split(1))[:count]):
        block = (count * seed + number) % blocks
        planted = planted_lookup(known.subject, window, f"blocks.{block}.neurons", seed + number)
        for name, choice in every.items():
            given: Any = (
                planted.subject,
                window,
                known.reference if choice.compares else None,
                choice.method,
            )
            found = (
                localize(*given, "neurons", **choice.options).top(len(planted.units))
                & planted.units
            )
            first = localize(*given, "blocks", **choice.options).top(1).sites[0].block == block
            share = len(found) / len(planted.units)
            about = {"method": name, "window": number, "block": block, "loss": planted.loss}
            recalls.append(about | {"recall": share, "block_first": float(first)})
    return pd.DataFrame(recalls)
