"""What the methods have in common: a gate on each unit, the loss of each window, and the positions whose values predict the suffix."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch
from interp.discovery import dropout_off
from interp.hooks import Clock, Value, Visit, captured, tapped
from interp.sites import Site
from interp.subject import Subject, evaluating

Gates = Mapping[Site, Float[Tensor, "windows units"]]


def window_losses(subject: Subject, batch: Batch) -> Float[Tensor, " windows"]:
    """Mean negative log-likelihood of each window's suffix, in nats a token."""
    return subject.losses(batch).sum(1) / batch.counted.to(subject.device).sum(1)


def per_unit(subject: Subject, site: Site, values: Float[Tensor, "... width"]) -> Float[Tensor, "... units"]:
    """The sum over each unit's columns."""
    return values.unflatten(-1, (subject.anatomy.place(site).units, -1)).sum(-1)


def written(subject: Subject, site: Site, value: Float[Tensor, "... width"]) -> Float[Tensor, "... units"]:
    """The length of what each unit adds to the residual: |h| ||v|| for a neuron, |z W_O| for a head; at sites that are no input of a
    projection, the length of the unit itself."""
    place = subject.anatomy.place(site)
    units = value.double().unflatten(-1, (place.units, -1))
    if site.point not in ("neurons", "heads"):
        return units.norm(dim=-1)
    rows = subject.anatomy.out_weight(subject.module, site).detach().double().unflatten(0, (place.units, -1))
    if units.shape[-1] == 1:
        return units[..., 0].abs() * rows[:, 0].norm(dim=-1)
    gram = torch.einsum("ucd,ued->uce", rows, rows)
    return torch.einsum("...uc,uce,...ue->...u", units, gram, units).clamp(min=0).sqrt()


def gated(subject: Subject, gates: Gates) -> AbstractContextManager[object]:
    """Multiplies every unit of window b, at every position, by `gates[site][b]`: 1 leaves it, 0 ablates it. Windows do not mix."""

    def visit(gate: Tensor) -> Visit:
        def multiply(value: Value, _: Clock) -> Tensor:
            columns = value.shape[-1] // gate.shape[-1]
            return value * gate.repeat_interleave(columns, -1)[:, None].to(value.dtype)

        return multiply

    return tapped(subject, {site: visit(gate) for site, gate in gates.items()})


@contextmanager
def differentiating(subject: Subject) -> Generator[None]:
    """Dropout off, gradients on, and none of the weights' own kept."""
    with dropout_off(subject.module), torch.inference_mode(False), torch.enable_grad():
        yield


def differentiated(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> tuple[dict[Site, Value], dict[Site, Value]]:
    """The activations of some sites, and the gradients of each window's loss with respect to them."""
    with differentiating(subject):
        with captured(subject, sites) as values:
            losses = window_losses(subject, batch)
        gradients = torch.autograd.grad(losses.sum(), [values[site] for site in sites])
    return {site: values[site].detach() for site in sites}, dict(zip(sites, gradients, strict=True))


def values_at(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Value]:
    """The activations of one forward at some sites."""
    seen: dict[Site, Tensor] = {}

    def visit(site: Site) -> Visit:
        def keep(value: Value, _: Clock) -> None:
            seen[site] = value.clone()

        return keep

    with evaluating(subject), torch.inference_mode(False), torch.no_grad(), tapped(subject, {site: visit(site) for site in sites}):
        subject.touch(batch)
    return seen


def repeated(batch: Batch, times: int) -> Batch:
    """The windows of a batch, all of them once, then again."""
    return batch.rows(torch.arange(len(batch)).repeat(times))


def own_tokens(batch: Batch) -> list[list[int]]:
    """The tokens of each window without its padding: what a window may draw its random numbers from, to get the same ones in any batch."""
    lengths = [batch.length] * len(batch) if batch.mask is None else batch.mask.sum(1).tolist()
    return [row[:length] for row, length in zip(batch.tokens.tolist(), lengths, strict=True)]


def stack_of(subject: Subject, site: Site) -> str | None:
    """The stack that a site belongs to; None for a module path outside all blocks."""
    if not site.is_module_path:
        return site.stack
    path = subject.anatomy.place(site).path
    stacks = subject.anatomy.stacks.items()
    return next((name for name, blocks in stacks if any(f"{path}.".startswith(f"{block}.") for block in blocks)), None)


def predicting(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> dict[str, int | None]:
    """For the stack of each site, the position whose value in the last block predicts the first of `batch.targets`; the next positions
    predict the next targets. None for a stack that all targets depend on at every position, as an encoder of images.

    Found by differentiating the logits of one target, so that it is true of every kind of model: one less than the target's own position in
    language models, the same where a start token or a camera image stands before the first.
    """
    first = max(batch.prompt, 1)
    stacks = {stack for site in sites if (stack := stack_of(subject, site)) is not None}
    last = {stack: Site("resid_post", len(subject.anatomy.blocks(stack)) - 1, stack) for stack in stacks}
    short = _cut(next(iter(batch.split(1))), first)
    with differentiating(subject), captured(subject, tuple(last.values())) as values:
        logits = subject.target_logits(short)
        if values:  # else no site was reached, which `captured` reports
            logits.square().sum().backward(inputs=[values[site] for site in values])
    targets = short.targets.shape[1]
    return {stack: _first_position(values[site], targets, batch.prompt - first) for stack, site in last.items()}


def _first_position(value: Tensor, targets: int, shift: int) -> int | None:
    """The first of the positions of the first row that have a gradient, shifted; None if they are not as many as the targets."""
    where = [] if value.grad is None else value.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    return where[0] + shift if len(where) == targets and value.shape[1] > 1 else None


def position_weights(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> dict[str | None, Float[Tensor, "windows position"] | None]:
    """For the stack of each site, weights that average over the positions that predict counted targets; None to average over all."""
    counted = batch.counted.to(subject.device).double()
    weights: dict[str | None, Tensor | None] = {}
    for stack, start in predicting(subject, batch, sites).items():
        if start is None:
            weights[stack] = None
            continue
        seen = counted[:, max(-start, 0) :]  # a first token that nothing stands before is not predicted
        positions = max(batch.length, start + seen.shape[1])  # more than tokens where something stands before the first
        spread = torch.zeros(len(batch), positions, dtype=torch.double, device=subject.device)
        spread[:, max(start, 0) : max(start, 0) + seen.shape[1]] = seen / seen.sum(1, keepdim=True)
        weights[stack] = spread
    return weights


def weighted_mean(value: Float[Tensor, "windows position width"], weights: Tensor | None) -> Float[Tensor, "windows width"]:
    """The mean over positions under the weights of `position_weights`, or over all."""
    return value.double().mean(1) if weights is None else torch.einsum("bt,btw->bw", weights, value.double())


def _cut(batch: Batch, last: int) -> Batch:
    """The tokens up to number `last`, which alone is predicted; where several are predicted together, all tokens."""
    if batch.steps is not None:
        return replace(batch, prompt=last)
    return replace(batch.until(last + 1), mask=None, prompt=last)
