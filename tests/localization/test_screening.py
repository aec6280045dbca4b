"""Laws of screened Zero-Out: what is verified is exact, what is not scores 0, and all verified is
exhaustive."""

from __future__ import annotations

import functools

import memory
import numpy as np
import pytest
import tiny
import torch

import interp
from interp.localization import localize, localize_each
from interp.localization.methods import zero_out
from interp.localization.methods.gradient import first_order_effects
from interp.localization.screening import estimates, first_or_curved, interleave
from interp.localization.unit_values import values_at

MEMORIZED, REFERENCE = (
    memory.frame(memory.random_tokens(2, 1)),
    memory.frame(memory.random_tokens(2, 2)),
)
SITES = tuple(interp.Site("neurons", block) for block in range(tiny.BLOCKS))


@pytest.fixture
def screened(monkeypatch):
    """Screens however few the units are."""
    monkeypatch.setattr(zero_out, "FEW", 0)


def flat(scores: interp.UnitScores) -> np.ndarray:
    return np.concatenate([scores[site] for site in scores.values])


@functools.cache
def exhaustive_effects(name: str, site: str) -> tuple[np.ndarray, np.ndarray]:
    """[windows, units] of both sets: what exhaustive Zero-Out gives, no screen, no reference."""
    subject = tiny.subject(name, torch.float64)
    ours, theirs = (
        localize_each(subject, windows, None, "zero_out", site, exhaustive=True)
        for windows in (MEMORIZED, REFERENCE)
    )
    return np.stack([flat(scores) for scores in ours]), np.stack(
        [flat(scores) for scores in theirs]
    )


# the others alone in one block: what runs is the same for all sites
@pytest.mark.parametrize(
    ("name", "site"),
    [("llama", "neurons"), ("gpt2", "blocks.1.neurons"), ("neox", "blocks.1.neurons")],
)
@pytest.mark.parametrize("reference", [None, REFERENCE], ids=["alone", "reference"])
def test_what_is_verified_is_exact_and_the_rest_scores_0(screened, name, site, reference):
    subject = tiny.subject(name, torch.float64)
    share = 0.1
    ours, theirs = exhaustive_effects(name, site)
    truth = ours.mean(0) if reference is None else ours.mean(0) - theirs.mean(0)
    found = flat(localize(subject, MEMORIZED, reference, "zero_out", site, share=share))
    assert (found != 0).sum() == round(share * len(truth))
    np.testing.assert_allclose(found[found != 0], truth[found != 0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reference", [None, REFERENCE], ids=["alone", "reference"])
def test_each_window_verifies_its_own(screened, reference):
    subject = tiny.subject("llama", torch.float64)
    ours, theirs = exhaustive_effects("llama", "neurons")
    every = ours if reference is None else ours - theirs.mean(0)
    some = localize_each(subject, MEMORIZED, reference, "zero_out", share=0.1)
    for one, truth in zip(some, every, strict=True):
        found = flat(one)
        assert (found != 0).sum() == round(0.1 * len(truth))
        np.testing.assert_allclose(found[found != 0], truth[found != 0], rtol=1e-6, atol=1e-12)
    assert len({tuple(np.flatnonzero(flat(one))) for one in some}) > 1


def test_a_share_of_all_is_exhaustive(screened):
    subject, site = tiny.subject("llama", torch.float64), "blocks.1.neurons"
    whole, exhaustive = (
        localize(subject, MEMORIZED, REFERENCE, "zero_out", site, **options)
        for options in ({"share": 1.0}, {"exhaustive": True})
    )
    np.testing.assert_array_equal(flat(whole), flat(exhaustive))


def test_a_screen_keeps_more_of_the_strongest_than_chance():
    """Over several random models: the strongest twentieth, of which a tenth verified would keep a
    tenth by chance."""
    kept = []
    for seed in range(5):
        subject = tiny.wrapped(
            tiny.model("llama", seed=seed)
        )  # in single precision, in which a sweep is ten times faster
        batch = interp.Batch(memory.random_tokens(2, seed), memory.PREFIX)
        screen = first_or_curved(subject, batch, SITES)
        for row, window in enumerate(batch.split(1)):
            truth = torch.cat(
                list(zero_out.exact(subject, window, subject.anatomy.units(SITES)).values())
            )
            ranked = torch.cat([screen[site][row] for site in SITES]).argsort(descending=True)
            best = truth.argsort(descending=True)[:7]
            kept.append(torch.isin(best, ranked[:14]).double().mean())
    assert np.mean(kept) > 0.5


@pytest.mark.parametrize(
    ("name", "point"),
    [("llama", "neurons"), ("gpt2", "neurons"), ("llama", "heads"), ("neox", "heads")],
)
def test_estimates_are_their_formulas(name, point):
    subject = tiny.subject(name, torch.float64)
    batch = tiny.batch(name, rows=2, prompt=3, padded=True)
    sites = subject.anatomy.expand(point)
    first, curved = estimates(subject, batch, sites)
    effects = first_order_effects(subject, batch, sites)
    for site in sites:
        stream = interp.Site(
            "resid_mid" if point == "heads" and name == "llama" else "resid_post", site.block
        )
        slope = first_order_effects(subject, batch, (stream,))[stream] / -(
            residual := values_at(subject, batch, (stream,))[stream]
        )
        value = values_at(subject, batch, (site,))[site]
        rows = subject.anatomy.out_weight(subject.module, site).detach()
        size = rows.shape[0] // subject.anatomy.place(site).units
        for unit in (0, 1):
            columns = slice(unit * size, (unit + 1) * size)
            moved = (value[..., columns] @ rows[columns]).norm(dim=-1)
            bend = slope.norm(dim=-1) * moved**2 / (2 * residual.norm(dim=-1))
            torch.testing.assert_close(first[site][:, unit], effects[site][..., unit].sum(1))
            torch.testing.assert_close(
                curved[site][:, unit], (effects[site][..., unit].clamp(min=0) + bend).sum(1)
            )


def test_screens_take_turns_by_hand():
    a, b = interp.Site("neurons", 0), interp.Site("neurons", 1)
    one = {a: torch.tensor([[9.0, 1.0]]), b: torch.tensor([[5.0, 3.0]])}  # order: a0, b0, b1, a1
    two = {a: torch.tensor([[0.0, 7.0]]), b: torch.tensor([[6.0, 8.0]])}  # order: b1, a1, b0, a0
    both = interleave(one, two)
    flat_scores = torch.cat([both[a], both[b]], 1)[0]
    assert [("a0", "a1", "b0", "b1")[i] for i in flat_scores.argsort(descending=True)] == [
        "a0",
        "b1",
        "b0",
        "a1",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_screened_in_every_precision(screened, dtype):
    subject = tiny.wrapped(tiny.model("llama", dtype))
    scores = localize(subject, MEMORIZED, None, "zero_out", "heads", share=0.5)
    assert (flat(scores) != 0).sum() == 6


def test_what_cannot_be_screened_is_said(screened):
    with pytest.raises(interp.SiteError, match=r"cannot be screened.*exhaustive=True"):
        localize(tiny.subject("llama"), MEMORIZED, None, "zero_out", "mlp_out")


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(screened, share):
    with pytest.raises(ValueError, match="a fraction in"):
        localize(tiny.subject("llama"), MEMORIZED, None, "zero_out", share=share)
