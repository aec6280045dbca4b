"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


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
    # In the same folder: a rename between file systems would not be atomic. With the process's
    # number: two processes may write the same file at once.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    writable(target.parent)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


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
