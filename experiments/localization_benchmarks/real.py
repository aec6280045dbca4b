"""DEL on a real model and text that it knows by heart: are the neurons that a method finds those of this text, or of licence language?

python -m experiments.localization_benchmarks.real PATH/Qwen2.5-Coder-0.5B-Instruct --out out/localization_real

Units are scored on one half of the passages, against code and prose, and judged on the other half, on the same passages in other formats,
on other licences, on licence language in other words, on other memorized text and on unrelated code and prose. An interrupted run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import typer

import interp
from experiments.localization_benchmarks import figures
from experiments.localization_benchmarks.licence_texts import study_windows
from interp.experiment.claims import Claim, judged
from interp.experiment.experiment import Results
from interp.files import replaced, writable
from interp.localization import localize
from interp.memorization.evaluation import MEASURES, beside_before, effects
from interp.mitigation.controls import Selection, Trial
from interp.progress import track
from interp.reporting.stats import Interval, student, welch

# Slimming's options were set by what an hour allows: a mask falls from 1 to 0 in 25 of its steps unless the loss holds it.
METHODS: dict[str, dict[str, Any]] = {
    "activation": {},
    "z_score": {},
    "unitmem": {},
    "absolute_gradient_x_activation": {},
    "attribution_patching": {},
    "slimming": {"pressure": 0.1, "steps": 30, "lr": 0.04},
}
ALONE = ("slimming",)  # learns masks for the memorized windows only: twice as many more for the contrast would take too long
FRACTIONS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
CONTROLLED = (1e-4, 1e-3, 1e-2)  # the fractions at which the controls are measured too
HEADLINE = 1e-3  # fixed beforehand: the share that the claims are about, as in Chang et al. 2024
SEEDS = 5
JUDGED = {  # sets, and how many windows of each
    "texts_test": 10, "other_format": 8, "unstudied": 6, "half_known": 8, "paraphrased": 8,
    "memorized": 8, "rules": 4, "code": 8, "prose": 8,
}  # fmt: skip
CONTROLS_SEE = ("texts_test", "code", "prose")  # all controls; those as active see the other sets too, at the headline share
Frame = Any  # pandas' stubs lose the type of a frame that is indexed
KEYS = ["method", "selected", "fraction", "k", "data"]


@dataclass(frozen=True, eq=False)
class Parts:
    """What was measured already, in a folder. A part that was made of something else is refused, not reused."""

    folder: Path
    model: str

    def kept(self, name: str, made_of: Any, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table from the folder, or made now, with the CPU seconds that it took beside it."""
        file, about = self.folder / f"{name}.parquet", self.folder / f"{name}.json"
        key = json.loads(json.dumps({"model": self.model, "made_of": made_of}))
        if file.exists():
            found = json.loads(about.read_text())
            if {k: found.get(k) for k in key} != key:
                raise ValueError(
                    f"{file} was made of {found.get('made_of')} on model {found.get('model')}: give another --out, or remove it"
                )
            return pd.read_parquet(file)
        began = time.process_time()
        made = make()
        with replaced(about) as temporary:
            temporary.write_text(json.dumps(key | {"cpu_seconds": round(time.process_time() - began)}))
        with replaced(file) as temporary:
            made.to_parquet(temporary)
        return made

    def spent(self) -> dict[str, int]:
        """CPU seconds of every part."""
        return {file.stem: json.loads(file.read_text())["cpu_seconds"] for file in sorted(self.folder.glob("*.json"))}


def run(subject: interp.Subject, parts: Parts) -> Results:
    """The whole study; what is among the parts already is not measured again."""
    windows = parts.kept("windows", "study_windows", lambda: pd.concat(study_windows(subject).values(), ignore_index=True))
    sets: dict[str, Frame] = {str(name): part.reset_index(drop=True) for name, part in windows.groupby("set", sort=False)}
    score, contrast = sets["texts_score"], sets["contrast"]
    judged_on = {name: _spread(sets[name], count) for name, count in JUDGED.items()}
    activity = _scores(parts, "activity", {}, lambda: localize(subject, pd.concat([score, contrast]), method="activation"))
    rows: list[pd.DataFrame] = []
    for name, options in track(list(METHODS.items()), "methods"):
        against = None if name in ALONE else contrast
        scores = _scores(parts, name, options, lambda n=name, o=options, a=against: localize(subject, score, a, n, **o))
        rows += _measured(subject, parts, name, _trials(scores, activity), judged_on, activity)
    every = pd.concat(rows, ignore_index=True)
    every["source"] = [f"{data}: {judged_on[data]['source'].iloc[n]}" for data, n in zip(every["data"], every["window"], strict=True)]
    table = summary(every)
    tables = {"windows": windows.drop(columns=["tokens"]), "effects": table}
    return Results(claims(every), tables, figures.real(table, HEADLINE))


