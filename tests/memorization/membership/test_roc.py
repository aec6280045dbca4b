"""Laws of ROC curves: golden cases by hand, scikit-learn, and the coverage of intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

import interp
from interp.memorization.membership.roc import auc_interval, auc_standard_error, roc, roc_figure


def labelled(members: list[float], others: list[float]) -> tuple[list[float], list[bool]]:
    return [*members, *others], [True] * len(members) + [False] * len(others)


def test_ties_are_accepted_together():
    curve = roc(*labelled([1, 1, 0.5], [1, 0, 0]))
    assert curve.auc.estimate == pytest.approx(7 / 9)
    assert curve.tpr(0).estimate == 0
    # accepting .5 adds no false positive: stopping at the first threshold would say 2/3
    assert curve.tpr(1 / 3).estimate == 1


def test_the_smallest_threshold_is_taken():
    curve = roc(*labelled([5, 4, 3, 1], [4.5, 2, 0.5, 0]))
    assert curve.tpr(0).estimate == 1 / 4
    assert curve.tpr(1 / 4).estimate == 3 / 4


def test_a_level_that_is_rounded_is_the_level_that_is_meant():
    curve = roc(*labelled([3, 1.5, 0], [2, *[1] * 9]))
    level = 1 - 0.9
    assert level < 0.1  # by the last bit
    assert curve.tpr(level).estimate == curve.tpr(0.1).estimate == 2 / 3


@pytest.mark.parametrize(
    ("accepted", "of", "low", "high"),
    [
        (0, 1000, 0.0, 0.003682),
        (1, 1000, 0.0000253, 0.005559),
        (60, 500, 0.0928, 0.1518),
        (8, 500, 0.0069, 0.0313),
    ],
)
def test_the_interval_of_a_rate(accepted: int, of: int, low: float, high: float):
    members = [2.0] * accepted + [0.0] * (of - accepted)
    found = roc(*labelled(members, [1.0])).tpr(0)
    assert_allclose([found.low, found.high], [low, high], atol=5e-5 if of == 500 else 1e-6)


@pytest.mark.parametrize(
    ("auc", "count", "expected"), [(0.822, 500, 0.01328), (0.575, 5000, 0.00569)]
)
def test_the_standard_error_of_a_published_auc(auc: float, count: int, expected: float):
    assert auc_standard_error(auc, count, count) == pytest.approx(expected, abs=5e-6)


scores = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@given(members=scores, others=scores)
@settings(deadline=None)  # the first example imports scikit-learn
def test_auc_is_the_share_of_pairs_in_order(members: list[int], others: list[int]):
    values, labels = labelled([*map(float, members)], [*map(float, others)])
    found = roc(values, labels)
    pairs = [(member > other) + (member == other) / 2 for member in members for other in others]
    assert found.auc.estimate == pytest.approx(np.mean(pairs))
    assert found.auc.estimate == pytest.approx(roc_auc_score(labels, values))
    assert 0 <= found.auc.low <= found.auc.estimate <= found.auc.high <= 1
    opposite = roc([-value for value in values], labels)
    assert opposite.auc.estimate == pytest.approx(1 - found.auc.estimate)


def test_the_interval_of_the_auc_covers_the_truth():
    """Normal scores one standard deviation apart have an AUC of Phi(1 / sqrt 2) = 0.7602."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        curve = roc(*labelled([*rng.normal(1, 1, 40)], [*rng.normal(0, 1, 60)]))
        covered += curve.auc.low <= 0.7602 <= curve.auc.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_standard_error_is_that_of_exponential_scores():
    """Theirs assumes exponential scores: there it is the standard deviation over samples."""
    rng = np.random.default_rng(1)
    found = [
        roc(*labelled([*rng.exponential(3, 50)], [*rng.exponential(1, 80)])).auc.estimate
        for _ in range(1000)
    ]
    assert np.std(found) == pytest.approx(auc_standard_error(0.75, 50, 80), rel=0.1)


@pytest.mark.parametrize("count", [5, 20])
def test_perfect_separation_has_an_interval_too(count: int):
    """The lower end is an AUC with which it is not surprising."""
    found = auc_interval(1.0, count, count)
    assert found.high == 1
    assert 0 < found.low < 1
    distance = (1 - found.low) / auc_standard_error(found.low, count, count)
    assert distance == pytest.approx(1.96, abs=1e-6)
    lowest = auc_interval(0.0, count, count)
    assert (lowest.low, lowest.high) == (0, pytest.approx(1 - found.low))


def test_a_level_that_the_sample_cannot_support_is_refused():
    curve = roc(*labelled([1.0] * 5, [0.0] * 99))
    assert curve.supports(0)
    assert curve.supports(1 / 99)
    assert not curve.supports(0.01)
    with pytest.raises(ValueError, match="99 non-members: expected at least 100 of them, or fpr=0"):
        curve.tpr(0.01)
    assert roc(*labelled([1.0], [0.0] * 100)).tpr(0.01).estimate == 1
    for fpr in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a rate from 0 to below 1"):
            curve.tpr(fpr)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([], [], "all 0 examples are non-members"),
        ([1.0, 2.0], [1, 1], "all 2 examples are members; expected both kinds"),
        ([1.0, 2.0], [0, 0], "all 2 examples are non-members"),
        ([1.0, np.nan], [0, 1], "1 are NaN or infinite"),
        ([1.0], [0, 1], "got \\(1,\\) and \\(2,\\)"),
        ([1.0, 2.0], [0, 2], "one truth value per example"),
        ([1.0, 2.0], ["yes", "no"], "one truth value per example"),
    ],
)
def test_bad_input_is_one_clear_error(values: Any, labels: Any, message: str):
    with pytest.raises(ValueError, match=message):
        roc(values, labels)


def test_the_figure_shows_every_curve_and_chance():
    rng = np.random.default_rng(0)
    first = roc(*labelled([*rng.normal(1, 1, 50)], [*rng.normal(0, 1, 50)]))
    figure = roc_figure({"ratio": first, "loss": interp.roc(*labelled([0.5, 1], [0.4, 0.7]))})
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["ratio", "loss", "chance"]
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlim()[0] == pytest.approx(1 / 50)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_the_auc_is_exactly_a_share_of_pairs(members: int, others: int, seed: int):
    """Not 1.0000000000000002, which would beat another perfect score."""
    rng = np.random.default_rng(seed)
    higher, lower = 2 + rng.random(members), rng.random(others)
    scores = np.concatenate([higher, lower])
    labels = np.arange(members + others) < members
    assert roc(scores, labels).auc.estimate == 1.0
    tied = rng.integers(0, 4, members + others)
    pairs = np.subtract.outer(tied[:members], tied[members:])
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert roc(tied, labels).auc.estimate == expected
