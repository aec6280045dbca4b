"""Do memorization and generalization run through the same edges and components?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from experiments.reason_to_rote.study import Studied, Study, Tables, outcomes, said
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

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Items, each with another of another answer in its place: what edge attribution compares."""

    batch: Batch
    corrupt: Batch
    right: Int[np.ndarray, " items"]
    wrong: Int[np.ndarray, " items"]


def circuits(study: Study, untrained: Study, items: int, resamples: int, seed: int) -> Tables:
    """`overlap`: intersection over union of the top edges on memorized items with those on test
    items and on controls - prompts of random tokens, and the same items in an untrained model -
    over resamples of the items; `faithfulness` of each set's circuit on each set."""
    contrasts = {
        name: _contrast(of.some(items), of.label[:items], seed) for name, of in study.sets.items()
    }
    contrasts["random prompts"] = _random_prompts(study, items, seed)
    effects = {name: _effects(study, contrast) for name, contrast in contrasts.items()}
    effects["untrained"] = _effects(untrained, contrasts["memorized"])
    rows = list(_overlaps(effects, resamples, seed))
    return {
        "overlap": study.table(rows),
        "faithfulness": study.table(_faithfulness(study, contrasts, effects)),
    }


def _contrast(items: Studied, answers: Int[np.ndarray, " items"], seed: int) -> Contrast:
    other = _another(answers, seed)
    return Contrast(items.batch, items.batch.rows(other), answers, answers[other])


def _another(answers: Int[np.ndarray, " items"], seed: int) -> Int[np.ndarray, " items"]:
    """For each item a random one with another answer. Raises ValueError where all have one answer."""
    if (answers == answers[0]).all():
        raise ValueError(
            f"all {len(answers)} items have the answer {answers[0]}: expected two different ones to contrast"
        )
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(answers != own)) for own in answers])


def _random_prompts(study: Study, items: int, seed: int) -> Contrast:
    """Prompts of random tokens, with what the model itself makes of them as answers."""
    given = study.memorized.batch
    tokens = np.random.default_rng(seed).integers(0, study.task.vocabulary, (items, given.length))
    batch = Batch(torch.from_numpy(tokens), given.prompt)
    answers = said(study.subject, batch)
    other = _another(answers, seed)
    return Contrast(batch, batch.rows(other), answers, answers[other])


def _effects(study: Study, contrast: Contrast) -> EdgeEffects:
    tokens = [torch.from_numpy(answers) for answers in (contrast.right, contrast.wrong)]
    values = np.abs(edge_effects(study.subject, contrast.batch, contrast.corrupt, *tokens))
    graph = Graph.of(study.subject)
    return EdgeEffects(graph.senders, graph.receivers, values)


@dataclass(frozen=True, eq=False)
class EdgeEffects:
    """|effect| of every edge on every item: [items, senders, receivers]."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    values: np.ndarray

    def scores(self, items: np.ndarray | slice = slice(None)) -> EdgeScores:
        return EdgeScores(self.senders, self.receivers, self.values[items].mean(0))


def _overlaps(
    effects: Mapping[str, EdgeEffects], resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Sample 0 is all items."""
    rng = np.random.default_rng(seed)
    for sample in range(resamples + 1):
        scores = {}
        for name, of in effects.items():
            n = len(of.values)
            scores[name] = of.scores(rng.integers(0, n, n) if sample else slice(None))
        for other in [name for name in scores if name != "memorized"]:
            for fraction in FRACTIONS:
                iou = scores["memorized"].top(fraction).iou(scores[other].top(fraction))
                about = {
                    "other": other,
                    "fraction": fraction,
                    "sample": sample,
                    "chance": chance_iou(fraction),
                }
                yield about | {"iou": iou, "spearman": scores["memorized"].spearman(scores[other])}


def _faithfulness(
    study: Study, contrasts: Mapping[str, Contrast], effects: Mapping[str, EdgeEffects]
) -> list[dict[str, Any]]:
    """Of the circuits of each set and of random prompts, on both sets."""
    names = [(name, fraction) for name in contrasts for fraction in FRACTIONS]
    circuits = [effects[name].scores().top(fraction) for name, fraction in names]
    rows: list[dict[str, Any]] = []
    for on in study.sets:
        contrast, means = contrasts[on], sender_means(study.subject, contrasts[on].batch)
        tokens = [torch.from_numpy(answers) for answers in (contrast.right, contrast.wrong)]
        kept = faithfulness(study.subject, contrast.batch, *tokens, circuits, means)
        rows += [
            {"circuit": name, "on": on, "fraction": share, "faithfulness": f}
            for (name, share), f in zip(names, kept, strict=True)
        ]
    return rows


def components(study: Study) -> Tables:
    """`components`: what items say with one head or one MLP at its mean over clean items, at each
    position its own."""
    rows: list[dict[str, Any]] = []
    for name, plan in _ablations(study):
        rows += outcomes(study, lambda *_, plan=plan: plan, component=name)
    rows += [row | {"component": "none"} for row in outcomes(study, lambda *_: ())]
    return {"components": study.table(rows)}


def _ablations(study: Study) -> Iterator[tuple[str, Patch]]:
    anatomy = study.subject.anatomy
    sites = [
        site
        for block in range(study.blocks)
        for site in (Site("heads", block), Site("mlp_out", block))
    ]
    means = mean_by_position(study, sites)
    for site in sites:
        if site.point == "mlp_out":
            yield f"{site.block} MLP", Patch(anatomy.units(site), values=means)
            continue
        for head in range(anatomy.place(site).units):
            yield (
                f"{site.block} head {head}",
                Patch(anatomy.units(site).only(site, [head]), values=means),
            )


def mean_by_position(study: Study, sites: Sequence[Site]) -> dict[Site, np.ndarray]:
    """The mean activation of clean items at every position, [position, width]."""
    batch = study.clean.batch
    parts = [values_at(study.subject, part, tuple(sites)) for part in batch.split(512)]
    return {
        site: sum(part[site].double().sum(0) for part in parts).cpu().numpy() / len(batch)
        for site in sites
    }
