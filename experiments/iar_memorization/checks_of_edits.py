"""C1 to C5: what halving the most selective units removes, and whether anything else would."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.iar_memorization.mitigation import HALVED, ZEROED
from experiments.iar_memorization.study import Settings, Tables
from experiments.iar_memorization.terms import Check, Measure, above, below, mean, minus

_OTHERS = ("UnitMem, 1 view", "lowest", "as active")
_SHOWN, _EQUAL, _ZEROED = "figures/edits.png", "figures/equal_cost.png", "figures/zeroed.png"
_LOSS, _DISTANCE = "held out loss", "distance"


def of_edits(family: str, settings: Settings) -> list[Check]:
    """All checks of a family on edits; the one of the settings' `methods` that comes last is held against UnitMem."""
    return [*_as_claimed(family, settings), *_against_controls(family, settings), *_at_equal_cost(family, settings)]


def _middle(settings: Settings) -> float:
    fractions = settings["fractions"]
    return fractions[len(fractions) // 2]


def _left(family: str, settings: Settings, selection: str, fraction: float, column: str = "extracted") -> Measure:
    where = {"family": family, "regime": settings["edited"], "selection": selection, "fraction": fraction}
    return mean("edits", column, edit="none" if selection == "none" else HALVED, **where)


def _as_claimed(family: str, settings: Settings) -> list[Check]:
    fractions, middle = settings["fractions"], _middle(settings)
    before = _left(family, settings, "none", 0.0)

    def kept(selection: str, column: str = "extracted") -> Measure:
        after, whole = (_left(family, settings, name, share, column) for name, share in ((selection, middle), ("none", 0.0)))
        return lambda tables: after(tables) / max(whole(tables), 1e-9)

    def least_fall(tables: Tables) -> float:
        shares = [before(tables), *(_left(family, settings, "UnitMem", fraction)(tables) for fraction in fractions)]
        return float(-np.diff(shares).max())

    return [
        Check(
            "C1" if family == "VAR" else "C2",
            f"{family}: with {middle:.0%} of units halved by UnitMem at most 40% of the extractions stay",
            kept("UnitMem"),
            lambda share: share <= 0.4,
            _SHOWN,
            {name: kept(name) for name in ("random", "lowest", "as active")},
            "VAR-d30, 10%: 110 of 672 stay; RAR-XXL, 5%: 26 of 75 (notes)",
        ),
        Check(
            f"D3 {family}",
            f"with {middle:.0%} halved by UnitMem at least 90% still come back as the same picture (as like as 1% of images held out)",
            kept("UnitMem", "alike"),
            lambda share: share >= 0.9,
            _SHOWN,
            {name: kept(name, "alike") for name in ("random", "lowest", *settings["methods"])},
            source="chosen",
        ),
        Check(
            f"C3 {family}",
            f"each step from none to {', '.join(f'{fraction:.0%}' for fraction in fractions)} of units lowers extraction",
            least_fall,
            above(0),
            _SHOWN,
            paper="RAR-XXL: 75, 68, 26, 13 (notes)",
        ),
    ]


def _against_controls(family: str, settings: Settings) -> list[Check]:
    middle = _middle(settings)

    def more_than_random(selection: str) -> Measure:
        return minus(_left(family, settings, "random", middle), _left(family, settings, selection, middle))

    controls = {name: more_than_random(name) for name in (*_OTHERS, *settings["methods"])}
    statement = f"halving {middle:.0%} of units by UnitMem removes more than random units, as many in each block"
    return [_beats(f"C5a {family}", statement, more_than_random("UnitMem"), _SHOWN, controls)]


def _at_equal_cost(family: str, settings: Settings) -> list[Check]:
    middle, other = _middle(settings), next(reversed(settings["methods"]))

    def advantage(selection: str, cost: str, edit: str = HALVED) -> Measure:
        where = {"family": family, "regime": settings["edited"], "selection": selection, "fraction": middle, "edit": edit}
        return mean("equal cost", "advantage", cost=cost, **where)

    def others(cost: str, edit: str = HALVED) -> dict[str, Measure]:
        return {name: advantage(name, cost, edit) for name in (*_OTHERS, *settings["methods"])}

    def beyond(cost: str, edit: str = HALVED) -> Measure:
        return minus(advantage(other, cost, edit), advantage("UnitMem", cost, edit))

    zeroed = advantage("UnitMem", _LOSS, ZEROED)
    against = f"removes more than random units ({middle:.0%}) at equal"
    apart = f"{other} removes more than UnitMem ({middle:.0%}), each against random units at equal"
    return [
        _beats(f"C5b {family}", f"UnitMem {against} held-out loss", advantage("UnitMem", _LOSS), _EQUAL, others(_LOSS)),
        _beats(f"C5c {family}", f"UnitMem {against} Frechet distance", advantage("UnitMem", _DISTANCE), _EQUAL, others(_DISTANCE)),
        _beats(f"C5d {family}", f"{other} {against} held-out loss", advantage(other, _LOSS), _EQUAL, others(_LOSS)),
        _beats(f"C5e {family}", f"{other} {against} Frechet distance", advantage(other, _DISTANCE), _EQUAL, others(_DISTANCE)),
        _beats(f"C5f {family}", f"{apart} held-out loss", beyond(_LOSS), _EQUAL, {}),
        _beats(f"C5g {family}", f"{apart} Frechet distance", beyond(_DISTANCE), _EQUAL, {}),
        _beats(f"C5h {family}", f"zeroed, UnitMem {against} held-out loss", zeroed, _ZEROED, others(_LOSS, ZEROED)),
        _beats(f"C5i {family}", f"zeroed, {apart} held-out loss", beyond(_LOSS, ZEROED), _ZEROED, {}),
    ]


def _beats(name: str, statement: str, measure: Measure, evidence: str, controls: Mapping[str, Measure]) -> Check:
    """A claim of ours, for the paper has no control: more is removed, and the opposite is less."""
    return Check(name, statement, measure, above(0), evidence, controls, source="chosen", opposite=below(0))
