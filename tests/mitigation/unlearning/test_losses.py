"""Golden cases of the formulas, and laws that they keep."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from interp.mitigation.unlearning.losses import (
    divergence,
    log_probabilities,
    masked_mean,
    preference,
    simple_preference,
    squared_distance,
)


def test_the_original_model_comes_first_in_the_divergence():
    original = torch.tensor([0.5, 0.5]).log()
    trained = torch.tensor([0.25, 0.75]).log()
    assert divergence(original, trained).item() == pytest.approx(0.1438, abs=1e-4)
    assert divergence(trained, original).item() == pytest.approx(0.1308, abs=1e-4)


@given(st.integers(0, 1000), st.integers(2, 9))
def test_the_divergence_is_torchs_and_0_for_equal_models(seed, width):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, width, generator=generator)
    log_p = log_probabilities(logits)
    other = log_probabilities(torch.randn(3, width, generator=generator))
    expected = torch.nn.functional.kl_div(other, log_p, reduction="none", log_target=True).sum(-1)
    assert_close(divergence(log_p, other), expected)
    assert divergence(log_p, other).min() > -1e-6
    assert divergence(log_p, log_p).tolist() == [0.0] * 3


def test_a_token_that_both_models_forbid_adds_nothing():
    log_p = log_probabilities(torch.tensor([1.0, 2.0, -torch.inf]))
    assert divergence(log_p, log_p).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_log_probabilities_are_at_least_single_precision(dtype):
    found = log_probabilities(torch.randn(2, 5).to(dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(found.exp().sum(-1), torch.ones(2, dtype=found.dtype))


def test_a_mean_over_nothing_is_0_and_nan_elsewhere_does_not_matter():
    values = torch.tensor([[1.0, math.nan]], requires_grad=True)
    assert masked_mean(values, torch.zeros(1, 2, dtype=torch.bool)).item() == 0
    mean = masked_mean(values, torch.tensor([[True, False]]))
    mean.backward()
    assert mean.item() == 1
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0]]


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=4), st.floats(0.01, 5))
def test_npo_by_hand(log_p, beta):
    original = [0.5 * value - 1 for value in log_p]
    expected = 0.0
    for own, other in zip(log_p, original, strict=True):
        expected += 2 / beta * math.log1p(math.exp(beta * (own - other))) / len(log_p)
    found = preference(torch.tensor(log_p).double(), torch.tensor(original).double(), beta)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_npo_of_the_original_model_and_its_limit_of_gradient_ascent():
    log_p = torch.tensor([-3.0, -8.0], requires_grad=True)
    loss = preference(log_p, log_p.detach(), 0.1)
    assert loss.item() == pytest.approx(20 * math.log(2))
    # at the start its gradient is that of gradient ascent, the mean log p, whatever beta is
    (gradient,) = torch.autograd.grad(loss, log_p)
    assert_close(gradient, torch.tensor([0.5, 0.5]))
    # a sequence that is already unlikely is pushed no further
    unlikely = torch.tensor([-300.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(preference(unlikely, torch.zeros(1), 0.1), unlikely)
    assert abs(gradient.item()) < 1e-12


def test_simnpo_by_hand():
    """The authors write -(2 / beta) log sigmoid(-(beta / length) log p - gamma)."""
    beta, delta, length, log_p = 3.5, 1.0, 4, -6.0
    inner = -beta / length * log_p - beta * delta
    expected = 2 / beta * math.log1p(math.exp(-inner))
    found = simple_preference(torch.tensor([-log_p / length]), beta, delta)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_squared_distance_is_a_mean_over_tokens_of_a_sum_over_the_width():
    values = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert squared_distance(values, torch.tensor([1.0, 1.0])).item() == (4 + 9) / 2
    assert squared_distance(values, values).item() == 0
