"""Laws of membership scores of whole examples: golden cases by hand, a brute-force implementation,
and PrivacyGuard's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import softmax
from scipy.stats import norm

from interp.memorization.membership.attacks import (
    informia,
    lira_offline,
    log_mean,
    offline_log_p,
    online_log_p,
    population_shift,
    rmia,
)
from interp.memorization.membership.roc import Roc, roc
from interp.memorization.membership.signals import label_log_p, sequence_log_p, taylor_p

X_TARGET, X_OUT = np.log([0.9]), np.log([[0.5]])
Z_TARGET = np.log([0.8, 0.5, 0.2, 0.99])
Z_OUT = np.log([[0.8, 0.2, 0.6, 0.1]])


def log_ratio(target: Any, out: Any, a: float = 0.3) -> Any:
    return target - offline_log_p(out, a)


def test_offline_rmia_and_informia_by_hand():
    of_x = log_ratio(X_TARGET, X_OUT)
    of_z = log_ratio(Z_TARGET, Z_OUT)
    assert_allclose(np.exp(of_x), [4 / 3], atol=1e-6)
    assert_allclose(np.exp(of_z), [0.919540, 1.041667, 0.270270, 2.385542], atol=1e-6)
    assert rmia(of_x, of_z) == 0.75
    assert rmia(of_x, of_z, gamma=2) == 0.25
    assert_allclose(informia(of_x), [0.287682], atol=1e-6)

    p_z = offline_log_p(Z_OUT, 0.3)
    uniform = population_shift(Z_TARGET, p_z, normalized=False)
    assert_allclose(informia(of_x, uniform), [0.408174], atol=1e-6)
    normalized = population_shift(Z_TARGET, p_z)
    assert_allclose(normalized, 0.257761, atol=1e-6)
    nats = informia(of_x, normalized)
    assert_allclose(nats, [0.545443], atol=1e-6)
    assert_allclose(nats / np.log(2), [0.786908], atol=1e-6)


def test_online_by_hand():
    p = online_log_p(np.log([[0.9], [0.7]]), np.log([[0.3], [0.1]]))
    assert_allclose(np.exp(np.log(0.95) - p), [1.9])


def test_a_tie_counts_only_if_inclusive():
    same = np.log([0.7])
    assert rmia(same, same, inclusive=True) == 1
    assert rmia(same, same, inclusive=False) == 0


@pytest.mark.parametrize(("a", "expected"), [(1.0, 0.4), (0.0, 0.7)])
def test_the_ends_of_a(a: float, expected: float):
    assert_allclose(np.exp(offline_log_p(np.log([[0.4]]), a)), [expected])


def test_no_auc_theorem_where_rmia_ties():
    """RMIA gives .5 whether InfoRMIA ranks both right or both wrong."""
    labels = [True, False]
    for ratios, z, expected in (([3.0, 2.0], 1.0, 1.0), ([1.0, 2.0], 1e-9, 0.0)):
        logs = np.log(ratios)
        assert roc(rmia(logs, np.log([z])), labels).auc.estimate == 0.5
        assert roc(informia(logs), labels).auc.estimate == expected


def test_the_mean_over_reference_models_has_no_bias():
    """The library that RMIA's authors publish keeps the largest K of a population's probabilities."""
    probabilities = np.log([[0.2], [0.6]])
    assert_allclose(np.exp(log_mean(probabilities)), [0.4])


def test_signals_by_hand():
    assert_allclose(np.exp(sequence_log_p(np.log([[0.5, 0.125]]))), [0.25])
    logits = np.array([[2.0, 1.0, 0.0]])
    label = np.array([0])
    assert_allclose(np.exp(label_log_p(logits, label)), [0.665241], atol=1e-6)
    assert_allclose(taylor_p(logits, label, order=3), [0.511372], atol=1e-6)
    assert_allclose(taylor_p(logits, label, margin=0, order=3), [0.633333], atol=1e-6)
    with pytest.raises(ValueError, match="even order"):
        taylor_p(np.array([[0.0, -3.0]]), label, order=3)


def test_label_log_p_keeps_what_is_lost_near_certainty():
    """In float64, 1 - exp(-50) is 1; log p must still be -exp(-50), or LiRA sees infinity."""
    found = label_log_p(np.array([[50.0, 0.0], [700.0, 0.0]]), np.array([0, 0]))
    assert_allclose(found, [-np.exp(-50.0), -np.exp(-700.0)], rtol=1e-12)
    assert np.isfinite(lira_offline(found, [[-0.1, -0.2], [-0.2, -0.3]])).all()


def test_sequence_log_p_counts_only_what_counts():
    log_p = np.log([[0.5, 0.1], [0.2, 0.9]])
    counted = np.array([[True, False], [True, True]])
    expected = [np.log(0.5), np.log(0.2 * 0.9) / 2]
    assert_allclose(sequence_log_p(log_p, counted), expected)
    with pytest.raises(ValueError, match="sequence 1 has no token"):
        sequence_log_p(log_p, np.array([[True, True], [False, False]]))


probabilities = st.floats(1e-6, 1 - 1e-6)


def arrays(models: int, size: int) -> st.SearchStrategy[Any]:
    row = st.lists(probabilities, min_size=size, max_size=size)
    return st.lists(row, min_size=models, max_size=models).map(np.array)


@given(
    data=st.data(),
    models=st.integers(1, 3),
    a=st.floats(0, 1),
    gamma=st.floats(1, 3),
    examples=st.integers(1, 8),
    population=st.integers(1, 8),
)
def test_equals_brute_force(
    data: st.DataObject, models: int, a: float, gamma: float, examples: int, population: int
):
    """With probabilities instead of logs, and a loop over all pairs instead of a sorted search."""
    x = data.draw(arrays(1, examples))[0]
    z = data.draw(arrays(1, population))[0]
    x_out = data.draw(arrays(models, examples))
    z_out = data.draw(arrays(models, population))

    def ratios(target: Any, out: Any) -> list[float]:
        p = [0.5 * ((1 + a) * sum(column) / models + (1 - a)) for column in out.T]
        return [t / q for t, q in zip(target, p, strict=True)]

    found = rmia(
        log_ratio(np.log(x), np.log(x_out), a), log_ratio(np.log(z), np.log(z_out), a), gamma
    )
    r_x, r_z = ratios(x, x_out), ratios(z, z_out)
    for example, ratio in enumerate(r_x):
        quotients = [ratio / other for other in r_z]
        # Within rounding of a tie, either way of computing may be on either side.
        least = sum(q > gamma * (1 + 1e-9) for q in quotients) / population
        most = sum(q >= gamma * (1 - 1e-9) for q in quotients) / population
        assert least <= found[example] <= most
    assert_allclose(informia(log_ratio(np.log(x), np.log(x_out), a)), np.log(r_x), atol=1e-9)


@given(data=st.data(), size=st.integers(1, 6))
def test_population_shift_is_the_divergence(data: st.DataObject, size: int):
    target = data.draw(arrays(1, size))[0]
    reference = data.draw(arrays(1, size))[0]
    q, r = reference / reference.sum(), target / target.sum()
    expected = sum(a * np.log(a / b) for a, b in zip(q, r, strict=True))
    found = population_shift(np.log(target), np.log(reference))
    assert_allclose(found, expected, atol=1e-9)
    assert found >= -1e-12


finite = st.floats(-5, 5).map(lambda value: round(value, 1))  # rounded, so that ties happen


@given(
    scores=st.lists(finite, min_size=4, max_size=30),
    population=st.lists(finite, min_size=1, max_size=10),
    gamma=st.sampled_from([1.0, 1.5, 2.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)  # the first example imports scikit-learn
def test_every_operating_point_of_rmia_is_one_of_informia(
    scores: list[float], population: list[float], gamma: float, seed: int
):
    """The provable law: on one target, whatever the population, InfoRMIA finds at least as many
    members at every false positive rate, because RMIA is a non-decreasing step function of it."""
    labels = np.random.default_rng(seed).random(len(scores)) < 0.5
    labels[:2] = [True, False]
    steps = rmia(scores, population, gamma)
    by_score = np.argsort(scores, kind="stable")
    assert (np.diff(steps[by_score]) >= 0).all()
    exact, stepped = roc(informia(scores), labels), roc(steps, labels)
    for fpr in stepped.frame["fpr"]:
        assert best(exact, fpr) >= best(stepped, fpr)


def best(curve: Roc, fpr: float) -> float:
    points: Any = curve.frame
    return points["tpr"][points["fpr"] <= fpr].max()


@given(scores=st.lists(finite, min_size=2, max_size=10), population=st.lists(finite, min_size=1))
def test_what_cannot_matter_does_not(scores: list[float], population: list[float]):
    shuffled = np.random.default_rng(0).permutation(population)
    assert_allclose(rmia(scores, shuffled), rmia(scores, population))
    for shift in (0.0, 3.0):
        assert (np.argsort(informia(scores, shift)) == np.argsort(informia(scores))).all()


def test_lira_is_one_sided():
    """By hand: phi of the reference models is log(1), so mean 0 for both; the target's is log 9."""
    target = np.log([0.9, 0.1])
    out = np.log([[0.5, 0.5]])
    found = lira_offline(target, out, spread=2.0)
    assert_allclose(found, norm.logcdf([np.log(9) / 2, -np.log(9) / 2]))
    pooled = lira_offline(target, np.log([[0.5, 0.5], [0.9, 0.9]]))
    spread = np.std([0, np.log(9)], ddof=1)
    assert_allclose(pooled, norm.logcdf(np.log([9, 1 / 9]), np.log(9) / 2, spread))


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("a", [0.3, 1.0])
def test_equals_privacy_guard(models: int, a: float):
    guard: Any = pytest.importorskip(
        "privacy_guard.attacks.rmia_attack", reason="PrivacyGuard is not installed"
    )
    rng = np.random.default_rng(models)
    x, z = rng.random(200), rng.random(50)
    x_out, z_out = rng.random((models, 200)), rng.random((models, 50))
    theirs = _privacy_guard_rmia(guard, x, x_out, z, z_out, a)
    ours = rmia(
        log_ratio(np.log(x), np.log(x_out), a),
        log_ratio(np.log(z), np.log(z_out), a),
        inclusive=False,
    )
    assert_allclose(ours, theirs, atol=1e-12)


