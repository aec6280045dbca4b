"""Zero-Out: what zeroing each unit alone does to the loss, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.batch import Batch
from interp.interventions import Zero
from interp.localization.gates import window_losses
from interp.localization.registry import Places, window_method
from interp.sites import Site
from interp.subject import Subject, evaluating
from interp.sweeping import sweep
from interp.units import Units


@window_method("zero_out", size=1)
def zero_out(subject: Subject, batch: Batch, sites: Places) -> dict[Site, Tensor]:
    rows = [exact(subject, window, subject.anatomy.units(sites)) for window in batch.split(1)]
    return {site: torch.stack([row[site] for row in rows]) for site in sites}


def exact(subject: Subject, window: Batch, units: Units) -> dict[Site, Tensor]:
    with evaluating(subject):
        before = float(window_losses(subject, window).double().mean())
    after = sweep(subject, window, [Zero(units.only(site, [unit])) for site, unit in units])
    effects = torch.tensor(after, dtype=torch.float64) - before
    found = {site: torch.zeros(width, dtype=torch.float64) for site, width in units.widths.items()}
    for (site, unit), effect in zip(units, effects.tolist(), strict=True):
        found[site][unit] = effect
    return found
