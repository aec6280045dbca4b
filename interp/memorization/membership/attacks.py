"""Attacks: membership scores of whole examples, from the log-probabilities that a target model and
reference models give them.

All are differences of log-probabilities, or shares. A `log_ratio` is log p(x | target) - log p(x),
where p(x) is what models in general give the example, estimated from the reference models.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def log_mean(log_p: Float[ArrayLike, "models examples"]) -> Float[np.ndarray, " examples"]:
    """Returns the log of the mean probability over models.

    Args:
        log_p: [models, examples] in nats; -infinity is a probability of 0.

    Raises:
        ValueError: no model, a value that is NaN, or a log-probability above 0.
    """
    values = _log_probabilities(log_p, "log_p", dimensions=2)
    # Probabilities of texts are too small for a float: they are summed on the log scale.
    return np.logaddexp.reduce(values, axis=0) - np.log(len(values))


def offline_log_p(
    log_p_out: Float[ArrayLike, "models examples"], a: float = 1.0
) -> Float[np.ndarray, " examples"]:
    """Returns log p(x) of RMIA's offline form, for which no model is trained on x.

    A model trained on x would give it mean_in = a * mean_out + (1 - a), so that
    p(x) = ((1 + a) * mean_out + (1 - a)) / 2.

    Source: Zarifzadeh, Liu & Shokri 2024 (arXiv 2312.03262), section 3.

    Args:
        log_p_out: [models, examples] log-probabilities under models not trained on the example.
        a: in [0, 1]; 1 takes the mean over the models as it is. For texts, whose probabilities
            are small, a value below 1 makes p(x) nearly the same for all texts, and the attack a
            plain likelihood: leave it at 1. For classifiers that know their data perfectly, 0 to
            0.3 is usual.

    Raises:
        ValueError: as `log_mean`, or `a` outside [0, 1].

    Example:
        >>> from interp.memorization.membership.attacks import offline_log_p
        >>> np.exp(offline_log_p(np.log([[0.5]]), a=0.3))
        array([0.675])
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a={a}: expected a number from 0 to 1")
    mean_out = log_mean(log_p_out)
    if a == 1:
        # The log of 1 - a below would be -infinity.
        return mean_out
    return np.logaddexp(np.log1p(a) + mean_out, np.log1p(-a)) - np.log(2)


def online_log_p(
    log_p_in: Float[ArrayLike, "models examples"], log_p_out: Float[ArrayLike, "models examples"]
) -> Float[np.ndarray, " examples"]:
    """Returns log p(x) where some reference models were trained on x and others were not: the mean
    of the two means.

    Source: Zarifzadeh, Liu & Shokri 2024 (arXiv 2312.03262), section 3.

    Args:
        log_p_in: log-probabilities under models trained on the example.
        log_p_out: the same, under models not trained on it.

    Raises:
        ValueError: as `log_mean`.

    Example:
        >>> from interp.memorization.membership.attacks import online_log_p
        >>> np.exp(online_log_p(np.log([[0.9], [0.7]]), np.log([[0.3], [0.1]])))
        array([0.5])
    """
    return np.logaddexp(log_mean(log_p_in), log_mean(log_p_out)) - np.log(2)


def rmia(
    log_ratio: Float[ArrayLike, " examples"],
    population: Float[ArrayLike, " population"],
    gamma: float = 1.0,
    *,
    inclusive: bool = True,
) -> Float[np.ndarray, " examples"]:
    """Returns RMIA's score: the share of the population that an example beats by a factor gamma.

    RMIA(x) = Pr over z of [R_x / R_z >= gamma], where R is the ratio p(. | target) / p(.).

    Source: Zarifzadeh, Liu & Shokri 2024 (arXiv 2312.03262), equation 4.

    Args:
        log_ratio: [examples] log R_x, in nats.
        population: [population] log R_z of points that no model was trained on; none of them among
            the examples.
        gamma: at least 1.
        inclusive: whether a ratio of exactly gamma counts. The authors' code leaves it out.

    Raises:
        ValueError: no population, a ratio that is not finite, or a gamma below 1.

    Example:
        >>> from interp.memorization.membership.attacks import rmia
        >>> rmia(np.log([3.0, 2.0, 0.5]), np.log([1.0, 2.5]))
        array([1. , 0.5, 0. ])
    """
    if not gamma >= 1:
        raise ValueError(f"gamma={gamma}: expected at least 1")
    ordered = np.sort(_finite(population, "population"))
    largest_beaten = _finite(log_ratio, "log_ratio") - np.log(gamma)
    # The population is sorted once, so that memory and time grow with examples plus population
    # and not with their product.
    side: Literal["left", "right"] = "right" if inclusive else "left"
    beaten = np.searchsorted(ordered, largest_beaten, side=side)
    return beaten / len(ordered)


