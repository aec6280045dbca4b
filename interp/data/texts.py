"""Texts from files: what `interp scan` reads."""

from __future__ import annotations

import codecs
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.files import count_in_words, find_files, passed_over_in_words
from interp.subject.batch import check_text

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl", ".ndjson", ".json")

_LINES = (".jsonl", ".ndjson")
_LINE_END = re.compile(r"\r\n|\r|\n")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class TextFiles:
    """The text files that some paths name, each of them once.

    Attributes:
        files: the files, in the order in which they are read.
        passed_over: files and folders in the named folders that are not read.
    """

    files: tuple[Path, ...]
    passed_over: tuple[Path, ...]

    @property
    def note(self) -> str:
        """One line about what is passed over; empty if nothing is."""
        return passed_over_in_words(
            self.passed_over,
            f"in folders only files that end in {', '.join(SUFFIXES)} and hold texts are read; "
            "to read another file, name it",
        )

    def read(self) -> Iterator[str]:
        """Yields the texts; a file is opened when its first text is asked for.

        Raises:
            ValueError: a file is not UTF-8 text, or a part of it holds no `text`; the message gives
                file and line.
        """
        for file in self.files:
            suffix = file.suffix.lower()
            if suffix in _LINES:
                yield from _texts_of_lines(file)
            elif suffix == ".json":
                yield from _texts_of_json(file)
            else:
                yield _content(file)


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """Reads the texts of files and folders, and warns of what it passes over.

    Args:
        paths: see `find_texts`.

    Returns:
        The `text` of each line of a `.jsonl` or `.ndjson` file; of a `.json` file, the strings and
        the `text` of the objects in it, which may be one list, or one after the other; any other
        file as one text, with its line ends as they are. Files are read as the texts are asked for.

    Raises:
        ValueError: at once as in `find_texts`; while reading as in `TextFiles.read`.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data.texts import read_texts
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("one text")
        >>> _ = (folder / "b.jsonl").write_text('{"text": "another"}')
        >>> list(read_texts([folder]))
        ['one text', 'another']
    """
    found = find_texts(paths)
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return found.read()


def find_texts(paths: Iterable[str | Path]) -> TextFiles:
    """Returns the text files that paths name, without reading the texts.

    Args:
        paths: files, which are read whatever their names; and folders, of which the files that end
            in one of SUFFIXES are read, in the order of their names, but not those that are hidden
            or in hidden or linked folders, nor a `.json` file that does not begin with a text.
            A file that is named several times, also through a folder or a link, is read once.

    Raises:
        ValueError: a path does not exist, or holds no text file.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data.texts import find_texts
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("a.txt", "B.TXT", "c.c", ".hidden.txt"):
        ...     (folder / name).touch()
        >>> print(find_texts([folder, folder / "a.txt"]).note)
        2 passed over (1 hidden, 1 .c): in folders only files that end in .txt, ...
    """
    files: dict[Path, Path] = {}  # by where it really is
    passed_over: dict[Path, Path] = {}
    for path in map(Path, paths):
        texts, others = _look_into(path) if path.is_dir() else ([path], [])
        if not path.exists():
            raise ValueError(f"{path} does not exist: expected a text file or a folder of them")
        if not texts:
            seen = f"; it holds {count_in_words(others)}" if others else ""
            raise ValueError(
                f"{path} holds no text file: expected names ending in {', '.join(SUFFIXES)}{seen}"
            )
        for file in texts:
            files.setdefault(file.resolve(), file)
        for other in others:
            passed_over.setdefault(other.resolve(), other)
    not_read = [other for place, other in passed_over.items() if place not in files]
    return TextFiles(tuple(files.values()), tuple(not_read))


def _look_into(folder: Path) -> tuple[list[Path], list[Path]]:
    """The text files of a folder, and all else."""
    found, others = find_files(folder)
    texts: list[Path] = []
    for file in found:
        if file.suffix.lower() in SUFFIXES and not _is_other_json(file):
            texts.append(file)
        else:
            others.append(file)
    return texts, others


def _is_other_json(file: Path) -> bool:
    """Whether it is a `.json` file of something else than texts, such as the settings of a tool."""
    if file.suffix.lower() != ".json":
        return False
    try:
        next(_texts_of_json(file), None)
    except (ValueError, RecursionError):
        return True
    return False


def _content(file: Path) -> str:
    content = file.read_bytes()
    way_out = "save it as UTF-8, or leave it out"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{file} is not UTF-8 text (byte 0): it begins like UTF-16; {way_out}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file} is not UTF-8 text (byte {error.start}) in line {line}: {way_out}"
        ) from error
    # UTF-16 without a mark, and many binary files, are valid UTF-8 with zeros between letters.
    if "\0" in text:
        first_zero = content.index(0)
        line = content.count(b"\n", 0, first_zero) + 1
        raise ValueError(
            f"{file} is not text (byte {first_zero} is zero) in line {line}: it may be "
            f"UTF-16 or binary; {way_out}"
        )
    return text.removeprefix("\ufeff")


def _texts_of_lines(file: Path) -> Iterator[str]:
    # Not splitlines: a string in JSON may hold U+2028 and other characters at which it would cut.
    for number, line in enumerate(_LINE_END.split(_content(file)), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            item: Any = json.loads(line)
        except json.JSONDecodeError:
            item = None
        yield _text(item, place, line)


def _texts_of_json(file: Path) -> Iterator[str]:
    """The texts of JSON values that follow one another, each an object, a string, or a list."""
    content = _content(file)
    decoder = json.JSONDecoder()
    line = 1
    end = 0
    while True:
        position = _after_space(content, end)
        line += len(_LINE_END.findall(content, end, position))
        if position == len(content):
            return
        place = f"{file}, line {line}"
        try:
            value, end = decoder.raw_decode(content, position)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: expected JSON, got {error}") from error
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield _text_or_string(item, f"{place}, item {number}")
        else:
            yield _text_or_string(value, place)
        line += len(_LINE_END.findall(content, position, end))


def _after_space(content: str, position: int) -> int:
    """The position of the first character from a position on that is not white space."""
    found = _SPACE.match(content, position)
    return position if found is None else found.end()


def _text_or_string(item: Any, place: str) -> str:
    named = {"text": item} if isinstance(item, str) else item
    return _text(named, place, repr(item))


def _text(item: Any, place: str, shown: str) -> str:
    """The text of a JSON object."""
    text = item.get("text") if isinstance(item, dict) else None
    if not isinstance(text, str):
        fields = ""
        if isinstance(item, dict) and "text" not in item:
            fields = f"; its fields are {', '.join(item) or 'none'}: call the one to read text"
        raise ValueError(
            f'{place}: expected a JSON object with a string "text", got {shown[:40]!r}{fields}'
        )
    try:
        check_text(text)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return text
