"""Records everything that one tiny forward did, for the discovery of sites.

It notes which modules ran, on what values, and where attention was computed. `attention_zeroed`
switches single heads of such a forward off where torch computes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.errors import HookError
from interp.hooks.hooks import every_call, first_tensor

Running = tuple[str, int, Tensor | None]


@dataclass(frozen=True)
class Attention:
    """One attention operation.

    Attributes:
        time: when it ran, in ticks of the trace.
        inside: paths of the modules that were running, outermost first.
        maps: how many maps of queries by keys it computed: batch times heads.
        queries: how many queries each map has.
        number: its number among all attention operations of the forward.
    """

    time: int
    inside: tuple[str, ...]
    maps: int
    queries: int
    number: int


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one module.

    Attributes:
        path: path of the module.
        inside: paths of the modules that were running when it was called.
        start, end: when it began and ended, in ticks of the trace.
        value, output: copies of its first floating-point input and output; None where there is
            none.
        turn: how many times its module had been called before.
    """

    path: str
    inside: tuple[str, ...]
    start: int
    end: int
    value: Tensor | None
    output: Tensor | None
    turn: int = 0


@dataclass(eq=False)
class Watch(TorchFunctionMode):
    """The trace of one forward.

    Attributes:
        calls: the module calls, in the order in which they ended.
        attentions: the attention operations.
        running: the calls that have not ended, outermost first, as (path, start, input).
        turns: how many calls of each module have ended.
        time: ticks so far: one for each begin, end and attention operation.
        device: where the copies of inputs and outputs are: that of the first. Of a model on several
            devices they could not be compared otherwise.
    """

    calls: list[Call] = field(default_factory=list[Call])
    attentions: list[Attention] = field(default_factory=list[Attention])
    running: list[Running] = field(default_factory=list[Running])
    turns: Counter[str] = field(default_factory=Counter[str])
    time: int = 0
    device: torch.device | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch calls this for every one of its functions while the mode is on. The function itself
        # runs unchanged.
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        queries = _queries(func, args, kwargs, result)
        if queries is not None:
            self.time += 1
            maps = queries.shape[:-2].numel()
            number = len(self.attentions)
            operation = Attention(self.time, self._running_paths(), maps, queries.shape[-2], number)
            self.attentions.append(operation)
        return result

    def _running_paths(self) -> tuple[str, ...]:
        return tuple(path for path, *_ in self.running)

    def enter(self, path: str, value: Any) -> None:
        """Notes that a module begins, with its inputs."""
        self.time += 1
        self.running.append((path, self.time, self._copy(value)))

    def leave(self, output: Any) -> None:
        """Notes that the module which began last ends, with its output."""
        self.time += 1
        path, start, value = self.running.pop()
        inside = self._running_paths()
        call = Call(path, inside, start, self.time, value, self._copy(output), self.turns[path])
        self.turns[path] += 1
        self.calls.append(call)

    def _copy(self, tree: Any) -> Tensor | None:
        value = first_tensor(tree)
        if value is None:
            return None
        if self.device is None:
            self.device = value.device
        # A clone, because the model may change its own tensor in place later.
        return value.detach().clone().to(self.device)


def _queries(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> Tensor | None:
    """The first argument of an attention operation, [..., query, ...]; None for any other."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(first, Tensor) or first.ndim < 3:
        return None
    name = getattr(func, "__name__", "")
    over_positions = name == "softmax" and _is_attention_map(result)
    return first if name == "scaled_dot_product_attention" or over_positions else None


def _is_attention_map(weights: Tensor) -> bool:
    """Whether the result of a softmax is the weights of positions over positions.

    The softmax over a vocabulary or over the experts of a mixture has other axes. Weights of
    attention are square, or have one more column for what no position is given (a sink). Three axes
    or a sink can be chance; then the first position must not see later ones. With more columns,
    none may.
    """
    queries, keys = weights.shape[-2:]
    if queries == keys and weights.ndim > 3:
        return True
    if keys > queries + 1:
        # Keys that stand for several positions are behind those of single ones (DeepSeek V4). By
        # chance, no other softmax is zero exactly where later positions are.
        of_positions = weights[..., :queries]
        return queries > 1 and weights.ndim > 3 and not bool(of_positions.triu(1).any())
    if keys < queries:
        return False
    later_than_first = weights[..., 0, 1:queries]
    return not bool(later_than_first.any())


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


@dataclass(eq=False)
class _HeadsOff(TorchFunctionMode):
    """Zeroes what attention operations give for some of their heads.

    Attributes:
        off: by the number of an operation in the forward, which of its heads are zeroed.
        seen: how many operations have run.
    """

    off: Mapping[int, Tensor]
    seen: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _queries(func, args, kwargs, result) is None:
            return result
        number = self.seen
        self.seen += 1
        if number not in self.off:
            return result
        # Maps, or what they gave: [batch and heads in one or several axes, query, ...].
        is_off = self.off[number].to(result.device)
        by_head = result.reshape(-1, len(is_off), *result.shape[-2:])
        return by_head.masked_fill(is_off[:, None, None], 0).reshape(result.shape)


@contextmanager
def attention_zeroed(off: Mapping[int, Tensor], operations: int) -> Generator[None]:
    """Zeroes what some heads give in one forward, at the attention operations themselves.

    Args:
        off: by the number of an operation in the forward, a boolean for each of its heads.
        operations: how many operations the forward has.

    Raises:
        HookError: the forward had another number of operations, so that it is not known which ones
            were changed.
    """
    mode = _HeadsOff(off)
    with mode:
        yield
    if mode.seen != operations:
        raise HookError(
            f"a forward computed attention {mode.seen} times, and {operations} times before: "
            "expected the same operations in each"
        )
