"""How everything is timed: CPU seconds of this process, variants in turn, each part at its
fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

_stamps: list[float] = []  # CPU seconds at the ends of the parts of the call that is being timed


@dataclass(frozen=True)
class Row:
    """One variant of one benchmark.

    Attributes:
        benchmark: its name.
        variant: its name.
        value: the cost.
        unit: unit of the cost.
        ratio: ratio of the cost to that of the benchmark's first variant.
        difference: the largest absolute difference of the result from the first result that there
            is; None where there is nothing to compare.
        bar: what `ratio` may be at most; None for no limit.
    """

    benchmark: str
    variant: str
    value: float
    unit: str
    ratio: float
    difference: float | None = None
    bar: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the cost is within its limit; None without one."""
        return None if self.bar is None else self.ratio <= self.bar


def compared(
    benchmark: str,
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    bars: Mapping[str, float] | None = None,
    tolerance: float = 1e-3,
) -> list[Row]:
    """Times several variants of the same work.

    Every variant is called once per round. Its parts end at its calls of `lap`; its cost is the sum
    over parts of the fastest round, because whatever else the machine does can only add.

    Args:
        benchmark: the name of the work.
        variants: the variants by name; ratios are to the first one.
        rounds: number of calls of each variant.
        bars: the largest ratios allowed, by variant.
        tolerance: largest absolute difference allowed between two results.

    Raises:
        AssertionError: in the first round, a variant's result is not equal to the first result.
    """
    laps: dict[str, list[list[float]]] = {name: [] for name in variants}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, run in variants.items():
            parts, result = timed(run)
            laps[name].append(parts)
            # Results of the first round alone are kept and compared.
            results.setdefault(name, result)

    differences = _differences(results)
    # Not by `>`, which NaN would pass.
    wrong = {n: gap for n, gap in differences.items() if gap is not None and not gap <= tolerance}
    assert not wrong, f"{benchmark}: {wrong} away from the first result"

    costs = {name: _cost(parts_of_rounds) for name, parts_of_rounds in laps.items()}
    baseline = next(iter(costs.values()))
    bars = bars or {}
    return [
        Row(benchmark, name, cost, "CPU s", cost / baseline, differences[name], bars.get(name))
        for name, cost in costs.items()
    ]


def _cost(parts_of_rounds: Sequence[Sequence[float]]) -> float:
    """The sum over parts of the fastest round of each."""
    parts = zip(*parts_of_rounds, strict=True)
    return sum(min(seconds) for seconds in parts)


def lap() -> None:
    """Ends a part of a variant. A long variant calls it after each of its parts, which must be the
    same in every round."""
    _stamps.append(time.process_time())


def timed(run: Callable[[], Any]) -> tuple[list[float], Any]:
    """The CPU seconds that this process spends in each part of one call, and what it returns."""
    _stamps.clear()
    lap()
    result = run()
    lap()
    return [after - before for before, after in pairwise(_stamps)], result


def _differences(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The difference of each result from the first that is not None."""
    first = next((result for result in results.values() if result is not None), None)
    return {name: difference(first, result) for name, result in results.items()}


def difference(one: Any, other: Any) -> float | None:
    """The largest absolute difference of two results of the same structure, NaN where one of them
    holds NaN; None when there is nothing in them to compare."""
    if one is None or other is None:
        return None
    if isinstance(one, Mapping):
        # Where one of its parts has nothing to compare, the others still have.
        gaps = [difference(one[key], other[key]) or 0.0 for key in one]
        # Not the built-in max, which passes over NaN in some orders.
        return float(np.max(gaps)) if gaps else None
    first = torch.as_tensor(one, dtype=torch.float64)
    second = torch.as_tensor(other, dtype=torch.float64)
    gap = (first - second).abs()
    # Two equal infinities do not differ, but their difference is NaN.
    gap = gap.masked_fill(first == second, 0.0)
    return float(gap.max()) if gap.numel() else None
