"""Policies on disk: their shape as JSON and their weights as safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import LoadError
from interp.files import replaced, writable, write_json
from interp.models.policy.policy import Policy, PolicyConfig

_SHAPE = "policy.json"
_WEIGHTS = "policy.safetensors"


def save_policy(policy: nn.Module, folder: str | Path) -> Path:
    """Writes a policy in a form that `interp.load` reads.

    Args:
        policy: the policy.
        folder: where `policy.json` and `policy.safetensors` are written.

    Returns:
        The folder.

    Raises:
        ValueError: another module.
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> from interp.models.policy.checkpoints import save_policy
        >>> from interp.models.policy.policy import Policy, PolicyConfig
        >>> policy = Policy(PolicyConfig(width=16, depth=1, heads=2, hidden=32))
        >>> folder = save_policy(policy, tempfile.mkdtemp())
        >>> interp.load(folder).module.config.hidden
        32
    """
    from safetensors.torch import save_file

    own = policy_of(policy)
    target = writable(folder)
    with replaced(target / _WEIGHTS) as temporary:
        save_file(own.state_dict(), temporary)
    # Last: a folder with a shape has its weights.
    write_json(target / _SHAPE, asdict(own.config))
    return target


def policy_of(module: nn.Module) -> Policy:
    """Returns the module, which must be a policy.

    Raises:
        ValueError: it is another module.
    """
    if not isinstance(module, Policy):
        raise ValueError(f"{type(module).__name__} is not a policy: expected a Policy")
    return module


def is_policy(source: str | Path) -> bool:
    """Returns whether a source is a folder that `save_policy` wrote."""
    return (Path(source) / _SHAPE).is_file()


def read_policy(
    source: str | Path, tokenizer: Any = None, dtype: torch.dtype | None = None
) -> Policy:
    """Reads a policy.

    Args:
        source: a folder that `save_policy` wrote.
        tokenizer: must be None: a policy has its words built in.
        dtype: precision of the weights; as stored by default.

    Raises:
        LoadError: a tokenizer, a shape that is none, or weights that do not fit it.
    """
    from safetensors.torch import load_file

    if tokenizer is not None:
        raise LoadError("a policy reads its own words: expected no tokenizer=")
    folder = Path(source)
    try:
        shape = json.loads((folder / _SHAPE).read_text())
        policy = Policy(PolicyConfig(**shape))
    except (TypeError, ValueError) as error:
        raise LoadError(f"{folder / _SHAPE} is not the shape of a policy: {error}") from error
    try:
        weights = load_file(folder / _WEIGHTS)
        # A new policy is float32, and load_state_dict would convert the weights to that.
        stored = {value.dtype for value in weights.values()}
        if dtype is None and len(stored) == 1:
            (dtype,) = stored
        policy = policy.to(dtype)
        policy.load_state_dict(weights)
    except (OSError, RuntimeError) as error:
        raise LoadError(f"the weights in {folder} do not fit {_SHAPE}: {error}") from error
    return policy.eval()
