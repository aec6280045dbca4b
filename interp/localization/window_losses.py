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
    """Mean negative log-likelihood of each window's suffix, in nats a token."""
    return subject.losses(batch).sum(1) / batch.counted.to(subject.device).sum(1)


@contextmanager
def differentiating(subject: Subject) -> Generator[None]:
    """Dropout off, gradients on, and none of the weights' own kept."""
    with dropout_off(subject.module), torch.inference_mode(False), torch.enable_grad():
        yield


def differentiated(
    subject: Subject, batch: Batch, sites: tuple[Site, ...]
) -> tuple[dict[Site, Value], dict[Site, Value]]:
    """The activations of some sites, and the gradients of each window's loss with respect to them."""
    with differentiating(subject):
        with captured(subject, sites) as values:
            losses = window_losses(subject, batch)
        gradients = torch.autograd.grad(losses.sum(), [values[site] for site in sites])
    return {site: values[site].detach() for site in sites}, dict(zip(sites, gradients, strict=True))
