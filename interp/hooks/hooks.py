"""The only file that registers hooks: `tapped`, `intervened`, `captured` and `every_call`.

`tapped` shows, or replaces, the values at sites; `intervened` runs plans; `captured` gives
activations for differentiation; `every_call` follows all module calls.

Rules kept here: only our own hooks are removed, also when the block fails; contexts nest; hooks of
others survive; a hook that never fires is an error; a value is never written in place. Where
contexts nest, the inner one sees what the outer one left.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import HookError
from interp.hooks.clock import Clock, generation_followed
from interp.hooks.guards import compiled_graphs_off, refuse_checkpointing
from interp.interventions.edit import Edit, apply
from interp.interventions.plan import Plan, interventions
from interp.sites.anatomy import Anatomy, Place
from interp.sites.site import Site

Value = Float[Tensor, "batch position width"]


class Hooked(Protocol):
    """What can be hooked: a module, and the anatomy that says where its sites are.

    Every Subject is one.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def anatomy(self) -> Anatomy: ...


Visit = Callable[[Value, Clock], Tensor | None]


@contextmanager
def tapped(subject: Hooked, visits: Mapping[Site, Visit]) -> Generator[Counter[Site]]:
    """Calls `visits[site](value, clock)` whenever a forward passes a site.

    Args:
        subject: the model.
        visits: for each site, a function that sees the value, [batch, position, width], and the
            Clock. A tensor that it returns replaces the value; None leaves it.

    Yields:
        How often each site was passed so far.

    Raises:
        SiteError: a site is unknown.
        HookError: the block ended without an error, but no forward reached a site; or a site is in
            a part of the model that gradient checkpointing runs again in the backward pass.

    Example:
        >>> from interp.hooks.hooks import tapped
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> shapes = []
        >>> with tapped(subject, {site: lambda value, _: shapes.append(tuple(value.shape))}):
        ...     _ = subject.logits(batch)
        >>> shapes
        [(12, 16, 48)]
    """
    fired: Counter[Site] = Counter()
    stacks = subject.anatomy.stacks.values()
    # With a dot, so that blocks.1 is not taken for the beginning of blocks.10.
    blocks = tuple(f"{path}." for paths in stacks for path in paths)
    clock = Clock(blocks=blocks, differentiated=torch.is_grad_enabled())
    with ExitStack() as stack:
        stack.enter_context(compiled_graphs_off())
        stack.enter_context(generation_followed(subject.module, getattr(subject, "lead", 0)))
        _hook_clock(stack, subject, clock)

        # In the order of data, so that resid_mid is built on the resid_pre that other visits left.
        for site in sorted(visits, key=lambda site: site.order):
            place = subject.anatomy.place(site)
            visit = _counted(visits[site], site, fired)
            _tap(stack, subject.module, place, visit, clock)
        yield fired

    missed = [site for site in visits if not fired[site]]
    if missed:
        named: list[str] = []
        for site in missed[:3]:
            place = subject.anatomy.place(site)
            named.append(f"{site} ({place})")
        where = ", ".join(named)
        raise HookError(
            f"{len(missed)} of {len(visits)} hooks never fired: {where}; no forward reached them"
        )


def _counted(visit: Visit, site: Site, fired: Counter[Site]) -> Visit:
    def counted(value: Value, clock: Clock) -> Tensor | None:
        fired[site] += 1
        return visit(value, clock)

    return _around(visit, counted)


