"""Sites in captum's terms, for its layer attributions; and one of these attributions, to check our
own against."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import SiteError
from interp.hooks.hooks import Hooked, first_tensor
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject


def layers(subject: Hooked, sites: Sites) -> list[tuple[nn.Module, bool]]:
    """Returns captum's (layer, attribute_to_layer_input) for each site.

    Args:
        subject: the model.
        sites: where to attribute to.

    Raises:
        SiteError: `resid_mid`, `block_out`, and what a model scales before it adds it, which are
            not the input or output of a layer.

    Example:
        >>> from interp.adapters import captum
        >>> ((layer, to_input),) = captum.layers(subject, "blocks.1.neurons")
        >>> layer, to_input
        (Linear(in_features=48, out_features=32, bias=False), True)
    """
    found: list[tuple[nn.Module, bool]] = []
    for site in subject.anatomy.expand(sites):
        place = subject.anatomy.place(site)
        if place.base is not None or not place.is_plain:
            raise SiteError(
                f"{site} is {place}, which captum cannot name: "
                "attribute to attn_out or to resid_pre of the next block"
            )
        module = subject.module.get_submodule(place.path)
        found.append((module, place.side == "in"))
    return found


def gradient_x_activation(
    subject: Subject, batch: Batch, sites: Sites
) -> dict[Site, Float[Tensor, "batch units"]]:
    """Returns -sum_t h_t * dL/dh_t for each row of a batch, by captum's LayerGradientXActivation,
    where L is the row's mean loss over its targets.

    `interp.localization` computes the same without captum. The value of a head is the sum over its
    columns.

    Args:
        subject: the model.
        batch: the rows.
        sites: where to attribute to.

    Returns:
        [batch, units] for each site.

    Raises:
        SiteError: captum cannot read the module of a site.
    """
    from captum.attr import LayerGradientXActivation

    def loss(tokens: Tensor) -> Tensor:  # noqa: ARG001 - captum passes the tokens back
        counted = batch.counted.to(subject.device)
        return subject.losses(batch).sum(1) / counted.sum(1)

    chosen = subject.anatomy.expand(sites)
    layer_of_site = dict(zip(chosen, layers(subject, sites), strict=True))
    tokens = batch.tokens.to(subject.device)

    # captum attributes to the inputs of several layers, or to their outputs, but not to both in one
    # call.
    result: dict[Site, Tensor] = {}
    for to_input in (False, True):
        own: list[Site] = []
        modules: list[nn.Module] = []
        for site, (module, is_input) in layer_of_site.items():
            if is_input is to_input:
                own.append(site)
                modules.append(module)
        if not own:
            continue
        attribution = LayerGradientXActivation(loss, modules)
        products = _attribute(attribution, tokens, to_input)
        for site, product in zip(own, products, strict=True):
            result[site] = _sum_by_unit(subject, site, product, len(batch))
    return {site: result[site] for site in chosen}


def _attribute(attribution: Any, tokens: Tensor, to_input: bool) -> Any:  # noqa: FBT001
    try:
        return attribution.attribute(tokens, attribute_to_layer_input=to_input)
    except AssertionError as error:
        raise SiteError(
            "captum reads modules that return nothing but tensors, "
            f"and one of these returns something else ({error}): use neurons and heads"
        ) from error


def _sum_by_unit(
    subject: Hooked, site: Site, products: object, rows: int
) -> Float[Tensor, "batch units"]:
    value = first_tensor(products)
    assert value is not None
    # Minus the products, summed over positions and then over the columns of each unit.
    width = value.shape[-1]
    by_position = -value.detach().reshape(rows, -1, width)  # [rows, position, width]
    columns = by_position.sum(1, dtype=torch.float64)
    units = subject.anatomy.place(site).units
    by_unit = columns.unflatten(1, (units, -1))  # [rows, units, columns of a unit]
    return by_unit.sum(-1).cpu()
