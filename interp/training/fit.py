"""fit: the one training loop of the toolkit, built on accelerate."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.files import writable
from interp.hooks.modes import modes_kept
from interp.progress import track
from interp.sites.sharding import reshard
from interp.subject.batch import Batch
from interp.subject.offloading import refuse_offloaded
from interp.subject.subject import Subject, evaluating, token_losses
from interp.training.processes import Processes
from interp.training.state import About, Rows, generators, load_state, save_state, save_weights

Precision = Literal["float32", "bfloat16"]
Metrics = Mapping[str, float]
# What to minimize: of the subject, a batch, and the number of the step, from 0.
Objective = Callable[[Subject, Batch, int], Float[Tensor, ""]]
_OWN = {"step", "loss"}  # columns of the history that are not measurements
_WHY_NOT_OFFLOADED = (
    "the optimizer would change a copy that is thrown away after each forward; "
    "load the model without offloading to train it"
)


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step, as callbacks see it.

    With several processes, each sees the rows that it trained on, and the loss of all.

    Attributes:
        number: number of the step, from 0.
        loss: mean over the batch's targets, in nats per target; or the objective.
        batch: what was trained on; batches that are accumulated are joined.
        losses: [batch, predicted] the loss of each target before the update, in nats; 0 where a
            target does not count; None where an objective was given.
        lr: learning rate of the update.
    """

    number: int
    loss: float
    batch: Batch
    losses: Float[Tensor, "batch predicted"] | None
    lr: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What to measure during training.

    Attributes:
        measure: maps the subject, with dropout off and without gradients, to named numbers. The
            names `step` and `loss` are taken.
        every: number of steps between measurements; the last step is always measured.
        until: training ends early after the first measurement for which this is true. It must
            depend on that measurement alone.

    Raises:
        ValueError: `every` is below 1.
    """

    measure: Callable[[Subject], Metrics]
    every: int
    until: Callable[[Metrics], bool] = lambda _: False

    def __post_init__(self) -> None:
        _check_every(self.every)


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """What to write during training.

    Attributes:
        folder: holds `state.safetensors`, from which the same call to `fit` continues, bit for bit.
        every: number of steps between two writes of the state.
        keep: conditions by name: the weights at the first measurement that meets a condition are
            kept in `<name>.safetensors`.
        about: what else distinguishes this training from others: the data, the model, the seed. The
            state of another training is refused.

    Raises:
        ValueError: `every` is below 1, or `keep` names the file of the state.
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
    accumulate: int = 1,
    objective: Objective | None = None,
    callback: Callable[[Step], None] | None = None,
    evaluation: Evaluation | None = None,
    checkpoints: Checkpoints | None = None,
) -> pd.DataFrame:
    """Trains a subject's module in place with AdamW, on the device where it is.

    The loss is the mean over each batch's targets. Processes that `torchrun` or `accelerate launch`
    started have a device each and share the rows of every batch. They take the steps that one
    process would take on all rows, up to rounding and dropout. All of them must be given the same
    batches; the first one measures and writes.

    A module that FSDP2 has sharded over the processes, because it does not fit into one device, is
    trained as one process would up to rounding: each takes all rows, all measure, and dropout draws
    from the generator of the first.

    Args:
        subject: the model to train.
        batches: a stream of at least `accumulate * steps` batches, such as `epochs` makes. Shuffle
            and seed it where it is made. Dropout draws from torch's global generator.
        steps: number of optimizer steps, at least 1.
        lr: the largest learning rate.
        precision: precision of the forward and backward pass; weights and optimizer state keep
            theirs.
        betas: AdamW's decay rates of its two running means.
        weight_decay: AdamW's weight decay.
        warmup: number of first steps over which the learning rate rises linearly to `lr`.
        decay: number of last steps over which it falls linearly to `floor` times `lr`.
        floor: see `decay`.
        clip: largest norm of the gradient.
        accumulate: how many batches of the stream make one step, one after the other, where the
            memory does not hold them together. The step is that of one batch with all their rows,
            up to rounding and dropout: each target weighs the same.
        objective: `objective(subject, batch, step)` returns what to minimize in a step, with its
            gradient, in the place of the mean over the batch's targets. For a single process and
            without `accumulate`, since it need not be a sum over rows. Name it in
            `checkpoints.about`: it cannot be compared with that of an interrupted training.
        callback: called after each step.
        evaluation: what to measure during training.
        checkpoints: what to write during training. Called again with the same arguments, an
            interrupted training continues: weights and history end as if it had never stopped, on
            the same machine with the same number of processes. The batches of the finished steps
            are drawn again and skipped, so the stream must not draw from torch's global generator;
            callbacks see new steps only.

    Returns:
        One row per step with `step`, `loss` (nats per target, or the objective) and what was
        measured, NaN where nothing was.

    Raises:
        ValueError: weights are offloaded, the stream is too short, a batch has fewer rows than
            there are processes, the loss is not finite (the weights are then those of the last good
            step), the checkpoint is another training's or of another number of processes, an
            objective is given to several processes or with `accumulate`, `steps` or `accumulate` is
            below 1, or `accumulate` finds batches that cannot be one.

    Example:
        >>> import copy
        >>> learner = interp.load(copy.deepcopy(subject.module))
        >>> history = interp.fit(learner, [batch, batch, batch], steps=3, lr=1e-3)
        >>> history.columns.tolist(), len(history)
        (['step', 'loss'], 3)
    """
    refuse_offloaded(subject.module, _WHY_NOT_OFFLOADED)
    if steps < 1:
        raise ValueError(f"steps={steps}: expected a number of optimizer steps, at least 1")
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: expected a number of batches, at least 1")
    processes = Processes(subject.module)
    for number, what in ((processes.count, "processes"), (accumulate, "accumulated batches")):
        if objective is not None and number > 1:
            raise ValueError(
                f"objective= with {number} {what}: expected one, because an objective need not be "
                "a sum over the rows that they share"
            )
    recipe: dict[str, Any] = {
        "steps": steps,
        "lr": lr,
        "precision": precision,
        "betas": betas,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "decay": decay,
        "floor": floor,
        "clip": clip,
    }
    if accumulate > 1:
        recipe["accumulate"] = accumulate
    if objective is not None:
        recipe["objective"] = "given"  # never continued from a training without one
    reshard(subject.module)  # the optimizer is given the shards, not what a forward has gathered
    checkpoints = _with_recipe(checkpoints, evaluation, recipe, processes)
    optimizer = torch.optim.AdamW(
        subject.module.parameters(), lr=lr, betas=betas, weight_decay=weight_decay
    )
    trained, optimizer = _prepare(processes, subject, optimizer)
    history = _resume(checkpoints, subject.module, optimizer, processes)
    remaining = islice(batches, accumulate * len(history), None)

    with _training(subject.module):
        for step in track(range(len(history), steps), "training"):
            # First of all, so that a training that had ended is not continued by another step.
            if _met_end(evaluation, history):
                break
            step_lr = lr * _lr_factor(step, steps, warmup, decay, floor)
            # One list of parameters is one group.
            optimizer.param_groups[0]["lr"] = step_lr
            parts = [_next(remaining, step, steps, accumulate) for _ in range(accumulate)]
            counted = _counted(parts)

            own_parts: list[Batch] = []
            own_losses: list[Tensor] = []
            whole_loss = 0.0
            # Gradients of the parts add up in the parameters, until the one update below.
            for part in parts:
                own_rows = processes.share(part)
                own_parts.append(own_rows)
                if objective is None:
                    losses = _losses(trained, own_rows, precision)
                    own_losses.append(losses.detach())
                    loss = _part_of_mean(losses, counted)
                else:
                    with computing_in(precision, subject.device):
                        loss = objective(trained, part, step)
                # Before the gradient, which would be NaN in other processes too.
                whole_loss += _finite(processes.total(loss), step)
                processes.backward(loss)
            history.append({"step": step, "loss": whole_loss})
            _update(processes, trained.module, optimizer, clip)

            if callback is not None:
                seen, seen_losses = _joined(own_parts, own_losses)
                callback(Step(step, whole_loss, seen, seen_losses, step_lr))
            if evaluation is not None and _is_due(evaluation.every, len(history), steps):
                _measure(subject, history, evaluation, checkpoints, processes)
            if checkpoints is not None:
                ends = _met_end(evaluation, history)
                if ends or _is_due(checkpoints.every, len(history), steps):
                    _save(checkpoints, subject.module, optimizer, history, processes)
    return pd.DataFrame(history).astype({"step": int})


