"""DEL on a real model and text that it has memorized: are the neurons that a method finds those of
this text, or of licence language?

`python -m experiments.localization_benchmarks.real --preset small --set
model=PATH/Qwen2.5-Coder-0.5B-Instruct --jobs 1` takes an hour of one processor, in bfloat16.

Units are scored on one half of the passages, against code and prose, and judged on the other half,
on the same passages in other formats, on other licences, on licence language in other words, on
other memorized text and on unrelated code and prose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

import interp
from experiments.localization_benchmarks import figures
from experiments.localization_benchmarks.checks_of_real import checks_of
from experiments.localization_benchmarks.licence_texts import study_windows
from interp.experiment.checks import Check, Tables
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Folder, Job, job
from interp.files import replaced, writable
from interp.localization import localize
from interp.memorization.evaluation import MEASURES, beside_before, effects
from interp.mitigation.controls import Selection, Trial
from interp.reporting.stats import student

ALONE = (
    "slimming",
)  # learns masks for the memorized windows only: twice as many more for the contrast would take too long
HEADLINE = 1e-3  # fixed beforehand: the share that the claims are about, as in Chang et al. 2024
JUDGED = {  # sets, and how many windows of each
    "texts_test": 10, "other_format": 8, "unstudied": 6, "half_known": 8, "paraphrased": 8,
    "memorized": 8, "rules": 4, "code": 8, "prose": 8,
}  # fmt: skip
CONTROLS_SEE = (
    "texts_test",
    "code",
    "prose",
)  # all controls; those as active see the other sets too, at the headline share
Frame = Any  # pandas' stubs lose the type of a frame that is indexed
KEYS = ["method", "selected", "fraction", "k", "data"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is run.

    Attributes:
        model: a hub id or folder of a model that has memorized licences.
        methods: localization methods with their options.
        fractions: shares of the neurons that are zeroed, HEADLINE among them; the controls are
        measured too at those of `controlled`.
        draws: of each control that is drawn.
        dtype: of the weights.
        seeds: number of seeds that controls are drawn from; intervals are over texts.
    """

    model: str
    methods: Mapping[str, Mapping[str, Any]]
    fractions: tuple[float, ...]
    controlled: tuple[float, ...]
    draws: int = 5
    dtype: str = "bfloat16"
    seeds: int = 1


# Slimming's options were set by what an hour allows: a mask falls from 1 to 0 in 25 of its steps
# unless the loss holds it.
PRESETS = {
    "smoke": Preset(
        model="models/Qwen2.5-Coder-0.5B-Instruct",
        methods={"activation": {}},
        fractions=(HEADLINE,),
        controlled=(HEADLINE,),
        draws=2,
    ),
    "small": Preset(
        model="models/Qwen2.5-Coder-0.5B-Instruct",
        methods={
            "activation": {},
            "z_score": {},
            "unitmem": {},
            "absolute_gradient_x_activation": {},
            "attribution_patching": {},
            "slimming": {"pressure": 0.1, "steps": 30, "lr": 0.04},
        },
        fractions=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        controlled=(1e-4, 1e-3, 1e-2),
    ),
}


