"""The computation graph of a transformer: its nodes (heads and MLPs), the edges between them
through the residual stream, a score for each edge, and sets of edges.

The nodes of one stack of blocks are `embed` (what enters the first block), every head
(`blocks.1.heads.3`), every MLP (`blocks.1.mlp`) and `final` (what leaves the last block). A sender
writes into the residual and a receiver reads it; heads and MLPs are both. The edge u -> v is what u
writes into the residual for v to read; it exists where u is computed before v. The bias of the
attention's out-projection is added whatever the input is, and belongs to no edge.
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
from interp.sites.anatomy import Anatomy
from interp.sites.site import Site
from interp.sites.units import rank_units
from interp.subject.batch import Batch
from interp.subject.offloading import stored, stored_out_weight
from interp.subject.subject import Subject


@dataclass(frozen=True)
class Layer:
    """One block: its sites, and the numbers of its nodes among the senders.

    Attributes:
        pre: the residual that enters the block.
        heads: what enters the attention's out-projection.
        attn: what attention adds to the residual.
        mid: the residual that enters the MLP; None where attention and MLP run in parallel.
        mlp: what the MLP adds to the residual.
        count: number of heads.
        first: the number of the first head among the senders. The other heads follow it, then the
            MLP.
    """

    pre: Site
    heads: Site
    attn: Site
    mid: Site | None
    mlp: Site
    count: int
    first: int

    @classmethod
    def of(cls, anatomy: Anatomy, block: int, stack: str, first: int) -> Layer:
        """Returns the layer of one block. Raises SiteError for sites that could not be verified,
        and for a block whose output is not the sum of what enters it, attn_out and mlp_out."""

        def resolve(point: str) -> Site:
            return anatomy.resolve(Site(point, block, stack))

        heads = resolve("heads")
        attn = resolve("attn_out")
        mlp = resolve("mlp_out")
        mid = Site("resid_mid", block, stack)
        path = anatomy.blocks(stack)[block]
        if path not in anatomy.additive:
            raise SiteError(
                f"{path} is more than a sum of the residual, attention and MLP (it normalizes or "
                "scales the stream, or adds something else): edges between nodes would not add up"
            )
        return cls(
            pre=resolve("resid_pre"),
            heads=heads,
            attn=attn,
            mid=mid if mid in anatomy.places else None,
            mlp=mlp,
            count=anatomy.place(heads).units,
            first=first,
        )

    @property
    def last(self) -> int:
        """The number of the MLP among the senders."""
        return self.first + self.count

    @property
    def before_mlp(self) -> int:
        """How many senders the MLP reads: it reads the first `before_mlp`."""
        return self.first if self.mid is None else self.last

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the block's nodes, in the order of the senders."""
        block = f"blocks.{self.pre.block}"
        heads = [f"{block}.heads.{head}" for head in range(self.count)]
        return (*heads, f"{block}.mlp")


