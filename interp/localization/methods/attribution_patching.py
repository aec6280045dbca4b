"""Attribution patching: to first order, what replacing a unit's activation by its value on a
corrupted prompt does to the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, tapped
from interp.localization.predicting_positions import stack_of
from interp.localization.registry import Places, window_method
from interp.localization.unit_values import per_unit, values_at
from interp.localization.window_losses import differentiate
from interp.localization.windows import own_tokens
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@window_method("attribution_patching")
def attribution_patching(
    subject: Subject, batch: Batch, sites: Places, *, points: int = 1, seed: int = 0
) -> dict[Site, Tensor]:
    """Scores a unit by the first-order rise of the suffix's loss when the unit takes the value it
    has after a corrupted prompt.

    sum_t (h_corrupted - h)_t * dL/dh_t, for the same suffix after either prompt (see `corrupt`).
    Nanda 2023, Syed et al. 2023 (arXiv 2310.10348).

    Args:
        subject, batch, sites: see `window_method`.
        points: number of points at which the gradient is taken, equally spaced between the
            embeddings of the two prompts, starting at the true one; the mean gradient counts. Above
            1 this is integrated gradients over the input (Hanna et al. 2024, arXiv 2403.17806).
        seed: seed of the corrupted prompt.

    Raises:
        ValueError: below one point, or where nothing can be corrupted.

    Example:
        >>> scores = interp.localize(subject, memorized, method="attribution_patching")
        >>> len(scores.top(0.05))
        5
    """
    if points < 1:
        raise ValueError(f"points={points}: expected at least one gradient")
    other = corrupt(subject, batch, seed)
    embed = _embed(subject, sites) if points > 1 else None
    # The embeddings are needed too, to walk from one prompt to the other. They may be among the
    # sites already, and no site is recorded twice.
    recorded = sites
    if embed is not None and embed not in sites:
        recorded = (*sites, embed)
    clean = values_at(subject, batch, recorded)
    changed = values_at(subject, other, recorded)

    path = None if embed is None else changed[embed] - clean[embed]
    gradients: list[dict[Site, Tensor]] = []
    for point in range(points):
        shift = None if path is None else path * (point / points)
        gradients.append(_gradients(subject, batch, sites, embed, shift))

    # sum_t (h_corrupted - h)_t * dL/dh_t, [windows, width]
    scores: dict[Site, Tensor] = {}
    for site in sites:
        at_points = [gradient[site] for gradient in gradients]
        mean_gradient = torch.stack(at_points).mean(0)
        difference = (changed[site] - clean[site]).double()
        at_positions = difference * mean_gradient.double()
        effect = at_positions.sum(1)
        scores[site] = per_unit(subject, site, effect)
    return scores


def corrupt(subject: Subject, batch: Batch, seed: int = 0) -> Batch:
    """Returns the batch with another prompt before the same suffix.

    The prompt's tokens are random, drawn from the seed and the window's own tokens, so that a
    window gets the same ones in any batch. Where there is no prompt, each window gets the
    conditioning of the next one.

    Raises:
        ValueError: if there is neither a prompt nor another window's conditioning.

    Example:
        >>> other = corrupt(subject, batch)
        >>> torch.equal(other.targets, batch.targets), torch.equal(other.tokens, batch.tokens)
        (True, False)
    """
    if batch.prompt:
        prompts: list[np.ndarray] = []
        for tokens in own_tokens(batch):
            rng = np.random.default_rng([seed, *tokens])
            prompts.append(rng.integers(0, subject.vocabulary, batch.prompt))
        prompt = torch.tensor(np.stack(prompts)).to(batch.tokens)
        tokens = torch.cat([prompt, batch.targets], 1)
        return replace(batch, tokens=tokens)

    if not batch.conditioning or len(batch) < 2:
        raise ValueError(
            "nothing to corrupt: expected a prompt, or at least 2 windows that are conditioned on "
            "something"
        )
    # Each window gets the conditioning of the next: values that occur, which noise would not be.
    conditioning: dict[str, Tensor] = {}
    for name, value in batch.conditioning.items():
        conditioning[name] = value.roll(-1, dims=0)
    return replace(batch, conditioning=conditioning)


def _embed(subject: Subject, sites: Places) -> Site:
    """Where the tokens of the first site's stack enter: its embedding or, where no module returns
    that, the input of the first block."""
    stack = stack_of(subject, sites[0]) or ""
    embed = Site("embed", None, stack)
    if embed in subject.anatomy.places:
        return embed
    return subject.anatomy.resolve(Site("resid_pre", 0, stack))


def _gradients(
    subject: Subject, batch: Batch, sites: Places, embed: Site | None, shift: Tensor | None
) -> dict[Site, Tensor]:
    """The gradients of each window's loss, with its embeddings shifted."""

    def move(value: Value, _: Clock) -> Tensor:
        return value if shift is None else value + shift

    visits = {} if embed is None else {embed: move}
    # The shift is the outer context, so that values are taken, and differentiated, behind it.
    with tapped(subject, visits):
        _, gradients = differentiate(subject, batch, sites)
    return gradients
