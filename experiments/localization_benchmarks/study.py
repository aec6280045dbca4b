"""What is measured on one model: INJ, DEL, which sequences lose accuracy together, one block
compared with all, whether effects of single neurons add up, and the look-up."""

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
    injection,
    planted_lookup,
)
from interp.memorization.evaluation import measure_under

Tables = dict[str, pd.DataFrame]
# The methods whose neurons are dropped in one block and over all blocks.
SPREAD = ("hard_concrete", "slimming", "zero_out")
# The blocks in which DEL drops neurons, and whether the first one is spared: as published, and our
# variant.
BLOCKS = {"all but the first": True, "all": False}
# The methods that score nothing without windows to compare with.
_COMPARES = ("unitmem", "z_score", "neuron_flipping")


def choices(
    options: Mapping[str, Mapping[str, Any]], skipped: Sequence[str] = ()
) -> dict[str, Choice]:
    """Every method but those skipped, with its options. Only methods that cannot do without a
    reference are given one."""
    return {
        name: Choice(name, options.get(name, {}), name in _COMPARES)
        for name in methods()
        if name not in skipped
    }


def memorized_only(known: Memorizer, least: float) -> Memorizer:
    """The same model without the repeated windows that it has not memorized.

    Args:
        known: the model and its windows.
        least: the lowest suffix accuracy at which a window counts as memorized.

    Raises:
        ValueError: no window is left.
    """
    measured = measure_under(known.subject, [[]], {"repeated": known.repeated})
    accuracy = measured["accuracy"].to_numpy()
    kept = np.flatnonzero(accuracy >= least)
    if not len(kept):
        raise ValueError(
            f"no repeated window was memorized: the best has accuracy {accuracy.max():.2f}, "
            f"expected {least}"
        )
    windows = interp.Batch(known.repeated.tokens[torch.from_numpy(kept)], known.repeated.prompt)
    return replace(known, repeated=windows, kinds=tuple(known.kinds[n] for n in kept))


def knowledge(known: Memorizer) -> pd.DataFrame:
    """What the model has memorized: the means of `exact`, `accuracy` and `loss` over the repeated
    windows of each `kind`, and over held-out windows."""
    sets: dict[str, Any] = {"repeated": known.repeated, "held_out": known.held_out}
    measured = measure_under(known.subject, [[]], sets).drop(columns="plan")
    kinds = [*known.kinds, *["held_out"] * len(known.held_out)]
    groups = measured.assign(kind=kinds).groupby("kind", sort=False)
    return groups[["exact", "accuracy", "loss"]].mean().reset_index()


def measure_injection(
    known: Memorizer, every: Mapping[str, Choice], condition: Condition, preset: Preset, seed: int
) -> pd.DataFrame:
    """INJ under one condition, on the first windows of text that the model has not seen."""
    windows = next(iter(known.inject.split(preset.sequences)))
    reference = interp.Batch(known.reference.tokens[: preset.references], windows.prompt)
    found = injection(
        known.subject,
        windows,
        every,
        condition.fraction,
        reference,
        multiples=condition.multiples,
        # Window n is hidden in units drawn from this seed + n: seeds of models next to each other
        # would draw the same units.
        seed=1000 * seed,
        training=condition.training,
    )
    return found.assign(condition=condition.name, fraction=condition.fraction)


def confusion(fallen_together: pd.DataFrame, headline: float) -> pd.DataFrame:
    """The rows of `related` that the confusion matrix is made of: hard_concrete, all blocks, the
    headline fraction."""
    where = {"method": "hard_concrete", "blocks": "all", "fraction": headline}
    return rows(fallen_together, where)[["category", "evaluated", "fall"]]


def fall_by_block(falls: pd.DataFrame) -> pd.DataFrame:
    """The mean fall of accuracy of the targets themselves (`self`) and of other memorized windows
    (`negative`)."""
    evaluated = np.where(falls["target"] == falls["window"], "self", "negative")
    groups = falls.assign(evaluated=evaluated).groupby(
        ["method", "target", "block", "k", "evaluated"], sort=False
    )
    return groups["fall"].mean().reset_index()


def sums(
    known: Memorizer, scores: Sequence[interp.UnitScores], fractions: Sequence[float]
) -> pd.DataFrame:
    """Whether the effects of single neurons add up.

    Returns:
        One row per target and fraction: by how much the target's loss rises when its top units by
        zero_out are dropped together (`joint`), and the `sum` of the rises when each is dropped
        alone, both in nats per token.
    """
    windows = list(known.repeated.split(1))
    found: list[tuple[int, float, float, float]] = []
    for target, own in enumerate(scores):
        for fraction in fractions:
            units = own.top_per_site(fraction)
            measured = measure_under(
                known.subject, [[], interp.Zero(units)], {"target": windows[target]}
            )
            # Plan 0 changes nothing, and there is one window.
            before, after = measured["loss"].to_numpy()
            # The score of an exhaustive zero_out is the rise of the loss when that unit alone is
            # dropped.
            alone = float(sum(own[site][unit] for site, unit in units))
            found.append((target, fraction, after - before, alone))
    return pd.DataFrame(found, columns=["target", "fraction", "joint", "sum"])


def correlation(scores: Mapping[str, Sequence[interp.UnitScores]]) -> pd.DataFrame:
    """Spearman's rank correlation of the scores of each pair of methods, over all neurons.

    Returns:
        One row per pair: `method`, `other`, and the `correlation` as a mean over targets.
    """
    targets = len(next(iter(scores.values())))
    per_target: list[pd.DataFrame] = []
    for target in range(targets):
        flat: dict[str, np.ndarray] = {}
        for name, each in scores.items():
            flat[name] = np.concatenate(list(each[target].values.values()))
        per_target.append(pd.DataFrame(flat).corr("spearman"))
    # [methods, methods] of each target; `sum` alone would begin with the number 0.
    mean = sum(per_target[1:], per_target[0]) / targets
    square = mean.rename_axis("method").reset_index()
    return square.melt("method", var_name="other", value_name="correlation")


def look_up(known: Memorizer, every: Mapping[str, Choice], count: int, seed: int) -> pd.DataFrame:
    """Which methods find a planted look-up.

    Args:
        known: the model and its windows.
        every: the methods.
        count: number of look-ups, each planted for another held-out window.
        seed: seed of the model. Which block holds a look-up alternates over windows and seeds.

    Returns:
        One row per method and window: the `loss` of the window after planting; the `recall`, which
        is the share of the look-up's units among the same number of highest-scoring units; and
        `block_first`, whether its block scores highest.
    """
    blocks = len(known.subject.anatomy.blocks())
    windows = list(known.held_out.split(1))[:count]
    found: list[dict[str, Any]] = []
    for number, window in enumerate(windows):
        block = (count * seed + number) % blocks
        planted = planted_lookup(known.subject, window, f"blocks.{block}.neurons", seed + number)
        size = len(planted.units)
        for name, choice in every.items():
            reference = known.reference if choice.compares else None
            given: Any = (planted.subject, window, reference, choice.method)
            neurons = localize(*given, "neurons", **choice.options).top(size)
            best_block = localize(*given, "blocks", **choice.options).top(1).sites[0].block
            row = {"method": name, "window": number, "block": block, "loss": planted.loss}
            row["recall"] = len(neurons & planted.units) / size
            row["block_first"] = float(best_block == block)
            found.append(row)
    return pd.DataFrame(found)
