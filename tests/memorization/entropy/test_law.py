"""The law: golden fits, shuffled scores that must find nothing, and streams larger than memory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import interp
from interp.memorization.entropy.baselines import is_trivial, text_baselines, trivial_overlap
from interp.memorization.entropy.law import EntropyLaw, _fit_row, law_of
from interp.memorization.entropy.level_bags import RAREFIED, RAW, LevelBags, _distinct_rows
from interp.memorization.entropy.level_sets import LevelSets
from interp.memorization.entropy.regression import (
    compare_with_null,
    correlation_interval,
    fit_line,
    groups_to_leave_out,
)
from interp.memorization.entropy.scored_windows import ScoredWindows


def scored(scores: Any, suffixes: Any, texts: Any = None) -> ScoredWindows:
    suffixes = np.asarray(suffixes)
    count = len(suffixes)
    return ScoredWindows(
        texts=np.arange(count) if texts is None else np.asarray(texts),
        prompts=np.zeros((count, 2), dtype=int),
        suffixes=suffixes,
        scores=np.asarray(scores),
        log_p=-np.asarray(scores, dtype=float),
    )


def lawful(seed: int = 0, windows: int = 600, length: int = 16) -> ScoredWindows:
    """Windows whose entropy grows with their score, with far more windows at high scores."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0.2, 1, length) ** 3
    scores = rng.choice(np.arange(1, length + 1), windows, p=share / share.sum())
    suffixes = np.stack([rng.integers(20 * score, size=length) for score in scores])
    return scored(scores, suffixes, texts=np.arange(windows) // 5)


def shuffled(windows: ScoredWindows, seed: int) -> ScoredWindows:
    order = np.random.default_rng(seed).permutation(len(windows))
    return ScoredWindows(
        windows.texts, windows.prompts, windows.suffixes, windows.scores[order], windows.log_p
    )


def law(windows: ScoredWindows, **options: Any) -> EntropyLaw:
    return law_of(LevelSets().update([windows]), **options)


def test_golden_lines():
    perfect = fit_line([0, 1, 2], [1, 2, 3])
    assert (perfect.r, perfect.slope, perfect.intercept) == (1.0, 1.0, 1.0)
    other = fit_line([0, 1, 2], [1, 3, 2])
    assert (other.r, other.slope, other.intercept) == (0.5, 0.5, 1.5)


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.floats(0, 10)),
        min_size=3,
        max_size=20,
        unique_by=lambda p: p[0],
    ).filter(lambda points: np.ptp([y for _, y in points]) > 1e-3)
)
def test_lines_equal_scipy(points: list[tuple[int, float]]):
    x, y = zip(*points, strict=True)
    expected = stats.linregress(x, y)
    found = fit_line(x, y)
    assert found.slope == pytest.approx(expected.slope, abs=1e-9)
    assert found.intercept == pytest.approx(expected.intercept, abs=1e-8)
    assert found.r == pytest.approx(expected.rvalue, abs=1e-9)
    swapped = fit_line(x, y, response="score")
    assert swapped.r == pytest.approx(found.r, abs=1e-9)
    assert swapped.slope == pytest.approx(stats.linregress(y, x).slope, rel=1e-6, abs=1e-9)


def test_a_perfect_copier_has_one_level_and_no_line():
    found = law(scored([0] * 20, np.arange(80).reshape(20, 4) % 7), shuffles=3)
    fit = found.fit("rarefied")
    assert np.isnan(fit["r"])
    assert fit["reason"] == "1 level: a line needs at least 3"
    assert found.plot() is not None


def test_constant_text_has_no_line():
    found = law(scored(np.arange(40) % 4, np.full((40, 4), 9)), shuffles=3)
    assert found.fit("entropy")["reason"] == "the values of all levels are equal"


def test_golden_levels():
    table = LevelSets().update([scored([0, 0, 3], [[1, 1, 1], [1, 1, 2], [3, 4, 4]])]).table()
    assert table["score"].tolist() == [0, 3]
    assert table["windows"].tolist() == [2, 1]
    assert table["entropy"].tolist() == pytest.approx([0.6500, 0.9183], abs=1e-4)
    # G13, with suffixes of two tokens and a score that windows of three could have
    of_two = LevelSets().update([scored([0, 0, 2], [[1, 1], [1, 2], [3, 4]])]).table()
    assert of_two["entropy"].tolist() == pytest.approx([0.8113, 1.0], abs=1e-4)


def test_raw_quantities_equal_the_table_of_the_levels():
    windows = lawful()
    levels = LevelSets().update([windows])
    found = law_of(levels, shuffles=2, subsamples=2)
    table = levels.table()
    table = table[table["windows"] >= 5]
    for quantity in ("entropy", "miller_madow", "normalized"):
        part = found.levels[found.levels["quantity"] == quantity]
        assert part["score"].tolist() == table["score"].tolist()
        assert part["value"].to_numpy() == pytest.approx(table[quantity].to_numpy())


