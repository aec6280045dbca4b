"""The report says what was measured, and its verdict can be any: that a removal failed, that it is
no better than its control, that it only hides, that it costs, or that it worked."""

from __future__ import annotations

import json
import math
from typing import Any

import figure_laws
import pandas as pd
import pytest

from interp.mitigation.removal.report import RemovalReport

Row = tuple[str, str, str, int, str, float]

REMOVED: dict[tuple[str, str, str, int], tuple[float | None, float | None]] = {
    # group, data, measure, at: before, after
    ("forgetting", "forget", "ma", 0): (1.0, 0.2),
    ("forgetting", "forget", "el_10", 0): (0.9, 0.0),
    ("forgetting", "forget", "exact", 0): (1.0, 0.0),
    ("forgetting", "twins", "ma", 0): (0.2, 0.2),
    ("damage", "context", "accuracy", 0): (0.98, 0.96),
    ("damage", "retain", "ma", 0): (1.0, 1.0),
    ("damage", "held_out", "perplexity", 0): (90.0, 92.0),
    ("membership", "forget and twins", "auc", 0): (1.0, 0.5),
    ("rounding", "forget", "ma", 4): (0.9, 0.2),
    ("relearning", "forget, trained on", "ma", 0): (None, 0.2),
    ("relearning", "forget, trained on", "ma", 10): (None, 0.4),
    ("relearning", "never seen, trained on", "ma", 0): (None, 0.2),
    ("relearning", "never seen, trained on", "ma", 10): (None, 0.4),
    ("relearning", "forget minus never seen, trained on", "ma", 0): (None, 0.0),
    ("relearning", "forget minus never seen, trained on", "ma", 10): (None, 0.0),
}


def report(changed: dict[Any, Any] | None = None, *, control: float | None = None) -> RemovalReport:
    """A report of numbers that were made up; every interval reaches 0.02 to both sides."""
    rows: list[dict[str, Any]] = []
    for (group, data, measure, at), values in (REMOVED | (changed or {})).items():
        for model, value in zip(("before", "after"), values, strict=True):
            if value is None:
                continue
            change = math.nan if model == "before" or None in values else value - values[0]
            rows.append(row(group, data, measure, at, model, value, change))
    if control is not None:
        rows.append(row("forgetting", "forget", "ma", 0, "control", control, control - 1))
        difference = 0.2 - control
        rows.append(
            row("forgetting", "after minus control", "ma", 0, "after", difference, math.nan)
        )
    about = {"model": "toy", "files": 8, "relearning compared with": "never-seen twins"}
    thresholds = {"ma": 0.3, "el_10": 0.05}
    return RemovalReport(pd.DataFrame(rows), thresholds, "unseen data", 0.05, about)


def row(
    group: str, data: str, measure: str, at: int, model: str, value: float, change: float
) -> dict[str, Any]:
    return {
        "group": group,
        "data": data,
        "measure": measure,
        "at": at,
        "model": model,
        "estimate": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "change": change,
        "change_low": change - 0.02,
        "change_high": change + 0.02,
        "files": 8,
    }


STILL_THERE = {("forgetting", "forget", "ma", 0): (1.0, 0.6)}
ROUNDED = {("rounding", "forget", "ma", 4): (0.9, 0.5)}
RELEARNED = {
    ("relearning", "forget, trained on", "ma", 10): (None, 0.9),
    ("relearning", "forget minus never seen, trained on", "ma", 10): (None, 0.5),
}
FROM_OTHERS = {
    ("relearning", "forget, not trained on", "ma", 10): (None, 0.5),
    ("relearning", "forget minus never seen, not trained on", "ma", 10): (None, 0.3),
}
# more than of never-seen data, but no more than the threshold
BELOW = {
    ("relearning", "forget, trained on", "ma", 10): (None, 0.3),
    ("relearning", "forget minus never seen, trained on", "ma", 10): (None, 0.2),
}
# above the threshold, but no more than the tolerance above never-seen data, beyond the interval
HARDLY = {
    ("relearning", "forget, trained on", "ma", 10): (None, 0.9),
    ("relearning", "forget minus never seen, trained on", "ma", 10): (None, 0.06),
}
HARMED = {
    ("damage", "context", "accuracy", 0): (0.98, 0.6),
    ("damage", "held_out", "perplexity", 0): (90.0, 100.0),
}


