"""record: activations at sites over a stream of batches, reduced while they pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.engine.reducers import Reducer, reducer
from interp.hooks.clock import Clock
from interp.hooks.hooks import Value, Visit, tapped
from interp.progress import track
from interp.sites.anatomy import Anatomy, Sites
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject, evaluating
from interp.subject.text_rows import Text, several, text_batches


@dataclass(frozen=True, eq=False)
class Recording(Mapping[Site, np.ndarray]):
    """What `record` kept, by site.

    `recording[site]` is the main array of the reducer: [width] for means, and [head, d_head] for
    means at `heads`.

    Attributes:
        parts: for each site all arrays of the reducer, by name, the main one first.
        reduce: name of the reducer.
        reducers: what the arrays were made of, at each site, for `merge`.
        heads: number of heads at each site, None where there are none.

    Example:
        >>> recording = interp.record(subject, batch, "neurons", reduce="moments")
        >>> recording["blocks.0.neurons"].shape
        (48,)
        >>> list(recording.parts[interp.Site.parse("blocks.0.neurons")])
        ['mean', 'variance', 'count']
    """

    parts: Mapping[Site, Mapping[str, np.ndarray]]
    reduce: str
    reducers: Mapping[Site, Reducer] = field(repr=False)
    heads: Mapping[Site, int | None] = field(repr=False)

    def __getitem__(self, site: Site | str) -> np.ndarray:
        if isinstance(site, str):
            site = Site.parse(site)
        main, *_ = self.parts[site].values()
        return main

    def __iter__(self) -> Iterator[Site]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def merge(self, *others: Recording) -> Recording:
        """Returns one recording of what this one and others were made of, up to rounding the same
        as if it had been made at once.

        Recordings can be sent from one process to another. That all of them are of one model, under
        the same interventions, is up to the caller.

        Args:
            others: of the same sites, with the same `reduce` and `views`. Where examples are
                numbered (`top`, `selectivity`) or listed (`rows`), those of each recording come
                after those of the recordings before it.

        Raises:
            ValueError: recordings of other sites, or with another `reduce`, number of views or
                width; or raw ones, which are files.

        Example:
            >>> halves = [interp.record(subject, part, "neurons") for part in batch.split(6)]
            >>> merged = halves[0].merge(*halves[1:])
            >>> whole = interp.record(subject, batch, "neurons")
            >>> np.allclose(merged["blocks.1.neurons"], whole["blocks.1.neurons"])
            True
        """
        merged = dict(self.reducers)
        for other in others:
            if other.reduce != self.reduce:
                raise ValueError(
                    f"recordings by {self.reduce!r} and by {other.reduce!r}: expected one `reduce`"
                )
            if other.reducers.keys() != merged.keys():
                differing = sorted(map(str, other.reducers.keys() ^ merged.keys()))
                raise ValueError(
                    f"recordings of different sites: {', '.join(differing[:4])} only in one of "
                    "them; expected the same sites"
                )
            merged = {site: mine.merge(other.reducers[site]) for site, mine in merged.items()}

        return _recording(self.heads, merged, self.reduce)

    def to_frame(self) -> pd.DataFrame:
        """Returns a table: `site`, `block`, `unit` and one column per array.

        One row per unit; at `heads` one row per coordinate of a head.

        Raises:
            ValueError: the reducer keeps more than one number per unit (rows, raw, top).

        Example:
            >>> recording = interp.record(subject, batch, "neurons", reduce="mean_abs")
            >>> list(recording.to_frame().columns), len(recording.to_frame())
            (['site', 'block', 'unit', 'mean_abs'], 96)
        """
        tables: list[pd.DataFrame] = []
        for site, arrays in self.parts.items():
            main = self[site]
            shape = main.shape
            same_shape = all(array.shape == shape for array in arrays.values())
            # By name too: [examples, width] has two axes, as [head, d_head] has.
            if not same_shape or main.ndim > 2 or self.reduce in ("rows", "rows_abs", "top"):
                raise ValueError(
                    f"a recording reduced by {self.reduce!r} does not hold one number per unit: "
                    "use recording[site]"
                )
            # d_head at heads; else 1, the product of no numbers.
            coordinates_per_unit = int(np.prod(shape[1:]))
            units = np.repeat(np.arange(shape[0]), coordinates_per_unit)
            columns = {name: array.ravel() for name, array in arrays.items()}
            about = {"site": str(site), "block": site.block, "unit": units}
            tables.append(pd.DataFrame({**about, **columns}))
        return pd.concat(tables, ignore_index=True)


def record(
    subject: Subject,
    source: Batches | Iterable[Text],
    sites: Sites,
    reduce: str = "mean_abs",
    *,
    folder: str | Path | None = None,
    batch_size: int = 8,
    views: int = 1,
    length: int | None = None,
    bos: bool = True,
) -> Recording:
    """Records activations over a stream of examples.

    Only what the reducer keeps stays in memory, and not the activation of every token. Positions on
    padding do not count. Inside `subject.intervened(...)` the activations are recorded as the
    interventions leave them.

    Args:
        subject: the model under study.
        source: a Batch, the windows of a scan, or any iterable of batches; or texts, read one batch
            at a time: strings or sequences of token ids, or rows with a `text`, such as those of a
            data set of `datasets`.
        sites: a site, a pattern (`"blocks.*.neurons"`), a point (`"neurons"`), or several.
        reduce: what to keep: `mean`, `mean_abs`, `moments`, `max`, `top`, `selectivity`, `rows`,
            `rows_abs`, or `raw` (memory-mapped, in `folder`).
        folder: where `raw` writes its files.
        batch_size: largest number of rows in one forward.
        views: how many consecutive rows are views (augmentations) of one example. Reducers that
            look at whole examples (`top`, `selectivity`, `rows`, `rows_abs`) take the mean over the
            views of each; for the others every view counts by itself.
        length: for texts, how many tokens to read of each; by default all.
        bos: for texts, whether they are read behind the start tokens of the tokenizer, whose
            positions then count. Batches are read as they are.

    Returns:
        The arrays of each site.

    Raises:
        SiteError: a site is unknown.
        ValueError: an unknown reducer, an empty source, a row that is padding alone, a batch with
            only some of an example's views, a text that cannot be read or is empty, or a `length`
            for what is not texts.
        HookError: a site that no forward reached.

    Example:
        >>> means = interp.record(subject, memorized, "blocks.*.neurons", reduce="mean_abs")
        >>> [str(site) for site in means]
        ['blocks.0.neurons', 'blocks.1.neurons']
        >>> means["blocks.1.neurons"].shape
        (48,)
        >>> interp.record(subject, memorized, "heads")["blocks.1.heads"].shape
        (4, 8)
    """
    recordings = record_parts(
        subject,
        source,
        sites,
        {"": None},
        reduce,
        folder=folder,
        batch_size=batch_size,
        views=views,
        length=length,
        bos=bos,
    )
    return recordings[""]


def reduce_values(
    anatomy: Anatomy,
    values: Iterable[tuple[Batch, Mapping[Site, Value]]],
    sites: Sites,
    reduce: str = "mean_abs",
    *,
    folder: str | Path | None = None,
    views: int = 1,
) -> Recording:
    """Returns the recording of activations that were made elsewhere, such as on a server.

    Args:
        anatomy: of the model.
        values: batches, each with the activations at all of the sites, [batch, position, width].
        sites, reduce, folder, views: see `record`.

    Raises:
        ValueError: see `record`.

    Example:
        >>> from interp.engine.recording import reduce_values
        >>> embed = interp.Site.parse("embed")
        >>> value = torch.ones(len(batch), batch.length, 32)
        >>> reduce_values(subject.anatomy, [(batch, {embed: value})], "embed")["embed"].mean()
        np.float64(1.0)
    """
    chosen = anatomy.expand(sites)
    by_site = {site: reducer(reduce, site, folder, views) for site in chosen}
    nothing_seen = True
    for batch, of_batch in values:
        nothing_seen = False
        mask = _mask(batch)
        for site, site_reducer in by_site.items():
            value = of_batch[site]
            site_reducer.update(value, _counted(value, mask))
            site_reducer.end_batch()
    if nothing_seen:
        raise ValueError("nothing to record: the source has no batches")
    heads = {site: anatomy.place(site).heads for site in chosen}
    return _recording(heads, by_site, reduce)


Part = Callable[[Value], Value]


def record_parts(
    subject: Subject,
    source: Batches | Iterable[Text],
    sites: Sites,
    parts: Mapping[str, Part | None],
    reduce: str = "mean_abs",
    *,
    folder: str | Path | None = None,
    batch_size: int = 8,
    views: int = 1,
    length: int | None = None,
    bos: bool = True,
) -> dict[str, Recording]:
    """Records several parts of the same examples, such as prefix and suffix, in one pass.

    Other arguments and errors as for `record`.

    Args:
        parts: for each name, a function from an activation [batch, position, width] to the
            positions of it that are reduced; None for all positions.
        folder: where `raw` writes its files, in a folder per part that has its name.

    Returns:
        One recording per part, by name.

    Raises:
        ValueError: a padded batch, together with a part that is not all positions.

    Example:
        >>> from interp.engine.recording import record_parts
        >>> parts = {"prefix": lambda value: value[:, :8], "suffix": lambda value: value[:, 8:]}
        >>> recordings = record_parts(subject, memorized, "neurons", parts)
        >>> list(recordings)
        ['prefix', 'suffix']
    """
    chosen = subject.anatomy.expand(sites)
    reducers: dict[str, dict[Site, Reducer]] = {}
    for name in parts:
        # Raw files are named after their sites: each part has a folder of its own.
        own_folder = None if folder is None else Path(folder) / name
        reducers[name] = {site: reducer(reduce, site, own_folder, views) for site in chosen}
    to_record = [(parts[name], by_site) for name, by_site in reducers.items()]

    # All views of an example must be in one batch: the batch size is rounded to whole examples.
    examples_per_batch = max(batch_size // views, 1)
    rows = examples_per_batch * views
    stream = _batches(subject, source, rows, length=length, bos=bos)
    limit = BatchLimit(multiple=views)
    nothing_seen = True
    with evaluating(subject):
        for batch in track(stream, "recording"):
            for _ in limit.run(lambda part: _record_batch(subject, part, to_record), batch):
                nothing_seen = False
    if nothing_seen:
        raise ValueError("nothing to record: the source has no batches")
    heads = {site: subject.anatomy.place(site).heads for site in chosen}
    return {name: _recording(heads, by_site, reduce) for name, by_site in reducers.items()}


def _batches(
    subject: Subject,
    source: Batches | Iterable[Text],
    rows: int,
    *,
    length: int | None,
    bos: bool,
) -> Iterator[Batch]:
    """The examples of any source, in batches of at most `rows`."""
    examples: Any = source
    if not isinstance(source, Batch | pd.DataFrame):
        stream = iter(several(source))
        # A stream can be read once: its first example is looked at and put back in front.
        beginning = list(islice(stream, 1))
        examples = chain(beginning, stream)
        if beginning and not isinstance(beginning[0], Batch):
            return text_batches(subject, examples, rows, length=length, bos=bos)
    if length is not None:
        raise ValueError(f"length={length} is for texts: expected batches of the tokens to be read")
    return batches(examples, rows)


def segments(subject: Subject, *, degenerate: bool = False) -> dict[str, Part | None]:
    """Returns the parts of an example by name, as `record_parts` takes them.

    Args:
        subject: the model under study.
        degenerate: whether to include the parts that are the same for all examples of a class.

    Returns:
        One part per scale or row of an image model; one part of all positions, named "", for models
        whose examples have no parts.

    Example:
        >>> from interp.engine.recording import segments
        >>> segments(subject)
        {'': None}
    """
    found: dict[str, Part | None] = {}
    for segment in subject.segments:
        if degenerate or not segment.degenerate:
            found[segment.name] = _positions(segment.start, segment.stop)
    return found or {"": None}


def _positions(start: int, stop: int) -> Part:
    return lambda value: value[:, start:stop]


def _recording(
    heads: Mapping[Site, int | None], by_site: Mapping[Site, Reducer], reduce: str
) -> Recording:
    arrays: dict[Site, dict[str, np.ndarray]] = {}
    for site, site_reducer in by_site.items():
        # They are kept with the recording, and another process may have to read them for `merge`.
        site_reducer.to_cpu()
        arrays[site] = _split_heads(heads[site], site_reducer.result())
    return Recording(arrays, reduce, by_site, heads)


def _record_batch(
    subject: Subject, batch: Batch, parts: Sequence[tuple[Part | None, Mapping[Site, Reducer]]]
) -> None:
    if batch.mask is not None and any(part is not None for part, _ in parts):
        raise ValueError(
            "parts of padded batches cannot be recorded: give batches of one length, without mask"
        )
    mask = _mask(batch).to(subject.device)  # once for all sites

    def update_at(site: Site) -> Visit:
        def update(value: Value, _: Clock) -> Tensor | None:
            for part, reducers in parts:
                recorded = value if part is None else part(value)
                counted = None if part is not None else mask
                reducers[site].update(recorded, _counted(recorded, counted))

        return update

    _, by_site = parts[0]  # all parts have the same sites
    visits = {site: update_at(site) for site in by_site}
    every = [reducer for _, reducers in parts for reducer in reducers.values()]
    marks = [reducer.mark() for reducer in every]
    try:
        with tapped(subject, visits):
            subject.touch(batch)
    except torch.OutOfMemoryError:
        # The sites before the failure have taken in this batch, whose rows will come again.
        for reducer, mark in zip(every, marks, strict=True):
            reducer.rewind(mark)
        raise
    for reducer in every:
        reducer.end_batch()


def _mask(batch: Batch) -> Bool[Tensor, "batch position"]:
    """Which positions of a batch count."""
    mask = batch.mask
    if mask is None:
        mask = torch.ones_like(batch.tokens, dtype=torch.bool)
    without_tokens = int((~mask.any(1)).sum())
    if without_tokens:
        raise ValueError(
            f"{without_tokens} of {len(mask)} rows are padding alone: "
            "expected at least one token in each"
        )
    return mask


def _counted(value: Value, mask: Tensor | None) -> Bool[Tensor, "batch position"]:
    """Which positions of an activation count."""
    # A part, or a model whose blocks see other positions than the tokens': the mask of the tokens
    # does not describe these positions, and all of them count.
    if mask is None or value.shape[:2] != mask.shape:
        return torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
    return mask.to(value.device)


def _split_heads(heads: int | None, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the last axis into [head, d_head] where a site has heads."""
    if not heads:
        return dict(arrays)
    split: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        *leading, _ = array.shape
        split[name] = array.reshape(*leading, heads, -1)
    return split
