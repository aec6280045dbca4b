"""The report says what was measured: means by hand, intervals over windows, files, a figure and a
verdict."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import figure_laws
import numpy as np
import pandas as pd
import pytest

from interp.memorization.evaluation import MEASURES
from interp.mitigation.controls import Trial
from interp.mitigation.equal_damage import EqualDamage
from interp.mitigation.report import PANELS, DropReport, tabulate
from interp.reporting.stats import Interval, bootstrap, paired_interval
from interp.sites.units import Units


def trial(selection: str, fraction: float, k: int, seed: int = 0) -> Trial:
    return Trial(
        selection,
        fraction,
        seed,
        Units({"blocks.0.neurons": range(k)}, {"blocks.0.neurons": 40}),
        (),
    )


TRIALS = [
    trial("selection", 0.1, 4),
    *(trial("random", 0.1, 4, seed) for seed in range(5)),
    trial("lowest", 0.1, 4),
    trial("selection", 0.2, 8),
]
DATA = {"memorized": 6, "control": 4, "held_out": 3}


def measured(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    keys = [
        (plan, data, window)
        for plan in range(1 + len(TRIALS))
        for data, many in DATA.items()
        for window in range(many)
    ]
    frame = pd.DataFrame(keys, columns=["plan", "data", "window"])
    shares = {name: rng.random(len(frame)) for name in ("accuracy", "similarity")}
    return frame.assign(
        exact=rng.integers(0, 2, len(frame)), loss=1 + rng.random(len(frame)), **shares
    )


@functools.cache
def tabulated_rows() -> dict[tuple[str, float, str, str], dict[str, Any]]:
    """The report's table by selection, fraction, data and measure."""
    table = tabulate(measured(), TRIALS)
    keys: Any = ["selection", "fraction", "data", "measure"]
    return table.set_index(keys).to_dict("index")


def values(frame: pd.DataFrame, plans: Sequence[int], data: str, measure: str) -> np.ndarray:
    """[windows]: a measure, averaged over plans one window after the other."""
    rows = frame[frame["data"] == data]
    return np.array(
        [
            np.mean(
                [rows[(rows["plan"] == p) & (rows["window"] == w)][measure].item() for p in plans]
            )
            for w in range(DATA[data])
        ]
    )


def report(*, reached: bool = True, low: float = 0.1, fixed: bool = True) -> DropReport:
    damage = Interval(0.2, 0.1, 0.3, 5)
    equal = EqualDamage(8, reached, 0.8, Interval(0.5, low, 0.9, 6), damage, damage)
    return DropReport(tabulate(measured(), TRIALS), 0.1, fixed, equal, "toy")


@pytest.mark.parametrize(
    ("selection", "plans"), [("selection", [1]), ("random", [2, 3, 4, 5, 6]), ("lowest", [7])]
)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("measure", MEASURES)
def test_each_row_is_the_mean_over_windows_of_the_mean_over_draws(selection, plans, data, measure):
    frame = measured()
    before, after = values(frame, [0], data, measure), values(frame, plans, data, measure)
    row = tabulated_rows()[selection, 0.1, data, measure]
    assert (row["k"], row["windows"], row["seeds"]) == (4, DATA[data], len(plans))
    assert row["before"] == pytest.approx(before.mean())
    expected = bootstrap(after), paired_interval(after, before)
    found = [
        Interval(row["estimate"], row["low"], row["high"], DATA[data]),
        Interval(row["change"], row["change_low"], row["change_high"], 0),
    ]
    for a, b in zip(found, expected, strict=True):
        assert (a.estimate, a.low, a.high) == pytest.approx((b.estimate, b.low, b.high))
    assert row["change"] == pytest.approx(after.mean() - before.mean())


def test_the_figure_has_a_panel_for_accuracy_extraction_and_control_loss():
    figure = report().plot()
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figure.axes]
    # The loss is drawn without the control "lowest" and with it.
    *measures, loss = PANELS.values()
    assert labels == [*measures, loss, loss]
    figure_laws.check(figure)
    assert {axes.get_xlabel() for axes in figure.axes} == {"share of units ablated"}
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        "selection",
        "random",
        "lowest",
        "before",
    }


def test_save_writes_the_table_the_verdict_and_the_figure(tmp_path):
    made = report()
    made.save(tmp_path / "drop")
    assert sorted(p.name for p in (tmp_path / "drop").iterdir()) == [
        "drop.json",
        "drop.parquet",
        "drop.png",
    ]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "drop" / "drop.parquet"), made.frame)
    about = json.loads((tmp_path / "drop" / "drop.json").read_text())
    assert about["verdict"] == made.verdict
    assert about["equal_damage"] == {
        "k": 8,
        "reached": True,
        "accuracy": 0.8,
        "advantage": {"estimate": 0.5, "low": 0.1, "high": 0.9, "n": 6},
        "damage": {"estimate": 0.2, "low": 0.1, "high": 0.3, "n": 5},
        "random_damage": {"estimate": 0.2, "low": 0.1, "high": 0.3, "n": 5},
    }


@pytest.mark.parametrize(
    ("reached", "low", "beats", "words"),
    [
        (
            True,
            0.1,
            True,
            "8 random units hurt held-out text as much.*it beats random at equal damage",
        ),
        (True, -0.1, False, "it does not beat random"),
        (False, 0.1, False, "8 random units, .*hurt held-out text less.*does not beat random"),
    ],
)
def test_nothing_beats_random_but_at_equal_damage_and_beyond_its_interval(
    reached, low, beats, words
):
    made = report(reached=reached, low=low)
    assert made.beats_random == beats
    assert re.search(words, made.verdict)


def test_the_verdict_says_when_the_share_was_chosen_on_the_windows_that_judge_it():
    assert "chosen on these windows" not in report(fixed=True).verdict
    assert "(10%, chosen on these windows)" in report(fixed=False).verdict


def test_the_table_shows_every_selection_at_a_glance():
    table = report().table()
    assert [(fraction, name) for fraction, _, name in table.index] == [
        (0.1, "selection"),
        (0.1, "random"),
        (0.1, "lowest"),
        (0.2, "selection"),
    ]
    assert set(table.columns) == {f"{data} {measure}" for data in DATA for measure in MEASURES}


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(
        LookupError,
        match=r"no row for least, memorized, loss; there are .*'lowest', 'random', 'selection'",
    ):
        report().row("least", "memorized", "loss")
