"""Gradient x activation: what each unit contributes to the loss, to first order, from one backward
pass."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.localization.registry import Places, window_method
from interp.localization.unit_values import per_unit
from interp.localization.window_losses import differentiate
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@window_method("gradient_x_activation")
def gradient_x_activation(subject: Subject, batch: Batch, sites: Places) -> dict[Site, Tensor]:
    """Scores a unit by the first-order rise of a window's loss when the unit is zeroed.

    -sum_t h_t * dL/dh_t, where L is the suffix's mean negative log-likelihood. This is attribution
    patching with a zero baseline: Nanda 2023, Syed et al. 2023 (arXiv 2310.10348).

    Without a reference, units that every text needs come first. With a reference, a unit whose
    effect on the reference is strongly negative also comes first, and zeroing it may hurt other
    text: where that matters use `absolute_gradient_x_activation`.

    Example:
        >>> scores = interp.localize(subject, memorized, control, method="gradient_x_activation")
        >>> len(scores.top(0.05))
        5
    """
    effects = first_order_effects(subject, batch, sites)
    return _sum_over_positions(effects)


@window_method("absolute_gradient_x_activation")
def absolute_gradient_x_activation(
    subject: Subject, batch: Batch, sites: Places
) -> dict[Site, Tensor]:
    """Scores a unit by the size of its first-order effects on a window's loss, of either sign.

    sum_t |h_t * dL/dh_t|, our variant of `gradient_x_activation`: a unit that the reference windows
    use in any way scores low.

    Example:
        >>> method = "absolute_gradient_x_activation"
        >>> scores = interp.localize(subject, memorized, method=method)
        >>> bool((scores["blocks.0.neurons"] >= 0).all())
        True
    """
    effects = first_order_effects(subject, batch, sites)
    sizes = {site: effect.abs() for site, effect in effects.items()}
    return _sum_over_positions(sizes)


def first_order_effects(
    subject: Subject, batch: Batch, sites: Places
) -> dict[Site, Float[Tensor, "batch position units"]]:
    """Returns -h_t * dL/dh_t for each window and position; for a head the sum over its columns.

    Example:
        >>> site = interp.Site("heads", 0)
        >>> first_order_effects(subject, batch, (site,))[site].shape
        torch.Size([12, 16, 4])
    """
    values, gradients = differentiate(subject, batch, sites)
    effects: dict[Site, Tensor] = {}
    for site in sites:
        effect = -(values[site] * gradients[site])  # [batch, position, width]
        effects[site] = per_unit(subject, site, effect)
    return effects


def _sum_over_positions(effects: dict[Site, Tensor]) -> dict[Site, Tensor]:
    # In double precision: effects of either sign cancel over the positions, and rounding in a
    # model's own half precision could be as large as what is left.
    sums: dict[Site, Tensor] = {}
    for site, effect in effects.items():
        sums[site] = effect.sum(1, dtype=torch.float64)
    return sums
