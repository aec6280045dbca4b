"""Weights that are not in their module until it runs, or not whole.

accelerate keeps some elsewhere, on disk or in memory off the accelerator. Such a parameter is a
shell on the meta device. Its hook holds the values and puts them in place for the time of the
module's forward. Of weights that FSDP2 has sharded, each process holds a part (see
`interp.sites.sharding`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.sites.anatomy import Anatomy, as_rows
from interp.sites.sharding import is_fully_sharded, whole
from interp.sites.site import Site


def stored_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and the values of every parameter, one at a time; those that are offloaded
    are read from where they are kept, and those that are sharded from all processes.

    A parameter that is stored nowhere is yielded as it is, on the meta device.
    """
    for name, parameter in module.named_parameters():
        yield name, stored(module, name, parameter)


def stored(module: nn.Module, name: str, shell: Tensor) -> Tensor:
    """Returns the values of a parameter or buffer, read from where they are kept if it is
    offloaded, and from all processes if it is sharded."""
    found = _offloaded(module, name) if shell.is_meta else None
    return whole(shell) if found is None else found[1]


def stored_out_weight(
    module: nn.Module, anatomy: Anatomy, site: Site
) -> Float[Tensor, "columns d_model"]:
    """Returns the rows with which the columns of `neurons` or `heads` write to the residual, to be
    read only: a copy where the weight is kept elsewhere.

    Args:
        module: the module that the anatomy describes.
        anatomy: where its sites are.
        site: a `neurons` or `heads` site.

    Raises:
        SiteError: see `Anatomy.out_projection`.

    Example:
        >>> from interp.subject.offloading import stored_out_weight
        >>> rows = stored_out_weight(subject.module, subject.anatomy, interp.Site("neurons", 0))
        >>> torch.equal(rows, subject.anatomy.out_weight(subject.module, "blocks.0.neurons"))
        True
    """
    projection = anatomy.out_projection(module, site)
    path = anatomy.place(site).path
    weight = stored(module, f"{path}.weight", projection.get_parameter("weight"))
    return as_rows(projection, weight.detach())


def refuse_offloaded(module: nn.Module, reason: str) -> None:
    """Raises ValueError if weights of a module are offloaded.

    Args:
        module: the module.
        reason: why that cannot be, and the way out.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name} is offloaded: {reason}")


def refuse_not_whole(module: nn.Module, reason: str) -> None:
    """Raises ValueError if weights of a module are offloaded, or sharded over processes.

    Args:
        module: the module.
        reason: why that cannot be, and the way out.
    """
    refuse_offloaded(module, reason)
    if is_fully_sharded(module):
        raise ValueError(f"{type(module).__name__} is sharded over processes: {reason}")


def device_of(module: nn.Module) -> torch.device:
    """Returns the device on which the first parameter of a module is, or, if it is offloaded, the
    one to which it is moved when it is needed."""
    name, parameter = next(iter(module.named_parameters()))
    found = _offloaded(module, name) if parameter.is_meta else None
    device = None if found is None else found[0].execution_device
    if device is None:
        return parameter.device
    # accelerate counts accelerators with plain integers.
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _offloaded(module: nn.Module, name: str) -> tuple[Any, Tensor] | None:
    """accelerate's hook that holds a weight, and the weight."""
    path, _, last = name.rpartition(".")
    # From the module that has the weight outwards: the hook of a block may hold all of its weights.
    while True:
        owner = module.get_submodule(path)
        for hook in _hooks(owner):
            weights: Mapping[str, Tensor] | None = getattr(hook, "weights_map", None)
            if weights is None:
                continue
            with suppress(KeyError):
                return hook, weights[last]
        if not path:
            return None
        path, _, child = path.rpartition(".")
        last = f"{child}.{last}"


def _hooks(module: nn.Module) -> list[Any]:
    hook: Any = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook]))  # several may be chained in one
