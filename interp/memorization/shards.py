"""Shards: the finished parts of a long scan, written to disk as they come, so that an interrupted
scan loses nothing that was measured; and `merge`, which joins the scans of several processes."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from interp.files import replaced, writable, write_json
from interp.memorization.scan_windows import Progress
from interp.memorization.tally import Tally

_MANIFEST = "scan.json"
_PROGRESS = "progress.json"
_FINISHED = "finished.json"
_LOCK = ".lock"
# When so many windows are measured, those that are kept are written to a file: few enough to
# lose little, enough for few files.
_WINDOWS = 512
# Of the rows of a scan, whatever its options.
_COLUMNS = {
    "text": "int64",
    "start": "int64",
    "prefix": "int64",
    "length": "int64",
    "exact": "bool",
    "matched": "int64",
    "run": "int64",
    "accuracy": "float64",
    "log_p": "float64",
    "similarity": "float64",
    "tokens": "object",
}


class Shards:
    """Collects the rows of a scan; with a folder, keeps them there and goes on from those in it.

    A context manager: leaving the block, also by an exception, writes what is still in memory.

    Args:
        folder: where the rows are kept; None for memory only.
        about: the settings of the scan, as JSON can hold them.
        model: what the model is made of, by name: it says in an error which part is another.
        tally: what is counted of all rows, and kept with them; None for nothing.

    Attributes:
        about: the settings of the scan.
        progress: how far the scan has come; None if nothing is measured.

    Raises:
        ValueError: if the folder holds a scan with other settings, or rows without settings.

    Example:
        >>> import tempfile
        >>> from interp.data.stream import Place
        >>> from interp.memorization.scan_windows import Progress
        >>> from interp.memorization.shards import Shards
        >>> progress = Progress(Place(3, None, "", ""), windows=1, texts=3, skipped=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Shards(folder, {"prefix": 8}) as shards:
        ...         shards.add(frame[:10], progress, kept=frame[:10])
        ...     again = Shards(folder, {"prefix": 8})
        ...     len(again), again.progress == progress
        (10, True)
    """

    def __init__(
        self,
        folder: str | Path | None,
        about: Mapping[str, Any],
        model: Mapping[str, Any] | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.about = dict(about)
        self._folder = None if folder is None else writable(folder)
        self._manifest = self.about | ({} if model is None else {"model parts": model})
        self._in_memory: list[pd.DataFrame] = []
        self._state = _State(tally=tally)
        if self._folder is not None:
            self._open(self._folder)

    @property
    def progress(self) -> Progress | None:
        return self._state.progress

    def _open(self, folder: Path) -> None:
        manifest = folder / _MANIFEST
        found = sorted(folder.glob("shard-*.parquet"))
        if manifest.exists():
            before: dict[str, Any] = json.loads(manifest.read_text())
            _check_same(folder, before, self._manifest)
        elif found:
            raise ValueError(
                f"{folder} holds {len(found)} shards but no {_MANIFEST}, which says what they are "
                "of: give another folder, or remove it"
            )
        # A finished share without a window has settings and no progress.
        if (folder / _PROGRESS).exists():
            self._state = _State.read(folder, self._state.tally)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def __len__(self) -> int:
        return self._state.written + sum(map(len, self._state.fresh))

    def add(self, windows: pd.DataFrame, progress: Progress, kept: pd.DataFrame) -> None:
        """Adds rows, and writes a file once enough was measured.

        Args:
            windows: what was measured, one window in a row.
            progress: how far the scan has come with them.
            kept: those rows of them that are kept, with what is said of each.
        """
        state = self._state
        tally = state.tally
        # At once, so that an interruption finds either all of it or nothing.
        self._state = state._replace(
            progress=progress,
            tally=None if tally is None else tally.plus(windows),
            fresh=(*state.fresh, kept) if len(kept) else state.fresh,
            measured=state.measured + len(windows),
        )
        if self._state.measured >= _WINDOWS:
            self._write()

    def finish(self, texts: int, skipped: int, corpus: str) -> None:
        """Writes what is still in memory, and that nothing will follow.

        Args:
            texts: how many texts were read.
            skipped: how many of them are shorter than one window.
            corpus: a digest of the corpus.
        """
        tally = self._state.tally
        if tally is not None:
            self._state = self._state._replace(tally=tally.ended())
        self._write()
        if self._folder is not None:
            # A share may have no window at all.
            write_json(self._folder / _MANIFEST, self._manifest)
            found = {"texts": texts, "skipped": skipped, "corpus": corpus}
            write_json(self._folder / _FINISHED, found)

    def frame(self) -> pd.DataFrame:
        """Returns all rows that are kept as one frame."""
        written = self._in_memory
        if self._folder is not None:
            written = list(each_table(self._folder, "shard", self._state.files))
        rows = _concatenated([*written, *self._state.fresh])
        return rows if len(rows) else no_rows()

    def _write(self) -> None:
        state = self._state
        documents = None if state.tally is None else state.tally.documents()
        if not state.measured and (documents is None or documents.empty):
            return
        rows = _concatenated(state.fresh)
        after = state._replace(
            files=state.files + 1,
            written=state.written + len(rows),
            tally=None if state.tally is None else state.tally.without_documents(),
            fresh=(),
            measured=0,
        )
        if self._folder is None:
            self._in_memory.append(rows)
        else:
            # The settings are written with the first rows, and not when the folder is opened: a
            # scan that is refused before it measures anything leaves the folder free for another.
            write_json(self._folder / _MANIFEST, self._manifest)
            # It may have been finished before, over a corpus that has grown since.
            (self._folder / _FINISHED).unlink(missing_ok=True)
            _write_table(self._folder, "shard", state.files, rows)
            if documents is not None:
                _write_table(self._folder, "documents", state.files, documents)
            # Files count once this says so. What a process that was killed has left behind is
            # written over by the next.
            after.write(self._folder)
        self._state = after


class _State(NamedTuple):
    """What a scan has, as one value.

    Attributes:
        files: how many times rows were written.
        written: how many rows were.
        progress: how far the scan has come; None if nothing is measured.
        tally: what is counted; None for nothing.
        fresh: rows that are not written yet.
        measured: how many windows were measured for them.
    """

    files: int = 0
    written: int = 0
    progress: Progress | None = None
    tally: Tally | None = None
    fresh: tuple[pd.DataFrame, ...] = ()
    measured: int = 0

    def write(self, folder: Path) -> None:
        assert self.progress is not None  # rows come with it
        written: dict[str, Any] = {
            "files": self.files,
            "rows": self.written,
            "progress": asdict(self.progress),
        }
        if self.tally is not None:
            written["tally"] = self.tally.to_dict()
        write_json(folder / _PROGRESS, written)

    @classmethod
    def read(cls, folder: Path, tally: Tally | None) -> _State:
        written = json.loads((folder / _PROGRESS).read_text())
        return cls(
            files=written["files"],
            written=written["rows"],
            progress=Progress.from_dict(written["progress"]),
            tally=None if tally is None else tally.with_counts(written["tally"]),
        )


def _write_table(folder: Path, kind: str, number: int, table: pd.DataFrame) -> None:
    file = _file(folder, kind, number)
    if table.empty:
        # A process that was killed may have left one.
        file.unlink(missing_ok=True)
        return
    with replaced(file) as temporary:
        table.to_parquet(temporary)


def _file(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:06d}.parquet"


def each_table(folder: Path, kind: str, files: int) -> Iterator[pd.DataFrame]:
    """Yields the tables of a scan, in the order in which they were written.

    Args:
        folder: the folder of the scan.
        kind: "shard" for rows, "documents" for counts per document.
        files: how many times they were written; there may be more files, of a process that was
            killed before it said so.
    """
    for number in range(files):
        file = _file(folder, kind, number)
        # A number without rows has no file.
        if file.exists():
            yield _read(file)


def no_rows() -> pd.DataFrame:
    """Returns the rows of a scan that has none, so that they have columns like those of another.

    Example:
        >>> from interp.memorization.shards import no_rows
        >>> int(no_rows()["exact"].sum())
        0
    """
    return pd.DataFrame(columns=list(_COLUMNS)).astype(_COLUMNS)


def _concatenated(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


@contextmanager
def only_writer(folder: str | Path | None) -> Generator[None]:
    """Makes sure that one process alone writes to the folder of a scan, and removes what one that
    was killed had not finished writing. The lock is the operating system's: it goes with the
    process, however that ends.

    Args:
        folder: the folder; None for none, which needs no lock.

    Raises:
        ValueError: another process writes to it.
    """
    if folder is None:
        yield
        return
    lock = FileLock(writable(folder) / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is being written by another scan: wait for it, or give another folder"
        ) from None
    try:
        for unfinished in Path(folder).glob(".*.part"):
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def merge(folders: Iterable[str | Path], folder: str | Path | None = None) -> pd.DataFrame:
    """Joins the scans of all shares of a corpus.

    Args:
        folders: those that `interp.scan(..., share=, folder=)` wrote, in any order.
        folder: where to write the joined scan, from which `interp.scan(folder=)` without a share
            goes on, as `interp localize` does; by default it is not written.

    Returns:
        The rows of one scan over the whole corpus, in its order; up to rounding the same, since
        windows meet others in a batch. `frame.attrs` records what that of one scan would.

    Raises:
        ValueError: no folder; one that holds no share, or one that is not finished; a share that is
            missing or there twice; shares of other models, settings or texts; no window in any of
            them; or `folder` holds another scan.

    Example:
        >>> import tempfile
        >>> from interp.data.tokenized import Share
        >>> from interp.memorization.shards import merge
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folders = [f"{root}/{index}" for index in range(2)]
        ...     for index, folder in enumerate(folders):
        ...         share = Share(index, of=2)
        ...         _ = interp.scan(subject, texts, prefix=8, length=8, folder=folder, share=share)
        ...     merged = merge(folders)
        >>> whole = interp.scan(subject, texts, prefix=8, length=8)
        >>> bool((merged["exact"] == whole["exact"]).all())
        True
    """
    found = shares_of(folders)
    about = found[0].about
    if "keep" in about:
        raise ValueError(
            f"{found[0].folder} keeps only the rows with {about['keep']}: read the shares by "
            "interp.memorization.corpus_scan.CorpusScan"
        )
    shards = [shard for share in found for shard in share.tables("shard")]
    if not shards:
        raise ValueError(f"nothing was scanned: no text of {len(found)} shares has a whole window")
    frame = pd.concat(shards, ignore_index=True)
    frame = frame.sort_values(["text", "start"], kind="stable", ignore_index=True)
    read = {name: sum(each.end[name] for each in found) for name in ("texts", "skipped")}
    settings = {key: about[key] for key in about if key != "model parts"}
    if folder is not None:
        with only_writer(folder), Shards(folder, settings, about["model parts"]) as joined:
            progress = _progress_of(found)
            if joined.progress is None:
                joined.add(frame, progress, kept=frame)
            elif joined.progress != progress:
                raise ValueError(f"{folder} holds another scan: give another folder, or remove it")
            joined.finish(read["texts"], read["skipped"], found[0].end["corpus"])
    frame.attrs |= read | settings
    return frame


def _progress_of(shares: Sequence[FinishedScan]) -> Progress:
    """How far one scan of all texts would have come."""
    measured = [share.progress for share in shares if share.progress is not None]
    last = max(measured, key=lambda progress: progress.place.number)
    # All texts that come after the last one with a window are shorter than one.
    texts = sum(share.end["texts"] for share in shares)
    skipped = sum(share.end["skipped"] for share in shares)
    before = last.place.number
    return replace(last, texts=before, skipped=skipped - (texts - before - 1))


def shares_of(folders: Iterable[str | Path]) -> list[FinishedScan]:
    """Returns the shares of one scan in their order, after checking that they are all of it.

    Args:
        folders: those of all shares, in any order.

    Raises:
        ValueError: no folder; one that holds no share, or one that is not finished; a share that is
            missing or there twice; or shares of other models, settings or texts.
    """
    found = [finished_scan(Path(folder)) for folder in folders]
    if not found:
        raise ValueError("no folders: expected those of all shares")
    first, *others = found
    by_index: dict[int, FinishedScan] = {}
    for each in found:
        if each.share is None:
            raise ValueError(
                f"{each.folder} holds no share of a scan: expected a folder of scan(share=)"
            )
        index, of = each.share
        if index in by_index:
            raise ValueError(
                f"{each.folder} and {by_index[index].folder} both hold share {index} of {of}"
            )
        by_index[index] = each
    for other in others:
        _check_one_scan(first, other)
    assert first.share is not None
    _, of = first.share
    missing = [str(index) for index in range(of) if index not in by_index]
    if missing:
        raise ValueError(f"{len(missing)} of {of} shares are missing: {', '.join(missing[:8])}")
    return [by_index[index] for index in range(of)]


class FinishedScan(NamedTuple):
    """A scan that has come to its end, or a share of one.

    Attributes:
        folder: where it is.
        share: which share it is, and of how many; None if it is all.
        about: its other settings.
        end: how many `texts` were read and `skipped`, and a digest of the `corpus`.
        files: how many times rows were written.
        progress: the last text with a window; None if there is none.
        tally: the counts; None if all rows are kept, or there is no window.
    """

    folder: Path
    share: tuple[int, int] | None
    about: dict[str, Any]
    end: dict[str, Any]
    files: int
    progress: Progress | None
    tally: dict[str, Any] | None

    def tables(self, kind: str) -> Iterator[pd.DataFrame]:
        """Yields the tables of a kind; see `each_table`."""
        return each_table(self.folder, kind, self.files)


def finished_scan(folder: Path) -> FinishedScan:
    """Returns the scan in a folder.

    Args:
        folder: given to `interp.scan` or `interp.scan_corpus`.

    Raises:
        ValueError: the folder holds no scan, or one that is not finished.
    """
    if not (folder / _MANIFEST).exists():
        raise ValueError(
            f"{folder} holds no share of a scan: expected a folder that was given to a scan"
        )
    about: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
    share = about.pop("share", None)
    if not (folder / _FINISHED).exists():
        name = "the scan" if share is None else f"share {share[0]} of {share[1]}"
        raise ValueError(f"{name} in {folder} is not finished: run it again, and it goes on")
    end = json.loads((folder / _FINISHED).read_text())
    found = FinishedScan(
        folder,
        share=None if share is None else (share[0], share[1]),
        about=about,
        end=end,
        files=0,
        progress=None,
        tally=None,
    )
    # A share without a window has written no rows.
    if not (folder / _PROGRESS).exists():
        return found
    written = json.loads((folder / _PROGRESS).read_text())
    return found._replace(
        files=written["files"],
        progress=Progress.from_dict(written["progress"]),
        tally=written.get("tally"),
    )


def _check_one_scan(first: FinishedScan, other: FinishedScan) -> None:
    """Raises ValueError for shares that are not of one scan."""
    _check_same(first.folder, first.about, other.about)
    assert first.share is not None
    assert other.share is not None
    if other.share[1] != first.share[1]:
        raise ValueError(
            f"{first.folder} is one of {first.share[1]} shares and {other.folder} one of "
            f"{other.share[1]}: expected those of one scan; remove the others"
        )
    if other.end["corpus"] != first.end["corpus"]:
        raise ValueError(
            f"{other.folder} was scanned over other texts than {first.folder}: the corpus has "
            "changed between the two; remove the older one and scan it again"
        )


def _check_same(folder: Path, before: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises ValueError if the folder holds another scan: one in which a setting of `about` was
    different. The message names what differs."""
    differences: list[str] = []
    for name in {**about, **before}:
        now = about.get(name)
        was = before.get(name)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            # Also what the folder's scan had and this one has not, which would be named by nothing.
            parts = [part for part in {**was, **now} if was.get(part) != now.get(part)]
            differences.append(f"{name}: other {', '.join(parts)}")
        else:
            differences.append(f"{name} was {was!r} and is {now!r}")
    if differences:
        raise ValueError(
            f"{folder} holds another scan ({', '.join(differences)}): "
            "repeat the options that it was made with, or give another folder"
        )


def _read(file: Path) -> pd.DataFrame:
    """A table as it was in memory: parquet returns lists, also in lists, as arrays."""
    table = pd.read_parquet(file)
    for column in table:
        # There is a first row: tables without rows are never written.
        if isinstance(table[column].iloc[0], np.ndarray):
            table[column] = [_lists(value) for value in table[column]]
    if "groups" in table:
        table["groups"] = [tuple(map(tuple, groups)) for groups in table["groups"]]
    return table


def _lists(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_lists(each) for each in value.tolist()]
    return value
