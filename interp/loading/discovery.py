"""Finds the Anatomy of a module by watching one tiny forward, and keeps only what passes the laws.

Structure, not names: a stack is a list of like modules that run once each, in order; the attention
is what calls the attention operation; `heads` is what enters the first projection back to the model
width after it; `neurons` what enters the last such projection outside the attention. Laws:
resid_post of a block is resid_pre of the next; resid_pre + attn_out + mlp_out = resid_post, through
resid_mid unless attention and MLP run in parallel; a projection is its input times its weight, so
that zeroing a unit equals zeroing its row. What fails a law is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor, nn

from interp.errors import SiteError, closest
from interp.hooks.call_trace import Call, Watch, watched
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
    """The anatomy of `module`, from one call of `run`, which must do a forward on a few tokens
    (batch and length above 1).

    Raises SiteError when no stack of blocks can be found; points that cannot be verified are listed
    in `Anatomy.refused`.
    """
    layout = layout or Layout()
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})
    with dropout_off(module), torch.random.fork_rng(devices):
        watch = watched(module, run)
    stacks = _named_stacks(module, layout) if layout.blocks else _found_stacks(module, watch)
    if not stacks:
        raise SiteError(
            "no stack of blocks found (a list of like modules, run once each in order): pass anatomy=interp.Layout(blocks='path.to.blocks')"
        )
    survey = _Survey(module, watch, layout)
    for stack, path in stacks.items():
        survey.stack(stack, path)
    blocks = {stack: _children(module, path) for stack, path in stacks.items()}
    return Anatomy(
        blocks,
        survey.places,
        survey.refused,
        _raw(watch, [path for paths in blocks.values() for path in paths]),
    )


def _raw(watch: Watch, blocks: list[str]) -> dict[Site, Place]:
    """Inputs and outputs, of modules that ran once, that hold one vector for each token of some
    stack."""
    tokens = {
        v.shape[:-1].numel() for c in watch.calls if c.path in blocks and (v := c.value) is not None
    }
    times = Counter(c.path for c in watch.calls)
    places: dict[Site, Place] = {}
    for call in (c for c in watch.calls if c.path and times[c.path] == 1):
        for side, value in (("in", call.value), ("out", call.output)):
            if value is not None and value.ndim in (2, 3) and value.shape[:-1].numel() in tokens:
                places[Site(f"{call.path}:{side}")] = Place(call.path, side, value.shape[-1])
    return places


def _children(module: nn.Module, path: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name, _ in module.get_submodule(path).named_children())


def _named_stacks(module: nn.Module, layout: Layout) -> dict[str, str]:
    blocks = {"": layout.blocks} if isinstance(layout.blocks, str) else dict(layout.blocks or {})
    known = [
        name
        for name, child in module.named_modules()
        if isinstance(child, (nn.ModuleList, nn.Sequential))
    ]
    for path in blocks.values():
        if path not in known:
            raise SiteError(
                f"{path!r} is no list of blocks in {type(module).__name__}; nearest: {closest(path, known)}"
            )
    return blocks


def _found_stacks(module: nn.Module, watch: Watch) -> dict[str, str]:
    calls: dict[str, list[Call]] = {}
    for call in watch.calls:
        calls.setdefault(call.path, []).append(call)
    paths: list[str] = []
    for path, child in module.named_modules():
        inside_another = any(path.startswith(f"{p}.") for p in paths)
        if (
            isinstance(child, (nn.ModuleList, nn.Sequential))
            and not inside_another
            and _is_stack(child, path, calls)
        ):
            paths.append(path)
    if not paths:
        return {}
    return dict(zip(_short_names(paths), paths, strict=True))


def _is_stack(blocks: nn.Module, path: str, calls: dict[str, list[Call]]) -> bool:
    children = list(blocks.children())
    runs = [calls.get(f"{path}.{name}", []) for name, _ in blocks.named_children()]
    if not children or len({type(c) for c in children}) > 1 or any(len(r) != 1 for r in runs):
        return False
    order = [r[0].start for r in runs]
    keeps_width = all(
        r[0].value is not None and r[0].output is not None and r[0].value.shape == r[0].output.shape
        for r in runs
    )
    weights = [getattr(m, "weight", None) for m in children[0].modules()]
    linear = sum(isinstance(w, Tensor) and w.ndim == 2 for w in weights)
    return order == sorted(order) and keeps_width and linear >= 2


def _short_names(paths: list[str]) -> list[str]:
    """ "" for a single stack, else the first part of each path that tells it from the others."""
    if len(paths) == 1:
        return [""]
    parts = [p.split(".") for p in paths]
    for depth in range(max(map(len, parts))):
        names = [p[min(depth, len(p) - 1)] for p in parts]
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

    def stack(self, name: str, path: str) -> None:
        previous: Call | None = None
        for index, block in enumerate(_children(self.module, path)):
            runs = [c for c in self.watch.calls if c.path == block]
            if len(runs) != 1:
                raise SiteError(
                    f"block {block} ran {len(runs)} times in one forward; blocks must run once each"
                )
            found = _Block(self.module, self.watch, runs[0], self.layout).places()
            if previous is not None and not same(previous.output, runs[0].value):
                found["resid_pre"] = (
                    f"the residual stream changes between {previous.path} and {block}"
                )
            previous = runs[0]
            for point in BLOCK_POINTS:
                self._keep(Site(point, index, name), found[point])
        if previous is not None:
            self._ends(name, path, previous)

    def _keep(self, site: Site, found: Place | str) -> None:
        if isinstance(found, Place):
            self.places[site] = found
        else:
            self.refused[site] = found

    def _ends(self, name: str, path: str, last: Call) -> None:
        """`embed` is the first embedding that runs beside the stack, of its width or a vector for
        each of its positions; `final` the first module after the last block that keeps its shape.
        """
        owner = path.rpartition(".")[0]
        beside = [
            c
            for c in self.watch.calls
            if c.path.startswith(f"{owner}." if owner else "") and not c.path.startswith(f"{path}.")
        ]
        embeds = [
            c
            for c in beside
            if isinstance(self.module.get_submodule(c.path), nn.Embedding)
            and _embeds(c.output, last.output)
        ]
        finals = [c for c in beside if c.start > last.end and shaped_like(c.output, last.output)]
        for point, calls in (("embed", embeds), ("final", finals)):
            missing = f"no module beside {path} gives it"
            self._keep(Site(point, None, name), outward(calls[0]) if calls else missing)


def _embeds(output: Tensor | None, stream: Tensor | None) -> bool:
    """Whether an embedding's output is that of a stack's tokens: a codebook that an image model
    looks scales up in is not."""
    if output is None or stream is None or output.ndim != 3:
        return False
    return output.shape[-1] == stream.shape[-1] or output.shape[:-1] == stream.shape[:-1]


@dataclass
class _Block:
    """One block of one stack: finds each point, or the reason why it is not there."""

    module: nn.Module
    watch: Watch
    call: Call
    layout: Layout

    def __post_init__(self) -> None:
        inner = [c for c in self.watch.calls if self.call.path in c.inside]
        times = Counter(c.path for c in inner)
        self.inner = [
            c for c in inner if times[c.path] == 1
        ]  # a module used twice (Phi's dropout) is no place: a hook would hit both uses
        self.operations = [a for a in self.watch.attentions if self.call.path in a[1]]

    def places(self) -> dict[str, Place | str]:
        pre, post = Place(self.call.path, "in", self._width), outward(self.call)
        heads, neurons = self._heads(), self._neurons()
        attn, mlp, parallel = self._added(heads, neurons)
        mid: Place | str = "attention and MLP run in parallel: there is no residual between them"
        if isinstance(attn, str):
            mid = attn
        elif not parallel:
            mid = Place(attn.path, "out", self._width, onto=pre)
        return {
            "resid_pre": pre,
            "heads": heads,
            "attn_out": attn,
            "resid_mid": mid,
            "neurons": neurons,
            "mlp_out": mlp,
            "block_out": Place(self.call.path, "out", self._width, heads=1, beyond=pre),
            "resid_post": post,
        }

    @property
    def _width(self) -> int:
        assert self.call.value is not None
        return self.call.value.shape[-1]

    def _projections(self) -> list[Call]:
        """Linear maps back to the model width over all tokens of the batch."""
        return [
            c
            for c in self.inner
            if shaped_like(c.output, self.call.output)
            and is_projection(self.module.get_submodule(c.path), c)
        ]

    def _named(self, path: str) -> Call:
        calls = [c for c in self.inner if c.path == f"{self.call.path}.{path}"]
        if len(calls) != 1:
            raise SiteError(
                f"{self.call.path}.{path} ran {len(calls)} times in one forward; nearest: {closest(path, [c.path for c in self.inner])}"
            )
        return calls[0]

    def _attention(self) -> str | None:
        """The path of the block's child that runs the attention operation, if the block does not
        run it itself."""
        inside = self.operations[0][1] if self.operations else ()
        deeper = inside[inside.index(self.call.path) + 1 :] if self.call.path in inside else ()
        return deeper[0] if deeper else None

    def _heads(self) -> Place | str:
        if self.layout.heads is None and len(self.operations) != 1:
            seen = (
                f"{len(self.operations)} attention operations seen in {self.call.path}, expected 1"
            )
            return f"{seen} (attention kernels that torch cannot see need a Layout)"
        after = (
            []
            if self.layout.heads
            else [c for c in self._projections() if c.start > self.operations[0][0]]
        )
        if self.layout.heads is None and not after:
            return (
                f"no projection back to the model width follows the attention in {self.call.path}"
            )
        call = self._named(self.layout.heads) if self.layout.heads else after[0]
        count = self.layout.n_heads or (self.operations[0][2] if self.operations else 0)
        width = 0 if call.value is None else call.value.shape[-1]
        if not count or width % count:
            return f"{width} columns do not divide into {count} heads; pass Layout(n_heads=...)"
        return Place(call.path, "in", width, heads=count)

    def _neurons(self) -> Place | str:
        if self.layout.neurons is not None:
            return inward(self._named(self.layout.neurons))
        first = self.operations[0][0] if self.operations and self._attention() is None else 0
        candidates = [
            c
            for c in self._projections()
            if c.start > first and not self._of_attention(c.path) and c.path != self._heads_path()
        ]
        block = self.module.get_submodule(self.call.path)
        fused = next((n for n, p in block.named_parameters() if p.ndim == 3), None)
        experts = next(
            (
                n
                for n, m in block.named_modules()
                if isinstance(m, nn.ModuleList) and len(m) > 1 and has_projection(m)
            ),
            None,
        )
        if fused or experts:
            return f"a mixture of experts ({self.call.path}.{fused or experts}): its neurons are not the input of one projection"
        return (
            inward(candidates[-1])
            if candidates
            else f"no projection back to the model width outside the attention in {self.call.path}"
        )

    def _heads_path(self) -> str | None:
        heads = self._heads()
        return heads.path if isinstance(heads, Place) else None

    def _of_attention(self, path: str) -> bool:
        attention = self._attention()
        return attention is not None and (path == attention or path.startswith(f"{attention}."))

    def _added(
        self, heads: Place | str, neurons: Place | str
    ) -> tuple[Place | str, Place | str, bool]:
        """What attention and MLP add to the residual: the outermost, latest pair of outputs that
        satisfies the residual law."""
        attns, mlps = (
            self._candidates(heads, self.layout.attn_out),
            self._candidates(neurons, self.layout.mlp_out),
        )
        if isinstance(heads, Place):
            mlps = [c for c in mlps if not self._of_attention(c.path) and c.path != heads.path]
            attns = [
                c
                for c in attns
                if self.layout.attn_out or self._of_attention(c.path) or not self._has_weights(c)
            ]
        for attn, mlp in product(reversed(attns), reversed(mlps)):
            pre, a, m, post = (
                t.reshape(-1, self._width)
                for t in (self.call.value, attn.output, mlp.output, self.call.output)
                if t is not None
            )
            if close(pre + a + m, post, pre, a, m):
                sequential = any(
                    shaped_like(c.value, self.call.output) and close(flat(c.value), pre + a, pre, a)
                    for c in self.inner
                )
                return outward(attn), outward(mlp), not sequential
        reason = f"no module output of {self.call.path} is what is added to the residual (resid_pre + attn_out + mlp_out is not resid_post)"
        return reason, reason, False

    def _candidates(self, projection: Place | str, named: str | None) -> list[Call]:
        if named is not None:
            return [self._named(named)]
        start = next(
            (
                c.end
                for c in self.inner
                if isinstance(projection, Place) and c.path == projection.path
            ),
            0,
        )
        return [c for c in self.inner if c.end >= start and shaped_like(c.output, self.call.output)]

    def _has_weights(self, call: Call) -> bool:
        """Whether a module multiplies by a matrix; what only normalizes or drops may follow the
        attention before the sum."""
        heads = self._heads_path()
        return call.path != heads and any(
            p.ndim > 1 for p in self.module.get_submodule(call.path).parameters()
        )
