"""Laws of interp.reporting.stats: coverage, agreement with a computation by hand, equivariance,
degenerate samples, refusals."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import linalg as scipy_linalg
from scipy import stats as scipy_stats

from interp.reporting import stats
from interp.reporting.stats import (
    Interval,
    MeanOverSeeds,
    bootstrap,
    clustered_interval,
    false_discovery,
    frechet,
    interpolate,
    paired_interval,
    permutation_p,
    statistic_interval,
    student_interval,
    unpaired_interval,
    welch_interval,
)

numbers = st.integers(-1000, 1000).map(float)
samples = st.lists(numbers, min_size=1, max_size=30)


def covered(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def binomial_band(trials: int, rate: float) -> tuple[float, float]:
    low, high = scipy_stats.binom.interval(1 - 1e-6, trials, rate)
    return low / trials, high / trials


def test_an_interval_prints_estimate_and_bounds():
    interval = Interval(1 / 3, 0.21, 0.456, 12)
    assert str(interval) == "0.33 [0.21, 0.46]"
    assert f"{interval:.3f}" == "0.333 [0.210, 0.456]"


def test_an_interval_must_hold_its_estimate():
    with pytest.raises(ValueError, match="low <= estimate <= high"):
        Interval(0.5, 0.6, 0.7, 3)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_covers_the_true_mean_as_often_as_it_says(level):
    rng = np.random.default_rng(11)
    trials = 300
    hits = np.mean(
        [
            covered(bootstrap(rng.normal(2, 3, 200), level=level, resamples=500, seed=i), 2)
            for i in range(trials)
        ]
    )
    low, high = binomial_band(trials, level)
    assert low <= hits <= high


@pytest.mark.parametrize("n", [2, 5])
def test_student_covers_the_true_mean_with_few_values(n):
    rng = np.random.default_rng(12)
    trials = 1000
    hits = np.mean([covered(student_interval(rng.normal(2, 3, n)), 2) for _ in range(trials)])
    low, high = binomial_band(trials, 0.95)
    assert low <= hits <= high


def test_clustered_covers_where_the_plain_bootstrap_is_too_sure():
    rng = np.random.default_rng(13)
    trials, seeds, rows = 200, 40, 10
    groups = np.repeat(np.arange(seeds), rows)
    plain, by_group = 0, 0
    for i in range(trials):
        values = np.repeat(rng.normal(size=seeds), rows) + 0.1 * rng.normal(size=seeds * rows)
        plain += covered(bootstrap(values, resamples=400, seed=i), 0)
        by_group += covered(clustered_interval(values, groups, resamples=400, seed=i), 0)
    low, _ = binomial_band(trials, 0.93)
    assert by_group / trials >= low
    assert plain / trials < 0.7


def test_bootstrap_equals_the_percentiles_of_means_resampled_by_hand():
    values = np.array([0.0, 1.0, 4.0])
    means = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    interval = bootstrap(values, level=0.8, resamples=40_000)
    assert interval.low == pytest.approx(np.percentile(means, 10), abs=0.34)
    assert interval.high == pytest.approx(np.percentile(means, 90), abs=0.34)
    assert interval.estimate == pytest.approx(5 / 3)


def test_student_equals_scipy():
    values = [0.2, 0.5, 0.9, 0.4]
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = student_interval(values, level=0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_paired_is_the_bootstrap_of_differences():
    a, b = [0.9, 0.8, 0.95, 0.7], [0.3, 0.5, 0.2, 0.4]
    assert paired_interval(a, b, seed=3) == bootstrap(np.subtract(a, b), seed=3)
    assert paired_interval(a, b).estimate == pytest.approx(np.mean(a) - np.mean(b))


def test_clustered_weighs_values_alike_and_counts_groups():
    interval = clustered_interval([1.0, 2.0, 6.0], ["a", "a", "b"])
    assert interval.estimate == pytest.approx(3.0)
    assert (interval.low, interval.high, interval.n) == (1.5, 6.0, 2)


def test_welch_covers_as_often_as_it_says_with_few_values_of_unequal_spread():
    rng = np.random.default_rng(5)
    sets = [(1 + rng.normal(size=4), 3 * rng.normal(size=6)) for _ in range(1500)]
    inside = np.mean([covered(welch_interval(a, b), 1.0) for a, b in sets])
    assert 0.93 <= inside <= 0.97


def test_welch_by_hand():
    found = welch_interval([1.0, 2.0, 3.0], [0.0, 4.0])
    spread = np.sqrt(1 / 3 + 8 / 2)
    freedom = (1 / 3 + 4) ** 2 / ((1 / 3) ** 2 / 2 + 4**2 / 1)
    half = float(scipy_stats.t.ppf(0.975, freedom) * spread)
    assert (found.estimate, found.n) == (0.0, 2)
    assert (found.low, found.high) == (pytest.approx(-half), pytest.approx(half))
    assert welch_interval([1.0, 1.0], [3.0, 3.0]) == Interval(-2.0, -2.0, -2.0, 2)
    with pytest.raises(ValueError, match="b: a t interval needs at least 2 values"):
        welch_interval([1.0, 2.0], [1.0])


def test_clustered_with_one_value_a_group_is_the_plain_bootstrap():
    values = np.random.default_rng(0).normal(size=25)
    assert clustered_interval(values, np.arange(25), seed=4) == bootstrap(values, seed=4)


def test_permutation_p_equals_the_count_over_all_sign_flips():
    a, b = np.array([3.0, 2.0, 5.0, 1.0, 4.0]), np.array([1.0, 2.5, 1.0, 0.0, 1.0])
    flips = np.array(list(itertools.product([-1, 1], repeat=5))) @ (a - b)
    above = np.mean(flips >= (a - b).sum() - 1e-9)
    assert permutation_p(a, b) == pytest.approx(2 * above)


def test_permutation_p_is_uniform_under_the_null():
    rng = np.random.default_rng(14)
    p = [permutation_p(*rng.normal(size=(2, 30)), seed=i, resamples=499) for i in range(300)]
    assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3


def test_permutation_p_is_small_for_a_real_difference_and_one_for_none():
    a = np.random.default_rng(0).normal(size=40)
    assert permutation_p(a + 1, a + np.linspace(0, 0.5, 40)) < 0.001
    assert permutation_p(a, a) == 1.0


@settings(deadline=None, max_examples=40)
@given(samples, st.sampled_from([np.mean, np.median, np.max, np.std]))
def test_low_estimate_high_are_in_order(values, statistic):
    interval = bootstrap(values, statistic, resamples=50)
    assert interval.low <= interval.estimate <= interval.high
    assert interval.n == len(values)


@settings(deadline=None, max_examples=40)
@given(samples, st.integers(-50, 50), st.integers(1, 20))
def test_shift_and_scale_move_the_interval_along(values, shift, scale):
    plain = bootstrap(values, resamples=50)
    moved = bootstrap(np.multiply(values, scale) + shift, resamples=50)
    for name in ("estimate", "low", "high"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name) * scale + shift, abs=1e-8)


@settings(deadline=None, max_examples=20)
@given(st.floats(-1e6, 1e6), st.integers(1, 20))
def test_a_constant_sample_gives_the_estimate_alone_without_a_warning(value, n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = [bootstrap([value] * n), clustered_interval([value] * n, [0] * n)]
    for interval in intervals:
        assert interval.low == interval.estimate == interval.high == pytest.approx(value)


@settings(deadline=None, max_examples=20)
@given(samples, st.integers(0, 5))
def test_the_same_seed_gives_the_same_interval(values, seed):
    assume(len(set(values)) > 1)
    assert bootstrap(values, seed=seed, resamples=50) == bootstrap(values, seed=seed, resamples=50)


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    bootstrap([1.0, 2.0, 3.0])
    permutation_p([1.0, 2.0], [0.0, 5.0])
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_statistic_without_axis_works():
    assert (
        bootstrap([1.0, 2.0, 9.0], lambda sample: float(sorted(sample)[1]), resamples=100).estimate
        == 2.0
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([]), "values: expected at least one value, got none"),
        (lambda: bootstrap([1.0, np.nan]), "1 NaN or infinite of 2"),
        (lambda: bootstrap([1.0, -np.inf]), "1 NaN or infinite of 2"),
        (lambda: bootstrap([[1.0, 2.0]]), r"expected shape \(n,\), got shape \(1, 2\)"),
        (lambda: bootstrap([1.0, 2.0], level=95), "between 0 and 1, such as 0.95, got 95"),
        (lambda: bootstrap([1.0, 2.0], resamples=0), "at least 1, got 0"),
        (lambda: bootstrap([1.0, 2.0], lambda _: float("nan")), "statistic: expected finite"),
        (lambda: paired_interval([1.0, 2.0], [1.0]), "same length, got 2 and 1"),
        (lambda: permutation_p([1.0], [1.0, 2.0]), "same length, got 1 and 2"),
        (lambda: permutation_p([1.0], [1.0], resamples=0), "at least 1, got 0"),
        (lambda: clustered_interval([1.0, 2.0], ["a"]), r"shape \(2,\), got shape \(1,\)"),
        (lambda: clustered_interval([1.0, 2.0], ["a", None]), "1 of 2 labels are missing"),
        (lambda: student_interval([1.0]), "at least 2 values, got 1"),
    ],
)
def test_bad_input_is_refused_with_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


def test_several_samples_have_the_interval_of_their_difference():
    draw = np.random.default_rng(3)
    a, b = draw.normal(1, 1, 400), draw.normal(0, 2, 300)
    found = statistic_interval([a, b], difference)
    half = 1.96 * np.sqrt(a.var(ddof=1) / 400 + b.var(ddof=1) / 300)
    assert found.estimate == difference(a, b)
    assert found.n == 300
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert (
        statistic_interval([a, b], difference)
        == found
        != statistic_interval([a, b], difference, seed=1)
    )


def test_several_resamples_each_sample_by_itself():
    """Of two equal samples the difference varies; a paired bootstrap would always give 0."""
    a = np.arange(20.0)
    found = statistic_interval([a, a], difference)
    assert found.estimate == 0
    assert found.low < -1 < 1 < found.high
    assert statistic_interval([[2.0], [5.0]], difference) == Interval(-3.0, -3.0, -3.0, 1)


def test_a_function_of_python_itself_is_a_statistic_too():
    values = np.arange(20.0)
    for interval in (bootstrap(values, max), statistic_interval([values], max)):
        assert (interval.estimate, interval.high) == (19, 19)
        assert interval.low < 19


@pytest.mark.parametrize("held", [1, 5000, 2**22])
def test_many_resamples_at_once_are_those_made_one_by_one(monkeypatch, held):
    monkeypatch.setattr(stats, "RESAMPLED_VALUES_HELD", held)
    draw = np.random.default_rng(4)
    a, b = draw.normal(1, 1, 40), draw.normal(0, 2, 31)
    at_once = unpaired_interval(a, b, resamples=300)
    one_by_one = statistic_interval([a, b], difference, resamples=300)
    for name in ("estimate", "low", "high", "n"):
        assert getattr(at_once, name) == pytest.approx(getattr(one_by_one, name), rel=1e-12)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "at least one, got none"),
        ([[1.0], []], r"samples\[1\]: expected at least one value"),
        ([[np.nan]], r"samples\[0\].*1 NaN"),
    ],
)
def test_several_refuses_what_has_no_interval(samples, message):
    with pytest.raises(ValueError, match=message):
        statistic_interval(samples, lambda *of: 0.0)


def features(rows: int, width: int, seed: int) -> np.ndarray:
    """Normal, with their own means and covariances."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_frechet_is_the_formula_with_the_root_of_a_matrix(width, seed):
    a, b = features(30, width, seed), features(20, width, seed + 1)
    first, second = (
        np.cov(a, rowvar=False).reshape(width, width),
        np.cov(b, rowvar=False).reshape(width, width),
    )
    root = np.real(scipy_linalg.sqrtm(first @ second))
    by_hand = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet(a, b) == pytest.approx(by_hand, rel=1e-6, abs=1e-6)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6, abs=1e-6)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-6 * np.trace(first))


