"""Finds where the sites of a module are, by watching one forward over a few tokens.

Discovery looks at the structure of a module, never at the names in it:

- a stack is a list of blocks that run once each, in order (`stacks`);
- what a block adds to the residual stream are outputs of modules that, with what entered the block,
  sum to what leaves it (`residual`);
- the part that carries information between positions is attention, or another mixer; the part that
  does not is the MLP (`halves`);
- `heads` and `neurons` are the input of a projection without which the attention, or the MLP, adds
  nothing but a constant (`projections`);
- where no such sum is found, they may still be told by what depends on what (`unsummed`).

What satisfies none of this is refused by name, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from interp.errors import SiteError
from interp.hooks.call_trace import Call, Watch, watch_calls
from interp.hooks.modes import dropout_off, random_state_kept
from interp.loading.block import Block
from interp.loading.halves import tell_apart
from interp.loading.probes import Probe
from interp.loading.projections import Search, find_projections
from interp.loading.residual import Residual
from interp.loading.stacks import block_paths, find_stacks
from interp.loading.unsummed import find_unsummed
from interp.loading.verification import outward, same, shaped_like
from interp.sites.anatomy import Anatomy, Layout, Place
from interp.sites.site import Site


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
    # A forward may draw random numbers.
    with dropout_off(module), torch.no_grad(), random_state_kept(module):
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
            # [batch, position, width], or with all tokens in one axis.
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
        blocks: list[Block] = []
        for name, path in self.stacks.items():
            self.paths[name] = block_paths(self.module, path)
            blocks += self._blocks(name)
        whole = [block for block in blocks if not block.refusal]
        calls = [block.call for block in whole]
        probe = Probe(self.module, self.again, self.paths, calls)
        self._tell_halves_apart(whole, probe)
        self._find_units(whole, probe)
        find_unsummed(self.module, probe, self.watch, blocks)
        for block in blocks:
            if block.is_additive:
                self.additive.add(block.call.path)
            for point, found in block.places().items():
                self._keep(Site(point, block.index, block.stack), found)
        for name, path in self.stacks.items():
            in_stack = [block for block in blocks if block.stack == name]
            self._add_ends(name, path, in_stack[-1].call)

    def _blocks(self, stack: str) -> list[Block]:
        found: list[Block] = []
        for index, path in enumerate(self.paths[stack]):
            runs = [call for call in self.watch.calls if call.path == path]
            if len(runs) != 1:
                raise SiteError(
                    f"block {path} ran {len(runs)} times in one forward; blocks must run once each"
                )
            block = Block(self.module, self.watch, runs[0], self.layout, stack, index)
            if found and not same(found[-1].call.output, block.call.value):
                previous = found[-1].call.path
                block.gap = f"the residual stream changes between {previous} and {path}"
            found.append(block)
        return found

    def _tell_halves_apart(self, blocks: Sequence[Block], probe: Probe) -> None:
        residuals: dict[str, Residual] = {}
        for block in blocks:
            if block.residual is not None:
                residuals[block.call.path] = block.residual
        operations = {block.call.path: block.operations for block in blocks}
        halves = tell_apart(residuals, operations, probe)
        for block in blocks:
            if block.call.path in halves:
                block.halves = block.as_named(halves[block.call.path])

    def _find_units(self, blocks: Sequence[Block], probe: Probe) -> None:
        """Finds heads and neurons, then in what is left the neurons of shared experts."""
        heads = {block: block.search_heads() for block in blocks}
        neurons = {block: block.search_neurons() for block in blocks}
        # Both at once where what is tried for the neurons runs after the attention, and so cannot
        # pass for the effect of what is tried for the heads.
        # Where it is not known what a block adds, its heads have to be known first.
        together = all(
            block.residual is not None and _starts_after(neurons[block], heads[block])
            for block in blocks
        )
        if together:
            of_both = _present([*heads.values(), *neurons.values()])
            find_projections(self.module, probe, of_both)
        else:
            find_projections(self.module, probe, _present(heads.values()))
        for block, search in heads.items():
            block.heads = block.heads if search is None else search.found

        if not together:
            neurons = {block: block.search_neurons() for block in blocks}
            find_projections(self.module, probe, _present(neurons.values()))
        for block, search in neurons.items():
            if search is not None and not block.follows_experts(search.found):
                block.neurons = search.found
        shared = {block: block.search_shared_expert() for block in blocks if block.neurons is None}
        find_projections(self.module, probe, _present(shared.values()))
        for block, search in shared.items():
            block.neurons = None if search is None else search.found
            block.has_unsummed_experts = search is not None and search.found is None

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
            # Outwards from the stack, one module at a time; the last one is the root, whose path is
            # empty.
            while owner and found is None:
                owner = owner.rpartition(".")[0]
                prefix = f"{owner}." if owner else ""
                for call in self.watch.calls:
                    in_stack = call.path.startswith(f"{path}.")
                    near = call.path.startswith(prefix) and not in_stack
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
    output = call.output
    stream = last.output
    if not isinstance(part, nn.Embedding) or output is None or stream is None:
        return False
    if output.ndim != 3:
        return False
    if len(output) == 1 < len(stream):
        return False  # of positions, which are the same for all rows
    # One of the two is enough: tokens may enter narrower than the stream and be widened, or come
    # between other positions, such as those of an image.
    same_width = output.shape[-1] == stream.shape[-1]
    same_positions = output.shape[:-1] == stream.shape[:-1]
    return same_width or same_positions


def _follows(_: nn.Module, call: Call, last: Call) -> bool:
    return call.start > last.end and shaped_like(call.output, last.output)
