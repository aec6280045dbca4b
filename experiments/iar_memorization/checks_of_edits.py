"""C1 to C5 and D3: what halving the most selective units removes, and whether halving other units
removes as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from experiments.iar_memorization.mitigation import HALVED, ZEROED
from experiments.iar_memorization.presets import Preset, Public, Trained
from interp.experiment.checks import (
    Check,
    Measure,
    Measured,
    Tables,
    above,
    at_least,
    at_most,
    below,
    bounded,
    constant,
    interval,
    mean,
    minus,
    over_items,
    rows,
)
from interp.reporting.looks import in_percent
from interp.reporting.stats import Interval, statistic_interval

_NO_AUGMENTATION = "UnitMem, 1 view"
# What else could explain a fall: UnitMem without augmented views, its lowest units (if they remove
# as much, selectivity is not the reason) and units that are as active (if they do, activity is).
_OTHERS = (_NO_AUGMENTATION, "lowest", "as active")
_SHOWN = "figures/edits.png"
_EQUAL = "figures/equal_cost.png"
_ZEROED = "figures/zeroed.png"
_LOSS = "held out loss"
_DISTANCE = "distance"
# Fewer than usual: the statistic is computed one resample at a time.
_RESAMPLES = 500


def of_edits(family: str, settings: Preset) -> list[Check]:
    """All checks of a family that are about edits. UnitMem is compared with the last of the
    settings' `methods`."""
    found = [
        *_as_claimed(family, settings),
        *_against_controls(family, settings),
        *_at_equal_cost(family, settings),
    ]
    # Of public models, extraction is itself judged by similarity: D3 would be C1 again.
    if not isinstance(settings, Public):
        found.append(_same_picture(family, settings))
    return found


def _given(family: str, settings: Preset) -> str:
    """From how many tokens the effect of edits is judged, for a statement."""
    return f" (generated from {tokens(settings.judged[family], family, settings)})"


def tokens(given: int, family: str, settings: Preset) -> str:
    """A number of tokens in words, with that of a whole image where it is known."""
    if not isinstance(settings, Trained):
        return f"{given} tokens"
    last = settings.sides[-1]
    whole = sum(side**2 for side in settings.sides) if family == "VAR" else last**2
    return f"{given} of {whole} tokens"


def _edit(family: str, settings: Preset, selection: str, fraction: float) -> dict[str, Any]:
    """The columns that choose the units of a selection, halved; "none" is the unedited model."""
    return {
        "family": family,
        "regime": settings.edited,
        "selection": selection,
        "fraction": fraction,
        "edit": "none" if selection == "none" else HALVED,
    }


def _left(
    family: str, settings: Preset, selection: str, fraction: float, column: str = "extracted"
) -> Measure:
    """The share of the planted images that are left with the units of a selection halved."""
    where = _edit(family, settings, selection, fraction)
    return mean("edited images", column, item="image", bounds=(0, 1), **where)


def _kept(family: str, settings: Preset, selection: str, column: str = "extracted") -> Measure:
    """Of the images that were extracted before an edit, the share that still is; nothing where none
    was."""
    after = _left(family, settings, selection, settings.at[family], column)
    before = _left(family, settings, "none", 0.0, column)

    def kept(tables: Tables) -> pd.Series:
        # The other images could not be lost. Counted as kept or lost, they would hide what an edit
        # does to those that were extracted.
        was = _by_image(before, tables) > 0
        return _by_image(after, tables)[was]

    return over_items(f"share of the {column} images that stays, {selection}", kept, (0, 1))


def _by_image(measure: Measure, tables: Tables) -> pd.Series:
    assert measure.by_item is not None
    return measure.by_item(tables)


def _relative_rise(family: str, settings: Preset) -> Measured:
    """The rise of the Frechet distance under UnitMem's edit, as a fraction of what it was."""
    edited = mean("edits", "distance", **_edit(family, settings, "UnitMem", settings.at[family]))
    unedited = mean("edits", "distance", **_edit(family, settings, "none", 0.0))

    def rise(tables: Tables) -> float | None:
        before = interval(unedited(tables))
        after = interval(edited(tables))
        # Relative, because families begin at different distances; a distance of 0 has no multiple.
        if before is None or after is None or before.estimate <= 0:
            return None
        return after.estimate / before.estimate - 1

    return rise


