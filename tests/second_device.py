"""A second device that needs no hardware. It computes on the CPU, and is as strict as CUDA.

A tensor on it has that device, no numpy array, and meets tensors of the CPU only where CUDA allows
it: scalars, indices into a tensor of the device, and copies. A random draw on it is refused, because
an accelerator would draw other numbers than the CPU.

It goes by the name of `meta`, the one device besides the CPU that every build of torch can
differentiate on. Tensors of torch's own meta device hold no numbers; these do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "meta"
COPYING = ("copy_", "_to_copy")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
DRAWS = ("bernoulli", "exponential", "multinomial", "normal", "rand", "uniform")


class Guarded(torch.Tensor):
    """A tensor on the device; `held` is the tensor of the CPU that holds its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME),
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{NAME}({self.held})"

    @property
    def is_meta(self) -> bool:
        return False  # it holds numbers

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a {NAME} tensor to numpy: copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees also the calls without a tensor of the device: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """Tensors made from data are copied to the device: torch would give them no numbers there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def guarding() -> Iterator[torch.device]:
    """The device, which works inside the block alone."""
    with (
        mock.patch("torch.autocast", functools.partial(_autocast, torch.autocast)),
        mock.patch("torch.inference_mode", _inference_mode),
        _FromData(),
        _Everywhere(),
    ):
        yield torch.device(NAME)


def _autocast(autocast: Any, device: str, *args: Any, **kwargs: Any) -> Any:
    return autocast("cpu", *args, **kwargs)


def _inference_mode(mode: bool = True) -> Any:  # noqa: FBT001, FBT002 - as torch has it
    # a tensor of another class cannot be a view of a parameter in inference mode
    return torch.no_grad() if mode else nullcontext()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    if name == "_fused_sdp_choice":
        return 0  # the attention that is made of plain operations
    leaves: list[Any] = []
    held_args, held_kwargs = _held(args, leaves), _held(kwargs, leaves)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    own = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Guarded)}
    on_device = bool(own)
    if on_device:
        _check_same_device(name, args, tensors)
    asked = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if asked:
        on_device = asked[0].type == NAME
    if on_device and name.lstrip("_").startswith(DRAWS):
        raise RuntimeError(f"{name} draws on the device: other numbers than on the CPU")
    found = func(*held_args, **held_kwargs)
    return _on_device(found, own) if on_device else found


def _held(tree: Any, leaves: list[Any]) -> Any:
    """Arguments with what stands for them on the CPU; collects tensors and devices."""
    if isinstance(tree, (tuple, list)):
        return type(tree)([_held(item, leaves) for item in tree])
    if isinstance(tree, dict):
        return {name: _held(item, leaves) for name, item in tree.items()}
    if isinstance(tree, torch.device):
        leaves.append(tree)
        return torch.device("cpu")
    if isinstance(tree, torch.Tensor):
        leaves.append(tree)
        return tree.held if isinstance(tree, Guarded) else tree
    return tree


def _on_device(tree: Any, own: dict[int, Guarded]) -> Any:
    if isinstance(tree, (tuple, list)):
        return type(tree)([_on_device(item, own) for item in tree])
    if not isinstance(tree, torch.Tensor):
        return tree
    known = own.get(id(tree))  # what is written in place stays the same tensor
    return Guarded(tree) if known is None else known


def _check_same_device(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    strangers = [one for one in tensors if not isinstance(one, Guarded) and one.ndim]
    if name in INDEXING and isinstance(args[0], Guarded):
        strangers = [one for one in strangers if not any(one is index for index in args[1])]
    if strangers and name not in COPYING:
        raise RuntimeError(
            f"{name}: expected all tensors on one device, found a tensor of the CPU of shape "
            f"{tuple(strangers[0].shape)} among those of {NAME}"
        )
