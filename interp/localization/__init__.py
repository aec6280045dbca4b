"""WHICH UNITS hold a memory: `localize` and its methods, one file each in `methods`; `benchmarks`
with known answers.

What is computed at those units is the business of `interp.analysis`, and what ablating them does
that of `interp.mitigation`.
"""

from interp.localization import methods as _methods  # registers every method
from interp.localization.registry import localize, localize_each, method, methods, window_method

__all__ = ["localize", "localize_each", "method", "methods", "window_method"]
del _methods
