"""Patching: replacing activations by those of donors, and to first order what units would do by
their values on a corrupted prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from interp.hooks.hooks import Clock, Value, tapped
from interp.localization.predicting_positions import stack_of
from interp.localization.registry import Places, window_method
from interp.localization.unit_values import per_unit, values_at
from interp.localization.window_losses import differentiated
from interp.localization.windows import own_tokens
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@window_method("attribution_patching")
def attribution_patching(
    subject: Subject, batch: Batch, sites: Places, *, steps: int = 1, seed: int = 0
) -> dict[Site, Tensor]:
    """sum_t (h_corrupted - h)_t * dL/dh_t: the first-order rise of the loss L of the suffix when a
    unit takes the value it has after another prompt (see `corrupted`), the suffix being the same.

    Nanda 2023, Syed et al. 2023 (arXiv 2310.10348). With `steps` above 1 the gradient is the mean
    over as many points on the way between the two prompts' embeddings, the first of them the true
    prompt (integrated gradients over the input, Hanna et al. 2024, arXiv 2403.17806).
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least one gradient")
    other = corrupted(subject, batch, seed)
    embed = _embed(subject, sites) if steps > 1 else None
    seen = sites if embed is None else tuple(dict.fromkeys((*sites, embed)))
    clean, changed = values_at(subject, batch, seen), values_at(subject, other, seen)
    way = None if embed is None else changed[embed] - clean[embed]
    gradients = [
        _gradients(subject, batch, sites, embed, None if way is None else way * (k / steps))
        for k in range(steps)
    ]
    mean = {site: torch.stack([g[site] for g in gradients]).mean(0) for site in sites}
    return {
        site: per_unit(
            subject, site, ((changed[site] - clean[site]).double() * mean[site].double()).sum(1)
        )
        for site in sites
    }


def corrupted(subject: Subject, batch: Batch, seed: int = 0) -> Batch:
    """The batch with another prompt before the same suffix: random tokens, drawn from the seed and
    the window's own tokens, so that a window gets the same ones in any batch. Where there is no
    prompt, each window gets what the next one is conditioned on.

    Raises ValueError where there is neither a prompt nor another window's conditioning.
    """
    if batch.prompt:
        draws = [
            np.random.default_rng([seed, *row]).integers(0, subject.vocabulary, batch.prompt)
            for row in own_tokens(batch)
        ]
        other = torch.tensor(np.stack(draws)).to(batch.tokens)
        return replace(batch, tokens=torch.cat([other, batch.tokens[:, batch.prompt :]], 1))
    if not batch.conditioning or len(batch) < 2:
        raise ValueError(
            "nothing to corrupt: expected a prompt, or at least 2 windows that are conditioned on something"
        )
    return replace(
        batch, conditioning={name: value.roll(-1, 0) for name, value in batch.conditioning.items()}
    )


def _embed(subject: Subject, sites: Places) -> Site:
    """Where the tokens of the first site's stack enter: its embedding or, where no module gives it,
    what enters the first block."""
    stack = stack_of(subject, sites[0]) or ""
    embed = Site("embed", None, stack)
    return (
        embed
        if embed in subject.anatomy.places
        else subject.anatomy.resolve(Site("resid_pre", 0, stack))
    )


def _gradients(
    subject: Subject, batch: Batch, sites: Places, embed: Site | None, shift: Tensor | None
) -> dict[Site, Tensor]:
    """dL/dh of each window, with its embeddings shifted."""

    def move(value: Value, _: Clock) -> Tensor:
        return value + shift if shift is not None else value

    with tapped(subject, {} if embed is None else {embed: move}):
        return differentiated(subject, batch, sites)[1]
