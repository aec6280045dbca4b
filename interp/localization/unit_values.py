"""The values of units in one forward, and how much each unit writes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks.hooks import Clock, Value, Visit, tapped
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating


def per_unit(
    subject: Subject, site: Site, values: Float[Tensor, "... width"]
) -> Float[Tensor, "... units"]:
    """The sum over each unit's columns."""
    return values.unflatten(-1, (subject.anatomy.place(site).units, -1)).sum(-1)


def written(
    subject: Subject, site: Site, value: Float[Tensor, "... width"]
) -> Float[Tensor, "... units"]:
    """The length of what each unit adds to the residual: |h| ||v|| for a neuron, |z W_O| for a
    head; at sites that are no input of a projection, the length of the unit itself."""
    place = subject.anatomy.place(site)
    units = value.double().unflatten(-1, (place.units, -1))
    if site.point not in ("neurons", "heads"):
        return units.norm(dim=-1)
    rows = (
        subject.anatomy.out_weight(subject.module, site)
        .detach()
        .double()
        .unflatten(0, (place.units, -1))
    )
    if units.shape[-1] == 1:
        return units[..., 0].abs() * rows[:, 0].norm(dim=-1)
    gram = torch.einsum("ucd,ued->uce", rows, rows)
    return torch.einsum("...uc,uce,...ue->...u", units, gram, units).clamp(min=0).sqrt()


def values_at(subject: Subject, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Value]:
    """The activations of one forward at some sites."""
    seen: dict[Site, Tensor] = {}

    def visit(site: Site) -> Visit:
        def keep(value: Value, _: Clock) -> None:
            seen[site] = value.clone()

        return keep

    with (
        evaluating(subject),
        torch.inference_mode(False),
        torch.no_grad(),
        tapped(subject, {site: visit(site) for site in sites}),
    ):
        subject.touch(batch)
    return seen
