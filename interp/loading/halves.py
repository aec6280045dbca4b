"""Tells the halves of a block apart: which of the terms that it adds comes from what.

Attention and every other mixer carry information from one position to another; an MLP acts on each
position by itself. Changing the first position of what enters a block shows which is which. Where
nothing shows it, the terms have no names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from interp.hooks.call_trace import Attention, Call
from interp.loading.probes import Probe, Reach
from interp.loading.residual import Residual, Term
from interp.loading.verification import has_projection


@dataclass(frozen=True, eq=False)
class Halves:
    """The terms of a block, by what they come from.

    Attributes:
        attention: what attention gives.
        mixer: what another mixer of positions gives.
        mlp: what the MLP gives: usually one term, two where experts are added beside each other.
        sequential: whether the second half reads the stream that the first has written to.
        unknown: why the terms cannot be told apart; empty where they can.
    """

    attention: Term | None = None
    mixer: Term | None = None
    mlp: tuple[Term, ...] = ()
    sequential: bool = False
    unknown: str = ""


def tell_apart(
    residuals: Mapping[str, Residual],
    operations: Mapping[str, Sequence[Attention]],
    probe: Probe,
) -> dict[str, Halves]:
    """Returns the halves of every block, by its path.

    Args:
        residuals: the sum that each block computes.
        operations: the attention operations of each block.
        probe: runs the network again.
    """
    parts: dict[str, list[Call]] = {}
    for path, residual in residuals.items():
        parts[path] = [term.call for term in residual.terms]

    reach = probe.reaches(parts)
    kinds: dict[str, Halves] = {}
    for path, residual in residuals.items():
        runs = _Runs(path, operations.get(path, ()), probe.module)
        kinds[path] = _kinds(residual.terms, reach, runs)
    dependent = probe.depends(_later_terms(kinds))

    halves: dict[str, Halves] = {}
    for path, kind in kinds.items():
        # What reads the MLP's own output comes after it (per-layer inputs of Gemma 4).
        mlp = tuple(term for term in kind.mlp if term.call not in dependent)
        reaches = [reach[term.call] for term in residuals[path].terms]
        # What reads the output of another half is reached farther while that one passes on its
        # change.
        sequential = any(each.through > each.alone for each in reaches)
        halves[path] = replace(kind, mlp=mlp, sequential=sequential)
    return halves


@dataclass(frozen=True)
class _Runs:
    """The attention operations of one block, and where they ran."""

    block: str
    operations: Sequence[Attention]
    module: nn.Module

    def behind(self, terms: Sequence[Term]) -> list[Term]:
        """The terms through which attention operations reach the stream, each once.

        That of an operation is the first of `terms` that ends after it and either is in the same
        child of the block as the operation, or holds no projection, so that it only passes on what
        the attention gave, as a norm behind it does.
        """
        found: list[Term] = []
        for operation in self.operations:
            for term in terms:
                passes_on = not has_projection(self.module.get_submodule(term.call.path))
                in_child = self._in_child(term, operation)
                if term.call.end > operation.time and (in_child or passes_on):
                    if term not in found:
                        found.append(term)
                    break
        return found

    def inside(self, terms: Sequence[Term]) -> bool:
        """Whether an operation ran in the same child of the block as one of the terms."""
        return any(
            self._in_child(term, operation) for operation in self.operations for term in terms
        )

    def _in_child(self, term: Term, operation: Attention) -> bool:
        # The paths are those of the running modules, outermost first: what is behind the block is
        # in it.
        running = operation.inside[operation.inside.index(self.block) + 1 :]
        if not running:
            return True  # the block runs the operation itself
        # Either may lie within the other. With its dot, `attn` does not match `attn_norm`.
        child, path = f"{running[0]}.", f"{term.call.path}."
        return path.startswith(child) or child.startswith(path)


def _kinds(terms: Sequence[Term], reach: Mapping[Call, Reach], runs: _Runs) -> Halves:
    """The terms by kind; `mlp` holds all that act on each position by itself."""
    mixing = [term for term in terms if reach[term.call].alone > 0]
    still = [term for term in terms if term not in mixing]
    attentions = runs.behind(mixing)
    if runs.operations and not attentions and runs.inside(still):
        return Halves(unknown="its attention was not seen to carry anything between positions")
    if len(attentions) > 1:
        return Halves(unknown="several of its terms come from attention")
    # An MLP may look a few positions back too (RWKV shifts its input by one, Inkling puts a short
    # convolution behind it). But it reads what a mixer that looks farther has written.
    farthest = max((reach[term.call].alone for term in mixing), default=0)
    mixers: list[Term] = []
    for term in mixing:
        its_reach = reach[term.call]
        reads_a_mixer = its_reach.alone < its_reach.through == farthest
        if term not in attentions and not reads_a_mixer:
            mixers.append(term)
    if len(mixers) > 1:
        return Halves(unknown="several of its terms carry information between positions")
    mixing = attentions + mixers
    mlp = tuple(term for term in terms if term not in mixing)
    if not mixing and len(mlp) > 1:
        return Halves(unknown="none of its terms carries information between positions")
    return Halves(
        attention=attentions[0] if attentions else None,
        mixer=mixers[0] if mixers else None,
        mlp=mlp,
    )


def _later_terms(kinds: Mapping[str, Halves]) -> list[tuple[Call, Call]]:
    """Pairs of the first term of each MLP and the others."""
    pairs: list[tuple[Call, Call]] = []
    for kind in kinds.values():
        pairs += [(kind.mlp[0].call, term.call) for term in kind.mlp[1:]]
    return pairs
