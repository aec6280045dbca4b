"""Every localization method behind one call: `localize`.

A localization method is a function in a table. The decorators `window_method` and `method` add one.
"""

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
from interp.localization.window_rows import RunningMean, concatenate_parts
from interp.progress import track
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.sites.units import UnitScores
from interp.subject.batch import Batch, Batches, batches
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject

Scores = Mapping[Site, np.ndarray]
SetFunction = Callable[..., Scores]
WindowFunction = Callable[..., Mapping[Site, Tensor]]
Places = tuple[Site, ...]
Options = dict[str, Any]  # by name, with their defaults


class Method(Protocol):
    """What `localize` and `localize_each` need of a method.

    `options` holds the names and defaults of its options, or is None for a method that takes any.
    `group` gives one score per unit for all memorized windows together, {site: [units]}, which is
    what `localize` returns; `each` one per unit and memorized window, {site: [memorized windows,
    units]}, for `localize_each`.
    """

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
    """A method that sees all windows at once; see `method`, which makes one.

    Attributes:
        name: name of the method in `localize`.
        of_set: gives {site: [units]}.
        of_each: gives {site: [memorized windows, units]}; None where the method cannot.
        needs_reference: whether it is refused without reference windows.
        recipe: the dataclass whose fields are its options; None where they are the parameters of
            `of_set`.
    """

    name: str
    of_set: SetFunction
    of_each: SetFunction | None
    needs_reference: bool
    recipe: type | None

    @property
    def options(self) -> Options | None:
        if self.recipe is None:
            return _parameters(self.of_set, after=4)  # subject, memorized, reference, sites
        return {field.name: field.default for field in fields(self.recipe)}

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
    """A method that scores each window by itself; see `window_method`, which makes one.

    Attributes:
        name: name of the method in `localize`.
        of_batch: gives {site: [windows of the batch, units]}.
        batch_size: default batch size, in windows.
    """

    name: str
    of_batch: WindowFunction
    batch_size: int

    @property
    def options(self) -> Options | None:
        own = _parameters(self.of_batch, after=3)  # subject, batch, sites
        return None if own is None else {"batch_size": self.batch_size, **own}

    def group(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores:
        # A running mean: the rows of all windows together may be too many for the memory.
        scores = self._mean(subject, memorized, sites, options)
        return self._contrast(scores, subject, reference, sites, options)

    def each(
        self,
        subject: Subject,
        memorized: Batches,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores:
        parts = list(self._rows(subject, memorized, sites, options))
        scores = concatenate_parts(parts)
        return self._contrast(scores, subject, reference, sites, options)

    def _contrast(
        self,
        scores: Scores,
        subject: Subject,
        reference: Batches | None,
        sites: Places,
        options: dict[str, Any],
    ) -> Scores:
        """The scores minus the mean over the reference, where there is one."""
        if reference is None:
            return scores
        against = self._mean(subject, reference, sites, options)
        # [units], or [windows, units] of which each row has the same mean taken off.
        return {site: values - against[site] for site, values in scores.items()}

    def _mean(
        self, subject: Subject, windows: Batches, sites: Places, options: dict[str, Any]
    ) -> Scores:
        mean = RunningMean()
        for rows in self._rows(subject, windows, sites, options):
            mean.update(rows)
        return mean.value()

    def _rows(
        self, subject: Subject, windows: Batches, sites: Places, options: dict[str, Any]
    ) -> Iterator[dict[Site, np.ndarray]]:
        """The scores of each batch, as {site: [windows of the batch, units]}."""
        batch_size = options.get("batch_size", self.batch_size)
        # The registry's own option, which the method's function does not take.
        own = {name: value for name, value in options.items() if name != "batch_size"}

        def score(part: Batch) -> dict[Site, np.ndarray]:
            scores = self.of_batch(subject, part, sites, **own)
            return {site: _to_array(scores[site]) for site in sites}

        limit = BatchLimit()
        for batch in track(batches(windows, batch_size), self.name):
            for _, scores in limit.run(score, batch):
                yield scores


# By name. The decorators below fill it when the modules in `methods` are imported, which the
# package `interp.localization` does.
_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    each: SetFunction | None = None,
    needs_reference: bool = False,
    options: type | None = None,
) -> Callable[[SetFunction], SetFunction]:
    """Registers a localization method that must see all windows at once.

    Decorates `function(subject, memorized, reference, sites, **options)`, which returns
    {site: [units]}, higher for units that are more responsible. `memorized` and `reference` are
    windows in any form that `batches` reads, `reference` None where the caller gave none, and
    `sites` a tuple of Site. A method that can score one window at a time is less to write with
    `window_method`.

    Args:
        name: name of the method in `localize`.
        each: a function of the same arguments for `localize_each`, which returns
            {site: [memorized windows, units]}; without it `localize_each` refuses the method.
        needs_reference: whether to refuse calls without reference windows.
        options: a dataclass whose fields are the options, for a function that takes them as
            `**options`; by default the function's own parameters are the options.

    Example:
        >>> from interp.localization import localize, method, registry
        >>> @method("index")
        ... def index(subject, memorized, reference, sites):
        ...     widths = subject.anatomy.widths(sites)
        ...     return {site: np.arange(width) for site, width in widths.items()}
        >>> list(localize(subject, memorized, method="index", site="blocks.0.neurons").top(1))
        [(Site(point='neurons', block=0, stack=''), 47)]
        >>> del registry._METHODS["index"]  # examples leave no trace
    """

    def register(function: SetFunction) -> SetFunction:
        _METHODS[name] = SetMethod(name, function, each, needs_reference, options)
        return function

    return register


def window_method(name: str, batch_size: int = 8) -> Callable[[WindowFunction], WindowFunction]:
    """Registers a localization method that scores each window by itself.

    Decorates `function(subject, batch, sites, **options)`, which returns {site: tensor [windows of
    the batch, units]}, higher for units that are more responsible. `batch` is a Batch and `sites` a
    tuple of Site. The score of a window must not depend on the other windows of its batch.
    `localize_each` returns these scores for every memorized window, `localize` their mean over the
    memorized windows. Where there are reference windows, both subtract the mean over these.

    Args:
        name: name of the method in `localize`.
        batch_size: default batch size, in windows; also an option of every window method.

    Example:
        >>> from interp.localization import localize, registry, window_method
        >>> @window_method("first_token")
        ... def first_token(subject, batch, sites):
        ...     tokens = batch.tokens[:, :1].double()
        ...     widths = subject.anatomy.widths(sites)
        ...     return {site: tokens.expand(-1, width) for site, width in widths.items()}
        >>> len(localize(subject, memorized, control, method="first_token", batch_size=4))
        96
        >>> del registry._METHODS["first_token"]  # examples leave no trace
    """

    def register(function: WindowFunction) -> WindowFunction:
        _METHODS[name] = WindowMethod(name, function, batch_size)
        return function

    return register


def methods() -> list[str]:
    """Returns the names of all localization methods.

    Example:
        >>> "gradient_x_activation" in interp.localization.methods()
        True
    """
    return sorted(_METHODS)


def localize(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None = None,
    method: str = "gradient_x_activation",
    site: Sites = "neurons",
    **options: Any,
) -> UnitScores:
    """Scores how responsible every unit is for what is memorized; higher means more responsible.

    Args:
        subject: the model.
        memorized: windows as `split` returns them, or batches. Losses are taken over the tokens
            after each batch's prompt.
        reference: windows to compare with, to score what the memorized windows need and these do
            not. Without it, most methods score the memorized windows alone.
        method: one of `interp.localization.methods()`.
        site: a point (`"neurons"`, `"heads"`, or `"blocks"` for what each block adds), a site, a
            pattern, or several of them.
        **options: options of the method.

    Raises:
        ValueError: for an unknown method or option, an empty set, a missing reference, or scores
            that are not finite.
        SiteError: for an unknown site.
        HookError: for a site that never ran.

    Example:
        >>> scores = interp.localize(subject, memorized, control)
        >>> units = scores.top(0.1)
        >>> len(scores), len(units)
        (96, 10)

        Zeroing the units that were found makes the model forget some windows:

        >>> heads = interp.localize(subject, memorized, control, site="heads").top(0.5)
        >>> with subject.intervened(interp.Zero(heads)):
        ...     after = interp.scan(subject, texts, prefix=8, length=8)
        >>> int(frame["exact"].sum()), bool(after["exact"].sum() < 12)
        (12, True)
    """
    chosen = find(method, options)
    sites = _resolve_sites(subject, site)
    memorized = _require_windows("memorized", memorized)
    if reference is not None:
        reference = _require_windows("reference", reference)
    scores = chosen.group(subject, memorized, reference, sites, options)
    return UnitScores(scores, method, {"model": subject.fingerprint, **options})


def localize_each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None = None,
    method: str = "gradient_x_activation",
    site: Sites = "neurons",
    **options: Any,
) -> list[UnitScores]:
    """Scores every unit for each memorized window by itself.

    Args:
        subject, memorized, reference, method, site, **options: as for `localize`.

    Returns:
        One `UnitScores` per memorized window, in their order; `about["window"]` is its number.

    Raises:
        ValueError, SiteError, HookError: as `localize`; and ValueError for a method that can only
            score a set of windows as a whole.

    Example:
        >>> scores = interp.localization.localize_each(subject, memorized[:3], control)
        >>> [one.about["window"] for one in scores]
        [0, 1, 2]
    """
    chosen = find(method, options)
    sites = _resolve_sites(subject, site)
    memorized = _require_windows("memorized", memorized)
    if reference is not None:
        reference = _require_windows("reference", reference)
    rows = chosen.each(subject, memorized, reference, sites, options)

    about = {"model": subject.fingerprint, **options}
    scores: list[UnitScores] = []
    for number in range(len(rows[sites[0]])):
        values = {site: rows[site][number] for site in sites}
        scores.append(UnitScores(values, method, about | {"window": number}))
    return scores


