"""Passages: the overlapping windows of a scan joined into longer texts, most memorized first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

_COLUMNS = ("text", "start", "prefix", "length", "exact", "matched", "accuracy", "log_p", "suffix")

_OF_PASSAGE = ("text", "start", "tokens", "windows", "exact", "matched", "accuracy", "log_p")


def passages(frame: pd.DataFrame) -> pd.DataFrame:
    """Joins extracted windows of a text that touch or overlap into passages.

    Args:
        frame: what `scan` returned.

    Returns:
        A frame with one row per passage, most memorized first: `text`, `start`, `tokens` (how
        many), `windows` (how many), `exact`, `matched` (the longest), `accuracy` (mean), `log_p`
        (mean, in nats per token) and, if the scan has it, `suffix`.

    Example:
        >>> passages(frame)[["tokens", "windows", "exact"]].head(2)
           tokens  windows  exact
        0      32        3   True
        1      32        3   True
    """
    ordered: Any = frame.sort_values(["text", "start"])
    previous = ordered.shift()
    same_text = ordered["text"] == previous["text"]
    previous_end = previous["start"] + previous["length"]
    touches = same_text & (ordered["start"] <= previous_end)
    # after the shift the first row is missing and the column no longer boolean: compare with True
    previous_exact = previous["exact"].eq(True)
    joined = touches & ordered["exact"] & previous_exact
    # Every window that is not joined to the one before it begins a passage: counting those numbers
    # the passages.
    passage_number = (~joined).cumsum()
    # A frame copies what its scan says of itself with every part that is taken of it, which is most
    # of the time of a passage: its columns are taken apart instead.
    columns = {name: ordered[name].to_numpy() for name in _COLUMNS if name in ordered}
    first_windows = np.flatnonzero(np.diff(passage_number, prepend=0))
    rows: list[dict[str, Any]] = []
    for start, end in pairwise([*first_windows, len(ordered)]):
        windows = {name: values[start:end] for name, values in columns.items()}
        rows.append(_passage(windows))
    # Named, because there may be no row to take them from.
    names = [*_OF_PASSAGE, *(["suffix"] if "suffix" in columns else [])]
    most_memorized_first = pd.DataFrame(rows, columns=names).sort_values(
        ["exact", "windows", "matched", "log_p"], ascending=False, kind="stable"
    )
    return most_memorized_first.reset_index(drop=True)


def _passage(windows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The row of one passage, made of the columns of windows that touch, in order."""
    start = windows["start"]
    length = windows["length"][0]
    row: dict[str, Any] = {
        "text": windows["text"][0],
        "start": start[0],
        "tokens": start[-1] - start[0] + windows["prefix"][0] + length,
        "windows": len(start),
        "exact": bool(windows["exact"][0]),
        "matched": windows["matched"].max(),
        "accuracy": windows["accuracy"].mean(),
        "log_p": windows["log_p"].mean() / length,
    }
    if "suffix" in windows:
        row["suffix"] = _join_suffixes(list(start), list(windows["suffix"]), length)
    return row


def _join_suffixes(starts: Sequence[int], suffixes: Sequence[str], length: int) -> str:
    """The suffixes of windows in order as one text, without repeating what several of them hold."""
    text = suffixes[0]
    end = starts[0] + length
    current = 0
    while current + 1 < len(starts):
        # Take the last window that touches what is there already. One that begins exactly where
        # the text ends is best: how many letters two suffixes share can only be guessed, since
        # they overlap by a number of tokens, not of letters.
        following = range(current + 1, len(starts))
        current = max(number for number in following if starts[number] <= end)
        suffix = suffixes[current]
        shared = 0 if starts[current] == end else _shared_letters(text, suffix)
        text += suffix[shared:]
        end = starts[current] + length
    return text


def _shared_letters(text: str, following: str) -> int:
    """The largest number of first letters of `following` that are also the end of `text`."""
    counts = range(len(following), -1, -1)
    return next(count for count in counts if text.endswith(following[:count]))
