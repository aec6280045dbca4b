"""UnitMem: how much more a unit responds to one example than to the others."""

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
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batches, batches
from interp.subject.subject import Subject

_DEAD = 1e-8
Collapse = Literal["segments", "max", "macro", "tokens"]

# each unit's UnitMem, and the number of the example of its maximum
Selective = tuple[Float[np.ndarray, " units"], Int[np.ndarray, " units"]]


def _each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    batch_size: int = 8,
    views: int = 1,
    collapse: Collapse = "segments",
) -> Scores:
    """[memorized examples, units]: each unit's UnitMem in the row of the example that it responds
    most to, and 0 in all others; 0 everywhere if that is an example of the reference. The `views`
    windows of one example make one row."""
    found, count = _over_both(subject, memorized, reference, sites, batch_size, views, collapse)
    numbers = np.arange(count)[:, None]
    scores: dict[Site, np.ndarray] = {}
    for site, (value, example) in found.items():
        is_example = numbers == example  # [memorized windows, units]
        scores[site] = np.where(is_example, value, 0.0)
    return scores


@method("unitmem", each=_each)
def unitmem_of_memorized(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    batch_size: int = 8,
    views: int = 1,
    collapse: Collapse = "segments",
) -> Scores:
    """Scores a unit by its UnitMem over memorized and reference windows together.

    A unit that responds most to a reference window scores 0. `localize_each` gives a unit's score
    to the window that it responds most to, and 0 to the others; with `views`, it returns one entry
    per example and not per window.

    Args:
        subject, memorized, reference, sites: see `method`.
        batch_size, views, collapse: as for `unitmem`.

    Example:
        >>> scores = interp.localize(subject, memorized, control, method="unitmem")
        >>> values = scores["blocks.0.neurons"]
        >>> bool((values >= 0).all() and (values <= 1).all())
        True
    """
    found, count = _over_both(subject, memorized, reference, sites, batch_size, views, collapse)
    scores: dict[Site, np.ndarray] = {}
    for site, (value, example) in found.items():
        scores[site] = np.where(example < count, value, 0.0)
    return scores


