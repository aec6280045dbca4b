"""Laws of the controls: how many units each draws, from where, and what is done to them."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.interventions.plan import interventions
from interp.mitigation.controls import IN_BLOCKS_OF, Selection, as_active, changed_units
from interp.mitigation.weight_edits import in_weights

SITES = tuple(interp.Site("neurons", block) for block in range(3))
WIDTH = 24
WIDTHS = dict.fromkeys(SITES, WIDTH)

chosen_indices = st.lists(
    st.sets(st.integers(0, WIDTH - 1), max_size=WIDTH // 2), min_size=3, max_size=3
).filter(any)
seeds = st.integers(0, 2**32 - 1)


def units_of(indices) -> interp.Units:
    return interp.Units(dict(zip(SITES, indices, strict=True)), WIDTHS)


def random_scores(seed: int) -> interp.UnitScores:
    rng = np.random.default_rng(seed)
    return interp.UnitScores({site: np.exp(rng.normal(size=WIDTH)) for site in SITES})


def counts(units: interp.Units) -> list[int]:
    return [len(units[site]) for site in SITES]


def test_the_trial_of_a_selection_is_what_was_selected():
    units = units_of([{1, 2}, {3}, set()])
    trial = Selection(units, 0.1).trial("mine")
    assert (trial.selection, trial.fraction, trial.seed, trial.k) == ("mine", 0.1, 0, 3)
    assert trial.units == units
    assert isinstance(trial.plan, interp.Zero)
    assert trial.plan.units == units


@given(chosen_indices, seeds)
def test_random_units_are_others_the_same_number_at_each_site_and_come_back_by_seed(indices, seed):
    selection = Selection(units_of(indices), 0.1)
    (first,) = selection.random([seed])
    (again,) = selection.random([seed])
    assert counts(first.units) == counts(selection.chosen)
    assert not len(first.units & selection.chosen)
    assert first.units == again.units == selection.chosen.draw_matched(seed)
    assert (first.selection, first.fraction, first.seed) == ("random", 0.1, seed)


def test_each_seed_draws_other_units_whatever_other_seeds_are_drawn():
    selection = Selection(units_of([range(6), [], []]), 0.1)
    trials = selection.random(range(20))
    assert [trial.seed for trial in trials] == list(range(20))
    assert len({trial.units for trial in trials}) == 20
    assert selection.random([7])[0].units == trials[7].units


def test_several_times_as_many_are_drawn_or_all_that_are_left():
    selection = Selection(units_of([range(2), range(10), []]), 0.1)
    assert [counts(selection.random([0], times=times)[0].units) for times in (1, 2, 5)] == [
        [2, 10, 0],
        [4, 14, 0],
        [10, 14, 0],
    ]


def test_no_random_control_is_made_of_nothing():
    selection = Selection(units_of([range(WIDTH), [], []]), 0.1)
    with pytest.raises(
        ValueError,
        match=r"blocks.0.neurons: all units are selected, which leaves none for a random control",
    ):
        selection.random([0])


@given(chosen_indices, seeds)
def test_units_in_own_blocks_lie_where_the_method_selects(indices, seed):
    selection = Selection(units_of(indices), 0.1)
    (trial,) = selection.in_own_blocks("slimming", [seed])
    assert trial.selection == f"{IN_BLOCKS_OF}slimming"
    assert trial.units.sites == selection.chosen.sites
    assert counts(trial.units) == counts(selection.chosen)
    assert not len(trial.units & selection.chosen)


@given(chosen_indices, seeds)
def test_the_lowest_are_as_many_others_and_score_below_all_that_are_left(indices, seed):
    scores, selection = random_scores(seed), Selection(units_of(indices), 0.1)
    trial = selection.lowest(scores)
    assert trial.k == len(selection.chosen)
    lowest = [scores[site][unit] for site, unit in trial.units]
    others = [scores[site][unit] for site, unit in ~trial.units - selection.chosen]
    assert max(lowest) <= min(others, default=np.inf)
    assert not len(trial.units & selection.chosen)


def test_the_lowest_by_hand():
    scores = interp.UnitScores(
        {SITES[0]: np.array([3.0, 1.0, 2.0]), SITES[1]: np.array([0.5, 9.0, 8.0])}
    )
    trial = Selection(scores.top(2), 2 / 6).lowest(scores)
    assert set(trial.units) == {(SITES[0], 1), (SITES[1], 0)}


@pytest.mark.parametrize("control", ["lowest", "smallest"])
def test_a_control_shares_no_unit_with_its_selection_where_most_scores_are_equal(control: str):
    values = np.zeros(10)
    values[3] = 1.0
    scores = interp.UnitScores({SITES[0]: values})
    for k in range(1, 6):
        selection = Selection(scores.top(k), k / 10)
        trial = getattr(selection, control)(scores)
        assert trial.k == k
        assert not len(trial.units & selection.chosen)
    with pytest.raises(ValueError, match="cannot take 6 units as a control: of 10 only 4 are not"):
        getattr(Selection(scores.top(6), 0.6), control)(scores)


def test_the_lowest_of_a_plan_are_units_that_none_of_its_interventions_changes():
    scores = interp.UnitScores({SITES[0]: np.arange(8.0)})
    first, second = ({SITES[0]: [7, 6]}, {SITES[0]: [0, 5]})
    plan = [interp.Zero(interp.Units(units, scores.widths)) for units in (first, second)]
    trial = Selection(plan, 0.5).lowest(scores)
    assert trial.units[SITES[0]].tolist() == [1, 2, 3, 4]  # two for each intervention
    assert [len(one.units) for one in trial.plan] == [2, 2]


@given(chosen_indices, seeds)
def test_units_as_active_are_others_the_same_number_at_each_site(indices, seed):
    activity, selection = random_scores(seed), Selection(units_of(indices), 0.1)
    first, again = (selection.as_active(activity, [seed])[0] for _ in range(2))
    assert counts(first.units) == counts(selection.chosen)
    assert not len(first.units & selection.chosen)
    assert first.units == again.units
    assert first.selection == "as active"


@given(seeds, st.integers(0, WIDTH - 1), st.integers(1, 10))
def test_a_unit_as_active_is_among_those_whose_activity_is_nearest(seed, unit, near):
    activity = random_scores(seed)
    ((_, drawn),) = as_active(interp.Units({SITES[0]: [unit]}, WIDTHS), activity, seed, near)
    distance = np.abs(activity[SITES[0]] - activity[SITES[0]][unit])
    nearer = distance < distance[drawn]
    assert drawn != unit
    assert nearer.sum() - 1 < near  # the unit itself is nearest, and not drawn


def test_any_of_the_nearest_is_drawn_and_no_other():
    activity = interp.UnitScores({SITES[0]: np.array([5.0, 5.1, 4.8, 5.4, 9.0, 0.0])})
    units = interp.Units({SITES[0]: [0]}, activity.widths)
    assert {unit for seed in range(30) for _, unit in as_active(units, activity, seed, near=3)} == {
        1,
        2,
        3,
    }


def test_the_nearest_in_activity_stands_for_a_unit():
    activity = interp.UnitScores({SITES[0]: np.array([0.0, 1.0, 1.1, 5.0, 5.2, 9.0])})
    units = interp.Units({SITES[0]: [1, 3]}, activity.widths)
    assert set(as_active(units, activity, 0, near=1)[SITES[0]]) == {2, 4}
    with pytest.raises(ValueError, match="too few for 4"):
        as_active(interp.Units({SITES[0]: [0, 1, 2, 3]}, activity.widths), activity, 0)


few_indices = st.lists(
    st.sets(st.integers(0, WIDTH - 1), max_size=WIDTH // 4), min_size=3, max_size=3
).filter(any)


def two_step_plan(first, second) -> list[interp.Intervention]:
    return [
        interp.Scale(units_of(first), factor=0.3),
        interp.Zero(units_of(second), positions=(1, 2)),
    ]


@given(few_indices, few_indices, seeds)
def test_the_control_of_a_plan_does_the_same_to_other_units(first, second, seed):
    plan = two_step_plan(first, second)
    selection, activity = Selection(plan, 0.2), random_scores(seed)
    selected = changed_units(plan)
    for trial in (*selection.random([seed]), *selection.as_active(activity, [seed])):
        drawn = interventions(trial.plan)
        assert [type(one) for one in drawn] == [interp.Scale, interp.Zero]
        assert drawn[0].factor == 0.3
        assert drawn[1].positions == (1, 2)
        for one, control in zip(plan, drawn, strict=True):
            assert counts(control.units) == counts(one.units)
            assert not len(control.units & selected)
        shared = plan[0].units & plan[1].units
        assert counts(drawn[0].units & drawn[1].units) == counts(shared)
        assert trial.units == changed_units(trial.plan)
        assert trial.k == selection.trial().k == len(selected)
    assert selection.trial().units == selected
    assert [one.units for one in selection.trial().plan] == [one.units for one in plan]


@given(few_indices, few_indices, seeds)
def test_the_lowest_units_are_shared_out_among_the_interventions(first, second, seed):
    plan, scores = two_step_plan(first, second), random_scores(seed)
    for trial in (Selection(plan, 0.2).lowest(scores), Selection(plan, 0.2).smallest(scores)):
        assert trial.units == scores.lowest(len(changed_units(plan)), changed_units(plan))
        for one, control in zip(plan, trial.plan, strict=True):
            assert len(control.units) == len(one.units)


@given(chosen_indices, seeds)
def test_interventions_on_the_same_units_stay_on_the_same_units(indices, seed):
    units = units_of(indices)
    (trial,) = Selection([interp.Scale(units, factor=0.3), interp.Zero(units)], 0.2).random([seed])
    scaled, zeroed = interventions(trial.plan)
    assert scaled.units == zeroed.units == units.draw_matched(seed)


def test_the_units_that_are_left_are_shared_out_in_proportion():
    plan = two_step_plan([range(2), [], []], [range(2, 8), range(12), []])
    first, *_, last = Selection(plan, 0.2).growing(range(3))
    for trial in first:
        assert [counts(one.units) for one in trial.plan] == [[2, 0, 0], [6, 12, 0]]
    for trial in last:
        assert [counts(one.units) for one in trial.plan] == [[4, 0, 0], [12, 12, 0]]
        assert trial.units == ~changed_units(plan) & units_of([range(WIDTH), range(WIDTH), []])


def test_each_seed_shares_out_the_units_that_are_left_anew():
    plan = two_step_plan([{0}, [], []], [{1}, [], []])
    trials = Selection(plan, 0.2).random(range(200))
    for number in range(2):
        drawn = {int(interventions(trial.plan)[number].units[SITES[0]][0]) for trial in trials}
        assert drawn == set(range(2, WIDTH))


def test_a_plan_that_changes_all_units_has_no_random_control():
    plan = two_step_plan([range(6), [], []], [range(6, WIDTH), [], []])
    with pytest.raises(ValueError, match="leaves none for a random control of each intervention"):
        Selection(plan, 0.2).random([0])
    almost = two_step_plan([range(6), [], []], [range(6, WIDTH - 1), [], []])
    with pytest.raises(ValueError, match="leaves none for a random control of each intervention"):
        Selection(almost, 0.2).random([0])


@given(seeds)
def test_whole_blocks_of_two_interventions_get_other_blocks_that_differ(seed):
    sites = [interp.Site("block_out", block) for block in range(6)]
    widths = dict.fromkeys(sites, 1)
    plan = [
        interp.Zero(interp.Units({sites[0]: [0]}, widths)),
        interp.Scale(interp.Units({sites[3]: [0], sites[4]: [0]}, widths), factor=0.5),
    ]
    (trial,) = Selection(plan, 0.2).random([seed])
    assert [len(one.units) for one in trial.plan] == [1, 2]
    assert set(trial.units.sites) == {sites[1], sites[2], sites[5]}


def test_the_same_units_at_two_sites_get_the_same_others():
    """As where the two projections of a gated neuron are changed."""
    plan = [
        interp.Scale(units_of([[1, 4], [], []]), factor=0.5),
        interp.Scale(units_of([[], [1, 4], []]), factor=0.5),
    ]
    (trial,) = Selection(plan, 0.2).random([3])
    first, second = trial.plan
    assert first.units[SITES[0]].tolist() == second.units[SITES[1]].tolist()


def test_an_edit_of_weights_is_done_to_the_units_of_every_control():
    subject = tiny.subject("gpt2")
    widths = subject.anatomy.widths("neurons")
    units = interp.Units(
        {interp.Site("neurons", 0): [3, 0, 40], interp.Site("neurons", 2): [7]}, widths
    )
    rng = np.random.default_rng(0)
    scores = interp.UnitScores({site: rng.random(width) for site, width in widths.items()})

    def halve(chosen: interp.Units):
        return in_weights(subject, chosen, 0.5)

    selection = Selection(units, 0.1, halve)
    trials = [
        selection.trial(),
        *selection.random(range(3)),
        selection.lowest(scores),
        *selection.as_active(scores, range(2)),
    ]
    zeroed = Selection(units, 0.1).random(range(3))
    assert [trial.units for trial in trials[1:4]] == [trial.units for trial in zeroed]
    for trial in [*trials, zeroed[0].with_edit(halve)]:
        expected = halve(trial.units)
        assert [one.to_json() for one in interventions(trial.plan)] == [
            one.to_json() for one in expected
        ]


def test_the_smallest_by_hand():
    scores = interp.UnitScores(
        {SITES[0]: np.array([3.0, -9.0, 0.2]), SITES[1]: np.array([0.5, -0.1, 8.0])}
    )
    trial = Selection(scores.top(2), 2 / 6).smallest(scores)
    assert set(trial.units) == {(SITES[0], 2), (SITES[1], 1)}
    assert (trial.selection, trial.k) == ("smallest", 2)


def test_random_units_grow_until_none_are_left():
    selection = Selection(units_of([range(2), [], []]), 0.1)
    grown = list(selection.growing(range(3)))
    assert [[trial.k for trial in trials] for trials in grown] == [
        [2] * 3,
        [6] * 3,
        [20] * 3,
        [22] * 3,
    ]
    assert [trial.units for trial in grown[1]] == [
        trial.units for trial in selection.random(range(3), times=3)
    ]


def test_random_units_grow_where_sites_have_different_numbers_left():
    selection = Selection(units_of([range(2), range(20), []]), 0.1)
    grown = [counts(trials[0].units) for trials in selection.growing(range(3))]
    assert grown == [[2, 4, 0], [6, 4, 0], [20, 4, 0], [22, 4, 0]]
