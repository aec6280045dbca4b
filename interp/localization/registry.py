"""localize: every localization method behind one call. A method is a function in a table; a user adds one with a decorator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from interp.anatomy import Sites
from interp.batch import Batches
from interp.sites import Site, closest
from interp.subject import Subject
from interp.units import UnitScores

Scores = Mapping[Site, np.ndarray]
Method = Callable[..., Scores]
_METHODS: dict[str, Method] = {}


def method(name: str) -> Callable[[Method], Method]:
    """Registers `function(subject, memorized, control, sites, **options) -> {site: scores [units]}` under a name, for `localize`."""

    def register(function: Method) -> Method:
        _METHODS[name] = function
        return function

    return register


def methods() -> list[str]:
    """The names that `localize` knows."""
    return sorted(_METHODS)


def localize(
    subject: Subject, memorized: Batches, control: Batches, method: str = "gradient_x_activation", site: Sites = "neurons", **options: Any
) -> UnitScores:
    """Scores every unit for its share in what is memorized and not in the control; higher means more responsible.

    Args:
        memorized, control: windows as `split` returns them, or batches; losses are taken after each batch's prompt.
        method: one of `methods()`.
        site: a point (`"neurons"`, `"heads"`, `"mlp_out"`), a site, a pattern, or several.
        options: of the method.

    Raises ValueError for an unknown method, an empty set, or scores that are not finite; SiteError for an unknown site; leaves no hook.
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(methods())}; nearest: {closest(method, methods())}")
    for name, windows in (("memorized", memorized), ("control", control)):
        if hasattr(windows, "__len__") and not len(windows):  # pyright: ignore[reportArgumentType]
            raise ValueError(f"the {name} set is empty: expected at least one window")
    sites = subject.anatomy.expand(site)
    if not sites:
        raise ValueError("no site to score: expected a point such as 'neurons', a site, a pattern, or several")
    scores = _METHODS[method](subject, memorized, control, sites, **options)
    return UnitScores(scores, method, {"model": subject.fingerprint, **options})
