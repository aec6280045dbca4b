"""sweep: many interventions on one batch, for little more than the cost of one.

An intervention at block L changes nothing below L. `sweep_resuming` keeps what every block returned
in one clean forward and starts each intervention at its own block; `sweep_growing` runs all of them
in one batch that grows at each block where some begin. Both run the model's own forward and replace
only the forwards of its blocks, so that what the model does around its blocks is unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import HookError
from interp.hooks.clock import Clock
from interp.hooks.forward_override import Route, rerouted
from interp.hooks.hooks import (
    Value,
    Visit,
    check_applied,
    first_tensor,
    input_of,
    intervened,
    lower_plans,
    runnable_edits,
    tapped,
)
from interp.interventions.edit import Edit, apply
from interp.interventions.plan import Plan
from interp.progress import track
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject, evaluating, token_losses

Logits = Float[Tensor, "batch predicted vocabulary"]
Measure = Callable[[Logits, Batch], Any]
Key = tuple[str | int, ...]  # path of a tensor in nested arguments: ("mask", 0)

# Tokens of one grown forward. Beyond that a forward is bound by arithmetic, so that more rows only
# cost memory.
_GROWN_TOKENS = 2048

# For every block, the arguments that have one row per example.
Growth = Mapping[nn.Module, frozenset[Key]]

# The largest batches, in tokens, that grow. Below that size a block spends more on launching its
# operations and reading its weights than on arithmetic, and one forward for many plans saves that;
# above that size `sweep_growing` only carries rows that `sweep_resuming` skips. On a CPU the two
# cross at about 128 tokens for widths from 64 to 576. On a GPU launching costs the same and
# arithmetic less.
_CPU_TOKENS = 64
_GPU_TOKENS = 512


def mean_loss(logits: Logits, batch: Batch) -> float:
    """Returns the mean negative log-likelihood of the batch's targets, in nats per token.

    Args:
        logits: [batch, predicted, vocabulary], as `subject.target_logits(batch)` returns them.
        batch: the batch that they predict; padding and unscored tokens do not count.

    Example:
        >>> unknown = interp.Batch.from_frame(control)
        >>> with torch.no_grad():
        ...     known_loss = interp.mean_loss(subject.target_logits(batch), batch)
        ...     unknown_loss = interp.mean_loss(subject.target_logits(unknown), unknown)
        >>> known_loss < unknown_loss
        True
    """
    total = token_losses(logits, batch).sum()
    mean = total / batch.counted.sum()
    return float(mean)


def sweep(
    subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss
) -> list[Any]:
    """Returns `measure(target_logits, batch)` under each plan, as if each plan ran alone.

    Chooses between `sweep_resuming`, which equals `sweep_naively` bit for bit, and `sweep_growing`,
    which equals it up to the rounding of differently shaped matrix products. The choice depends
    only on the model, the shape of the batch and the kind of device, so that the same call always
    gives the same numbers on the same machine: small batches grow, larger ones resume, and float64
    models always resume.

    Args:
        subject: the model under study.
        batch: the examples, run under every plan.
        plans: interventions, or sequences of interventions, to compare.
        measure: what to compute from the logits of the targets and the batch.

    Returns:
        One result of `measure` per plan, in order.

    Raises:
        ValueError: no plan was given.
        HookError: a plan never applied, or the model changes a block's output in place.

    Example:
        >>> neurons = subject.anatomy.units("blocks.1.neurons")
        >>> plans = [interp.Scale(neurons, factor=1.0), interp.Zero(neurons)]
        >>> unchanged, ablated = interp.sweep(subject, batch, plans)
        >>> unchanged < ablated
        True
    """
    growth = _worthwhile_growth(subject, batch, plans)
    if growth is not None:
        return sweep_growing(subject, batch, plans, measure, growth)
    return sweep_resuming(subject, batch, plans, measure)


def grows(subject: Subject, batch: Batch, plans: Sequence[Plan]) -> bool:
    """Returns whether `sweep` chooses `sweep_growing`.

    Raises:
        ValueError: no plan was given.
    """
    return _worthwhile_growth(subject, batch, plans) is not None


def order_of_growth(subject: Subject, plans: Sequence[Plan]) -> list[int]:
    """Returns the numbers of the plans in the order in which `sweep_growing` runs them: first those
    that share forwards, `plans_per_forward` at a time."""
    together = [fork.number for fork in _forks(subject, plans)]
    alone = sorted(set(range(len(plans))) - set(together))
    return [*together, *alone]


def plans_per_forward(batch: Batch) -> int:
    """Returns how many plans at most share a forward of `sweep_growing`."""
    return max(1, _GROWN_TOKENS // batch.tokens.numel())


def sweep_naively(
    subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss
) -> list[Any]:
    """Runs one whole forward per plan, which `sweep_resuming` and `sweep_growing` must equal.

    Arguments, result and errors as for `sweep`.
    """
    _check_plans(plans)
    with evaluating(subject):
        return [_run_alone(subject, batch, plan, measure) for plan in track(plans, "sweep")]


def sweep_resuming(
    subject: Subject, batch: Batch, plans: Sequence[Plan], measure: Measure = mean_loss
) -> list[Any]:
    """Starts each plan at its lowest block, from what one clean forward left below it.

    A plan that changes only the MLP of its lowest block starts after that block's attention.
    Arguments, result and errors as for `sweep`.
    """
    _check_plans(plans)
    # Inference tensors have no version counter, and without it an output that the model changes in
    # place could not be noticed: hence no_grad instead of inference_mode.
    with evaluating(subject), torch.inference_mode(False), torch.no_grad():
        clean = _CleanForward(subject, batch)
        return [clean.resume(plan, measure) for plan in track(plans, "sweep")]


def sweep_growing(
    subject: Subject,
    batch: Batch,
    plans: Sequence[Plan],
    measure: Measure = mean_loss,
    growth: Growth | None = None,
) -> list[Any]:
    """Runs all plans in one batch that grows at each block where some of them begin.

    Plans that begin outside the blocks run alone, and so do all plans of models whose forward does
    not allow a batch to grow in the middle: those with several stacks (a longer batch in one stack
    would not fit the other), and those that go back to the shape of their input. How the batch may
    grow is found by trying, unless `growth` says it. Other arguments, result and errors as for
    `sweep`.
    """
    _check_plans(plans)
    if growth is None:
        growth = _find_growth(subject, batch)
    forks = [] if growth is None else _forks(subject, plans)
    forks_per_forward = plans_per_forward(batch)

    results: dict[int, Any] = {}
    limit = BatchLimit()
    with evaluating(subject):
        for first in track(range(0, len(forks), forks_per_forward), "sweep"):
            chunk = forks[first : first + forks_per_forward]
            assert growth is not None
            grown = limit.run(lambda part: _run_grown(subject, batch, part, growth), chunk)
            for together, logits_of_forks in grown:
                for fork, logits in zip(together, logits_of_forks, strict=True):
                    results[fork.number] = measure(logits, batch)

        for number, plan in enumerate(plans):
            if number not in results:
                results[number] = _run_alone(subject, batch, plan, measure)
    return [results[number] for number in range(len(plans))]


def _check_plans(plans: Sequence[Plan]) -> None:
    if not plans:
        raise ValueError("nothing to sweep over: give at least one intervention")


def _run_alone(subject: Subject, batch: Batch, plan: Plan, measure: Measure) -> Any:
    with intervened(subject, plan):
        logits = subject.target_logits(batch)
    return measure(logits, batch)


def _start(subject: Subject, plan: Plan) -> Site | None:
    """The first site that a plan changes; None when no forward can be shared.

    A forward can be shared when everything that the plan changes is in the blocks of one stack.
    """
    edits = lower_plans(subject.anatomy, plan)
    changed = {subject.anatomy.resolve(edit.site) for edit in edits}
    stacks = {site.stack for site in changed}
    in_blocks = all(site.block is not None for site in changed)
    if len(stacks) != 1 or not in_blocks:
        return None
    return min(changed, key=lambda site: site.order)


class _CleanForward:
    """What every block, and every block's attention, returned in one forward without a plan."""

    def __init__(self, subject: Subject, batch: Batch) -> None:
        self.subject = subject
        self.batch = batch
        self.outputs: dict[nn.Module, Any] = {}
        self.versions: dict[nn.Module, int] = {}
        routes = {module: self._keep_output(module) for module in self._modules()}
        with rerouted(routes):
            subject.touch(batch)
        self._check_unchanged()

    def _modules(self) -> list[nn.Module]:
        """The modules that may be skipped later: blocks, and the attention within them."""
        modules: list[nn.Module] = []
        for paths in self.subject.anatomy.stacks.values():
            modules += [self.subject.module.get_submodule(path) for path in paths]
        for site in self.subject.sites:
            if site.point != "heads":
                continue
            attention = _attention(self.subject, site)
            if attention is not None:
                modules.append(attention)
        return modules

    def _keep_output(self, module: nn.Module) -> Route:
        def route(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                tensor = first_tensor(output)
                self.outputs[module] = output
                # torch counts the in-place writes to a tensor as its version.
                self.versions[module] = 0 if tensor is None else tensor._version
                return output

            return run

        return route

    def _return_kept(self, module: nn.Module) -> Route:
        def route(_: Callable[..., Any]) -> Callable[..., Any]:
            def run(*_: Any, **__: Any) -> Any:
                return self.outputs[module]

            return run

        return route

    def resume(self, plan: Plan, measure: Measure) -> Any:
        """The measure under a plan, without running again what the plan cannot change."""
        start = _start(self.subject, plan)
        skipped = [] if start is None else self._before(start)
        routes = {module: self._return_kept(module) for module in skipped}
        with rerouted(routes):
            result = _run_alone(self.subject, self.batch, plan, measure)
        self._check_unchanged()
        return result

    def _before(self, start: Site) -> list[nn.Module]:
        """The modules whose output a plan that starts at `start` cannot change."""
        assert start.block is not None
        lower_blocks = self.subject.anatomy.blocks(start.stack)[: start.block]
        modules = [self.subject.module.get_submodule(path) for path in lower_blocks]

        # These points come after the attention of their own block.
        if start.point in ("neurons", "mlp_out", "block_out", "resid_post"):
            attention = _attention(self.subject, start)
            if attention is not None:
                modules.append(attention)
        return modules

    def _check_unchanged(self) -> None:
        """Raises HookError when the model wrote into an output that was kept for later plans."""
        for module, output in self.outputs.items():
            tensor = first_tensor(output)
            if tensor is not None and tensor._version != self.versions[module]:
                name = type(module).__name__
                raise HookError(
                    f"{name}'s output was changed in place after its forward: "
                    "this model cannot be resumed; use interp.engine.sweeping.sweep_naively"
                )


def _attention(subject: Subject, start: Site) -> nn.Module | None:
    """The child of a block that runs the attention, and nothing that comes after it.

    None when no module is the attention alone, or when it reads what the MLP has written.

    Args:
        subject: the model.
        start: a site in the block, behind its attention.
    """
    places = subject.anatomy.places
    heads = places.get(Site("heads", start.block, start.stack))
    attn_out = places.get(Site("attn_out", start.block, start.stack))
    mid = places.get(Site("resid_mid", start.block, start.stack))
    if heads is None or attn_out is None:
        return None
    # Where there is no stream between the two halves, neither reads the other.
    if mid is not None and mid.path != attn_out.path:
        return None
    block = subject.anatomy.blocks(start.stack)[start.block or 0]
    path_in_block = heads.path.removeprefix(f"{block}.")
    child, _, rest = path_in_block.partition(".")
    # Where the projection is a child of the block itself, no module holds the attention alone.
    return subject.module.get_submodule(f"{block}.{child}") if rest else None


@dataclass(frozen=True, eq=False)
class _Fork:
    """A plan that joins a grown forward at the block where it begins."""

    number: int  # the index of the plan among all plans of the sweep
    plan: Plan
    start: Site


def _forks(subject: Subject, plans: Sequence[Plan]) -> list[_Fork]:
    """The plans that can run in a grown forward, lowest block first."""
    forks: list[_Fork] = []
    for number, plan in enumerate(plans):
        start = _start(subject, plan)
        if start is not None:
            forks.append(_Fork(number, plan, start))
    return sorted(forks, key=lambda fork: fork.start.order)


def _has_entries(subject: Subject) -> bool:
    """Whether a model has one stack, whose residual stream is verified at every block, so that rows
    can be appended to it there."""
    stacks = subject.anatomy.stacks
    if len(stacks) != 1:
        return False
    [(stack, blocks)] = stacks.items()
    entries = [Site("resid_pre", block, stack) for block in range(len(blocks))]
    return all(site in subject.anatomy.places for site in entries)


# A grown forward starts with the rows of the batch, unchanged. At each block where forks begin, one
# copy of these clean rows is appended for each of them, and the plan of a fork edits its own copy
# only. As forks are sorted by the block at which they begin, copy k belongs to fork k:
#
#     rows            0 .. size        clean, in every block
#     rows     size .. 2 * size        the first fork, from its first block on
#     rows 2 * size .. 3 * size        the second fork, from its first block on
#
# What the model hands to its blocks together with the hidden states (masks, positions) still has
# the rows of the original batch, so each block's forward is replaced by one that repeats them.
def _run_grown(
    subject: Subject, batch: Batch, forks: Sequence[_Fork], growth: Growth
) -> list[Logits]:
    """The target logits of every fork, from one forward."""
    stack = forks[0].start.stack
    size = len(batch)

    edits: list[Edit] = []
    edits_by_site: dict[Site, list[tuple[int, slice, Edit]]] = {}
    for copy, fork in enumerate(forks, start=1):
        first = copy * size
        rows = slice(first, first + size)
        for edit in runnable_edits(subject, fork.plan):
            site = subject.anatomy.resolve(edit.site)
            at_site = edits_by_site.setdefault(site, [])
            at_site.append((len(edits), rows, edit))
            edits.append(edit)

    forks_at_block = Counter(fork.start.block or 0 for fork in forks)
    appending: dict[Site, Visit] = {}
    for block, count in forks_at_block.items():
        appending[Site("resid_pre", block, stack)] = _append_clean_rows(size, count)

    applied: Counter[int] = Counter()
    editing = {site: _edit_rows(at_site, applied) for site, at_site in edits_by_site.items()}
    repeating = {block: _repeat_arguments(size, batched) for block, batched in growth.items()}

    # The edits are the inner context, so that they find the rows which the outer one appended.
    with tapped(subject, appending), tapped(subject, editing), rerouted(repeating):
        logits = subject.target_logits(batch)
    check_applied(edits, applied)

    _, *logits_of_forks = logits.split(size)  # the first copy is the unchanged batch
    return logits_of_forks


def _append_clean_rows(size: int, count: int) -> Visit:
    def append(value: Value, _: Clock) -> Tensor:
        clean = value[:size]
        copies = [clean] * count
        return torch.cat([value, *copies])

    return append


def _edit_rows(numbered: Sequence[tuple[int, slice, Edit]], applied: Counter[int]) -> Visit:
    def edit_rows(value: Value, clock: Clock) -> Tensor:
        # Cloned once for all edits, of which each writes into the rows of its own fork.
        changed = value.clone()
        for number, rows, edit in numbered:
            positions = clock.positions(edit)
            if len(positions):
                applied[number] += 1
                read = input_of(edit, value, clock)
                own_read = None if read is None else read[rows]
                changed[rows] = apply(edit, changed[rows], clock.offset, positions, read=own_read)
        return changed

    return edit_rows


def _repeat_arguments(size: int, batched: frozenset[Key]) -> Route:
    """Repeats the masks and positions that a block is given, so that they have the rows of its
    hidden states."""

    def route(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            hidden = first_tensor((args, kwargs))
            times = 1 if hidden is None else hidden.shape[0] // size
            args, kwargs = _repeat_batched((args, kwargs), times, batched, hidden)
            return forward(*args, **kwargs)

        return run

    return route


# Which arguments of a block have one row per example cannot be read off their shapes: a mask of one
# row may serve all examples, and a length may equal the batch size by chance. So the model is
# called on one example and on two, and the arguments whose length doubled are those with one row
# per example. Blocks of one model may get different arguments (a mask for a sliding window), so
# each is looked at; but only the first is run, and the others pass on what they were given.
def _batched_arguments(subject: Subject, batch: Batch) -> Growth:
    """The paths, in the arguments of every block, of the tensors that have one row per example."""
    first, *others = _blocks(subject)
    sizes: dict[nn.Module, list[dict[Key, int]]] = {}
    outputs: list[Any] = []

    def note_sizes(block: nn.Module) -> Route:
        def route(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                tensors = _tensors((args, kwargs))
                of_this_run = {key: len(tensor) for key, tensor in tensors}
                of_block = sizes.setdefault(block, [])
                of_block.append(of_this_run)
                if block is first:
                    outputs[:] = [forward(*args, **kwargs)]
                return outputs[0]

            return run

        return route

    routes = {block: note_sizes(block) for block in (first, *others)}
    for count in (1, 2):
        first_row_repeated = torch.zeros(count, dtype=torch.long)
        examples = replace(batch.rows(first_row_repeated), mask=None)
        with rerouted(routes):
            subject.touch(examples)

    growth: dict[nn.Module, frozenset[Key]] = {}
    for block, (of_one, of_two) in sizes.items():  # a block that runs several times does not fit
        in_both = of_one.keys() & of_two.keys()
        doubled = [key for key in in_both if of_two[key] == 2 * of_one[key]]
        growth[block] = frozenset(doubled)
    return growth


def _blocks(subject: Subject) -> list[nn.Module]:
    [paths] = subject.anatomy.stacks.values()
    return [subject.module.get_submodule(path) for path in paths]


def _tensors(tree: Any, key: Key = ()) -> Iterator[tuple[Key, Tensor]]:
    """The tensors in nested arguments, each with its path."""
    if isinstance(tree, Tensor):
        if tree.ndim:  # a scalar has no rows
            yield key, tree
    elif isinstance(tree, (tuple, list, dict)):
        items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, item in items:
            yield from _tensors(item, (*key, name))


def _repeat_batched(
    tree: Any, times: int, batched: frozenset[Key], keep: Tensor | None = None, key: Key = ()
) -> Any:
    """`tree` with its batched tensors repeated along their first axis, except `keep`."""
    if isinstance(tree, Tensor):
        unchanged = tree is keep or key not in batched
        return tree if unchanged else torch.cat([tree] * times)
    # Exactly these types: what else there may be, such as a cache, is passed on as it is.
    if type(tree) in (tuple, list):
        items = [
            _repeat_batched(item, times, batched, keep, (*key, number))
            for number, item in enumerate(tree)
        ]
        return type(tree)(items)
    if type(tree) is dict:
        named: Any = tree.items()
        return {
            name: _repeat_batched(item, times, batched, keep, (*key, name)) for name, item in named
        }
    return tree


def _worthwhile_growth(subject: Subject, batch: Batch, plans: Sequence[Plan]) -> Growth | None:
    """How the batch may grow, if one growing batch is likely to be faster than resuming."""
    _check_plans(plans)
    return _find_growth(subject, batch) if _is_worth_growing(subject, batch, plans) else None


def _is_worth_growing(subject: Subject, batch: Batch, plans: Sequence[Plan]) -> bool:
    """Whether one growing batch is likely to be faster than resuming."""
    # Models run in float64 for exact results: they get those of the naive loop, bit for bit.
    if next(subject.module.parameters()).dtype == torch.float64:
        return False
    largest = _CPU_TOKENS if subject.device.type == "cpu" else _GPU_TOKENS
    if batch.tokens.numel() > largest:
        return False
    if len(plans) < 2:
        return False
    return any(_start(subject, plan) is not None for plan in plans)


# What a model does with a batch that grew in the middle is tried: every row is given once more to
# the first block, and the copies must arrive at the logits of the originals. They do not where the
# model goes back to the shape of its input, or reads something per row from elsewhere than the
# arguments of its blocks.
def _find_growth(subject: Subject, batch: Batch) -> Growth | None:
    """How the batch may grow at the blocks of a model; None where it may not."""
    if not _has_entries(subject):
        return None
    size = len(batch)
    first = Site("resid_pre", 0, next(iter(subject.anatomy.stacks)))
    try:
        with evaluating(subject):
            growth = _batched_arguments(subject, batch)
            repeating = {
                block: _repeat_arguments(size, batched) for block, batched in growth.items()
            }
            doubling = {first: _append_clean_rows(size, 1)}
            with tapped(subject, doubling), rerouted(repeating):
                logits = subject.target_logits(batch)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        # The shapes do not fit, or the blocks need what those before them compute.
        return None
    if len(logits) != 2 * size:
        return None
    originals, copies = logits.split(size)
    return growth if _nearly_equal(originals, copies) else None


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for the rounding of differently placed rows."""
    eps = torch.finfo(one.dtype).eps
    tolerance = 1024 * eps * one.abs().amax()
    differences = (one - other).abs()
    return bool((differences <= tolerance).all())