def _around(visit: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """`wrapper`, marked as one that runs a visit: `inspect.unwrap` of a hook gives its visit, which
    tells the fingerprint of a model what the hook does."""
    wrapper.__wrapped__ = visit  # pyright: ignore[reportFunctionMemberAccess]
    return wrapper


# The clock needs the offset, from the cache among the arguments, and the length, from the hidden
# states, before the first site is reached. The model itself may get only token ids and make its
# cache inside; the first block of each stack gets both.
def _hook_clock(stack: ExitStack, subject: Hooked, clock: Clock) -> None:
    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clock.begin(args, kwargs)

    def reach_blocks(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clock.find_offset(args, kwargs)
        value = first_tensor((args, kwargs))
        if value is not None and value.ndim == 3:
            clock.see(value)
            clock.in_blocks = clock.length

    first_blocks = [blocks[0] for blocks in subject.anatomy.stacks.values()]
    visits = dict.fromkeys(first_blocks, reach_blocks)
    visits[_entrance(subject.module, first_blocks[0])] = begin
    for path, visit in visits.items():
        # Before all other hooks, which ask the clock.
        module = subject.module.get_submodule(path)
        handle = module.register_forward_pre_hook(visit, with_kwargs=True, prepend=True)
        stack.callback(handle.remove)


def _entrance(module: nn.Module, block: str) -> str:
    """The path of the module that is called once per forward: the innermost around a block that
    can generate, since a wrapper's own `generate` calls that one; else the module itself."""
    entrance = ""
    path = ""
    for part in block.split("."):
        path = f"{path}.{part}" if path else part
        if hasattr(type(module.get_submodule(path)), "prepare_inputs_for_generation"):
            entrance = path
    return entrance


def _tap(stack: ExitStack, module: nn.Module, place: Place, visit: Visit, clock: Clock) -> None:
    """Hooks one place until the stack unwinds.

    A place may be the sum of two terms, or their difference. Then the other term is hooked first
    and kept until the hook of this place adds the two.
    """
    if place.base is not None:
        other, sign = place.base
        kept: list[Tensor] = []

        # In place, because `_on_sum` holds this list. Only the last term is kept, because several
        # forwards may pass while the hook is there.
        def keep(value: Value, _: Clock) -> None:
            kept[:] = [sign * value]

        _tap(stack, module, other, keep, clock)
        visit = _on_sum(visit, kept)
    if place.scale != 1:
        visit = _on_scaled(visit, place.scale)

    def reach(tensor: Tensor) -> Tensor | None:
        return _visit(visit, tensor, place.width, clock)

    def inward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # torch wants back what it gave to a hook with kwargs: a pair of both, or None.
        return _change_first_tensor((args, kwargs), reach)

    # The arguments as the module got them, after every hook on its inputs: edits of its weight
    # have to read what the weight itself reads.
    def outward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        clock.arguments = args, kwargs
        try:
            return _change_first_tensor(output, reach)
        finally:
            clock.arguments = None

    target = module.get_submodule(place.path)
    if place.side == "in":
        handle = target.register_forward_pre_hook(_around(visit, inward), with_kwargs=True)
    else:
        handle = target.register_forward_hook(_around(visit, outward), with_kwargs=True)
    stack.callback(handle.remove)


def _on_sum(visit: Visit, kept: list[Tensor]) -> Visit:
    """A visit to this term that sees the sum of this term and the kept one.

    The sum itself exists in no tensor of the model, so its new value is put into this term: the
    model then adds the other one and arrives at what the visit returned.
    """

    def visit_sum(value: Value, clock: Clock) -> Tensor | None:
        [other_term] = kept
        other_term = other_term.to(value.device)  # another one, at the first block of a device
        new = visit(other_term + value, clock)
        return None if new is None else new - other_term

    return _around(visit, visit_sum)


def _on_scaled(visit: Visit, scale: float) -> Visit:
    """A visit to a tensor that the model multiplies by `scale` before it adds it."""

    def visit_scaled(value: Value, clock: Clock) -> Tensor | None:
        new = visit(scale * value, clock)
        return None if new is None else new / scale

    return _around(visit, visit_scaled)


def _visit(visit: Visit, tensor: Tensor, width: int, clock: Clock) -> Tensor | None:
    """Calls a visit with the value as [batch, position, width], whatever the shape of the module's
    own tensor; a width of 0 is that of its last axis."""
    # Checkpointing may switch gradients off in the part that it will run again.
    if clock.differentiated or torch.is_grad_enabled():
        refuse_checkpointing()
    if tensor.ndim == 3:
        clock.see(tensor)
        return visit(tensor, clock)

    # OPT's MLP sees [batch * position, width], and DeepSeek V4's heads are in groups, [batch,
    # position, group, column]. The clock knows the length from the block around it.
    value = tensor.reshape(-1, clock.length, width or tensor.shape[-1])
    clock.see(value)
    new = visit(value, clock)
    return None if new is None else new.reshape(tensor.shape)


def first_tensor(tree: Any) -> Tensor | None:
    """Returns the first floating-point tensor in nested arguments or outputs; None without one.

    By convention it holds the hidden states.

    Example:
        >>> from interp.hooks.hooks import first_tensor
        >>> first_tensor((torch.tensor([5]), {"hidden": torch.tensor([0.5])}))
        tensor([0.5000])
    """
    if isinstance(tree, Tensor):
        return tree if tree.is_floating_point() else None
    items: Any = ()
    if isinstance(tree, Mapping):
        items = tree.values()  # pyright: ignore[reportUnknownVariableType]
    elif isinstance(tree, (tuple, list)):
        items = tree  # pyright: ignore[reportUnknownVariableType]
    for item in items:
        tensor = first_tensor(item)
        if tensor is not None:
            return tensor
    return None


def _change_first_tensor(tree: Any, change: Callable[[Tensor], Tensor | None]) -> Any:
    """`tree` with its first floating-point tensor changed.

    None, by which a hook tells torch to leave the tree as it is, when `change` returns None.
    """
    old = first_tensor(tree)
    new = None if old is None else change(old)
    return None if new is None else _swap(tree, old, new)


def _swap(tree: Any, old: Tensor | None, new: Tensor) -> Any:
    """A copy of `tree` in which `new` replaces `old`; its containers keep their types."""
    if tree is old:
        return new
    if isinstance(tree, Mapping):
        # A copy, because types of mappings are made in different ways.
        swapped: Any = copy.copy(tree)  # pyright: ignore[reportUnknownVariableType]
        for name, item in tree.items():  # pyright: ignore[reportUnknownVariableType]
            swapped[name] = _swap(item, old, new)
        return swapped
    if isinstance(tree, (tuple, list)):
        items = [_swap(item, old, new) for item in tree]  # pyright: ignore[reportUnknownVariableType]
        # A named tuple takes its fields one by one, a plain one takes a sequence.
        is_named_tuple = hasattr(tree, "_fields")  # pyright: ignore[reportUnknownArgumentType]
        return type(tree)(*items) if is_named_tuple else type(tree)(items)  # pyright: ignore[reportUnknownVariableType]
    return tree


@contextmanager
def intervened(subject: Hooked, *plans: Plan) -> Generator[None]:
    """Runs every forward inside the block under some plans.

    Works with generation (also Hugging Face's own `generate`), a KV cache and autograd; a compiled
    model runs uncompiled inside the block. Weights are not touched.

    Args:
        subject: the model.
        plans: interventions, or sequences of interventions, applied in order.

    Raises:
        ValueError: the units were chosen on a model of another shape.
        SiteError: a site is unknown.
        HookError: the block ended without an error, but an intervention never applied: no forward
            ran, or none reached its positions. Also where it is not known which positions a plan
            changes, and under gradient checkpointing, whose second run would not see the plan.

    Example:
        >>> neurons = subject.anatomy.units("neurons")
        >>> loss = subject.losses(batch).mean()
        >>> with interp.intervened(subject, interp.Zero(neurons)):
        ...     loss_without_neurons = subject.losses(batch).mean()
        >>> bool(loss < loss_without_neurons)
        True
        >>> bool(loss == subject.losses(batch).mean())
        True
    """
    edits = runnable_edits(subject, *plans)
    # One visit runs all edits of a site, in the order of the plans.
    edits_by_site: dict[Site, list[tuple[int, Edit]]] = {}
    for number, edit in enumerate(edits):
        site = subject.anatomy.resolve(edit.site)
        at_site = edits_by_site.setdefault(site, [])
        at_site.append((number, edit))

    applied: Counter[int] = Counter()
    visits = {site: EditVisit(at_site, applied) for site, at_site in edits_by_site.items()}
    with tapped(subject, visits):
        yield
    check_applied(edits, applied)


@dataclass(frozen=True, eq=False)
class EditVisit:
    """A visit that runs the edits of a plan at one site.

    Attributes:
        numbered: the edits, each with its number among all edits of the plan.
        applied: how often each edit was applied, by its number; counted here.
    """

    numbered: Sequence[tuple[int, Edit]]
    applied: Counter[int]

    def __call__(self, value: Value, clock: Clock) -> Tensor | None:
        new = value
        for number, edit in self.numbered:
            positions = clock.positions(edit)
            if len(positions):
                self.applied[number] += 1
                samples = clock.samples(len(new))
                read = input_of(edit, value, clock)
                new = apply(edit, new, clock.offset, positions, samples, read)
        return None if new is value else new


def input_of(edit: Edit, value: Value, clock: Clock) -> Tensor | None:
    """Returns what the module read whose output an edit changes, [batch, position, inputs].

    None for edits that do not change its weight.

    Args:
        edit: the edit.
        value: the output, [batch, position, width].
        clock: the clock, during the visit to the output.
    """
    if edit.weight is None:
        return None
    read = first_tensor(clock.arguments)
    assert read is not None
    # A module may have read batch and position as one axis.
    rows, length = value.shape[:2]
    return read.reshape(rows, length, -1)


def check_applied(edits: Sequence[Edit], applied: Mapping[int, int]) -> None:
    """Checks that every edit touched at least one position.

    Args:
        edits: all edits of some plans.
        applied: how often each was applied, by its number in `edits`.

    Raises:
        HookError: one of them was never applied; the message names the first.
    """
    idle = [edit for number, edit in enumerate(edits) if not applied.get(number)]
    if not idle:
        return
    first = idle[0]
    if first.positions is None:
        positions = "all positions"
    else:
        positions = f"positions {', '.join(map(str, first.positions))}"
    raise HookError(
        f"{len(idle)} of {len(edits)} edits never applied: "
        f"{first.site}, {positions}, when={first.when!r}; no forward reached such a position"
    )


def lower_plans(anatomy: Anatomy, *plans: Plan) -> list[Edit]:
    """Returns plans as edits, checked against the model on which they are to run.

    Args:
        anatomy: anatomy of the model.
        plans: interventions, or sequences of interventions, in order.

    Raises:
        ValueError: the units were chosen on a model of another shape.
        SiteError: a site is unknown.

    Example:
        >>> from interp.hooks.hooks import lower_plans
        >>> plan = interp.Zero(subject.anatomy.units("neurons"))
        >>> [str(edit.site) for edit in lower_plans(subject.anatomy, plan)]
        ['blocks.0.neurons', 'blocks.1.neurons']
    """
    edits: list[Edit] = []
    for plan in plans:
        for intervention in interventions(plan):
            fitted = replace(intervention, units=anatomy.fit(intervention.units))
            edits += fitted.edits(anatomy.columns)
    for edit in edits:
        if edit.weight is not None:
            _check_weight(anatomy, edit, edit.weight)
    return edits


def runnable_edits(subject: Hooked, *plans: Plan) -> list[Edit]:
    """Returns plans as edits, checked against the model and against its modules.

    Args:
        subject: the model on which they are to run.
        plans: interventions, or sequences of interventions, in order.

    Raises:
        ValueError: the units were chosen on a model of another shape, or weights are added to what
            is not one linear map.
        SiteError: a site is unknown.

    Example:
        >>> from interp.hooks.hooks import runnable_edits
        >>> site = interp.Site.parse("blocks.0.attn_out")
        >>> plan = interp.AddWeights(subject.units(site), values={site: np.eye(32)})
        >>> runnable_edits(subject, plan)
        Traceback (most recent call last):
        ValueError: blocks.0.attn_out is model.layers.0.self_attn:out, of a LlamaAttention: ...
    """
    edits = lower_plans(subject.anatomy, *plans)
    for edit in edits:
        if edit.weight is not None:
            _check_linear(subject, edit.site)
    return edits


# Shapes alone do not show it: a whole attention is often as wide at its input as its
# out-projection, and D x would be added with the x of another module.
def _check_linear(subject: Hooked, site: Site) -> None:
    place = subject.anatomy.place(site)
    module = subject.module.get_submodule(place.path)
    weight = getattr(module, "weight", None)
    has_matrix = isinstance(weight, Tensor) and weight.ndim == 2
    # Quantized linear layers may have no weight under this name.
    names_its_sizes = hasattr(module, "in_features") and hasattr(module, "out_features")
    if not has_matrix and not names_its_sizes:
        raise ValueError(
            f"{site} is {place}, of a {type(module).__name__}: weights are added to the output of "
            "a linear map, by its module path, such as 'model.layers.3.mlp.up_proj:out'"
        )


def _check_weight(anatomy: Anatomy, edit: Edit, weight: Tensor) -> None:
    """Raises ValueError for weights that are added elsewhere than to the plain output of a module,
    or that do not have its number of inputs."""
    place = anatomy.place(edit.site)
    if place.side != "out" or place.base is not None or place.scale != 1:
        raise ValueError(
            f"{edit.site} is {place}: weights are added to the output of a linear map, by its "
            "module path, such as 'model.layers.3.mlp.up_proj:out'"
        )
    inputs = anatomy.place(f"{place.path}:in").width
    if weight.shape[1] != inputs:
        raise ValueError(
            f"{edit.site}: the matrix has {weight.shape[1]} inputs; {place.path} has {inputs}"
        )


@contextmanager
def captured(subject: Hooked, sites: tuple[Site, ...]) -> Generator[dict[Site, Value]]:
    """Gives the activations of the next forward inside the autograd graph.

    Differentiate a loss with respect to them.

    Args:
        subject: the model.
        sites: where to capture.

    Yields:
        A dict that the forward fills: for each site, [batch, position, width].

    Raises:
        SiteError: a site is unknown.
        HookError: the block ended without an error, but no forward reached a site, or the model
            changed an activation in place after it was captured, so that its gradient would belong
            to another value, or the model checkpoints gradients.

    Example:
        >>> sites = subject.anatomy.expand("neurons")
        >>> with interp.captured(subject, sites) as values:
        ...     loss = subject.losses(batch).sum()
        >>> gradients = torch.autograd.grad(loss, [values[site] for site in sites])
        >>> [tuple(gradient.shape) for gradient in gradients]
        [(12, 16, 48), (12, 16, 48)]
    """
    values: dict[Site, Value] = {}
    versions: dict[Site, int] = {}

    def keep_at(site: Site) -> Visit:
        # Where nothing before this site has a gradient, the graph begins here: the model continues
        # with the tensor that is returned, so that a gradient reaches it.
        def keep(value: Value, _: Clock) -> Tensor | None:
            live = value if value.requires_grad else value.detach().requires_grad_()
            values[site] = live
            versions[site] = live._version
            return live

        return keep

    visits = {site: keep_at(site) for site in sites}
    with tapped(subject, visits):
        yield values

    # torch counts the in-place writes to a tensor as its version.
    stale = [site for site in sites if values[site]._version != versions[site]]
    if stale:
        raise HookError(
            f"{', '.join(map(str, stale))}: the model changed this activation in place "
            "after the hook; capture the next site instead"
        )


@contextmanager
def every_call(
    module: nn.Module, enter: Callable[[str, object], None], leave: Callable[[object], None]
) -> Generator[None]:
    """Follows every call of every submodule.

    Args:
        module: the module whose submodules are followed, and itself.
        enter: called with the path and the inputs before each call.
        leave: called with the output after each call.
    """
    with compiled_graphs_off(), ExitStack() as stack:
        for path, child in module.named_modules():
            before = child.register_forward_pre_hook(_entering(path, enter), with_kwargs=True)
            stack.callback(before.remove)
            after = child.register_forward_hook(_leaving(leave))
            stack.callback(after.remove)
        yield


def _entering(path: str, enter: Callable[[str, object], None]) -> Callable[..., None]:
    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(path, (args, kwargs))

    return begin


def _leaving(leave: Callable[[object], None]) -> Callable[..., None]:
    def end(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        leave(output)

    return end
