"""The positions whose values predict the suffix.

In a language model the value at position t - 1 predicts token t. Other models have a start token or
a camera image before the first token, so that position t predicts token t. Methods that average
over predicting positions find them here, for any kind of model.
"""

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
    """Returns the stack that a site belongs to; None for a module path outside all blocks.

    Example:
        >>> stack_of(subject, interp.Site("neurons", 0))  # the only stack has no name
        ''
    """
    if not site.is_module_path:
        return site.stack
    path = subject.anatomy.place(site).path
    for stack, blocks in subject.anatomy.stacks.items():
        for block in blocks:
            if f"{path}.".startswith(f"{block}."):
                return stack
    return None


def predicting_positions(
    subject: Subject, batch: Batch, sites: tuple[Site, ...]
) -> dict[str, int | None]:
    """Returns, for the stack of each site, the position that predicts the first target.

    The value at that position of the stack's last block predicts the first of `batch.targets`; the
    next positions predict the next targets. It is found by differentiating the logits of one
    target, which holds for every kind of model: one less than the target's own position in language
    models, the same position where a start token or a camera image comes before the first token.

    Args:
        subject: the model.
        batch: windows; the first one is used.
        sites: the sites whose stacks are wanted.

    Returns:
        {stack: position}; None for a stack that all targets depend on at every position, such as an
        encoder of images.

    Example:
        >>> batch.prompt
        8
        >>> predicting_positions(subject, batch, (interp.Site("neurons", 0),))
        {'': 7}
    """
    # a model without a start token cannot predict token 0: differentiate token 1 and shift back
    target = max(batch.prompt, 1)
    last_sites: dict[str, Site] = {}
    for site in sites:
        stack = stack_of(subject, site)
        if stack is not None:
            last_block = len(subject.anatomy.blocks(stack)) - 1
            last_sites[stack] = Site("resid_post", last_block, stack)

    # One backward through one target: the positions of the last block that get a gradient are
    # those that the target is predicted at.
    first_window = next(iter(batch.split(1)))
    short = _predict_only(first_window, target)
    with differentiating(subject), captured(subject, tuple(last_sites.values())) as values:
        logits = subject.target_logits(short)
        if values:  # without values no site ran, which `captured` reports on exit
            inputs = [values[site] for site in values]
            # Into these activations alone, so that no weight is left with a gradient.
            logits.square().sum().backward(inputs=inputs)

    targets = short.targets.shape[1]
    shift = batch.prompt - target
    return {
        stack: _first_position(values[site], targets, shift) for stack, site in last_sites.items()
    }


def _first_position(value: Tensor, targets: int, shift: int) -> int | None:
    """The first position of the first row with a gradient, shifted.

    None unless the number of such positions is exactly that of the targets.
    """
    if value.grad is None:
        return None
    size_by_position = value.grad[0].abs().sum(-1)
    positions = size_by_position.nonzero().flatten().tolist()
    # A stack of one position has its gradient there, whichever target is predicted.
    if len(positions) != targets or value.shape[1] == 1:
        return None
    return positions[0] + shift


def position_weights(
    subject: Subject, batch: Batch, sites: tuple[Site, ...]
) -> dict[str | None, Float[Tensor, "windows position"] | None]:
    """Returns, for the stack of each site, weights that average over predicting positions.

    Args:
        subject: the model.
        batch: the windows; only positions that predict a counted target have a weight.
        sites: the sites whose stacks are wanted.

    Returns:
        {stack: weights}, whose rows sum to 1; None for a stack to be averaged over all positions.

    Example:
        >>> weights = position_weights(subject, batch, (interp.Site("neurons", 0),))[""]
        >>> weights.shape  # 16 tokens, of which positions 7 to 14 predict the last 8
        torch.Size([12, 16])
        >>> weights[0].nonzero().flatten().tolist()
        [7, 8, 9, 10, 11, 12, 13, 14]
    """
    counted = batch.counted.to(subject.device).double()
    weights: dict[str | None, Tensor | None] = {}
    for stack, start in predicting_positions(subject, batch, sites).items():
        if start is None:
            weights[stack] = None
            continue
        # `start` is -1 in a language model without prompt: no position predicts the first token
        predicted = counted[:, max(-start, 0) :]
        targets = predicted.shape[1]
        first = max(start, 0)
        last = first + targets
        # the blocks see more positions than tokens where something comes before the first token
        positions = max(batch.length, start + targets)
        spread = torch.zeros(len(batch), positions, dtype=torch.double, device=subject.device)
        total = predicted.sum(1, keepdim=True)
        spread[:, first:last] = predicted / total
        weights[stack] = spread
    return weights


def weighted_mean(
    value: Float[Tensor, "windows position width"], weights: Tensor | None
) -> Float[Tensor, "windows width"]:
    """Returns the mean over positions, in double precision.

    Args:
        value: an activation.
        weights: [windows, position], as `position_weights` gives them; None for the plain mean.
    """
    if weights is None:
        return value.double().mean(1)
    own_weights = weights.to(value.device)
    # Infinities where the weight is 0, as on padding, would make the sum NaN.
    is_ignored = (own_weights == 0)[..., None]
    return torch.einsum("bt,btw->bw", own_weights, value.double().masked_fill(is_ignored, 0))


def _predict_only(batch: Batch, target: int) -> Batch:
    """The tokens up to number `target`, which alone is predicted; where tokens are predicted
    together, all tokens from there on."""
    if batch.groups is not None:
        return replace(batch, prompt=target)
    return replace(batch.until(target + 1), mask=None, prompt=target)
