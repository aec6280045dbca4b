"""Zero-Out: what zeroing each unit alone adds to the loss, exactly; for all units, or for those
that a cheap screen ranks first."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.sweeping import sweep
from interp.interventions.kinds import Scale, Zero
from interp.localization.registry import Places, Scores, method
from interp.localization.screening import Screen, estimates, interleave
from interp.localization.window_rows import stack_rows
from interp.progress import track
from interp.sites.site import Site
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject

FEW = 256  # units: a screen of fewer saves nothing


def _each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    share: float = 0.05,
    exhaustive: bool = False,  # noqa: FBT001, FBT002 - the method's option
    batch_size: int = 8,
) -> Scores:
    windows = _split_windows(memorized, batch_size)
    chosen = [
        _screen(subject, [window], sites, share, exhaustive)
        for window in track(windows, "screening")
    ]
    pairs = zip(track(windows, "zero_out"), chosen, strict=True)
    effects = [exact(subject, window, units) for window, units in pairs]

    # The reference is run once, for every unit that some window verifies.
    all_chosen = functools.reduce(Units.__or__, chosen)
    against = _mean(subject, _split_windows(reference, batch_size), all_chosen)

    rows: list[dict[Site, np.ndarray]] = []
    for effect, units in zip(effects, chosen, strict=True):
        row: dict[Site, np.ndarray] = {}
        for site in sites:
            # What this window did not verify stays 0, also where another window verified it.
            every_unit = np.arange(units.widths[site])
            is_verified = np.isin(every_unit, units[site])
            baseline = np.where(is_verified, against[site], 0.0)
            row[site] = effect[site].numpy() - baseline
        rows.append(row)
    return stack_rows(rows)


@method("zero_out", each=_each)
def zero_out(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    share: float = 0.05,
    exhaustive: bool = False,  # noqa: FBT001, FBT002 - the method's option
    batch_size: int = 8,
) -> Scores:
    """Scores a unit by the exact rise of the loss when that unit alone is zeroed.

    L(x; unit := 0) - L(x), where L is the suffix's mean loss, in nats per token. Chang et al. 2024
    (arXiv 2311.09060), section 3.

    Args:
        subject, memorized, reference, sites: see `method`.
        share: fraction of the units to verify exactly, on the memorized windows and on the
            reference. They are those that a screen of the memorized windows ranks first (see
            `screening`); the others score 0.
        exhaustive: whether to verify all units. They are also all verified where there are few
            (heads, blocks).
        batch_size: batch size, in windows.

    Raises:
        SiteError: where there are many units that cannot be screened.
        ValueError: for a share outside (0, 1].

    Example:
        >>> scores = interp.localize(subject, memorized[:2], method="zero_out", site="heads")
        >>> scores.widths  # 2 blocks of 4 heads
        {Site(point='heads', block=0, stack=''): 4, Site(point='heads', block=1, stack=''): 4}
    """
    windows = _split_windows(memorized, batch_size)
    units = _screen(subject, windows, sites, share, exhaustive)
    ours = _mean(subject, windows, units)
    reference_windows = _split_windows(reference, batch_size)
    theirs = _mean(subject, reference_windows, units)
    return {site: ours[site] - theirs[site] for site in sites}


def _split_windows(source: Batches | None, batch_size: int) -> list[Batch]:
    """Batches of one window each; none for no source."""
    if source is None:
        return []
    windows: list[Batch] = []
    for batch in batches(source, batch_size):
        windows += batch.split(1)
    return windows


def _screen(
    subject: Subject,
    windows: list[Batch],
    sites: Places,
    share: float,
    exhaustive: bool,  # noqa: FBT001
) -> Units:
    """The units to verify exactly."""
    every = subject.anatomy.units(sites)
    if exhaustive or len(every) <= FEW:
        return every
    first_order: list[Screen] = []
    curved: list[Screen] = []
    for window in windows:
        one, other = estimates(subject, window, sites)
        first_order.append(one)
        curved.append(other)
    # The estimates are averaged over windows before they are ranked, and leave one row.
    mean_first_order = _mean_by_site(first_order)
    mean_curved = _mean_by_site(curved)
    ranks = interleave(mean_first_order, mean_curved)
    scores: dict[Site, np.ndarray] = {}
    for site, (only_row,) in ranks.items():
        scores[site] = only_row.cpu().numpy()
    # A float, even where the share is a whole number: `top(1)` would be a single unit.
    return UnitScores(scores).top(float(share))


def _mean_by_site(rows: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
    means: dict[Site, Tensor] = {}
    for site in rows[0]:
        at_site = [row[site] for row in rows]
        means[site] = torch.stack(at_site).mean(0)
    return means


def _mean(subject: Subject, windows: list[Batch], units: Units) -> dict[Site, np.ndarray]:
    """The mean of `exact` over windows; zeros where there are none."""
    if not windows:
        return {site: np.zeros(width) for site, width in units.widths.items()}
    rows = [exact(subject, window, units) for window in track(windows, "zero_out")]
    means = _mean_by_site(rows)
    return {site: mean.numpy() for site, mean in means.items()}


def exact(subject: Subject, window: Batch, units: Units) -> dict[Site, Float[Tensor, " width"]]:
    """Returns what zeroing each of some units alone adds to the loss of one window.

    Args:
        subject: the model.
        window: a batch of one window.
        units: the units to zero, one at a time.

    Returns:
        {site: [width]}, in nats per token; 0 for units that are not among `units`.

    Example:
        >>> units = subject.anatomy.units("blocks.0.heads")
        >>> effects = exact(subject, batch.rows(slice(1)), units)
        >>> [tuple(effect.shape) for effect in effects.values()]
        [(4,)]
    """
    # The unchanged model is run as a plan that changes nothing, with the other plans: its loss then
    # went through the same arithmetic, and a unit without effect scores exactly 0.
    units = subject.anatomy.fit(units)
    nothing = Scale(units, factor=1.0)
    plans = [Zero(units.only(site, [unit])) for site, unit in units]
    before, *after = sweep(subject, window, [nothing, *plans])
    effects: dict[Site, Tensor] = {}
    for site, width in units.widths.items():
        effects[site] = torch.zeros(width, dtype=torch.float64)
    for (site, unit), loss in zip(units, after, strict=True):
        effects[site][unit] = loss - before
    return effects
