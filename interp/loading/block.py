"""One block of a stack: where each of its sites is, or the reason why it is not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from interp.errors import SiteError, closest
from interp.hooks.call_trace import Attention, Call, Watch
from interp.loading.halves import Halves
from interp.loading.projections import Search, has_matrix
from interp.loading.residual import Residual, Term, find_residual
from interp.loading.verification import close, has_projection, inward, outward, same, shaped_like
from interp.sites.anatomy import Layout, Place
from interp.sites.site import BLOCK_POINTS


# By identity: blocks are keys of mappings.
@dataclass(eq=False)
class Block:
    """The places of a block's points, found in steps that `discovery` takes for all blocks at once.

    Attributes:
        gap: why what enters the block is not what the block before it returned; empty if it is.
        refusal: why nothing in the block can be verified; empty if it can.
        halves: which of the terms that it adds comes from what.
        heads, neurons: the calls of the projections whose inputs hold the units; None without.
        heads_place, neurons_place: where the units are, if they are found without a known sum.
        has_unsummed_experts: whether a shared expert was seen of which it is not known that it is
            added to the others.
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
    heads_place: Place | None = None
    neurons_place: Place | None = None
    has_unsummed_experts: bool = False

    def __post_init__(self) -> None:
        self.all_inner = [call for call in self.watch.calls if self.call.path in call.inside]
        times_run = Counter(call.path for call in self.all_inner)
        # A module that is used twice (Phi's dropout) is not a place: a hook on it would change both
        # uses.
        self.inner = [call for call in self.all_inner if times_run[call.path] == 1]
        self.operations: list[Attention] = []
        for operation in self.watch.attentions:
            if self.call.path in operation.inside:
                self.operations.append(operation)

        # Before the search for the sum, which has to hold the terms that the layout names.
        self.named: dict[str, Call] = {}
        if self.layout.attn_out is not None:
            self.named["attn_out"] = self._named_term(self.layout.attn_out)
        if self.layout.mlp_out is not None:
            self.named["mlp_out"] = self._named_term(self.layout.mlp_out)

        self.residual: Residual | None = None
        self.refusal = self._why_no_stream()
        if not self.refusal:
            self.residual = find_residual(self.call, self.inner, list(self.named.values()))

    def _why_no_stream(self) -> str:
        """Why no residual stream passes the block; empty if one does."""
        entering, leaving = self.call.value, self.call.output
        if entering is None or not shaped_like(leaving, entering):
            return (
                f"{self.call.path} does not return a tensor of the shape of its input, so that no "
                "residual stream passes it"
            )
        if self.has_streams:
            return (
                f"{self.call.path} passes on several residual streams at once "
                f"(a value of shape {tuple(entering.shape)})"
            )
        return ""

    @property
    def has_streams(self) -> bool:
        """Whether it passes on several residual streams at once, in one tensor."""
        entering, leaving = self.call.value, self.call.output
        # One stream is [batch, position, width]; with a further axis there are several.
        return entering is not None and entering.ndim > 3 and shaped_like(leaving, entering)

    @property
    def lacks_heads(self) -> bool:
        """Whether attention runs in it that is no term of a known sum, and no heads are found."""
        if self.heads is not None or self.layout.heads is not None or not self.operations:
            return False
        return self.residual is None or self.halves.attention is None

    @property
    def lacks_neurons(self) -> bool:
        """Whether it may have neurons, but not in a term of a known sum, and none are found."""
        if self.neurons is not None or self.layout.neurons is not None:
            return False
        if self.residual is None or self.has_unsummed_experts:
            return True
        # Heads that are not those of a term feed something else, and so may an MLP.
        return not self.halves.mlp and self.heads_place is not None

    @property
    def _width(self) -> int:
        assert self.call.value is not None
        return self.call.value.shape[-1]

    def _named_term(self, path: str) -> Call:
        """The call of a module that the layout names as what is added to the stream."""
        call = self._named(path)
        if not shaped_like(call.output, self.call.output):
            given = None if call.output is None else tuple(call.output.shape)
            raise SiteError(
                f"{call.path} returns {given}, which cannot be added to the stream that leaves "
                f"{self.call.path}; name a module that returns one vector of its width per token"
            )
        return call

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
        attention, mixer, mlp = seen.attention, seen.mixer, seen.mlp
        if "attn_out" in named:
            attention, mixer = named["attn_out"], None
        elif self.layout.heads is not None and attention is None:
            attention, mixer = mixer, None  # whoever names heads says that the mixer is attention
        if "mlp_out" in named:
            mlp = (named["mlp_out"],)
        halves = Halves(attention, mixer, mlp, seen.sequential)
        if not named or not seen.unknown:
            return replace(halves, unknown=seen.unknown)

        # Of two terms that could not be told apart, a name for one is a name for the other.
        others = [term for term in self.residual.terms if term not in named.values()]
        if len(others) > 1 or len(named) + len(others) > 2:
            return replace(halves, unknown=seen.unknown)
        if others and "attn_out" in named:
            return replace(halves, mlp=(others[0],))
        return replace(halves, attention=others[0]) if others else halves

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
        # In the order in which they ran: the first projection after the attention is the likeliest.
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
            # Tried from the last one on: what leads back to the stream comes last in an MLP.
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

    def follows_experts(self, projection: Call | None) -> bool:
        """Whether routed experts feed a projection: its inputs are then sums over experts, no
        neurons."""
        experts = self.experts()
        if projection is None or experts is None:
            return False
        experts_path = f"{self.call.path}.{experts}"
        if projection.path.startswith(f"{experts_path}."):
            return False
        same_child = self._child(experts_path) == self._child(projection.path)
        # A list of experts does not run itself; its members do.
        ends = [call.end for call in self.inner if f"{call.path}.".startswith(f"{experts_path}.")]
        return same_child and bool(ends) and max(ends) < projection.start

    def search_shared_expert(self) -> Search | None:
        """The search for the out-projection of the expert of a mixture that every token goes to."""
        experts = self.experts()
        if experts is None or self.layout.neurons is not None or not self.halves.mlp:
            return None
        experts_path = f"{self.call.path}.{experts}"
        if self._of_mixer(experts_path):
            return None
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
            # A list does not run as a whole, and what reads the same as the projection, such as an
            # adapter, only wraps it.
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

    def _of_mixer(self, path: str) -> bool:
        """Whether a path is in the attention or in another mixer."""
        mixer = self.halves.mixer
        in_mixer = mixer is not None and f"{path}.".startswith(f"{mixer.call.path}.")
        return in_mixer or self._of_attention(path)

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
            # An operation computes one map for each head of each example.
            counts = {operation.maps // value.shape[0] for operation in self.operations}
        return counts.pop() if len(counts) == 1 else 0

    def experts(self) -> str | None:
        """The name of the experts, if there are any: one fused weight of three axes, or a list of
        MLPs."""
        block = self.module.get_submodule(self.call.path)
        for name, part in block.named_modules():
            if isinstance(part, nn.ModuleList) and len(part) > 1 and has_projection(part):
                return name
            # The kernels of convolutions have three axes or more, too.
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
        if residual is None or self.gap:
            return False
        if residual.norms or residual.start is not None or residual.whole != 1:
            return False
        # One term is the attention, all others are the MLP: no other mixer is among them.
        return halves.attention is not None and len(residual.terms) == 1 + len(halves.mlp)

    def places(self) -> dict[str, Place | str]:
        """The place of each point, or the reason why it is refused."""
        if self.refusal:
            return self._units_alone()
        pre = Place(self.call.path, "in", self._width)
        return {
            "resid_pre": self.gap or pre,
            "heads": self._heads_place(),
            "attn_out": self._attn_out(),
            "mixer_out": self._mixer_out(),
            "resid_mid": self._resid_mid(pre),
            "neurons": self._neurons_place(),
            "mlp_out": self._mlp_out(),
            "block_out": Place(self.call.path, "out", self._width, heads=1, beyond=pre),
            "resid_post": outward(self.call),
        }

    def _units_alone(self) -> dict[str, Place | str]:
        """The places in a block of which nothing but units can be verified."""
        found: dict[str, Place | str] = dict.fromkeys(BLOCK_POINTS, self.refusal)
        found["heads"] = self.heads_place or self.refusal
        found["neurons"] = self.neurons_place or self.refusal
        return found

    def _neurons_place(self) -> Place | str:
        if self.neurons_place is not None:
            return self.neurons_place
        return inward(self.neurons) if self.neurons else self._why_no_neurons()

    def _heads_place(self) -> Place | str:
        if self.heads_place is not None:
            return self.heads_place
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
        experts = self.experts()
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
        # The first half ends with its norm: the second reads what that gives.
        if self.residual.norms:
            return outward(self.residual.norms[0])
        halves = sorted((mixing, list(self.halves.mlp)), key=lambda terms: terms[0].call.end)
        first, second = halves
        # A second half that mixes positions reaches as far alone, so that `sequential` does not
        # show it. A module that reads the sum does.
        if not self.halves.sequential and not self._reads(first):
            return "attention and MLP run in parallel: there is no residual between them"
        if first[-1].call.end > second[0].call.end:
            return "what the two halves add is computed in turns: nothing is between"
        start = self.residual.start
        return _sum_of(first, pre if start is None else outward(start))

    def _reads(self, terms: Sequence[Term]) -> bool:
        """Whether some module reads the stream to which these terms have been added."""
        assert self.residual is not None
        start = self.residual.start
        entering = self.call.value if start is None else start.output
        assert entering is not None
        parts = [entering.reshape(-1)]
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
    """The sum of what terms add, on top of another place.

    In the order in which they are computed: a sum is seen where its last term is.
    """
    total = start
    # Each place holds the sum before it in `onto`, so that the last term becomes the outermost.
    for term in sorted(terms, key=lambda term: term.call.end):
        total = replace(_added(term), onto=total)
    assert total is not None
    return total
