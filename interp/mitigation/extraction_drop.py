"""extraction_drop: how much less a model gives away once some units are ablated, and what that costs, beside the controls.

Controls: random units, as many at each site, from several seeds; the lowest-scoring units; and random units at equal damage, for any
ablation that hurts a model enough also hurts its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import pandas as pd

from interp.interventions.kinds import Intervention, Zero
from interp.interventions.plan import Plan, interventions
from interp.memorization.evaluation import effects
from interp.mitigation.report import DropReport, EqualDamage, tabulated
from interp.reporting.stats import paired
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batches
from interp.subject.subject import Subject

_MULTIPLES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # of the selection's size, for random units at equal damage


@dataclass(frozen=True)
class Trial:
    """One ablation to measure: a selection or one of its controls."""

    selection: str
    fraction: float
    k: int
    seed: int
    plan: Plan


def extraction_drop(  # noqa: PLR0913 - one call is the whole measurement
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
        selection: scores, whose top `fractions` are zeroed; or units, which are zeroed; or a plan, which is run as it is.
        memorized: windows the model extracts. `control` are like them but not memorized, `held_out` is other text; both count the damage.
        fractions: shares of all scored units; for scores only.
        seeds: random controls, at least 5.
        at: the fraction that the verdict is about, chosen beforehand; for scores only. By default the one that lowers accuracy most among
            those that raise the control loss by at most 5%; it is then chosen on the windows that judge it, which the verdict says.
        also: further windows to measure under every ablation, by name: what the memorized ones look like without being known, say.
        size: windows a forward.

    Returns a DropReport: `.frame`, `.verdict`, `.plot()`, `.save(folder)`. Raises ValueError for units of another model, a selection that
    leaves no unit for a random control, too few seeds, and `at` outside `fractions`.
    """
    shares = sorted({float(fraction) for fraction in fractions})
    _check(selection, shares, seeds, at)
    data: dict[str, Any] = {**(also or {}), "memorized": memorized, "control": control, "held_out": held_out}
    data = {name: source if hasattr(source, "__len__") else list(source) for name, source in data.items()}
    trials = _trials(subject, selection, shares, seeds)
    measured = effects(subject, [[], *(t.plan for t in trials)], data, size)
    frame = tabulated(measured, trials)
    own = {t.fraction: t for t in trials if t.selection == "selection"}
    trial = own[_least_harmful(frame) if at is None else float(at)]
    of_trial: Any = measured[measured["plan"] == 1 + trials.index(trial)]
    equal = _at_equal_damage(subject, trial, of_trial, data, seeds, size)
    return DropReport(frame, trial.fraction, len(own) == 1 or at is not None, equal, subject.name)


def _check(selection: UnitScores | Units | Plan, fractions: Sequence[float], seeds: int, at: float | None) -> None:
    if seeds < 5:
        raise ValueError(f"seeds={seeds}: a random control needs at least 5")
    if not isinstance(selection, UnitScores):
        if at is not None:
            raise ValueError(f"at={at} chooses among the fractions of scores; units and plans are measured as they are")
        if not isinstance(selection, (Units, Intervention)) and not selection:
            raise ValueError("the plan is empty: expected at least one intervention")
    elif not fractions or (at is not None and at not in fractions):
        raise ValueError(f"at={at} is not among the fractions {fractions}" if fractions else "no fractions: expected at least one")


def _trials(subject: Subject, selection: UnitScores | Units | Plan, fractions: Sequence[float], seeds: int) -> list[Trial]:
    trials: list[Trial] = []
    for fraction, plan in _selections(subject, selection, fractions):
        trials.append(Trial("selection", fraction, _size(plan), 0, plan))
        draws = [randomized(plan, seed) for seed in range(seeds)]
        trials += [Trial("random", fraction, _size(draw), seed, draw) for seed, draw in enumerate(draws)]
        if isinstance(selection, UnitScores):
            trials.append(Trial("lowest", fraction, _size(plan), 0, Zero(selection.lowest(fraction))))
    return trials


def _selections(subject: Subject, selection: UnitScores | Units | Plan, fractions: Sequence[float]) -> list[tuple[float, Plan]]:
    if isinstance(selection, UnitScores):
        return [(fraction, Zero(selection.top(fraction))) for fraction in fractions]
    plan = interventions(Zero(selection) if isinstance(selection, Units) else selection)
    for intervention in plan:
        subject.anatomy.check(intervention.units)
    total = len(subject.anatomy.units([point for i in plan for point in _points(i.units)]))
    return [(_size(plan) / total, plan)]


def _size(plan: Plan) -> int:
    """How many units a plan changes; one that several interventions change counts once."""
    return len(reduce(or_, (i.units for i in interventions(plan))))


def _points(units: Units) -> list[str]:
    """The points of some units, as patterns over all blocks: what the selection was made among."""
    return sorted({site.point if site.block is not None else str(site) for site in units.sites})


def randomized(plan: Plan, seed: int, times: int = 1) -> tuple[Intervention, ...]:
    """The same interventions on random other units, `times` as many at each site, or all that are left there.

    Raises ValueError where none is left.
    """
    drawn = [(i, i.units.matched(seed, times=times)) for i in interventions(plan)]
    for i, units in drawn:
        if not len(units):
            raise ValueError(f"{', '.join(map(str, i.units.sites[:3]))}: all units are selected, which leaves none for a random control")
    return tuple(replace(i, units=units) for i, units in drawn)


def _least_harmful(frame: pd.DataFrame) -> float:
    """The fraction of the largest accuracy drop among those that raise control loss by at most 5%; of the least rise if none does."""
    own: Any = frame[frame["selection"] == "selection"]
    loss = own[(own["data"] == "control") & (own["measure"] == "loss")].set_index("fraction")
    accuracy = own[(own["data"] == "memorized") & (own["measure"] == "accuracy")].set_index("fraction")
    rise = loss["change"] / loss["before"]
    allowed = rise.index[rise <= 0.05]
    return float(accuracy.loc[allowed, "change"].idxmin() if len(allowed) else rise.idxmin())


def _at_equal_damage(subject: Subject, trial: Trial, own: Any, data: dict[str, Batches], seeds: int, size: int) -> EqualDamage:
    """Random units, more and more of them, until they raise the held-out loss at least as much as the selection does."""
    damage = own.loc[own["data"] == "held_out", "loss"].mean()
    plans, reached = _as_harmful(subject, trial, float(damage), data["held_out"], seeds, size)
    memorized: Any = effects(subject, plans, {"memorized": data["memorized"]}, size)
    theirs = memorized.groupby("window")["accuracy"].mean()
    ours = own[own["data"] == "memorized"].set_index("window")["accuracy"]
    return EqualDamage(_size(plans[0]), reached, float(theirs.mean()), paired(theirs, ours.loc[theirs.index]))


def _as_harmful(
    subject: Subject, trial: Trial, damage: float, held_out: Batches, seeds: int, size: int
) -> tuple[list[tuple[Intervention, ...]], bool]:
    """One plan a seed, the smallest tried that bring the held-out loss to `damage` on average; or the largest, and False."""
    plans: list[tuple[Intervention, ...]] = []
    for times in _MULTIPLES:
        plans = [randomized(trial.plan, seed, times) for seed in range(seeds)]
        random: Any = effects(subject, plans, {"held_out": held_out}, size)
        if random["loss"].mean() >= damage:
            return plans, True
        if _size(plans[0]) < trial.k * times:
            break
    return plans, False
