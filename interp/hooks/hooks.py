"""The only file that registers hooks: `tapped` (to see or replace values at sites), `intervened`,
`captured` and `every_call`.

Laws kept here: own handles only, removed in `finally`; contexts nest and re-enter; the hooks of
others survive; a hook that never fires is an error; a value is never written in place. Where
contexts nest, the inner one sees what the outer one left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import HookError
from interp.interventions.edit import Edit, apply
from interp.interventions.plan import Plan, interventions
from interp.sites.anatomy import Anatomy, Place
from interp.sites.site import Site

Value = Float[Tensor, "batch position width"]


_declared_prompt: ContextVar[int | None] = ContextVar("prompt", default=None)


class Hooked(Protocol):
    """What can be hooked: a module and the anatomy that says where its sites are. Every Subject is
    one."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def anatomy(self) -> Anatomy: ...


@dataclass
class Clock:
    """Where in the sequence the running forward is: positions are absolute, also under a KV cache."""

    offset: int = 0
    length: int = 0
    prompt: int = 0

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        caches = [a for a in (*args, *kwargs.values()) if hasattr(a, "get_seq_length")]
        self.offset = int(caches[0].get_seq_length()) if caches else 0

    def see(self, value: Tensor) -> None:
        self.length = value.shape[1]
        declared = _declared_prompt.get()
        if declared is not None:
            self.prompt = declared
        elif self.offset == 0:
            self.prompt = self.length


Visit = Callable[[Value, Clock], Tensor | None]


@contextmanager
def prompt_length(length: int | None) -> Generator[None]:
    """Declares how many leading positions are prompt, for `when="prompt"` and `"decode"` in a
    teacher-forced forward."""
    token = _declared_prompt.set(length)
    try:
        yield
    finally:
        _declared_prompt.reset(token)


@contextmanager
def tapped(subject: Hooked, visits: Mapping[Site, Visit]) -> Generator[Counter[Site]]:
    """Calls `visits[site](value, clock)` whenever a site runs; a returned tensor replaces the
    value.

    Yields how often each site fired. Raises HookError on a clean exit when one never did.
    """
    fired: Counter[Site] = Counter()
    clock = Clock()
    with ExitStack() as stack:
        for path in dict.fromkeys(("", *(blocks[0] for blocks in subject.anatomy.stacks.values()))):
            stack.callback(_clock_hook(subject.module.get_submodule(path), clock).remove)
        for site in sorted(
            visits, key=lambda s: s.order
        ):  # so that resid_mid is built on the resid_pre that other visits left
            _tap(
                stack,
                subject.module,
                subject.anatomy.place(site),
                _counted(visits[site], site, fired),
                clock,
            )
        yield fired
    missed = [site for site in visits if not fired[site]]
    if missed:
        where = ", ".join(f"{s} ({subject.anatomy.place(s)})" for s in missed[:3])
        raise HookError(
            f"{len(missed)} of {len(visits)} hooks never fired: {where}; no forward reached them"
        )


def _counted(visit: Visit, site: Site, fired: Counter[Site]) -> Visit:
    def counted(value: Value, clock: Clock) -> Tensor | None:
        fired[site] += 1
        return visit(value, clock)

    return counted


def _clock_hook(module: nn.Module, clock: Clock) -> Any:
    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clock.start(args, kwargs)
        value = first_tensor((args, kwargs))
        if value is not None and value.ndim == 3:
            clock.see(value)

    return module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)