@dataclass(frozen=True)
class Graph:
    """All nodes of a model, in the order in which they are computed.

    Attributes:
        layers: the blocks.
        final: the site at which the last receiver, `final`, reads.
    """

    layers: tuple[Layer, ...]
    final: Site

    @classmethod
    def of(cls, subject: Hooked) -> Graph:
        """Returns the graph of a model.

        Raises:
            SiteError: several stacks of blocks, or a block whose heads, attention or MLP could not
                be verified.
        """
        anatomy = subject.anatomy
        if len(anatomy.stacks) != 1:
            stacks = ", ".join(map(repr, anatomy.stacks))
            raise SiteError(f"edges are those of one stack of blocks; this model has {stacks}")
        ((stack, blocks),) = anatomy.stacks.items()

        layers: list[Layer] = []
        first = 1  # sender 0 is `embed`
        for block in range(len(blocks)):
            layer = Layer.of(anatomy, block, stack, first)
            layers.append(layer)
            first = layer.last + 1
        final = Site("resid_post", len(blocks) - 1, stack)
        return cls(tuple(layers), anatomy.resolve(final))

    @property
    def senders(self) -> tuple[str, ...]:
        """The names of all nodes that write into the residual."""
        names = ["embed"]
        for layer in self.layers:
            names += layer.names
        return tuple(names)

    @property
    def receivers(self) -> tuple[str, ...]:
        """The names of all nodes that read the residual."""
        # Every sender but `embed` also receives, so that sender u is receiver u - 1.
        return (*self.senders[1:], "final")

    @property
    def seen(self) -> tuple[int, ...]:
        """How many senders each receiver reads: receiver v reads the first `seen[v]`."""
        seen: list[int] = []
        for layer in self.layers:
            seen += [layer.first] * layer.count
            seen.append(layer.before_mlp)
        seen.append(len(self.senders))
        return tuple(seen)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where nodes read and write."""
        sites: list[Site] = []
        for layer in self.layers:
            sites += [layer.pre, layer.heads]
            if layer.mid is not None:
                sites.append(layer.mid)
            sites.append(layer.mlp)
        return (*sites, self.final)

    @property
    def edges(self) -> Bool[np.ndarray, "senders receivers"]:
        """Which edges exist."""
        # Sender u by receiver v: u is one of the first seen[v].
        numbers = np.arange(len(self.senders))
        return numbers[:, None] < np.array(self.seen)

    def check(self, circuit: Circuit) -> None:
        """Raises ValueError for a circuit of another model."""
        full = Circuit(self.senders, self.receivers, self.edges)
        _check_nodes(full, circuit)
        impossible = int((circuit.kept & ~self.edges).sum())
        if impossible:
            raise ValueError(
                f"{impossible} of {len(circuit)} edges lead to a node that is computed earlier"
            )


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges.

    Attributes:
        senders: names of the nodes that write.
        receivers: names of the nodes that read.
        kept: [senders, receivers] booleans: `kept[u, v]` for the edge from `senders[u]` to
            `receivers[v]`.

    Raises:
        ValueError: `kept` of another shape or type.

    Example:
        >>> from interp.analysis.circuits import Circuit
        >>> full = Circuit.full(subject)
        >>> len(full), len(Circuit.empty(subject)), full.receivers[-2:]
        (54, 0, ('blocks.1.mlp', 'final'))
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    kept: Bool[np.ndarray, "senders receivers"]

    def __post_init__(self) -> None:
        _check_shape(self.kept, self.senders, self.receivers)
        if self.kept.dtype != np.bool_:
            raise ValueError(
                "kept says of each edge whether it is in the circuit: "
                f"expected booleans; got {self.kept.dtype}"
            )

    @classmethod
    def full(cls, subject: Hooked) -> Circuit:
        """Returns the circuit of all edges of a model."""
        graph = Graph.of(subject)
        return cls(graph.senders, graph.receivers, graph.edges)

    @classmethod
    def empty(cls, subject: Hooked) -> Circuit:
        """Returns the circuit without edges."""
        graph = Graph.of(subject)
        return cls(graph.senders, graph.receivers, np.zeros_like(graph.edges))

    def __len__(self) -> int:
        return int(self.kept.sum())

    def iou(self, other: Circuit) -> float:
        """Returns the overlap of two circuits: the number of edges in both, divided by the number
        of edges in either (Jaccard index). It is 1 for two empty circuits.

        Raises:
            ValueError: circuits of other nodes.

        Example:
            >>> from interp.analysis.circuits import Circuit
            >>> first = Circuit(("a", "b"), ("c",), np.array([[True], [False]]))
            >>> both = Circuit(("a", "b"), ("c",), np.array([[True], [True]]))
            >>> first.iou(both)
            0.5
        """
        _check_nodes(self, other)
        in_both = int((self.kept & other.kept).sum())
        in_either = int((self.kept | other.kept).sum())
        return in_both / in_either if in_either else 1.0


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """A score for each edge; higher means that the edge matters more.

    Attributes:
        senders: names of the nodes that write.
        receivers: names of the nodes that read.
        values: [senders, receivers]: `values[u, v]` for the edge from `senders[u]` to
            `receivers[v]`, NaN where there is no edge.

    Raises:
        ValueError: values of another shape.

    Example:
        >>> from interp.analysis.circuits import EdgeScores
        >>> scores = EdgeScores(("a", "b"), ("b", "c"), np.array([[0.1, 0.3], [np.nan, 0.2]]))
        >>> scores.frame()
          sender receiver  score
        0      a        b    0.1
        1      a        c    0.3
        2      b        c    0.2
        >>> scores.top(0.3).kept
        array([[False,  True],
               [False, False]])
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    values: Float[np.ndarray, "senders receivers"]

    def __post_init__(self) -> None:
        _check_shape(self.values, self.senders, self.receivers)

    @property
    def edges(self) -> Bool[np.ndarray, "senders receivers"]:
        """Which edges exist."""
        return ~np.isnan(self.values)

    def top(self, fraction: float) -> Circuit:
        """Returns the circuit of the highest-scoring edges: that fraction of all edges, at least
        one.

        Raises:
            ValueError: a fraction outside (0, 1].
        """
        _check_fraction(fraction)
        # `argwhere` and the mask below both go row by row, so that their numbers are the same.
        edges = np.argwhere(self.edges)  # (sender, receiver) of each edge
        count = max(1, round(fraction * len(edges)))
        order = rank_units(self.values[self.edges])
        chosen = edges[order[:count]]
        kept = np.zeros_like(self.edges)
        kept[chosen[:, 0], chosen[:, 1]] = True
        return Circuit(self.senders, self.receivers, kept)

    def frame(self) -> pd.DataFrame:
        """Returns one row per edge: `sender`, `receiver`, `score`."""
        rows = [
            (self.senders[sender], self.receivers[receiver], self.values[sender, receiver])
            for sender, receiver in np.argwhere(self.edges)
        ]
        return pd.DataFrame(rows, columns=["sender", "receiver", "score"])

    def spearman(self, other: EdgeScores) -> float:
        """Returns the rank correlation over all edges; NaN where all scores of one side are equal.

        Raises:
            ValueError: scores of other edges.
        """
        from scipy import stats

        _check_nodes(self, other)
        if (self.edges != other.edges).any():
            raise ValueError(
                f"{int(self.edges.sum())} edges here, {int(other.edges.sum())} there: "
                "expected scores of the same edges"
            )
        ours = self.values[self.edges]
        theirs = other.values[self.edges]
        if not np.ptp(ours) or not np.ptp(theirs):
            return float("nan")
        correlation: Any = stats.spearmanr(ours, theirs)
        return float(correlation[0])


