"""Removals at growing doses, and where on the way they are compared.

A removal has no single strength: training can go on, more neurons can be switched off, more of a
weight can be dropped. So each one is measured at growing doses, until it has both forgotten the
secrets and done a fixed damage, and is compared with the others at two points of its path: *at
equal forgetting*, the first dose at which the secrets count as forgotten; and *at equal damage*,
the first dose at which the loss on held-out code has risen by a fixed amount.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as Folder
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

import interp
from experiments.code_eraser.presets import Unlearning
from experiments.code_eraser.study import Study
from interp.interventions.plan import Plan
from interp.memorization.recitation import levels, recitation
from interp.mitigation.removal.file_measures import context
from interp.mitigation.removal.stress import duplicate
from interp.mitigation.unlearning.stopping import Stop
from interp.sites.units import Units
from interp.subject.subject import evaluating
from interp.training.fit import Checkpoints
from interp.training.state import load_weights

FORGETTING = "equal forgetting"
DAMAGE = "equal damage"
BATCH_SIZE = 64
_EVERY = 2  # epochs from one measurement to the next

Edited = interp.Subject | Plan
Metrics = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Path:
    """A removal at growing doses.

    Attributes:
        frame: one row per dose, the first of them 0: `dose`, `ma` of the secrets, `el_10` where it
            has a threshold (NaN while MA is above its own), whether they count as `forgotten`, the
            MA of each set that should stay (the mean over the runs of tokens of a file that count,
            and then over files; the column `accuracy` of the table `files` weighs all tokens of a
            file equally), and `rise` of the loss on held-out code, in nats per token.
        at: the edited model, or the plan, at each of the two points that was reached.
    """

    frame: pd.DataFrame
    at: Mapping[str, Edited]


class Measures:
    """What is measured of an edited model at each dose.

    Args:
        study: the models and sets.
        thresholds: the levels at which the secrets count as forgotten. That of EL_10 takes decoding
            at every dose below that of MA.
    """

    def __init__(self, study: Study, thresholds: Metrics) -> None:
        self.study = study
        self.damage = study.setup.damage
        # Without a margin EL_10 is decoded only where MA has passed, and else is NaN, which is
        # never met.
        self.stop = Stop(thresholds, study.setup.epochs, _EVERY, margin=0.0)
        self._around = context(study.forget)
        self._before = self._held_out_loss(study.model)

    def of_sets(self, subject: interp.Subject) -> dict[str, float]:
        """The MA on every set that should stay, and the rise of the held-out loss."""
        study = self.study
        sets = {
            "context": self._around,
            "retained": study.retain,
            "memorized": study.memorized,
            "other_secrets": study.others,
        }
        found: dict[str, float] = {}
        for name, batch in sets.items():
            frame = recitation(subject, batch, ngrams=(), batch_size=BATCH_SIZE)
            found[name] = levels(frame)["ma"]
        found["rise"] = self._held_out_loss(subject) - self._before
        return found

    def of(self, edited: Edited) -> dict[str, float]:
        """All measures of a model, or of the study's model under a plan."""
        with self.under(edited) as subject:
            return {
                **self.stop.measure(subject, self.study.forget, BATCH_SIZE),
                **self.of_sets(subject),
            }

    @contextmanager
    def under(self, edited: Edited) -> Generator[interp.Subject]:
        """Gives the edited model."""
        if isinstance(edited, interp.Subject):
            yield edited
        else:
            with self.study.model.intervened(edited):
                yield self.study.model

    def reached(self, metrics: Metrics) -> dict[str, bool]:
        """Which of the two points a dose has reached."""
        return {
            FORGETTING: self.stop.met(metrics),
            DAMAGE: metrics["rise"] >= self.damage,
        }

    def path(self, frame: pd.DataFrame, at: Mapping[str, Edited]) -> Path:
        """The path of measured doses, with the unedited model before them."""
        before = pd.DataFrame([{"dose": 0.0, **self._unedited}])
        doses = pd.concat([before, frame], ignore_index=True)
        metrics: Any = doses.to_dict("records")
        forgotten = [self.reached(dose)[FORGETTING] for dose in metrics]
        return Path(doses.assign(forgotten=forgotten), at)

    @cached_property
    def _unedited(self) -> dict[str, float]:
        return self.of(())

    def _held_out_loss(self, subject: interp.Subject) -> float:
        batch = self.study.held_out
        with evaluating(subject):
            # Rows of held-out code are full, so that the mean over tokens is that over rows.
            losses = [subject.losses(part) for part in batch.split(BATCH_SIZE)]
        return float(torch.cat(losses).double().mean())


