"""Laws of the comparison at equal damage: on tables made by hand, and on an injected memory."""

from __future__ import annotations

import memory
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.memorization.evaluation import measure_under
from interp.mitigation import equal_damage
from interp.mitigation.controls import Selection
from interp.mitigation.equal_damage import EqualDamage, compare_at_equal_damage
from interp.reporting.stats import Interval

SITE = interp.Site("neurons", 0)
SELECTED = interp.Units({SITE: [0]}, {SITE: 400})
HELD_OUT, MEMORIZED, DRAWS = 12, 10, 3
BEFORE = 2.0


def measured(plans: list[tuple[np.ndarray, float]]) -> pd.DataFrame:
    """Rows of `measure_under`: for each plan the rise of the loss of each held-out window, and the
    accuracy of every memorized window."""
    parts: list[pd.DataFrame] = []
    for plan, (rise, accuracy) in enumerate(plans):
        held_out = {"data": "held_out", "window": range(HELD_OUT), "loss": BEFORE + rise}
        memorized = {"data": "memorized", "window": range(MEMORIZED), "accuracy": accuracy}
        parts += [pd.DataFrame(rows | {"plan": plan}) for rows in (held_out, memorized)]
    return pd.concat(parts, ignore_index=True)


def around(mean: float, spread: float = 0.0) -> np.ndarray:
    """A value for each held-out window, around a mean."""
    return mean + spread * np.linspace(-1, 1, HELD_OUT)


def compare(
    monkeypatch, rise: np.ndarray, accuracy: float, random: dict[int, tuple[np.ndarray, float]]
) -> EqualDamage:
    """The comparison of a selection with random units of growing numbers, whose rise and accuracy
    are given; numbers that are not given must not be measured."""

    def by_number(_subject, plans, _data, _batch_size) -> pd.DataFrame:
        return measured([random[len(plan.units)] for plan in plans])

    monkeypatch.setattr(equal_damage, "measure_under", by_number)
    return compare_at_equal_damage(
        None,
        Selection(SELECTED, 0.1),
        measured([(around(0), 1.0)]),
        measured([(rise, accuracy)]),
        {"held_out": [], "memorized": []},
        range(DRAWS),
    )


def test_the_fewest_random_units_that_hurt_as_much_by_hand(monkeypatch):
    random = {1: (around(0.1), 0.9), 3: (around(0.5), 0.7), 10: (around(0.9), 0.4)}
    found = compare(monkeypatch, around(0.4), 0.2, random)
    assert (found.k, found.reached, found.distinguishable) == (3, True, True)
    assert found.accuracy == pytest.approx(0.7)
    assert (found.advantage.low, found.advantage.high) == pytest.approx((0.5, 0.5))
    assert (found.damage.estimate, found.random_damage.estimate) == pytest.approx((0.4, 0.5))
    assert found.beats_random


def test_damage_that_cannot_be_told_from_none_is_not_matched_by_its_noisy_mean(monkeypatch):
    """The mean damage of 0.03 is noise. Ten times as many random units reach it, and have lost half
    of the memory by then; those that do not hurt either have lost none."""
    noise = around(0.03, spread=0.2)
    random = {1: (around(0.0, 0.2), 1.0), 3: (around(0.01, 0.2), 1.0), 10: (around(0.2), 0.5)}
    found = compare(monkeypatch, noise, 0.6, random)
    assert not found.distinguishable
    assert found.damage.low < 0 < found.damage.estimate
    assert (found.k, found.accuracy) == (3, pytest.approx(1.0))
    assert found.beats_random
    assert "not distinguishable" in found.random_units


def test_where_the_fewest_random_units_hurt_and_the_selection_does_not_they_are_compared(
    monkeypatch,
):
    found = compare(monkeypatch, around(0.0, 0.1), 0.6, {1: (around(0.2), 0.9)})
    assert found.k == 1
    assert found.random_units == "1 random units, the fewest tried, hurt held-out text more"


def test_the_noise_of_the_damage_is_part_of_the_interval(monkeypatch):
    """Either 3 or 10 units hurt as much, by which held-out windows one happens to have; they leave
    0.9 and 0.1 of the memory. Each window and draw alone has no noise in its accuracy."""
    random = {
        1: (around(0.1), 1.0),
        3: (around(0.41), 0.9),
        10: (around(0.9), 0.1),
        30: (around(5.0), 0.0),
    }
    found = compare(monkeypatch, around(0.4, spread=0.3), 0.5, random)
    assert found.k == 3
    assert found.advantage.estimate == pytest.approx(0.4)
    assert (found.advantage.low, found.advantage.high) == pytest.approx((-0.4, 0.4))
    assert not found.beats_random


def test_nothing_is_compared_beyond_the_most_random_units_there_are(monkeypatch):
    grown = (1, 3, 10, 30, 100, 300, 399)
    random = {k: (around(0.001 * k), 0.9) for k in grown}
    found = compare(monkeypatch, around(9.0), 0.2, random)
    assert (found.k, found.reached) == (399, False)
    assert found.advantage.low > 0
    assert not found.beats_random
    assert "still hurt held-out text less" in found.random_units


@given(st.floats(-1, 1), st.floats(0, 0.2))
def test_words_never_need_a_sign_to_be_read(estimate, width):
    advantage = Interval(estimate, estimate - width, estimate + width, 6)
    none = Interval(0.1, 0.1, 0.1, 6)
    words = EqualDamage(3, True, 0.5, advantage, none, none).difference
    if estimate == 0:
        assert words == "as much as they do"
        return
    assert words.endswith("less than they do" if estimate > 0 else "more than they do")
    assert words.startswith(f"{abs(estimate):.2f} [")


@pytest.fixture(scope="module")
def leak() -> memory.Injected:
    return memory.injected(0)


def test_the_units_are_the_fewest_that_reach_the_damage_when_they_are_measured_again(leak):
    """Here the memorized windows are the held-out text: their loss rises with the number of units."""
    text = memory.frame(leak.memorized)
    site = "blocks.1.neurons"
    selection = Selection(leak.units.only(site, leak.units[site][:2]), 0.1)

    def rows(plans) -> pd.DataFrame:
        return measure_under(leak.subject, plans, {"held_out": text, "memorized": text})

    def loss(plans) -> float:
        found = rows(plans)
        return float(found.loc[found["data"] == "held_out", "loss"].mean())

    found = compare_at_equal_damage(
        leak.subject,
        selection,
        rows([[]]),
        rows([selection.trial().plan]),
        {"held_out": text, "memorized": text},
        range(5),
    )
    wanted = loss([selection.trial().plan])
    by_number = {
        trials[0].k: loss([trial.plan for trial in trials])
        for trials in selection.growing(range(5))
    }
    enough = [k for k, value in by_number.items() if value >= wanted]
    assert found.distinguishable
    assert found.k == min(enough)
    assert found.random_damage.estimate == pytest.approx(by_number[found.k] - loss([[]]))
