"""Texts from files and from the hub: what `interp scan` reads."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Any

from interp.data.hub_texts import HubTexts, hub_texts, is_hub_id
from interp.data.text_formats import (
    COMPRESSED,
    SUFFIXES,
    has_text_name,
    is_other_json,
    missing_column,
    texts_of,
)
from interp.files import count_in_words, find_files, passed_over_in_words

Paths = str | Path | Iterable[str | Path]

__all__ = ["SUFFIXES", "TextFiles", "TextReader", "find_texts", "read_texts"]


@dataclass(frozen=True)
class TextFiles:
    """The text files and data sets that some paths name, each of them once.

    Attributes:
        files: files and data sets, in the order in which they are read.
        passed_over: files and folders in the named folders that are not read.
        column: which column of a table, or field of a JSON object, holds the text.
    """

    files: tuple[Path | HubTexts, ...]
    passed_over: tuple[Path, ...]
    column: str = "text"

    @property
    def note(self) -> str:
        """One line about what is passed over; empty if nothing is."""
        return passed_over_in_words(
            self.passed_over,
            f"in folders only files that end in {', '.join(SUFFIXES)}, also followed by "
            f"{', '.join(COMPRESSED)}, and hold texts are read; to read another file, name it",
        )

    def read(self) -> TextReader:
        """Returns an iterator of the texts; a file is opened when its first text is asked for.

        Raises:
            ValueError: while reading: a file is damaged or not UTF-8 text, or a part of it holds no
                text; the message gives file and line or row.
        """
        return TextReader(self.files, self.column)


class TextReader(Iterator[str]):
    """The texts of files and data sets, one after the other, from any place on.

    Its place is saved and loaded by `state_dict` and `load_state_dict`, as that of a streamed data
    set of `datasets` is. After an error it raises the same error again, and not the texts of the
    next file, until it is sent to a place.

    Args:
        files: files and data sets.
        column: which column of a table, or field of a JSON object, holds the text.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data.texts import find_texts
        >>> file = pathlib.Path(tempfile.mkdtemp(), "a.jsonl")
        >>> _ = file.write_text('{"text": "one"}\\n{"text": "two"}')
        >>> reader = find_texts([file]).read()
        >>> next(reader)
        'one'
        >>> again = find_texts([file]).read()
        >>> again.load_state_dict(reader.state_dict())
        >>> list(again)
        ['two']
    """

    def __init__(self, files: Sequence[Path | HubTexts], column: str) -> None:
        self._files = tuple(files)
        self._column = column
        self._seen = ""
        self._go_to(0)

    def __next__(self) -> str:
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException as error:
            # The file is closed now, and would seem to be at its end.
            self._error = error
            raise

    def _next(self) -> str:
        while self._file < len(self._files):
            if self._texts is None:
                file = self._files[self._file]
                # A file that is continued is in the mark already.
                if not self._row:
                    self._seen = _seen_with(self._seen, file)
                self._texts = self._open(file)
            text = next(self._texts, None)
            if text is not None:
                self._row += 1
                return text
            self._go_to(self._file + 1)
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """Returns the place of the next text, as JSON can hold it: number of the file, row in it,
        what a data set on the hub says of its own place, and a mark of the files up to there."""
        rows = self._rows
        # A data set that is not open yet is still at the place that was loaded.
        open_file = None if self._texts is None else self._files[self._file]
        if isinstance(open_file, HubTexts):
            rows = open_file.state_dict()
        return {"file": self._file, "row": self._row, "rows": rows, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a place that `state_dict` returned.

        Raises:
            ValueError: a file that was read up to there has changed since, or is another one.
        """
        number = state["file"]
        begun = state["row"] > 0
        seen = ""
        # True counts as one: the file that was begun is among those that were read.
        for file in self._files[: number + begun]:
            seen = _seen_with(seen, file)
        if seen != state["seen"]:
            raise ValueError(
                f"the first {number + begun} of {len(self._files)} files are not as they were when "
                "this place was noted: read them from the beginning"
            )
        self._seen = seen
        self._go_to(number, state["row"], state["rows"])

    def _go_to(self, file: int, row: int = 0, rows: Any = None) -> None:
        self._file = file
        self._row = row
        self._rows = rows
        self._texts: Iterator[str] | None = None
        self._error: BaseException | None = None

    def _open(self, file: Path | HubTexts) -> Iterator[str]:
        if isinstance(file, HubTexts):
            return file.read(self._row, self._rows)
        return texts_of(file, self._column, self._row)


def _seen_with(seen: str, file: Path | HubTexts) -> str:
    """A mark of files that were read, with one more: it is another one if one of them was written
    since."""
    mark = file.name
    if isinstance(file, Path):
        about = file.stat()
        mark = f"{mark} {about.st_size} {about.st_mtime_ns}"
    # In ASCII, because the name of a file may hold bytes that are no text.
    return hashlib.sha256(f"{seen} {mark!a}".encode()).hexdigest()


