"""Masks for 16 sequences, learned in one batch and one after the other: the same masks, in one
sixteenth of the launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import setting
from benchmarks.timing import Row, compared
from interp.localization import localize_each

WINDOWS, STEPS, BAR = 16, 3, 1.0
Masks = dict[str, np.ndarray]


class _Counted(TorchDispatchMode):
    """Counts operations as torch dispatches them: what an accelerator would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def run(rounds: int = 2) -> list[Row]:
    """Cost and operations of both, by both methods; a processor that one sequence keeps busy saves
    launches and little time."""
    return [row for method in ("slimming", "hard_concrete") for row in _rows(method, rounds)]


def _rows(method: str, rounds: int) -> list[Row]:
    subject, batch = setting.subject(), setting.batch(WINDOWS, 24, prompt=8)

    def masks(size: int) -> Callable[[], Masks]:
        def learned() -> Masks:
            scores = localize_each(subject, batch, method=method, size=size, steps=STEPS)
            return {str(site): np.stack([one[site] for one in scores]) for site in scores[0].values}

        return learned

    name = f"{method} of {WINDOWS} sequences ({subject.device.type})"
    few, many = (_operations(masks(size)) for size in (WINDOWS, 1))
    return [
        Row(name, "one at a time", many, "operations", 1.0),
        Row(name, "one batch", few, "operations", few / many, bar=1.1 / WINDOWS),
        *compared(
            name,
            {"one at a time": masks(1), "one batch": masks(WINDOWS)},
            rounds,
            {"one batch": BAR},
        ),
    ]


def _operations(work: Callable[[], object]) -> int:
    with _Counted() as counted:
        work()
    return counted.count