def test_the_law_is_found_where_it_is():
    found = law(lawful())
    for quantity in ("entropy", "rarefied"):
        fit = found.fit(quantity)
        assert fit["r"] > 0.9
        assert fit["low"] <= fit["r"] <= fit["high"]
    assert found.fit("rarefied")["p"] < 0.02
    assert abs(found.fit("rarefied")["null_mean"]) < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_scores_have_a_high_raw_r_and_no_law_at_equal_size(seed: int):
    """What the control is for: raw r alone would call this a law."""
    found = law(shuffled(lawful(seed=seed), seed + 10))
    raw, equal_size = found.fit("entropy"), found.fit("rarefied")
    assert raw["r"] > 0.6
    assert raw["p"] > 0.02
    assert equal_size["p"] > 0.02
    assert abs(equal_size["r"]) < 0.75
    assert found.fit("windows")["r"] > 0.8


def test_p_values_of_shuffled_scores_are_uniform():
    """Each is that of a permutation test, so that 5% of them are below 5%."""
    base = lawful(windows=150, length=8)
    found = [
        law(shuffled(base, seed), shuffles=19, subsamples=5, groups=2, seed=seed).fit("rarefied")[
            "p"
        ]
        for seed in range(60)
    ]
    assert stats.kstest(found, "uniform", alternative="greater").pvalue > 0.001
    assert np.mean(np.array(found) <= 0.2) < 0.4


def test_equal_levels_have_a_null_centred_on_0():
    """Golden case G15."""
    rng = np.random.default_rng(0)
    windows = scored(np.repeat(np.arange(9), 12), rng.integers(30, size=(108, 8)))
    fit = law(windows).fit("rarefied")
    assert abs(fit["null_mean"]) < 3 * fit["null_sd"] / np.sqrt(200)


def test_the_interval_holds_what_it_should():
    """Over corpora of one law, the interval of r holds r of all corpora together at its rate."""
    everything = law(lawful(seed=99, windows=6000, length=8), shuffles=1).fit("rarefied")["r"]
    inside = 0
    for seed in range(20):
        fit = law(lawful(seed=seed, windows=300, length=8), shuffles=1).fit("rarefied")
        inside += fit["low"] <= everything <= fit["high"]
    assert inside >= 15


def test_the_same_seed_gives_the_same_numbers():
    windows = lawful()
    one, other = law(windows, shuffles=5), law(windows, shuffles=5)
    pd.testing.assert_frame_equal(one.fits, other.fits)
    assert not law(windows, shuffles=5, seed=1).fits.equals(one.fits)


def test_a_sample_keeps_the_counts_of_all_windows():
    windows = lawful(windows=500)
    every = LevelSets().update([windows])
    sampled = LevelSets(kept=120)
    for start in range(0, 500, 7):
        sampled.update([windows.rows(np.arange(start, min(start + 7, 500)))])
    pd.testing.assert_frame_equal(sampled.table(), every.table())
    assert len(sampled.sample) == 120
    assert not sampled.is_complete
    found = law_of(sampled, shuffles=5, subsamples=5)
    assert "raise `kept`" in found.fit("entropy")["reason"]
    assert np.isnan(found.fit("entropy")["p"])
    assert np.isfinite(found.fit("rarefied")["p"])
    complete = every.table().set_index("score")["entropy"]
    raw: Any = found.levels[found.levels["quantity"] == "entropy"]
    assert raw["value"].to_numpy() == pytest.approx(complete.loc[raw["score"]].to_numpy())


def test_every_window_is_kept_with_the_same_chance():
    windows = scored(np.zeros(40, dtype=int), np.arange(40)[:, None])
    times = np.zeros(40)
    for seed in range(400):
        levels = LevelSets(kept=10, seed=seed)
        for start in range(0, 40, 3):
            levels.update([windows.rows(np.arange(start, min(start + 3, 40)))])
        assert len(set(levels.sample.texts.tolist())) == 10
        times[levels.sample.texts] += 1
    assert stats.chisquare(times).pvalue > 1e-4


def test_windows_of_another_length_are_refused():
    levels = LevelSets().update([scored([0], [[1, 2]])])
    with pytest.raises(ValueError, match="suffixes have 3 tokens, those before had 2"):
        levels.update([scored([0], [[1, 2, 3]])])


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 3))
def test_rows_of_distinct_numbers(windows: int, size: int, seed: int):
    size = min(size, windows)
    drawn = _distinct_rows(np.random.default_rng(seed), windows, size, 6)
    assert drawn.shape == (6, size)
    assert all(len(set(row)) == size for row in drawn.tolist())
    assert drawn.min() >= 0
    assert drawn.max() < windows


