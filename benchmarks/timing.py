"""How everything is timed: CPU seconds of this process, variants in turn, each at its fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

_stamps: list[float] = []


@dataclass(frozen=True)
class Row:
    """One variant of one benchmark. `ratio` is to the baseline of its benchmark; `bar` is what it
    may be at most; `difference` the largest absolute difference of its result from the first
    result, None where there is nothing to compare."""

    benchmark: str
    variant: str
    value: float
    unit: str
    ratio: float
    difference: float | None = None
    bar: float | None = None

    @property
    def passed(self) -> bool | None:
        return None if self.bar is None else self.ratio <= self.bar


def compared(
    benchmark: str,
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    bars: Mapping[str, float] | None = None,
    tolerance: float = 1e-3,
) -> list[Row]:
    """Times every variant once a round; in the first round each result must equal the first result
    that there is, within `tolerance`.

    A variant costs the sum over its parts (between calls of `lap`) of the fastest round: whatever
    else the machine does can only add. The first variant is the baseline. Raises AssertionError
    when a variant computes something else.
    """
    turns = [{name: timed(run) for name, run in variants.items()} for _ in range(rounds)]
    gaps = _gaps({name: result for name, (_, result) in turns[0].items()})
    wrong = {name: gap for name, gap in gaps.items() if gap is not None and gap > tolerance}
    assert not wrong, f"{benchmark}: {wrong} away from the first result"
    costs = {
        name: sum(map(min, zip(*(turn[name][0] for turn in turns), strict=True)))
        for name in variants
    }
    baseline, bars = next(iter(costs.values())), bars or {}
    return [
        Row(benchmark, name, cost, "CPU s", cost / baseline, gaps[name], bars.get(name))
        for name, cost in costs.items()
    ]


def lap() -> None:
    """Called by a long variant at the end of each of its parts, which must be the same parts every
    time."""
    _stamps.append(time.process_time())


def timed(run: Callable[[], Any]) -> tuple[list[float], Any]:
    """CPU seconds that this process spends in each part of one call, and what it returned."""
    _stamps.clear()
    lap()
    result = run()
    lap()
    return [after - before for before, after in pairwise(_stamps)], result


def _gaps(results: Mapping[str, Any]) -> dict[str, float | None]:
    reference = next((result for result in results.values() if result is not None), None)
    return {name: difference(reference, result) for name, result in results.items()}


def difference(one: Any, other: Any) -> float | None:
    """The largest absolute difference of two results of like structure; None when there is nothing
    in them to compare."""
    if one is None or other is None:
        return None
    if isinstance(one, Mapping):
        return max((difference(one[key], other[key]) or 0.0 for key in one), default=None)
    gap = torch.as_tensor(one, dtype=torch.float64) - torch.as_tensor(other, dtype=torch.float64)
    return float(gap.abs().max()) if gap.numel() else None
