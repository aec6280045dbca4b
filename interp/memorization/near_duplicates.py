"""Near-duplicates: groups of windows with the same wording, so that two copies of a passage (in
another file, at another offset) do not count as two passages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.subject.batch import GIVEN

# Tokens in a row: enough that unrelated windows seldom share them, and few enough that copies still
# share some after a change of layout.
_RUN = 12


def of_images(windows: pd.DataFrame) -> bool:
    """Returns whether the windows of a scan are images: those are conditioned on a class label.

    Example:
        >>> of_images(frame)
        False
    """
    return f"{GIVEN}label" in windows


def wording_groups(windows: pd.DataFrame, run: int | None = None) -> Int[np.ndarray, " windows"]:
    """Returns a number per window that is the same for windows of the same wording.

    Two windows have the same wording if they come from one text, if they share `run` tokens in a
    row (all tokens, for shorter windows), or if a chain of such pairs connects them.

    Args:
        windows: rows of a scan.
        run: tokens in a row; by default 12, and for images all tokens of an image, since two
            different images may well have an empty part in common.

    Returns:
        [windows], numbered in order of appearance.

    Example:
        >>> wording_groups(frame[:6])  # three windows of each of two texts
        array([0, 0, 0, 1, 1, 1])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if run is None:
        longest = max(map(len, windows["tokens"]), default=_RUN)
        run = longest if of_images(windows) else _RUN

    # A bipartite graph of windows and what they may share (a text, a run of tokens): windows that
    # share something are connected, without comparing every pair of windows.
    numbers: dict[tuple[object, ...], int] = {}
    rows: list[int] = []
    columns: list[int] = []
    pairs = zip(windows["text"], windows["tokens"], strict=True)
    for row, (text, tokens) in enumerate(pairs):
        may_share = {("text", text), *_runs(tokens, run)}
        for key in may_share:
            rows.append(row)
            column = numbers.setdefault(key, len(numbers))
            columns.append(column)
    row_numbers = np.array(rows, dtype=int)
    column_numbers = np.array(columns, dtype=int)
    ones = np.ones(len(rows))
    shape = (len(windows), len(numbers))
    entries = coo_array((ones, (row_numbers, column_numbers)), shape=shape)
    incidence = entries.tocsr()

    # [windows, windows]: how many things each two of them share.
    shared = incidence @ incidence.T
    _, labels = connected_components(shared, directed=False)
    in_order_of_appearance, _ = pd.factorize(labels)
    return in_order_of_appearance


def _runs(tokens: Sequence[int], run: int) -> set[tuple[int, ...]]:
    ids = tuple(int(token) for token in tokens)
    count = len(ids) - run + 1
    starts = range(max(count, 1))  # a window shorter than a run is one whole
    return {ids[start : start + run] for start in starts}
