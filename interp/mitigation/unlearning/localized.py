"""Localized training: gradients that reach only the weights with which some units write."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from interp.errors import SiteError
from interp.sites.anatomy import as_rows
from interp.sites.units import Units
from interp.subject.subject import Subject


@contextmanager
def gradients_only_into(subject: Subject, units: Units) -> Generator[None]:
    """Confines gradients to the rows of the out-projections that belong to some units.

    Every other weight gets a gradient of exactly 0, or none, so that Adam without weight decay
    leaves it as it is, bit for bit. On exit every parameter is trained or not as before.

    Args:
        subject: the model.
        units: neurons or heads: what is trained is what these write to the residual stream. For the
            control, random units of the same number: `units.draw_matched(seed)`.

    Raises:
        ValueError: there are no units, they are another model's, or a projection is shared.
        SiteError: a site that is not the input of an out-projection with a plain weight.

    Example:
        >>> import copy
        >>> from interp.mitigation.unlearning.localized import gradients_only_into
        >>> learner = interp.load(copy.deepcopy(subject.module))
        >>> weight = learner.module.model.layers[0].mlp.down_proj.weight
        >>> with gradients_only_into(learner, learner.units("blocks.0.neurons", [3, 5])):
        ...     learner.losses(batch).sum().backward()
        >>> weight.grad.abs().sum(0).nonzero()[:, 0]
        tensor([3, 5])
    """
    masks = _masks(subject, units)
    parameters = list(subject.module.parameters())
    was_trained = [parameter.requires_grad for parameter in parameters]
    handles = []
    try:
        # Tensors are hashed by identity, so that `in` asks for the parameter itself.
        for parameter in parameters:
            parameter.requires_grad_(parameter in masks)
        for weight, mask in masks.items():
            handles.append(weight.register_hook(_keep(mask)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, trained in zip(parameters, was_trained, strict=True):
            parameter.requires_grad_(trained)


def _masks(subject: Subject, units: Units) -> dict[Tensor, Tensor]:
    """For each out-projection's weight, True where it belongs to one of the units."""
    if not len(units):
        raise ValueError("there are no units: expected at least one neuron or head to train")
    fitted = subject.anatomy.fit(units)
    masks: dict[Tensor, Tensor] = {}
    for site in fitted.sites:
        subject.anatomy.out_weight(subject.module, site)  # refuses what has none
        path = subject.anatomy.place(site).path
        projection = subject.module.get_submodule(path)
        weight = projection.get_parameter("weight")
        _refuse_shared(subject, path, weight)
        mask = torch.zeros_like(weight, dtype=torch.bool)
        columns = subject.anatomy.columns(site, fitted[site])
        # A view of the mask with one row per column of the site, whichever way the layer stores its
        # weight: what is written into it is in the mask.
        as_rows(projection, mask)[torch.as_tensor(columns)] = True
        masks[weight] = mask
    return masks


def _refuse_shared(subject: Subject, path: str, weight: Tensor) -> None:
    named = subject.module.named_parameters(remove_duplicate=False)
    owners = [name for name, parameter in named if parameter is weight]
    if len(owners) > 1:
        raise SiteError(
            f"the weight of {path} is shared by {' and '.join(owners)}, so that training it would "
            "change more than what these units write; choose units of other sites"
        )


def _keep(mask: Tensor) -> Callable[[Tensor], Tensor]:
    def keep(gradient: Tensor) -> Tensor:
        # Not a product, which would keep NaN.
        return gradient.masked_fill(~mask, 0)

    return keep
