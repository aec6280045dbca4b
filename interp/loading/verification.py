"""The laws that verify places: exact equality, equality up to rounding, and being a projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.hooks.call_trace import Call
from interp.sites.anatomy import Place, as_rows
from interp.subject.offloading import stored


def flat(value: Tensor | None) -> Tensor:
    """Returns a value with one row for each position of each example, [batch * position, width]."""
    assert value is not None
    return value.reshape(-1, value.shape[-1])


def inward(call: Call) -> Place:
    """Returns the place of a module's input."""
    assert call.value is not None
    return Place(call.path, "in", call.value.shape[-1])


def outward(call: Call) -> Place:
    """Returns the place of a module's output."""
    assert call.output is not None
    return Place(call.path, "out", call.output.shape[-1])


def has_projection(modules: nn.Module) -> bool:
    """Returns whether a module contains a linear layer."""
    return any(isinstance(part, nn.Linear) for part in modules.modules())


def is_projection(module: nn.Module, call: Call) -> bool:
    """Returns whether a module obeys the law of a projection in a call: its output is its input
    times its weight, plus its bias if it has one."""
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return False
    if call.value is None or call.output is None:
        return False

    weight = stored(module, "weight", weight).detach().to(call.value.device)
    if isinstance(bias, Tensor):
        bias = stored(module, "bias", bias).to(call.value.device)
    rows = as_rows(module, weight)
    if rows.dtype != call.value.dtype:
        return False  # whole numbers with a scale beside them, for instance
    if rows.shape != (call.value.shape[-1], call.output.shape[-1]):
        return False
    expected = call.value @ rows
    largest_sum = call.value.abs() @ rows.abs()
    if isinstance(bias, Tensor):
        expected = expected + bias
    return close(call.output, expected, largest_sum)


def shaped_like(tensor: Tensor | None, other: Tensor | None) -> bool:
    """Returns whether two tensors have the same number of rows and the same width, whatever their
    other axes; False if either is None."""
    if tensor is None or other is None:
        return False
    # Not whole shapes: some models flatten batch and position between the two.
    same_width = tensor.shape[-1] == other.shape[-1]
    return same_width and tensor.numel() == other.numel()


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Returns whether two tensors are equal bit for bit; False if either is None."""
    if one is None or other is None:
        return False
    return torch.equal(one, other)


def close(left: Tensor, right: Tensor, *terms: Tensor) -> bool:
    """Returns whether two tensors are equal up to the rounding error of a sum of `terms`.

    The tolerance is set element by element: a single one for the whole tensor would be set by its
    outlier channels, and hide differences in the other channels.

    Example:
        >>> from interp.loading.verification import close
        >>> stream = torch.tensor([1e4, 1.0])
        >>> close(stream, stream + torch.tensor([0.0, 0.001]), stream)
        False
    """
    magnitude = torch.zeros_like(right)
    for term in terms:
        magnitude = magnitude + term.abs()
    eps = torch.finfo(right.dtype).eps
    # The constant is for elements whose terms are all 0: they would have no tolerance at all.
    tolerance = 16 * eps * magnitude + 1e-12
    differences = (left - right).abs()
    return bool((differences <= tolerance).all())


def rounding(value: Tensor) -> float:
    """Returns by how much a value may differ when it is computed again in another order."""
    own_eps = torch.finfo(value.dtype).eps
    single_eps = torch.finfo(torch.float32).eps
    relative = max(4 * own_eps, 64 * single_eps)
    largest = float(value.abs().max())
    return relative * largest
