"""Edits of units and their effects: how many planted images are still extracted, and how good the
model still is, compared with the same edits of control units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

import interp
from experiments.iar_memorization.build import ALIKE, Study
from experiments.iar_memorization.measures import ALLOWED, complete, complete_images, read
from experiments.iar_memorization.presets import Preset
from experiments.iar_memorization.quality import Quality
from interp.data.images import correlation, threshold
from interp.interventions.kinds import Mean, Scale, Zero
from interp.interventions.plan import Plan
from interp.localization import localize
from interp.mitigation.controls import IN_BLOCKS_OF, Selection, Trial
from interp.mitigation.weight_edits import in_weights
from interp.progress import track
from interp.reporting.stats import interpolate
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batch

HALVED = "in-weights x 0.5"
ZEROED = "in-weights x 0"
COSTS = ("held out loss", "distance")
MODEL = ["family", "regime", "seed"]
_EDIT = [*MODEL, "selection", "edit", "fraction"]
# An edit is measured on at most this number of held-out images, and on at most half of them.
_FEW = 100
_BATCH_SIZE = 64
LEVEL = 0.95
# Few: every resample of the images interpolates all comparisons again.
_RESAMPLES = 300
# What is compared at equal cost. Images are drawn under the first edit only, so that the second one
# has no distance.
_COMPARISONS = ((HALVED, "held out loss"), (HALVED, "distance"), (ZEROED, "held out loss"))


@dataclass(frozen=True, eq=False)
class Edited:
    """One edit: a trial, the name of what is done to its units, and whether images are drawn under
    it."""

    trial: Trial
    edit: str
    drawn: bool = True


def apart(study: Study) -> tuple[Batch, Batch]:
    """Two disjoint sets of held-out images: those that edits are measured on, and those that units
    may be chosen against."""
    held_out = study.batches["held out"]
    # Units that were chosen against the very images on which damage is measured would look
    # harmless.
    few = min(_FEW, len(held_out) // 2)
    return held_out.rows(slice(0, few)), held_out.rows(slice(few, None))


def score_units(study: Study, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, UnitScores]:
    """The scores of localization methods (with their options) for the planted images, given the
    class alone, with the same number of held-out images to compare with."""
    planted = study.batches["planted"]
    _, others = apart(study)
    against = others.rows(slice(0, len(planted)))
    return {
        name: localize(study.subject, planted, against, method=name, site="neurons", **options)
        for name, options in methods.items()
    }


def trials(study: Study, scores: Mapping[str, UnitScores], settings: Preset) -> list[Edited]:
    """All edits of a model.

    Two edits are made at every fraction: the input weights of the units that each method scores
    highest, and of their controls, are halved or set to zero. All other kinds of edits are made
    only at the fraction that claims are about, to the units of the first method and to random ones.

    Drawing images costs most of the time, so they are drawn under the paper's own edit only
    (halving), and not for the random units in each method's own blocks.
    """
    plans = edits(study)
    judged = settings.at[study.family]
    first = next(iter(scores))
    found: list[Edited] = []
    for trial in _selections(study, scores, settings):
        first_or_random = trial.selection in (first, "random")
        every_kind = first_or_random and trial.fraction == judged and trial.seed == 0
        for edit in plans if every_kind else (HALVED, ZEROED):
            drawn = edit == HALVED and not trial.selection.startswith(IN_BLOCKS_OF)
            found.append(Edited(trial.with_edit(plans[edit]), edit, drawn))
    return found


def _selections(
    study: Study, scores: Mapping[str, UnitScores], settings: Preset
) -> Iterator[Trial]:
    """The units of each method and of the controls, in each fraction.

    The controls are random units, the same number in each block as the first method selects, and as
    the last one does; the first method's lowest units; and units that are as active on the planted
    images as those of the first method. Random units are also drawn at larger fractions, so that
    they reach the cost of what the methods select.
    """
    means = interp.record(
        study.subject,
        study.batches["planted"],
        "neurons",
        # Absolute, as UnitMem averages them: a GELU can be negative.
        reduce="mean_abs",
        batch_size=_BATCH_SIZE,
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
    """What can be done to units, by name; the paper's own edit comes first."""
    subject = study.subject
    _, others = apart(study)
    # Means of held-out images, because those of planted ones would put their own activations
    # back; and of images that nothing is measured on.
    means = interp.record(subject, others, "neurons", reduce="mean", batch_size=_BATCH_SIZE)
    return {
        HALVED: lambda units: in_weights(subject, units, 0.5),
        ZEROED: lambda units: in_weights(subject, units, 0.0),
        "in-weights and bias x 0.5": lambda units: in_weights(subject, units, 0.5, bias=True),
        "out-weights x 0.5": lambda units: Scale(units, factor=0.5),
        "out-weights x 0": Zero,
        "mean": lambda units: Mean(units, values=means),
    }


