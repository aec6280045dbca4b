"""Circuits: which edges between heads and MLPs carry a prediction, and what the model predicts
through some of them alone.

`edge_attribution` scores every edge from one backward pass (edge attribution patching: Syed, Rager
& Conmy 2023, arXiv 2310.10348); `faithfulness` runs a circuit of the best ones with the rest of the
edges at their means. Circuits of two kinds of prediction are compared by `Circuit.iou` against
`chance_iou`, and by the faithfulness of one kind's circuit on the other kind's items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analysis.computation_graph import (
    Circuit,
    EdgeScores,
    Graph,
    Layer,
    chance_iou,
    out_bias,
    sent,
    writes,
)
from interp.hooks.hooks import Clock, Value, Visit, captured, tapped
from interp.hooks.modes import dropout_off
from interp.localization.window_losses import differentiating
from interp.localization.windows import repeated
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

__all__ = [
    "Circuit",
    "EdgeScores",
    "chance_iou",
    "circuit_logits",
    "edge_attribution",
    "edge_effects",
    "faithfulness",
    "sender_means",
]

Tokens = Int[Tensor, " items"] | Int[np.ndarray, " items"]


def edge_attribution(
    subject: Subject,
    clean: Batch,
    corrupt: Batch,
    right: Tokens,
    wrong: Tokens,
    *,
    step: int = 0,
    size: int = 64,
) -> EdgeScores:
    """The mean over items of |`edge_effects`|, for every edge; arguments and errors as there."""
    graph = Graph.of(subject)
    effects = edge_effects(subject, clean, corrupt, right, wrong, step=step, size=size)
    return EdgeScores(graph.senders, graph.receivers, np.abs(effects).mean(0))


def edge_effects(
    subject: Subject,
    clean: Batch,
    corrupt: Batch,
    right: Tokens,
    wrong: Tokens,
    *,
    step: int = 0,
    size: int = 64,
) -> Float[np.ndarray, "items senders receivers"]:
    """What each edge alone would do to each item's logit(right) - logit(wrong) if it carried what
    it carries in `corrupt`, to first order:
    sum_t (a_u(corrupt) - a_u(clean))_t . d metric / d (input of v)_t. NaN where there is no edge.

    Source: Syed, Rager & Conmy 2023 (arXiv 2310.10348). Heads are receivers as a whole: query, key
    and value together.

    Args:
        clean: the items, at which the metric is differentiated.
        corrupt: the same number of sequences of the same length and prompt.
        right, wrong: the two tokens that the metric compares in each item.
        step: which of `clean.targets` they compete for.
        size: how many items run at once.

    Raises ValueError for arguments of other shapes, SiteError for a model whose edges are not
    defined (see `Graph.of`), or one whose heads do not write into the residual linearly.
    """
    graph = Graph.of(subject)
    if (clean.tokens.shape, clean.prompt) != (corrupt.tokens.shape, corrupt.prompt):
        given = " and ".join(
            f"{tuple(b.tokens.shape)} after a prompt of {b.prompt}" for b in (clean, corrupt)
        )
        raise ValueError(f"clean and corrupt must have one shape and one prompt; got {given}")
    with differentiating(subject):
        parts = [
            each.split(size)
            for each in (_until(clean, step), _until(corrupt, step), _answers(clean, right, wrong))
        ]
        return np.concatenate(
            [_effects(subject, graph, *part).cpu().numpy() for part in zip(*parts, strict=True)]
        )


def faithfulness(
    subject: Subject,
    batch: Batch,
    right: Tokens,
    wrong: Tokens,
    circuits: Sequence[Circuit],
    means: Mapping[str, Tensor],
    *,
    step: int = 0,
) -> list[float]:
    """(m(circuit) - m(no edge)) / (m(all edges) - m(no edge)) of each circuit, where m is the mean
    over items of logit(right) - logit(wrong) as `circuit_logits` gives them: 1 for a circuit that
    does what the model does, 0 for one that does nothing.

    Source: Wang et al. 2022 (arXiv 2211.00593), normalized as in Marks et al. 2024 (arXiv
    2403.19647). Raises ValueError where all edges do no more than none.
    """
    tokens = _answers(batch, right, wrong)

    def measured(edges: Circuit) -> float:
        return float(
            _metric(circuit_logits(subject, batch, edges, means, step=step), tokens).mean()
        )

    empty, full = measured(Circuit.empty(subject)), measured(Circuit.full(subject))
    if full == empty:
        raise ValueError(
            f"logit(right) - logit(wrong) is {full:.3g} with all edges and with none: there is nothing to be faithful to"
        )
    return [(measured(circuit) - empty) / (full - empty) for circuit in circuits]


def circuit_logits(
    subject: Subject,
    batch: Batch,
    circuit: Circuit,
    means: Mapping[str, Tensor],
    *,
    step: int = 0,
    size: int = 64,
) -> Float[Tensor, "items vocabulary"]:
    """The logits of one token of each item when every node gets from each sender what it computes
    live where the edge is in the circuit, and its mean elsewhere.

    Args:
        means: of every sender at each position, as `sender_means` gives them.
        step: which of `batch.targets` is predicted.
        size: how many items run at once, each of them 1 + (heads of a block) times.

    Raises ValueError for a circuit or means of another model, and means of fewer positions than the
    batch.
    """
    graph = Graph.of(subject)
    graph.check(circuit)
    if missing := [name for name in graph.senders if name not in means]:
        raise ValueError(
            f"means lack {len(missing)} of {len(graph.senders)} senders: {', '.join(missing[:3])}; see sender_means"
        )
    stacked = torch.stack([means[name].to(subject.device) for name in graph.senders])
    kept = torch.from_numpy(circuit.kept).to(stacked)
    copies = 1 + max(layer.count for layer in graph.layers)
    logits: list[Tensor] = []
    for part in _until(batch, step).split(size):
        flow = _Flow(subject, graph, kept, stacked, len(part))
        with dropout_off(subject.module), torch.no_grad(), tapped(subject, flow.visits()):
            logits.append(subject.target_logits(repeated(part, copies))[: len(part), 0])
    return torch.cat(logits)


def sender_means(
    subject: Subject, reference: Batch, size: int = 64
) -> dict[str, Float[Tensor, "position d_model"]]:
    """What each sender writes into the residual at each position, the mean over the items of a
    reference: what an edge outside a circuit carries. Raises ValueError for a padded reference,
    SiteError as `edge_effects`."""
    if reference.mask is not None and not bool(reference.mask.all()):
        raise ValueError(
            "the reference is padded, so that its mean at a position is not over all items: expected items of one length"
        )
    graph = Graph.of(subject)
    total = sum(
        sent(subject, graph, part).sum(0, dtype=torch.float64) for part in reference.split(size)
    )
    return dict(zip(graph.senders, torch.as_tensor(total) / len(reference), strict=True))


def _effects(
    subject: Subject, graph: Graph, clean: Batch, corrupt: Batch, tokens: Tensor
) -> Float[Tensor, "items senders receivers"]:
    change = sent(subject, graph, corrupt) - sent(subject, graph, clean)
    effects = change.new_full(
        (len(clean), len(graph.senders), len(graph.receivers)), torch.nan, dtype=torch.float64
    )
    with captured(subject, graph.sites) as values:
        metric = _metric(subject.target_logits(clean)[:, 0], tokens)
    for receiver, gradient in enumerate(_gradients(graph, values, metric.sum())):
        seen = graph.seen[receiver]
        effects[:, :seen, receiver] = torch.einsum(
            "iutd,itd->iu", change[:, :seen], gradient.to(change.dtype)
        ).double()
    return effects


def _gradients(graph: Graph, values: Mapping[Site, Value], metric: Tensor) -> Iterator[Value]:
    """d metric / d input of each receiver in turn: the metric's gradient at what a node puts out,
    taken back through that node alone."""
    outputs = [site for layer in graph.layers for site in (layer.heads, layer.mlp)]
    *found, final = torch.autograd.grad(
        metric, [values[site] for site in (*outputs, graph.final)], retain_graph=True
    )
    gradients = dict(zip(outputs, found, strict=True))
    for layer in graph.layers:
        for head in range(layer.count):
            yield _back(
                values[layer.heads], _only(layer, head, gradients[layer.heads]), values[layer.pre]
            )
        yield _back(values[layer.mlp], gradients[layer.mlp], values[layer.mid or layer.pre])
    yield final


def _back(output: Value, gradient: Value, source: Value) -> Value:
    return torch.autograd.grad(output, source, gradient, retain_graph=True)[0]


def _only(layer: Layer, head: int, value: Value) -> Value:
    """Zeros but for one head's columns."""
    owner = torch.arange(value.shape[-1], device=value.device) // (value.shape[-1] // layer.count)
    return torch.where(owner == head, value, 0)


