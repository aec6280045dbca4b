"""Finds where the sites of a module are, by watching one forward over a few tokens.

Discovery looks at the structure of a module, never at the names in it:

- a stack is a list of blocks of one type that run once each, in order;
- the attention is the module that calls the attention operation;
- `heads` is the input of the first projection back to the model width after that call;
- `neurons` is the input of the last such projection outside the attention.

What it finds must then satisfy three laws:

- `resid_post` of a block is `resid_pre` of the next;
- `resid_pre + attn_out + mlp_out = resid_post`, through `resid_mid` unless attention and MLP run in
  parallel;
- the output of a projection is its input times its weight, so that zeroing a unit equals zeroing
  its row of the weight.

A point that breaks a law is refused by name, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import torch
from torch import Tensor, nn

from interp.errors import SiteError, closest
from interp.hooks.call_trace import Attention, Call, Watch, watch_calls
from interp.hooks.modes import dropout_off
from interp.loading.verification import (
    close,
    flat,
    has_projection,
    inward,
    is_projection,
    outward,
    same,
    shaped_like,
)
from interp.sites.anatomy import Anatomy, Layout, Place
from interp.sites.site import BLOCK_POINTS, Site


def discover(module: nn.Module, run: Callable[[], object], layout: Layout | None = None) -> Anatomy:
    """Finds and verifies the sites of `module` from one call of `run`.

    Args:
        module: the network.
        run: does one forward of `module` on a few tokens, with batch and length above 1.
        layout: paths that cannot be found from the structure of the module; none by default.

    Returns:
        The verified sites. Points that cannot be verified are in `Anatomy.refused`, with reasons.

    Raises:
        SiteError: no stack of blocks can be found, or `layout` names a path that is not there.

    Example:
        >>> from interp.loading.discovery import discover
        >>> tokens = torch.arange(12).reshape(2, 6)
        >>> anatomy = discover(subject.module, lambda: subject.module(tokens))
        >>> str(anatomy.place("blocks.0.neurons"))
        'model.layers.0.mlp.down_proj:in'
    """
    layout = layout or Layout()
    # The forward may draw random numbers. The fork keeps the generators of the CPU and of every GPU
    # that holds a parameter as they were.
    devices: set[int] = set()
    for parameter in module.parameters():
        if parameter.device.type == "cuda":
            devices.add(parameter.device.index or 0)
    with dropout_off(module), torch.random.fork_rng(sorted(devices)):
        watch = watch_calls(module, run)

    stacks = _named_stacks(module, layout) if layout.blocks else _found_stacks(module, watch)
    if not stacks:
        raise SiteError(
            "no stack of blocks found (a list of modules of one type, each run once, in order): "
            "pass anatomy=interp.Layout(blocks='path.to.blocks')"
        )

    survey = _Survey(module, watch, layout)
    blocks: dict[str, tuple[str, ...]] = {}
    for stack, path in stacks.items():
        survey.add_stack(stack, path)
        blocks[stack] = _children(module, path)
    modules = _module_places(watch, blocks)
    return Anatomy(blocks, survey.places, survey.refused, modules)


def _module_places(watch: Watch, stacks: dict[str, tuple[str, ...]]) -> dict[Site, Place]:
    """The inputs and outputs, of modules that ran once, that hold one vector per token of some
    stack."""
    block_paths: set[str] = set()
    for paths in stacks.values():
        block_paths.update(paths)
    token_counts: set[int] = set()
    for call in watch.calls:
        if call.path in block_paths and call.value is not None:
            token_counts.add(call.value.shape[:-1].numel())

    times_run = Counter(call.path for call in watch.calls)
    places: dict[Site, Place] = {}
    for call in watch.calls:
        if not call.path or times_run[call.path] != 1:
            continue
        for side, value in (("in", call.value), ("out", call.output)):
            if value is None or value.ndim not in (2, 3):
                continue
            if value.shape[:-1].numel() in token_counts:
                site = Site(f"{call.path}:{side}")
                places[site] = Place(call.path, side, value.shape[-1])
    return places


def _children(module: nn.Module, path: str) -> tuple[str, ...]:
    children = module.get_submodule(path).named_children()
    return tuple(f"{path}.{name}" for name, _ in children)


def _named_stacks(module: nn.Module, layout: Layout) -> dict[str, str]:
    named = layout.blocks or {}
    blocks = {"": named} if isinstance(named, str) else dict(named)
    known: list[str] = []
    for name, child in module.named_modules():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            known.append(name)
    for path in blocks.values():
        if path not in known:
            raise SiteError(
                f"{path!r} is not a list of blocks in {type(module).__name__}; "
                f"nearest: {closest(path, known)}"
            )
    return blocks


def _found_stacks(module: nn.Module, watch: Watch) -> dict[str, str]:
    calls: dict[str, list[Call]] = {}
    for call in watch.calls:
        calls.setdefault(call.path, []).append(call)

    paths: list[str] = []
    for path, child in module.named_modules():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)):
            continue
        # The outermost list is the stack: what repeats inside one of its blocks belongs to it.
        inside_another = any(path.startswith(f"{other}.") for other in paths)
        if not inside_another and _is_stack(child, path, calls):
            paths.append(path)
    if not paths:
        return {}
    return dict(zip(_short_names(paths), paths, strict=True))


def _is_stack(blocks: nn.Module, path: str, calls: dict[str, list[Call]]) -> bool:
    """Whether modules of one type ran once each, in order, and kept the shape of their input."""
    children = list(blocks.children())
    if not children or len({type(child) for child in children}) > 1:
        return False

    starts: list[int] = []
    for name, _ in blocks.named_children():
        runs = calls.get(f"{path}.{name}", [])
        if len(runs) != 1:
            return False
        (run,) = runs
        if run.value is None or run.output is None or run.value.shape != run.output.shape:
            return False
        starts.append(run.start)
    if starts != sorted(starts):
        return False

    # A list of norms or of single linear layers runs in order too. Blocks have several matrices.
    matrices = 0
    for part in children[0].modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            matrices += 1
    return matrices >= 2


def _short_names(paths: list[str]) -> list[str]:
    """A name per path: empty for a single path, else the first part in which all paths differ."""
    if len(paths) == 1:
        return [""]
    parts = [path.split(".") for path in paths]
    deepest = max(map(len, parts))
    for depth in range(deepest):
        # A path that is shorter than that stays at its last part.
        names = [part[min(depth, len(part) - 1)] for part in parts]
        if len(set(names)) == len(paths):
            return names
    return paths


@dataclass
class _Survey:
    """Collects places and refusals, block by block."""

    module: nn.Module
    watch: Watch
    layout: Layout
    places: dict[Site, Place] = field(default_factory=dict[Site, Place])
    refused: dict[Site, str] = field(default_factory=dict[Site, str])

    def add_stack(self, name: str, path: str) -> None:
        previous: Call | None = None
        for index, block in enumerate(_children(self.module, path)):
            runs = [call for call in self.watch.calls if call.path == block]
            if len(runs) != 1:
                raise SiteError(
                    f"block {block} ran {len(runs)} times in one forward; blocks must run once each"
                )
            found = _Block(self.module, self.watch, runs[0], self.layout).places()
            if previous is not None and not same(previous.output, runs[0].value):
                found["resid_pre"] = (
                    f"the residual stream changes between {previous.path} and {block}"
                )
            for point in BLOCK_POINTS:
                self._keep(Site(point, index, name), found[point])
            previous = runs[0]
        if previous is not None:
            self._add_ends(name, path, previous)

    def _keep(self, site: Site, found: Place | str) -> None:
        if isinstance(found, Place):
            self.places[site] = found
        else:
            self.refused[site] = found

    def _add_ends(self, name: str, path: str, last: Call) -> None:
        """Adds `embed` and `final`, which surround the stack at `path`.

        `embed` is the first embedding that runs next to the stack and has its width, or gives one
        vector for each of its positions. `final` is the first module after the last block that
        keeps its shape.
        """
        owner = path.rpartition(".")[0]
        prefix = f"{owner}." if owner else ""
        embeds: list[Call] = []
        finals: list[Call] = []
        for call in self.watch.calls:
            if not call.path.startswith(prefix) or call.path.startswith(f"{path}."):
                continue
            is_embedding = isinstance(self.module.get_submodule(call.path), nn.Embedding)
            if is_embedding and _embeds(call.output, last.output):
                embeds.append(call)
            if call.start > last.end and shaped_like(call.output, last.output):
                finals.append(call)
        for point, calls in (("embed", embeds), ("final", finals)):
            missing = f"no module next to {path} gives it"
            self._keep(Site(point, None, name), outward(calls[0]) if calls else missing)


def _embeds(output: Tensor | None, stream: Tensor | None) -> bool:
    """Whether an embedding is that of a stack's tokens.

    The codebook in which an image model looks up scales is an embedding too, but neither its width
    nor its positions are those of the stack.
    """
    if output is None or stream is None or output.ndim != 3:
        return False
    same_width = output.shape[-1] == stream.shape[-1]
    same_positions = output.shape[:-1] == stream.shape[:-1]
    return same_width or same_positions


@dataclass
class _Block:
    """One block of one stack: finds each point, or the reason why it is not there."""

    module: nn.Module
    watch: Watch
    call: Call
    layout: Layout

    def __post_init__(self) -> None:
        inner = [call for call in self.watch.calls if self.call.path in call.inside]
        times_run = Counter(call.path for call in inner)
        # A module that is used twice (Phi's dropout) is not a place: a hook on it would change both
        # uses.
        self.inner = [call for call in inner if times_run[call.path] == 1]
        # Attention operations of this block, as (time, running modules, heads).
        self.operations: list[Attention] = []
        for operation in self.watch.attentions:
            _, running, _ = operation
            if self.call.path in running:
                self.operations.append(operation)

    def places(self) -> dict[str, Place | str]:
        """The place of each point, or the reason why it is refused."""
        pre = Place(self.call.path, "in", self._width)
        heads = self._heads
        neurons = self._find_neurons()
        attn, mlp, parallel = self._find_additions(neurons)
        mid: Place | str
        if isinstance(attn, str):
            mid = attn
        elif parallel:
            mid = "attention and MLP run in parallel: there is no residual between them"
        else:
            mid = Place(attn.path, "out", self._width, onto=pre)
        return {
            "resid_pre": pre,
            "heads": heads,
            "attn_out": attn,
            "resid_mid": mid,
            "neurons": neurons,
            "mlp_out": mlp,
            "block_out": Place(self.call.path, "out", self._width, heads=1, beyond=pre),
            "resid_post": outward(self.call),
        }

    @property
    def _width(self) -> int:
        assert self.call.value is not None
        return self.call.value.shape[-1]

    def _rows(self, value: Tensor | None) -> Tensor:
        """Positions of the residual stream as rows."""
        assert value is not None
        return value.reshape(-1, self._width)

    @cached_property
    def _stream_outputs(self) -> list[Call]:
        """Calls whose output has the shape of the residual stream: one vector of its width per
        token."""
        return [call for call in self.inner if shaped_like(call.output, self.call.output)]

    @cached_property
    def _projections(self) -> list[Call]:
        """Linear maps back to the model width over all tokens of the batch."""
        found: list[Call] = []
        for call in self._stream_outputs:
            module = self.module.get_submodule(call.path)
            if is_projection(module, call):
                found.append(call)
        return found

    def _named(self, path: str) -> Call:
        """The one call of a module that the layout names."""
        whole_path = f"{self.call.path}.{path}"
        calls = [call for call in self.inner if call.path == whole_path]
        if len(calls) != 1:
            nearest = closest(path, [call.path for call in self.inner])
            raise SiteError(
                f"{whole_path} ran {len(calls)} times in one forward; nearest: {nearest}"
            )
        return calls[0]

    @cached_property
    def _attention(self) -> str | None:
        """The path of the child that runs the attention operation; None if the block runs it."""
        if not self.operations:
            return None
        _, running, _ = self.operations[0]
        # From the outermost module to the one that ran the operation: what comes after the block is
        # inside it.
        depth_of_block = running.index(self.call.path)
        below_block = running[depth_of_block + 1 :]
        return below_block[0] if below_block else None

    def _of_attention(self, path: str) -> bool:
        attention = self._attention
        if attention is None:
            return False
        return path == attention or path.startswith(f"{attention}.")

    @cached_property
    def _heads(self) -> Place | str:
        if self.layout.heads is not None:
            call = self._named(self.layout.heads)
        elif len(self.operations) != 1:
            return (
                f"{len(self.operations)} attention operations seen in {self.call.path}, expected 1 "
                "(attention kernels that torch cannot see need a Layout)"
            )
        else:
            attention_time, _, _ = self.operations[0]
            later = [call for call in self._projections if call.start > attention_time]
            if not later:
                return (
                    "no projection back to the model width follows the attention in "
                    f"{self.call.path}"
                )
            call = later[0]

        seen_heads = self.operations[0][2] if self.operations else 0
        n_heads = self.layout.n_heads or seen_heads
        width = 0 if call.value is None else call.value.shape[-1]
        if not n_heads or width % n_heads:
            return f"{width} columns do not divide into {n_heads} heads; pass Layout(n_heads=...)"
        return Place(call.path, "in", width, heads=n_heads)

    @property
    def _heads_path(self) -> str | None:
        return self._heads.path if isinstance(self._heads, Place) else None

    def _find_neurons(self) -> Place | str:
        if self.layout.neurons is not None:
            return inward(self._named(self.layout.neurons))
        experts = self._experts()
        if experts is not None:
            return (
                f"a mixture of experts ({self.call.path}.{experts}): "
                "its neurons are not the input of one projection"
            )

        # Where the block itself runs the attention operation, no path shows which projections are
        # the attention's. Those before the operation are its queries, keys and values.
        attention_time = 0
        if self.operations and self._attention is None:
            attention_time = self.operations[0][0]
        candidates: list[Call] = []
        for call in self._projections:
            of_attention = self._of_attention(call.path) or call.path == self._heads_path
            if call.start > attention_time and not of_attention:
                candidates.append(call)
        if not candidates:
            return (
                f"no projection back to the model width outside the attention in {self.call.path}"
            )
        return inward(candidates[-1])

    def _experts(self) -> str | None:
        """The name of the experts, if there are any: one fused weight of three axes, or a list of
        MLPs."""
        block = self.module.get_submodule(self.call.path)
        for name, parameter in block.named_parameters():
            if parameter.ndim == 3:
                return name
        for name, part in block.named_modules():
            if isinstance(part, nn.ModuleList) and len(part) > 1 and has_projection(part):
                return name
        return None

    def _find_additions(self, neurons: Place | str) -> tuple[Place | str, Place | str, bool]:
        """What attention and MLP add to the residual stream, and whether they run in parallel.

        They are the outputs of two modules that satisfy the residual law: of all such pairs, the
        outermost and latest one.
        """
        heads = self._heads
        attns = self._candidates(heads, self.layout.attn_out)
        mlps = self._candidates(neurons, self.layout.mlp_out)
        if isinstance(heads, Place):
            attns = [call for call in attns if self._may_be_attn_out(call)]
            mlps = [call for call in mlps if self._may_be_mlp_out(call)]

        # Calls are listed in the order in which they end, so the outermost and latest come last.
        for attn, mlp in product(reversed(attns), reversed(mlps)):
            pre = self._rows(self.call.value)
            post = self._rows(self.call.output)
            attn_added = self._rows(attn.output)
            mlp_added = self._rows(mlp.output)
            total = pre + attn_added + mlp_added
            if close(total, post, pre, attn_added, mlp_added):
                parallel = not self._reads_mid(pre, attn_added)
                return outward(attn), outward(mlp), parallel

        reason = (
            f"no module output of {self.call.path} is what is added to the residual "
            "(resid_pre + attn_out + mlp_out is not resid_post)"
        )
        return reason, reason, False

    def _reads_mid(self, pre: Tensor, attn_added: Tensor) -> bool:
        """Whether some module reads the residual stream between attention and MLP."""
        for call in self.inner:
            if not shaped_like(call.value, self.call.output):
                continue
            if close(flat(call.value), pre + attn_added, pre, attn_added):
                return True
        return False

    def _candidates(self, projection: Place | str, named: str | None) -> list[Call]:
        """Module outputs of the stream's shape, from the end of the projection onwards."""
        if named is not None:
            return [self._named(named)]
        projection_end = 0
        if isinstance(projection, Place):
            ends = [call.end for call in self.inner if call.path == projection.path]
            projection_end = ends[0] if ends else 0
        return [call for call in self._stream_outputs if call.end >= projection_end]

    def _may_be_attn_out(self, call: Call) -> bool:
        if self.layout.attn_out or self._of_attention(call.path):
            return True
        # A norm or dropout may come between the attention and the sum.
        return not self._has_other_weights(call)

    def _may_be_mlp_out(self, call: Call) -> bool:
        return not self._of_attention(call.path) and call.path != self._heads_path

    def _has_other_weights(self, call: Call) -> bool:
        """Whether a module multiplies by a matrix and is not the attention's out-projection."""
        if call.path == self._heads_path:
            return False
        parameters = self.module.get_submodule(call.path).parameters()
        return any(parameter.ndim > 1 for parameter in parameters)
