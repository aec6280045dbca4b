"""Edits of a unit's weights as plans: what is written to no weight, and can be compared with random
units like any other ablation."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from interp.interventions.kinds import Add, Intervention, Scale
from interp.sites.anatomy import out_rows
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.subject import Subject


def in_weights(
    subject: Subject, units: Units, factor: float, *, bias: bool = False
) -> tuple[Intervention, ...]:
    """Multiplies the weights by which neurons read by a factor, as a plan: `fc1.weight[unit] *=
    factor` in an MLP fc2(act(fc1(x))).

    Kasliwal et al. 2025 (arXiv 2509.00488) take 0.5 and leave the bias; `bias` scales it too. It is
    not the same as halving what a neuron writes, `Scale(units, factor=0.5)`, for the activation
    function lies between.

    Raises ValueError for units that are no neurons of such an MLP, as in gated ones.
    """
    inner = {site: _reading(subject, site) for site in units.sites}
    moved = Units(
        {place: units[site] for site, (place, _) in inner.items()},
        {place: units.widths[site] for site, (place, _) in inner.items()},
    )
    if bias:
        return (Scale(moved, factor=factor),)
    kept = {place: (1 - factor) * values for place, values in inner.values()}
    return Scale(moved, factor=factor), Add(moved, values=kept)


def _reading(subject: Subject, site: Site) -> tuple[Site, np.ndarray]:
    """The output of the projection whose activation a site of neurons is, and its bias."""
    place = subject.anatomy.place(site)
    path, _, own = place.path.rpartition(".")
    parent = subject.module.get_submodule(path)
    found = [
        name
        for name, child in parent.named_children()
        if name != own and _projects_to(child, place.width)
    ]
    if site.point != "neurons" or len(found) != 1:
        raise ValueError(
            f"{site}: expected neurons that one projection feeds, as in VAR, RAR and GPT-2; found {len(found)} of them"
        )
    projection = parent.get_submodule(found[0])
    bias = getattr(projection, "bias", None)
    values = torch.zeros(place.width) if bias is None else bias.detach()
    return subject.anatomy.resolve(f"{path}.{found[0]}:out"), values.double().cpu().numpy()


def _projects_to(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, torch.Tensor) and weight.ndim == 2 and out_rows(module).shape[1] == width
    )
