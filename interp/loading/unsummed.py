"""Finds heads and neurons in blocks of which it is not known what they add to their stream.

Some blocks pass on several streams at once (hyper-connections), some normalize the stream where no
module shows it, in some attention feeds another mixer. There is no sum then that could be verified,
and with it no name for what each half adds. But a projection can still be shown to be the one whose
input holds the units, by what depends on what:

- `heads`: with some heads at zero in the attention operation itself, their columns of the
  projection's input are zero and all others are what they were; with what the projection gives
  held, nothing that attention computes reaches the end of the block; and its input at later
  positions depends on the first position of what enters the block.
- `neurons`: the projection acts on each position by itself and reads what attention, or another
  mixer, has given; and what it gives is added. Without it, a value further on differs by a
  multiple, at each position, of what the projection or a norm behind it gave, and is not nothing.

Where several projections do the same, or none, the site stays refused; so it does where the forward
does not repeat itself, and shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from interp.errors import HookError
from interp.hooks.call_trace import Attention, Call, Watch
from interp.loading.block import Block
from interp.loading.probes import Change, Probe, Watched
from interp.loading.projections import is_linear, outermost
from interp.loading.verification import inward, is_projection, same
from interp.sites.anatomy import Place

_SEEN = 0.25  # of the elements of a stream have to change by more than rounding
_UNEXPLAINED = 0.05  # of the squares of a change, in units of rounding, may be no multiple
_TINY = 1e-30


def find_unsummed(module: nn.Module, probe: Probe, watch: Watch, blocks: Sequence[Block]) -> None:
    """Sets `heads` and `neurons` of blocks in which no term of a known sum shows them.

    Args:
        module: the network.
        probe: runs it again.
        watch: the first forward.
        blocks: all blocks; those that lack nothing are left as they are.
    """
    known: list[Block] = []
    for block in blocks:
        does_nothing = same(block.call.value, block.call.output)
        if not does_nothing and (block.has_streams or not block.refusal):
            known.append(block)
    # Another probe, because the one that was given restores no block with several streams: those
    # were refused.
    probe = Probe(module, probe.run, probe.stacks, [block.call for block in known])
    # A change may send tokens to other experts, so that a module that ran does not run again.
    with suppress(HookError):
        _find_heads(module, probe, len(watch.attentions), known)
    with suppress(HookError):
        _find_neurons(module, probe, known)


def _tokens(block: Block) -> tuple[int, int] | None:
    """How many examples and positions pass a block; None where its streams do not show it."""
    value = block.call.value
    assert value is not None
    if value.ndim == 3:
        return value.shape[0], value.shape[1]
    if value.ndim != 4:
        return None
    # [batch, position, stream, width] or [stream, batch, position, width]: the halves of the block
    # read and give one stream, which tells the two apart.
    *axes, width = value.shape
    of_one_stream: set[tuple[int, int]] = set()
    for call in block.inner:
        if call.output is not None and call.output.ndim == 3:
            rows, length, its_width = call.output.shape
            if its_width == width and [rows, length] in (axes[:2], axes[1:]):
                of_one_stream.add((rows, length))
    return of_one_stream.pop() if len(of_one_stream) == 1 else None


def _position_axis(block: Block, tokens: tuple[int, int]) -> int:
    assert block.call.value is not None
    # Else [stream, batch, position, width].
    return 1 if tuple(block.call.value.shape[:2]) == tokens else 2


def _projects(module: nn.Module, call: Call) -> bool:
    """Whether a call is that of a projection: by its weight, or by running it again on what it read
    and on noise. In half precision, anything is linear on tokens that hardly differ."""
    part = module.get_submodule(call.path)
    if is_projection(part, call):
        return True
    if not is_linear(part, call):
        return False
    assert call.value is not None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(call.value.shape, generator=generator).to(call.value)
    return is_linear(part, replace(call, value=noise, output=part(noise)))


def _whole(module: nn.Module, projection: Call, block: Block) -> Call:
    """A projection with the adapters around it."""
    found = outermost(module, projection, block.inner)
    return found if found is projection or _projects(module, found) else projection


@dataclass(eq=False)
class _HeadTrial:
    """The one attention operation of a block, and the projections that may read its heads.

    Attributes:
        block: the block.
        operation: the attention operation.
        n_heads: how many heads it has.
        batch, length: how many examples and positions the forward reads.
        candidates: calls that run after it, the earliest first.
    """

    block: Block
    operation: Attention
    n_heads: int
    batch: int
    length: int
    candidates: list[Call]

    @property
    def tokens(self) -> int:
        """How many tokens the forward reads."""
        return self.batch * self.length

    def keep_separate(self, values: Mapping[Watched, Tensor], off: Tensor) -> None:
        """Drops the candidates whose input does not have one slice for each head."""
        kept: list[Call] = []
        for call in self.candidates:
            assert call.value is not None
            before = call.value.reshape(self.tokens, -1)  # [tokens, all columns]
            by_head = before.unflatten(-1, (self.n_heads, -1))  # [tokens, heads, columns]
            expected = by_head.masked_fill(off.to(before.device)[:, None], 0).flatten(1)
            now = values[call, "in"].reshape(before.shape)
            if bool(((now - expected).abs() <= _rounding(before)).all()):
                kept.append(call)
        self.candidates = kept

    def mixes_positions(self, value: Tensor, before: Tensor | None) -> bool:
        """Whether a value has changed at a position other than the first."""
        assert before is not None
        clean = before.reshape(self.batch, self.length, -1)[:, 1:].flatten(0, 1)
        changed = value.reshape(self.batch, self.length, -1)[:, 1:].flatten(0, 1)
        return _has_changed(clean, changed)

    def place(self, projection: Call) -> Place:
        """Where the heads are. Whether what the projection gives is added is not known yet."""
        assert projection.value is not None
        width = projection.value.numel() // self.tokens
        axes = 1 if projection.value.shape[-1] == width else 2
        return Place(projection.path, "in", width, self.n_heads, axes=axes, goes_on=True)


def _head_trials(block: Block) -> list[_HeadTrial]:
    """What is to be tried in a block: nothing where it has no attention, or more than one."""
    shape = _tokens(block)
    if shape is None:
        return []
    batch, length = shape
    # The weights by which streams are mixed come from a softmax too, but not over positions.
    operations = [each for each in block.operations if each.queries == length]
    if len(operations) != 1 or operations[0].maps % batch:
        return []
    [operation] = operations
    n_heads = operation.maps // batch
    candidates: list[Call] = []
    for call in sorted(block.inner, key=lambda call: call.start):
        axes = _axes_of_columns(call.value, batch, length)
        if call.start > operation.time and axes and axes.numel() % n_heads == 0:
            candidates.append(call)
    return [_HeadTrial(block, operation, n_heads, batch, length, candidates)]


def _axes_of_columns(value: Tensor | None, batch: int, length: int) -> torch.Size | None:
    """The axes of a value behind those of its tokens; None if it has no such axes."""
    if value is None or value.ndim < 2:
        return None
    if value.ndim == 2:
        return value.shape[1:] if len(value) == batch * length else None
    return value.shape[2:] if value.shape[:2] == (batch, length) else None


def _find_heads(module: nn.Module, probe: Probe, operations: int, blocks: Sequence[Block]) -> None:
    """Sets `heads` where the first projection after attention obeys both laws.

    Which heads are off in which forward are the digits of their numbers, counted from 1: so every
    head is off in some forward, and no two are off in the same ones.
    """
    trials = [trial for block in blocks if block.lacks_heads for trial in _head_trials(block)]
    digits = max((trial.n_heads.bit_length() for trial in trials), default=0)
    for digit in range(digits):
        off: dict[Attention, Tensor] = {}
        watched: list[Watched] = []
        for trial in trials:
            numbers = torch.arange(1, trial.n_heads + 1)
            off[trial.operation] = (numbers >> digit) % 2 == 1
            watched += [(call, "in") for call in trial.candidates]
        values = probe.changed(Change(heads_off=off), watched, operations)
        for trial in trials:
            trial.keep_separate(values, off[trial.operation])

    projections: dict[_HeadTrial, Call] = {}
    for trial in trials:
        # Norms and the like may run in front of the projection, and read the heads as well.
        for call in trial.candidates:
            if _projects(module, call):
                projections[trial] = _whole(module, call, trial.block)
                break

    if not projections:
        return
    # Three more forwards: all heads off; the same with the projections held; and noise in what
    # enters the blocks.
    all_off = {trial.operation: torch.ones(trial.n_heads) == 1 for trial in projections}
    ends: list[Watched] = [(trial.block.call, "out") for trial in projections]
    without = probe.changed(Change(heads_off=all_off), ends, operations)
    held = Change(kept=projections.values(), heads_off=all_off)
    around = probe.changed(held, ends, operations)
    # Attention to another sequence (an image, an encoder) does not read what enters the block.
    noisy = {
        trial.block.call: _position_axis(trial.block, (trial.batch, trial.length))
        for trial in projections
    }
    inputs: list[Watched] = [(projection, "in") for projection in projections.values()]
    mixed = probe.changed(Change(noisy=noisy), inputs)
    for trial, projection in projections.items():
        end = (trial.block.call, "out")
        # With what the projection gives held, the heads at zero change nothing at the end of the
        # block.
        is_all = not _differs(around[end], trial.block.call)
        reads_block = trial.mixes_positions(mixed[projection, "in"], projection.value)
        if _differs(without[end], trial.block.call) and is_all and reads_block:
            trial.block.heads = projection
            trial.block.heads_place = trial.place(projection)


def _differs(value: Tensor, call: Call) -> bool:
    assert call.output is not None
    before = call.output.reshape(-1, call.output.shape[-1])
    return _has_changed(before, value.reshape(before.shape))


def _rounding(before: Tensor) -> Tensor:
    """By how much each column of some rows may differ when it is computed again.

    Column by column: one number for all would be set by the largest columns of a stream, which can
    be a thousand times the others.
    """
    units = max(4 * torch.finfo(before.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    return units * before.abs().amax(0)


def _has_changed(before: Tensor, now: Tensor) -> bool:
    # Not by `>`, of which NaN would count as no change.
    return not bool(((now - before).abs() <= _rounding(before)).all())


def _varies(rows: Tensor, before: Tensor) -> bool:
    """Whether rows differ from each other by more than the rounding of what they were."""
    return not bool(((rows - rows[:1]).abs() <= _rounding(before)).all())


@dataclass(eq=False)
class _Parts:
    """The projections to one stream in a block, and what is found of them.

    Attributes:
        block: the block.
        axis: which axis of the block's input is that of positions.
        tokens: how many tokens the forward reads.
        width: of a stream.
        projections: the projections, in the order in which they ended.
        mixing: those that carry information between positions.
        added: those that act on each position by itself and whose output is added.
        partial: those that are not all of the module around them: while they give zeros, what that
            module gives still depends on the token.
    """

    block: Block
    axis: int
    tokens: int
    width: int
    projections: list[Call]
    mixing: list[Call] = field(default_factory=list[Call])
    added: list[Call] = field(default_factory=list[Call])
    partial: set[Call] = field(default_factory=set[Call])

    def note_heads(self) -> None:
        """Notes, with the place of heads, whether what their projection gives is added."""
        heads, place = self.block.heads, self.block.heads_place
        if place is not None:
            self.block.heads_place = replace(place, goes_on=heads not in self.added)

    def around(self, projection: Call) -> Call | None:
        """The smallest module of the block that does more than a projection in it, if it gives one
        vector per token."""
        by_path = {call.path: call for call in self.block.inner}
        path = projection.path.rpartition(".")[0]
        while path.startswith(f"{self.block.call.path}."):
            call = by_path.get(path)
            if call is not None and not same(call.value, projection.value):
                return call if self.is_stream(call.output) else None
            path = path.rpartition(".")[0]
        return None

    def rows(self, value: Tensor | None) -> Tensor:
        """A value with one row for each token, and for each stream that it holds."""
        assert value is not None
        return value.reshape(-1, self.width)

    def has_row_per_token(self, value: Tensor | None) -> bool:
        """Whether a value of any width is one vector per token."""
        return value is not None and value.shape[:-1].numel() == self.tokens

    def by_token(self, value: Tensor) -> Tensor:
        """A value of any width with one row for each token."""
        return value.reshape(self.tokens, -1)

    def is_stream(self, value: Tensor | None) -> bool:
        """Whether a value is one vector of the stream's width per token."""
        if value is None:
            return False
        return value.shape[-1] == self.width and value.numel() == self.tokens * self.width

    def holds_streams(self, value: Tensor | None) -> bool:
        """Whether a value is one or several such vectors per token."""
        if value is None or value.ndim < 2:
            return False
        whole_rows = value.shape[:-1].numel() % self.tokens == 0
        return whole_rows and value.shape[-1] % self.width == 0


