"""Laws of what the methods share: where a suffix is predicted, the loss of each window, and gates
that no window shares with another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

import interp
from interp.localization.predicting_positions import (
    position_weights,
    predicting_positions,
    weighted_mean,
)
from interp.localization.unit_gates import gated
from interp.localization.window_losses import window_losses
from interp.subject.subject import evaluating


@pytest.mark.parametrize("prompt", [1, 4, 8])
def test_a_suffix_is_predicted_one_position_earlier_and_by_a_policy_at_its_own(name, prompt):
    subject = tiny.subject(name)
    found = predicting_positions(subject, tiny.batch(name, rows=3, prompt=prompt), subject.sites)
    assert found == ({"vision": None, "decoder": prompt} if name == "policy" else {"": prompt - 1})


def test_a_policy_without_a_prompt_is_predicted_from_its_start():
    subject = tiny.subject("policy")
    assert predicting_positions(subject, tiny.batch("policy", prompt=0), subject.sites) == {
        "vision": None,
        "decoder": 0,
    }


def test_weights_average_over_the_positions_that_predict_real_tokens():
    subject, batch = (
        tiny.subject("policy"),
        tiny.batch("policy", rows=3, length=9, prompt=4, padded=True),
    )
    weights = position_weights(subject, batch, subject.sites)
    assert weights["vision"] is None
    expected = [[0] * 4 + [1 / n] * n + [0] * (5 - n) for n in (5, 4, 3)]
    torch.testing.assert_close(weights["decoder"], torch.tensor(expected, dtype=torch.double))
    text = replace(batch, conditioning={})
    weights = position_weights(tiny.subject("llama"), text, tiny.subject("llama").sites)
    expected = [[0] * 3 + [1 / n] * n + [0] * (6 - n) for n in (5, 4, 3)]
    torch.testing.assert_close(weights[""], torch.tensor(expected, dtype=torch.double))


def test_without_a_prompt_the_weights_are_those_of_the_tokens_that_are_predicted():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", length=5, prompt=0)
    weights = position_weights(subject, batch, subject.sites)[""]
    assert weights.tolist() == [[1 / 4] * 4 + [0]] * 2


def test_a_weighted_mean_is_a_plain_sum():
    value = torch.arange(24.0).reshape(2, 3, 4)
    weights = torch.tensor([[1, 0, 0], [0.25, 0, 0.75]], dtype=torch.double)
    assert weighted_mean(value, weights).tolist() == [[0, 1, 2, 3], [18, 19, 20, 21]]
    assert weighted_mean(value, None).tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]


def test_the_loss_of_a_window_is_the_mean_over_its_real_targets(name):
    subject, batch = tiny.subject(name), tiny.batch(name, rows=3, prompt=4, padded=True)
    with evaluating(subject):
        losses = window_losses(subject, batch)
    logits = tiny.bare(name, subject.module, batch)
    shift = 0 if name == "policy" else 1
    for row in range(3):
        length = int(batch.mask[row].sum())
        expected = cross_entropy(
            logits[row, 4 - shift : length - shift].float(), batch.tokens[row, 4:length]
        )
        torch.testing.assert_close(losses[row].float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("point", ["neurons", "heads", "block_out"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "policy"])
def test_a_gate_of_0_is_an_ablation_and_windows_do_not_mix(name, point):
    subject, batch = (
        tiny.subject(name, torch.float64),
        tiny.batch(name, rows=3, prompt=4, dtype=torch.float64),
    )
    site = subject.anatomy.expand(point)[-1]
    width = subject.anatomy.place(site).units
    gate = torch.ones(3, width)
    gate[1, width - 1] = 0
    with evaluating(subject):
        clean = subject.logits(batch)
        with gated(subject, {site: gate}):
            changed = subject.logits(batch)
        with subject.intervened(interp.Zero(tiny.units(subject, site, [width - 1]))):
            ablated = subject.logits(batch)
    assert (clean[1] - ablated[1]).abs().max() > 1e-4
    torch.testing.assert_close(
        changed, torch.stack([clean[0], ablated[1], clean[2]]), rtol=1e-6, atol=1e-9
    )


def test_gates_of_one_leave_every_bit():
    subject, batch = tiny.subject("gpt2"), tiny.batch("gpt2", rows=3)
    with (
        evaluating(subject),
        gated(subject, {s: torch.ones(3, w) for s, w in subject.anatomy.widths("neurons").items()}),
    ):
        changed = subject.logits(batch)
    with evaluating(subject):
        assert torch.equal(changed, subject.logits(batch))


def test_a_weighted_mean_ignores_what_has_no_weight():
    value = torch.tensor([[[1.0], [2.0], [torch.inf]]])
    weights = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.double)
    assert weighted_mean(value, weights).tolist() == [[1.75]]
