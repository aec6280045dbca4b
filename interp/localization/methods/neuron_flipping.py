"""Gradient neuron flipping: how few units must be zeroed before the model no longer generates a
window, and which units those are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, tapped
from interp.localization.registry import Places, Scores, method
from interp.localization.unit_gates import constant_gates, gated
from interp.localization.window_losses import differentiating, window_losses
from interp.localization.window_rows import stack_rows
from interp.localization.windows import own_tokens, repeat_windows
from interp.progress import track
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject, evaluating


@dataclass(frozen=True)
class FlipSettings:
    """How a window is flipped.

    Attributes:
        copies: copies of the window, each with other noise on its embeddings, that the gradient is
            averaged over.
        noise: length of the noise, as a fraction of the length of the window's embeddings.
        share: a window is flipped when this fraction of the tokens that were right are wrong.
        at_most: largest number of units to zero.
        population: number of reference windows on which the loss should not rise.
        seed: seed of the noise.

    Raises:
        ValueError: for a count below 1 or a share that is not above 0.
    """

    copies: int = 5
    noise: float = 0.01
    share: float = 0.5
    at_most: int = 50
    population: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("copies", "at_most", "population"):
            count = getattr(self, name)
            if count < 1:
                raise ValueError(f"{name}={count}: expected at least 1")
        if not self.share > 0:
            raise ValueError(f"share={self.share}: expected a share above 0, such as 0.5")


@dataclass(frozen=True, eq=False)
class Flip:
    """What it took to flip one window.

    Attributes:
        chosen: the zeroed units, in order.
        flipped: whether the window flipped before the limit was reached.
        first: every unit's score before any was zeroed, {site: [units]}.
    """

    chosen: list[tuple[Site, int]]
    flipped: bool
    first: dict[Site, Tensor]


def _each(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, **settings: Any
) -> Scores:
    flips = _flip_all(subject, memorized, reference, sites, FlipSettings(**settings))
    return stack_rows([_rank(flip) for flip in flips])


@method("neuron_flipping", each=_each, needs_reference=True, options=FlipSettings)
def neuron_flipping(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, **settings: Any
) -> Scores:
    """Scores units by the order in which they are zeroed until a window flips.

    One unit after the other is zeroed: always the one whose zeroing, to first order, lowers
    -L(window) + mean L(reference) most, until `share` of the tokens that the model had right are
    wrong. After Maini et al. 2023 (arXiv 2307.09542), section 4, who flip one label of an image
    classifier; the noise and its copies are theirs, the share of tokens is ours.

    The first unit scores 2, the last of those zeroed just above 1; all others score at most 1, by
    their first-order effect. The score of a set is the mean over its windows.

    Args:
        subject, memorized, reference, sites: see `method`.
        **settings: fields of `FlipSettings`.

    Example:
        >>> scores = interp.localize(
        ...     subject, memorized[:1], control, method="neuron_flipping", at_most=5
        ... )
        >>> values = np.concatenate(list(scores.values.values()))
        >>> float(values.max())
        2.0
    """
    rows = _each(subject, memorized, reference, sites, **settings)
    return {site: values.mean(0) for site, values in rows.items()}


def units_to_flip(
    subject: Subject,
    memorized: Batches,
    reference: Batches,
    site: Sites = "neurons",
    settings: FlipSettings | None = None,
) -> pd.DataFrame:
    """Counts the units that must be zeroed to flip each window.

    Memorized examples need few, others more (Maini et al. 2023, arXiv 2307.09542).

    Args:
        subject: the model.
        memorized: windows to flip.
        reference: windows whose loss should not rise.
        site: the sites whose units may be zeroed.
        settings: how a window is flipped; the default `FlipSettings` if None.

    Returns:
        A frame with one row per `window`: how many `units` were zeroed, and whether it `flipped`
        within the limit of the settings.

    Example:
        >>> at_most_3 = FlipSettings(at_most=3)
        >>> counts = units_to_flip(subject, memorized[:2], control, settings=at_most_3)
        >>> len(counts), bool((counts["units"] <= 3).all())
        (2, True)
    """
    sites = subject.anatomy.expand(site)
    flips = _flip_all(subject, memorized, reference, sites, settings or FlipSettings())
    counts = {
        "window": range(len(flips)),
        "units": [len(flip.chosen) for flip in flips],
        "flipped": [flip.flipped for flip in flips],
    }
    return pd.DataFrame(counts)


def _flip_all(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, settings: FlipSettings
) -> list[Flip]:
    population = _take(reference, settings.population)
    windows: list[Batch] = []
    for batch in batches(memorized):
        windows += batch.split(1)
    return [
        _flip(subject, window, population, sites, settings)
        for window in track(windows, "neuron_flipping")
    ]


def _take(windows: Batches, count: int) -> list[Batch]:
    """The first `count` windows, in batches."""
    taken: list[Batch] = []
    missing = count
    for batch in batches(windows, count):
        first = next(iter(batch.split(missing)))
        taken.append(first)
        missing -= len(first)
        if missing == 0:
            break
    return taken


def _flip(
    subject: Subject, window: Batch, population: list[Batch], sites: Places, settings: FlipSettings
) -> Flip:
    gates = constant_gates(subject, sites, windows=1, value=1.0)
    right = _hits(subject, window, gates)
    # At least one: of a window without a right token, any unit would count as flipping it.
    enough = max(1, settings.share * right.sum())

    chosen: list[tuple[Site, int]] = []
    first: dict[Site, Tensor] = {}
    while len(chosen) < settings.at_most:
        scores = _scores(subject, window, population, gates, settings)
        first = first or scores
        highest: dict[Site, float] = {}
        for site, score in scores.items():
            highest[site] = float(score.max())
        site = max(sites, key=highest.__getitem__)
        at_site = scores[site]
        unit = int(at_site.argmax())
        if not at_site[unit] > 0:  # nothing left that helps, or not a number
            break
        gates[site][0, unit] = 0
        chosen.append((site, unit))
        hits = _hits(subject, window, gates)
        wrong_now = right & ~hits
        if wrong_now.sum() >= enough:
            return Flip(chosen, True, first)
    return Flip(chosen, False, first)


def _scores(
    subject: Subject,
    window: Batch,
    population: list[Batch],
    gates: dict[Site, Tensor],
    settings: FlipSettings,
) -> dict[Site, Tensor]:
    """By how much zeroing each unit lowers -L(window) + mean L(population), to first order;
    [units], 0 for units that are zero already."""
    leaves: dict[Site, Tensor] = {}
    for site, gate in gates.items():
        leaf = gate.clone()
        leaves[site] = leaf.requires_grad_()
    population_size = sum(map(len, population))
    copies = repeat_windows(window, settings.copies)
    # The gates have one row, which holds for all copies and windows. One backward then sums over
    # them: the gradient is that of the whole objective.
    with differentiating(subject):
        with _jittered(subject, window, settings), gated(subject, leaves):
            own_losses = window_losses(subject, copies)
        objective = -own_losses.mean()
        for batch in population:
            with gated(subject, leaves):
                losses = window_losses(subject, batch)
            objective = objective + losses.sum() / population_size
        gradients = torch.autograd.grad(objective, list(leaves.values()))

    # Zeroing a unit lowers its gate from 1 to 0, and the objective by the slope there. A unit that
    # is zero already has nothing to lower.
    scores: dict[Site, Tensor] = {}
    for (site, gate), gradient in zip(gates.items(), gradients, strict=True):
        falls = gate * gradient  # [1, units]
        scores[site] = falls[0].double()
    return scores


@contextmanager
def _jittered(subject: Subject, window: Batch, settings: FlipSettings) -> Generator[None]:
    """Adds noise to the embeddings of each copy of the window; none where they cannot be hooked."""
    embeddings = (site for site in subject.sites if site.point == "embed")
    embed = next(embeddings, None)
    if embed is None:
        yield
        return
    length = len(own_tokens(window)[0])

    def lengths(tensor: Tensor) -> Tensor:
        """Of each copy's part without padding, [copies, 1, 1]."""
        unpadded = tensor[:, :length].flatten(1)
        return unpadded.norm(dim=1)[:, None, None]

    def jitter(value: Value, _: Clock) -> Tensor:
        # Drawn position by position, so that padding at the end changes nothing of the noise before
        # it; from a new generator in each forward, so that every step sees the same noise.
        generator = torch.Generator().manual_seed(settings.seed)
        copies, positions, width = value.shape
        drawn = torch.randn(positions, copies, width, generator=generator)
        noise = drawn.transpose(0, 1).to(value)  # [copies, positions, width]
        # Scaled to the given fraction of the length of the copy's own embeddings.
        times_own_length = settings.noise * noise * lengths(value)
        return value + times_own_length / lengths(noise)

    with tapped(subject, {embed: jitter}):
        yield


def _hits(subject: Subject, window: Batch, gates: dict[Site, Tensor]) -> Tensor:
    """Which counted targets are the most likely token under the gates, [windows, predicted]."""
    with evaluating(subject), gated(subject, gates):
        logits = subject.target_logits(window)
    targets = window.targets.to(logits.device)
    counted = window.counted.to(logits.device)
    is_right = logits.argmax(-1) == targets
    return is_right & counted


def _rank(flip: Flip) -> dict[Site, np.ndarray]:
    """First-order scores scaled to at most 1, and above them the chosen units in order."""
    largest = [score.abs().max() for score in flip.first.values()]
    sizes = [float(size) for size in largest]
    scale = max(*sizes, 1e-30)  # all scores may be 0
    scores: dict[Site, np.ndarray] = {}
    for site, score in flip.first.items():
        scores[site] = (score / scale).cpu().numpy()
    # From 2 downwards, by 1 / number of chosen units each, so that the last one is still above 1.
    count = len(flip.chosen)
    for place, (site, unit) in enumerate(flip.chosen):
        scores[site][unit] = 2 - place / count
    return scores
