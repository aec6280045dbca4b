"""A selection and its controls: other units to which the same is done, so that an effect can be
compared with one of mere damage.

The controls of a `Selection`:

- `random`: other units drawn at random, the same number at each site;
- `in_own_blocks`: the same for each of several methods that are compared, drawn where that method
itself selects;
- `lowest`: the same number of units, with the lowest scores;
- `as_active`: other units at the same sites, each with an activity near that of the unit it
replaces;
- `at_equal_damage`: random units, as many as it takes to raise the loss on held-out text as much as
the selection does.

Each returns a `Trial` per seed. The same seed draws the same units, whatever is done to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np

from interp.interventions.kinds import Intervention, Zero
from interp.interventions.plan import Plan, interventions
from interp.memorization.evaluation import effects
from interp.sites.site import Site
from interp.sites.units import Units, UnitScores
from interp.subject.batch import Batches
from interp.subject.subject import Subject

Edit = Callable[[Units], Plan]
Draw = Callable[[Units], Units]

IN_BLOCKS_OF = "random, in the blocks of "  # begins the name of a control that is drawn where one of several methods selects
_MULTIPLES = (
    1,
    3,
    10,
    30,
    100,
    300,
    1000,
    3000,
    10_000,
)  # of the selection's size, for random units at equal damage


@dataclass(frozen=True, eq=False)
class Trial:
    """One edit to measure: that of a selection or of one of its controls.

    Attributes:
        selection: name of the selection or the control.
        fraction: of all units, as given for the selection.
        seed: of the draw; 0 where nothing is drawn.
        units: those that the plan changes.
        plan: what is done to them.
    """

    selection: str
    fraction: float
    seed: int
    units: Units
    plan: Plan

    @property
    def k(self) -> int:
        """How many units are changed; one that several interventions change counts once."""
        return len(self.units)

    def edited(self, edit: Edit) -> Trial:
        """The same units under another edit."""
        return replace(self, plan=edit(self.units))


@dataclass(frozen=True, eq=False)
class Selection:
    """Units that were selected and what is done to them, from which the trials of the selection and
    of its controls are made.

    Attributes:
        chosen: units, to which `edit` is done; or a plan, whose controls are the same interventions
        on other units.
        fraction: the share of all units that was selected; it is copied into the trials.
        edit: what is done to units: a function that makes a plan of them, such as `Zero` or an edit
        of weights.

    Example:
        >>> units = Units({"blocks.0.neurons": [2, 5]}, {"blocks.0.neurons": 8})
        >>> selection = Selection(units, fraction=0.25)
        >>> trials = [selection.trial(), *selection.random(range(5))]
        >>> [trial.k for trial in trials]
        [2, 2, 2, 2, 2, 2]
        >>> any(len(trial.units & units) for trial in trials[1:])
        False
    """

    chosen: Units | Plan
    fraction: float
    edit: Edit = Zero

    def trial(self, name: str = "selection") -> Trial:
        """The selection itself."""
        return self._trial(name, 0, lambda units: units)

    def random(self, seeds: Iterable[int], name: str = "random", times: int = 1) -> list[Trial]:
        """Other units at random: `times` as many at each site as are selected there, or all that
        are left. See `Units.matched`.

        Raises ValueError where all units are selected, so that none is left.
        """
        return [self._trial(name, seed, partial(_others, seed=seed, times=times)) for seed in seeds]

    def in_own_blocks(self, method: str, seeds: Iterable[int]) -> list[Trial]:
        """`random` under a name that says in whose blocks they lie: for one of several methods,
        each with controls where it selects."""
        return self.random(seeds, IN_BLOCKS_OF + method)

    def lowest(self, scores: UnitScores, name: str = "lowest") -> Trial:
        """The same number of units over all sites, with the lowest scores."""
        return self._trial(name, 0, lambda units: scores.lowest(len(units)))

    def as_active(
        self, activity: UnitScores, seeds: Iterable[int], name: str = "as active"
    ) -> list[Trial]:
        """Other units of like activity: see `as_active`. Raises ValueError where a site does not
        have the same number of others."""
        return [
            self._trial(name, seed, partial(as_active, activity=activity, seed=seed))
            for seed in seeds
        ]

    def at_equal_damage(
        self,
        subject: Subject,
        damage: float,
        held_out: Batches,
        seeds: Iterable[int],
        size: int = 16,
    ) -> tuple[list[Trial], bool]:
        """Random units, more and more of them, until they raise the loss on held-out text as much
        as the selection does.

        Args:
            damage: mean loss on `held_out` under the selection, in nats per token.
            held_out: text that is neither memorized nor chosen to resemble what is.
            size: batch size.

        Returns one trial per seed, with the smallest number tried that brings the mean held-out
        loss to `damage` or above, and True; or with the largest number there is, and False.
        """
        seeds = list(seeds)
        trials: list[Trial] = []
        for times in _MULTIPLES:
            trials = self.random(seeds, "random at equal damage", times)
            measured: Any = effects(
                subject, [trial.plan for trial in trials], {"held_out": held_out}, size
            )
            if measured["loss"].mean() >= damage:
                return trials, True
            nothing_left = trials[0].k < times * self.trial().k
            if nothing_left:
                break
        return trials, False

    def _trial(self, name: str, seed: int, draw: Draw) -> Trial:
        """The trial in which what is done to the selected units is done to those that `draw` makes
        of them."""
        if isinstance(self.chosen, Units):
            units = draw(self.chosen)
            return Trial(name, self.fraction, seed, units, self.edit(units))
        plan = tuple(replace(one, units=draw(one.units)) for one in interventions(self.chosen))
        return Trial(name, self.fraction, seed, changed(plan), plan)


def changed(plan: Plan) -> Units:
    """The units that a plan changes."""
    return reduce(or_, (one.units for one in interventions(plan)))


def randomized(plan: Plan, seed: int, times: int = 1) -> tuple[Intervention, ...]:
    """The same interventions on random other units, `times` as many at each site, or all that are
    left there.

    Raises ValueError where none is left.
    """
    (trial,) = Selection(plan, 0.0).random([seed], times=times)
    return interventions(trial.plan)


def _others(units: Units, seed: int, times: int) -> Units:
    drawn = units.matched(seed, times=times)
    if not len(drawn):
        sites = ", ".join(map(str, units.sites[:3]))
        raise ValueError(f"{sites}: all units are selected, which leaves none for a random control")
    return drawn


def as_active(units: Units, activity: UnitScores, seed: int, near: int = 10) -> Units:
    """The same number of other units at each site, each drawn among the `near` unused ones whose
    activity is nearest to that of the unit it replaces: the control for "these units are merely
    active". `activity` is any score, such as that of the method `activation`.

    Raises ValueError where a site does not have the same number of other units.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[Site, list[int]] = {}
    for site in units.sites:
        level = activity[site]
        free = np.setdiff1d(np.arange(units.widths[site]), units[site])
        if len(free) < len(units[site]):
            raise ValueError(f"{site} has {len(free)} other units, too few for {len(units[site])}")
        drawn[site] = []
        for unit in units[site]:
            distance = np.abs(level[free] - level[unit])
            nearest = free[np.argsort(distance, kind="stable")[:near]]
            taken = rng.choice(nearest)
            drawn[site].append(int(taken))
            free = free[free != taken]
    return Units(drawn, units.widths)
