"""Laws of what Reason to Rote claims, from tables by hand: both tasks are judged by one rule, and
what was not measured gets no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.reason_to_rote import sweep
from experiments.reason_to_rote.checks import checks
from experiments.reason_to_rote.measures import (
    FAITHFUL,
    FEWEST_EDGES,
    at_first,
    before_memory,
    component_correlation,
    effective_positions,
    last,
    less,
    overlap_if_faithful,
    overlap_of_smallest,
    probe_at_best,
    proportion,
    steps_ratio,
)
from experiments.reason_to_rote.overlap import FRACTIONS
from experiments.reason_to_rote.presets import PRESETS
from interp.experiment.checks import claims
from interp.experiment.claims import NOT_TESTABLE, Claim

CHECKS = {check.id: check for check in checks(PRESETS["small"])}
SEEDS = range(5)


def judged(name: str, tables: dict[str, pd.DataFrame]) -> Claim:
    """The claim over five seeds with the same tables."""
    made = {
        table: pd.concat([frame.assign(seed=seed) for seed in SEEDS])
        for table, frame in tables.items()
    }
    found, *_ = claims([CHECKS[name]], made, list(SEEDS))
    return found


def history(
    test: list[float], memorized: list[float], stage: str = "end", task: str = "THR"
) -> pd.DataFrame:
    """A training of ten steps per measurement."""
    frame = pd.DataFrame({"test": test, "memorized": memorized, "task": task, "stage": stage})
    frame["corrected"] = 1 - frame["memorized"]
    frame["ood"] = 0.0
    frame["step"] = 10 * frame.index + 9
    counts = {"test": 500, "memorized": 400, "corrected": 400, "ood": 20}
    return frame.assign(**{f"n_{name}": count for name, count in counts.items()})


def test_both_tasks_are_judged_by_one_rule():
    """All but what only one of them has: digits, and probes at the token that has seen them."""
    for name, check in CHECKS.items():
        twin = CHECKS.get(name.replace("FDA", "THR"))
        if twin is None or name.startswith(("C3a", "C3c", "K3")):
            continue
        assert twin.threshold == check.threshold, name
        assert twin.opposite == check.opposite, name
        assert twin.over == check.over, name
    for group in ("C1a", "C1b", "C1c", "C2a", "C2b", "C2c", "C4a", "C4b", "C5d", "C7e"):
        assert f"{group} THR" in CHECKS, group


def test_what_is_learned_together_is_not_called_two_phases():
    """When the test is passed, 0.35 are memorized: more than the 0.05 that sums are held to."""
    together = {"dynamics": history([0.5, 0.85, 0.91, 0.98], [0.1, 0.2, 0.35, 1.0])}
    for name in ("C1a THR", "C1b THR", "C1c THR"):
        assert judged(name, together).verdict == "not reproduced", name
    apart = {
        "dynamics": history([0.95, 0.98, 0.98, 0.98, 0.98], [0.0, 0.0, 0.0, 0.3, 1.0]),
    }
    for name in ("C1a THR", "C1b THR", "C1c THR"):
        assert judged(name, apart).verdict == "reproduced", name
    assert judged("C1c THR", apart).measured == 5


def test_what_never_happened_has_no_number():
    never_passed = {"dynamics": history([0.5, 0.89], [0.0, 1.0])}
    never_memorized = {"dynamics": history([0.5, 0.95], [0.0, 0.4])}
    assert at_first("memorized", 0.9, task="THR")(never_passed) is None
    assert steps_ratio(0.5, 0.9, task="THR")(never_passed) is None
    assert steps_ratio(0.5, 0.9, task="THR")(never_memorized) is None
    assert before_memory("test", 0.05, task="THR")({"dynamics": history([1], [0.5])}) is None
    claim = judged("C1c THR", never_memorized)
    assert (claim.measured, claim.verdict) == (None, NOT_TESTABLE)


def test_the_cost_of_memory_is_measured_against_a_model_without_wrong_labels():
    for with_noise, verdict in ((0.95, "reproduced"), (1.0, "not reproduced")):
        tables = [
            history([with_noise], [1.0]),
            history([1.0], [0.0], "without noise"),
        ]
        claim = judged("C2c THR", {"dynamics": pd.concat(tables)})
        assert claim.measured == pytest.approx(1 - with_noise)
        assert claim.verdict == verdict
    gains = [history([1.0], [1.0]), history([0.9], [0.0], "without noise")]
    assert judged("C2c THR", {"dynamics": pd.concat(gains)}).verdict == "opposite"


def test_a_difference_of_shares_has_newcombes_interval():
    """Newcombe 1998, table II, example a: 56 of 70 against 48 of 80."""
    found = less(lambda _: proportion(56 / 70, 70), lambda _: proportion(48 / 80, 80))({})
    assert found is not None
    assert found.estimate == pytest.approx(0.2)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    assert less(lambda _: None, lambda _: proportion(0.5, 10))({}) is None


def circuit_tables(
    effect: float, edges: int, iou: float = 0.9, task: str = "THR", random: float = 0.5
) -> dict[str, pd.DataFrame]:
    """Circuits that give the same effect at every size but half of all edges, where it is 1."""
    overlaps: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    for fraction in FRACTIONS:
        size = round(edges * fraction / 0.1)
        for other, value in (("test", iou), ("random prompts", random), ("untrained", 0.2)):
            for sample in range(3):
                row = {"other": other, "fraction": fraction, "edges": size, "sample": sample}
                overlaps.append(row | {"iou": value})
        for name in ("memorized", "test"):
            row = {"circuit": name, "on": name, "fraction": fraction}
            effects.append(row | {"faithfulness": 1.0 if fraction == 0.5 else effect})
    about = {"task": task, "stage": "end"}
    return {
        "overlap": pd.DataFrame(overlaps).assign(**about),
        "faithfulness": pd.DataFrame(effects).assign(**about),
    }


def test_an_overlap_of_circuits_that_do_nothing_is_not_testable():
    for tables in (
        circuit_tables(effect=-0.04, edges=30),
        circuit_tables(effect=FAITHFUL - 0.01, edges=30),
        circuit_tables(effect=1.0, edges=5),
        circuit_tables(effect=1.0, edges=FEWEST_EDGES - 1),
    ):
        claim = judged("C6a THR", tables)
        assert (claim.measured, claim.verdict) == (None, NOT_TESTABLE)
        assert "with test items: 0.900" in claim.control  # the number is still shown
    faithful = judged("C6a THR", circuit_tables(effect=FAITHFUL, edges=FEWEST_EDGES))
    assert (faithful.measured, faithful.verdict) == (pytest.approx(0.4), "reproduced")


def test_the_smallest_circuits_that_can_be_compared_are():
    of = {"task": "THR", "stage": "end"}
    half = circuit_tables(effect=0.1, edges=30)
    changed = half["overlap"].copy()
    is_half = (changed["fraction"] == 0.5) & (changed["other"] == "test")
    changed.loc[is_half, "iou"] = 0.7
    tables = half | {"overlap": changed}
    found = overlap_of_smallest(64, "random prompts", **of)(tables)
    assert found.estimate == pytest.approx(0.2)
    assert found.n == 64  # items, of which there are two resamples in the table
    assert overlap_if_faithful(0.5, 64, "random prompts", **of)(tables) == found
    assert overlap_if_faithful(0.1, 64, "random prompts", **of)(tables) is None
    nowhere = circuit_tables(effect=0.1, edges=3)
    assert overlap_of_smallest(64, "random prompts", **of)(nowhere) is None


def probe_table(accuracy: dict[str, list[float]]) -> dict[str, pd.DataFrame]:
    """The accuracy of a probe at depths 0, 1, and so on, by set."""
    rows: list[dict[str, Any]] = []
    for name, values in accuracy.items():
        for depth, value in enumerate(values):
            rows.append({"set": name, "depth": float(depth), "accuracy": value})
    frame = pd.DataFrame(rows)
    return {
        "probes": frame.assign(
            n=100, apart=False, variable="tail", reading="true", position=2, task="THR", stage="end"
        )
    }


@given(st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_memorized_items_have_no_part_in_the_depth_they_are_read_at(counts):
    memorized = [count / 100 for count in counts]
    tables = probe_table({"test": [0.1, 0.9, 0.5, 1.0], "memorized": memorized})
    read = probe_at_best("tail", position=2, of={"task": "THR", "stage": "end"})
    found = read(tables)
    assert found.estimate == memorized[1]


def test_a_first_hop_alone_is_not_the_reasoning():
    """The true tail can be read at 0.94 of test items and 0.24 of memorized ones."""
    tables = probe_table({"test": [0.1, 0.94, 1.0], "memorized": [0.1, 0.24, 0.0]})
    noisy = tables["probes"].assign(reading="noisy")
    tables = {"probes": pd.concat([tables["probes"], noisy])}
    claim = judged("C3d THR", tables)
    assert claim.measured == pytest.approx(-0.7)
    assert claim.verdict == "not reproduced"


def test_where_no_position_costs_an_answer_there_is_no_number_of_positions():
    rows = [
        {"set": name, "item": item, "position": position, "component": position, "kept": True}
        for name in ("memorized", "test")
        for item in range(20)
        for position in range(8)
    ]
    table = pd.DataFrame(rows)
    assert effective_positions(inputs=8)({"positions": table}) is None
    one = table.assign(kept=(table["position"] != 3) | (table["item"] > 2))
    found = effective_positions(inputs=8)({"positions": one})
    assert found.estimate == found.low == found.high == 1
    named = table.assign(component="0 head " + table["component"].astype(str))
    assert component_correlation()({"components": named}) is None


def test_bounded_measures_stay_within_their_bounds():
    """On seeds at 1, 1, 1, 1 and 0.6, Student's interval would end above 1."""
    tables = {seed: history([test], [1.0]) for seed, test in enumerate((1.0, 1.0, 1.0, 1.0, 0.6))}
    joined = pd.concat([table.assign(seed=seed) for seed, table in tables.items()])
    found, *_ = claims(
        [CHECKS["C2a THR"]],
        {"dynamics": pd.concat([joined, joined.assign(stage="without noise")])},
        list(tables),
    )
    assert found.measured == pytest.approx(0.92)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.high <= 1