@dataclass(frozen=True, eq=False)
class Measured:
    """What is measured of a model under one edit.

    Attributes:
        over_all: the measures over all images, by name; see `Bench.measured`.
        extracted, alike: whether each planted image is extracted, and still shown.
        losses: the loss of each held-out image, in nats per token.
    """

    over_all: Mapping[str, float]
    extracted: Bool[np.ndarray, " planted"]
    alike: Bool[np.ndarray, " planted"]
    losses: Float[np.ndarray, " held_out"]


@dataclass(frozen=True, eq=False)
class Edits:
    """All edits of a model.

    Attributes:
        about: one row per edit, and one for the unedited model: `selection`, `fraction`, `draw`,
            `edit`, and the model.
        measured: what is measured under each.
    """

    about: pd.DataFrame
    measured: Sequence[Measured]

    def table(self) -> pd.DataFrame:
        """One row per edit, with the measures over all images as columns."""
        columns = pd.DataFrame([dict(each.over_all) for each in self.measured])
        return pd.concat([self.about, columns], axis=1)

    def by_image(self) -> pd.DataFrame:
        """One row per edit and planted `image`: whether it is `extracted`, and `alike`."""
        parts: list[pd.DataFrame] = []
        for (_, about), each in zip(self.about.iterrows(), self.measured, strict=True):
            numbers = np.arange(len(each.extracted))
            columns = {"image": numbers, "extracted": each.extracted, "alike": each.alike}
            parts.append(pd.DataFrame({**about.to_dict(), **columns}))
        return pd.concat(parts, ignore_index=True)

    def resampled(self, count: int) -> dict[str, Float[np.ndarray, "edits resamples"]]:
        """The columns of `table` that images enter, as if other images had been measured: the
        planted and the held-out ones are drawn again, the same ones for every edit. The Frechet
        distance stays as it is: every edit draws images from the same noise."""
        rng = np.random.default_rng(0)

        def means(values: Float[np.ndarray, "edits images"]) -> np.ndarray:
            images = values.shape[1]
            # A resample is a weight for each image. One product with the weights gives the means of
            # all edits on all resamples, which need not be drawn and held one by one.
            weights = rng.multinomial(images, np.full(images, 1 / images), count) / images
            return values @ weights.T

        distance = np.array([each.over_all["distance"] for each in self.measured])
        return {
            "extracted": means(np.stack([each.extracted for each in self.measured]).astype(float)),
            "held out loss": means(np.stack([each.losses for each in self.measured])),
            "distance": np.repeat(distance[:, None], count, axis=1),
        }


