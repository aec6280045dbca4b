"""sweep: many interventions for little more than one.

An intervention at block L changes nothing below L. `resumed` keeps what every block gave in one
clean forward and lets each intervention start at its own block; `grown` carries all of them in one
batch that grows at each block where some begin. Both run the model's own forward, with the forwards
of blocks rerouted, so that whatever stands around the blocks stays the model's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import HookError
from interp.hooks.forward_override import Route, rerouted
from interp.hooks.hooks import (
    Clock,
    Value,
    Visit,
    check_applied,
    first_tensor,
    intervened,
    lowered,
    tapped,
)
from interp.interventions.edit import Edit, apply
from interp.interventions.plan import Plan
from interp.progress import track
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating, token_losses

Logits = Float[Tensor, "batch predicted vocabulary"]
Measure = Callable[[Logits, Batch], Any]
Key = tuple[str | int, ...]
_GROWN_TOKENS = (
    2048  # of one grown pass; beyond that a batch is compute-bound and only costs memory
)
# Largest batches, in tokens, that grow. Below it a block spends more on launching its operations
# and reading its weights than on arithmetic, and one pass over many plans saves that; above it
# `grown` only carries rows that `resumed` skips. On a CPU the two cross at about 128 tokens for
# widths from 64 to 576. On a GPU launching costs as much and arithmetic less.
_CPU_TOKENS = 64
_GPU_TOKENS = 512


def mean_loss(logits: Logits, batch: Batch) -> float:
    """Mean negative log-likelihood of the batch's targets, in nats a token."""
    return float(token_losses(logits, batch).sum() / batch.counted.sum())


def sweep(
    subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss
) -> list[Any]:
    """`measure(target_logits, batch)` under each plan, as if each ran alone.

    Chooses between `resumed`, which equals `naive` to the bit, and `grown`, which equals it up to
    the rounding of differently shaped matrix products. The choice depends on the model, the shape
    of the batch and the kind of device only, so that the same call always gives the same numbers on
    the same machine: small batches grow, larger ones resume, and in float64 it always resumes.
    """
    _check(plans)
    method = grown if _should_grow(subject, batch, plans) else resumed
    return method(subject, batch, plans, measure)


def naive(
    subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss
) -> list[Any]:
    """One whole forward a plan: what the others must equal."""
    _check(plans)
    with evaluating(subject):
        return [_alone(subject, batch, plan, measure) for plan in track(plans, "sweep")]


def resumed(
    subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss
) -> list[Any]:
    """Each plan starts at its lowest block, and after that block's attention where it changes the
    MLP only."""
    _check(plans)
    with evaluating(subject), torch.inference_mode(False), torch.no_grad():
        clean = _Clean(subject, batch)
        results = [clean.under(plan, measure) for plan in track(plans, "sweep")]
        clean.check()
    return results