@pytest.mark.parametrize("rows", [3, 40])
def test_frechet_of_a_moved_set_is_how_far_it_moved_squared(rows):
    """Also with fewer rows than features, whose covariance is singular."""
    a, step = features(rows, 5, 0), np.array([3.0, 0, -4, 0, 12])
    assert frechet(a, a + step) == pytest.approx(169, rel=1e-5)
    assert frechet(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(
        4 * a.var(0, ddof=1).sum(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (
            np.zeros((1, 3)),
            r"b: expected finite features of shape \(n, features\) with n >= 2, got shape \(1, 3\)",
        ),
        (np.zeros(3), r"got shape \(3,\)"),
        (np.full((4, 3), np.nan), "b: expected finite features"),
        (np.zeros((4, 2)), "a and b need the same features, got 3 and 2"),
    ],
)
def test_frechet_refuses_what_has_no_covariance(wrong, match):
    with pytest.raises(ValueError, match=match):
        frechet(features(9, 3, 0), wrong)


def shares_of(successes, n: int) -> list[Interval]:
    """Shares of n items with their intervals, one per seed."""
    intervals: list[Interval] = []
    for count in successes:
        share = count / n
        margin = 1.96 * np.sqrt(share * (1 - share) / n)
        intervals.append(Interval(share, max(0, share - margin), min(1, share + margin), n))
    return intervals


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6), st.floats(-0.2, 1.2), st.booleans())
def test_the_mean_of_seeds_stays_in_its_bounds_and_its_p_value_agrees_with_its_interval(
    successes, value, upwards
):
    mean = MeanOverSeeds(shares_of(successes, 20), bounds=(0, 1))
    interval = mean.interval
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.low < interval.high  # items are a sample, however equal the seeds are
    p_value = mean.p_value(value, upwards=upwards)
    outside = interval.low > value if upwards else interval.high < value
    inside_bounds = 0 < value < 1
    assume(inside_bounds and not np.isclose(p_value, 0.05))
    assert (p_value < 0.05) == outside