class _Flow:
    """One forward in which every node has an input of its own: of the copies of the items, number 1
    + h runs each block on what head h reads, number 0 on what the MLP and `final` read. What a node
    writes is collected from its own copy; the logits are those of copy 0."""

    def __init__(
        self, subject: Subject, graph: Graph, kept: Tensor, means: Tensor, items: int
    ) -> None:
        self.subject, self.graph, self.kept, self.means, self.items = (
            subject,
            graph,
            kept,
            means,
            items,
        )
        self.live = means.new_zeros(items, *means.shape)
        self.biases = torch.stack([out_bias(subject, layer).to(means) for layer in graph.layers])

    def visits(self) -> dict[Site, Visit]:
        visits: dict[Site, Visit] = {self.graph.final: self._leave}
        for number, layer in enumerate(self.graph.layers):
            visits |= {
                layer.pre: partial(self._enter, number),
                layer.heads: partial(self._heads, layer),
                layer.mlp: partial(self._mlp, layer),
            }
            if layer.mid is not None:
                visits[layer.mid] = partial(self._between, number)
        return visits

    def _enter(self, number: int, value: Value, _: Clock) -> Tensor:
        layer = self.graph.layers[number]
        if number == 0:
            self._begin(value[: self.items])
        inputs = self._inputs(slice(layer.first - 1, layer.last - 1), layer.first, number)
        mlp = value[: self.items] if layer.mid is not None else self._mlp_input(layer, number)
        return _led(value, torch.cat([mlp.to(inputs), inputs]))

    def _begin(self, embedded: Value) -> None:
        if embedded.shape[1] > self.means.shape[1]:
            raise ValueError(
                f"means have {self.means.shape[1]} positions; the items have {embedded.shape[1]}"
            )
        self.means, self.live = (t[..., : embedded.shape[1], :] for t in (self.means, self.live))
        self.live[:, 0] = embedded

    def _heads(self, layer: Layer, value: Value, _: Clock) -> None:
        heads = value.unflatten(0, (-1, self.items))[1 : layer.count + 1].unflatten(
            -1, (layer.count, -1)
        )
        own = heads.diagonal(dim1=0, dim2=3).movedim(-1, 2)
        self.live[:, layer.first : layer.last] = writes(self.subject, layer, own.flatten(2))

    def _between(self, number: int, value: Value, _: Clock) -> Tensor:
        return _led(value, self._mlp_input(self.graph.layers[number], number + 1))

    def _mlp(self, layer: Layer, value: Value, _: Clock) -> None:
        self.live[:, layer.last] = value[: self.items]

    def _leave(self, value: Value, _: Clock) -> Tensor:
        return _led(
            value, self._inputs(slice(-1, None), len(self.graph.senders), len(self.graph.layers))
        )

    def _mlp_input(self, layer: Layer, blocks: int) -> Value:
        return self._inputs(slice(layer.last - 1, layer.last), layer.before_mlp, blocks)

    def _inputs(
        self, receivers: slice, seen: int, blocks: int
    ) -> Float[Tensor, "receivers*items position d_model"]:
        """What some nodes read that follow `seen` senders and the attention of `blocks` blocks."""
        kept = self.kept[:seen, receivers]
        live = torch.einsum("iutd,uv->vitd", self.live[:, :seen], kept)
        return (
            live
            + torch.einsum("utd,uv->vtd", self.means[:seen], 1 - kept)[:, None]
            + self.biases[:blocks].sum(0)
        ).flatten(0, 1)