def chance_iou(fraction: float) -> float:
    """Returns the expected overlap (see `Circuit.iou`) of two random circuits.

    If each holds a fraction k of all edges, k^2 of the edges are in both and 2k - k^2 in at least
    one of them, so that the overlap is k / (2 - k).

    Args:
        fraction: the share of all edges, in (0, 1].

    Raises:
        ValueError: a fraction outside (0, 1].

    Example:
        >>> from interp.analysis.circuits import chance_iou
        >>> round(chance_iou(0.1), 3)
        0.053
    """
    _check_fraction(fraction)
    return fraction / (2 - fraction)


def sent(
    subject: Subject, graph: Graph, batch: Batch
) -> Float[Tensor, "items senders position d_model"]:
    """Returns what each sender writes into the residual, at least in float32.

    Raises:
        SiteError: attention adds something other than what its heads write and a bias, as with a
            norm after attention. No head then has a share of its own.
    """
    sites: list[Site] = []
    for layer in graph.layers:
        sites += [layer.pre, layer.heads, layer.attn, layer.mlp]
    values = values_at(subject, batch, tuple(sites))

    embedded = values[graph.layers[0].pre]
    parts = [embedded[:, None]]  # each [items, senders, position, d_model]
    for layer in graph.layers:
        _check_linear(subject, layer, values)
        parts.append(writes(subject, layer, values[layer.heads]))
        parts.append(values[layer.mlp][:, None])
    # Callers take differences of these and sums over many: half precision is too coarse for both.
    wide = torch.promote_types(embedded.dtype, torch.float32)
    return torch.cat([part.to(wide) for part in parts], dim=1)


def writes(
    subject: Subject, layer: Layer, heads: Float[Tensor, "items position columns"]
) -> Float[Tensor, "items heads position d_model"]:
    """Returns what each head adds to the residual: its columns times their rows of the
    out-projection's weight, at least in float32."""
    wide = torch.promote_types(heads.dtype, torch.float32)
    out_weight = stored_out_weight(subject.module, subject.anatomy, layer.heads)
    rows = out_weight.to(heads.device, wide)
    by_head = (layer.count, -1)
    columns_by_head = heads.to(wide).unflatten(-1, by_head)  # [..., heads, head_width]
    rows_by_head = rows.unflatten(0, by_head)  # [heads, head_width, d_model]
    return torch.einsum("ithc,hcd->ihtd", columns_by_head, rows_by_head)


def out_bias(subject: Subject, layer: Layer) -> Float[Tensor, " d_model"]:
    """Returns the bias of the attention's out-projection; zeros where it has none."""
    path = subject.anatomy.place(layer.heads).path
    bias = getattr(subject.module.get_submodule(path), "bias", None)
    if isinstance(bias, Tensor):
        return stored(subject.module, f"{path}.bias", bias).detach()
    rows = stored_out_weight(subject.module, subject.anatomy, layer.heads)
    return rows.new_zeros(rows.shape[1])


def _check_linear(subject: Subject, layer: Layer, values: Mapping[Site, Value]) -> None:
    heads = values[layer.heads]
    rows = stored_out_weight(subject.module, subject.anatomy, layer.heads).to(heads.device)
    expected = heads @ rows + out_bias(subject, layer).to(heads.device)
    # Rounding grows with the terms of the sum, not with the sum: terms may cancel.
    rounding_scale = heads.abs() @ rows.abs()
    if not close(values[layer.attn], expected, rounding_scale):
        raise SiteError(
            f"{layer.attn} is not what {layer.heads} write into the residual: "
            "something between them mixes the heads"
        )


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: expected a share of all edges in (0, 1]")


def _check_shape(values: np.ndarray, senders: tuple[str, ...], receivers: tuple[str, ...]) -> None:
    if values.shape != (len(senders), len(receivers)):
        raise ValueError(
            f"expected one value for each of {len(senders)} senders and {len(receivers)} "
            f"receivers; got {values.shape}"
        )


def _check_nodes(one: Circuit | EdgeScores, other: Circuit | EdgeScores) -> None:
    if one.senders == other.senders and one.receivers == other.receivers:
        return
    here, there = (
        f"{len(each.senders)} senders and {len(each.receivers)} receivers" for each in (one, other)
    )
    raise ValueError(f"expected two of models with the same nodes; got {here}, and {there}")
