"""`rerouted`: replaces the forwards of some modules while a `with` block lasts. A sweep skips
blocks this way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

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
    with ExitStack() as stack:
        for module, route in routes.items():
            stack.enter_context(_forward_replaced(module, route(module.forward)))
        yield


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    # A forward is a method of the class, unless one was set on the instance, as nnsight does for
    # its controller. Such a forward is put back; otherwise it is enough to delete ours.
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
