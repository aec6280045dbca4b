"""The memorized windows of a scan, and for each of them a control window that differs in little
else: `split`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd


def split(frame: pd.DataFrame, at_most: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the memorized windows of a scan and the same number of matched control windows.

    Memorized windows are those extracted exactly; windows with the same tokens count once. Controls
    match less than half of their suffix and share no token of a text with any extracted window.
    Each memorized window is paired with one control so that the total difference in mean log token
    frequency (over the scanned windows) is least.

    Args:
        frame: what `scan` returned.
        at_most: keep only this many memorized windows, those with the highest `log_p`.

    Returns:
        (memorized, control): two frames of the same length; row i of one is paired with row i of
        the other. Memorized windows come in order of falling `log_p`.

    Raises:
        ValueError: if there is no window, if nothing was extracted (naming the best candidate), or
            if there are fewer candidates for controls than memorized windows.

    Example:
        >>> memorized, control = interp.split(frame)
        >>> len(memorized), len(control)
        (12, 12)
        >>> bool(memorized["exact"].all()), bool(control["exact"].any())
        (True, False)
    """
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most={at_most}: expected at least 1 memorized window")
    if frame.empty:
        raise ValueError("the frame has no windows: expected what scan() returns, with rows")
    # Windows are found again by their labels below, and frames that were joined may have one label
    # on several rows.
    frame = frame.reset_index(drop=True)
    is_repeat = frame["tokens"].map(tuple).duplicated()
    distinct: Any = frame[~is_repeat]
    extracted: Any = distinct[distinct["exact"]]
    memorized = extracted.sort_values("log_p", ascending=False, kind="stable")[:at_most]
    if memorized.empty:
        raise ValueError(_nothing_extracted(frame))

    pool = keep_unmemorized(distinct, frame)
    if len(pool) < len(memorized):
        fewer = f", or pass at_most={len(pool)}" if len(pool) else ""
        raise ValueError(
            f"{len(memorized)} memorized windows but {len(pool)} control candidates: "
            f"scan more text that is not memorized{fewer}"
        )
    # Paired by frequency, because rare tokens are hard to predict for any model: a difference
    # between the two sets could otherwise be one of common and rare words.
    frequency = _mean_log_frequency(distinct)
    wanted = frequency[memorized.index].to_numpy()
    offered = frequency[pool.index].to_numpy()
    control = pool.iloc[_pair(wanted, offered)]
    return memorized.reset_index(drop=True), control.reset_index(drop=True)


def _nothing_extracted(frame: pd.DataFrame) -> str:
    best = frame.sort_values(["matched", "accuracy"]).iloc[-1]
    return (
        f"none of {len(frame)} windows was extracted; "
        f"the nearest matched {best['matched']} of {best['length']} tokens "
        f"(text {best['text']}, token {best['start']}): scan more text, or shorten `length`"
    )


def keep_unmemorized(windows: pd.DataFrame, scanned: pd.DataFrame) -> pd.DataFrame:
    """Returns the windows that are clearly not memorized: candidates for controls.

    They match less than half of their suffix, and share no token of a text with a window that was
    extracted.

    Args:
        windows: rows of a scan to choose from.
        scanned: the whole scan, with all extracted windows.

    Example:
        >>> len(keep_unmemorized(frame, frame))
        12
    """
    extracted: Any = scanned[scanned["exact"]]
    apart = ~overlaps(windows, extracted)
    mostly_missed = windows["matched"] < windows["length"] / 2
    rows: Any = windows[apart & ~windows["exact"] & mostly_missed]
    return rows


def overlaps(windows: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    """Returns for each window whether it shares a token of a text with one of the others.

    Args:
        windows: rows of a scan.
        others: rows of a scan with windows of the same width.

    Returns:
        [windows], boolean.

    Example:
        >>> overlaps(frame[:3], frame[:1])  # tokens 0-15, 8-23 and 16-31 against 0-15
        array([ True,  True, False])
    """
    starts_by_text: dict[Any, np.ndarray] = {}
    for text, part in others.groupby("text"):
        starts_by_text[text] = np.asarray(part["start"])

    result = np.zeros(len(windows), dtype=bool)
    widths = windows["prefix"] + windows["length"]
    places = zip(windows["text"], windows["start"], widths, strict=True)
    for row, (text, start, width) in enumerate(places):
        # Windows of one width overlap if they begin less than that apart.
        if text in starts_by_text:
            distances = np.abs(starts_by_text[text] - start)
            result[row] = (distances < width).any()
    return result


def _mean_log_frequency(frame: pd.DataFrame) -> Any:
    """The mean log frequency of each suffix's tokens, as a Series with the frame's index."""
    counts: Counter[int] = Counter()
    for tokens in frame["tokens"]:
        counts.update(map(int, tokens))
    total = counts.total()

    means: list[Any] = []
    for tokens, prefix in zip(frame["tokens"], frame["prefix"], strict=True):
        suffix = [int(token) for token in tokens[prefix:]]
        log_frequencies = [np.log(counts[token] / total) for token in suffix]
        # No count is 0: the tokens are among those that were counted.
        means.append(np.mean(log_frequencies))
    return pd.Series(means, index=frame.index)


def _pair(wanted: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """For each wanted value the index of a different offered one, at the least total distance."""
    from scipy.optimize import linear_sum_assignment

    distances = np.abs(wanted[:, None] - offered)  # [wanted, offered]
    _, columns = linear_sum_assignment(distances)
    return columns
