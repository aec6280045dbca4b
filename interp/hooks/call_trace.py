"""watched: everything one tiny forward did - which modules ran, on what, and where attention was
computed. Discovery reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.hooks.hooks import every_call, first_tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One execution of one module, with copies of its first input and output; `inside` are the
    paths of the modules that were running."""

    path: str
    inside: tuple[str, ...]
    start: int
    end: int
    value: Tensor | None
    output: Tensor | None


@dataclass(eq=False)
class Watch(TorchFunctionMode):
    """What one forward did: module calls in order of completion, and attention operations as (time,
    running modules, heads)."""

    calls: list[Call] = field(default_factory=list[Call])
    attentions: list[tuple[int, tuple[str, ...], int]] = field(
        default_factory=list[tuple[int, tuple[str, ...], int]]
    )
    running: list[tuple[str, int, Tensor | None]] = field(
        default_factory=list[tuple[str, int, Tensor | None]]
    )
    time: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("scaled_dot_product_attention", "softmax"):
            self._attention(name, args[0] if args else next(iter((kwargs or {}).values())))
        return func(*args, **(kwargs or {}))

    def _attention(self, name: str, scores: Tensor) -> None:
        square = scores.ndim >= 3 and (name != "softmax" or scores.shape[-1] == scores.shape[-2])
        if square:
            self.time += 1
            self.attentions.append(
                (
                    self.time,
                    tuple(path for path, *_ in self.running),
                    scores.shape[1] if scores.ndim == 4 else 0,
                )
            )

    def enter(self, path: str, value: Any) -> None:
        """A module begins."""
        self.time += 1
        self.running.append((path, self.time, _copy(value)))

    def leave(self, output: Any) -> None:
        """The module that began last ends."""
        self.time += 1
        path, start, value = self.running.pop()
        self.calls.append(
            Call(path, tuple(p for p, *_ in self.running), start, self.time, value, _copy(output))
        )


def _copy(tree: Any) -> Tensor | None:
    value = first_tensor(tree)
    return None if value is None else value.detach().clone()


def watched(module: nn.Module, run: Callable[[], object]) -> Watch:
    """Runs `run` once and tells every module call and attention operation it made. Copies are kept,
    so use a tiny input."""
    watch = Watch()
    with torch.no_grad(), watch, every_call(module, watch.enter, watch.leave):
        run()
    return watch
