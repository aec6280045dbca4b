"""Guards of hooks: against graphs that were compiled without them, and against forwards that run a
second time when they are gone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import torch

from interp.errors import HookError


# torch.compile bakes the hooks that a module has into its graph, and does not look at them again:
# a graph made before the block would ignore ours, and one made inside it would keep them forever.
# So no graph is used, and none is made, while hooks are there.
@contextmanager
def compiled_graphs_off() -> Generator[None]:
    """Runs what torch.compile has compiled as plain PyTorch inside the block."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


# Gradient checkpointing keeps no activations of a part of the model and runs that part again during
# the backward pass. If the hooks are gone by then, the gradient is that of another function: of the
# model without the intervention, or with respect to an activation that no longer exists. torch does
# not tell whether a module runs under it, but its functions are on the stack.
def refuse_checkpointing() -> None:
    """Refuses a hook in a part of a model that gradient checkpointing runs twice.

    Raises:
        HookError: the caller runs inside `torch.utils.checkpoint`.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            raise HookError(
                "gradient checkpointing runs this part of the model again in the backward pass, "
                "when the hooks may be gone, and the gradients would be wrong without a sign: "
                "switch it off (model.gradient_checkpointing_disable(), or model.eval()), or run "
                "under torch.no_grad()"
            )
        frame = frame.f_back
