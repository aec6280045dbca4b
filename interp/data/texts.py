"""Texts from files: what `interp scan` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The texts of files and folders, in name order: a `.jsonl` line's `text` each, any other file as one text.

    Of a folder, files ending in one of SUFFIXES are read, also in folders inside it. Raises ValueError for a path that does not exist, is not
    UTF-8, has no readable file, or a line without `text`.
    """
    for path in map(Path, paths):
        for file in _files(path):
            yield from _lines(file) if file.suffix == ".jsonl" else [_content(file)]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: expected a text file or a folder of them")
    if path.is_file():
        return [path]
    found = sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES and f.is_file())
    if not found:
        raise ValueError(f"{path} holds no text file: expected names ending in {', '.join(SUFFIXES)}")
    return found


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start})") from error


def _lines(file: Path) -> Iterator[str]:
    for number, line in enumerate(_content(file).splitlines(), start=1):
        if line.strip():
            yield _text(file, number, line)


def _text(file: Path, number: int, line: str) -> str:
    try:
        return str(json.loads(line)["text"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{file}, line {number}: expected a JSON object with "text", got {line[:40]!r}') from error
