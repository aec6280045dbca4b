"""Training with sinks, and training while the loss of each example is recorded, compared with plain
steps. The model is small: what both add to a step is the same for a large one, whose steps are
longer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch

import interp
from benchmarks.timing import Row, compared, lap
from interp.memorization.loss_recorder import PresentationRecorder
from interp.mitigation.sinks import Sinks
from interp.models.small_text import small_language_model
from interp.subject.batch import Batch
from interp.training.fit import Step, fit

_VOCABULARY = 2048
_ROWS = 16
_TOKENS = 64
_STEPS = 20


def run(rounds: int = 6) -> list[Row]:
    """The cost of each variant; each gives how many steps it took."""
    module = small_language_model(
        _VOCABULARY,
        width=128,
        layers=2,
        context=_TOKENS,
        neurons=1024,
        seed=0,
        architecture="gpt2",
        tied=True,
    )
    original = interp.load(module)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randint(0, _VOCABULARY, (_ROWS, _TOKENS), generator=generator))
    sinks = Sinks.of(original, general=0.5, active=0.1)

    def trained(callback: Callable[[Step], None] | None = None, **options: Any) -> torch.Tensor:
        copied = copy.deepcopy(original.module)
        subject = interp.Subject(copied, original.anatomy, original.forward)

        # In all variants, so that their parts are the same steps.
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
