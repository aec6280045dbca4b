"""Which units are worth the pass that Zero-Out costs: estimates of its result for all of them, from
one forward and one backward.

L is a window's loss, t a position, h_t a unit's activation, d_t = -h_t W what zeroing it adds to
the residual stream r_t that it writes to, and g_t = dL/dr_t. The first order alone misses the
strongest units, which are the least linear: what they add bends the stream.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import SiteError
from interp.localization.registry import Places
from interp.localization.unit_values import per_unit, written
from interp.localization.window_losses import differentiated
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Screen = Mapping[Site, Float[Tensor, "windows units"]]
_WRITES_TO = {"neurons": ("resid_post",), "heads": ("resid_mid", "resid_post")}


def first_or_curved(subject: Subject, batch: Batch, sites: Places) -> Screen:
    """The first units of `first_order` and of `curved`, in turn: minus a unit's best rank over all
    sites. Costs 3 passes (a backward is 2).

    On stories15M, verifying 5% of the neurons so keeps .99 of the top 1% of exhaustive Zero-Out
    (`benchmarks/screens.py`).
    """
    return interleaved(*estimates(subject, batch, sites))


def estimates(subject: Subject, batch: Batch, sites: Places) -> tuple[Screen, Screen]:
    """Two estimates of what zeroing a unit does to each window's loss, higher for more:

    - first_order: sum_t -h_t * dL/dh_t;
    - curved: sum_t max(0, -h_t * dL/dh_t) + |g_t| |d_t|^2 / (2 |r_t|), an upper second-order
    estimate.

    L reads the last stream through a norm, so that only the direction of r counts: g is homogeneous
    of degree -1 in r, and by Euler's theorem H r = -g for the Hessian H. |g| / |r| is thus its size
    along r in the last stream, and a scale for it in those below (our derivation). Where the slope
    falls it counts for nothing in `curved`: it says least about where a long step ends.

    Raises SiteError for sites other than neurons and heads.
    """
    streams = {site: _stream(subject, site) for site in sites}
    values, slopes = differentiated(
        subject, batch, tuple(dict.fromkeys((*sites, *streams.values())))
    )
    first: dict[Site, Tensor] = {}
    second: dict[Site, Tensor] = {}
    for site, stream in streams.items():
        rises, moved = (
            per_unit(subject, site, -(values[site] * slopes[site])).double(),
            written(subject, site, values[site]),
        )
        sharpness = slopes[stream].norm(dim=-1, keepdim=True) / values[stream].norm(
            dim=-1, keepdim=True
        ).clamp(min=1e-12)
        first[site], second[site] = (
            rises.sum(1),
            (rises.clamp(min=0) + sharpness * moved**2 / 2).sum(1),
        )
    return first, second


def interleaved(*screens: Screen) -> Screen:
    """One score by which the first units of every screen come first, in turn: minus the unit's best
    rank over all sites, per window."""
    sizes = [rows.shape[1] for rows in screens[0].values()]
    flat = [torch.cat(list(screen.values()), 1) for screen in screens]
    ranks = [
        rows.argsort(dim=1, descending=True, stable=True).argsort(dim=1) * len(flat) + n
        for n, rows in enumerate(flat)
    ]
    best = -torch.stack(ranks).amin(0).double()
    return dict(zip(screens[0], best.split(sizes, dim=1), strict=True))


def _stream(subject: Subject, site: Site) -> Site:
    """Where what a unit writes lands: the residual after its layer."""
    known = [Site(point, site.block, site.stack) for point in _WRITES_TO.get(site.point, ())]
    found = next((s for s in known if s in subject.anatomy.places), None)
    if found is None:
        raise SiteError(
            f"{site} cannot be screened: it is not the input of a projection to the residual; pass exhaustive=True"
        )
    return found
