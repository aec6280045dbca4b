"""A selection of units and its controls: other units to which the same is done, so that an effect
can be compared with that of mere damage.

The controls of a `Selection`:

- `random`: other units drawn at random, the same number at each site;
- `in_own_blocks`: the same for each of several methods that are compared, drawn at the sites that
  the method itself selects from;
- `lowest`: the same number of other units, with the lowest scores;
- `smallest`: the same number of other units, with the smallest absolute scores;
- `as_active`: other units at the same sites, each about as active as the unit it replaces;
- `growing`: more and more random units, among which `equal_damage` finds those that raise the loss
  on held-out text by what the selection raises it.

Each returns trials, one per seed. The same seed draws the same units, whatever is done to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_

import numpy as np

from interp.interventions.kinds import Intervention, Zero
from interp.interventions.plan import Plan, interventions
from interp.sites.site import Site
from interp.sites.units import Units, UnitScores

Edit = Callable[[Units], Plan]
Draw = Callable[[Units], Units]

# First words of the name of a control whose units are drawn where one of several methods selects.
IN_BLOCKS_OF = "random, in the blocks of "

# Sizes of growing random controls, in multiples of the selection's size.
_MULTIPLES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


@dataclass(frozen=True, eq=False)
class Trial:
    """One edit to measure: that of a selection or of one of its controls.

    Attributes:
        selection: name of the selection or of the control.
        fraction: share of all units, as given for the selection.
        seed: seed of the draw; 0 where nothing is drawn.
        units: the units that the plan changes.
        plan: what is done to them.
    """

    selection: str
    fraction: float
    seed: int
    units: Units
    plan: Plan

    @property
    def k(self) -> int:
        """The number of units that are changed. A unit that several interventions change counts
        once."""
        return len(self.units)

    def with_edit(self, edit: Edit) -> Trial:
        """Returns a trial that does something else to the same units."""
        return replace(self, plan=edit(self.units))


@dataclass(frozen=True, eq=False)
class Selection:
    """Units that were selected, and what is done to them. Its methods make the trials: of the
    selection itself and of its controls.

    Attributes:
        chosen: units, which `edit` turns into a plan; or a plan, whose controls are the same
            interventions on other units.
        fraction: the share of all units that was selected; it is copied into the trials.
        edit: a function that returns the plan for some units, such as `Zero` or an edit of weights.

    Example:
        >>> from interp.mitigation.controls import Selection
        >>> units = interp.Units({"blocks.0.neurons": [2, 5]}, {"blocks.0.neurons": 8})
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
        """Returns the trial of the selection itself."""
        return self._trial(name, 0, lambda units: units)

    def random(self, seeds: Iterable[int], name: str = "random", times: int = 1) -> list[Trial]:
        """Returns one trial per seed on other units, drawn at random (see `Units.draw_matched`).

        Args:
            seeds: seeds of the draws.
            name: name of the control.
            times: number of units to draw at each site, as a multiple of the number selected there;
                all that are left where there are fewer.

        Raises:
            ValueError: all units are selected, so that none is left.
        """
        trials: list[Trial] = []
        for seed in seeds:
            others = partial(_others, seed=seed, times=times)
            trials.append(self._trial(name, seed, others))
        return trials

    def in_own_blocks(self, method: str, seeds: Iterable[int]) -> list[Trial]:
        """Returns `random` trials under a name that says which method's blocks they are in: for the
        comparison of several methods, each with controls at the sites where it selects."""
        return self.random(seeds, IN_BLOCKS_OF + method)

    def lowest(self, scores: UnitScores, name: str = "lowest") -> Trial:
        """Returns the trial on the same number of other units with the lowest scores over all
        sites.

        Where scores have a sign, these units have a strong effect of the other sign. `smallest` is
        the control of units without effect.

        Raises:
            ValueError: there are fewer other units than selected ones.
        """
        return self._trial(name, 0, lambda units: scores.lowest(len(units), self._selected))

    def smallest(self, scores: UnitScores, name: str = "smallest") -> Trial:
        """Returns the trial on the same number of other units with the smallest absolute scores
        over all sites.

        Raises:
            ValueError: there are fewer other units than selected ones.
        """
        return self._trial(name, 0, lambda units: scores.smallest(len(units), self._selected))

    def as_active(
        self, activity: UnitScores, seeds: Iterable[int], name: str = "as active"
    ) -> list[Trial]:
        """Returns one trial per seed on other units that are about as active: see `as_active`.

        Raises:
            ValueError: a site does not have the same number of other units.
        """
        trials: list[Trial] = []
        for seed in seeds:
            others = partial(as_active, activity=activity, seed=seed)
            trials.append(self._trial(name, seed, others))
        return trials

    def growing(
        self, seeds: Iterable[int], name: str = "random at equal damage"
    ) -> Iterator[list[Trial]]:
        """Yields `random` trials on more and more units, one list per number of units, until none
        are left.

        Args:
            seeds: seeds of the draws.
            name: name of the control.
        """
        seeds = list(seeds)
        for times in _MULTIPLES:
            trials = self.random(seeds, name, times)
            yield trials
            # Fewer units than asked for: no larger multiple would give more.
            if trials[0].k < times * self.trial().k:
                return

    @property
    def _selected(self) -> Units:
        """All units that are changed, by whichever intervention."""
        return self.chosen if isinstance(self.chosen, Units) else changed_units(self.chosen)

    def _trial(self, name: str, seed: int, draw: Draw) -> Trial:
        """The trial that does to the units drawn what is done to the selected ones."""
        if isinstance(self.chosen, Units):
            units = draw(self.chosen)
            return Trial(name, self.fraction, seed, units, self.edit(units))
        # Drawn for each intervention by itself: the same units and seed give the same others.
        plan = tuple(
            replace(intervention, units=draw(intervention.units))
            for intervention in interventions(self.chosen)
        )
        return Trial(name, self.fraction, seed, changed_units(plan), plan)


