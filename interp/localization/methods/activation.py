"""Scores read off activations alone: how much a unit writes, and how far its activity stands out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.engine.recording import record
from interp.hooks.hooks import Clock, Value, Visit, tapped
from interp.localization.predicting_positions import position_weights, stack_of, weighted_mean
from interp.localization.registry import Places, Scores, method, window_method
from interp.localization.unit_values import written
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject, evaluating


@window_method("activation")
def activation(
    subject: Subject, batch: Batch, sites: Places, *, abs_after_mean: bool = False
) -> dict[Site, Tensor]:
    """(1/T) sum_t |h_t| * ||v||: the mean, over the positions that predict the suffix, of the
    length of what a unit writes.

    Chang et al. 2024 (arXiv 2311.09060), section 3; for heads the length of z_t W_O, at sites that
    are no input of a projection the length of the unit itself. `abs_after_mean` gives |(1/T) sum_t
    h_t| * ||v||, the form of their released code, which differs for activations of both signs.
    """
    weights = position_weights(subject, batch, sites)
    found: dict[Site, Tensor] = {}

    def visit(site: Site) -> Visit:
        def score(value: Value, _: Clock) -> None:
            by_position = weights.get(stack_of(subject, site))
            if abs_after_mean:
                found[site] = written(subject, site, weighted_mean(value, by_position))
            else:
                found[site] = weighted_mean(written(subject, site, value), by_position)

        return score

    with evaluating(subject), tapped(subject, {site: visit(site) for site in sites}):
        subject.touch(batch)
    return found


def _z_scores(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, size: int = 8
) -> Iterator[dict[Site, Float[np.ndarray, "windows units"]]]:
    """Parts of the memorized windows, in order, each as {site: [windows, units]}."""
    count, sums = 0, {site: np.zeros((2, subject.anatomy.place(site).units)) for site in sites}
    for rows in _activity(subject, reference, sites, size):
        count += len(rows[sites[0]])
        for site in sites:
            sums[site] += rows[site].sum(0), (rows[site] ** 2).sum(0)
    if count < 2:
        raise ValueError(
            f"z_score needs the spread of a reference: expected at least 2 windows, got {count}"
        )
    mean = {site: sums[site][0] / count for site in sites}
    spread = {
        site: np.sqrt(np.maximum(sums[site][1] / count - mean[site] ** 2, 0) * count / (count - 1))
        for site in sites
    }
    for rows in _activity(subject, memorized, sites, size):
        # a unit that never varies would divide by nothing: no spread counts as less than a
        # thousandth of its site's
        yield {
            s: (rows[s] - mean[s]) / np.maximum(spread[s], 1e-3 * spread[s].mean() + 1e-12)
            for s in sites
        }


def _activity(
    subject: Subject, windows: Batches, sites: Places, size: int
) -> Iterator[dict[Site, np.ndarray]]:
    """The mean |activation| of every unit over each window's positions; a head's is the mean over
    its columns."""
    for batch in batches(windows, size):
        recording = record(subject, batch, sites, reduce="rows_abs", size=size)
        yield {
            s: recording[s]
            .reshape(len(batch), subject.anatomy.place(s).units, -1)
            .mean(-1, dtype=np.float64)
            for s in sites
        }


def _z_score_each(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, size: int = 8
) -> Scores:
    parts = list(_z_scores(subject, memorized, reference, sites, size))
    return {site: np.concatenate([part[site] for part in parts]) for site in sites}


@method("z_score", each=_z_score_each, needs_reference=True)
def z_score(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, size: int = 8
) -> Scores:
    """How many standard deviations a unit's activity on memorized windows lies above its mean over
    reference windows.

    Activity is the mean |h| over the positions of a window. NeMo (Hintersdorf et al. 2024, arXiv
    2406.02366) calls neurons above a threshold memorization neurons of diffusion models; the score
    is theirs, the threshold is left to `top`.
    """
    totals, count = {site: np.zeros(subject.anatomy.place(site).units) for site in sites}, 0
    for rows in _z_scores(subject, memorized, reference, sites, size):
        count += len(rows[sites[0]])
        totals = {site: totals[site] + rows[site].sum(0) for site in sites}
    return {site: total / max(count, 1) for site, total in totals.items()}
