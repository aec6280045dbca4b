"""extraction_drop: how much less a model gives away once some units are ablated, and what that
costs, beside the controls.

Controls: random units, as many at each site, from several seeds; the lowest-scoring units; and
random units at equal damage, for any ablation that hurts a model enough also hurts its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp.interventions.kinds import Intervention, Zero
from interp.interventions.plan import Plan, interventions
from interp.memorization.evaluation import effects
from interp.mitigation.controls import Selection, Trial, changed
from interp.mitigation.report import DropReport, EqualDamage, tabulated
from interp.reporting.stats import paired
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batches
from interp.subject.subject import Subject


def extraction_drop(
    subject: Subject,
    selection: UnitScores | Units | Plan,
    memorized: Batches,
    control: Batches,
    held_out: Batches,
    fractions: Sequence[float] = (1e-4, 1e-3, 1e-2),
    *,
    seeds: int = 5,
    at: float | None = None,
    also: Mapping[str, Batches] | None = None,
    size: int = 16,
) -> DropReport:
    """Measures extraction and loss before and after ablating a selection, and its controls.

    Args:
        selection: scores, whose top `fractions` are zeroed; or units, which are zeroed; or a plan,
        which is run as it is.
        memorized: windows the model extracts. `control` are like them but not memorized, `held_out`
        is other text; both count the damage.
        fractions: shares of all scored units; for scores only.
        seeds: random controls, at least 5.
        at: the fraction that the verdict is about, chosen beforehand; for scores only. By default
            the one that lowers accuracy most among those that raise the control loss by at most 5%;
            it is then chosen on the windows that judge it, which the verdict says.
        also: further windows to measure under every ablation, by name: what the memorized ones look
        like without being known, say.
        size: windows a forward.

    Returns a DropReport: `.frame`, `.verdict`, `.plot()`, `.save(folder)`. Raises ValueError for
    units of another model, a selection that leaves no unit for a random control, too few seeds, and
    `at` outside `fractions`.
    """
    shares = sorted({float(fraction) for fraction in fractions})
    _check(selection, shares, seeds, at)
    data: dict[str, Any] = {
        **(also or {}),
        "memorized": memorized,
        "control": control,
        "held_out": held_out,
    }
    data = {
        name: source if hasattr(source, "__len__") else list(source)
        for name, source in data.items()
    }
    selections = _selections(subject, selection, shares)
    scores = selection if isinstance(selection, UnitScores) else None
    trials = [trial for one in selections.values() for trial in _trials(one, scores, seeds)]
    measured = effects(subject, [[], *(t.plan for t in trials)], data, size)
    frame = tabulated(measured, trials)
    chosen = _least_harmful(frame) if at is None else float(at)
    number = next(
        n
        for n, t in enumerate(trials, start=1)
        if t.selection == "selection" and t.fraction == chosen
    )
    own: Any = measured[measured["plan"] == number]
    equal = _equal_damage(subject, selections[chosen], own, data, seeds, size)
    return DropReport(frame, chosen, len(selections) == 1 or at is not None, equal, subject.name)


def _check(
    selection: UnitScores | Units | Plan, fractions: Sequence[float], seeds: int, at: float | None
) -> None:
    if seeds < 5:
        raise ValueError(f"seeds={seeds}: a random control needs at least 5")
    if not isinstance(selection, UnitScores):
        if at is not None:
            raise ValueError(
                f"at={at} chooses among the fractions of scores; units and plans are measured as they are"
            )
        if not isinstance(selection, (Units, Intervention)) and not selection:
            raise ValueError("the plan is empty: expected at least one intervention")
    elif not fractions or (at is not None and at not in fractions):
        raise ValueError(
            f"at={at} is not among the fractions {fractions}"
            if fractions
            else "no fractions: expected at least one"
        )


def _selections(
    subject: Subject, selection: UnitScores | Units | Plan, fractions: Sequence[float]
) -> dict[float, Selection]:
    """By the fraction of units that are selected."""
    if isinstance(selection, UnitScores):
        return {fraction: Selection(selection.top(fraction), fraction) for fraction in fractions}
    plan = interventions(Zero(selection) if isinstance(selection, Units) else selection)
    for intervention in plan:
        subject.anatomy.check(intervention.units)
    points = [point for intervention in plan for point in _points(intervention.units)]
    fraction = len(changed(plan)) / len(subject.anatomy.units(points))
    return {fraction: Selection(plan, fraction)}


def _points(units: Units) -> list[str]:
    """The points of some units, as patterns over all blocks: what the selection was made among."""
    return sorted({site.point if site.block is not None else str(site) for site in units.sites})


def _trials(selection: Selection, scores: UnitScores | None, seeds: int) -> list[Trial]:
    trials = [selection.trial(), *selection.random(range(seeds))]
    if scores is not None:
        trials.append(selection.lowest(scores))
    return trials


def _least_harmful(frame: pd.DataFrame) -> float:
    """The fraction of the largest accuracy drop among those that raise control loss by at most 5%;
    of the least rise if none does."""
    own: Any = frame[frame["selection"] == "selection"]
    loss = own[(own["data"] == "control") & (own["measure"] == "loss")].set_index("fraction")
    accuracy = own[(own["data"] == "memorized") & (own["measure"] == "accuracy")].set_index(
        "fraction"
    )
    rise = loss["change"] / loss["before"]
    allowed = rise.index[rise <= 0.05]
    return float(accuracy.loc[allowed, "change"].idxmin() if len(allowed) else rise.idxmin())


def _equal_damage(
    subject: Subject,
    selection: Selection,
    own: Any,
    data: dict[str, Batches],
    seeds: int,
    size: int,
) -> EqualDamage:
    """The selection, whose effects on each window are `own`, compared with random units that raise
    the held-out loss as much."""
    damage = float(own.loc[own["data"] == "held_out", "loss"].mean())
    trials, reached = selection.at_equal_damage(
        subject, damage, data["held_out"], range(seeds), size
    )
    memorized: Any = effects(
        subject, [trial.plan for trial in trials], {"memorized": data["memorized"]}, size
    )
    theirs = memorized.groupby("window")["accuracy"].mean()
    ours = own[own["data"] == "memorized"].set_index("window")["accuracy"]
    return EqualDamage(
        trials[0].k, reached, float(theirs.mean()), paired(theirs, ours.loc[theirs.index])
    )