def _tap(stack: ExitStack, module: nn.Module, place: Place, visit: Visit, clock: Clock) -> None:
    """Hooks one place until the stack unwinds; for a place that is a sum or a difference, first
    hooks the other term."""
    if place.base is not None:
        other, sign = place.base
        base: list[Tensor] = []

        def keep(value: Value, _: Clock) -> None:
            base[:] = [sign * value]

        _tap(stack, module, other, keep, clock)
        visit = _summed(visit, base)
    target = module.get_submodule(place.path)

    def inward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _replaced((args, kwargs), lambda t: _visit(visit, t, clock))

    def outward(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return _replaced(output, lambda t: _visit(visit, t, clock))

    if place.side == "in":
        stack.callback(target.register_forward_pre_hook(inward, with_kwargs=True).remove)
    else:
        stack.callback(target.register_forward_hook(outward).remove)


def _summed(visit: Visit, base: list[Tensor]) -> Visit:
    def visited(value: Value, clock: Clock) -> Tensor | None:
        new = visit(base[0] + value, clock)
        return None if new is None else new - base[0]

    return visited


def _visit(visit: Visit, tensor: Tensor, clock: Clock) -> Tensor | None:
    """Shows a visit [batch, position, width], whatever the module's own shape is (OPT's MLP sees
    [batch * position, width])."""
    value = tensor if tensor.ndim == 3 else tensor.reshape(-1, clock.length, tensor.shape[-1])
    clock.see(value)
    new = visit(value, clock)
    return new if new is None or tensor.ndim == 3 else new.reshape(-1, tensor.shape[-1])


def first_tensor(tree: Any) -> Tensor | None:
    """The first floating-point tensor in nested arguments or outputs: by convention the hidden
    states."""
    if isinstance(tree, Tensor):
        return tree if tree.is_floating_point() else None
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(tree, (tuple, list)):
        return next((t for item in tree if (t := first_tensor(item)) is not None), None)  # pyright: ignore[reportUnknownVariableType]
    return None


def _replaced(tree: Any, change: Callable[[Tensor], Tensor | None]) -> Any:
    """`tree` with its first floating tensor changed, or None (torch's "leave it") when the change
    is None."""
    old = first_tensor(tree)
    new = None if old is None else change(old)
    return None if new is None else _swap(tree, old, new)


def _swap(tree: Any, old: Tensor | None, new: Tensor) -> Any:
    if tree is old:
        return new
    if isinstance(tree, dict):
        return type(tree)(**{k: _swap(v, old, new) for k, v in tree.items()})  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(tree, (tuple, list)):
        items = [_swap(item, old, new) for item in tree]  # pyright: ignore[reportUnknownVariableType]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return tree


@contextmanager
def intervened(subject: Hooked, *plans: Plan) -> Generator[None]:
    """Runs every forward inside the block under the plans: with generation, a KV cache and
    autograd. Weights are not touched.

    Raises ValueError for units of another model, SiteError for an unknown site, and HookError on a
    clean exit when an intervention never applied (no forward ran, or none of its positions was
    reached).
    """
    edits = lowered(subject.anatomy, *plans)
    applied: Counter[int] = Counter()
    by_site: dict[Site, list[tuple[int, Edit]]] = {}
    for number, edit in enumerate(edits):
        by_site.setdefault(subject.anatomy.resolve(edit.site), []).append((number, edit))
    with tapped(subject, {site: _editing(numbered, applied) for site, numbered in by_site.items()}):
        yield
    check_applied(edits, applied)


def _editing(numbered: Sequence[tuple[int, Edit]], applied: Counter[int]) -> Visit:
    def edit_all(value: Value, clock: Clock) -> Tensor | None:
        new = value
        for number, edit in numbered:
            positions = edit.active(clock.offset, clock.length, clock.prompt)
            if len(positions):
                applied[number] += 1
                new = apply(edit, new, clock.offset, positions)
        return None if new is value else new

    return edit_all


def check_applied(edits: Sequence[Edit], applied: Mapping[int, int]) -> None:
    """Raises HookError when one of the edits touched no position; `applied` counts by the number of
    the edit."""
    idle = [edit for number, edit in enumerate(edits) if not applied.get(number)]
    if idle:
        positions = (
            "all positions"
            if idle[0].positions is None
            else f"positions {', '.join(map(str, idle[0].positions))}"
        )
        first = f"{idle[0].site}, {positions}, when={idle[0].when!r}"
        raise HookError(
            f"{len(idle)} of {len(edits)} edits never applied: {first}; no forward reached such a position"
        )


def lowered(anatomy: Anatomy, *plans: Plan) -> list[Edit]:
    """Plans as edits, checked against the model they are to run on."""
    edits: list[Edit] = []
    for intervention in (i for plan in plans for i in interventions(plan)):
        anatomy.check(intervention.units)
        edits += intervention.edits(anatomy.columns)
    return edits


@contextmanager
def captured(subject: Hooked, sites: tuple[Site, ...]) -> Generator[dict[Site, Value]]:
    """Live activations of the next forward, inside the autograd graph: differentiate a loss with
    respect to them.

    Raises HookError on exit when one was changed in place after it was taken, for its gradient
    would belong to another value.
    """
    values: dict[Site, Value] = {}
    versions: dict[Site, int] = {}

    def visit(site: Site) -> Visit:
        def keep(value: Value, _: Clock) -> Tensor | None:
            live = value if value.requires_grad else value.detach().requires_grad_()
            values[site], versions[site] = live, live._version
            return live

        return keep

    with tapped(subject, {site: visit(site) for site in sites}):
        yield values
    stale = [s for s in sites if values[s]._version != versions[s]]
    if stale:
        raise HookError(
            f"{', '.join(map(str, stale))}: the model changed this activation in place after the hook; capture the next site instead"
        )


@contextmanager
def every_call(
    module: nn.Module, enter: Callable[[str, object], None], leave: Callable[[object], None]
) -> Generator[None]:
    """Calls `enter(path, inputs)` before and `leave(output)` after every call of every submodule."""
    with ExitStack() as stack:
        for path, child in module.named_modules():
            stack.callback(
                child.register_forward_pre_hook(_entering(path, enter), with_kwargs=True).remove
            )
            stack.callback(child.register_forward_hook(_leaving(leave)).remove)
        yield


def _entering(path: str, enter: Callable[[str, object], None]) -> Callable[..., None]:
    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(path, (args, kwargs))

    return begin


def _leaving(leave: Callable[[object], None]) -> Callable[..., None]:
    def end(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        leave(output)

    return end