def _resolve_sites(subject: Subject, site: Sites) -> Places:
    sites = subject.anatomy.expand("block_out" if site == "blocks" else site)
    if not sites:
        raise ValueError(
            "no site to score: expected a point such as 'neurons', a site, a pattern, or several"
        )
    return sites


def _require_windows(name: str, windows: Batches) -> Batches:
    """The windows, after checking that there are any."""
    if isinstance(windows, (Batch, pd.DataFrame, Sequence)):
        empty = not len(windows)
    else:
        # A stream can be read only once: its first batch is taken to see whether there is one, and
        # put back at the front.
        stream = iter(windows)
        first = list(islice(stream, 1))
        empty = not first
        windows = chain(first, stream)
    if empty:
        raise ValueError(f"the {name} set is empty: expected at least one window")
    return windows


def find(method: str, options: Mapping[str, Any]) -> Method:
    """Returns the method of a name, after checking the options meant for it.

    Raises:
        ValueError: with the nearest valid name, for an unknown method or option; for an option of
            the wrong type.

    Example:
        >>> find("activation", {"abs_after_means": True})
        Traceback (most recent call last):
        ValueError: activation has no option 'abs_after_means': it takes abs_after_mean, batch_size;
        nearest: abs_after_mean
    """
    if method not in _METHODS:
        known = methods()
        raise ValueError(
            f"method={method!r}: expected one of {', '.join(known)}; "
            f"nearest: {closest(method, known)}"
        )
    found = _METHODS[method]
    defaults = found.options
    if defaults is not None:
        for name, value in options.items():
            _check_option(method, name, value, defaults)
    return found


