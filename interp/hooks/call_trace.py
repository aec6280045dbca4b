"""Records everything that one tiny forward did, for the discovery of sites.

It notes which modules ran, on what values, and where attention was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.hooks.hooks import every_call, first_tensor

Running = tuple[str, int, Tensor | None]


@dataclass(frozen=True)
class Attention:
    """One attention operation.

    Attributes:
        time: when it ran, in ticks of the trace.
        inside: paths of the modules that were running, outermost first.
        maps: how many maps of queries by keys it computed: batch times heads.
    """

    time: int
    inside: tuple[str, ...]
    maps: int


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one module.

    Attributes:
        path: path of the module.
        inside: paths of the modules that were running when it was called.
        start, end: when it began and ended, in ticks of the trace.
        value, output: copies of its first floating-point input and output; None where there is
            none.
    """

    path: str
    inside: tuple[str, ...]
    start: int
    end: int
    value: Tensor | None
    output: Tensor | None


@dataclass(eq=False)
class Watch(TorchFunctionMode):
    """The trace of one forward.

    Attributes:
        calls: the module calls, in the order in which they ended.
        attentions: the attention operations.
        running: the calls that have not ended, outermost first, as (path, start, input).
        time: ticks so far: one for each begin, end and attention operation.
    """

    calls: list[Call] = field(default_factory=list[Call])
    attentions: list[Attention] = field(default_factory=list[Attention])
    running: list[Running] = field(default_factory=list[Running])
    time: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch calls this for every one of its functions while the mode is on. The function itself
        # runs unchanged.
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = [*args, *kwargs.values()]
        first = given[0] if given else None
        if isinstance(first, Tensor) and first.ndim >= 3:
            over_positions = name == "softmax" and _is_attention_map(result)
            if name == "scaled_dot_product_attention" or over_positions:
                self.time += 1
                # All axes but the last two: positions by features, or queries by keys.
                maps = first.shape[:-2].numel()
                attention = Attention(self.time, self._running_paths(), maps)
                self.attentions.append(attention)
        return result

    def _running_paths(self) -> tuple[str, ...]:
        return tuple(path for path, *_ in self.running)

    def enter(self, path: str, value: Any) -> None:
        """Notes that a module begins, with its inputs."""
        self.time += 1
        copied = _copy(value)
        self.running.append((path, self.time, copied))

    def leave(self, output: Any) -> None:
        """Notes that the module which began last ends, with its output."""
        self.time += 1
        path, start, value = self.running.pop()
        call = Call(
            path,
            self._running_paths(),
            start,
            end=self.time,
            value=value,
            output=_copy(output),
        )
        self.calls.append(call)


def _is_attention_map(weights: Tensor) -> bool:
    """Whether the result of a softmax is the weights of positions over positions.

    The softmax over a vocabulary or over the experts of a mixture has other axes. Weights of
    attention are square, or have one more column for what no position is given (a sink). Three axes
    or a sink can be chance; then the first position must not see later ones.
    """
    queries, keys = weights.shape[-2:]
    if queries == keys and weights.ndim > 3:
        return True
    if keys not in (queries, queries + 1):
        return False
    later_than_first = weights[..., 0, 1:queries]
    return not bool(later_than_first.any())


def _copy(tree: Any) -> Tensor | None:
    # A clone, because the model may change its own tensor in place later.
    value = first_tensor(tree)
    return None if value is None else value.detach().clone()


def watch_calls(module: nn.Module, run: Callable[[], object]) -> Watch:
    """Runs `run` once and returns every module call and attention operation that it made.

    The input and output of every call are copied, so use a tiny input.

    Args:
        module: the module whose submodules are watched.
        run: runs the module, such as `lambda: module(tokens)`.

    Example:
        >>> from interp.hooks.call_trace import watch_calls
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> trace = watch_calls(net, lambda: net(torch.zeros(1, 2)))
        >>> [call.path for call in trace.calls]
        ['0', '1', '']
    """
    watch = Watch()
    with torch.no_grad(), watch, every_call(module, watch.enter, watch.leave):
        run()
    return watch
