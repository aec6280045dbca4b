"""One progress bar for everything that may take more than a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterates with a bar that appears after two seconds and leaves nothing behind; in notebooks
    and terminals."""
    from tqdm.auto import tqdm

    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType]
    yield from tqdm(items, desc=label, total=total, delay=2.0, leave=False)
