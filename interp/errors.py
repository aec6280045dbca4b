"""The errors that the toolkit raises, and the nearest valid name for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SiteError(LookupError):
    """A site that does not exist, or that could not be verified, on the model at hand."""


def closest(name: str, candidates: Iterable[str]) -> str:
    """The candidate spelled most like `name`, for error messages."""
    pool = list(candidates)
    return (difflib.get_close_matches(name, pool, n=1, cutoff=0.0) or ["none"])[0]


class HookError(RuntimeError):
    """A hook that never fired, or a tensor changed behind our back."""


class LoadError(ValueError):
    """A model that cannot be loaded, with the reason and what to do."""
