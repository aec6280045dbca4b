"""Device maps: which parts of a model go to which device where one cannot hold it all, and which
wait in memory or on disk.

accelerate puts what waits in place for the time of each module's forward (see
`interp.subject.offloading`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import LoadError, closest
from interp.loading.devices import Device, available_devices, choose_device

# How accelerate divides a model by itself; the first is what a limit of memory alone means.
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")

Places = str | Mapping[str, Device | int]
Memory = Mapping[Any, int | str]  # by "cpu" or the number of an accelerator


@dataclass(frozen=True)
class DeviceMap:
    """Where the parts of a model go.

    Attributes:
        places: one of accelerate's strategies; or from the paths of modules to devices, numbers of
            accelerators, or "disk". A path stands for what is within it and not named itself.
        max_memory: for strategies, how many bytes a device may hold, by "cpu" or the number of an
            accelerator; None where nothing limits them.
        offload_folder: where weights go that cannot be read in the files as they are.
    """

    places: str | dict[str, Device | int]
    max_memory: dict[int | str, int] | None = None
    offload_folder: Path | None = None

    def options(self) -> dict[str, Any]:
        """Returns the options by which transformers reads each weight to its place."""
        options = {
            "device_map": self.places,
            "max_memory": self.max_memory,
            "offload_folder": self.offload_folder,
        }
        return {name: value for name, value in options.items() if value is not None}

    def fitted(self, model: nn.Module) -> DeviceMap:
        """Returns the map as accelerate takes it, after checking that it is one of a model: with
        paths of which none is within another.

        Args:
            model: the model, whose weights need not have values yet.

        Raises:
            LoadError: a path that the model does not have, a weight without a place, or one that
                two modules share and that would be at two places.

        Example:
            >>> from interp.loading.device_maps import DeviceMap
            >>> DeviceMap({"": "cpu", "model.norm": "disk"}).fitted(subject.module).places
            {'model.embed_tokens': 'cpu', 'model.layers': 'cpu', 'model.norm': 'disk', ...}
            >>> DeviceMap({"model": "cpu"}).fitted(subject.module)
            Traceback (most recent call last):
            interp.errors.LoadError: device_map= gives no place to lm_head.weight: ...
        """
        if isinstance(self.places, str):
            return self
        modules = dict(model.named_modules())
        for path in self.places:
            if path not in modules:
                raise LoadError(
                    f"device_map= names {path!r}, which {type(model).__name__} does not have; "
                    f"nearest: {closest(path, modules)}"
                )
        for weight, _ in model.named_parameters(remove_duplicate=False):
            if _place(weight, self.places) is None:
                raise LoadError(
                    f"device_map= gives no place to {weight}: add one of the modules around it, or "
                    '"" for all that is not named'
                )
        _check_shared(model, self.places)
        return replace(self, places=_apart("", model, self.places))


_Places = dict[str, Device | int]


def _place(path: str, places: _Places) -> Device | int | None:
    """The place of a weight or a module: that of the innermost module around it that is named."""
    while path not in places:
        if not path:
            return None
        path = path.rpartition(".")[0]
    return places[path]


def _apart(path: str, module: nn.Module, places: _Places) -> _Places:
    """The places within a module, under paths of which none is within another."""
    place = _place(path, places)
    prefix = f"{path}." if path else ""
    inner = [name for name in places if name != path and name.startswith(prefix)]
    # Only a module without weights can have no place: `fitted` has looked up each weight.
    if not inner:
        return {} if place is None else {path: place}
    # A weight of the module itself lies in none of the children that are placed below.
    for name, _ in module.named_parameters(recurse=False):
        raise LoadError(
            f"device_map= divides {path or type(module).__name__}, which has a weight of its own "
            f"({name}): expected one place for all of it"
        )
    found: _Places = {}
    for name, child in module.named_children():
        found |= _apart(f"{prefix}{name}", child, places)
    return found


def _check_shared(model: nn.Module, places: _Places) -> None:
    # At two places one tensor would be two, of which accelerate keeps one alone.
    shared: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    for weight, other in shared.items():
        here = _place(weight, places)
        there = _place(other, places)
        if here != there:
            raise LoadError(
                f"device_map= puts {weight} on {here} and {other} on {there}, and the two are one "
                "weight: expected the same place for both"
            )


def choose_device_map(
    device: Device | None,
    device_map: Places | None,
    max_memory: Memory | None,
    offload_folder: str | Path | None,
    dtype: torch.dtype | None = None,
) -> DeviceMap | None:
    """Returns where the parts of a model go, after checking that the devices can be used.

    Args:
        device, device_map, max_memory, offload_folder: as `interp.load` takes them.
        dtype: precision of the weights, where it is known.

    Returns:
        The map; None where the model goes to one device.

    Raises:
        LoadError: they contradict one another, a device is not there or cannot compute in `dtype`,
            or a strategy or an amount of memory that accelerate does not know.

    Example:
        >>> from interp.loading.device_maps import choose_device_map
        >>> choose_device_map(None, None, {"cpu": "2KB"}, None)
        DeviceMap(places='auto', max_memory={'cpu': 2000}, offload_folder=None)
    """
    if device_map is None and max_memory is None:
        if offload_folder is not None:
            raise LoadError(
                "offload_folder= without device_map= or max_memory=: nothing goes there"
            )
        return None
    if device is not None:
        raise LoadError(
            f"device={str(device)!r} with device_map= or max_memory=: "
            "expected one device for the whole model, or a place for each part"
        )
    folder = None if offload_folder is None else Path(offload_folder)
    if device_map is None or isinstance(device_map, str):
        strategy = _STRATEGIES[0] if device_map is None else device_map
        _check_strategy(strategy)
        return DeviceMap(strategy, _bytes(max_memory), folder)
    if max_memory is not None:
        raise LoadError(
            "max_memory= with a device_map= that says where each part goes: leave it out, or give "
            f"one of {', '.join(_STRATEGIES)}"
        )
    places = dict(device_map)
    # Asked for the checks alone: the device has to be there and to compute in this precision.
    for place in places.values():
        if place != "disk":
            choose_device(_numbered(place), dtype)
    return DeviceMap(places, None, folder)


def refuse_device_map(
    kind: str, reason: str, device_map: Places | None, max_memory: Memory | None
) -> None:
    """Raises LoadError if a model that cannot be divided was to be divided.

    Args:
        kind: what the model is.
        reason: why it cannot be divided, and the way out.
        device_map, max_memory: as `interp.load` takes them.
    """
    for name, given in (("device_map", device_map), ("max_memory", max_memory)):
        if given is not None:
            raise LoadError(f"{name}={given!r}: {kind} {reason}")


def _check_strategy(strategy: str) -> None:
    if strategy in _STRATEGIES:
        return
    one_device = [str(known) for known in available_devices()]
    way_out = f"nearest: {closest(strategy, _STRATEGIES)}"
    if strategy in one_device or strategy == "cuda":
        way_out = f"for a whole model on one device pass device={strategy!r}"
    raise LoadError(
        f"device_map={strategy!r}: expected one of {', '.join(_STRATEGIES)}, or a mapping from "
        f"the paths of modules to devices; {way_out}"
    )


def _bytes(max_memory: Memory | None) -> dict[int | str, int] | None:
    from accelerate.utils.modeling import convert_file_size_to_int

    if max_memory is None:
        return None
    found: dict[int | str, int] = {}
    for name, amount in max_memory.items():
        key = int(name) if str(name).isdigit() else name
        # Asked for the check alone: the accelerator has to be there.
        if key != "cpu":
            choose_device(_numbered(key))
        try:
            found[key] = int(convert_file_size_to_int(amount))
        except (ValueError, TypeError) as error:
            raise LoadError(
                f"max_memory={{{name!r}: {amount!r}}}: "
                "expected a number of bytes, or a text such as '20GiB'"
            ) from error
    return found


def _numbered(device: Device | int) -> Device:
    """The name of an accelerator that is given by its number, as accelerate has them."""
    if not isinstance(device, int):
        return device
    # Without an accelerator, the name is one that `choose_device` refuses.
    kinds: Iterable[str] = (known.type for known in available_devices() if known.type != "cpu")
    return f"{next(iter(kinds), 'cuda')}:{device}"