def _over_both(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    batch_size: int,
    views: int,
    collapse: Collapse,
) -> tuple[dict[Site, Selective], int]:
    """UnitMem and example of every unit over both sets, and how many examples are memorized."""
    # An example's views must stay in one batch: the batch size is rounded to whole examples.
    rows = max(batch_size // views, 1) * views
    ours = list(batches(memorized, rows))
    theirs = [] if reference is None else batches(reference, rows)
    both = chain(ours, theirs)
    found = unitmem(subject, both, sites, batch_size, views=views, collapse=collapse)
    memorized_examples = sum(map(len, ours)) // views
    return found, memorized_examples


def unitmem(
    subject: Subject,
    windows: Batches,
    sites: Sites,
    batch_size: int = 8,
    *,
    views: int = 1,
    collapse: Collapse = "segments",
) -> dict[Site, Selective]:
    """Returns each unit's UnitMem, (mu_max - mu_rest) / (mu_max + mu_rest), and the example of its
    maximum.

    mu is the mean of |activation| over the positions of one example, mu_max its maximum over
    examples, and mu_rest its mean over the other examples. Wang et al. 2024 (arXiv 2409.19069),
    equations 5-8, with the absolute value that negative activations need. A unit that never fires
    scores 0. Memory does not grow with the number of examples.

    Args:
        subject: the model.
        windows: the examples.
        sites: the sites whose units are scored.
        batch_size: batch size, in windows.
        views: how many consecutive windows are augmentations of one example, over which mu is
            averaged (the papers use 10).
        collapse: how the segments of an image model become one score. `segments`: the mean of the
            UnitMem of each; `max`: the largest of them; `macro`: UnitMem of the mean over segments
            of mu; `tokens`: UnitMem with mu over all positions, where long segments weigh more.
            Segments in which all images of a class are the same are left out. A text is one
            segment, for which all four are the same.

    Returns:
        {site: (score in [0, 1], number of the example)}, each [units]. Where segments are scored
        separately, the example is that of the segment with the largest UnitMem.

    Raises:
        ValueError: for an unknown `collapse`, or fewer than 2 examples.

    Example:
        >>> site = interp.Site("neurons", 0)
        >>> score, example = unitmem(subject, batch, (site,))[site]
        >>> score.shape, bool((score >= 0).all() and (score <= 1).all()), bool(example.max() < 12)
        ((48,), True, True)
    """
    known = get_args(Collapse)
    if collapse not in known:
        raise ValueError(
            f"collapse={collapse!r}: expected one of {', '.join(known)}; "
            f"nearest: {closest(collapse, known)}"
        )
    parts = segments(subject)
    has_segments = None not in parts.values()
    if has_segments and collapse == "macro":
        parts = {"": _mean_by_segment(parts)}
    elif has_segments and collapse == "tokens":
        parts = {"": _all_positions(parts)}

    chosen = subject.anatomy.expand(sites)
    recordings = record_parts(
        subject, windows, chosen, parts, "selectivity", batch_size=batch_size, views=views
    )
    result: dict[Site, Selective] = {}
    for site in chosen:
        by_segment = [_selectivity(subject, each, site) for each in recordings.values()]
        result[site] = _collapse_segments(by_segment, collapse)
    return result


def unitmem_by_segment(
    subject: Subject,
    windows: Batches,
    sites: Sites,
    batch_size: int = 8,
    *,
    views: int = 1,
    degenerate: bool = True,
) -> pd.DataFrame:
    """Returns the UnitMem of every unit in every segment of an image model.

    Args:
        subject, windows, sites, batch_size, views: as for `unitmem`.
        degenerate: whether to include segments in which all images of a class are the same.

    Returns:
        A frame with one row per `segment`, `site`, `block` and `unit`: its `score`, and the
        `example` of its maximum.

    Raises:
        ValueError: for fewer than 2 examples.

    Example:
        >>> by_segment = unitmem_by_segment(subject, batch, (interp.Site("neurons", 0),))
        >>> len(by_segment), by_segment["segment"].unique().tolist()  # a text is one segment
        (48, [''])
    """
    parts = segments(subject, degenerate=degenerate)
    chosen = subject.anatomy.expand(sites)
    recordings = record_parts(
        subject, windows, chosen, parts, "selectivity", batch_size=batch_size, views=views
    )
    frames: list[pd.DataFrame] = []
    for segment, recording in recordings.items():
        for site in chosen:
            score, example = _selectivity(subject, recording, site)
            columns = {
                "segment": segment,
                "site": str(site),
                "block": site.block,
                "unit": np.arange(len(score)),
                "score": score,
                "example": example,
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _mean_by_segment(parts: Mapping[str, Part | None]) -> Part:
    """Maps activations to [batch, segments, width]: the mean of |activation| in each segment, so
    that the mean over "positions" that follows weighs all segments equally."""
    present = [part for part in parts.values() if part is not None]

    def means(value: Tensor) -> Tensor:
        by_segment = [segment(value).abs().mean(1) for segment in present]
        return torch.stack(by_segment, dim=1)

    return means


def _all_positions(parts: Mapping[str, Part | None]) -> Part:
    """Maps activations to those of all segments, [batch, positions, width]."""
    present = [part for part in parts.values() if part is not None]

    def joined(value: Tensor) -> Tensor:
        by_segment = [segment(value) for segment in present]
        return torch.cat(by_segment, dim=1)

    return joined


def _collapse_segments(by_segment: list[Selective], collapse: Collapse) -> Selective:
    scores = np.stack([score for score, _ in by_segment])  # [segments, units]
    examples = np.stack([example for _, example in by_segment])  # [segments, units]
    strongest = scores.argmax(0)  # the segment of each unit's largest score
    units = np.arange(scores.shape[1])
    score = scores[strongest, units] if collapse == "max" else scores.mean(0)
    return score, examples[strongest, units]


def _selectivity(subject: Subject, recording: Recording, site: Site) -> Selective:
    """UnitMem and example of each unit; for a head the mean over its columns, and the example of
    its strongest column."""
    parts = recording.parts[site]
    largest = parts["max"]
    count = parts["count"]
    # The number of examples, which is the same in all columns.
    if count.flat[0] < 2:
        raise ValueError(f"UnitMem compares examples: expected at least 2, got {count.flat[0]}")
    others = parts["sum"] - largest
    rest = others / (count - 1)

    # The sum is NaN where an activation is NaN. It must not look like a dead unit, which scores 0:
    # it stays NaN, and `localize` refuses it.
    dead = (largest < _DEAD) & np.isfinite(parts["sum"])
    # UnitMem is (mu_max - mu_rest) / (mu_max + mu_rest).
    difference = largest - rest
    total = np.maximum(largest + rest, _DEAD)  # divided by
    ratio = difference / total
    selectivity = np.where(dead, 0.0, ratio)

    # From columns to units: a neuron is one column, a head is as many as it is wide.
    units = subject.anatomy.place(site).units
    largest_by_unit = largest.reshape(units, -1)
    strongest_column = largest_by_unit.argmax(1)
    examples = parts["argmax"].reshape(units, -1)
    example = examples[np.arange(units), strongest_column]
    score = selectivity.reshape(units, -1).mean(1)
    return score, example
