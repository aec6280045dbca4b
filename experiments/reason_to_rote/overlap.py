"""Do memorized answers and correct answers depend on the same edges and components?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from experiments.reason_to_rote.study import Study, Tables, answers_of, outcomes
from interp.analysis.circuits import (
    EdgeScores,
    Graph,
    chance_iou,
    edge_effects,
    faithfulness,
    sender_means,
)
from interp.interventions.kinds import Patch
from interp.localization.unit_values import values_at
from interp.sites.site import Site
from interp.subject.batch import Batch

# Sizes of the circuits, as fractions of all edges.
FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, eq=False)
class Contrast:
    """The items that edge attribution compares: for each item another one with another answer.

    Attributes:
        batch: the items.
        corrupt: for each item the one that it is compared with.
        right: the answers of the items.
        wrong: the answers of the others.
    """

    batch: Batch
    corrupt: Batch
    right: Int[np.ndarray, " items"]
    wrong: Int[np.ndarray, " items"]


@dataclass(frozen=True, eq=False)
class EdgeEffects:
    """The absolute effect of every edge on every item."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    values: Float[np.ndarray, "items senders receivers"]

    def scores(self, items: np.ndarray | slice = slice(None)) -> EdgeScores:
        """The mean over some items, by default all."""
        return EdgeScores(self.senders, self.receivers, self.values[items].mean(0))


def circuits(study: Study, untrained: Study, items: int, resamples: int, seed: int) -> Tables:
    """The tables `overlap` and `faithfulness`.

    `overlap` holds the intersection over union of the top edges of memorized items with those of
    test items, of prompts of random tokens, and of the same items in an untrained model; see
    `_overlaps`. `faithfulness` holds how much of the answers of each set a circuit alone gives.

    Args:
        study: model and items.
        untrained: the same items on an untrained model.
        items: number of items of each set.
        resamples: how often the items are resampled.
        seed: seed of the contrasts, the random prompts and the resamples.
    """
    contrasts: dict[str, Contrast] = {}
    for name, of in study.sets.items():
        # The label is the wrong answer of memorized items and the truth of test items: what is
        # given.
        contrasts[name] = _contrast(of.some(items).batch, of.label[:items], seed)
    # Random prompts ask nothing. Edges that their circuit shares with memorized items matter for
    # any input, because much passes through them.
    contrasts["random prompts"] = _random_prompts(study, items, seed)
    effects = {name: _effects(study, contrast) for name, contrast in contrasts.items()}
    # The same items and the same contrasts: only the weights differ.
    effects["untrained"] = _effects(untrained, contrasts["memorized"])
    return {
        "overlap": study.table(_overlaps(effects, resamples, seed)),
        "faithfulness": study.table(_faithfulness(study, contrasts, effects)),
    }


def _contrast(batch: Batch, answers: Int[np.ndarray, " items"], seed: int) -> Contrast:
    other = _item_with_another_answer(answers, seed)
    return Contrast(batch, batch.rows(other), answers, answers[other])


def _item_with_another_answer(
    answers: Int[np.ndarray, " items"], seed: int
) -> Int[np.ndarray, " items"]:
    """For each item the index of a random one with another answer. Raises ValueError if all have
    the same answer."""
    if (answers == answers[0]).all():
        raise ValueError(
            f"all {len(answers)} items have the answer {answers[0]}: "
            "expected two different ones to contrast"
        )
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(answers != own)) for own in answers])


def _random_prompts(study: Study, items: int, seed: int) -> Contrast:
    """Prompts of random tokens; their answers are those that the model itself gives."""
    given = study.memorized.batch
    tokens = np.random.default_rng(seed).integers(0, study.task.vocabulary, (items, given.length))
    batch = Batch(torch.from_numpy(tokens), given.prompt)
    return _contrast(batch, answers_of(study.subject, batch), seed)