def test_leaving_out_equals_measuring_the_rest():
    """A delete-a-group replicate is the law of the other windows, for what has no random draw."""
    windows = lawful(windows=400)
    group = groups_to_leave_out(windows.texts, 20)[3]
    rest = law(windows.rows(~group), min_windows=1, rarefied_to=1, shuffles=1)
    bags = LevelBags(windows, 1, 1, 5, np.random.default_rng(0))
    for quantity in RAW:
        values = bags.measure(~group)[quantity]
        part = rest.levels[rest.levels["quantity"] == quantity]
        assert values[np.isfinite(values)] == pytest.approx(part["value"].to_numpy())


def test_texts_stay_together_where_there_are_enough():
    texts = np.repeat(np.arange(50), 3)
    masks = groups_to_leave_out(texts, 20)
    assert np.sum(masks, axis=0).tolist() == [1] * 150
    for mask in masks:
        for text in np.unique(texts[mask]):
            assert mask[texts == text].all()
    few = groups_to_leave_out(np.zeros(100, dtype=int), 20)
    assert [int(mask.sum()) for mask in few] == [5] * 20


def test_intervals_without_replicates_are_missing():
    assert np.isnan(correlation_interval(0.5, [0.4])).all()
    assert np.isnan(correlation_interval(np.nan, [0.4, 0.5])).all()
    assert np.isnan(correlation_interval(0.5, [0.4, np.nan])).all()


def test_the_real_order_counts_among_the_shuffles():
    null = compare_with_null(0.9, np.linspace(-0.5, 0.5, 199))
    assert null.p == pytest.approx(2 / 200)
    assert compare_with_null(0.0, np.linspace(-0.5, 0.5, 199)).p == 1.0


@pytest.mark.parametrize(
    ("prompt", "suffix", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5], 1.0),
        ([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 9], 0.5),
        ([1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4], 0.0),
        ([1, 2], [1, 2], 0.0),
    ],
)
def test_trivial_overlap_by_hand(prompt: list[int], suffix: list[int], expected: float):
    assert trivial_overlap(prompt, suffix) == expected


def test_copies_and_constant_text_are_trivial():
    prompts = np.array([[1, 2, 3, 4, 5, 6]] * 3)
    suffixes = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 7, 8, 7, 8], [7, 8, 9, 1, 2, 3]])
    assert is_trivial(prompts, suffixes).tolist() == [True, True, False]


def test_baselines_equal_numpy():
    windows = lawful()
    found = text_baselines(windows, lambda ids: " ".join(map(str, ids))).set_index("baseline")
    own = [stats.entropy(np.bincount(row), base=2) for row in windows.suffixes]
    assert found.loc["entropy", "r"] == pytest.approx(np.corrcoef(own, windows.scores)[0, 1])
    assert found.loc["log_perplexity", "r"] == pytest.approx(1.0)
    assert set(found.index) == {"entropy", "zlib", "log_perplexity"}
    assert "zlib" not in text_baselines(windows)["baseline"].tolist()


def test_of_a_model_and_its_texts():
    texts = letters.noise(30, 40, seed=5)
    learner = letters.overfitted(texts[:15])
    found = interp.entropy_law(
        learner, [*texts, "short", texts[0]], 8, 8, shuffles=5, min_windows=2, rarefied_to=2
    )
    assert found.about["windows"] == 120
    assert (found.about["skipped"], found.about["repeated"]) == (1, 4)
    assert set(found.fits["quantity"]) == {*RAW, *RAREFIED, "windows"}
    without = interp.entropy_law(learner, ["a" * 40, *texts], 8, 8, keep_trivial=False, shuffles=2)
    assert without.about["trivial"] == 1  # the other windows of it are repeated
    assert without.about["windows"] == 120


def test_settings_are_checked_before_texts_are_read():
    def unread():
        yield pytest.fail("a text was read")

    for wrong in ({"min_windows": 2}, {"subsamples": 0}, {"response": "scores"}, {"kept": 0}):
        with pytest.raises(ValueError, match="expected"):
            interp.entropy_law(letters.subject(), unread(), 8, 8, **wrong)


def test_what_is_saved_may_hold_numbers_of_numpy(tmp_path: Path):
    law(lawful(), shuffles=np.int64(2), seed=np.int64(3)).save(tmp_path)
    about = json.loads((tmp_path / "entropy_law.json").read_text())
    assert (about["shuffles"], about["seed"]) == (2, 3)


