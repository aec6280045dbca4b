"""Finds where the sites of a module are, by watching one forward over a few tokens.

Discovery looks at the structure of a module, never at the names in it:

- a stack is a list of blocks that run once each, in order (`stacks`);
- what a block adds to the residual stream are outputs of modules that, with what entered the block,
  sum to what leaves it (`residual`);
- the part that carries information between positions is attention, or another mixer; the part that
  does not is the MLP (`halves`);
- `heads` and `neurons` are the input of a projection without which the attention, or the MLP, adds
  nothing but a constant (`units`).

What satisfies none of this is refused by name, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from interp.errors import SiteError, closest
from interp.hooks.call_trace import Attention, Call, Watch, watch_calls
from interp.hooks.modes import dropout_off
from interp.loading.halves import Halves, tell_apart
from interp.loading.probes import Probe
from interp.loading.projections import Search, find_projections, has_matrix
from interp.loading.residual import Residual, Term, find_residual
from interp.loading.stacks import block_paths, find_stacks
from interp.loading.verification import close, has_projection, inward, outward, same, shaped_like
from interp.sites.anatomy import Anatomy, Layout, Place
from interp.sites.site import BLOCK_POINTS, Site


def discover(
    module: nn.Module,
    run: Callable[[], object],
    layout: Layout | None = None,
    again: Callable[[], object] | None = None,
) -> Anatomy:
    """Finds and verifies the sites of `module` by one forward, which is then repeated a few times
    with small changes.

    Args:
        module: the network.
        run: does one forward of `module` on a few tokens, with batch and length above 1.
        layout: paths that cannot be found from the structure of the module; none by default.
        again: repeats that forward for its hooks alone, such as one that computes fewer logits; by
            default `run`.

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
    # A forward may draw random numbers. The fork keeps the generators of the CPU and of every GPU
    # that holds a parameter as they were.
    devices: set[int] = set()
    for parameter in module.parameters():
        if parameter.device.type == "cuda":
            devices.add(parameter.device.index or 0)
    with dropout_off(module), torch.no_grad(), torch.random.fork_rng(sorted(devices)):
        watch = watch_calls(module, run)
        stacks = find_stacks(module, watch, layout)
        survey = _Survey(module, again or run, watch, layout, stacks)
        survey.explore()
    modules = _module_places(watch, survey.paths)
    return Anatomy(survey.paths, survey.places, survey.refused, modules, frozenset(survey.additive))


def _module_places(watch: Watch, stacks: dict[str, tuple[str, ...]]) -> dict[Site, Place]:
    """The inputs and outputs, of modules that ran once, that hold one vector per token of some
    stack."""
    in_stacks: set[str] = set()
    for paths in stacks.values():
        in_stacks.update(paths)
    token_counts: set[int] = set()
    for call in watch.calls:
        if call.path in in_stacks and call.value is not None:
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


