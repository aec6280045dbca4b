"""Weights that FSDP2 (`torch.distributed.fsdp.fully_shard`) has sharded over processes.

Each process holds a part of every weight. It is whole, and a plain tensor, only while the module
runs that was given to `fully_shard`. To read one is an exchange between all processes: each of them
has to ask for the same weights in the same order.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch.distributed
from torch import Tensor, nn

from interp.errors import LoadError

_WAY_OUT = "shard it with torch.distributed.fsdp.fully_shard over one axis of processes"


def is_fully_sharded(module: nn.Module) -> bool:
    """Returns whether a module, or one within it, was given to `fully_shard`.

    Example:
        >>> from interp.sites.sharding import is_fully_sharded
        >>> is_fully_sharded(subject.module)
        False
    """
    return any(map(_is_owner, module.modules()))


def writes_for_all(module: nn.Module) -> bool:
    """Returns whether this process writes what all have gathered of a module: the first of those
    that it is sharded over, and each process where it is not."""
    return not is_fully_sharded(module) or torch.distributed.get_rank() == 0


def is_sharded_at(module: nn.Module, path: str) -> bool:
    """Returns whether the part at a path, or a module around it, was given to `fully_shard`.

    Its weights may be whole at this moment all the same: those of the root stay so after a forward,
    and a change of them would be lost.
    """
    return _owner(module, path) is not None


def reshard(module: nn.Module) -> None:
    """Leaves every process with its part of each weight, also where a forward left them whole."""
    for part in module.modules():
        owner: Any = part
        if _is_owner(part):
            owner.reshard()


def _is_part(weight: Tensor) -> bool:
    # By what it can do, since importing its class, DTensor, takes a second.
    return hasattr(weight, "full_tensor")


def whole(weight: Tensor) -> Tensor:
    """Returns a weight with the parts of all processes, without its gradient; a weight that is not
    sharded as it is.

    Example:
        >>> from interp.sites.sharding import whole
        >>> weight = subject.module.lm_head.weight
        >>> whole(weight) is weight
        True
    """
    sharded: Any = weight
    return sharded.detach().full_tensor() if _is_part(weight) else weight


def sharded_like(values: Tensor, weight: Tensor) -> Tensor:
    """Returns this process's part of values for a sharded weight; for another weight all values."""
    if not _is_part(weight):
        return values
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = weight
    return distribute_tensor(values.to(sharded.device), sharded.device_mesh, sharded.placements)


@contextmanager
def in_place(module: nn.Module, path: str) -> Generator[None]:
    """Makes the weights of a part of a module whole for the time of the block, so that the part
    can be called by itself.

    Args:
        module: the module.
        path: the path of the part.
    """
    owner: Any = _owner(module, path)
    if owner is None:
        yield
        return
    owner.unshard()
    try:
        yield
    finally:
        owner.reshard()


def unsharded_class(kind: type) -> type:
    """Returns the class that a module had before `fully_shard`, which gives it one of its own; of
    another class the class itself.

    Example:
        >>> from interp.sites.sharding import unsharded_class
        >>> unsharded_class(torch.nn.Linear)
        <class 'torch.nn.modules.linear.Linear'>
    """
    # `fully_shard` notes there which of the new class's bases is the class from before.
    number = getattr(kind, "_orig_cls_mro_index", None)
    return kind if number is None else kind.__mro__[number]


def check_sharding(module: nn.Module) -> None:
    """Refuses sharded weights that cannot be read and verified.

    Args:
        module: a model.

    Raises:
        LoadError: weights are sharded by something else than `fully_shard`, such as tensor
            parallelism, over several axes of processes, with another precision in the forward, or
            with weights that are offloaded.
    """
    for path, part in module.named_modules():
        if type(part).__name__ == "FullyShardedDataParallel":
            raise LoadError(
                f"{path or type(module).__name__} is wrapped in FullyShardedDataParallel, which "
                f"flattens its weights: {_WAY_OUT}"
            )
        if _is_owner(part):
            _check_policies(path or type(module).__name__, part)
    for name, parameter in module.named_parameters():
        if not _is_part(parameter):
            continue
        sharded: Any = parameter
        if _owner(module, name.rpartition(".")[0]) is None:
            raise LoadError(
                f"{name} is a DTensor that fully_shard did not make, as in tensor parallelism: its "
                f"module computes with a part of it, which cannot be verified; {_WAY_OUT}"
            )
        mesh = sharded.device_mesh
        if mesh.ndim > 1:
            raise LoadError(
                f"{name} is sharded over {mesh.ndim} axes of processes, as where tensor "
                f"parallelism is added to FSDP, which cannot be verified; {_WAY_OUT}"
            )
        if mesh.size() != torch.distributed.get_world_size():
            raise LoadError(
                f"{name} is sharded over {mesh.size()} of {torch.distributed.get_world_size()} "
                "processes, which cannot be verified; shard it over all of them"
            )


def _is_owner(part: nn.Module) -> bool:
    """Whether a module was given to `fully_shard`, which makes it one of a class of its own."""
    return hasattr(type(part), "_orig_cls_mro_index")


def _owner(module: nn.Module, path: str) -> nn.Module | None:
    """The module given to `fully_shard` that keeps the weights at a path: the innermost there."""
    while True:
        part = module.get_submodule(path)
        if _is_owner(part):
            return part
        if not path:
            return None
        path = path.rpartition(".")[0]


def _check_policies(name: str, part: nn.Module) -> None:
    owner: Any = part
    state = owner._get_fsdp_state()
    # One group, or several in later versions of torch.
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [state._fsdp_param_group]
    for group in filter(None, groups):
        precision = group.mp_policy
        if precision.param_dtype is not None or precision.output_dtype is not None:
            raise LoadError(
                f"{name} was sharded with {precision}: its forward computes in another precision "
                "than its weights have; load the weights in that precision, and leave the policy "
                "out"
            )
        if type(group.offload_policy).__name__ != "OffloadPolicy":
            raise LoadError(
                f"{name} was sharded with {group.offload_policy}: its weights wait elsewhere, "
                "which cannot be verified; shard it over more processes, without offloading"
            )
