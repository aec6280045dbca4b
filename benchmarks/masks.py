"""Slimming's masks for 16 sequences, learned in one batch and one after the other: the same masks, in one sixteenth of the launches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import setting
from benchmarks.timing import Row, compared
from interp.localization import localize_each

WINDOWS, STEPS, BAR = 16, 3, 1.0


class _Counted(TorchDispatchMode):
    """Counts operations as torch dispatches them: what an accelerator would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def run(rounds: int = 2) -> list[Row]:
    """Cost and operations of both; on a processor that is busy with one sequence, a batch saves launches and little time."""
    batch = setting.batch(WINDOWS, 24, prompt=8)

    def masks(size: int) -> dict[str, np.ndarray]:
        scores = localize_each(setting.subject(), batch, method="slimming", size=size, steps=STEPS)
        return {str(site): np.stack([one[site] for one in scores]) for site in scores[0].values}

    def alone() -> dict[str, np.ndarray]:
        return masks(1)

    def together() -> dict[str, np.ndarray]:
        return masks(WINDOWS)

    counts = {size: _operations(lambda size=size: masks(size)) for size in (1, WINDOWS)}
    name = f"masks of {WINDOWS} sequences, {torch.get_default_device().type}"
    return [
        Row(name, "one at a time", counts[1], "operations", 1.0),
        Row(name, "one batch", counts[WINDOWS], "operations", counts[WINDOWS] / counts[1], bar=1 / WINDOWS * 1.1),
        *compared(name, {"one at a time": alone, "one batch": together}, rounds, {"one batch": BAR}),
    ]


def _operations(work: Any) -> int:
    with _Counted() as counted:
        work()
    return counted.count
