"""Gradient x activation: what each unit contributes to the loss, to first order, from one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch, Batches, batches
from interp.discovery import dropout_off
from interp.hooks import captured
from interp.localization.registry import Scores, method
from interp.progress import track
from interp.sites import Site
from interp.subject import Subject

Attribution = Mapping[Site, Float[np.ndarray, " units"]]


@method("gradient_x_activation")
def gradient_x_activation(subject: Subject, memorized: Batches, control: Batches, sites: tuple[Site, ...]) -> Scores:
    """A(memorized) - A(control), with A the mean over windows of -sum_t h_t * dL/dh_t: the first-order rise of a window's loss L when the
    unit is zeroed. L is the suffix's mean negative log-likelihood.

    Attribution patching with a zero baseline: Nanda 2023, Syed et al. 2023 (arXiv 2310.10348). Without the contrast the units that every
    text needs come first. With it, a unit whose first-order effect on the control is strongly negative also comes first, and zeroing that
    one may hurt other text: where that matters use `absolute_gradient_x_activation`.
    """
    return _contrast(attribution, subject, memorized, control, sites)


@method("absolute_gradient_x_activation")
def absolute_gradient_x_activation(subject: Subject, memorized: Batches, control: Batches, sites: tuple[Site, ...]) -> Scores:
    """A(memorized) - A(control), with A the mean over windows of sum_t |h_t * dL/dh_t|: what a unit does at each position, in either
    direction, so that a unit which other text uses in any way is spared. Our variant of `gradient_x_activation`."""
    return _contrast(absolute_attribution, subject, memorized, control, sites)


def _contrast(of: Callable[..., Attribution], subject: Subject, memorized: Batches, control: Batches, sites: tuple[Site, ...]) -> Scores:
    on_memorized, on_control = of(subject, memorized, sites), of(subject, control, sites)
    return {site: on_memorized[site] - on_control[site] for site in sites}


def attribution(subject: Subject, windows: Batches, sites: tuple[Site, ...], size: int = 8) -> Attribution:
    """Mean over windows of -sum_t h_t * dL/dh_t for every unit of the sites. Raises ValueError when there are no windows."""
    return _mean_over_windows(subject, windows, sites, size, lambda effect: effect.sum(1, dtype=torch.float64))


def absolute_attribution(subject: Subject, windows: Batches, sites: tuple[Site, ...], size: int = 8) -> Attribution:
    """Mean over windows of sum_t |h_t * dL/dh_t| for every unit of the sites. Raises ValueError when there are no windows."""
    return _mean_over_windows(subject, windows, sites, size, lambda effect: effect.abs().sum(1, dtype=torch.float64))


def _mean_over_windows(
    subject: Subject, windows: Batches, sites: tuple[Site, ...], size: int, over_positions: Callable[[Tensor], Tensor]
) -> Attribution:
    totals: dict[Site, Tensor] = {}
    count = 0
    for batch in track(batches(windows, size), "gradients"):
        for site, effect in first_order_effects(subject, batch, sites).items():
            rows = over_positions(effect).cpu()
            totals[site] = totals.get(site, torch.zeros(rows.shape[1], dtype=torch.float64)) + rows.sum(0)
        count += len(batch)
    if not count:
        raise ValueError("no windows to attribute a loss on: expected at least one")
    return {site: (total / count).numpy() for site, total in totals.items()}


def first_order_effects(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Float[Tensor, "batch position units"]]:
    """-h_t * dL/dh_t for each window of a batch and each position; a head's is the sum over its coordinates."""
    with dropout_off(subject.module), torch.enable_grad():
        with captured(subject, sites) as values:
            losses = subject.losses(batch)
        means = losses.sum(1) / batch.counted.to(losses.device).sum(1)
        gradients = torch.autograd.grad(means.sum(), [values[s] for s in sites])
    effects = {s: -(values[s].detach() * g) for s, g in zip(sites, gradients, strict=True)}
    return {s: effect.unflatten(2, (subject.anatomy.place(s).units, -1)).sum(-1) for s, effect in effects.items()}