def _privacy_guard_rmia(guard: Any, x: Any, x_out: Any, z: Any, z_out: Any, a: float) -> Any:
    """Their scores where no reference model was trained on any example, and all are used."""
    attack = object.__new__(guard.RmiaAttack)
    never = np.zeros(x_out.T.shape, dtype=bool)
    return attack._compute_membership_scores(x, x_out.T, never, z, z_out.T, a, len(x_out))


def test_lira_equals_privacy_guard():
    """Theirs is two-sided: minus the log density. Both are functions of the same distance from the
    mean in standard deviations."""
    guard: Any = pytest.importorskip(
        "privacy_guard.attacks.lira_attack", reason="PrivacyGuard is not installed"
    )
    import pandas as pd

    rng = np.random.default_rng(0)
    target, out = rng.uniform(0.05, 0.95, 60), rng.uniform(0.05, 0.95, (4, 60))
    phi = np.log(target / (1 - target))
    means = np.log(out / (1 - out)).mean(0)
    frame = pd.DataFrame({"score_orig": phi, "score_mean": means, "user_id": range(60)})
    attack = guard.LiraAttack(frame[:30].copy(), frame[30:].copy(), guard.AggregationType.NONE)
    found = attack.run_attack()
    theirs = np.concatenate([found.df_train_merge["score"], found.df_test_merge["score"]])
    spread = phi.std(ddof=1)  # what they call global
    ours = lira_offline(np.log(target), np.log(out), spread)
    distance = norm.ppf(np.exp(ours))
    assert_allclose(theirs, -norm.logpdf(distance) + np.log(spread), atol=1e-8)


