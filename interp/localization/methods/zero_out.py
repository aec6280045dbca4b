"""Zero-Out: what zeroing each unit alone does to the loss, exactly; for all units, or for those
that a screen finds worth the pass."""

from __future__ import annotations

import functools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.sweeping import sweep
from interp.interventions.kinds import Scale, Zero
from interp.localization.registry import Places, Scores, method
from interp.localization.screening import estimates, interleaved
from interp.progress import track
from interp.sites.site import Site
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject

FEW = 256  # units that are not worth a screen


def _each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    share: float = 0.05,
    exhaustive: bool = False,  # noqa: FBT001, FBT002 - the method's option
    size: int = 8,
) -> Scores:
    windows = _windows(memorized, size)
    chosen = [
        _worthwhile(subject, [window], sites, share, exhaustive)
        for window in track(windows, "screening")
    ]
    rows = [
        exact(subject, window, units)
        for window, units in zip(track(windows, "zero_out"), chosen, strict=True)
    ]
    against = _mean(subject, _windows(reference, size), functools.reduce(Units.__or__, chosen))
    return {
        site: np.stack(
            [
                row[site].numpy() - np.where(_inside(units, site), against[site], 0.0)
                for row, units in zip(rows, chosen, strict=True)
            ]
        )
        for site in sites
    }


@method("zero_out", each=_each)
def zero_out(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    share: float = 0.05,
    exhaustive: bool = False,  # noqa: FBT001, FBT002 - the method's option
    size: int = 8,
) -> Scores:
    """L(x; unit := 0) - L(x), exactly; L is the suffix's mean loss (nats a token). Chang et al.
    2024 (arXiv 2311.09060), section 3.

    The `share` of units that a screen of the memorized windows ranks highest (see `screening`) is
    verified, on them and on the reference; the others score 0. All are verified with `exhaustive`,
    and where there are few (heads, blocks).

    Raises SiteError where there are many units that cannot be screened, ValueError for a share
    outside (0, 1].
    """
    windows = _windows(memorized, size)
    units = _worthwhile(subject, windows, sites, share, exhaustive)
    ours, theirs = _mean(subject, windows, units), _mean(subject, _windows(reference, size), units)
    return {site: ours[site] - theirs[site] for site in sites}


def _windows(source: Batches | None, size: int) -> list[Batch]:
    """One by one, as Zero-Out runs them."""
    return (
        []
        if source is None
        else [window for batch in batches(source, size) for window in batch.split(1)]
    )


def _worthwhile(
    subject: Subject,
    windows: list[Batch],
    sites: Places,
    share: float,
    exhaustive: bool,  # noqa: FBT001
) -> Units:
    """The units to verify."""
    every = subject.anatomy.units(sites)
    if exhaustive or len(every) <= FEW:
        return every
    pairs = [estimates(subject, window, sites) for window in windows]
    means = [
        {site: torch.stack([pair[n][site] for pair in pairs]).mean(0) for site in sites}
        for n in (0, 1)
    ]
    return UnitScores(
        {site: rows[0].cpu().numpy() for site, rows in interleaved(*means).items()}
    ).top(float(share))


def _mean(subject: Subject, windows: list[Batch], units: Units) -> dict[Site, np.ndarray]:
    """The mean of `exact` over windows; zeros where there are none."""
    rows = [exact(subject, window, units) for window in track(windows, "zero_out")]
    return {
        site: torch.stack([row[site] for row in rows]).mean(0).numpy() if rows else np.zeros(width)
        for site, width in units.widths.items()
    }


def _inside(units: Units, site: Site) -> np.ndarray:
    return np.isin(np.arange(units.widths[site]), units[site])


def exact(subject: Subject, window: Batch, units: Units) -> dict[Site, Float[Tensor, " width"]]:
    """What zeroing each of some units alone adds to the loss of one window, by the sweep engine; 0
    for the units left out."""
    plans = [Zero(units.only(site, [unit])) for site, unit in units]
    nothing = Scale(units, factor=1.0)  # so that what is compared went through the same arithmetic
    before, *after = sweep(subject, window, [nothing, *plans])
    found = {site: torch.zeros(width, dtype=torch.float64) for site, width in units.widths.items()}
    for (site, unit), loss in zip(units, after, strict=True):
        found[site][unit] = loss - before
    return found
