"""Training again with other weights on the examples: what a first training says about each example
decides how much it counts in a second one.

Source: Patel and Shanbhag, GenDataCarto (arXiv 2509.00083). Their map has difficulty on one axis
and memorization on the other; each of its four quadrants has a weight. Numbers that the paper does
not give are chosen here, and said to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from interp.memorization.loss_recorder import Rows
from interp.subject.batch import Batch, owned
from interp.subject.subject import Subject, token_losses
from interp.training.fit import Objective

STABLE = "stable, easy"
HARD = "ambiguous, hard"
HOTSPOT = "hotspot, memorized"
OUTLIER = "noisy outlier"

# 0.5 and 0 are the paper's; the factor of hard examples is above 1 there, without a number.
POLICY: Mapping[str, float] = {STABLE: 1.0, HARD: 1.5, HOTSPOT: 0.5, OUTLIER: 0.0}

Scores = Float[np.ndarray, " examples"]


def quadrants(
    difficulty: Scores,
    memorization: Scores,
    percentiles: tuple[float, float] = (50.0, 90.0),
) -> np.ndarray:
    """Returns the quadrant of each example on the map of difficulty and memorization.

    Args:
        difficulty: of each example.
        memorization: of each example.
        percentiles: of difficulty and of memorization. A score above the percentile of its kind is
            high; one that equals it, as many do where most scores are 0, is low.

    Returns:
        For each example one of "stable, easy" (both low), "ambiguous, hard" (difficulty high),
        "hotspot, memorized" (memorization high) and "noisy outlier" (both high).

    Raises:
        ValueError: scores of different numbers of examples or none, scores that are not finite, or
            a percentile outside 0 to 100.

    Example:
        >>> from interp.mitigation.reweighting import quadrants
        >>> found = quadrants(np.array([1.0, 9.0, 1.0, 9.0]), np.array([0.0, 0, 1, 1]), (50, 50))
        >>> found.tolist()
        ['stable, easy', 'ambiguous, hard', 'hotspot, memorized', 'noisy outlier']
    """
    _check_scores(difficulty, memorization)
    if not all(0 <= percentile <= 100 for percentile in percentiles):
        raise ValueError(f"percentiles={percentiles}: expected two numbers from 0 to 100")
    is_hard = difficulty > np.percentile(difficulty, percentiles[0])
    is_memorized = memorization > np.percentile(memorization, percentiles[1])
    easy = np.where(is_memorized, HOTSPOT, STABLE)
    hard = np.where(is_memorized, OUTLIER, HARD)
    return np.where(is_hard, hard, easy)


def policy_weights(regions: np.ndarray, policy: Mapping[str, float] = POLICY) -> Scores:
    """Returns the weight of each example by its quadrant.

    Args:
        regions: the quadrant of each example, from `quadrants`.
        policy: the weight of each quadrant.

    Raises:
        ValueError: a quadrant without a weight, a negative weight, or weights that are all 0.

    Example:
        >>> from interp.mitigation.reweighting import policy_weights
        >>> policy_weights(np.array(["stable, easy", "hotspot, memorized"]))
        array([1. , 0.5])
    """
    unknown = sorted(set(regions.tolist()) - policy.keys())
    if unknown:
        raise ValueError(
            f"the policy has no weight for {unknown[0]!r}; it has some for {', '.join(policy)}"
        )
    weights = np.array([policy[name] for name in regions.tolist()], dtype=float)
    _check_weights(weights)
    return weights


def keep_after_pruning(
    scores: Scores, share: float, difficulty: Scores | None = None
) -> Bool[np.ndarray, " examples"]:
    """Returns which examples are left when those with the highest scores are pruned.

    Args:
        scores: of each example.
        share: the share of the examples that is pruned, rounded down to whole ones.
        difficulty: of each example; among equal scores the easier one is pruned first, and among
            these the one that comes first.

    Raises:
        ValueError: a share outside 0 to 1, or one that leaves no example.

    Example:
        >>> from interp.mitigation.reweighting import keep_after_pruning
        >>> keep_after_pruning(np.array([3.0, 1.0, 2.0, 0.0]), share=0.5)
        array([False,  True, False,  True])
    """
    easier_first = np.zeros_like(scores) if difficulty is None else difficulty
    _check_scores(scores, easier_first)
    # Rounded first: 0.29 * 100 is a little less than 29.
    count = int(round(share * len(scores), 6))
    if not 0 <= share <= 1 or count == len(scores):
        raise ValueError(
            f"share={share} of {len(scores)} examples: expected 0 to 1, with at least one example "
            "left"
        )
    # Sorted by the last key first; the order of equal ones is kept.
    order = np.lexsort([easier_first, -scores])
    kept = np.ones(len(scores), dtype=bool)
    kept[order[:count]] = False
    return kept


def weighted(weights: Scores, rows: Iterable[Rows], *, normalized: bool = True) -> Objective:
    """Returns an objective for `fit` in which each example counts with its weight.

    It is the mean loss per token over the batch, each token with the weight of its example. With
    weights of 1 it is what `fit` minimizes by itself, to the bit; an example of weight 0 has no
    gradient.

    Args:
        weights: of each example, at least 0.
        rows: the numbers of the examples in the batch of each step, in the order of the steps, as
            `interp.training.fit.epoch_rows` gives them.
        normalized: whether the sum is divided by the weights of the batch's tokens, so that the
            size of a step does not depend on them; or by the number of its tokens.

    Raises:
        ValueError: weights that are negative, not finite or all 0.

    Example:
        >>> from interp.mitigation.reweighting import weighted
        >>> from interp.training.fit import epoch_rows, epochs
        >>> weights = np.ones(len(batch))
        >>> objective = weighted(weights, epoch_rows(len(batch), 4))
        >>> history = interp.fit(untrained, epochs(batch, 4), 3, objective=objective)
        >>> len(history)
        3
    """
    _check_weights(weights)
    # With their steps: a training that is continued begins at a later one.
    numbers = enumerate(rows)
    of_examples = owned(weights)

    def objective(trained: Subject, batch: Batch, step: int) -> Float[Tensor, ""]:
        own = next((rows for number, rows in numbers if number == step), None)
        if own is None or len(own) != len(batch):
            known = 0 if own is None else len(own)
            raise ValueError(
                f"step {step} has {len(batch)} rows, and the numbers of {known} examples were "
                "given for it: expected those of its batch"
            )
        logits = trained.run(batch, keep=batch.length - batch.prompt)
        losses = token_losses(logits, batch)
        of_rows = of_examples[owned(own)].to(losses)[:, None]  # [batch, 1]
        counted = batch.counted.to(losses.device)
        total = (of_rows * counted).sum() if normalized else counted.sum()
        if not total:
            # All of it has weight 0: a step that changes nothing, and not a division by 0.
            total = counted.sum()
        return (losses * of_rows).sum() / total

    return objective


def _check_scores(first: Scores, second: Scores) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"scores of {len(first)} and of {len(second)} examples: expected the same examples, at "
            "least one"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a score is not finite: expected a number for each example")


def _check_weights(weights: Scores) -> None:
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("a weight is negative or not finite: expected numbers of at least 0")
    if not weights.sum() > 0:
        raise ValueError(
            "all weights are 0, so that nothing would be trained on: expected one above 0"
        )
