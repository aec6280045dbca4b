"""passages: the windows of a scan put together again, most memorized first."""

from __future__ import annotations

from typing import Any

import pandas as pd


def passages(frame: pd.DataFrame) -> pd.DataFrame:
    """The windows of a scan as passages, most memorized first: exact windows of a text that touch
    are one passage.

    One row a passage: `text`, `start`, `tokens` (how many), `windows`, `exact`, `matched`,
    `accuracy`, `log_p` a token, and `suffix`.
    """
    ordered: Any = frame.sort_values(["text", "start"])
    before = ordered.shift()
    touches = (ordered["text"] == before["text"]) & (
        ordered["start"] <= before["start"] + before["length"]
    )
    joined = touches & ordered["exact"] & before["exact"].eq(True)
    rows = [_passage(group) for _, group in ordered.groupby((~joined).cumsum())]
    return (
        pd.DataFrame(rows)
        .sort_values(["exact", "windows", "matched", "log_p"], ascending=False, kind="stable")
        .reset_index(drop=True)
    )


def _passage(group: pd.DataFrame) -> dict[str, Any]:
    """The row of one passage, made of windows that touch, in order."""
    first, last = group.iloc[0], group.iloc[-1]
    row: dict[str, Any] = {name: first[name] for name in ("text", "start")}
    row["tokens"] = last["start"] - first["start"] + first["prefix"] + first["length"]
    row |= {"windows": len(group), "exact": bool(first["exact"]), "matched": group["matched"].max()}
    row |= {"accuracy": group["accuracy"].mean(), "log_p": group["log_p"].mean() / first["length"]}
    return row | ({"suffix": _suffix(group)} if "suffix" in group else {})


def _suffix(group: pd.DataFrame) -> str:
    """The suffixes of windows in order as one text, what several of them hold but once."""
    starts, suffixes, length = list(group["start"]), list(group["suffix"]), group["length"].iloc[0]
    text, end, at = suffixes[0], starts[0] + length, 0
    while at + 1 < len(starts):
        # a window that begins where the text ends needs no guess at how many letters two share
        at = max(n for n in range(at + 1, len(starts)) if starts[n] <= end)
        text += suffixes[at][0 if starts[at] == end else _overlap(text, suffixes[at]) :]
        end = starts[at] + length
    return text


def _overlap(text: str, following: str) -> int:
    """How many of its first letters `following` shares with the end of `text`, at most."""
    return next(n for n in range(len(following), -1, -1) if text.endswith(following[:n]))