def test_what_is_missing_has_a_reason():
    """Of three levels, one is in a single text: without that text there is no line."""
    rng = np.random.default_rng(0)
    windows = scored(np.repeat([0, 1, 2], 10), rng.integers(9, size=(30, 6)), np.arange(30) // 10)
    fit = law(windows, groups=3, shuffles=5).fit("rarefied")
    assert np.isfinite(fit["p"])
    assert np.isnan(fit["low"])
    assert fit["reason"] == "no interval, because some parts of the windows have no line"
    row = _fit_row("entropy", np.arange(3), np.array([1.0, 2, 4]), np.ones((9, 3)), [], "entropy")
    assert np.isnan(row["p"])
    assert row["reason"].startswith("no p, because some shuffles have no line; no interval")


def test_batches_without_a_window_are_nothing():
    windows = lawful(windows=20)
    none = windows.rows(np.zeros(20, dtype=bool))
    assert LevelSets().update([none, windows, none]).windows == 20


def test_texts_that_differ_are_no_law():
    """Texts have words and scores of their own, with no law between them: the interval of r holds 0,
    and p is small as rarely as it says. Shuffled window by window, p would be at most 0.05 in 20%
    of them (rarefied) and 40% (raw)."""
    holds = 0
    p_values: dict[str, list[float]] = {"entropy": [], "rarefied": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        texts = np.repeat(np.arange(40), 10)
        words = [rng.permutation(400)[: rng.integers(5, 60)] for _ in range(40)]
        suffixes = np.stack([rng.choice(words[text], 16) for text in texts])
        scores = rng.integers(0, 10, 40)[texts] + rng.integers(0, 4, 400)
        found = law(scored(scores, suffixes, texts), shuffles=39, subsamples=10, seed=seed)
        fit = found.fit("rarefied")
        holds += fit["low"] <= 0 <= fit["high"]
        for quantity, values in p_values.items():
            values.append(found.fit(quantity)["p"])
    assert holds >= 34
    for values in p_values.values():
        assert np.mean(np.array(values) <= 0.05) <= 0.125


def test_a_suffix_of_probability_0_has_no_log_perplexity():
    windows = lawful(windows=50)
    windows.log_p[3] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = text_baselines(windows).set_index("baseline")
    assert np.isnan(found.loc["log_perplexity", "r"])
    assert np.isfinite(found.loc["entropy", "r"])


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="of 2 texts 1 are shorter than 16 tokens"):
        interp.entropy_law(letters.subject(), ["short", "a" * 16], 8, 8, keep_trivial=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rarefied_to": 6}, "rarefied_to=6, min_windows=5"),
        ({"rarefied_to": 0}, "rarefied_to=0"),
        ({"shuffles": 0}, "shuffles=0"),
        ({"groups": 1}, "groups=1"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        law(lawful(), **options)


def test_an_unknown_quantity_or_response():
    found = law(lawful(), shuffles=1)
    with pytest.raises(ValueError, match="expected one of entropy"):
        found.fit("entrpy")
    with pytest.raises(ValueError, match="expected 'entropy' or 'score'"):
        fit_line([0, 1, 2], [0, 1, 2], response="scores")  # pyright: ignore[reportArgumentType]


def test_swapped_regression_draws_the_same_points():
    found = law(lawful(), response="score", shuffles=2)
    assert found.fit("entropy")["r"] == pytest.approx(law(lawful(), shuffles=2).fit("entropy")["r"])
    assert len(found.plot().axes) == 3


def drawn_lines(found: EntropyLaw) -> list[tuple[list[float], list[float]]]:
    lines = [axes.get_lines()[0] for axes in found.plot().axes]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def test_a_fit_that_predicts_the_score_is_drawn_over_the_entropies():
    found = law(lawful(), response="score", shuffles=2)
    (scores, entropies), *_ = drawn_lines(found)
    fit = found.fit("entropy")
    levels = found.levels[found.levels["quantity"] == "entropy"]
    assert entropies == [levels["value"].min(), levels["value"].max()]
    assert scores == pytest.approx(fit["intercept"] + fit["slope"] * np.array(entropies))


def test_a_line_without_slope_is_drawn_in_either_direction():
    """Levels in a triangle have a covariance of exactly 0: the predicted score is one number."""
    for response in ("entropy", "score"):
        found = law(lawful(), response=response, shuffles=2)
        levels = pd.DataFrame({"score": [1, 2, 3], "value": [1.0, 2.0, 1.0]})
        levels = levels.assign(null_low=0.5, null_high=2.5)
        quantities = ["entropy", "normalized", "rarefied"]
        frames = [levels.assign(quantity=quantity) for quantity in quantities]
        line = fit_line(levels["score"], levels["value"], response)
        assert line.slope == 0
        fits = pd.DataFrame([vars(line) | {"quantity": each} for each in quantities])
        flat = EntropyLaw(pd.concat(frames), fits.assign(p=np.nan), found.baselines, found.about)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = drawn_lines(flat)
        middle = [line.intercept] * 2
        expected = (middle, [1.0, 2.0]) if response == "score" else ([1, 3], middle)
        assert drawn == [expected] * 3
