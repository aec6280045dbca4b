"""Dataset inference and the study of gibberish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from interp.memorization.entropy.dataset_inference import dataset_inference
from interp.memorization.entropy.gibberish import entropy_gap, find_gibberish
from interp.memorization.entropy.scored_windows import ScoredWindows


def windows(count: int, seed: int, memorized: float = 0.0, length: int = 16) -> ScoredWindows:
    """Windows with the law; a share of them is memorized whatever their entropy."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, length + 1, count)
    suffixes = np.stack([rng.integers(2 + 2 * score, size=length) for score in scores])
    is_memorized = rng.random(count) < memorized
    scores[is_memorized] = rng.integers(0, 3, int(is_memorized.sum()))
    return ScoredWindows(
        np.arange(count), np.zeros((count, 4), int), suffixes, scores, -1.0 * length * scores
    )


NONE = windows(600, 1).rows(np.zeros(600, dtype=bool))
IMPOSSIBLE = windows(600, 1)
IMPOSSIBLE.log_p[:2] = -np.inf


def test_memorized_data_has_the_larger_intercept():
    found = dataset_inference(windows(600, 0, 0.4), windows(600, 1), windows(600, 2))
    assert found.verdict == "not a member"
    rows = found.table.set_index("statistic")
    assert rows.loc["intercept", "reference"] > rows.loc["intercept", "unseen"] + 1
    assert rows.loc["intercept", "auc_unseen"] > 0.95
    member = dataset_inference(windows(600, 0, 0.4), windows(600, 3, 0.4), windows(600, 2))
    assert member.verdict == "member"
    assert (member.table["verdict"] == "member").all()
    assert member.plot() is not None


def test_without_unseen_data_the_verdict_is_only_about_likeness():
    assert dataset_inference(windows(600, 0), windows(600, 1)).verdict == "like the reference"
    assert dataset_inference(windows(600, 0, 0.5), windows(600, 1)).verdict == "unlike it"


def test_what_tells_nothing_apart_gives_no_verdict():
    found = dataset_inference(windows(600, 0), windows(600, 1), windows(600, 2))
    assert (found.table["verdict"] == "cannot tell").all()
    assert (found.table["reason"] == "it does not tell the reference from the unseen data").all()


def test_two_data_sets_of_one_kind_are_rarely_told_apart():
    """Texts that each have an entropy and a score of their own, as real ones do: sets of windows of
    all texts would differ by less than two data sets do."""
    found: list[float] = []
    for seed in range(40):
        pair = [texts_of_their_own(2 * seed + number) for number in range(2)]
        table = dataset_inference(*pair, windows_per_set=100, sets=20, seed=seed).table
        found += table["auc"].tolist()
    assert np.mean(np.array(found) >= 0.95) < 0.12
    assert 0.4 < np.mean(found) < 0.6


def texts_of_their_own(seed: int) -> ScoredWindows:
    rng = np.random.default_rng(seed)
    texts = np.repeat(np.arange(30), 10)
    own = rng.integers(0, 9, 30)[texts]
    scores = np.clip(own + rng.integers(0, 8, 300), 0, 16)
    suffixes = np.stack([rng.integers(2 + 2 * score, size=16) for score in scores])
    return ScoredWindows(texts, np.zeros((300, 4), int), suffixes, scores, -16.0 * scores)


@pytest.mark.parametrize("texts", [1, 5, 19])
def test_few_texts_are_compared_without_a_verdict(texts: int):
    """One book differs from another, whatever a model was trained on."""
    whole = windows(600, 0, 0.4)
    few = ScoredWindows(
        np.arange(600) % texts, whole.prompts, whole.suffixes, whole.scores, whole.log_p
    )
    for data in ((few, windows(600, 1)), (windows(600, 0, 0.4), windows(600, 3, 0.4), few)):
        found = dataset_inference(*data)
        assert (found.table["verdict"] == "cannot tell").all()
        assert found.table["reason"].str.contains(f"too few texts .* {texts}[,)]").all()
        assert np.isfinite(found.table["auc"]).all()
    assert found.about["unseen_texts"] == texts


def test_twenty_texts_are_enough_for_a_verdict():
    whole = windows(600, 0, 0.4)
    few = ScoredWindows(
        np.arange(600) % 20, whole.prompts, whole.suffixes, whole.scores, whole.log_p
    )
    assert dataset_inference(few, windows(600, 1)).verdict == "unlike it"


