"""Quadrants, weights and pruning by hand; weighted training against plain training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import interp
from interp.mitigation.reweighting import (
    HARD,
    HOTSPOT,
    OUTLIER,
    POLICY,
    STABLE,
    keep_after_pruning,
    policy_weights,
    quadrants,
    weighted,
)
from interp.training.fit import Checkpoints, epoch_rows, epochs, fit

SCORE = st.floats(0, 10, width=32)


@given(arrays(float, 12, elements=SCORE), arrays(float, 12, elements=SCORE))
def test_quadrants_are_a_partition_by_two_thresholds(difficulty, memorization):
    found = quadrants(difficulty, memorization, (50, 90))
    is_hard = difficulty > np.percentile(difficulty, 50)
    is_memorized = memorization > np.percentile(memorization, 90)
    assert set(found.tolist()) <= set(POLICY)
    assert np.array_equal(is_hard, np.isin(found, [HARD, OUTLIER]))
    assert np.array_equal(is_memorized, np.isin(found, [HOTSPOT, OUTLIER]))


def test_ties_are_low():
    found = quadrants(np.array([1.0, 2, 3, 4]), np.zeros(4))
    assert found.tolist() == [STABLE, STABLE, HARD, HARD]


def test_the_policy_by_hand():
    regions = np.array([STABLE, HARD, HOTSPOT, OUTLIER])
    assert policy_weights(regions).tolist() == [1.0, 1.5, 0.5, 0.0]
    assert policy_weights(regions, {**POLICY, HOTSPOT: 0.25}).sum() == 2.75


@given(arrays(float, st.integers(2, 40), elements=SCORE), st.floats(0, 0.9))
def test_pruning_takes_the_highest(scores, share):
    kept = keep_after_pruning(scores, share)
    assert (~kept).sum() == int(round(share * len(scores), 6))
    if not kept.all():
        assert scores[~kept].min() >= scores[kept].max()


def test_equal_scores_are_pruned_by_difficulty_and_then_in_order():
    scores = np.array([1.0, 1.0, 1.0, 0.0])
    assert keep_after_pruning(scores, 0.25).tolist() == [False, True, True, True]
    easier_last = np.array([2.0, 1.0, 1.0, 0.0])
    assert keep_after_pruning(scores, 0.25, easier_last).tolist() == [True, False, True, True]
    assert (~keep_after_pruning(np.arange(100.0), 0.29)).sum() == 29


@pytest.fixture
def examples():
    return tiny.batch("", rows=6, length=8, seed=4, prompt=2, padded=True)


def train(examples, objective=None, steps=4):
    subject = interp.load(tiny.model("llama"))
    history = fit(subject, epochs(examples, 3, seed=1), steps, lr=1e-2, objective=objective)
    return subject.module.state_dict(), history["loss"].tolist()


@pytest.mark.parametrize("normalized", [True, False])
def test_weights_of_one_are_plain_training_to_the_bit(examples, normalized):
    rows = epoch_rows(len(examples), 3, seed=1)
    plain, plain_losses = train(examples)
    found, losses = train(examples, weighted(np.ones(6), rows, normalized=normalized))
    assert losses == plain_losses
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_equal_weights_are_plain_training_where_they_are_normalized(examples):
    rows = epoch_rows(len(examples), 3, seed=1)
    _, plain = train(examples)
    _, found = train(examples, weighted(np.full(6, 0.5), rows))
    assert found == pytest.approx(plain, rel=1e-4)


def test_a_continued_training_weighs_the_same_examples(examples, tmp_path):
    """The batches before are skipped, and so must be the numbers of their examples."""
    weights = np.array([0.5, 2, 1, 0, 1.5, 1])

    def run(folder, callback=None):
        subject = interp.load(tiny.model("llama"))
        history = fit(
            subject,
            epochs(examples, 3, seed=1),
            6,
            lr=1e-2,
            objective=weighted(weights, epoch_rows(len(examples), 3, seed=1)),
            callback=callback,
            checkpoints=Checkpoints(folder, every=1),
        )
        return history["loss"].tolist()

    def stop(step):
        if step.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "interrupted", stop)
    assert run(tmp_path / "interrupted") == run(tmp_path / "whole")


def gradients(examples, objective):
    subject = interp.load(copy.deepcopy(tiny.model("llama")))
    objective(subject, examples, 0).backward()
    return [parameter.grad for parameter in subject.module.parameters()]


def test_a_weight_of_zero_is_removal(examples):
    weights = np.array([1.0, 0, 1, 0, 0, 1])
    kept = examples.rows(np.array([0, 2, 5]))
    found = gradients(examples, weighted(weights, [np.arange(6)]))
    expected = gradients(kept, weighted(np.ones(3), [np.arange(3)]))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_weighted_mean_by_hand(examples):
    weights = np.array([0.5, 2, 1, 0, 1.5, 1])
    subject = interp.load(tiny.model("llama"))
    with torch.no_grad():
        loss = weighted(weights, [np.arange(6)])(subject, examples, 0)
        losses = subject.losses(examples)
    per_token = torch.as_tensor(weights)[:, None].expand_as(losses)[examples.counted]
    own = losses[examples.counted]
    assert float(loss) == pytest.approx(float((per_token * own).sum() / per_token.sum()), rel=1e-5)


def test_a_batch_of_weight_zero_changes_nothing(examples):
    weights = np.array([1.0, 0, 0, 0, 0, 0])
    found = gradients(examples.rows(slice(1, 4)), weighted(weights, [np.arange(1, 4)]))
    assert all(not gradient.any() for gradient in found)


def test_bad_scores_and_weights_are_refused(examples):
    with pytest.raises(ValueError, match="scores of 2 and of 3"):
        quadrants(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        quadrants(np.array([np.nan, 1]), np.zeros(2))
    with pytest.raises(ValueError, match="from 0 to 100"):
        quadrants(np.zeros(2), np.zeros(2), (50, 101))
    with pytest.raises(ValueError, match="no weight for 'other'"):
        policy_weights(np.array(["other"]))
    with pytest.raises(ValueError, match="all weights are 0"):
        policy_weights(np.array([OUTLIER, OUTLIER]))
    with pytest.raises(ValueError, match="negative"):
        weighted(np.array([-1.0, 1]), [])
    with pytest.raises(ValueError, match="at least one example left"):
        keep_after_pruning(np.zeros(4), 1.0)
    with pytest.raises(ValueError, match="step 0 has 6 rows, and the numbers of 0"):
        fit(interp.load(tiny.model("llama")), [examples], 1, objective=weighted(np.ones(6), []))
