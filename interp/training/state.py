"""What an interrupted training needs to go on as if nothing had happened: one file, whole or
absent, without pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.files import replaced

Rows = list[dict[str, float]]
About = Mapping[str, Any]  # what JSON can hold


def save_state(
    path: Path,
    module: nn.Module,
    optimizer: Any,
    rows: Rows,
    about: About,
    drawn: Sequence[Mapping[str, Tensor]],
) -> None:
    """Writes weights, optimizer, the random generators of each process, the history so far, and
    what training this is."""
    from safetensors.torch import save_file

    losses = torch.tensor([row["loss"] for row in rows], dtype=torch.float64)
    tensors = {"loss": losses, **dict(_named(module)), **_moments(optimizer)}
    for rank, states in enumerate(drawn):
        tensors |= {_ranked(name, rank): state for name, state in states.items()}
    notes = {"measured": {n: row for n, row in enumerate(rows) if len(row) > 2}, "about": about}
    with replaced(path) as temporary:
        whole = {name: value.detach().contiguous() for name, value in tensors.items()}
        save_file(
            whole, temporary, {"notes": json.dumps(notes)}
        )  # one note: several would be written in any order


def load_state(path: Path, module: nn.Module, optimizer: Any, about: About, rank: int = 0) -> Rows:
    """Restores what `save_state` wrote, with the generators of process `rank`, and returns the
    history.

    Raises ValueError for the state of another training or model.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    _check_same(path, notes["about"], json.loads(json.dumps(about)))
    tensors = load_file(path)
    _copy(path, tensors, module)
    torch.set_rng_state(tensors[_ranked("generator.cpu", rank)])
    on_cuda = _ranked("generator.cuda", rank)
    if on_cuda in tensors:
        torch.cuda.set_rng_state_all(list(tensors[on_cuda]))
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(tensors["loss"].tolist())]
    return [row | notes["measured"].get(str(n), {}) for n, row in enumerate(rows)]


def _check_same(path: Path, written: About, given: About) -> None:
    wrong = [name for name in {**written, **given} if written.get(name) != given.get(name)]
    if wrong:
        first = f"{wrong[0]}={written.get(wrong[0])!r}, now {given.get(wrong[0])!r}"
        raise ValueError(
            f"{path} is the state of another training: {first}; give another folder, or the same arguments"
        )


def save_weights(path: str | Path, module: nn.Module) -> None:
    """Writes a module's parameters and buffers, each once."""
    from safetensors.torch import save_file

    with replaced(path) as temporary:
        save_file({name: value.detach().contiguous() for name, value in _named(module)}, temporary)


def load_weights(path: str | Path, module: nn.Module) -> None:
    """Reads what `save_weights` wrote into a module of the same shape. Raises ValueError for
    another model's."""
    from safetensors.torch import load_file

    _copy(Path(path), load_file(path), module)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once however many names it has."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        yield f"module.{name}", value


def _copy(path: Path, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    own = dict(_named(module))
    given = {name: value for name, value in tensors.items() if name.startswith("module.")}
    wrong = sorted(own.keys() ^ given.keys()) or [
        name for name, value in own.items() if value.shape != given[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} holds another model's weights: {len(wrong)} of {len(own)} differ, {wrong[0].removeprefix('module.')} first"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])


def _moments(optimizer: Any) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{key}": value
        for number, state in states.items()
        for key, value in state.items()
    }


def _ranked(name: str, rank: int) -> str:
    return f"{name}.{rank}" if rank else name


def generators() -> dict[str, Tensor]:
    """The states of torch's random generators in this process."""
    found = {"generator.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["generator.cuda"] = torch.stack(torch.cuda.get_rng_state_all())
    return found
