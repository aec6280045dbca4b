"""Laws of scan(counts=): how often windows stand in the training data, and whose counts they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import letters
import pandas as pd
import pytest
import tiny
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import interp
from interp.data.corpus_counts import Counts, counts
from interp.memorization.extraction import scan

TEXTS = ["abcdabcdabcd", "abcdxbcd", "short"]
WINDOW: dict[str, Any] = {"prefix": 4, "length": 4}


@pytest.fixture(scope="module")
def subject() -> interp.Subject:
    return letters.subject()


def counted(subject: interp.Subject, texts: list[Any]) -> Counts:
    return counts(subject, texts, engine="memory")


def test_windows_and_suffixes_are_counted(subject):
    frame = scan(subject, TEXTS, **WINDOW, counts=counted(subject, [*TEXTS, TEXTS[1]]))
    # abcdabcd twice in the first text, where it overlaps; abcd three times there, and in the others
    assert frame["count"].tolist() == [2, 2, 2]
    assert frame["count_suffix"].tolist() == [5, 5, 2]
    plain = scan(subject, TEXTS, **WINDOW)
    pd.testing.assert_frame_equal(frame.drop(columns=["count", "count_suffix"]), plain)
    never = scan(subject, TEXTS, **WINDOW, counts=counted(subject, ["abcdabc"]))
    assert never["count"].tolist() == [0, 0, 0]
    assert never["count_suffix"].tolist() == [1, 1, 0]


def test_the_rows_of_a_batch_are_counted(subject):
    batch = interp.Batch(subject.encode_all(TEXTS[1:2]).tokens, prompt=3)
    frame = scan(subject, batch, counts=counted(subject, TEXTS))
    assert (frame["count"].tolist(), frame["count_suffix"].tolist()) == ([1], [1])


def test_start_tokens_are_no_part_of_what_is_counted():
    subject = tiny.wrapped(tiny.model("llama"))
    start = 1
    subject.bos = (start,)
    tokens = [5, 6, 7, 8, 9, 10]
    corpus = counted(subject, [[start, *tokens], tokens])
    assert corpus.tokens == 12
    # The first is one window with its start token, the second one window without.
    frame = scan(subject, [[start, *tokens[:5]], tokens], 3, 3, counts=corpus)
    assert frame["count"].tolist() == [2, 2]
    assert frame["count_suffix"].tolist() == [2, 2]


def test_start_tokens_within_a_text_are_counted():
    """Where texts are joined by their start token, a window may begin with it."""
    subject = tiny.wrapped(tiny.model("llama"))
    start = 1
    subject.bos = (start,)
    tail = [9, 10, 11, 12, 13, 14, 15]
    joined = [start, 5, 6, 7, 8, start, *tail]
    frame = scan(subject, [joined], 4, 4, counts=counted(subject, [joined, tail]))
    assert frame["tokens"].tolist() == [[5, 6, 7, 8, start, 9, 10, 11], [start, *tail]]
    assert frame["count"].tolist() == [1, 1]


def test_counts_of_other_tokens_are_refused(subject):
    backend = Tokenizer(models.BPE(vocab={"b": 0, "a": 1}, merges=[]))
    other = interp.load(
        letters.subject().module, tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend)
    )
    with pytest.raises(
        ValueError, match=r"counts are of other tokens than .*'a' is token 0 and 1.*: count the"
    ):
        scan(subject, TEXTS, **WINDOW, counts=counted(other, ["abab"]))


def test_a_folder_keeps_counts_and_refuses_those_of_another_corpus(subject, tmp_path: Path):
    corpus = counted(subject, TEXTS)
    first = scan(subject, TEXTS, **WINDOW, counts=corpus, folder=tmp_path)
    again = scan(subject, TEXTS, **WINDOW, counts=counted(subject, TEXTS), folder=tmp_path)
    pd.testing.assert_frame_equal(first, again)
    for other in (None, counted(subject, TEXTS[:1])):
        with pytest.raises(ValueError, match=r"holds another scan \(counts was"):
            scan(subject, TEXTS, **WINDOW, counts=other, folder=tmp_path)


def test_a_folder_from_before_there_were_counts_is_continued(subject, tmp_path: Path):
    frame = scan(subject, TEXTS, **WINDOW, folder=tmp_path)
    manifest = tmp_path / "scan.json"
    about = json.loads(manifest.read_text())
    del about["counts"]
    manifest.write_text(json.dumps(about))
    pd.testing.assert_frame_equal(scan(subject, TEXTS, **WINDOW, folder=tmp_path), frame)