def _parts(module: nn.Module, block: Block, blocks: Sequence[Block]) -> _Parts | None:
    """The projections to the stream of a block."""
    shape = _tokens(block)
    if shape is None:
        return None
    batch, length = shape
    assert block.call.value is not None
    width = block.call.value.shape[-1]
    if not block.has_streams:
        width = _width_of_one(block, blocks)
    found = _Parts(block, _position_axis(block, shape), batch * length, width, [])
    experts = block.experts()
    routed = None if experts is None else f"{block.call.path}.{experts}."
    projections: dict[str, Call] = {}
    for call in block.inner:
        is_routed = routed is not None and f"{call.path}.".startswith(routed)
        if found.is_stream(call.output) and not is_routed and _projects(module, call):
            whole = _whole(module, call, block)
            projections[whole.path] = whole
    # Of a projection within another one, the outer one counts.
    for path, call in projections.items():
        if not any(path.startswith(f"{other}.") for other in projections):
            found.projections.append(call)
    return found if found.projections else None


def _width_of_one(block: Block, blocks: Sequence[Block]) -> int:
    """The width of one stream, where several may stand side by side in the last axis: attention
    gives one."""
    assert block.call.value is not None
    whole = block.call.value.shape[-1]
    for other in blocks:
        if other.stack == block.stack and other.heads is not None:
            assert other.heads.output is not None
            width = other.heads.output.shape[-1]
            if whole % width == 0:
                return width
    return whole


