"""Edit: an affine map on columns of an activation. Every executor applies it with `apply`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.sites.site import Site

When = Literal["all", "prompt", "decode"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One change at one site: `x[columns] = multiply * x[columns] + add`.

    With `basis`, the component in the span of the basis is removed instead of multiplying. With
    `weight`, what a matrix makes of the input of the same module is added too.

    Attributes:
        site: where.
        columns: which columns of the last axis of the activation.
        multiply: the factor.
        add: [period, columns]: the row with the absolute position modulo `period` is added; or
            [rows, period, columns]: the row of the batch, modulo `rows`, chooses too. None adds
            nothing.
        basis: [rank, columns], with orthonormal rows.
        weight: [columns, inputs]: added to the weight of the module whose output this is.
        positions: absolute positions to change; None for all.
        when: whether to change positions of the prompt, positions decoded after it, or all.
    """

    site: Site
    columns: Int[Tensor, " columns"]
    multiply: float = 1.0
    add: Float[Tensor, "*rows period columns"] | None = None
    basis: Float[Tensor, "rank columns"] | None = None
    positions: tuple[int, ...] | None = None
    when: When = "all"
    weight: Float[Tensor, "columns inputs"] | None = None

    @property
    def needs_positions(self) -> bool:
        """Whether what this edit does depends on absolute positions."""
        if self.when != "all" or self.positions is not None:
            return True
        if self.add is None:
            return False
        period = self.add.shape[-2]
        return period > 1

    def active(self, offset: int, length: int, prompt: int) -> Int[Tensor, " position"]:
        """Returns the absolute positions that this edit changes in one forward.

        Args:
            offset: absolute position of the forward's first position.
            length: how many positions the forward has.
            prompt: length of the prompt.

        Example:
            >>> from interp.interventions.edit import Edit
            >>> neurons = interp.Site.parse("blocks.0.neurons")
            >>> edit = Edit(neurons, columns=torch.tensor([3]), when="decode")
            >>> edit.active(offset=0, length=6, prompt=4)
            tensor([4, 5])
        """
        positions = torch.arange(offset, offset + length)
        if self.when == "prompt":
            positions = positions[positions < prompt]
        elif self.when == "decode":
            positions = positions[positions >= prompt]
        if self.positions is not None:
            is_named = torch.isin(positions, torch.tensor(self.positions))
            positions = positions[is_named]
        return positions

    def addend(
        self, rows: int, positions: Int[Tensor, " position"], samples: int = 1
    ) -> Float[Tensor, "*rows position columns"]:
        """Returns what `add` adds in one forward.

        Args:
            rows: how many rows the forward has.
            positions: absolute positions.
            samples: how many neighbouring rows belong to one example, and take one donor.

        Returns:
            [position, columns], or [rows, position, columns] when the row of the batch matters.

        Raises:
            ValueError: the number of examples is not a multiple of the rows of `add`.
        """
        assert self.add is not None
        # Chosen by absolute position, so that a token gets the same row with a cache and without.
        period = self.add.shape[-2]
        table = self.add[..., positions % period, :]
        if table.ndim == 2:
            return table
        examples = rows // samples
        times, left = divmod(examples, len(table))
        if left:
            donors = f"{len(table)} donors (row r takes donor r modulo {len(table)})"
            raise ValueError(
                f"{self.site}: the number of rows, {examples}, is not a multiple of the {donors}: "
                "run the whole batch that the donors belong to"
            )
        # Generation with several samples repeats each row right behind itself; a sweep repeats the
        # batch as a whole.
        by_example = table.repeat(times, 1, 1)
        return by_example.repeat_interleave(samples, dim=0)


def apply(
    edit: Edit,
    value: Float[Tensor, "batch position width"],
    offset: int,
    positions: Int[Tensor, " position"],
    samples: int = 1,
    read: Float[Tensor, "batch position inputs"] | None = None,
) -> Tensor:
    """Returns a copy of an activation with an edit done at some positions.

    Args:
        edit: what to do.
        value: the activation; it is not changed.
        offset: absolute position of its first position.
        positions: absolute positions to change.
        samples: how many neighbouring rows belong to one example.
        read: what the module read whose output the activation is; only for edits with a `weight`.

    Example:
        >>> from interp.interventions.edit import Edit, apply
        >>> neurons = interp.Site.parse("blocks.0.neurons")
        >>> edit = Edit(neurons, columns=torch.tensor([1]), multiply=0.0)
        >>> value = torch.ones(1, 2, 3)
        >>> apply(edit, value, offset=0, positions=torch.tensor([1]))
        tensor([[[1., 1., 1.],
                 [1., 0., 1.]]])
    """
    columns = edit.columns.to(value.device)
    in_forward = (positions - offset).to(value.device)
    at: Any
    if len(in_forward) == value.shape[1]:
        at = (slice(None), slice(None), columns)  # cheaper than gathering every position
    else:
        # [positions, 1] and [1, columns] index every column at every position, not pairs of them.
        at = (slice(None), in_forward[:, None], columns[None, :])
    chosen = value[at]

    if edit.basis is not None:
        basis = edit.basis.to(value)
        coordinates = chosen @ basis.T
        new = chosen - coordinates @ basis
    elif edit.multiply == 0.0:
        new = torch.zeros_like(chosen)  # not a product: zeroing must also remove an infinity
    else:
        new = chosen * edit.multiply
    if edit.add is not None:
        addend = edit.addend(len(value), positions, samples)
        new = new + addend.to(value)
    if edit.weight is not None:
        assert read is not None
        at_positions = read[:, in_forward].to(value)
        new = new + at_positions @ edit.weight.to(value).T

    changed = value.clone()
    changed[at] = new
    return changed
