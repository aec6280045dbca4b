"""Zero-Out: what zeroing each unit alone does to the loss, exactly; for all units, or for those that a screen finds worth the pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch
from interp.interventions import Zero
from interp.localization.gates import window_losses
from interp.localization.registry import Places, window_method
from interp.localization.screening import first_or_curved
from interp.sites import Site
from interp.subject import Subject, evaluating
from interp.sweeping import sweep
from interp.units import Units, UnitScores

_FEW = 256  # units that are not worth a screen


@window_method("zero_out", size=1)
def zero_out(subject: Subject, batch: Batch, sites: Places, *, share: float = 0.05, exhaustive: bool = False) -> dict[Site, Tensor]:
    """L(x; unit := 0) - L(x), exactly; L is the suffix's mean loss (nats a token). Chang et al. 2024 (arXiv 2311.09060), section 3.

    The `share` of units that `screening.first_or_curved` ranks highest is verified, window by window; the others score 0. All are verified
    with `exhaustive`, and where there are few (heads, blocks).

    Raises SiteError where there are many units that cannot be screened, ValueError for a share outside (0, 1].
    """
    rows = [exact(subject, window, _worthwhile(subject, window, sites, share, exhaustive)) for window in batch.split(1)]
    return {site: torch.stack([row[site] for row in rows]) for site in sites}


def _worthwhile(subject: Subject, window: Batch, sites: Places, share: float, exhaustive: bool) -> Units:  # noqa: FBT001 - the method's own
    every = subject.anatomy.units(sites)
    if exhaustive or len(every) <= _FEW:
        return every
    screen = {site: rows[0].cpu().numpy() for site, rows in first_or_curved(subject, window, sites).items()}
    return UnitScores(screen).top(float(share))


def exact(subject: Subject, window: Batch, units: Units) -> dict[Site, Float[Tensor, " width"]]:
    """What zeroing each of some units alone adds to the loss of one window, by the sweep engine; 0 for the units left out."""
    with evaluating(subject):
        before = float(window_losses(subject, window).double())
    plans = [Zero(units.only(site, [unit])) for site, unit in units]
    effects = np.array(sweep(subject, window, plans)) - before
    found = {site: torch.zeros(width, dtype=torch.float64) for site, width in units.widths.items()}
    for (site, unit), effect in zip(units, effects, strict=True):
        found[site][unit] = effect
    return found
