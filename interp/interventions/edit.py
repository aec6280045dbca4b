"""Edit: an affine map on columns of an activation, which every executor applies by the same rule,
`apply`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.sites.site import Site

When = Literal["all", "prompt", "decode"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One affine change at one site: `x[columns] = multiply * x[columns] + add`, or the removal of
    the span of `basis`.

    `columns` index the last axis of the activation; `add` is [1 or period, columns], its row chosen
    by absolute position modulo the period, or [rows, period, columns], where also the row of the
    batch chooses, modulo the rows; `basis` is [rank, columns] with orthonormal rows, removed before
    `add` is added.
    """

    site: Site
    columns: Int[Tensor, " columns"]
    multiply: float = 1.0
    add: Float[Tensor, "*rows period columns"] | None = None
    basis: Float[Tensor, "rank columns"] | None = None
    positions: tuple[int, ...] | None = None
    when: When = "all"

    def active(self, offset: int, length: int, prompt: int) -> Int[Tensor, " position"]:
        """Absolute positions, among `offset .. offset + length - 1`, that this edit touches, given
        the length of the prompt."""
        seen = torch.arange(offset, offset + length)
        if self.when != "all":
            seen = seen[seen < prompt] if self.when == "prompt" else seen[seen >= prompt]
        if self.positions is not None:
            seen = seen[torch.isin(seen, torch.tensor(self.positions))]
        return seen

    def added(
        self, rows: int, positions: Int[Tensor, " position"]
    ) -> Float[Tensor, "*rows position columns"]:
        """What `add` gives to a forward of so many rows at some absolute positions. Raises
        ValueError when the rows have no donors."""
        assert self.add is not None
        table = self.add[..., positions % self.add.shape[-2], :]
        if table.ndim == 2:
            return table
        times, left = divmod(rows, len(table))
        if left:
            donors = f"{len(table)} donors (row r takes donor r modulo {len(table)})"
            raise ValueError(
                f"{self.site}: {rows} rows are no multiple of the {donors}: run the whole batch that the donors belong to"
            )
        return table.repeat(times, 1, 1)


def apply(
    edit: Edit,
    value: Float[Tensor, "batch position width"],
    offset: int,
    positions: Int[Tensor, " position"],
) -> Tensor:
    """A copy of `value`, whose first position is `offset`, with `edit` done at the given absolute
    positions; `value` is left alone."""
    columns, rows = edit.columns.to(value.device), (positions - offset).to(value.device)
    whole = len(rows) == value.shape[1]  # slicing is cheaper than gathering rows
    at = (
        (slice(None), slice(None), columns)
        if whole
        else (slice(None), rows[:, None], columns[None, :])
    )
    chosen = value[at]
    if edit.basis is not None:
        basis = edit.basis.to(value)
        new = chosen - (chosen @ basis.T) @ basis
    elif edit.multiply == 0.0:  # not a product: zeroing must also remove an infinity
        new = torch.zeros_like(chosen)
    else:
        new = chosen * edit.multiply
    if edit.add is not None:
        new = new + edit.added(len(value), positions).to(value)
    changed = value.clone()
    changed[at] = new
    return changed
