"""Levels side by side: what is measured on the tokens of each, on all of them and in bags of equal
size, as the scores are and shuffled."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

from interp.memorization.entropy.bags import (
    entropies,
    entropies_of_tokens,
    miller_madow,
    normalized,
)
from interp.memorization.entropy.level_sets import token_numbers
from interp.memorization.entropy.regression import FEWEST_TEXTS, blocks_in_order
from interp.memorization.entropy.scored_windows import ScoredWindows

# Quantities of a level, with the names of their axes. Those of the first group grow with the number
# of windows in the level; those of the second are compared at equal size.
RAW = {
    "entropy": "entropy (bits)",
    "miller_madow": "entropy, Miller-Madow (bits)",
    "normalized": "entropy / log2(types)",
    "log_types": "log2(types)",
}
RAREFIED = {
    "rarefied": "entropy at equal size (bits)",
    "rarefied_normalized": "entropy / log2(types), at equal size",
    "rarefied_log_types": "log2(types) at equal size",
}


class LevelBags:
    """The windows of a sample by level, and what is measured on the bags of their tokens.

    Args:
        sample: the windows.
        min_windows: levels with fewer windows are left out.
        rarefied_to: windows in a bag of equal size.
        subsamples: how many bags of equal size are averaged.
        rng: draws the bags.

    Attributes:
        scores: the levels that are used.
        sizes: how many windows each of them has.
    """

    def __init__(
        self,
        sample: ScoredWindows,
        min_windows: int,
        rarefied_to: int,
        subsamples: int,
        rng: np.random.Generator,
    ) -> None:
        self.tokens, self.types = token_numbers(sample.suffixes)
        self._rarefied_to = rarefied_to
        self._subsamples = subsamples
        windows_per_level = np.bincount(sample.scores)
        self.scores = np.flatnonzero(windows_per_level >= min_windows)
        self.sizes = windows_per_level[self.scores]
        self._of_level = [np.flatnonzero(sample.scores == score) for score in self.scores]
        # For the shuffles: the windows text after text, the level of each, and where texts begin.
        is_used = np.isin(sample.scores, self.scores)
        text_after_text = np.argsort(sample.texts, kind="stable")
        self._in_order = text_after_text[is_used[text_after_text]]
        self._levels_in_order = np.searchsorted(self.scores, sample.scores[self._in_order])
        self._texts_in_order = _as_blocks(sample.texts[self._in_order])
        # Every subsample is the first windows of a random order of its level. The orders are drawn
        # once, so that two measurements that differ in a few windows differ by these alone and not
        # by the luck of other draws.
        self._orders: list[np.ndarray] = []
        for windows in self._of_level:
            keys = rng.random((subsamples, len(windows)))
            self._orders.append(windows[keys.argsort(axis=1)])  # [subsamples, windows of the level]

    def measure(self, kept: Bool[np.ndarray, " windows"] | None = None) -> dict[str, np.ndarray]:
        """Returns every quantity of every level, of the windows that are kept; NaN for a level with
        fewer than fill a bag.

        Args:
            kept: which windows of the sample are kept; by default all.
        """
        of_level: list[np.ndarray] = []
        chosen: list[np.ndarray] = []
        for windows, order in zip(self._of_level, self._orders, strict=True):
            left = windows if kept is None else windows[kept[windows]]
            of_level.append(left)
            chosen.append(self._first(order, kept, len(left)))
        return self._quantities(of_level, chosen)

    def measure_shuffled(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns every quantity of every level, with scores shuffled among the windows of all
        levels that are used; the sizes of the levels stay.

        Args:
            rng: draws the order of the texts, and bags.
        """
        # The scores of a text stay together and in their order, and the texts change places. If
        # each window got a score of its own, the windows of a level would come from more texts than
        # they really do, and have more entropy: with texts that differ, p would be far too small.
        places = [self._levels_in_order[text] for text in self._texts_in_order]
        order = rng.permutation(len(places))
        # Laid end to end in the new order: where texts differ in length, the scores of one may fall
        # on windows of two.
        levels = np.concatenate([places[text] for text in order] or [self._levels_in_order])
        of_level = [self._in_order[levels == level] for level in range(len(self.scores))]
        chosen = [
            windows[_distinct_rows(rng, len(windows), self._rarefied_to, self._subsamples)]
            for windows in of_level
        ]
        return self._quantities(of_level, chosen)

    def _first(
        self, order: np.ndarray, kept: Bool[np.ndarray, " windows"] | None, left: int
    ) -> Int[np.ndarray, "subsamples windows"]:
        """The first windows of each order that are kept, as many as fill a bag; none at all where
        there are too few."""
        size = self._rarefied_to
        if left < size:
            return np.empty((0, size), dtype=np.int64)
        if kept is None:
            return order[:, :size]
        is_kept = kept[order]
        # Each row has at least `size` windows left, so that exactly that many of it are chosen.
        is_chosen = is_kept & (is_kept.cumsum(axis=1) <= size)
        return order[is_chosen].reshape(len(order), size)

    def _quantities(
        self, of_level: list[np.ndarray], chosen: list[np.ndarray]
    ) -> dict[str, np.ndarray]:
        counts = np.zeros((len(of_level), self.types))  # [levels, types]
        for level, windows in enumerate(of_level):
            counts[level] = np.bincount(self.tokens[windows].ravel(), minlength=self.types)
        bits, types = entropies(counts)
        with np.errstate(divide="ignore"):
            log_types = np.log2(types)
        found = {
            "entropy": bits,
            "miller_madow": miller_madow(bits, types, counts.sum(1)),
            "normalized": normalized(bits, types),
            "log_types": log_types,
        }
        is_usable = np.array([len(each) > 0 for each in chosen], dtype=bool)
        for name, values in found.items():
            found[name] = np.where(is_usable, values, np.nan)
        return found | self._rarefied(chosen, is_usable)

    def _rarefied(
        self, chosen: list[np.ndarray], is_usable: Bool[np.ndarray, " levels"]
    ) -> dict[str, np.ndarray]:
        means = {name: np.full(len(chosen), np.nan) for name in RAREFIED}
        if not is_usable.any():
            return means
        # [bags, windows]: the subsamples of one usable level after those of another.
        rows = np.concatenate(chosen)
        bags = self.tokens[rows].reshape(len(rows), -1)
        bits, types = entropies_of_tokens(bags)
        each = {
            "rarefied": bits,
            "rarefied_normalized": normalized(bits, types),
            "rarefied_log_types": np.log2(types),
        }
        for name, values in each.items():
            by_level = values.reshape(int(is_usable.sum()), self._subsamples)
            means[name][is_usable] = by_level.mean(1)
        return means


def _as_blocks(texts: Int[np.ndarray, " windows"]) -> list[slice]:
    """Where the windows of each text are in a list that is ordered by text; with too few texts to
    change places, blocks of windows that follow each other."""
    labels = texts
    if len(np.unique(texts)) < FEWEST_TEXTS:
        labels = blocks_in_order(texts, FEWEST_TEXTS)
    starts = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
    return [slice(start, stop) for start, stop in pairwise(starts) if stop > start]


def _distinct_rows(
    rng: np.random.Generator, windows: int, size: int, rows: int
) -> Int[np.ndarray, "rows size"]:
    """Rows of different numbers below `windows`, each row a random subset."""
    # In a level with many windows, numbers drawn at random are nearly always different, and drawing
    # the few rows again in which they are not is far cheaper than ordering all windows.
    if windows < 4 * size * size:
        return rng.random((rows, windows)).argsort(axis=1)[:, :size]
    drawn = rng.integers(windows, size=(rows, size))
    while True:
        ordered = np.sort(drawn, axis=1)
        has_same = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        if not has_same.any():
            return drawn
        drawn[has_same] = rng.integers(windows, size=(int(has_same.sum()), size))