@given(st.lists(numbers, min_size=2, max_size=6))
def test_the_mean_of_unbounded_seeds_without_items_has_students_interval(values):
    seeds = [Interval(value, value, value, n=1) for value in values]
    found = MeanOverSeeds(seeds).interval
    expected = student_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    test = scipy_stats.ttest_1samp(values, 1.5, alternative="greater")
    p_value = MeanOverSeeds(seeds).p_value(1.5, upwards=True)
    if np.ptp(values):
        assert p_value == pytest.approx(min(1, 2 * test.pvalue))
    else:
        assert p_value is None


def test_the_mean_of_few_seeds_covers_where_a_bootstrap_over_seeds_and_items_does_not():
    """Seeds whose true shares differ (logits of mean 1 and deviation 1), with 40 items."""
    rng = np.random.default_rng(14)
    trials, seeds, n = 400, 3, 40

    def true_shares(count: int) -> np.ndarray:
        return 1 / (1 + np.exp(-rng.normal(1, 1, count)))

    truth = true_shares(200_000).mean()
    both, resampled = 0, 0
    for _ in range(trials):
        successes = rng.binomial(n, true_shares(seeds))
        both += covered(MeanOverSeeds(shares_of(successes, n), (0, 1)).interval, truth)
        drawn = successes[rng.integers(0, seeds, (400, seeds))] / n
        means = (rng.binomial(n, drawn) / n).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        resampled += low <= truth <= high
    assert both / trials >= binomial_band(trials, 0.93)[0]
    assert resampled / trials < 0.85


