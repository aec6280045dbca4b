"""Shards: the finished parts of a long scan, written to disk as they come, so that an interrupted
scan loses nothing that was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from interp.files import replaced, writable
from interp.subject.batch import GIVEN

_MANIFEST = "scan.json"
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
        shards = sorted(folder.glob("shard-*.parquet"))
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
            with replaced(file) as temporary:
                shard.to_parquet(temporary)
        self.done.append(shard)
        self.fresh = []

    def frame(self) -> pd.DataFrame:
        """Returns all rows, those in shards and those not in a shard yet, as one frame."""
        return pd.concat([*self.done, *self.fresh], ignore_index=True)


def _check_same(folder: Path, before: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises ValueError if the folder holds another scan: one in which a setting of `about` was
    different. The message names what differs."""
    differences: list[str] = []
    for name, now in about.items():
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
