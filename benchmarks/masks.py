"""Masks for 16 sequences, learned in one batch and one after the other: the same masks, with a
sixteenth of the operations to launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import setting
from benchmarks.timing import Row, compared
from interp.localization import localize_each

WINDOWS = 16
STEPS = 3
BAR = 1.0  # CPU time of one batch; a processor that one sequence keeps busy gains little
OPERATIONS_BAR = 1.1 / WINDOWS
Masks = dict[str, np.ndarray]


class _OperationCount(TorchDispatchMode):
    """Counts the operations that torch dispatches, which an accelerator would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def run(rounds: int = 2) -> list[Row]:
    """The CPU time and the number of operations of both ways, for both methods that learn masks."""
    return [*_rows("slimming", rounds), *_rows("hard_concrete", rounds)]


def _rows(method: str, rounds: int) -> list[Row]:
    subject = setting.subject()
    batch = setting.batch(WINDOWS, 24, prompt=8)

    def learn(batch_size: int) -> Masks:
        scores = localize_each(subject, batch, method=method, batch_size=batch_size, steps=STEPS)
        return {str(site): np.stack([one[site] for one in scores]) for site in scores[0].values}

    def one_at_a_time() -> Masks:
        return learn(1)

    def one_batch() -> Masks:
        return learn(WINDOWS)

    name = f"{method} of {WINDOWS} sequences ({subject.device.type})"
    # Counted apart from the timing, which the dispatch mode would slow down.
    few = _operations(one_batch)
    many = _operations(one_at_a_time)
    variants = {"one at a time": one_at_a_time, "one batch": one_batch}
    return [
        Row(name, "one at a time", many, "operations", 1.0),
        Row(name, "one batch", few, "operations", few / many, bar=OPERATIONS_BAR),
        *compared(name, variants, rounds, {"one batch": BAR}),
    ]


def _operations(work: Callable[[], object]) -> int:
    """The number of operations that a call dispatches."""
    with _OperationCount() as operations:
        work()
    return operations.count
