"""Which units and layers hold a memory: `localize` and its methods, one file each. What ablating them does is `mitigation`'s business."""

from interp.localization import activation, baselines, flipping, gradient, integrated, masks, patching, tracing, unitmem, zero_out
from interp.localization.registry import localize, localize_each, method, methods, window_method

__all__ = [
    "activation",
    "baselines",
    "flipping",
    "gradient",
    "integrated",
    "localize",
    "localize_each",
    "masks",
    "method",
    "methods",
    "patching",
    "tracing",
    "unitmem",
    "window_method",
    "zero_out",
]
