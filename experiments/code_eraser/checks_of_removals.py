"""What no paper asks: which removal is cheapest and deepest, and what comes back (E1 to E6).

At equal damage, removals are compared with noise in all weights, which is damage and nothing else,
and with controls of their own: other neurons, other components. Thresholds are chosen beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from experiments.code_eraser.paths import FORGETTING
from experiments.code_eraser.presets import ABLATION, CURVATURE, LOCALIZED, NOISE, RemovalsPreset
from interp.experiment.checks import (
    Check,
    Measure,
    Tables,
    above,
    at_most,
    below,
    minus,
    over_items,
    rows,
)
from interp.reporting.stats import Interval, interpolate

_SHARE = (0.0, 1.0)
_FEWEST_REMOVALS = 5  # a rank correlation of fewer says nothing


def checks(preset: RemovalsPreset) -> list[Check]:
    """E1 to E6."""
    return [
        *_beyond_damage(preset),
        *_own_controls(),
        *_cheapest(),
        *_deepest(preset),
        *_returning(preset),
    ]


def at_damage(path: pd.DataFrame, column: str) -> float | None:
    """Returns a measure of a path where the loss on held-out code has risen by the amount in the
    path's column `damage`.

    It is interpolated between the last dose below and the first at or above; None where no dose
    does as much damage.

    Args:
        path: the rows of one path, the first of them without any removal; `damage` is the same in
            all of them.
        column: the measure.
    """
    ordered: Any = path.sort_values("dose")
    damage = float(ordered["damage"].iloc[0])
    reached = (ordered["rise"] >= damage).to_numpy()
    if not reached.any():
        return None
    # Dose 0 has no damage, so that there is always a dose before the first that reached. Only these
    # two are given: at higher doses the loss may fall again.
    first = int(reached.argmax())
    around = ordered.iloc[first - 1 : first + 1]
    (value,) = interpolate([damage], around["rise"], around[column])
    return float(value)


def at_forgetting(path: pd.DataFrame, column: str) -> float | None:
    """Returns a measure of a path at the first dose at which the secrets count as forgotten; None
    where there is none.

    Args:
        path: the rows of one path.
        column: the measure.
    """
    ordered: Any = path.sort_values("dose")
    forgotten = ordered[ordered["forgotten"]]
    return None if forgotten.empty else float(forgotten[column].iloc[0])


def of_paths(
    removal: str,
    control: str,
    column: str,
    read: Callable[[pd.DataFrame, str], float | None],
) -> Measure:
    """Returns a measure that is read off each path of a removal or of its control: the mean over
    draws, or None where a draw does not get there.

    Args:
        removal: the removal.
        control: its control; "" for the removal itself.
        column: the measure.
        read: what reads it off a path: `at_damage` or `at_forgetting`.
    """

    def of(tables: Tables) -> float | None:
        table = tables["paths"]
        found: Any = table[(table["removal"] == removal) & (table["control"] == control)]
        values = [read(path, column) for _, path in found.groupby("draw")]
        known = [value for value in values if value is not None]
        # A path is one number per seed: without an error of its own, its interval is over seeds
        # alone.
        return sum(known) / len(known) if known and len(known) == len(values) else None

    bounds = None if column == "rise" else _SHARE
    return Measure(f"{column} of {control or removal}", of, bounds)


def depth(removal: str, column: str = "depth") -> Measure:
    """Returns the depth of a removal at equal forgetting, mean over files."""

    def by_item(tables: Tables) -> pd.Series:
        table = tables["depth"]
        chosen = (table["removal"] == removal) & (table["point"] == FORGETTING)
        found: Any = table[chosen].set_index("item")[column]
        # A file that no site encodes has no depth, which is NaN.
        return found.dropna()

    bounds = _SHARE if column == "depth" else None
    return over_items(f"{column} of {removal}", by_item, bounds)


def of_reports(tables: Tables, where: Mapping[str, Any]) -> Interval | None:
    """Returns what a row of the table `reports` says; None if there is no such row.

    Args:
        tables: the tables of one seed.
        where: the values of its columns.
    """
    try:
        row: Any = rows(tables["reports"], where).iloc[0]
    except LookupError:
        return None
    estimate, low, high = (float(row[name]) for name in ("estimate", "low", "high"))
    return Interval(estimate, low, high, int(row["files"]))


def returned(removal: str, steps: int, data: str) -> Measure:
    """Returns a row of the relearning of a removal at equal forgetting."""

    def of(tables: Tables) -> Interval | None:
        where = {"removal": removal, "point": FORGETTING, "group": "relearning", "model": "after"}
        return of_reports(tables, {**where, "data": data, "at": steps})

    return Measure(f"MA of {data} after {removal} and {steps} steps", of, (-1.0, 1.0))


def _beyond_damage(preset: RemovalsPreset) -> list[Check]:
    """E1: a removal removes more than noise that does the same damage."""
    found: list[Check] = []
    for name in preset.removals:
        own = of_paths(name, "", "ma", at_damage)
        noise = of_paths(NOISE, "noise", "ma", at_damage)
        found.append(
            Check(
                id=f"E1 {name}",
                measure=minus(noise, own),
                threshold=above(0),
                opposite=below(0),
                source="chosen",
                statement=f"at equal damage, {name} leaves less of the secrets than noise in all "
                "weights: the difference in MA is {threshold}",
                controls={name: own, "noise": noise},
                evidence="figures/equal_damage.png",
            )
        )
    return found


def _own_controls() -> list[Check]:
    """E2: it matters which neurons or components."""
    controls = (
        (LOCALIZED, "random neurons"),
        (ABLATION, "random neurons"),
        (CURVATURE, "random components"),
        (CURVATURE, "low rank"),
    )
    found: list[Check] = []
    for name, control in controls:
        own = of_paths(name, "", "ma", at_damage)
        other = of_paths(name, control, "ma", at_damage)
        words = {
            "random neurons": "with as many random neurons of the same blocks",
            "random components": "with as many random components of the same weights",
            "low rank": "with the same weights at a low rank",
        }
        found.append(
            Check(
                id=f"E2 {name}, {control}",
                measure=minus(other, own),
                threshold=above(0),
                opposite=below(0),
                source="chosen",
                statement=f"at equal damage, {name} leaves less of the secrets than "
                f"{words[control]}: the difference in MA is {{threshold}}",
                controls={name: own, control: other},
                evidence="figures/equal_damage.png",
            )
        )
    return found


def _cheapest() -> list[Check]:
    """E3: what equal forgetting costs."""
    pairs = (
        ("CodeEraser", LOCALIZED, "training a few neurons costs less than training all weights"),
        (ABLATION, "CodeEraser", "CodeEraser costs less than the ablation of neurons"),
        (CURVATURE, ABLATION, "the ablation of neurons costs less than the curvature edit"),
        (CURVATURE, "CodeEraser", "CodeEraser costs less than the curvature edit"),
        ("CodeEraser", "NPO", "NPO costs less than CodeEraser"),
    )
    found: list[Check] = []
    for dear, cheap, words in pairs:
        costs = {name: of_paths(name, "", "rise", at_forgetting) for name in (dear, cheap)}
        found.append(
            Check(
                id=f"E3 {cheap}, {dear}",
                measure=minus(costs[dear], costs[cheap]),
                threshold=above(0),
                opposite=below(0),
                source="chosen",
                statement=f"at equal forgetting, {words}: their rises of the loss on held-out "
                "code differ, and the difference in nats per token is {threshold}",
                controls=costs,
                evidence="figures/equal_forgetting.png",
            )
        )
    return found


def _deepest(preset: RemovalsPreset) -> list[Check]:
    """E4 and E5: how deep removals go, and whether that says what comes back."""
    pairs = (("CodeEraser", ABLATION), ("CodeEraser", LOCALIZED), (ABLATION, CURVATURE))
    found: list[Check] = []
    for deep, flat in pairs:
        found.append(
            Check(
                id=f"E4 {deep}, {flat}",
                measure=minus(depth(deep), depth(flat)),
                threshold=above(0),
                opposite=below(0),
                source="chosen",
                statement=f"at equal forgetting, {deep} is deeper than {flat}: the difference in "
                "Unlearning Depth Score is {threshold}",
                controls={
                    f"{deep}, not clipped": depth(deep, "unclipped"),
                    f"{flat}, not clipped": depth(flat, "unclipped"),
                },
                evidence="figures/depth.png",
            )
        )

    last = preset.relearning.last

    def of(tables: Tables) -> float | None:
        depths: list[float] = []
        advantages: list[float] = []
        for name in preset.removals:
            deep = depth(name)(tables)
            # A removal that does not forget on this seed has neither depth nor return.
            back = returned(name, last, "forget minus never seen, not trained on")(tables)
            if isinstance(deep, Interval) and isinstance(back, Interval):
                depths.append(deep.estimate)
                advantages.append(back.estimate)
        if len(depths) < _FEWEST_REMOVALS:
            return None
        found = spearmanr(depths, advantages).statistic
        return None if isnan(found) else float(found)

    found.append(
        Check(
            id="E5",
            measure=Measure("rank correlation of depth and return", of, (-1.0, 1.0)),
            threshold=below(0),
            opposite=above(0),
            source="chosen",
            statement=f"the deeper a removal, the less comes back in {last} steps of relearning "
            "(files not trained on): the rank correlation over removals is {threshold}",
            evidence="figures/depth.png",
        )
    )
    return found


def _returning(preset: RemovalsPreset) -> list[Check]:
    """E6: what comes back of files that relearning was not shown."""
    found: list[Check] = []
    last = preset.relearning.last
    for name in preset.removals:
        controls: dict[str, Measure] = {}
        for steps in preset.relearning.steps:
            for data in ("forget, not trained on", "never seen, not trained on"):
                controls[f"{data}, {steps} steps"] = returned(name, steps, data)
        found.append(
            Check(
                id=f"E6 {name}",
                measure=returned(name, last, "forget minus never seen, not trained on"),
                threshold=at_most(0.05),
                opposite=above(0.05),
                source="chosen",
                statement=f"after {name} at equal forgetting, secrets do not come back when other "
                f"files are relearned for {last} steps: their MA is above that of never-seen "
                "secrets by {threshold}",
                controls=controls,
                evidence="figures/relearning.png",
            )
        )
    return found
