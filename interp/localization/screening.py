"""Screening: cheap estimates of what Zero-Out would give for every unit, from one forward and one
backward pass, to choose the units worth an exact pass.

Notation: L is a window's loss, t a position, h_t a unit's activation, d_t = -h_t W what zeroing the
unit adds to the residual stream r_t that it writes to, and g_t = dL/dr_t. A first-order estimate
alone misses the strongest units, which are the least linear: what they add bends the stream.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import SiteError
from interp.localization.registry import Places
from interp.localization.unit_values import per_unit, written_lengths
from interp.localization.window_losses import differentiate
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Screen = Mapping[Site, Float[Tensor, "windows units"]]
_WRITES_TO = {"neurons": ("resid_post",), "heads": ("resid_mid", "resid_post")}


def first_or_curved(subject: Subject, batch: Batch, sites: Places) -> Screen:
    """Returns scores that rank first what either of the two `estimates` ranks first.

    Costs 3 forward passes (a backward pass costs 2). On stories15M, verifying the first 5% of the
    neurons in this order finds 0.99 of the top 1% of exhaustive Zero-Out (`benchmarks/screens.py`).

    Args:
        subject: the model.
        batch: the windows.
        sites: sites of neurons or heads.

    Returns:
        {site: [windows, units]}: minus a unit's best rank over all sites.

    Raises:
        SiteError: for sites other than neurons and heads.

    Example:
        >>> site = interp.Site("neurons", 1)
        >>> first_or_curved(subject, batch, (site,))[site].shape
        torch.Size([12, 48])
    """
    return interleave(*estimates(subject, batch, sites))


def estimates(subject: Subject, batch: Batch, sites: Places) -> tuple[Screen, Screen]:
    """Returns two estimates of what zeroing a unit adds to each window's loss.

    - first_order: sum_t -h_t * dL/dh_t;
    - curved: sum_t max(0, -h_t * dL/dh_t) + |g_t| |d_t|^2 / (2 |r_t|), an upper second-order
      estimate.

    The second term of `curved` (our derivation): L reads the last stream through a norm, so that
    only the direction of r counts. Then g is homogeneous of degree -1 in r, and H r = -g for the
    Hessian H by Euler's theorem. |g| / |r| is thus the size of H along r in the last stream, and
    sets the scale in the streams below. A falling slope counts as 0 in `curved`: where the step is
    long, the slope at its start says least about its end.

    Args:
        subject: the model.
        batch: the windows.
        sites: sites of neurons or heads.

    Returns:
        (first_order, curved), each {site: [windows, units]}; higher for a larger rise of the loss.

    Raises:
        SiteError: for sites other than neurons and heads.
    """
    streams = {site: _stream(subject, site) for site in sites}
    # One backward for all: sites of one block write to the same stream, which is taken once.
    distinct = dict.fromkeys((*sites, *streams.values()))
    values, gradients = differentiate(subject, batch, tuple(distinct))

    first_order: dict[Site, Tensor] = {}
    curved: dict[Site, Tensor] = {}
    for site, stream in streams.items():
        # the slope of the loss, -h_t * dL/dh_t: [windows, position, units]
        product = values[site] * gradients[site]
        rises = per_unit(subject, site, -product).double()

        # the bend, |g_t| / |r_t| * |d_t|^2 / 2: one curvature at each position, [windows, position,
        # 1], holds for all units that write there
        step_lengths = written_lengths(subject, site, values[site])
        lengths = values[stream].norm(dim=-1, keepdim=True)
        stream_lengths = lengths.clamp(min=1e-12)  # divided by below
        slopes = gradients[stream].norm(dim=-1, keepdim=True)
        curvature = slopes / stream_lengths
        bend = curvature * step_lengths**2 / 2
        first_order[site] = rises.sum(1)
        rises_alone = rises.clamp(min=0)
        curved[site] = (rises_alone + bend).sum(1)
    return first_order, curved


def interleave(*screens: Screen) -> Screen:
    """Merges rankings: the first units of every screen come first, taken from each screen in turn.

    Args:
        *screens: scores of the same units, {site: [windows, units]}; higher comes first.

    Returns:
        {site: [windows, units]}: minus the unit's best rank, over all sites, in any of the screens.

    Example:
        >>> site = interp.Site("neurons", 0)
        >>> by_one = {site: torch.tensor([[3.0, 2.0, 1.0]])}
        >>> by_other = {site: torch.tensor([[1.0, 2.0, 3.0]])}
        >>> interleave(by_one, by_other)[site].argsort(descending=True)  # 0, then 2, then 1
        tensor([[0, 2, 1]])
    """
    ranks: list[Tensor] = []
    for number, screen in enumerate(screens):
        scores = torch.cat(list(screen.values()), 1)  # [windows, all units]
        order = scores.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)  # the inverse permutation
        ranks.append(rank * len(screens) + number)  # the first of all screens before any second
    best_rank = torch.stack(ranks).amin(0)
    scores = -best_rank.double()
    widths = [rows.shape[1] for rows in screens[0].values()]
    by_site = scores.split(widths, dim=1)
    return dict(zip(screens[0], by_site, strict=True))


def _stream(subject: Subject, site: Site) -> Site:
    """The residual stream that the units of a site write to: the one after their layer."""
    for point in _WRITES_TO.get(site.point, ()):
        stream = Site(point, site.block, site.stack)
        if stream in subject.anatomy.places:
            return stream
    raise SiteError(
        f"{site} cannot be screened: it is not the input of a projection to the residual; "
        "pass exhaustive=True"
    )
