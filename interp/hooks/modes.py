"""Training and evaluation modes that come back."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def dropout_off(module: nn.Module) -> Generator[None]:
    """Evaluation mode; every module's own mode comes back."""
    with modes_kept(module):
        module.eval()
        yield


@contextmanager
def modes_kept(module: nn.Module) -> Generator[None]:
    """Training or evaluation, every module's own mode comes back."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode
