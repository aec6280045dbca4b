"""Passages: the overlapping windows of a scan joined into longer texts, most memorized first."""

from __future__ import annotations

from typing import Any

import pandas as pd


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
    rows = [_passage(group) for _, group in ordered.groupby(passage_number)]
    most_memorized_first = pd.DataFrame(rows).sort_values(
        ["exact", "windows", "matched", "log_p"], ascending=False, kind="stable"
    )
    return most_memorized_first.reset_index(drop=True)


def _passage(group: pd.DataFrame) -> dict[str, Any]:
    """The row of one passage, made of windows that touch, in order."""
    first = group.iloc[0]
    last = group.iloc[-1]
    row: dict[str, Any] = {
        "text": first["text"],
        "start": first["start"],
        "tokens": last["start"] - first["start"] + first["prefix"] + first["length"],
        "windows": len(group),
        "exact": bool(first["exact"]),
        "matched": group["matched"].max(),
        "accuracy": group["accuracy"].mean(),
        "log_p": group["log_p"].mean() / first["length"],
    }
    if "suffix" in group:
        row["suffix"] = _join_suffixes(group)
    return row


def _join_suffixes(group: pd.DataFrame) -> str:
    """The suffixes of windows in order as one text, without repeating what several of them hold."""
    starts = list(group["start"])
    suffixes = list(group["suffix"])
    length = group["length"].iloc[0]
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
