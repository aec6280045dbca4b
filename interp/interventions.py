"""What to change in a network, as frozen plain data: which units, to what, at which positions, when.

An Intervention knows nothing of models or hooks. `edits(heads)` lowers it to Edits - affine maps on columns of an activation - which every
executor (hooks, weights, nnsight, TransformerLens) applies by the same rule, `apply`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .files import replaced
from .sites import Site, closest
from .units import Units

When = Literal["all", "prompt", "decode"]
Arrays = Mapping[Site, np.ndarray]
Columns = Callable[[Site, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Edit:
    """One affine change at one site: `x[columns] = multiply * x[columns] + add`, or the removal of the span of `basis`.

    `columns` index the last axis of the activation; `add` is [1 or period, columns], its row chosen by absolute position modulo the period,
    or [rows, period, columns], where also the row of the batch chooses, modulo the rows; `basis` is [rank, columns] with orthonormal rows,
    removed before `add` is added.
    """

    site: Site
    columns: Int[Tensor, " columns"]
    multiply: float = 1.0
    add: Float[Tensor, "*rows period columns"] | None = None
    basis: Float[Tensor, "rank columns"] | None = None
    positions: tuple[int, ...] | None = None
    when: When = "all"

    def active(self, offset: int, length: int, prompt: int) -> Int[Tensor, " position"]:
        """Absolute positions, among `offset .. offset + length - 1`, that this edit touches, given the length of the prompt."""
        seen = torch.arange(offset, offset + length)
        if self.when != "all":
            seen = seen[seen < prompt] if self.when == "prompt" else seen[seen >= prompt]
        if self.positions is not None:
            seen = seen[torch.isin(seen, torch.tensor(self.positions))]
        return seen

    def added(self, rows: int, positions: Int[Tensor, " position"]) -> Float[Tensor, "*rows position columns"]:
        """What `add` gives to a forward of so many rows at some absolute positions. Raises ValueError when the rows have no donors."""
        assert self.add is not None
        table = self.add[..., positions % self.add.shape[-2], :]
        if table.ndim == 2:
            return table
        times, left = divmod(rows, len(table))
        if left:
            donors = f"{len(table)} donors (row r takes donor r modulo {len(table)})"
            raise ValueError(f"{self.site}: {rows} rows are no multiple of the {donors}: run the whole batch that the donors belong to")
        return table.repeat(times, 1, 1)


def apply(edit: Edit, value: Float[Tensor, "batch position width"], offset: int, positions: Int[Tensor, " position"]) -> Tensor:
    """A copy of `value`, whose first position is `offset`, with `edit` done at the given absolute positions; `value` is left alone."""
    columns, rows = edit.columns.to(value.device), (positions - offset).to(value.device)
    whole = len(rows) == value.shape[1]  # slicing is cheaper than gathering rows
    at = (slice(None), slice(None), columns) if whole else (slice(None), rows[:, None], columns[None, :])
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


@dataclass(frozen=True, eq=False)
class Intervention(ABC):
    """A change to some units.

    `positions` are absolute (a position in the sequence, also under a KV cache); `when` narrows it to the prompt or to what is decoded
    after it.
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
            raise ValueError(f"positions={self.positions}: expected absolute positions >= 0 (0 is the first token)")

    @abstractmethod
    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        """This intervention as Edits; `columns(site, units)` gives the activation columns of units (several a head, one a neuron)."""

    def _edit(
        self, site: Site, columns: np.ndarray, multiply: float, add: np.ndarray | None = None, basis: np.ndarray | None = None
    ) -> Edit:
        def tensor(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else torch.tensor(np.asarray(array, dtype=np.float64))

        return Edit(site, torch.tensor(columns, dtype=torch.long), multiply, tensor(add), tensor(basis), self.positions, self.when)

    def _affine(self, columns: Columns, multiply: float, add: Mapping[Site, np.ndarray] | None = None) -> tuple[Edit, ...]:
        places = [(site, columns(site, self.units[site])) for site in self.units.sites]
        return tuple(self._edit(site, at, multiply, None if add is None else self._rows(add, site, at, columns)) for site, at in places)

    def _rows(self, values: Mapping[Site, np.ndarray], site: Site, at: np.ndarray, columns: Columns) -> np.ndarray:
        """`values[site]` as [rows, columns edited]; given as [width] or [rows, width], at heads also as [..., head, d_head]."""
        if site not in values:
            raise ValueError(
                f"{type(self).__name__} has units at {site} but no values for it; values are given for {', '.join(map(str, values))}"
            )
        table, width = np.asarray(values[site]), len(columns(site, np.arange(self.units.widths[site])))
        if not table.size or table.size % width or width not in np.cumprod(table.shape[::-1]):
            raise ValueError(f"{type(self).__name__} at {site} needs values {width} wide; got shape {table.shape}")
        return table.reshape(-1, width)[:, at]

    def _row(self, columns: Columns, values: Mapping[Site, np.ndarray], multiply: float) -> tuple[Edit, ...]:
        """The affine change by one row of values, the same at every position."""
        edits = self._affine(columns, multiply, values)
        for edit in edits:
            if edit.add is not None and len(edit.add) != 1:
                raise ValueError(
                    f"{type(self).__name__} at {edit.site} takes one row of values; got {len(edit.add)} (Patch takes one a position)"
                )
        return edits

    def to_json(self) -> dict[str, Any]:
        return {"kind": type(self).__name__} | {f.name: _encode(getattr(self, f.name)) for f in fields(self)}


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
    """Replaces units by their mean over reference data. `values[site]`: [width], from `record(..., reduce="mean")`."""

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
    """Replaces units by a donor run's values at the donor's positions, and no others. `values[site]`: [positions of the donor, width]."""

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return tuple(map(_at_the_donors_positions, self._affine(columns, 0.0, self.values)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Interchange(Intervention):
    """Replaces units of every row by those of the row's own donor (interchange intervention; Geiger et al. 2021, arXiv 2106.02997).

    `values[site]`: [rows, positions of the donor, width] (at heads also [..., head, d_head]), put at the donor's positions and no others.
    Row r of a forward takes donor r modulo the number of donors; a forward whose rows are no multiple of the donors raises ValueError.
    """

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return tuple(_at_the_donors_positions(self._by_row(edit)) for edit in self._affine(columns, 0.0, self.values))

    def _by_row(self, edit: Edit) -> Edit:
        shape = np.shape(self.values[edit.site])
        assert edit.add is not None
        if len(shape) < 3 or shape[0] * shape[1] != len(edit.add):
            raise ValueError(f"Interchange at {edit.site} needs values [rows, positions, width]; got shape {shape}")
        return replace(edit, add=edit.add.unflatten(0, shape[:2]))


def _at_the_donors_positions(edit: Edit) -> Edit:
    assert edit.add is not None
    known = tuple(range(edit.add.shape[-2]))
    positions = known if edit.positions is None else edit.positions
    if not set(positions) <= set(known):
        raise ValueError(f"the donor has positions 0 to {len(known) - 1}; positions {positions} were asked for")
    return replace(edit, positions=positions)


@dataclass(frozen=True, eq=False, kw_only=True)
class Resample(Intervention):
    """Replaces units by draws from a pool of recorded rows. `values[site]`: [rows, width].

    The draw depends on the seed and the absolute position alone (positions `period` apart share one), so it is the same for any batch, with
    or without a KV cache; all units of a site are drawn from one row.
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
    """Removes a subspace: x - ((x - c) B^T) B, B an orthonormal basis of the rows of `values[site]` ([rank, width]) on the units.

    `center[site]` ([width]) is c, which stays where it is: around the mean, the removal does not move the mean. None is the origin.
    """

    values: Arrays
    center: Arrays | None = None

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        removals = tuple(self._projection(site, columns) for site in self.units.sites)
        if self.center is None:
            return removals
        return tuple(_around(edit, center.add) for edit, center in zip(removals, self._row(columns, self.center, 1.0), strict=True))

    def _projection(self, site: Site, columns: Columns) -> Edit:
        at = columns(site, self.units[site])
        rows = self._rows(self.values, site, at, columns).astype(np.float64)
        _, size, basis = np.linalg.svd(rows, full_matrices=False)
        return self._edit(site, at, 1.0, basis=basis[size > size.max(initial=0.0) * 1e-10])


def _around(edit: Edit, center: Tensor | None) -> Edit:
    assert edit.basis is not None
    assert center is not None
    return replace(edit, add=center @ edit.basis.T @ edit.basis)


Plan = Intervention | Sequence[Intervention]
KINDS: dict[str, type[Intervention]] = {kind.__name__: kind for kind in (Zero, Scale, Mean, Add, Patch, Interchange, Resample, Project)}


def interventions(plan: Plan) -> tuple[Intervention, ...]:
    """A plan as a tuple: applied in this order where two meet at one site."""
    return (plan,) if isinstance(plan, Intervention) else tuple(plan)


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan as JSON."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps([i.to_json() for i in interventions(plan)]))


def load_plan(path: str | Path) -> tuple[Intervention, ...]:
    """Reads what `save_plan` wrote. Raises ValueError for an unknown kind."""
    return tuple(_decode_intervention(item) for item in json.loads(Path(path).read_text()))


def _decode_intervention(item: dict[str, Any]) -> Intervention:
    kind = str(item.get("kind"))
    if kind not in KINDS:
        raise ValueError(f"unknown intervention {kind!r}: expected one of {', '.join(KINDS)}; nearest: {closest(kind, KINDS)}")
    known = {f.name: f.default is MISSING for f in fields(KINDS[kind])}
    wrong = sorted((item.keys() - {"kind", *known}) | {name for name, needed in known.items() if needed and name not in item})
    if wrong:
        raise ValueError(f"{kind} takes {', '.join(known)}; missing or unknown: {', '.join(wrong)}")
    given: dict[str, Any] = {k: v for k, v in item.items() if k != "kind"} | {"units": Units.from_json(item["units"])}
    if item.get("positions") is not None:
        given["positions"] = tuple(item["positions"])
    for name in {"values", "center"} & {k for k, v in item.items() if v is not None}:
        given[name] = {Site.parse(s): np.asarray(v) for s, v in item[name].items()}
    return KINDS[kind](**given)


def _encode(value: Any) -> Any:
    if isinstance(value, Units):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): np.asarray(v).tolist() for k, v in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
