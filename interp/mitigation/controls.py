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

Each returns trials, one per seed. For the same selected units, the same seed draws the same others,
whatever is done to them. In a plan of several interventions, no control holds a unit that any of
them selects, and two interventions share a unit of a control only as far as they share selected
ones.
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
# Of several sets of units, the controls of each.
DrawEach = Callable[[list[Units]], list[Units]]

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
        return self._trial_of_each(name, 0, lambda groups: groups)

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
            trials.append(self._trial_of_each(name, seed, others))
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
            others = partial(_as_active_each, activity=activity, seed=seed)
            trials.append(self._trial_of_each(name, seed, others))
        return trials

    def growing(
        self, seeds: Iterable[int], name: str = "random at equal damage"
    ) -> Iterator[list[Trial]]:
        """Yields `random` trials on more and more units, one list per number of units, until none
        are left at any site.

        Args:
            seeds: seeds of the draws.
            name: name of the control.
        """
        seeds = list(seeds)
        most = 0
        for times in _MULTIPLES:
            trials = self.random(seeds, name, times)
            # A site may have given all that it has left long before the others have.
            if trials[0].k == most:
                return
            yield trials
            most = trials[0].k

    @property
    def _selected(self) -> Units:
        """All units that are changed, by whichever intervention."""
        return self.chosen if isinstance(self.chosen, Units) else changed_units(self.chosen)

    def _trial(self, name: str, seed: int, draw: Draw) -> Trial:
        """The trial on units that are drawn for all interventions together."""

        def draw_each(groups: list[Units]) -> list[Units]:
            drawn = draw(reduce(or_, groups))
            return [drawn] if len(groups) == 1 else _split(drawn, groups, seed)

        return self._trial_of_each(name, seed, draw_each)

    def _trial_of_each(self, name: str, seed: int, draw_each: DrawEach) -> Trial:
        """The trial that does to the units drawn what is done to the selected ones."""
        if isinstance(self.chosen, Units):
            [units] = draw_each([self.chosen])
            return Trial(name, self.fraction, seed, units, self.edit(units))
        given = interventions(self.chosen)
        groups = _groups(given)
        drawn = draw_each(list(groups.values()))
        plan: list[Intervention] = []
        for number, intervention in enumerate(given):
            own = [units for numbers, units in zip(groups, drawn, strict=True) if number in numbers]
            plan.append(replace(intervention, units=reduce(or_, own)))
        return Trial(name, self.fraction, seed, changed_units(plan), tuple(plan))


def _groups(plan: tuple[Intervention, ...]) -> dict[frozenset[int], Units]:
    """The units of a plan, divided into those that the same interventions change, by the numbers of
    these interventions."""
    groups: dict[frozenset[int], Units] = {}
    for number, intervention in enumerate(plan):
        new = intervention.units
        divided: dict[frozenset[int], Units] = {}
        for numbers, units in groups.items():
            divided[numbers] = units - intervention.units
            divided[numbers | {number}] = units & intervention.units
            new = new - units
        divided[frozenset({number})] = new
        groups = {numbers: units for numbers, units in divided.items() if len(units)}
    return groups


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


def _others(groups: list[Units], seed: int, times: int) -> list[Units]:
    """For each group random other units, by `Units.draw_matched`."""
    found: list[Units] = []
    for units, free in zip(groups, _free(groups, seed), strict=True):
        drawn = units.draw_matched(seed, among=free, times=times)
        if not len(drawn):
            sites = ", ".join(map(str, units.sites[:3]))
            each = " of each intervention" if len(groups) > 1 else ""
            raise ValueError(
                f"{sites}: all units are selected, which leaves none for a random control{each}"
            )
        found.append(drawn)
    return found


def _free(groups: list[Units], seed: int) -> list[Units | None]:
    """For each group the units that it may draw from, so that no two draw the same one: those that
    no group holds, shared out at each site in proportion to what the groups hold there.

    None for a single group, which draws from all of them.
    """
    if len(groups) == 1:
        return [None]
    others = ~reduce(or_, groups)
    rng = _rng_of_shares(seed)
    shares: list[dict[Site, np.ndarray]] = [{} for _ in groups]
    single_unit_sites = [site for site in others.sites if others.widths[site] == 1]
    for site in others.sites:
        if site in single_unit_sites:
            continue
        held = [len(group[site]) for group in groups]
        for share, indices in zip(shares, _dealt(others[site], held, rng), strict=True):
            share[site] = indices
    # The control of a site of one unit is another such site.
    held = [sum(others.widths[site] == 1 for site in group.sites) for group in groups]
    numbers = np.arange(len(single_unit_sites))
    for share, own in zip(shares, _dealt(numbers, held, rng), strict=True):
        for number in own:
            share[single_unit_sites[number]] = np.zeros(1, dtype=np.int64)
    return [Units(share, others.widths) for share in shares]


def _split(drawn: Units, groups: list[Units], seed: int) -> list[Units]:
    """Units at random, for each group as many as it holds."""
    units = list(drawn)
    rng = _rng_of_shares(seed)
    parts: list[Units] = []
    for own in _dealt(np.arange(len(units)), list(map(len, groups)), rng):
        indices: dict[Site, list[int]] = {}
        for number in own:
            site, unit = units[number]
            indices.setdefault(site, []).append(unit)
        parts.append(Units(indices, drawn.widths))
    return parts


def _dealt(items: np.ndarray, sizes: list[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Items in random order, cut into parts in proportion to some sizes."""
    ends = np.cumsum(sizes) * len(items) // max(sum(sizes), 1)
    return np.split(rng.permutation(items)[: ends[-1]], ends[:-1])


def _rng_of_shares(seed: int) -> np.random.Generator:
    # Other random numbers than those of the draws, which have the same seed.
    return np.random.default_rng([seed, 1])


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
    [drawn] = _as_active_each([units], activity, seed, near)
    return drawn


def _as_active_each(
    groups: list[Units], activity: UnitScores, seed: int, near: int = 10
) -> list[Units]:
    """For each group other units that are about as active, and that no group holds or has drawn."""
    found: list[Units] = []
    taken = reduce(or_, groups)
    for units in groups:
        drawn = _replacements(units, taken, activity, seed, near)
        found.append(drawn)
        taken = taken | drawn
    return found


def _replacements(
    units: Units, excluded: Units, activity: UnitScores, seed: int, near: int
) -> Units:
    rng = np.random.default_rng(seed)
    drawn: dict[Site, list[int]] = {}
    for site in units.sites:
        level = activity[site]
        selected = units[site]
        every_unit = np.arange(level.size)
        free = np.setdiff1d(every_unit, excluded[site])
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
