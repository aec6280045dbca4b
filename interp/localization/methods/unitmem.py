"""UnitMem: how much more a unit responds to one example than to the rest."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.recording import Part, Recording, record_parts, segments
from interp.errors import closest
from interp.localization.registry import Places, Scores, method
from interp.sites.site import Site
from interp.subject.batch import Batches, batches
from interp.subject.subject import Subject

_DEAD = 1e-8
Collapse = Literal["segments", "max", "macro", "tokens"]
Selective = tuple[Float[np.ndarray, " units"], Int[np.ndarray, " units"]]


def _each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    size: int = 8,
    views: int = 1,
    collapse: Collapse = "segments",
) -> Scores:
    """[memorized windows, units]: a unit's UnitMem at the window of its maximum, 0 at the others."""
    scores, count = _over_both(subject, memorized, reference, sites, size, views, collapse)
    return {
        site: np.where(np.arange(count)[:, None] == example, value, 0.0)
        for site, (value, example) in scores.items()
    }


@method("unitmem", each=_each)
def unitmem_of_memorized(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    size: int = 8,
    views: int = 1,
    collapse: Collapse = "segments",
) -> Scores:
    """UnitMem over memorized and reference windows together; 0 for units whose strongest example is
    a reference."""
    scores, count = _over_both(subject, memorized, reference, sites, size, views, collapse)
    return {
        site: np.where(example < count, value, 0.0) for site, (value, example) in scores.items()
    }


def _over_both(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    size: int,
    views: int,
    collapse: Collapse,
) -> tuple[dict[Site, Selective], int]:
    """UnitMem and example of every unit over both sets, and how many examples are memorized."""
    rows = max(size // views, 1) * views
    ours = list(batches(memorized, rows))
    both = chain(ours, [] if reference is None else batches(reference, rows))
    return unitmem(subject, both, sites, size, views=views, collapse=collapse), sum(
        map(len, ours)
    ) // views


def unitmem(
    subject: Subject,
    windows: Batches,
    sites: Places,
    size: int = 8,
    *,
    views: int = 1,
    collapse: Collapse = "segments",
) -> dict[Site, Selective]:
    """For every unit, (mu_max - mu_rest) / (mu_max + mu_rest) in [0, 1], and the example of the
    maximum.

    mu is the mean of |activation| over the positions of one example, mu_rest its mean over the
    other examples (Wang et al. 2024, arXiv 2409.19069, equations 5-8, with the absolute value that
    negative activations need). Streams: memory does not grow with examples. A unit that never fires
    scores 0.

    Args:
        views: how many consecutive windows are augmentations of one example, over which mu is
        averaged (the papers use 10).
        collapse: how the segments of an image model become one score, those left out in which all
            images of a class are the same. `segments`: the mean of the UnitMem of each; `max`: the
            largest; `macro`: UnitMem of the mean over segments of mu; `tokens`: UnitMem with mu
            over all positions, where long segments weigh more. A text is one segment, for which all
            are the same.

    The example is that of the segment with the largest UnitMem where segments are scored apart.
    """
    if collapse not in get_args(Collapse):
        known = get_args(Collapse)
        raise ValueError(
            f"collapse={collapse!r}: expected one of {', '.join(known)}; nearest: {closest(collapse, known)}"
        )
    parts = segments(subject)
    if collapse in ("macro", "tokens") and None not in parts.values():
        parts = {"": _macro(parts) if collapse == "macro" else _all_of(parts)}
    recordings = record_parts(subject, windows, sites, parts, "selectivity", size=size, views=views)
    return {
        site: _collapsed([_selectivity(subject, r, site) for r in recordings.values()], collapse)
        for site in sites
    }


def unitmem_by_segment(
    subject: Subject,
    windows: Batches,
    sites: Places,
    size: int = 8,
    *,
    views: int = 1,
    degenerate: bool = True,
) -> pd.DataFrame:
    """UnitMem of every unit in every segment of an image model, with `unitmem`'s arguments: the map
    of scale by block.

    One row for each `segment`, `block` and `unit`, with its `score` and the `example` of its
    maximum.
    """
    parts = segments(subject, degenerate=degenerate)
    recordings = record_parts(subject, windows, sites, parts, "selectivity", size=size, views=views)
    frames: list[pd.DataFrame] = []
    for part, recording in recordings.items():
        for site in sites:
            score, example = _selectivity(subject, recording, site)
            about = {
                "segment": part,
                "site": str(site),
                "block": site.block,
                "unit": np.arange(len(score)),
            }
            frames.append(pd.DataFrame(about | {"score": score, "example": example}))
    return pd.concat(frames, ignore_index=True)


def _macro(parts: Mapping[str, Part | None]) -> Part:
    """[batch, segments, width]: the mean of |activation| in each."""

    def means(value: Tensor) -> Tensor:
        return torch.stack(
            [part(value).abs().mean(1) for part in parts.values() if part is not None], dim=1
        )

    return means


def _all_of(parts: Mapping[str, Part | None]) -> Part:
    def joined(value: Tensor) -> Tensor:
        return torch.cat([part(value) for part in parts.values() if part is not None], dim=1)

    return joined


def _collapsed(found: list[Selective], collapse: Collapse) -> Selective:
    scores, examples = (
        np.stack([score for score, _ in found]),
        np.stack([example for _, example in found]),
    )
    strongest = scores.argmax(0)
    units = np.arange(scores.shape[1])
    score = scores[strongest, units] if collapse == "max" else scores.mean(0)
    return score, examples[strongest, units]


def _selectivity(subject: Subject, recording: Recording, site: Site) -> Selective:
    """UnitMem and example of each unit; a head's is the mean over its coordinates, and the example
    that of its strongest one."""
    parts, units = recording.parts[site], subject.anatomy.place(site).units
    largest, count = parts["max"], parts["count"]
    if count.flat[0] < 2:
        raise ValueError(f"UnitMem compares examples: expected at least 2, got {count.flat[0]}")
    rest = (parts["sum"] - largest) / (count - 1)
    dead = (largest < _DEAD) & np.isfinite(
        parts["sum"]
    )  # the sum is NaN where an activation is: that must not pass for dead
    selectivity = np.where(dead, 0.0, (largest - rest) / np.maximum(largest + rest, _DEAD))
    strongest = largest.reshape(units, -1).argmax(1)
    return selectivity.reshape(units, -1).mean(1), parts["argmax"].reshape(units, -1)[
        np.arange(units), strongest
    ]
