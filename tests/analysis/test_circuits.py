"""Laws of edge attribution and circuits: an edge's score is the slope along a path rerouted by
hand; all edges together are the model."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import interp
from interp.analysis.circuits import (
    Circuit,
    EdgeScores,
    chance_iou,
    circuit_logits,
    edge_attribution,
    edge_effects,
    faithfulness,
    sender_means,
)
from interp.errors import SiteError
from interp.hooks.hooks import captured, tapped
from interp.sites.site import Site

IN_DOUBLES = (
    "gpt2",
    "neox",
    "neox_sequential",
    "opt",
    "phi",
)  # the others compute in part in float32 whatever they are loaded in
SMOOTH = (*IN_DOUBLES, "llama", "qwen2", "phi3", "bloom")
NAMES = (*SMOOTH, "mixtral")  # whose choice of experts jumps within a finite step
RIGHT, WRONG = torch.tensor([3, 11, 60]), torch.tensor([5, 2, 41])


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def subject_of(name: str) -> interp.Subject:
    return tiny.subject(name, torch.float64)


def items(name: str, seed: int = 0, rows: int = 3, length: int = 9) -> interp.Batch:
    return tiny.batch(name, rows=rows, length=length, prompt=5, seed=seed, dtype=torch.float64)


@functools.cache
def means_of(name: str) -> dict[str, Tensor]:
    return sender_means(subject_of(name), items(name, seed=7, rows=6))


@functools.cache
def effects_of(name: str) -> np.ndarray:
    return edge_effects(subject_of(name), items(name), items(name, seed=1), RIGHT, WRONG)


def written(subject: interp.Subject, batch: interp.Batch) -> dict[str, Tensor]:
    """What each sender writes, [items, position, d_model], in the order of the senders."""
    found = {"embed": tiny.values_by_hand(subject, batch, "blocks.0.resid_pre")}
    for block in range(len(subject.anatomy.blocks())):
        site = Site("heads", block)
        heads, rows = (
            tiny.values_by_hand(subject, batch, site),
            subject.anatomy.out_weight(subject.module, site).detach(),
        )
        for head in range(tiny.HEADS):
            columns = subject.anatomy.columns(site, np.array([head]))
            found[f"blocks.{block}.heads.{head}"] = heads[..., columns] @ rows[columns]
        found[f"blocks.{block}.mlp"] = tiny.values_by_hand(subject, batch, Site("mlp_out", block))
    return found


def source_of(subject: interp.Subject, receiver: str) -> Site:
    """The residual that a receiver reads."""
    if receiver == "final":
        return Site("resid_post", len(subject.anatomy.blocks()) - 1)
    block = int(receiver.split(".")[1])
    mid = Site("resid_mid", block)
    return mid if receiver.endswith("mlp") and mid in subject.sites else Site("resid_pre", block)


@torch.no_grad()
def rerouted(subject: interp.Subject, batch: interp.Batch, receiver: str, shift: Tensor) -> Tensor:
    """Logits of the first target when `shift` is added to what one receiver alone reads: one
    forward for what it puts out then, another in which it does."""
    source = source_of(subject, receiver)

    def moved(value: Tensor, _: object) -> Tensor:
        return value + shift

    if receiver == "final":
        with tapped(subject, {source: moved}):
            return subject.target_logits(batch)[:, 0]
    output = Site("mlp_out" if receiver.endswith("mlp") else "heads", source.block)
    columns = (
        slice(None)
        if receiver.endswith("mlp")
        else subject.anatomy.columns(output, np.array([int(receiver.split(".")[3])]))
    )
    seen: list[Tensor] = []

    def put(value: Tensor, _: object) -> Tensor:
        new = value.clone()
        new[..., columns] = seen[0][..., columns]
        return new

    with tapped(subject, {source: moved, output: lambda value, _: seen.append(value.clone())}):
        subject.touch(batch)
    with tapped(subject, {output: put}):
        return subject.target_logits(batch)[:, 0]


def metric(logits: Tensor, right: Tensor = RIGHT, wrong: Tensor = WRONG) -> np.ndarray:
    rows = torch.arange(len(logits))
    return (logits[rows, right] - logits[rows, wrong]).double().numpy()


def slope(
    subject: interp.Subject, batch: interp.Batch, receiver: str, shift: Tensor, step: float
) -> np.ndarray:
    """[items], by central difference."""
    up, down = (metric(rerouted(subject, batch, receiver, sign * step * shift)) for sign in (1, -1))
    return (up - down) / (2 * step)


def precision(name: str) -> tuple[float, dict[str, float]]:
    return (
        (1e-4, {"rtol": 1e-5, "atol": 1e-7})
        if name in IN_DOUBLES
        else (1e-2, {"rtol": 1e-2, "atol": 1e-3})
    )


def names(subject: interp.Subject) -> tuple[tuple[str, ...], tuple[str, ...]]:
    full = Circuit.full(subject)
    return full.senders, full.receivers


def random_circuit(subject: interp.Subject, seed: int, share: float = 0.5) -> Circuit:
    full = Circuit.full(subject)
    return Circuit(
        full.senders,
        full.receivers,
        full.kept & (np.random.default_rng(seed).random(full.kept.shape) < share),
    )


def test_an_edge_is_where_the_sender_is_computed_first(name):
    full = Circuit.full(subject_of(name))
    edges = {(full.senders[u], full.receivers[v]) for u, v in np.argwhere(full.kept)}
    beside = ("blocks.1.heads.2", "blocks.1.mlp") in edges
    assert beside == (name not in tiny.PARALLEL)
    assert (
        len(full)
        == len(edges)
        == 4 * (1 + 6 + 11) + (18 if name in tiny.PARALLEL else 5 + 10 + 15) + 16
    )
    assert {
        ("embed", "blocks.0.heads.0"),
        ("embed", "final"),
        ("blocks.2.mlp", "final"),
        ("blocks.0.mlp", "blocks.1.heads.3"),
    } <= edges
    assert (
        not {
            ("blocks.1.heads.0", "blocks.1.heads.1"),
            ("blocks.1.mlp", "blocks.1.mlp"),
            ("blocks.2.mlp", "blocks.1.mlp"),
        }
        & edges
    )
    assert len(Circuit.empty(subject_of(name))) == 0


@pytest.mark.parametrize("name", SMOOTH)
def test_the_score_is_the_slope_when_one_edge_alone_moves_towards_the_corrupt_item(name):
    subject, clean = subject_of(name), items(name)
    before, after = written(subject, clean), written(subject, items(name, seed=1))
    step, tolerance = precision(name)
    senders, receivers = names(subject)
    every = [tuple(edge) for edge in np.argwhere(Circuit.full(subject).kept)]
    picked = np.random.default_rng(4).permutation(len(every))[:14]
    mlps = [(0, receivers.index("blocks.0.mlp")), (1, receivers.index("blocks.1.mlp"))]
    for u, v in [*(every[i] for i in picked), *mlps, (3, len(receivers) - 1)]:
        shift = after[senders[u]] - before[senders[u]]
        np.testing.assert_allclose(
            effects_of(name)[:, u, v], slope(subject, clean, receivers[v], shift, step), **tolerance
        )
    assert np.nanmax(np.abs(effects_of(name))) > 0.1


@pytest.mark.parametrize("name", SMOOTH)
def test_the_scores_into_a_receiver_add_up_to_the_slope_along_the_whole_residual(name):
    subject, clean, corrupt = subject_of(name), items(name), items(name, seed=1)
    step, tolerance = precision(name)
    for v, receiver in enumerate(names(subject)[1]):
        source = source_of(subject, receiver)
        shift = tiny.values_by_hand(subject, corrupt, source) - tiny.values_by_hand(
            subject, clean, source
        )
        expected = slope(subject, clean, receiver, shift, step)
        np.testing.assert_allclose(
            np.nansum(effects_of(name)[:, :, v], axis=1), expected, **tolerance
        )


def test_the_scores_into_the_end_are_the_gradient_there(name):
    subject, clean = subject_of(name), items(name)
    last = source_of(subject, "final")
    with captured(subject, (last,)) as values:
        logits = subject.target_logits(clean)[:, 0]
    chosen = logits.gather(1, RIGHT[:, None]).sum() - logits.gather(1, WRONG[:, None]).sum()
    gradient = torch.autograd.grad(chosen, values[last])[0]
    changes = zip(
        written(subject, items(name, seed=1)).values(),
        written(subject, clean).values(),
        strict=True,
    )
    direct = torch.stack(
        [((after - before) * gradient).sum((1, 2)) for after, before in changes], 1
    )
    np.testing.assert_allclose(effects_of(name)[:, :, -1], direct.numpy(), rtol=1e-5, atol=1e-8)


def test_the_reported_score_is_the_mean_size_over_items():
    scores = edge_attribution(
        subject_of("gpt2"), items("gpt2"), items("gpt2", seed=1), RIGHT, WRONG
    )
    effects = effects_of("gpt2")
    np.testing.assert_allclose(scores.values, sum(np.abs(effects[i]) for i in range(3)) / 3)
    assert (
        np.abs(effects.mean(0)) < 0.9 * scores.values
    ).any()  # else the law could not tell them apart
    assert (scores.edges == Circuit.full(subject_of("gpt2")).kept).all()
    assert (scores.senders, scores.receivers) == names(subject_of("gpt2"))


def test_all_edges_are_the_model_and_no_edge_is_the_same_for_every_item(name):
    subject, batch = subject_of(name), items(name)
    with torch.no_grad():
        plain = subject.target_logits(batch)
    close = {"rtol": 0, "atol": 1e-8 if name in IN_DOUBLES else 1e-5}
    for target in (0, 2):
        full = circuit_logits(subject, batch, Circuit.full(subject), means_of(name), target=target)
        torch.testing.assert_close(full, plain[:, target], **close)
        empty = circuit_logits(
            subject, batch, Circuit.empty(subject), means_of(name), target=target
        )
        torch.testing.assert_close(empty, empty[:1].expand_as(empty), **close)
        assert (empty - plain[:, target]).abs().max() > 0.1


def test_all_edges_are_the_model_in_single_precision(name):
    subject, batch = tiny.subject(name), tiny.batch(name, rows=3, prompt=4)
    with torch.no_grad():
        plain = subject.target_logits(batch)[:, 0]
    full = circuit_logits(
        subject,
        batch,
        Circuit.full(subject),
        sender_means(subject, tiny.batch(name, seed=3, rows=4)),
    )
    torch.testing.assert_close(full, plain, rtol=0, atol=1e-5)


def test_taking_out_one_edge_is_rerouting_its_mean(name):
    subject, batch = subject_of(name), items(name)
    live, full = written(subject, batch), Circuit.full(subject)
    close = {"rtol": 0, "atol": 1e-8 if name in IN_DOUBLES else 1e-5}
    every = np.argwhere(full.kept)
    for u, v in every[np.random.default_rng(2).permutation(len(every))[:12]]:
        kept = full.kept.copy()
        kept[u, v] = False
        found = circuit_logits(
            subject, batch, Circuit(full.senders, full.receivers, kept), means_of(name)
        )
        shift = means_of(name)[full.senders[u]] - live[full.senders[u]]
        torch.testing.assert_close(
            found, rerouted(subject, batch, full.receivers[v], shift), **close
        )


def plain_language(*heads: int) -> interp.Subject:
    return tiny.wrapped(
        tiny.seeded(
            lambda: tiny.Language(*(tiny.Block(32, n, causal=True) for n in heads)), torch.float64
        )
    )


@torch.no_grad()
def by_formula(
    module: tiny.Language, tokens: Tensor, circuit: Circuit, means: dict[str, Tensor]
) -> Tensor:
    """The last position's logits of `tiny.Language` when each node reads its own sum, written out
    node by node."""
    live = {"embed": module.embed(tokens)}
    constant = torch.zeros(32, dtype=torch.float64)

    def read(receiver: str) -> Tensor:
        kept = circuit.kept[:, circuit.receivers.index(receiver)]
        parts = [
            live[name] if kept[circuit.senders.index(name)] else means[name].expand_as(live[name])
            for name in live
        ]
        return constant + sum(parts)

    for number, block in enumerate(module.trunk):
        assert isinstance(block, tiny.Block)
        attention, wrote, size = block.attn, {}, 32 // block.attn.heads
        for head in range(attention.heads):
            own = slice(head * size, (head + 1) * size)
            q, k, v = (
                t[..., own]
                for t in attention.qkv(block.before(read(f"blocks.{number}.heads.{head}"))).chunk(
                    3, -1
                )
            )
            weights = (
                (q @ k.mT / math.sqrt(size))
                .masked_fill(torch.ones(q.shape[1], q.shape[1]).triu(1).bool(), -torch.inf)
                .softmax(-1)
            )
            wrote[f"blocks.{number}.heads.{head}"] = weights @ v @ attention.out.weight[:, own].T
        live, constant = live | wrote, constant + attention.out.bias
        live[f"blocks.{number}.mlp"] = block.down(
            nn.functional.gelu(block.up(block.between(read(f"blocks.{number}.mlp"))))
        )
    return module.head(module.norm(read("final")))[:, -2]


@pytest.mark.parametrize("heads", [(4, 4), (2, 4, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_circuit_is_what_its_formula_says(heads, seed):
    subject = plain_language(*heads)
    batch, reference = tiny.batch("plain", 3, 7, prompt=6), tiny.batch("plain", 5, 7, seed=1)
    means, circuit = sender_means(subject, reference), random_circuit(subject, seed)
    found = circuit_logits(subject, batch, circuit, means)
    torch.testing.assert_close(
        found, by_formula(subject.module, batch.tokens, circuit, means), rtol=0, atol=1e-10
    )
    assert (found - circuit_logits(subject, batch, Circuit.full(subject), means)).abs().max() > 0.1


def test_the_mean_of_a_sender_is_over_items_at_each_position_and_the_senders_are_the_residual(name):
    subject, reference = subject_of(name), items(name, seed=7, rows=6)
    found = sender_means(subject, reference, batch_size=4)
    for sender, value in written(subject, reference).items():
        torch.testing.assert_close(found[sender], value.mean(0), rtol=1e-7, atol=1e-9)
    residual = tiny.values_by_hand(subject, reference, source_of(subject, "final")).mean(0)
    constant = residual - sum(found.values())
    torch.testing.assert_close(
        constant,
        constant[:1].expand_as(constant),
        rtol=0,
        atol=1e-8 if name in IN_DOUBLES else 1e-5,
    )


def test_faithfulness_is_the_share_of_the_metric_that_comes_back():
    subject, batch, means = subject_of("gpt2"), items("gpt2"), means_of("gpt2")
    full, empty, some = (
        Circuit.full(subject),
        Circuit.empty(subject),
        random_circuit(subject, 5, 0.7),
    )
    m = [
        metric(circuit_logits(subject, batch, circuit, means, target=1)).mean()
        for circuit in (some, empty, full)
    ]
    found = faithfulness(subject, batch, RIGHT, WRONG, [some, empty, full], means, target=1)
    assert found == pytest.approx([(m[0] - m[1]) / (m[2] - m[1]), 0.0, 1.0])
    assert abs(found[0]) > 1e-3


def test_there_is_nothing_to_be_faithful_to_where_no_edge_matters():
    with pytest.raises(
        ValueError, match=r"is 0 with all edges and with none: there is nothing to be faithful to"
    ):
        faithfulness(
            subject_of("gpt2"),
            items("gpt2"),
            RIGHT,
            RIGHT,
            [Circuit.full(subject_of("gpt2"))],
            means_of("gpt2"),
        )


def test_the_best_edges_are_more_faithful_than_the_worst():
    subject, batch, means = subject_of("gpt2"), items("gpt2"), means_of("gpt2")
    scores = EdgeScores(*names(subject), np.abs(effects_of("gpt2")).mean(0))
    missed = [
        abs(1 - faithfulness(subject, batch, RIGHT, WRONG, [chosen.top(0.5)], means)[0])
        for chosen in (scores, EdgeScores(scores.senders, scores.receivers, -scores.values))
    ]
    assert missed[0] < 0.5 * missed[1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_an_item_scores_the_same_in_any_company(name):
    subject, clean, corrupt, circuit = (
        subject_of(name),
        items(name),
        items(name, seed=1),
        random_circuit(subject_of(name), 3),
    )
    close = {"rtol": 1e-7, "atol": 1e-10} if name in IN_DOUBLES else {"rtol": 1e-4, "atol": 1e-5}
    for size in (1, 2):
        np.testing.assert_allclose(
            edge_effects(subject, clean, corrupt, RIGHT, WRONG, batch_size=size),
            effects_of(name),
            **close,
        )
        found = circuit_logits(subject, clean, circuit, means_of(name), batch_size=size)
        torch.testing.assert_close(
            found, circuit_logits(subject, clean, circuit, means_of(name)), **close
        )
    rows = [slice(n, n + 1) for n in range(3)]
    pairs = zip(rows, clean.split(1), corrupt.split(1), strict=True)
    alone = np.concatenate(
        [edge_effects(subject, one, other, RIGHT[r], WRONG[r]) for r, one, other in pairs]
    )
    np.testing.assert_allclose(alone, effects_of(name), **close)


def test_a_step_is_a_longer_prompt_and_what_follows_it_or_pads_does_not_count():
    subject, clean, corrupt = subject_of("gpt2"), items("gpt2"), items("gpt2", seed=1)
    found = edge_effects(subject, clean, corrupt, RIGHT, WRONG, target=1)
    longer = [interp.Batch(batch.tokens, 6) for batch in (clean, corrupt)]
    np.testing.assert_allclose(found, edge_effects(subject, *longer, RIGHT, WRONG))
    assert not np.allclose(found[:, 0, 0], effects_of("gpt2")[:, 0, 0], rtol=0.1)
    mask = torch.arange(9) < torch.tensor([9, 8, 7])[:, None]
    padded = [interp.Batch(batch.tokens * mask, 5, mask) for batch in (clean, corrupt)]
    np.testing.assert_allclose(found, edge_effects(subject, *padded, RIGHT, WRONG, target=1))
    with pytest.raises(
        ValueError,
        match=r"target=3: expected one of the 4 predicted tokens, and one that is measured",
    ):
        edge_effects(subject, *padded, RIGHT, WRONG, target=3)


def test_tokens_predicted_together_are_all_seen():
    """By a model that looks ahead, of which the corrupt items differ in the last token alone."""
    subject = tiny.looking_ahead(
        tiny.seeded(
            lambda: tiny.Language(*(tiny.Block(32, 4, causal=False) for _ in range(2))),
            torch.float64,
        )
    )
    changed = items("plain").tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % tiny.VOCABULARY
    for groups, matters in ((((0, 5), (5, 9)), True), (None, False)):
        clean, corrupt = (
            interp.Batch(tokens, 5, groups=groups) for tokens in (items("plain").tokens, changed)
        )
        assert (
            np.nanmax(np.abs(edge_effects(subject, clean, corrupt, RIGHT, WRONG))) > 0.01
        ) == matters


def test_frozen_weights_change_no_score():
    subject = tiny.wrapped(tiny.model("gpt2", torch.float64).requires_grad_(False))
    found = edge_effects(subject, items("gpt2"), items("gpt2", seed=1), RIGHT, WRONG)
    np.testing.assert_allclose(found, effects_of("gpt2"), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_nothing_stays_behind(name):
    subject = tiny.wrapped(tiny.model(name, torch.float64))
    subject.module.train()
    clean, corrupt, reference = items(name), items(name, seed=1), items(name, seed=7, rows=6)
    with tiny.untouched(subject.module), torch.inference_mode():
        found = edge_effects(subject, clean, corrupt, RIGHT, WRONG)
        means = sender_means(subject, reference)
        logits = circuit_logits(subject, clean, random_circuit(subject, 1), means)
    np.testing.assert_allclose(found, effects_of(name), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(
        logits,
        circuit_logits(subject_of(name), items(name), random_circuit(subject, 1), means_of(name)),
    )
    assert all(p.grad is None for p in subject.module.parameters())
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match="means have 2 positions; the items have 6"),
    ):
        circuit_logits(
            subject,
            items(name),
            Circuit.full(subject),
            {sender: mean[:2] for sender, mean in means.items()},
        )


def circuit(*rows: str) -> Circuit:
    kept = np.array([[c == "x" for c in row] for row in rows])
    return Circuit(tuple("ab"[: kept.shape[0]]), tuple("uvw"[: kept.shape[1]]), kept)


def test_the_overlap_of_circuits_by_hand():
    one, other = circuit("xx.", "..x"), circuit(".x.", "x.x")
    assert (len(one), len(other)) == (3, 3)
    assert one.iou(other) == other.iou(one) == 2 / 4
    assert one.iou(one) == 1.0
    assert one.iou(circuit("..x", "xx.")) == 0.0
    assert one.iou(circuit("xxx", "xxx")) == 3 / 6
    assert circuit("...", "...").iou(circuit("...", "...")) == 1.0
    assert one.iou(circuit("...", "...")) == 0.0
    assert [chance_iou(f) for f in (1.0, 0.5, 0.2)] == pytest.approx([1.0, 1 / 3, 1 / 9])


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.6])
def test_random_circuits_overlap_by_chance(fraction):
    rng = np.random.default_rng(0)
    nodes = tuple(map(str, range(40)))
    pairs = [
        [EdgeScores(nodes, nodes, rng.random((40, 40))).top(fraction) for _ in range(2)]
        for _ in range(40)
    ]
    found = [one.iou(other) for one, other in pairs]
    assert np.mean(found) == pytest.approx(
        chance_iou(fraction), abs=4 * np.std(found) / math.sqrt(40) + 1e-3
    )
    assert 0 < np.std(found) < 0.03


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_the_top_is_a_count_of_the_best_edges_and_nested(seed, low, high):
    rng = np.random.default_rng(seed)
    values = rng.permutation(42).reshape(6, 7).astype(float)
    values[rng.random((6, 7)) < 0.3] = np.nan
    values[0, 0] = 50.0
    scores = EdgeScores(tuple("abcdef"), tuple("tuvwxyz"), values)
    few, many = (scores.top(share) for share in sorted((low, high)))
    edges = int((~np.isnan(values)).sum())
    assert (len(few), len(many)) == tuple(
        max(1, round(share * edges)) for share in sorted((low, high))
    )
    assert not (few.kept & ~many.kept).any()
    assert not few.kept[np.isnan(values)].any()
    assert few.kept[0, 0]
    assert values[few.kept].min() > np.nanmax(np.where(few.kept, -1.0, values))
    assert few.iou(many) == len(few) / len(many)


def test_scores_as_a_frame_and_their_rank_correlation():
    values = np.array([[1.0, 4.0, np.nan], [2.0, np.nan, 8.0]])
    scores = EdgeScores(("a", "b"), ("u", "v", "w"), values)
    rows = [("a", "u", 1.0), ("a", "v", 4.0), ("b", "u", 2.0), ("b", "w", 8.0)]
    assert list(scores.frame().itertuples(index=False, name=None)) == rows
    assert list(scores.frame().columns) == ["sender", "receiver", "score"]
    assert scores.spearman(
        EdgeScores(scores.senders, scores.receivers, values**3)
    ) == pytest.approx(1.0)
    assert scores.spearman(EdgeScores(scores.senders, scores.receivers, -values)) == pytest.approx(
        -1.0
    )
    swapped = EdgeScores(
        scores.senders, scores.receivers, np.array([[2.0, 3.0, np.nan], [1.0, np.nan, 4.0]])
    )
    assert scores.spearman(swapped) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert np.isnan(scores.spearman(EdgeScores(scores.senders, scores.receivers, values * 0)))
    with pytest.raises(
        ValueError, match=r"4 edges here, 6 there: expected scores of the same edges"
    ):
        scores.spearman(EdgeScores(scores.senders, scores.receivers, np.ones((2, 3))))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_is_of_all_edges(fraction):
    scores = EdgeScores(("a",), ("u", "v"), np.ones((1, 2)))
    for call in (scores.top, chance_iou):
        with pytest.raises(ValueError, match=r"expected a share of all edges in \(0, 1\]"):
            call(fraction)


def test_values_of_another_shape_and_circuits_of_other_nodes_are_refused():
    with pytest.raises(
        ValueError, match=r"one value for each of 1 senders and 2 receivers; got \(2, 1\)"
    ):
        EdgeScores(("a",), ("u", "v"), np.ones((2, 1)))
    with pytest.raises(
        ValueError, match=r"one value for each of 1 senders and 2 receivers; got \(2,\)"
    ):
        Circuit(("a",), ("u", "v"), np.ones(2, dtype=bool))
    with pytest.raises(ValueError, match=r"expected booleans; got float64"):
        Circuit(("a",), ("u", "v"), np.ones((1, 2)))
    with pytest.raises(
        ValueError,
        match=r"the same nodes; got 2 senders and 3 receivers, and 2 senders and 2 receivers",
    ):
        circuit("xxx", "xxx").iou(circuit("xx", "xx"))


def test_a_circuit_or_means_of_another_model_are_refused():
    subject, batch, full = subject_of("gpt2"), items("gpt2"), Circuit.full(subject_of("gpt2"))
    with pytest.raises(
        ValueError,
        match=r"the same nodes; got 16 senders and 16 receivers, and 11 senders and 11 receivers",
    ):
        circuit_logits(subject, batch, Circuit.full(plain_language(4, 4)), means_of("gpt2"))
    backwards = Circuit(full.senders, full.receivers, np.ones_like(full.kept))
    with pytest.raises(
        ValueError, match=r"138 of 256 edges lead to a node that is computed earlier"
    ):
        circuit_logits(subject, batch, backwards, means_of("gpt2"))
    with pytest.raises(
        ValueError,
        match=r"means lack 15 of 16 senders: blocks.0.heads.0, blocks.0.heads.1, blocks.0.heads.2",
    ):
        circuit_logits(subject, batch, full, {"embed": means_of("gpt2")["embed"]})
    with pytest.raises(ValueError, match=r"the reference is padded"):
        sender_means(subject, tiny.batch("gpt2", padded=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corrupt": items("gpt2", rows=2)},
            r"one shape and one prompt; got \(3, 9\) after a prompt of 5 and \(2, 9\)",
        ),
        (
            {"corrupt": items("gpt2", length=8)},
            r"one shape and one prompt; got .* and \(3, 8\) after a prompt of 5",
        ),
        (
            {"corrupt": tiny.batch("gpt2", rows=3, prompt=4)},
            r"one shape and one prompt; got .* after a prompt of 4",
        ),
        (
            {"right": RIGHT[:2]},
            r"one token id for each of the 3 items; got \(2,\) of torch.int64 and \(3,\)",
        ),
        ({"wrong": RIGHT[:, None]}, r"one token id for each of the 3 items; got .* and \(3, 1\)"),
        (
            {"right": RIGHT.float()},
            r"one token id for each of the 3 items; got \(3,\) of torch.float32",
        ),
        ({"wrong": torch.tensor([1, 2, 67])}, r"token ids 0 to 66; got 1 to 67"),
        ({"wrong": torch.tensor([1, -2, 6])}, r"token ids 0 to 66; got -2 to 60"),
        ({"target": 4}, r"target=4: expected one of the 4 predicted tokens"),
        ({"target": -1}, r"target=-1: expected one of the 4 predicted tokens"),
    ],
)
def test_bad_input_gets_one_clear_error(changes, message):
    given = {
        "clean": items("gpt2"),
        "corrupt": items("gpt2", seed=1),
        "right": RIGHT,
        "wrong": WRONG,
    } | changes
    with tiny.untouched(subject_of("gpt2").module), pytest.raises(ValueError, match=message):
        edge_attribution(subject_of("gpt2"), **given)


def test_the_first_token_is_predicted_from_nothing_and_no_edge_matters():
    batches = [tiny.batch("gpt2", 3, prompt=0, seed=seed, dtype=torch.float64) for seed in (0, 1)]
    assert np.nanmax(np.abs(edge_effects(subject_of("gpt2"), *batches, RIGHT, WRONG))) == 0
    assert (
        np.nanmax(np.abs(edge_effects(subject_of("gpt2"), *batches, RIGHT, WRONG, target=1))) > 0.01
    )


def test_token_ids_may_be_numpys():
    found = edge_effects(
        subject_of("gpt2"), items("gpt2"), items("gpt2", seed=1), RIGHT.numpy(), WRONG.numpy()
    )
    np.testing.assert_array_equal(found, effects_of("gpt2"))


def invisible() -> interp.Subject:
    return tiny.wrapped(
        tiny.seeded(
            lambda: tiny.Language(
                *(tiny.Block(32, 4, causal=True, attention=tiny.Invisible) for _ in range(2))
            )
        )
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tiny.subject("gemma3"),
            r"blocks.0.attn_out is not what blocks.0.heads write .* mixes the heads",
        ),
        (
            lambda: tiny.subject("policy"),
            r"one stack of blocks; this model has 'vision', 'decoder'",
        ),
        (invisible, r"blocks.0.heads: 0 attention operations seen"),
    ],
)
def test_a_model_without_such_edges_is_refused_by_name(make, message):
    subject, kind = make(), "policy" if "policy" in message or "vision" in message else "gpt2"
    batch = tiny.batch(kind, rows=3, prompt=4)
    with pytest.raises(SiteError, match=message):
        sender_means(subject, batch)
    with pytest.raises(SiteError, match=message):
        edge_effects(subject, batch, batch, RIGHT, WRONG)
