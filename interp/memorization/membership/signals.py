"""Signals: the log-probability that a model gives to a whole example."""

from __future__ import annotations

from math import factorial

import numpy as np
from jaxtyping import Bool, Float, Int

Signals = Float[np.ndarray, " examples"]


def label_log_p(
    logits: Float[np.ndarray, "examples classes"],
    labels: Int[np.ndarray, " examples"],
    temperature: float = 1.0,
) -> Signals:
    """Returns a classifier's log-probability of the true class of each example, in nats.

    It is computed in float64 from the logits: with float32 probabilities many examples that are
    known perfectly would tie at 1, and the false positives among them with the members.

    Args:
        logits: [examples, classes].
        labels: [examples] the true classes.
        temperature: logits are divided by it; the same for target and reference models.

    Raises:
        ValueError: a logit that is not finite, or a temperature that is not positive.

    Example:
        >>> from interp.memorization.membership.signals import label_log_p
        >>> np.exp(label_log_p(np.array([[2.0, 1.0, 0.0]]), np.array([0])))
        array([0.66524096])
    """
    scaled = _scaled(logits, temperature)
    of_label = np.take_along_axis(scaled, labels[:, None], axis=1)  # [examples, 1]
    # Not the logit minus the log of the sum: two numbers that are nearly equal where p is close to
    # 1. The sum over classes relative to the true one is 1 plus what is lost, and keeps it.
    return -np.logaddexp.reduce(scaled - of_label, axis=1)


def taylor_p(
    logits: Float[np.ndarray, "examples classes"],
    labels: Int[np.ndarray, " examples"],
    *,
    margin: float = 0.6,
    order: int = 4,
    temperature: float = 1.0,
) -> Signals:
    """Returns the soft-margin Taylor softmax of the true class, a signal of the RMIA paper.

    The exponential of the softmax is replaced by its Taylor polynomial t, and a margin is taken off
    the true logit: t(f_y - m) / (t(f_y - m) + sum over the other classes of t(f_k)).

    Source: Zarifzadeh, Liu & Shokri 2024 (arXiv 2312.03262), whose code stops at power 3 where it
    says order 4. A polynomial of odd order is negative for very small logits.

    Args:
        logits: [examples, classes].
        labels: [examples] the true classes.
        margin: m, taken off the logit of the true class.
        order: highest power of the polynomial.
        temperature: logits are divided by it.

    Raises:
        ValueError: logits for which the polynomial gives no probability, or as `label_log_p`.

    Example:
        >>> from interp.memorization.membership.signals import taylor_p
        >>> taylor_p(np.array([[2.0, 1.0, 0.0]]), np.array([0]), order=3)
        array([0.51137...])
    """
    scaled = _scaled(logits, temperature)
    is_label = np.arange(scaled.shape[1]) == labels[:, None]
    polynomial = np.zeros_like(scaled)
    shifted = np.where(is_label, scaled - margin, scaled)
    for power in range(order + 1):
        polynomial += shifted**power / factorial(power)
    p = polynomial[is_label] / polynomial.sum(axis=1)
    wrong = (polynomial <= 0).any(axis=1)
    if wrong.any():
        example = int(wrong.argmax())
        raise ValueError(
            f"the Taylor polynomial of order {order} is not positive for a logit of example "
            f"{example}, so that it gives no probability: use an even order, or label_log_p"
        )
    return p


def sequence_log_p(
    token_log_p: Float[np.ndarray, "sequences tokens"],
    counted: Bool[np.ndarray, "sequences tokens"] | None = None,
) -> Float[np.ndarray, " sequences"]:
    """Returns the mean log-probability per token, in nats: the log of the geometric mean.

    It is what membership tests of language models take for log p(x), since the probability of the
    whole text would mostly say how long it is.

    Args:
        token_log_p: log-probability of each token.
        counted: which tokens count; all by default.

    Raises:
        ValueError: a sequence without a token that counts.

    Example:
        >>> from interp.memorization.membership.signals import sequence_log_p
        >>> np.exp(sequence_log_p(np.log([[0.5, 0.125]])))
        array([0.25])
    """
    counts = np.ones(token_log_p.shape, dtype=bool) if counted is None else counted
    lengths = counts.sum(axis=1)
    if (lengths == 0).any():
        raise ValueError(f"sequence {int(lengths.argmin())} has no token that counts")
    return np.where(counts, token_log_p, 0.0).sum(axis=1) / lengths


def _scaled(
    logits: Float[np.ndarray, "examples classes"], temperature: float
) -> Float[np.ndarray, "examples classes"]:
    precise = np.asarray(logits, dtype=np.float64)
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a positive number")
    if not np.isfinite(precise).all():
        example = int((~np.isfinite(precise)).any(axis=1).argmax())
        raise ValueError(f"the logits of example {example} are not finite: {precise[example]}")
    return precise / temperature
