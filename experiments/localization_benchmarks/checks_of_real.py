"""R1 to R6: for each method, whether its neurons serve the studied texts or licence language in
general. There is one model and one corpus, so intervals are over texts and nothing is judged.

Sets are compared by their excess: the rise of the loss (nats per token) under a method's top units
beyond that under units that are as active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp.experiment.checks import Check, Measure, Measured, Tables, above, below, rows
from interp.reporting.looks import in_percent
from interp.reporting.stats import Bounds, Interval, MeanOverSeeds, welch_interval

SELECTIONS = ("random", "as active", "lowest")
_GROUPS = {
    "this text": ("texts_test",),
    "other format": ("other_format",),
    "studied, by fold": ("fold: studied",),
    "unstudied, by fold": ("fold: unstudied",),
    "code and prose, by fold": ("fold: code", "fold: prose"),
    "nearly exact": ("nearly",),
    "half known": ("half_known",),
    "paraphrased": ("paraphrased",),
    "other memorized": ("memorized", "rules"),
    "code and prose": ("code", "prose"),
}
# For each claim: the group that is claimed to lose more, the other group, and what that would mean.
_COMPARED = {
    "R3": ("paraphrased", "code and prose"),
    "R4": ("unstudied, by fold", "code and prose, by fold"),
    "R5": ("studied, by fold", "unstudied, by fold"),
    "R6": ("this text", "other memorized"),
}
_MEANING = {
    "R3": "serve licence language: licences in other words lose more than code and prose",
    "R4": "serve memorized licences in general: scored on two of the exactly extracted licences, "
    "the other two lose more than code and prose",
    "R5": "serve the licences that they were scored on: scored on two of the exactly extracted "
    "licences, other passages of these lose more than the other two",
    "R6": "serve licences, not memorized text in general: the studied texts lose more than other "
    "memorized text",
}


def checks_of(methods: Sequence[str], headline: float) -> list[Check]:
    """All checks of some methods, at the fraction of the neurons that claims are about."""
    found: list[Check] = []
    for method in methods:
        found += _against_controls(method, headline)
        found += _between_sets(method, headline)
    return found


def _against_controls(method: str, headline: float) -> list[Check]:
    cost = (
        f"zeroing {in_percent(headline)} of the neurons, chosen by {method}, costs passages "
        "that they were not scored on more accuracy than zeroing"
    )
    falls: dict[str, Measured] = {}
    for name in ("top", *SELECTIONS):
        falls[f"fall by {name}"] = _fall(method, headline, name)
    activity = {"activity of the latter, by that of the selection": _activity(method, headline)}
    about: dict[str, Any] = {
        "threshold": above(0),
        "opposite": below(0),
        "evidence": "figures/controls.png",
        "source": "chosen",
    }
    return [
        Check(
            id=f"R1 {method}",
            statement=f"{cost} random neurons of the same blocks",
            measure=_beyond(method, headline, "random"),
            controls=falls,
            **about,
        ),
        Check(
            id=f"R2 {method}",
            statement=f"{cost} random neurons that are as active",
            measure=_beyond(method, headline, "as active"),
            controls=falls | activity,
            **about,
        ),
    ]


def _between_sets(method: str, headline: float) -> list[Check]:
    excess: dict[str, Measured] = {name: _excess(method, headline, name) for name in _GROUPS}
    found: list[Check] = []
    for name, (larger, smaller) in _COMPARED.items():
        check = Check(
            id=f"{name} {method}",
            statement=f"neurons chosen by {method} {_MEANING[name]}",
            measure=_difference(method, headline, larger, smaller),
            threshold=above(0),
            opposite=below(0),
            evidence="figures/question.png",
            source="chosen",
            controls=excess,
        )
        found.append(check)
    return found


def over_texts(values: Any, bounds: Bounds | None) -> Interval:
    """The mean over texts with its interval, which is Student's where there are no bounds. Each
    text counts as one value: there is one model, and no seeds to average over.

    Args:
        values: one per text.
        bounds: the least and the largest value that there can be.
    """
    texts = [Interval(float(value), float(value), float(value), n=1) for value in values]
    return texts[0] if len(texts) == 1 else MeanOverSeeds(texts, bounds).interval


def _by_selection(tables: Tables, method: str, headline: float) -> dict[str, Any]:
    """The rows of each selection, by set and text."""
    chosen: Any = rows(tables["texts"], {"method": method, "fraction": headline})
    groups = chosen.groupby("selected")
    return {str(name): part.set_index(["data", "source"]) for name, part in groups}


def _not_scored_on(tables: Tables, method: str, headline: float, selection: str) -> Any:
    """The rows of a selection, of the passages that units were not scored on."""
    return _by_selection(tables, method, headline)[selection].loc["texts_test"]


def _fall(method: str, headline: float, selection: str) -> Measure:
    def fall(tables: Tables) -> Any:
        texts = _not_scored_on(tables, method, headline, selection)
        return over_texts(texts["accuracy_change"], (-1, 1))

    return Measure(f"fall of accuracy, {selection}", fall, (-1, 1))


def _beyond(method: str, headline: float, selection: str) -> Measure:
    """By how much more accuracy falls than with the units of a control, text by text."""

    def beyond(tables: Tables) -> Any:
        top = _not_scored_on(tables, method, headline, "top")
        control = _not_scored_on(tables, method, headline, selection)
        # Paired: texts differ in how much they lose to anything, and the difference within a text
        # does not.
        return over_texts(top["accuracy_change"] - control["accuracy_change"], (-1, 1))

    return Measure(f"fall of accuracy beyond {selection}", beyond, (-1, 1))


def _activity(method: str, headline: float) -> Measured:
    def ratio(tables: Tables) -> float:
        control = _not_scored_on(tables, method, headline, "as active")["activity"].mean()
        top = _not_scored_on(tables, method, headline, "top")["activity"].mean()
        # The most active units have no equals to be matched with. This says how near the controls
        # come.
        return float(control / top)

    return ratio


def _excesses(tables: Tables, method: str, headline: float) -> Mapping[str, Any]:
    """For each group of sets, by how much more the loss of each text rises (nats per token) than
    under units that are as active."""
    by_selection = _by_selection(tables, method, headline)
    # Zeroing active units raises any loss. What units cost that are merely as active is subtracted,
    # so that what is left is due to which units were chosen.
    excess: Any = by_selection["top"]["loss_change"] - by_selection["as active"]["loss_change"]
    groups: dict[str, Any] = {}
    for name, sets in _GROUPS.items():
        # A list of one set keeps both levels of the index, so that parts of several sets join.
        groups[name] = pd.concat([excess.loc[[data]] for data in sets])
    return groups


def _excess(method: str, headline: float, group: str) -> Measured:
    return lambda tables: over_texts(_excesses(tables, method, headline)[group], None)


def _difference(method: str, headline: float, larger: str, smaller: str) -> Measured:
    def difference(tables: Tables) -> Any:
        excesses = _excesses(tables, method, headline)
        # Groups are different texts, of unequal number and spread: they can be neither paired nor
        # pooled.
        return welch_interval(excesses[larger], excesses[smaller])

    return difference
