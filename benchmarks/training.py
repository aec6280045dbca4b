"""Training with sinks, and training while the loss of each example is recorded, compared with plain
steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch

import interp
from benchmarks import setting
from benchmarks.timing import Row, compared, lap
from interp.memorization.loss_recorder import PresentationRecorder
from interp.mitigation.sinks import Sinks
from interp.training.fit import Step, fit

_ROWS = 8
_TOKENS = 128
_STEPS = 6


def run(rounds: int = 4) -> list[Row]:
    """The cost of each variant; each gives how many steps it took."""
    original = setting.subject()
    batch = setting.batch(_ROWS, _TOKENS)
    sinks = Sinks.of(original, general=0.5, active=0.1)

    def trained(callback: Callable[[Step], None] | None = None, **options: Any) -> torch.Tensor:
        subject = interp.Subject(copy.deepcopy(original.module), original.anatomy, original.forward)
        lap()

        def after_step(step: Step) -> None:
            if callback is not None:
                callback(step)
            lap()

        history = fit(subject, repeat(batch), _STEPS, callback=after_step, **options)
        return torch.tensor(float(len(history)))

    def recorded() -> torch.Tensor:
        return trained(PresentationRecorder(repeat(torch.arange(_ROWS)), _ROWS))

    variants = {
        "plain steps": trained,
        "masks of sinks": lambda: trained(objective=sinks.objective()),
        "losses recorded": recorded,
    }
    bars = {"masks of sinks": 1.05, "losses recorded": 1.02}
    return compared(f"training, {_STEPS} steps of {_ROWS} x {_TOKENS}", variants, rounds, bars)
