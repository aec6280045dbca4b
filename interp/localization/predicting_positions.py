"""The positions whose values predict the suffix."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks.hooks import captured
from interp.localization.window_losses import differentiating
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject


def stack_of(subject: Subject, site: Site) -> str | None:
    """The stack that a site belongs to; None for a module path outside all blocks."""
    if not site.is_module_path:
        return site.stack
    path = subject.anatomy.place(site).path
    stacks = subject.anatomy.stacks.items()
    return next(
        (
            name
            for name, blocks in stacks
            if any(f"{path}.".startswith(f"{block}.") for block in blocks)
        ),
        None,
    )


def predicting(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> dict[str, int | None]:
    """For the stack of each site, the position whose value in the last block predicts the first of
    `batch.targets`; the next positions predict the next targets. None for a stack that all targets
    depend on at every position, as an encoder of images.

    Found by differentiating the logits of one target, so that it is true of every kind of model:
    one less than the target's own position in language models, the same where a start token or a
    camera image stands before the first.
    """
    first = max(batch.prompt, 1)
    stacks = {stack for site in sites if (stack := stack_of(subject, site)) is not None}
    last = {
        stack: Site("resid_post", len(subject.anatomy.blocks(stack)) - 1, stack) for stack in stacks
    }
    short = _cut(next(iter(batch.split(1))), first)
    with differentiating(subject), captured(subject, tuple(last.values())) as values:
        logits = subject.target_logits(short)
        if values:  # else no site was reached, which `captured` reports
            logits.square().sum().backward(inputs=[values[site] for site in values])
    targets = short.targets.shape[1]
    return {
        stack: _first_position(values[site], targets, batch.prompt - first)
        for stack, site in last.items()
    }


def _first_position(value: Tensor, targets: int, shift: int) -> int | None:
    """The first of the positions of the first row that have a gradient, shifted; None if they are
    not as many as the targets."""
    where = [] if value.grad is None else value.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    return where[0] + shift if len(where) == targets and value.shape[1] > 1 else None


def position_weights(
    subject: Subject, batch: Batch, sites: tuple[Site, ...]
) -> dict[str | None, Float[Tensor, "windows position"] | None]:
    """For the stack of each site, weights that average over the positions that predict counted
    targets; None to average over all."""
    counted = batch.counted.to(subject.device).double()
    weights: dict[str | None, Tensor | None] = {}
    for stack, start in predicting(subject, batch, sites).items():
        if start is None:
            weights[stack] = None
            continue
        seen = counted[
            :, max(-start, 0) :
        ]  # a first token that nothing stands before is not predicted
        positions = max(
            batch.length, start + seen.shape[1]
        )  # more than tokens where something stands before the first
        spread = torch.zeros(len(batch), positions, dtype=torch.double, device=subject.device)
        spread[:, max(start, 0) : max(start, 0) + seen.shape[1]] = seen / seen.sum(1, keepdim=True)
        weights[stack] = spread
    return weights


def weighted_mean(
    value: Float[Tensor, "windows position width"], weights: Tensor | None
) -> Float[Tensor, "windows width"]:
    """The mean over positions under the weights of `position_weights`, or over all."""
    return (
        value.double().mean(1)
        if weights is None
        else torch.einsum("bt,btw->bw", weights, value.double())
    )


def _cut(batch: Batch, last: int) -> Batch:
    """The tokens up to number `last`, which alone is predicted; where several are predicted
    together, all tokens."""
    if batch.steps is not None:
        return replace(batch, prompt=last)
    return replace(batch.until(last + 1), mask=None, prompt=last)
