"""Finds what a block adds to its residual stream: the sum that the block computes, term by term.

Most blocks compute `post = pre + a + m`, where `a` and `m` are what attention and MLP add. Some
have one such term or three; some scale what they add (Granite) or the whole sum (Gemma 4); some
normalize the stream after each addition (BERT). The terms are looked for among the outputs of the
modules inside the block, and a sum counts only if it is right in every element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from interp.hooks.call_trace import Call
from interp.loading.verification import close, same, shaped_like

_MOST_TERMS = 3
_LEAST_SCALE = 1e-3  # a term with less than this is no term, but what rounding left
_TINY = 1e-12
_MEAN_ERROR = 2.0  # of squared errors, in units of rounding; sums of correct terms have less than 1
_ONE = 1e-4  # a fitted factor this close to 1 is 1


@dataclass(frozen=True, eq=False)
class Term:
    """Something that a block adds to its stream: `scale` times the output of a module."""

    call: Call
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Residual:
    """How a block makes its output out of its input.

    Attributes:
        terms: what is added, in the order in which it is computed.
        norms: for a block that normalizes its stream after each addition, the norms, one for each
            term; empty for all other blocks.
        whole: a factor on the sum.
        start: for a block that normalizes its stream once, as it enters, that norm: what is added
            is added to its output. None for all other blocks.
    """

    terms: tuple[Term, ...]
    norms: tuple[Call, ...] = ()
    whole: float = 1.0
    start: Call | None = None


def find_residual(block: Call, inner: Sequence[Call], named: Sequence[Call]) -> Residual | None:
    """Returns the sum by which a block makes its output, or None if none is right.

    Args:
        block: the call of the block.
        inner: the calls inside it, in the order in which they ended.
        named: calls that have to be terms of the sum, because a user says so.
    """
    candidates = _distinct([call for call in inner if shaped_like(call.output, block.output)])
    candidates += [call for call in named if call not in candidates]
    pre = _row(block.value)
    post = _row(block.output)
    # Before the others: where a plain sum is right, factors close to 1 may be found as well.
    plain = _plain_sum(pre, post, candidates, named)
    if plain is not None:
        return Residual(plain)
    return (
        _post_norm(block, inner, candidates, named)
        or _scaled_sum(pre, post, candidates, named)
        or _from_norm(block, inner, candidates, named)
    )


def _from_norm(
    block: Call, inner: Sequence[Call], candidates: Sequence[Call], named: Sequence[Call]
) -> Residual | None:
    """The terms of a block that computes `norm(pre) + terms`: RWKV's first normalizes the
    embedding."""
    for start in inner:
        if not same(start.value, block.value) or not shaped_like(start.output, block.output):
            continue
        later = [call for call in candidates if call.start > start.end]
        terms = _plain_sum(_row(start.output), _row(block.output), later, named)
        if terms is not None:
            return Residual(terms, start=start)
    return None


def _row(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.reshape(-1)


def _distinct(calls: Sequence[Call]) -> list[Call]:
    """The calls without those whose output a later one has too.

    The last one that ends is the outermost: an attention module, rather than its out-projection.
    """
    kept: list[Call] = []
    for number, call in enumerate(calls):
        later = calls[number + 1 :]
        copied = any(same(_row(call.output), _row(other.output)) for other in later)
        # Nothing can be said of a module that adds nothing.
        if not copied and bool(_row(call.output).any()):
            kept.append(call)
    return kept


def _choices(candidates: Sequence[Call], named: Sequence[Call]) -> Iterator[tuple[Call, ...]]:
    """The sets of one to three candidates with all `named` ones among them, each in the order in
    which its calls ended. Smaller sets come first, and of one size those of later calls."""
    latest_first = list(reversed(candidates))
    for size in range(1, _MOST_TERMS + 1):
        for calls in combinations(latest_first, size):
            if all(call in calls for call in named):
                yield tuple(sorted(calls, key=lambda call: call.end))


def _plain_sum(
    pre: Tensor, post: Tensor, candidates: Sequence[Call], named: Sequence[Call]
) -> tuple[Term, ...] | None:
    """The terms with `pre + terms = post`."""
    screen = _Screen(pre, post, candidates)
    for calls in _choices(candidates, named):
        if screen.rejects(calls):
            continue
        outputs = [_row(call.output) for call in calls]
        total = pre
        for output in outputs:
            total = total + output
        if _is_sum(total, post, pre, *outputs):
            return tuple(map(Term, calls))
    return None


def _is_sum(total: Tensor, post: Tensor, *terms: Tensor) -> bool:
    """Whether `post` is the sum of these terms, up to rounding in every element and on average.

    In half precision, a small term that is missing stays within the largest rounding errors, but
    not within their mean.
    """
    magnitude = torch.stack([term.abs() for term in terms]).sum(0)
    errors = (total - post) / (torch.finfo(post.dtype).eps * magnitude + _TINY)
    return close(total, post, *terms) and float(errors.float().square().mean()) <= _MEAN_ERROR


class _Screen:
    """Rejects most sets of terms by inner products that are computed once, which costs a hundredth
    of comparing the sums element by element."""

    def __init__(self, pre: Tensor, post: Tensor, candidates: Sequence[Call]) -> None:
        rows = [pre, post, *(_row(call.output) for call in candidates)]
        self.products = _products(rows)
        self.index = {id(call): number for number, call in enumerate(candidates, start=2)}
        self.rounding = 64 * torch.finfo(post.dtype).eps

    def rejects(self, calls: Sequence[Call]) -> bool:
        """Whether `pre + calls - post` is too large to be rounding error."""
        chosen = [0, *(self.index[id(call)] for call in calls), 1]
        signs = torch.ones(len(chosen), dtype=torch.float64)
        signs[-1] = -1
        products = self.products[chosen][:, chosen]
        # The square of the sum, multiplied out into inner products of its terms.
        squared_error = signs @ products @ signs
        return bool(squared_error > self.rounding * products.diagonal().sum())

    def fit(self, calls: Sequence[Call]) -> list[float] | None:
        """The factors with which `pre` and the calls make `post`, those of the calls relative to
        that of `pre`; None if no factors do."""
        chosen = [0, *(self.index[id(call)] for call in calls)]
        products = self.products[chosen][:, chosen]
        with_post = self.products[chosen, 1]
        # Not solve(): outputs that are multiples of each other make the matrix singular.
        factors = torch.linalg.pinv(products, hermitian=True) @ with_post
        # What least squares leaves: |post|^2 without what the fit explains.
        squared_error = self.products[1, 1] - factors @ with_post
        whole = float(factors[0])
        if squared_error > self.rounding * self.products[1, 1] or abs(whole) < _LEAST_SCALE:
            return None
        scales = [_snapped(float(factor) / whole) for factor in factors[1:]]
        if any(abs(scale) < _LEAST_SCALE for scale in scales):
            return None
        return [_snapped(whole), *scales]


def _products(rows: Sequence[Tensor]) -> Tensor:
    matrix = torch.stack([row.double() for row in rows])
    return (matrix @ matrix.T).cpu()  # [rows, rows]


def _snapped(factor: float) -> float:
    """1 for a fitted factor that differs from it by rounding error."""
    return 1.0 if abs(factor - 1) < _ONE else factor


def _post_norm(
    block: Call, inner: Sequence[Call], candidates: Sequence[Call], named: Sequence[Call]
) -> Residual | None:
    """The terms and norms of a block that computes `norm(pre + a)`, or
    `norm2(norm1(pre + a) + m)`."""
    streams = [call for call in inner if shaped_like(call.value, block.output)]
    streams = [call for call in streams if shaped_like(call.output, block.output)]
    for last in streams:
        if not same(_row(last.output), _row(block.output)):
            continue
        only = _plain_sum(_row(block.value), _row(last.value), candidates, named)
        if only is not None and len(only) == 1:
            return Residual(only, (last,))
        for first in streams:
            if first.end >= last.start:
                continue
            # Without `named`: its terms may be on either side of the first norm, and are looked for
            # below.
            before = _plain_sum(_row(block.value), _row(first.value), candidates, ())
            after = _plain_sum(_row(first.output), _row(last.value), candidates, ())
            if before is None or after is None or len(before) + len(after) != 2:
                continue
            terms = before + after
            if all(any(term.call is call for term in terms) for call in named):
                return Residual(terms, (first, last))
    return None


def _scaled_sum(
    pre: Tensor, post: Tensor, candidates: Sequence[Call], named: Sequence[Call]
) -> Residual | None:
    """The terms and factors with `whole * (pre + factors * terms) = post`, by least squares."""
    screen = _Screen(pre, post, candidates)
    for calls in _choices(candidates, named):
        factors = screen.fit(calls)
        if factors is None:
            continue
        whole, *scales = factors
        parts = [whole * pre]
        for call, scale in zip(calls, scales, strict=True):
            parts.append(whole * scale * _row(call.output))
        if _is_sum(torch.stack(parts).sum(0), post, *parts):
            return Residual(tuple(map(Term, calls, scales)), whole=whole)
    return None
