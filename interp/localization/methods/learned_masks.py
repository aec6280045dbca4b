"""Slimming and Hard Concrete: a mask over all units that keeps the memory and little else, learned
for many windows at once.

Masks multiply activations, so windows of one batch do not mix: the masks of a batch are those that
each window would get alone, for one forward and backward a step instead of one a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.localization.registry import Places, window_method
from interp.localization.unit_gates import gated
from interp.localization.window_losses import differentiating, window_losses
from interp.localization.windows import own_tokens
from interp.progress import track
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Logits = Mapping[Site, Float[Tensor, "windows units"]]
_GAMMA, _ZETA = -0.1, 1.1
_CHECK_EVERY = 10


@window_method("slimming", size=16)
def slimming(
    subject: Subject,
    batch: Batch,
    sites: Places,
    *,
    lr: float = 1e-2,
    pressure: float = 0.05,
    steps: int = 200,
    stop: float = 0.1,
) -> dict[Site, Tensor]:
    """The mask m that minimizes L(x; h * clip(m, 0, 1)) + pressure * sum |m|, from 1 and with Adam;
    L is the suffix's mean loss.

    Chang et al. 2024 (arXiv 2311.09060), section 3, after Liu et al. 2017. Their lambda multiplies
    the mean of |m|, so `pressure` is lambda / number of units: 0.41 for their GPT-2. At the upper
    end of the clip the loss has slope 0 (both one-sided slopes are allowed there): only pressure
    moves a mask off 1, and without pressure none moves.

    Args:
        lr: of Adam. steps: at most. stop: a window whose mean |m| is below this, looked at every 10
        steps, is done.
    """
    masks = _leaves(subject, batch, sites, 1.0)

    def penalty(values: Logits) -> Tensor:
        return pressure * torch.stack([m.abs().sum(1) for m in values.values()]).sum(0)

    def size(values: Logits) -> Tensor:
        return torch.cat([m.abs() for m in values.values()], 1).mean(1)

    def masked(values: Logits) -> dict[Site, Tensor]:
        return {site: clipped(m) for site, m in values.items()}

    _learn(subject, batch, masks, masked, penalty, size, (lr, steps, stop))
    return {site: clipped(mask.detach()) for site, mask in masks.items()}


@window_method("hard_concrete", size=16)
def hard_concrete(
    subject: Subject,
    batch: Batch,
    sites: Places,
    *,
    lr: float = 1e-2,
    pressure: float = 0.03,
    mask_p: float = 0.5,
    beta: float = 0.33,
    steps: int = 1000,
    stop: float = 0.4,
    seed: int = 0,
) -> dict[Site, Tensor]:
    """sigmoid(a), where a minimizes L(x; h * z) + pressure * sum sigmoid(a - beta log(-gamma/zeta))
    over random masks z(a); see `concrete_mask`.

    Louizos et al. 2018, as in Chang et al. 2024 (arXiv 2311.09060), section 3 and released code.
    Their lambda multiplies the mean, so `pressure` is lambda / number of units: 0.027 for their
    GPT-2. Each window draws from the seed and its own tokens.

    Args:
        lr: of Adam. mask_p: the expected mask to begin with. beta: temperature. steps: at most.
            stop: a window whose mean penalty is below this, looked at every 10 steps, is done.
    """
    logits = _leaves(subject, batch, sites, _initial_logit(mask_p))
    draws = [torch.Generator().manual_seed(_seed(seed, row)) for row in own_tokens(batch)]
    shift = beta * math.log(-_GAMMA / _ZETA)

    def penalties(values: Logits) -> Tensor:
        return torch.cat([torch.sigmoid(a - shift) for a in values.values()], 1)

    def masked(values: Logits) -> dict[Site, Tensor]:
        widths = [a.shape[1] for a in values.values()]
        noise = torch.stack(
            [torch.rand(sum(widths), generator=g, dtype=torch.float64) for g in draws]
        ).split(widths, dim=1)
        return {
            site: concrete_mask(a, beta, n.to(a))
            for (site, a), n in zip(values.items(), noise, strict=True)
        }

    def penalty(values: Logits) -> Tensor:
        return pressure * penalties(values).sum(1)

    def size(values: Logits) -> Tensor:
        return penalties(values).mean(1)

    _learn(subject, batch, logits, masked, penalty, size, (lr, steps, stop))
    return {site: torch.sigmoid(a.detach()) for site, a in logits.items()}


def clipped(mask: Tensor) -> Tensor:
    """clip(m, 0, 1), whose slope at 1 and above is 0."""
    return torch.where(mask >= 1, torch.ones_like(mask), mask.clamp(min=0))


def concrete_mask(logits: Tensor, beta: float = 0.33, noise: Tensor | None = None) -> Tensor:
    """clip(s * (zeta - gamma) + gamma, 0, 1), in [0, 1], with gamma = -0.1, zeta = 1.1.

    With uniform noise u, the training mask: s = sigmoid((log u - log(1 - u) + a) / beta), u kept
    within 1e-4 of 0 and 1. Without, the
    deterministic one: s = sigmoid(a).
    """
    if noise is not None:
        u = noise.clamp(1e-4, 1 - 1e-4)
        logits = (u.log() - (-u).log1p() + logits) / beta
    return (torch.sigmoid(logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def _initial_logit(mask_p: float) -> float:
    """The logit whose deterministic mask is `mask_p`."""
    if not 0 < mask_p < 1:
        raise ValueError(f"mask_p={mask_p}: expected a share between 0 and 1, such as 0.5")
    p = (mask_p - _GAMMA) / (_ZETA - _GAMMA)
    return math.log(p / (1 - p))


def _seed(seed: int, tokens: list[int]) -> int:
    return int(np.random.default_rng([seed, *tokens]).integers(2**63))


def _leaves(subject: Subject, batch: Batch, sites: Places, value: float) -> dict[Site, Tensor]:
    """A number for each unit and window to learn; single precision, or double where the model is."""
    dtype = torch.promote_types(next(subject.module.parameters()).dtype, torch.float32)
    return {
        site: torch.full(
            (len(batch), width), value, dtype=dtype, device=subject.device, requires_grad=True
        )
        for site, width in subject.anatomy.widths(sites).items()
    }


def _learn(
    subject: Subject,
    batch: Batch,
    leaves: dict[Site, Tensor],
    masked: Callable[[Logits], dict[Site, Tensor]],
    penalty: Callable[[Logits], Float[Tensor, " windows"]],
    size: Callable[[Logits], Float[Tensor, " windows"]],
    recipe: tuple[float, int, float],
) -> None:
    """Minimizes each window's loss under its mask plus its penalty, in place; a window whose mask
    is small enough keeps it."""
    lr, steps, stop = recipe
    adam = torch.optim.Adam(leaves.values(), lr=lr)
    active = torch.ones(len(batch), 1, dtype=torch.bool, device=subject.device)
    for step in track(range(steps), "masks"):
        if step % _CHECK_EVERY == 0:
            active &= size(leaves)[:, None].detach() >= stop
            if not active.any():
                return
        with differentiating(subject):
            with gated(subject, masked(leaves)):
                losses = window_losses(subject, batch)
            gradients = torch.autograd.grad((losses + penalty(leaves)).sum(), list(leaves.values()))
        before = [] if active.all() else [leaf.detach().clone() for leaf in leaves.values()]
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        adam.step()
        with torch.no_grad():
            for leaf, old in zip(
                leaves.values(), before, strict=False
            ):  # nothing to put back while all windows learn
                leaf.copy_(torch.where(active, leaf, old))
