"""families: windows of one wording, so that copies of a passage - in another file, at another
offset - are not taken for two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.subject.batch import GIVEN

_RUN = 12  # tokens: long enough that unrelated windows seldom share it, short enough to outlast a change of layout


def of_images(windows: pd.DataFrame) -> bool:
    """Whether the windows of a scan are images: they are given a class."""
    return f"{GIVEN}label" in windows


def families(windows: pd.DataFrame, run: int | None = None) -> Int[np.ndarray, " windows"]:
    """A number for each window, in order of appearance: the same for windows of one text, for
    windows that share `run` tokens in a row (all of them, if shorter), and for windows that others
    connect so.

    `run` is 12 by default; of images all tokens, for two that differ may well have an empty part in
    common.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if run is None:
        run = max(map(len, windows["tokens"]), default=_RUN) if of_images(windows) else _RUN
    shared = [
        {("text", text), *_runs(tokens, run)}
        for text, tokens in zip(windows["text"], windows["tokens"], strict=True)
    ]
    numbers = {key: n for n, key in enumerate(dict.fromkeys(chain.from_iterable(shared)))}
    rows = np.repeat(np.arange(len(shared)), [len(keys) for keys in shared])
    columns = np.array([numbers[key] for key in chain.from_iterable(shared)], dtype=int)
    holds = coo_array(
        (np.ones(len(rows)), (rows, columns)), shape=(len(shared), len(numbers))
    ).tocsr()
    labels = connected_components(holds @ holds.T, directed=False)[1]
    return pd.factorize(labels)[0]


def _runs(tokens: Sequence[int], run: int) -> set[tuple[int, ...]]:
    ids = tuple(int(t) for t in tokens)
    return {ids[i : i + run] for i in range(max(len(ids) - run + 1, 1))}
