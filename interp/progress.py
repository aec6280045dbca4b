"""One progress bar for everything that may take more than a moment."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows a progress bar, in terminals and in notebooks.

    The bar appears after two seconds and is removed at the end.

    Args:
        items: what to iterate over.
        label: what the bar says.
        total: how many items there are; by default their length, if they have one.

    Example:
        >>> from interp.progress import track
        >>> sum(track([1, 2, 3], "adding"))
        6
    """
    from tqdm.auto import tqdm

    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType]
    yield from tqdm(items, desc=label, total=total, delay=2.0, leave=False)


def tell(line: str) -> None:
    """Prints one line to stderr, above the progress bar if there is one."""
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stderr)
