"""Gradient x activation: what each unit contributes to the loss, to first order, from one backward
pass."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.localization.registry import Places, window_method
from interp.localization.unit_values import per_unit
from interp.localization.window_losses import differentiated
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@window_method("gradient_x_activation")
def gradient_x_activation(subject: Subject, batch: Batch, sites: Places) -> dict[Site, Tensor]:
    """-sum_t h_t * dL/dh_t: the first-order rise of a window's loss L when the unit is zeroed. L is
    the suffix's mean negative log-likelihood.

    Attribution patching with a zero baseline: Nanda 2023, Syed et al. 2023 (arXiv 2310.10348).
    Without a reference the units that every text needs come first. With one, a unit whose
    first-order effect on the reference is strongly negative also comes first, and zeroing
    that one may hurt other text: where that matters use `absolute_gradient_x_activation`.
    """
    return {
        site: effect.sum(1, dtype=torch.float64)
        for site, effect in first_order_effects(subject, batch, sites).items()
    }


@window_method("absolute_gradient_x_activation")
def absolute_gradient_x_activation(
    subject: Subject, batch: Batch, sites: Places
) -> dict[Site, Tensor]:
    """sum_t |h_t * dL/dh_t|: what a unit does at each position, in either direction, so that a unit
    which the reference uses in any way is spared. Our variant of `gradient_x_activation`."""
    return {
        site: effect.abs().sum(1, dtype=torch.float64)
        for site, effect in first_order_effects(subject, batch, sites).items()
    }


def first_order_effects(
    subject: Subject, batch: Batch, sites: Places
) -> dict[Site, Float[Tensor, "batch position units"]]:
    """-h_t * dL/dh_t for each window of a batch and each position; a head's is the sum over its
    coordinates."""
    values, gradients = differentiated(subject, batch, sites)
    return {site: per_unit(subject, site, -(values[site] * gradients[site])) for site in sites}
