"""unlearn: trains a model to forget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from interp.hooks.modes import dropout_off
from interp.mitigation.unlearning.localized import gradients_only_into
from interp.mitigation.unlearning.methods import Loss, Method, find
from interp.mitigation.unlearning.sets import Sets, check_sets, real
from interp.mitigation.unlearning.stopping import Stop
from interp.sites.units import Units
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.training.fit import (
    Checkpoints,
    Evaluation,
    Metrics,
    Precision,
    Step,
    computing_in,
    fit,
)


def unlearn(
    subject: Subject,
    forget: Batch,
    retain: Batch | None = None,
    method: str = "codeeraser",
    *,
    stop: Stop | None = None,
    units: Units | None = None,
    lr: float = 3e-6,
    betas: tuple[float, float] = (0.9, 0.98),
    precision: Precision = "float32",
    batch_size: int = 16,
    measure: Callable[[Subject], Metrics] | None = None,
    callback: Callable[[Step], None] | None = None,
    checkpoints: Checkpoints | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Trains a subject's module in place until it has forgotten a set of sequences.

    An epoch is one optimizer step on all of `forget`, and for methods that alternate a second one
    on all of `retain`, without dropout. The optimizer is Adam with a constant learning rate and no
    weight decay.

    Weights change only in here. To have the original back, keep a copy of the module
    (`copy.deepcopy(subject.module)`), or write its weights with
    `interp.training.state.save_weights` and read them again with `load_weights`. If this function
    raises an error, also at an interrupt, the weights are those from before.

    Args:
        subject: the model, before unlearning: the losses compare with it.
        forget: what to forget; its `scored` marks the tokens of secrets. Without `scored` all
            tokens are to be forgotten.
        retain: other sequences that the model should keep, for methods that need them; the others
            do not read it.
        method: one of `interp.mitigation.unlearning.methods.methods()`.
        stop: when to stop; by default after 100 epochs.
        units: neurons or heads whose out-weights alone are trained (see `gradients_only_into`); by
            default all parameters that require a gradient.
        lr: learning rate. It matters more than any other option: 3e-6 is the paper's for models of
            110M parameters and more; small models take 1e-5 to 1e-4.
        betas: Adam's decay rates.
        precision: precision of forwards and backwards.
        batch_size: batch size of measurements.
        measure: what else to measure whenever the stop rule measures the forget set.
        callback: called after each optimizer step.
        checkpoints: as `fit` takes it. An unlearning that was interrupted continues from there when
            it is called again with the same arguments and the original model, and ends with the
            same bits.
        **options: options of the method, see `interp.mitigation.unlearning.methods`.

    Returns:
        One row per optimizer step: `step`, `epoch`, `part` ("forget", "retain" or "both"), `loss`;
        and the level of the forget set where it was measured after the step: `ma`, each `el_<n>`
        that has a threshold, and what `measure` returned. `frame.attrs` has the `method`, its
        `options`, the levels `before`, and whether the thresholds were `reached`.

    Raises:
        ValueError: an unknown method or option; a method without the retained set that it needs; a
            forget sequence without a token that counts; a retained sequence that is in the forget
            set or contains one of its secrets; thresholds that are already met; a loss that is not
            finite, or that none of the trained weights can change; logits that are not finite.

    Example:
        >>> import copy
        >>> from interp.mitigation.unlearning.stopping import Stop
        >>> learner = interp.load(copy.deepcopy(subject.module))
        >>> forget, retain = batch.rows(slice(0, 3)), batch.rows(slice(6, 9))
        >>> stop = Stop({"ma": 0.2}, epochs=20)
        >>> history = interp.unlearn(learner, forget, retain, stop=stop, lr=3e-3)
        >>> history.attrs["before"]["ma"], bool(history["ma"].iloc[-1] <= 0.2)
        (1.0, True)
        >>> history["part"].head(2).tolist()
        ['forget', 'retain']
    """
    stop = Stop() if stop is None else stop
    chosen = find(method, options)
    sets = Sets(forget, retain)
    _check(subject, sets, method, chosen)
    before = stop.measure(subject, forget, batch_size)
    _refuse_met(stop, before)
    if checkpoints is not None:
        about = _about(subject, sets, method, chosen, stop, units)
        checkpoints = replace(checkpoints, about={**about, **checkpoints.about})

    with computing_in(precision, subject.device):
        # What is remembered of the original is rounded as the forwards of the training are.
        losses = chosen.losses(subject, sets)
    parts = tuple(losses)

    def measured(trained: Subject) -> Metrics:
        try:
            own = stop.measure(trained, forget, batch_size)
        except ValueError as error:  # before training it could be measured
            raise ValueError(
                f"training broke the model: lower the learning rate ({lr:g}), or stop earlier; "
                f"{error}"
            ) from error
        # The levels that the stop rule reads win over measures of the same name.
        return own if measure is None else {**measure(trained), **own}

    with ExitStack() as stack:
        stack.enter_context(_restored_on_error(subject.module))
        if units is not None:
            stack.enter_context(gradients_only_into(subject, units))
        history = fit(
            subject,
            _batches(sets, parts),
            # An epoch has one step for each part: epochs are counted in steps here and below.
            stop.epochs * len(parts),
            lr,
            precision=precision,
            betas=betas,
            objective=_objective(losses),
            callback=callback,
            evaluation=Evaluation(measured, stop.every * len(parts), stop.met),
            checkpoints=checkpoints,
        )
    return _described(history, parts, method, chosen, stop, before)