class Bench:
    """Measures a study's model under edits, always on the same images and with the same noise.

    Attributes:
        batches: the planted images, and the held-out images that edits are measured on.
        cut: the similarity above which a completion counts as the same picture: ALIKE for the
            study's own similarity; for correlation, what 99% of the held-out images that are not
            measured stay below.
    """

    def __init__(self, study: Study, quality: Quality) -> None:
        held_out, others = apart(study)
        self.study = study
        self.quality = quality
        self.alike = study.alike or correlation
        self.batches: dict[str, Batch] = {"planted": study.batches["planted"], "held out": held_out}
        if study.alike:
            self.cut = ALIKE
        else:
            self.cut = threshold(self.likeness(others), ALLOWED)

    def likeness(self, batch: Batch) -> Float[np.ndarray, " images"]:
        """The similarity between each image and its greedy completion from the prefix that edits
        are judged from."""
        completions = complete_images(self.study, replace(batch, prompt=self.study.judged))
        return self.alike(completions, self.study.module.decode(batch.tokens))

    def measured(self, plan: Plan, *, drawn: bool = True) -> Measured:
        """The measures of the model under a plan, or of the unedited model if the plan is empty.

        Args:
            plan: the edit.
            drawn: whether images are drawn.

        Returns:
            The measures of each image, and over all by name:

            - exact: fraction of the planted images that are extracted to the last token, from the
              prefix that edits are judged from. `exact from N`: the same from a prefix of N tokens.
              `held out exact`: the same for held-out images.
            - alike: fraction of the planted images whose completion has a similarity to them above
              `cut`, which is set on held-out images that are not measured here.
            - extracted: one of the two; `alike` for a study with its own similarity, else `exact`.
            - accuracy: fraction of the planted tokens after the prefix that are predicted.
            - planted loss, held out loss: in nats per token.
            - distance: the Frechet distance of the images drawn; NaN if none are drawn.
        """
        study = self.study
        # Everything is measured inside, the drawing of images too: the edit holds only here.
        with study.subject.intervened(plan) if plan else nullcontext():
            # One pass over the true tokens gives exact extraction from every prefix, see
            # `complete`.
            found = {name: read(study.subject, batch) for name, batch in self.batches.items()}
            alike = self.likeness(self.batches["planted"]) > self.cut
            distance = self.quality.distance() if drawn else np.nan

        hits, _ = found["planted"]
        held_out_hits, held_out_losses = found["held out"]
        exact = complete(hits, study.judged)
        extracted = alike if study.alike else exact
        row = {
            "extracted": extracted.mean(),
            "exact": exact.mean(),
            "alike": alike.mean(),
            "distance": distance,
            "accuracy": hits[:, study.judged :].mean(),
        }
        for prefix in study.prefixes:
            row[f"exact from {prefix}"] = complete(hits, prefix).mean()
        row["held out exact"] = complete(held_out_hits, study.judged).mean()
        for name, (_, losses) in found.items():
            row[f"{name} loss"] = losses.mean()
        over_all = {name: float(value) for name, value in row.items()}
        return Measured(over_all, extracted, alike, held_out_losses)

    def run(self, chosen: Sequence[Edited]) -> Edits:
        """Measures the unedited model and the model under each edit."""
        unedited = {"selection": "none", "fraction": 0.0, "draw": 0, "edit": "none"}
        about: list[dict[str, Any]] = [unedited]
        measured = [self.measured(())]
        for edited in track(chosen, "edits"):
            trial = edited.trial
            row = {
                "selection": trial.selection,
                "fraction": trial.fraction,
                "draw": trial.seed,
                "edit": edited.edit,
            }
            about.append(row)
            measured.append(self.measured(trial.plan, drawn=edited.drawn))
        return Edits(pd.DataFrame(about).assign(**self.study.about()), measured)


def average_over_draws(table: pd.DataFrame) -> pd.DataFrame:
    """The means over the draws of a control: one row for each model, selection, edit and fraction,
    and one for each unedited model."""
    groups = table.drop(columns="draw").groupby(_EDIT, sort=False)
    return groups.mean().reset_index()


def at_equal_cost(table: pd.DataFrame) -> pd.DataFrame:
    """How much less is extracted under each selection than under random units at equal cost.

    Between the fractions of random units that were measured, what they leave is linear in the cost.
    Where a larger cost removed nothing (distances are noisy), the least that was left so far
    counts. Outside the costs that random units reached (the unedited model among them), nothing is
    compared.

    Args:
        table: the table of `Edits`.

    Returns:
        One row per model, selection, fraction, edit and `cost` (held-out loss or, where images were
        drawn, Frechet distance): `extracted`; `matched`, the fraction extracted under random units
        at the same cost; and the `advantage`, matched - extracted. Both are NaN where random units
        did not reach that cost.
    """
    means = average_over_draws(table)
    found: list[pd.DataFrame] = []
    for own, curve, cost in _comparisons(means):
        selected = means.loc[own]
        random = means.loc[curve]
        matched = _matched(selected[cost], random[cost], random["extracted"])
        advantage = matched - selected["extracted"]
        found.append(selected.assign(cost=cost, matched=matched, advantage=advantage))
    return pd.concat(found, ignore_index=True)


