"""Entropy of bags of tokens.

A bag is the tokens of several suffixes thrown together; their order, and which suffix they come
from, does not count. The entropy that is measured on a bag grows with the size of the bag, because
a small bag has seen few of the tokens that there are: never compare bags of different sizes by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class BagEntropy:
    """What is measured on one bag of tokens.

    Attributes:
        tokens: N, how many tokens are in the bag.
        types: V, how many different ones.
        entropy: plug-in Shannon entropy of the token frequencies, in bits.
        miller_madow: the same with the first-order correction of its bias, in bits.
        normalized: `entropy` divided by its maximum log2 V; 0 where V is 1.
    """

    tokens: int
    types: int
    entropy: float
    miller_madow: float
    normalized: float


def bag_entropy(counts: ArrayLike) -> BagEntropy:
    """Returns the entropy of a bag from the counts of its tokens.

    H = -sum_t q(t) log2 q(t), with q(t) = count(t) / N.

    Source: Huang et al. 2025 (arXiv 2507.06056), equation 1; Miller (1955) for the correction
    (V - 1) / (2 N ln 2).

    Args:
        counts: how often each token occurs; zeros are tokens that do not.

    Raises:
        ValueError: no token at all, or a negative count.

    Example:
        >>> from interp.memorization.entropy.bags import bag_entropy
        >>> found = bag_entropy([4, 2, 2])
        >>> found.entropy, found.types, round(found.normalized, 4), round(found.miller_madow, 4)
        (1.5, 3, 0.9464, 1.6803)
    """
    values = np.asarray(counts, dtype=np.float64)
    if values.min(initial=0) < 0 or values.sum() <= 0:
        raise ValueError("counts: expected at least one token, and no negative count")
    bits, types = entropies(values[None])
    tokens = values.sum(keepdims=True)
    return BagEntropy(
        tokens=int(tokens[0]),
        types=int(types[0]),
        entropy=float(bits[0]),
        miller_madow=float(miller_madow(bits, types, tokens)[0]),
        normalized=float(normalized(bits, types)[0]),
    )


def entropies(
    counts: Float[np.ndarray, "bags tokens"],
) -> tuple[Float[np.ndarray, " bags"], Int[np.ndarray, " bags"]]:
    """Returns the plug-in entropy of each bag, in bits, and its number of types.

    Args:
        counts: one row per bag; a row without tokens gives NaN.
    """
    totals = counts.sum(1)
    # A count of 0 contributes 0, where 0 * log2(0) would be NaN.
    weighted = (counts * np.log2(np.where(counts > 0, counts, 1))).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The same as -sum q log2 q, without dividing every count.
        found = np.log2(totals) - weighted / totals
    # Rounding can bring the entropy of a single type slightly below 0.
    bits = np.where(totals > 0, np.maximum(found, 0), np.nan)
    return bits, (counts > 0).sum(1)


def miller_madow(
    bits: Float[np.ndarray, " bags"], types: Int[np.ndarray, " bags"], tokens: ArrayLike
) -> Float[np.ndarray, " bags"]:
    """Returns plug-in entropies with the first-order correction of their bias, in bits; NaN for a
    bag without tokens. See `bag_entropy`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return bits + (types - 1) / (2 * np.asarray(tokens) * np.log(2))


def normalized(
    bits: Float[np.ndarray, " bags"], types: Int[np.ndarray, " bags"]
) -> Float[np.ndarray, " bags"]:
    """Returns entropies divided by their maximum, the logarithm of the number of types; 0 for a bag
    of a single type, by convention."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(types > 1, bits / np.log2(types), 0.0)


def entropies_of_tokens(
    tokens: Int[np.ndarray, "bags size"],
) -> tuple[Float[np.ndarray, " bags"], Int[np.ndarray, " bags"]]:
    """Returns the plug-in entropy of each bag, in bits, and its number of types, for many bags of
    the same small size.

    Args:
        tokens: the tokens of each bag.

    Example:
        >>> from interp.memorization.entropy.bags import entropies_of_tokens
        >>> entropies_of_tokens(np.array([[7, 7, 7, 7], [1, 2, 3, 4], [1, 1, 2, 2]]))
        (array([0., 2., 1.]), array([1, 4, 2]))
    """
    bags, size = tokens.shape
    # Counting by sorting: a table of counts would have a column for every token of the vocabulary.
    ordered = np.sort(tokens, axis=1)
    is_first = np.ones(ordered.shape, dtype=bool)
    # The first token of a bag always begins a run, so that no run goes on into the next bag.
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.flatnonzero(is_first)
    lengths = np.diff(starts, append=bags * size)
    bag_of_run = starts // size
    weighted = np.bincount(bag_of_run, lengths * np.log2(lengths), minlength=bags)
    found = np.log2(size) - weighted / size
    return np.maximum(found, 0), is_first.sum(1)
