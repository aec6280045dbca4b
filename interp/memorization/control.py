"""split: the memorized windows of a scan, and a control window for each that differs in little else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd


def split(frame: pd.DataFrame, at_most: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(memorized, control): the exactly extracted windows of a scan, and as many that are not, of the same length and like token frequency.

    Controls have less than half of their suffix matched and share no token with a memorized window. Each memorized window is paired with one
    control so that the total difference in mean log token frequency (over the scanned windows) is least; row i of one frame belongs to row i of
    the other. Repeated windows count once.

    Args:
        at_most: keep only the most certain (highest `log_p`) memorized windows.

    Raises ValueError when nothing was extracted (naming the best candidate), or when there are fewer control candidates than memorized windows.
    """
    distinct = frame[~frame["tokens"].map(tuple).duplicated()]
    memorized = distinct[distinct["exact"]].sort_values("log_p", ascending=False).head(at_most)
    if memorized.empty:
        best = frame.sort_values(["matched", "accuracy"]).iloc[-1]
        raise ValueError(
            f"none of {len(frame)} windows was extracted; the nearest matched {best['matched']} of {best['length']} tokens "
            f"(text {best['text']}, token {best['start']}): scan more text, or shorten `length`"
        )
    pool = _candidates(distinct, memorized)
    if len(pool) < len(memorized):
        raise ValueError(
            f"{len(memorized)} memorized windows but {len(pool)} control candidates: scan more text that is not memorized, or pass at_most={len(pool)}"
        )
    rarity = _mean_log_frequency(distinct)
    chosen = _paired(rarity[memorized.index].to_numpy(), rarity[pool.index].to_numpy())
    return memorized.reset_index(drop=True), pool.iloc[chosen].reset_index(drop=True)


def _candidates(frame: pd.DataFrame, memorized: pd.DataFrame) -> pd.DataFrame:
    spans = {text: part["start"].to_numpy() for text, part in memorized.groupby("text")}
    width = frame["prefix"] + frame["length"]

    def overlaps(text: int, start: int, tokens: int) -> bool:
        return text in spans and bool((np.abs(spans[text] - start) < tokens).any())

    apart = [not overlaps(t, s, w) for t, s, w in zip(frame["text"], frame["start"], width, strict=True)]
    return frame[np.array(apart) & ~frame["exact"] & (frame["matched"] < frame["length"] / 2)]


def _mean_log_frequency(frame: pd.DataFrame) -> pd.Series:
    counts = Counter(t for tokens in frame["tokens"] for t in tokens)
    total = counts.total()
    suffixes = zip(frame["tokens"], frame["prefix"], strict=True)
    return pd.Series([np.mean([np.log(counts[t] / total) for t in tokens[p:]]) for tokens, p in suffixes], index=frame.index)


def _paired(wanted: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """For each wanted value, a different offered one, at the least total distance."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(np.abs(wanted[:, None] - offered[None, :]))
    return columns
