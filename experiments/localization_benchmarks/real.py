"""DEL on a real model and text that it knows by heart: are the neurons that a method finds those of this text, or of licence language?

python -m experiments.localization_benchmarks.real PATH/Qwen2.5-Coder-0.5B-Instruct --out out/localization_real

Units are scored on one half of the passages, against code and prose, and judged on the other half, on the same passages in other formats,
on other licences, on licence language in other words, on other memorized text and on unrelated code and prose. An interrupted run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import typer

import interp
from experiments.localization_benchmarks import figures
from experiments.localization_benchmarks.licence_texts import study_windows
from interp.experiment import Claim, Results, judged
from interp.files import replaced, writable
from interp.localization import localize
from interp.localization.benchmarks import as_active
from interp.memorization.effects import MEASURES, effects
from interp.progress import track
from interp.stats import Interval, clustered, clustered_difference

METHODS: dict[str, dict[str, Any]] = {
    "activation": {},
    "z_score": {},
    "unitmem": {},
    "absolute_gradient_x_activation": {},
    "attribution_patching": {},
    "slimming": {"pressure": 0.1, "steps": 40, "lr": 0.03},
}
_ALONE = ("slimming",)  # learns masks for the memorized windows only: twice as many more for the contrast would take an hour
FRACTIONS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
CONTROLLED = (1e-4, 1e-3, 1e-2)  # the fractions at which the controls are measured too
HEADLINE = 1e-3  # fixed beforehand: the share that the claims are about, as in Chang et al. 2024
SEEDS = 5
JUDGED = {  # sets, and how many windows of each
    "texts_test": 10, "other_format": 8, "unstudied": 6, "half_known": 8, "paraphrased": 8,
    "memorized": 8, "rules": 4, "code": 8, "prose": 8,
}  # fmt: skip
CONTROLS_SEE = ("texts_test", "code", "prose")
Rows = Any  # pandas' stubs lose the type of a frame that is indexed


@dataclass(frozen=True)
class Trial:
    """One ablation: what was `selected` (top, lowest, random in each block, or random and as active), by which method and how many."""

    method: str
    selected: str
    fraction: float
    k: int
    seed: int
    units: interp.Units


def run(subject: interp.Subject, out: Path) -> Results:
    """The whole study; what is in `out/parts` already is not measured again."""
    windows = _kept(out, "windows", lambda: pd.concat(study_windows(subject).values(), ignore_index=True))
    sets: dict[str, Rows] = {str(name): part.reset_index(drop=True) for name, part in windows.groupby("set", sort=False)}
    score, contrast = sets["texts_score"], sets["contrast"]
    judged_on = {name: _spread(sets[name], count) for name, count in JUDGED.items()}
    activity = localize(subject, pd.concat([score, contrast]), method="activation", size=16)
    parts = [
        _kept(out, name, lambda name=name: _measured(subject, name, score, contrast, judged_on, activity))
        for name in track(list(METHODS), "methods")
    ]
    rows = pd.concat([part.assign(source=_sources(part, judged_on)) for part in parts], ignore_index=True)
    table = summary(rows)
    shown = windows.drop(columns=["tokens"])
    return Results(claims(rows), {"windows": shown, "effects": table}, figures.real(table, HEADLINE))


def _kept(out: Path, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table from `out/parts`, or made now, with the CPU seconds that it took beside it."""
    file = writable(out / "parts") / f"{name}.parquet"
    if not file.exists():
        began = time.process_time()
        made = make()
        with replaced(file) as temporary:
            made.to_parquet(temporary)
        with replaced(file.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps({"cpu_seconds": round(time.process_time() - began)}))
    return pd.read_parquet(file)


def _spread(part: Rows, count: int) -> pd.DataFrame:
    """At most `count` windows, in turn from each source."""
    turn = part.groupby("source").cumcount()
    return part.loc[turn.sort_values(kind="stable").index[:count]].reset_index(drop=True)


