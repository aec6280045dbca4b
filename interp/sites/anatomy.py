"""Anatomy: where the sites of a given module are.

For each Site it names the torch module to hook, and what the input or output of that module means.
`interp.loading.discovery` finds an Anatomy; everything else asks it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import SiteError, closest
from interp.sites.sharding import is_sharded_at
from interp.sites.site import BLOCK_POINTS, Site, without_transformer_lens
from interp.sites.units import Units, all_units

Sites = str | Site | Iterable[str | Site]


@dataclass(frozen=True)
class Layout:
    """What a user says about a module whose sites cannot be found by its structure.

    All are optional; all paths but `blocks` are relative to a block.

    Attributes:
        blocks: path of the list of blocks, or one path per stack: `{"vision": "encoder.blocks",
            "policy": "trunk"}`.
        heads: the attention's out-projection, whose input holds the heads.
        n_heads: how many heads that input holds.
        neurons: the MLP's out-projection, whose input holds the neurons.
        attn_out, mlp_out: modules whose output is added to the residual stream.

    Example:
        >>> layout = interp.Layout(blocks="trunk", heads="attn.out", n_heads=4, neurons="mlp.down")
        >>> subject = interp.load(model, anatomy=layout)  # doctest: +SKIP
    """

    blocks: str | Mapping[str, str] | None = None
    heads: str | None = None
    n_heads: int | None = None
    neurons: str | None = None
    attn_out: str | None = None
    mlp_out: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a value is in a torch module.

    It is the first floating-point tensor among the inputs or outputs of a submodule, or that tensor
    plus or minus another one: the residual stream after attention, for example, exists only as a
    sum inside the block's forward.

    Attributes:
        path: path of the submodule.
        side: "in" for its inputs, "out" for its outputs.
        width: size of the last axis.
        heads: into how many equal parts the last axis divides; None when each column is a unit.
        onto: a place whose value is added to this one.
        beyond: a place whose value is subtracted from this one: what a block adds to what entered
            it.
        scale: a factor on the tensor, in models that scale what a module gives before they add it
            to the residual stream; the value is what they add.
        axes: over how many of its last axes the module's own tensor spreads the width: 2 where the
            heads are in groups.
        goes_on: whether something other than a norm lies between the projection that reads this
            input and the residual stream. The rows of its weight are then not what the units write.
    """

    path: str
    side: str
    width: int
    heads: int | None = None
    onto: Place | None = None
    beyond: Place | None = None
    scale: float = 1.0
    axes: int = 1
    goes_on: bool = False

    @property
    def base(self) -> tuple[Place, int] | None:
        """The other place that the value is made with, and the sign with which it enters."""
        if self.onto is not None:
            return self.onto, 1
        if self.beyond is not None:
            return self.beyond, -1
        return None

    @property
    def is_plain(self) -> bool:
        """Whether the value is a tensor of the model, or one plus or minus what enters the block.

        Other libraries can be told no more than that.
        """
        if self.scale != 1 or self.axes != 1:
            return False
        return self.base is None or self.base[0].side == "in"

    @property
    def units(self) -> int:
        """How many units the value has."""
        return self.heads or self.width

    def __str__(self) -> str:
        here = f"{self.path}:{self.side}"
        if self.scale != 1:
            here = f"{self.scale:.4g} * {here}"
        if self.onto is not None:
            return f"{self.onto} + {here}"
        if self.beyond is not None:
            return f"{here} - {self.beyond}"
        return here