def preparation(preset: Preset) -> Iterator[Job]:
    """The job before all others."""
    yield job(prepared, preset, Folder("shared"))


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per method, after one for the windows."""
    yield job(windows, preset, Folder("shared"))
    for method in preset.methods:
        yield job(of_method, method, preset, seed, Folder("shared"))


def prepared(preset: Preset, folder: Path) -> dict[str, pd.DataFrame]:
    """What all methods share: the windows, and how active each neuron is."""
    subject = _subject(preset)
    _activity(subject, folder)
    return {}


def windows(preset: Preset, folder: Path) -> dict[str, pd.DataFrame]:
    """All windows of the study, without their tokens."""
    return {"windows": _windows(_subject(preset), folder).drop(columns=["tokens"])}


def of_method(method: str, preset: Preset, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """What zeroing the units of one method, and those of its controls, does to each text."""
    subject = _subject(preset)
    return {"texts": by_text(measured(subject, method, preset, seed, folder))}


def measured(
    subject: interp.Subject, method: str, preset: Preset, seed: int, folder: Path
) -> Frame:
    """Every ablation of one method on the sets that it is judged on: the rows of `effects`, each
    measure also before, with the text that a window is of (`source`) and how active the units are.
    """
    sets = _sets(subject, folder)
    activity = _activity(subject, folder)
    against = None if method in ALONE else sets["contrast"]
    scores = localize(subject, sets["texts_score"], against, method, **preset.methods[method])
    trials = _trials(scores, activity, preset, seed)
    judged_on = {name: _spread(sets[name], count) for name, count in JUDGED.items()}
    near = {name: part for name, part in judged_on.items() if name in CONTROLS_SEE}
    elsewhere = {name: part for name, part in judged_on.items() if name not in CONTROLS_SEE}
    top = [trial for trial in trials if trial.selection == "top"]
    controls = [trial for trial in trials if trial.selection != "top"]
    matched = [
        trial for trial in controls if trial.selection == "as active" and trial.fraction == HEADLINE
    ]
    parts = [
        _effects(subject, method, top, judged_on),
        _effects(subject, method, controls, near),
        _effects(subject, method, matched, elsewhere),
    ]
    found = pd.concat(parts, ignore_index=True)
    active = [
        (t.selection, t.fraction, t.seed, sum(activity[site][unit] for site, unit in t.units) / t.k)
        for t in trials
    ]
    found = found.merge(pd.DataFrame(active, columns=["selected", "fraction", "seed", "activity"]))
    found["source"] = [
        f"{data}: {judged_on[data]['source'].iloc[n]}"
        for data, n in zip(found["data"], found["window"], strict=True)
    ]
    return found


def _subject(preset: Preset) -> interp.Subject:
    return interp.load(preset.model, dtype=preset.dtype)


def _shared(subject: interp.Subject, folder: Path, name: str) -> Path:
    """The file of what all methods share on one model: another model has another one."""
    return writable(folder / subject.fingerprint) / f"{name}.parquet"


def _windows(subject: interp.Subject, folder: Path) -> Frame:
    """Every set of windows, found once and then read."""
    file = _shared(subject, folder, "windows")
    if not file.exists():
        with replaced(file) as temporary:
            pd.concat(study_windows(subject).values(), ignore_index=True).to_parquet(temporary)
    return pd.read_parquet(file)


def _sets(subject: interp.Subject, folder: Path) -> dict[str, Frame]:
    found = _windows(subject, folder)
    return {
        str(name): part.reset_index(drop=True) for name, part in found.groupby("set", sort=False)
    }


def _activity(subject: interp.Subject, folder: Path) -> interp.UnitScores:
    """How active each neuron is on the passages and their contrast, measured once and then read."""
    file = _shared(subject, folder, "activity")
    if not file.exists():
        sets = _sets(subject, folder)
        scores = localize(
            subject, pd.concat([sets["texts_score"], sets["contrast"]]), method="activation"
        )
        with replaced(file) as temporary:
            scores.to_frame().to_parquet(temporary)
    table: Frame = pd.read_parquet(file)
    rows = {
        interp.Site.parse(str(site)): part.sort_values("unit")["score"].to_numpy()
        for site, part in table.groupby("site")
    }
    return interp.UnitScores(dict(sorted(rows.items(), key=lambda item: item[0].order)), "activity")


def _spread(part: Frame, count: int) -> pd.DataFrame:
    """At most `count` windows, in turn from each source."""
    turn = part.groupby("source").cumcount()
    return part.loc[turn.sort_values(kind="stable").index[:count]].reset_index(drop=True)


def _trials(
    scores: interp.UnitScores, activity: interp.UnitScores, preset: Preset, seed: int
) -> list[Trial]:
    """The top units of every fraction, and the controls of some: the lowest, random ones in each
    block, and others as active."""
    draws = range(seed, seed + preset.draws)
    trials: list[Trial] = []
    for share in preset.fractions:
        selection = Selection(scores.top(share), share)
        trials.append(selection.trial("top"))
        if share in preset.controlled:
            trials.append(selection.lowest(scores))
            for draw in zip(
                selection.random(draws), selection.as_active(activity, draws), strict=True
            ):
                trials += draw
    return trials


def _effects(
    subject: interp.Subject, method: str, trials: Sequence[Trial], sets: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    measured = effects(subject, [[], *(t.plan for t in trials)], sets)
    about = [
        (method, t.selection, t.fraction, t.k, t.seed, n) for n, t in enumerate(trials, start=1)
    ]
    return beside_before(
        measured,
        pd.DataFrame(about, columns=["method", "selected", "fraction", "k", "seed", "plan"]),
    )


def by_text(rows: Frame) -> pd.DataFrame:
    """For each text of each set the mean over its windows, and over the draws of a control, of each
    measure, before and after, and of its change: the fall of accuracy, similarity and exactness,
    the rise of the loss. Windows of one text are not independent; texts are."""
    values = [*MEASURES, *(f"{m}_before" for m in MEASURES), "activity"]
    means: Frame = rows.groupby([*KEYS, "source"], sort=False)[values].mean().reset_index()
    for measure in MEASURES:
        change = means[measure] - means[f"{measure}_before"]
        means[f"{measure}_change"] = change if measure == "loss" else -change
    return means


def summaries(tables: Tables) -> dict[str, pd.DataFrame]:
    """`effects`: one row for each method, selection, fraction, set and measure: the level `before`
    and after, and the change, as means over texts with Student's 95% intervals; how many `texts`
    there are, and the mean `activity` of the units."""
    found: list[dict[str, Any]] = []
    groups: Any = tables["texts"].groupby(KEYS, sort=False)
    for key, group in groups:
        for measure in MEASURES:
            level, change = student(group[measure]), student(group[f"{measure}_change"])
            row = dict(zip(KEYS, key, strict=True)) | {
                "measure": measure,
                "before": group[f"{measure}_before"].mean(),
            }
            row |= {"after": level.estimate, "after_low": level.low, "after_high": level.high}
            row |= {"estimate": change.estimate, "low": change.low, "high": change.high}
            found.append(row | {"texts": change.n, "activity": group["activity"].mean()})
    return {"effects": pd.DataFrame(found)}


def checks(preset: Preset) -> list[Check]:
    """All checks of a preset's methods."""
    return checks_of(tuple(preset.methods), HEADLINE)


EXPERIMENT = Experiment(
    name="localization_benchmarks.real",
    question=__doc__,
    presets=PRESETS,
    prepare=preparation,
    jobs=jobs,
    tables=("windows", "texts"),
    checks=checks,
    figures={name: partial(draw, headline=HEADLINE) for name, draw in figures.REAL.items()},
    summaries=summaries,
)

if __name__ == "__main__":
    # jobs are functions of a module that other processes can import, which __main__ is not
    from experiments.localization_benchmarks.real import EXPERIMENT as PROGRAM

    PROGRAM.command()
