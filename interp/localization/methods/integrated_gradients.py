"""Integrated gradients: a unit's value times the gradient along the way from zero to that value,
instead of the gradient at the value alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import closest
from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, tapped
from interp.localization.predicting_positions import predicting_positions, stack_of
from interp.localization.registry import Places, window_method
from interp.localization.unit_values import per_unit
from interp.localization.window_losses import differentiating
from interp.localization.windows import repeat_windows
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Rule = Literal["released", "right", "gauss"]
Positions = Literal["predicting", "all"]


@window_method("integrated_gradients", batch_size=1)
def integrated_gradients(
    subject: Subject,
    batch: Batch,
    sites: Places,
    *,
    points: int = 20,
    rule: Rule = "released",
    positions: Positions = "predicting",
) -> dict[Site, Tensor]:
    """Scores a unit by what scaling it from 0 to its value adds to the probability of the suffix's
    tokens.

    mean_t of h_t * sum_k w_k dP(alpha_k h_t)/dh, where P is the probability of suffix token t. One
    site at a time is scaled; the baseline is zero. Dai et al. 2022 (knowledge neurons), as in Chang
    et al. 2024 (arXiv 2311.09060), section 3.

    Args:
        subject, batch, sites: see `window_method`.
        points: number of points on the path, k.
        rule: where the points alpha_k lie and what they weigh (w_k): `released` as in the released
            code of Chang et al. (from 0 to 1, each 1/points), `right` (a Riemann sum: multiples
            of 1/points, each 1/points), or `gauss` (Gauss-Legendre, most exact for few points).
        positions: `predicting` scales, for each suffix token, the position that predicts it, as
            Chang et al. do: one forward for every token of every site. `all` scales all positions
            at once and takes the mean probability, with one forward for every site. Where a site's
            positions are not those of the tokens, all are scaled.

    Raises:
        ValueError: for an unknown rule or choice of positions, and below one point.

    Example:
        >>> scores = interp.localize(
        ...     subject, memorized[:1], method="integrated_gradients", points=4, positions="all"
        ... )
        >>> len(scores.top(0.05))
        5
    """
    _check_choice("rule", rule, get_args(Rule))
    _check_choice("positions", positions, get_args(Positions))
    alphas, weights = path(points, rule)
    starts: Mapping[str, int | None] = {}
    if positions == "predicting":
        starts = predicting_positions(subject, batch, sites)
    counted = batch.counted.sum(1, keepdim=True)

    scores: dict[Site, Tensor] = {}
    for site in sites:
        start = _start(subject, site, starts)
        if start is None:
            scores[site] = _integrate(subject, batch, site, None, alphas, weights)
            continue
        # `start` is -1 in a language model without prompt: no position predicts the first token
        total = torch.zeros(())
        first_target = max(-start, 0)
        for target in range(first_target, batch.targets.shape[1]):
            one = _predict_only(batch, batch.prompt + target)
            of_target = _integrate(subject, one, site, start + target, alphas, weights)
            total = total + of_target
        scores[site] = total / counted.to(total.device)
    return scores


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ValueError(
            f"{name}={given!r}: expected one of {', '.join(choices)}; "
            f"nearest: {closest(given, choices)}"
        )


def _start(subject: Subject, site: Site, starts: Mapping[str, int | None]) -> int | None:
    """The position at a site that predicts the first target; None where all count."""
    stack = stack_of(subject, site)
    return None if stack is None else starts.get(stack)


def path(
    points: int, rule: Rule
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Returns the points of a path between 0 and 1, and their weights.

    Raises:
        ValueError: below one point.

    Example:
        >>> path(4, "right")
        (array([0.25, 0.5 , 0.75, 1.  ]), array([0.25, 0.25, 0.25, 0.25]))
    """
    if points < 1:
        raise ValueError(f"points={points}: expected at least one point on the path")
    if rule == "gauss":
        # Of the interval [-1, 1], which is twice as long as the path from 0 to 1.
        nodes, weights = np.polynomial.legendre.leggauss(points)
        alphas = (nodes + 1) / 2
        return alphas, weights / 2
    equal_weights = np.full(points, 1 / points)
    if rule == "released":
        return np.linspace(0, 1, points), equal_weights
    return np.arange(1, points + 1) / points, equal_weights


def _integrate(
    subject: Subject,
    batch: Batch,
    site: Site,
    position: int | None,
    alphas: np.ndarray,
    weights: np.ndarray,
) -> Float[Tensor, "windows units"]:
    """The path integral of each window: a unit's value times the weighted sum of gradients.

    With a `position`, that position alone is scaled, and the gradient is that of the sum of the
    targets' probabilities; without one, all positions are scaled, and it is that of the mean.
    """
    # All points of the path are rows of one forward: all windows at the first point, then all at
    # the second, and so on.
    count = len(batch)
    rows = repeat_windows(batch, len(alphas))
    alpha_of_row = np.repeat(alphas, count)
    scale = torch.tensor(alpha_of_row)[:, None, None]

    clean: list[Tensor] = []
    leaves: list[Tensor] = []

    def scale_value(value: Value, _: Clock) -> Tensor:
        # The scaled value becomes a leaf, so that the gradient can be taken with respect to it. The
        # other positions must stay as they are, so that it is put between them instead of being
        # written into them.
        constant = value.detach()
        if position is not None:
            constant = constant[:, position : position + 1]
        clean.append(constant[:count])  # the same at every point: nothing before it is scaled
        scaled = constant * scale.to(value)
        leaf = scaled.requires_grad_()
        leaves.append(leaf)
        if position is None:
            return leaf
        before = value[:, :position]
        after = value[:, position + 1 :]
        return torch.cat([before, leaf, after], 1)

    with differentiating(subject), tapped(subject, {site: scale_value}):
        total = _probabilities(subject, rows, mean=position is None).sum()
        gradient = total
        if leaves:  # without leaves the site never ran, which `tapped` reports on exit
            (gradient,) = torch.autograd.grad(total, leaves[-1])

    # value * sum_k w_k dP/dh at point k, summed over the positions that were scaled
    by_point = gradient.double().unflatten(0, (len(alphas), count))
    weight_by_point = torch.tensor(weights, device=by_point.device)
    slope = torch.einsum("k,kbtw->btw", weight_by_point, by_point)
    contributions = clean[-1].double() * slope
    integral = contributions.sum(1)
    return per_unit(subject, site, integral)


def _probabilities(subject: Subject, batch: Batch, *, mean: bool) -> Float[Tensor, " windows"]:
    """The sum, or the mean, of the probabilities of each window's counted targets."""
    logits = subject.target_logits(batch)
    targets = batch.targets.to(subject.device)
    # half precision would lose what one point of the path adds
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probabilities = precise.softmax(-1)
    one_per_target = probabilities.gather(-1, targets[..., None])
    of_targets = one_per_target[..., 0]
    counted = batch.counted.to(subject.device)
    total = of_targets.masked_fill(~counted, 0).sum(1)
    return total / counted.sum(1) if mean else total


def _predict_only(batch: Batch, target: int) -> Batch:
    """The same windows with token `target` alone predicted.

    What follows it is cut off; where tokens are predicted together it stays and does not count.
    """
    if batch.groups is None:
        return replace(batch.until(target + 1), prompt=target)
    mask = batch.mask
    if mask is None:
        mask = torch.ones_like(batch.tokens, dtype=torch.bool)
    until_target = torch.arange(batch.length, device=mask.device) <= target
    return replace(batch, prompt=target, mask=mask & until_target)
