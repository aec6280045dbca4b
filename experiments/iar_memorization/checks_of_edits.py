"""C1 to C5: what halving the most selective units removes, and whether anything else would."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from experiments.iar_memorization.mitigation import HALVED, ZEROED
from experiments.iar_memorization.presets import Preset, Public
from interp.experiment.checks import (
    Check,
    Measured,
    Tables,
    above,
    at_least,
    at_most,
    below,
    mean,
    minus,
    rows,
)

_OTHERS = ("UnitMem, 1 view", "lowest", "as active")
_SHOWN, _EQUAL, _ZEROED = "figures/edits.png", "figures/equal_cost.png", "figures/zeroed.png"
_LOSS, _DISTANCE = "held out loss", "distance"


def of_edits(family: str, settings: Preset) -> list[Check]:
    """All checks of a family on edits; the one of the settings' `methods` that comes last is held
    against UnitMem."""
    found = [
        *_as_claimed(family, settings),
        *_against_controls(family, settings),
        *_at_equal_cost(family, settings),
    ]
    return found if isinstance(settings, Public) else [*found, _same_picture(family, settings)]


def _left(
    family: str, settings: Preset, selection: str, fraction: float, column: str = "extracted"
) -> Measured:
    where = {
        "family": family,
        "regime": settings.edited,
        "selection": selection,
        "fraction": fraction,
    }
    return mean("edits", column, edit="none" if selection == "none" else HALVED, **where)


def _kept(family: str, settings: Preset, selection: str, column: str = "extracted") -> Measured:
    """The share of what was there before that an edit leaves; all of it where nothing was."""
    after, whole = (
        _left(family, settings, name, share, column)
        for name, share in ((selection, settings.at[family]), ("none", 0.0))
    )
    return lambda tables: after(tables) / whole(tables) if whole(tables) else 1.0


def _as_claimed(family: str, settings: Preset) -> list[Check]:
    fractions, judged = settings.fractions, settings.at[family]
    steps = ", ".join(f"{fraction:.0%}" for fraction in fractions)

    def kept(selection: str) -> Measured:
        return _kept(family, settings, selection)

    def least_fall(selection: str) -> Measured:
        levels = [
            _left(family, settings, "none", 0.0),
            *(_left(family, settings, selection, fraction) for fraction in fractions),
        ]

        def least(tables: Tables) -> float:
            shares = [level(tables) for level in levels]
            return float(
                min((one - next_ for one, next_ in pairwise(shares) if one > 0), default=0.0)
            )  # below nothing nothing falls

        return least

    return [
        Check(
            id="C1" if family == "VAR" else "C2",
            statement=f"{family}: with {judged:.0%} of units halved by UnitMem at most 40% of the extractions stay",
            measure=kept("UnitMem"),
            threshold=at_most(0.4),
            evidence=_SHOWN,
            controls={name: kept(name) for name in ("random", *_OTHERS)},
            paper="VAR-d30, 10%: 110 of 672 stay"
            if family == "VAR"
            else "RAR-XXL, 5%: 26 of 75 stay; 10%: 13 (notes)",
        ),
        Check(
            id=f"C3 {family}",
            statement=f"each step from none to {steps} of units lowers extraction, if there is any left",
            measure=least_fall("UnitMem"),
            threshold=above(0),
            evidence=_SHOWN,
            controls={
                "random": least_fall("random"),
                "UnitMem, 1 view": least_fall("UnitMem, 1 view"),
            },
            paper=None
            if family == "VAR"
            else "RAR-XXL: 75, 68, 26, 13 for none, 1, 5 and 10% (notes)",
        ),
    ]


def _same_picture(family: str, settings: Preset) -> Check:
    judged = settings.at[family]
    return Check(
        id=f"D3 {family}",
        statement=f"with {judged:.0%} halved by UnitMem, 90% of the same pictures come back (correlation beyond 99% of images held out)",
        measure=_kept(family, settings, "UnitMem", "alike"),
        threshold=at_least(0.9),
        evidence=_SHOWN,
        controls={
            name: _kept(family, settings, name, "alike")
            for name in ("random", *_OTHERS, *settings.methods)
        },
        source="chosen",
    )


def cheaper(settings: Preset) -> Check:
    """C4, of both families together."""

    def rise(family: str) -> Measured:
        risen = _kept(family, settings, "UnitMem", _DISTANCE)
        return lambda tables: risen(tables) - 1

    def lost(family: str) -> Measured:
        kept = _kept(family, settings, "UnitMem")
        return lambda tables: 1 - kept(tables)

    return Check(
        id="C4",
        statement="halving units by UnitMem raises the Frechet distance less for VAR than for RAR, each relative to its own",
        measure=minus(rise("VAR"), rise("RAR")),
        threshold=below(0),
        evidence=_SHOWN,
        controls={f"{family}, extractions lost": lost(family) for family in ("VAR", "RAR")},
        paper="+31% for 84% of extractions (VAR-d30, 10%), +245% for 65% (RAR-XXL, 5%) (notes)",
        opposite=above(0),
        testable=False,
    )


def _against_controls(family: str, settings: Preset) -> list[Check]:
    judged = settings.at[family]

    def more_than_random(selection: str) -> Measured:
        return minus(
            _left(family, settings, "random", judged), _left(family, settings, selection, judged)
        )

    controls = {name: more_than_random(name) for name in (*_OTHERS, *settings.methods)}
    statement = f"halving {judged:.0%} of units by UnitMem removes more than random units, as many in each block"
    return [_beats(f"C5a {family}", statement, more_than_random("UnitMem"), _SHOWN, controls)]


def _at_equal_cost(family: str, settings: Preset) -> list[Check]:
    judged, other = settings.at[family], next(reversed(settings.methods))

    def advantage(selection: str, cost: str, edit: str = HALVED) -> Measured:
        where = {
            "family": family,
            "regime": settings.edited,
            "selection": selection,
            "fraction": judged,
            "edit": edit,
        }
        return mean("equal cost", "advantage", cost=cost, **where)

    def others(cost: str, edit: str = HALVED) -> dict[str, Measured]:
        return {name: advantage(name, cost, edit) for name in (*_OTHERS, *settings.methods)}

    def beyond(cost: str, edit: str = HALVED, than: str = "UnitMem") -> Measured:
        return minus(advantage(other, cost, edit), advantage(than, cost, edit))

    def unaugmented(cost: str, edit: str = HALVED) -> dict[str, Measured]:
        return {"than UnitMem, 1 view": beyond(cost, edit, "UnitMem, 1 view")}

    zeroed = advantage("UnitMem", _LOSS, ZEROED)
    noise = {"deviation of the distance over noises, nothing edited": _noise(family, settings)}
    against = f"removes more than random units ({judged:.0%}) at equal"
    apart = f"{other} removes more than UnitMem ({judged:.0%}), each against random units at equal"
    return [
        _beats(
            f"C5b {family}",
            f"UnitMem {against} held-out loss",
            advantage("UnitMem", _LOSS),
            _EQUAL,
            others(_LOSS),
        ),
        _beats(
            f"C5c {family}",
            f"UnitMem {against} Frechet distance",
            advantage("UnitMem", _DISTANCE),
            _EQUAL,
            others(_DISTANCE) | noise,
        ),
        _beats(
            f"C5d {family}",
            f"{other} {against} held-out loss",
            advantage(other, _LOSS),
            _EQUAL,
            others(_LOSS),
        ),
        _beats(
            f"C5e {family}",
            f"{other} {against} Frechet distance",
            advantage(other, _DISTANCE),
            _EQUAL,
            others(_DISTANCE) | noise,
        ),
        _beats(
            f"C5f {family}", f"{apart} held-out loss", beyond(_LOSS), _EQUAL, unaugmented(_LOSS)
        ),
        _beats(
            f"C5g {family}",
            f"{apart} Frechet distance",
            beyond(_DISTANCE),
            _EQUAL,
            unaugmented(_DISTANCE),
        ),
        _beats(
            f"C5h {family}",
            f"zeroed, UnitMem {against} held-out loss",
            zeroed,
            _ZEROED,
            others(_LOSS, ZEROED),
        ),
        _beats(
            f"C5i {family}",
            f"zeroed, {apart} held-out loss",
            beyond(_LOSS, ZEROED),
            _ZEROED,
            unaugmented(_LOSS, ZEROED),
        ),
    ]


def _beats(
    name: str, statement: str, measure: Measured, evidence: str, controls: Mapping[str, Measured]
) -> Check:
    """A claim of ours, for the paper has no control: more is removed, and the opposite is less."""
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
