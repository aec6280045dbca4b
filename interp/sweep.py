"""sweep: many interventions for little more than one.

An intervention at block L changes nothing below L. `resumed` keeps what every block gave in one clean forward and lets each intervention start at
its own block; `grown` carries all of them in one batch that grows at each block where some begin. Both run the model's own forward, with the
forwards of blocks rerouted, so that whatever stands around the blocks stays the model's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .batch import Batch
from .hooks import Clock, HookError, Value, Visit, first_tensor, intervened, lowered, tapped
from .interventions import Edit, Plan, apply
from .progress import track
from .rerouting import Route, rerouted
from .sites import Site
from .subject import Subject, evaluating, token_losses

Logits = Float[Tensor, "batch predicted vocabulary"]
Measure = Callable[[Logits, Batch], Any]
_GROWN_TOKENS = 2048  # of one grown pass; beyond that a batch is compute-bound and only costs memory
_CHEAPER_ROWS = 0.8  # grow when a row costs less than this share in a batch four times as large


def mean_loss(logits: Logits, batch: Batch) -> float:
    """Mean negative log-likelihood of the batch's targets, in nats a token."""
    return float(token_losses(logits, batch).sum() / batch.counted.sum())


def sweep(subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss) -> list[Any]:
    """`measure(target_logits, batch)` under each plan, as if each ran alone.

    Chooses between `resumed`, which equals `naive` to the bit, and `grown`, which equals it up to the rounding of differently shaped matrix
    products, by timing one block on this batch and on one four times as large. In float64 it always resumes.
    """
    _check(plans)
    with evaluating(subject):
        method = grown if _rows_get_cheaper(subject, batch, plans) else resumed
    return method(subject, batch, plans, measure)


def naive(subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss) -> list[Any]:
    """One whole forward a plan: what the others must equal."""
    _check(plans)
    with evaluating(subject):
        return [_alone(subject, batch, plan, measure) for plan in track(plans, "sweep")]


def resumed(subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss) -> list[Any]:
    """Each plan starts at its lowest block, and after that block's attention where it changes the MLP only."""
    _check(plans)
    with evaluating(subject), torch.inference_mode(False), torch.no_grad():
        clean = _Clean(subject, batch)
        results = [clean.under(plan, measure) for plan in track(plans, "sweep")]
        clean.check()
    return results


