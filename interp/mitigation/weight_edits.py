"""Edits of weights, expressed as plans: no weight is written, and the edit can be compared with the
same edit of random units, like any other ablation."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from interp.interventions.kinds import Add, Intervention, Scale
from interp.sites.anatomy import out_rows
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.offloading import stored
from interp.subject.subject import Subject


def in_weights(
    subject: Subject, units: Units, factor: float, *, bias: bool = False
) -> tuple[Intervention, ...]:
    """Returns the plan that multiplies the input weights of neurons by a factor: `fc1.weight[unit]
    *= factor` in an MLP fc2(act(fc1(x))).

    Kasliwal et al. 2025 (arXiv 2509.00488) use the factor 0.5 and leave the bias as it is. It is
    not the same as halving what a neuron writes, `Scale(units, factor=0.5)`, because the activation
    function is in between.

    Args:
        subject: the model.
        units: neurons.
        factor: what their input weights are multiplied by.
        bias: whether the bias of fc1 is multiplied too.

    Raises:
        ValueError: units that are not neurons of such an MLP. Gated MLPs are not: two projections
            feed their neurons.
    """
    positions: dict[Site, np.ndarray] = {}
    widths: dict[Site, int] = {}
    kept_biases: dict[Site, np.ndarray] = {}
    units = subject.anatomy.fit(units)
    for site in units.sites:
        place, biases = _input_projection(subject, site)
        positions[place] = units[site]
        widths[place] = units.widths[site]
        kept_biases[place] = (1 - factor) * biases
    moved = Units(positions, widths)

    # The plan acts on fc1's output, w x + b, and scaling it scales b too. To leave the bias as it
    # is, the part that was lost is added again: f (w x + b) + (1 - f) b = f w x + b.
    if bias:
        return (Scale(moved, factor=factor),)
    return Scale(moved, factor=factor), Add(moved, values=kept_biases)


def _input_projection(subject: Subject, site: Site) -> tuple[Site, np.ndarray]:
    """The output of the projection that feeds a site of neurons, and the projection's bias."""
    place = subject.anatomy.place(site)
    path, _, own = place.path.rpartition(".")
    parent = subject.module.get_submodule(path)
    # By its shape, because its name differs between families: fc1 here, c_fc there.
    found = [
        name
        for name, child in parent.named_children()
        if name != own and _projects_to(child, place.width)
    ]
    if site.point != "neurons" or len(found) != 1:
        raise ValueError(
            f"{site}: expected neurons that one projection feeds, as in VAR, RAR and GPT-2; "
            f"found {len(found)} of them"
        )
    (name,) = found
    bias = getattr(parent.get_submodule(name), "bias", None)
    if bias is None:
        values = torch.zeros(place.width)
    else:
        values = stored(subject.module, f"{path}.{name}.bias", bias).detach()
    output = subject.anatomy.resolve(f"{path}.{name}:out")
    return output, values.double().cpu().numpy()


def _projects_to(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return False
    return out_rows(module).shape[1] == width
