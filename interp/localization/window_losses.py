"""The loss of each window, and its gradients with respect to activations."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks.hooks import Value, captured
from interp.hooks.modes import dropout_off
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject


def window_losses(subject: Subject, batch: Batch) -> Float[Tensor, " windows"]:
    """Returns the mean negative log-likelihood of each window's suffix, in nats per token.

    Example:
        >>> losses = window_losses(subject, batch)
        >>> losses.shape, bool((losses < 0.5).all())  # the subject has memorized these windows
        (torch.Size([12]), True)
    """
    totals = subject.losses(batch).sum(1)  # targets that do not count have a loss of 0
    counted = batch.counted.to(subject.device)
    return totals / counted.sum(1)


@contextmanager
def differentiating(subject: Subject) -> Generator[None]:
    """Turns gradients on and dropout off while the context is open, whatever the caller's mode."""
    with dropout_off(subject.module), torch.inference_mode(False), torch.enable_grad():
        yield


def differentiate(
    subject: Subject, batch: Batch, sites: tuple[Site, ...]
) -> tuple[dict[Site, Value], dict[Site, Value]]:
    """Returns the activations of some sites and the gradients of each window's loss there.

    Leaves no gradient on the weights.

    Args:
        subject: the model.
        batch: the windows.
        sites: where to take activations and gradients.

    Returns:
        (values, gradients), each {site: [windows, position, width]}. Row b of a gradient is that of
        window b's loss (see `window_losses`).

    Example:
        >>> site = interp.Site("neurons", 0)
        >>> values, gradients = differentiate(subject, batch, (site,))
        >>> values[site].shape == gradients[site].shape
        True
    """
    with differentiating(subject):
        with captured(subject, sites) as values:
            losses = window_losses(subject, batch)
        # One backward for the whole batch, of the sum of the losses. No window's loss depends on
        # another window's activations, so that row b is the gradient of window b's loss alone.
        at_sites = [values[site] for site in sites]
        # The loss may not depend on a site that ran: LLaVA, for one, does not use the last block of
        # its vision encoder. Its gradient is then 0.
        gradients = torch.autograd.grad(
            losses.sum(), at_sites, allow_unused=True, materialize_grads=True
        )
    detached = {site: values[site].detach() for site in sites}
    return detached, dict(zip(sites, gradients, strict=True))