def test_softmax_agrees_with_scipy():
    logits = np.random.default_rng(0).normal(size=(20, 5)) * 5
    labels = np.arange(20) % 5
    assert_allclose(
        label_log_p(logits, labels, temperature=2.0),
        np.log(softmax(logits / 2, axis=1)[np.arange(20), labels]),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rmia([], [0.0]), "log_ratio: expected a row of numbers"),
        (lambda: rmia([0.0], []), "population: expected a row of numbers"),
        (lambda: rmia([0.0], [0.0], gamma=0.5), "gamma=0.5: expected at least 1"),
        (lambda: rmia([np.nan, 1.0], [0.0]), "1 of 2 values are NaN or infinite"),
        (lambda: informia([-np.inf]), "a probability of 0"),
        (lambda: offline_log_p([[-1.0]], a=1.5), "a=1.5: expected a number from 0 to 1"),
        (lambda: offline_log_p([-1.0]), r"expected shape \[models, examples\]"),
        (lambda: offline_log_p([[0.4]]), "above 0"),
        (lambda: offline_log_p([[np.nan]]), "1 values are NaN"),
        (lambda: population_shift([0.0, 0.0], [0.0]), "got 2 and 1"),
        (lambda: lira_offline([0.0], [[-1.0]]), "exactly 0 or 1"),
        (lambda: lira_offline([-1.0], [[-1.0], [-1.0]]), "do all reference models"),
        (lambda: label_log_p(np.array([[np.inf, 0]]), np.array([0])), "example 0 are not finite"),
        (lambda: label_log_p(np.zeros((1, 2)), np.array([0]), 0), "temperature=0"),
    ],
)
def test_bad_input_is_one_clear_error(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()
