"""interp: find what an autoregressive model memorized, where in the network it sits, switch it off, and measure what that costs.

    subject = interp.load("path/or/hub-id")
    frame = interp.scan(subject, texts, prefix=32, length=32)
    memorized, control = interp.split(frame)
    scores = interp.localize(subject, memorized, control)
    report = interp.extraction_drop(subject, scores, memorized, control, held_out)

Names are loaded on first use, so that importing the package costs no more than Python itself needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .anatomy import Anatomy, Layout
    from .batch import Batch
    from .checkpoints import LoadError, convert
    from .hooks import HookError, captured, intervened
    from .interventions import Add, Interchange, Intervention, Mean, Patch, Project, Resample, Scale, Zero, load_plan, save_plan
    from .localization import localize
    from .memorization.control import split
    from .memorization.extraction import discoverable, scan
    from .mitigation.drop import extraction_drop
    from .recording import Recording, record
    from .sites import Site, SiteError
    from .subject import Subject, load
    from .sweeping import mean_loss, sweep
    from .training import fit
    from .units import Units, UnitScores

_HOMES = {
    "anatomy": ("Anatomy", "Layout"),
    "batch": ("Batch",),
    "checkpoints": ("LoadError", "convert"),
    "hooks": ("HookError", "captured", "intervened"),
    "interventions": (
        "Add",
        "Interchange",
        "Intervention",
        "Mean",
        "Patch",
        "Project",
        "Resample",
        "Scale",
        "Zero",
        "load_plan",
        "save_plan",
    ),
    "localization": ("localize",),
    "memorization.control": ("split",),
    "memorization.extraction": ("discoverable", "scan"),
    "mitigation.drop": ("extraction_drop",),
    "recording": ("Recording", "record"),
    "sites": ("Site", "SiteError"),
    "subject": ("Subject", "load"),
    "sweeping": ("mean_loss", "sweep"),
    "training": ("fit",),
    "units": ("UnitScores", "Units"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "Add",
    "Anatomy",
    "Batch",
    "HookError",
    "Interchange",
    "Intervention",
    "Layout",
    "LoadError",
    "Mean",
    "Patch",
    "Project",
    "Recording",
    "Resample",
    "Scale",
    "Site",
    "SiteError",
    "Subject",
    "UnitScores",
    "Units",
    "Zero",
    "captured",
    "convert",
    "discoverable",
    "extraction_drop",
    "fit",
    "intervened",
    "load",
    "load_plan",
    "localize",
    "mean_loss",
    "record",
    "save_plan",
    "scan",
    "split",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    if name in {"adapters", "data", "localization", "memorization", "mitigation", "plotting", "stats"}:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
