"""Linear maps back to the residual stream: the modules whose input holds units.

Zeroing a unit means removing its row of the weight. So a module counts as a projection only if its
output is the sum of what its inputs give one by one, in every position by itself. Most are plain
linear layers, whose weight shows it. Of others (packed or quantized weights, a linear layer with a
low-rank branch beside it) it is found out by running them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.hooks.call_trace import Call
from interp.loading.probes import Probe
from interp.loading.verification import close, is_projection, rounding, same, shaped_like
from interp.sites.sharding import in_place


def has_matrix(module: nn.Module, call: Call) -> bool:
    """Returns whether a module has a weight between the widths of its input and its output.

    Only `is_projection` shows that the module multiplies by it; this costs nothing.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or call.value is None or call.output is None:
        return False
    widths = {call.value.shape[-1], call.output.shape[-1]}
    return weight.ndim == 2 and set(weight.shape) == widths


def is_linear(module: nn.Module, call: Call) -> bool:
    """Returns whether a module obeys the laws of a projection when it is run, whatever it is made
    of.

    - superposition: its output is the sum of those for two halves of its input's columns, minus
      that for zeros;
    - each position by itself: what a position gives does not change when others are zeroed;
    - it mixes columns: a norm's or a scale's own weight is not a projection.
    """
    value, output = call.value, call.output
    if value is None or output is None or value.shape[:-1] != output.shape[:-1]:
        return False
    if not list(module.parameters()) and not list(module.buffers()):
        return False
    # Every other column, and every other position.
    columns = torch.arange(value.shape[-1], device=value.device) % 2 == 0
    rows = torch.arange(value.shape[-2], device=value.device)[:, None] % 2 == 0
    try:
        constant = module(torch.zeros_like(value))
        even = module(value * columns)
        odd = module(value * ~columns)
        some_rows = module(value * rows)
    except Exception:  # noqa: BLE001 - a module that needs more than this input may fail in any way
        return False
    parts = (constant, even, odd, some_rows)
    if not all(isinstance(part, Tensor) and part.shape == output.shape for part in parts):
        return False
    # Of a model on several devices, the call was copied to one of them.
    constant, even, odd, some_rows = (part.to(output.device) for part in parts)

    size = output.abs() + even.abs() + odd.abs() + constant.abs()
    size = size.amax(-1, keepdim=True).expand_as(output)
    superposed = close(even + odd - constant, output, size)
    alone = close(some_rows, torch.where(rows, output, constant), size)
    if not (superposed and alone):
        return False
    # Between other widths columns are mixed anyway. At the same width, a factor per column obeys
    # the laws above too, but carries nothing from even columns to odd ones.
    from_even_to_odd = (even - constant)[..., ~columns] if value.shape == output.shape else None
    return from_even_to_odd is None or bool(from_even_to_odd.any())


def outermost(module: nn.Module, call: Call, inner: Sequence[Call]) -> Call:
    """Returns the outermost module around a projection that has the same input and is linear too.

    It is the module that an adapter put in the projection's place. Its input is what all its
    branches read, also those that add nothing as yet.
    """
    by_path = {other.path: other for other in inner}
    while True:
        parent = by_path.get(call.path.rpartition(".")[0])
        if parent is None or not same(parent.value, call.value):
            return call
        with in_place(module, parent.path):
            reads_the_same = is_linear(module.get_submodule(parent.path), parent)
        if not reads_the_same:
            return call
        call = parent


@dataclass(eq=False)
class Search:
    """The search for the projection whose input holds the units of one half of a block.

    Attributes:
        half: the call whose output must not depend on anything once that of the projection is zero.
        inner: the calls inside the block.
        candidates: calls to try, the likeliest first; those that are not linear are left out.
        after: the time after which the projection runs: the values that attention reads are made by
            a projection too, and without them it adds nothing either.
        total: for a shared expert, the terms of the MLP, to which it adds its output beside other
            experts; empty for a half that has one projection.
        found: the call of the projection.
    """

    half: Call
    inner: Sequence[Call]
    candidates: list[Call]
    after: int = 0
    total: tuple[Call, ...] = ()
    found: Call | None = None