def _check(subject: Subject, sets: Sets, name: str, method: Method) -> None:
    if method.needs_retain and sets.retain is None:
        raise ValueError(
            f"{name} needs a retained set: pass retain=, sequences that the model should keep; or "
            "choose ga or ssga, which need none"
        )
    for batch in (sets.forget, sets.retain):
        if batch is not None:
            subject.check(batch)
    check_sets(subject, sets)


def _refuse_met(stop: Stop, before: Mapping[str, float]) -> None:
    if not stop.met(before):
        return
    found = ", ".join(
        f"{name} is {before[name]:.3g}, at most {most:.3g}"
        for name, most in stop.thresholds.items()
    )
    raise ValueError(
        f"the forget set counts as forgotten before any training ({found}): expected a model that "
        "has memorized it, or lower thresholds"
    )


def _batches(sets: Sets, parts: tuple[str, ...]) -> Iterator[Batch]:
    """What each step is trained on, without end."""
    while True:
        for part in parts:
            yield sets.kept if part == "retain" else sets.forget


def _objective(losses: Mapping[str, Loss]) -> Callable[[Subject, Batch, int], Tensor]:
    in_order = list(losses.values())

    def objective(trained: Subject, _: Batch, step: int) -> Tensor:
        with dropout_off(trained.module):
            loss = in_order[step % len(in_order)](trained)
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on any weight that is trained: expected units before the "
                "place where it is measured, and parameters that require a gradient"
            )
        return loss

    return objective


@contextmanager
def _restored_on_error(module: nn.Module) -> Generator[None]:
    """Puts weights and buffers back, bit for bit, if the block raises an error."""
    tensors = [*module.parameters(), *module.buffers()]
    originals = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    # Interrupts too, which are not an Exception.
    except BaseException:
        with torch.no_grad():
            for tensor, original in zip(tensors, originals, strict=True):
                tensor.copy_(original)
        raise


def _about(
    subject: Subject, sets: Sets, name: str, method: Method, stop: Stop, units: Units | None
) -> dict[str, Any]:
    """What distinguishes this unlearning from others, in a state that continues it."""
    return {
        # The model before it is trained: with any other, the losses would compare with that one.
        "model": subject.fingerprint,
        "method": name,
        "options": _options(method),
        "forget": _digest(sets.forget),
        "retain": None if sets.retain is None else _digest(sets.retain),
        "units": None if units is None else _hash(json.dumps(units.to_json()).encode()),
        "thresholds": dict(stop.thresholds),
        "measured every": stop.every,
        "margin": stop.margin,
    }


def _options(method: Method) -> dict[str, Any]:
    instance: Any = method
    return asdict(instance)


def _digest(batch: Batch) -> str:
    """A hash of all that the losses read of a batch."""
    # What is not padding is trained on too, as context, where it does not count.
    parts = [batch.tokens.long(), batch.counted, real(batch)]
    for _, value in sorted(batch.conditioning.items()):
        parts.append(value.double())
    return _hash(b"".join(part.cpu().numpy().tobytes() for part in parts))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _described(
    history: pd.DataFrame,
    parts: tuple[str, ...],
    name: str,
    method: Method,
    stop: Stop,
    before: Mapping[str, float],
) -> pd.DataFrame:
    """The history of `fit` with the epoch and the part of each step."""
    steps = history["step"].to_numpy()
    frame = history.copy()
    frame.insert(1, "epoch", steps // len(parts))
    frame.insert(2, "part", [parts[step % len(parts)] for step in steps])
    last = {name: float(frame[name].iloc[-1]) for name in before}
    frame.attrs = {
        "method": name,
        "options": _options(method),
        "before": dict(before),
        "reached": stop.met(last),
    }
    return frame
