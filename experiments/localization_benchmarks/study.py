"""What is measured on one model: INJ, DEL, what falls together, one block against all, effects that add up or not, and the look-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

import interp
from experiments.localization_benchmarks.memorizer import Memorizer, Recipe, memorizer
from interp.localization import localize, methods
from interp.localization.benchmarks.known_answers import (
    Choice,
    Training,
    by_target,
    deletion,
    injection,
    planted_lookup,
    related,
    scored_each,
    single_block,
)
from interp.memorization.evaluation import effects

_COMPARES = ("unitmem", "z_score", "neuron_flipping")
_SPREAD = ("hard_concrete", "slimming", "zero_out")  # the methods that "one block against all" is asked of
BLOCKS = {"all but the first": True, "all": False}  # what DEL drops neurons of: as published, and our variant
Tables = dict[str, pd.DataFrame]


def choices(options: Mapping[str, Mapping[str, Any]], skipped: Sequence[str] = ()) -> dict[str, Choice]:
    """Every method, with its options of this preset; only those that must compare see the reference."""
    return {name: Choice(name, options.get(name, {}), name in _COMPARES) for name in methods() if name not in skipped}


def hidden(settings: Mapping[str, Any], seed: int) -> Tables:
    """INJ, and the look-up: memory whose place is known."""
    known = memorizer(Recipe(**settings["recipe"]), seed)
    every = choices(settings["options"])
    found = [_injection(known, every, condition, settings, seed) for condition in settings["injections"]]
    return _of_seed(seed, models=_model(known), injection=pd.concat(found), lookup=_lookup(known, every, settings, seed))


def natural(settings: Mapping[str, Any], seed: int) -> Tables:
    """DEL, and what else is asked of memory that training left where it would: on the same model."""
    known = memorized_only(memorizer(Recipe(**settings["recipe"]), seed), settings["least"])
    memorized, headline, fractions = known.repeated, settings["headline"], settings["fractions"]
    asked = choices(settings["options"], settings["not_deleted"])
    scores = scored_each(known.subject, memorized, asked, known.reference)
    frames = {
        name: deletion(known.subject, memorized, known.held_out, scores, fractions, spare_first=spare) for name, spare in BLOCKS.items()
    }
    blocks = [single_block(known.subject, memorized, scores[name], headline).assign(method=name) for name in _SPREAD]
    return _of_seed(
        seed,
        deletion=pd.concat([by_target(frame, memorized.targets.shape[1]).assign(blocks=name) for name, frame in frames.items()]),
        related=pd.concat([related(frame, known.kinds).assign(blocks=name) for name, frame in frames.items()]),
        blocks=_by_block(pd.concat(blocks)),
        sums=_sums(known, scores["zero_out"], fractions),
        correlation=_correlation(scores),
    )


def memorized_only(known: Memorizer, least: float) -> Memorizer:
    """Without the repeated windows of which the model says less than `least` of the suffix's tokens. Raises ValueError if none is left."""
    accuracy = effects(known.subject, [[]], {"repeated": known.repeated})["accuracy"].to_numpy()
    kept = np.flatnonzero(accuracy >= least)
    if not len(kept):
        raise ValueError(f"no repeated window was memorized: the best has accuracy {accuracy.max():.2f}, expected {least}")
    windows = interp.Batch(known.repeated.tokens[torch.from_numpy(kept)], known.repeated.prompt)
    return replace(known, repeated=windows, kinds=tuple(known.kinds[n] for n in kept))


def _of_seed(seed: int, **tables: pd.DataFrame) -> Tables:
    return {name: table.assign(seed=seed) for name, table in tables.items()}


def _model(known: Memorizer) -> pd.DataFrame:
    """What the model knows of each kind of text, and of text that it has not seen."""
    sets: dict[str, Any] = {"repeated": known.repeated, "held_out": known.held_out}
    measured = effects(known.subject, [[]], sets).drop(columns="plan")
    kinds = [*known.kinds, *["held_out"] * len(known.held_out)]
    return measured.assign(kind=kinds).groupby("kind", sort=False)[["exact", "accuracy", "loss"]].mean().reset_index()