@pytest.mark.parametrize(
    ("changed", "control", "outcome"),
    [
        ({}, None, "removed"),
        ({}, 0.9, "removed"),
        ({}, 0.2, "no better than its control"),
        (STILL_THERE, None, "failed"),
        ({("forgetting", "forget", "el_10", 0): (0.9, 0.1)}, None, "failed"),
        ({("forgetting", "forget", "el_10", 0): (0.9, math.nan)}, None, "failed"),
        (STILL_THERE | HARMED | RELEARNED, 0.1, "failed"),
        (ROUNDED, None, "comes back"),
        (RELEARNED | HARMED, None, "comes back"),
        (FROM_OTHERS, None, "comes back"),
        (BELOW, None, "removed"),
        (HARDLY, None, "removed"),
        (HARMED, None, "costly"),
        ({("membership", "forget and twins", "auc", 0): (1.0, 0.9)}, None, "leaves a trace"),
        ({("membership", "forget and twins", "auc", 0): (1.0, 0.1)}, None, "leaves a trace"),
        (
            {
                ("forgetting", "forget", "ma", 0): (0.3, 0.2),
                ("forgetting", "forget", "el_10", 0): (0.0, 0.0),
            },
            None,
            "nothing to remove",
        ),
    ],
)
def test_the_outcome_is_the_worst_that_is_true(changed, control, outcome):
    made = report(changed, control=control)
    assert made.outcome == outcome
    words = {
        "removed": "The removal worked: ",
        "costly": "The removal worked, and did damage: ",
        "leaves a trace": "The removal leaves a trace: ",
        "failed": "The removal failed: ",
        "comes back": "The removal only hides what it removes: ",
        "no better than its control": "The removal is no better than its control: ",
        "nothing to remove": "The removal cannot be judged, because there was nothing to remove: ",
    }
    assert made.verdict.startswith(words[outcome])
    assert made.verdict.count(". ") == 0
    assert made.verdict.endswith(".")


def test_the_verdict_of_a_removal_that_worked():
    assert report(control=0.9).verdict == (
        "The removal worked: MA of the forget set (8 files) goes from 1.00 to 0.20 [0.18, 0.22], at most "
        "0.30 (that of unseen data); it recites less than after the control's (a difference of "
        "-0.70 [-0.72, -0.68]); there is no sign that it comes back in 10 steps of relearning or in weights "
        "rounded to 4 bits; its secrets cannot be told from never-seen ones (AUC 0.50 [0.48, "
        "0.52]); no measure of damage is worse by more than 5%."
    )


def test_the_verdict_of_one_that_failed_does_not_ask_whether_it_comes_back():
    verdict = report(STILL_THERE | RELEARNED | HARMED).verdict
    assert verdict == (
        "The removal failed: MA of the forget set (8 files) goes from 1.00 to 0.60 [0.58, 0.62], above 0.30 "
        "(that of unseen data); its secrets cannot be told from never-seen ones (AUC 0.50 [0.48, "
        "0.52]); it changes accuracy around the secrets from 0.98 to 0.60 [0.58, 0.62], held-out "
        "perplexity from 90.00 to 100.00 [99.98, 100.02]."
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            RELEARNED | FROM_OTHERS,
            "10 steps of relearning its MA on files trained on is 0.50 [0.48, 0.52] above that of",
        ),
        (FROM_OTHERS, "its MA on files not trained on is 0.30 [0.28, 0.32] above that of"),
        (ROUNDED, "in weights rounded to 4 bits its MA is 0.50 [0.48, 0.52]"),
        (
            {("membership", "forget and twins", "auc", 0): (1.0, 0.1)},
            "its secrets stand out as less likely than never-seen ones (AUC 0.10",
        ),
        (
            {("membership", "forget and twins", "auc", 0): (1.0, 0.9)},
            "its secrets are still more likely than never-seen ones (AUC 0.90",
        ),
        (
            {("forgetting", "forget", "el_10", 0): (0.9, 0.1)},
            "EL 10 of the forget set (8 files) goes from",
        ),
        ({("depth", "forget", "depth", 0): (None, 0.4)}, "its depth is 0.40 [0.38, 0.42] of 1"),
    ],
)
def test_the_verdict_says_what_was_found(changed, words):
    assert words in report(changed).verdict


def test_rounding_that_destroys_the_model_shows_nothing():
    verdict = report({("rounding", "forget", "ma", 4): (0.1, 0.1)}).verdict
    assert "there is no sign that it comes back in 10 steps of relearning;" in verdict


def test_damage_is_a_fall_of_a_share_or_a_rise_of_perplexity():
    assert report().damage.empty
    found = report(HARMED).damage
    assert list(found["data"]) == ["context", "held_out"]
    better = {
        ("damage", "context", "accuracy", 0): (0.5, 0.9),
        ("damage", "held_out", "perplexity", 0): (90.0, 20.0),
    }
    assert report(better).damage.empty


