"""Files that are either whole or absent: write to a temporary name beside the target, then rename."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: str | Path) -> Generator[Path]:
    """Yields a temporary path that becomes `path` when the block ends well, and vanishes when it
    does not.

    Raises OSError, naming the folder, when it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    writable(target.parent)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def writable(folder: str | Path) -> Path:
    """The folder, made if missing. Raises OSError when it cannot be made or written: before the
    work, not after it."""
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
