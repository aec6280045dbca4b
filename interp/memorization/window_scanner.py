"""How a scan measures windows, keeps the rows, and goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed
from jaxtyping import Int
from torch import nn

from interp.data.corpus_counts import Counts
from interp.data.stream import OtherTextsError
from interp.memorization.same_tokenizer import check_counted_tokens, check_same_tokenizer
from interp.memorization.scan_windows import (
    BatchWindows,
    CorpusWindows,
    Cut,
    Progress,
    Window,
    window_batches,
)
from interp.memorization.shards import Shards, only_writer
from interp.memorization.tally import Keep, Tally
from interp.memorization.teacher_forcing import summary, teacher_force
from interp.progress import track
from interp.sites.sharding import is_fully_sharded
from interp.subject.batch import GIVEN, Batch
from interp.subject.batch_limit import BatchLimit
from interp.subject.fingerprint import fingerprint, identify
from interp.subject.subject import Subject, evaluating

Groups = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class WindowScanner:
    """What is measured of each window, and in which batches.

    Attributes:
        subject: the model.
        cut: how texts are cut into windows.
        prefix: tokens of each window that are given to the model.
        decode_from: windows whose token accuracy is at least this are also decoded.
        batch_size: batch size, in windows.
        groups: which tokens are predicted together; None for one at a time.
        reference: a model that was not trained on the texts; or None.
        counts: counts of the training data; or None.

    Raises:
        ValueError: the reference model or the counts have another tokenizer.
    """

    subject: Subject
    cut: Cut
    prefix: int
    decode_from: float
    batch_size: int
    groups: Groups | None = None
    reference: Subject | None = None
    counts: Counts | None = None

    def __post_init__(self) -> None:
        if self.reference is not None:
            check_same_tokenizer(self.subject, [self.reference], bos=bool(self.cut.bos))
        if self.counts is not None:
            check_counted_tokens(self.subject, self.counts)

    def run(
        self, corpus: CorpusWindows | BatchWindows, folder: str | Path | None, tally: Tally | None
    ) -> Shards:
        """Measures all windows that are not measured yet.

        Args:
            corpus: the windows.
            folder: where the rows are kept; None for memory.
            tally: counts all rows, and says which are kept; None to keep all.

        Raises:
            ValueError: the folder holds a scan of something else, or is being written by another
                process; processes that hold shards of the model are to go on from different
                places; no text of all is as long as one window; or see `scan`.
        """
        parts = identify(self.subject)
        keep = None if tally is None else tally.keep
        about = self._about(parts) | ({} if keep is None else {"keep": str(keep)})
        limit = BatchLimit()
        # The lock comes first: `Shards` reads the folder when it is made and writes when it is
        # left, both while the lock is held.
        with (
            only_writer(folder),
            Shards(folder, about, parts, tally) as shards,
            evaluating(self.subject),
            closing(corpus.read(shards.progress)) as windows,
        ):
            _check_together(self.subject.module, shards.progress)
            try:
                for chunk in track(window_batches(windows, self.batch_size), "scanning"):
                    for part, rows in limit.run(self._measure, chunk):
                        kept = self._described(part, rows, keep)
                        # A window knows how far a scan has come with it: the last one counts.
                        shards.add(rows, part[-1].progress, kept)
            except OtherTextsError as error:
                raise ValueError(
                    f"{folder} holds a scan of other texts: give another folder, or remove it"
                ) from error
            # Another process may have all the texts that are long enough. A scan without a window
            # is not finished: its folder stays free for one with other settings.
            if shards.progress is None and self.cut.share is None:
                raise nothing_to_scan(corpus, self.cut)
            shards.finish(corpus.texts, corpus.skipped, corpus.digest)
        return shards

    def _about(self, parts: dict[str, str]) -> dict[str, Any]:
        """The settings of the scan, as JSON can hold them."""
        about: dict[str, Any] = {
            "model": fingerprint(parts),
            "prefix": self.prefix,
            "length": self.cut.width - self.prefix,
            "stride": self.cut.stride,
            "decode_from": self.decode_from,
            "bos": list(self.cut.bos),
            "reference": None if self.reference is None else self.reference.fingerprint,
            "counts": None if self.counts is None else self.counts.digest,
        }
        if self.cut.share is not None:
            about["share"] = [self.cut.share.index, self.cut.share.of]
        return about

    def _measure(self, part: Sequence[Window]) -> pd.DataFrame:
        """The measures of some windows, each in one row."""
        given = _given(part)
        # The same for all, see `window_batches`.
        bos = part[0].bos
        batch = Batch(
            torch.tensor([[*bos, *window.tokens] for window in part]),
            len(bos) + self.prefix,
            groups=self.groups,
            conditioning={name: torch.tensor(values) for name, values in given.items()},
        )
        columns = {
            "text": [window.text for window in part],
            "start": [window.start for window in part],
            "prefix": self.prefix,
            "length": batch.length - batch.prompt,
        }
        forced = teacher_force(self.subject, batch, self.decode_from)
        frame = pd.DataFrame(columns | summary(forced, batch))
        if self.reference is not None:
            with evaluating(self.reference):
                losses = self.reference.losses(batch)
            frame["log_p_reference"] = -losses.sum(1).double().cpu().numpy()
            frame["log_ratio"] = frame["log_p"] - frame["log_p_reference"]
        if self.counts is not None:
            whole, suffix = _counted(self.subject, part, self.counts, self.prefix)
            frame["count"] = whole
            frame["count_suffix"] = suffix
        return frame

    def _described(
        self, windows: Sequence[Window], rows: pd.DataFrame, keep: Keep | None
    ) -> pd.DataFrame:
        """The rows that are kept, with what their windows are: tokens, conditioning, and how they
        read."""
        kept = range(len(windows)) if keep is None else np.flatnonzero(keep(rows)).tolist()
        part = [windows[row] for row in kept]
        frame = rows.iloc[kept].copy()
        frame["tokens"] = [list(window.tokens) for window in part]
        for name, values in _given(part).items():
            frame[GIVEN + name] = values
        if self.groups is not None:
            frame["groups"] = [self.groups] * len(part)
        if self.subject.tokenizer is not None:
            shown = [shown_parts(self.subject, window, self.prefix) for window in part]
            frame["prompt"] = [prompt for prompt, _ in shown]
            frame["suffix"] = [suffix for _, suffix in shown]
        if self.cut.bos:
            frame["bos"] = [list(window.bos) for window in part]
        return frame


def check_sizes(
    prefix: int, length: int, stride: int | None, batch_size: int, *, shortest_prefix: int = 1
) -> None:
    """Raises ValueError for a number of tokens or windows that is too small.

    Args:
        prefix: tokens given to the model.
        length: tokens of the suffix.
        stride: tokens from one window to the next; None for `length`.
        batch_size: batch size, in windows.
        shortest_prefix: text needs a first token to continue; an image does not.
    """
    smallest = min(length, batch_size, 1 if stride is None else stride)
    if prefix < shortest_prefix or smallest < 1:
        raise ValueError(
            "prefix, length, stride and batch_size must be at least 1; "
            f"got {prefix}, {length}, {stride} and {batch_size}"
        )


def nothing_to_scan(corpus: CorpusWindows | BatchWindows, cut: Cut) -> ValueError:
    """Returns the error that no text is as long as one window."""
    return ValueError(
        f"nothing to scan: {corpus.skipped} of {corpus.texts} texts "
        f"are shorter than {cut.width} tokens"
    )


def _check_together(module: nn.Module, progress: Progress | None) -> None:
    """Refuses to go on with a sharded model where its processes would run other numbers of
    forwards: each would wait for the others forever."""
    if not is_fully_sharded(module):
        return
    own = None if progress is None else (progress.place.number, progress.windows)
    places: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(places, own)
    if len(set(places)) > 1:
        texts = ["the beginning" if place is None else f"text {place[0]}" for place in places]
        raise ValueError(
            f"the model is sharded over {len(places)} processes, and their folders go on from "
            f"{', '.join(texts)}: expected the same in all, since they run it together; copy the "
            "folder of one process to all others, or remove them all"
        )


def _given(part: Sequence[Window]) -> dict[str, list[Any]]:
    """What the model is conditioned on, by name, for each window."""
    names = part[0].given if part else ()
    return {name: [window.given[name] for window in part] for name in names}


def _counted(
    subject: Subject, part: Sequence[Window], counts: Counts, prefix: int
) -> tuple[Int[np.ndarray, " windows"], Int[np.ndarray, " windows"]]:
    """How often windows, and their suffixes, stand in the corpus that was counted."""
    whole = [_as_in_documents(subject, window) for window in part]
    suffixes = [window.tokens[prefix:] for window in part]
    found = np.zeros(len(part), dtype=np.int64)
    # One call of `count` takes windows of one length; those without their start tokens are shorter.
    lengths = np.array(list(map(len, whole)))
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        found[rows] = counts.count([whole[row] for row in rows])
    return found, counts.count(suffixes)


def _as_in_documents(subject: Subject, window: Window) -> list[int]:
    """The tokens of a window as they were counted: start tokens that a text begins with are no part
    of it. Anywhere else the same tokens are, such as the end of one of several joined texts."""
    begins_a_text = window.start == 0 and not window.bos
    tokens = list(window.tokens)
    return subject.without_bos(tokens) if begins_a_text else tokens


def shown_parts(subject: Subject, window: Window, prefix: int) -> tuple[str, str]:
    """Returns prompt and suffix of a window, as they read in its text.

    Args:
        subject: decodes tokens.
        window: the window.
        prefix: how many of its tokens are the prompt.
    """
    # Decoded with its neighbours, on which the space before the first word may depend.
    start = len(window.before)
    stop = start + len(window.tokens)
    in_text = [*window.before, *window.tokens, *window.after]
    cuts = [start, start + prefix, stop]
    _, prompt, suffix, _ = subject.decode_parts(in_text, cuts)
    return prompt, suffix
