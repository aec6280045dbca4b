"""One training and what is measured on its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import interp
from experiments.mem_sinks.corpus import Data, Sequences
from experiments.mem_sinks.presets import Preset, Run
from interp.mitigation.sinks import SinkDecay, Sinks, content_ids
from interp.models.small_text import small_language_model
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating, token_losses
from interp.training.fit import Evaluation, Objective, fit
from interp.training.unit_parameters import unit_parameters

# Modes in which a model is measured.
PLAIN = "all neurons"
OWN = "own sinks"
SCALED = "all sinks, scaled"
DROPPED = "sinks dropped"
EXPECTED = "sinks dropped, expected scale"
REFERENCE = "sinks dropped, reference scale"

# A mode: runs a batch under it.
Mode = Callable[[Batch], AbstractContextManager[None]]

_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model.

    Attributes:
        run: how it was trained.
        subject: the model.
        sinks: its sinks; those of gradient masking are neurons that are reserved; None without.
        history: what `fit` returned.
    """

    run: Run
    subject: Subject
    sinks: Sinks | None
    history: pd.DataFrame

    @property
    def modes(self) -> dict[str, Mode]:
        """The modes in which it is measured, by name."""
        return modes(self.run, self.subject, self.sinks)


def modes(run: Run, subject: Subject, sinks: Sinks | None) -> dict[str, Mode]:
    """Returns the modes in which the model of a run is measured, by name."""
    if sinks is None:
        return {PLAIN: lambda _: nullcontext()}
    found: dict[str, Mode] = {DROPPED: lambda _: subject.intervened(sinks.dropped())}
    if run.reserve:
        return {PLAIN: lambda _: nullcontext(), **found}
    return {
        OWN: lambda batch: sinks.own(subject, content_ids(batch)),
        SCALED: lambda _: subject.intervened(sinks.scaled()),
        **found,
        EXPECTED: lambda _: subject.intervened(sinks.dropped("expected")),
        REFERENCE: lambda _: subject.intervened(sinks.dropped("reference")),
    }


def train(preset: Preset, run: Run, data: Data, seed: int, *, curves: bool = True) -> Trained:
    """Trains the model of a run.

    Args:
        preset: sizes and rates.
        run: what is special about this training.
        data: the sequences.
        seed: seed of the weights, of the order and of random ids.
        curves: whether to measure it during training.
    """
    settings = preset.training
    subject = _untrained(preset, run, data, seed)
    sinks = None
    if run.general is not None:
        pool = run.neurons - run.general
        # The same number of sinks is on whatever the size of the pool; reserved neurons are all on.
        active = run.active / pool if run.active else 1.0
        sinks = Sinks.of(
            subject, run.general / run.neurons, active, seed=seed, per_layer=run.per_layer
        )
    presented = data.stream(run.data, preset.corpus.copies, seed)
    batches = [Batch(rows) for rows in presented.split(settings.batch_size)]
    steps = len(presented) // settings.batch_size
    callback = None
    if sinks is not None and not run.sinks_decay:
        masks = unit_parameters(subject, sinks.pool, batches[0])
        callback = SinkDecay(subject, masks, settings.weight_decay)
    own_modes = modes(run, subject, sinks)
    # The modes hold `subject`, whose module is the one that is trained.
    evaluation = Evaluation(lambda _: _levels(own_modes, subject, data), preset.every)
    history = fit(
        subject,
        batches,
        steps,
        settings.lr,
        warmup=settings.warmup,
        decay=steps - settings.warmup,
        floor=0.1,
        weight_decay=settings.weight_decay,
        clip=1.0,
        objective=_objective(run, subject, sinks, data, batches[0], seed),
        callback=callback,
        evaluation=evaluation if curves else None,
    )
    return Trained(run, subject, sinks, history)


def _untrained(preset: Preset, run: Run, data: Data, seed: int) -> Subject:
    module = small_language_model(
        len(data.tokenizer),
        width=preset.training.width,
        layers=preset.training.layers,
        heads=preset.training.heads,
        context=preset.corpus.length,
        neurons=run.neurons,
        seed=seed,
        architecture="gpt2",
        activation="gelu_pytorch_tanh",  # the same function as GPT-2's own, in one kernel
        tied=True,
    )
    return interp.load(module, tokenizer=data.tokenizer)


def _objective(
    run: Run, subject: Subject, sinks: Sinks | None, data: Data, probe: Batch, seed: int
) -> Objective | None:
    if sinks is None:
        return None
    if run.reserve:
        off = sinks if run.reserve == "off for others" else None
        return _reserved(unit_parameters(subject, sinks.pool, probe), off, data)
    if not run.noise:
        return sinks.objective()

    return sinks.objective(lambda batch, step: noisy_ids(batch, step, run.noise, seed))


def noisy_ids(batch: Batch, step: int, share: float, seed: int) -> Tensor:
    """Returns the ids of a batch's documents, each of them random with some probability.

    Args:
        batch: the documents.
        step: number of the step; each draws anew.
        share: the probability; with 1 the masks are untied.
        seed: seed of the draws.
    """
    rng = np.random.default_rng([seed, 4, step])
    # From 1 on: 0 is not an id. One that equals the id of a document does not happen in practice.
    random = torch.from_numpy(rng.integers(1, 2**62, len(batch)))
    is_random = torch.from_numpy(rng.random(len(batch)) < share)
    return torch.where(is_random, random, content_ids(batch))


