"""Where a model that is read from files is put: on the device that was asked for, or on the best
one that is there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from interp.errors import LoadError, closest

Device = torch.device | str

_preferred: ContextVar[Device | None] = ContextVar("device", default=None)


def available_devices() -> list[torch.device]:
    """Returns the devices of this machine: the CPU, and each accelerator by its number.

    Example:
        >>> from interp.loading.devices import available_devices
        >>> available_devices()[0]
        device(type='cpu')
    """
    devices = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and torch.accelerator.is_available():
        count = torch.accelerator.device_count()
        devices += [torch.device(accelerator.type, number) for number in range(count)]
    return devices


def choose_device(device: Device | None = None, dtype: torch.dtype | None = None) -> torch.device:
    """Returns the device on which to put a model, after checking that it can be used.

    Args:
        device: such as `"cpu"`, `"cuda"` or `"cuda:1"`. By default the one that `preferring`
            names; without that the first accelerator that computes in the needed precisions, else
            the CPU.
        dtype: precision of the weights, where it is known.

    Raises:
        LoadError: the device is unknown or not there, or cannot compute in `dtype` or in float64,
            in which activations and log-probabilities are summed (mps cannot).

    Example:
        >>> from interp.loading.devices import choose_device
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if device is None:
        device = _preferred.get()
    if device is None:
        return _best(dtype)
    chosen = _parse(device)
    missing = _missing_precision(chosen, dtype)
    if missing is not None:
        raise LoadError(
            f"device={str(device)!r} cannot compute in {missing}; "
            f"expected one that can, of {_names()}"
        )
    return chosen


@contextmanager
def preferring(device: Device | None) -> Generator[None]:
    """Makes a device the default of `choose_device` inside the block; None changes nothing."""
    token = _preferred.set(_preferred.get() if device is None else device)
    try:
        yield
    finally:
        _preferred.reset(token)


def check_stays(kind: str, at: torch.device, device: Device | None) -> None:
    """Refuses to move a model that the caller holds.

    Args:
        kind: what the model is, for the message.
        at: the device on which it is.
        device: the device that was asked for; None when none was.

    Raises:
        LoadError: the two differ, or the device is not there.
    """
    if device is None:
        return
    asked = _parse(device)
    # "cuda" without a number means any of them.
    if asked.type != at.type or asked.index not in (None, at.index):
        raise LoadError(
            f"device={str(device)!r}: {kind} is in memory on {at} already, and what you hold is "
            f"not moved; move it yourself first, with .to({str(device)!r})"
        )


def _best(dtype: torch.dtype | None) -> torch.device:
    cpu, *accelerators = available_devices()
    for accelerator in accelerators:
        if _missing_precision(accelerator, dtype) is None:
            return accelerator
    return cpu


def _parse(device: Device) -> torch.device:
    """A device that is there."""
    there = available_devices()
    try:
        found = torch.device(device)
    except RuntimeError as error:
        known = sorted({known.type for known in there})
        raise LoadError(
            f"device={str(device)!r}: expected one of {_names()}; "
            f"nearest: {closest(str(device), known)}"
        ) from error
    same_type = [known for known in there if known.type == found.type]
    numbers = [known.index for known in same_type]
    if not same_type or found.index not in (None, *numbers):
        raise LoadError(f"device={str(device)!r} is not there: this machine has {_names()}")
    return found


def _names() -> str:
    return ", ".join(map(str, available_devices()))


def _missing_precision(device: torch.device, dtype: torch.dtype | None) -> torch.dtype | None:
    """A precision that is needed and that the device does not have: it is asked to multiply."""
    for needed in (dtype or torch.float32, torch.float64):
        try:
            one = torch.ones(1, 1, dtype=needed, device=device)
            torch.mm(one, one)
        except (RuntimeError, TypeError):
            return needed
    return None
