"""A sequence hidden in known units: those units are known because nothing else was trained.

This is the ground truth of the INJ benchmark (Chang et al. 2024, arXiv 2311.09060).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.localization.window_losses import differentiating, window_losses
from interp.memorization.evaluation import measure_under
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@dataclass(frozen=True)
class Training:
    """How a sequence is hidden.

    Attributes:
        lr: learning rate of Adam. Chang et al. 2024, section 2.1, take 0.05 for 0.1% of the neurons
            and 0.01 for 1%.
        steps: largest number of optimizer steps.
        until: training is done when the loss (nats per token) is below this.
        keep_norms: whether rows get their own length back after each step, so that no method can
            find them by their length alone (our variant).
    """

    lr: float = 0.05
    steps: int = 200
    until: float = 0.05
    keep_norms: bool = False


@dataclass(frozen=True, eq=False)
class Injection:
    """Where a sequence is hidden, and how well.

    Attributes:
        units: the neurons whose output rows were trained.
        before: loss before training, in nats per token.
        loss: loss after training, in nats per token.
        accuracy: fraction of the targets that are the most likely token after training.
        steps: optimizer steps taken.
        longer: factor by which the rows became longer, on average.
    """

    units: Units
    before: float
    loss: float
    accuracy: float
    steps: int
    longer: float


@contextmanager
def injected(
    subject: Subject, window: Batch, fraction: float, seed: int, training: Training = Training()
) -> Generator[Injection]:
    """Makes the model memorize a window, through random neurons alone, while the context is open.

    The output rows of the neurons (what they write to the residual stream) are trained on the loss
    of the window's targets, which are all tokens but the first where `prompt` is 1. Everything else
    is frozen. Afterwards the weights are bit for bit what they were before. Chang et al. 2024
    (arXiv 2311.09060), section 2.1.

    Args:
        subject: the model.
        window: the sequence to hide.
        fraction: fraction of the neurons of all blocks to draw.
        seed: seed of that draw.
        training: see `Training`.

    Raises:
        ValueError: for a fraction so small that it selects no neuron, or above 1.

    Example:
        >>> from interp.localization.benchmarks.known_answers import Training, injected
        >>> window = interp.Batch.from_frame(control[:1])
        >>> with injected(subject, window, 0.1, seed=0, training=Training(steps=5)) as hidden:
        ...     len(hidden.units), hidden.loss < hidden.before
        (10, True)
    """
    units = _draw(subject, fraction, seed)
    saved: dict[Site, Tensor] = {}
    for site in units.sites:
        saved[site] = _rows(subject, site)[units[site]].clone()
    try:
        losses = write(subject, window, units, training)
        growth: list[Tensor] = []
        for site, rows in saved.items():
            trained = _rows(subject, site)[units[site]]
            before = rows.norm(dim=1)
            growth.append(trained.norm(dim=1) / before)
        yield Injection(
            units=units,
            before=losses[0],
            loss=losses[-1],
            accuracy=_accuracy(subject, window),
            steps=len(losses) - 1,
            longer=float(torch.cat(growth).mean()),
        )
    finally:
        for site, rows in saved.items():
            _rows(subject, site)[units[site]] = rows


def _accuracy(subject: Subject, window: Batch) -> float:
    measured = measure_under(subject, [[]], {"window": window})
    return float(measured["accuracy"].to_numpy(dtype=float).mean())


def _draw(subject: Subject, fraction: float, seed: int) -> Units:
    every = list(subject.anatomy.units("neurons"))
    count = round(fraction * len(every))
    if not 1 <= count <= len(every):
        raise ValueError(
            f"fraction={fraction} of {len(every)} neurons is {count}: "
            "expected at least one, and a fraction in (0, 1]"
        )
    order = np.random.default_rng(seed).permutation(len(every))
    drawn: dict[Site, list[int]] = {}
    for number in order[:count]:
        site, unit = every[number]
        drawn.setdefault(site, []).append(unit)
    return Units(drawn, subject.anatomy.widths("neurons"))


def _projection(subject: Subject, site: Site) -> nn.Module:
    return subject.module.get_submodule(subject.anatomy.place(site).path)


def _weight(subject: Subject, site: Site) -> Tensor:
    """The parameter of the projection, in whichever orientation the module keeps it."""
    weight = _projection(subject, site).weight
    assert isinstance(weight, Tensor)
    return weight


def _rows(subject: Subject, site: Site) -> Float[Tensor, "units d_model"]:
    """A view of the same parameter with one row per unit: writing to it changes the model."""
    return subject.anatomy.out_weight(subject.module, site).detach()


def write(subject: Subject, window: Batch, units: Units, training: Training) -> list[float]:
    """Trains what some neurons write until the model generates the window; changes the weights for
    good.

    Args:
        subject: the model, changed in place.
        window: the sequence to memorize.
        units: the neurons whose output rows are trained.
        training: see `Training`.

    Returns:
        The loss (nats per token) before each step, and the one after the last.
    """
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
    # Adam learns copies of the trained rows alone, in single precision, since half precision would
    # round small steps away. After each step they are written into the model's own weights.
    leaves: dict[Site, Tensor] = {}
    norms: dict[Site, Tensor] = {}
    for site in units.sites:
        leaf = _rows(subject, site)[units[site]].float()
        leaves[site] = leaf
        norms[site] = leaf.norm(dim=1, keepdim=True)
    adam = torch.optim.Adam(leaves.values(), lr=training.lr)
    losses: list[float] = []
    while True:
        with differentiating(subject):
            loss = window_losses(subject, window).mean()
            losses.append(loss.item())
            # The loss is looked at once more than there are steps: before each, and after the last.
            if loss < training.until or len(losses) > training.steps:
                return losses
            gradients = torch.autograd.grad(loss, list(weights.values()))

        for (site, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            # nn.Linear keeps a unit's output weights as a column; Conv1D of GPT-2 as a row
            is_linear = isinstance(_projection(subject, site), nn.Linear)
            by_unit = gradient.T if is_linear else gradient
            leaf.grad = by_unit[units[site]].float()
        adam.step()

        for site, leaf in leaves.items():
            if training.keep_norms:
                norm = leaf.norm(dim=1, keepdim=True)
                leaf.mul_(norms[site] / norm)
            rows = _rows(subject, site)
            rows[units[site]] = leaf.to(rows.dtype)