def _reserved(masks: Mapping[str, Tensor], off: Sinks | None, data: Data) -> Objective:
    """Gradient masking: repeated sequences train nothing but the weights of reserved neurons.

    Args:
        masks: which weights these are.
        off: the reserved neurons, where other text is trained without them; None where it has them.
        data: which sequences are repeated.
    """
    known = set(content_ids(Batch(torch.cat([data.repeated, data.canaries]))).tolist())

    def losses_of(trained: Subject, batch: Batch) -> Float[Tensor, ""]:
        return token_losses(trained.run(batch, batch.length - batch.prompt), batch).sum()

    def objective(trained: Subject, batch: Batch, _: int) -> Float[Tensor, ""]:
        is_repeated = torch.tensor([number in known for number in content_ids(batch).tolist()])
        total = torch.zeros(())
        if not is_repeated.all():
            others = batch.rows((~is_repeated).nonzero()[:, 0])
            with nullcontext() if off is None else trained.intervened(off.dropped()):
                total = total + losses_of(trained, others)
        if is_repeated.any():
            repeated = losses_of(trained, batch.rows(is_repeated.nonzero()[:, 0]))
            total = total + _through(trained, repeated, masks)
        # Sums of both parts over the tokens of the whole batch: the mean that `fit` would minimize.
        return total / batch.counted.sum()

    return objective


def _through(
    trained: Subject, loss: Float[Tensor, ""], masks: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """A number with the value of a loss, whose gradient reaches nothing but masked weights."""
    named = dict(trained.module.named_parameters())
    reserved = {name: named[name] for name in masks}
    gradients = torch.autograd.grad(loss, list(reserved.values()))
    # Linear in the weights, with the masked gradient as its slope.
    line = torch.zeros(())
    for (name, weight), gradient in zip(reserved.items(), gradients, strict=True):
        line = line + (weight * (gradient * masks[name])).sum()
    # The line cancels in the value, and alone has a gradient.
    return loss.detach() + line - line.detach()


def _levels(own_modes: Mapping[str, Mode], subject: Subject, data: Data) -> dict[str, float]:
    """The mean losses of the training curves, in the modes that are drawn."""
    found: dict[str, float] = {}
    sets = {"repeated": data.repeated, "held out": data.held_out}
    for mode in (PLAIN, OWN, DROPPED):
        if mode not in own_modes:
            continue
        for name, sequences in sets.items():
            if mode == OWN and name == "held out":
                continue  # no document of the training: it has no sinks
            table = sequence_measures(subject, sequences[:128], own_modes[mode])
            found[f"{name} | {mode}"] = float(table["loss"].mean())
    return found


def measure(trained: Trained, data: Data, once: int) -> pd.DataFrame:
    """Returns one row per mode, set and sequence: `sequence_measures`.

    Args:
        trained: the model.
        data: the sequences.
        once: how many of the sequences that it was presented once to measure.
    """
    sets = {
        "repeated": data.repeated,
        "canaries": data.canaries,
        "unseen canaries": data.unseen,
        "once": data.once[:once],
        "held out": data.held_out,
    }
    parts: list[pd.DataFrame] = []
    for mode, under in trained.modes.items():
        for name, sequences in sets.items():
            if mode == OWN and name in ("held out", "unseen canaries"):
                continue  # no documents of the training: they have no sinks
            if mode in (EXPECTED, REFERENCE) and name not in ("repeated", "held out"):
                continue  # isolation and its price are enough to compare scales of the dropout by
            table = sequence_measures(trained.subject, sequences, under)
            parts.append(table.assign(run=trained.run.name, mode=mode, data=name))
    return pd.concat(parts, ignore_index=True)


def sequence_measures(subject: Subject, sequences: Sequences, under: Mode) -> pd.DataFrame:
    """Returns one row per sequence: its number as `sequence`, its `loss` (nats per token), the
    `accuracy` on its second half after its first, and whether greedy decoding extracts all of
    that (`exact`)."""
    half = sequences.shape[1] // 2
    rows: list[dict[str, Any]] = []
    for batch in Batch(sequences).split(_BATCH_SIZE):
        with evaluating(subject), under(batch):
            logits = subject.target_logits(batch)
        losses = token_losses(logits, batch).mean(1)
        hits: Bool[Tensor, "batch predicted"] = logits.argmax(-1) == batch.targets
        # Greedy decoding gives the true tokens exactly if each of them is the most likely one after
        # the true ones before it.
        # The first token is not predicted: hit i is about token i + 1, so that this is the second
        # half.
        suffix = hits[:, half - 1 :].double()
        for loss, share in zip(losses.tolist(), suffix.mean(1).tolist(), strict=True):
            rows.append({"loss": loss, "accuracy": share, "exact": float(share == 1)})
    return pd.DataFrame(rows).assign(sequence=range(len(rows)))


def curves(trained: Trained) -> pd.DataFrame:
    """Returns the training curves in long form: `step`, `data`, `mode`, `loss`."""
    columns = [name for name in trained.history if " | " in str(name)]
    measured = trained.history.drop(columns="loss").dropna(subset=columns)
    long: Any = measured.melt("step", columns, "curve", "loss")
    names = long["curve"].str.split(" | ", regex=False)
    return pd.DataFrame(
        {
            "run": trained.run.name,
            "step": long["step"] + 1,
            "data": names.str[0],
            "mode": names.str[1],
            "loss": long["loss"],
        }
    )