def _check_option(method: str, name: str, value: object, defaults: Options) -> None:
    if name not in defaults:
        if defaults:
            known = ", ".join(sorted(defaults))
            takes = f"it takes {known}; nearest: {closest(name, defaults)}"
        else:
            takes = "it takes none"
        raise ValueError(f"{method} has no option {name!r}: {takes}")

    # numbers of numpy are as good as Python's; True is an int in Python, but not a sensible count
    default = defaults[name]
    expected_types: dict[type, Any] = {bool: bool, int: Integral, float: Real, str: str}
    # A default of another type, or none at all, says nothing of what is wrong.
    expected = expected_types.get(type(default))
    if expected is not None:
        is_stray_bool = isinstance(value, bool) and expected is not bool
        if not isinstance(value, expected) or is_stray_bool:
            raise ValueError(
                f"{method}: {name}={value!r} is a {type(value).__name__}; "
                f"expected a value of type {type(default).__name__}, such as {default!r}"
            )
    if name == "batch_size" and isinstance(value, int) and value < 1:
        raise ValueError(f"{method}: {name}={value}: expected at least 1")


def _parameters(function: Callable[..., Any], after: int) -> Options | None:
    """The options of a function, by name with their defaults: what follows its first `after`
    parameters; None where it takes any."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name: parameter.default for parameter in parameters[after:]}


def _to_array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