@dataclass(frozen=True)
class _Both(Stop):
    """Stops where the secrets are forgotten and the damage is done."""

    damage: float = 0.0

    def met(self, measured: Metrics) -> bool:
        """Returns whether both are the case."""
        # `unlearn` also asks about its own measures alone, without `rise`: before the training, and
        # for the `reached` of its history, which nothing reads here.
        return super().met(measured) and measured.get("rise", 0.0) >= self.damage


def of_unlearning(
    measures: Measures,
    method: Unlearning,
    units: Units | None = None,
    *,
    until_damage: bool = False,
) -> Path:
    """Returns the path of a training until the secrets are forgotten; its dose is the number of
    epochs.

    Args:
        measures: what is measured.
        method: the method.
        units: neurons whose out-weights alone are trained.
        until_damage: whether it goes on until the damage is done too.
    """
    study = measures.study
    learner = duplicate(study.model)
    options: Any = dict(method.options)
    stop = measures.stop
    if until_damage:
        stop = _Both(**vars(stop), damage=measures.damage)
    keep: dict[str, Callable[[Metrics], bool]] = {
        FORGETTING: lambda found: measures.reached(found)[FORGETTING],
        DAMAGE: lambda found: measures.reached(found)[DAMAGE],
    }
    with TemporaryDirectory() as folder:
        # The state is not continued from, and so written once, at the end.
        checkpoints = Checkpoints(Folder(folder), 2 * stop.epochs, keep)
        history = interp.unlearn(
            learner,
            study.forget,
            study.retain,
            method.method,
            stop=stop,
            units=units,
            lr=method.lr,
            batch_size=BATCH_SIZE,
            measure=measures.of_sets,
            checkpoints=checkpoints,
            **options,
        )
        at: dict[str, Edited] = {}
        for name in keep:
            weights = Folder(folder) / f"{name}.safetensors"
            if weights.exists():
                at[name] = duplicate(study.model)
                load_weights(weights, at[name].module)
    # Steps after which nothing was measured are no doses.
    measured = history[history["rise"].notna()]
    frame = measured.drop(columns=["step", "part", "loss"]).rename(columns={"epoch": "dose"})
    # An epoch is numbered from 0, and measured after it: the dose is how many are over.
    return measures.path(frame.assign(dose=frame["dose"] + 1), at)


def of_edits(measures: Measures, edits: Iterable[tuple[float, Edited]]) -> Path:
    """Returns the path of edits at growing doses.

    Args:
        measures: what is measured.
        edits: doses with the edited model, or the plan.
    """
    rows: list[dict[str, float]] = []
    at: dict[str, Edited] = {}
    for dose, edited in edits:
        metrics = measures.of(edited)
        rows.append({"dose": dose, **metrics})
        for name, reached in measures.reached(metrics).items():
            if reached:
                # Doses grow: the first that reaches a point is the one that is compared there.
                at.setdefault(name, edited)
        if len(at) == 2:
            break
    return measures.path(pd.DataFrame(rows), at)


def noise(
    study: Study, scales: Iterable[float], draw: int
) -> Iterator[tuple[float, interp.Subject]]:
    """Yields the model with random changes of all its weight matrices: mere damage.

    Args:
        study: the models and sets.
        scales: sizes of the changes, as shares of the standard deviation of each weight matrix.
        draw: number of the draw. The changes of one draw have the same direction at every size.
    """
    for scale in scales:
        changed = duplicate(study.model)
        generator = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for parameter in changed.module.parameters():
                direction = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 2:
                    parameter.add_(direction, alpha=scale * float(parameter.std()))
        yield scale, changed
