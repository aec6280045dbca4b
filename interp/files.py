"""Files and folders that are either whole or absent: written under a temporary name, then renamed.
And which files a folder holds, with what is left out of it."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced(path: str | Path) -> Generator[Path]:
    """Gives a temporary path that becomes `path` when the block ends without an error.

    When the block fails, the temporary file is deleted and `path` stays as it was.

    Args:
        path: the file to write; folders that do not exist are made.

    Yields:
        A path in the same folder.

    Raises:
        OSError: the folder cannot be written; the message names it.

    Example:
        >>> import tempfile, pathlib
        >>> from interp.files import replaced
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder, "notes.txt")
        ...     with replaced(target) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     target.read_text()
        'whole'
    """
    target = Path(path)
    temporary = _temporary(target)
    writable(target.parent)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: str | Path) -> Generator[Path]:
    """Gives an empty temporary folder that becomes `path` when the block ends without an error.

    When the block fails, the temporary folder is deleted. What an interrupted process has left
    behind is never part of the result.

    Args:
        path: the folder to write; folders above it that do not exist are made.

    Yields:
        A folder next to it.

    Raises:
        OSError: the place cannot be written, or `path` exists and is not an empty folder.

    Example:
        >>> import tempfile, pathlib
        >>> from interp.files import replaced_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder, "model")
        ...     with replaced_folder(target) as temporary:
        ...         _ = (temporary / "weights").write_text("whole")
        ...     [file.name for file in target.iterdir()]
        ['weights']
    """
    target = Path(path)
    with _temporary_folder(target) as temporary:
        yield temporary
        temporary.replace(target)


@contextmanager
def shared_folder(path: str | Path, sign: str) -> Generator[Path]:
    """Gives what `replaced_folder` gives, for a folder whose name decides what is in it, such as
    one of a cache: where another process has finished the same folder meanwhile, that one stays.

    Args:
        path: the folder to write; folders above it that do not exist are made.
        sign: name of a file that is in every finished one.

    Yields:
        A folder next to it.

    Raises:
        OSError: the place cannot be written, or `path` holds files without that one.
    """
    target = Path(path)
    is_finished = (target / sign).exists()
    with _temporary_folder(target, may_exist=is_finished) as temporary:
        yield temporary
        try:
            temporary.replace(target)
        except OSError:
            # A folder that holds files is never replaced.
            if not (target / sign).exists():
                raise


@contextmanager
def _temporary_folder(target: Path, *, may_exist: bool = False) -> Generator[Path]:
    writable(target.parent)
    # A folder cannot be renamed to one that holds files: better said now than after the work.
    if not may_exist and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not an empty folder: give another folder, or remove it"
        )
    temporary = _temporary(target)
    # A process that had the same number may have been killed while it wrote.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(target: Path) -> Path:
    # In the same folder: a rename between file systems would not be atomic. With the process's
    # number: two processes may write the same file at once.
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes settings and counts as a JSON file, which is whole or absent.

    Args:
        path: the file to write.
        content: what JSON can hold; numbers may be those of numpy.

    Raises:
        OSError: the folder cannot be written; the message names it.

    Example:
        >>> import tempfile, pathlib
        >>> from interp.files import write_json
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder, "about.json")
        ...     write_json(target, {"seed": np.int64(3)})
        ...     print(target.read_text())
        {
          "seed": 3
        }
    """
    text = json.dumps(content, indent=2, default=_plain_number)
    with replaced(path) as temporary:
        temporary.write_text(text)


def _plain_number(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own."""
    # An array of one number is not that number.
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def find_files(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Returns the files of a folder and of the folders inside it, and what is left out of them.

    Args:
        folder: the folder, which may itself be hidden or a link.

    Returns:
        The files in the order of their names; and the hidden files and folders (their names begin
        with a dot), links to folders, and links to nothing. What is in a folder that is left out
        is not listed.

    Example:
        >>> import tempfile, pathlib
        >>> from interp.files import find_files
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / ".git").mkdir()
        >>> for name in (".git/config", "b.txt", "a.txt"):
        ...     (folder / name).touch()
        >>> files, left_out = find_files(folder)
        >>> [file.name for file in files], [file.name for file in left_out]
        (['a.txt', 'b.txt'], ['.git'])
    """
    files: list[Path] = []
    left_out: list[Path] = []
    for place, folders, names in os.walk(folder):
        for name in folders:
            inside = Path(place, name)
            if _is_hidden(inside) or inside.is_symlink():
                left_out.append(inside)
        # os.walk enters what stays in this list, and never links.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(place, name)
            if file.is_file() and not _is_hidden(file):
                files.append(file)
            else:
                left_out.append(file)
    # Sorted, because the order of os.walk is that of the file system: the same files would be read
    # in another order on another machine.
    return sorted(files), sorted(left_out)


def passed_over_in_words(paths: Sequence[Path], rule: str) -> str:
    """Returns one line about the files of a folder that are not read; empty if there are none.

    Args:
        paths: the files.
        rule: which files are read.
    """
    if not paths:
        return ""
    return f"{len(paths)} passed over ({count_in_words(paths)}): {rule}"


def count_in_words(paths: Iterable[Path]) -> str:
    """Returns how many files there are of each kind, for a message; most frequent first.

    Example:
        >>> from pathlib import Path
        >>> from interp.files import count_in_words
        >>> count_in_words(map(Path, ["a.c", "B.C", ".git", "Makefile"]))
        '2 .c, 1 hidden, 1 without a suffix'
    """
    kinds = Counter(_kind(path) for path in paths)
    counted = [f"{count} {kind}" for kind, count in kinds.most_common()]
    return ", ".join(counted)


def _kind(path: Path) -> str:
    if _is_hidden(path):
        return "hidden"
    if path.is_symlink() and not path.is_file():
        return "linked folder" if path.is_dir() else "broken link"
    return path.suffix.lower() or "without a suffix"


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def writable(folder: str | Path) -> Path:
    """Makes a folder if it is missing, checks that it can be written, and returns it.

    Call it before long work, so that a folder that cannot be written is an error now and not after
    the work.

    Args:
        folder: the folder; its parents are made too.

    Raises:
        OSError: it cannot be made or written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to {place}: {error.strerror or error}; give a folder you may write to"
        ) from error
    return place
