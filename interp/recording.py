"""record: activations at sites over a stream of batches, reduced as they pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .anatomy import Sites
from .batch import Batch, Batches, batches
from .hooks import Clock, Value, Visit, tapped
from .progress import track
from .reducers import Reducer, reducer
from .sites import Site
from .subject import Subject, evaluating


@dataclass(frozen=True, eq=False)
class Recording(Mapping[Site, np.ndarray]):
    """What `record` kept: `recording[site]` is the reducer's main array ([width] for means; [head, d_head] at `heads`); `parts` has all."""

    parts: Mapping[Site, Mapping[str, np.ndarray]]
    reduce: str

    def __getitem__(self, site: Site | str) -> np.ndarray:
        return next(iter(self.parts[Site.parse(site) if isinstance(site, str) else site].values()))

    def __iter__(self) -> Iterator[Site]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def to_frame(self) -> pd.DataFrame:
        """`site`, `block`, `unit` and one column an output; one row a unit (d_head rows a head), for reducers that keep one number each."""
        rows: list[pd.DataFrame] = []
        for site, parts in self.parts.items():
            if any(p.shape != self[site].shape or p.ndim > 2 for p in parts.values()) or self.reduce in ("rows", "rows_abs", "top"):
                raise ValueError(f"a recording reduced by {self.reduce!r} has no one number a unit: use recording[site]")
            rows.append(
                pd.DataFrame(
                    {"site": str(site), "block": site.block, "unit": _unit_numbers(self[site].shape)}
                    | {k: v.ravel() for k, v in parts.items()}
                )
            )
        return pd.concat(rows, ignore_index=True)


def _unit_numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(shape[0]), int(np.prod(shape[1:])))


def record(
    subject: Subject, source: Batches, sites: Sites, reduce: str = "mean_abs", *, folder: str | Path | None = None, size: int = 8
) -> Recording:
    """Records activations over a stream of examples, in memory that grows with units and not with tokens.

    Args:
        source: a Batch, the windows of a scan, or any iterable of batches.
        sites: a site, a pattern (`"blocks.*.neurons"`), a point (`"neurons"`), or several.
        reduce: `mean`, `mean_abs`, `moments`, `max`, `top`, `selectivity`, `rows`, `rows_abs`, or `raw` (memory-mapped, in `folder`).
        size: rows a forward.

    Positions on padding do not count. Under `subject.intervened(...)` what is recorded is what the interventions left.
    Raises SiteError for unknown sites, ValueError for an unknown reducer or an empty source, HookError if a site never ran.
    """
    chosen = subject.anatomy.expand(sites)
    reducers = {site: reducer(reduce, site, folder) for site in chosen}
    seen = False
    with evaluating(subject):
        for batch in track(batches(source, size), "recording"):
            _record_batch(subject, batch, reducers)
            seen = True
    if not seen:
        raise ValueError("nothing to record: the source has no batches")
    return Recording({site: _shaped(subject, site, r.result()) for site, r in reducers.items()}, reduce)


def _record_batch(subject: Subject, batch: Batch, reducers: Mapping[Site, Reducer]) -> None:
    mask = batch.mask if batch.mask is not None else torch.ones_like(batch.tokens, dtype=torch.bool)

    def visit(into: Reducer) -> Visit:
        def update(value: Value, _: Clock) -> Tensor | None:
            beside = value.shape[:2] != mask.shape  # a stack over something else than the tokens, whose padding says nothing of it
            positions = torch.ones(value.shape[:2], dtype=torch.bool) if beside else mask
            into.update(value, positions.to(value.device))

        return update

    with tapped(subject, {site: visit(into) for site, into in reducers.items()}):
        subject.touch(batch)


def _shaped(subject: Subject, site: Site, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the last axis into heads where the site has them."""
    heads = subject.anatomy.place(site).heads
    return {k: v.reshape(*v.shape[:-1], heads, -1) if heads else v for k, v in parts.items()}
