"""What to change in a network, as frozen plain data: which units, to what, at which positions,
when.

An Intervention knows nothing of models or hooks. `edits(heads)` lowers it to Edits - affine maps on
columns of an activation - which every executor (hooks, weights, nnsight, TransformerLens) applies
by the same rule, `apply`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from interp.errors import closest
from interp.interventions.edit import Edit, When
from interp.sites.site import Site
from interp.sites.units import Units

Arrays = Mapping[Site, np.ndarray]


Columns = Callable[[Site, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Intervention(ABC):
    """A change to some units.

    `positions` are absolute (a position in the sequence, also under a KV cache); `when` narrows it
    to the prompt or to what is decoded after it.
    """

    units: Units
    positions: tuple[int, ...] | None = None
    when: When = "all"

    def __post_init__(self) -> None:
        if not len(self.units):
            raise ValueError(f"{type(self).__name__} has no units: nothing would change")
        if self.when not in get_args(When):
            raise ValueError(
                f"when={self.when!r}: expected one of {', '.join(get_args(When))}; nearest: {closest(self.when, get_args(When))}"
            )
        if self.positions is not None and (not self.positions or min(self.positions) < 0):
            raise ValueError(
                f"positions={self.positions}: expected absolute positions >= 0 (0 is the first token)"
            )

    @abstractmethod
    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        """This intervention as Edits; `columns(site, units)` gives the activation columns of units
        (several a head, one a neuron)."""

    def _edit(
        self,
        site: Site,
        columns: np.ndarray,
        multiply: float,
        add: np.ndarray | None = None,
        basis: np.ndarray | None = None,
    ) -> Edit:
        def tensor(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else torch.tensor(np.asarray(array, dtype=np.float64))

        return Edit(
            site,
            torch.tensor(columns, dtype=torch.long),
            multiply,
            tensor(add),
            tensor(basis),
            self.positions,
            self.when,
        )

    def _affine(
        self, columns: Columns, multiply: float, add: Mapping[Site, np.ndarray] | None = None
    ) -> tuple[Edit, ...]:
        places = [(site, columns(site, self.units[site])) for site in self.units.sites]
        return tuple(
            self._edit(
                site, at, multiply, None if add is None else self._rows(add, site, at, columns)
            )
            for site, at in places
        )

    def _rows(
        self, values: Mapping[Site, np.ndarray], site: Site, at: np.ndarray, columns: Columns
    ) -> np.ndarray:
        """`values[site]` as [rows, columns edited]; given as [width] or [rows, width], at heads
        also as [..., head, d_head]."""
        if site not in values:
            raise ValueError(
                f"{type(self).__name__} has units at {site} but no values for it; values are given for {', '.join(map(str, values))}"
            )
        table, width = (
            np.asarray(values[site]),
            len(columns(site, np.arange(self.units.widths[site]))),
        )
        if not table.size or table.size % width or width not in np.cumprod(table.shape[::-1]):
            raise ValueError(
                f"{type(self).__name__} at {site} needs values {width} wide; got shape {table.shape}"
            )
        return table.reshape(-1, width)[:, at]

    def _row(
        self, columns: Columns, values: Mapping[Site, np.ndarray], multiply: float
    ) -> tuple[Edit, ...]:
        """The affine change by one row of values, the same at every position."""
        edits = self._affine(columns, multiply, values)
        for edit in edits:
            if edit.add is not None and len(edit.add) != 1:
                raise ValueError(
                    f"{type(self).__name__} at {edit.site} takes one row of values; got {len(edit.add)} (Patch takes one a position)"
                )
        return edits

    def to_json(self) -> dict[str, Any]:
        return {"kind": type(self).__name__} | {
            f.name: _encode(getattr(self, f.name)) for f in fields(self)
        }


@dataclass(frozen=True, eq=False)
class Zero(Intervention):
    """Sets units to zero (ablation)."""

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._affine(columns, 0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale(Intervention):
    """Multiplies units by a factor."""

    factor: float

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._affine(columns, self.factor)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mean(Intervention):
    """Replaces units by their mean over reference data. `values[site]`: [width], from `record(...,
    reduce="mean")`."""

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._row(columns, self.values, 0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Intervention):
    """Adds a vector to units (steering). `values[site]`: [width]."""

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._row(columns, self.values, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch(Intervention):
    """Replaces units by a donor run's values at the donor's positions, and no others.
    `values[site]`: [positions of the donor, width]."""

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return tuple(map(_at_the_donors_positions, self._affine(columns, 0.0, self.values)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Interchange(Intervention):
    """Replaces units of every row by those of the row's own donor (interchange intervention; Geiger
    et al. 2021, arXiv 2106.02997).

    `values[site]`: [rows, positions of the donor, width] (at heads also [..., head, d_head]), put
    at the donor's positions and no others. Row r of a forward takes donor r modulo the number of
    donors; a forward whose rows are no multiple of the donors raises ValueError.
    """

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return tuple(
            _at_the_donors_positions(self._by_row(edit))
            for edit in self._affine(columns, 0.0, self.values)
        )

    def _by_row(self, edit: Edit) -> Edit:
        shape = np.shape(self.values[edit.site])
        assert edit.add is not None
        if len(shape) < 3 or shape[0] * shape[1] != len(edit.add):
            raise ValueError(
                f"Interchange at {edit.site} needs values [rows, positions, width]; got shape {shape}"
            )
        return replace(edit, add=edit.add.unflatten(0, shape[:2]))


def _at_the_donors_positions(edit: Edit) -> Edit:
    assert edit.add is not None
    known = tuple(range(edit.add.shape[-2]))
    positions = known if edit.positions is None else edit.positions
    if not set(positions) <= set(known):
        raise ValueError(
            f"the donor has positions 0 to {len(known) - 1}; positions {positions} were asked for"
        )
    return replace(edit, positions=positions)


@dataclass(frozen=True, eq=False, kw_only=True)
class Resample(Intervention):
    """Replaces units by draws from a pool of recorded rows. `values[site]`: [rows, width].

    The draw depends on the seed and the absolute position alone (positions `period` apart share
    one), so it is the same for any batch, with or without a KV cache; all units of a site are drawn
    from one row.
    """

    values: Arrays
    seed: int = 0
    period: ClassVar[int] = 1024

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        draws = np.random.default_rng(self.seed).random(self.period)
        drawn = {s: np.asarray(v)[(draws * len(v)).astype(int)] for s, v in self.values.items()}
        return self._affine(columns, 0.0, drawn)


@dataclass(frozen=True, eq=False, kw_only=True)
class Project(Intervention):
    """Removes a subspace: x - ((x - c) B^T) B, B an orthonormal basis of the rows of `values[site]`
    ([rank, width]) on the units.

    `center[site]` ([width]) is c, which stays where it is: around the mean, the removal does not
    move the mean. None is the origin.
    """

    values: Arrays
    center: Arrays | None = None

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        removals = tuple(self._projection(site, columns) for site in self.units.sites)
        if self.center is None:
            return removals
        return tuple(
            _around(edit, center.add)
            for edit, center in zip(removals, self._row(columns, self.center, 1.0), strict=True)
        )

    def _projection(self, site: Site, columns: Columns) -> Edit:
        at = columns(site, self.units[site])
        rows = self._rows(self.values, site, at, columns).astype(np.float64)
        _, size, basis = np.linalg.svd(rows, full_matrices=False)
        return self._edit(site, at, 1.0, basis=basis[size > size.max(initial=0.0) * 1e-10])


def _around(edit: Edit, center: Tensor | None) -> Edit:
    assert edit.basis is not None
    assert center is not None
    return replace(edit, add=center @ edit.basis.T @ edit.basis)


def _encode(value: Any) -> Any:
    if isinstance(value, Units):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): np.asarray(v).tolist() for k, v in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