def grown(
    subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss
) -> list[Any]:
    """All plans in one batch that grows at each block where some of them begin.

    Plans that begin outside the blocks, and all plans of models with several stacks (a longer batch
    in one would not fit the other), run alone.
    """
    _check(plans)
    results: dict[int, Any] = {}
    starts = [_start(subject, plan) for plan in plans] if _can_grow(subject) else []
    forks = sorted(
        ((start, n) for n, start in enumerate(starts) if start is not None),
        key=lambda f: f[0].order,
    )
    at_once = max(1, _GROWN_TOKENS // batch.tokens.numel())
    with evaluating(subject):
        batched = _batched_arguments(subject, batch) if forks else frozenset[Key]()
        for first in track(range(0, len(forks), at_once), "sweep"):
            some = forks[first : first + at_once]
            parts = _grow(subject, batch, [(site, plans[n]) for site, n in some], batched)
            results |= {
                n: measure(logits, batch) for (_, n), logits in zip(some, parts, strict=True)
            }
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
    """The first site a plan changes, if everything it changes lies in the blocks of one stack; None
    when nothing can be shared."""
    sites = sorted(
        {subject.anatomy.resolve(edit.site) for edit in lowered(subject.anatomy, plan)},
        key=lambda s: s.order,
    )
    shareable = len({s.stack for s in sites}) == 1 and all(s.block is not None for s in sites)
    return sites[0] if shareable else None


class _Clean:
    """What every block, and every block's attention, gave in one forward without intervention."""

    def __init__(self, subject: Subject, batch: Batch) -> None:
        self.subject, self.batch = subject, batch
        self.outputs: dict[nn.Module, Any] = {}
        self.versions: dict[nn.Module, int] = {}
        blocks = [
            subject.module.get_submodule(p)
            for paths in subject.anatomy.stacks.values()
            for p in paths
        ]
        attentions = [
            a
            for site in subject.sites
            if site.point == "heads" and (a := _attention(subject, site)) is not None
        ]
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
        def route(_: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *_, **__: self.outputs[module]

        return route

    def under(self, plan: Plan, measure: Measure) -> Any:
        start = _start(self.subject, plan)
        with rerouted({} if start is None else {m: self._known(m) for m in self._before(start)}):
            return _alone(self.subject, self.batch, plan, measure)

    def _before(self, start: Site) -> list[nn.Module]:
        """The modules whose output a plan that starts at `start` cannot change."""
        assert start.block is not None
        modules = [
            self.subject.module.get_submodule(p)
            for p in self.subject.anatomy.blocks(start.stack)[: start.block]
        ]
        if start.point in ("neurons", "mlp_out", "block_out", "resid_post"):
            attention = _attention(self.subject, Site("heads", start.block, start.stack))
            modules += [] if attention is None else [attention]
        return modules

    def check(self) -> None:
        for module, output in self.outputs.items():
            tensor = first_tensor(output)
            if tensor is not None and tensor._version != self.versions[module]:
                name = type(module).__name__
                raise HookError(
                    f"{name}'s output was changed in place after its forward: this model cannot be resumed; "
                    "use interp.engine.sweeping.naive"
                )


def _attention(subject: Subject, heads: Site) -> nn.Module | None:
    """The child of a block that holds the attention's out-projection, if the block does not hold it
    itself."""
    if heads not in subject.anatomy.places:
        return None
    block = subject.anatomy.blocks(heads.stack)[heads.block or 0]
    child, _, rest = subject.anatomy.place(heads).path[len(block) + 1 :].partition(".")
    return subject.module.get_submodule(f"{block}.{child}") if rest else None


def _can_grow(subject: Subject) -> bool:
    """Whether the batch may grow at any block: one stack, whose residual stream is verified at
    every block."""
    stacks = subject.anatomy.stacks
    entries = [
        Site("resid_pre", i, stack) for stack, blocks in stacks.items() for i in range(len(blocks))
    ]
    return len(stacks) == 1 and all(site in subject.anatomy.places for site in entries)


def _grow(
    subject: Subject, batch: Batch, forks: Sequence[tuple[Site, Plan]], batched: frozenset[Key]
) -> list[Logits]:
    """One forward that carries the clean rows and, from its first block on, the rows of every fork;
    target logits by fork."""
    stack, size = forks[0][0].stack, len(batch)
    begins = Counter(start.block or 0 for start, _ in forks)
    edits: list[Edit] = []
    by_site: dict[Site, list[tuple[int, slice, Edit]]] = {}
    for number, (_, plan) in enumerate(forks, start=1):
        for edit in lowered(subject.anatomy, plan):
            rows = slice(number * size, (number + 1) * size)
            by_site.setdefault(subject.anatomy.resolve(edit.site), []).append(
                (len(edits), rows, edit)
            )
            edits.append(edit)
    applied: Counter[int] = Counter()
    blocks = [subject.module.get_submodule(p) for p in subject.anatomy.blocks(stack)]
    growing = {
        Site("resid_pre", block, stack): _append_clean(size, count)
        for block, count in begins.items()
    }
    with (
        tapped(subject, growing),
        tapped(
            subject, {site: _edit_rows(numbered, applied) for site, numbered in by_site.items()}
        ),
        rerouted({block: _repeat_arguments(size, batched) for block in blocks}),
    ):
        logits = subject.target_logits(batch)
    check_applied(edits, applied)
    return list(logits.split(size))[1:]


def _append_clean(size: int, count: int) -> Visit:
    def append(value: Value, _: Clock) -> Tensor:
        return torch.cat([value, *[value[:size]] * count])

    return append


def _edit_rows(numbered: Sequence[tuple[int, slice, Edit]], applied: Counter[int]) -> Visit:
    def edit_rows(value: Value, clock: Clock) -> Tensor:
        changed = value.clone()
        for number, rows, edit in numbered:
            positions = edit.active(clock.offset, clock.length, clock.prompt)
            if len(positions):
                applied[number] += 1
                changed[rows] = apply(edit, changed[rows], clock.offset, positions)
        return changed

    return edit_rows


def _repeat_arguments(size: int, batched: frozenset[Key]) -> Route:
    """Makes masks and positions, which stand beside the hidden states, as many as the grown batch
    has rows."""

    def route(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            hidden = first_tensor((args, kwargs))
            times = 1 if hidden is None else hidden.shape[0] // size
            args, kwargs = _repeated((args, kwargs), times, batched, hidden)
            return forward(*args, **kwargs)

        return run

    return route


class _SeenError(Exception):
    """The forward has shown what was wanted of it."""


def _batched_arguments(subject: Subject, batch: Batch) -> frozenset[Key]:
    """Which arguments of the blocks hold rows for every example: those that double when the model
    is called on two examples, not one."""
    sizes: list[dict[Key, int]] = []

    def spy(_: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            sizes.append({key: len(tensor) for key, tensor in _tensors((args, kwargs))})
            raise _SeenError

        return run

    first = subject.module.get_submodule(next(iter(subject.anatomy.stacks.values()))[0])
    for times in (1, 2):
        with rerouted({first: spy}), suppress(_SeenError):
            subject.touch(replace(batch.rows(torch.zeros(times, dtype=torch.long)), mask=None))
    one, two = sizes
    return frozenset(key for key in one.keys() & two.keys() if two[key] == 2 * one[key])


def _tensors(tree: Any, key: Key = ()) -> Iterator[tuple[Key, Tensor]]:
    if isinstance(tree, Tensor) and tree.ndim:
        yield key, tree
    elif isinstance(tree, (tuple, list, dict)):
        items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, item in items:
            yield from _tensors(item, (*key, name))


def _repeated(
    tree: Any, times: int, batched: frozenset[Key], keep: Tensor | None = None, key: Key = ()
) -> Any:
    """`tree` with the batched tensors, but for `keep`, repeated along their first axis."""
    if isinstance(tree, Tensor):
        return torch.cat([tree] * times) if key in batched and tree is not keep else tree
    if type(tree) in (tuple, list):
        return type(tree)(
            _repeated(item, times, batched, keep, (*key, n)) for n, item in enumerate(tree)
        )
    if type(tree) is dict:
        items: Any = tree.items()
        return {name: _repeated(item, times, batched, keep, (*key, name)) for name, item in items}
    return tree


def _should_grow(subject: Subject, batch: Batch, plans: Sequence[Plan]) -> bool:
    """Whether `grown` is the faster way, and one that these plans and this model allow."""
    if (
        next(subject.module.parameters()).dtype == torch.float64
    ):  # who pays for float64 wants the naive loop's bits
        return False
    largest = _CPU_TOKENS if subject.device.type == "cpu" else _GPU_TOKENS
    if batch.tokens.numel() > largest:
        return False
    alone = len(plans) < 2 or all(_start(subject, plan) is None for plan in plans)
    return not alone and _can_grow(subject) and _takes_more_rows(subject, batch)


def _takes_more_rows(subject: Subject, batch: Batch) -> bool:
    """Whether a block runs on more rows than the model was given, tried on the first."""
    ran: list[bool] = []
    with evaluating(subject):
        batched = _batched_arguments(subject, batch)

        def try_twice_the_rows(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                more_args, more_kwargs = _repeated((args, kwargs), 2, batched)
                forward(*more_args, **more_kwargs)
                ran.append(True)
                raise _SeenError

            return run

        first = subject.module.get_submodule(next(iter(subject.anatomy.stacks.values()))[0])
        try:
            with rerouted({first: try_twice_the_rows}), suppress(_SeenError):
                subject.touch(batch)
        except RuntimeError:  # of shapes that do not fit
            return False
    return bool(ran)
