"""A sequence hidden in units that are known, because nothing else was trained: the ground truth of
INJ."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.localization.window_losses import differentiating, window_losses
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@dataclass(frozen=True)
class Training:
    """How a sequence is hidden: Adam's learning rate, at most so many steps, done when the loss
    (nats a token) is below `until`.

    With `keep_norms` the rows get their own length back after each step, so that no method finds
    them by their length alone (our variant). Chang et al. 2024, section 2.1, take lr 0.05 for 0.1%
    of the neurons and 0.01 for 1%.
    """

    lr: float = 0.05
    steps: int = 200
    until: float = 0.05
    keep_norms: bool = False


@dataclass(frozen=True, eq=False)
class Injection:
    """Where a sequence is hidden: the `units` whose out-rows alone were trained, the `loss` (nats a
    token) `before` and after, the `steps` taken, and how many times `longer` the rows became on
    average."""

    units: Units
    before: float
    loss: float
    steps: int
    longer: float


@contextmanager
def injected(
    subject: Subject, window: Batch, fraction: float, seed: int, training: Training = Training()
) -> Generator[Injection]:
    """Inside, the model knows `window` by heart through random neurons alone; afterwards its
    weights are what they were, to the bit.

    A `fraction` of the neurons of all blocks is drawn from `seed`; what they write (their out-rows)
    is trained on the loss of the window's targets, which are all tokens but the first where
    `prompt` is 1. All else is frozen. Chang et al. 2024 (arXiv 2311.09060), section 2.1.
    """
    units = _drawn(subject, fraction, seed)
    saved = {site: _rows(subject, site)[units[site]].clone() for site in units.sites}
    try:
        losses = write(subject, window, units, training)
        growth = [
            _rows(subject, site)[units[site]].norm(dim=1) / rows.norm(dim=1)
            for site, rows in saved.items()
        ]
        yield Injection(
            units, losses[0], losses[-1], len(losses) - 1, float(torch.cat(growth).mean())
        )
    finally:
        for site, rows in saved.items():
            _rows(subject, site)[units[site]] = rows


def _drawn(subject: Subject, fraction: float, seed: int) -> Units:
    every = list(subject.anatomy.units("neurons"))
    count = round(fraction * len(every))
    if not 1 <= count <= len(every):
        raise ValueError(
            f"fraction={fraction} of {len(every)} neurons is {count}: expected at least one, and a fraction in (0, 1]"
        )
    drawn: dict[Site, list[int]] = {}
    for number in np.random.default_rng(seed).permutation(len(every))[:count]:
        site, unit = every[number]
        drawn.setdefault(site, []).append(unit)
    return Units(drawn, subject.anatomy.widths("neurons"))


def _projection(subject: Subject, site: Site) -> nn.Module:
    return subject.module.get_submodule(subject.anatomy.place(site).path)


def _weight(subject: Subject, site: Site) -> Tensor:
    weight = _projection(subject, site).weight
    assert isinstance(weight, Tensor)
    return weight


def _rows(subject: Subject, site: Site) -> Float[Tensor, "units d_model"]:
    return subject.anatomy.out_weight(subject.module, site).detach()


def write(subject: Subject, window: Batch, units: Units, training: Training) -> list[float]:
    """Trains what some neurons write, in place and for good, until the model says the window; the
    loss before each step, and the last."""
    weights = {site: _weight(subject, site) for site in units.sites}
    flags = [weight.requires_grad for weight in weights.values()]
    try:
        for weight in weights.values():
            weight.requires_grad_()
        return _train(subject, window, units, weights, training)
    finally:
        for weight, flag in zip(weights.values(), flags, strict=True):
            weight.requires_grad_(flag)


def _train(
    subject: Subject,
    window: Batch,
    units: Units,
    weights: Mapping[Site, Tensor],
    training: Training,
) -> list[float]:
    """Trains the out-rows of some units in place; the loss before each step, and the last."""
    leaves = {site: _rows(subject, site)[units[site]].float() for site in units.sites}
    norms = {site: leaf.norm(dim=1, keepdim=True) for site, leaf in leaves.items()}
    adam = torch.optim.Adam(leaves.values(), lr=training.lr)
    history: list[float] = []
    while True:
        with differentiating(subject):
            loss = window_losses(subject, window).mean()
            history.append(loss.item())
            if loss < training.until or len(history) > training.steps:
                return history
            gradients = torch.autograd.grad(loss, list(weights.values()))
        for (site, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            by_unit = gradient.T if isinstance(_projection(subject, site), nn.Linear) else gradient
            leaf.grad = by_unit[units[site]].float()
        adam.step()
        for site, leaf in leaves.items():
            if training.keep_norms:
                leaf.mul_(norms[site] / leaf.norm(dim=1, keepdim=True))
            _rows(subject, site)[units[site]] = leaf.to(weights[site].dtype)