def _effects(study: Study, contrast: Contrast) -> EdgeEffects:
    values = edge_effects(
        study.subject,
        contrast.batch,
        contrast.corrupt,
        torch.from_numpy(contrast.right),
        torch.from_numpy(contrast.wrong),
    )
    graph = Graph.of(study.subject)
    return EdgeEffects(graph.senders, graph.receivers, np.abs(values))


def _overlaps(
    effects: Mapping[str, EdgeEffects], resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """One row per sample of the items, other set and fraction of edges: `iou` with the edges of
    memorized items, `chance`, how many `edges` each circuit has, and Spearman's correlation of all
    edges. Sample 0 is all items."""
    rng = np.random.default_rng(seed)
    for sample in range(resamples + 1):
        scores: dict[str, EdgeScores] = {}
        for name, of in effects.items():
            items = len(of.values)
            if sample == 0:
                scores[name] = of.scores()
            else:
                # Each set is resampled by itself: its items are not those of another set.
                scores[name] = of.scores(rng.integers(0, items, items))
        memorized = scores.pop("memorized")
        for other, theirs in scores.items():
            for fraction in FRACTIONS:
                circuit = memorized.top(fraction)
                yield {
                    "other": other,
                    "fraction": fraction,
                    "edges": len(circuit),
                    "sample": sample,
                    "chance": chance_iou(fraction),
                    "iou": circuit.iou(theirs.top(fraction)),
                    "spearman": memorized.spearman(theirs),
                }


def _faithfulness(
    study: Study, contrasts: Mapping[str, Contrast], effects: Mapping[str, EdgeEffects]
) -> list[dict[str, Any]]:
    """One row per set of items, circuit and fraction of edges: how much of the answers to the set
    (`on`) the circuit alone gives."""
    names = [(name, fraction) for name in contrasts for fraction in FRACTIONS]
    circuits = [effects[name].scores().top(fraction) for name, fraction in names]
    rows: list[dict[str, Any]] = []
    for on in study.sets:
        contrast = contrasts[on]
        kept = faithfulness(
            study.subject,
            contrast.batch,
            torch.from_numpy(contrast.right),
            torch.from_numpy(contrast.wrong),
            circuits,
            sender_means(study.subject, contrast.batch),
        )
        for (name, fraction), value in zip(names, kept, strict=True):
            rows.append({"circuit": name, "on": on, "fraction": fraction, "faithfulness": value})
    return rows


def components(study: Study) -> Tables:
    """The table `components`: what the model answers when the output of one head or one MLP is its
    mean over clean items, position by position; `component` is "none" for the whole model."""
    rows: list[dict[str, Any]] = []
    for name, plan in _ablations(study):
        rows += outcomes(study, lambda *_, plan=plan: plan, component=name)
    for row in outcomes(study, lambda *_: ()):
        rows.append(row | {"component": "none"})
    return {"components": study.table(rows)}


def _ablations(study: Study) -> Iterator[tuple[str, Patch]]:
    """The name of each component and the plan that ablates it."""
    anatomy = study.subject.anatomy
    sites: list[Site] = []
    for block in range(study.blocks):
        sites += [Site("heads", block), Site("mlp_out", block)]
    means = mean_by_position(study, sites)
    for site in sites:
        units = anatomy.units(site)
        if site.point == "mlp_out":
            yield f"{site.block} MLP", Patch(units, values=means)
            continue
        for head in range(anatomy.place(site).units):
            yield f"{site.block} head {head}", Patch(units.only(site, [head]), values=means)


def mean_by_position(
    study: Study, sites: Sequence[Site]
) -> dict[Site, Float[np.ndarray, "position width"]]:
    """The mean activations of clean items at every position."""
    batch = study.clean.batch
    parts = [values_at(study.subject, part, tuple(sites)) for part in batch.split(512)]
    means: dict[Site, np.ndarray] = {}
    for site in sites:
        # Sums in float64: a float32 sum over thousands of items loses digits.
        total = sum(part[site].double().sum(0) for part in parts)
        means[site] = total.cpu().numpy() / len(batch)
    return means
