"""Laws of neuron flipping: the same units as a naive greedy search, in its order, and one unit
where one holds the memory."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import planted
import pytest
import tiny
import torch

import interp
from interp.localization import localize, localize_each
from interp.localization.methods.neuron_flipping import FlipSettings, units_to_flip

PROMPT = 4


def own_text(name: str, rows: int, seed: int) -> interp.Batch:
    """Prompts and what the model says by itself: it is right on every token."""
    subject = tiny.subject(name, torch.float64)
    prompts = tiny.batch(name, rows, PROMPT, seed=seed).tokens
    return interp.Batch(torch.cat([prompts, subject.generate(prompts, 4)], 1), PROMPT)


def naive(
    subject: interp.Subject, window: interp.Batch, reference: interp.Batch, count: int
) -> list[tuple[interp.Site, int]]:
    """The first `count` units, or as many as help: repeated central differences of each unit's
    gate, by plain hooks and without noise."""
    off: list[tuple[interp.Site, int]] = []

    def goal(site: interp.Site, unit: int, gate: float) -> float:
        with ExitStack() as stack, torch.no_grad():
            for where in subject.anatomy.expand("heads"):
                scale = torch.ones(subject.anatomy.place(where).units, dtype=torch.float64)
                scale[[u for s, u in off if s == where]] = 0
                if where == site:
                    scale[unit] = gate
                every = scale.repeat_interleave(subject.anatomy.place(where).width // len(scale))
                stack.enter_context(
                    tiny.by_hand(
                        subject.module,
                        subject.anatomy.place(where),
                        lambda v, every=every: v * every,
                    )
                )
            return float(subject.losses(reference).mean() - subject.losses(window).mean())

    while len(off) < count:
        slopes = {
            unit: (goal(*unit, 1 + 1e-5) - goal(*unit, 1 - 1e-5)) / 2e-5
            for unit in subject.anatomy.units("heads")
            if unit not in off
        }
        best = max(slopes, key=lambda unit: slopes[unit])
        if slopes[best] <= 0:
            break
        off.append(best)
    return off


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_units_are_chosen_in_the_order_of_a_naive_search(name):
    subject, windows, reference = (
        tiny.subject(name, torch.float64),
        own_text(name, 2, 1),
        own_text(name, 3, 2),
    )
    options = {
        "copies": 1,
        "noise": 0.0,
        "share": 2.0,
        "at_most": 4,
    }  # a share that is never reached
    each = localize_each(subject, windows, reference, "neuron_flipping", "heads", **options)
    for scores, window in zip(each, windows.split(1), strict=True):
        chosen = naive(subject, window, reference, 4)
        assert len(chosen) > 1
        assert [scores[site][unit] for site, unit in chosen] == [
            2 - n / len(chosen) for n in range(len(chosen))
        ]
        rest = [
            scores[site][unit]
            for site, unit in subject.anatomy.units("heads")
            if (site, unit) not in chosen
        ]
        assert max(rest) <= 1
    together = localize(subject, windows, reference, "neuron_flipping", "heads", **options)
    for site in subject.anatomy.expand("heads"):
        np.testing.assert_allclose(
            together[site], np.mean([scores[site] for scores in each], axis=0)
        )


def test_the_gradient_comes_from_as_many_reference_windows_as_asked_for():
    subject, windows, reference = (
        tiny.subject("gpt2", torch.float64),
        own_text("gpt2", 1, 1),
        own_text("gpt2", 6, 2),
    )

    def scores(windows_beside: interp.Batch, population: int) -> np.ndarray:
        (found,) = localize_each(
            subject, windows, windows_beside, "neuron_flipping", population=population, at_most=1
        )
        return found["blocks.1.neurons"]

    np.testing.assert_array_equal(scores(reference, 2), scores(next(reference.split(2)), 8))
    assert (scores(reference, 2) != scores(reference, 6)).any()


@pytest.mark.parametrize("network", [("token", 1, 1), ("prompt", 5, 2)])
def test_one_unit_flips_what_one_unit_holds(network):
    known = planted.planted(*network)
    frame = units_to_flip(known.subject, known.memorized, known.reference)
    assert frame.to_dict("list") == {
        "window": [0, 1, 2],
        "units": [1, 1, 1],
        "flipped": [True, True, True],
    }
    for scores in localize_each(known.subject, known.memorized, known.reference, "neuron_flipping"):
        assert scores[known.site][known.neuron] == 2


def test_what_never_flips_is_said_to_and_stops_at_the_limit():
    known = planted.planted("token", 1, 1)
    frame = units_to_flip(
        known.subject, known.memorized, known.reference, settings=FlipSettings(share=2.0, at_most=3)
    )
    assert not frame["flipped"].any()
    assert frame["units"].max() <= 3
    unknown = units_to_flip(
        known.subject,
        next(known.reference.split(2)),
        known.reference,
        settings=FlipSettings(at_most=2),
    )
    assert not unknown["flipped"].any(), "a window of which no token was right cannot become wrong"


@pytest.mark.parametrize("share", [0.0, -1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"share={share}: expected a share above 0"):
        FlipSettings(share=share)


def test_a_smaller_share_needs_no_more_units():
    subject, windows, reference = (
        tiny.subject("gpt2", torch.float64),
        own_text("gpt2", 3, 1),
        own_text("gpt2", 3, 2),
    )
    counts = [
        units_to_flip(subject, windows, reference, settings=FlipSettings(share=share))["units"]
        for share in (0.25, 0.5, 1.0)
    ]
    assert (counts[0] <= counts[1]).all()
    assert (counts[1] <= counts[2]).all()


def test_noise_is_drawn_from_the_seed():
    subject, windows, reference = (
        tiny.subject("gpt2", torch.float64),
        own_text("gpt2", 1, 1),
        own_text("gpt2", 3, 2),
    )
    site = "blocks.1.neurons"
    runs = [
        localize_each(
            subject, windows, reference, "neuron_flipping", seed=seed, noise=noise, at_most=1
        )[0][site]
        for seed, noise in ((1, 0.5), (1, 0.5), (2, 0.5), (1, 0.0), (2, 0.0))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    np.testing.assert_array_equal(runs[3], runs[4])
