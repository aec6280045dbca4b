"""Batches that do not fit into the memory of an accelerator: they are halved until they fit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch

from interp.progress import tell
from interp.subject.batch import Batch

Rows = TypeVar("Rows", bound=Batch | Sequence[Any])
Result = TypeVar("Result")

# Runs may be nested: a method halves its windows, and records each part with `record`, which halves
# too. The outermost run that can still halve does it, because only that run remembers.
_halved_outside: ContextVar[bool] = ContextVar("halved_outside", default=False)


class BatchLimit:
    """How many rows fit into memory, learned by running out of it.

    One limit serves one call, such as a scan: a size that did not fit once is not tried again.

    Args:
        multiple: how many neighbouring rows must stay in one batch (views of one example).

    Attributes:
        rows: the largest number of rows to try; None while everything has fitted.

    Example:
        >>> from interp.subject.batch_limit import BatchLimit
        >>> def first_tokens(part):
        ...     if len(part) > 5:
        ...         raise torch.OutOfMemoryError
        ...     return part.tokens[:, 0]
        >>> limit = BatchLimit()
        >>> [len(part) for part, _ in limit.run(first_tokens, batch)]
        [3, 3, 3, 3]
        >>> limit.rows
        3
    """

    def __init__(self, multiple: int = 1) -> None:
        self.multiple = multiple
        self.rows: int | None = None

    def run(self, function: Callable[[Rows], Result], rows: Rows) -> Iterator[tuple[Rows, Result]]:
        """Calls a function on all rows, or on parts of them, in order, where all do not fit.

        Args:
            function: called with a part. When it runs out of memory it must leave nothing behind,
                because it is called again with fewer of the same rows.
            rows: a Batch, or a sequence.

        Yields:
            Each part with what the function returned for it.

        Raises:
            torch.OutOfMemoryError: not even the smallest part fits.
        """
        start = 0
        while start < len(rows):
            part = _cut(rows, start, self.rows)
            can_halve = len(part) > self.multiple
            outside = _halved_outside.get()
            try:
                with _inside(outside or can_halve):
                    result = function(part)
            except torch.OutOfMemoryError:
                if outside or not can_halve:
                    raise
            else:
                start += len(part)
                yield part, result
                continue
            self._halve(len(part))

    def _halve(self, tried: int) -> None:
        # Called when the error is gone: while it is handled, its traceback keeps the tensors of the
        # forward that failed. Those in reference cycles wait for the collector.
        gc.collect()
        whole_examples = max(tried // 2 // self.multiple, 1)
        self.rows = whole_examples * self.multiple
        tell(f"out of memory with {tried} rows in a batch: continuing with {self.rows}")


@contextmanager
def _inside(can_halve: bool) -> Generator[None]:  # noqa: FBT001
    token = _halved_outside.set(can_halve)
    try:
        yield
    finally:
        _halved_outside.reset(token)


def _cut(rows: Rows, start: int, count: int | None) -> Rows:
    """At most `count` rows from `start` on; None for all of them."""
    stop = len(rows)
    if count is not None:
        stop = min(start + count, stop)
    if start == 0 and stop == len(rows):
        return rows
    chosen = slice(start, stop)
    if isinstance(rows, Batch):
        return cast("Rows", rows.rows(chosen))
    return cast("Rows", rows[chosen])