def _find_neurons(module: nn.Module, probe: Probe, blocks: Sequence[Block]) -> None:
    """Sets `neurons` where one projection obeys the law; notes of heads whether they are added."""
    parts: list[_Parts] = []
    for block in blocks:
        if block.lacks_neurons or block.heads_place is not None:
            its_parts = _parts(module, block, blocks)
            parts += [] if its_parts is None else [its_parts]
    _find_added(module, probe, parts)
    for each in parts:
        each.note_heads()

    parts = [each for each in parts if each.block.lacks_neurons]
    if not parts:
        return
    # Of what is added: what mixes positions; of the rest, what reads that; and of these, the first.
    _find_mixing(module, probe, parts)
    _keep_what_reads_mixers(probe, parts)
    _drop_what_reads_others(probe, parts)
    found: dict[_Parts, Call] = {}
    for each in parts:
        if each.added:
            # `_drop_what_reads_others` has left one at most.
            [call] = each.added
            found[each] = _first_of_a_row(module, call, each.block)
    mixtures = _reading_experts(probe, found)
    for each, call in found.items():
        # Where a module still gives something without its projection, not all of its units are
        # there.
        if each not in mixtures and not each.partial & {call, *each.added}:
            goes_on = call not in each.added
            each.block.neurons = call
            each.block.neurons_place = replace(inward(call), goes_on=goes_on)


