"""Edits of units and what they do: how many planted images are still extracted, and what the quality is, beside the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import interp
from experiments.iar_memorization.measures import cross_entropy, extracted, hits
from experiments.iar_memorization.quality import Quality
from experiments.iar_memorization.study import Study
from interp.batch import Batch
from interp.interventions import Mean, Plan, Scale, Zero
from interp.localization import localize
from interp.localization.benchmarks import as_active
from interp.mitigation.edits import in_weights
from interp.progress import track
from interp.units import Units, UnitScores

_FEW = 200  # images of background and held-out sets that every edit is measured on
HALVED = "in-weights x 0.5"


@dataclass(frozen=True, eq=False)
class Selection:
    """Some units and why: the `name` of a score or a control, the `fraction` of all neurons, the number of the `draw`."""

    name: str
    fraction: float
    draw: int
    units: Units


def scored(study: Study, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, UnitScores]:
    """The scores of localization methods for planted images against as many held-out ones, given the class alone."""
    ours, others = study.batches["planted"], study.batches["held out"]
    against = others.rows(slice(0, len(ours)))
    return {name: localize(study.subject, ours, against, method=name, site="neurons", **options) for name, options in methods.items()}


def selections(scores: Mapping[str, UnitScores], activity: UnitScores, fractions: Sequence[float], draws: int) -> Iterator[Selection]:
    """The highest-scoring units of each method and the controls of the first: the lowest, random ones (as many in each block), and others
    that are as active."""
    first = next(iter(scores.values()))
    for fraction in fractions:
        for name, found in scores.items():
            yield Selection(name, fraction, 0, found.top(fraction))
        top = first.top(fraction)
        yield Selection("lowest", fraction, 0, first.lowest(fraction))
        for draw in range(draws):
            yield Selection("random", fraction, draw, top.matched(draw))
            yield Selection("as active", fraction, draw, as_active(top, activity, draw))


def edits(study: Study, means: Mapping[interp.Site, np.ndarray]) -> dict[str, Callable[[Units], Plan]]:
    """What can be done to units, by name; the paper's own first."""
    subject = study.subject
    return {
        HALVED: lambda units: in_weights(subject, units, 0.5),
        "in-weights x 0": lambda units: in_weights(subject, units, 0.0),
        "in-weights and bias x 0.5": lambda units: in_weights(subject, units, 0.5, bias=True),
        "out-weights x 0.5": lambda units: Scale(units, factor=0.5),
        "out-weights x 0": Zero,
        "mean": lambda units: Mean(units, values=means),
    }


class Bench:
    """Measures a study's model under plans, always on the same images and with the same noise."""

    def __init__(self, study: Study, quality: Quality) -> None:
        self.study, self.quality = study, quality
        few = slice(0, _FEW)
        self.batches: dict[str, Batch] = {name: study.batches[name].rows(few) for name in ("background", "held out")}
        self.batches["planted"] = study.batches["planted"]

    def measured(self, plan: Plan) -> dict[str, float]:
        """`extracted` (share of planted images, from the short prefix), the same by prefix, of background and held-out images; `loss` of
        planted and held-out images; and the Frechet `distance`. An empty plan is the model as it is."""
        subject, short = self.study.subject, self.study.short
        with subject.intervened(plan) if plan else _nothing():
            found = {name: hits(subject, batch) for name, batch in self.batches.items()}
            losses = {name: float(cross_entropy(subject, self.batches[name]).mean()) for name in ("planted", "held out")}
            distance = self.quality.distance()
        row = {"extracted": extracted(found["planted"], short).mean(), "accuracy": found["planted"][:, short:].mean()}
        row |= {f"extracted from {prefix}": extracted(found["planted"], prefix).mean() for prefix in self.study.prefixes}
        row |= {f"{name} extracted": extracted(found[name], short).mean() for name in ("background", "held out")}
        return {name: float(value) for name, value in row.items()} | {f"{name} loss": v for name, v in losses.items()} | {"distance": distance}

    def table(self, chosen: Sequence[tuple[Selection, str, Plan]]) -> pd.DataFrame:
        """One row for the model as it is and for each selection and edit: `selection`, `fraction`, `draw`, `edit`, and what is measured."""
        rows: list[dict[str, Any]] = [{"selection": "none", "fraction": 0.0, "draw": 0, "edit": "none", **self.measured(())}]
        for selection, edit, plan in track(chosen, "edits"):
            about = {"selection": selection.name, "fraction": selection.fraction, "draw": selection.draw, "edit": edit}
            rows.append(about | self.measured(plan))
        return pd.DataFrame(rows).assign(**self.study.about())


def averaged(table: pd.DataFrame) -> pd.DataFrame:
    """Draws of a control as one row: the model as it is, and each selection, edit and fraction."""
    keys = ["family", "regime", "seed", "selection", "edit", "fraction"]
    return table.drop(columns="draw").groupby(keys, sort=False).mean().reset_index()


def at_equal_distance(table: pd.DataFrame, against: str = "random", edit: str = HALVED) -> pd.DataFrame:
    """How much less is extracted under each selection than under another that costs as much Frechet distance (`advantage`, in shares of
    the planted images; linear between the other's own fractions and the model as it is)."""
    rows: list[pd.DataFrame] = []
    means = averaged(table[table["edit"].isin([edit, "none"])])
    for _, part in means.groupby(["family", "regime", "seed"], sort=False):
        curve = part[part["selection"].isin([against, "none"])].sort_values("distance")
        own = part[~part["selection"].isin([against, "none"])]
        matched = np.interp(own["distance"], curve["distance"], curve["extracted"])
        rows.append(own.assign(matched=matched, advantage=matched - own["extracted"]))
    return pd.concat(rows, ignore_index=True)


def _nothing() -> AbstractContextManager[None]:
    return nullcontext()
