"""Units and UnitScores: a selection of neurons, heads or blocks, and a score for each of them.

Both are plain data, independent of any model: they combine like sets, become tables and are saved
to files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.errors import SiteError
from interp.files import replaced
from interp.sites.site import Site

Indices = Int[np.ndarray, " chosen"]


class Units:
    """A set of units: for each site, the indices of the units chosen there.

    Indices are sorted and distinct. The width of each site (how many units it has) is stored with
    them, so that units found on one model are refused by a model of another size; units without
    widths are checked against the model that they are used on. `subject.units(site, indices)` makes
    units with the widths of a model. Units combine like sets: `|`, `&` and `-`; `~` gives all other
    units of the sites whose width is known.

    Args:
        indices: the chosen units of each site, as integers from 0; sites may be given by name.
        widths: how many units each site has. Sites without chosen units may be listed too. None
            where the widths are those of the model that the units are used on.

    Raises:
        ValueError: an index outside its site, a site that is missing in `widths`, or indices that
            are not integers (such as a boolean mask).

    Example:
        >>> widths = {"blocks.0.neurons": 48, "blocks.1.neurons": 48}
        >>> units = interp.Units({"blocks.0.neurons": [7, 3], "blocks.1.neurons": [5]}, widths)
        >>> units
        Units(3 of 96: blocks.0.neurons 2, blocks.1.neurons 1)
        >>> units["blocks.0.neurons"]
        array([3, 7])
        >>> ("blocks.1.neurons", 5) in units
        True
        >>> len(~units)
        93
        >>> interp.Units({"blocks.1.neurons": [0, 3, 5]})
        Units(3: blocks.1.neurons 3)
    """

    def __init__(
        self,
        indices: Mapping[Site, Iterable[int]] | Mapping[str, Iterable[int]],
        widths: Mapping[Site, int] | Mapping[str, int] | None = None,
    ) -> None:
        known = {} if widths is None else widths
        self.widths: dict[Site, int] = {}
        for name, width in known.items():
            self.widths[_as_site(name)] = int(width)

        chosen: dict[Site, Indices] = {}
        for name, given in indices.items():
            site = _as_site(name)
            chosen[site] = _distinct(site, given)
            if widths is not None and site not in self.widths:
                listed = ", ".join(map(str, self.widths)) or "no site"
                raise ValueError(f"units at {site} need its width; widths were given for {listed}")
        for site, index in chosen.items():
            self._check_indices(site, index)

        not_empty = [site for site, index in chosen.items() if len(index)]
        in_order = sorted(not_empty, key=lambda site: site.order)
        self._indices = {site: chosen[site] for site in in_order}

    def _check_indices(self, site: Site, index: Indices) -> None:
        if not len(index):
            return
        # `_distinct` has sorted them.
        smallest = index[0]
        largest = index[-1]
        width = self.widths.get(site)
        if width is None:
            if smallest < 0:
                raise ValueError(f"{site}: units are counted from 0; got {smallest}")
        elif smallest < 0 or largest >= width:
            last = width - 1
            raise ValueError(f"{site} has units 0 to {last}; got {smallest} to {largest}")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that have chosen units, in the order in which data passes them."""
        return tuple(self._indices)

    def __getitem__(self, site: Site | str) -> Indices:
        return self._indices.get(_as_site(site), np.empty(0, dtype=np.int64))

    def __iter__(self) -> Iterator[tuple[Site, int]]:
        for site, index in self._indices.items():
            for unit in index:
                yield site, int(unit)

    def __len__(self) -> int:
        return sum(map(len, self._indices.values()))

    def __contains__(self, unit: tuple[Site | str, int]) -> bool:
        site, index = unit
        return index in self[site]

    def __eq__(self, other: object) -> bool:
        # Widths do not count: they may be known in one of the two alone.
        return isinstance(other, Units) and set(self) == set(other)

    def __hash__(self) -> int:
        return hash(frozenset(self))

    def __or__(self, other: Units) -> Units:
        return self._combine(other, np.union1d)

    def __and__(self, other: Units) -> Units:
        return self._combine(other, np.intersect1d)

    def __sub__(self, other: Units) -> Units:
        return self._combine(other, np.setdiff1d)

    def __invert__(self) -> Units:
        """All other units of the sites whose width is known.

        Raises:
            ValueError: there are units at a site whose width is not known.
        """
        self._need_widths("all other units")
        everything = {site: range(width) for site, width in self.widths.items()}
        return Units(everything, self.widths) - self

    def _need_widths(self, what: str) -> None:
        """Raises ValueError, naming `what` cannot be told, where a width is not known."""
        unknown = [str(site) for site in self._indices if site not in self.widths]
        if unknown:
            raise ValueError(
                f"{what} need the width of {', '.join(unknown[:3])}, which these units do not "
                "carry: make them with subject.units(site, indices)"
            )

    def _combine(self, other: Units, rule: Callable[[Indices, Indices], Indices]) -> Units:
        for site in self.widths.keys() & other.widths.keys():
            here = self.widths[site]
            there = other.widths[site]
            if here != there:
                raise ValueError(
                    f"{site} is {here} wide in one set and {there} in the other: "
                    "units of two models"
                )
        combined: dict[Site, Indices] = {}
        for site in {*self._indices, *other._indices}:
            index = rule(self[site], other[site])
            # A site where nothing is left needs no width.
            if len(index):
                combined[site] = index
        widths = {**self.widths, **other.widths}
        # What is left of units without widths needs none, though the other set may know some.
        if rule is not np.union1d and not widths.keys() >= combined.keys():
            widths = {}
        # An empty mapping would demand a width for every site; None leaves them open.
        return Units(combined, widths or None)

    def only(self, site: Site | str, indices: Iterable[int]) -> Units:
        """Returns other units, all at one site, of a model with the same widths.

        Args:
            site: where the new units are.
            indices: which units of that site.

        Raises:
            ValueError: the site is not among those with a known width, or an index is outside it.

        Example:
            >>> subject.anatomy.units("neurons").only("blocks.1.neurons", [0, 5])
            Units(2 of 96: blocks.1.neurons 2)
        """
        # As in `_combine`: no known width is None, and not an empty mapping.
        return Units({_as_site(site): indices}, self.widths or None)

    def draw_matched(self, seed: int, among: Units | None = None, times: int = 1) -> Units:
        """Returns random other units, the same number at each site: the control for an ablation.

        Sites of a single unit (`block_out`) are drawn from the other single-unit sites. Where fewer
        units are left than wanted, all of them are taken.

        Args:
            seed: seed of the draw.
            among: the units to draw from; by default all of the sites whose width is known. Units
                of this set are never drawn.
            times: how many control units to draw for each unit of this set.

        Raises:
            ValueError: neither this set nor `among` knows the width of one of the sites.

        Example:
            >>> units = interp.Units({"blocks.0.neurons": [3, 7]}, {"blocks.0.neurons": 48})
            >>> control = units.draw_matched(seed=0)
            >>> control
            Units(2 of 48: blocks.0.neurons 2)
            >>> len(control & units)
            0
        """
        rng = np.random.default_rng(seed)
        # The sites of the two sets may differ, and each set knows the widths of its own.
        known = self if among is None else self | among
        known._need_widths("random other units")
        widths = known.widths
        source = ~self if among is None else among
        pool = source - self

        drawn: dict[Site, Indices] = {}
        chosen_single_unit_sites = 0
        for site, index in self._indices.items():
            if widths[site] == 1:
                chosen_single_unit_sites += 1
                continue
            free_units = pool[site]
            count = min(times * len(index), len(free_units))
            drawn[site] = rng.choice(free_units, count, replace=False)

        # A site of one unit has no second unit to draw, so its control is another single-unit site.
        free_sites = [site for site in pool.sites if widths[site] == 1]
        wanted = times * chosen_single_unit_sites
        order = rng.permutation(len(free_sites))
        for number in order[:wanted]:
            drawn[free_sites[number]] = np.zeros(1, dtype=np.int64)
        return Units(drawn, widths)

    def to_frame(self) -> pd.DataFrame:
        """Returns a table with one row per unit: `site`, `block`, `unit`."""
        rows = [(str(site), site.block, unit) for site, unit in self]
        return pd.DataFrame(rows, columns=["site", "block", "unit"])

    def to_json(self) -> dict[str, Any]:
        """Returns the units as plain dicts, lists and numbers."""
        widths = {str(site): width for site, width in self.widths.items()}
        indices: dict[str, list[int]] = {}
        for site, index in self._indices.items():
            indices[str(site)] = index.tolist()
        return {"widths": widths, "indices": indices}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Units:
        """Returns the units that `to_json` described."""
        return cls(data["indices"], data["widths"] or None)

    def save(self, path: str | Path) -> None:
        """Writes the units to a JSON file."""
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(self.to_json()))

    @classmethod
    def load(cls, path: str | Path) -> Units:
        """Reads units that `save` wrote."""
        return cls.from_json(json.loads(Path(path).read_text()))

    def __repr__(self) -> str:
        total = f" of {sum(self.widths.values())}" if self.widths else ""
        parts: list[str] = []
        for site, index in self._indices.items():
            parts.append(f"{site} {len(index)}")
        return f"Units({len(self)}{total}: {', '.join(parts)})"


