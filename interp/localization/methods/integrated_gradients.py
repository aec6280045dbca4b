"""Integrated gradients: the gradient of a unit not where it stands but along the way from zero to
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import closest
from interp.hooks.hooks import Clock, Value, tapped
from interp.localization.predicting_positions import predicting, stack_of
from interp.localization.registry import Places, window_method
from interp.localization.unit_values import per_unit
from interp.localization.window_losses import differentiating
from interp.localization.windows import repeated
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Rule = Literal["released", "right", "gauss"]
Positions = Literal["predicting", "all"]


@window_method("integrated_gradients", size=1)
def integrated_gradients(
    subject: Subject,
    batch: Batch,
    sites: Places,
    *,
    steps: int = 20,
    rule: Rule = "released",
    positions: Positions = "predicting",
) -> dict[Site, Tensor]:
    """mean_t of h_t * sum_k w_k dP(alpha_k h_t)/dh: what scaling a unit from 0 to its value adds to
    the probability P of each suffix token.

    One site at a time is scaled; the baseline is zero. Dai et al. 2022 (knowledge neurons), as in
    Chang et al. 2024 (arXiv 2311.09060), section 3.

    Args:
        steps: points on the path.
        rule: where they lie and what they weigh: `released` as in their code (both ends, each
            1/steps), `right` (a Riemann sum, both equal 1/steps), or `gauss` (Gauss-Legendre, the
            most exact for few steps).
        positions: `predicting` scales, for each suffix token, the position that predicts it
            (theirs: a forward for every token of every site); `all` scales all positions at once
            and takes the mean probability (as many times cheaper as there are tokens). Where a
            site's positions are not those of the tokens, all are scaled.
    """
    for name, given, choices in (
        ("rule", rule, get_args(Rule)),
        ("positions", positions, get_args(Positions)),
    ):
        if given not in choices:
            raise ValueError(
                f"{name}={given!r}: expected one of {', '.join(choices)}; nearest: {closest(given, choices)}"
            )
    alphas, weights = path(steps, rule)
    starts = predicting(subject, batch, sites) if positions == "predicting" else {}
    found: dict[Site, Tensor] = {}
    for site in sites:
        start = _start(subject, site, starts)
        if start is None:
            found[site] = _along(subject, batch, site, None, alphas, weights)
        else:
            tokens = range(max(-start, 0), batch.targets.shape[1])
            parts = (
                _along(
                    subject, _one_target(batch, batch.prompt + t), site, start + t, alphas, weights
                )
                for t in tokens
            )
            found[site] = sum(parts, torch.zeros(())) / batch.counted.sum(1, keepdim=True).to(
                subject.device
            )
    return found


def _start(subject: Subject, site: Site, starts: Mapping[str, int | None]) -> int | None:
    stack = stack_of(subject, site)
    return None if stack is None else starts.get(stack)


def path(steps: int, rule: Rule) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Points between 0 and 1, and their weights. Raises ValueError below one step."""
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least one point on the path")
    if rule == "gauss":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return (points + 1) / 2, weights / 2
    ends = np.linspace(0, 1, steps) if rule == "released" else np.arange(1, steps + 1) / steps
    return ends, np.full(steps, 1 / steps)


def _along(
    subject: Subject,
    batch: Batch,
    site: Site,
    position: int | None,
    alphas: np.ndarray,
    weights: np.ndarray,
) -> Float[Tensor, "windows units"]:
    """The path integral for each window of a batch: its own value times the weighted sum of the
    gradients of its probabilities.

    All points of the path are rows of one forward. With a `position`, that one is scaled, and the
    sum of the targets' probabilities is taken; without, all are, and the mean.
    """
    count, rows = len(batch), repeated(batch, len(alphas))
    scale = torch.tensor(np.repeat(alphas, count), device=subject.device)[:, None, None]
    kept: dict[
        str, Tensor
    ] = {}  # the clean value, and what is put in its place; empty, which `tapped` reports, if the site never ran

    def scaled(value: Value, _: Clock) -> Tensor:
        at = slice(None) if position is None else slice(position, position + 1)
        kept["value"] = value.detach()[:count, at]
        kept["leaf"] = (value.detach()[:, at] * scale.to(value.dtype)).requires_grad_()
        return (
            torch.cat([value[:, : at.start], kept["leaf"], value[:, at.stop :]], 1)
            if position is not None
            else kept["leaf"]
        )

    with differentiating(subject), tapped(subject, {site: scaled}):
        total = _probabilities(subject, rows, mean=position is None).sum()
        gradient = torch.autograd.grad(total, kept["leaf"])[0] if kept else total
    by_point = gradient.double().unflatten(0, (len(alphas), count))
    slope = torch.einsum("k,kbtw->btw", torch.tensor(weights, device=subject.device), by_point)
    return per_unit(subject, site, (kept["value"].double() * slope).sum(1))


def _probabilities(subject: Subject, batch: Batch, *, mean: bool) -> Float[Tensor, " windows"]:
    """The sum, or the mean, of the probabilities of each window's targets."""
    logits, targets = subject.target_logits(batch), batch.targets.to(subject.device)
    probability = (
        logits.to(torch.promote_types(logits.dtype, torch.float32))
        .softmax(-1)
        .gather(-1, targets[..., None])[..., 0]
    )
    counted = batch.counted.to(subject.device)
    total = (probability * counted).sum(1)
    return total / counted.sum(1) if mean else total


def _one_target(batch: Batch, number: int) -> Batch:
    """The same windows with token `number` alone predicted: what follows it is cut off, or does not
    count where tokens come together."""
    if batch.steps is not None:
        mask = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.mask is None else batch.mask
        return replace(batch, prompt=number, mask=mask & (torch.arange(batch.length) <= number))
    return replace(batch.until(number + 1), prompt=number)
