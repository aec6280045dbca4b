"""Laws of extraction_drop: its controls are fair, its verdict finds memory where it was put and not
elsewhere, its errors come first."""

from __future__ import annotations

import memory
import numpy as np
import pandas as pd
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.memorization.evaluation import measure_under
from interp.mitigation.controls import randomize
from interp.mitigation.extraction_drop import _fraction_to_judge, extraction_drop

SITES = ("blocks.0.neurons", "blocks.1.neurons", "blocks.2.neurons")
WIDTH = 48
PARTS = ("memorized", "control", "held_out")


@pytest.fixture(scope="module")
def leak() -> memory.Injected:
    return memory.injected(0)


def windows(leak: memory.Injected) -> list:
    return [memory.frame(getattr(leak, part)) for part in PARTS]


def scores_of(leak: memory.Injected) -> interp.UnitScores:
    """Highest where the memory is."""
    rng = np.random.default_rng(0)
    values = {
        site: rng.random(width) for site, width in leak.subject.anatomy.widths("neurons").items()
    }
    for site, unit in leak.units:
        values[site][unit] += 1
    return interp.UnitScores(values)


chosen = st.lists(st.sets(st.integers(0, WIDTH - 1), max_size=12), min_size=3, max_size=3).filter(
    any
)


@given(chosen, st.integers(0, 9), st.integers(1, 6))
def test_random_controls_are_others_as_many_at_each_site(indices, seed, times):
    units = interp.Units(dict(zip(SITES, indices, strict=True)), dict.fromkeys(SITES, WIDTH))
    (drawn,) = randomize(interp.Scale(units, factor=2.0), seed, times)
    assert not set(drawn.units) & set(units)
    assert {s: len(drawn.units[s]) for s in units.sites} == {
        s: min(times * len(units[s]), WIDTH - len(units[s])) for s in units.sites
    }
    assert drawn.factor == 2.0
    assert drawn.units == randomize(interp.Scale(units, factor=2.0), seed, times)[0].units


def test_draws_of_different_seeds_differ():
    units = interp.Units({SITES[0]: range(12)}, dict.fromkeys(SITES, WIDTH))
    assert len({randomize(interp.Zero(units), seed)[0].units for seed in range(20)}) == 20


def test_scores_are_measured_at_every_fraction_beside_their_controls(leak):
    scores, data = scores_of(leak), windows(leak)
    with tiny.untouched(leak.subject.module):
        report = extraction_drop(leak.subject, scores, *data, [0.05, 0.14], at=0.14)
    rows = report.frame.groupby(["fraction", "selection"])["seeds"].first().to_dict()
    assert rows == {
        (f, s): n for f in (0.05, 0.14) for s, n in (("selection", 1), ("random", 5), ("lowest", 1))
    }
    for name, units in (("selection", scores.top(0.14)), ("lowest", scores.lowest(0.14))):
        after = measure_under(
            leak.subject, [interp.Zero(units)], dict(zip(PARTS, data, strict=True))
        )
        for part in PARTS:
            expected = after[after["data"] == part]["loss"].mean()
            assert report.row(name, part, "loss")["estimate"] == pytest.approx(expected, rel=1e-9)
    assert report.fixed
    assert report.chosen == 0.14


def test_scores_of_both_signs_are_also_compared_with_the_smallest(leak):
    """The lowest are then units of a strong effect of the other sign."""
    scores = interp.UnitScores(
        {site: values - np.median(values) for site, values in scores_of(leak).values.items()}
    )
    report = extraction_drop(leak.subject, scores, *windows(leak), [0.14])
    plans = [interp.Zero(scores.smallest(0.14))]
    expected = measure_under(leak.subject, plans, {"memorized": windows(leak)[0]})["loss"].mean()
    found = report.row("smallest", "memorized", "loss")["estimate"]
    assert found == pytest.approx(expected, rel=1e-9)
    assert found != report.row("lowest", "memorized", "loss")["estimate"]


def test_random_rows_are_the_mean_over_matched_draws(leak):
    data = windows(leak)
    report = extraction_drop(leak.subject, leak.units, *data, seeds=6)
    plans = [interp.Zero(leak.units.draw_matched(seed)) for seed in range(6)]
    expected = measure_under(leak.subject, plans, {"memorized": data[0]})["accuracy"].mean()
    assert report.row("random", "memorized", "accuracy")["estimate"] == pytest.approx(expected)
    assert report.row("random", "memorized", "accuracy")["seeds"] == 6


def test_units_and_a_plan_are_measured_as_they_are_and_without_lowest(leak):
    data = windows(leak)
    as_units, as_plan = (
        extraction_drop(leak.subject, s, *data) for s in (leak.units, [interp.Zero(leak.units)])
    )
    assert as_units.frame.equals(as_plan.frame)
    assert set(as_units.frame["selection"]) == {"selection", "random"}
    assert as_units.chosen == len(leak.units) / (tiny.BLOCKS * WIDTH)
    assert as_units.fixed


def test_a_plan_keeps_its_kind_in_its_controls(leak):
    """Scaling by 1 changes nothing, whichever units it is done to."""
    report = extraction_drop(leak.subject, interp.Scale(leak.units, factor=1.0), *windows(leak))
    assert report.frame["change"].abs().max() < 1e-12