def test_every_share_has_bounds():
    """Only ratios are without."""
    without = {
        name for name, check in CHECKS.items() if getattr(check.measure, "bounds", None) is None
    }
    assert without == {"C1c FDA", "C1c THR", "C8a FDA", "K5 without noise"}
    assert all(np.isfinite(CHECKS[name].threshold.value) for name in without)


def test_the_sweep_has_no_row_for_what_never_happened():
    found = sweep.measured(
        "2% noise",
        {"ratio": steps_ratio(0.5, 0.9, task="FDA")},
        {"dynamics": history([0.95], [0.04], task="FDA")},
    )
    assert found.empty
    measures = {"ratio": steps_ratio(0.5, 0.9, task="FDA")}
    known = {"dynamics": history([0.95, 0.95], [0.0, 0.6], task="FDA")}
    (row,) = sweep.measured("2% noise", measures, known).to_dict("records")
    assert (row["estimate"], row["n"]) == (2, 1)


def test_what_several_rounds_remove_is_judged_after_the_last():
    """Round by round fewer answers stay; the controls of K6 are those at the rank of the measure."""
    parts: list[pd.DataFrame] = []
    for rank, kept in ((9, 1.0), (18, 0.5), (27, 0.25)):
        for removed, draws, stays in (("INLP", 1, kept), ("random for INLP", 2, 1.0 - kept)):
            for draw in range(draws):
                part = pd.DataFrame({"item": range(4), "kept": np.arange(4) < 4 * stays})
                parts.append(part.assign(removed=removed, rank=rank, draw=draw))
    about = {"task": "FDA", "stage": "end", "set": "memorized", "block": 0}
    found = {"removed": "INLP", "accuracy": [1.0, 0.6], "chance": 0.1, **about}
    claim = judged(
        "K6 FDA, INLP", {"erasure": pd.concat(parts).assign(**about), "inlp": pd.DataFrame(found)}
    )
    assert claim.measured == pytest.approx(0.5)
    assert "memorized answers that stay: 0.250" in claim.control
    assert "random directions of that rank: 0.750" in claim.control


def test_rows_that_are_not_there_are_a_look_up_error():
    with pytest.raises(LookupError, match=r"no rows with .*THR"):
        last("test", task="THR")({"dynamics": pd.DataFrame({"task": ["FDA"], "test": [1.0]})})
