"""Interventions: which units of a network to change, to what, at which positions and when.

An Intervention is frozen data and does not know any model. `edits(columns)` turns it into Edits,
affine maps on columns of an activation, which every executor (hooks, weights, nnsight,
TransformerLens) applies by the same rule, `interp.interventions.edit.apply`.
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
    """A change to some units: the base of `Zero`, `Scale`, `Mean`, `Add` and the others.

    Attributes:
        units: which units to change.
        positions: absolute positions in the sequence to change, also under a KV cache; None for
            all.
        when: "prompt" changes only positions of the prompt, "decode" only those after it, "all"
            both.

    Raises:
        ValueError: no units, an unknown `when`, or positions that are empty or negative.

    Example:
        >>> neurons = subject.anatomy.units("blocks.0.neurons")
        >>> zero = interp.Zero(neurons, positions=(0, 1), when="prompt")
        >>> isinstance(zero, interp.Intervention)
        True
        >>> zero.positions
        (0, 1)
    """

    units: Units
    positions: tuple[int, ...] | None = None
    when: When = "all"

    def __post_init__(self) -> None:
        if not len(self.units):
            raise ValueError(f"{type(self).__name__} has no units: nothing would change")
        choices = get_args(When)
        if self.when not in choices:
            raise ValueError(
                f"when={self.when!r}: expected one of {', '.join(choices)}; "
                f"nearest: {closest(self.when, choices)}"
            )
        if self.positions is not None and (not self.positions or min(self.positions) < 0):
            raise ValueError(
                f"positions={self.positions}: "
                "expected absolute positions >= 0 (0 is the first token)"
            )

    @abstractmethod
    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        """Returns this intervention as Edits, one per site.

        Args:
            columns: `columns(site, units)` returns the activation columns of units: one per neuron,
                several per head.

        Raises:
            ValueError: values are missing at a site, or have the wrong shape.
        """

    def _edit(
        self,
        site: Site,
        columns: np.ndarray,
        multiply: float,
        add: np.ndarray | None = None,
        basis: np.ndarray | None = None,
    ) -> Edit:
        return Edit(
            site,
            torch.tensor(columns, dtype=torch.long),
            multiply,
            add=_float64_tensor(add),
            basis=_float64_tensor(basis),
            positions=self.positions,
            when=self.when,
        )

    def _affine_edits(
        self, columns: Columns, multiply: float, add: Mapping[Site, np.ndarray] | None = None
    ) -> tuple[Edit, ...]:
        """The units times a factor, plus the rows of `add`."""
        edits: list[Edit] = []
        for site in self.units.sites:
            at = columns(site, self.units[site])
            rows = None if add is None else self._value_rows(add, site, at, columns)
            edits.append(self._edit(site, at, multiply, rows))
        return tuple(edits)

    def _value_rows(
        self, values: Mapping[Site, np.ndarray], site: Site, at: np.ndarray, columns: Columns
    ) -> np.ndarray:
        """The values at a site as [rows, columns changed].

        They are given as [width] or [..., width]; at heads also as [..., head, d_head].
        """
        name = type(self).__name__
        if site not in values:
            given = ", ".join(map(str, values))
            raise ValueError(
                f"{name} has units at {site} but no values for it; values are given for {given}"
            )
        table = np.asarray(values[site])
        every_unit = np.arange(self.units.widths[site])
        width = len(columns(site, every_unit))

        # The last axes together must make up one row: [width] or [head, d_head].
        sizes_of_last_axes = np.cumprod(table.shape[::-1])
        fits = table.size % width == 0 and width in sizes_of_last_axes
        if not table.size or not fits:
            shape = table.shape
            raise ValueError(f"{name} at {site} needs values {width} wide; got shape {shape}")
        rows = table.reshape(-1, width)
        return rows[:, at]

    def _leading_axes(self, site: Site, table: np.ndarray, columns: Columns) -> tuple[int, ...]:
        """The sizes of the axes in front of those of a row, which are [width] or [head, d_head]."""
        every_unit = np.arange(self.units.widths[site])
        width = len(columns(site, every_unit))
        for axes in range(1, table.ndim + 1):
            if np.prod(table.shape[-axes:]) == width:
                return table.shape[:-axes]
        raise ValueError(
            f"{type(self).__name__} at {site} needs values {width} wide; got shape {table.shape}"
        )

    def _one_row_edits(
        self, columns: Columns, values: Mapping[Site, np.ndarray], multiply: float
    ) -> tuple[Edit, ...]:
        """The units times a factor, plus one row of values, the same at every position."""
        edits = self._affine_edits(columns, multiply, values)
        for edit in edits:
            if edit.add is not None and len(edit.add) != 1:
                raise ValueError(
                    f"{type(self).__name__} at {edit.site} takes one row of values; "
                    f"got {len(edit.add)} (Patch takes one per position)"
                )
        return edits

    def to_json(self) -> dict[str, Any]:
        """Returns the intervention as plain dicts, lists and numbers."""
        data: dict[str, Any] = {"kind": type(self).__name__}
        for field in fields(self):
            data[field.name] = _encode(getattr(self, field.name))
        return data


@dataclass(frozen=True, eq=False)
class Zero(Intervention):
    """Sets units to zero (ablation).

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> with subject.intervened(interp.Zero(subject.anatomy.units(site))):
        ...     activations = interp.record(subject, batch, site, reduce="mean_abs")
        >>> float(activations[site].max())
        0.0
    """

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._affine_edits(columns, 0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale(Intervention):
    """Multiplies units by a factor.

    Attributes:
        factor: the factor; 1 changes nothing.

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> before = interp.record(subject, batch, site, reduce="mean")
        >>> with subject.intervened(interp.Scale(subject.anatomy.units(site), factor=0.5)):
        ...     after = interp.record(subject, batch, site, reduce="mean")
        >>> np.allclose(after[site], 0.5 * before[site])
        True
    """

    factor: float

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._affine_edits(columns, self.factor)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mean(Intervention):
    """Replaces units by their mean over reference data.

    Attributes:
        values: for each site the means, [width], from `record(..., reduce="mean")`.

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> reference = interp.record(subject, control, site, reduce="mean")
        >>> with subject.intervened(interp.Mean(subject.anatomy.units(site), values=reference)):
        ...     after = interp.record(subject, batch, site, reduce="mean")
        >>> np.allclose(after[site], reference[site], atol=1e-5)
        True
    """

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._one_row_edits(columns, self.values, 0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Intervention):
    """Adds a vector to units (steering).

    Attributes:
        values: for each site the vector, [width].

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> before = interp.record(subject, batch, site, reduce="mean")
        >>> steering = {site: np.full(48, 0.5)}
        >>> with subject.intervened(interp.Add(subject.anatomy.units(site), values=steering)):
        ...     after = interp.record(subject, batch, site, reduce="mean")
        >>> np.allclose(after[site], before[site] + 0.5, atol=1e-5)
        True
    """

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        return self._one_row_edits(columns, self.values, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch(Intervention):
    """Replaces units by their values in a donor run, at the donor's positions and no others.

    Attributes:
        values: for each site the donor's activations, [positions of the donor, width].

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> donor = {site: np.ones((16, 48))}
        >>> with subject.intervened(interp.Patch(subject.anatomy.units(site), values=donor)):
        ...     after = interp.record(subject, batch, site, reduce="mean")
        >>> bool((after[site] == 1).all())
        True
    """

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        edits = self._affine_edits(columns, 0.0, self.values)
        for edit in edits:
            table = np.asarray(self.values[edit.site])
            leading = self._leading_axes(edit.site, table, columns)
            # The positions of several donors would be taken for those of one long one.
            if max(leading, default=1) != np.prod(leading):
                raise ValueError(
                    f"Patch at {edit.site} takes one donor, [positions, width]; got shape "
                    f"{table.shape} (Interchange takes one per row)"
                )
        return tuple(_limit_to_donor_positions(edit) for edit in edits)


@dataclass(frozen=True, eq=False, kw_only=True)
class Interchange(Intervention):
    """Replaces units of every row by their values in the donor of that row.

    This is the interchange intervention of Geiger et al. 2021 (arXiv 2106.02997). Row r of a
    forward takes donor r modulo the number of donors, at the donor's positions and no others; a
    forward whose number of rows is not a multiple of the donors raises ValueError. Where Hugging
    Face's `generate` runs several samples or beams of each prompt, r is the number of the prompt,
    and the neighbouring rows of one prompt share its donor.

    Attributes:
        values: for each site the donors' activations, [rows, positions of the donor, width]; at
            heads also [rows, positions, head, d_head].

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> donors = {site: np.stack([np.zeros((16, 48)), np.ones((16, 48))])}
        >>> plan = interp.Interchange(subject.anatomy.units(site), values=donors)
        >>> four_rows = batch.rows(np.arange(4))
        >>> with subject.intervened(plan):
        ...     after = interp.record(subject, four_rows, site, reduce="rows")
        >>> after[site][:, 0]
        array([0., 1., 0., 1.], dtype=float32)
    """

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        edits = self._affine_edits(columns, 0.0, self.values)
        by_donor = [self._split_donors(edit) for edit in edits]
        return tuple(_limit_to_donor_positions(edit) for edit in by_donor)

    def _split_donors(self, edit: Edit) -> Edit:
        """The edit with `add` as [rows, positions, columns] instead of [rows * positions, ...]."""
        shape = np.shape(self.values[edit.site])
        assert edit.add is not None
        if len(shape) < 3 or shape[0] * shape[1] != len(edit.add):
            raise ValueError(
                f"Interchange at {edit.site} needs values [rows, positions, width]; "
                f"got shape {shape}"
            )
        return replace(edit, add=edit.add.unflatten(0, shape[:2]))


def _limit_to_donor_positions(edit: Edit) -> Edit:
    # The rows of `add` are chosen modulo their number, so that without this limit a longer sequence
    # would get the donor again from its start.
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
    """Replaces units by draws from a pool of recorded rows.

    The draw depends only on the seed and the absolute position (positions `period` apart share
    one), so that it is the same for any batch, with or without a KV cache. All units of a site are
    drawn from one row.

    Attributes:
        values: for each site the pool, [rows, width]; at heads also [rows, head, d_head].
        seed: seed of the draw.

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> pool = interp.record(subject, control, site, reduce="rows")
        >>> plan = interp.Resample(subject.anatomy.units(site), values=pool, seed=0)
        >>> with subject.intervened(plan):
        ...     first = subject.generate(batch)
        ...     again = subject.generate(batch)
        >>> torch.equal(first, again)
        True
    """

    values: Arrays
    seed: int = 0
    period: ClassVar[int] = 1024

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        # Fractions, and not numbers of rows: pools of different sizes share the draw of a position.
        rng = np.random.default_rng(self.seed)
        draws = rng.random(self.period)  # in [0, 1), by position
        drawn = dict(self.values)
        # A site without values is refused below, where all those that have some are named.
        for site in drawn.keys() & set(self.units.sites):
            pool = np.asarray(self.values[site])
            if not pool.size or len(self._leading_axes(site, pool, columns)) != 1:
                raise ValueError(
                    f"Resample at {site} draws from rows, [rows, width], of which there must be at "
                    f"least one; got shape {pool.shape}"
                )
            rows = (draws * len(pool)).astype(int)
            drawn[site] = pool[rows]
        return self._affine_edits(columns, 0.0, drawn)


@dataclass(frozen=True, eq=False, kw_only=True)
class Project(Intervention):
    """Removes a subspace: x becomes x - ((x - c) B^T) B.

    B is an orthonormal basis of the span of `values` on the units, and c is the center.

    Attributes:
        values: for each site vectors that span the subspace, [rank, width].
        center: for each site the point that stays where it is, [width]; with the mean of the data
            as center, the removal does not move the mean. None is the origin.

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> direction = {site: np.ones((1, 48))}
        >>> with subject.intervened(interp.Project(subject.anatomy.units(site), values=direction)):
        ...     after = interp.record(subject, batch, site, reduce="mean")
        >>> bool(abs(after[site].sum()) < 1e-3)
        True
    """

    values: Arrays
    center: Arrays | None = None

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        removals = [self._projection(site, columns) for site in self.units.sites]
        if self.center is None:
            return tuple(removals)
        # Only the rows of these edits are used, which are checked and cut to the units.
        centers = self._one_row_edits(columns, self.center, 1.0)
        pairs = zip(removals, centers, strict=True)
        return tuple(_around_center(removal, center.add) for removal, center in pairs)

    def _projection(self, site: Site, columns: Columns) -> Edit:
        at = columns(site, self.units[site])
        rows = self._value_rows(self.values, site, at, columns).astype(np.float64)
        _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
        # Vectors that depend on each other span fewer directions than they are. The others have a
        # singular value of zero, up to rounding, and point anywhere.
        spanned = sizes > sizes.max(initial=0.0) * 1e-10
        return self._edit(site, at, 1.0, basis=directions[spanned])


@dataclass(frozen=True, eq=False, kw_only=True)
class AddWeights(Intervention):
    """Adds a matrix to the weight of linear maps: W x + b becomes (W + D) x + b.

    No weight is written: D x is added to the output of the module, at the positions that change.
    The units are outputs of a linear map, by its module path: `model.layers.3.mlp.up_proj:out`.

    Attributes:
        values: for each site the matrix D, [outputs, inputs]; rows of outputs that are not among
            the units are not used.

    Example:
        >>> site = interp.Site.parse("model.layers.0.mlp.up_proj:out")
        >>> weight = subject.module.get_submodule("model.layers.0.mlp.up_proj").weight
        >>> minus_weight = {site: -weight.detach().numpy()}
        >>> plan = interp.AddWeights(subject.units(site), values=minus_weight)
        >>> with subject.intervened(plan):
        ...     after = interp.record(subject, batch, site, reduce="mean_abs")
        >>> np.allclose(after[site], 0, atol=1e-6)
        True
    """

    values: Arrays

    def edits(self, columns: Columns) -> tuple[Edit, ...]:
        edits = self._affine_edits(columns, 1.0)
        return tuple(replace(edit, weight=self._rows_of_matrix(edit)) for edit in edits)

    def _rows_of_matrix(self, edit: Edit) -> Tensor:
        outputs = self.units.widths[edit.site]
        if edit.site not in self.values:
            given = ", ".join(map(str, self.values))
            raise ValueError(
                f"AddWeights has units at {edit.site} but no values for it; "
                f"values are given for {given}"
            )
        matrix = np.asarray(self.values[edit.site])
        if matrix.ndim != 2 or len(matrix) != outputs:
            raise ValueError(
                f"AddWeights at {edit.site} needs a matrix [outputs, inputs] with {outputs} "
                f"outputs; got shape {matrix.shape}"
            )
        # In its own precision, and not in double: these are the largest arrays that plans have.
        return torch.tensor(matrix)[edit.columns]


def _around_center(removal: Edit, center: Tensor | None) -> Edit:
    """Adds back the component of the center that the removal takes away."""
    assert removal.basis is not None
    assert center is not None
    # x - ((x - c) B^T) B = (x - (x B^T) B) + (c B^T) B
    component = center @ removal.basis.T @ removal.basis
    return replace(removal, add=component)


def _float64_tensor(array: np.ndarray | None) -> Tensor | None:
    if array is None:
        return None
    # Executors bring it to the precision of the activation that they change.
    precise = np.asarray(array, dtype=np.float64)
    return torch.tensor(precise)


def _encode(value: Any) -> Any:
    """A field of an intervention as plain dicts, lists and numbers."""
    if isinstance(value, Units):
        return value.to_json()
    if isinstance(value, Mapping):
        arrays: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        encoded: dict[str, Any] = {}
        for site, array in arrays.items():
            encoded[str(site)] = np.asarray(array).tolist()
        return encoded
    if isinstance(value, Iterable) and not isinstance(value, str):
        return list(value)
    return value
