"""fit: the training loop, on accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pandas as pd
import torch
from torch import nn

from .batch import Batch
from .progress import track
from .subject import Subject

Precision = Literal["float32", "bfloat16"]


def fit(
    subject: Subject,
    batches: Iterator[Batch],
    steps: int,
    lr: float = 1e-4,
    *,
    precision: Precision = "float32",
    weight_decay: float = 0.0,
    warmup: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> pd.DataFrame:
    """Trains a subject's module in place with AdamW on `steps` batches; the loss is the mean over each batch's targets.

    Args:
        batches: a stream of at least `steps` batches; shuffle and seed it where it is made.
        lr: after `warmup` steps of linear rise, constant.
        precision: of the forward and backward; weights and optimizer stay float32.
        callback: called with (step, loss in nats) after each step.

    Returns a frame of `step`, `loss`. Raises ValueError when the stream is too short or the loss is not finite.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(subject.module.parameters(), lr=lr, weight_decay=weight_decay)
    module, optimizer = accelerator.prepare(subject.module, optimizer)
    history: list[tuple[int, float]] = []
    training = subject.module.training
    subject.module.train()
    try:
        for step in track(range(steps), "training"):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / max(warmup, 1))
            loss = _loss(subject, module, _next(batches, step, steps), precision)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            history.append((step, _finite(loss, step)))
            if callback is not None:
                callback(*history[-1])
    finally:
        subject.module.train(training)
    return pd.DataFrame(history, columns=["step", "loss"])


def _next(batches: Iterator[Batch], step: int, steps: int) -> Batch:
    batch = next(batches, None)
    if batch is None:
        raise ValueError(f"the stream ended after {step} batches; {steps} steps were asked for")
    return batch


def _loss(subject: Subject, module: nn.Module, batch: Batch, precision: Precision) -> torch.Tensor:
    device = subject.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        losses = subject.losses(batch)
    return losses.sum() / batch.counted.sum().to(device)


def _finite(loss: torch.Tensor, step: int) -> float:
    value = loss.item()
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {value} at step {step}: lower the learning rate, or train in float32")
    return value