def _as_claimed(family: str, settings: Preset) -> list[Check]:
    fractions = settings.fractions
    steps = ", ".join(in_percent(fraction) for fraction in fractions)
    if family == "VAR":
        name = "C1"
        reported = "VAR-d30, 10%: 110 of 672 stay"
        reported_steps = None
    else:
        name = "C2"
        reported = "RAR-XXL, 5%: 26 of 75 stay; 10%: 13 (notes)"
        reported_steps = "RAR-XXL: 75, 68, 26, 13 for none, 1, 5 and 10% (notes)"

    def kept(selection: str) -> Measured:
        return _kept(family, settings, selection)

    def least_fall(selection: str) -> Measured:
        levels = [_left(family, settings, "none", 0.0)]
        levels += [_left(family, settings, selection, fraction) for fraction in fractions]
        return bounded(lambda tables: _least_fall(levels, tables), -1, 1)

    return [
        Check(
            id=name,
            statement=f"{family}: halving {in_percent(settings.at[family])} of the units, "
            "chosen by UnitMem, leaves at most 40% of the images that were extracted before"
            f"{_given(family, settings)}",
            measure=kept("UnitMem"),
            threshold=at_most(0.4),
            evidence=_SHOWN,
            controls={selection: kept(selection) for selection in ("random", *_OTHERS)},
            paper=reported,
        ),
        Check(
            id=f"C3 {family}",
            statement=f"halving more units (from none to {steps}) removes more extractions at each "
            f"step, as long as any are left{_given(family, settings)}",
            measure=least_fall("UnitMem"),
            threshold=above(0),
            evidence=_SHOWN,
            controls={
                selection: least_fall(selection) for selection in ("random", _NO_AUGMENTATION)
            },
            paper=reported_steps,
        ),
    ]


def _least_fall(levels: Sequence[Measure], tables: Tables) -> Interval | None:
    """The least fall from one level to the next, with its interval over images; None where nothing
    is extracted at first. Where nothing is left, nothing can fall: such steps do not count."""
    extracted = [_by_image(level, tables).sort_index().to_numpy() for level in levels]

    def least(images: np.ndarray) -> float:
        # The same drawn images at every level: the fall of an image is paired with itself, and
        # chance differences between images cancel.
        shares = [values[images.astype(int)].mean() for values in extracted]
        falls = [one - following for one, following in pairwise(shares) if one > 0]
        return min(falls) if falls else 0.0

    count = len(extracted[0])
    if not extracted[0].any():
        return None
    return statistic_interval([np.arange(count)], least, resamples=_RESAMPLES)


def _same_picture(family: str, settings: Preset) -> Check:
    def kept(selection: str) -> Measured:
        return _kept(family, settings, selection, "alike")

    return Check(
        id=f"D3 {family}",
        statement=f"{family}: with {in_percent(settings.at[family])} of the units halved, "
        "chosen by UnitMem, at least 90% of the completions that showed the same picture before "
        f"still do (correlation above that of 99% of held-out images){_given(family, settings)}",
        measure=kept("UnitMem"),
        threshold=at_least(0.9),
        evidence=_SHOWN,
        controls={
            selection: kept(selection) for selection in ("random", *_OTHERS, *settings.methods)
        },
        source="chosen",
    )


def cheaper(settings: Preset) -> Check:
    """C4, which compares the two families."""

    def rise(family: str) -> Measured:
        return _relative_rise(family, settings)

    def lost(family: str) -> Measured:
        return minus(constant(1), _kept(family, settings, "UnitMem"))

    return Check(
        id="C4",
        statement="halving units chosen by UnitMem raises the Frechet distance, relative to that "
        "of the unedited model, less for VAR than for RAR",
        measure=minus(rise("VAR"), rise("RAR")),
        threshold=below(0),
        evidence=_SHOWN,
        # A cost means little without what it bought.
        controls={f"{family}, extractions lost": lost(family) for family in ("VAR", "RAR")},
        paper="+31% for 84% of extractions (VAR-d30, 10%), +245% for 65% (RAR-XXL, 5%) (notes)",
        opposite=above(0),
        testable=False,
    )


def _against_controls(family: str, settings: Preset) -> list[Check]:
    judged = settings.at[family]
    left_by_random = _left(family, settings, "random", judged)

    def more_than_random(selection: str) -> Measured:
        return minus(left_by_random, _left(family, settings, selection, judged))

    return [
        _more_removed(
            f"C5a {family}",
            f"halving {in_percent(judged)} of the units, chosen by UnitMem, removes more "
            f"extractions than halving the same number of random units in each "
            f"block{_given(family, settings)}",
            more_than_random("UnitMem"),
            _SHOWN,
            {name: more_than_random(name) for name in (*_OTHERS, *settings.methods)},
        )
    ]


