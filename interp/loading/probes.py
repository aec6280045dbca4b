"""Runs a network again with small changes, all blocks at once, to see what depends on what.

In every probe each block gives the output that it gave in the first forward. So what is changed
inside one block is not seen by the others, and one forward tells about all blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from interp.errors import HookError
from interp.hooks.call_trace import Attention, Call, attention_zeroed
from interp.hooks.hooks import Clock, Visit, tapped
from interp.hooks.modes import dropout_off
from interp.loading.verification import rounding
from interp.sites.anatomy import Anatomy, Place
from interp.sites.site import Site


@dataclass(frozen=True)
class Reach:
    """The last position of a call's output that changes with the first of its block's input.

    Attributes:
        alone: while the calls before it give what they gave; 0 if only the first position changes,
            or none.
        through: while they pass on their own change.
    """

    alone: int
    through: int


@dataclass(frozen=True)
class Change:
    """What is changed in one more forward.

    Attributes:
        zeroed: calls that give zeros.
        kept: calls that give what they gave in the first forward.
        shifted: calls to whose output noise is added, at every position.
        heads_off: for some attention operations, which of their heads give zeros.
        noisy: blocks to whose input noise is added at the first position, with its axis of
            positions.
    """

    zeroed: Iterable[Call] = ()
    kept: Iterable[Call] = ()
    shifted: Iterable[Call] = ()
    heads_off: Mapping[Attention, Tensor] = field(default_factory=dict[Attention, Tensor])
    noisy: Mapping[Call, int] = field(default_factory=dict[Call, int])


Watched = tuple[Call, str]  # a call, and "in" or "out" for the value that is looked at

_NOISE = 3.0  # standard deviations of the stream that are added to its first position


@dataclass(frozen=True)
class Bare:
    """A module and where its sites are: all that hooks need, before there is a Subject."""

    module: nn.Module
    anatomy: Anatomy


@dataclass(frozen=True, eq=False)
class Probe:
    """The network, and how one forward over a few tokens is run.

    Attributes:
        module: the network.
        run: does the forward.
        stacks: for each stack, the paths of its blocks.
        blocks: the call of every block in the first forward.
    """

    module: nn.Module
    run: Callable[[], object]
    stacks: Mapping[str, tuple[str, ...]]
    blocks: Sequence[Call]

    def reaches(
        self, parts: Mapping[str, Sequence[Call]], axes: Mapping[str, int] | None = None
    ) -> dict[Call, Reach]:
        """Returns how far the first position of each block's input reaches in some of its parts.

        Args:
            parts: for each block, by its path, calls inside it in the order in which they ended.
            axes: for blocks whose input is not [batch, position, width], which axis is that of
                positions.
        """
        axes = axes or {}
        alone: dict[Call, int] = {}
        through: dict[Call, int] = {}
        most = max(map(len, parts.values()), default=0)
        # Each row is a trial of its own: row r keeps the first `first_kept` + r parts of a block.
        for first_kept in range(0, most, self._rows):
            visits: dict[Site, Visit] = {}
            for block in self.blocks:
                axis = axes.get(block.path)
                visits[_site(block, "in")] = (
                    _with_noise if axis is None else _with_noise_along(axis, block)
                )
                for number, call in enumerate(parts.get(block.path, ())):
                    visits[_site(call, "out")] = _noting_reach(
                        call, number, range(first_kept, first_kept + self._rows), alone, through
                    )
            self._rerun(visits)
        return {call: Reach(alone[call], through[call]) for call in alone}

    @property
    def _rows(self) -> int:
        """How many rows of the batch can be told apart, 1 or 2."""
        values = [block.value for block in self.blocks if block.value is not None]
        return min([2, *(value.shape[0] if value.ndim == 3 else 1 for value in values)])

    def depends(self, pairs: Iterable[tuple[Call, Call]]) -> set[Call]:
        """Returns those second calls of pairs within a block whose output depends on the first."""
        visits: dict[Site, Visit] = {}
        changed: dict[Call, bool] = {}
        for first, second in pairs:
            visits[_site(first, "out")] = lambda value, _: value + value.std()
            visits[_site(second, "out")] = _noting_change(second, changed)
        if visits:
            self._rerun(visits)
        return {call for call, has_changed in changed.items() if has_changed}

    def without(self, zeroed: Iterable[Call], watched: Iterable[Call]) -> dict[Call, Tensor]:
        """Returns the outputs of some calls while those of others are zero.

        The watched calls pass on their first output, so that each sees only what is zeroed inside
        it.
        """
        visits: dict[Site, Visit] = {}
        outputs: dict[Call, Tensor] = {}
        for call in zeroed:
            visits[_site(call, "out")] = lambda value, _: torch.zeros_like(value)
        for call in watched:
            visits[_site(call, "out")] = _keeping(call, outputs)
        self._rerun(visits)
        return outputs

    def changed(
        self, change: Change, watched: Iterable[Watched], operations: int = 0
    ) -> dict[Watched, Tensor]:
        """Returns what some values are in one more forward, in which others are changed.

        Args:
            change: what is changed.
            watched: which values are returned: none that `change` sets. The output of a block is
                what the block computes in this forward, although the blocks after it read what it
                gave in the first one.
            operations: how many attention operations the forward has; needed where heads are off.

        Returns:
            The values, on the device of those of the first forward.

        Raises:
            HookError: the forward did not run the same modules and attention operations again.
        """
        # Each place has one visit, and what is set later replaces what was set before.
        visits: dict[Site, Visit] = {}
        seen: dict[Site, list[Tensor]] = defaultdict(list)
        sites = {value: _site(*value) for value in watched}
        for site in sites.values():
            visits[site] = _noting_values(seen[site])
        for block in self.blocks:
            site = _site(block, "out")
            if site in visits:
                visits[site] = _noting_values(seen[site], block)
        for block, axis in change.noisy.items():
            visits[_site(block, "in")] = _with_noise_along(axis, block)
        for call in change.zeroed:
            visits[_site(call, "out")] = lambda value, _: torch.zeros_like(value)
        for call in change.kept:
            visits[_site(call, "out")] = _first_output(call)
        for call in change.shifted:
            visits[_site(call, "out")] = _with_noise_everywhere
        with ExitStack() as stack:
            if change.heads_off:
                off = {each.number: heads for each, heads in change.heads_off.items()}
                stack.enter_context(attention_zeroed(off, operations))
            self._rerun(visits)
        found: dict[Watched, Tensor] = {}
        for value, site in sites.items():
            # A module that runs several times gives as many values: each call has its own.
            call, _ = value
            if call.turn >= len(seen[site]):
                raise HookError(f"{call.path} ran {len(seen[site])} times, fewer than before")
            first = call.output if value[1] == "out" else call.value
            # Where the first values are, of a model on several devices.
            found[value] = seen[site][call.turn].to(None if first is None else first.device)
        return found

    def _rerun(self, visits: dict[Site, Visit]) -> None:
        for block in self.blocks:
            visits.setdefault(_site(block, "out"), _first_output(block))
        places = {site: _place(site) for site in visits}
        hooked = Bare(self.module, Anatomy(self.stacks, {}, {}, places))
        with torch.no_grad(), dropout_off(self.module), tapped(hooked, visits):
            self.run()


def _site(call: Call, side: str) -> Site:
    return Site(f"{call.path}:{side}")


def _place(site: Site) -> Place:
    path, _, side = site.point.rpartition(":")
    return Place(path, side, width=0)  # no units are chosen here, so that no width is needed


def _first_output(call: Call) -> Visit:
    def restore(value: Tensor, _: Clock) -> Tensor:
        return _recorded(call, value)

    return restore


def _recorded(call: Call, value: Tensor) -> Tensor:
    assert call.output is not None
    # A clone, because the model may write into what a hook returns.
    return call.output.reshape(value.shape).clone().to(value.device)


def _with_noise(value: Tensor, _: Clock) -> Tensor:
    # Seeded here, so that every forward gets the same noise.
    generator = torch.Generator().manual_seed(0)
    first = value[:, 0]
    noise = torch.randn(first.shape, generator=generator).to(value)
    spread = value.float().std().to(value)
    changed = value.clone()
    changed[:, 0] = first + _NOISE * spread * noise
    return changed


def _with_noise_everywhere(value: Tensor, _: Clock) -> Tensor:
    # Not a constant: a norm behind the call would remove it.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(value.shape, generator=generator).to(value)
    return value + value.float().std().to(value) * noise


def _with_noise_along(axis: int, call: Call) -> Visit:
    """Noise at the first position of an input of more axes than [batch, position, width]."""

    def change(value: Tensor, clock: Clock) -> Tensor:
        assert call.value is not None
        own_shape = value.reshape(call.value.shape)
        # The axis of positions to where that of three has it: [other axes, position, width].
        by_position = own_shape.movedim(axis, -2)
        rows = by_position.reshape(-1, *by_position.shape[-2:])
        noisy = _with_noise(rows, clock).reshape(by_position.shape)
        return noisy.movedim(-2, axis).reshape(value.shape)

    return change


def _noting_values(seen: list[Tensor], restored: Call | None = None) -> Visit:
    """A visit that notes each value, and puts the first output of a call in its place."""

    def note(value: Tensor, _: Clock) -> Tensor | None:
        seen.append(value.clone())
        return None if restored is None else _recorded(restored, value)

    return note


def _noting_reach(
    call: Call, number: int, kept: range, alone: dict[Call, int], through: dict[Call, int]
) -> Visit:
    """A visit that notes how far a call is reached, in one row by itself.

    Each of the first rows of the batch has another number of `kept` calls: of the block's calls, so
    many give the output that they had, so that what they would pass on does not reach this one.
    """

    def note(value: Tensor, _: Clock) -> Tensor:
        clean = _recorded(call, value)
        by_position = _changes(value, clean)  # [batch, position]
        for row, count in enumerate(kept):
            positions = by_position[row].nonzero()[:, 0]
            reach = int(positions.max()) if len(positions) else 0
            if count == number:
                alone[call] = reach
            if count == 0:
                through[call] = reach
        passed_on = value.clone()
        for row, count in enumerate(kept):
            if number < count:
                passed_on[row] = clean[row]
        return passed_on

    return note


def _noting_change(call: Call, changed: dict[Call, bool]) -> Visit:
    def note(value: Tensor, _: Clock) -> None:
        changed[call] = bool(_changes(value, _recorded(call, value)).any())

    return note


def _changes(value: Tensor, clean: Tensor) -> Tensor:
    """Which positions, [batch, position], differ by more than rounding."""
    # Not by `>`, of which NaN would count as no change.
    return ~((value - clean).abs().amax(-1) <= rounding(clean))


def _keeping(call: Call, outputs: dict[Call, Tensor]) -> Visit:
    def keep(value: Tensor, _: Clock) -> Tensor:
        # Where the first outputs are, of a model on several devices.
        device = None if call.output is None else call.output.device
        outputs[call] = value.clone().to(device)
        return _recorded(call, value)

    return keep