@dataclass(frozen=True)
class Anatomy:
    """The verified sites of one module.

    Attributes:
        stacks: for each stack (named "" when there is only one), the paths of its blocks in order.
        places: where each verified site is.
        refused: for sites that one might expect but that are missing, the reason.
        modules: raw module paths (`blocks.0.norm:in`) that can be hooked as they are; nothing is
            verified about them.
        additive: paths of the blocks that add attn_out and mlp_out to the residual stream, and
            nothing else: resid_post is their sum with resid_pre.

    Example:
        >>> anatomy = subject.anatomy
        >>> [str(site) for site in anatomy.expand("neurons")]
        ['blocks.0.neurons', 'blocks.1.neurons']
        >>> anatomy.units("blocks.0.neurons")
        Units(48 of 48: blocks.0.neurons 48)
        >>> str(anatomy.place("blocks.0.neurons"))
        'model.layers.0.mlp.down_proj:in'
    """

    stacks: Mapping[str, tuple[str, ...]]
    places: Mapping[Site, Place]
    refused: Mapping[Site, str] = field(default_factory=dict[Site, str])
    modules: Mapping[Site, Place] = field(default_factory=dict[Site, Place])
    additive: frozenset[str] = frozenset()

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every verified site, in the order in which data passes them."""
        return tuple(sorted(self.places, key=lambda site: site.order))

    def blocks(self, stack: str = "") -> tuple[str, ...]:
        """Returns the paths of the blocks of a stack, in order.

        Raises:
            SiteError: there is no such stack.
        """
        if stack not in self.stacks:
            known = ", ".join(map(repr, self.stacks))
            raise SiteError(f"no stack {stack!r}: this model has {known}")
        return self.stacks[stack]

    def place(self, site: Site | str) -> Place:
        """Returns where a site is.

        Raises:
            SiteError: there is no such site. The message names the nearest one, and the reason if
                this one was refused on load.
        """
        found = self.resolve(site)
        return self.places[found] if found in self.places else self.modules[found]

    def resolve(self, name: Site | str) -> Site:
        """Returns the site that a name means.

        The raw path of a module that is a verified site becomes that site.

        Raises:
            SiteError: there is no such site. The message names the nearest one, and the reason if
                this one was refused on load.

        Example:
            >>> subject.anatomy.resolve("model.layers.0.mlp.down_proj:in")
            Site(point='neurons', block=0, stack='')
        """
        site = Site.parse(name) if isinstance(name, str) else name
        # One place has one name: plans by raw path and by site must meet at the same key.
        if site.is_module_path:
            site = self._site_at(site.point) or site
        if site in self.places or site in self.modules:
            return site
        candidates = map(str, self._candidates(site))
        nearest = closest(str(site), candidates)
        reason = self.refused.get(site, "this model has no such site")
        raise SiteError(
            f"{site}: {reason}; nearest: {nearest}; see subject.sites for all {len(self.places)}"
        )

    def _site_at(self, path: str) -> Site | None:
        """The verified site at a raw module path."""
        # A sum or a scaled value never prints as a bare path, so that only what is a module's own
        # tensor is found.
        for site, place in self.places.items():
            if str(place) == path:
                return site
        return None

    def _candidates(self, missing: Site) -> list[Site]:
        """Sites to suggest in the place of a missing one: the most closely related that exist."""
        if missing.is_module_path:
            return list(self.modules) or list(self.places)

        block = (missing.stack, missing.block)
        in_block = [site for site in self.places if (site.stack, site.block) == block]
        kind, _, _ = missing.point.partition("_")  # resid, attn, mlp
        same_kind: list[Site] = []
        for site in in_block:
            kind_here, _, _ = site.point.partition("_")
            if kind_here == kind:
                same_kind.append(site)
        # Units that a model does not have are replaced by what they would have written.
        output_of = {"neurons": "mlp_out", "heads": "attn_out"}.get(missing.point)
        output = [site for site in in_block if site.point == output_of]
        return same_kind or output or in_block or list(self.places)

    def expand(self, pattern: Sites) -> tuple[Site, ...]:
        """Returns all sites that a pattern means, in the order in which data passes them.

        Args:
            pattern: a site or its name; a pattern with wildcards (`blocks.*.neurons`), also of
                TransformerLens's names; a bare point (`neurons`), which means that point in every
                block of every stack; or several of these.

        Raises:
            SiteError: a name or pattern matches no site.

        Example:
            >>> [str(site) for site in subject.anatomy.expand(["embed", "blocks.*.mlp_out"])]
            ['embed', 'blocks.0.mlp_out', 'blocks.1.mlp_out']
        """
        if isinstance(pattern, Site):
            return (self.resolve(pattern),)
        if isinstance(pattern, str):
            has_wildcards = any(character in pattern for character in "*?[")
            if has_wildcards or pattern in BLOCK_POINTS:
                return self._match(pattern)
            return (self.resolve(pattern),)

        found: dict[Site, None] = {}  # a set that keeps the order
        for part in pattern:
            found |= dict.fromkeys(self.expand(part))
        return tuple(found)

    def _match(self, pattern: str) -> tuple[Site, ...]:
        if pattern in BLOCK_POINTS:
            # In fnmatch, `*` matches dots too: the point is found in every stack.
            wanted = f"*blocks.*.{pattern}"
        else:
            wanted = without_transformer_lens(pattern)
        found = [site for site in self.sites if fnmatch.fnmatchcase(str(site), wanted)]
        if found:
            return tuple(found)

        why = ""
        for site, reason in self.refused.items():
            if fnmatch.fnmatchcase(str(site), wanted):
                why = f" ({site}: {reason})"
                break
        nearest = closest(pattern, map(str, self.places))
        raise SiteError(
            f"{pattern!r} matches none of the {len(self.places)} sites{why}; nearest: {nearest}"
        )

    def widths(self, sites: Sites) -> dict[Site, int]:
        """Returns how many units each site has: neurons, heads, or coordinates of the residual.

        Example:
            >>> {str(site): n for site, n in subject.anatomy.widths("heads").items()}
            {'blocks.0.heads': 4, 'blocks.1.heads': 4}
        """
        return {site: self.place(site).units for site in self.expand(sites)}

    def units(
        self, sites: Sites | Mapping[str, Iterable[int]], indices: Iterable[int] | None = None
    ) -> Units:
        """Returns units of some sites: all of them, or those with some indices.

        Args:
            sites: sites, given as for `expand`; or a mapping from sites to indices.
            indices: which units, the same at each of the sites; by default all.

        Raises:
            SiteError: a name or pattern matches no site.
            ValueError: an index outside its site, or indices for a mapping, which has its own.

        Example:
            >>> subject.anatomy.units("neurons")
            Units(96 of 96: blocks.0.neurons 48, blocks.1.neurons 48)
            >>> subject.anatomy.units("blocks.1.neurons", [0, 3, 5])
            Units(3 of 48: blocks.1.neurons 3)
            >>> subject.anatomy.units({"blocks.0.heads": [1], "blocks.1.neurons": [0, 3]})
            Units(3 of 52: blocks.0.heads 1, blocks.1.neurons 2)
        """
        if isinstance(sites, Mapping):
            if indices is not None:
                raise ValueError("a mapping of sites to indices has its own: give no other indices")
            chosen = Units({})
            for name, index in sites.items():
                chosen = chosen | self.units(name, index)
            return chosen
        widths = self.widths(sites)
        if indices is None:
            return all_units(widths)
        chosen_units = list(indices)
        return Units(dict.fromkeys(widths, chosen_units), widths)

    def columns(self, site: Site, units: np.ndarray) -> Int[np.ndarray, " columns"]:
        """Returns the activation columns of some units: one per neuron, d_head per head.

        Args:
            site: where the units are.
            units: their indices.

        Example:
            >>> heads = interp.Site.parse("blocks.0.heads")
            >>> subject.anatomy.columns(heads, np.array([1]))
            array([ 8,  9, 10, 11, 12, 13, 14, 15])
        """
        place = self.place(site)
        columns_per_unit = place.width // place.units
        # [units, 1] + [columns per unit]: all columns of each unit, one unit after the other.
        first_columns = np.asarray(units) * columns_per_unit
        columns = first_columns[:, None] + np.arange(columns_per_unit)
        return columns.reshape(-1)

    def fit(self, units: Units) -> Units:
        """Returns units with the widths of this model, after checking that it has these units.

        Raises:
            SiteError: one of their sites does not exist on this model.
            ValueError: one of their sites has another width on this model, or, where they carry no
                widths, fewer units.

        Example:
            >>> subject.anatomy.fit(interp.Units({"blocks.1.neurons": [0, 3, 5]}))
            Units(3 of 48: blocks.1.neurons 3)
        """
        widths = dict(units.widths)
        for site in units.sites:
            here = self.place(site).units
            # Units without widths pass here; `Units` below refuses an index that is too large.
            there = units.widths.get(site, here)
            if there != here:
                raise ValueError(
                    f"these units were chosen on a model whose {site} is {there} wide; "
                    f"here it is {here}: another model's plan"
                )
            widths[site] = here
        indices = {site: units[site] for site in units.sites}
        return Units(indices, widths)

    def out_weight(self, module: nn.Module, site: Site | str) -> Float[Tensor, "columns d_model"]:
        """Returns the rows with which the columns of `neurons` or `heads` write to the residual.

        Args:
            module: the module that this anatomy describes.
            site: a `neurons` or `heads` site.

        Returns:
            A view of the out-projection's weight, [columns, d_model].

        Raises:
            SiteError: the site is not the input of a projection, or the projection has no plain
                weight: an adapter stands beside it, it is packed or quantized, accelerate keeps it
                elsewhere, or it is sharded over processes.

        Example:
            >>> rows = subject.anatomy.out_weight(subject.module, "blocks.0.neurons")
            >>> tuple(rows.shape)
            (48, 32)
        """
        rows = out_rows(self.out_projection(module, site))
        path = self.place(site).path
        # accelerate leaves a shell on the meta device in the place of a weight that it keeps
        # elsewhere.
        elsewhere = "offloaded" if rows.is_meta else ""
        if is_sharded_at(module, path):
            elsewhere = "sharded over processes"
        if elsewhere:
            raise SiteError(
                f"{site}: the weight of {path} is {elsewhere}, and is in place only while its "
                "module runs: load the model whole on one device to write into its weights"
            )
        return rows

    def out_projection(self, module: nn.Module, site: Site | str) -> nn.Module:
        """Returns the linear layer whose input the columns of `neurons` or `heads` are.

        Args:
            module: the module that this anatomy describes.
            site: a `neurons` or `heads` site.

        Raises:
            SiteError: the site is not the input of a projection, or the projection has no plain
                weight: an adapter stands beside it, or it is packed or quantized.

        Example:
            >>> subject.anatomy.out_projection(subject.module, "blocks.0.neurons")
            Linear(in_features=48, out_features=32, bias=False)
        """
        place = self.place(site)
        if place.side != "in" or place.base is not None:
            raise SiteError(
                f"{site} is not the input of a projection: only neurons and heads have out-weights"
            )
        if place.goes_on:
            raise SiteError(
                f"{site}: what {place.path} gives is mapped on before it is added to the residual "
                "stream, so that the rows of its weight are not what the units write"
            )
        projection = module.get_submodule(place.path)
        if not _has_plain_weight(projection):
            raise SiteError(
                f"{site}: {place.path} ({type(projection).__name__}) has no plain weight (an "
                "adapter, packed or quantized weights): merge it, or load the model unquantized"
            )
        return projection


def _has_plain_weight(projection: nn.Module) -> bool:
    """Whether a layer is a weight matrix and perhaps a bias, and nothing beside them."""
    own = dict(projection.named_parameters())
    weight = own.pop("weight", None)
    own.pop("bias", None)
    # What is left are the matrices of an adapter; packed weights and their scales are buffers.
    buffers = list(projection.buffers())
    if weight is None or own or buffers:
        return False
    return weight.ndim == 2 and weight.is_floating_point()


def out_rows(projection: nn.Module) -> Float[Tensor, "inputs outputs"]:
    """Returns the weight of a linear layer as [inputs, outputs], a view.

    Args:
        projection: nn.Linear, which stores [outputs, inputs], or GPT-2's Conv1D, which stores
            [inputs, outputs].
    """
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return as_rows(projection, weight)


def as_rows(projection: nn.Module, weight: Tensor) -> Float[Tensor, "inputs outputs"]:
    """Returns the weight of a linear layer, which may be stored elsewhere, as `out_rows` does."""
    return weight.T if isinstance(projection, nn.Linear) else weight


def axes_are_known(projection: nn.Module) -> bool:
    """Returns whether `as_rows` of a layer can be trusted: a square weight of a type of one's own
    would fit with its axes exchanged, too.

    Example:
        >>> from interp.sites.anatomy import axes_are_known
        >>> axes_are_known(torch.nn.Linear(2, 2))
        True
    """
    weight = getattr(projection, "weight", None)
    is_square = isinstance(weight, Tensor) and len(set(weight.shape)) == 1
    is_conv1d = any(kind.__name__ == "Conv1D" for kind in type(projection).__mro__)
    return isinstance(projection, nn.Linear) or is_conv1d or not is_square
