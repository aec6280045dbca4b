"""Level sets: windows with the same memorization score, and the bags of their suffixes' tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.memorization.entropy.bags import bag_entropy
from interp.memorization.entropy.scored_windows import ScoredWindows, joined

_KEPT = 300_000


class LevelSets:
    """Token counts of each level, and a sample of the windows.

    The counts are those of all windows, however many there are. Windows themselves are needed to
    compare levels at equal size and to shuffle scores; of these, a random sample is kept.

    Args:
        kept: the largest number of windows to keep. While there are no more, the sample is all of
            them. 300,000 windows of 32 + 32 tokens take 80 MB.
        seed: seed of the sample.

    Raises:
        ValueError: `kept` is below 1.

    Example:
        >>> from interp.memorization.entropy.level_sets import LevelSets
        >>> from interp.memorization.entropy.scored_windows import score_windows
        >>> levels = LevelSets().update(score_windows(subject, texts, prefix=8, length=8))
        >>> levels.windows, levels.is_complete
        (24, True)
    """

    def __init__(self, kept: int = _KEPT, seed: int = 0) -> None:
        if kept < 1:
            raise ValueError(f"kept={kept}: expected at least 1 window")
        self.windows = 0
        self._kept = kept
        self._rng = np.random.default_rng(seed)
        self._counts = np.zeros((0, 0), dtype=np.int64)  # [levels, tokens]
        self._windows_per_level = np.zeros(0, dtype=np.int64)
        self._parts: list[ScoredWindows] = []
        self._sample: ScoredWindows | None = None

    def update(self, parts: Iterable[ScoredWindows]) -> LevelSets:
        """Adds windows, batch by batch, and returns the level sets themselves.

        Raises:
            ValueError: windows of another length than those before.
        """
        for part in parts:
            if not len(part):
                continue
            self._check_length(part)
            self._count(part)
            self._keep(part)
            # Last, because `_keep` needs the number of windows that came before this part.
            self.windows += len(part)
        return self

    @property
    def is_complete(self) -> bool:
        """Whether the sample holds every window."""
        return self.windows <= self._kept

    @property
    def sample(self) -> ScoredWindows:
        """The windows that were kept: all, or a random sample.

        Raises:
            ValueError: there is no window.
        """
        if self._parts:
            before = [] if self._sample is None else [self._sample]
            self._sample = joined([*before, *self._parts])
            self._parts = []
        if self._sample is None:
            raise ValueError("no window has been scored: expected texts of at least one window")
        return self._sample

    def table(self) -> pd.DataFrame:
        """Returns one row per level, of all windows: `score`, `windows`, `tokens`, `types`,
        `entropy`, `miller_madow` and `normalized`, see `BagEntropy`."""
        rows: list[dict[str, float]] = []
        for score in np.flatnonzero(self._windows_per_level):
            found = bag_entropy(self._counts[score])
            rows.append(
                {
                    "score": int(score),
                    "windows": int(self._windows_per_level[score]),
                    **vars(found),
                }
            )
        return pd.DataFrame(rows)

    def _check_length(self, part: ScoredWindows) -> None:
        length = part.suffixes.shape[1]
        levels = len(self._windows_per_level)
        if levels == 0:
            # Edit distances go from 0 to the length, both included.
            self._windows_per_level = np.zeros(length + 1, dtype=np.int64)
            self._counts = np.zeros((length + 1, 0), dtype=np.int64)
        elif levels != length + 1:
            raise ValueError(
                f"suffixes have {length} tokens, those before had {levels - 1}: windows of "
                "different lengths have no levels in common"
            )

    def _count(self, part: ScoredWindows) -> None:
        """Adds the tokens of some windows to the counts of their levels."""
        largest = int(part.suffixes.max())
        # The size of the vocabulary is not known here: columns are added as larger ids come.
        missing = largest + 1 - self._counts.shape[1]
        if missing > 0:
            self._counts = np.pad(self._counts, ((0, 0), (0, missing)))
        levels = np.repeat(part.scores, part.suffixes.shape[1])  # [windows * length]
        # `self._counts[...] += 1` would count a token once that is there twice in the same level.
        np.add.at(self._counts, (levels, part.suffixes.ravel()), 1)
        self._windows_per_level += np.bincount(part.scores, minlength=len(self._windows_per_level))

    def _keep(self, part: ScoredWindows) -> None:
        """Keeps a uniform sample of the windows so far (Vitter's algorithm R)."""
        room = max(self._kept - self.windows, 0)
        if room:
            self._parts.append(part.rows(np.arange(min(room, len(part)))))
        for row in range(min(room, len(part)), len(part)):
            # The n-th window of all is taken with probability kept / n, in place of a random one.
            place = int(self._rng.integers(self.windows + row + 1))
            if place < self._kept:
                _replace(self.sample, place, part, row)


def _replace(sample: ScoredWindows, place: int, part: ScoredWindows, row: int) -> None:
    for name, values in vars(sample).items():
        values[place] = getattr(part, name)[row]


def token_numbers(suffixes: Int[np.ndarray, "windows length"]) -> tuple[np.ndarray, int]:
    """Returns the tokens as numbers from 0 without gaps, and how many different ones there are.

    Args:
        suffixes: token ids.
    """
    found, numbers = np.unique(suffixes, return_inverse=True)
    # Before version 2, numpy returns the inverse of a table as one long row.
    return numbers.reshape(suffixes.shape), len(found)
