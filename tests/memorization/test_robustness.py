"""Laws of robustness: golden cases by hand, intervals and tests against other ways to compute them,
and what must not depend on the order of rows or on invalid episodes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import figure_laws
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from interp.memorization.robustness import (
    RATES,
    distance_between_tasks,
    mcnemar,
    path_deviation,
    robustness,
    text_sensitivity,
    wilson_interval,
)


def arm(
    perturbation: str,
    success: list[bool],
    *,
    task: str = "pick",
    regime: str = "O",
    **columns: Any,
) -> pd.DataFrame:
    """Episodes from initial states 0, 1, ... of one task."""
    rows = pd.DataFrame({"success": success, "initial_state": range(len(success))})
    rows = rows.assign(task=task, regime=regime, perturbation=perturbation, seed=0, valid=True)
    rows["old_goal"] = rows["success"]
    for name, values in columns.items():
        rows[name] = values
    return rows


def table(*arms: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(arms, ignore_index=True)


def few(n: int, of: int = 40) -> list[bool]:
    return [True] * n + [False] * (of - n)


def memorized() -> pd.DataFrame:
    """A regime that repeats its training under a swap, and a control that does not."""
    return table(
        arm("clean", few(39), old_place=True),
        arm("swap", few(0), old_place=few(38)),
        arm("clean", few(40), regime="D", old_place=True),
        arm("swap", few(38), regime="D", old_place=few(1)),
    )


# Wilson and McNemar


@pytest.mark.parametrize(("count", "n"), [(0, 40), (1, 40), (17, 40), (39, 40), (40, 40), (1, 1)])
def test_wilson_ends_solve_the_score_equation(count: int, n: int):
    """The ends are the p whose score statistic (share - p) / sqrt(p (1 - p) / n) is +-z."""
    interval = wilson_interval(count, n)
    z = stats.norm.ppf(0.975)
    share = count / n

    def excess(p: float) -> float:
        return (share - p) ** 2 - z**2 * p * (1 - p) / n

    inside = 1e-12
    low = 0.0 if count == 0 else optimize.brentq(excess, inside, share - inside)
    high = 1.0 if count == n else optimize.brentq(excess, share + inside, 1 - inside)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert (interval.estimate, interval.n) == (share, n)


def test_wilson_intervals_of_the_pilot():
    shown = [str(wilson_interval(count, 40)) for count in (40, 12, 0)]
    assert shown == ["1.00 [0.91, 1.00]", "0.30 [0.18, 0.45]", "0.00 [0.00, 0.09]"]


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_contains_its_estimate(n: int, share: float, level: float):
    interval = wilson_interval(round(share * n), n, level=level)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_twice_a_tail_of_the_discordant_pairs(pairs: list[tuple[bool, bool]]):
    clean, perturbed = np.array(pairs).T
    lost = sum(before and not after for before, after in pairs)
    gained = sum(after and not before for before, after in pairs)
    tail = stats.binom.cdf(min(lost, gained), lost + gained, 0.5)
    assert mcnemar(clean, perturbed) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(perturbed, clean) == pytest.approx(mcnemar(clean, perturbed))


def test_mcnemar_by_hand():
    """Six pairs differ, five of them in one direction: 2 (1 + 6) / 2^6."""
    clean = [True] * 5 + [False] + [True] * 10
    perturbed = [False] * 5 + [True] + [True] * 10
    assert mcnemar(clean, perturbed) == pytest.approx(14 / 64)
    assert mcnemar([True], [True]) == 1


# Paths and actions


def test_path_deviation_by_hand():
    """Distances 1 to the first and 3 to the second point: weights 2 and 1, over 1 + 2 points."""
    assert path_deviation([[0.0]], [[1.0], [3.0]]) == pytest.approx((2 * 1 + 3) / 3)
    assert path_deviation([[0.0], [1.0]], [[0.5], [1.5]]) == pytest.approx((2 * 0.5 + 2 * 0.5) / 4)


PATHS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=5)


@given(PATHS, PATHS)
def test_path_deviation_is_the_least_over_all_alignments(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
):
    first = np.array(one, dtype=float)
    second = np.array(other, dtype=float)

    @cache
    def least(i: int, j: int) -> float:
        """From the ends backwards, as the recursion is written in the paper."""
        distance = float(np.linalg.norm(first[i] - second[j]))
        before: list[float] = []
        if i == j == 0:
            before.append(2 * distance)
        if i:
            before.append(least(i - 1, j) + distance)
        if j:
            before.append(least(i, j - 1) + distance)
        if i and j:
            before.append(least(i - 1, j - 1) + 2 * distance)
        return min(before)

    expected = least(len(first) - 1, len(second) - 1) / (len(first) + len(second))
    assert path_deviation(first, second) == pytest.approx(expected)
    assert path_deviation(second, first) == pytest.approx(expected)


@given(PATHS, st.integers(0, 4), st.integers(1, 6), st.floats(0, 10))
def test_waiting_costs_nothing_and_an_offset_no_more_than_itself(
    points: list[tuple[int, int]], at: int, wait: int, offset: float
):
    path = np.array(points, dtype=float)
    waiting = np.insert(path, [min(at, len(path) - 1)] * wait, path[min(at, len(path) - 1)], axis=0)
    assert path_deviation(path, waiting) == 0
    assert path_deviation(path, path + np.array([0.0, offset])) <= offset + 1e-9


@pytest.mark.parametrize(
    ("path", "other", "words"),
    [
        ([], [[0.0]], "path: expected finite numbers"),
        ([[0.0]], [[np.nan]], "other: expected finite numbers"),
        ([[0.0, 1.0]], [[0.0]], "path has 2 axes and other has 1"),
    ],
)
def test_paths_that_cannot_be_compared(path: Any, other: Any, words: str):
    with pytest.raises(ValueError, match=words):
        path_deviation(path, other)


def test_distance_between_tasks_is_over_pairs_of_different_tasks():
    """0 and 2 of one task, 5 of another: 5 and 3."""
    assert distance_between_tasks([[0.0], [2.0], [5.0]], ["a", "a", "b"]) == 4
    assert np.isnan(distance_between_tasks([[0.0], [2.0]], ["a", "a"]))
    with pytest.raises(ValueError, match="one for each of 1 observations"):
        distance_between_tasks([[0.0]], ["a", "b"])


def test_text_sensitivity_is_one_where_the_text_is_all_that_counts():
    actions = np.array([[0.0, 3.0], [4.0, 0.0]])
    between = distance_between_tasks(actions, ["a", "b"])
    assert between == 5
    assert text_sensitivity(actions, actions[::-1], between) == 1
    assert text_sensitivity(actions, actions, between) == 0
    with pytest.raises(ValueError, match="above 0"):
        text_sensitivity(actions, actions, between=np.nan)
    with pytest.raises(ValueError, match="the same observations and axes"):
        text_sensitivity(actions, actions[:1], between)


# Traps


def test_a_trap_is_the_old_place_where_the_target_moved():
    swap = arm("swap", [True, False, False, False], old_place=[True, True, False, None])
    report = robustness(table(arm("clean", [True] * 4), swap))
    trap = report.interval("trap", "O", "swap")
    assert trap is not None
    assert (trap.estimate, trap.n) == (2 / 3, 3)  # the last one was not measured
    of_failures = report.interval("trap_of_failures", "O", "swap")
    assert of_failures is not None
    assert (of_failures.estimate, of_failures.n) == (1 / 2, 2)


def test_a_trap_is_also_the_old_goal_where_the_goal_changed():
    task = arm(
        "task",
        [False] * 4,
        old_goal=[True, False, False, True],
        old_place=[False, True, False, None],
    )
    report = robustness(table(arm("clean", [True] * 4), task))
    trap = report.interval("trap", "O", "task")
    assert trap is not None
    assert (trap.estimate, trap.n) == (3 / 4, 4)
    old_goal = report.interval("old_goal", "O", "task")
    assert old_goal is not None
    assert old_goal.estimate == 1 / 2


def test_reaching_the_goal_of_a_swapped_scene_is_no_trap():
    """Its old goal is its goal."""
    report = robustness(table(arm("clean", few(4, 4)), arm("swap", few(4, 4), old_place=few(0, 4))))
    trap = report.interval("trap", "O", "swap")
    assert trap is not None
    assert trap.estimate == 0


@pytest.mark.parametrize("kind", ["object", "semantic", "environment", "corrupted xxx", "unseen"])
def test_there_is_no_trap_where_the_right_place_is_the_training_place(kind: str):
    changed = arm(kind, few(0, 4), old_place=True)
    report = robustness(table(arm("clean", few(4, 4), old_place=True), changed))
    assert report.interval("trap", "O", kind) is None
    old_place = report.interval("old_place", "O", kind)
    assert old_place is not None
    assert old_place.estimate == 1


def test_without_old_places_a_trap_is_the_old_goal_alone():
    task = arm("task", few(0, 4), old_goal=few(3, 4))
    report = robustness(table(arm("clean", few(4, 4)), arm("swap", few(0, 4)), task))
    assert report.interval("trap", "O", "swap") is None
    trap = report.interval("trap", "O", "task")
    assert trap is not None
    assert trap.estimate == 3 / 4


# Outcomes


def test_failures_are_memorized_if_a_control_does_better():
    report = robustness(memorized(), control="D")
    assert report.outcome("O", "swap") == "memorized"
    assert report.outcome("D", "swap") == "holds"
    assert robustness(memorized()).outcome("O", "swap") == "trapped"


def test_a_control_that_is_not_trained_shows_nothing():
    rows = memorized()
    is_clean_control = (rows["regime"] == "D") & (rows["perturbation"] == "clean")
    for column in ("success", "old_goal"):
        rows.loc[is_clean_control, column] = few(20)
    report = robustness(rows, control="D")
    assert report.outcome("O", "swap") == "trapped"
    assert report.outcome("D", "swap") == "not trained"
    assert "D is not trained: its clean success is 0.50 [0.35, 0.65] of 40" in report.verdict


@pytest.mark.parametrize(
    ("kind", "success", "old_place", "outcome"),
    [
        ("swap", few(39), few(40), "holds"),
        ("swap", few(36), few(40), "unclear"),
        ("swap", few(10), few(10), "fails"),  # all traps are among the successes
        ("swap", few(0), few(22), "fails"),  # not beyond a half
        ("swap", few(0), few(30), "trapped"),
        ("corrupted xxx", few(39), few(40), "ignores the change"),
        ("corrupted xxx", few(0), few(40), "reacts"),
        ("unseen", few(40), few(40), "ignores the change"),
    ],
)
def test_outcomes(kind: str, success: list[bool], old_place: list[bool], outcome: str):
    changed = arm(kind, success, old_place=old_place)
    report = robustness(table(arm("clean", few(40), old_place=True), changed))
    assert report.outcome("O", kind) == outcome


def test_the_precondition_includes_its_threshold():
    for count, trained in ((36, True), (35, False)):
        report = robustness(arm("clean", few(count)))
        assert report.is_trained("O") is trained


def test_a_task_is_judged_by_its_own_clean_success():
    report = robustness(
        table(
            arm("clean", few(40)),
            arm("swap", few(40)),
            arm("clean", few(2, of=4), task="place"),
            arm("swap", few(0, of=4), task="place"),
        )
    )
    outcomes = report.outcomes().set_index("task")["outcome"]
    assert outcomes.to_dict() == {"all": "holds", "pick": "holds", "place": "not trained"}


def test_collapse_in_one_task_widens_the_interval_over_tasks():
    swaps = [arm("swap", few(40 * n), task=str(n)) for n in (0, 1)]
    cleans = [arm("clean", few(40), task=str(n)) for n in (0, 1)]
    frame = robustness(table(*swaps, *cleans)).frame
    row = frame[(frame["perturbation"] == "swap") & (frame["measure"] == "success")].iloc[0]
    assert (row["task"], row["estimate"], row["n"]) == ("all", 0.5, 80)
    assert (row["task_low"], row["task_high"]) == (0, 1)
    assert row["low"] > 0.35


# Pairs and invalid episodes


def test_pairs_are_counted():
    report = robustness(
        table(
            arm("clean", [True, True, False, True]),
            arm("swap", [False, True, True, False]),
        )
    )
    row = report.pairs[report.pairs["task"] == "all"].iloc[0]
    assert row[["pairs", "lost", "gained", "p"]].tolist() == [4, 2, 1, 1.0]
    assert row[["clean", "perturbed", "change"]].tolist() == [0.75, 0.5, -0.25]


def test_invalid_episodes_are_counted_and_part_of_nothing():
    swap = arm("swap", [False, False, True, True])
    swap["valid"] = [False, True, True, True]
    swap["reason"] = ["goal holds at reset", None, None, None]
    clean = arm("clean", [True, True, True, True])
    clean["valid"] = [True, False, True, True]
    clean["reason"] = [None, "scene did not load", None, None]
    report = robustness(table(clean, swap))
    success = report.interval("success", "O", "swap")
    assert success is not None
    assert (success.estimate, success.n) == (2 / 3, 3)
    row = report.pairs[report.pairs["task"] == "all"].iloc[0]
    assert row["pairs"] == 2
    reasons = report.invalid.set_index("reason")["episodes"].to_dict()
    assert reasons == {"goal holds at reset": 1, "scene did not load": 1}
    assert "2 episodes were invalid and left out" in report.verdict
    labels = [label.get_text() for label in report.plot().axes[0].get_yticklabels()]
    assert labels == ["clean\nn = 3, 1 invalid", "swap\nn = 3, 1 invalid"]


def test_an_arm_without_valid_episodes_is_shown():
    swap = arm("swap", few(0, 4)).assign(success=None, valid=False, reason="does not parse")
    report = robustness(table(arm("clean", few(4, 4)), swap))
    assert report.outcome("O", "swap") == "no valid episodes"
    assert report.interval("success", "O", "swap") is None
    assert "no valid pair of episodes under swap" in report.verdict
    assert "4 episodes were invalid and left out (does not parse: 4)" in report.verdict
    figure_laws.check(report.plot())


def test_a_regime_without_valid_clean_episodes_cannot_be_judged():
    clean = arm("clean", few(4, 4)).assign(valid=False, reason="does not parse")
    report = robustness(table(clean, arm("swap", few(4, 4))))
    assert report.outcome("O", "swap") == "not trained"
    assert report.verdict.startswith("O cannot be judged: none of its clean episodes is valid")


EPISODE = st.tuples(
    st.sampled_from(["pick", "place"]),
    st.integers(0, 1),
    st.booleans(),  # success in the clean scene
    st.booleans(),  # success in the swapped one
    st.sampled_from([True, False, None]),  # old place
    st.booleans(),  # valid
)


def swapped(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    episodes: list[dict[str, Any]] = []
    for state, (task, seed, clean, success, old_place, valid) in enumerate(rows):
        same = {"task": task, "seed": seed, "initial_state": state, "regime": "O"}
        for kind, reached in (("clean", clean), ("swap", success)):
            is_valid = valid or kind == "clean"
            episodes.append(
                {
                    **same,
                    "perturbation": kind,
                    "success": reached,
                    "old_goal": reached,
                    "old_place": old_place,
                    "valid": is_valid,
                    "reason": None if is_valid else "did not load",
                }
            )
    return pd.DataFrame(episodes)


@settings(max_examples=20, deadline=None)
@given(st.lists(EPISODE, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_and_rates_are_rates(
    rows: list[tuple[Any, ...]], random: Any
):
    episodes = swapped(rows)
    order = list(range(len(episodes)))
    random.shuffle(order)
    report = robustness(episodes)
    shuffled = robustness(episodes.iloc[order])
    pd.testing.assert_frame_equal(report.frame, shuffled.frame)
    pd.testing.assert_frame_equal(report.pairs, shuffled.pairs)
    assert report.verdict == shuffled.verdict

    rates = report.frame[report.frame["measure"].isin(RATES) & (report.frame["n"] > 0)]
    ordered = rates[["low", "estimate", "high"]].to_numpy()
    assert (np.diff(ordered, axis=1) >= 0).all()
    assert ordered.min() >= 0
    assert ordered.max() <= 1
    counted = report.frame["n"] + report.frame["invalid"]
    assert (counted <= report.frame["episodes"]).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(EPISODE, min_size=1, max_size=10))
def test_an_invalid_episode_never_counts_as_a_failure(rows: list[tuple[Any, ...]]):
    """Without its invalid episodes a table has the same rates and tests."""
    episodes = swapped(rows)
    episodes.loc[~episodes["valid"], ["success", "old_goal", "old_place"]] = False
    with_invalid = robustness(episodes)
    without = robustness(episodes[episodes["valid"]])
    of = ["regime", "perturbation", "task", "measure"]
    numbers = ["estimate", "low", "high", "n"]
    known = with_invalid.frame[with_invalid.frame["n"] > 0].set_index(of)[numbers]
    alone = without.frame[without.frame["n"] > 0].set_index(of)[numbers]
    pd.testing.assert_frame_equal(known, alone)
    some = with_invalid.pairs[with_invalid.pairs["pairs"] > 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, without.pairs, check_dtype=False)


# Paths and actions in the table


def test_paths_and_actions_are_compared_with_the_clean_partner():
    straight = np.array([[0.0, 0.0], [1.0, 0.0]])
    left = np.array([[0.0, 1.0]])
    right = np.array([[0.0, -1.0]])
    arms = [
        arm("clean", [True], task="left", path=[straight], actions=[left]),
        arm("clean", [True], task="right", path=[straight], actions=[right]),
        arm(
            "corrupted xxx", [True], task="left", path=[straight + np.array([0, 3])], actions=[left]
        ),
        arm(
            "corrupted xxx",
            [True],
            task="right",
            path=[straight + np.array([0, 1])],
            actions=[left],
        ),
        arm("swap", [True], task="left", path=[None], actions=[right]),
    ]
    report = robustness(table(*arms))
    deviation = report.interval("path_deviation", "O", "corrupted xxx")
    assert deviation is not None
    # The straight path is 1 long, so that the offset 1 or 3 is the least cost of either alignment.
    assert (deviation.estimate, deviation.n) == (pytest.approx(2), 2)
    sensitivity = [
        report.interval("text_sensitivity", "O", "corrupted xxx", task)
        for task in ("left", "right", "all")
    ]
    assert [each and each.estimate for each in sensitivity] == [0, 1, 0.5]
    # A swap changes no text, and the clean arm has nothing to be compared with.
    assert report.interval("text_sensitivity", "O", "swap", "left") is None
    assert report.interval("path_deviation", "O", "swap") is None
    assert report.interval("path_deviation", "O", "clean") is None


def test_with_a_single_task_text_sensitivity_has_no_unit():
    actions = [np.array([[1.0]])]
    report = robustness(
        table(arm("clean", [True], actions=actions), arm("semantic", [True], actions=actions))
    )
    assert report.interval("text_sensitivity", "O", "semantic") is None


def test_actions_of_an_invalid_episode_set_no_unit():
    left, right, wild = (np.array([[0.0, y]]) for y in (1.0, -1.0, 99.0))
    fell = {"valid": [True, False], "reason": [None, "the box fell"]}
    report = robustness(
        table(
            arm("clean", [True, False], task="left", actions=[left, wild], **fell),
            arm("clean", [True], task="right", actions=[right]),
            arm("corrupted xxx", [True], task="right", actions=[left]),
        )
    )
    sensitivity = report.interval("text_sensitivity", "O", "corrupted xxx")
    assert sensitivity is not None
    assert (sensitivity.estimate, sensitivity.n) == (1, 1)


def test_an_episode_whose_path_cannot_be_compared_is_named():
    clean = arm("clean", [True], path=[np.zeros((2, 3))])
    swap = arm("swap", [True], path=[np.zeros((2, 2))])
    with pytest.raises(ValueError, match=r"'swap' of task 'pick'.*initial state 0: path has 3"):
        robustness(table(clean, swap))


# Order, figure and files


def test_arms_come_in_the_order_of_kinds_and_of_their_numbers():
    kinds = ["shift 14 cm", "semantic", "clean", "shift 7 cm", "swap"]
    report = robustness(table(*(arm(kind, few(4, 4)) for kind in kinds)))
    there = list(dict.fromkeys(report.frame["perturbation"]))
    assert there == ["clean", "swap", "shift 7 cm", "shift 14 cm", "semantic"]


def test_the_verdict_in_words():
    assert robustness(memorized(), control="D").verdict == (
        "D is trained (its clean success is 1.00 [0.91, 1.00] of 40 episodes), holds under swap "
        "(0.95 [0.83, 0.99], 0 of 2 failures trapped); "
        "O is trained (its clean success is 0.97 [0.87, 1.00] of 40 episodes), repeats what it was "
        "trained on under swap (0.00 [0.00, 0.09], 38 of 40 failures trapped); no episode was "
        "invalid."
    )


def test_the_figure_says_what_it_shows():
    rows = table(memorized(), arm("clean", few(2), regime="pixels", old_place=True))
    rows = table(rows, arm("task", few(4), old_goal=few(0), old_place=few(3)))
    figure = robustness(rows, control="D").plot()
    figure_laws.check(figure)
    assert [axes.get_title() for axes in figure.axes] == ["D", "O", "pixels, not trained"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "success"
    assert names[-1] == "clean success that a trained policy needs"


def test_a_figure_names_only_what_it_draws():
    figure = robustness(table(arm("clean", few(4)), arm("swap", few(4)))).plot()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["success", "clean success that a trained policy needs"]


def test_a_figure_of_all_arms_is_readable():
    kinds = ["swap", "shift 7 cm", "shift 14 cm", "semantic", "task", "corrupted xxx", "other_task"]
    arms = [arm("clean", few(40), regime=regime, old_place=True) for regime in "OGD"]
    for regime in "OGD":
        arms += [arm(kind, few(9), regime=regime, old_place=few(7)) for kind in kinds]
    figure_laws.check(robustness(table(*arms), control="D").plot())


def test_save_writes_the_table_the_verdict_and_the_figure(tmp_path: Any):
    swap = arm("swap", few(0, 4)).assign(success=None, valid=False, reason="does not parse")
    report = robustness(table(arm("clean", few(4, 4)), swap))
    report.save(tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "robustness.parquet"), report.frame)
    about = json.loads((tmp_path / "robustness.json").read_text())
    assert about["verdict"] == report.verdict
    assert about["pairs"][0]["p"] is None
    assert about["outcomes"][0]["outcome"] == "no valid episodes"
    assert about["invalid"][0]["episodes"] == 4
    assert (tmp_path / "robustness.png").stat().st_size > 1000


def test_the_table_at_a_glance():
    wide = robustness(memorized()).table()
    assert wide.loc[("O", "swap", "all"), "trap"] == 38 / 40
    assert list(wide) == ["success", "old_goal", "old_place", "trap", "trap_of_failures"]


def test_a_table_without_regimes_has_one():
    episodes = arm("clean", few(4, 4)).drop(columns="regime")
    assert robustness(episodes).regimes == ["policy"]


# Errors

REFUSED = {
    "missing": (lambda rows: rows.drop(columns=["seed", "valid"]), "seed, valid missing"),
    "none": (lambda rows: rows[:0], "at least one, got none"),
    "unknown": (
        lambda rows: rows.replace({"perturbation": {"swap": "swop 3"}}),
        "'swop 3': expected one of clean, object.*nearest: swap",
    ),
    "clean detail": (
        lambda rows: rows.replace({"perturbation": {"swap": "clean 2"}}),
        "'clean 2': .* nearest: clean",
    ),
    "no clean": (lambda rows: rows[rows["perturbation"] == "swap"], "no clean episodes, only swap"),
    "unpaired": (lambda rows: rows.drop(index=1), "1 perturbed episodes have no clean partner.*state 1"),
    "twice": (lambda rows: table(rows, rows[:1]), "1 episodes are there twice.*'clean'"),
    "task": (lambda rows: rows.assign(task="all"), "task 'all': expected another name"),
    "missing key": (lambda rows: rows.assign(seed=[None] * 8), "seed: 8 of 8 are missing"),
    "flag": (lambda rows: rows.assign(success="yes"), "success: expected true, false or missing"),
    "no valid": (lambda rows: rows.assign(valid=None), "valid: expected true or false for every"),
    "success": (lambda rows: rows.assign(success=None), "success is missing in 8 valid episodes"),
    "reason": (lambda rows: rows.assign(valid=False), "8 invalid episodes have no reason"),
    "blank": (lambda rows: rows.assign(valid=False, reason=" "), "8 invalid episodes have no reason"),
    "goals": (lambda rows: rows.assign(old_goal=False), "4 clean episodes differ in success and old_goal"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_episodes_that_are_refused(case: str):
    change, words = REFUSED[case]
    episodes = table(arm("clean", few(4, 4)), arm("swap", few(4, 4)))
    with pytest.raises(ValueError, match=words):
        robustness(change(episodes))


def test_options_that_are_refused():
    episodes = arm("clean", few(4, 4))
    with pytest.raises(ValueError, match=r"control='E': expected one of O; nearest: O"):
        robustness(episodes, control="E")
    with pytest.raises(ValueError, match=r"level: expected a coverage between 0 and 1"):
        robustness(episodes, level=95)
    with pytest.raises(ValueError, match=r"41 of 40 episodes"):
        wilson_interval(41, 40)
    with pytest.raises(ValueError, match=r"between 0 and 1"):
        wilson_interval(1, 40, level=1)
    with pytest.raises(ValueError, match=r"need the same length, got 1 and 2"):
        mcnemar([True], [True, False])
    with pytest.raises(LookupError, match=r"perturbation='swop'.*nearest: swap"):
        robustness(memorized()).interval("trap", "O", "swop")
    report = robustness(table(memorized(), arm("task", few(4))))
    with pytest.raises(LookupError, match=r"was not run"):
        report.outcome("D", "task")


def test_the_episodes_are_left_as_they_were():
    episodes = memorized()
    before = episodes.copy()
    robustness(episodes)
    pd.testing.assert_frame_equal(episodes, before)