def _find_added(module: nn.Module, probe: Probe, parts: Sequence[_Parts]) -> None:
    """Sets `added` to the projections whose output is added.

    In turn, one projection of every block gives zeros while the others give what they gave, so that
    only what is added directly is seen.
    """
    most = max((len(each.projections) for each in parts), default=0)
    for number in range(most):
        tried: dict[_Parts, Call] = {}
        for each in parts:
            if number < len(each.projections):
                tried[each] = each.projections[number]
        held: list[Call] = []
        watched: list[Watched] = []
        for each, call in tried.items():
            held += [other for other in each.projections if other is not call]
            watched += [*_later_inputs(module, each, call), *_later_outputs(each, call)]
            watched.append((each.block.call, "out"))
        change = Change(zeroed=tried.values(), kept=held)
        values = probe.changed(change, watched)
        for each, call in tried.items():
            if _is_added(module, each, call, values):
                each.added.append(call)
            around = each.around(call)
            if around is not None and not _gives_constant(each, around, values):
                each.partial.add(call)


def _find_mixing(module: nn.Module, probe: Probe, parts: Sequence[_Parts]) -> None:
    """Moves from `added` to `mixing` what carries information between positions by itself: while
    what is added before it, and what attention gives, are what they were."""
    in_order: dict[str, list[Call]] = {}
    for each in parts:
        known = list(each.added)
        heads = each.block.heads
        # Of two projections that lead back from attention in a row, the second stands for both.
        firsts = [_first_of_a_row(module, call, each.block) for call in known]
        if heads is not None and heads not in firsts and each.has_row_per_token(heads.output):
            known.append(heads)
        in_order[each.block.call.path] = sorted(known, key=lambda call: call.end)
    axes = {each.block.call.path: each.axis for each in parts if each.block.has_streams}
    reach = probe.reaches(in_order, axes)
    for each in parts:
        known = in_order[each.block.call.path]
        each.mixing = [call for call in known if reach[call].alone > 0]
        each.added = [call for call in each.added if call not in each.mixing]