def _scores(parts: Parts, name: str, options: Mapping[str, Any], make: Callable[[], interp.UnitScores]) -> interp.UnitScores:
    table = parts.kept(f"{name}_scores", options, lambda: make().to_frame())
    rows = {interp.Site.parse(str(site)): part.sort_values("unit")["score"].to_numpy() for site, part in table.groupby("site")}
    return interp.UnitScores(dict(sorted(rows.items(), key=lambda item: item[0].order)), name)


def _spread(part: Frame, count: int) -> pd.DataFrame:
    """At most `count` windows, in turn from each source."""
    turn = part.groupby("source").cumcount()
    return part.loc[turn.sort_values(kind="stable").index[:count]].reset_index(drop=True)


def _trials(scores: interp.UnitScores, activity: interp.UnitScores) -> list[Trial]:
    """The top units of every fraction, and the controls of some: the lowest, random ones in each block, and others as active."""
    trials: list[Trial] = []
    for share in FRACTIONS:
        selection = Selection(scores.top(share), share)
        trials.append(selection.trial("top"))
        if share in CONTROLLED:
            trials.append(selection.lowest(scores))
            random = selection.random(range(SEEDS))
            active = selection.as_active(activity, range(SEEDS))
            for draw in zip(random, active, strict=True):
                trials += draw
    return trials


def _measured(
    subject: interp.Subject,
    parts: Parts,
    name: str,
    trials: Sequence[Trial],
    sets: Mapping[str, pd.DataFrame],
    activity: interp.UnitScores,
) -> list[pd.DataFrame]:
    """Every ablation of one method on the sets that it is judged on: the rows of `effects`, each measure also before, and how active
    the units are."""
    top = [t for t in trials if t.selection == "top"]
    controls = [t for t in trials if t.selection != "top"]
    matched = [t for t in controls if t.selection == "as active" and t.fraction == HEADLINE]
    near, elsewhere = ({n: s for n, s in sets.items() if (n in CONTROLS_SEE) is close} for close in (True, False))
    work = {
        name: lambda: pd.concat([_effects(subject, name, top, sets), _effects(subject, name, controls, near)], ignore_index=True),
        f"{name}_elsewhere": lambda: _effects(subject, name, matched, elsewhere),
    }
    made_of = [METHODS[name], FRACTIONS, CONTROLLED, SEEDS, JUDGED]
    found = pd.concat([parts.kept(part, made_of, make) for part, make in work.items()], ignore_index=True)
    active = [(t.selection, t.fraction, t.seed, sum(activity[s][u] for s, u in t.units) / t.k) for t in trials]
    return [found.merge(pd.DataFrame(active, columns=["selected", "fraction", "seed", "activity"]))]