def test_an_infinite_perplexity_is_damage():
    made = report({("damage", "held_out", "perplexity", 0): (90.0, math.inf)})
    assert list(made.damage["data"]) == ["held_out"]
    assert made.outcome == "costly"
    assert "it changes held-out perplexity from 90.00 to inf [inf, inf]" in made.verdict
    figure_laws.check(made.plot())


def test_without_a_threshold_of_ma_nothing_is_said_about_coming_back():
    made = report(RELEARNED | ROUNDED)
    without = RemovalReport(made.frame, {"el_10": 0.05}, "given", 0.05, made.about)
    assert "whether it comes back was not judged, because MA has no threshold" in without.verdict
    assert "no sign" not in without.verdict
    tests = made.frame["group"].isin(["relearning", "rounding"])
    untested = RemovalReport(made.frame[~tests], {"el_10": 0.05}, "given", 0.05, made.about)
    assert "comes back" not in untested.verdict


def test_a_threshold_that_no_ma_is_above_shows_nothing_about_coming_back():
    made = report(RELEARNED | ROUNDED)
    vain = RemovalReport(made.frame, {"ma": 1.0, "el_10": 0.05}, "given", 0.05, made.about)
    assert "not judged, because MA has no threshold below 1" in vain.verdict
    assert "no sign" not in vain.verdict


def test_what_is_measured_before_any_relearning_shows_nothing_about_coming_back():
    made = report()
    not_trained = (made.frame["group"] != "relearning") | (made.frame["at"] == 0)
    is_rounding = made.frame["group"] == "rounding"
    frame = made.frame[not_trained & ~is_rounding]
    untrained = RemovalReport(frame, made.thresholds, made.source, 0.05, made.about)
    assert "comes back" not in untrained.verdict
    assert "comes back" in made.verdict


def test_without_sets_the_verdict_says_that_damage_was_not_measured():
    made = report()
    frame = made.frame[made.frame["group"].isin(["forgetting"])]
    bare = RemovalReport(frame, made.thresholds, "given")
    assert bare.outcome == "removed"
    assert bare.verdict == (
        "The removal worked: MA of the forget set (8 files) goes from 1.00 to 0.20 [0.18, 0.22], at most "
        "0.30 (as given); its damage was not measured."
    )
    figure_laws.check(bare.plot())


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(LookupError, match="no row for damage others ma, at 0, after; there are"):
        report().row("damage", "others", "ma")


def test_the_table_has_a_column_for_each_model():
    assert report().table().columns.tolist() == ["before", "after"]
    table = report(control=0.9).table()
    assert table.columns.tolist() == ["before", "after", "control"]
    assert table.loc["forgetting", "forget", "ma", 0].tolist() == [1.0, 0.2, 0.9]
    assert table.loc["rounding", "forget", "ma", 4]["after"] == 0.2
    with_depth = report({("depth", "forget", "depth", 0): (None, 0.4)}).table()
    assert with_depth.loc["depth", "forget", "depth", 0]["after"] == 0.4


@pytest.mark.parametrize("control", [None, 0.9])
def test_the_figure_shows_levels_perplexity_and_relearning(control):
    made = report(FROM_OTHERS | {("depth", "forget", "depth", 0): (None, 0.4)}, control=control)
    figure = made.plot()
    figure_laws.check(figure)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "share, AUC or depth",
        "perplexity",
        "optimizer steps of relearning",
    ]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:2] == ["MA", "EL 10"]
    assert {"MA, 4 bits", "depth"} <= set(names)
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    models = ["before", "after"] if control is None else ["before", "after", "control"]
    assert shown[: len(models)] == models
    assert shown[-1] == "threshold of MA"


def test_save_writes_the_table_the_verdict_and_the_figure(tmp_path):
    made = report(HARMED)
    made.save(tmp_path / "removal")
    assert sorted(path.name for path in (tmp_path / "removal").iterdir()) == [
        "removal.json",
        "removal.parquet",
        "removal.png",
    ]
    found = pd.read_parquet(tmp_path / "removal" / "removal.parquet")
    pd.testing.assert_frame_equal(found, made.frame)
    about = json.loads((tmp_path / "removal" / "removal.json").read_text())
    assert about["verdict"] == made.verdict
    assert about["outcome"] == "costly"
    assert about["thresholds"] == {"ma": 0.3, "el_10": 0.05}
    assert about["thresholds from"] == "unseen data"
    assert (about["model"], about["files"], about["forgotten"]) == ("toy", 8, True)