@dataclass(frozen=True, eq=False)
class UnitScores:
    """A score for every unit of some sites; a higher score means more responsible.

    Attributes:
        values: the scores of each site, [width].
        method: name of the localization method.
        about: whatever else should be saved with the scores, such as the options of the method.

    Raises:
        ValueError: no site, or scores that are not finite.

    Example:
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> scores = interp.UnitScores({site: np.array([0.1, 0.9, -0.2, 0.5])})
        >>> scores.top(2)[site]
        array([1, 3])
        >>> scores.lowest(0.25)[site]
        array([2])
        >>> scores.to_frame()
                       site  block  unit  score
        0  blocks.0.neurons      0     1    0.9
        1  blocks.0.neurons      0     3    0.5
        2  blocks.0.neurons      0     0    0.1
        3  blocks.0.neurons      0     2   -0.2
    """

    values: Mapping[Site, Float[np.ndarray, " width"]]
    method: str = ""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("scores need at least one site")
        for site, scores in self.values.items():
            is_bad = ~np.isfinite(scores)
            bad = int(is_bad.sum())
            if bad:
                raise ValueError(f"{site}: {bad} of {scores.size} scores are not finite")

    @property
    def widths(self) -> dict[Site, int]:
        """How many units each site has."""
        return {site: int(scores.size) for site, scores in self.values.items()}

    def __len__(self) -> int:
        return sum(self.widths.values())

    def __getitem__(self, site: Site | str) -> Float[np.ndarray, " width"]:
        return self.values[_as_site(site)]

    def top(self, amount: int | float) -> Units:
        """Returns the highest-scoring units over all sites together.

        Args:
            amount: how many: an int is a count, a float a fraction of all units (rounded, at least
                one unit).

        Raises:
            ValueError: `amount` is not positive or exceeds the number of units.
        """
        flat = self._flat()
        count = self._count(amount, flat.size)
        return self._units(rank_units(flat)[:count])

    def lowest(self, amount: int | float, other_than: Units | None = None) -> Units:
        """Returns the lowest-scoring units over all sites together, as a control.

        Args:
            amount: as for `top`.
            other_than: a selection, of which none is taken. Without it, units of `top(amount)` come
                last among equal scores: a method may score most units 0.

        Raises:
            ValueError: as `top`; or fewer units than `amount` are left.
        """
        return self._last(amount, self._flat(), other_than)

    def smallest(self, amount: int | float, other_than: Units | None = None) -> Units:
        """Returns the units with the smallest absolute scores over all sites together: a control of
        units that are taken to matter least, whatever the sign of their effect.

        Arguments and errors as for `lowest`.
        """
        return self._last(amount, np.abs(self._flat()), other_than)

    def top_per_site(self, amount: int | float) -> Units:
        """Returns the highest-scoring units within each site, as Chang et al. (2024) choose them.

        `amount` is a count or a fraction of each site's units; errors as for `top`.
        """
        chosen: dict[Site, Indices] = {}
        for site, scores in self.values.items():
            count = self._count(amount, scores.size)
            chosen[site] = rank_units(scores)[:count]
        return Units(chosen, self.widths)

    def _last(
        self, amount: int | float, scores: Float[np.ndarray, " all"], other_than: Units | None
    ) -> Units:
        """The lowest of some scores, one per unit, without the units of a selection."""
        count = self._count(amount, scores.size)
        selected = self.top(count) if other_than is None else other_than
        by_site = [np.isin(np.arange(width), selected[site]) for site, width in self.widths.items()]
        is_selected = np.concatenate(by_site)
        order = rank_units(-scores, is_selected)
        if other_than is not None:
            order = order[~is_selected[order]]
            if len(order) < count:
                raise ValueError(
                    f"cannot take {count} units as a control: of {scores.size} only {len(order)} "
                    "are not selected; select fewer"
                )
        return self._units(order[:count])

    def _flat(self) -> Float[np.ndarray, " all"]:
        """The scores of all sites, one after another."""
        return np.concatenate(list(self.values.values()))

    def _units(self, places: Indices) -> Units:
        """The units at some places of `_flat`."""
        sizes = [scores.size for scores in self.values.values()]
        starts = np.cumsum([0, *sizes])
        owner = np.searchsorted(starts, places, side="right") - 1
        chosen: dict[Site, Indices] = {}
        for number, site in enumerate(self.values):
            chosen[site] = places[owner == number] - starts[number]
        return Units(chosen, self.widths)

    @staticmethod
    def _count(amount: int | float, total: int) -> int:
        """A count or a fraction of `total`, as a count."""
        # 1 is one unit, 1.0 all of them: the type decides, and not the size.
        share = max(1, round(amount * total))
        count = share if isinstance(amount, float) else amount
        if amount <= 0 or count > total:
            raise ValueError(
                f"cannot take {amount} of {total} units: "
                f"give a count from 1 to {total}, or a fraction in (0, 1]"
            )
        return count

    def to_frame(self) -> pd.DataFrame:
        """Returns a table, highest score first: `site`, `block`, `unit`, `score`.

        Its first rows are the units that `top` returns, also where scores are equal.
        """
        parts: list[pd.DataFrame] = []
        for site, scores in self.values.items():
            units = np.arange(scores.size)
            columns = {"site": str(site), "block": site.block, "unit": units, "score": scores}
            parts.append(pd.DataFrame(columns))
        table = pd.concat(parts, ignore_index=True).iloc[rank_units(self._flat())]
        return table.reset_index(drop=True)

    def by_block(self, top: float = 0.1) -> pd.DataFrame:
        """Summarizes the scores of each block.

        Args:
            top: fraction (or count) of all units that are regarded as high-scoring.

        Returns:
            One row per `stack` and `block` (block is missing for sites outside the blocks): the
            `mean` and `max` score of its units, and `share`, the fraction of all high-scoring units
            that lie in this block.

        Example:
            >>> scores = interp.localize(subject, memorized, control)
            >>> scores.by_block()[["block", "share"]].shape
            (2, 2)
            >>> float(scores.by_block()["share"].sum().round(6))
            1.0
        """
        highest = self.top(top).to_frame()
        high_scoring: Any = highest.groupby("site").size()
        rows: list[dict[str, Any]] = []
        for site, scores in self.values.items():
            rows.append(
                {
                    "stack": site.stack,
                    "block": site.block,
                    "units": scores.size,
                    "sum": scores.mean() * scores.size,
                    "max": scores.max(),
                    "high_scoring": high_scoring.get(str(site), 0),
                }
            )
        sites = pd.DataFrame(rows)

        # Sums are added up and divided once, since a mean of means would weigh sites alike that
        # have different widths.
        groups: Any = sites.groupby(["stack", "block"], sort=False, dropna=False)
        how = {"units": "sum", "sum": "sum", "max": "max", "high_scoring": "sum"}
        table = groups.agg(how).reset_index()
        table["mean"] = table["sum"] / table["units"]
        table["share"] = table["high_scoring"] / table["high_scoring"].sum()
        return table[["stack", "block", "mean", "max", "share"]]

    def save(self, path: str | Path) -> None:
        """Writes the scores to a parquet table, with `method` and `about` in its metadata."""
        table = self.to_frame()
        # pandas writes `attrs` into the file's metadata, where `load` finds them again.
        table.attrs = {"method": self.method, "about": dict(self.about)}
        with replaced(path) as temporary:
            table.to_parquet(temporary)

    @classmethod
    def load(cls, path: str | Path) -> UnitScores:
        """Reads scores that `save` wrote."""
        table = pd.read_parquet(path)
        values: dict[Site, np.ndarray] = {}
        for name, rows in table.groupby("site"):
            by_unit = rows.sort_values("unit")
            values[Site.parse(str(name))] = by_unit["score"].to_numpy()
        # `groupby` has sorted by name, where blocks.10 comes before blocks.2.
        in_order = sorted(values, key=lambda site: site.order)
        return cls(
            {site: values[site] for site in in_order},
            table.attrs.get("method", ""),
            table.attrs.get("about", {}),
        )


