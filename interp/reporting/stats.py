"""Intervals, paired tests and permutation nulls: what stands beside every number the toolkit
reports.

All functions take plain 1-D values (list, numpy array, pandas Series, CPU tensor), draw from their
own seeded generator and leave the global one alone. The resampling is scipy's; what is added here
is the checks, the degenerate cases and the grouping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Interval",
    "bootstrap",
    "clustered",
    "frechet",
    "paired",
    "permutation_p",
    "several",
    "student",
    "welch",
]

# scipy holds batch x n resampled values at a time; 2**22 float64 are 32 MB
RESAMPLED_VALUES_HELD = 2**22

Statistic = Callable[..., Any]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval, `low <= estimate <= high`, from `n` independent units (values,
    pairs or groups)."""

    estimate: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise ValueError(
                f"expected low <= estimate <= high, got {self.low} <= {self.estimate} <= {self.high}"
            )

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)


def bootstrap(
    values: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic(values)`.

    The interval is widened to hold the estimate where the resampled statistic is biased away from
    it (a maximum, an entropy), and is the estimate itself for a single value or a constant sample.

    Under 10 values a percentile interval of a mean is too short: on normal data a 95% one covered
    84% with 5 values and 93% with 20 (1,500 simulations of each). For a few seeds use `student`.

    Args:
        values: shape (n,), finite.
        statistic: maps (n,) to a number; if it takes `axis`, as numpy's do, all resamples are
        computed at once.
        level: coverage, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: of the generator.

    Raises:
        ValueError: empty, not 1-D or not finite values; level outside (0, 1); resamples < 1; a
        statistic that is not finite.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    return _resampled((_finite(values, "values"),), statistic, level, resamples, seed)


def paired(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Bootstrap interval of mean(a - b) over pairs: `a[i]` and `b[i]` are the same passage, seed or
    unit under two conditions.

    Args:
        a: shape (n,), finite.
        b: shape (n,), finite.
        level: coverage, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: of the generator.

    Raises:
        ValueError: as `bootstrap`, or `a` and `b` of different lengths.
    """
    return bootstrap(_differences(a, b), level=level, resamples=resamples, seed=seed)


def several(
    samples: Sequence[ArrayLike],
    statistic: Callable[..., float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic(*samples)` of independent samples, each resampled
    by itself.

    `n` of the result is the size of the smallest sample.

    Args:
        samples: each of shape (n_i,), finite.
        statistic: maps the samples, in order, to a number.
        level: coverage, between 0 and 1.
        resamples: bootstrap samples drawn of each.
        seed: of the generator.

    Raises:
        ValueError: as `bootstrap`, or no sample.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    _check_level(level)
    _check_resamples(resamples)
    data = [_finite(sample, f"samples[{n}]") for n, sample in enumerate(samples)]
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(*(sample[rng.integers(0, len(sample), len(sample))] for sample in data))
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return _widened(float(statistic(*data)), float(low), float(high), min(map(len, data)))


def clustered(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Cluster bootstrap interval of mean(values): whole groups (seeds, passages) are resampled,
    because values in one are not independent.

    Every value weighs the same, so a large group weighs more. `n` of the result counts groups.

    Args:
        values: shape (m,), finite.
        groups: shape (m,), the label of each value's group.
        level: coverage, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: of the generator.

    Raises:
        ValueError: as `bootstrap`, or `groups` of another length or with missing labels.

    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    data = _finite(values, "values")
    codes = _codes(groups, len(data))
    sizes = np.bincount(codes).astype(np.float64)
    return _resampled(
        (np.bincount(codes, weights=data).astype(np.float64), sizes),
        _ratio_of_sums,
        level,
        resamples,
        seed,
    )


def student(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's t interval of mean(values): the one for 2 to 10 seeds, where a bootstrap is too
    short. Exact for normal values.

    Args:
        values: shape (n,), n >= 2, finite.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: fewer than 2 values, not 1-D, not finite; level outside (0, 1).
    """
    from scipy import stats

    data = _finite(values, "values")
    _check_level(level)
    if len(data) < 2:
        raise ValueError("values: a t interval needs at least 2 values, got 1")
    half = float(
        stats.t.ppf((1 + level) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data))
    )
    mean = float(data.mean())
    return Interval(mean, mean - half, mean + half, len(data))


def welch(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Interval:
    """Welch's t interval of mean(a) - mean(b), two sets of independent values that are not paired,
    such as means of a few texts each.

    `n` of the result is the size of the smaller set.

    Args:
        a: shape (n,), n >= 2, finite.
        b: shape (m,), m >= 2, finite.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: fewer than 2 values in a set, not 1-D, not finite; level outside (0, 1).

    Source: Welch (1947), as in scipy.stats.ttest_ind.
    """
    from scipy import stats

    first, second = _finite(a, "a"), _finite(b, "b")
    _check_level(level)
    for name, data in (("a", first), ("b", second)):
        if len(data) < 2:
            raise ValueError(f"{name}: a t interval needs at least 2 values, got 1")
    estimate, n = float(first.mean() - second.mean()), min(len(first), len(second))
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return Interval(estimate, estimate, estimate, n)
    found = stats.ttest_ind(first, second, equal_var=False).confidence_interval(level)
    return _widened(estimate, float(found.low), float(found.high), n)


def permutation_p(a: ArrayLike, b: ArrayLike, seed: int = 0, *, resamples: int = 9999) -> float:
    """Two-sided p of mean(a - b) under sign flips of the pairs: exact up to 13 pairs, sampled
    (never 0) above, with the default.

    Args:
        a: shape (n,), finite.
        b: shape (n,), finite.
        seed: of the generator.
        resamples: flips drawn; all 2**n are taken where they are not more than this.

    Raises:
        ValueError: empty, not 1-D, not finite or of different lengths; resamples < 1.

    Source: Phipson & Smyth (2010) for the count that is never zero, as in
    scipy.stats.permutation_test.
    """
    from scipy import stats

    differences = _differences(a, b)
    _check_resamples(resamples)
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_batch(len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def frechet(a: ArrayLike, b: ArrayLike) -> float:
    """Frechet distance between normal distributions fitted to two sets of features: |m - n|^2 +
    tr(A + B - 2 (A B)^(1/2)).

    Biased upwards by few samples: compare distances of equally many, to the same set.

    `a` is (n, features) and `b` (m, features), finite, with n and m at least 2; ValueError if not.

    Source: Heusel et al. (2017), arXiv 1706.08500, equation 6.
    """
    first, second = _features(a, "a"), _features(b, "b")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"a and b need the same features, got {first.shape[1]} and {second.shape[1]}"
        )
    covariances = [np.atleast_2d(np.cov(data, rowvar=False)) for data in (first, second)]
    shared = np.sqrt(
        np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0)
    ).sum()  # the trace of the root of the product
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    return float(apart + sum(np.trace(covariance) for covariance in covariances) - 2 * shared)


def _features(values: ArrayLike, name: str) -> Values:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 2 or len(data) < 2 or not np.isfinite(data).all():
        raise ValueError(
            f"{name}: expected finite features of shape (n, features) with n >= 2, got shape {data.shape}"
        )
    return data


def _resampled(
    data: tuple[Values, ...], statistic: Statistic, level: float, resamples: int, seed: int
) -> Interval:
    from scipy import stats

    _check_level(level)
    _check_resamples(resamples)
    estimate = float(statistic(*data))
    n = len(data[0])
    alone = _widened(estimate, estimate, estimate, n)
    if all(np.ptp(sample) == 0 for sample in data):
        return alone
    result = stats.bootstrap(
        data,
        statistic,
        paired=True,
        method="percentile",
        confidence_level=level,
        n_resamples=resamples,
        batch=_batch(n),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return _widened(estimate, float(result.low), float(result.high), n)


def _widened(estimate: float, low: float, high: float, n: int) -> Interval:
    if not np.isfinite([estimate, low, high]).all():
        raise ValueError(
            f"statistic: expected finite numbers on every resample, got {estimate} with interval [{low}, {high}]"
        )
    return Interval(estimate, min(low, estimate), max(high, estimate), n)


def _ratio_of_sums(sums: Values, sizes: Values, axis: int = -1) -> Any:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


def _batch(n: int) -> int:
    return max(1, RESAMPLED_VALUES_HELD // n)


def _differences(a: ArrayLike, b: ArrayLike) -> Values:
    first, second = _finite(a, "a"), _finite(b, "b")
    if len(first) != len(second):
        raise ValueError(
            f"a and b are pairs and need the same length, got {len(first)} and {len(second)}"
        )
    return first - second


def _codes(groups: ArrayLike, expected: int) -> NDArray[np.intp]:
    import pandas as pd

    labels = np.asarray(groups)
    if labels.shape != (expected,):
        raise ValueError(
            f"groups: expected one label per value, shape ({expected},), got shape {labels.shape}"
        )
    codes, _ = pd.factorize(labels)
    if (codes < 0).any():
        raise ValueError(f"groups: {int((codes < 0).sum())} of {expected} labels are missing")
    return codes


def _finite(values: ArrayLike, name: str) -> Values:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"{name}: expected shape (n,), got shape {data.shape}")
    if not len(data):
        raise ValueError(f"{name}: expected at least one value, got none")
    bad = int((~np.isfinite(data)).sum())
    if bad:
        raise ValueError(
            f"{name}: expected finite numbers, got {bad} NaN or infinite of {len(data)}"
        )
    return data


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.95, got {level}")


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
