"""Whose numbers are these: short hashes of everything that decides what a subject computes.

They are stored with results. Two runs may be joined only if their hashes are equal, and one hash
for each part tells what differs if they are not.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from interp.hooks.hooks import EditVisit
from interp.interventions.edit import Edit
from interp.sites.sharding import reshard, unsharded_class
from interp.subject.offloading import stored

# Entries of a transformers configuration that say where a model comes from, in which precision it
# was stored, how it ends a text, or what it returns in addition: none changes a logit.
_IRRELEVANT = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

# Attributes of modules that change with use or with how a module was loaded, or that only matter in
# training.
_VOLATILE = {
    "all_tied_weights_keys",
    "gradient_checkpointing",
    "hf_device_map",
    "hf_quantizer",
    "is_quantized",
    "kernel_config",
    "loss_type",
    "max_seq_len_cached",
    "name_or_path",
    "padding_idx",
    "training",
    "warnings_issued",
}

_LIBRARIES = ("accelerate", "interp", "torch", "transformers")


class Identified(Protocol):
    """What can be identified: the part of a Subject that computes."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def forward(self) -> Callable[..., Any]: ...


def identify(subject: Identified) -> dict[str, str]:
    """Returns a hash for each part of what a subject computes with.

    Args:
        subject: the model.

    Returns:
        - `weights`, `buffers`: names, shapes, precision and every bit, wherever they are stored;
        - `configuration`: that of transformers, and the kind of attention;
        - `modules`: the classes of all modules, their numbers and settings, the subject's forward;
        - `adapters`: which adapters of PEFT are active;
        - `interventions`: the active plans, and hooks and forwards that somebody else has set, by
          the name and code of their functions.

    Example:
        >>> from interp.subject.fingerprint import identify
        >>> clean = identify(subject)
        >>> with subject.intervened(interp.Zero(subject.units("heads"))):
        ...     ablated = identify(subject)
        ...     _ = subject.losses(batch)
        >>> [part for part in clean if clean[part] != ablated[part]]
        ['interventions']
    """
    module = subject.module
    reshard(module)
    forward = _describe(subject.forward)
    return {
        "weights": _hash_tensors(_weights(module), _stored_in(module)),
        "buffers": _hash_tensors(_buffers(module), _stored_in(module)),
        "configuration": _hash(_configuration(module)),
        "modules": _hash([*_modules(module), forward]),
        "adapters": _hash(_adapters(module)),
        "interventions": _hash(_interventions(module)),
    }


def fingerprint(parts: Mapping[str, str]) -> str:
    """Returns one short hash of all parts that `identify` returned."""
    return _hash(dict(parts))


