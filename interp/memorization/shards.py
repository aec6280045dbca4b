"""Finished parts of a long scan, on disk as they come: an interrupted scan loses nothing that was
measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from interp.files import replaced, writable
from interp.subject.batch import GIVEN

_ROWS = 512  # a file: small enough to lose little, large enough to be few


class Parts:
    """Collects frames; with a folder, also keeps them there and starts from what is there.

    Leaving the block, also by an exception, writes what is still in memory.
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else writable(folder)
        self.done: list[pd.DataFrame] = []
        self.fresh: list[pd.DataFrame] = []
        if self.folder is not None:
            self._open(self.folder, dict(about))

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        manifest = folder / "scan.json"
        if manifest.exists():
            before: dict[str, Any] = json.loads(manifest.read_text())
            other = {k: (before.get(k), v) for k, v in about.items() if before.get(k) != v}
            if other:
                differences = ", ".join(
                    f"{k} was {was!r} and is {now!r}" for k, (was, now) in other.items()
                )
                raise ValueError(
                    f"{folder} holds another scan ({differences}): give another folder, or remove it"
                )
        with replaced(manifest) as temporary:
            temporary.write_text(json.dumps(about))
        self.done = [_read(p) for p in sorted(folder.glob("part-*.parquet"))]

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def __len__(self) -> int:
        return sum(map(len, self.done)) + sum(map(len, self.fresh))

    def known(self) -> Iterator[tuple[int, int, tuple[int, ...], dict[str, Any]]]:
        """Text, start and tokens of every window measured before, and what it was conditioned on."""
        for part in self.done:
            given = {
                name.removeprefix(GIVEN): part[name].tolist()
                for name in map(str, part.columns)
                if name.startswith(GIVEN)
            }
            for row, (text, start, tokens) in enumerate(
                zip(part["text"], part["start"], part["tokens"], strict=True)
            ):
                yield (
                    int(text),
                    int(start),
                    tuple(tokens),
                    {name: values[row] for name, values in given.items()},
                )

    def add(self, frame: pd.DataFrame) -> None:
        """Takes more rows; writes a file when there are enough."""
        self.fresh.append(frame)
        if sum(map(len, self.fresh)) >= _ROWS:
            self._write()

    def _write(self) -> None:
        if not self.fresh:
            return
        part = pd.concat(self.fresh, ignore_index=True)
        if self.folder is not None:
            with replaced(self.folder / f"part-{len(self.done):06d}.parquet") as temporary:
                part.to_parquet(temporary)
        self.done, self.fresh = [*self.done, part], []

    def frame(self) -> pd.DataFrame:
        """Everything so far as one frame."""
        return pd.concat([*self.done, *self.fresh], ignore_index=True)


def _read(file: Path) -> pd.DataFrame:
    """A part as it was in memory: parquet gives lists back as arrays."""
    part = pd.read_parquet(file)
    part["tokens"] = [tokens.tolist() for tokens in part["tokens"]]
    return part
