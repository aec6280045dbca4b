"""Where the loss is linear in every unit, first order is exact: what is measured unit by unit must
equal what one gradient says."""

from __future__ import annotations

import numpy as np
import planted
import pytest
import tiny
import torch

import interp
from interp.localization import localize, localize_each
from interp.localization.methods.attribution_patching import corrupt
from interp.localization.methods.zero_out import exact
from interp.localization.window_losses import window_losses
from interp.subject.subject import evaluating

POINTS = ("neurons", "heads", "attn_out", "blocks")


@pytest.fixture(params=[0, 1])
def subject(request: pytest.FixtureRequest) -> interp.Subject:
    return planted.linear(request.param)


def windows(rows: int = 2, seed: int = 0) -> interp.Batch:
    return tiny.batch("linear", rows, prompt=4, seed=seed, padded=True)


def test_the_log_probability_is_linear_and_the_rest_adds_up_to_one(subject):
    batch = tiny.batch("linear", 4, prompt=4)
    with evaluating(subject):
        clean = subject.losses(batch)
        moved = []
        for factor in (0.0, 2.0):
            with subject.intervened(
                interp.Scale(
                    subject.anatomy.units("blocks.0.neurons").only("blocks.0.neurons", [3]),
                    factor=factor,
                )
            ):
                moved.append(subject.losses(batch))
        total = subject.target_logits(batch).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    torch.testing.assert_close(moved[0] - clean, clean - moved[1], rtol=1e-9, atol=1e-12)
    assert (moved[0] - clean).abs().max() > 1e-5


@pytest.mark.parametrize("point", POINTS)
def test_zero_out_equals_gradient_x_activation(subject, point):
    batch = windows()
    places = subject.anatomy.expand("block_out" if point == "blocks" else point)
    first_order = localize_each(subject, batch, method="gradient_x_activation", site=point)
    measured = localize_each(subject, batch, method="zero_out", site=point, exhaustive=True)
    for row, window in enumerate(batch.split(1)):
        one_by_one = exact(subject, window, subject.anatomy.units(places))
        for site in places:
            assert np.abs(first_order[row][site]).max() > 1e-5
            np.testing.assert_allclose(
                measured[row][site], first_order[row][site], rtol=0, atol=1e-9
            )
            np.testing.assert_allclose(
                one_by_one[site].numpy(), first_order[row][site], rtol=0, atol=1e-9
            )


def test_for_a_group_too(subject):
    sets = windows(3), windows(2, seed=1)
    first_order, measured = (
        localize(subject, *sets),
        localize(subject, *sets, method="zero_out", exhaustive=True),
    )
    for site in subject.anatomy.expand("neurons"):
        np.testing.assert_allclose(measured[site], first_order[site], rtol=0, atol=1e-9)


@pytest.mark.parametrize("points", [1, 3])
@pytest.mark.parametrize("point", ["neurons", "heads"])
def test_attribution_patching_equals_patching_each_unit(subject, point, points):
    batch = windows()
    scores = localize_each(subject, batch, method="attribution_patching", site=point, points=points)
    for row, window in enumerate(batch.split(1)):
        other = corrupt(subject, window)
        for site in subject.anatomy.expand(point):
            donor = {site: tiny.values_by_hand(subject, other, site)[0].numpy()}
            assert np.abs(scores[row][site]).max() > 1e-5
            for unit in (0, subject.anatomy.place(site).units - 1):
                with evaluating(subject):
                    before = window_losses(subject, window)
                    with subject.intervened(
                        interp.Patch(tiny.units(subject, site, [unit]), values=donor)
                    ):
                        after = window_losses(subject, window)
                assert scores[row][site][unit] == pytest.approx(float(after - before), abs=1e-9)


def test_causal_tracing_restores_what_the_gradient_says(subject):
    """The mean effect of a unit is its mean difference over the draws, times the one slope that a
    linear loss has."""
    batch = windows(1)
    scores = localize_each(
        subject, batch, method="causal_tracing", site="neurons", draws=3, seed=5
    )[0]
    noise = (
        3.0
        * float(subject.module.embed.weight.detach().float().std())
        * torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(5))
    )
    many = interp.Batch(batch.tokens.repeat(3, 1), 4, batch.mask.repeat(3, 1))

    def spoil(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :4] + noise, output[:, 4:]], 1)

    for site in subject.anatomy.expand("neurons"):
        clean = tiny.values_by_hand(subject, batch, site)
        hook = subject.module.embed.register_forward_hook(spoil)
        noisy = tiny.values_by_hand(subject, many, site)
        hook.remove()
        with interp.hooks.hooks.captured(subject, (site,)) as values:
            loss = window_losses(subject, batch)
        (slope,) = torch.autograd.grad(loss.sum(), values[site])
        expected = -((clean - noisy).mean(0, keepdim=True) * slope).sum((0, 1))
        assert expected.abs().max() > 1e-5
        np.testing.assert_allclose(scores[site], expected.numpy(), rtol=1e-6, atol=1e-9)