def rank_units(
    scores: Float[np.ndarray, " units"], last: Bool[np.ndarray, " units"] | None = None
) -> Indices:
    """Returns the indices of the units from the highest score to the lowest.

    Equal scores come in an arbitrary order that is always the same. They do not come by index: some
    methods give one score to many units, and the first block is no better than the others.

    Args:
        scores: one score per unit.
        last: which units come behind all others of the same score; none by default.

    Example:
        >>> from interp.sites.units import rank_units
        >>> rank_units(np.array([0.1, 0.9, 0.5]))
        array([1, 2, 0])
    """
    # Seeded with the number of units, so that the order of equal scores is the same in every run.
    # `lexsort` sorts by its last key first.
    tie_breaker = np.random.default_rng(scores.size).permutation(scores.size)
    is_last = np.zeros(scores.size, dtype=bool) if last is None else last
    return np.lexsort((tie_breaker, is_last, -scores))


def _distinct(site: Site, indices: Iterable[int]) -> Indices:
    """The indices, sorted and without repeats; refuses what is not a list of integers."""
    given = np.asarray(list(indices))
    # A mask or fractions would be cast to integers without complaint and mean other units.
    if given.size and (given.dtype.kind not in "iu" or given.ndim != 1):
        raise ValueError(
            f"{site}: units are integer indices; got {given.dtype} of shape {given.shape} "
            "(for a mask, pass np.flatnonzero(mask))"
        )
    return np.unique(given.astype(np.int64))


def _as_site(site: Site | str) -> Site:
    return Site.parse(site) if isinstance(site, str) else site


def all_units(widths: Mapping[Site, int]) -> Units:
    """Returns every unit of some sites.

    Args:
        widths: how many units each site has.

    Raises:
        SiteError: no site was given.

    Example:
        >>> from interp.sites.units import all_units
        >>> all_units({interp.Site.parse("blocks.0.neurons"): 48})
        Units(48 of 48: blocks.0.neurons 48)
    """
    if not widths:
        raise SiteError("no site given: expected at least one")
    everything = {site: range(width) for site, width in widths.items()}
    return Units(everything, widths)
