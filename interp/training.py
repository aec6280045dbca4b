"""fit: the training loop, on accelerate."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import pandas as pd
import torch
from torch import nn

from .batch import Batch
from .discovery import modes_kept
from .progress import track
from .subject import Subject

Precision = Literal["float32", "bfloat16"]


def fit(  # noqa: PLR0913 - each is one knob of one loop
    subject: Subject,
    batches: Iterable[Batch],
    steps: int,
    lr: float = 1e-4,
    *,
    precision: Precision = "float32",
    weight_decay: float = 0.0,
    warmup: int = 0,
    decay: int = 0,
    clip: float = float("inf"),
    callback: Callable[[int, float], None] | None = None,
) -> pd.DataFrame:
    """Trains a subject's module in place with AdamW on `steps` batches; the loss is the mean over each batch's targets.

    Args:
        batches: a stream of at least `steps` batches; shuffle and seed it where it is made. Dropout draws from torch's generator.
        lr: reached after `warmup` steps of linear rise, left in a linear fall over the last `decay` steps, constant between.
        clip: largest norm of the gradient.
        precision: of the forward and backward; weights and optimizer keep their own.
        callback: called with (step, loss in nats) after each step.

    Returns a frame of `step`, `loss`. Raises ValueError when the stream is too short or the loss is not finite; the weights are then those
    of the last good step.
    """
    from accelerate import Accelerator

    accelerator, stream = Accelerator(), iter(batches)
    module, optimizer = accelerator.prepare(
        subject.module, torch.optim.AdamW(subject.module.parameters(), lr=lr, weight_decay=weight_decay)
    )
    trained = Subject(module, subject.anatomy, subject.forward, name=subject.name)
    history: list[tuple[int, float]] = []
    with _training(subject.module):
        for step in track(range(steps), "training"):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / max(warmup, 1), (steps - step) / max(decay, 1))
            loss = _loss(trained, _next(stream, step, steps), precision)
            history.append((step, _finite(loss, step)))
            accelerator.backward(loss)
            if clip < float("inf"):
                accelerator.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            if callback is not None:
                callback(*history[-1])
    return pd.DataFrame(history, columns=["step", "loss"])


@contextmanager
def _training(module: nn.Module) -> Generator[None]:
    """Training mode; every module's own mode comes back, and no gradient stays."""
    with modes_kept(module):
        module.train()
        try:
            yield
        finally:
            module.zero_grad()


def _next(batches: Iterator[Batch], step: int, steps: int) -> Batch:
    batch = next(batches, None)
    if batch is None:
        raise ValueError(f"the stream ended after {step} batches; {steps} steps were asked for")
    return batch


def _loss(subject: Subject, batch: Batch, precision: Precision) -> torch.Tensor:
    device = subject.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        losses = subject.losses(batch)
    return losses.sum() / batch.counted.sum().to(device)


def _finite(loss: torch.Tensor, step: int) -> float:
    value = loss.item()
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {value} at step {step}: lower the learning rate, or train in float32")
    return value