def _comparisons(means: pd.DataFrame) -> Iterator[tuple[pd.Index, pd.Index, str]]:
    """The rows of each selection, those of the random units that they are compared with, and the
    cost at which they are."""
    for edit, cost in _COMPARISONS:
        with_edit = means[means["edit"].isin([edit, "none"])]
        for _, model in with_edit.groupby(MODEL, sort=False):
            # What makes the curve is not compared with it.
            is_control = model["selection"].isin(["random", "none"])
            is_control |= model["selection"].str.startswith(IN_BLOCKS_OF)
            for name, own in model[~is_control].groupby("selection", sort=False):
                yield own.index, _random_curve(model, str(name), cost).index, cost


def _matched(cost: ArrayLike, random_cost: ArrayLike, random_extracted: ArrayLike) -> np.ndarray:
    """What random units leave at a cost."""
    by_cost = np.argsort(random_cost, kind="stable")
    # Interpolation needs a curve that only falls, else a selection would gain from the noise of its
    # controls.
    least_so_far = np.minimum.accumulate(np.asarray(random_extracted)[by_cost])
    return interpolate(cost, np.asarray(random_cost)[by_cost], least_so_far)


def with_intervals(measured: Edits) -> pd.DataFrame:
    """The comparison at equal cost, with the intervals of its advantages over images.

    Returns:
        The table of `at_equal_cost`, with the 95% interval of the advantage (`low`, `high`), the
        number of planted `images`, and the share of the resamples on which random units reached the
        cost (`comparable`). Where this is less than LEVEL, the cost is too near the end of what was
        measured, and nothing is compared.
    """
    table = measured.table()
    found = at_equal_cost(table)
    again = _resampled_advantages(table, measured.resampled(_RESAMPLES))
    comparable = np.isfinite(again).mean(1)
    compared = found["advantage"].notna() & (comparable >= LEVEL)
    ends = np.full((2, len(found)), np.nan)
    outer = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ends[:, compared] = np.nanquantile(again[compared], outer, axis=1)
    advantage = found["advantage"].where(compared)
    return found.assign(
        matched=found["matched"].where(compared),
        advantage=advantage,
        # An interval has to contain its estimate. Quantiles of resamples need not: the curve of
        # random units is made to fall anew on each of them, which is not symmetric.
        low=np.minimum(ends[0], advantage),
        high=np.maximum(ends[1], advantage),
        images=len(measured.measured[0].extracted),
        comparable=comparable,
    )


def _resampled_advantages(
    table: pd.DataFrame, resampled: Mapping[str, Float[np.ndarray, "edits resamples"]]
) -> Float[np.ndarray, "comparisons resamples"]:
    """The advantages of `at_equal_cost`, in its order, on each resample of the images."""
    means = average_over_draws(table)
    # Groups are numbered in the order of the table, as the rows of `means` are: a number of the one
    # is a row of the other.
    group = table.groupby(_EDIT, sort=False).ngroup().to_numpy()
    by_group: dict[str, np.ndarray] = {}
    for name, values in resampled.items():
        by_group[name] = pd.DataFrame(values).groupby(group).mean().to_numpy()
    extracted = by_group["extracted"]
    rows: list[np.ndarray] = []
    for own, curve, cost in _comparisons(means):
        values = by_group[cost]
        matched = [
            _matched(values[own, number], values[curve, number], extracted[curve, number])
            for number in range(values.shape[1])
        ]
        rows.append(np.stack(matched, axis=1) - extracted[own])
    return np.concatenate(rows)


def _random_curve(model: pd.DataFrame, name: str, cost: str) -> pd.DataFrame:
    """The rows of random units by rising cost, starting at the unedited model.

    They are the random units in the selection's own blocks. Where there are none, or where no
    images were drawn under them, they are those in the blocks of the first method.
    """
    in_own_blocks = model["selection"] == f"{IN_BLOCKS_OF}{name}"
    if cost != "distance" and in_own_blocks.any():
        random = in_own_blocks
    else:
        random = model["selection"] == "random"
    unedited = model["selection"] == "none"
    return model[random | unedited].sort_values(cost)
