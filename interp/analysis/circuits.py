"""Circuits: which edges between heads and MLPs carry a prediction, and what the model predicts
when only those edges are left.

`edge_attribution` scores every edge from one backward pass (edge attribution patching: Syed, Rager
& Conmy 2023, arXiv 2310.10348). `faithfulness` runs the model with the edges of a circuit live and
all others at their mean. Two kinds of prediction are compared by the overlap of their circuits
(`Circuit.iou`, to be compared with `chance_iou`), and by how faithful the circuit of one kind is on
the items of the other.
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
from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, Visit, captured, tapped
from interp.hooks.modes import dropout_off
from interp.localization.window_losses import differentiating
from interp.localization.windows import repeat_windows
from interp.sites.site import Site
from interp.subject.batch import Batch, owned
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
    target: int = 0,
    batch_size: int = 64,
) -> EdgeScores:
    """Returns the score of every edge: the mean over items of |`edge_effects`|.

    Args:
        subject: the model.
        clean: the items.
        corrupt: one other sequence per item, of the same length and prompt.
        right: one token id per item.
        wrong: the token id that competes with it.
        target: which of `clean.targets` the two tokens compete for.
        batch_size: number of items per batch.

    Raises:
        ValueError: see `edge_effects`.
        SiteError: see `edge_effects`.

    Example:
        >>> from interp.analysis import circuits
        >>> other = interp.Batch.from_frame(control)
        >>> right, wrong = batch.targets[:, 0], other.targets[:, 0]
        >>> scores = circuits.edge_attribution(subject, batch, other, right, wrong)
        >>> len(scores.frame()), len(scores.top(0.5))
        (54, 27)
    """
    graph = Graph.of(subject)
    effects = edge_effects(
        subject, clean, corrupt, right, wrong, target=target, batch_size=batch_size
    )
    scores = np.abs(effects).mean(0)
    return EdgeScores(graph.senders, graph.receivers, scores)


def edge_effects(
    subject: Subject,
    clean: Batch,
    corrupt: Batch,
    right: Tokens,
    wrong: Tokens,
    *,
    target: int = 0,
    batch_size: int = 64,
) -> Float[np.ndarray, "items senders receivers"]:
    """Returns how much each edge alone would change logit(right) - logit(wrong) of each item if it
    carried what it carries in `corrupt`, to first order.

    The effect of the edge u -> v is sum_t (a_u(corrupt) - a_u(clean))_t . d metric / d (input of
    v)_t, where a_u is what u writes into the residual (Syed, Rager & Conmy 2023, arXiv 2310.10348).
    A head is one receiver: its query, key and value are not distinguished.

    Args:
        subject: the model.
        clean: the items; the metric is differentiated on them.
        corrupt: one other sequence per item, of the same length and prompt.
        right: one token id per item.
        wrong: the token id that competes with it.
        target: which of `clean.targets` the two tokens compete for.
        batch_size: number of items per batch.

    Returns:
        Effects in logits; NaN where there is no edge.

    Raises:
        ValueError: arguments of other shapes, or token ids outside the vocabulary.
        SiteError: the model's edges are not defined (see `Graph.of`), or its heads do not write
            into the residual linearly.
    """
    graph = Graph.of(subject)
    _check_same_shape(clean, corrupt)
    # All tensors are made inside: what a caller's inference mode makes cannot be differentiated.
    with differentiating(subject):
        clean = _predict_one(clean, target)
        corrupt = _predict_one(corrupt, target)
        answers = _pair_answers(clean, right, wrong)
        parts = zip(
            clean.split(batch_size),
            corrupt.split(batch_size),
            answers.split(batch_size),
            strict=True,
        )
        effects: list[np.ndarray] = []
        for part in parts:
            of_part = _effects(subject, graph, *part)
            effects.append(of_part.cpu().numpy())
    return np.concatenate(effects)


def _check_same_shape(clean: Batch, corrupt: Batch) -> None:
    if clean.tokens.shape == corrupt.tokens.shape and clean.prompt == corrupt.prompt:
        return
    given = " and ".join(
        f"{tuple(batch.tokens.shape)} after a prompt of {batch.prompt}"
        for batch in (clean, corrupt)
    )
    raise ValueError(f"clean and corrupt must have one shape and one prompt; got {given}")


def faithfulness(
    subject: Subject,
    batch: Batch,
    right: Tokens,
    wrong: Tokens,
    circuits: Sequence[Circuit],
    means: Mapping[str, Tensor],
    *,
    target: int = 0,
) -> list[float]:
    """Returns the faithfulness of each circuit: 1 if it does what the whole model does, 0 if it
    does no more than a model without edges.

    It is (m(circuit) - m(no edge)) / (m(all edges) - m(no edge)), where m is the mean over items of
    logit(right) - logit(wrong) under `circuit_logits`. Source: Wang et al. 2022 (arXiv 2211.00593),
    normalized as in Marks et al. 2024 (arXiv 2403.19647).

    Args:
        subject: the model.
        batch: the items.
        right: one token id per item.
        wrong: the token id that competes with it.
        circuits: the circuits to measure.
        means: what edges outside a circuit carry, from `sender_means`.
        target: which of `batch.targets` the two tokens compete for.

    Raises:
        ValueError: the metric is the same with all edges and with none; or see `circuit_logits`.

    Example:
        >>> from interp.analysis.circuits import Circuit, faithfulness, sender_means
        >>> other = interp.Batch.from_frame(control)
        >>> right, wrong = batch.targets[:, 0], other.targets[:, 0]
        >>> both = [Circuit.empty(subject), Circuit.full(subject)]
        >>> faithfulness(subject, batch, right, wrong, both, sender_means(subject, other))
        [0.0, 1.0]
    """
    answers = _pair_answers(batch, right, wrong)

    def mean_metric(circuit: Circuit) -> float:
        logits = circuit_logits(subject, batch, circuit, means, target=target)
        return float(_logit_difference(logits, answers).mean())

    empty = mean_metric(Circuit.empty(subject))
    full = mean_metric(Circuit.full(subject))
    if full == empty:
        raise ValueError(
            f"logit(right) - logit(wrong) is {full:.3g} with all edges and with none: "
            "there is nothing to be faithful to"
        )
    metrics = [mean_metric(circuit) for circuit in circuits]
    whole = full - empty
    return [(metric - empty) / whole for metric in metrics]


def circuit_logits(
    subject: Subject,
    batch: Batch,
    circuit: Circuit,
    means: Mapping[str, Tensor],
    *,
    target: int = 0,
    batch_size: int = 64,
) -> Float[Tensor, "items vocabulary"]:
    """Returns the logits of one token per item when only the edges of a circuit are live.

    Every node reads from each sender what the sender computes in this run, if the edge is in the
    circuit, and the sender's mean otherwise.

    Args:
        subject: the model.
        batch: the items.
        circuit: the edges that are live.
        means: the mean of every sender at each position, from `sender_means`.
        target: which of `batch.targets` is predicted.
        batch_size: number of items per batch. Each item is run 1 + (heads of a block) times at
            once.

    Raises:
        ValueError: a circuit or means of another model, or means of fewer positions than the batch.
    """
    graph = Graph.of(subject)
    graph.check(circuit)
    missing = [name for name in graph.senders if name not in means]
    if missing:
        raise ValueError(
            f"means lack {len(missing)} of {len(graph.senders)} senders: "
            f"{', '.join(missing[:3])}; see sender_means"
        )
    in_order = [means[name].to(subject.device) for name in graph.senders]
    stacked = torch.stack(in_order)
    kept = torch.from_numpy(circuit.kept).to(stacked)
    most_heads = max(layer.count for layer in graph.layers)
    copies = 1 + most_heads  # see `_CircuitRun`

    logits: list[Tensor] = []
    for part in _predict_one(batch, target).split(batch_size):
        run = _CircuitRun(subject, graph, kept, stacked, len(part))
        with dropout_off(subject.module), torch.no_grad(), tapped(subject, run.visits()):
            of_all_copies = subject.target_logits(repeat_windows(part, copies))
        logits.append(of_all_copies[: len(part), 0])
    return torch.cat(logits)


def sender_means(
    subject: Subject, reference: Batch, batch_size: int = 64
) -> dict[str, Float[Tensor, "position d_model"]]:
    """Returns what each sender writes into the residual at each position, averaged over the items
    of a reference: what edges outside a circuit carry.

    Args:
        subject: the model.
        reference: items of one length.
        batch_size: number of items per batch.

    Raises:
        ValueError: a padded reference.
        SiteError: see `edge_effects`.

    Example:
        >>> from interp.analysis.circuits import sender_means
        >>> means = sender_means(subject, interp.Batch.from_frame(control))
        >>> len(means), means["blocks.1.heads.3"].shape
        (11, torch.Size([16, 32]))
    """
    if reference.mask is not None and not bool(reference.mask.all()):
        raise ValueError(
            "the reference is padded, so that its mean at a position is not over all items: "
            "expected items of one length"
        )
    graph = Graph.of(subject)
    # Summed in float64: a mean over thousands of items must not depend on how they are batched. One
    # part at a time, since what all senders write is many times the residual.
    sums = (
        sent(subject, graph, part).sum(0, dtype=torch.float64)
        for part in reference.split(batch_size)
    )
    means = torch.as_tensor(sum(sums)) / len(reference)
    return dict(zip(graph.senders, means, strict=True))


def _effects(
    subject: Subject, graph: Graph, clean: Batch, corrupt: Batch, answers: Tensor
) -> Float[Tensor, "items senders receivers"]:
    change = sent(subject, graph, corrupt) - sent(subject, graph, clean)
    shape = (len(clean), len(graph.senders), len(graph.receivers))
    effects = change.new_full(shape, torch.nan, dtype=torch.float64)

    # All items are differentiated at once, as a sum: no item's metric depends on another item.
    with captured(subject, graph.sites) as values:
        logits = subject.target_logits(clean)[:, 0]
        metric = _logit_difference(logits, answers)
    gradients = _input_gradients(graph, values, metric.sum())

    # sum_t (a_u(corrupt) - a_u(clean))_t . gradient_t, for all senders u that the receiver reads.
    # Receivers come one after the other, so that one gradient is in memory at a time.
    for receiver, gradient in enumerate(gradients):
        seen = graph.seen[receiver]
        precise = gradient.to(change.dtype)
        products = torch.einsum("iutd,itd->iu", change[:, :seen], precise)
        effects[:, :seen, receiver] = products.double()
    return effects


def _input_gradients(graph: Graph, values: Mapping[Site, Value], metric: Tensor) -> Iterator[Value]:
    """d metric / d input of each receiver in turn.

    The residual is one tensor that all later nodes read, so its own gradient is a sum over paths.
    The input of one node alone has no tensor; its gradient is the metric's gradient at the node's
    output, taken back through that node and no further.
    """
    outputs: list[Site] = []
    for layer in graph.layers:
        outputs += [layer.heads, layer.mlp]
    ends = [values[site] for site in (*outputs, graph.final)]
    # The graph is kept, because every node is taken back through its own part of it below.
    *at_outputs, at_final = torch.autograd.grad(metric, ends, retain_graph=True)
    gradients = dict(zip(outputs, at_outputs, strict=True))

    for layer in graph.layers:
        heads = values[layer.heads]
        # One backward pass per head: all heads read the same residual, and only the gradient at the
        # head's own columns is let through.
        for head in range(layer.count):
            own_gradient = _zero_other_heads(layer, head, gradients[layer.heads])
            yield _backpropagate(heads, own_gradient, values[layer.pre])
        mlp_input = values[layer.mid or layer.pre]
        yield _backpropagate(values[layer.mlp], gradients[layer.mlp], mlp_input)
    yield at_final


def _backpropagate(output: Value, gradient: Value, source: Value) -> Value:
    (at_source,) = torch.autograd.grad(output, source, gradient, retain_graph=True)
    return at_source


def _zero_other_heads(layer: Layer, head: int, value: Value) -> Value:
    width = value.shape[-1]
    head_width = width // layer.count
    columns = torch.arange(width, device=value.device)
    is_own = columns // head_width == head
    return torch.where(is_own, value, 0)


# In a circuit the nodes of one block read different inputs: an edge may be kept for head 0 and cut
# for head 1. A block, however, reads a single residual. So the batch holds 1 + (heads of a block)
# copies of the items. Copy 1 + h feeds each block the input of its head h, and of all heads that it
# computes only head h is used. Copy 0 carries the input of the MLP and of `final`, and the logits
# are read from it. Every input is rebuilt by hooks from what the senders wrote, so that nothing
# flows through the residual by itself.
class _CircuitRun:
    """One forward pass in which every node has an input of its own.

    `live[:, u]` is what sender u writes in this run; it is filled in the order of the senders.
    """

    def __init__(
        self, subject: Subject, graph: Graph, kept: Tensor, means: Tensor, items: int
    ) -> None:
        self.subject = subject
        self.graph = graph
        self.kept = kept
        self.means = means
        self.items = items
        self.live = means.new_zeros(items, *means.shape)
        biases = [out_bias(subject, layer).to(means) for layer in graph.layers]
        self.biases = torch.stack(biases)

    def visits(self) -> dict[Site, Visit]:
        visits: dict[Site, Visit] = {self.graph.final: self._replace_final}
        for number, layer in enumerate(self.graph.layers):
            visits[layer.pre] = partial(self._replace_block_input, number)
            visits[layer.heads] = partial(self._collect_heads, layer)
            visits[layer.mlp] = partial(self._collect_mlp, layer)
            if layer.mid is not None:
                visits[layer.mid] = partial(self._replace_mlp_input, number)
        return visits

    def _replace_block_input(self, number: int, value: Value, _: Clock) -> Tensor:
        layer = self.graph.layers[number]
        if number == 0:
            self._start(value[: self.items])
        # Numbers among the receivers, one less than those of the same heads among the senders.
        heads = slice(layer.first - 1, layer.last - 1)
        head_inputs = self._inputs(heads, layer.first, number)

        # Where the MLP reads after attention, its input is set there, and copy 0 passes unchanged.
        # Where both read the same residual, it is set here.
        unchanged = value[: self.items]
        copy_0 = self._mlp_input(layer, number) if layer.mid is None else unchanged
        inputs = torch.cat([copy_0.to(head_inputs), head_inputs])
        return _replace_first_rows(value, inputs)

    def _start(self, embedded: Value) -> None:
        positions = embedded.shape[1]
        if positions > self.means.shape[1]:
            raise ValueError(
                f"means have {self.means.shape[1]} positions; the items have {positions}"
            )
        self.means = self.means[..., :positions, :]
        self.live = self.live[..., :positions, :]
        self.live[:, 0] = embedded

    def _collect_heads(self, layer: Layer, value: Value, _: Clock) -> None:
        # [copy, items, position, head, head_width], without copy 0 and without the copies of heads
        # that only wider blocks have
        copies = value.unflatten(0, (-1, self.items))
        by_copy = copies[1 : layer.count + 1]
        by_copy_and_head = by_copy.unflatten(-1, (layer.count, -1))
        # Of each head what it computed in its own copy: copy and head, of the same number, become
        # one axis. `diagonal` puts it last, [items, position, head_width, head].
        diagonal = by_copy_and_head.diagonal(dim1=0, dim2=3)
        own = diagonal.movedim(-1, 2)  # [items, position, head, head_width]
        heads = slice(layer.first, layer.last)
        self.live[:, heads] = writes(self.subject, layer, own.flatten(2))

    def _replace_mlp_input(self, number: int, value: Value, _: Clock) -> Tensor:
        inputs = self._mlp_input(self.graph.layers[number], number + 1)
        return _replace_first_rows(value, inputs)

    def _collect_mlp(self, layer: Layer, value: Value, _: Clock) -> None:
        self.live[:, layer.last] = value[: self.items]

    def _replace_final(self, value: Value, _: Clock) -> Tensor:
        final = slice(-1, None)
        every_sender = len(self.graph.senders)
        every_block = len(self.graph.layers)
        inputs = self._inputs(final, every_sender, every_block)
        return _replace_first_rows(value, inputs)

    def _mlp_input(self, layer: Layer, blocks: int) -> Value:
        mlp = slice(layer.last - 1, layer.last)
        return self._inputs(mlp, layer.before_mlp, blocks)

    def _inputs(
        self, receivers: slice, seen: int, blocks: int
    ) -> Float[Tensor, "receivers*items position d_model"]:
        """The inputs of some receivers that read the first `seen` senders and the attention of the
        first `blocks` blocks, whose biases belong to no edge."""
        # input_v = sum_u kept[u, v] live_u + (1 - kept[u, v]) mean_u, for each receiver v:
        # [receivers, items, position, d_model]. The means are the same for all items.
        kept = self.kept[:seen, receivers]
        cut = 1 - kept
        live = torch.einsum("iutd,uv->vitd", self.live[:, :seen], kept)
        mean = torch.einsum("utd,uv->vtd", self.means[:seen], cut)
        bias = self.biases[:blocks].sum(0)
        inputs = live + mean[:, None] + bias
        return inputs.flatten(0, 1)


def _replace_first_rows(value: Value, rows: Tensor) -> Tensor:
    # What a node computes from the other copies is not used: they pass unchanged.
    rest = value[len(rows) :]
    return torch.cat([rows.to(value), rest])


def _logit_difference(
    logits: Float[Tensor, "items vocabulary"], answers: Int[Tensor, "items 2"]
) -> Float[Tensor, " items"]:
    """logit(right) - logit(wrong)"""
    low = int(answers.min())
    high = int(answers.max())
    last = logits.shape[-1] - 1
    if low < 0 or high > last:
        raise ValueError(f"right and wrong must be token ids 0 to {last}; got {low} to {high}")
    # In double precision: circuits are compared by differences of these differences.
    precise = logits.double()
    chosen = precise.gather(1, answers.to(logits.device))
    right, wrong = chosen.unbind(1)
    return right - wrong


def _pair_answers(batch: Batch, right: Tokens, wrong: Tokens) -> Int[Tensor, "items 2"]:
    both = [owned(tokens) for tokens in (right, wrong)]
    expected = (len(batch),)
    if any(tokens.shape != expected or tokens.is_floating_point() for tokens in both):
        given = [f"{tuple(tokens.shape)} of {tokens.dtype}" for tokens in both]
        raise ValueError(
            f"right and wrong hold one token id for each of the {len(batch)} items; "
            f"got {' and '.join(given)}"
        )
    return torch.stack(both, 1).long()


def _predict_one(batch: Batch, target: int) -> Batch:
    """The batch with a single target: the one that the two tokens compete for."""
    targets = batch.targets.shape[1]
    if not 0 <= target < targets or not bool(batch.counted[:, target].all()):
        raise ValueError(
            f"target={target}: expected one of the {targets} predicted tokens, and one that is "
            "measured in every item"
        )
    chosen = batch.prompt + target
    # Later tokens are cut off, except where tokens are predicted together: such a model looks ahead
    # within a group, and would predict something else without the rest of it.
    if batch.groups is None:
        batch = batch.until(chosen + 1)
    return replace(batch, prompt=chosen)
