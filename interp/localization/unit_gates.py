"""Gates: a factor on each unit of each window, for methods that ablate units or learn masks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, Visit, tapped
from interp.sites.site import Site
from interp.subject.subject import Subject

Gates = Mapping[Site, Float[Tensor, "windows units"]]


def constant_gates(
    subject: Subject, sites: tuple[Site, ...], windows: int, value: float
) -> dict[Site, Float[Tensor, "windows units"]]:
    """Returns gates that all have one value, to start from.

    They are in single precision, or double where the model is: half precision would round away the
    small steps in which masks are learned.

    Example:
        >>> site = interp.Site("heads", 0)
        >>> constant_gates(subject, (site,), windows=2, value=1.0)[site]
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.]])
    """
    model_dtype = next(subject.module.parameters()).dtype
    dtype = torch.promote_types(model_dtype, torch.float32)
    widths = subject.anatomy.widths(sites)
    gates: dict[Site, Tensor] = {}
    for site, width in widths.items():
        shape = (windows, width)
        gates[site] = torch.full(shape, value, dtype=dtype, device=subject.device)
    return gates


def gated(subject: Subject, gates: Gates) -> AbstractContextManager[object]:
    """Multiplies every unit, at every position, by its gate while the context is open.

    Args:
        subject: the model.
        gates: {site: [windows, units]}; window b of a forward is multiplied by row b, so that
            windows do not mix. A single row applies to all windows. 1 leaves a unit, 0 ablates it.

    Example:
        >>> site = interp.Site("neurons", 1)
        >>> with gated(subject, {site: torch.zeros(len(batch), 48)}):
        ...     gated_loss = subject.losses(batch).mean()
        >>> with subject.intervened(interp.Zero(subject.anatomy.units(site))):
        ...     zeroed_loss = subject.losses(batch).mean()
        >>> torch.equal(gated_loss, zeroed_loss)
        True
    """

    def visit(gate: Tensor) -> Visit:
        def multiply(value: Value, _: Clock) -> Tensor:
            # A head is several neighbouring columns, which all get its gate. The new axis lets one
            # row of gates hold for all positions of its window: [windows, 1, width].
            columns_per_unit = value.shape[-1] // gate.shape[-1]
            by_column = gate.repeat_interleave(columns_per_unit, -1)
            factors = by_column[:, None]
            return value * factors.to(value)

        return multiply

    visits = {site: visit(gate) for site, gate in gates.items()}
    return tapped(subject, visits)
