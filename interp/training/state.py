"""The state of an interrupted training: all that it needs to continue as if nothing had happened.

It is one file, whole or absent, without pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.files import replaced
from interp.sites.sharding import reshard, sharded_like, whole, writes_for_all
from interp.subject.offloading import refuse_offloaded

Rows = list[dict[str, float]]
About = Mapping[str, Any]  # values that JSON can hold


def save_state(
    path: Path,
    module: nn.Module,
    optimizer: Any,
    rows: Rows,
    about: About,
    drawn: Sequence[Mapping[str, Tensor]],
) -> None:
    """Writes the state of a training; called by all processes that hold shards of the module.

    Args:
        path: the file.
        module: its weights and buffers are written.
        optimizer: its moments are written.
        rows: the history so far, one row per step: `step`, `loss` and what was measured.
        about: what distinguishes this training from others.
        drawn: the states of the random generators of each process, by rank (see `generators`).
    """
    from safetensors.torch import save_file

    # Every step has a loss, so losses are a tensor; the few rows with measurements (columns beyond
    # `step` and `loss`) go into the notes.
    losses = torch.tensor([row["loss"] for row in rows], dtype=torch.float64)
    measured = {number: row for number, row in enumerate(rows) if len(row) > 2}

    gathered = _gathered(module, {**dict(_named(module)), **_moments(optimizer)})
    if not writes_for_all(module):
        return
    tensors = {"loss": losses, **gathered}
    for rank, states in enumerate(drawn):
        for name, state in states.items():
            tensors[_ranked(name, rank)] = state

    # safetensors writes several notes in any order. With one note, the same state always gives the
    # same bytes.
    note = json.dumps({"measured": measured, "about": about})
    notes = {"notes": note}
    with replaced(path) as temporary:
        save_file(tensors, temporary, notes)


def load_state(path: Path, module: nn.Module, optimizer: Any, about: About, rank: int = 0) -> Rows:
    """Restores what `save_state` wrote.

    Args:
        path: the file.
        module: its weights and buffers are overwritten.
        optimizer: its moments are overwritten.
        about: what distinguishes this training from others.
        rank: rank of the process whose random generators are restored.

    Returns:
        The history so far, as it was given to `save_state`.

    Raises:
        ValueError: the state is that of another training or model.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    # What was written went through JSON, where tuples become lists; so does what is given now.
    as_written = json.loads(json.dumps(about))
    _check_same(path, notes["about"], as_written)
    tensors = load_file(path)
    _copy(path, tensors, module)

    names = ("generator.cpu", "generator.cuda")
    drawn = {name: tensors[_ranked(name, rank)] for name in names if _ranked(name, rank) in tensors}
    set_generators(drawn)

    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            of_parameter = moments.setdefault(int(number), {})
            of_parameter[key] = value
    _share_out(moments, optimizer)
    # Options such as the learning rate stay those that the new optimizer was made with.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})

    rows: Rows = []
    for step, loss in enumerate(tensors["loss"].tolist()):
        measured = notes["measured"].get(str(step), {})
        rows.append({"step": step, "loss": loss, **measured})
    return rows


def save_weights(path: str | Path, module: nn.Module) -> None:
    """Writes a module's parameters and buffers, each once.

    Of a module that is sharded over processes, all of them call it, and the first writes.

    Args:
        path: the file, in the format of safetensors.
        module: the module whose weights are written.

    Raises:
        ValueError: weights are offloaded.

    Example:
        >>> import copy, tempfile
        >>> from interp.training.state import load_weights, save_weights
        >>> file = f"{tempfile.mkdtemp()}/weights.safetensors"
        >>> save_weights(file, subject.module)
        >>> load_weights(file, copy.deepcopy(subject.module))
    """
    from safetensors.torch import save_file

    refuse_offloaded(module, "its values are not in the module; save it with save_pretrained")
    weights = _gathered(module, dict(_named(module)))
    if writes_for_all(module):
        with replaced(path) as temporary:
            save_file(weights, temporary)


def load_weights(path: str | Path, module: nn.Module) -> None:
    """Reads what `save_weights` wrote into a module.

    Args:
        path: the file.
        module: a module of the same shape as the saved one; its weights are overwritten.

    Raises:
        ValueError: the file holds another model's weights, or the module's are offloaded.
    """
    from safetensors.torch import load_file

    _copy(Path(path), load_file(path), module)


def generators() -> dict[str, Tensor]:
    """Returns the states of torch's random generators in this process, by name."""
    states = {"generator.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator.cuda"] = torch.stack(torch.cuda.get_rng_state_all())
    return states


def set_generators(states: Mapping[str, Tensor]) -> None:
    """Restores the states of torch's random generators that `generators` returned."""
    torch.set_rng_state(states["generator.cpu"])
    cuda_states = states.get("generator.cuda")
    if cuda_states is not None:
        torch.cuda.set_rng_state_all(list(cuda_states))


def _check_same(path: Path, written: About, given: About) -> None:
    for name in {**written, **given}:
        was = written.get(name)
        now = given.get(name)
        if was == now:
            continue
        first = f"{name}={was!r}, now {now!r}"
        raise ValueError(
            f"{path} is the state of another training: {first}; "
            "give another folder, or the same arguments"
        )


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once however many names it has."""
    reshard(module)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        yield f"module.{name}", value


def _copy(path: Path, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Overwrites a module's weights; refuses all of them when one does not fit."""
    refuse_offloaded(module, "what is written into it would be lost; load it without offloading")
    own = dict(_named(module))
    given = {name: value for name, value in tensors.items() if name.startswith("module.")}
    wrong = sorted(own.keys() ^ given.keys())
    if not wrong:
        # Shapes are compared only where the names agree, so that each has a partner.
        for name, value in own.items():
            if value.shape != given[name].shape:
                wrong.append(name)
    if wrong:
        first = wrong[0].removeprefix("module.")
        raise ValueError(
            f"{path} holds another model's weights: "
            f"{len(wrong)} of {len(own)} differ, the first is {first}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(sharded_like(given[name], value))


def _gathered(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file holds them: whole ones, and on the CPU where they come from all processes;
    none in a process that does not write."""
    found: dict[str, Tensor] = {}
    writes = writes_for_all(module)
    for name, value in tensors.items():
        # One at a time: together they may be more than an accelerator holds.
        values = whole(value)
        if writes:
            own = value if values is value else values.cpu()
            found[name] = own.detach().contiguous()
    return found


def _share_out(moments: dict[int, dict[str, Tensor]], optimizer: Any) -> None:
    """Replaces what is kept for each weight by this process's part, where the weight is sharded."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, of_weight in moments.items():
        for key, value in of_weight.items():
            if value.shape == weights[number].shape:
                of_weight[key] = sharded_like(value, weights[number])


def _moments(optimizer: Any) -> dict[str, Tensor]:
    """What the optimizer keeps for each parameter, such as running means of its gradient, by
    name."""
    moments: dict[str, Tensor] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            moments[f"optimizer.{number}.{key}"] = value
    return moments


def _ranked(name: str, rank: int) -> str:
    """The name under which a process's state is stored: that of process 0 has no number."""
    return f"{name}.{rank}" if rank else name
