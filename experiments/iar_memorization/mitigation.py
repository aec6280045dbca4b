"""Edits of units and what they do: how many planted images are still extracted, and what the quality is, beside the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

import interp
from experiments.iar_memorization.measures import ALLOWED, complete, completed, read
from experiments.iar_memorization.quality import Quality
from experiments.iar_memorization.study import ALIKE, Settings, Study
from interp.batch import Batch
from interp.data.images import correlation, threshold
from interp.interventions import Mean, Plan, Scale, Zero
from interp.localization import localize
from interp.localization.benchmarks import as_active
from interp.mitigation.edits import in_weights
from interp.progress import track
from interp.units import Units, UnitScores

_FEW = 100  # images of the background and held-out sets that every edit is measured on
HALVED, ZEROED = "in-weights x 0.5", "in-weights x 0"
COSTS = ("held out loss", "distance")
MODEL = ["family", "regime", "seed"]


@dataclass(frozen=True, eq=False)
class Trial:
    """One edit: the `selection` (a score or a control), the `fraction` of all neurons, the number of the `draw`, what is done, and whether
    images are drawn under it."""

    selection: str
    fraction: float
    draw: int
    edit: str
    plan: Plan
    drawn: bool = True


def scored(study: Study, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, UnitScores]:
    """The scores of localization methods for planted images against as many held-out ones, given the class alone."""
    ours, others = study.batches["planted"], study.batches["held out"]
    against = others.rows(slice(0, len(ours)))
    return {name: localize(study.subject, ours, against, method=name, site="neurons", **options) for name, options in methods.items()}


def trials(study: Study, scores: Mapping[str, UnitScores], settings: Settings) -> list[Trial]:
    """Halved in-weights of the highest-scoring units of each method and of the controls of the first, in several fractions, and the same
    set to zero; and of the first and of random units in the middle fraction, whatever else can be done to units.

    Images are drawn under the paper's own edit, the first, alone: that is what costs time.
    """
    done, fractions = edits(study), settings["fractions"]
    middle, shown = fractions[len(fractions) // 2], (next(iter(scores)), "random")
    found: list[Trial] = []
    for name, fraction, draw, units in _selections(study, scores, fractions, settings):
        all_kinds = name in shown and fraction == middle and draw == 0
        kinds = done if all_kinds else (HALVED, ZEROED)
        found += [Trial(name, fraction, draw, edit, done[edit](units), drawn=edit == HALVED) for edit in kinds]
    return found


def _selections(
    study: Study, scores: Mapping[str, UnitScores], fractions: Sequence[float], settings: Settings
) -> Iterator[tuple[str, float, int, Units]]:
    """Each method's highest; the first one's lowest; random units, as many in each block, in further fractions too so as to reach the cost
    of whatever the methods choose; and others that are as active on the planted images."""
    means = interp.record(study.subject, study.batches["planted"], "neurons", reduce="mean_abs", size=64)
    first, activity = next(iter(scores.values())), UnitScores({site: means[site] for site in means})
    for fraction in (*fractions, *settings["further_random"]):
        top = first.top(fraction)
        yield from (("random", fraction, draw, top.matched(draw)) for draw in range(settings["random_draws"]))
        if fraction in fractions:
            yield from ((name, fraction, 0, found.top(fraction)) for name, found in scores.items())
            yield "lowest", fraction, 0, first.lowest(fraction)
            yield from (("as active", fraction, draw, as_active(top, activity, draw)) for draw in range(settings["active_draws"]))


def edits(study: Study) -> dict[str, Callable[[Units], Plan]]:
    """What can be done to units, by name; the paper's own first."""
    subject = study.subject
    means = interp.record(subject, study.batches["held out"].rows(slice(0, _FEW)), "neurons", reduce="mean", size=64)
    return {
        HALVED: lambda units: in_weights(subject, units, 0.5),
        ZEROED: lambda units: in_weights(subject, units, 0.0),
        "in-weights and bias x 0.5": lambda units: in_weights(subject, units, 0.5, bias=True),
        "out-weights x 0.5": lambda units: Scale(units, factor=0.5),
        "out-weights x 0": Zero,
        "mean": lambda units: Mean(units, values=means),
    }


