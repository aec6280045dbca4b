"""The laws by which places are verified, and what they compare: exact equality, equality up to
rounding, and being a projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.hooks.call_trace import Call
from interp.sites.anatomy import Place, out_rows


def flat(value: Tensor | None) -> Tensor:
    """All positions of all examples as rows."""
    assert value is not None
    return value.reshape(-1, value.shape[-1])


def inward(call: Call) -> Place:
    """What enters a module."""
    assert call.value is not None
    return Place(call.path, "in", call.value.shape[-1])


def outward(call: Call) -> Place:
    """What leaves a module."""
    assert call.output is not None
    return Place(call.path, "out", call.output.shape[-1])


def has_projection(modules: nn.Module) -> bool:
    """Whether some linear layer is inside."""
    return any(isinstance(m, nn.Linear) for m in modules.modules())


def is_projection(module: nn.Module, call: Call) -> bool:
    """The law of the out-projection: its output is its input times its weight, plus its bias."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if (
        not isinstance(weight, Tensor)
        or weight.ndim != 2
        or call.value is None
        or call.output is None
    ):
        return False
    rows = out_rows(module).detach()
    if rows.shape != (call.value.shape[-1], call.output.shape[-1]):
        return False
    product_, scale = call.value @ rows, call.value.abs() @ rows.abs()
    return close(call.output, product_ + bias if isinstance(bias, Tensor) else product_, scale)


def shaped_like(tensor: Tensor | None, other: Tensor | None) -> bool:
    """Whether both hold one vector of the same width for each of the same tokens."""
    return (
        tensor is not None
        and other is not None
        and tensor.numel() == other.numel()
        and tensor.shape[-1] == other.shape[-1]
    )


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal to the bit."""
    return one is not None and other is not None and torch.equal(one, other)


def close(left: Tensor, right: Tensor, *terms: Tensor) -> bool:
    """Equal up to the rounding of a sum of `terms`, element by element: outlier channels must not
    hide the others."""
    size = sum((t.abs() for t in terms), torch.zeros_like(right))
    return bool(((left - right).abs() <= 16 * torch.finfo(right.dtype).eps * size + 1e-12).all())
