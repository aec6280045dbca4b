"""A scan split into windows to choose units on and windows to test those units on, which share no
wording: `halve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.memorization.matched_controls import keep_unmemorized, overlaps, split
from interp.memorization.near_duplicates import of_images, wording_groups

_HELD_OUT = 64  # windows: enough to see a loss change of a few percent


@dataclass(frozen=True, eq=False)
class Halves:
    """A scan in two halves, and windows of neither.

    Attributes:
        scored: (memorized, control), to choose units on.
        judged: (memorized, control), to judge the ablation of those units on.
        held_out: windows that are not memorized and in neither half, to judge damage on.
        apart: whether the two memorized halves are different windows. False where all that was
            extracted is one wording in several texts: units are then judged on what they were
            scored on.
    """

    scored: tuple[pd.DataFrame, pd.DataFrame]
    judged: tuple[pd.DataFrame, pd.DataFrame]
    held_out: pd.DataFrame
    apart: bool

    @property
    def other_wording(self) -> bool:
        """Whether no memorized window of the judged half is worded like one of the scored half (see
        `wording_groups`). The windows of a single text may be apart and say the same twice."""
        scored = self.scored[0]
        both = pd.concat([scored, self.judged[0]], ignore_index=True)
        # Windows of one text count as one wording there: here each is a text of its own, so that
        # only what they say counts.
        wording = wording_groups(both.assign(text=range(len(both))))
        return not set(wording[: len(scored)]) & set(wording[len(scored) :])


def halve(frame: pd.DataFrame) -> Halves:
    """Splits a scan so that no unit is judged on the windows it was scored on.

    The memorized halves share no wording (see `wording_groups`); if everything extracted comes from
    one text, they share no token of it. Controls and held-out windows match less than half of their
    suffix. No control or held-out window shares a token of a text, or all its tokens, with one of
    another set. Each image is a text of its own, and images with the same tokens are one wording.

    Args:
        frame: what `scan` returned.

    Raises:
        ValueError: if there is no window, if nothing was extracted, if there are too few controls
            (see `split`), or if no window is left to hold out.

    Example:
        >>> reversed_texts = [text[::-1] for text in texts]
        >>> scanned = interp.scan(subject, [*texts, *reversed_texts], 8, 8, stride=16)
        >>> halves = halve(scanned)
        >>> len(halves.scored[0]), len(halves.judged[0]), len(halves.held_out), halves.apart
        (4, 4, 16, True)
    """
    # `split` keeps the first of windows with the same tokens. Images with the same tokens may be
    # scanned under several classes: those that are extracted must come first.
    frame = frame.sort_values("exact", ascending=False, kind="stable")
    memorized: Any = split(frame)[0]
    first, second, apart = _halve_memorized(memorized)

    is_repeat = frame["tokens"].map(tuple).duplicated()
    distinct: Any = frame[~is_repeat]
    pool = keep_unmemorized(distinct, frame)
    scored = split(pd.concat([first, pool], ignore_index=True))
    pool = _without(pool, scored[1])
    judged = split(pd.concat([second, pool], ignore_index=True))
    pool = _without(pool, judged[1])
    return Halves(scored, judged, _hold_out(pool), apart)


def _halve_memorized(memorized: Any) -> tuple[Any, Any, bool]:
    """Two halves of the memorized windows, and whether they differ.

    The wordings alternate between the halves, the largest first. A single text gives its first
    windows and those that do not overlap them. A single wording gives all its windows, twice.
    """
    if memorized["text"].nunique() == 1:
        starts = memorized["start"]
        in_first = (starts < starts.mean()).to_numpy()
        in_second = ~in_first & ~overlaps(memorized, memorized[in_first])
        if not (in_first.any() and in_second.any()):
            raise ValueError(
                f"{len(memorized)} windows were extracted, all in one place; scoring units and "
                "judging them needs two that share no token: "
                f"scan more {_kind(memorized)}"
            )
        return memorized[in_first], memorized[in_second], True

    wording = wording_groups(memorized)
    largest_first = pd.Series(wording).value_counts().index
    every_second = largest_first[::2]
    in_first = np.isin(wording, every_second)
    if in_first.all():
        return memorized, memorized, False
    return memorized[in_first], memorized[~in_first], True


def _without(windows: Any, used: pd.DataFrame) -> Any:
    """The windows that neither share a token of a text with the used ones nor have the same
    tokens."""
    used_tokens = set(used["tokens"].map(tuple))
    is_repeat = windows["tokens"].map(tuple).isin(used_tokens)
    is_apart = ~overlaps(windows, used)
    return windows[is_apart & ~is_repeat]


def _hold_out(pool: Any) -> pd.DataFrame:
    """Windows spread evenly over the pool."""
    if pool.empty:
        raise ValueError(
            f"no window is left to judge damage on: scan more {_kind(pool)} that is not memorized"
        )
    count = min(_HELD_OUT, len(pool))
    spread = np.linspace(0, len(pool) - 1, count)
    rows = np.unique(spread.astype(int))
    return pool.iloc[rows].reset_index(drop=True)


def _kind(windows: pd.DataFrame) -> str:
    return "images" if of_images(windows) else "text"