def informia(
    log_ratio: Float[ArrayLike, " examples"], shift: float = 0.0
) -> Float[np.ndarray, " examples"]:
    """Returns InfoRMIA's score: how many more nats an example saves than a point of the population.

    T(x) = log(p(x | target) / p(x)) + KL(p(z) || p(z | target)).

    For one target the second term is the same for every example, so that it changes no ranking and
    needs no population: leave it out, unless absolute values are wanted. Pooling the scores of
    several targets with it was worse than without it in all settings that were tried.

    Source: Tao & Shokri 2025 (arXiv 2510.05582).

    Args:
        log_ratio: [examples] log(p(x | target) / p(x)), in nats.
        shift: KL(p(z) || p(z | target)), from `population_shift`.

    Raises:
        ValueError: a ratio that is not finite.

    Example:
        >>> from interp.memorization.membership.attacks import informia
        >>> informia(np.log([4 / 3]))
        array([0.28768207])
    """
    return _finite(log_ratio, "log_ratio") + shift


def population_shift(
    log_p: Float[ArrayLike, " population"],
    log_p_reference: Float[ArrayLike, " population"],
    *,
    normalized: bool = True,
) -> float:
    """Returns how far the target moved the population: an estimate of KL(p(z) || p(z | target)).

    Args:
        log_p: [population] log-probabilities under the target.
        log_p_reference: [population] log p(z), estimated from the reference models.
        normalized: whether both are first normalized to sum to 1 over the population. Otherwise
            the mean of log(p(z) / p(z | target)) is returned. The paper does not say which of the
            two it takes.

    Raises:
        ValueError: arrays of different lengths, or a value that is not finite.

    Example:
        >>> from interp.memorization.membership.attacks import population_shift
        >>> target = np.log([0.75, 0.25])
        >>> uniform = np.log([0.5, 0.5])
        >>> round(population_shift(target, uniform), 4)
        0.1438
    """
    target = _finite(log_p, "log_p")
    reference = _finite(log_p_reference, "log_p_reference")
    if target.shape != reference.shape:
        raise ValueError(
            f"log_p and log_p_reference: expected one value each per point of the population, "
            f"got {len(target)} and {len(reference)}"
        )
    if not normalized:
        return float(np.mean(reference - target))
    target = target - np.logaddexp.reduce(target)
    reference = reference - np.logaddexp.reduce(reference)
    return float(np.sum(np.exp(reference) * (reference - target)))


def lira_offline(
    log_p: Float[ArrayLike, " examples"],
    log_p_out: Float[ArrayLike, "models examples"],
    spread: float | None = None,
) -> Float[np.ndarray, " examples"]:
    """Returns LiRA's offline score: the log-probability that a model not trained on the example
    gives it less than the target does.

    The confidence phi = log(p / (1 - p)) under the reference models is taken as normal, with a mean
    for each example and one standard deviation for all. The score is the log of the normal
    distribution function at the target's phi.

    Source: Carlini et al. 2022 (arXiv 2112.03570), section 4; one variance for all examples is
    their choice for few reference models.

    Args:
        log_p: [examples] log-probabilities under the target.
        log_p_out: [models, examples] the same under models not trained on the example.
        spread: the standard deviation of phi. By default that over reference models, pooled over
            examples; with a single reference model, that of its phi over examples.

    Raises:
        ValueError: as `log_mean`, a probability of exactly 0 or 1 (its phi is infinite), or
            reference models that all agree (there is no variance).

    Example:
        >>> from interp.memorization.membership.attacks import lira_offline
        >>> lira_offline(np.log([0.9, 0.5]), np.log([[0.4, 0.5], [0.6, 0.5]])).round(2)
        array([-0.  , -0.69])
    """
    from scipy.stats import norm

    phi = _confidence(_log_probabilities(log_p, "log_p", dimensions=1), "log_p")
    out = _confidence(_log_probabilities(log_p_out, "log_p_out", dimensions=2), "log_p_out")
    means = out.mean(axis=0)
    if spread is None:
        # [models, examples]: within each example, or, with one model, over examples.
        pooled_variance = out.var(axis=0, ddof=1).mean() if len(out) > 1 else out.var()
        spread = float(np.sqrt(pooled_variance))
    if not spread > 0:
        raise ValueError(
            f"spread={spread:g}: expected a positive standard deviation (do all reference models "
            "agree?)"
        )
    # Not the log of `cdf`, which rounds to 0 or 1 far out, where members are.
    return np.asarray(norm.logcdf(phi, means, spread))


def _confidence(log_p: Values, name: str) -> Values:
    """log(p / (1 - p)), exact also where p is close to 1."""
    with np.errstate(divide="ignore"):
        phi = log_p - np.log(-np.expm1(log_p))
    if not np.isfinite(phi).all():
        raise ValueError(
            f"{name}: a probability is exactly 0 or 1, where log(p / (1 - p)) is infinite; "
            "compute log-probabilities in float64 from logits (see signals.label_log_p)"
        )
    return phi


def _log_probabilities(values: ArrayLike, name: str, dimensions: int) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or not array.size:
        shape = "[models, examples]" if dimensions == 2 else "[examples]"
        raise ValueError(f"{name}: expected shape {shape} with values, got {array.shape}")
    if np.isnan(array).any():
        raise ValueError(f"{name}: {int(np.isnan(array).sum())} values are NaN")
    # Rounding can bring the probability of a certain event slightly above 1.
    if (array > 1e-6).any():
        raise ValueError(f"{name}: expected log-probabilities, got {array.max():g}, above 0")
    return np.minimum(array, 0.0)


def _finite(values: ArrayLike, name: str) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: expected a row of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{name}: {bad} of {array.size} values are NaN or infinite (a probability of 0?)"
        )
    return array
