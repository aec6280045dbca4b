"""Gradient neuron flipping: how few units must go before a window is no longer what the model says,
and which."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.hooks.hooks import Clock, Value, tapped
from interp.localization.registry import Places, Scores, method
from interp.localization.unit_gates import gated
from interp.localization.window_losses import differentiating, window_losses
from interp.localization.windows import own_tokens, repeated
from interp.progress import track
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject, evaluating


@dataclass(frozen=True)
class Recipe:
    """`copies` of the window with noise of `noise` times its embeddings' length; done when `share`
    of the tokens that were right are wrong, or after `at_most` units; `population` windows of the
    reference stand for what is to be kept."""

    copies: int = 5
    noise: float = 0.01
    share: float = 0.5
    at_most: int = 50
    population: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("copies", "at_most", "population"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.share <= 0:
            raise ValueError(f"share={self.share}: expected a share above 0, such as 0.5")


@dataclass(frozen=True, eq=False)
class Flip:
    """What it took to flip one window: the `chosen` units in order, whether it `flipped`, and every
    unit's first score."""

    chosen: list[tuple[Site, int]]
    flipped: bool
    first: dict[Site, Tensor]


def _each(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, **recipe: Any
) -> Scores:
    rows = [
        _ranked(flip) for flip in _flips(subject, memorized, reference, sites, Recipe(**recipe))
    ]
    return {site: np.stack([row[site] for row in rows]) for site in sites}


@method("neuron_flipping", each=_each, needs_reference=True, options=Recipe)
def neuron_flipping(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, **recipe: Any
) -> Scores:
    """The units whose zeroing flips a window, in the order in which they are found: 2 for the
    first, down to above 1 for the last, and below that the rest by their first-order score (at most
    1). A set scores the mean over its windows. Options are the fields of `Recipe`.

    Again and again the unit is zeroed that lowers -L(window) + mean L(reference) most to first
    order, until `share` of the tokens that the model had right are wrong. After Maini et al. 2023
    (arXiv 2307.09542), section 4, who flip one label of an image classifier; the noise and its
    copies are theirs, the share of tokens is ours.
    """
    return {
        site: rows.mean(0)
        for site, rows in _each(subject, memorized, reference, sites, **recipe).items()
    }


def units_to_flip(
    subject: Subject,
    memorized: Batches,
    reference: Batches,
    site: Sites = "neurons",
    recipe: Recipe | None = None,
) -> pd.DataFrame:
    """One row a window: how many `units` it took to flip it, and whether it `flipped` within the
    recipe's limit. Memorized examples need few, others more (Maini et al. 2023)."""
    sites = subject.anatomy.expand(site)
    flips = _flips(subject, memorized, reference, sites, recipe or Recipe())
    return pd.DataFrame(
        [(n, len(flip.chosen), flip.flipped) for n, flip in enumerate(flips)],
        columns=["window", "units", "flipped"],
    )


def _flips(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, recipe: Recipe
) -> list[Flip]:
    population = _first(reference, recipe.population)
    windows = [window for batch in batches(memorized) for window in batch.split(1)]
    return [
        _flip(subject, window, population, sites, recipe)
        for window in track(windows, "neuron_flipping")
    ]


def _first(windows: Batches, count: int) -> list[Batch]:
    """The first `count` windows, in batches."""
    kept: list[Batch] = []
    for batch in batches(windows, count):
        kept.append(next(iter(batch.split(count - sum(map(len, kept))))))
        if sum(map(len, kept)) == count:
            break
    return kept


def _flip(
    subject: Subject, window: Batch, population: list[Batch], sites: Places, recipe: Recipe
) -> Flip:
    dtype = torch.promote_types(next(subject.module.parameters()).dtype, torch.float32)
    widths = subject.anatomy.widths(sites)
    gates = {
        site: torch.ones(1, width, device=subject.device, dtype=dtype)
        for site, width in widths.items()
    }
    right = _hits(subject, window, gates)
    chosen: list[tuple[Site, int]] = []
    first: dict[Site, Tensor] = {}
    while len(chosen) < recipe.at_most:
        scores = _scores(subject, window, population, gates, recipe)
        first = first or scores
        site = max(sites, key=lambda s: float(scores[s].max()))
        unit = int(scores[site].argmax())
        if not scores[site][unit] > 0:  # nothing left that helps, or not a number
            break
        gates[site][0, unit] = 0
        chosen.append((site, unit))
        if (right & ~_hits(subject, window, gates)).sum() >= max(1, recipe.share * right.sum()):
            return Flip(chosen, True, first)
    return Flip(chosen, False, first)


def _scores(
    subject: Subject,
    window: Batch,
    population: list[Batch],
    gates: dict[Site, Tensor],
    recipe: Recipe,
) -> dict[Site, Tensor]:
    """By how much zeroing each unit lowers -L(window) + mean L(population), to first order;
    [units], 0 for units that are zero already."""
    leaves = {site: gate.clone().requires_grad_() for site, gate in gates.items()}
    size = sum(map(len, population))
    with differentiating(subject):
        copies = repeated(window, recipe.copies)
        with _jittered(subject, window, recipe), gated(subject, leaves):
            goal = -window_losses(subject, copies).mean()
        for batch in population:
            with gated(subject, leaves):
                goal = goal + window_losses(subject, batch).sum() / size
        gradients = torch.autograd.grad(goal, list(leaves.values()))
    return {
        site: (gate * g)[0].double()
        for (site, gate), g in zip(gates.items(), gradients, strict=True)
    }


@contextmanager
def _jittered(subject: Subject, window: Batch, recipe: Recipe) -> Generator[None]:
    """Noise on the embeddings, of a share of their own length; none where they cannot be hooked.
    Padding changes none of it."""
    embed = next((site for site in subject.sites if site.point == "embed"), None)
    if embed is None:
        yield
        return
    length = len(own_tokens(window)[0])

    def jitter(value: Value, _: Clock) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed)
        noise = (
            torch.randn(value.shape[1], value.shape[0], value.shape[2], generator=generator)
            .transpose(0, 1)
            .to(value)
        )
        sizes = (
            tensor[:, :length].flatten(1).norm(dim=1)[:, None, None] for tensor in (value, noise)
        )
        return value + recipe.noise * noise * next(sizes) / next(sizes)

    with tapped(subject, {embed: jitter}):
        yield


def _hits(subject: Subject, window: Batch, gates: dict[Site, Tensor]) -> Tensor:
    with evaluating(subject), gated(subject, gates):
        logits = subject.target_logits(window)
    return (logits.argmax(-1) == window.targets.to(logits.device)) & window.counted.to(
        logits.device
    )


def _ranked(flip: Flip) -> dict[Site, np.ndarray]:
    largest = max(float(score.abs().max()) for score in flip.first.values())
    scores = {
        site: (score / max(largest, 1e-30)).cpu().numpy() for site, score in flip.first.items()
    }
    for place, (site, unit) in enumerate(flip.chosen):
        scores[site][unit] = 2 - place / len(flip.chosen)
    return scores