@dataclass
class _Survey:
    """Collects places and refusals."""

    module: nn.Module
    again: Callable[[], object]
    watch: Watch
    layout: Layout
    stacks: dict[str, str]
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    places: dict[Site, Place] = field(default_factory=dict[Site, Place])
    refused: dict[Site, str] = field(default_factory=dict[Site, str])
    additive: set[str] = field(default_factory=set[str])

    def explore(self) -> None:
        """Finds every site of every stack."""
        blocks: list[_Block] = []
        for name, path in self.stacks.items():
            self.paths[name] = block_paths(self.module, path)
            blocks += self._blocks(name)
        whole = [block for block in blocks if not block.refusal]
        probe = Probe(self.module, self.again, self.paths, [block.call for block in whole])
        self._tell_halves_apart(whole, probe)
        self._find_units(whole, probe)
        for block in blocks:
            if block.is_additive:
                self.additive.add(block.call.path)
            for point, found in block.places().items():
                self._keep(Site(point, block.index, block.stack), found)
        for name, path in self.stacks.items():
            last = [block.call for block in blocks if block.stack == name][-1]
            self._add_ends(name, path, last)

    def _blocks(self, stack: str) -> list[_Block]:
        found: list[_Block] = []
        for index, path in enumerate(self.paths[stack]):
            runs = [call for call in self.watch.calls if call.path == path]
            if len(runs) != 1:
                raise SiteError(
                    f"block {path} ran {len(runs)} times in one forward; blocks must run once each"
                )
            block = _Block(self.module, self.watch, runs[0], self.layout, stack, index)
            if found and not same(found[-1].call.output, block.call.value):
                previous = found[-1].call.path
                block.gap = f"the residual stream changes between {previous} and {path}"
            found.append(block)
        return found

    def _tell_halves_apart(self, blocks: Sequence[_Block], probe: Probe) -> None:
        residuals: dict[str, Residual] = {}
        for block in blocks:
            if block.residual is not None:
                residuals[block.call.path] = block.residual
        operations = {block.call.path: block.operations for block in blocks}
        halves = tell_apart(residuals, operations, probe)
        for block in blocks:
            if block.call.path in halves:
                block.halves = block.as_named(halves[block.call.path])

    def _find_units(self, blocks: Sequence[_Block], probe: Probe) -> None:
        """Finds heads and neurons, then in what is left the neurons of shared experts."""
        heads = {block: block.search_heads() for block in blocks}
        neurons = {block: block.search_neurons() for block in blocks}
        # Both at once where what is tried for the neurons runs after the attention, and so cannot
        # pass for the effect of what is tried for the heads.
        together = all(_starts_after(neurons[block], heads[block]) for block in blocks)
        if together:
            find_projections(self.module, probe, _present([*heads.values(), *neurons.values()]))
        else:
            find_projections(self.module, probe, _present(heads.values()))
        for block, search in heads.items():
            block.heads = block.heads if search is None else search.found

        if not together:
            neurons = {block: block.search_neurons() for block in blocks}
            find_projections(self.module, probe, _present(neurons.values()))
        for block, search in neurons.items():
            block.neurons = block.neurons if search is None else search.found
        shared = {block: block.search_shared_expert() for block in blocks if block.neurons is None}
        find_projections(self.module, probe, _present(shared.values()))
        for block, search in shared.items():
            block.neurons = None if search is None else search.found

    def _keep(self, site: Site, found: Place | str) -> None:
        if isinstance(found, Place):
            self.places[site] = found
        else:
            self.refused[site] = found

    def _add_ends(self, name: str, path: str, last: Call) -> None:
        """Adds `embed` and `final`, which surround the stack at `path`.

        `embed` is the first embedding that runs near the stack and has its width, or gives one
        vector for each of its positions. `final` is the first module after the last block that
        keeps its shape. Near is as close as there is one: next to the stack, or further out.
        """
        for point, is_it in (("embed", _embeds), ("final", _follows)):
            owner = path
            found: Call | None = None
            while owner and found is None:
                owner = owner.rpartition(".")[0]
                prefix = f"{owner}." if owner else ""
                for call in self.watch.calls:
                    near = call.path.startswith(prefix) and not call.path.startswith(f"{path}.")
                    part = self.module.get_submodule(call.path)
                    if near and call.path and is_it(part, call, last):
                        found = call
                        break
            missing = f"no module around {path} gives it"
            self._keep(Site(point, None, name), outward(found) if found else missing)


def _present(searches: Iterable[Search | None]) -> list[Search]:
    return [search for search in searches if search is not None]


def _starts_after(later: Search | None, earlier: Search | None) -> bool:
    """Whether all that one search tries runs after what the other looks at."""
    if later is None or earlier is None:
        return True
    return all(call.start > earlier.half.end for call in later.candidates)


def _embeds(part: nn.Module, call: Call, last: Call) -> bool:
    """Whether a call is that of an embedding of a stack's tokens.

    The codebook in which an image model looks up scales is an embedding too, but neither its width
    nor its positions are those of the stack.
    """
    output, stream = call.output, last.output
    if not isinstance(part, nn.Embedding) or output is None or stream is None or output.ndim != 3:
        return False
    same_width = output.shape[-1] == stream.shape[-1]
    same_positions = output.shape[:-1] == stream.shape[:-1]
    return same_width or same_positions


def _follows(_: nn.Module, call: Call, last: Call) -> bool:
    return call.start > last.end and shaped_like(call.output, last.output)