def epochs(batch: Batch, batch_size: int, seed: int = 0) -> Iterator[Batch]:
    """Yields batches of a batch's rows without end, each epoch in a new random order.

    Rows that do not fill a last batch are left out of that epoch.

    Args:
        batch: all rows.
        batch_size: number of rows per batch.
        seed: seed of the orders.

    Yields:
        Batches of `batch_size` rows.

    Raises:
        ValueError: there are fewer rows than that, or `batch_size` is below 1.

    Example:
        >>> from interp.training.fit import epochs
        >>> stream = epochs(batch, batch_size=5)
        >>> len(batch), len(next(stream)), len(next(stream))
        (12, 5, 5)
    """
    for rows in epoch_rows(len(batch), batch_size, seed):
        yield batch.rows(rows)


def epoch_rows(count: int, batch_size: int, seed: int = 0) -> Iterator[Int[Tensor, " rows"]]:
    """Yields the numbers of the rows in each batch of `epochs`, without end.

    Args:
        count: number of all rows.
        batch_size, seed: as of `epochs`.

    Raises:
        ValueError: there are fewer rows than that, or `batch_size` is below 1.

    Example:
        >>> from interp.training.fit import epoch_rows, epochs
        >>> rows = next(epoch_rows(len(batch), batch_size=5))
        >>> torch.equal(next(epochs(batch, batch_size=5)).tokens, batch.tokens[rows])
        True
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected a number of rows, at least 1")
    if count < batch_size:
        raise ValueError(f"{count} rows do not fill a batch of {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for chosen in order.split(batch_size):
            # The rows that are left over come in another epoch: a smaller batch would be a step
            # with a noisier gradient at the same learning rate.
            if len(chosen) == batch_size:
                yield chosen


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Runs forwards in the precision of a training; weights keep theirs.

    Args:
        precision: as `fit` takes it.
        device: the device of the model.

    Example:
        >>> from interp.training.fit import computing_in
        >>> with computing_in("bfloat16", subject.device):
        ...     subject.logits(batch).dtype
        torch.bfloat16
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _check_every(every: int) -> None:
    if every < 1:
        raise ValueError(f"every={every}: expected a number of steps, at least 1")


def _with_recipe(
    checkpoints: Checkpoints | None,
    evaluation: Evaluation | None,
    recipe: dict[str, Any],
    processes: Processes,
) -> Checkpoints | None:
    """The checkpoints with the arguments of `fit` among what they are about."""
    if checkpoints is None:
        return None
    if checkpoints.keep and evaluation is None:
        raise ValueError(
            f"keep={', '.join(checkpoints.keep)}: these are conditions on measurements, "
            "which need evaluation="
        )
    writable(checkpoints.folder)
    if processes.count > 1:
        recipe = {**recipe, "processes": processes.count}
    if processes.sharded:
        recipe = {**recipe, "sharded": True}
    return replace(checkpoints, about={**recipe, **checkpoints.about})


def _prepare(processes: Processes, subject: Subject, optimizer: Any) -> tuple[Subject, Any]:
    """The subject and the optimizer as accelerate runs them."""
    module, optimizer = processes.prepare(subject.module, optimizer)
    return subject.with_module(module), optimizer


def _resume(
    checkpoints: Checkpoints | None, module: nn.Module, optimizer: Any, processes: Processes
) -> Rows:
    """Restores the state, if there is one; the history so far."""
    if checkpoints is None:
        return []
    found = processes.gather(checkpoints.state.exists())
    if not any(found):
        return []
    if not all(found):
        raise ValueError(
            f"{checkpoints.state} exists for some processes only: "
            "expected a folder that all of them share"
        )
    return load_state(checkpoints.state, module, optimizer, checkpoints.about, processes.rank)


@contextmanager
def _training(module: nn.Module) -> Generator[None]:
    """Training mode without gradients of before; every module's own mode comes back, and no
    gradient stays."""
    with modes_kept(module):
        module.train()
        module.zero_grad()
        try:
            yield
        finally:
            module.zero_grad()


def _lr_factor(step: int, steps: int, warmup: int, decay: int, floor: float) -> float:
    """The learning rate of a step as a fraction of the largest."""
    # Two lines, of which the lower one counts: both are above 1 in between, and without warm-up or
    # decay from the start.
    rise = (step + 1) / max(warmup, 1)
    time_left = (steps - step) / max(decay, 1)
    fall = floor + (1 - floor) * time_left
    return min(1.0, rise, fall)


def _next(batches: Iterator[Batch], step: int, steps: int, accumulate: int) -> Batch:
    batch = next(batches, None)
    if batch is None:
        done = "batches" if accumulate == 1 else f"steps of {accumulate} batches"
        raise ValueError(f"the stream ended after {step} {done}; {steps} steps were asked for")
    return batch


def _counted(parts: Sequence[Batch]) -> Tensor:
    """How many targets count in all batches of a step."""
    prompts = {part.prompt for part in parts}
    if len(prompts) > 1:
        raise ValueError(
            f"accumulated batches have prompts of {', '.join(map(str, sorted(prompts)))} tokens: "
            "expected one, because they are trained on as one batch"
        )
    return torch.stack([part.counted.sum() for part in parts]).sum()


def _joined(
    parts: Sequence[Batch], losses: Sequence[Tensor]
) -> tuple[Batch, Float[Tensor, "batch predicted"] | None]:
    """What a process has trained on in a step as one batch, and its losses, if there are any."""
    if len(parts) == 1:
        return parts[0], losses[0] if losses else None
    batch = Batch.join(parts)
    joined: list[Tensor] = []
    for part, own in zip(parts, losses, strict=True):
        padding = batch.length - part.length
        # At the end, where `Batch.join` pads the tokens.
        joined.append(nn.functional.pad(own, (0, padding)))
    return batch, torch.cat(joined)


def _losses(subject: Subject, batch: Batch, precision: Precision) -> Tensor:
    with computing_in(precision, subject.device):
        # Not `subject.losses`, which raises where a logit is NaN: other processes would wait for
        # this one. `_finite` looks at the loss of all of them.
        logits = subject.run(batch, keep=batch.length - batch.prompt)
        return token_losses(logits, batch)


def _part_of_mean(losses: Tensor, counted: Tensor) -> Tensor:
    """What some rows add to the mean loss over the targets of a step.

    Divided by all targets that count, not by those of these rows: then rows that hold few targets
    weigh less, and gradients that are summed over processes and batches are those of the mean.
    """
    return losses.sum() / counted.to(losses.device)


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {value} at step {step}: lower the learning rate, or train in float32"
        )
    return value


def _update(processes: Processes, module: nn.Module, optimizer: Any, clip: float) -> None:
    # Before clipping, which is about the gradient of all rows of the step.
    processes.sum_gradients(module)
    if clip < float("inf"):
        processes.clip(module, clip)
    optimizer.step()
    optimizer.zero_grad()


def _is_due(every: int, done: int, steps: int) -> bool:
    """Whether something is measured or written after `done` of all steps."""
    return done == steps or done % every == 0


def _met_end(evaluation: Evaluation | None, history: Rows) -> bool:
    """Whether the last step was measured and met the condition that ends training."""
    if evaluation is None or not history:
        return False
    measured = {name: value for name, value in history[-1].items() if name not in _OWN}
    return bool(measured) and evaluation.until(measured)


def _measure(
    subject: Subject,
    history: Rows,
    evaluation: Evaluation,
    checkpoints: Checkpoints | None,
    processes: Processes,
) -> None:
    """Adds measurements to the last row, and keeps the weights that first meet a condition."""
    # One process measures for all: measurements that differ by rounding could end training in some
    # processes and not in others, which would then wait forever. Those that hold shards of the
    # model have to run it together.
    metrics: dict[str, float] = {}
    if processes.main or processes.sharded:
        with evaluating(subject):
            measured = evaluation.measure(subject)
            metrics = {name: float(value) for name, value in measured.items()}
    metrics = processes.from_first(metrics)

    taken = metrics.keys() & _OWN
    if taken:
        raise ValueError(
            f"a measure is named {', '.join(taken)}, which the history already has: "
            "expected another name"
        )
    # Before this measurement is added: it is compared with the earlier ones below.
    measured_before = [row for row in history if len(row) > len(_OWN)]
    history[-1] |= metrics

    if checkpoints is None or not (processes.main or processes.sharded):
        return
    for name, condition in checkpoints.keep.items():
        if condition(metrics) and not any(map(condition, measured_before)):
            save_weights(checkpoints.folder / f"{name}.safetensors", subject.module)


def _save(
    checkpoints: Checkpoints,
    module: nn.Module,
    optimizer: Any,
    history: Rows,
    processes: Processes,
) -> None:
    """Writes the state of all processes."""
    random_states = processes.gather(generators())
    if processes.main or processes.sharded:
        save_state(checkpoints.state, module, optimizer, history, checkpoints.about, random_states)
    processes.wait()