def _measured(
    subject: interp.Subject, name: str, score: Rows, contrast: Rows, sets: Mapping[str, pd.DataFrame], activity: interp.UnitScores
) -> pd.DataFrame:
    """Every ablation of one method on every set that it is judged on: the rows of `effects`, before (`selected` "none") and after."""
    scores = localize(subject, score, None if name in _ALONE else contrast, name, **METHODS[name])
    trials = _trials(name, scores, activity)
    seen = {True: [t for t in trials if t.selected == "top"], False: [t for t in trials if t.selected != "top"]}
    rows: list[pd.DataFrame] = []
    for whole, some in seen.items():
        measured = effects(subject, [[], *(interp.Zero(t.units) for t in some)], sets if whole else {n: sets[n] for n in CONTROLS_SEE})
        about = [{k: v for k, v in asdict(t).items() if k != "units"} | {"plan": n} for n, t in enumerate(some, start=1)]
        unchanged: Rows = measured[measured["plan"] == 0]
        before = unchanged.drop(columns="plan").rename(columns={m: f"{m}_before" for m in MEASURES})
        rows.append(pd.DataFrame(about).merge(measured, on="plan").merge(before, on=["data", "window"]).drop(columns="plan"))
    return pd.concat(rows, ignore_index=True)


def _trials(name: str, scores: interp.UnitScores, activity: interp.UnitScores) -> list[Trial]:
    trials: list[Trial] = []
    for share in FRACTIONS:
        top = scores.top(share)
        trials.append(Trial(name, "top", share, len(top), 0, top))
        if share in CONTROLLED:
            trials.append(Trial(name, "lowest", share, len(top), 0, scores.lowest(share)))
            for seed in range(SEEDS):
                trials.append(Trial(name, "random", share, len(top), seed, top.matched(seed)))
                trials.append(Trial(name, "as active", share, len(top), seed, as_active(top, activity, seed)))
    return trials


def _sources(part: pd.DataFrame, sets: Mapping[str, pd.DataFrame]) -> list[str]:
    """The text that each row's window comes from: windows of one text are not independent."""
    return [f"{data}: {sets[data]['source'].iloc[window]}" for data, window in zip(part["data"], part["window"], strict=True)]


def changes(rows: Rows) -> pd.DataFrame:
    """For each window the `fall` of accuracy, similarity and exactness and the `rise` of the loss, mean over the draws of a control."""
    keys = ["method", "selected", "fraction", "k", "data", "window", "source"]
    values = [*MEASURES, *(f"{m}_before" for m in MEASURES)]
    means: Rows = rows.groupby(keys, sort=False)[values].mean().reset_index()
    for measure in MEASURES:
        change = means[measure] - means[f"{measure}_before"]
        means[f"{measure}_change"] = change if measure == "loss" else -change
    return means


def summary(rows: Rows) -> pd.DataFrame:
    """One row for each method, selection, fraction, set and measure: the level `before` and after, with 95% intervals over texts (clustered
    bootstrap), and the change (falls of accuracy, similarity and exactness, rise of loss in nats a token)."""
    found: list[dict[str, Any]] = []
    groups = changes(rows).groupby(["method", "selected", "fraction", "k", "data"], sort=False)
    for key, group in groups:
        for measure in MEASURES:
            level, change = (clustered(group[column], group["source"]) for column in (measure, f"{measure}_change"))
            row = dict(zip(["method", "selected", "fraction", "k", "data"], key, strict=True)) | {"measure": measure}
            row |= {"before": group[f"{measure}_before"].mean(), "after": level.estimate, "after_low": level.low, "after_high": level.high}
            found.append(
                row | {"estimate": change.estimate, "low": change.low, "high": change.high, "texts": change.n, "windows": len(group)}
            )
    return pd.DataFrame(found)


LICENCE_LANGUAGE = ("half_known", "unstudied", "paraphrased")
UNRELATED = ("code", "prose")