def _later_inputs(module: nn.Module, parts: _Parts, call: Call) -> list[Watched]:
    """What modules with weights read after a call. One without may be the function of a gate."""
    found: list[Watched] = []
    for other in parts.block.all_inner:
        has_weights = any(True for _ in module.get_submodule(other.path).parameters())
        if other.start > call.end and has_weights and parts.holds_streams(other.value):
            found.append((other, "in"))
    return found


def _later_outputs(parts: _Parts, call: Call) -> list[Watched]:
    """What modules give that end after a call, as one vector per token."""
    found: list[Watched] = []
    for other in parts.block.inner:
        is_held = other in parts.projections
        if other.end > call.end and not is_held and parts.is_stream(other.output):
            found.append((other, "out"))
    return found


def _is_added(
    module: nn.Module, parts: _Parts, projection: Call, values: Mapping[Watched, Tensor]
) -> bool:
    """Whether what a projection gives is added to something, itself or behind a norm."""
    output = parts.rows(projection.output)
    terms = [_Changed(output, torch.zeros_like(output))]
    for call, side in _later_outputs(parts, projection):
        if _gives_constant(parts, call, values):
            terms.append(_Changed(parts.rows(call.output), parts.rows(values[call, side])))

    end = _Changed(parts.rows(parts.block.call.output), parts.rows(values[parts.block.call, "out"]))
    if not _varies(end.now, end.before) and _varies(end.before, end.before):
        return True  # the projection gives all that the block does
    sums = [end]
    for call, side in _later_inputs(module, parts, projection):
        sums.append(_Changed(parts.rows(call.value), parts.rows(values[call, side])))
    for each in sums:
        if _varies(each.now, each.before) and any(_holds(each, term) for term in terms):
            return True
    return False


def _gives_constant(parts: _Parts, call: Call, values: Mapping[Watched, Tensor]) -> bool:
    """Whether a call now gives the same for every token, and did not do so before."""
    before = parts.rows(call.output)
    return not _varies(parts.rows(values[call, "out"]), before) and _varies(before, before)


