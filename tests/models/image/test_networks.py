"""Laws of VAR and RAR: the published shapes, forwards worked out from a state dict by hand, what
each position sees, what sites mean."""

from __future__ import annotations

import copy
from itertools import pairwise
from math import log

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import interp
from interp.engine.sweeping import sweep, sweep_growing, sweep_naively, sweep_resuming
from interp.models.image.image_model import own_state
from interp.models.image.rar import RAR, RARConfig
from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig
from interp.models.image.streams import anneal_orders, drop_labels
from interp.models.image.var import VAR, VARConfig
from interp.sites.site import BLOCK_POINTS

Shapes = dict[str, tuple[int, ...]]
LARGE = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@pytest.fixture(params=tiny.IMAGE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def subject(name: str) -> interp.Subject:
    return tiny.subject(name, torch.float64)


# -- the published checkpoints
# ---------------------------------------------------------------------------------------------------------


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def published_var(depth: int, length: int, scales: int, *, shared: bool) -> Shapes:
    C = 64 * depth
    keys: Shapes = {
        "pos_start": (1, 1, C),
        "pos_1LC": (1, length, C),
        "class_emb.weight": (1001, C),
        "lvl_embed.weight": (scales, C),
    }
    keys |= {"lvl_1L": (1, length), "attn_bias_for_masking": (1, 1, length, length)} | linear(
        "word_embed", C, 32
    )
    for i in range(depth):
        at = f"blocks.{i}"
        keys |= {f"{at}.attn.scale_mul_1H11": (1, depth, 1, 1)} | {
            f"{at}.attn.{x}_bias": (C,) for x in ("q", "v", "zero_k")
        }
        keys |= linear(f"{at}.attn.mat_qkv", 3 * C, C, bias=False) | linear(f"{at}.attn.proj", C, C)
        keys |= linear(f"{at}.ffn.fc1", 4 * C, C) | linear(f"{at}.ffn.fc2", C, 4 * C)
        keys |= {f"{at}.ada_gss": (1, 1, 6, C)} if shared else linear(f"{at}.ada_lin.1", 6 * C, C)
    keys |= linear("shared_ada_lin.1", 6 * C, C) if shared else {}
    return keys | linear("head_nm.ada_lin.1", 2 * C, C) | linear("head", 4096, C)


def published_rar(width: int, depth: int, hidden: int) -> Shapes:
    keys: Shapes = {
        "cls_token": (1, 1, width),
        "timesteps_embeddings": (1, 356, width),
        "embeddings.weight": (2026, width),
    }
    keys |= {"pos_embed": (1, 1280, width), "target_aware_pos_embed": (1, 1280, width)}
    for i in range(depth):
        at = f"blocks.{i}"
        norms = {f"{at}.norm{n}": width for n in (1, 2)} | {
            f"{at}.attn.{x}_norm": width // 16 for x in "qk"
        }
        keys |= {
            f"{norm}.{part}": (size,) for norm, size in norms.items() for part in ("weight", "bias")
        }
        keys |= linear(f"{at}.attn.qkv", 3 * width, width) | linear(f"{at}.attn.proj", width, width)
        keys |= linear(f"{at}.mlp.fc1", hidden, width) | linear(f"{at}.mlp.fc2", width, hidden)
        keys |= linear(f"{at}.adaLN_modulation.1", 6 * width, width)
    return (
        keys
        | linear("adaln_before_head.adaLN_modulation.1", 2 * width, width)
        | linear("lm_head", 1024, width)
    )


def neurons(model: torch.nn.Module) -> int:
    return sum(p.shape[0] for key, p in model.named_parameters() if key.endswith("fc1.weight"))


def millions(model: torch.nn.Module) -> float:
    """Parameters without the tokenizer's; buffers are none of the published counts."""
    return round(
        sum(p.numel() for key, p in model.named_parameters() if not key.startswith("tokenizer."))
        / 1e6,
        1,
    )


@pytest.mark.parametrize(
    ("depth", "count", "units"),
    [
        (16, 310.3, 65_536),
        (20, 600.9, 102_400),
        (24, 1033.4, 147_456),
        (30, 2010.0, 230_400),
        (36, 2353.9, 331_776),
    ],
)
def test_vars_have_the_published_shapes_and_sizes(depth, count, units):
    sides = LARGE if depth == 36 else VARConfig().sides
    sizes = {
        "width": 64 * depth,
        "depth": depth,
        "heads": depth,
        "hidden": 256 * depth,
        "shared": depth == 36,
    }
    with torch.device("meta"):
        model = VAR(VARConfig(sides, **sizes), ResidualVQ(ResidualVQConfig(sides)))
    table = published_var(depth, sum(side**2 for side in sides), len(sides), shared=depth == 36)
    assert {key: tuple(value.shape) for key, value in own_state(model).items()} == table
    assert (millions(model), neurons(model), model.length) == (
        count,
        units,
        2240 if depth == 36 else 680,
    )


@pytest.mark.parametrize(
    ("width", "depth", "hidden", "count", "units"),
    [
        (768, 24, 3072, 260.9, 73_728),
        (1024, 24, 4096, 461.7, 98_304),
        (1280, 32, 5120, 955.4, 163_840),
        (1408, 40, 6144, 1498.5, 245_760),
    ],
)
def test_rars_have_the_published_shapes_and_sizes(width, depth, hidden, count, units):
    with torch.device("meta"):
        model = RAR(RARConfig(width=width, depth=depth, hidden=hidden), RasterVQ(RasterVQConfig()))
    assert {key: tuple(value.shape) for key, value in own_state(model).items()} == published_rar(
        width, depth, hidden
    )
    assert (millions(model), neurons(model), model.length) == (count, units, 256)


def test_the_defaults_are_the_smallest_published_ones():
    assert VARConfig() == VARConfig(
        (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 1024, 16, 16, 4096, 4096, 32, 1000
    )
    assert RARConfig() == RARConfig(16, 768, 24, 16, 3072, 1024, 1000)


def test_the_parts_of_an_image_are_scales_and_rows():
    with torch.device("meta"):
        var = VAR(VARConfig(), ResidualVQ(ResidualVQConfig()))
        rar = RAR(RARConfig(), RasterVQ(RasterVQConfig()))
    ends = (0, 1, 5, 14, 30, 55, 91, 155, 255, 424, 680)
    assert var.all_groups == tuple((s.start, s.stop) for s in var.segments) == tuple(pairwise(ends))
    assert [s.name for s in var.segments if s.degenerate] == ["scale 1"]
    assert rar.all_groups == tuple((t, t + 1) for t in range(256))
    assert [s.name for s in rar.segments if s.degenerate] == ["cls", "class"]
    assert [s.stop for s in rar.segments] == [1, 2, *range(17, 258, 16)]
    assert [s.start for s in rar.segments] == [0, *(s.stop for s in rar.segments[:-1])]


# -- the forward, from a state dict
# ----------------------------------------------------------------------------------------------------


def normed(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    y = (x - mean) / (variance + 1e-6).sqrt()
    return y if weight is None else y * weight + bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def applied(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attended(q: Tensor, k: Tensor, v: Tensor, reach: list[int]) -> Tensor:
    """One head of one image, [position, d_head]; position t sees the first reach[t]."""
    rows = [torch.softmax(q[t] @ k[:stop].T, -1) @ v[:stop] for t, stop in enumerate(reach)]
    return torch.stack(rows)


def in_heads(x: Tensor) -> list[Tensor]:
    return list(x.split(x.shape[-1] // tiny.HEADS, dim=-1))


def var_by_hand(model: VAR, tokens: Tensor, label: int) -> Tensor:
    """The logits of one image, from all of its tokens."""
    state, last = model.state_dict(), sum(side**2 for side in model.config.sides[:-1])
    condition, features = (
        state["class_emb.weight"][label],
        model.tokenizer.next_inputs(tokens[None, :last])[0],
    )
    x = torch.cat(
        [(condition + state["pos_start"][0, 0])[None], applied(state, "word_embed", features)]
    )
    level = [n for n, side in enumerate(model.config.sides) for _ in range(side**2)]
    reach = [level.index(n) + level.count(n) for n in level]
    x = x + state["lvl_embed.weight"][level] + state["pos_1LC"][0]
    for i in range(model.config.depth):
        at, shared = f"blocks.{i}", model.config.shared
        six = applied(
            state, "shared_ada_lin.1" if shared else f"{at}.ada_lin.1", silu(condition)
        ).reshape(6, -1)
        g1, g2, s1, s2, b1, b2 = six + state[f"{at}.ada_gss"][0, 0] if shared else six
        bias = torch.cat([state[f"{at}.attn.{part}_bias"] for part in ("q", "zero_k", "v")])
        q, k, v = ((normed(x) * (1 + s1) + b1) @ state[f"{at}.attn.mat_qkv.weight"].T + bias).chunk(
            3, -1
        )
        heat = state[f"{at}.attn.scale_mul_1H11"].flatten().clamp(max=log(100)).exp()
        heads = zip(in_heads(q), in_heads(k), in_heads(v), heat, strict=True)
        mixed = [
            attended(
                t * a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True), c, reach
            )
            for a, b, c, t in heads
        ]
        x = x + applied(state, f"{at}.attn.proj", torch.cat(mixed, -1)) * g1
        h = applied(state, f"{at}.ffn.fc1", normed(x) * (1 + s2) + b2)
        h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + applied(state, f"{at}.ffn.fc2", h) * g2
    scale, shift = applied(state, "head_nm.ada_lin.1", silu(condition)).chunk(2, -1)
    return applied(state, "head", normed(x) * (1 + scale) + shift)


def rar_by_hand(model: RAR, tokens: Tensor, label: int, order: list[int]) -> Tensor:
    """The logits of one image in its own order, read in another."""
    state, codes = model.state_dict(), model.config.codes
    table, own, target = (
        state["embeddings.weight"],
        state["pos_embed"][0],
        state["target_aware_pos_embed"][0],
    )
    given = table[codes + 1 + label]
    rows = [state["cls_token"][0, 0] + own[0], given + own[1] + target[2 + order[0]]]
    for place, following in pairwise(order):
        rows.append(table[tokens[place]] + own[2 + place] + target[2 + following])
    x = torch.stack(rows)
    condition = given + state["timesteps_embeddings"][0, : len(rows)]
    for i in range(model.config.depth):
        at = f"blocks.{i}"
        b1, s1, g1, b2, s2, g2 = applied(state, f"{at}.adaLN_modulation.1", silu(condition)).chunk(
            6, -1
        )
        norms = {
            n: (state[f"{at}.{n}.weight"], state[f"{at}.{n}.bias"])
            for n in ("norm1", "norm2", "attn.q_norm", "attn.k_norm")
        }
        q, k, v = applied(
            state, f"{at}.attn.qkv", normed(x, *norms["norm1"]) * (1 + s1) + b1
        ).chunk(3, -1)
        mixed = []
        for a, b, c in zip(in_heads(q), in_heads(k), in_heads(v), strict=True):
            a, b = (  # noqa: PLW2901
                normed(a, *norms["attn.q_norm"]) / a.shape[-1] ** 0.5,
                normed(b, *norms["attn.k_norm"]),
            )
            mixed.append(attended(a, b, c, list(range(1, len(rows) + 1))))
        x = x + applied(state, f"{at}.attn.proj", torch.cat(mixed, -1)) * g1
        h = applied(state, f"{at}.mlp.fc1", normed(x, *norms["norm2"]) * (1 + s2) + b2)
        x = x + applied(state, f"{at}.mlp.fc2", h * (1 + torch.erf(h / 2**0.5)) / 2) * g2
    scale, shift = applied(state, "adaln_before_head.adaLN_modulation.1", silu(condition)).chunk(
        2, -1
    )
    logits = applied(state, "lm_head", normed(x) * (1 + scale) + shift)[1:]
    return logits[torch.tensor(order).argsort()]


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_var_is_its_formulas(shared):
    model, batch = (
        tiny.image_model("var", torch.float64, shared=shared),
        tiny.image_batch("var", rows=3),
    )
    model.blocks[1].attn.scale_mul_1H11[0, 1] = 5.0  # above log 100, where it is cut
    logits = model(batch.tokens[:, :5], batch.conditioning["label"])
    for row, tokens in enumerate(batch.tokens):
        by_hand = var_by_hand(model, tokens, int(batch.conditioning["label"][row]))
        torch.testing.assert_close(logits[row], by_hand, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ordered", ["raster", "random", "none"])
@torch.no_grad()
def test_rar_is_its_formulas_in_any_order(ordered):
    model, batch = tiny.image_model("rar", torch.float64), tiny.image_batch("rar", rows=3)
    order = torch.arange(model.length).expand(3, -1)
    if ordered == "random":
        order = torch.rand(order.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    beside = batch.conditioning | ({} if ordered == "none" else {"order": order})
    logits = interp.load(model).logits(interp.Batch(batch.tokens, 0, conditioning=beside))
    for row, tokens in enumerate(batch.tokens):
        by_hand = rar_by_hand(
            model, tokens, int(batch.conditioning["label"][row]), order[row].tolist()
        )
        torch.testing.assert_close(logits[row], by_hand, rtol=0, atol=1e-10)


# -- what a position sees
# --------------------------------------------------------------------------------------------------------------


def step_of(subject: interp.Subject, token: int) -> tuple[int, int]:
    return next((start, stop) for start, stop in subject.module.all_groups if start <= token < stop)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), at=st.integers(0, 13), name=st.sampled_from(tiny.IMAGE))
def test_a_token_changes_only_what_comes_after_its_step(name, seed, at):
    subject, batch = tiny.subject(name, torch.float64), tiny.image_batch(name, rows=1, seed=seed)
    other = interp.Batch(batch.tokens.clone(), 0, conditioning=batch.conditioning)
    other.tokens[0, at] = (batch.tokens[0, at] + 1 + seed) % tiny.VOCABULARY
    with torch.no_grad():
        moved = (subject.logits(batch) - subject.logits(other)).abs().amax((0, 2))
    stop = step_of(subject, at)[1]
    same = bool((batch.tokens == other.tokens).all())
    assert moved[:stop].max() <= 1e-12
    assert same or stop == batch.length or (moved[stop:] > 1e-9).all()


@torch.no_grad()
def test_logits_are_aligned_and_an_image_is_predicted_from_its_class_on(name, subject):
    """logits[t] predicts token t: fewer tokens read change nothing, and with none the class alone
    tells the first."""
    batch = tiny.image_batch(name, rows=3)
    whole = subject.logits(batch)
    assert whole.shape == (3, subject.module.length, tiny.VOCABULARY)
    for start, stop in subject.module.all_groups:
        read = subject.module(batch.tokens[:, :start], batch.conditioning["label"])
        assert (read.shape[1], subject.module.ahead(start)) == (stop, stop - start)
        torch.testing.assert_close(read, whole[:, :stop], rtol=0, atol=1e-12)
        torch.testing.assert_close(
            subject.logits(batch.until(stop)), whole[:, :stop], rtol=0, atol=1e-12
        )
    first = subject.module.all_groups[0][1]
    assert (whole[0, :first] - whole[1, :first]).abs().min() > 1e-9
    assert subject.module.ahead(0) == first
    torch.testing.assert_close(
        subject.target_logits(tiny.image_batch(name, 3, prompt=5)), whole[:, 5:], rtol=0, atol=1e-12
    )


def test_degenerate_segments_tell_classes_and_not_images(name, subject):
    label = torch.tensor([0, 0, 0, 1, 1, 3])
    batch = interp.Batch(tiny.image_batch(name, rows=6).tokens, 0, conditioning={"label": label})
    one_class, one_image = label[:, None] == label, torch.eye(6, dtype=torch.bool)
    for site in subject.anatomy.expand("neurons"):
        value = tiny.values_by_hand(subject, batch, site)
        for segment in subject.segments:
            part = value[:, segment.start : segment.stop].flatten(1)
            same = (part[:, None] - part).abs().amax(2) < 1e-12
            assert torch.equal(same, one_class if segment.degenerate else one_image), segment


def test_sites_are_all_there_but_the_embedding_of_var(name, subject):
    absent = {s.point for s in subject.anatomy.refused}
    assert absent == ({"embed", "mixer_out"} if name == "var" else {"mixer_out"})
    points = {s.point for s in subject.sites if s.block is None}
    assert points == ({"final"} if name == "var" else {"embed", "final"})
    for block in range(tiny.BLOCKS):
        assert {s.point for s in subject.sites if s.block == block} == set(BLOCK_POINTS) - {
            "mixer_out"
        }
    assert set(subject.anatomy.widths("heads").values()) == {tiny.HEADS}
    assert set(subject.anatomy.widths("neurons").values()) == {48}
    batch = tiny.image_batch(name, rows=3)
    read = batch.length - subject.module.ahead(0 if name == "rar" else 5)
    positions = subject.lead + read if name == "rar" else batch.length
    assert {tiny.values_by_hand(subject, batch, site).shape[:2] for site in subject.sites} == {
        (3, positions)
    }


@torch.no_grad()
def test_residual_laws_hold_on_other_inputs(name, subject):
    batch = tiny.image_batch(name, rows=3, seed=5)
    for block in range(tiny.BLOCKS):
        points = set(BLOCK_POINTS) - {"mixer_out"}
        at = {p: tiny.values_by_hand(subject, batch, interp.Site(p, block)) for p in points}
        torch.testing.assert_close(
            at["resid_pre"] + at["attn_out"], at["resid_mid"], rtol=0, atol=1e-12
        )
        torch.testing.assert_close(
            at["resid_mid"] + at["mlp_out"], at["resid_post"], rtol=0, atol=1e-12
        )
        assert min(at[p].std() for p in ("attn_out", "mlp_out")) > 0.01
        if block + 1 < tiny.BLOCKS:
            assert torch.equal(
                at["resid_post"],
                tiny.values_by_hand(subject, batch, interp.Site("resid_pre", block + 1)),
            )


@pytest.mark.parametrize("point", ["neurons", "heads"])
@torch.no_grad()
def test_zeroing_a_unit_equals_zeroing_its_columns_of_the_public_weights(name, subject, point):
    batch, clean = tiny.image_batch(name), subject.logits(tiny.image_batch(name))
    public = {("var", "neurons"): "ffn.fc2", ("rar", "neurons"): "mlp.fc2"}.get(
        (name, point), "attn.proj"
    )
    size = 1 if point == "neurons" else 32 // tiny.HEADS
    for block in range(tiny.BLOCKS):
        edited = copy.deepcopy(subject.module)
        edited.get_parameter(f"blocks.{block}.{public}.weight")[:, size : 3 * size] = 0
        with subject.intervened(
            interp.Zero(tiny.units(subject, f"blocks.{block}.{point}", [1, 2]))
        ):
            logits = subject.logits(batch)
        torch.testing.assert_close(logits, edited.predict(batch, batch.length), rtol=0, atol=1e-12)
        assert (logits - clean).abs().max() > 1e-4


def test_neurons_are_what_the_activation_function_gives(name, subject):
    batch = tiny.image_batch(name)
    fc1 = tiny.values_by_hand(
        subject, batch, f"blocks.1.{'ffn' if name == 'var' else 'mlp'}.fc1:out"
    )
    wanted = F.gelu(fc1, approximate="tanh" if name == "var" else "none")
    torch.testing.assert_close(
        tiny.values_by_hand(subject, batch, "blocks.1.neurons"), wanted, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("method", [sweep, sweep_resuming, sweep_growing])
def test_sweeps_equal_the_naive_loop(name, method):
    """Also where the rows of all plans go through the blocks, and then the head, as one batch."""
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        subject, batch = tiny.subject(name, dtype), tiny.image_batch(name, rows=3, prompt=5)
        plans = [
            interp.Scale(tiny.units(subject, str(site), [0]), factor=-1.0) for site in subject.sites
        ]
        plans += [
            interp.Zero(
                tiny.units(subject, "blocks.1.neurons", [3, 4]), positions=(2, 3), when="prompt"
            )
        ]
        logits = [
            torch.stack(run(subject, batch, plans, lambda logits, _: logits.clone()))
            for run in (method, sweep_naively)
        ]
        torch.testing.assert_close(*logits, rtol=0, atol=atol)


def test_training_reaches_the_network_and_not_the_tokenizer(name):
    model, batch = tiny.image_model(name), tiny.image_batch(name, rows=4)
    interp.load(model).losses(batch).mean().backward()
    idle = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {key for key in idle if not key.startswith("tokenizer.")} == set()
    assert {key for key, p in model.named_parameters() if not p.requires_grad} == {
        k for k in idle if k.startswith("tokenizer.")
    }


def test_fresh_networks_begin_near_the_identity(name):
    """Blocks add next to nothing before training, and the logits say next to nothing."""
    torch.manual_seed(0)
    model = copy.deepcopy(tiny.image_model(name))
    model._initialize()
    subject, batch = interp.load(model), tiny.image_batch(name)
    for block in range(tiny.BLOCKS):
        if name == "rar":  # its gates begin at zero
            with pytest.raises(interp.SiteError, match="once it is trained"):
                subject.anatomy.place(f"blocks.{block}.mlp_out")
            continue
        added = tiny.values_by_hand(subject, batch, interp.Site("mlp_out", block))
        assert added.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("var", {"codes": 9}),
        ("var", {"sides": (1, 3)}),
        ("var", {"code_width": 5}),
        ("rar", {"codes": 9}),
        ("rar", {"grid": 2}),
    ],
)
def test_another_models_tokenizer_is_refused(name, wrong):
    model, other = tiny.image_model(name), tiny.image_model(name, **wrong)
    with pytest.raises(
        ValueError,
        match=r"another model's tokenizer: it has .* codes .*; this (VAR|RAR) predicts 67",
    ):
        type(model)(model.config, other.tokenizer)


# -- training streams
# ------------------------------------------------------------------------------------------------------------------


def many(name: str, count: int = 20, rows: int = 50) -> list[interp.Batch]:
    return [tiny.image_batch(name, rows=rows, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6, 1.0])
def test_labels_are_dropped_at_their_rate_and_nothing_else_changes(name, rate):
    model, state = tiny.subject(name).module, torch.get_rng_state()
    given_, found, again = (
        many(name),
        *(list(drop_labels(many(name), model, rate, seed)) for seed in (0, 0)),
    )
    null = torch.cat([b.conditioning["label"] == tiny.CLASSES for b in found])
    assert abs(null.float().mean() - rate) < 4 * (rate * (1 - rate) / 1000) ** 0.5 + 1e-6
    for before, after, same in zip(given_, found, again, strict=True):
        dropped = after.conditioning["label"] == tiny.CLASSES
        assert torch.equal(
            before.conditioning["label"][~dropped], after.conditioning["label"][~dropped]
        )
        assert torch.equal(after.conditioning["label"], same.conditioning["label"])
        assert torch.equal(before.tokens, after.tokens)
        assert before.groups == after.groups
    assert torch.equal(state, torch.get_rng_state())
    if 0 < rate < 1:
        other = list(drop_labels(many(name), model, rate, seed=1))
        assert any(
            not torch.equal(a.conditioning["label"], b.conditioning["label"])
            for a, b in zip(found, other, strict=True)
        )


def test_orders_are_random_at_first_and_raster_in_the_end():
    state, raster = torch.get_rng_state(), torch.arange(16)
    found, again = (list(anneal_orders(many("rar", 40), until=20, seed=3)) for _ in range(2))
    shuffled = [(b.conditioning["order"] != raster).any(1).float().mean().item() for b in found]
    assert shuffled[0] == 1
    assert shuffled[20:] == [0] * 20
    assert all(
        abs(share - (1 - n / 20)) < 4 * (0.25 / 50) ** 0.5 for n, share in enumerate(shuffled[:20])
    )
    for b, same, before in zip(found, again, many("rar", 40), strict=True):
        assert torch.equal(b.conditioning["order"].sort(1).values, raster.expand(50, -1))
        assert torch.equal(b.conditioning["order"], same.conditioning["order"])
        assert torch.equal(b.conditioning["label"], before.conditioning["label"])
    assert torch.equal(state, torch.get_rng_state())
    halves = [
        (b.conditioning["order"] != raster).any(1).float().mean().item()
        for b in anneal_orders(many("rar", 3, 400), until=2)
    ]
    assert halves == [1, pytest.approx(0.5, abs=0.1), 0]
    first = torch.cat([b.conditioning["order"][:, 0] for b in found[:3]]).bincount(minlength=16)
    assert first.min() > 0


def test_without_batches_of_random_orders_all_are_raster():
    raster = torch.arange(16).expand(50, -1)
    for batch in anneal_orders(many("rar", 3), until=0):
        assert torch.equal(batch.conditioning["order"], raster)


def test_numbers_that_streams_cannot_draw_by_are_refused():
    with pytest.raises(ValueError, match="until=-1: expected a number of batches, at least 0"):
        next(anneal_orders(many("rar", 1), until=-1))
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"rate={rate}: expected a probability"):
            next(drop_labels(many("rar", 1), tiny.image_model("rar"), rate))


def test_a_model_trains_on_random_orders_by_the_loss_of_each_order():
    subject, (batch,) = (
        tiny.subject("rar", torch.float64),
        anneal_orders([tiny.image_batch("rar", 3)], until=1),
    )
    order, label = batch.conditioning["order"], batch.conditioning["label"]
    losses = subject.losses(batch)
    for row in range(3):
        logits = rar_by_hand(
            subject.module, batch.tokens[row], int(label[row]), order[row].tolist()
        )
        by_hand = -logits.log_softmax(-1)[torch.arange(16), batch.tokens[row]]
        torch.testing.assert_close(losses[row].double(), by_hand, rtol=0, atol=1e-5)
