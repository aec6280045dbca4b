"""What the methods have in common: a gate on each unit, the loss of each window, and the positions
whose values predict the suffix."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from jaxtyping import Float
from torch import Tensor

from interp.hooks.hooks import Clock, Value, Visit, tapped
from interp.sites.site import Site
from interp.subject.subject import Subject

Gates = Mapping[Site, Float[Tensor, "windows units"]]


def gated(subject: Subject, gates: Gates) -> AbstractContextManager[object]:
    """Multiplies every unit of window b, at every position, by `gates[site][b]`: 1 leaves it, 0
    ablates it. Windows do not mix."""

    def visit(gate: Tensor) -> Visit:
        def multiply(value: Value, _: Clock) -> Tensor:
            columns = value.shape[-1] // gate.shape[-1]
            return value * gate.repeat_interleave(columns, -1)[:, None].to(value.dtype)

        return multiply

    return tapped(subject, {site: visit(gate) for site, gate in gates.items()})