def _effects(subject: interp.Subject, method: str, trials: Sequence[Trial], sets: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    measured = effects(subject, [[], *(t.plan for t in trials)], sets)
    about = [(method, t.selection, t.fraction, t.k, t.seed, n) for n, t in enumerate(trials, start=1)]
    return beside_before(measured, pd.DataFrame(about, columns=["method", "selected", "fraction", "k", "seed", "plan"]))


def changes(rows: Frame) -> pd.DataFrame:
    """For each text of each set the mean over its windows, and over the draws of a control, of each measure, before and after, and of its
    change: the fall of accuracy, similarity and exactness, the rise of the loss. Windows of one text are not independent; texts are."""
    values = [*MEASURES, *(f"{m}_before" for m in MEASURES), "activity"]
    means: Frame = rows.groupby([*KEYS, "source"], sort=False)[values].mean().reset_index()
    for measure in MEASURES:
        change = means[measure] - means[f"{measure}_before"]
        means[f"{measure}_change"] = change if measure == "loss" else -change
    return means


def summary(rows: Frame) -> pd.DataFrame:
    """One row for each method, selection, fraction, set and measure: the level `before` and after, and the change, as means over texts with
    Student's 95% intervals; how many `texts` there are, and the mean `activity` of the units."""
    found: list[dict[str, Any]] = []
    groups = changes(rows).groupby(KEYS, sort=False)
    for key, group in groups:
        for measure in MEASURES:
            level, change = student(group[measure]), student(group[f"{measure}_change"])
            row = dict(zip(KEYS, key, strict=True)) | {"measure": measure, "before": group[f"{measure}_before"].mean()}
            row |= {"after": level.estimate, "after_low": level.low, "after_high": level.high}
            row |= {"estimate": change.estimate, "low": change.low, "high": change.high}
            found.append(row | {"texts": change.n, "activity": group["activity"].mean()})
    return pd.DataFrame(found)


def claims(rows: Frame) -> list[Claim]:
    """What the question comes to, method by method, at the headline share; one model and one corpus, intervals over texts.

    Differences between sets are differences of excess: what the top units do to the loss beyond what units as active do.
    """
    every = changes(rows)
    at = every[every["fraction"] == HEADLINE]
    return [claim for method, part in at.groupby("method", sort=False) for claim in _claims_of(str(method), part)]


def _claims_of(method: str, part: Frame) -> list[Claim]:
    by = {name: own.set_index(["data", "source"]) for name, own in part.groupby("selected")}
    own = {name: f.loc["texts_test"] for name, f in by.items()}
    falls = ", ".join(f"{name} {student(f['accuracy_change']):.3f}" for name, f in own.items() if name != "top")
    active = own["as active"]["activity"].mean() / own["top"]["activity"].mean()
    excess = by["top"]["loss_change"] - by["as active"]["loss_change"]
    groups = {name: pd.concat([excess.loc[[data]] for data in sets]) for name, sets in _GROUPS.items()}
    losses = ", ".join(f"{name} {student(values):.3f}" for name, values in groups.items())
    k, where = int(part["k"].iloc[0]), "figures/question.png"
    found = [
        ("R1", f"{k} neurons by {method} cost passages that they were not scored on more accuracy than random ones of the same blocks",
         student(own["top"]["accuracy_change"] - own["random"]["accuracy_change"]), falls, "figures/controls.png"),
        ("R2", f"{k} neurons by {method} cost them more accuracy than random ones that are as active",
         student(own["top"]["accuracy_change"] - own["as active"]["accuracy_change"]),
         f"{falls}; the latter are {active:.2f} times as active", "figures/controls.png"),
        ("R3", f"neurons by {method} are of licence language: in other words it loses more than code and prose",
         welch(groups["paraphrased"], groups["code and prose"]), losses, where),
        ("R4", f"neurons by {method} are of known licences, whichever: those that were not studied lose more than code and prose",
         welch(groups["unstudied"], groups["code and prose"]), losses, where),
        ("R5", f"neurons by {method} are of these texts: they lose more than known licences that were not studied",
         welch(groups["this text"], groups["unstudied"]), losses, where),
        ("R6", f"neurons by {method} are of licences, not of memory as such: these texts lose more than other memorized text",
         welch(groups["this text"], groups["other memorized"]), losses, where),
    ]  # fmt: skip
    return [_claim(f"{name} {method}", *rest) for name, *rest in found]


_GROUPS = {
    "this text": ["texts_test"], "other format": ["other_format"], "unstudied": ["unstudied"], "half known": ["half_known"],
    "paraphrased": ["paraphrased"], "other memorized": ["memorized", "rules"], "code and prose": ["code", "prose"],
}  # fmt: skip


def _claim(name: str, statement: str, interval: Interval, control: str, evidence: str) -> Claim:
    verdict = judged(interval, lambda v: v > 0, lambda v: v < 0)
    ours = interval.estimate, interval.low, interval.high
    return Claim(name, f"{statement} ({interval.n} texts)", "chosen", None, *ours, control, 1, verdict, evidence)


def main(model: str, out: Path = Path("out/localization_real")) -> None:
    """DEL on a pretrained model that knows licences by heart, in bfloat16 and within an hour of one processor.

    Example: `python -m experiments.localization_benchmarks.real PATH/Qwen2.5-Coder-0.5B-Instruct --out out/localization_real`
    """
    subject = interp.load(model, dtype="bfloat16")
    parts = Parts(writable(out / "parts"), subject.fingerprint)
    results = run(subject, parts)
    about = {"model": subject.name, "fingerprint": subject.fingerprint, "methods": METHODS, "fractions": FRACTIONS, "headline": HEADLINE}
    results.save(out, about | {"cpu_seconds": parts.spent()})


if __name__ == "__main__":
    typer.run(main)
