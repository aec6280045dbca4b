"""Finds what an autoregressive model has memorized and where in the network that is, switches it
off, and measures what that costs.

Example:
    >>> subject = interp.load("path/or/hub-id")  # doctest: +SKIP
    >>> frame = interp.scan(subject, texts, prefix=8, length=8)
    >>> memorized, control = interp.split(frame)
    >>> scores = interp.localize(subject, memorized, control)
    >>> scores.top(3)
    Units(3 of 96: ...)
    >>> with subject.intervened(interp.Zero(scores.top(0.5))):
    ...     ablated = interp.scan(subject, texts, prefix=8, length=8)
    >>> bool(ablated["exact"].sum() < frame["exact"].sum())
    True

All public names are listed in `__init__.pyi`. Type checkers read that file, and each name is loaded
from it when it is first used, so that `import interp` itself costs almost nothing.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
