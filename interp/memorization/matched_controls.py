"""split: the memorized windows of a scan, and a control window for each that differs in little
else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd


def split(frame: pd.DataFrame, at_most: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(memorized, control): the exactly extracted windows of a scan, and as many that are not, of
    the same length and like token frequency.

    Controls have less than half of their suffix matched and share no token of a text with any
    extracted window. Each memorized window is paired with one control so that the total difference
    in mean log token frequency (over the scanned windows) is least; row i of one frame belongs to
    row i of the other. Repeated windows count once.

    Args:
        at_most: keep only the most certain (highest `log_p`) memorized windows.

    Raises ValueError when nothing was extracted (naming the best candidate), or when control
    candidates are fewer than memorized windows.
    """
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most={at_most}: expected at least 1 memorized window")
    distinct: Any = frame[~frame["tokens"].map(tuple).duplicated()]
    memorized: Any = distinct[distinct["exact"]].sort_values(
        "log_p", ascending=False, kind="stable"
    )[:at_most]
    if memorized.empty:
        raise ValueError(_nothing_extracted(frame))
    pool = unmemorized(distinct, frame)
    if len(pool) < len(memorized):
        fewer = f", or pass at_most={len(pool)}" if len(pool) else ""
        raise ValueError(
            f"{len(memorized)} memorized windows but {len(pool)} control candidates: scan more text that is not memorized{fewer}"
        )
    rarity = _mean_log_frequency(distinct)
    chosen = _paired(rarity[memorized.index].to_numpy(), rarity[pool.index].to_numpy())
    return memorized.reset_index(drop=True), pool.iloc[chosen].reset_index(drop=True)


def _nothing_extracted(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "the frame has no windows: expected what scan() returns"
    best = frame.sort_values(["matched", "accuracy"]).iloc[-1]
    return (
        f"none of {len(frame)} windows was extracted; the nearest matched {best['matched']} of {best['length']} tokens "
        f"(text {best['text']}, token {best['start']}): scan more text, or shorten `length`"
    )


def unmemorized(windows: pd.DataFrame, scanned: pd.DataFrame) -> pd.DataFrame:
    """Those of the windows that match less than half of their suffix and share no token of a text
    with an extracted one in `scanned`."""
    apart = ~overlapping(windows, scanned[scanned["exact"]])  # pyright: ignore[reportArgumentType]
    rows: Any = windows[apart & ~windows["exact"] & (windows["matched"] < windows["length"] / 2)]
    return rows


def overlapping(windows: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    """[windows]: whether each shares a token of a text with one of the others, which are of the
    same width."""
    spans: dict[Any, np.ndarray] = {
        text: np.asarray(part["start"]) for text, part in others.groupby("text")
    }
    width = windows["prefix"] + windows["length"]
    places = zip(windows["text"], windows["start"], width, strict=True)
    return np.array(
        [
            text in spans and bool((np.abs(spans[text] - start) < w).any())
            for text, start, w in places
        ],
        dtype=bool,
    )


def _mean_log_frequency(frame: pd.DataFrame) -> Any:
    """[windows]: of the suffix's tokens, as a Series with the frame's index."""
    counts = Counter(int(t) for tokens in frame["tokens"] for t in tokens)
    total = counts.total()
    suffixes = zip(frame["tokens"], frame["prefix"], strict=True)
    return pd.Series(
        [np.mean([np.log(counts[int(t)] / total) for t in tokens[p:]]) for tokens, p in suffixes],
        index=frame.index,
    )


def _paired(wanted: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """For each wanted value, a different offered one, at the least total distance."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(np.abs(wanted[:, None] - offered[None, :]))
    return columns
