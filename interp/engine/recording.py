"""record: activations at sites over a stream of batches, reduced as they pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.engine.reducers import Reducer, reducer
from interp.hooks.hooks import Clock, Value, Visit, tapped
from interp.progress import track
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject, evaluating


@dataclass(frozen=True, eq=False)
class Recording(Mapping[Site, np.ndarray]):
    """What `record` kept: `recording[site]` is the reducer's main array ([width] for means; [head,
    d_head] at `heads`); `parts` has all."""

    parts: Mapping[Site, Mapping[str, np.ndarray]]
    reduce: str

    def __getitem__(self, site: Site | str) -> np.ndarray:
        return next(iter(self.parts[Site.parse(site) if isinstance(site, str) else site].values()))

    def __iter__(self) -> Iterator[Site]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def to_frame(self) -> pd.DataFrame:
        """`site`, `block`, `unit` and one column an output; one row a unit (d_head rows a head),
        for reducers that keep one number each."""
        rows: list[pd.DataFrame] = []
        for site, parts in self.parts.items():
            if any(
                p.shape != self[site].shape or p.ndim > 2 for p in parts.values()
            ) or self.reduce in ("rows", "rows_abs", "top"):
                raise ValueError(
                    f"a recording reduced by {self.reduce!r} has no one number a unit: use recording[site]"
                )
            rows.append(
                pd.DataFrame(
                    {
                        "site": str(site),
                        "block": site.block,
                        "unit": _unit_numbers(self[site].shape),
                    }
                    | {k: v.ravel() for k, v in parts.items()}
                )
            )
        return pd.concat(rows, ignore_index=True)


def _unit_numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(shape[0]), int(np.prod(shape[1:])))


def record(
    subject: Subject,
    source: Batches,
    sites: Sites,
    reduce: str = "mean_abs",
    *,
    folder: str | Path | None = None,
    size: int = 8,
    views: int = 1,
) -> Recording:
    """Records activations over a stream of examples, in memory that grows with units and not with
    tokens.

    Args:
        source: a Batch, the windows of a scan, or any iterable of batches.
        sites: a site, a pattern (`"blocks.*.neurons"`), a point (`"neurons"`), or several.
        reduce: `mean`, `mean_abs`, `moments`, `max`, `top`, `selectivity`, `rows`, `rows_abs`, or
        `raw` (memory-mapped, in `folder`).
        size: rows a forward.
        views: how many consecutive rows are views (augmentations) of one example; what is kept of
        examples is kept of their mean.

    Positions on padding do not count. Under `subject.intervened(...)` what is recorded is what the
    interventions left. Raises SiteError for unknown sites, ValueError for an unknown reducer, an
    empty source, or a batch that cuts an example's views, and HookError if a site never ran.
    """
    return record_parts(
        subject, source, sites, {"": None}, reduce, folder=folder, size=size, views=views
    )[""]


Part = Callable[[Value], Value]


def record_parts(
    subject: Subject,
    source: Batches,
    sites: Sites,
    parts: Mapping[str, Part | None],
    reduce: str = "mean_abs",
    *,
    folder: str | Path | None = None,
    size: int = 8,
    views: int = 1,
) -> dict[str, Recording]:
    """`record` of several parts of the same activations in one pass: each part maps [batch,
    position, width] to what is to be reduced of it, or is None for all positions. Arguments and
    errors are those of `record`; ValueError for parts of padded batches."""
    chosen = subject.anatomy.expand(sites)
    reducers = {
        part: {site: reducer(reduce, site, folder, views) for site in chosen} for part in parts
    }
    seen = False
    with evaluating(subject):
        for batch in track(batches(source, max(size // views, 1) * views), "recording"):
            _record_batch(
                subject, batch, [(parts[part], by_site) for part, by_site in reducers.items()]
            )
            seen = True
    if not seen:
        raise ValueError("nothing to record: the source has no batches")
    return {part: _recording(subject, by_site, reduce) for part, by_site in reducers.items()}


def segments(subject: Subject, *, degenerate: bool = False) -> dict[str, Part | None]:
    """The parts of an image model by name, as `record_parts` takes them; one of all positions
    (None) for models without. Degenerate ones, which are the same for all images of a class, are
    left out unless asked for."""
    found = {
        segment.name: _slice(segment.start, segment.stop)
        for segment in subject.segments
        if degenerate or not segment.degenerate
    }
    return {**found} or {"": None}


def _slice(start: int, stop: int) -> Part:
    return lambda value: value[:, start:stop]


def _recording(subject: Subject, by_site: Mapping[Site, Reducer], reduce: str) -> Recording:
    return Recording(
        {site: _shaped(subject, site, r.result()) for site, r in by_site.items()}, reduce
    )


def _record_batch(
    subject: Subject, batch: Batch, parts: Sequence[tuple[Part | None, Mapping[Site, Reducer]]]
) -> None:
    mask = batch.mask if batch.mask is not None else torch.ones_like(batch.tokens, dtype=torch.bool)
    if batch.mask is not None and any(part is not None for part, _ in parts):
        raise ValueError(
            "parts of padded batches cannot be recorded: give batches of one length, without mask"
        )

    def visit(site: Site) -> Visit:
        def update(value: Value, _: Clock) -> Tensor | None:
            for part, reducers in parts:
                chosen = value if part is None else part(value)
                beside = (
                    part is not None or value.shape[:2] != mask.shape
                )  # other positions than the tokens', of which padding says nothing
                positions = torch.ones(chosen.shape[:2], dtype=torch.bool) if beside else mask
                reducers[site].update(chosen, positions.to(value.device))

        return update

    with tapped(subject, {site: visit(site) for site in parts[0][1]}):
        subject.touch(batch)


def _shaped(subject: Subject, site: Site, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the last axis into heads where the site has them."""
    heads = subject.anatomy.place(site).heads
    return {k: v.reshape(*v.shape[:-1], heads, -1) if heads else v for k, v in parts.items()}