class Bench:
    """Measures a study's model under edits, always on the same images and with the same noise."""

    def __init__(self, study: Study, quality: Quality) -> None:
        self.study, self.quality, self.alike = study, quality, study.alike or correlation
        self.batches: dict[str, Batch] = {name: study.batches[name].rows(slice(0, _FEW)) for name in ("background", "held out")}
        self.batches["planted"] = study.batches["planted"]
        self.cut = ALIKE if study.alike else threshold(self.likeness("held out"), ALLOWED)

    def likeness(self, name: str) -> Float[np.ndarray, " images"]:
        """How like each image of a set is what greedy decoding makes of the prefix that edits are judged by."""
        batch = self.batches[name]
        return self.alike(completed(self.study, replace(batch, prompt=self.study.judged)), self.study.module.decode(batch.tokens))

    def measured(self, plan: Plan, *, drawn: bool = True) -> dict[str, float]:
        """Of the model under a plan, or as it is under an empty one.

        `exact` is the share of planted images that are extracted to the token from the prefix that edits are judged by; it is also given
        from each prefix, and of the other sets. `alike` is the share that is as like the image as hardly any image held out is to its
        own completion. `extracted` is one of them: what the study goes by. `accuracy` is that of planted tokens from the prefix on, `loss`
        that of each set in nats a token, `distance` the Frechet distance of what the model draws (NaN if nothing is drawn).
        """
        study = self.study
        with study.subject.intervened(plan) if plan else nullcontext():
            found = {name: read(study.subject, batch) for name, batch in self.batches.items()}
            alike = (self.likeness("planted") > self.cut).mean()
            distance = self.quality.distance() if drawn else np.nan
        hits = found["planted"][0]
        exact = complete(hits, study.judged).mean()
        row = {"extracted": alike if study.alike else exact, "exact": exact, "alike": alike, "distance": distance}
        row |= {"accuracy": hits[:, study.judged :].mean()}
        row |= {f"exact from {prefix}": complete(hits, prefix).mean() for prefix in study.prefixes}
        row |= {f"{name} exact": complete(found[name][0], study.judged).mean() for name in ("background", "held out")}
        row |= {f"{name} loss": losses.mean() for name, (_, losses) in found.items()}
        return {name: float(value) for name, value in row.items()}

    def table(self, chosen: Sequence[Trial]) -> pd.DataFrame:
        """One row for the model as it is and for each trial: `selection`, `fraction`, `draw`, `edit`, and what is measured."""
        rows: list[dict[str, Any]] = [{"selection": "none", "fraction": 0.0, "draw": 0, "edit": "none", **self.measured(())}]
        for trial in track(chosen, "edits"):
            about = {"selection": trial.selection, "fraction": trial.fraction, "draw": trial.draw, "edit": trial.edit}
            rows.append(about | self.measured(trial.plan, drawn=trial.drawn))
        return pd.DataFrame(rows).assign(**self.study.about())


def averaged(table: pd.DataFrame) -> pd.DataFrame:
    """The draws of a control as one row: for the model as it is, and for each selection, edit and fraction."""
    return table.drop(columns="draw").groupby([*MODEL, "selection", "edit", "fraction"], sort=False).mean().reset_index()


def at_equal_cost(table: pd.DataFrame) -> pd.DataFrame:
    """How much less is extracted under each selection than under random units that cost no more.

    One row a selection, fraction, edit and `cost` (held-out loss or, where images were drawn, Frechet distance): `extracted`, the `matched`
    share under random units, and the `advantage`, by which that is larger. Between the fractions of random units the share is linear in the
    cost; where more cost bought nothing (distances are noisy) the least share so far counts; beyond the largest cost that of the largest.
    """
    rows: list[pd.DataFrame] = []
    means = averaged(table)
    for edit, cost in ((HALVED, "held out loss"), (HALVED, "distance"), (ZEROED, "held out loss")):
        for _, part in means[means["edit"].isin([edit, "none"])].groupby(MODEL, sort=False):
            curve = part[part["selection"].isin(["random", "none"])].sort_values(cost)
            own = part[~part["selection"].isin(["random", "none"])]
            matched = np.interp(own[cost], curve[cost], np.minimum.accumulate(curve["extracted"]))
            rows.append(own.assign(cost=cost, matched=matched, advantage=matched - own["extracted"]))
    return pd.concat(rows, ignore_index=True)