def grown(subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss) -> list[Any]:
    """All plans in one batch that grows at each block where some of them begin; plans that begin before the blocks run alone."""
    _check(plans)
    results: dict[int, Any] = {}
    forks = sorted(((start, n) for n, plan in enumerate(plans) if (start := _start(subject, plan)) is not None), key=lambda f: f[0].order)
    at_once = max(1, _GROWN_TOKENS // batch.tokens.numel())
    with evaluating(subject):
        for first in track(range(0, len(forks), at_once), "sweep"):
            some = forks[first : first + at_once]
            parts = _grow(subject, batch, [(site, plans[n]) for site, n in some])
            results |= {n: measure(logits, batch) for (_, n), logits in zip(some, parts, strict=True)}
        for n in set(range(len(plans))) - results.keys():
            results[n] = _alone(subject, batch, plans[n], measure)
    return [results[n] for n in range(len(plans))]


def _check(plans: Sequence[Plan]) -> None:
    if not plans:
        raise ValueError("nothing to sweep over: give at least one intervention")


def _alone(subject: Subject, batch: Batch, plan: Plan, measure: Measure) -> Any:
    with intervened(subject, plan):
        logits = subject.target_logits(batch)
    return measure(logits, batch)


def _start(subject: Subject, plan: Plan) -> Site | None:
    """The first site a plan changes, if everything it changes lies in the blocks of one stack; None when nothing can be shared."""
    sites = sorted({subject.anatomy.resolve(edit.site) for edit in lowered(subject.anatomy, plan)}, key=lambda s: s.order)
    shareable = len({s.stack for s in sites}) == 1 and all(s.block is not None for s in sites)
    return sites[0] if shareable else None


class _Clean:
    """What every block, and every block's attention, gave in one forward without intervention."""

    def __init__(self, subject: Subject, batch: Batch) -> None:
        self.subject, self.batch = subject, batch
        self.outputs: dict[nn.Module, Any] = {}
        self.versions: dict[nn.Module, int] = {}
        blocks = [subject.module.get_submodule(p) for paths in subject.anatomy.stacks.values() for p in paths]
        attentions = [a for site in subject.sites if site.point == "heads" and (a := _attention(subject, site)) is not None]
        with rerouted({m: self._keep(m) for m in [*blocks, *attentions]}):
            subject.touch(batch)

    def _keep(self, module: nn.Module) -> Route:
        def route(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                output = self.outputs[module] = forward(*args, **kwargs)
                tensor = first_tensor(output)
                self.versions[module] = 0 if tensor is None else tensor._version
                return output

            return run

        return route

    def _known(self, module: nn.Module) -> Route:
        return lambda _: lambda *args, **kwargs: self.outputs[module]

    def under(self, plan: Plan, measure: Measure) -> Any:
        start = _start(self.subject, plan)
        with rerouted({} if start is None else {m: self._known(m) for m in self._before(start)}):
            return _alone(self.subject, self.batch, plan, measure)

    def _before(self, start: Site) -> list[nn.Module]:
        """The modules whose output a plan that starts at `start` cannot change."""
        assert start.block is not None
        modules = [self.subject.module.get_submodule(p) for p in self.subject.anatomy.blocks(start.stack)[: start.block]]
        if start.point in ("neurons", "mlp_out", "resid_post"):
            attention = _attention(self.subject, Site("heads", start.block, start.stack))
            modules += [] if attention is None else [attention]
        return modules

    def check(self) -> None:
        for module, output in self.outputs.items():
            tensor = first_tensor(output)
            if tensor is not None and tensor._version != self.versions[module]:
                raise HookError(
                    f"{type(module).__name__}'s output was changed in place after the forward: this model's blocks cannot be resumed; use sweep.naive"
                )


def _attention(subject: Subject, heads: Site) -> nn.Module | None:
    """The child of a block that holds the attention's out-projection, if the block does not hold it itself."""
    if heads not in subject.anatomy.places:
        return None
    block = subject.anatomy.blocks(heads.stack)[heads.block or 0]
    child, _, rest = subject.anatomy.place(heads).path[len(block) + 1 :].partition(".")
    return subject.module.get_submodule(f"{block}.{child}") if rest else None


def _grow(subject: Subject, batch: Batch, forks: Sequence[tuple[Site, Plan]]) -> list[Logits]:
    """One forward that carries the clean rows and, from its first block on, the rows of every fork; target logits by fork."""
    stack, size = forks[0][0].stack, len(batch)
    begins: dict[int, int] = {}
    edits: dict[Site, list[tuple[slice, Edit]]] = {}
    for number, (start, plan) in enumerate(forks, start=1):
        begins[start.block or 0] = begins.get(start.block or 0, 0) + 1
        for edit in lowered(subject.anatomy, plan):
            edits.setdefault(subject.anatomy.resolve(edit.site), []).append((slice(number * size, (number + 1) * size), edit))
    blocks = [subject.module.get_submodule(p) for p in subject.anatomy.blocks(stack)]
    growing = {Site("resid_pre", block, stack): _append_clean(size, count) for block, count in begins.items()}
    with (
        tapped(subject, growing),
        tapped(subject, {s: _edit_rows(e) for s, e in edits.items()}),
        rerouted({b: _repeat_arguments(size) for b in blocks}),
    ):
        logits = subject.target_logits(batch)
    return list(logits.split(size))[1:]


def _append_clean(size: int, count: int) -> Visit:
    def append(value: Value, _: Clock) -> Tensor:
        return torch.cat([value, *[value[:size]] * count])

    return append


def _edit_rows(edits: Sequence[tuple[slice, Edit]]) -> Visit:
    def edit_rows(value: Value, clock: Clock) -> Tensor:
        changed = value.clone()
        for rows, edit in edits:
            changed[rows] = apply(edit, changed[rows], clock.offset, edit.active(clock.offset, clock.length, clock.prompt))
        return changed

    return edit_rows


def _repeat_arguments(size: int) -> Route:
    """Makes masks and positions, which stand beside the hidden states, as many as the grown batch has rows."""

    def route(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            hidden = first_tensor((args, kwargs))
            times = 1 if hidden is None else hidden.shape[0] // size
            return forward(
                *(_repeated(a, hidden, size, times) for a in args), **{k: _repeated(v, hidden, size, times) for k, v in kwargs.items()}
            )

        return run

    return route


def _repeated(value: Any, hidden: Tensor | None, size: int, times: int) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_repeated(v, hidden, size, times) for v in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    batched = isinstance(value, Tensor) and value is not hidden and value.ndim > 1 and value.shape[0] == size > 1
    return value.repeat(times, *[1] * (value.ndim - 1)) if batched else value


def _rows_get_cheaper(subject: Subject, batch: Batch, plans: Sequence[Plan]) -> bool:
    """Whether a row costs less in a larger batch, by timing the middle block of the first plan's stack: launch-bound work does."""
    start = next((s for plan in plans if (s := _start(subject, plan)) is not None), None)
    exact = next(subject.module.parameters()).dtype == torch.float64  # who pays for float64 wants the naive loop's bits
    if start is None or exact or len(plans) < 2 or len(batch) * 4 * batch.length > _GROWN_TOKENS:
        return False
    if any(Site("resid_pre", i, start.stack) not in subject.anatomy.places for i in range(len(subject.anatomy.blocks(start.stack)))):
        return False
    blocks = subject.anatomy.blocks(start.stack)
    cost: dict[int, float] = {}

    def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            for times in (1, 4, 1, 4):
                large = _enlarged(args, kwargs, len(batch), times)
                began = time.perf_counter()
                forward(*large[0], **large[1])
                cost[times] = min(cost.get(times, float("inf")), time.perf_counter() - began)
            return forward(*args, **kwargs)

        return run

    with rerouted({subject.module.get_submodule(blocks[len(blocks) // 2]): timed}):
        subject.touch(batch)
    return cost[4] < 4 * cost[1] * _CHEAPER_ROWS


def _enlarged(args: Any, kwargs: Mapping[str, Any], size: int, times: int) -> tuple[Any, dict[str, Any]]:
    def enlarge(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(enlarge, value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return (
            value.repeat(times, *[1] * (value.ndim - 1))
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == size
            else value
        )

    return enlarge(tuple(args)), {k: enlarge(v) for k, v in kwargs.items()}
