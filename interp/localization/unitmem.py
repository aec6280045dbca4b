"""UnitMem: how much more a unit responds to one example than to the rest."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np
from jaxtyping import Float, Int

from interp.batch import Batches, batches
from interp.localization.registry import Places, Scores, method
from interp.recording import record
from interp.sites import Site
from interp.subject import Subject

_DEAD = 1e-8


def _each(subject: Subject, memorized: Batches, reference: Batches | None, sites: Places, size: int = 8) -> Scores:
    """[memorized windows, units]: a unit's UnitMem at the window of its maximum, 0 at the others."""
    scores, count = _over_both(subject, memorized, reference, sites, size)
    return {site: np.where(np.arange(count)[:, None] == example, value, 0.0) for site, (value, example) in scores.items()}


@method("unitmem", each=_each)
def unitmem_of_memorized(subject: Subject, memorized: Batches, reference: Batches | None, sites: Places, size: int = 8) -> Scores:
    """UnitMem over memorized and reference windows together; 0 for units whose strongest example is a reference."""
    scores, count = _over_both(subject, memorized, reference, sites, size)
    return {site: np.where(example < count, value, 0.0) for site, (value, example) in scores.items()}


def _over_both(
    subject: Subject, memorized: Batches, reference: Batches | None, sites: Places, size: int
) -> tuple[dict[Site, tuple[np.ndarray, np.ndarray]], int]:
    """UnitMem and example of every unit over both sets, and how many windows are memorized."""
    ours = list(batches(memorized, size))
    return unitmem(subject, chain(ours, [] if reference is None else batches(reference, size)), sites, size), sum(map(len, ours))


def unitmem(
    subject: Subject, windows: Batches, sites: Places, size: int = 8
) -> dict[Site, tuple[Float[np.ndarray, " units"], Int[np.ndarray, " units"]]]:
    """For every unit, (mu_max - mu_rest) / (mu_max + mu_rest) in [0, 1], and the example of the maximum.

    mu is the mean of |activation| over the positions of one example, mu_rest its mean over the other examples (Wang et al. 2024, arXiv
    2409.19069, equations 5-8, with the absolute value that negative activations need). Streams: memory does not grow with examples. A unit
    that never fires scores 0.
    """
    recording = record(subject, windows, sites, reduce="selectivity", size=size)
    return {site: _selectivity(parts, subject.anatomy.place(site).units) for site, parts in recording.parts.items()}


def _selectivity(parts: Mapping[str, np.ndarray], units: int) -> tuple[np.ndarray, np.ndarray]:
    """UnitMem and example of each unit; a head's is the mean over its coordinates, and the example that of its strongest one."""
    largest, count = parts["max"], parts["count"]
    if count.flat[0] < 2:
        raise ValueError(f"UnitMem compares examples: expected at least 2, got {count.flat[0]}")
    rest = (parts["sum"] - largest) / (count - 1)
    dead = parts["sum"] <= _DEAD  # by the sum, which is NaN where an activation is: that must not pass for dead
    selectivity = np.where(dead, 0.0, (largest - rest) / np.maximum(largest + rest, _DEAD))
    strongest = largest.reshape(units, -1).argmax(1)
    return selectivity.reshape(units, -1).mean(1), parts["argmax"].reshape(units, -1)[np.arange(units), strongest]
