"""The windows of a batch, repeated or as lists of tokens."""

from __future__ import annotations

import torch

from interp.subject.batch import Batch


def repeat_windows(batch: Batch, times: int) -> Batch:
    """Returns all windows of a batch, then all of them again, `times` times.

    Example:
        >>> len(repeat_windows(batch, 3)) == 3 * len(batch)
        True
    """
    rows = torch.arange(len(batch))
    return batch.rows(rows.repeat(times))


def own_tokens(batch: Batch) -> list[list[int]]:
    """Returns the tokens of each window without its padding.

    A window that draws its random numbers from these gets the same ones in any batch.

    Example:
        >>> own_tokens(interp.Batch.pad([[5, 6, 7], [8, 9]]))
        [[5, 6, 7], [8, 9]]
    """
    if batch.mask is None:
        return batch.tokens.tolist()
    lengths = batch.mask.sum(1).tolist()
    rows: list[list[int]] = []
    for row, length in zip(batch.tokens.tolist(), lengths, strict=True):
        rows.append(row[:length])  # padding is at the end
    return rows
