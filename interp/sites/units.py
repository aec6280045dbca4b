"""Units: which coordinates of which sites; UnitScores: one number for each. Plain data: sets,
files, tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.errors import SiteError
from interp.files import replaced
from interp.sites.site import Site

Indices = Int[np.ndarray, " chosen"]


class Units:
    """A set of units: for each site, sorted distinct indices below the site's width.

    `widths` travels with the indices, so that units found on one model are refused by a model of
    another size.
    """

    def __init__(
        self,
        indices: Mapping[Site, Iterable[int]] | Mapping[str, Iterable[int]],
        widths: Mapping[Site, int] | Mapping[str, int],
    ) -> None:
        sizes = {_site(s): int(w) for s, w in widths.items()}
        chosen = {_site(s): _distinct(_site(s), i) for s, i in indices.items()}
        for site, index in chosen.items():
            if site not in sizes:
                raise ValueError(
                    f"units at {site} need its width; widths were given for {', '.join(map(str, sizes)) or 'no site'}"
                )
            if len(index) and not 0 <= index[0] <= index[-1] < sizes[site]:
                raise ValueError(
                    f"{site} has units 0 to {sizes[site] - 1}; got {index[0]} to {index[-1]}"
                )
        self._indices = {
            s: chosen[s] for s in sorted(chosen, key=lambda s: s.order) if len(chosen[s])
        }
        self.widths = sizes

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that have units, in the order data meets them."""
        return tuple(self._indices)

    def __getitem__(self, site: Site | str) -> Indices:
        return self._indices.get(_site(site), np.empty(0, dtype=np.int64))

    def __iter__(self) -> Iterator[tuple[Site, int]]:
        return ((site, int(i)) for site, index in self._indices.items() for i in index)

    def __len__(self) -> int:
        return sum(map(len, self._indices.values()))

    def __contains__(self, unit: tuple[Site | str, int]) -> bool:
        return unit[1] in self[unit[0]]

    def __eq__(self, other: object) -> bool:
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
        """All other units of the sites whose width is known."""
        return Units({s: range(w) for s, w in self.widths.items()}, self.widths) - self

    def _combine(self, other: Units, rule: Callable[[Indices, Indices], Indices]) -> Units:
        for site in self.widths.keys() & other.widths.keys():
            if self.widths[site] != other.widths[site]:
                raise ValueError(
                    f"{site} is {self.widths[site]} wide in one set and {other.widths[site]} in the other: units of two models"
                )
        return Units(
            {s: rule(self[s], other[s]) for s in {*self._indices, *other._indices}},
            {**self.widths, **other.widths},
        )

    def only(self, site: Site | str, indices: Iterable[int]) -> Units:
        """Some units at one site, of a model of these widths."""
        return Units({_site(site): indices}, self.widths)

    def matched(self, seed: int, among: Units | None = None, times: int = 1) -> Units:
        """As many random units at each site as here (or `times` as many), none of them in this set:
        the control for an ablation.

        Sites of one unit (`block_out`) stand for each other. `among` narrows the pool. Where the
        pool is smaller than the demand, all of it is taken.
        """
        rng = np.random.default_rng(seed)
        pool = (~self if among is None else among) - self
        wide = {s: i for s, i in self._indices.items() if self.widths[s] > 1}
        drawn = {
            s: rng.choice(pool[s], min(times * len(i), len(pool[s])), replace=False)
            for s, i in wide.items()
        }
        free, wanted = (
            [s for s in pool.sites if self.widths[s] == 1],
            times * (len(self._indices) - len(wide)),
        )
        for number in rng.permutation(len(free))[:wanted]:
            drawn[free[number]] = np.zeros(1, dtype=np.int64)
        return Units(drawn, self.widths)

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: `site`, `block`, `unit`."""
        return pd.DataFrame(
            [(str(s), s.block, i) for s, i in self], columns=["site", "block", "unit"]
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "widths": {str(s): w for s, w in self.widths.items()},
            "indices": {str(s): i.tolist() for s, i in self._indices.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Units:
        return cls(data["indices"], data["widths"])

    def save(self, path: str | Path) -> None:
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(self.to_json()))

    @classmethod
    def load(cls, path: str | Path) -> Units:
        return cls.from_json(json.loads(Path(path).read_text()))

    def __repr__(self) -> str:
        return (
            f"Units({len(self)} of {sum(self.widths.values())}: "
            + ", ".join(f"{s} {len(i)}" for s, i in self._indices.items())
            + ")"
        )


@dataclass(frozen=True, eq=False)
class UnitScores:
    """A score for every unit of some sites; higher means more responsible. `values[site]` is
    [width]."""

    values: Mapping[Site, Float[np.ndarray, " width"]]
    method: str = ""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("scores need at least one site")
        for site, row in self.values.items():
            if not np.isfinite(row).all():
                raise ValueError(
                    f"{site}: {int((~np.isfinite(row)).sum())} of {row.size} scores are not finite"
                )

    @property
    def widths(self) -> dict[Site, int]:
        return {s: int(v.size) for s, v in self.values.items()}

    def __len__(self) -> int:
        return sum(self.widths.values())

    def __getitem__(self, site: Site | str) -> Float[np.ndarray, " width"]:
        return self.values[_site(site)]

    def top(self, amount: int | float) -> Units:
        """The highest-scoring units over all sites: an int is a count, a float a fraction of all
        units (at least one)."""
        return self._first(amount, descending=True)

    def lowest(self, amount: int | float) -> Units:
        """The lowest-scoring units over all sites, as a control."""
        return self._first(amount, descending=False)

    def top_per_site(self, amount: int | float) -> Units:
        """The highest-scoring units within each site, a count or a fraction of it (Chang et al.
        2024 predict this way)."""
        return Units(
            {s: ranked(v)[: self._count(amount, v.size)] for s, v in self.values.items()},
            self.widths,
        )

    def _first(self, amount: int | float, *, descending: bool) -> Units:
        sites, flat = list(self.values), np.concatenate(list(self.values.values()))
        order = ranked(flat if descending else -flat)[: self._count(amount, flat.size)]
        starts = np.cumsum([0, *(self.values[s].size for s in sites)])
        owner = np.searchsorted(starts, order, side="right") - 1
        return Units({s: order[owner == i] - starts[i] for i, s in enumerate(sites)}, self.widths)

    @staticmethod
    def _count(amount: int | float, total: int) -> int:
        count = max(1, round(amount * total)) if isinstance(amount, float) else amount
        if amount <= 0 or count > total:
            raise ValueError(
                f"cannot take {amount} of {total} units: give a count from 1 to {total}, or a fraction in (0, 1]"
            )
        return count

    def to_frame(self) -> pd.DataFrame:
        """One row a unit, highest first: `site`, `block`, `unit`, `score`."""
        parts = [
            pd.DataFrame({"site": str(s), "block": s.block, "unit": np.arange(v.size), "score": v})
            for s, v in self.values.items()
        ]
        return (
            pd.concat(parts)
            .sort_values("score", ascending=False, kind="stable")
            .reset_index(drop=True)
        )

    def by_block(self, top: float = 0.1) -> pd.DataFrame:
        """One row a block: its `mean` and `max` score, and the `share` of the highest-scoring `top`
        of all units that are its own; by `stack` and `block` (missing for sites outside the
        blocks)."""
        best: Any = self.top(top).to_frame().groupby("site").size()
        rows = [
            (str(s), s.stack, s.block, v.size, v.mean() * v.size, v.max(), best.get(str(s), 0))
            for s, v in self.values.items()
        ]
        frame = pd.DataFrame(
            rows, columns=["site", "stack", "block", "units", "sum", "max", "best"]
        )
        groups: Any = frame.groupby(["stack", "block"], sort=False, dropna=False)
        found = groups.agg(
            {"units": "sum", "sum": "sum", "max": "max", "best": "sum"}
        ).reset_index()
        found["mean"], found["share"] = (
            found["sum"] / found["units"],
            found["best"] / found["best"].sum(),
        )
        return found[["stack", "block", "mean", "max", "share"]]

    def save(self, path: str | Path) -> None:
        """Writes a parquet table; `method` and `about` go into its metadata."""
        frame = self.to_frame()
        frame.attrs = {"method": self.method, "about": dict(self.about)}
        with replaced(path) as temporary:
            frame.to_parquet(temporary)

    @classmethod
    def load(cls, path: str | Path) -> UnitScores:
        frame = pd.read_parquet(path)
        rows = {
            Site.parse(str(s)): g.sort_values("unit")["score"].to_numpy()
            for s, g in frame.groupby("site")
        }
        return cls(
            {s: rows[s] for s in sorted(rows, key=lambda s: s.order)},
            frame.attrs.get("method", ""),
            frame.attrs.get("about", {}),
        )


def ranked(scores: Float[np.ndarray, " units"]) -> Indices:
    """Indices from the highest score to the lowest. Equal scores come in an arbitrary order, always
    the same, and not by index: some methods give many units one score, and the first block is no
    better than the others."""
    arbitrary = np.random.default_rng(scores.size).permutation(scores.size)
    return np.lexsort((arbitrary, -scores))


def _distinct(site: Site, indices: Iterable[int]) -> Indices:
    """Sorted and without repeats. Raises ValueError for a mask or fractions, which would silently
    become other units."""
    given = np.asarray(list(indices))
    if given.size and (given.dtype.kind not in "iu" or given.ndim != 1):
        raise ValueError(
            f"{site}: units are integer indices; got {given.dtype} of shape {given.shape} (for a mask, pass np.flatnonzero(mask))"
        )
    return np.unique(given.astype(np.int64))


def _site(site: Site | str) -> Site:
    return Site.parse(site) if isinstance(site, str) else site


def all_units(widths: Mapping[Site, int]) -> Units:
    """Every unit of the given sites."""
    if not widths:
        raise SiteError("no site given")
    return Units({s: range(w) for s, w in widths.items()}, widths)
