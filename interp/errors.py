"""The errors that the toolkit raises, and the nearest valid name for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SiteError(LookupError):
    """A site does not exist on this model, or could not be verified on it.

    Example:
        >>> subject.anatomy.place("blocks.7.neurons")
        Traceback (most recent call last):
        interp.errors.SiteError: blocks.7.neurons: this model has no such site; nearest: ...
    """


class HookError(RuntimeError):
    """A hook never fired, or the model changed a tensor in place that a hook had taken.

    Example:
        >>> neurons = subject.anatomy.units("blocks.0.neurons")
        >>> with subject.intervened(interp.Zero(neurons)):
        ...     pass  # no forward runs, so the intervention never applies
        Traceback (most recent call last):
        interp.errors.HookError: 1 of 1 hooks never fired: blocks.0.neurons ...
    """


class LoadError(ValueError):
    """A model cannot be loaded; the message gives the reason and what to do.

    Example:
        >>> interp.load("no/such/folder/anywhere")
        Traceback (most recent call last):
        interp.errors.LoadError: ...
    """


def closest(name: str, candidates: Iterable[str]) -> str:
    """Returns the candidate spelled most like a name, for error messages; "none" without any.

    Args:
        name: what was given.
        candidates: what is valid.

    Example:
        >>> from interp.errors import closest
        >>> closest("meen", ["mean", "max", "top"])
        'mean'
    """
    pool = list(candidates)
    # Without a cutoff, so that there always is a nearest one.
    matches = difflib.get_close_matches(name, pool, n=1, cutoff=0.0)
    return matches[0] if matches else "none"
