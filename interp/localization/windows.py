"""The windows of a batch, repeated or as lists of tokens."""

from __future__ import annotations

import torch

from interp.subject.batch import Batch


def repeated(batch: Batch, times: int) -> Batch:
    """The windows of a batch, all of them once, then again."""
    return batch.rows(torch.arange(len(batch)).repeat(times))


def own_tokens(batch: Batch) -> list[list[int]]:
    """The tokens of each window without its padding: what a window may draw its random numbers
    from, to get the same ones in any batch."""
    lengths = [batch.length] * len(batch) if batch.mask is None else batch.mask.sum(1).tolist()
    return [row[:length] for row, length in zip(batch.tokens.tolist(), lengths, strict=True)]