def read_texts(paths: Paths, column: str = "text") -> TextReader:
    """Reads the texts of files, folders and data sets on the hub, and warns of what it passes over.

    Files are read as the texts are asked for. All but plain text and `.json` files are read in
    memory that does not grow with their size.

    Args:
        paths: see `find_texts`.
        column: which column of a table, or field of a JSON object, holds the text.

    Returns:
        Of a `.csv`, `.tsv` or `.parquet` file or a data set on the hub, `column` of each row; of a
        `.jsonl` or `.ndjson` file, `column` of each line; of a `.json` file, the strings and
        `column` of the objects in it, which may be one list, or one after the other; any other file
        as one text, with its line ends as they are. Files that end in `.gz`, `.bz2` or `.zst` are
        decompressed.

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
    found = find_texts(paths, column)
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return found.read()


def find_texts(paths: Paths, column: str = "text") -> TextFiles:
    """Returns the text files that paths name, without reading the texts.

    Args:
        paths: one or several of: files, which are read whatever their names; patterns of files,
            such as `corpus/part-*.parquet` (`**` for any folders), in the order of their names;
            folders, of which the files that end in one of SUFFIXES are read, also compressed, in
            the order of their names, but not those that are hidden or in hidden or linked folders,
            nor a `.json` file that does not begin with a text, nor a table without `column`; and
            data sets on the hub, as `user/name`, `user/name:configuration` or `user/name@split`,
            where no such path exists (see `is_hub_id`). A file that is named several times, also
            through a folder or a link, is read once.
        column: which column of a table, or field of a JSON object, holds the text.

    Raises:
        ValueError: a path does not exist, here or on the hub; holds no text file; or is a table
            without the column.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data.texts import find_texts
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("a.txt", "B.TXT", "c.c", ".hidden.txt"):
        ...     (folder / name).touch()
        >>> print(find_texts([folder, folder / "a.txt"]).note)
        2 passed over (1 hidden, 1 .c): in folders only files that end in .txt, ...
    """
    files: dict[object, Path | HubTexts] = {}  # by where it really is
    passed_over: dict[Path, Path] = {}
    # A single path in text would be taken for one path per letter.
    given = [paths] if isinstance(paths, (str, Path)) else paths
    for path in chain.from_iterable(map(_matching, map(Path, given))):
        if not path.exists():
            files.setdefault(str(path), _from_hub(path, column))
            continue
        if path.is_dir():
            texts, others = _look_into(path, column)
        else:
            texts, others = [path], []
            problem = missing_column(path, column)
            if problem is not None:
                raise ValueError(problem)
        if not texts:
            raise ValueError(_nothing_in(path, others, column))
        for file in texts:
            files.setdefault(file.resolve(), file)
        for other in others:
            passed_over.setdefault(other.resolve(), other)
    # A file that a folder passes over is read where it is named itself.
    not_read = [other for place, other in passed_over.items() if place not in files]
    return TextFiles(tuple(files.values()), tuple(not_read), column)


def _matching(path: Path) -> list[Path]:
    """The paths that a pattern names, such as `part-*.parquet`; or the path itself."""
    pattern = str(path)
    if path.exists() or not has_magic(pattern):
        return [path]
    # Path.glob would also match hidden files.
    matches = glob(pattern, recursive=True)  # noqa: PTH207
    found = sorted(map(Path, matches))
    if not found:
        raise ValueError(f"{path} matches no file: expected text files, or folders of them")
    return found


def _from_hub(path: Path, column: str) -> HubTexts:
    """The data set that a path names which does not exist."""
    missing = f"{path} does not exist: expected a text file or a folder of them"
    if not is_hub_id(path):
        raise ValueError(missing)
    try:
        return hub_texts(path, column)
    except ValueError as error:
        raise ValueError(f"{missing}; and {error}") from error


def _look_into(folder: Path, column: str) -> tuple[list[Path], list[Path]]:
    """The text files of a folder, and all else."""
    found, others = find_files(folder)
    texts: list[Path] = []
    for file in found:
        if has_text_name(file) and _holds_texts(file, column):
            texts.append(file)
        else:
            others.append(file)
    return texts, others


def _holds_texts(file: Path, column: str) -> bool:
    return not is_other_json(file, column) and missing_column(file, column) is None


def _nothing_in(folder: Path, others: list[Path], column: str) -> str:
    """What is wrong with a folder in which there is nothing to read."""
    seen = f"; it holds {count_in_words(others)}" if others else ""
    problem = f"{folder} holds no text file: expected names ending in {', '.join(SUFFIXES)}{seen}"
    for other in others:
        is_read = has_text_name(other) and other.is_file() and not other.name.startswith(".")
        without = missing_column(other, column) if is_read else None
        if without is not None:
            return f"{problem}; {without}"
    return problem