def test_what_is_saved_may_hold_numbers_of_numpy(tmp_path: Path):
    found = dataset_inference(windows(600, 0), windows(600, 1), sets=np.int64(3), seed=np.int64(1))
    found.save(tmp_path)
    assert json.loads((tmp_path / "dataset_inference.json").read_text())["sets"] == 3


def test_a_candidate_between_the_two_is_not_judged():
    found = dataset_inference(windows(600, 0, 0.8), windows(600, 1, 0.4), windows(600, 2))
    rows = found.table.set_index("statistic")
    assert rows.loc["edit_distance", "reason"] == "the candidate is between the two"


def test_texts_of_very_different_lengths_fill_their_sets():
    whole = windows(600, 0)
    texts = np.concatenate([np.arange(200), 200 + np.arange(400) // 100])
    uneven = ScoredWindows(texts, whole.prompts, whole.suffixes, whole.scores, whole.log_p)
    found = dataset_inference(uneven, windows(600, 1))
    assert len(found.sets) == 120


def test_auc_equals_scikit_learn():
    found = dataset_inference(windows(600, 0, 0.3), windows(600, 1), sets=20)
    sets = found.sets
    rows = found.table.set_index("statistic")
    for statistic, sign in (("intercept", 1), ("edit_distance", -1), ("loss", -1)):
        expected = roc_auc_score(sets["role"] == "reference", sign * sets[statistic])
        assert rows.loc[statistic, "auc"] == pytest.approx(expected)


def test_one_level_gives_no_verdict():
    copier = windows(600, 0)
    copier = ScoredWindows(
        copier.texts, copier.prompts, copier.suffixes, np.zeros(600, int), copier.log_p
    )
    found = dataset_inference(copier, windows(600, 1))
    assert found.verdict == "cannot tell"
    assert "fewer than three levels: {'reference': 60" in found.table["reason"].iloc[0]
    assert found.plot() is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (windows(598, 0), windows(600, 1)),
            "reference: 598 windows; expected at least 600",
        ),
        ((windows(600, 0), windows(100, 1)), "candidate: 100 windows; expected at least 600"),
        ((windows(600, 0), windows(600, 1, length=8)), "suffixes have different lengths"),
        ((windows(1, 0), windows(600, 1)), "reference: 1 windows; expected at least 600"),
        ((windows(600, 0), NONE), "candidate: 0 windows; expected at least 600"),
        ((windows(600, 0), IMPOSSIBLE), "candidate: 2 of 600 windows have no finite log-prob"),
    ],
)
def test_what_cannot_be_compared(arguments: Any, message: str):
    with pytest.raises(ValueError, match=message):
        dataset_inference(*arguments)


def test_too_small_sets():
    with pytest.raises(ValueError, match="windows_per_set=2"):
        dataset_inference(windows(600, 0), windows(600, 1), windows_per_set=2)


def test_gibberish_is_found_once_and_in_order():
    uuid = "123e4567-e89b-12d3-a456-426614174000"
    sha = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    key = (
        "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0g"
    )
    text = f"key {key}== then {sha} and {uuid}."
    assert find_gibberish([text, "nothing " * 20]) == [key + "==", sha, uuid]
    assert find_gibberish(["a" * 31, "/usr/share/doc/" * 5, "x" * 60]) == []


def test_gap_at_equal_size():
    few = [[1, 2, 3, 4] * 4] * 30
    rng = np.random.default_rng(0)
    many = [rng.integers(100, size=16).tolist() for _ in range(90)]
    gap = entropy_gap(few, many)
    assert gap.first == pytest.approx(2.0, abs=0.01)
    assert gap.gap > 2 * gap.sd
    assert gap.tokens == 240
    same = entropy_gap(many[:45], many[45:])
    assert abs(same.gap) < 3 * same.sd


def test_one_bag_has_no_standard_deviation():
    with pytest.raises(ValueError, match="bags=1: expected at least 2"):
        entropy_gap([[1] * 16] * 30, [[2] * 16] * 40, bags=1)


@pytest.mark.parametrize("tokens", [0, 481])
def test_bags_larger_than_a_kind(tokens: int):
    with pytest.raises(ValueError, match="at most 480"):
        entropy_gap([[1] * 16] * 30, [[2] * 16] * 40, tokens=tokens)
