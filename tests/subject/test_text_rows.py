"""Laws of texts: whatever they come in, a list, a data set or a stream of one, all that reads texts
finds the same; and what is no text is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import processors

import interp
from interp.cli.membership import score_texts
from interp.engine.reducers import REDUCERS
from interp.memorization.entropy.scored_windows import score_all
from interp.subject.text_rows import text_batches

TEXTS = [*letters.noise(3, 20, seed=1), "abc", *letters.noise(3, 32, seed=2)]
KINDS = ("rows", "data set", "stream", "generator")


@pytest.fixture(scope="module")
def subject() -> interp.Subject:
    return letters.subject()


def behind_a_start_token() -> interp.Subject:
    tokenizer = letters.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="~ $A", special_tokens=[("~", letters.LETTERS.index("~"))]
    )
    return interp.load(letters.subject().module, tokenizer=tokenizer)


def in_a(kind: str, folder: Path, texts: Any = TEXTS, column: str = "text") -> Any:
    """Texts as rows of a kind of data set, with a further column before them."""
    rows = [{"id": number, column: text} for number, text in enumerate(texts)]
    if kind == "rows":
        return rows
    if kind == "generator":
        return (row for row in rows)
    datasets = pytest.importorskip("datasets")
    if kind == "data set":
        return datasets.Dataset.from_list(rows)
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return datasets.load_dataset(
        "json", data_files=str(file), split="train", streaming=True, cache_dir=str(folder)
    )


def recorded(subject: interp.Subject, texts: Any) -> pd.DataFrame:
    return interp.record(subject, texts, ["neurons", "heads"], "moments", batch_size=3).to_frame()


def members(subject: interp.Subject, texts: Any) -> pd.DataFrame:
    return interp.membership(subject, texts, letters.subject(seed=3), batch_size=3)


def law(subject: interp.Subject, texts: Any) -> pd.DataFrame:
    return interp.entropy_law(subject, texts, 6, 6, min_windows=1, rarefied_to=1, shuffles=3).levels


def windows(subject: interp.Subject, texts: Any) -> pd.DataFrame:
    return pd.DataFrame(score_all(subject, texts, 6, 6).scores)


def scanned(subject: interp.Subject, texts: Any) -> pd.DataFrame:
    return interp.scan(subject, texts, 6, 6)


READERS = [recorded, members, law, windows, scanned]
Reader = Callable[[interp.Subject, Any], pd.DataFrame]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_rows_of_any_data_set_are_its_texts(
    subject: Any, reader: Reader, kind: str, tmp_path: Path
):
    expected = reader(subject, TEXTS)
    assert len(expected)
    pd.testing.assert_frame_equal(reader(subject, in_a(kind, tmp_path)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_a_column_that_is_not_there_is_named(
    subject: Any, reader: Reader, kind: str, tmp_path: Path
):
    with pytest.raises(ValueError, match="row 0 has no 'text', only 'id', 'content'"):
        reader(subject, in_a(kind, tmp_path, column="content"))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "texts is one string"),
        ({"train": TEXTS}, r"texts is a dict of 'train': .*one split of a data set"),
        (["abc" * 6, 5], "^text 1: "),
        ([{"text": "abc" * 6}, {"text": None}], "^text 1: "),
    ],
)
def test_what_is_no_text_is_named(subject: Any, reader: Reader, texts: Any, message: str):
    with pytest.raises(ValueError, match=message):
        reader(subject, texts)


def test_the_table_of_the_membership_command_takes_rows(subject: Any, tmp_path: Path):
    found = [
        score_texts(subject, [], texts, others, writable)
        for texts, others, writable in (
            (TEXTS, TEXTS[:2], tmp_path),
            (in_a("stream", tmp_path), in_a("data set", tmp_path, TEXTS[:2]), tmp_path),
        )
    ]
    pd.testing.assert_frame_equal(*found)
    assert found[0]["beginning"].tolist() == [*TEXTS, *TEXTS[:2]]


# Recordings of texts


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("length", [None, 2, 9])
@pytest.mark.parametrize("reduce", REDUCERS)
def test_a_recording_of_texts_is_one_of_the_batch_that_they_are(
    reduce: str,
    length: int | None,
    bos: bool,  # noqa: FBT001
):
    subject = behind_a_start_token()
    assert subject.bos
    batch = subject.encode_all(TEXTS, length, bos=bos)
    expected = interp.record(subject, batch, "neurons", reduce)
    found = interp.record(
        subject, iter(TEXTS), "neurons", reduce, batch_size=3, length=length, bos=bos
    )
    for site in expected:
        for name, array in expected.parts[site].items():
            np.testing.assert_allclose(found.parts[site][name], array, rtol=1e-4, atol=1e-5)


def test_batches_of_texts_are_those_of_encode_all(subject: Any):
    parts = list(text_batches(subject, TEXTS, 3, length=9))
    assert [len(part) for part in parts] == [3, 3, 1]
    for part, texts in zip(parts, (TEXTS[:3], TEXTS[3:6], TEXTS[6:]), strict=True):
        whole = subject.encode_all(texts, 9)
        assert part.prompt == whole.prompt
        assert torch.equal(part.tokens, whole.tokens)
        assert (part.mask is None) == (whole.mask is None)
    ids = [subject.encode(text) for text in TEXTS]
    again = list(text_batches(subject, ids, 3, length=9))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(parts, again, strict=True))


def test_an_empty_text_is_named_and_not_passed_over(subject: Any):
    """Else the numbers of the examples after it would be those of other texts."""
    with pytest.raises(ValueError, match="text 1 is empty"):
        interp.record(subject, ["abc", "", "de"], "neurons", "rows")
    with pytest.raises(ValueError, match="text 0 is empty"):
        interp.record(behind_a_start_token(), [""], "neurons", "rows")


def test_what_cannot_be_recorded_is_refused(subject: Any):
    batch = subject.encode_all(TEXTS)
    with pytest.raises(ValueError, match="no batches"):
        interp.record(subject, iter([]), "neurons")
    with pytest.raises(ValueError, match="length=5 is for texts"):
        interp.record(subject, batch, "neurons", length=5)
    with pytest.raises(ValueError, match="batches of examples; got a str"):
        interp.record(subject, [batch, "abc"], "neurons")
    with pytest.raises(ValueError, match="must be at least 1"):
        interp.record(subject, TEXTS, "neurons", length=0, batch_size=2)
    with pytest.raises(ValueError, match=r"^text 0: "):
        interp.record(subject, [None, "abc"], "neurons")


def test_only_texts_of_one_token_are_a_batch_that_encode_all_refuses(subject: Any):
    [single, other] = text_batches(subject, ["a", "b", "cd"], 2)
    assert (single.prompt, other.prompt) == (0, 1)
    assert single.tokens.tolist() == [subject.encode("a"), subject.encode("b")]
    with pytest.raises(ValueError, match="prompt"):
        subject.encode_all(["a", "b"])


def test_a_text_of_one_token_is_recorded_in_whatever_batch_it_is(subject: Any):
    texts = ["a", "b", "cd", "e"]
    one, other = (interp.record(subject, texts, "neurons", "rows", batch_size=n) for n in (1, 4))
    for site in one:
        np.testing.assert_allclose(one[site], other[site], rtol=1e-4, atol=1e-5)
