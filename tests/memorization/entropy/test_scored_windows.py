"""Laws of memorization scores: golden cases, a plain dynamic program, and `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import letters
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

import interp
from interp.memorization.entropy.scored_windows import (
    ScoredWindows,
    edit_distances,
    joined,
    joined_corpora,
    score_all,
    score_windows,
)
from interp.memorization.teacher_forcing import TeacherForced

TEXTS = [*letters.noise(6, 40, seed=1), "ab" * 20, "a" * 40]


def dynamic_program(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein distance from its definition, in two rows."""
    above = list(range(len(b) + 1))
    for row, left in enumerate(a, start=1):
        current = [row]
        for column, right in enumerate(b, start=1):
            substituted = above[column - 1] + (left != right)
            current.append(min(substituted, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


def distance(continuation: Sequence[int], truth: Sequence[int]) -> int:
    """Through the function that scores windows."""
    forced = TeacherForced(
        hits=np.zeros((1, len(truth)), dtype=bool),
        log_p=np.zeros(1),
        continuation=np.array([continuation]),
        decoded=np.array([True]),
    )
    return int(edit_distances(forced, np.array([truth]))[0])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 0),
        ([1, 2, 3, 4], [1, 3, 4, 5], 2),
        ([1, 2, 3], [4, 5, 6], 3),
        ([ord(letter) for letter in "kitten"], [ord(letter) for letter in "sitting"], 3),
        ([1, 1, 1, 1], [1, 1], 2),
        ([], [1, 2], 2),
    ],
)
def test_golden_distances(one: list[int], other: list[int], expected: int):
    assert dynamic_program(one, other) == expected
    assert distance(one, other) == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_equals_a_plain_dynamic_program(pairs: list[tuple[int, int]]):
    one = [first for first, _ in pairs]
    other = [second for _, second in pairs]
    assert distance(one, other) == dynamic_program(one, other)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_the_continuation_that_generate_yields(architecture: str, batch_size: int):
    subject = tiny.subject(architecture)
    rng = np.random.default_rng(0)
    vocabulary = subject.module.config.vocab_size  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    texts = [rng.integers(vocabulary, size=12).tolist() for _ in range(7)]
    scored = score_all(subject, texts, 5, 7, batch_size=batch_size)
    prompts = torch.tensor([text[:5] for text in texts])
    generated = subject.generate(prompts, 7)
    for row, text in enumerate(texts):
        continuation = generated[row, -7:].tolist()
        assert scored.scores[row] == Levenshtein.distance(continuation, text[5:])
        assert scored.suffixes[row].tolist() == text[5:]
        assert scored.prompts[row].tolist() == text[:5]


def test_what_is_reproduced_has_score_0():
    texts = letters.noise(4, 40, seed=3)
    learner = letters.overfitted(texts)
    scored = score_all(learner, texts, 8, 8)
    frame = interp.scan(learner, texts, 8, 8, decode_from=0)
    assert (scored.scores == 0).tolist() == frame["exact"].tolist()
    assert (scored.scores == 0).all()
    # the same number as a scan's similarity
    expected = ((1 - frame["similarity"]) * 8).round().astype(int)
    assert scored.scores.tolist() == expected.tolist()
    assert scored.log_p == pytest.approx(frame["log_p"].to_numpy())
    assert scored.texts.tolist() == frame["text"].tolist()


def test_between_batches_the_caller_has_gradients_and_its_own_mode():
    subject = letters.subject()
    subject.module.train()
    parts = score_windows(subject, TEXTS, 8, 8)
    next(parts)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    interp.fit(subject, [subject.encode_all(TEXTS[:2])], 1, lr=1e-3)
    assert subject.module.training
    next(parts)


def test_settings_may_be_numbers_of_numpy():
    subject = letters.subject()
    found = score_all(subject, TEXTS, np.int64(8), np.int64(8), stride=np.int64(4))
    expected = score_all(subject, TEXTS, 8, 8, stride=4)
    assert found.scores.tolist() == expected.scores.tolist()


def test_repeated_windows_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch):
    from interp.memorization.entropy import scored_windows

    monkeypatch.setattr(scored_windows, "_BUFFERED", 2)  # so that digests are also sorted away
    subject = letters.subject()
    counts: dict[str, int] = {}
    texts = [*TEXTS, *TEXTS[:3], "too short"]
    parts = list(score_windows(subject, texts, 8, 8, counts=counts))
    windows = [tuple(row) for row in np.concatenate([p.suffixes for p in parts]).tolist()]
    whole = [
        tuple(row)
        for part in parts
        for row in np.concatenate([part.prompts, part.suffixes], 1).tolist()
    ]
    assert len(whole) == len(set(whole)) == len(windows)
    every = {
        tuple(subject.encode(text)[start : start + 16])
        for text in TEXTS
        for start in range(0, 40 - 15, 8)
    }
    assert set(whole) == every
    assert counts["texts"] == len(texts)
    assert counts["skipped"] == 1
    total = sum(len(range(0, 40 - 15, 8)) for _ in [*TEXTS, *TEXTS[:3]])
    assert counts["repeated"] == total - len(every)
    assert len(score_all(subject, texts, 8, 8, distinct=False)) == total


def test_rows_and_joined_are_inverse():
    scored = score_all(letters.subject(), TEXTS, 8, 8, distinct=False)
    halves = [scored.rows(np.arange(len(scored)) < 5), scored.rows(np.arange(5, len(scored)))]
    again = joined(halves)
    for name in vars(ScoredWindows(*[np.zeros(1)] * 5)):
        assert (getattr(again, name) == getattr(scored, name)).all()


def test_texts_of_joined_corpora_stay_apart():
    one = score_all(letters.subject(), TEXTS[:2], 8, 8)
    other = score_all(letters.subject(), TEXTS[2:5], 8, 8)
    together = joined_corpora([one, other, one])
    assert together.texts.tolist() == [*one.texts, *(2 + other.texts), *(5 + one.texts)]
    assert together.scores.tolist() == [*one.scores, *other.scores, *one.scores]


@pytest.mark.parametrize("wrong", [{"prefix": 0}, {"length": 0}, {"stride": 0}, {"batch_size": 0}])
def test_numbers_below_1_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="at least 1; got"):
        list(score_windows(letters.subject(), TEXTS, **wrong))


def test_one_string_is_refused():
    with pytest.raises(ValueError, match="one string"):
        list(score_windows(letters.subject(), TEXTS[0]))


def test_texts_that_are_all_too_short_are_refused():
    with pytest.raises(ValueError, match="2 of 2 texts are shorter than 64 tokens"):
        score_all(letters.subject(), ["short", "too"])
