"""extraction_drop: how much less a model leaks once some units are ablated, and what that costs,
compared with controls.

The controls are random units, the same number at each site, from several seeds; the units with the
lowest scores and, where some are negative, with the smallest absolute ones; and random units at
equal damage, because any ablation that hurts a model enough also hurts what it has memorized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from interp.interventions.kinds import Intervention, Zero
from interp.interventions.plan import Plan, interventions
from interp.memorization.evaluation import measure_under
from interp.mitigation.controls import Selection, Trial, changed_units
from interp.mitigation.equal_damage import compare_at_equal_damage
from interp.mitigation.report import DropReport, tabulate
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batches, reusable
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
    batch_size: int = 16,
) -> DropReport:
    """Measures how much extraction falls and loss rises when a selection of units is ablated, and
    when its controls are.

    Args:
        subject: the model.
        selection: scores, whose top `fractions` are zeroed; or units, which are zeroed; or a plan,
            which is run as it is.
        memorized: windows that the model extracts.
        control: windows that resemble the memorized ones but are not memorized, to measure damage
            on.
        held_out: other text, to measure damage on.
        fractions: shares of all scored units; for scores only.
        seeds: number of random controls, at least 5.
        at: the fraction that the verdict is about, if it is chosen beforehand; for scores only. By
            default it is chosen on the same windows that it is then judged on, and the verdict says
            so: among the fractions that raise the control loss by at most 5%, the one that lowers
            accuracy most; if all raise it by more, the one that raises it least.
        also: further windows by name, to measure under every ablation; for example windows that
            look like the memorized ones and were never trained on.
        batch_size: batch size.

    Returns:
        A DropReport: `.frame`, `.verdict`, `.plot()`, `.save(folder)`.

    Raises:
        ValueError: units of another model, a selection that leaves no unit for a random control, no
            fractions, an empty plan, too few seeds, or `at` outside `fractions` or without scores.

    Example:
        >>> scores = interp.localize(subject, memorized, control, method="gradient_x_activation")
        >>> report = interp.extraction_drop(
        ...     subject, scores, memorized, control[:6], control[6:], fractions=[0.1]
        ... )
        >>> list(report.frame["selection"].unique())
        ['selection', 'random', 'lowest', 'smallest']
        >>> report.verdict
        'Ablating 10 units (10%) takes suffix accuracy from 1.00 to ...'
    """
    shares = sorted({float(fraction) for fraction in fractions})
    _check(selection, shares, seeds, at)
    # A set in `also` that is named like one of the three does not replace it.
    given = {**(also or {}), "memorized": memorized, "control": control, "held_out": held_out}
    # A stream can be read once, and is measured under every plan.
    data = {name: reusable(source) for name, source in given.items()}

    selections = _selections(subject, selection, shares)
    scores = selection if isinstance(selection, UnitScores) else None
    trials: list[Trial] = []
    for each in selections.values():
        trials += _trials(each, scores, seeds)

    # Plan 0 changes nothing: it is the model before. Trial n is plan n.
    plans: list[Plan] = [[], *(trial.plan for trial in trials)]
    measured = measure_under(subject, plans, data, batch_size)
    frame = tabulate(measured, trials)

    chosen = _fraction_to_judge(frame) if at is None else float(at)
    number = _plan_number(trials, chosen)
    unedited: Any = measured[measured["plan"] == 0]
    under_selection: Any = measured[measured["plan"] == number]
    equal_damage = compare_at_equal_damage(
        subject, selections[chosen], unedited, under_selection, data, range(seeds), batch_size
    )
    chosen_beforehand = len(selections) == 1 or at is not None
    return DropReport(frame, chosen, chosen_beforehand, equal_damage, subject.name)


def _plan_number(trials: Sequence[Trial], fraction: float) -> int:
    """The number of the plan that ablates the selection at a fraction."""
    for number, trial in enumerate(trials, start=1):
        if trial.selection == "selection" and trial.fraction == fraction:
            return number
    raise LookupError(f"no selection of {fraction} among {len(trials)} trials")


def _check(
    selection: UnitScores | Units | Plan, fractions: Sequence[float], seeds: int, at: float | None
) -> None:
    if seeds < 5:
        raise ValueError(f"seeds={seeds}: a random control needs at least 5")
    if isinstance(selection, UnitScores):
        if not fractions:
            raise ValueError("no fractions: expected at least one")
        if at is not None and at not in fractions:
            raise ValueError(f"at={at} is not among the fractions {fractions}")
        return
    if at is not None:
        raise ValueError(
            f"at={at} chooses among the fractions of scores; "
            "units and plans are measured as they are"
        )
    if not isinstance(selection, (Units, Intervention)) and not selection:
        raise ValueError("the plan is empty: expected at least one intervention")


def _selections(
    subject: Subject, selection: UnitScores | Units | Plan, fractions: Sequence[float]
) -> dict[float, Selection]:
    """The selections to measure, by the fraction of units that each selects. Units and plans are
    one selection, whose fraction is that of all units of the same kinds in the whole model."""
    if isinstance(selection, UnitScores):
        return {fraction: Selection(selection.top(fraction), fraction) for fraction in fractions}
    given = interventions(Zero(selection) if isinstance(selection, Units) else selection)
    plan: list[Intervention] = []
    points: list[str] = []
    for intervention in given:
        plan.append(replace(intervention, units=subject.anatomy.fit(intervention.units)))
        points += _points(intervention.units)
    every_unit = subject.anatomy.units(points)
    fraction = len(changed_units(plan)) / len(every_unit)
    return {fraction: Selection(plan, fraction)}


def _points(units: Units) -> list[str]:
    """The points at which some units are, without their blocks: as patterns they mean these points
    in all blocks, where the units may have been selected from."""
    points: set[str] = set()
    for site in units.sites:
        points.add(str(site) if site.block is None else site.point)
    return sorted(points)


def _trials(selection: Selection, scores: UnitScores | None, seeds: int) -> list[Trial]:
    trials = [selection.trial(), *selection.random(range(seeds))]
    if scores is not None:
        trials.append(selection.lowest(scores))
        # Without negative scores, the smallest are the lowest.
        if any((values < 0).any() for values in scores.values.values()):
            trials.append(selection.smallest(scores))
    return trials


def _fraction_to_judge(frame: pd.DataFrame) -> float:
    """The fraction with the largest accuracy drop among those that raise the control loss by at
    most 5%; where all raise it by more, the one with the smallest rise."""
    loss = _rows_by_fraction(frame, "control", "loss")
    accuracy = _rows_by_fraction(frame, "memorized", "accuracy")
    relative_rise = loss["change"] / loss["before"]
    allowed = relative_rise.index[relative_rise <= 0.05]
    if not len(allowed):
        return float(relative_rise.idxmin())
    return float(accuracy.loc[allowed, "change"].idxmin())


def _rows_by_fraction(frame: pd.DataFrame, data: str, measure: str) -> Any:
    """The rows of the selection for one measure of one data set, by fraction."""
    chosen = (
        (frame["selection"] == "selection")
        & (frame["data"] == data)
        & (frame["measure"] == measure)
    )
    return frame[chosen].set_index("fraction")
