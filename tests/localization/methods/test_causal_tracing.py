"""Laws of causal tracing: what a naive loop over patches gives under noise made by hand, and what a
map must add up to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import interp
from interp.localization import localize_each
from interp.localization.methods.causal_tracing import trace, trace_figure

PROMPT, DRAWS = 4, 2


def windows(name: str, rows: int = 2, *, prompt: int = PROMPT) -> interp.Batch:
    return tiny.batch(name, rows, prompt=prompt, padded=True, dtype=torch.float64)


def repeated(window: interp.Batch, times: int) -> interp.Batch:
    beside = {
        name: value.repeat(times, *[1] * (value.ndim - 1))
        for name, value in window.conditioning.items()
    }
    return interp.Batch(
        window.tokens.repeat(times, 1),
        window.prompt,
        window.mask.repeat(times, 1),
        conditioning=beside,
    )


@contextmanager
def spoiled(subject: interp.Subject, prompt: int, noise: float, seed: int) -> Iterator[None]:
    """Noise on what the token embedding gives for the prompt."""
    embedding = next(m for m in subject.module.modules() if isinstance(m, torch.nn.Embedding))
    size = noise * float(embedding.weight.detach().float().std())
    drawn = torch.randn(
        DRAWS, prompt, embedding.embedding_dim, generator=torch.Generator().manual_seed(seed)
    )

    def add(_: object, __: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :prompt] + size * drawn, output[:, prompt:]], 1)

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def loss(subject: interp.Subject, batch: interp.Batch) -> float:
    with torch.no_grad():
        return float((subject.losses(batch).sum(1) / batch.counted.sum(1)).mean())


@pytest.mark.parametrize("point", ["neurons", "heads", "block_out"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "policy"])
def test_it_is_the_naive_loop_over_patches(name, point):
    subject, batch = tiny.subject(name, torch.float64), windows(name)
    site = [site for site in subject.anatomy.expand(point) if site.stack != "vision"][1]
    scores = localize_each(
        subject, batch, method="causal_tracing", site=site, draws=DRAWS, noise=2.0, seed=7
    )
    for row, window in zip(scores, batch.split(1), strict=True):
        clean = {site: tiny.values_by_hand(subject, window, site)[0].numpy()}
        many = repeated(window, DRAWS)
        with spoiled(subject, PROMPT, 2.0, 7):
            before = loss(subject, many)
            for unit in (0, subject.anatomy.place(site).units - 1):
                with subject.intervened(
                    interp.Patch(tiny.units(subject, site, [unit]), values=clean)
                ):
                    effect = before - loss(subject, many)
                assert row[site][unit] == pytest.approx(effect, rel=1e-5, abs=1e-8)


def test_what_noise_cannot_reach_has_no_effect():
    """The vision stack of a policy comes before its action tokens, and there alone is noise."""
    subject = tiny.subject("policy", torch.float64)
    scores = localize_each(
        subject, windows("policy"), method="causal_tracing", site="heads", draws=DRAWS
    )
    for row in scores:
        for site in subject.anatomy.expand("heads"):
            assert (np.abs(row[site]).max() < 1e-12) == (site.stack == "vision")


@pytest.mark.parametrize("name", ["gpt2", "policy"])
def test_without_noise_nothing_has_an_effect(name):
    subject = tiny.subject(name, torch.float64)
    for scores in localize_each(
        subject, windows(name), method="causal_tracing", site="heads", noise=0, draws=DRAWS
    ):
        assert all(np.abs(row).max() < 1e-12 for row in scores.values.values())
    with np.errstate(all="ignore"):
        assert trace(subject, windows(name), noise=0, draws=DRAWS)["effect"].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "llama", "policy"])
def test_a_map_has_a_row_for_every_window_block_and_position(name):
    subject, batch = tiny.subject(name), windows(name)
    batch = interp.Batch(
        batch.tokens,
        PROMPT,
        batch.mask,
        conditioning={k: v.float() for k, v in batch.conditioning.items()},
    )
    with tiny.untouched(subject.module):
        frame = trace(subject, batch, "mlp_out", draws=DRAWS)
    assert set(frame.columns) == {"row", "stack", "block", "position", "effect", "share"}
    for row in range(2):
        for stack, blocks in subject.anatomy.stacks.items():
            part = frame[(frame["row"] == row) & (frame["stack"] == stack)]
            length = 5 if stack == "vision" else batch.length
            assert sorted(zip(part["block"], part["position"], strict=True)) == [
                (b, t) for b in range(len(blocks)) for t in range(length)
            ]
    assert np.isfinite(frame["effect"]).all()


def test_a_map_is_the_naive_loop_over_patches_of_one_position_also_for_a_window_of_blocks():
    subject, window = tiny.subject("gpt2", torch.float64), windows("gpt2", 1)
    sites = subject.anatomy.expand("mlp_out")
    clean = {site: tiny.values_by_hand(subject, window, site)[0].numpy() for site in sites}
    many = repeated(window, DRAWS)
    for width, around in (
        (1, ([0], [1], [2])),
        (2, ([0], [0, 1], [1, 2])),
        (3, ([0, 1], [0, 1, 2], [1, 2])),
        (9, ([0, 1, 2],) * 3),
    ):
        frame = trace(subject, window, "mlp_out", window=width, draws=DRAWS, seed=4)
        unspoiled = loss(subject, window)
        with spoiled(subject, PROMPT, 3.0, 4):
            before = loss(subject, many)
            for block, position in ((0, 0), (1, 3), (2, 5), (0, 4)):
                units = subject.anatomy.units([sites[b] for b in around[block]])
                with subject.intervened(interp.Patch(units, (position,), values=clean)):
                    effect = before - loss(subject, many)
                cell = frame[(frame["block"] == block) & (frame["position"] == position)].iloc[0]
                assert cell["effect"] == pytest.approx(effect, rel=1e-6, abs=1e-9)
                assert cell["share"] == pytest.approx(
                    effect / (before - unspoiled), rel=1e-6, abs=1e-9
                )


@pytest.mark.parametrize("name", ["gpt2", "neox", "policy"])
def test_the_state_of_the_only_spoiled_position_brings_everything_back(name):
    subject = tiny.subject(name, torch.float64)
    frame = trace(subject, windows(name, prompt=1), "resid_pre", draws=DRAWS)
    entering = frame[(frame["block"] == 0) & (frame["stack"] != "vision")]
    position = 1 if name == "policy" else 0  # a policy's decoder starts with what it saw
    np.testing.assert_allclose(entering[entering["position"] == position]["share"], 1, rtol=1e-9)
    np.testing.assert_allclose(entering[entering["position"] != position]["effect"], 0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "neox", "policy"])
def test_the_last_states_where_the_suffix_is_predicted_bring_back_their_own_tokens_and_together_everything(
    name,
):
    subject = tiny.subject(name, torch.float64)
    frame = trace(subject, windows(name), "resid_post", draws=DRAWS)
    last = frame[(frame["stack"] != "vision") & (frame["block"] == tiny.BLOCKS - 1)]
    first = PROMPT if name == "policy" else PROMPT - 1
    for row, length in ((0, 9), (1, 8)):
        part = last[last["row"] == row]
        predicts = part["position"].between(first, first + length - PROMPT - 1)
        assert part[predicts]["share"].sum() == pytest.approx(1, rel=1e-9)
        assert part[predicts]["effect"].abs().min() > 1e-9
        assert part[~predicts]["effect"].abs().max() < 1e-12


def test_noise_on_what_a_window_is_conditioned_on_where_there_is_no_prompt():
    subject = tiny.subject("policy", torch.float64)
    frame = trace(subject, windows("policy", prompt=0), "resid_pre", draws=DRAWS)
    assert frame[frame["stack"] == "decoder"].query("block == 0 and position == 0")[
        "share"
    ].to_numpy() == pytest.approx(1)
    assert frame[frame["stack"] == "vision"]["effect"].abs().max() > 1e-6
    bare = tiny.batch("llama", 2, prompt=0)
    with pytest.raises(ValueError, match="nothing to disturb: expected a prompt"):
        trace(tiny.subject("llama"), bare)


def test_the_noise_depends_on_the_seed_alone():
    subject, batch = tiny.subject("gpt2", torch.float64), windows("gpt2")
    one, again, other = (
        trace(subject, batch, draws=DRAWS, seed=seed)["effect"] for seed in (1, 1, 2)
    )
    assert one.equals(again)
    assert (one - other).abs().max() > 1e-6


def test_an_unknown_point_offers_the_nearest():
    with pytest.raises(interp.SiteError, match="nearest: "):
        trace(tiny.subject("llama"), windows("llama"), "resid_posts")


@pytest.mark.parametrize("name", ["llama", "policy"])
def test_a_map_is_seen_as_blocks_by_positions(name):
    subject, batch = tiny.subject(name), tiny.batch(name, rows=2, length=6, prompt=3)
    frame = trace(subject, batch, draws=2)
    axes = trace_figure(frame, row=1).axes[0]
    shown = frame[frame["row"] == 1]
    assert len(axes.get_yticklabels()) == shown.groupby(["stack", "block"]).ngroups
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        str(p) for p in sorted(set(shown["position"]))
    ]
    values = axes.collections[0].get_array().compressed()
    np.testing.assert_allclose(np.sort(values), np.sort(shown["effect"]))
    with pytest.raises(ValueError, match=r"row=5: expected one of \[0, 1\]"):
        trace_figure(frame, row=5)
