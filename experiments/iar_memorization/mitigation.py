"""Edits of units and what they do: how many planted images are still extracted, and what the
quality is, beside the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

import interp
from experiments.iar_memorization.build import ALIKE, Study
from experiments.iar_memorization.measures import ALLOWED, complete, completed, read
from experiments.iar_memorization.presets import Preset
from experiments.iar_memorization.quality import Quality
from interp.data.images import correlation, threshold
from interp.interventions.kinds import Mean, Scale, Zero
from interp.interventions.plan import Plan
from interp.localization import localize
from interp.mitigation.controls import IN_BLOCKS_OF, Selection, Trial
from interp.mitigation.weight_edits import in_weights
from interp.progress import track
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batch

_FEW = 100  # images held out, at most half of them, that every edit is measured on
HALVED, ZEROED = "in-weights x 0.5", "in-weights x 0"
COSTS = ("held out loss", "distance")
MODEL = ["family", "regime", "seed"]


@dataclass(frozen=True, eq=False)
class Edited:
    """One edit: a trial, the name of what is done to its units, and whether images are drawn under
    it."""

    trial: Trial
    edit: str
    drawn: bool = True


def apart(study: Study) -> tuple[Batch, Batch]:
    """Images held out: those that edits are measured on, and others, which units may be chosen
    against."""
    held_out = study.batches["held out"]
    few = min(_FEW, len(held_out) // 2)
    return held_out.rows(slice(0, few)), held_out.rows(slice(few, None))


def scored(study: Study, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, UnitScores]:
    """The scores of localization methods for planted images against as many held-out ones, given
    the class alone."""
    ours = study.batches["planted"]
    against = apart(study)[1].rows(slice(0, len(ours)))
    return {
        name: localize(study.subject, ours, against, method=name, site="neurons", **options)
        for name, options in methods.items()
    }


def trials(study: Study, scores: Mapping[str, UnitScores], settings: Preset) -> list[Edited]:
    """Halved in-weights of the highest-scoring units of each method and of the controls, in several
    fractions, and the same set to zero; of the first method's and of random units in the fraction
    that is judged, whatever else can be done to units.

    Images are drawn under the paper's own edit, the first, alone: that is what costs time.
    """
    done, judged = edits(study), settings.at[study.family]
    first = next(iter(scores))
    found: list[Edited] = []
    for trial in _selections(study, scores, settings):
        all_kinds = (
            trial.selection in (first, "random") and trial.fraction == judged and trial.seed == 0
        )
        for edit in done if all_kinds else (HALVED, ZEROED):
            drawn = edit == HALVED and not trial.selection.startswith(IN_BLOCKS_OF)
            found.append(Edited(trial.edited(done[edit]), edit, drawn))
    return found


def _selections(
    study: Study, scores: Mapping[str, UnitScores], settings: Preset
) -> Iterator[Trial]:
    """Each method's highest; the first one's lowest; random others, as many in each block as the
    first one chooses, and as the last one does, in further fractions too so as to reach the cost of
    whatever the methods choose; and others that are as active on the planted images."""
    means = interp.record(
        study.subject, study.batches["planted"], "neurons", reduce="mean_abs", size=64
    )
    activity = UnitScores({site: means[site] for site in means})
    first = next(iter(scores))
    last = next(reversed(scores))
    for fraction in (*settings.fractions, *settings.further_random):
        selections = {
            name: Selection(found.top(fraction), fraction) for name, found in scores.items()
        }
        draws = range(settings.random_draws)
        random = selections[first].random(draws)
        in_blocks_of_last = selections[last].in_own_blocks(last, draws)
        for pair in zip(random, in_blocks_of_last, strict=True):
            yield from pair
        if fraction in settings.fractions:
            for name, selection in selections.items():
                yield selection.trial(name)
            yield selections[first].lowest(scores[first])
            yield from selections[first].as_active(activity, range(settings.active_draws))


def edits(study: Study) -> dict[str, Callable[[Units], Plan]]:
    """What can be done to units, by name; the paper's own first."""
    subject = study.subject
    means = interp.record(subject, apart(study)[1], "neurons", reduce="mean", size=64)
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
        held_out, others = apart(study)
        self.batches: dict[str, Batch] = {"planted": study.batches["planted"], "held out": held_out}
        self.cut = ALIKE if study.alike else threshold(self.likeness(others), ALLOWED)

    def likeness(self, batch: Batch) -> Float[np.ndarray, " images"]:
        """How like each image is what greedy decoding makes of the prefix that edits are judged by."""
        return self.alike(
            completed(self.study, replace(batch, prompt=self.study.judged)),
            self.study.module.decode(batch.tokens),
        )

    def measured(self, plan: Plan, *, drawn: bool = True) -> dict[str, float]:
        """Of the model under a plan, or as it is under an empty one.

        `exact` is the share of planted images that are extracted to the token from the prefix that
        edits are judged by; it is also given from each prefix, and of images held out. `alike` is
        the share whose completion is more like them than that of 99% of images held out (others
        than those measured) is like those. `extracted` is one of them: what the study goes by.
        `accuracy` is that of planted tokens from the prefix on, `loss` that of each set in nats a
        token, `distance` the Frechet distance of what the model draws (NaN if nothing is drawn).
        """
        study = self.study
        with study.subject.intervened(plan) if plan else nullcontext():
            found = {name: read(study.subject, batch) for name, batch in self.batches.items()}
            alike = (self.likeness(self.batches["planted"]) > self.cut).mean()
            distance = self.quality.distance() if drawn else np.nan
        hits = found["planted"][0]
        exact = complete(hits, study.judged).mean()
        row = {
            "extracted": alike if study.alike else exact,
            "exact": exact,
            "alike": alike,
            "distance": distance,
        }
        row |= {"accuracy": hits[:, study.judged :].mean()}
        row |= {f"exact from {prefix}": complete(hits, prefix).mean() for prefix in study.prefixes}
        row |= {"held out exact": complete(found["held out"][0], study.judged).mean()}
        row |= {f"{name} loss": losses.mean() for name, (_, losses) in found.items()}
        return {name: float(value) for name, value in row.items()}

    def table(self, chosen: Sequence[Edited]) -> pd.DataFrame:
        """One row for the model as it is and for each trial: `selection`, `fraction`, `draw`,
        `edit`, and what is measured."""
        rows: list[dict[str, Any]] = [
            {"selection": "none", "fraction": 0.0, "draw": 0, "edit": "none", **self.measured(())}
        ]
        for edited in track(chosen, "edits"):
            trial = edited.trial
            about = {
                "selection": trial.selection,
                "fraction": trial.fraction,
                "draw": trial.seed,
                "edit": edited.edit,
            }
            rows.append(about | self.measured(trial.plan, drawn=edited.drawn))
        return pd.DataFrame(rows).assign(**self.study.about())