def _led(value: Value, first: Tensor) -> Value:
    """A value with other first rows."""
    return torch.cat([first.to(value), value[len(first) :]])


def _metric(
    logits: Float[Tensor, "items vocabulary"], tokens: Int[Tensor, "items 2"]
) -> Float[Tensor, " items"]:
    """logit(right) - logit(wrong)"""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= logits.shape[-1]:
        raise ValueError(
            f"right and wrong must be token ids 0 to {logits.shape[-1] - 1}; got {low} to {high}"
        )
    right, wrong = logits.double().gather(1, tokens.to(logits.device)).unbind(1)
    return right - wrong


def _answers(batch: Batch, right: Tokens, wrong: Tokens) -> Int[Tensor, "items 2"]:
    both = [torch.as_tensor(tokens) for tokens in (right, wrong)]
    if any(tokens.shape != (len(batch),) or tokens.is_floating_point() for tokens in both):
        given = " and ".join(f"{tuple(tokens.shape)} of {tokens.dtype}" for tokens in both)
        raise ValueError(
            f"right and wrong hold one token id for each of the {len(batch)} items; got {given}"
        )
    return torch.stack(both, 1).long()


def _until(batch: Batch, step: int) -> Batch:
    """The tokens up to the one for which two compete, alone predicted; where several are predicted
    together, all tokens."""
    if not 0 <= step < batch.targets.shape[1] or not bool(batch.counted[:, step].all()):
        raise ValueError(
            f"step={step}: expected one of the {batch.targets.shape[1]} predicted tokens that counts in every item"
        )
    chosen = batch.prompt + step
    return replace(batch if batch.steps is not None else batch.until(chosen + 1), prompt=chosen)