@dataclass(frozen=True, eq=False)
class _Changed:
    """A value in the first forward, and in one in which something is changed.

    Attributes:
        before, now: [token, width], or with several streams for each token.
    """

    before: Tensor
    now: Tensor

    def in_streams(self, tokens: int, *, in_front: bool) -> _Changed:
        """Both as [token, stream, width], whichever axis the streams are in now."""
        # In front: [stream, token, width]; else [token, stream, width].
        width = self.before.shape[-1]
        if in_front:
            before, now = (each.reshape(-1, tokens, width) for each in (self.before, self.now))
            return _Changed(before.transpose(0, 1), now.transpose(0, 1))
        before, now = (each.reshape(tokens, -1, width) for each in (self.before, self.now))
        return _Changed(before, now)

    @property
    def size(self) -> Tensor:
        """How large the numbers are whose difference the change is."""
        return self.before.double().abs() + self.now.double().abs()

    @property
    def change(self) -> Tensor:
        """What is missing now."""
        return self.before.double() - self.now.double()


def _holds(whole: _Changed, term: _Changed) -> bool:
    """Whether what changed of one or several streams is, in each at each token, a multiple of what
    changed of a term."""
    tokens = len(term.before)
    own = term.in_streams(tokens, in_front=False)
    layouts = (whole.in_streams(tokens, in_front=each) for each in (False, True))
    return any(_is_multiple(streams, own) for streams in layouts)


def _is_multiple(streams: _Changed, term: _Changed) -> bool:
    """Whether what changed of streams, [token, stream, width], is a multiple of what changed of a
    term, [token, 1, width]."""
    dtype = streams.before.dtype
    units = 2 * max(torch.finfo(dtype).eps, 32 * torch.finfo(torch.float32).eps)
    # Element by element, as the columns of a stream differ so much in size; but what comes out
    # small may be a sum of terms that are not.
    typical = streams.size.median(-1, keepdim=True).values
    tolerance = units * (streams.size + typical) + _TINY

    # The multiple at each token, by least squares in units of rounding.
    weights = tolerance.square().reciprocal()
    in_common = (weights * streams.change * term.change).sum(-1, keepdim=True)
    squares = (weights * term.change.square()).sum(-1, keepdim=True)
    multiples = in_common / squares.clamp_min(_TINY)
    left_over = (streams.change - multiples * term.change).abs()
    if not bool((left_over <= tolerance + units * multiples.abs() * term.size).all()):
        return False
    # A change that rounding hides is a multiple of anything: most of it has to be explained.
    is_seen = streams.change.abs() > tolerance
    unexplained = (weights * left_over.square()).sum()
    is_explained = unexplained < _UNEXPLAINED * (weights * streams.change.square()).sum()
    # The share of seen elements is that of one stream: others may get nothing of the term.
    return bool(is_explained & (is_seen.double().mean((0, 2)).max() > _SEEN))


def _keep_what_reads_mixers(probe: Probe, parts: Sequence[_Parts]) -> None:
    """Keeps, where something mixes positions, what depends on it. What attention itself reads does
    not: the values that it mixes are a projection too, and without it attention adds nothing."""
    mixed = [each for each in parts if each.mixing]
    for each in parts:
        # Attention runs, but none of these leads back from it: there is nothing to depend on.
        if not each.mixing and each.block.operations:
            each.added = []
    changed = _changed_by(probe, {each: each.mixing for each in mixed})
    for each in mixed:
        each.added = [call for call in each.added if call in changed]


def _drop_what_reads_others(probe: Probe, parts: Sequence[_Parts]) -> None:
    """Drops what depends on another one of those that are left: it comes after the MLP, such as an
    adapter, and has fewer units."""
    later: set[Call] = set()
    most = max(len(each.added) for each in parts)
    for number in range(most):
        tried = {each: [each.added[number]] for each in parts if number < len(each.added)}
        changed = _changed_by(probe, tried)
        for each, [call] in tried.items():
            later |= {other for other in each.added if other in changed and other is not call}
    for each in parts:
        first = [call for call in each.added if call not in later]
        units = [_units(call) for call in each.added if call in later]
        is_widest = len(first) == 1 and all(_units(first[0]) > other for other in units)
        each.added = first if is_widest else []


