"""Which weights belong to some units alone: those that have no gradient once the units are zero.

They are found by running the model, and not by the names of its modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp.hooks.hooks import intervened
from interp.hooks.modes import dropout_off
from interp.interventions.kinds import Zero
from interp.sites.site import Site
from interp.sites.units import Units
from interp.subject.batch import Batch
from interp.subject.offloading import refuse_not_whole
from interp.subject.subject import Subject


def unit_parameters(subject: Subject, units: Units, batch: Batch) -> dict[str, Tensor]:
    """Returns the weights that belong to some neurons: the rows that read for them, their biases,
    and what they write.

    Args:
        subject: the model.
        units: some of the neurons of each of their sites, and not all.
        batch: any text; the more, the fewer neurons are off by chance.

    Returns:
        For each parameter with such weights, by its name in the module, a mask of its shape that is
        True on them.

    Raises:
        ValueError: no units, all neurons of a site, or a site for which no such weights are found,
            as where neurons share their weights.

    Example:
        >>> from interp.training.unit_parameters import unit_parameters
        >>> found = unit_parameters(subject, subject.units("blocks.0.neurons", [3, 5]), batch)
        >>> [(name.rpartition("mlp.")[2], int(mask.sum())) for name, mask in found.items()]
        [('gate_proj.weight', 64), ('up_proj.weight', 64), ('down_proj.weight', 64)]
    """
    units = subject.anatomy.fit(units)
    if not len(units):
        raise ValueError("no units were given: expected at least one neuron")
    refuse_not_whole(
        subject.module,
        "its gradient, by which the weights of neurons are found, is not kept; "
        "load the model whole on one device",
    )
    masks: dict[str, Tensor] = {}
    for site in units.sites:
        masks |= _of_site(subject, units.only(site, units[site]), site, batch)
    return masks


def _of_site(subject: Subject, units: Units, site: Site, batch: Batch) -> dict[str, Tensor]:
    width = units.widths[site]
    chosen = torch.zeros(width, dtype=torch.bool)
    chosen[torch.from_numpy(units[site])] = True
    if chosen.all():
        raise ValueError(f"all {width} neurons of {site} were given: expected some of them")
    others = units.only(site, (~chosen).nonzero().flatten().tolist())
    without_units = _gradients(subject, units, batch)
    without_others = _gradients(subject, others, batch)

    found: dict[str, Tensor] = {}
    for name, parameter in subject.module.named_parameters():
        for axis, size in enumerate(parameter.shape):
            if size != width:
                continue
            silent = _silent(without_units[name], axis)
            silent_others = _silent(without_others[name], axis)
            # Both ways: an axis that only has the same size has gradients everywhere, or nowhere.
            belongs = silent[chosen].all() and silent_others[~chosen].all()
            if belongs and not silent.all() and not silent_others.all():
                shape = [1] * parameter.ndim
                shape[axis] = width
                mask = chosen.to(parameter.device).view(shape)
                found[name] = mask.expand(parameter.shape).clone()
    if not found:
        raise ValueError(
            f"no weights were found that belong to neurons of {site} alone: are they shared, or "
            "frozen?"
        )
    return found


def _gradients(subject: Subject, zeroed: Units, batch: Batch) -> Mapping[str, Tensor]:
    named = dict(subject.module.named_parameters())
    trained = {name: value for name, value in named.items() if value.requires_grad}
    with dropout_off(subject.module), torch.enable_grad(), intervened(subject, Zero(zeroed)):
        loss = subject.losses(batch).sum()
        # None where the loss does not depend on a parameter, which torch does not declare.
        gradients: Any = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    # A frozen parameter gets zeros everywhere, and so belongs to no units.
    found = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    reached = zip(trained, gradients, strict=True)
    return found | {name: gradient for name, gradient in reached if gradient is not None}


def _silent(gradient: Tensor, axis: int) -> Tensor:
    """Which slices along an axis are zero throughout."""
    rest = [other for other in range(gradient.ndim) if other != axis]
    largest = gradient.abs().amax(rest) if rest else gradient.abs()
    return largest.cpu() == 0