def _hash(description: Any) -> str:
    text = json.dumps(description, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return digest[:16]


def _hash_tensors(
    named: Iterable[tuple[str, Tensor]], read: Callable[[str, Tensor], Tensor] | None = None
) -> str:
    """A hash of tensors under their names, which `read` gives the values of, one at a time."""
    hashes: dict[str, list[Any]] = {}
    seen: dict[int, tuple[Tensor, str]] = {}  # with the tensor, whose id is taken while it lives
    for name, tensor in named:
        if id(tensor) not in seen:
            # What is read has no name here, which would keep it: together these values may be more
            # than fits in memory.
            digest = _digest(tensor if read is None else read(name, tensor))
            seen[id(tensor)] = tensor, digest
        _, bits = seen[id(tensor)]
        hashes[name] = [list(tensor.shape), str(tensor.dtype), bits]
    return _hash(hashes)


def _digest(values: Tensor) -> str:
    return hashlib.sha256(_bytes(values)).hexdigest()


def _stored_in(module: nn.Module) -> Callable[[str, Tensor], Tensor]:
    return lambda name, tensor: stored(module, name, tensor)


def _bytes(tensor: Tensor) -> Any:
    """The bits of a tensor in logical order, whatever its device and strides."""
    if tensor.is_meta:
        return b"no values"
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    # As bytes, because numpy does not know every precision of torch.
    return plain.view(torch.uint8).numpy()


def _weights(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    # Under each of its names, because a weight that several modules share is no longer one tensor
    # when it is offloaded.
    yield from module.named_parameters(remove_duplicate=False)


def _buffers(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for name, buffer in module.named_buffers():
        # Rotary embeddings that stretch with the text rewrite their frequencies for the length of
        # each forward; what they start from is in another buffer.
        path, _, last = name.rpartition(".")
        rope_type = str(getattr(module.get_submodule(path), "rope_type", ""))
        stretches = "dynamic" in rope_type or "longrope" in rope_type
        if stretches and last.endswith("inv_freq") and "original" not in last:
            continue
        yield name, buffer


def _configuration(module: nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        return None
    attention = getattr(config, "_attn_implementation", None)
    return [_relevant(config.to_dict()), attention]


def _relevant(tree: Any) -> Any:
    """A configuration without the entries that change no logit, also in those within it."""
    if isinstance(tree, Mapping):
        named: Mapping[Any, Any] = tree  # pyright: ignore[reportUnknownVariableType]
        return {
            str(name): _relevant(value) for name, value in named.items() if name not in _IRRELEVANT
        }
    return tree


def _modules(module: nn.Module) -> list[Any]:
    """The class and the plain public attributes of every module."""
    found: list[Any] = []
    for path, child in module.named_modules():
        kind = type(child)
        settings: dict[str, Any] = {}
        for name, value in vars(child).items():
            if name.startswith("_") or name in _VOLATILE:
                continue
            if _is_plain(value):
                settings[name] = value
            elif callable(value) and not hasattr(kind, name):  # not a method that was replaced
                settings[name] = _describe(value)
        kind = unsharded_class(kind)
        found.append([path, f"{kind.__module__}.{kind.__qualname__}", settings])
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or made of these."""
    if isinstance(value, (list, tuple)):
        items: Any = value  # pyright: ignore[reportUnknownVariableType]
        return all(map(_is_plain, items))
    if isinstance(value, dict):
        named: Any = value  # pyright: ignore[reportUnknownVariableType]
        named_by_text = all(isinstance(name, str) for name in named)
        return named_by_text and all(map(_is_plain, named.values()))
    plain_types = (bool, int, float, str, torch.dtype)
    return value is None or isinstance(value, plain_types)


def _adapters(module: nn.Module) -> list[Any]:
    # The names under which PEFT's layers keep it; its public properties have no common name.
    names = ("_active_adapter", "_disable_adapters")
    found: list[Any] = []
    for path, child in module.named_modules():
        attributes = vars(child)
        state = {name: attributes[name] for name in names if name in attributes}
        if state:
            found.append([path, state])
    return found


def _interventions(module: nn.Module) -> list[Any]:
    """What runs around the modules' own forwards, or in their place."""
    found: list[Any] = []
    for path, child in module.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks"):
            hooks: Mapping[int, Callable[..., Any]] = getattr(child, kind)
            for hook in hooks.values():
                description = _hook(hook)
                if description is not None:
                    found.append([path, kind, description])
        # accelerate's forward moves tensors and then runs the module's own.
        own_forward = vars(child).get("forward")
        if own_forward is not None and not hasattr(child, "_hf_hook"):
            found.append([path, "forward", _describe(own_forward)])
    return found


def _hook(hook: Callable[..., Any]) -> Any:
    """What a hook does: the edits of a plan, the function of a visit or of somebody else; None for
    what only follows forwards."""
    visit: Any = inspect.unwrap(hook)
    if isinstance(visit, EditVisit):
        return [_edit(edit) for _, edit in visit.numbered]
    library = _library(visit)
    # A library's own hook, which wraps no function of somebody else: it only follows forwards, or
    # puts weights in place for them, as those of FSDP2 do, which torch wraps once more.
    wraps_its_own = visit is hook or library == _library(hook) == "torch"
    if wraps_its_own and library in _LIBRARIES:
        return None
    tensors = _tensors_of(visit) if visit is not hook and library == "interp" else {}
    return [*_describe(visit), _hash_tensors(tensors.items())] if tensors else _describe(visit)


def _tensors_of(function: Any) -> dict[str, Tensor]:
    """The tensors that a function was made with, by name: the values that a visit multiplies with
    are no part of its code."""
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None)
    if code is None or cells is None:
        return {}
    named: dict[str, Tensor] = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        if isinstance(cell.cell_contents, Tensor):
            named[name] = cell.cell_contents
    return named


def _library(function: Any) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]


def _edit(edit: Edit) -> list[Any]:
    values = {
        "columns": edit.columns,
        "add": edit.add,
        "basis": edit.basis,
        "weight": edit.weight,
    }
    given = {name: value for name, value in values.items() if value is not None}
    tensors = _hash_tensors(given.items())
    return [str(edit.site), edit.multiply, edit.positions, edit.when, tensors]


def _describe(function: Any) -> list[str]:
    """The name of a function, and its code if it is not a library's."""
    plain = getattr(function, "func", function)  # a functools.partial
    owner = plain if hasattr(plain, "__qualname__") else type(plain)
    name = f"{owner.__module__}.{owner.__qualname__}"
    if name.partition(".")[0] in _LIBRARIES:
        return [name]
    # Of an object that is called like a function, the code of its method.
    method = getattr(plain, "__call__", None)  # noqa: B004
    code = getattr(plain, "__code__", getattr(method, "__code__", None))
    return [name, _code(code)] if isinstance(code, CodeType) else [name]


def _code(code: CodeType) -> str:
    """A hash of what a function does, without its line numbers and file."""
    constants = [
        _code(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts
    ]
    return _hash([code.co_code.hex(), constants, list(code.co_names)])
