"""Which units and layers hold a memory: `localize` and its methods, one file each; and what is computed where: `probes`, `subspaces`,
`circuits`, `outliers`, `heuristics`. What ablating units does is `mitigation`'s business."""

from interp.localization import (
    activation,
    baselines,
    circuits,
    flipping,
    gradient,
    heuristics,
    integrated,
    masks,
    outliers,
    patching,
    probes,
    subspaces,
    tracing,
    unitmem,
    zero_out,
)
from interp.localization.registry import localize, localize_each, method, methods, window_method

__all__ = [
    "activation",
    "baselines",
    "circuits",
    "flipping",
    "gradient",
    "heuristics",
    "integrated",
    "localize",
    "localize_each",
    "masks",
    "method",
    "methods",
    "outliers",
    "patching",
    "probes",
    "subspaces",
    "tracing",
    "unitmem",
    "window_method",
    "zero_out",
]
