"""interp: find what an autoregressive model memorized, where in the network it sits, switch it off,
and measure what that costs.

    subject = interp.load("path/or/hub-id")
    frame = interp.scan(subject, texts, prefix=32, length=32)
    memorized, control = interp.split(frame)
    scores = interp.localize(subject, memorized, control)
    report = interp.extraction_drop(subject, scores, memorized, control, held_out)

The public names stand in one list, `__init__.pyi`, which type checkers read and from which names
are loaded on first use: importing the package costs no more than Python itself needs.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
