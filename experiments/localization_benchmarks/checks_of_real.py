"""R1 to R6, what the question comes to for each method: one model and one corpus, so intervals are
over texts and nothing is judged.

Differences between sets are differences of excess: what the top units do to the loss beyond what
units as active do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp.experiment.checks import Check, Measure, Measured, Tables, above, below, rows
from interp.reporting.stats import student, welch

_GROUPS = {
    "this text": ("texts_test",), "other format": ("other_format",), "unstudied": ("unstudied",), "half known": ("half_known",),
    "paraphrased": ("paraphrased",), "other memorized": ("memorized", "rules"), "code and prose": ("code", "prose"),
}  # fmt: skip
_COMPARED = {  # the group that is claimed to lose more, and the other one
    "R3": ("paraphrased", "code and prose"),
    "R4": ("unstudied", "code and prose"),
    "R5": ("this text", "unstudied"),
    "R6": ("this text", "other memorized"),
}
_MEANING = {
    "R3": "of licence language: in other words it loses more than code and prose",
    "R4": "of known licences, whichever: those that were not studied lose more than code and prose",
    "R5": "of these texts: they lose more than known licences that were not studied",
    "R6": "of licences, not of memory as such: these texts lose more than other memorized text",
}
SELECTIONS = ("random", "as active", "lowest")


def checks_of(methods: Sequence[str], headline: float) -> list[Check]:
    """All checks of some methods, at the fraction of the neurons that claims are about."""
    return [
        check
        for method in methods
        for check in (*_against_controls(method, headline), *_between_sets(method, headline))
    ]


def _against_controls(method: str, headline: float) -> list[Check]:
    cost = f"{headline:.1%} of the neurons, by {method}, cost passages that they were not scored on more accuracy than"
    falls: dict[str, Measured] = {
        f"fall by {name}": _fall(method, headline, name) for name in ("top", *SELECTIONS)
    }
    about: dict[str, Any] = {
        "threshold": above(0),
        "opposite": below(0),
        "evidence": "figures/controls.png",
        "source": "chosen",
    }
    return [
        Check(
            id=f"R1 {method}",
            statement=f"{cost} random ones of the same blocks",
            measure=_beyond(method, headline, "random"),
            controls=falls,
            **about,
        ),
        Check(
            id=f"R2 {method}",
            statement=f"{cost} random ones that are as active",
            measure=_beyond(method, headline, "as active"),
            controls=falls
            | {"activity of the latter, by that of the selection": _activity(method, headline)},
            **about,
        ),
    ]


def _between_sets(method: str, headline: float) -> list[Check]:
    excess: dict[str, Measured] = {name: _excess(method, headline, name) for name in _GROUPS}
    found: list[Check] = []
    for name, (larger, smaller) in _COMPARED.items():
        check = Check(
            id=f"{name} {method}",
            statement=f"neurons by {method} are {_MEANING[name]}",
            measure=_difference(method, headline, larger, smaller),
            threshold=above(0),
            opposite=below(0),
            evidence="figures/question.png",
            source="chosen",
            controls=excess,
        )
        found.append(check)
    return found


def _by_selection(tables: Tables, method: str, headline: float) -> dict[str, Any]:
    """The rows of each selection, by set and text."""
    chosen: Any = rows(tables["texts"], {"method": method, "fraction": headline})
    return {
        str(name): part.set_index(["data", "source"]) for name, part in chosen.groupby("selected")
    }


def _own(tables: Tables, method: str, headline: float, selection: str) -> Any:
    """The same of the passages that units were not scored on."""
    return _by_selection(tables, method, headline)[selection].loc["texts_test"]


def _fall(method: str, headline: float, selection: str) -> Measure:
    label = f"fall of accuracy, {selection}"
    return Measure(
        label, lambda tables: student(_own(tables, method, headline, selection)["accuracy_change"])
    )


def _beyond(method: str, headline: float, selection: str) -> Measure:
    """By how much more accuracy falls than with the units of a control, text by text."""

    def beyond(tables: Tables) -> Any:
        top = _own(tables, method, headline, "top")["accuracy_change"]
        return student(top - _own(tables, method, headline, selection)["accuracy_change"])

    return Measure(f"fall of accuracy beyond {selection}", beyond)


def _activity(method: str, headline: float) -> Measured:
    def ratio(tables: Tables) -> float:
        active, top = (
            _own(tables, method, headline, name)["activity"].mean() for name in ("as active", "top")
        )
        return float(active / top)

    return ratio


def _excesses(tables: Tables, method: str, headline: float) -> Mapping[str, Any]:
    """For each group of sets, what each text loses (nats/token) beyond what units as active cost
    it."""
    by = _by_selection(tables, method, headline)
    excess: Any = by["top"]["loss_change"] - by["as active"]["loss_change"]
    return {
        name: pd.concat([excess.loc[[data]] for data in sets]) for name, sets in _GROUPS.items()
    }


def _excess(method: str, headline: float, group: str) -> Measured:
    return lambda tables: student(_excesses(tables, method, headline)[group])


def _difference(method: str, headline: float, larger: str, smaller: str) -> Measured:
    def difference(tables: Tables) -> Any:
        excesses = _excesses(tables, method, headline)
        return welch(excesses[larger], excesses[smaller])

    return difference
