"""The claims of the paper (B1 to B9), judged where each method first meets the thresholds.

Thresholds on these claims were fixed on a pilot with another seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.code_eraser.paths import FORGETTING
from experiments.code_eraser.presets import NEVER_READ, NONE, Preset
from interp.experiment.checks import (
    Check,
    Measure,
    Tables,
    above,
    at_least,
    at_most,
    below,
    minus,
    over_items,
    rows,
)
from interp.memorization.recitation import NGRAMS, reduction
from interp.reporting.stats import Bounds

_PAPER_METHODS = ("GA", "CU", "CodeEraser")
_SHARE = (0.0, 1.0)
_EVIDENCE = "figures/costs.png"


def checks(preset: Preset) -> list[Check]:
    """All checks."""
    return [
        *_memorized(),
        *_forgotten(preset),
        *_utility(),
        *_retained(),
        *_settings(preset),
    ]


def of_files(
    removal: str, data: str, column: str, point: str = FORGETTING, bounds: Bounds | None = _SHARE
) -> Measure:
    """Returns the mean over files of what a model recites after a removal, or without one.

    It is not measured where the removal did not reach the point.
    """

    def by_item(tables: Tables) -> pd.Series:
        table = tables["files"]
        chosen = (table["removal"] == removal) & (table["data"] == data)
        # A model without a removal is measured once, and its point is empty.
        if removal not in (NONE, NEVER_READ):
            chosen &= table["point"] == point
        found: Any = table[chosen]
        return found.set_index("file")[column]

    return over_items(f"{column} of {data} after {removal}", by_item, bounds)


def rise(removal: str) -> Measure:
    """Returns by how much a removal raises the loss on held-out code, in nats per token."""
    after = of_files(removal, "held out", "loss", bounds=None)
    return minus(after, of_files(NONE, "held out", "loss", bounds=None))


def lost(removal: str, data: str, column: str = "ma") -> Measure:
    """Returns how much less of a set a model recites after a removal than before."""
    return minus(of_files(NONE, data, column), of_files(removal, data, column))


def _memorized() -> list[Check]:
    return [
        Check(
            id="B1 secrets",
            measure=of_files(NONE, "forget", "ma"),
            threshold=at_least(0.95),
            source="inferred",
            statement="secrets in code are memorized: MA is {threshold}",
            paper="about 7% of training samples are above the level of unseen code",
            controls={
                "in a model that never read these files": of_files(NEVER_READ, "forget", "ma"),
                "exactly": of_files(NONE, "forget", "exact"),
            },
            evidence="tables/files.parquet",
        ),
        Check(
            id="B1 threshold",
            measure=of_files(NONE, "twins", "ma"),
            threshold=at_most(0.5),
            source="inferred",
            statement="of secrets that were never read, in the same files, MA is {threshold}",
            paper=".41 to .54, of unseen code",
            controls={"of unseen code, all tokens": of_files(NONE, "held out", "ma")},
            evidence="tables/files.parquet",
        ),
    ]


def _forgotten(preset: Preset) -> list[Check]:
    """B2: every method of the paper forgets."""
    papers = {"GA": "84 to 91%", "CU": "89 to 93%", "CodeEraser": "83 to 94%"}
    return [
        Check(
            id=f"B2 {name}",
            measure=Measure(f"reduction by {name}", _reduction_by(name)),
            threshold=at_least(0.8),
            requires=_reaches(name),
            statement=f"{name} meets the thresholds within {preset.setup.epochs} epochs, and "
            "reduces MA, EL_3, EL_5 and EL_10 of the secrets by {threshold} on average",
            paper=paper,
            controls={
                "MA": of_files(name, "forget", "ma"),
                "MA of never-read secrets": of_files(name, "twins", "ma"),
            },
            evidence="figures/training.png",
        )
        for name, paper in papers.items()
    ]


def _reduction_by(name: str) -> Any:
    def of(tables: Tables) -> float | None:
        before = _recited(tables, {"removal": NONE})
        after = _recited(tables, {"removal": name, "point": FORGETTING})
        # On a seed where the method does not get there, nothing is measured.
        if before is None or after is None:
            return None
        # A share of nothing is not defined: what was recited nowhere cannot be reduced.
        return None if min(before.values()) == 0 else reduction(before, after)

    return of


def _recited(tables: Tables, where: Mapping[str, Any]) -> dict[str, float] | None:
    try:
        found = rows(tables["files"], {**where, "data": "forget"})
    except LookupError:
        return None
    columns = ["ma", *(f"el_{n}" for n in NGRAMS)]
    return {name: float(found[name].mean()) for name in columns}


def _reaches(name: str) -> Any:
    return lambda tables: _recited(tables, {"removal": name, "point": FORGETTING}) is not None


def _utility() -> list[Check]:
    """B3 to B5, B9 and P1: what forgetting costs."""
    context = {name: of_files(name, "context", "accuracy") for name in ("GA", "SSGA", "CodeEraser")}
    return [
        _cheaper_than("GA"),
        _cheaper_than("CU"),
        Check(
            id="B4",
            measure=minus(context["CodeEraser"], context["GA"]),
            threshold=at_least(0.10),
            opposite=below(0),
            source="inferred",
            statement="CodeEraser keeps the code around the secrets better than gradient ascent on "
            "whole files: the difference in accuracy is {threshold}",
            paper="the motivation of the method, without a number",
            controls={
                "before": of_files(NONE, "context", "accuracy"),
                "SSGA minus GA": minus(context["SSGA"], context["GA"]),
            },
            evidence=_EVIDENCE,
        ),
        Check(
            id="B5",
            measure=minus(rise("GA"), rise("CU")),
            threshold=above(0),
            opposite=below(0),
            statement="the retained set of CU saves utility: its rise of the held-out loss is "
            "smaller than that of GA, and the difference in nats per token is {threshold}",
            paper="not reliably: on 2 of 5 models",
            evidence=_EVIDENCE,
        ),
        Check(
            id="B9",
            # Both stop at their first measurement below the thresholds: what differs is by how far.
            measure=minus(of_files("GA", "forget", "ma"), of_files("CodeEraser", "forget", "ma")),
            threshold=below(0.05),
            opposite=at_least(0.05),
            source="inferred",
            statement="CodeEraser need not forget more to keep more: where both have just met the "
            "thresholds, the MA of GA minus that of CodeEraser is {threshold}",
            paper="on two of five models it forgets less and keeps more",
            evidence=_EVIDENCE,
        ),
        *(_leaves_other_secrets(name) for name in _PAPER_METHODS),
    ]


def _cheaper_than(name: str) -> Check:
    return Check(
        id=f"B3 {name}",
        measure=minus(rise(name), rise("CodeEraser")),
        threshold=above(0),
        opposite=below(0),
        statement=f"CodeEraser raises the loss on held-out code less than {name} when both have "
        "just forgotten: the difference in nats per token is {threshold}",
        paper="utility left: 89 to 102% against 50 to 89%",
        controls={
            "rise by CodeEraser": rise("CodeEraser"),
            f"rise by {name}": rise(name),
            "rise by SSGA": rise("SSGA"),
        },
        evidence=_EVIDENCE,
    )


def _leaves_other_secrets(name: str) -> Check:
    return Check(
        id=f"P1 {name}",
        measure=lost(name, "others"),
        threshold=at_most(0.05),
        opposite=above(0.05),
        source="chosen",
        statement=f"forgetting some secrets with {name} leaves other secrets: their MA falls by "
        "{threshold}",
        controls={
            "other memorized code": lost(name, "memorized"),
            "MA of the other secrets": of_files(name, "others", "ma"),
        },
        evidence=_EVIDENCE,
    )


def _retained() -> list[Check]:
    """B8: the retained set stays."""
    kept = {name: of_files(name, "retained", "ma") for name in ("GA", "CodeEraser")}
    before = of_files(NONE, "retained", "ma")
    return [
        Check(
            id="B8 kept",
            measure=minus(before, kept["CodeEraser"]),
            threshold=at_most(0.02),
            opposite=above(0.02),
            source="inferred",
            statement="CodeEraser keeps the retained code memorized: its MA falls by {threshold}",
            paper="the goal of the method, without a number",
            controls={
                "memorized code it was not told to keep": lost("CodeEraser", "memorized"),
                "GA": lost("GA", "retained"),
            },
            evidence=_EVIDENCE,
        ),
        Check(
            id="B8 GA",
            measure=minus(kept["CodeEraser"], kept["GA"]),
            threshold=above(0),
            opposite=below(0),
            source="inferred",
            statement="CodeEraser keeps more of the retained code than GA: the difference in MA is "
            "{threshold}",
            evidence=_EVIDENCE,
        ),
    ]


def _settings(preset: Preset) -> list[Check]:
    """B6 and B7: how many files, and what the learning rate does."""
    fewest, most = min(preset.counts), max(preset.counts)

    def at(setting: str, value: float, column: str) -> Measure:
        def of(tables: Tables) -> float:
            found = rows(tables["settings"], {"setting": setting, "value": value})
            return float(found[column].iloc[0])

        return Measure(f"{column} at {setting} {value:g}", of)

    def spread(setting: str) -> Measure:
        def of(tables: Tables) -> float:
            found: Any = rows(tables["settings"], {"setting": setting})["rise"]
            return float(found.max() - found.min())

        return Measure(f"spread over {setting}", of)

    def all_forgotten(setting: str) -> Any:
        def holds(tables: Tables) -> bool:
            found = rows(tables["settings"], {"setting": setting})["forgotten"]
            return bool(found.all())

        return holds

    return [
        Check(
            id="B6",
            measure=minus(at("files", most, "rise"), at("files", fewest, "rise")),
            threshold=at_most(0.1),
            opposite=above(0.1),
            requires=all_forgotten("files"),
            source="inferred",
            statement=f"CodeEraser can forget {most} files at once as well as {fewest}: the loss "
            "on held-out code rises by {threshold} nats per token more",
            paper="stable to 128 files, worse at 256",
            controls={
                f"rise with {count} files": at("files", count, "rise") for count in preset.counts
            },
            evidence="figures/settings.png",
        ),
        Check(
            id="B7",
            # Both spreads are over the values of the preset: the claim is about these ranges.
            measure=minus(spread("learning rate"), spread("gamma")),
            threshold=above(0),
            opposite=below(0),
            source="inferred",
            statement="the learning rate matters more than the weight of the context: the spread "
            "of the rise of the held-out loss is larger, and the difference in nats per token is "
            "{threshold}",
            paper="the learning rate matters a lot, the other settings little",
            controls={
                "over learning rates": spread("learning rate"),
                "over gamma": spread("gamma"),
            },
            evidence="figures/settings.png",
        ),
    ]
