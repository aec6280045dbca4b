"""halve: a scan as windows to score units on and windows to judge them on, which share nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.memorization.matched_controls import overlapping, split, unmemorized
from interp.memorization.near_duplicates import families, of_images

_HELD_OUT = 64  # windows: enough to see a loss change of a few percent


@dataclass(frozen=True, eq=False)
class Halves:
    """Memorized windows and their controls, half to score units on and half to judge the ablation
    on; and `held_out` windows of neither.

    `apart` is False where all that was extracted is one wording in several texts: it is then judged
    on what it was scored on.
    """

    scored: tuple[pd.DataFrame, pd.DataFrame]
    judged: tuple[pd.DataFrame, pd.DataFrame]
    held_out: pd.DataFrame
    apart: bool


def halve(frame: pd.DataFrame) -> Halves:
    """Splits a scan so that no unit is judged on what it was scored on.

    The memorized halves share no wording (see `families`) or, where one text holds all that was
    extracted, no token of it. Controls and held-out windows match less than half of their suffix;
    none shares a token of a text, or all its tokens, with those of another set. Each image is a
    text of its own, and images of the same tokens are one wording.

    Raises ValueError when nothing was extracted, controls are short (see `split`), or no window is
    left to hold out.
    """
    # of the same tokens given several classes, those that are extracted count
    frame = frame.sort_values("exact", ascending=False, kind="stable")
    memorized: Any = split(frame)[0]
    first, second, apart = _memorized_halves(memorized)
    distinct: Any = frame[~frame["tokens"].map(tuple).duplicated()]
    pool = unmemorized(distinct, frame)
    scored = split(pd.concat([first, pool], ignore_index=True))
    pool = _without(pool, scored[1])
    judged = split(pd.concat([second, pool], ignore_index=True))
    return Halves(scored, judged, _spread(_without(pool, judged[1])), apart)


def _memorized_halves(memorized: Any) -> tuple[Any, Any, bool]:
    """Alternate wordings, the largest first; of a single text, its first half and what does not
    overlap it; else all of it, twice."""
    if memorized["text"].nunique() == 1:
        first = (memorized["start"] < memorized["start"].mean()).to_numpy()
        second = ~first & ~overlapping(memorized, memorized[first])
        if not (first.any() and second.any()):
            raise ValueError(
                f"{len(memorized)} windows were extracted, all in one place; scoring units and judging them needs two that share no token: "
                f"scan more {_kind(memorized)}"
            )
        return memorized[first], memorized[second], True
    wording = families(memorized)
    first = np.isin(wording, pd.Series(wording).value_counts().index[::2])
    return (
        (memorized[first], memorized[~first], True)
        if not first.all()
        else (memorized, memorized, False)
    )


def _without(windows: Any, used: pd.DataFrame) -> Any:
    """Windows that neither share a token of a text with the used ones nor repeat their tokens."""
    repeated = windows["tokens"].map(tuple).isin(set(used["tokens"].map(tuple)))
    return windows[~overlapping(windows, used) & ~repeated]


def _spread(pool: Any) -> pd.DataFrame:
    if pool.empty:
        raise ValueError(
            f"no window is left to judge damage on: scan more {_kind(pool)} that is not memorized"
        )
    return pool.iloc[
        np.unique(np.linspace(0, len(pool) - 1, min(_HELD_OUT, len(pool))).astype(int))
    ].reset_index(drop=True)


def _kind(windows: pd.DataFrame) -> str:
    return "images" if of_images(windows) else "text"
