"""fit: the training loop, on accelerate."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.files import writable
from interp.hooks.modes import modes_kept
from interp.progress import track
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating
from interp.training.processes import Processes
from interp.training.state import About, Rows, generators, load_state, save_state, save_weights

Precision = Literal["float32", "bfloat16"]
Metrics = Mapping[str, float]
_OWN = {"step", "loss"}  # columns of the history


@dataclass(frozen=True, eq=False)
class Step:
    """One step, as callbacks see it: its number, the mean `loss` (nats a target), and the batch
    with the loss of each target before the update, 0 where it does not count. Of several processes,
    each sees the rows that it trained on, and the loss of all."""

    number: int
    loss: float
    batch: Batch
    losses: Float[Tensor, "batch predicted"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What to measure on the way.

    Attributes:
        measure: maps the subject, dropout off and without gradients, to numbers by name, other
        names than `step` and `loss`.
        every: after how many steps; the last step is always measured.
        until: training ends early after a measurement for which it is true; a function of that
        measurement alone.
    """

    measure: Callable[[Subject], Metrics]
    every: int
    until: Callable[[Metrics], bool] = lambda _: False

    def __post_init__(self) -> None:
        _check_every(self.every)


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """What to write on the way.

    Attributes:
        folder: where `state.safetensors` stands: the same call to `fit` continues from it, to the
        bit.
        every: after how many steps it is written anew.
        keep: names and conditions: the weights at the first measurement that meets a condition stay
        in `<name>.safetensors`.
        about: what else tells this training from others: the data, the model, the seed. A state of
        another one is refused.
    """

    folder: Path
    every: int
    keep: Mapping[str, Callable[[Metrics], bool]] = field(
        default_factory=dict[str, Callable[[Metrics], bool]]
    )
    about: About = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        _check_every(self.every)
        if self.state.stem in self.keep:
            raise ValueError(
                f"keep={self.state.stem!r}: that file holds the state; expected another name"
            )

    @property
    def state(self) -> Path:
        return self.folder / "state.safetensors"


def fit(
    subject: Subject,
    batches: Iterable[Batch],
    steps: int,
    lr: float = 1e-4,
    *,
    precision: Precision = "float32",
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    warmup: int = 0,
    decay: int = 0,
    floor: float = 0.0,
    clip: float = float("inf"),
    callback: Callable[[Step], None] | None = None,
    evaluation: Evaluation | None = None,
    checkpoints: Checkpoints | None = None,
) -> pd.DataFrame:
    """Trains a subject's module in place with AdamW on `steps` batches; the loss is the mean over
    each batch's targets.

    Started by `torchrun` or `accelerate launch`, several processes share the rows of every batch
    and take the steps that one process would take on all of them, up to rounding and dropout. All
    must be given the same batches; the first one measures and writes.

    Args:
        batches: a stream of at least `steps` batches, such as `epochs` makes; shuffle and seed it
            where it is made. Dropout draws from torch's generator.
        lr: reached after `warmup` steps of linear rise, left in a linear fall to `floor` of it over
        the last `decay` steps.
        clip: largest norm of the gradient.
        precision: of the forward and backward; weights and optimizer keep their own.
        callback: called after each step.
        evaluation: what to measure on the way.
        checkpoints: what to write on the way. An interrupted training goes on from there when it is
            called again with the same arguments: the stream is wound forward, which must not draw
            from torch's generator for that; callbacks see new steps only; weights and history end
            as if it had never stopped, on the same machine and with the same number of processes.

    Returns a frame of `step`, `loss` and what was measured, NaN where nothing was. Raises
    ValueError when the stream is too short, a batch has fewer rows than there are processes, the
    loss is not finite (the weights are then those of the last good step), or the checkpoint is
    another training's.
    """
    processes = Processes()
    recipe: dict[str, Any] = {
        "steps": steps,
        "lr": lr,
        "precision": precision,
        "betas": betas,
        "weight_decay": weight_decay,
    }
    recipe |= {"warmup": warmup, "decay": decay, "floor": floor, "clip": clip}
    written = _written(checkpoints, evaluation, recipe, processes)
    optimizer = torch.optim.AdamW(
        subject.module.parameters(), lr=lr, betas=betas, weight_decay=weight_decay
    )
    trained, optimizer = _prepare(processes, subject, optimizer)
    rows = _history(written, subject.module, optimizer, processes)
    stream = islice(batches, len(rows), None)
    with _training(subject.module):
        for step in track(range(len(rows), steps), "training"):
            if _ended(evaluation, rows):
                break
            optimizer.param_groups[0]["lr"] = lr * _share(step, steps, warmup, decay, floor)
            batch = _next(stream, step, steps)
            own = processes.share(batch)
            losses = _losses(trained, own, precision)
            loss = _part_of_mean(losses, batch)
            rows.append({"step": step, "loss": _finite(processes.total(loss), step)})
            _update(processes, trained.module, optimizer, loss, clip)
            if callback is not None:
                callback(Step(step, rows[-1]["loss"], own, losses.detach()))
            _after(subject, optimizer, rows, steps, evaluation, written, processes)
    return pd.DataFrame(rows).astype({"step": int})


