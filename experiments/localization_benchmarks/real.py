"""DEL on a real model and text that it has memorized: do the neurons that a method finds serve this
text, or licence language in general?

`python -m experiments.localization_benchmarks.real --preset small --set
model=PATH/Qwen2.5-Coder-0.5B-Instruct --jobs 1` takes an hour of one processor, in bfloat16.

Units are scored on one half of the passages, against code and prose. They are judged on the other
half, on the same passages in other formats, on other licences, on licence language in other words,
on other memorized text and on unrelated code and prose.

The model continues no other licence exactly. So whether units serve a licence that they were not
scored on is asked of the studied ones themselves: units are scored on two of the four (one fold),
and judged on the exact passages of the other two.
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
from experiments.localization_benchmarks.checks_of_real import checks_of, over_texts
from experiments.localization_benchmarks.licence_texts import apart, study_windows
from interp.experiment.checks import Check, Tables
from interp.experiment.experiment import Experiment
from interp.experiment.jobs import Folder, Job, job
from interp.files import replaced, writable
from interp.localization import localize
from interp.localization.registry import find
from interp.memorization.evaluation import MEASURES, measure_under, with_unchanged
from interp.mitigation.controls import Selection, Trial

# Methods that see the memorized windows only: slimming learns masks for every window it sees, and
# those of the contrast would take twice as long again.
ALONE = ("slimming",)
# Fixed beforehand: the fraction that claims are about, as in Chang et al. 2024.
HEADLINE = 1e-3
# The sets that neurons are judged on, and the number of windows of each.
JUDGED = {
    "texts_test": 10,
    "other_format": 8,
    "nearly": 6,
    "half_known": 8,
    "paraphrased": 8,
    "memorized": 8,
    "rules": 4,
    "code": 8,
    "prose": 8,
}
# The sets that all controls are measured on. Units that are as active are measured on the other
# sets too, at the headline fraction.
CONTROLS_SEE = ("texts_test", "code", "prose")
# The sets that the units of a fold are judged on, and the number of windows of each: passages of
# its own licences that were not scored, exact passages of the other licences, unrelated text.
IN_FOLDS = {"fold: studied": 8, "fold: unstudied": 12, "fold: code": 4, "fold: prose": 4}
_FOLDS = 2
Frame = Any  # pandas' stubs lose the type of a frame that is indexed
KEYS = ["method", "selected", "fraction", "k", "data"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is run.

    Attributes:
        model: a hub id or folder of a model that has memorized licences.
        methods: options of each localization method, by name of the method.
        fractions: fractions of the neurons that are zeroed, HEADLINE among them.
        controlled: the fractions at which the controls are measured too.
        draws: number of draws of each random control.
        dtype: precision of the weights.
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
        fractions=(1e-4, HEADLINE, 1e-2),
        controlled=(HEADLINE,),
    ),
}


def preparation(preset: Preset) -> Iterator[Job]:
    """The job before all others; see `prepare_shared`.

    Raises:
        ValueError: a localization method or option that does not exist, with the nearest one.
    """
    for method, options in preset.methods.items():
        find(method, options)
    yield job(prepare_shared, preset, Folder("shared"))


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per method, after one for the windows."""
    yield job(windows, preset, Folder("shared"))
    for method in preset.methods:
        yield job(of_method, method, preset, seed, Folder("shared"))


def prepare_shared(preset: Preset, folder: Path) -> dict[str, pd.DataFrame]:
    """Measures and saves what all methods share: the windows, and how active each neuron is.
    Returns no tables."""
    subject = _subject(preset)
    _activity(subject, folder)
    return {}


def windows(preset: Preset, folder: Path) -> dict[str, pd.DataFrame]:
    """All windows of the study, without their tokens."""
    return {"windows": _windows(_subject(preset), folder).drop(columns=["tokens"])}


