"""Laws of attribution patching: it is the slope of the loss along the way from a unit's value to
its value after another prompt."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import interp
from interp.localization import localize_each
from interp.localization.methods.attribution_patching import corrupt

PROMPT = 4


def windows(name: str, rows: int = 2, seed: int = 0) -> interp.Batch:
    return tiny.batch(name, rows, prompt=PROMPT, seed=seed, padded=True, dtype=torch.float64)


def slope(
    subject: interp.Subject,
    window: interp.Batch,
    site: interp.Site,
    unit: int,
    other: interp.Batch,
    share: float,
) -> float:
    """Of the window's loss when one unit goes towards its value after the other prompt, from where
    the embeddings have gone `share` of that way; by plain hooks and a central difference."""
    place, embed = subject.anatomy.place(site), interp.Site("embed", None, site.stack)
    shift = tiny.values_by_hand(subject, other, embed) - tiny.values_by_hand(subject, window, embed)
    way = tiny.values_by_hand(subject, other, site) - tiny.values_by_hand(subject, window, site)
    only = torch.zeros_like(way)
    columns = torch.arange(place.width).chunk(place.units)[unit]
    only[..., columns] = way[..., columns]
    losses = []
    for step in (1e-4, -1e-4):
        with ExitStack() as stack, torch.no_grad():
            if share:
                stack.enter_context(
                    tiny.by_hand(
                        subject.module, subject.anatomy.place(embed), lambda v: v + share * shift
                    )
                )
            stack.enter_context(
                tiny.by_hand(subject.module, place, lambda v, step=step: v + step * only)
            )
            losses.append(float(subject.losses(window).sum() / window.counted.sum()))
    return (losses[0] - losses[1]) / 2e-4


@pytest.mark.parametrize("points", [1, 3])
@pytest.mark.parametrize("point", ["neurons", "heads", "mlp_out"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "policy"])
def test_it_is_the_slope_towards_the_value_after_another_prompt(name, point, points):
    subject, batch = tiny.subject(name, torch.float64), windows(name)
    site = [site for site in subject.anatomy.expand(point) if site.stack != "vision"][1]
    scores = localize_each(
        subject, batch, method="attribution_patching", site=site, points=points, seed=3
    )
    for row, window in zip(scores, batch.split(1), strict=True):
        other = corrupt(subject, window, seed=3)
        for unit in (0, subject.anatomy.place(site).units - 1):
            slopes = [slope(subject, window, site, unit, other, k / points) for k in range(points)]
            assert row[site][unit] == pytest.approx(float(np.mean(slopes)), rel=1e-4, abs=1e-8)


def test_more_steps_are_another_gradient():
    subject, batch = tiny.subject("gpt2", torch.float64), windows("gpt2")
    one, three = (
        localize_each(subject, batch, method="attribution_patching", points=n)[0][
            "blocks.1.neurons"
        ]
        for n in (1, 3)
    )
    assert np.abs(one - three).max() > 1e-3 * np.abs(one).max()


def test_another_prompt_leaves_the_suffix_and_depends_on_window_and_seed_alone():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", 4, prompt=PROMPT)
    other = corrupt(subject, batch, seed=1)
    assert torch.equal(other.targets, batch.targets)
    assert (other.tokens[:, :PROMPT] != batch.tokens[:, :PROMPT]).any(1).all()
    assert len({tuple(prompt) for prompt in other.tokens[:, :PROMPT].tolist()}) == 4
    assert 0 <= other.tokens.min() <= other.tokens.max() < subject.vocabulary
    for row, window in enumerate(batch.split(1)):
        assert torch.equal(corrupt(subject, window, seed=1).tokens[0], other.tokens[row])
    assert (corrupt(subject, batch, seed=2).tokens != other.tokens).any(1).all()
    assert torch.equal(
        corrupt(subject, replace(batch, tokens=batch.tokens.flip(0)), seed=1).tokens,
        other.tokens.flip(0),
    )


def test_padding_beside_a_window_does_not_change_its_other_prompt():
    subject, tokens = tiny.subject("llama"), tiny.batch("llama", 2).tokens.tolist()
    frame = pd.DataFrame({"tokens": [tokens[0][:6], tokens[1]], "prefix": PROMPT})
    together, alone = (
        corrupt(subject, interp.Batch.from_frame(f)).tokens[0, :PROMPT] for f in (frame, frame[:1])
    )
    assert torch.equal(together, alone)


def test_without_a_prompt_each_window_gets_what_the_next_one_is_conditioned_on():
    subject, batch = tiny.subject("policy"), tiny.batch("policy", 3, prompt=0)
    other = corrupt(subject, batch)
    assert torch.equal(other.tokens, batch.tokens)
    assert torch.equal(other.conditioning["image"], batch.conditioning["image"][[1, 2, 0]])
    with pytest.raises(
        ValueError, match="nothing to corrupt: expected a prompt, or at least 2 windows"
    ):
        corrupt(subject, next(batch.split(1)))


def test_no_step_is_refused():
    subject = tiny.subject("llama")
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match="points=0: expected at least one gradient"),
    ):
        localize_each(subject, windows("llama"), method="attribution_patching", points=0)
