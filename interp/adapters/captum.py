"""Sites in captum's terms, for its layer attributions; and one of them as an oracle for our own."""

from __future__ import annotations

from itertools import groupby
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
    """For each site captum's (layer, attribute_to_layer_input). Raises SiteError for `resid_mid`
    and `block_out`, no layer's value."""
    found: list[tuple[nn.Module, bool]] = []
    for site in subject.anatomy.expand(sites):
        place = subject.anatomy.place(site)
        if place.base is not None:
            raise SiteError(
                f"{site} is {place}, which captum cannot name: attribute to attn_out or to resid_pre of the next block"
            )
        found.append((subject.module.get_submodule(place.path), place.side == "in"))
    return found


def gradient_x_activation(
    subject: Subject, batch: Batch, sites: Sites
) -> dict[Site, Float[Tensor, "batch units"]]:
    """-sum_t h_t * dL/dh_t for each row of a batch, by captum's LayerGradientXActivation; L is the
    row's mean loss over its targets.

    What `interp.localization` computes by itself; a head's value is the sum over its coordinates.
    Raises SiteError where captum cannot read the module.
    """
    from captum.attr import LayerGradientXActivation

    def loss(tokens: Tensor) -> Tensor:  # noqa: ARG001 - captum passes the tokens back
        return subject.losses(batch).sum(1) / batch.counted.to(subject.device).sum(1)

    result: dict[Site, Tensor] = {}
    pairs = zip(subject.anatomy.expand(sites), layers(subject, sites), strict=True)
    for inward, group in groupby(
        sorted(pairs, key=lambda pair: pair[1][1]), key=lambda pair: pair[1][1]
    ):
        members = list(group)
        attribution = LayerGradientXActivation(loss, [module for _, (module, _) in members])
        found = _attributed(attribution, batch.tokens.to(subject.device), inward)
        result |= {
            site: _by_unit(subject, site, value, len(batch))
            for (site, _), value in zip(members, found, strict=True)
        }
    return {site: result[site] for site in subject.anatomy.expand(sites)}


def _attributed(attribution: Any, tokens: Tensor, inward: bool) -> Any:  # noqa: FBT001
    try:
        return attribution.attribute(tokens, attribute_to_layer_input=inward)
    except AssertionError as error:
        raise SiteError(
            f"captum reads modules that answer with tensors only, and one of these does not ({error}): use neurons and heads"
        ) from error


def _by_unit(
    subject: Hooked, site: Site, products: object, rows: int
) -> Float[Tensor, "batch units"]:
    value = first_tensor(products)
    assert value is not None
    summed = -value.detach().reshape(rows, -1, value.shape[-1]).sum(1, dtype=torch.float64)
    return summed.unflatten(1, (subject.anatomy.place(site).units, -1)).sum(-1).cpu()
