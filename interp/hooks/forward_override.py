"""`rerouted` replaces the forwards of some modules while a `with` block lasts, as a sweep does to
skip blocks; `method_replaced` replaces any other method."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from torch import nn

from interp.hooks.guards import compiled_graphs_off

Route = Callable[[Callable[..., Any]], Callable[..., Any]]


@contextmanager
def rerouted(routes: Mapping[nn.Module, Route]) -> Generator[None]:
    """Replaces each module's forward by `route(forward)` and restores it afterwards.

    Hooks on the modules still fire, because torch runs them around the forward.

    Args:
        routes: for each module, a function from its forward to the one that is run instead.

    Example:
        >>> from interp.hooks.forward_override import rerouted
        >>> layer = torch.nn.Identity()
        >>> with rerouted({layer: lambda forward: lambda x: 2 * forward(x)}):
        ...     layer(torch.tensor(3))
        tensor(6)
        >>> layer(torch.tensor(3))
        tensor(3)
    """
    with compiled_graphs_off(), ExitStack() as stack:
        for module, route in routes.items():
            stack.enter_context(_replaced(module, "forward", route(module.forward)))
        yield


@contextmanager
def method_replaced(
    module: nn.Module, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Generator[None]:
    """Replaces a method of a module by `wrap(method)` and restores it afterwards.

    Args:
        module: the module.
        name: name of the method.
        wrap: from the method as a function of `self` to the one that is run instead, also of
            `self`: a deep copy of the module made inside the block then runs on itself.
    """
    bound = getattr(module, name)

    def call_bound(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return bound(*args, **kwargs)

    method = wrap(getattr(bound, "__func__", call_bound))
    with _replaced(module, name, MethodType(method, module)):
        yield


@contextmanager
def _replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Generator[None]:
    # A method is one of the class, unless it was set on the instance, as nnsight does with forward
    # for its controller. Such a method is put back; otherwise it is enough to delete ours.
    own = module.__dict__.get(name)
    setattr(module, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(module, name)
        else:
            setattr(module, name, own)
