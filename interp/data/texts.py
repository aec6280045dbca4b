"""Texts from files: what `interp scan` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """Reads the texts of files and folders.

    Args:
        paths: files and folders. In a folder and the folders inside it, the files that end in one
            of SUFFIXES are read, in the order of their names.

    Returns:
        The `text` of each line of a `.jsonl` file; any other file as one text. Files are read as
        the texts are asked for.

    Raises:
        ValueError: at once for a path that does not exist or holds no readable file; while reading,
            for a file that is not UTF-8, or a line without a `text`.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data.texts import read_texts
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("one text")
        >>> _ = (folder / "b.jsonl").write_text('{"text": "another"}')
        >>> list(read_texts([folder]))
        ['one text', 'another']
    """
    files: list[Path] = []
    for path in paths:
        files += _files(Path(path))
    return _texts(files)


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        if file.suffix == ".jsonl":
            yield from _lines(file)
        else:
            yield _content(file)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: expected a text file or a folder of them")
    if path.is_file():
        return [path]
    named_as_text = [file for file in path.rglob("*") if file.suffix in SUFFIXES]
    found = sorted(file for file in named_as_text if file.is_file())
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
    # Not splitlines: a string in JSON may hold U+2028 and other characters at which it would cut.
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