@dataclass(eq=False)
class _Block:
    """One block of one stack: finds each point, or the reason why it is not there.

    Attributes:
        gap: why what enters the block is not what the block before it returned; empty if it is.
        refusal: why nothing in the block can be verified; empty if it can.
        halves: which of the terms that it adds comes from what.
        heads, neurons: the calls of the projections whose inputs hold the units; None without.
    """

    module: nn.Module
    watch: Watch
    call: Call
    layout: Layout
    stack: str
    index: int
    gap: str = ""
    refusal: str = ""
    halves: Halves = field(default_factory=Halves)
    heads: Call | None = None
    neurons: Call | None = None

    def __post_init__(self) -> None:
        inner = [call for call in self.watch.calls if self.call.path in call.inside]
        times_run = Counter(call.path for call in inner)
        # A module that is used twice (Phi's dropout) is not a place: a hook on it would change both
        # uses.
        self.inner = [call for call in inner if times_run[call.path] == 1]
        self.operations: list[Attention] = []
        for operation in self.watch.attentions:
            if self.call.path in operation.inside:
                self.operations.append(operation)

        self.named = {
            point: self._named(path)
            for point, path in (
                ("attn_out", self.layout.attn_out),
                ("mlp_out", self.layout.mlp_out),
            )
            if path is not None
        }
        value = self.call.value
        assert value is not None
        self.residual: Residual | None = None
        if value.ndim > 3:
            self.refusal = (
                f"{self.call.path} passes on several residual streams at once "
                f"(a value of shape {tuple(value.shape)})"
            )
        else:
            self.residual = find_residual(self.call, self.inner, list(self.named.values()))

    @property
    def _width(self) -> int:
        assert self.call.value is not None
        return self.call.value.shape[-1]

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

    def as_named(self, seen: Halves) -> Halves:
        """The halves that were seen, with those that the layout names in their place."""
        assert self.residual is not None
        named: dict[str, Term] = {}
        for term in self.residual.terms:
            for point, call in self.named.items():
                if term.call is call:
                    named[point] = term
        attention = named.get("attn_out")
        if attention is None and self.layout.heads is not None:
            attention = seen.attention or seen.mixer
        if not named and attention is None:
            return seen

        others = [term for term in self.residual.terms if term not in (attention, *named.values())]
        mlp = (named["mlp_out"],) if "mlp_out" in named else tuple(others)
        attention = attention or (others[0] if len(others) == 1 else seen.attention)
        return Halves(attention, None, mlp, seen.sequential)

    @cached_property
    def _projections(self) -> list[Call]:
        """The calls that may be projections to the stream, by their shapes."""
        return [call for call in self.inner if self._may_project(call)]

    def _may_project(self, call: Call) -> bool:
        part = self.module.get_submodule(call.path)
        return shaped_like(call.output, self.call.output) and has_matrix(part, call)

    def search_heads(self) -> Search | None:
        """The search for the attention's out-projection; None where it is named or there is no
        attention."""
        if self.layout.heads is not None:
            self.heads = self._named(self.layout.heads)
            return None
        half = self._attention_half
        if half is None or not self._n_heads:
            return None
        last = max(operation.time for operation in self.operations)
        candidates = [call for call in self._projections if last < call.start < half.end]
        return Search(half, self.inner, candidates, after=last)

    def search_neurons(self) -> Search | None:
        """The search for the MLP's out-projection; None where it is named or there is no MLP."""
        if self.layout.neurons is not None:
            self.neurons = self._named(self.layout.neurons)
            return None
        if len(self.halves.mlp) == 1:
            half = self.halves.mlp[0].call
            attention = self._attention_half
            # What runs after the attention is likelier, and leaves the attention as it is.
            after = attention.end if attention is not None and attention.end < half.end else 0
            candidates = [call for call in self._projections if after < call.start < half.end]
            return Search(half, self.inner, candidates[::-1], after=after)
        if self.residual is None:
            return self._search_without_residual()
        return None

    def _search_without_residual(self) -> Search | None:
        """The search where it is not known what the block adds: within the only child that projects
        to the stream beside the attention. Where there are several, any may be part of the MLP."""
        attention = self._attention_half
        if attention is None or self.heads is None:
            return None
        others = [call for call in self._projections if not self._of_attention(call.path)]
        if len({self._child(call.path) for call in others}) != 1:
            return None
        around = self._around(others[-1])
        return None if around is None else Search(around, self.inner, [others[-1]])

    def _child(self, path: str) -> str:
        """The child of the block that a path is in."""
        return path.removeprefix(f"{self.call.path}.").partition(".")[0]

    def search_shared_expert(self) -> Search | None:
        """The search for the out-projection of the expert of a mixture that every token goes to."""
        experts = self._experts()
        if experts is None or self.layout.neurons is not None or not self.halves.mlp:
            return None
        experts_path = f"{self.call.path}.{experts}"
        last = self.halves.mlp[-1].call
        for call in reversed(self._projections):
            expert = self._around(call)
            if expert is None or expert.end > last.end or self._of_attention(call.path):
                continue
            holds_all_experts = experts_path.startswith(f"{expert.path}.")
            is_routed = call.path.startswith(f"{experts_path}.")
            if not holds_all_experts and not is_routed:
                return Search(expert, self.inner, [call], total=self._sum_of_experts(expert))
        return None

    def _sum_of_experts(self, expert: Call) -> tuple[Call, ...]:
        """The calls whose outputs, together, have an expert's output as a term: that of the module
        around it, or the terms of the block of which it is one."""
        terms = tuple(term.call for term in self.halves.mlp)
        around = self._around(expert)
        return terms if expert in terms or around is None else (around,)

    def _around(self, call: Call) -> Call | None:
        """The smallest module around a projection that does more than the projection does."""
        by_path = {other.path: other for other in self.inner}
        path = call.path
        while path.startswith(f"{self.call.path}."):
            path = path.rpartition(".")[0]
            parent = by_path.get(path)
            if parent is None or same(parent.value, call.value):
                continue
            return parent if shaped_like(parent.output, self.call.output) else None
        return None

    @cached_property
    def _attention(self) -> str | None:
        """The path of the child that runs the attention operation; None if the block runs it."""
        if not self.operations:
            return None
        running = self.operations[0].inside
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

    @property
    def _attention_half(self) -> Call | None:
        """The call whose output is what attention adds or, where it is not known what the block
        adds, that of the module which runs the attention."""
        if self.halves.attention is not None:
            return self.halves.attention.call
        if self.residual is not None or self._attention is None:
            return None
        if not all(self._attention in operation.inside for operation in self.operations):
            return None
        for call in self.inner:
            if call.path == self._attention and shaped_like(call.output, self.call.output):
                return call
        return None

    @property
    def _heads_path(self) -> str | None:
        return None if self.heads is None else self.heads.path

    @cached_property
    def _n_heads(self) -> int:
        """How many heads the attention operations show; 0 where they do not agree."""
        if self.layout.n_heads:
            return self.layout.n_heads
        value = self.call.value
        if value is None or value.ndim != 3:
            counts: set[int] = set()
        else:
            counts = {operation.maps // value.shape[0] for operation in self.operations}
        return counts.pop() if len(counts) == 1 else 0

    def _experts(self) -> str | None:
        """The name of the experts, if there are any: one fused weight of three axes, or a list of
        MLPs."""
        block = self.module.get_submodule(self.call.path)
        for name, part in block.named_modules():
            if isinstance(part, nn.ModuleList) and len(part) > 1 and has_projection(part):
                return name
            if isinstance(part, _CONVOLUTIONS):
                continue
            for parameter in part.parameters(recurse=False):
                if parameter.ndim == 3 and min(parameter.shape) > 1:
                    return name
        return None

    @property
    def is_additive(self) -> bool:
        """Whether the block adds what its attention and its MLP give, and nothing else."""
        residual, halves = self.residual, self.halves
        if residual is None or residual.norms or residual.whole != 1 or self.gap:
            return False
        return halves.attention is not None and len(residual.terms) == 1 + len(halves.mlp)

    def places(self) -> dict[str, Place | str]:
        """The place of each point, or the reason why it is refused."""
        if self.refusal:
            return dict.fromkeys(BLOCK_POINTS, self.refusal)
        pre = Place(self.call.path, "in", self._width)
        return {
            "resid_pre": self.gap or pre,
            "heads": self._heads_place(),
            "attn_out": self._attn_out(),
            "mixer_out": self._mixer_out(),
            "resid_mid": self._resid_mid(pre),
            "neurons": inward(self.neurons) if self.neurons else self._why_no_neurons(),
            "mlp_out": self._mlp_out(),
            "block_out": Place(self.call.path, "out", self._width, heads=1, beyond=pre),
            "resid_post": outward(self.call),
        }

    def _heads_place(self) -> Place | str:
        if self.heads is None:
            return self._why_no_heads()
        assert self.heads.value is not None
        width = self.heads.value.shape[-1]
        if not self._n_heads or width % self._n_heads:
            return (
                f"{width} columns do not divide into {self._n_heads} heads; "
                "pass Layout(n_heads=...)"
            )
        return Place(self.heads.path, "in", width, heads=self._n_heads)

    def _why_no_heads(self) -> str:
        where = self.call.path
        if not self._n_heads:
            return (
                f"{len(self.operations)} attention operations seen in {where}, expected 1 "
                "(attention kernels that torch cannot see need a Layout)"
            )
        if self._attention_half is None:
            why = self._why_no_term() or "no term of the residual is what it gives"
            return f"attention runs in {where}, but {why}"
        return (
            f"no projection back to the model width in {where} holds all that attention adds: "
            "without it, something is left"
        )

    def _why_no_neurons(self) -> str:
        where = self.call.path
        if self.residual is not None and not self.halves.mlp:
            return self.halves.unknown or f"{where} has no MLP: nothing else is added"
        if same(self.call.value, self.call.output):
            return self._why_no_term()
        experts = self._experts()
        if experts is not None:
            return (
                f"a mixture of experts ({where}.{experts}): "
                "its neurons are not the input of one projection"
            )
        return (
            f"no projection back to the model width outside the attention in {where} holds all "
            "that the MLP adds: without it, something is left"
        )

    def _why_no_term(self) -> str:
        if self.residual is None and same(self.call.value, self.call.output):
            return (
                f"{self.call.path} adds nothing to the residual: its weights or gates are zero; "
                "load the model again once it is trained"
            )
        if self.residual is None:
            return (
                f"no module output of {self.call.path} is what is added to the residual "
                "(resid_pre + attn_out + mlp_out is not resid_post)"
            )
        return self.halves.unknown

    def _attn_out(self) -> Place | str:
        if self.halves.attention is not None:
            return _added(self.halves.attention)
        if self.operations and not self._why_no_term():
            return f"no term of the residual is what attention gives in {self.call.path}"
        return self._why_no_term() or f"{self.call.path} has no attention that torch can see"

    def _mixer_out(self) -> Place | str:
        if self.halves.mixer is not None:
            return _added(self.halves.mixer)
        return self._why_no_term() or f"{self.call.path} has no mixer other than attention"

    def _mlp_out(self) -> Place | str:
        if not self.halves.mlp:
            return self._why_no_term() or f"{self.call.path} has no MLP: nothing else is added"
        return _sum_of(self.halves.mlp, None)

    def _resid_mid(self, pre: Place) -> Place | str:
        mixing = [term for term in (self.halves.attention, self.halves.mixer) if term is not None]
        if not mixing or not self.halves.mlp:
            return self._why_no_term() or f"{self.call.path} has one half: nothing is between"
        assert self.residual is not None
        if self.residual.norms:
            return outward(self.residual.norms[0])
        halves = sorted((mixing, list(self.halves.mlp)), key=lambda terms: terms[0].call.end)
        first, second = halves
        if not self.halves.sequential and not self._reads(first):
            return "attention and MLP run in parallel: there is no residual between them"
        if first[-1].call.end > second[0].call.end:
            return "what the two halves add is computed in turns: nothing is between"
        return _sum_of(first, pre)

    def _reads(self, terms: Sequence[Term]) -> bool:
        """Whether some module reads the stream to which these terms have been added."""
        assert self.call.value is not None
        parts = [self.call.value.reshape(-1)]
        for term in terms:
            assert term.call.output is not None
            parts.append(term.scale * term.call.output.reshape(-1))
        stream = torch.stack(parts).sum(0)
        for call in self.inner:
            if shaped_like(call.value, self.call.value):
                assert call.value is not None
                if close(call.value.reshape(-1), stream, *parts):
                    return True
        return False


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _added(term: Term) -> Place:
    """What a term adds to the stream."""
    place = outward(term.call)
    return place if term.scale == 1 else replace(place, scale=term.scale)


def _sum_of(terms: Sequence[Term], start: Place | None) -> Place:
    """The sum of what terms add, on top of another place."""
    total = start
    for term in terms:
        total = replace(_added(term), onto=total)
    assert total is not None
    return total
