"""The values of units in one forward, and how much each unit writes to the residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, Visit, tapped
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.offloading import stored_out_weight
from interp.subject.subject import Subject, evaluating


def per_unit(
    subject: Subject, site: Site, values: Float[Tensor, "... width"]
) -> Float[Tensor, "... units"]:
    """Returns the sum of the values in each unit's columns: a neuron has one column, a head
    several.

    Example:
        >>> site = interp.Site("heads", 0)  # 4 heads of 8 columns
        >>> per_unit(subject, site, torch.ones(32))
        tensor([8., 8., 8., 8.])
    """
    units = subject.anatomy.place(site).units
    by_unit = values.unflatten(-1, (units, -1))  # [..., units, columns per unit]
    return by_unit.sum(-1)


def written_lengths(
    subject: Subject, site: Site, value: Float[Tensor, "... width"]
) -> Float[Tensor, "... units"]:
    """Returns the length of what each unit adds to the residual stream, in double precision.

    |h| ||v|| for a neuron with output row v, |z W_O| for a head. At sites that are not the input of
    a projection, the length of the unit itself.
    """
    units = subject.anatomy.place(site).units
    by_unit = value.double().unflatten(-1, (units, -1))
    if site.point not in ("neurons", "heads"):
        return by_unit.norm(dim=-1)
    out_weight = stored_out_weight(subject.module, subject.anatomy, site)
    precise = out_weight.double().to(value.device)
    rows = precise.unflatten(0, (units, -1))  # [units, columns per unit, d_model]
    columns_per_unit = by_unit.shape[-1]
    if columns_per_unit == 1:
        row_lengths = rows[:, 0].norm(dim=-1)
        return by_unit[..., 0].abs() * row_lengths

    # |z W|^2 = z (W W^T) z^T for each head u: its Gram matrix W W^T is small, while z W for every
    # head and position would be as wide as the stream. Rounding can bring a square of 0 below 0.
    gram = torch.einsum("ucd,ued->uce", rows, rows)
    squares = torch.einsum("...uc,uce,...ue->...u", by_unit, gram, by_unit)
    return squares.clamp(min=0).sqrt()


def values_at(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Value]:
    """Returns the activations of one forward at some sites, each [windows, position, width].

    Example:
        >>> site = interp.Site("neurons", 0)
        >>> values_at(subject, batch, (site,))[site].shape
        torch.Size([12, 16, 48])
    """
    values: dict[Site, Tensor] = {}

    def visit(site: Site) -> Visit:
        def keep(value: Value, _: Clock) -> None:
            values[site] = value.clone()  # the model may change its own tensor in place later

        return keep

    visits = {site: visit(site) for site in sites}
    with (
        evaluating(subject),
        # not inference tensors: callers differentiate with respect to what is made from these
        torch.inference_mode(False),
        torch.no_grad(),
        tapped(subject, visits),
    ):
        subject.touch(batch)
    return values
