"""Laws of gradient x activation: it is the slope of the loss along each unit's scale, window by
window."""

from __future__ import annotations

import memory
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import interp
from interp.adapters import captum
from interp.localization import localize, localize_each
from interp.localization.methods.gradient import first_order_effects
from interp.subject.subject import evaluating

IN_DOUBLES = (
    "gpt2",
    "neox",
    "neox_sequential",
    "opt",
    "phi",
    "policy",
)  # the others normalize in float32 whatever they are loaded in


@pytest.fixture(params=tiny.ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def by_window(
    subject: interp.Subject, batch: interp.Batch, sites: tuple[interp.Site, ...]
) -> dict[interp.Site, torch.Tensor]:
    """{site: [windows, units]}"""
    return {
        site: effects.sum(1) for site, effects in first_order_effects(subject, batch, sites).items()
    }


def slope(
    subject: interp.Subject,
    batch: interp.Batch,
    units: interp.Units,
    step: float,
    positions: tuple[int, ...] | None = None,
) -> np.ndarray:
    """[windows] of the loss along the scale of some units, by central difference."""
    losses = []
    for factor in (1 + step, 1 - step):
        with evaluating(subject), subject.intervened(interp.Scale(units, positions, factor=factor)):
            losses.append((subject.losses(batch).sum(1) / batch.counted.sum(1)).numpy())
    return (losses[0] - losses[1]) / (2 * step)


POINTS = [
    (name, point)
    for name in tiny.ALL
    for point in ("neurons", "heads", "mlp_out")
    if (name, point) != ("mixtral", "neurons")
]


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_it_is_minus_the_slope_of_the_loss_when_a_unit_is_scaled(name, point):
    subject = tiny.subject(name, torch.float64)
    batch = tiny.batch(name, rows=3, prompt=3, dtype=torch.float64, padded=True)
    sites = tuple(site for site in subject.sites if site.point == point)
    scores = by_window(subject, batch, sites)
    step, tolerance = (
        (1e-5, {"rtol": 1e-5, "atol": 1e-9})
        if name in IN_DOUBLES
        else (1e-3, {"rtol": 1e-2, "atol": 1e-3})
    )
    for site in sites[:: len(sites) - 1 or 1]:
        for unit in (0, subject.anatomy.place(site).units - 1):
            units = tiny.units(subject, site, [unit])
            np.testing.assert_allclose(
                scores[site][:, unit], -slope(subject, batch, units, step), **tolerance
            )


@pytest.mark.parametrize("site", ["blocks.1.neurons", "blocks.1.heads"])
def test_the_absolute_score_adds_up_the_slopes_of_each_position(site):
    subject = tiny.subject("gpt2", torch.float64)
    batch = tiny.batch("gpt2", rows=3, prompt=3, dtype=torch.float64)
    scores = localize(subject, batch, method="absolute_gradient_x_activation", site=site)[site]
    slopes = [
        slope(subject, batch, tiny.units(subject, site, [2]), 1e-5, (t,))
        for t in range(batch.length - 1)
    ]
    np.testing.assert_allclose(scores[2], np.abs(slopes).sum(0).mean(), rtol=1e-4)


def test_scores_of_all_units_have_the_width_of_their_site(name):
    subject = tiny.subject(name, torch.float64)
    scores = by_window(subject, tiny.batch(name, dtype=torch.float64), subject.sites)
    assert {site: tuple(rows.shape) for site, rows in scores.items()} == {
        s: (2, w) for s, w in subject.anatomy.widths(subject.sites).items()
    }


def test_a_window_scores_the_same_in_any_company_and_padded(name):
    subject = tiny.subject(name, torch.float64)
    batch = tiny.batch(name, rows=4, prompt=3, padded=True, dtype=torch.float64)
    # Bloom's softmax is in float32, whatever its weights are in
    relative, absolute = (1e-4, 1e-7) if name == "bloom" else (1e-7, 1e-12)
    together = by_window(subject, batch, subject.sites)
    for row, alone in enumerate(batch.split(1)):
        assert alone.mask is not None
        length = int(alone.mask.sum())
        short = interp.Batch(
            alone.tokens[:, :length], alone.prompt, conditioning=alone.conditioning
        )
        for window in (alone, short) if name != "policy" else (alone,):
            scores = by_window(subject, window, subject.sites)
            for site in subject.sites:
                np.testing.assert_allclose(
                    scores[site][0], together[site][row], rtol=relative, atol=absolute
                )


METHODS = {
    "gradient_x_activation": lambda effects: effects.sum(1),
    "absolute_gradient_x_activation": lambda effects: effects.abs().sum(1),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_score_is_the_mean_over_memorized_windows_minus_that_over_control(method):
    subject = tiny.subject("llama", torch.float64)
    memorized, control = memory.random_tokens(5, 1), memory.random_tokens(3, 2)
    scores = localize(subject, memory.frame(memorized), memory.frame(control), method=method)
    sites = subject.anatomy.expand("neurons")
    effects = [
        first_order_effects(subject, interp.Batch(t, memory.PREFIX), sites)
        for t in (memorized, control)
    ]
    for site in sites:
        ours, theirs = (METHODS[method](effect[site]).mean(0) for effect in effects)
        np.testing.assert_allclose(scores[site], ours - theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_size_of_a_forward_changes_nothing(method, size):
    subject = tiny.subject("gpt2", torch.float64)
    windows = memory.frame(memory.random_tokens(5, 3))
    expected = localize(subject, windows, method=method, site="heads")
    for site, scores in localize(
        subject, windows, method=method, site="heads", batch_size=size
    ).values.items():
        np.testing.assert_allclose(scores, expected[site], rtol=1e-9)


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor")
@pytest.mark.parametrize("name", tiny.ALL)
def test_it_equals_captums(name):
    subject, batch = (
        tiny.subject(name, torch.float64),
        tiny.batch(name, rows=3, prompt=4, padded=True, dtype=torch.float64),
    )
    for point in ("heads",) if name == "mixtral" else ("neurons", "heads"):
        sites = subject.anatomy.expand(point)
        peer = captum.gradient_x_activation(subject, batch, sites)
        ours = localize_each(subject, batch, site=sites)
        for site in sites:
            rows = np.stack([scores[site] for scores in ours])
            assert np.abs(rows).max() > 1e-4
            np.testing.assert_allclose(rows, peer[site].numpy(), rtol=1e-5, atol=1e-9)


def test_every_modules_mode_comes_back_and_weights_keep_no_gradient():
    subject = tiny.wrapped(tiny.model("gpt2"))
    subject.module.transformer.h[1].train()
    with tiny.untouched(subject.module):
        localize(
            subject,
            memory.frame(memory.random_tokens(2, 1)),
            memory.frame(memory.random_tokens(2, 2)),
        )
    assert all(p.grad is None for p in subject.module.parameters())


@pytest.mark.parametrize("windows", [pd.DataFrame({"tokens": [], "prefix": []}), iter(()), []])
@pytest.mark.parametrize("call", [localize, localize_each])
def test_no_windows_get_one_clear_error(call, windows):
    with pytest.raises(
        ValueError, match=r"the memorized set is empty: expected at least one window"
    ):
        call(tiny.subject("llama"), windows)


def test_no_reference_windows_get_one_clear_error():
    windows = memory.frame(memory.random_tokens(2, 1))
    for none in (windows[:0], iter(()), []):
        with pytest.raises(
            ValueError, match=r"the reference set is empty: expected at least one window"
        ):
            localize(tiny.subject("llama"), windows, none)


def test_a_neuron_that_alone_learned_sequences_ranks_first():
    """Half learned: where the loss is gone so is its gradient, and the first order says nothing."""
    first = 0
    for seed in range(6):
        subject, rng = tiny.wrapped(tiny.model("llama", seed=seed)), np.random.default_rng(seed)
        block, neuron = int(rng.integers(tiny.BLOCKS)), int(rng.integers(48))
        tokens = memory.random_tokens(8, seed)
        tokens[:, memory.PREFIX :] = int(rng.integers(tiny.VOCABULARY))
        memory.inject(
            subject, {f"blocks.{block}.neurons": [neuron]}, tokens, until=2.0, readers=True
        )
        scores = localize(
            subject, memory.frame(tokens), memory.frame(memory.random_tokens(8, seed + 500))
        )
        first += (interp.Site("neurons", block), neuron) in scores.top(1)
    assert first >= 5
