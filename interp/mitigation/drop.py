"""extraction_drop: how much less a model gives away once some units are ablated, and what that costs, beside the controls.

Controls: random units, as many at each site, from several seeds; the lowest-scoring units; and random units at equal damage, for any ablation that
hurts a model enough also hurts its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from interp.batch import Batches
from interp.interventions import Intervention, Plan, Zero, interventions
from interp.mitigation.effects import effects
from interp.mitigation.report import DropReport, EqualDamage, tabulated
from interp.stats import paired
from interp.subject import Subject
from interp.units import Units, UnitScores

_MULTIPLES = (1, 3, 10, 30, 100, 300)  # of the selection's size, for random units at equal damage


@dataclass(frozen=True)
class Trial:
    """One ablation to measure: a selection or one of its controls."""

    selection: str
    fraction: float
    k: int
    seed: int
    plan: Plan


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
    size: int = 16,
) -> DropReport:
    """Measures extraction and loss before and after ablating a selection, and its controls.

    Args:
        selection: scores, whose top `fractions` are zeroed; or units, which are zeroed; or a plan, which is run as it is.
        memorized: windows the model extracts. `control` are like them but not memorized, `held_out` is other text; both count the damage.
        fractions: shares of all scored units; for scores only.
        seeds: random controls, at least 5.
        at: the fraction that the verdict is about, chosen beforehand. By default the one that lowers accuracy most among those that raise the
            control loss by at most 5%; it is then chosen on the windows that judge it, which the verdict says.
        size: windows a forward.

    Returns a DropReport: `.frame`, `.verdict`, `.plot()`, `.save(folder)`. Raises ValueError for units of another model and too few seeds.
    """
    if seeds < 5:
        raise ValueError(f"seeds={seeds}: a random control needs at least 5")
    data = {"memorized": memorized, "control": control, "held_out": held_out}
    data = {name: source if hasattr(source, "__len__") else list(source) for name, source in data.items()}
    trials = _trials(subject, selection, sorted(fractions), seeds)
    measured = effects(subject, [[], *(t.plan for t in trials)], data, size)
    frame = tabulated(measured, trials)
    chosen = at if at is not None else _least_harmful(frame)
    trial = next((t for t in trials if t.selection == "selection" and t.fraction == chosen), None)
    if trial is None:
        raise ValueError(f"at={chosen} is not among the fractions {[t.fraction for t in trials if t.selection == 'selection']}")
    equal = _at_equal_damage(subject, trial, measured[measured["plan"] == 1 + trials.index(trial)], data, seeds, size)
    return DropReport(frame, chosen, at is not None, equal, subject.name)


def _trials(subject: Subject, selection: UnitScores | Units | Plan, fractions: Sequence[float], seeds: int) -> list[Trial]:
    trials: list[Trial] = []
    for fraction, k, plan in _selections(subject, selection, fractions):
        trials.append(Trial("selection", fraction, k, 0, plan))
        trials += [Trial("random", fraction, k, seed, randomized(plan, seed)) for seed in range(seeds)]
        if isinstance(selection, UnitScores):
            trials.append(Trial("lowest", fraction, k, 0, Zero(selection.lowest(fraction))))
    return trials


def _selections(subject: Subject, selection: UnitScores | Units | Plan, fractions: Sequence[float]) -> list[tuple[float, int, Plan]]:
    if isinstance(selection, UnitScores):
        tops = {fraction: selection.top(fraction) for fraction in fractions}
        return [(fraction, len(units), Zero(units)) for fraction, units in tops.items()]
    plan = interventions(Zero(selection) if isinstance(selection, Units) else selection)
    units = [i.units for i in plan]
    k, total = sum(map(len, units)), sum(sum(subject.anatomy.units(_points(u)).widths.values()) for u in units)
    return [(k / total, k, plan)]


def _points(units: Units) -> list[str]:
    """The points of some units, as patterns over all blocks: what the selection was made among."""
    return sorted({site.point if site.block is not None else str(site) for site in units.sites})


def randomized(plan: Plan, seed: int, times: int = 1) -> tuple[Intervention, ...]:
    """The same interventions on random other units, `times` as many at each site."""
    return tuple(replace(i, units=i.units.matched(seed, times=times)) for i in interventions(plan))


def _least_harmful(frame: pd.DataFrame) -> float:
    """The fraction of the largest accuracy drop among those that raise control loss by at most 5%; of the least rise if none does."""
    own = frame[frame["selection"] == "selection"]
    loss = own[(own["data"] == "control") & (own["measure"] == "loss")].set_index("fraction")
    accuracy = own[(own["data"] == "memorized") & (own["measure"] == "accuracy")].set_index("fraction")
    rise = loss["change"] / loss["before"]
    allowed = rise.index[rise <= 0.05]
    return float(accuracy.loc[allowed, "change"].idxmin() if len(allowed) else rise.idxmin())


def _at_equal_damage(
    subject: Subject, trial: Trial, own: pd.DataFrame, data: dict[str, Batches], seeds: int, size: int
) -> EqualDamage:
    """Random units, more and more of them, until they raise the held-out loss at least as much as the selection does."""
    damage = _mean(own, "held_out", "loss")
    for times in _MULTIPLES:
        plans = [randomized(trial.plan, seed, times) for seed in range(seeds)]
        random = effects(subject, plans, {"held_out": data["held_out"]}, size)
        reached = _mean(random, "held_out", "loss") >= damage
        k = sum(len(i.units) for i in plans[0])
        if reached or k < trial.k * times:
            break
    memorized = effects(subject, plans, {"memorized": data["memorized"]}, size)
    theirs = memorized.groupby("window")["accuracy"].mean()
    ours = own[own["data"] == "memorized"].set_index("window")["accuracy"]
    return EqualDamage(k, reached, float(theirs.mean()), paired(theirs, ours.loc[theirs.index]))


def _mean(frame: pd.DataFrame, data: str, measure: str) -> float:
    return float(frame.loc[frame["data"] == data, measure].mean())