def averaged(table: pd.DataFrame) -> pd.DataFrame:
    """The draws of a control as one row: for the model as it is, and for each selection, edit and
    fraction."""
    return (
        table.drop(columns="draw")
        .groupby([*MODEL, "selection", "edit", "fraction"], sort=False)
        .mean()
        .reset_index()
    )


def at_equal_cost(table: pd.DataFrame) -> pd.DataFrame:
    """How much less is extracted under each selection than under random units at equal cost.

    One row a selection, fraction, edit and `cost` (held-out loss or, where images were drawn,
    Frechet distance): `extracted`, the `matched` share under random units, and the `advantage`, by
    which that is larger. Random units are those in the selection's own blocks where there are such,
    else those in the blocks of the first method. Between their fractions the share is linear in the
    cost; where more cost bought nothing (distances are noisy) the least share so far counts; at a
    cost that none of them reached, nothing is taken to stay.
    """
    rows: list[pd.DataFrame] = []
    means = averaged(table)
    for edit, cost in ((HALVED, "held out loss"), (HALVED, "distance"), (ZEROED, "held out loss")):
        for _, part in means[means["edit"].isin([edit, "none"])].groupby(MODEL, sort=False):
            chosen = part[
                ~part["selection"].isin(["random", "none"])
                & ~part["selection"].str.startswith(IN_BLOCKS_OF)
            ]
            for name, own in chosen.groupby("selection", sort=False):
                same = part["selection"] == f"{IN_BLOCKS_OF}{name}"
                against = (
                    same if cost != "distance" and same.any() else part["selection"] == "random"
                )
                curve = part[against | (part["selection"] == "none")].sort_values(cost)
                left = np.minimum.accumulate(curve["extracted"])
                matched = np.interp(own[cost], curve[cost], left, right=0.0)
                rows.append(
                    own.assign(cost=cost, matched=matched, advantage=matched - own["extracted"])
                )
    return pd.concat(rows, ignore_index=True)
