"""Training and evaluation modes that are restored afterwards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def dropout_off(module: nn.Module) -> Generator[None]:
    """Puts a module into evaluation mode and restores the mode of every submodule afterwards."""
    # A forward of a small model takes little longer than a walk over its modules, so that they are
    # walked over only once where there is nothing to change.
    if not any(child.training for child in module.modules()):
        yield
        return
    with modes_kept(module):
        module.eval()
        yield


@contextmanager
def checkpointing_off(module: nn.Module) -> Generator[None]:
    """Turns gradient checkpointing off and restores it afterwards.

    While it is on, Hugging Face models ignore the cache that they are given.
    """
    children: list[Any] = list(module.modules())
    checkpointing = [
        child for child in children if getattr(child, "gradient_checkpointing", False) is True
    ]
    for child in checkpointing:
        child.gradient_checkpointing = False
    try:
        yield
    finally:
        for child in checkpointing:
            child.gradient_checkpointing = True


@contextmanager
def modes_kept(module: nn.Module) -> Generator[None]:
    """Restores the mode (training or evaluation) of every submodule after the block.

    Example:
        >>> from interp.hooks.modes import modes_kept
        >>> layer = torch.nn.Dropout()
        >>> with modes_kept(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    modes = [(child, child.training) for child in module.modules()]
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def random_state_kept(module: nn.Module) -> Generator[None]:
    """Restores the random generators of the CPU, and of every GPU that holds a parameter."""
    devices: set[int] = set()
    for parameter in module.parameters():
        if parameter.device.type == "cuda":
            devices.add(parameter.device.index or 0)
    with torch.random.fork_rng(sorted(devices)):
        yield