def _prepare(processes: Processes, subject: Subject, optimizer: Any) -> tuple[Subject, Any]:
    """The subject and the optimizer as accelerate runs them on this process's device."""
    module, optimizer = processes.prepare(subject.module, optimizer)
    return Subject(module, subject.anatomy, subject.forward, name=subject.name), optimizer


def _update(
    processes: Processes, module: nn.Module, optimizer: Any, loss: Tensor, clip: float
) -> None:
    processes.backward(loss, module)
    if clip < float("inf"):
        processes.clip(module, clip)
    optimizer.step()
    optimizer.zero_grad()


def epochs(batch: Batch, rows: int, seed: int = 0) -> Iterator[Batch]:
    """Endless batches of `rows` of its rows, each epoch in an order of its own; what does not fill
    a batch waits for another epoch.

    Raises ValueError when there are fewer rows.
    """
    if len(batch) < rows or rows < 1:
        raise ValueError(f"{len(batch)} rows do not fill a batch of {rows}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(batch), generator=generator)
        for chosen in order.split(rows):
            if len(chosen) == rows:
                yield batch.rows(chosen)


def _check_every(every: int) -> None:
    if every < 1:
        raise ValueError(f"every={every}: expected a number of steps, at least 1")


def _share(step: int, steps: int, warmup: int, decay: int, floor: float) -> float:
    """Which part of the learning rate a step has."""
    rise, left = (step + 1) / max(warmup, 1), (steps - step) / max(decay, 1)
    return min(1.0, rise, floor + (1 - floor) * left)


def _written(
    checkpoints: Checkpoints | None,
    evaluation: Evaluation | None,
    recipe: dict[str, Any],
    processes: Processes,
) -> Checkpoints | None:
    """The checkpoints with the recipe among what they are about."""
    if checkpoints is None:
        return None
    if checkpoints.keep and evaluation is None:
        raise ValueError(
            f"keep={', '.join(checkpoints.keep)}: conditions on measurements, and there is no evaluation"
        )
    writable(checkpoints.folder)
    if processes.count > 1:
        recipe = {**recipe, "processes": processes.count}
    return replace(checkpoints, about={**recipe, **checkpoints.about})


def _history(
    written: Checkpoints | None, module: nn.Module, optimizer: Any, processes: Processes
) -> Rows:
    """What to go on from: of the state, if there is one."""
    if written is None:
        return []
    found = processes.gather(written.state.exists())
    if not any(found):
        return []
    if not all(found):
        raise ValueError(
            f"{written.state} exists for some processes only: expected a folder that all of them share"
        )
    return load_state(written.state, module, optimizer, written.about, processes.rank)


def _after(
    subject: Subject,
    optimizer: Any,
    rows: Rows,
    steps: int,
    evaluation: Evaluation | None,
    checkpoints: Checkpoints | None,
    processes: Processes,
) -> None:
    """What happens between two steps: measuring, and writing."""
    done = len(rows)
    if evaluation is not None and (done == steps or done % evaluation.every == 0):
        _measure(subject, rows, evaluation, checkpoints, processes)
    if checkpoints is not None and (
        done == steps or done % checkpoints.every == 0 or _ended(evaluation, rows)
    ):
        drawn = processes.gather(generators())
        if processes.main:
            save_state(checkpoints.state, subject.module, optimizer, rows, checkpoints.about, drawn)
        processes.wait()


def _measure(
    subject: Subject,
    rows: Rows,
    evaluation: Evaluation,
    checkpoints: Checkpoints | None,
    processes: Processes,
) -> None:
    """Adds what was measured to the last row. One process measures for all, so that they agree on
    when to end."""
    found: dict[str, float] = {}
    if processes.main:
        with evaluating(subject):
            found = {name: float(value) for name, value in evaluation.measure(subject).items()}
    found = processes.from_first(found)
    if found.keys() & _OWN:
        raise ValueError(
            f"a measure named {', '.join(found.keys() & _OWN)}: the history has its own; expected another name"
        )
    before = [row for row in rows if len(row) > len(_OWN)]
    rows[-1] |= found
    if checkpoints is None or not processes.main:
        return
    for name, condition in checkpoints.keep.items():
        if condition(found) and not any(map(condition, before)):
            save_weights(checkpoints.folder / f"{name}.safetensors", subject.module)


def _ended(evaluation: Evaluation | None, rows: Rows) -> bool:
    return (
        evaluation is not None
        and bool(rows)
        and rows[-1].keys() > _OWN
        and evaluation.until(rows[-1])
    )


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


def _losses(subject: Subject, batch: Batch, precision: Precision) -> Tensor:
    with torch.autocast(subject.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return subject.losses(batch)


def _part_of_mean(losses: Tensor, batch: Batch) -> Tensor:
    """What some rows of a batch add to the mean loss over its targets.

    Divided by the targets of the whole batch, not of these rows: a process whose rows hold few
    targets weighs less, and gradients that are summed over processes are those of the mean.
    """
    return losses.sum() / batch.counted.sum().to(losses.device)


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {value} at step {step}: lower the learning rate, or train in float32"
        )
    return value
