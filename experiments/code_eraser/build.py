"""What is run of the paper on one seed: its methods until secrets are forgotten, and CodeEraser
with other settings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path as Place
from typing import Any

import pandas as pd

import interp
from experiments.code_eraser.paths import BATCH_SIZE, Measures, of_unlearning
from experiments.code_eraser.presets import NEVER_READ, NONE, Preset
from experiments.code_eraser.study import Study, build, marked, thresholds
from interp.experiment.jobs import Folder, Job, job
from interp.memorization.recitation import NGRAMS
from interp.mitigation.removal.file_measures import context, recite_files
from interp.mitigation.removal.stress import duplicate
from interp.mitigation.unlearning.methods import CodeEraser
from interp.mitigation.unlearning.stopping import Stop
from interp.progress import track

TABLES = ("paths", "files", "settings")
Tables = dict[str, pd.DataFrame]


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """Two jobs; the one that comes first also trains the models."""
    yield job(methods, preset, seed, Folder("models"))
    yield job(settings, preset, seed, Folder("models"))


def methods(preset: Preset, seed: int, folder: Place) -> Tables:
    """The paper's methods, epoch by epoch, and what is left of each file where they have just
    forgotten."""
    study = build(preset.setup, seed, folder)
    measures = Measures(study, study.thresholds)
    paths: list[pd.DataFrame] = []
    files = [recited(study, study.model, NONE), recited(study, study.clean, NEVER_READ)]
    for method in track(preset.methods, "methods"):
        path = of_unlearning(measures, method)
        paths.append(path.frame.assign(removal=method.name))
        for point, edited in path.at.items():
            with measures.under(edited) as subject:
                files.append(recited(study, subject, method.name, point))
    return {
        "paths": pd.concat(paths, ignore_index=True),
        "files": pd.concat(files, ignore_index=True),
    }


def settings(preset: Preset, seed: int, folder: Place) -> Tables:
    """CodeEraser with other learning rates, other weights of the context, and more or fewer files
    to forget: what it costs until the secrets are forgotten."""
    setup = preset.setup
    study = build(setup, seed, folder)
    measures = Measures(study, study.thresholds)

    @cache  # the values that are usual otherwise stand among those of every setting
    def run(lr: float, gamma: float, files: int) -> dict[str, Any]:
        twins = marked(setup, study.model, study.corpus.twins[:files])
        learner = duplicate(study.model)
        history = interp.unlearn(
            learner,
            marked(setup, study.model, study.corpus.forget[:files]),
            study.retain,
            stop=Stop(thresholds(study.model, twins), setup.epochs, margin=0.0),
            lr=lr,
            batch_size=BATCH_SIZE,
            gamma=gamma,
        )
        return {
            # An epoch is numbered from 0 in the history.
            "epochs": int(history["epoch"].iloc[-1]) + 1,
            "forgotten": history.attrs["reached"],
            "ma": float(history["ma"].iloc[-1]),
            **measures.of_sets(learner),
        }

    usual = {
        "lr": preset.methods[-1].lr,
        "gamma": CodeEraser().gamma,
        "files": setup.forget,
    }
    runs = [
        *(("learning rate", "lr", lr) for lr in preset.lrs),
        *(("gamma", "gamma", gamma) for gamma in preset.gammas),
        *(("files", "files", files) for files in preset.counts),
    ]
    rows: list[dict[str, Any]] = []
    for setting, option, value in track(runs, "settings"):
        about = {"setting": setting, "value": float(value)}
        rows.append(about | run(**usual | {option: value}))
    return {"settings": pd.DataFrame(rows)}


def recited(study: Study, subject: interp.Subject, removal: str, point: str = "") -> pd.DataFrame:
    """What a model recites of each file, or row of held-out code."""
    sets = {
        "forget": study.forget,
        "twins": study.twins,
        "context": context(study.forget),
        "others": study.others,
        "retained": study.retain,
        "memorized": study.memorized,
        "held out": study.held_out,
    }
    parts: list[pd.DataFrame] = []
    for data, batch in sets.items():
        # EL_n takes decoding, and is asked of the secrets that are to be forgotten alone.
        ngrams = NGRAMS if data == "forget" else ()
        frame = recite_files(subject, batch, ngrams, batch_size=BATCH_SIZE)
        about = {"removal": removal, "point": point, "data": data}
        parts.append(frame.assign(file=range(len(frame)), **about))
    return pd.concat(parts, ignore_index=True)