def changed_units(plan: Plan) -> Units:
    """Returns the units that a plan changes.

    Example:
        >>> from interp.mitigation.controls import changed_units
        >>> scores = interp.localize(subject, memorized, control, method="activation")
        >>> plan = [interp.Zero(scores.top(3)), interp.Scale(scores.top(5), factor=0.5)]
        >>> len(changed_units(plan))
        5
    """
    return reduce(or_, (intervention.units for intervention in interventions(plan)))


def randomize(plan: Plan, seed: int, times: int = 1) -> tuple[Intervention, ...]:
    """Returns the same interventions on other units, drawn at random.

    Args:
        plan: the interventions.
        seed: seed of the draw.
        times: number of units to draw at each site, as a multiple of the number that the plan
            changes there; all that are left where there are fewer.

    Raises:
        ValueError: a site has no other unit.

    Example:
        >>> from interp.mitigation.controls import changed_units, randomize
        >>> units = interp.Units({"blocks.0.neurons": [2, 5]}, {"blocks.0.neurons": 48})
        >>> others = changed_units(randomize(interp.Zero(units), seed=0, times=3))
        >>> len(others), len(others & units)
        (6, 0)
    """
    (trial,) = Selection(plan, 0.0).random([seed], times=times)
    return interventions(trial.plan)


def _others(units: Units, seed: int, times: int) -> Units:
    drawn = units.draw_matched(seed, times=times)
    if not len(drawn):
        sites = ", ".join(map(str, units.sites[:3]))
        raise ValueError(f"{sites}: all units are selected, which leaves none for a random control")
    return drawn


def as_active(units: Units, activity: UnitScores, seed: int, near: int = 10) -> Units:
    """Returns other units that are about as active: the control for "these units are merely
    active".

    Each unit is replaced by one of the `near` units of its site that are nearest to it in activity.
    No unit is drawn twice.

    Args:
        units: the selected units.
        activity: any score of activity, such as that of the method `activation`.
        seed: seed of the draw.
        near: among how many units a replacement is drawn.

    Raises:
        ValueError: a site does not have the same number of other units.

    Example:
        >>> from interp.mitigation.controls import as_active
        >>> site = interp.Site.parse("blocks.0.neurons")
        >>> activity = interp.UnitScores({site: np.array([0.0, 0.1, 0.9, 1.0])})
        >>> as_active(interp.Units({site: [3]}, {site: 4}), activity, seed=0, near=1)[site]
        array([2])
    """
    rng = np.random.default_rng(seed)
    drawn: dict[Site, list[int]] = {}
    for site in units.sites:
        level = activity[site]
        selected = units[site]
        every_unit = np.arange(level.size)
        free = np.setdiff1d(every_unit, selected)
        if len(free) < len(selected):
            raise ValueError(f"{site} has {len(free)} other units, too few for {len(selected)}")
        drawn[site] = []
        # Each selected unit draws from what those before it have left.
        for unit in selected:
            distance = np.abs(level[free] - level[unit])
            order = np.argsort(distance, kind="stable")
            nearest = free[order[:near]]
            taken = rng.choice(nearest)
            drawn[site].append(int(taken))
            free = free[free != taken]
    return Units(drawn, activity.widths)