def test_the_mean_of_seeds_refuses_what_it_cannot_average():
    one = Interval(0.5, 0.5, 0.5, n=1)
    with pytest.raises(ValueError, match="expected at least 2 seeds, got 1"):
        MeanOverSeeds([one])
    with pytest.raises(ValueError, match="expected the lower one first, got 1 and 0"):
        MeanOverSeeds([one, one], bounds=(1, 0))
    with pytest.raises(ValueError, match=r"expected estimates between 0 and 0\.4, got 0\.5"):
        MeanOverSeeds([one, one], bounds=(0, 0.4))


def test_p_values_of_a_family_are_adjusted_and_missing_ones_do_not_count():
    # Benjamini and Hochberg: the i-th smallest of m times m / i, made monotone from the largest.
    assert false_discovery([0.04, None, 0.01, 0.03]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert false_discovery([None]) == [None]


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8, unique_by=lambda point: point[0]),
    st.lists(numbers, min_size=1, max_size=8),
)
def test_nothing_is_interpolated_beyond_what_was_measured(points, places):
    known_x, known_y = zip(*points, strict=True)
    found = interpolate(places, known_x, known_y)
    for place, value in zip(places, found, strict=True):
        inside = min(known_x) <= place <= max(known_x)
        assert np.isfinite(value) == inside
        assert not inside or min(known_y) <= value <= max(known_y)
    np.testing.assert_array_equal(interpolate(known_x, known_x, known_y), known_y)


def test_interpolation_refuses_a_curve_without_points():
    with pytest.raises(ValueError, match="known_x: expected at least one value, got none"):
        interpolate([1.0], [], [])
    with pytest.raises(ValueError, match="need the same length, got 2 and 1"):
        interpolate([1.0], [1, 2], [1])