def of_method(method: str, preset: Preset, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """What zeroing the units of one method, and those of its controls, does to each text."""
    subject = _subject(preset)
    return {"texts": by_text(measure_ablations(subject, method, preset, seed, folder))}


def measure_ablations(
    subject: interp.Subject, method: str, preset: Preset, seed: int, folder: Path
) -> Frame:
    """Every ablation of one method, on the sets that it is judged on.

    Returns:
        The rows of `effects`, with each measure also before the ablation, the text that a window is
        of (`source`) and the mean `activity` of the units.
    """
    sets = sets_of(subject, folder)
    activity = _activity(subject, folder)
    against = None if method in ALONE else sets["contrast"]
    scores = localize(subject, sets["texts_score"], against, method, **preset.methods[method])
    trials = _trials(scores, activity, preset, seed)

    # Every trial costs a pass over the windows of a set. So controls are measured on the sets that
    # they are compared on, and only one control, at the headline fraction, on the others as well.
    judged_on = {name: spread_over_sources(sets[name], count) for name, count in JUDGED.items()}
    near = {name: part for name, part in judged_on.items() if name in CONTROLS_SEE}
    elsewhere = {name: part for name, part in judged_on.items() if name not in CONTROLS_SEE}
    top = [trial for trial in trials if trial.selection == "top"]
    controls = [trial for trial in trials if trial.selection != "top"]
    as_active = [
        trial for trial in controls if trial.selection == "as active" and trial.fraction == HEADLINE
    ]
    parts = [
        _effects(subject, method, top, judged_on),
        _effects(subject, method, controls, near),
        _effects(subject, method, as_active, elsewhere),
    ]
    measured = pd.concat(parts, ignore_index=True)
    whole = _described(measured, trials, activity, judged_on)
    folds = [
        _measure_fold(subject, method, preset, seed, number, sets, activity)
        for number in range(_FOLDS)
    ]
    return pd.concat([whole, *folds], ignore_index=True)


def _described(
    measured: Frame,
    trials: Sequence[Trial],
    activity: interp.UnitScores,
    judged_on: Mapping[str, pd.DataFrame],
) -> Frame:
    """Rows of `_effects` with the text of each window and the activity of the units."""
    # By the columns that both have: selection, fraction and seed.
    found = measured.merge(_activity_of(trials, activity))
    found["source"] = [
        f"{data}: {judged_on[data]['source'].iloc[number]}"
        for data, number in zip(found["data"], found["window"], strict=True)
    ]
    return found


def _measure_fold(
    subject: interp.Subject,
    method: str,
    preset: Preset,
    seed: int,
    number: int,
    sets: Mapping[str, Frame],
    activity: interp.UnitScores,
) -> Frame:
    """The rows of the units that are scored on the licences of one fold: under the top ones and
    under others that are as active, at the headline fraction."""
    score, judged = fold(sets, number)
    against = None if method in ALONE else sets["contrast"]
    scores = localize(subject, score, against, method, **preset.methods[method])
    selection = Selection(scores.top(HEADLINE), HEADLINE)
    draws = range(seed, seed + preset.draws)
    trials = [selection.trial("top"), *selection.as_active(activity, draws)]
    judged_on = {
        name: spread_over_sources(part, IN_FOLDS[name])
        for name, part in judged.items()
        if len(part)
    }
    return _described(_effects(subject, method, trials, judged_on), trials, activity, judged_on)


def fold(sets: Mapping[str, Frame], number: int) -> tuple[Frame, dict[str, Frame]]:
    """The windows that the units of a fold are scored on, and those that they are judged on by set.

    The fold has every second studied licence. The passages of the others are those of both halves
    that share no wording with what is scored.

    Args:
        sets: the windows of the study.
        number: number of the fold.
    """
    score = sets["texts_score"]
    test = sets["texts_test"]
    licences = list(dict.fromkeys([*score["source"], *test["source"]]))
    own = licences[number::_FOLDS]
    scored = score[score["source"].isin(own)].reset_index(drop=True)
    every = pd.concat([score, test], ignore_index=True)
    others = every[~every["source"].isin(own)].reset_index(drop=True)
    judged = {
        "fold: studied": test[test["source"].isin(own)].reset_index(drop=True),
        "fold: unstudied": apart(others, scored),
        "fold: code": sets["code"],
        "fold: prose": sets["prose"],
    }
    return scored, judged


def _activity_of(trials: Sequence[Trial], activity: interp.UnitScores) -> pd.DataFrame:
    """The mean activity of the units of each trial."""
    rows: list[tuple[str, float, int, float]] = []
    for trial in trials:
        total = sum(activity[site][unit] for site, unit in trial.units)
        rows.append((trial.selection, trial.fraction, trial.seed, total / trial.k))
    return pd.DataFrame(rows, columns=["selected", "fraction", "seed", "activity"])


def _subject(preset: Preset) -> interp.Subject:
    return interp.load(preset.model, dtype=preset.dtype)


def _shared(subject: interp.Subject, folder: Path, name: str) -> Path:
    """The file of something that all methods share; each model has files of its own."""
    return writable(folder / subject.fingerprint) / f"{name}.parquet"


def _windows(subject: interp.Subject, folder: Path) -> Frame:
    """Every set of windows. They are searched for once and saved; later calls read them."""
    file = _shared(subject, folder, "windows")
    if not file.exists():
        found = pd.concat(study_windows(subject).values(), ignore_index=True)
        with replaced(file) as temporary:
            found.to_parquet(temporary)
    return pd.read_parquet(file)


def sets_of(subject: interp.Subject, folder: Path) -> dict[str, Frame]:
    """The sets of windows by their names. They are searched for once and saved in a folder."""
    groups = _windows(subject, folder).groupby("set", sort=False)
    return {str(name): part.reset_index(drop=True) for name, part in groups}


def _activity(subject: interp.Subject, folder: Path) -> interp.UnitScores:
    """How active each neuron is on the passages and their contrast. It is measured once and saved;
    later calls read it."""
    file = _shared(subject, folder, "activity")
    if not file.exists():
        sets = sets_of(subject, folder)
        seen = pd.concat([sets["texts_score"], sets["contrast"]])
        scores = localize(subject, seen, method="activation")
        with replaced(file) as temporary:
            scores.to_frame().to_parquet(temporary)
    # Grouping sorts sites by name ("blocks.10" before "blocks.2"): they are put back into the order
    # of the model.
    table: Frame = pd.read_parquet(file)
    by_site: dict[interp.Site, Any] = {}
    for name, part in table.groupby("site"):
        by_site[interp.Site.parse(str(name))] = part.sort_values("unit")["score"].to_numpy()
    in_order = sorted(by_site, key=lambda site: site.order)
    return interp.UnitScores({site: by_site[site] for site in in_order}, "activity")


def spread_over_sources(part: Frame, count: int) -> pd.DataFrame:
    """At most `count` windows, in turn from each source."""
    # The first window of every source, then the second of every source, and so on.
    turn = part.groupby("source").cumcount()
    in_turn = turn.sort_values(kind="stable").index
    return part.loc[in_turn[:count]].reset_index(drop=True)


def _trials(
    scores: interp.UnitScores, activity: interp.UnitScores, preset: Preset, seed: int
) -> list[Trial]:
    """The top units at every fraction and, at some, the controls: the lowest units, random ones in
    each block, and others that are as active."""
    draws = range(seed, seed + preset.draws)
    trials: list[Trial] = []
    for fraction in preset.fractions:
        selection = Selection(scores.top(fraction), fraction)
        trials.append(selection.trial("top"))
        if fraction in preset.controlled:
            trials.append(selection.lowest(scores))
            random = selection.random(draws)
            as_active = selection.as_active(activity, draws)
            for pair in zip(random, as_active, strict=True):
                trials += pair
    return trials


def _effects(
    subject: interp.Subject, method: str, trials: Sequence[Trial], sets: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """The rows of `effects` under each trial, with the trial's columns and each measure before."""
    found = measure_under(subject, [[], *(trial.plan for trial in trials)], sets)
    # Plan 0 is the model without a plan.
    about = pd.DataFrame(
        [
            (method, trial.selection, trial.fraction, trial.k, trial.seed, plan)
            for plan, trial in enumerate(trials, start=1)
        ],
        columns=["method", "selected", "fraction", "k", "seed", "plan"],
    )
    return with_unchanged(found, about)


def by_text(rows: Frame) -> pd.DataFrame:
    """The means for each text of each set, over its windows and over the draws of a control.

    Windows of one text are not independent; texts are.

    Returns:
        One row per text: each measure, before and after, and its change: the fall of accuracy,
        similarity and exactness, the rise of the loss (nats per token).
    """
    before = [f"{measure}_before" for measure in MEASURES]
    groups = rows.groupby([*KEYS, "source"], sort=False)
    means: Frame = groups[[*MEASURES, *before, "activity"]].mean().reset_index()
    for measure in MEASURES:
        change = means[measure] - means[f"{measure}_before"]
        means[f"{measure}_change"] = change if measure == "loss" else -change
    return means


def summaries(tables: Tables) -> dict[str, pd.DataFrame]:
    """`effects`: one row for each method, selection, fraction, set and measure: the level `before`
    and `after`, and the change (`estimate`), as means over texts with their 95% intervals; how many
    `texts` there are, and the mean `activity` of the units."""
    found: list[dict[str, Any]] = []
    groups: Any = tables["texts"].groupby(KEYS, sort=False)
    for key, group in groups:
        for measure in MEASURES:
            bounded = measure != "loss"
            level = over_texts(group[measure], (0, 1) if bounded else None)
            change = over_texts(group[f"{measure}_change"], (-1, 1) if bounded else None)
            row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
            row |= {"measure": measure, "before": group[f"{measure}_before"].mean()}
            row |= {"after": level.estimate, "after_low": level.low, "after_high": level.high}
            row |= {"estimate": change.estimate, "low": change.low, "high": change.high}
            row |= {"texts": change.n, "activity": group["activity"].mean()}
            found.append(row)
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
    # Jobs are functions of a module that other processes can import, which __main__ is not.
    from experiments.localization_benchmarks.real import EXPERIMENT as PROGRAM

    PROGRAM.command()
