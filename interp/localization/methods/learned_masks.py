"""Slimming and Hard Concrete: learn a mask over all units that is as small as it can be while the
model still generates the memorized window.

Masks are learned for many windows at once. They multiply activations, so that the windows of a
batch do not mix: each window gets the mask that it would get alone, but a step costs one forward
and backward pass for the batch instead of one for each window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.localization.registry import Places, window_method
from interp.localization.unit_gates import constant_gates, gated
from interp.localization.window_losses import differentiating, window_losses
from interp.localization.windows import own_tokens
from interp.progress import track
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

MaskParameters = Mapping[Site, Float[Tensor, "windows units"]]

# The interval that the concrete distribution is stretched to before it is clipped to [0, 1], so
# that masks of exactly 0 and 1 have a probability above 0 (Louizos et al. 2018).
_GAMMA = -0.1
_ZETA = 1.1

_CHECK_EVERY = 10  # steps between looks at which windows are done


@window_method("slimming", batch_size=16)
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
    """Scores a unit by its mask m, learned under an L1 penalty.

    Minimizes L(x; h * clip(m, 0, 1)) + pressure * sum |m| with Adam, from m = 1; L is the suffix's
    mean loss. Chang et al. 2024 (arXiv 2311.09060), section 3, after Liu et al. 2017. Their lambda
    multiplies the mean of |m|, so that `pressure` is lambda / number of units: 0.41 for their
    GPT-2.

    At the upper end of the clip the loss has slope 0 (both one-sided slopes are allowed there):
    only the penalty moves a mask away from 1, and without pressure no mask moves.

    Args:
        subject, batch, sites: see `window_method`.
        lr: learning rate of Adam.
        pressure: weight of the penalty, per unit.
        steps: largest number of optimizer steps.
        stop: a window whose mean |m| is below this is done; checked every 10 steps.

    Example:
        >>> scores = interp.localize(subject, memorized, method="slimming", steps=5)
        >>> bool((scores["blocks.0.neurons"] <= 1).all())
        True
    """
    masks = _leaves(subject, batch, sites, 1.0)

    def to_gates(masks: MaskParameters) -> dict[Site, Tensor]:
        return {site: clipped(mask) for site, mask in masks.items()}

    def penalty(masks: MaskParameters) -> Tensor:
        # Summed first within sites and then over them, for sites may have different widths: each
        # term is [windows].
        by_site = [mask.abs().sum(1) for mask in masks.values()]
        return pressure * torch.stack(by_site).sum(0)

    def mean_mask(masks: MaskParameters) -> Tensor:
        sizes = [mask.abs() for mask in masks.values()]
        return torch.cat(sizes, 1).mean(1)

    _learn(subject, batch, masks, to_gates, penalty, mean_mask, lr=lr, steps=steps, stop=stop)
    learned = {site: mask.detach() for site, mask in masks.items()}
    return to_gates(learned)


@window_method("hard_concrete", batch_size=16)
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
    """Scores a unit by sigmoid(a), where a is the logit of a random mask, learned under an expected
    L0 penalty.

    Minimizes L(x; h * z) + pressure * sum sigmoid(a - beta log(-gamma/zeta)) over random masks z(a)
    (see `concrete_mask`). Louizos et al. 2018, as in Chang et al. 2024 (arXiv 2311.09060), section
    3 and released code. Their lambda multiplies the mean, so that `pressure` is lambda / number of
    units: 0.027 for their GPT-2.

    Args:
        subject, batch, sites: see `window_method`.
        lr: learning rate of Adam.
        pressure: weight of the penalty, per unit.
        mask_p: the expected mask to begin with, in (0, 1).
        beta: temperature.
        steps: largest number of optimizer steps.
        stop: a window whose mean penalty is below this is done; checked every 10 steps.
        seed: seed of the random masks. Each window draws from the seed and its own tokens.

    Example:
        >>> scores = interp.localize(subject, memorized, method="hard_concrete", steps=5)
        >>> values = scores["blocks.0.neurons"]
        >>> bool((values > 0).all() and (values < 1).all())
        True
    """
    logits = _leaves(subject, batch, sites, _initial_logit(mask_p))
    # Each window draws from a generator of its own, so that it gets the same noise in any batch.
    seeds = [_window_seed(seed, tokens) for tokens in own_tokens(batch)]
    generators = [torch.Generator().manual_seed(window_seed) for window_seed in seeds]
    # A mask is open (above 0) with probability sigmoid(a - shift).
    shift = beta * math.log(-_GAMMA / _ZETA)

    def to_gates(logits: MaskParameters) -> dict[Site, Tensor]:
        widths = [logit.shape[1] for logit in logits.values()]
        # One draw per window for all its units, which is then cut into sites: [windows, all units].
        total = sum(widths)
        draws = [torch.rand(total, generator=own, dtype=torch.float64) for own in generators]
        noise_by_window = torch.stack(draws)
        noise_by_site = noise_by_window.split(widths, dim=1)
        gates: dict[Site, Tensor] = {}
        for (site, logit), noise in zip(logits.items(), noise_by_site, strict=True):
            gates[site] = concrete_mask(logit, beta, noise.to(logit))
        return gates

    def chances_of_open(logits: MaskParameters) -> Tensor:
        by_site = [torch.sigmoid(logit - shift) for logit in logits.values()]
        return torch.cat(by_site, 1)

    def penalty(logits: MaskParameters) -> Tensor:
        return pressure * chances_of_open(logits).sum(1)

    def mean_penalty(logits: MaskParameters) -> Tensor:
        return chances_of_open(logits).mean(1)

    _learn(subject, batch, logits, to_gates, penalty, mean_penalty, lr=lr, steps=steps, stop=stop)
    learned = {site: logit.detach() for site, logit in logits.items()}
    return {site: torch.sigmoid(logit) for site, logit in learned.items()}


def clipped(mask: Tensor) -> Tensor:
    """Returns clip(m, 0, 1), with slope 0 at 1 and above.

    `clamp` has slope 1 at exactly 1, which is where Slimming starts.

    Example:
        >>> clipped(torch.tensor([-0.5, 0.25, 1.5]))
        tensor([0.0000, 0.2500, 1.0000])
    """
    # A constant where the mask is 1 or more, since autograd gives a constant no slope.
    one = torch.ones_like(mask)
    return torch.where(mask >= 1, one, mask.clamp(min=0))


def concrete_mask(logits: Tensor, beta: float = 0.33, noise: Tensor | None = None) -> Tensor:
    """Returns a Hard Concrete mask, clip(s * (zeta - gamma) + gamma, 0, 1), with gamma = -0.1 and
    zeta = 1.1.

    Args:
        logits: a, of any shape.
        beta: temperature of the training mask.
        noise: u, uniform in [0, 1], for the training mask: s = sigmoid((log u - log(1 - u) + a) /
            beta). Without it the mask is the deterministic one: s = sigmoid(a).

    Example:
        >>> concrete_mask(torch.tensor([-10.0, 0.0, 10.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    if noise is not None:
        u = noise.clamp(1e-4, 1 - 1e-4)  # the logarithms are infinite at 0 and 1
        logit_of_u = u.log() - (-u).log1p()
        logits = (logit_of_u + logits) / beta
    s = torch.sigmoid(logits)
    stretched = s * (_ZETA - _GAMMA) + _GAMMA
    return stretched.clamp(0, 1)


def _initial_logit(mask_p: float) -> float:
    """The logit whose deterministic mask is `mask_p`."""
    if not 0 < mask_p < 1:
        raise ValueError(f"mask_p={mask_p}: expected a share between 0 and 1, such as 0.5")
    # `concrete_mask` without noise, backwards: first the stretching, then the sigmoid.
    p = (mask_p - _GAMMA) / (_ZETA - _GAMMA)
    return math.log(p / (1 - p))


def _window_seed(seed: int, tokens: list[int]) -> int:
    rng = np.random.default_rng([seed, *tokens])
    return int(rng.integers(2**63))


def _leaves(subject: Subject, batch: Batch, sites: Places, value: float) -> dict[Site, Tensor]:
    """A number to learn for each unit and window."""
    leaves = constant_gates(subject, sites, windows=len(batch), value=value)
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves


def _learn(
    subject: Subject,
    batch: Batch,
    leaves: dict[Site, Tensor],
    to_gates: Callable[[MaskParameters], dict[Site, Tensor]],
    penalty: Callable[[MaskParameters], Float[Tensor, " windows"]],
    mean_size: Callable[[MaskParameters], Float[Tensor, " windows"]],
    *,
    lr: float,
    steps: int,
    stop: float,
) -> None:
    """Minimizes, in place, each window's loss under its gates plus its penalty.

    A window whose `mean_size` falls below `stop` is done.
    """
    tensors = list(leaves.values())
    adam = torch.optim.Adam(tensors, lr=lr)
    # [windows, 1], to choose between whole rows of leaves
    active = torch.ones(len(batch), 1, dtype=torch.bool, device=subject.device)
    for step in track(range(steps), "masks"):
        if step % _CHECK_EVERY == 0:
            sizes = mean_size(leaves).detach()
            active &= sizes[:, None] >= stop
            if not active.any():
                return

        with differentiating(subject):
            with gated(subject, to_gates(leaves)):
                losses = window_losses(subject, batch)
            # One backward for all windows: row b of a leaf enters the loss of window b alone.
            objective = (losses + penalty(leaves)).sum()
            gradients = torch.autograd.grad(objective, tensors)
        for leaf, gradient in zip(tensors, gradients, strict=True):
            leaf.grad = gradient

        # Adam steps all rows, and by its momentum it would move those of finished windows even with
        # gradients of 0. They are put back, so that a window ends as it would alone.
        before = None if active.all() else [leaf.detach().clone() for leaf in tensors]
        adam.step()
        if before is not None:
            with torch.no_grad():
                for leaf, old in zip(tensors, before, strict=True):
                    leaf.copy_(torch.where(active, leaf, old))