def test_without_a_fraction_fixed_the_most_extraction_that_spares_the_control_is_chosen(leak):
    report = extraction_drop(leak.subject, scores_of(leak), *windows(leak), [0.02, 0.05, 0.14])
    own = (
        report.frame[report.frame["selection"] == "selection"]
        .set_index(["data", "measure", "fraction"])
        .to_dict("index")
    )
    rise = {
        f: own["control", "loss", f]["change"] / own["control", "loss", f]["before"]
        for f in (0.02, 0.05, 0.14)
    }
    assert report.chosen == min(
        (f for f in rise if rise[f] <= 0.05),
        key=lambda f: own["memorized", "accuracy", f]["change"],
    )
    assert not report.fixed


def changes(**by_fraction: tuple[float, float]) -> pd.DataFrame:
    """Rows as in a report: at each fraction the change of control loss, from 2 nats, and that of
    memorized accuracy, from 1."""
    rows = []
    for fraction, (rise, fall) in by_fraction.items():
        about = {"selection": "selection", "fraction": float(fraction)}
        rows.append(about | {"data": "control", "measure": "loss", "before": 2.0, "change": rise})
        rows.append(
            about | {"data": "memorized", "measure": "accuracy", "before": 1.0, "change": fall}
        )
        rows.append(about | {"data": "held_out", "measure": "loss", "before": 2.0, "change": -rise})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (
            {"0.1": (0.02, -0.1), "0.2": (0.1, -0.3), "0.3": (0.11, -0.9)},
            0.2,
        ),  # rises of 1%, 5% and 5.5%
        ({"0.1": (0.02, -0.3), "0.2": (0.08, -0.1), "0.3": (0.8, -0.9)}, 0.1),  # 1%, 4% and 40%
        (
            {"0.1": (0.9, -0.3), "0.2": (0.2, -0.1), "0.3": (0.8, -0.9)},
            0.2,
        ),  # 45%, 10% and 40%: the least
    ],
)
def test_a_fraction_is_chosen_among_those_that_raise_control_loss_by_at_most_a_twentieth(
    found, chosen
):
    assert _fraction_to_judge(changes(**found)) == chosen


def test_equal_damage_is_judged_on_held_out_text(leak):
    """Windows whose loss rises with the number of units stand for held-out text; the loss of the
    control text hardly changes."""
    memorized, control, _ = windows(leak)
    selection = leak.units.only(SITES[1], leak.units[SITES[1]][:2])
    report = extraction_drop(leak.subject, selection, memorized, control, memorized)

    def fewest(text) -> int:
        damage = measure_under(leak.subject, [interp.Zero(selection)], {"text": text})[
            "loss"
        ].mean()
        for times in (1, 3, 10):
            plans = [interp.Zero(selection.draw_matched(seed, times=times)) for seed in range(5)]
            if measure_under(leak.subject, plans, {"text": text})["loss"].mean() >= damage:
                return times * len(selection)
        return 0

    assert report.equal_damage.reached
    assert report.equal_damage.k == fewest(memorized) != fewest(control)


def test_memory_is_found_where_it_was_put_and_nowhere_else():
    """Three models: ablating the neurons that learned beats random at equal damage in all, ablating
    as many others in none."""
    verdicts = []
    for seed in range(3):
        leak = memory.injected(seed)
        reports = [
            extraction_drop(leak.subject, units, *windows(leak))
            for units in (leak.units, leak.units.draw_matched(99))
        ]
        verdicts.append(tuple(report.beats_random for report in reports))
        assert memory.accuracy(leak.subject, leak.memorized) > 0.8
    assert verdicts == [(True, False)] * 3


def refused(leak: memory.Injected, selection, match: str, **options) -> None:
    runs = []
    handle = leak.subject.module.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        with pytest.raises(ValueError, match=match):
            extraction_drop(leak.subject, selection, *windows(leak), **options)
    finally:
        handle.remove()
    assert not runs


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seeds": 4}, "seeds=4: a random control needs at least 5"),
        ({"fractions": [0.1, 0.2], "at": 0.3}, r"at=0.3 is not among the fractions \[0.1, 0.2\]"),
        ({"fractions": []}, "no fractions"),
        ({"fractions": [1.5]}, "cannot take 1.5"),
        ({"fractions": [1.0]}, "leaves none for a random control"),
    ],
)
def test_wrong_settings_are_refused_before_any_forward(leak, options, match):
    refused(leak, scores_of(leak), match, **options)


def test_wrong_selections_are_refused_before_any_forward(leak):
    other = interp.Units({SITES[0]: [1]}, {SITES[0]: WIDTH + 1})
    refused(leak, other, "another model's plan")
    refused(leak, [interp.Zero(other)], "another model's plan")
    refused(leak, [], "the plan is empty")
    refused(leak, leak.units, "at=0.1 chooses among the fractions of scores", at=0.1)
    refused(
        leak,
        interp.Units({SITES[0]: range(WIDTH)}, {SITES[0]: WIDTH}),
        "leaves none for a random control",
    )


def test_scores_of_another_model_are_refused(leak):
    scores = interp.UnitScores({interp.Site.parse(SITES[0]): np.arange(WIDTH + 1.0)})
    with (
        tiny.untouched(leak.subject.module),
        pytest.raises(ValueError, match="another model's plan"),
    ):
        extraction_drop(leak.subject, scores, *windows(leak), [0.1])


def test_streams_of_batches_will_do(leak):
    whole = extraction_drop(leak.subject, leak.units, *windows(leak))
    streams = (iter([interp.Batch(getattr(leak, part), memory.PREFIX)]) for part in PARTS)
    assert extraction_drop(leak.subject, leak.units, *streams).frame.equals(whole.frame)
