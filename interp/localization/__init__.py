"""Which units and layers hold a memory: `localize` and its methods, one file each. What ablating them does is `mitigation`'s business."""

from interp.localization import gradient, unitmem
from interp.localization.registry import localize, method, methods

__all__ = ["gradient", "localize", "method", "methods", "unitmem"]
