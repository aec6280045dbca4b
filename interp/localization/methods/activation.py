"""Scores from activations alone: how much a unit writes (`activation`), and how far its activity on
memorized windows stands out from its activity on others (`z_score`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.engine.recording import record
from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, Visit, tapped
from interp.localization.predicting_positions import position_weights, stack_of, weighted_mean
from interp.localization.registry import Places, Scores, method, window_method
from interp.localization.unit_values import written_lengths
from interp.localization.window_rows import RunningMean, concatenate_parts
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject, evaluating


@window_method("activation")
def activation(
    subject: Subject, batch: Batch, sites: Places, *, abs_after_mean: bool = False
) -> dict[Site, Tensor]:
    """Scores a unit by the mean length of what it writes, over the positions that predict the
    suffix.

    (1/T) sum_t |h_t| * ||v||; Chang et al. 2024 (arXiv 2311.09060), section 3. For heads the length
    of z_t W_O; at sites that are not the input of a projection, the length of the unit itself.

    Args:
        subject, batch, sites: see `window_method`.
        abs_after_mean: whether to take |(1/T) sum_t h_t| * ||v|| instead, as their released code
            does; it differs for activations of both signs.

    Example:
        >>> scores = interp.localize(subject, memorized, control, method="activation")
        >>> len(scores.top(0.05))
        5
    """
    weights_by_stack = position_weights(subject, batch, sites)
    scores: dict[Site, Tensor] = {}

    def visit(site: Site) -> Visit:
        weights = weights_by_stack.get(stack_of(subject, site))

        def score(value: Value, _: Clock) -> None:
            if abs_after_mean:
                mean = weighted_mean(value, weights)
                scores[site] = written_lengths(subject, site, mean)
            else:
                lengths = written_lengths(subject, site, value)
                scores[site] = weighted_mean(lengths, weights)

        return score

    with evaluating(subject), tapped(subject, {site: visit(site) for site in sites}):
        subject.touch(batch)
    return scores


def _z_scores(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, batch_size: int
) -> Iterator[dict[Site, Float[np.ndarray, "windows units"]]]:
    """The z-scores of the memorized windows, batch by batch."""
    mean, spread = _reference_activity(subject, reference, sites, batch_size)

    # A unit that never varies on the reference would divide by 0 and come first. No spread counts
    # as less than a thousandth of the mean spread at its site.
    divisor: dict[Site, np.ndarray] = {}
    for site in sites:
        # The second term is for a site at which no unit varies at all.
        least = 1e-3 * spread[site].mean() + 1e-12
        divisor[site] = np.maximum(spread[site], least)

    for rows in _activity(subject, memorized, sites, batch_size):
        z_scores: dict[Site, np.ndarray] = {}
        for site in sites:
            shifts = rows[site] - mean[site]  # [windows, units]
            z_scores[site] = shifts / divisor[site]
        yield z_scores


def _reference_activity(
    subject: Subject, reference: Batches, sites: Places, batch_size: int
) -> tuple[dict[Site, np.ndarray], dict[Site, np.ndarray]]:
    """Mean and standard deviation of each unit's activity over the reference windows."""
    sums: dict[Site, np.ndarray] = {}
    sums_of_squares: dict[Site, np.ndarray] = {}
    for site in sites:
        units = subject.anatomy.place(site).units
        sums[site] = np.zeros(units)
        sums_of_squares[site] = np.zeros(units)
    count = 0
    for rows in _activity(subject, reference, sites, batch_size):
        count += len(rows[sites[0]])
        for site in sites:
            squares = rows[site] ** 2
            sums[site] += rows[site].sum(0)
            sums_of_squares[site] += squares.sum(0)
    if count < 2:
        raise ValueError(
            f"z_score needs the spread of a reference: expected at least 2 windows, got {count}"
        )

    mean: dict[Site, np.ndarray] = {}
    spread: dict[Site, np.ndarray] = {}
    for site in sites:
        mean[site] = sums[site] / count
        mean_square = sums_of_squares[site] / count
        biased_variance = np.maximum(mean_square - mean[site] ** 2, 0)  # rounding may go below 0
        variance = biased_variance * count / (count - 1)
        spread[site] = np.sqrt(variance)
    return mean, spread


def _activity(
    subject: Subject, windows: Batches, sites: Places, batch_size: int
) -> Iterator[dict[Site, np.ndarray]]:
    """The mean |activation| of every unit over each window's positions, batch by batch; for a head
    the mean over its columns."""

    def activity(part: Batch) -> dict[Site, np.ndarray]:
        recording = record(subject, part, sites, reduce="rows_abs", batch_size=batch_size)
        rows: dict[Site, np.ndarray] = {}
        for site in sites:
            units = subject.anatomy.place(site).units
            by_column = recording[site].reshape(len(part), units, -1)  # [windows, units, columns]
            rows[site] = by_column.mean(-1, dtype=np.float64)
        return rows

    limit = BatchLimit()
    for batch in batches(windows, batch_size):
        for _, rows in limit.run(activity, batch):
            yield rows


def _z_score_each(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, batch_size: int = 8
) -> Scores:
    parts = list(_z_scores(subject, memorized, reference, sites, batch_size))
    return concatenate_parts(parts)


@method("z_score", each=_z_score_each, needs_reference=True)
def z_score(
    subject: Subject, memorized: Batches, reference: Batches, sites: Places, batch_size: int = 8
) -> Scores:
    """Scores a unit by how many standard deviations its activity on memorized windows lies above
    its mean over reference windows.

    Activity is the mean |h| over the positions of a window. NeMo (Hintersdorf et al. 2024, arXiv
    2406.02366) calls the neurons above a threshold the memorization neurons of a diffusion model.
    The score is theirs; the threshold is left to `UnitScores.top`.

    Args:
        subject, memorized, reference, sites: see `method`.
        batch_size: batch size, in windows.

    Raises:
        ValueError: for fewer than 2 reference windows.

    Example:
        >>> scores = interp.localize(subject, memorized, control, method="z_score")
        >>> len(scores.top(0.05))
        5
    """
    mean = RunningMean()
    for rows in _z_scores(subject, memorized, reference, sites, batch_size):
        mean.update(rows)
    return mean.value()
