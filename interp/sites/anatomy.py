"""Where the sites of a given module are: for each Site, the torch module to hook and what its input
or output means.

`discovery` finds an Anatomy; this file is what the rest of the toolkit asks.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import SiteError, closest
from interp.sites.site import BLOCK_POINTS, Site, without_transformer_lens
from interp.sites.units import Units, all_units

Sites = str | Site | Iterable[str | Site]


@dataclass(frozen=True)
class Layout:
    """What a user says about a module whose sites cannot be found structurally; paths are relative
    to a block, all are optional.

    Attributes:
        blocks: path of the list of blocks, or one for each stack: `{"vision": "encoder.blocks",
        "policy": "trunk"}`.
        heads: the attention's out-projection, whose input holds the heads.
        n_heads: how many heads that input holds.
        neurons: the MLP's out-projection, whose input holds the neurons.
        attn_out, mlp_out: modules whose output is added to the residual stream.
    """

    blocks: str | Mapping[str, str] | None = None
    heads: str | None = None
    n_heads: int | None = None
    neurons: str | None = None
    attn_out: str | None = None
    mlp_out: str | None = None


@dataclass(frozen=True)
class Place:
    """A torch place: the first floating tensor among the inputs ("in") or outputs ("out") of the
    module at `path`.

    `heads` says into how many equal parts the last axis divides (1 column a unit when None). With
    `onto`, the value is the sum of that place and this one: the residual after attention exists
    only as a sum inside the block's forward. With `beyond`, it is what this place has more than
    that one: what a block adds to what entered it.
    """

    path: str
    side: str
    width: int
    heads: int | None = None
    onto: Place | None = None
    beyond: Place | None = None

    @property
    def base(self) -> tuple[Place, int] | None:
        """Another place that the value is made with, and the sign with which it enters."""
        if self.onto is not None:
            return self.onto, 1
        return None if self.beyond is None else (self.beyond, -1)

    @property
    def units(self) -> int:
        return self.heads or self.width

    def __str__(self) -> str:
        here = f"{self.path}:{self.side}"
        if self.onto is not None:
            return f"{self.onto} + {here}"
        return here if self.beyond is None else f"{here} - {self.beyond}"


@dataclass(frozen=True)
class Anatomy:
    """The verified sites of one module.

    Attributes:
        stacks: for each stack (named "" when there is one), the paths of its blocks in order.
        places: where each verified site is.
        refused: why a point that one might expect is absent, by site.
        modules: raw module paths (`blocks.0.norm:in`) that can be hooked as they are; no law is
        known of them.
    """

    stacks: Mapping[str, tuple[str, ...]]
    places: Mapping[Site, Place]
    refused: Mapping[Site, str] = field(default_factory=dict[Site, str])
    modules: Mapping[Site, Place] = field(default_factory=dict[Site, Place])

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(sorted(self.places, key=lambda s: s.order))

    def blocks(self, stack: str = "") -> tuple[str, ...]:
        if stack not in self.stacks:
            raise SiteError(
                f"no stack {stack!r}: this model has {', '.join(map(repr, self.stacks))}"
            )
        return self.stacks[stack]

    def place(self, site: Site | str) -> Place:
        """Where a site is. Raises SiteError that names the nearest site, and the reason if this one
        was refused on load."""
        found = self.resolve(site)
        return self.places[found] if found in self.places else self.modules[found]

    def resolve(self, name: Site | str) -> Site:
        """The verified site that a name means; raw module paths that are a known site become that
        site."""
        site = Site.parse(name) if isinstance(name, str) else name
        if site.is_module_path:
            site = next((s for s, p in self.places.items() if str(p) == site.point), site)
        if site in self.places or site in self.modules:
            return site
        nearest = closest(str(site), map(str, self._candidates(site)))
        reason = self.refused.get(site, "this model has no such site")
        raise SiteError(
            f"{site}: {reason}; nearest: {nearest}; see subject.sites for all {len(self.places)}"
        )

    def _candidates(self, site: Site) -> list[Site]:
        """Sites to suggest: of the same block if there is one, so that a refused point offers what
        stands beside it."""
        if site.is_module_path:
            return list(self.modules) or list(self.places)
        beside = [s for s in self.places if (s.block, s.stack) == (site.block, site.stack)]
        return (
            [s for s in beside if s.point.split("_")[0] == site.point.split("_")[0]]
            or _mlp_or_all(site, beside)
            or list(self.places)
        )

    def expand(self, pattern: Sites) -> tuple[Site, ...]:
        """All sites that a name, a pattern (`blocks.*.neurons`) or several of them mean, in the
        order data meets them.

        A bare point (`neurons`) means that point in every block of every stack. TransformerLens's
        names may be patterns too. Raises SiteError when a pattern matches nothing.
        """
        if isinstance(pattern, str):
            return (
                self._match(pattern)
                if any(c in pattern for c in "*?[") or pattern in BLOCK_POINTS
                else (self.resolve(pattern),)
            )
        if isinstance(pattern, Site):
            return (self.resolve(pattern),)
        return tuple(dict.fromkeys(site for part in pattern for site in self.expand(part)))

    def _match(self, pattern: str) -> tuple[Site, ...]:
        wanted = (
            f"*blocks.*.{pattern}" if pattern in BLOCK_POINTS else without_transformer_lens(pattern)
        )
        found = tuple(s for s in self.sites if fnmatch.fnmatchcase(str(s), wanted))
        if not found:
            why = next(
                (
                    f" ({s}: {reason})"
                    for s, reason in self.refused.items()
                    if fnmatch.fnmatchcase(str(s), wanted)
                ),
                "",
            )
            raise SiteError(
                f"{pattern!r} matches none of the {len(self.places)} sites{why}; nearest: {closest(pattern, map(str, self.places))}"
            )
        return found

    def widths(self, sites: Sites) -> dict[Site, int]:
        """How many units each site has: neurons, heads, or coordinates of the residual."""
        return {site: self.place(site).units for site in self.expand(sites)}

    def units(self, sites: Sites) -> Units:
        """All units of the given sites."""
        return all_units(self.widths(sites))

    def columns(self, site: Site, units: np.ndarray) -> Int[np.ndarray, " columns"]:
        """The activation columns of some units: one a neuron, d_head a head."""
        place = self.place(site)
        size = place.width // place.units
        return (np.asarray(units)[:, None] * size + np.arange(size)).reshape(-1)

    def check(self, units: Units) -> None:
        """Raises ValueError when units were chosen on a model of another shape."""
        for site in units.sites:
            here = self.place(site).units
            if units.widths[site] != here:
                raise ValueError(
                    f"these units were chosen on a model whose {site} is {units.widths[site]} wide; here it is {here}: another model's plan"
                )

    def out_weight(self, module: nn.Module, site: Site | str) -> Float[Tensor, "columns d_model"]:
        """The rows by which each column of `neurons` or `heads` writes to the residual: a view of
        the out-projection's weight."""
        place = self.place(site)
        if place.side != "in" or place.base is not None:
            raise SiteError(
                f"{site} is not the input of a projection: only neurons and heads have out-weights"
            )
        return out_rows(module.get_submodule(place.path))


def _mlp_or_all(site: Site, beside: list[Site]) -> list[Site]:
    family = {"neurons": "mlp_out", "heads": "attn_out"}.get(site.point)
    return [s for s in beside if s.point == family] or beside


def out_rows(projection: nn.Module) -> Float[Tensor, "inputs outputs"]:
    """The weight of a linear layer as [inputs, outputs], whichever way the module stores it
    (nn.Linear or GPT-2's Conv1D)."""
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(projection, nn.Linear) else weight
