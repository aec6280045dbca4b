"""The two inequalities of the paper on logistic regression, where everything in them is exact.

The statements of the paper's theorems are not known here; these are versions that can be proved.

**Influence.** Let the loss of sample i be beta_i-smooth, the training risk R have a Hessian between
0 and B, and no step be longer than D. If the loss of i rises by at least tau > 0 in a step, its
gradient is at least tau / D - beta_i D / 2 long: smoothness bounds the rise by |g_i| |step| +
beta_i |step|^2 / 2. The self-influence g_i' (H + ridge)^-1 g_i is at least |g_i|^2 / (B + ridge).
So its mean over steps is at least

    m_i max(0, tau / D - beta_i D / 2)^2 / (B + ridge),

where m_i is the share of steps in which the loss of i rises by tau. Without a margin, tau = 0 as in
the published score, the bound is 0.

**Stability.** SGD with weights w_i that are fixed in advance, on convex losses, with learning rates
of at most 2 / (beta max w) and samples drawn uniformly, has an expected generalization gap of at
most

    (2 G / n) (sum of the learning rates) (mean over i of w_i G_i),

where G_i bounds the gradient of sample i, and G that of any sample the loss is evaluated on.
Source: Hardt, Recht & Singer 2016 (arXiv 1509.01240), theorem 3.8, with a weight on each sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import expit

from experiments.data_cartography.presets import Convex

PLAIN = "weight 1"
HALVED = "half weight on the group"
REMOVED = "no weight on the group"
POLICY = "half weight on the group, 1.5 on the others"
MISSED = "half weight on as many others"
_WEIGHTS = {
    PLAIN: (1.0, 1.0),
    HALVED: (0.5, 1.0),
    REMOVED: (0.0, 1.0),
    POLICY: (0.5, 1.5),
}
# The group that is memorized: a share of the samples, with longer features and random labels.
_SHARE = 0.3
_LONGER = 2.0
_NOISE = 0.1  # share of the other labels that are flipped
_TEST_DRAWS = 50  # fresh copies of the sample that the test loss is a mean over

Samples = Float[np.ndarray, "draws samples dimensions"]


def influence(settings: Convex, seed: int) -> pd.DataFrame:
    """Checks the bound on influence along one SGD trajectory.

    Args:
        settings: sizes and learning rate.
        seed: seed of samples and order.

    Returns:
        One row per sample: the mean `self_influence`, its `bound`, the margin `tau` (that of the
        rises which makes the bound largest on average), `events` (the share of steps with a rise
        by tau), `published` (the same with tau = 0), and whether the bound is `violated`.
    """
    rng = np.random.default_rng([seed, 3])
    features = _unit(rng, (1, settings.samples, settings.dimensions))[0]
    labels = np.where(rng.random(settings.samples) < 0.5, -1.0, 1.0)
    signed = labels[:, None] * features
    path = [np.zeros(settings.dimensions)]
    for _ in range(settings.steps):
        batch = signed[rng.choice(settings.samples, settings.batch_size, replace=False)]
        gradient = -(expit(-batch @ path[-1])[:, None] * batch).mean(0)
        path.append(path[-1] - settings.lr * gradient)
    points = np.array(path)

    margins = points @ signed.T  # [point, sample]
    losses = np.logaddexp(0, -margins)
    rises = np.diff(losses, axis=0)
    longest = np.linalg.norm(np.diff(points, axis=0), axis=1).max()
    # The second derivative of the logistic loss is p (1 - p), at most a quarter.
    smoothness = (signed**2).sum(1) / 4
    largest_curvature = np.linalg.eigvalsh(signed.T @ signed / (4 * settings.samples))[-1]

    self_influence = np.zeros(settings.samples)
    # The bound is about the gradient at the point before a step, so that the last is left out.
    for point in margins[:-1]:
        p = expit(-point)
        gradients = -p[:, None] * signed
        hessian = (signed * (p * (1 - p))[:, None]).T @ signed / settings.samples
        damped = hessian + settings.ridge * np.eye(settings.dimensions)
        self_influence += (gradients * np.linalg.solve(damped, gradients.T).T).sum(1)
    self_influence /= len(margins) - 1

    def bound(tau: float) -> np.ndarray:
        shortest = np.maximum(0, tau / longest - smoothness * longest / 2)
        events = (rises >= tau).mean(0)
        return events * shortest**2 / (largest_curvature + settings.ridge)

    # The bound holds for every tau, so that the best one may be picked afterwards.
    candidates = np.quantile(rises[rises > 0], np.linspace(0, 1, 50))
    tau = float(max(candidates, key=lambda each: bound(each).mean()))
    found = bound(tau)
    return pd.DataFrame(
        {
            "sample": np.arange(settings.samples),
            "self_influence": self_influence,
            "bound": found,
            "tau": tau,
            "events": (rises >= tau).mean(0),
            "published": (rises > 0).mean(0),
            "violated": found > self_influence,
        }
    )


def stability(settings: Convex, seed: int) -> pd.DataFrame:
    """Measures the generalization gap of weighted SGD, and its bound.

    The data sets, the order of the samples and the start are the same for all weights. Gaps are of
    the loss without weights.

    Args:
        settings: sizes, learning rate, and number of data sets.
        seed: seed of data and order.

    Returns:
        One row per data set and way of weighting (`weights`) with its `gap`, that is test loss
        minus training loss, and the `bound` on its expectation, in nats.
    """
    rng = np.random.default_rng([seed, 4])
    lengths = np.ones(settings.samples)
    in_group = np.arange(settings.samples) < round(_SHARE * settings.samples)
    lengths[in_group] = _LONGER
    truth = _unit(rng, (1, 1, settings.dimensions))[0, 0] * 4
    train = _signed(rng, settings, lengths, in_group, truth, settings.draws)
    # With replacement, as the bound asks for; one order per data set, shared by all weights.
    order = rng.integers(0, settings.samples, (settings.steps, settings.draws))
    fresh = [
        _signed(rng, settings, lengths, in_group, truth, settings.draws) for _ in range(_TEST_DRAWS)
    ]

    ways = {name: np.where(in_group, *pair) for name, pair in _WEIGHTS.items()}
    # As many samples outside the group: what down-weighting does where it misses.
    others = np.flatnonzero(~in_group)[: in_group.sum()]
    ways[MISSED] = np.ones(settings.samples)
    ways[MISSED][others] = 0.5
    heaviest = max(weights.max() for weights in ways.values())
    # The smoothness beta is a quarter of the squared length of the longest sample.
    allowed = 2 / (heaviest * lengths.max() ** 2 / 4)
    if settings.lr > allowed:
        raise ValueError(f"lr={settings.lr}: the bound holds up to {allowed:g}")

    parts: list[pd.DataFrame] = []
    rates = settings.lr * settings.steps
    for name, weights in ways.items():
        learned = _sgd(train, order, weights, settings.lr)
        test_losses = [_loss(learned, samples) for samples in fresh]  # each [draws]
        gap = np.mean(test_losses, axis=0) - _loss(learned, train)
        steepest = lengths.max()
        limit = 2 * steepest / settings.samples * rates * (weights * lengths).mean()
        about: dict[str, Any] = {"weights": name, "draw": np.arange(settings.draws)}
        parts.append(pd.DataFrame({**about, "gap": gap, "bound": limit}))
    return pd.concat(parts, ignore_index=True)


def _signed(
    rng: np.random.Generator,
    settings: Convex,
    lengths: np.ndarray,
    in_group: np.ndarray,
    truth: np.ndarray,
    draws: int,
) -> Samples:
    """Features times labels, which are random in the group and follow the truth outside of it.

    Each sample has its own length in every draw, so that its gradient is never longer than that.
    """
    features = _unit(rng, (draws, settings.samples, settings.dimensions)) * lengths[:, None]
    by_truth = np.where(rng.random((draws, settings.samples)) < expit(features @ truth), 1.0, -1.0)
    # Flipped in half of the cases, a label says nothing.
    flipped = rng.random((draws, settings.samples)) < np.where(in_group, 0.5, _NOISE)
    return features * np.where(flipped, -by_truth, by_truth)[..., None]


def _sgd(train: Samples, order: np.ndarray, weights: np.ndarray, lr: float) -> np.ndarray:
    """[draws, dimensions] what SGD ends at, one sample per step."""
    draws = np.arange(len(train))
    point = np.zeros((len(train), train.shape[2]))
    for chosen in order:
        sample = train[draws, chosen]
        slope = expit(-(sample * point).sum(1))
        point = point + lr * (weights[chosen] * slope)[:, None] * sample
    return point


def _loss(point: np.ndarray, samples: Samples) -> np.ndarray:
    """[draws] the mean logistic loss over samples, in nats."""
    margins = (samples @ point[:, :, None])[..., 0]  # [draws, samples]
    return np.logaddexp(0, -margins).mean(1)


def _unit(rng: np.random.Generator, shape: tuple[int, int, int]) -> Samples:
    """Random directions of length 1."""
    drawn = rng.standard_normal(shape)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