def find_projections(module: nn.Module, probe: Probe, searches: Sequence[Search]) -> None:
    """Sets `found` of every search whose law some projection satisfies.

    The law: with the projection's output at zero, the half adds the same to every position. So the
    units at its input are all that the half has, and nothing goes around them.

    Args:
        module: the network.
        probe: runs it again.
        searches: at most one for each block.
    """
    _try_in_turn(module, probe, searches)
    # Only where no plain linear layer does: finding the others means running every module.
    missing = [search for search in searches if search.found is None]
    for search in missing:
        tried = {call.path for call in search.candidates}
        search.candidates = [
            call
            for call in reversed(search.inner)
            if call.path not in tried
            and search.after < call.start
            and call.end <= search.half.end
            and shaped_like(call.output, search.half.output)
        ]
    _try_in_turn(module, probe, missing)
    for search in searches:
        if search.found is not None:
            search.found = outermost(module, search.found, search.inner)


def _try_in_turn(module: nn.Module, probe: Probe, searches: Sequence[Search]) -> None:
    """Tries the first candidate of every search in one forward, then the second, and so on."""
    untried = {search: iter(search.candidates) for search in searches}
    while True:
        tried: dict[Search, Call] = {}
        for search, candidates in untried.items():
            if search.found is None:
                call = next((call for call in candidates if _is_linear_in(module, call)), None)
                if call is not None:
                    tried[search] = call
        if not tried:
            return
        # A projection that is all of the half itself needs no trial.
        inside = {search: call for search, call in tried.items() if call is not search.half}
        halves = [search.half for search in inside]
        outputs = probe.without(inside.values(), halves) if inside else {}
        alone = [
            search
            for search in tried
            if search not in inside or _is_constant(outputs[search.half], search.half)
        ]
        shared = {search: tried[search] for search in alone if search.total}
        watched = [call for search in shared for call in search.total]
        totals = probe.without(shared.values(), watched) if shared else {}
        for search in alone:
            if _is_added(search, totals):
                search.found = tried[search]


def _is_linear_in(module: nn.Module, call: Call) -> bool:
    part = module.get_submodule(call.path)
    with in_place(module, call.path):
        return is_projection(part, call) or is_linear(part, call)


def _is_constant(output: Tensor, call: Call) -> bool:
    """Whether an output is the same at all positions, unlike that of the first forward."""
    assert call.output is not None
    rows = output.reshape(-1, output.shape[-1])
    before = call.output.reshape(rows.shape)
    tolerance = rounding(before)
    is_constant = bool(((rows - rows[:1]).abs() <= tolerance).all())
    return is_constant and bool(((before - before[:1]).abs() > tolerance).any())


def _is_added(search: Search, totals: Mapping[Call, Tensor]) -> bool:
    """Whether what the MLP adds changed by a multiple, at each position, of the half's output."""
    if not search.total or search.half in search.total:
        return True
    assert search.half.output is not None
    own = search.half.output.reshape(-1, search.half.output.shape[-1]).float()  # [token, width]
    change = torch.zeros_like(own)
    tolerance = 0.0
    for call in search.total:
        assert call.output is not None
        before = call.output.reshape(own.shape)
        after = totals[call].reshape(own.shape)
        change += (before - after).float()
        tolerance = max(tolerance, rounding(before))

    # The multiple at each position, by least squares: the gate of the expert.
    in_common = (change * own).sum(-1, keepdim=True)
    squares = own.square().sum(-1, keepdim=True)
    # Where the expert gives zeros, the multiple is 0, and not 0 / 0.
    multiples = in_common / squares.clamp_min(torch.finfo(own.dtype).tiny)
    left_over = change - multiples * own
    is_multiple = bool((left_over.abs() <= tolerance).all())
    return is_multiple and bool((change.abs() > tolerance).any())
