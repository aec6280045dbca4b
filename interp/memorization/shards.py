"""Shards: the finished parts of a long scan, written to disk as they come, so that an interrupted
scan loses nothing that was measured; and `merge`, which joins the scans of several processes."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from filelock import FileLock, Timeout

from interp.files import replaced, writable
from interp.subject.batch import GIVEN

_MANIFEST = "scan.json"
_FINISHED = "finished.json"
_LOCK = ".lock"
_ROWS = 512  # per file: few enough to lose little, enough for few files


class Shards:
    """Collects the frames of a scan; with a folder, keeps them there and starts from those in it.

    A context manager: leaving the block, also by an exception, writes what is still in memory.

    Args:
        folder: where the shards are kept; None for memory only.
        about: the settings of the scan, as JSON can hold them.

    Attributes:
        done: the finished shards: those found in the folder, and those written since.
        fresh: frames that are not in a shard yet.

    Raises:
        ValueError: if the folder holds a scan with other settings, or shards without settings.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Shards(folder, {"prefix": 8}) as shards:
        ...         shards.add(frame[:10])
        ...     len(Shards(folder, {"prefix": 8}))
        10
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else writable(folder)
        self.about = dict(about)
        self.done: list[pd.DataFrame] = []
        self.fresh: list[pd.DataFrame] = []
        if self.folder is not None:
            self._open(self.folder)

    def _open(self, folder: Path) -> None:
        manifest = folder / _MANIFEST
        shards = _shards_in(folder)
        if manifest.exists():
            before: dict[str, Any] = json.loads(manifest.read_text())
            _check_same(folder, before, self.about)
        elif shards:
            raise ValueError(
                f"{folder} holds {len(shards)} shards but no {_MANIFEST}, which says what they are "
                "of: give another folder, or remove it"
            )
        self.done = [_read(path) for path in shards]

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def __len__(self) -> int:
        return sum(map(len, self.done)) + sum(map(len, self.fresh))

    def windows(self) -> Iterator[tuple[int, int, tuple[int, ...], dict[str, Any]]]:
        """Yields text, start, tokens and conditioning of every window in the finished shards, in
        the order in which they were added."""
        for shard in self.done:
            given: dict[str, list[Any]] = {}
            for column in map(str, shard.columns):
                if column.startswith(GIVEN):
                    given[column.removeprefix(GIVEN)] = shard[column].tolist()
            windows = zip(shard["text"], shard["start"], shard["tokens"], strict=True)
            for row, (text, start, tokens) in enumerate(windows):
                conditioning = {name: values[row] for name, values in given.items()}
                yield int(text), int(start), tuple(tokens), conditioning

    def add(self, frame: pd.DataFrame) -> None:
        """Adds rows, and writes a file once there are enough of them."""
        self.fresh.append(frame)
        if sum(map(len, self.fresh)) >= _ROWS:
            self._write()

    def _write(self) -> None:
        if not self.fresh:
            return
        shard = pd.concat(self.fresh, ignore_index=True)
        if self.folder is not None:
            # The settings are written with the first shard, and not when the folder is opened: a
            # scan that is refused before it measures anything leaves the folder free for another.
            with replaced(self.folder / _MANIFEST) as temporary:
                temporary.write_text(json.dumps(self.about))
            # The number makes the names sort in the order in which the shards were written.
            file = self.folder / f"shard-{len(self.done):06d}.parquet"
            # It may have been finished before, over a corpus that has grown since.
            (self.folder / _FINISHED).unlink(missing_ok=True)
            with replaced(file) as temporary:
                shard.to_parquet(temporary)
        self.done.append(shard)
        self.fresh = []

    def finish(self, found: Mapping[str, Any]) -> None:
        """Writes what is still in memory, and that nothing will follow.

        Args:
            found: what is known at the end, such as the number of texts, as JSON can hold it.
        """
        self._write()
        if self.folder is None:
            return
        # A share may have no window at all.
        with replaced(self.folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(self.about))
        with replaced(self.folder / _FINISHED) as temporary:
            temporary.write_text(json.dumps(dict(found)))

    def frame(self) -> pd.DataFrame:
        """Returns all rows, those in shards and those not in a shard yet, as one frame."""
        parts = [*self.done, *self.fresh]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@contextmanager
def only_writer(folder: str | Path | None) -> Generator[None]:
    """Makes sure that one process alone writes to the folder of a scan. The lock is the operating
    system's: it goes with the process, however that ends.

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
        yield
    finally:
        lock.release()


def merge(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Joins the scans of all shares of a corpus.

    Args:
        folders: those that `interp.scan(..., share=, folder=)` wrote, in any order.

    Returns:
        The rows of one scan over the whole corpus, in its order; up to rounding the same, since
        windows meet others in a batch. `frame.attrs` records what that of one scan would.

    Raises:
        ValueError: no folder; one that holds no share, or one that is not finished; a share that is
            missing or there twice; shares of other models, settings or texts; or no window in any
            of them.

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
    found = [_finished(Path(folder)) for folder in folders]
    if not found:
        raise ValueError("no folders: expected those of all shares")
    first, *others = found
    for other in others:
        _check_one_scan(first, other)
    by_index: dict[int, Path] = {}
    for folder, (index, of), _, _ in found:
        if index in by_index:
            raise ValueError(f"{folder} and {by_index[index]} both hold share {index} of {of}")
        by_index[index] = folder
    missing = [str(index) for index in range(first.share[1]) if index not in by_index]
    if missing:
        raise ValueError(
            f"{len(missing)} of {first.share[1]} shares are missing: {', '.join(missing[:8])}"
        )
    shards = [_read(path) for folder in by_index.values() for path in _shards_in(folder)]
    if not shards:
        raise ValueError(f"nothing was scanned: no text of {len(found)} shares has a whole window")
    frame = pd.concat(shards, ignore_index=True)
    frame = frame.sort_values(["text", "start"], kind="stable", ignore_index=True)
    read = {name: sum(each.end[name] for each in found) for name in ("texts", "skipped")}
    frame.attrs |= read | {key: first.about[key] for key in first.about if key != "model parts"}
    return frame


class _ShareOfScan(NamedTuple):
    """A folder, which share it is, its other settings, and what was known at its end."""

    folder: Path
    share: tuple[int, int]
    about: dict[str, Any]
    end: dict[str, Any]


def _check_one_scan(first: _ShareOfScan, other: _ShareOfScan) -> None:
    """Raises ValueError for shares that are not of one scan."""
    _check_same(first.folder, first.about, other.about)
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


def _finished(folder: Path) -> _ShareOfScan:
    manifest = folder / _MANIFEST
    about: dict[str, Any] = json.loads(manifest.read_text()) if manifest.exists() else {}
    if "share" not in about:
        raise ValueError(f"{folder} holds no share of a scan: expected a folder of scan(share=)")
    index, of = about.pop("share")
    if not (folder / _FINISHED).exists():
        raise ValueError(
            f"share {index} of {of} in {folder} is not finished: run it again, and it goes on"
        )
    end = json.loads((folder / _FINISHED).read_text())
    return _ShareOfScan(folder, (index, of), about, end)


def _shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.parquet"))


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
            "give another folder, or remove it"
        )


def _read(file: Path) -> pd.DataFrame:
    """A shard as it was in memory: parquet returns lists as arrays."""
    shard = pd.read_parquet(file)
    for column in ("tokens", "bos"):
        if column in shard:
            shard[column] = [tokens.tolist() for tokens in shard[column]]
    return shard