def _at_equal_cost(family: str, settings: Preset) -> list[Check]:
    judged = settings.at[family]
    other = next(reversed(settings.methods))

    # What damages a model more removes more, whatever units are edited. So each selection is
    # compared with random units at its own cost, not with the same number of them.
    def advantage(selection: str, cost: str, edit: str = HALVED) -> Measured:
        where = {
            "family": family,
            "regime": settings.edited,
            "selection": selection,
            "fraction": judged,
            "edit": edit,
            "cost": cost,
        }
        return bounded(lambda tables: _advantage(tables, where), -1, 1)

    def others(cost: str, edit: str = HALVED) -> dict[str, Measured]:
        return {name: advantage(name, cost, edit) for name in (*_OTHERS, *settings.methods)}

    def beyond(cost: str, edit: str = HALVED, than: str = "UnitMem") -> Measured:
        return minus(advantage(other, cost, edit), advantage(than, cost, edit))

    def unaugmented(cost: str, edit: str = HALVED) -> dict[str, Measured]:
        return {f"than {_NO_AUGMENTATION}": beyond(cost, edit, _NO_AUGMENTATION)}

    # An advantage that a change of this size in the distance would turn around is no advantage.
    noise = {"deviation of the distance over noises, nothing edited": _noise(family, settings)}
    beats_random = (
        f"removes more extractions than random units ({in_percent(judged)} of all) at equal"
    )
    beats_unitmem = (
        f"{other} removes more extractions than UnitMem ({in_percent(judged)} of all units), "
        "each compared with random units at equal"
    )
    return [
        _more_removed(
            f"C5b {family}",
            f"UnitMem {beats_random} held-out loss",
            advantage("UnitMem", _LOSS),
            _EQUAL,
            others(_LOSS),
        ),
        _more_removed(
            f"C5c {family}",
            f"UnitMem {beats_random} Frechet distance",
            advantage("UnitMem", _DISTANCE),
            _EQUAL,
            others(_DISTANCE) | noise,
        ),
        _more_removed(
            f"C5d {family}",
            f"{other} {beats_random} held-out loss",
            advantage(other, _LOSS),
            _EQUAL,
            others(_LOSS),
        ),
        _more_removed(
            f"C5e {family}",
            f"{other} {beats_random} Frechet distance",
            advantage(other, _DISTANCE),
            _EQUAL,
            others(_DISTANCE) | noise,
        ),
        _more_removed(
            f"C5f {family}",
            f"{beats_unitmem} held-out loss",
            beyond(_LOSS),
            _EQUAL,
            unaugmented(_LOSS),
        ),
        _more_removed(
            f"C5g {family}",
            f"{beats_unitmem} Frechet distance",
            beyond(_DISTANCE),
            _EQUAL,
            unaugmented(_DISTANCE),
        ),
        _more_removed(
            f"C5h {family}",
            f"with in-weights set to zero, UnitMem {beats_random} held-out loss",
            advantage("UnitMem", _LOSS, ZEROED),
            _ZEROED,
            others(_LOSS, ZEROED),
        ),
        _more_removed(
            f"C5i {family}",
            f"with in-weights set to zero, {beats_unitmem} held-out loss",
            beyond(_LOSS, ZEROED),
            _ZEROED,
            unaugmented(_LOSS, ZEROED),
        ),
    ]


def _advantage(tables: Tables, where: Mapping[str, Any]) -> Interval | None:
    """None where random units did not reach the cost of the selection."""
    (row,) = rows(tables["equal cost"], where).to_dict("records")
    if pd.isna(row["advantage"]):
        return None
    return Interval(row["advantage"], row["low"], row["high"], n=int(row["images"]))


def _more_removed(
    name: str, statement: str, measure: Measured, evidence: str, controls: Mapping[str, Measured]
) -> Check:
    """A claim that more is removed, whose opposite is that less is. It is our own: the paper has no
    control."""
    return Check(
        id=name,
        statement=statement,
        measure=measure,
        threshold=above(0),
        evidence=evidence,
        controls=controls,
        source="chosen",
        opposite=below(0),
    )


def _noise(family: str, settings: Preset) -> Measured:
    where = {"family": family, "regime": settings.edited}
    return lambda tables: float(rows(tables["noise"], where)["distance"].std())
