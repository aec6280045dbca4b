"""localize: every localization method behind one call. A method is a function in a table; a user
adds one with a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import closest
from interp.progress import track
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.sites.units import UnitScores
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject

Scores = Mapping[Site, np.ndarray]
SetFunction = Callable[..., Scores]
WindowFunction = Callable[..., Mapping[Site, Tensor]]
Places = tuple[Site, ...]
Options = dict[str, Any]  # by name, with their defaults


class Method(Protocol):
    """What `localize` and `localize_each` need of a method."""

    @property
    def options(self) -> Options | None: ...
    def group(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores: ...
    def each(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores: ...


@dataclass(frozen=True)
class SetMethod:
    """A method that sees all windows at once: `of_set` gives {site: [units]}, `of_each` {site:
    [memorized windows, units]}."""

    name: str
    of_set: SetFunction
    of_each: SetFunction | None
    needs_reference: bool
    recipe: type | None

    @property
    def options(self) -> Options | None:
        return (
            _parameters(self.of_set, after=4)
            if self.recipe is None
            else {f.name: f.default for f in fields(self.recipe)}
        )

    def group(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores:
        self._check(reference)
        return self.of_set(subject, memorized, reference, sites, **options)

    def each(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores:
        self._check(reference)
        if self.of_each is None:
            raise ValueError(f"{self.name} scores a set of windows as a whole: use localize")
        return self.of_each(subject, memorized, reference, sites, **options)

    def _check(self, reference: Batches | None) -> None:
        if reference is None and self.needs_reference:
            raise ValueError(
                f"{self.name} compares with other text: expected reference windows, got none"
            )


@dataclass(frozen=True)
class WindowMethod:
    """A method that scores each window by itself, `size` of them at a time."""

    name: str
    of_batch: WindowFunction
    size: int

    @property
    def options(self) -> Options | None:
        own = _parameters(self.of_batch, after=3)
        return None if own is None else {"size": self.size, **own}

    def group(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores:
        return _minus(
            self._mean(subject, memorized, sites, options),
            self._against(subject, reference, sites, options),
        )

    def each(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores:
        parts = list(self._rows(subject, memorized, sites, options))
        stacked = {site: np.concatenate([part[site] for part in parts]) for site in sites}
        return _minus(stacked, self._against(subject, reference, sites, options))

    def _against(
        self, subject: Subject, reference: Batches | None, sites: Places, options: dict[str, Any]
    ) -> Scores | None:
        return None if reference is None else self._mean(subject, reference, sites, options)

    def _mean(
        self, subject: Subject, windows: Batches, sites: Places, options: dict[str, Any]
    ) -> Scores:
        totals: dict[Site, np.ndarray] = {}
        count = 0
        for rows in self._rows(subject, windows, sites, options):
            totals = {site: totals.get(site, 0.0) + rows[site].sum(0) for site in sites}
            count += len(rows[sites[0]])
        return {site: total / count for site, total in totals.items()}

    def _rows(
        self, subject: Subject, windows: Batches, sites: Places, options: dict[str, Any]
    ) -> Iterator[dict[Site, np.ndarray]]:
        own = {name: value for name, value in options.items() if name != "size"}
        for batch in track(batches(windows, options.get("size", self.size)), self.name):
            found = self.of_batch(subject, batch, sites, **own)
            yield {site: _numbers(found[site]) for site in sites}


_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    each: SetFunction | None = None,
    needs_reference: bool = False,
    options: type | None = None,
) -> Callable[[SetFunction], SetFunction]:
    """Registers `function(subject, memorized, reference, sites, **options) -> {site: [units]}` for
    `localize`, and `each`, which gives [memorized windows, units], for `localize_each`. `reference`
    is None where the caller gave none. `options` is the dataclass whose fields are the options, for
    a function that takes them as `**options`.

    For what scores one window at a time, `window_method` is less to write.
    """

    def register(function: SetFunction) -> SetFunction:
        _METHODS[name] = SetMethod(name, function, each, needs_reference, options)
        return function

    return register


def window_method(name: str, size: int = 8) -> Callable[[WindowFunction], WindowFunction]:
    """Registers `function(subject, batch, sites, **options) -> {site: tensor [windows of the batch,
    units]}` for both calls.

    A set scores the mean over its windows minus, where there is a reference, the mean over the
    reference's. Windows come `size` at a time, which is an option of every such method, and none
    may see another.
    """

    def register(function: WindowFunction) -> WindowFunction:
        _METHODS[name] = WindowMethod(name, function, size)
        return function

    return register


def methods() -> list[str]:
    """The names that `localize` knows."""
    return sorted(_METHODS)


def localize(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None = None,
    method: str = "gradient_x_activation",
    site: Sites = "neurons",
    **options: Any,
) -> UnitScores:
    """Scores every unit for its share in what is memorized and, with a reference, not in the
    reference; higher means more responsible.

    Args:
        memorized, reference: windows as `split` returns them, or batches; losses are taken after
            each batch's prompt. Without a reference most methods score the memorized windows alone.
        method: one of `methods()`.
        site: a point (`"neurons"`, `"heads"`, `"blocks"` for what each block adds), a site, a
        pattern, or several.
        options: of the method.

    Raises ValueError for an unknown method or option, an empty set, a missing reference, or scores
    that are not finite; SiteError for an unknown site; HookError for a site that never ran. Leaves
    no hook.
    """
    chosen, sites = find(method, options), _places(subject, site)
    memorized, reference = (
        _some("memorized", memorized),
        None if reference is None else _some("reference", reference),
    )
    return UnitScores(
        chosen.group(subject, memorized, reference, sites, options),
        method,
        {"model": subject.fingerprint, **options},
    )


def localize_each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None = None,
    method: str = "gradient_x_activation",
    site: Sites = "neurons",
    **options: Any,
) -> list[UnitScores]:
    """`localize` for every memorized window by itself, in their order; arguments and errors are the
    same."""
    chosen, sites = find(method, options), _places(subject, site)
    memorized, reference = (
        _some("memorized", memorized),
        None if reference is None else _some("reference", reference),
    )
    rows = chosen.each(subject, memorized, reference, sites, options)
    about = {"model": subject.fingerprint, **options}
    count = len(rows[sites[0]])
    return [
        UnitScores({s: rows[s][n] for s in sites}, method, about | {"window": n})
        for n in range(count)
    ]


def _places(subject: Subject, site: Sites) -> Places:
    sites = subject.anatomy.expand("block_out" if site == "blocks" else site)
    if not sites:
        raise ValueError(
            "no site to score: expected a point such as 'neurons', a site, a pattern, or several"
        )
    return sites


def _some(name: str, windows: Batches) -> Batches:
    """The windows, once it is known that there are any; of a stream, the first batch is read for
    that."""
    if isinstance(windows, (Batch, pd.DataFrame, Sequence)):
        empty, found = not len(windows), windows
    else:
        stream = iter(windows)
        first = list(islice(stream, 1))
        empty, found = not first, chain(first, stream)
    if empty:
        raise ValueError(f"the {name} set is empty: expected at least one window")
    return found


def find(method: str, options: Mapping[str, Any]) -> Method:
    """The method of a name. Raises ValueError, with the nearest valid name, when there is none, or
    when it does not take an option."""
    if method not in _METHODS:
        raise ValueError(
            f"method={method!r}: expected one of {', '.join(methods())}; nearest: {closest(method, methods())}"
        )
    known = _METHODS[method].options
    for name, value in options.items():
        if known is None:
            break
        if name not in known:
            takes = (
                f"it takes {', '.join(sorted(known))}; nearest: {closest(name, known)}"
                if known
                else "it takes none"
            )
            raise ValueError(f"{method} has no option {name!r}: {takes}")
        _check_kind(method, name, value, known[name])
    return _METHODS[method]


def _check_kind(method: str, name: str, value: object, default: object) -> None:
    """Raises ValueError for a value of another kind than the option's default, and for a size below
    1."""
    kinds: dict[type, Any] = {bool: bool, int: Integral, float: Real, str: str}
    kind = kinds.get(type(default))
    if kind is not None and (
        not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    ):
        raise ValueError(
            f"{method}: {name}={value!r} is a {type(value).__name__}; expected a {type(default).__name__}, such as {default!r}"
        )
    if name == "size" and isinstance(value, int) and value < 1:
        raise ValueError(f"{method}: {name}={value}: expected at least 1")


def _parameters(function: Callable[..., Any], after: int) -> Options | None:
    """The options of a function, by name with their defaults: what follows its first `after`
    parameters; None where it takes any."""
    parameters = list(inspect.signature(function).parameters.values())
    return (
        None
        if any(p.kind is p.VAR_KEYWORD for p in parameters)
        else {p.name: p.default for p in parameters[after:]}
    )


def _minus(scores: Scores, against: Scores | None) -> Scores:
    return (
        scores
        if against is None
        else {site: values - against[site] for site, values in scores.items()}
    )


def _numbers(values: Any) -> np.ndarray:
    return (
        values.detach().double().cpu().numpy()
        if isinstance(values, torch.Tensor)
        else np.asarray(values, dtype=np.float64)
    )