def _reading_experts(probe: Probe, found: Mapping[_Parts, Call]) -> set[_Parts]:
    """The blocks in which routed experts feed the projection: its inputs are then sums over
    experts, no neurons."""
    shifted: list[Call] = []
    watched: dict[_Parts, Watched] = {}
    mixtures: set[_Parts] = set()
    for each, call in found.items():
        experts = each.block.experts()
        if experts is None:
            continue
        path = f"{each.block.call.path}.{experts}"
        around = _smallest_around(each, path)
        if around is None:
            mixtures.add(each)
            continue
        # A list of experts has no output of its own, that of the module around it is no test of
        # what runs inside.
        is_untested = around.path != path and each.block.follows_experts(call)
        if is_untested and not (_is_beside(each, call, around) or _chooses_for_all(each, path)):
            mixtures.add(each)
            continue
        shifted.append(around)
        watched[each] = (call, "in")
    if watched:
        values = probe.changed(Change(shifted=shifted), watched.values())
        for each, (call, side) in watched.items():
            assert call.value is not None
            if _has_changed(each.by_token(call.value), each.by_token(values[call, side])):
                mixtures.add(each)
    return mixtures


def _smallest_around(parts: _Parts, path: str) -> Call | None:
    """The call of a module, or of the smallest one around it, that gives one vector per token."""
    by_path = {call.path: call for call in parts.block.inner}
    while path.startswith(f"{parts.block.call.path}."):
        call = by_path.get(path)
        if call is not None and parts.is_stream(call.output):
            return call
        path = path.rpartition(".")[0]
    return None


def _is_beside(parts: _Parts, projection: Call, mixture: Call) -> bool:
    """Whether a projection is in an expert that reads what the whole mixture reads, not what other
    experts give."""
    path = projection.path.rpartition(".")[0]
    experts = [call for call in parts.block.inner if call.path == path]
    is_inside = path.startswith(f"{mixture.path}.")
    return is_inside and any(same(_flat(call.value), _flat(mixture.value)) for call in experts)


def _chooses_for_all(parts: _Parts, experts: str) -> bool:
    """Whether only one member of a list ran, on whole rows: a mixture would choose for each token,
    and gather the tokens of a member first."""
    runs: dict[str, Call] = {}
    for call in parts.block.all_inner:
        if call.path.rpartition(".")[0] == experts:
            runs[call.path] = call
    values = [call.value for call in runs.values()]
    if len(values) != 1 or values[0] is None or values[0].ndim != 3:
        return False
    return values[0].shape[:-1].numel() == parts.tokens


def _units(call: Call) -> int:
    assert call.value is not None
    return call.value.shape[-1]


def _changed_by(probe: Probe, shifted: Mapping[_Parts, Iterable[Call]]) -> set[Call]:
    """Which of the added projections of blocks give something else when some calls do."""
    watched: list[Watched] = []
    moved: list[Call] = []
    for each, calls in shifted.items():
        moved += calls
        watched += [(call, "out") for call in each.added if call not in calls]
    if not watched:
        return set()
    values = probe.changed(Change(shifted=moved), watched)
    return {call for call, _ in watched if _differs(values[call, "out"], call)}


def _first_of_a_row(module: nn.Module, projection: Call, block: Block) -> Call:
    """The first of several projections of which each reads what the one before it gives: together
    they are one linear map, and the units are what enters it."""
    found = projection
    for call in sorted(block.inner, key=lambda call: call.end, reverse=True):
        feeds_it = call.end < found.start and same(_flat(call.output), _flat(found.value))
        if feeds_it and _projects(module, call):
            found = _whole(module, call, block)
    return found


def _flat(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.reshape(-1)
