"""The edges between heads and MLPs, through the residual stream: which there are, a score for each,
and sets of them.

The nodes of one stack of blocks are `embed` (what enters the first block), every head
(`blocks.1.heads.3`), every MLP (`blocks.1.mlp`) and `final` (what leaves the last block). An edge u
-> v is what u writes into the residual that v reads; it exists where u is computed before v. What
all blocks' attention adds whatever its input, the bias of the out-projection, belongs to no edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import SiteError
from interp.hooks.hooks import Hooked, Value
from interp.loading.verification import close
from interp.localization.unit_values import values_at
from interp.sites.anatomy import Anatomy, out_rows
from interp.sites.site import Site
from interp.sites.units import ranked
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@dataclass(frozen=True)
class Layer:
    """The sites of one block, and its nodes: `count` heads and then the MLP, after `first` senders
    that were computed before. `mid` is None where attention and MLP run in parallel."""

    pre: Site
    heads: Site
    attn: Site
    mid: Site | None
    mlp: Site
    count: int
    first: int

    @classmethod
    def of(cls, anatomy: Anatomy, block: int, stack: str, first: int) -> Layer:
        pre, heads, attn, mlp = (
            anatomy.resolve(Site(point, block, stack))
            for point in ("resid_pre", "heads", "attn_out", "mlp_out")
        )
        mid = Site("resid_mid", block, stack)
        return cls(
            pre,
            heads,
            attn,
            mid if mid in anatomy.places else None,
            mlp,
            anatomy.place(heads).units,
            first,
        )

    @property
    def last(self) -> int:
        """The number of the MLP among the senders."""
        return self.first + self.count

    @property
    def before_mlp(self) -> int:
        """How many senders the MLP reads."""
        return self.first if self.mid is None else self.last

    @property
    def names(self) -> tuple[str, ...]:
        return (
            *(f"blocks.{self.pre.block}.heads.{head}" for head in range(self.count)),
            f"blocks.{self.pre.block}.mlp",
        )


@dataclass(frozen=True)
class Graph:
    """All nodes of a model, in the order they are computed. Receiver v reads the first `seen[v]`
    senders."""

    layers: tuple[Layer, ...]
    final: Site

    @classmethod
    def of(cls, subject: Hooked) -> Graph:
        """Raises SiteError for several stacks of blocks, and for a block whose heads, attention or
        MLP could not be verified."""
        anatomy = subject.anatomy
        if len(anatomy.stacks) != 1:
            raise SiteError(
                f"edges are those of one stack of blocks; this model has {', '.join(map(repr, anatomy.stacks))}"
            )
        (stack, blocks), layers = next(iter(anatomy.stacks.items())), list[Layer]()
        for block in range(len(blocks)):
            layers.append(Layer.of(anatomy, block, stack, layers[-1].last + 1 if layers else 1))
        return cls(tuple(layers), anatomy.resolve(Site("resid_post", len(blocks) - 1, stack)))

    @property
    def senders(self) -> tuple[str, ...]:
        return ("embed", *(name for layer in self.layers for name in layer.names))

    @property
    def receivers(self) -> tuple[str, ...]:
        return (*self.senders[1:], "final")

    @property
    def seen(self) -> tuple[int, ...]:
        each = (
            seen
            for layer in self.layers
            for seen in (*[layer.first] * layer.count, layer.before_mlp)
        )
        return (*each, len(self.senders))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where nodes read and write."""
        each = (
            site
            for layer in self.layers
            for site in (layer.pre, layer.heads, layer.mid, layer.mlp)
            if site is not None
        )
        return (*each, self.final)

    @property
    def edges(self) -> Bool[np.ndarray, "senders receivers"]:
        return np.arange(len(self.senders))[:, None] < np.array(self.seen)

    def check(self, circuit: Circuit) -> None:
        """Raises ValueError for a circuit of another model."""
        _check_nodes(Circuit(self.senders, self.receivers, self.edges), circuit)
        if (circuit.kept & ~self.edges).any():
            raise ValueError(
                f"{int((circuit.kept & ~self.edges).sum())} of {len(circuit)} edges lead to what was computed before"
            )


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges: `kept[u, v]` for the edge from `senders[u]` to `receivers[v]`."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    kept: Bool[np.ndarray, "senders receivers"]

    def __post_init__(self) -> None:
        _check_shape(self.kept, self.senders, self.receivers)
        if self.kept.dtype != np.bool_:
            raise ValueError(
                f"kept says of each edge whether it is in the circuit: expected booleans; got {self.kept.dtype}"
            )

    @classmethod
    def full(cls, subject: Hooked) -> Circuit:
        """All edges of a model."""
        graph = Graph.of(subject)
        return cls(graph.senders, graph.receivers, graph.edges)

    @classmethod
    def empty(cls, subject: Hooked) -> Circuit:
        """No edge of a model."""
        graph = Graph.of(subject)
        return cls(graph.senders, graph.receivers, np.zeros_like(graph.edges))

    def __len__(self) -> int:
        return int(self.kept.sum())

    def iou(self, other: Circuit) -> float:
        """Edges in both circuits by edges in either (Jaccard); 1 for two empty ones. Raises
        ValueError for circuits of other nodes."""
        _check_nodes(self, other)
        either = int((self.kept | other.kept).sum())
        return int((self.kept & other.kept).sum()) / either if either else 1.0


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """A score for the edge from `senders[u]` to `receivers[v]`, higher means it matters more; NaN
    where there is no edge."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    values: Float[np.ndarray, "senders receivers"]

    def __post_init__(self) -> None:
        _check_shape(self.values, self.senders, self.receivers)

    @property
    def edges(self) -> Bool[np.ndarray, "senders receivers"]:
        return ~np.isnan(self.values)

    def top(self, fraction: float) -> Circuit:
        """The highest-scoring edges: that fraction of all of them, at least one. Raises ValueError
        for a fraction outside (0, 1]."""
        _check_fraction(fraction)
        where = np.argwhere(self.edges)
        chosen = where[ranked(self.values[self.edges])[: max(1, round(fraction * len(where)))]]
        kept = np.zeros_like(self.edges)
        kept[chosen[:, 0], chosen[:, 1]] = True
        return Circuit(self.senders, self.receivers, kept)

    def frame(self) -> pd.DataFrame:
        """One row an edge: `sender`, `receiver`, `score`."""
        rows = [
            (self.senders[u], self.receivers[v], self.values[u, v])
            for u, v in np.argwhere(self.edges)
        ]
        return pd.DataFrame(rows, columns=["sender", "receiver", "score"])

    def spearman(self, other: EdgeScores) -> float:
        """The rank correlation over all edges; NaN where one side's scores are all equal. Raises
        ValueError for scores of other edges."""
        from scipy import stats

        _check_nodes(self, other)
        if (self.edges != other.edges).any():
            raise ValueError(
                f"{int(self.edges.sum())} edges here, {int(other.edges.sum())} there: expected scores of the same edges"
            )
        ours, theirs = self.values[self.edges], other.values[self.edges]
        found: Any = stats.spearmanr(ours, theirs) if np.ptp(ours) and np.ptp(theirs) else (np.nan,)
        return float(found[0])


def chance_iou(fraction: float) -> float:
    """The overlap (see `Circuit.iou`) to expect of two random circuits that each hold this fraction
    k of all edges: k^2 of the edges are in both and 2k - k^2 in either, so k / (2 - k). Raises
    ValueError for a fraction outside (0, 1]."""
    _check_fraction(fraction)
    return fraction / (2 - fraction)


def sent(
    subject: Subject, graph: Graph, batch: Batch
) -> Float[Tensor, "items senders position d_model"]:
    """What each sender writes into the residual, at least in float32.

    Raises SiteError where attention adds anything but what its heads write and a bias, as with a
    norm after it: no head has a share then.
    """
    values = values_at(
        subject,
        batch,
        tuple(
            site
            for layer in graph.layers
            for site in (layer.pre, layer.heads, layer.attn, layer.mlp)
        ),
    )
    embedded = values[graph.layers[0].pre]
    parts = [embedded[:, None]]
    for layer in graph.layers:
        _check_linear(subject, layer, values)
        parts += [writes(subject, layer, values[layer.heads]), values[layer.mlp][:, None]]
    return torch.cat(
        [part.to(torch.promote_types(embedded.dtype, torch.float32)) for part in parts], dim=1
    )


def writes(
    subject: Subject, layer: Layer, heads: Float[Tensor, "items position columns"]
) -> Float[Tensor, "items heads position d_model"]:
    """What each head adds to the residual: its columns times their rows of the out-projection's
    weight."""
    wide = torch.promote_types(heads.dtype, torch.float32)
    rows = subject.anatomy.out_weight(subject.module, layer.heads).detach().to(wide)
    return torch.einsum(
        "ithc,hcd->ihtd",
        heads.to(wide).unflatten(-1, (layer.count, -1)),
        rows.unflatten(0, (layer.count, -1)),
    )


def out_bias(subject: Subject, layer: Layer) -> Float[Tensor, " d_model"]:
    """What attention adds whatever its heads say."""
    projection = subject.module.get_submodule(subject.anatomy.place(layer.heads).path)
    bias, rows = getattr(projection, "bias", None), out_rows(projection)
    return (bias if isinstance(bias, Tensor) else rows.new_zeros(rows.shape[1])).detach()


def _check_linear(subject: Subject, layer: Layer, values: Mapping[Site, Value]) -> None:
    rows, heads = (
        subject.anatomy.out_weight(subject.module, layer.heads).detach(),
        values[layer.heads],
    )
    if not close(
        values[layer.attn], heads @ rows + out_bias(subject, layer), heads.abs() @ rows.abs()
    ):
        raise SiteError(
            f"{layer.attn} is not what {layer.heads} write into the residual: what stands between them mixes the heads"
        )


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: expected a share of all edges in (0, 1]")


def _check_shape(values: np.ndarray, senders: tuple[str, ...], receivers: tuple[str, ...]) -> None:
    if values.shape != (len(senders), len(receivers)):
        raise ValueError(
            f"expected one value for each of {len(senders)} senders and {len(receivers)} receivers; got {values.shape}"
        )


def _check_nodes(one: Circuit | EdgeScores, other: Circuit | EdgeScores) -> None:
    if (one.senders, one.receivers) != (other.senders, other.receivers):
        here, there = (
            f"{len(c.senders)} senders and {len(c.receivers)} receivers" for c in (one, other)
        )
        raise ValueError(f"these are of models with other nodes: {here}, and {there}")