def claims(rows: Rows) -> list[Claim]:
    """What the question comes to, method by method, at the headline share; one model and one corpus, intervals over texts."""
    every = changes(rows)
    at = every[every["fraction"] == HEADLINE]
    found: list[Claim] = []
    for method, part in at.groupby("method", sort=False):
        found += _claims_of(str(method), part)
    return found


def _claims_of(method: str, part: Rows) -> list[Claim]:
    def rows(data: Sequence[str], selected: str = "top") -> Rows:
        return part[part["data"].isin(data) & (part["selected"] == selected)]

    k, own = int(part["k"].iloc[0]), rows(["texts_test"])
    fall = {name: clustered(rows(["texts_test"], name)["accuracy_change"], rows(["texts_test"], name)["source"]) for name in _SELECTED}
    controls = ", ".join(f"{name} {interval:.3f}" for name, interval in fall.items() if name != "top")
    loss = {name: clustered(rows(sets)["loss_change"], rows(sets)["source"]) for name, sets in _GROUPS.items()}
    losses = ", ".join(f"{name} {interval:.3f}" for name, interval in loss.items())
    made = [
        ("R1", f"{k} neurons by {method} cost passages that they were not scored on more accuracy than random ones of the same blocks",
         _apart(own, rows(["texts_test"], "random"), "accuracy_change"), controls, "figures/controls.png"),
        ("R2", f"and more than {k} random neurons as active", _apart(own, rows(["texts_test"], "as active"), "accuracy_change"), controls,
         "figures/controls.png"),
        ("R3", f"neurons of licence language: by {method} the loss of other licence language rises more than that of code and prose",
         _between(rows(LICENCE_LANGUAGE), rows(UNRELATED)), losses, "figures/loss.png"),
        ("R4", f"neurons of this text: by {method} its loss rises more than that of other licence language",
         _between(own, rows(LICENCE_LANGUAGE)), losses, "figures/loss.png"),
        ("R5", f"no neurons of memory as such: by {method} the loss of this text rises more than that of other memorized text",
         _between(own, rows(["memorized", "rules"])), losses, "figures/loss.png"),
    ]  # fmt: skip
    return [
        Claim(f"{name} {method}", statement, "chosen", None, interval.estimate, interval.low, interval.high, control, 1,
              judged(interval, lambda v: v > 0, lambda v: v < 0), evidence)
        for name, statement, interval, control, evidence in made
    ]  # fmt: skip


_SELECTED = ("top", "random", "as active", "lowest")
_GROUPS = {
    "this text": ["texts_test"], "other format": ["other_format"], "licence language": LICENCE_LANGUAGE,
    "other memorized text": ["memorized", "rules"], "code and prose": UNRELATED,
}  # fmt: skip


def _apart(one: Rows, other: Rows, value: str) -> Interval:
    """The mean difference over the same windows, with its interval over texts."""
    pairs = one.set_index(["data", "window"])[[value, "source"]].join(other.set_index(["data", "window"])[value].rename("other"))
    return clustered(pairs[value] - pairs["other"], pairs["source"])


def _between(one: Rows, other: Rows) -> Interval:
    """The difference of two means of the rise of the loss, over different windows, with its interval over texts of both."""
    return clustered_difference(one["loss_change"], one["source"], other["loss_change"], other["source"])


def main(model: str, out: Path = Path("out/localization_real")) -> None:
    """DEL on a pretrained model that knows licences by heart, in bfloat16 and within an hour of one processor.

    Example: `python -m experiments.localization_benchmarks.real PATH/Qwen2.5-Coder-0.5B-Instruct --out out/localization_real`
    """
    subject = interp.load(model, dtype="bfloat16")
    results = run(subject, out)
    about = {"model": subject.name, "fingerprint": subject.fingerprint, "methods": METHODS, "fractions": FRACTIONS, "headline": HEADLINE}
    spent = {file.stem: json.loads(file.read_text())["cpu_seconds"] for file in sorted((out / "parts").glob("*.json"))}
    results.save(out, about | {"cpu_seconds": spent})


if __name__ == "__main__":
    typer.run(main)