def _injection(
    known: Memorizer, every: Mapping[str, Choice], condition: Mapping[str, Any], settings: Mapping[str, Any], seed: int
) -> pd.DataFrame:
    """INJ under one condition, on the first windows of text that the model has not seen."""
    windows = next(iter(known.inject.split(settings["sequences"])))
    reference = interp.Batch(known.reference.tokens[: settings["references"]], windows.prompt)
    training = Training(**condition["training"])
    found = injection(known.subject, windows, every, condition["fraction"], reference, seed=1000 * seed, training=training)
    return found.assign(condition=condition["name"], fraction=condition["fraction"])


def _by_block(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean fall of accuracy of targets themselves and of other memorized windows."""
    named = rows.assign(evaluated=np.where(rows["target"] == rows["window"], "self", "negative"))
    return named.groupby(["method", "target", "block", "k", "evaluated"], sort=False)["fall"].mean().reset_index()


def _sums(known: Memorizer, scores: Sequence[interp.UnitScores], fractions: Sequence[float]) -> pd.DataFrame:
    """For each target and fraction, the rise of its loss when its top units by zero_out go together, and the `sum` of their own effects."""
    trials = [(n, share, one.top_per_site(share)) for n, one in enumerate(scores) for share in fractions]
    windows = list(known.repeated.split(1))
    rows: list[tuple[int, float, float, float]] = []
    for target, share, units in trials:
        measured = effects(known.subject, [[], interp.Zero(units)], {"target": windows[target]})["loss"].to_numpy()
        rows.append((target, share, measured[1] - measured[0], float(sum(scores[target][site][unit] for site, unit in units))))
    return pd.DataFrame(rows, columns=["target", "fraction", "joint", "sum"])


def _correlation(scores: Mapping[str, Sequence[interp.UnitScores]]) -> pd.DataFrame:
    """Spearman's rank correlation of every two methods over all neurons, mean over targets: `method`, `other`, `correlation`."""
    per_target = [
        pd.DataFrame({name: np.concatenate(list(each[n].values.values())) for name, each in scores.items()}).corr("spearman")
        for n in range(len(next(iter(scores.values()))))
    ]
    mean = sum(per_target[1:], per_target[0]) / len(per_target)
    return mean.rename_axis("method").reset_index().melt("method", var_name="other", value_name="correlation")


def _lookup(known: Memorizer, every: Mapping[str, Choice], settings: Mapping[str, Any], seed: int) -> pd.DataFrame:
    """Which methods find a planted look-up: `recall` among the highest-scoring units, as many as it has, and whether its block scores
    highest of all blocks (`block_first`)."""
    rows: list[dict[str, Any]] = []
    blocks = len(known.subject.anatomy.blocks())
    for number, window in enumerate(list(known.held_out.split(1))[: settings["lookups"]]):
        block = (settings["lookups"] * seed + number) % blocks
        planted = planted_lookup(known.subject, window, f"blocks.{block}.neurons", seed + number)
        for name, choice in every.items():
            given: Any = (planted.subject, window, known.reference if choice.compares else None, choice.method)
            found = localize(*given, "neurons", **choice.options).top(len(planted.units)) & planted.units
            first = localize(*given, "blocks", **choice.options).top(1).sites[0].block == block
            share = len(found) / len(planted.units)
            about = {"method": name, "window": number, "block": block, "loss": planted.loss}
            rows.append(about | {"recall": share, "block_first": float(first)})
    return pd.DataFrame(rows)


PARTS = {part.__name__: part for part in (natural, hidden)}


def measured(part: str, settings: Mapping[str, Any], seed: int) -> Tables:
    """The tables of one of the parts."""
    return PARTS[part](settings, seed)
