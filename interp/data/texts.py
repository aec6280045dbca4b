"""Texts from files: what `interp scan` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The texts of files and folders, in name order: a `.jsonl` line's `text` each, any other file
    as one text.

    Of a folder, files ending in one of SUFFIXES are read, also in folders inside it. Raises
    ValueError at once for a path that does not exist or holds no readable file; while reading, for
    a file that is not UTF-8, or a line without a `text`.
    """
    files = [file for path in paths for file in _files(Path(path))]
    return (
        text
        for file in files
        for text in (_lines(file) if file.suffix == ".jsonl" else [_content(file)])
    )


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: expected a text file or a folder of them")
    if path.is_file():
        return [path]
    found = sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES and f.is_file())
    if not found:
        raise ValueError(
            f"{path} holds no text file: expected names ending in {', '.join(SUFFIXES)}"
        )
    return found


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start})") from error


def _lines(file: Path) -> Iterator[str]:
    # not splitlines: a string in JSON may hold U+2028 and other characters that it takes for the
    # end of a line
    for number, line in enumerate(_content(file).split("\n"), start=1):
        if line.strip():
            yield _text(file, number, line)


def _text(file: Path, number: int, line: str) -> str:
    try:
        text: Any = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(
            f'{file}, line {number}: expected a JSON object with a string "text", got {line[:40]!r}'
        )
    return text
