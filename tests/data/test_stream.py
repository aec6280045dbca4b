"""Laws of streams: read on from any place they give the rest, whatever they are; a digest tells
corpora apart; and tokens are made ahead of the model."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.data import stream, text_formats
from interp.data.hub_texts import HubTexts
from interp.data.stream import OtherTextsError, Place, Stream, tokens_ahead
from interp.data.texts import TextReader, read_texts

TEXTS = [f"text {number}" for number in range(23)]
ROWS = [{"text": text} for text in TEXTS]


def in_files(folder: Path) -> Any:
    """Three kinds of files, one of them with several groups of rows, and one empty."""
    pd.DataFrame({"text": TEXTS[:9]}).to_parquet(folder / "a.parquet", row_group_size=4)
    (folder / "b.jsonl").write_text("")
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, ROWS[9:14])))
    (folder / "d.txt").write_text(TEXTS[14])
    pd.DataFrame({"text": TEXTS[15:]}).to_csv(folder / "e.csv", index=False)
    return read_texts([folder])


def streamed(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    for number in range(3):
        rows = TEXTS[8 * number : 8 * (number + 1)]
        # `datasets` fails on a file without rows.
        if rows:
            pd.DataFrame({"text": rows}).to_parquet(folder / f"{number}.parquet")
    files = str(folder / "*.parquet")
    cache = str(folder / "cache")
    return datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, cache_dir=cache
    )


def shuffled(folder: Path) -> Any:
    """A data set that `datasets` does not continue to the row."""
    return streamed(folder).shuffle(seed=0, buffer_size=5)


def as_table(_: Path) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def as_generator(_: Path) -> Any:
    return iter(list(TEXTS))


def as_list(_: Path) -> Any:
    return list(TEXTS)


KINDS = [as_list, as_generator, as_table, in_files, streamed, shuffled]


@pytest.mark.parametrize("kind", KINDS)
def test_from_any_place_on_a_stream_gives_the_rest(
    tmp_path: Path, kind: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
):
    # Where it is shuffled, `datasets` sleeps five seconds at the end of each reading.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    whole = Stream(kind(tmp_path))
    read = list(whole.read())
    assert sorted(text for _, text in read) == sorted(TEXTS)
    assert [place.number for place, _ in read] == list(range(len(TEXTS)))
    for number in (0, 1, 8, 9, 14, 15, 22):
        # The place as it comes out of a file.
        place = Place(**json.loads(json.dumps(vars(read[number][0]))))
        rest = Stream(kind(tmp_path))
        assert [text for _, text in rest.read(place)] == [text for _, text in read[number:]]
        assert rest.digest == whole.digest


def test_what_comes_before_is_not_read_where_the_stream_can_skip_it(tmp_path: Path):
    read: list[str] = []

    def seen(row: dict[str, str]) -> dict[str, str]:
        read.append(row["text"])
        return row

    rows = streamed(tmp_path).map(seen)
    places = [place for place, _ in Stream(rows).read()]
    read.clear()
    rest = [text for _, text in Stream(rows).read(places[20])]
    assert rest == TEXTS[20:]
    assert len(read) < 8  # no more than the file in which the row is


def test_files_that_are_done_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    places = [place for place, _ in Stream(in_files(tmp_path)).read()]
    reader = read_texts([tmp_path])
    opened: list[str] = []

    def noted(file: Path, column: str, first: int) -> Iterator[str]:
        opened.append(file.name)
        return text_formats.texts_of(file, column, first)

    monkeypatch.setattr("interp.data.texts.texts_of", noted)
    assert [text for _, text in Stream(reader).read(places[15])] == TEXTS[15:]
    assert opened == ["d.txt", "e.csv"]  # the place was at the end of the former


def test_files_with_other_dates_are_read_again_and_those_with_other_texts_are_refused(
    tmp_path: Path,
):
    places = [place for place, _ in Stream(in_files(tmp_path)).read()]
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    for number in (0, 8, 9, 15, 22):
        rest = Stream(read_texts([tmp_path])).read(places[number])
        assert [text for _, text in rest] == TEXTS[number:]
    # In a file that was done.
    changed = ["x", *TEXTS[1:9]]
    pd.DataFrame({"text": changed}).to_parquet(tmp_path / "a.parquet", row_group_size=4)
    with pytest.raises(OtherTextsError, match="text 15 is not the one"):
        list(Stream(read_texts([tmp_path])).read(places[15]))


def test_a_file_that_has_grown_since_is_read_on(tmp_path: Path):
    places = [place for place, _ in Stream(in_files(tmp_path)).read()]
    with (tmp_path / "e.csv").open("a") as file:
        file.write("more\n")
    rest = Stream(read_texts([tmp_path])).read(places[22])
    assert [text for _, text in rest] == [*TEXTS[22:], "more"]


def test_a_data_set_with_another_text_before_the_place_is_refused():
    datasets = pytest.importorskip("datasets")
    place = [place for place, _ in Stream(datasets.Dataset.from_list(ROWS)).read()][10]
    changed = datasets.Dataset.from_list([{"text": "x"}, *ROWS[1:]])
    with pytest.raises(OtherTextsError, match="text 10 is not the one"):
        list(Stream(changed).read(place))


def test_texts_that_are_shuffled_and_there_several_times_are_none_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    texts = ["" if number % 2 else f"text {number}" for number in range(24)]
    monkeypatch.setattr(f"{__name__}.TEXTS", texts)
    rows = shuffled(tmp_path)
    read = list(Stream(rows).read())
    whole = [text for _, text in read]
    for number, (place, _) in enumerate(read):
        assert [text for _, text in Stream(rows).read(place)] == whole[number:]


def test_a_streamed_data_set_that_is_put_together_otherwise_is_read_again(tmp_path: Path):
    rows = streamed(tmp_path)
    places = [place for place, _ in Stream(rows.take(12)).read()]
    assert [text for _, text in Stream(rows).read(places[10])] == TEXTS[10:]


def test_a_data_set_on_the_hub_is_read_from_its_beginning_after_it_was_continued(tmp_path: Path):
    reader = TextReader([HubTexts("user/name", "text", streamed(tmp_path))], "text")
    place = [place for place, _ in Stream(reader).read()][10]
    assert [text for _, text in Stream(reader).read(place)] == TEXTS[10:]
    assert [text for _, text in Stream(reader).read()] == TEXTS
    assert list(reader) == TEXTS


@pytest.mark.parametrize("kind", [as_table, streamed])
def test_a_data_set_is_left_as_it_was(tmp_path: Path, kind: Callable[[Path], Any]):
    rows = kind(tmp_path)
    before = [row["text"] for row in rows]
    places = [place for place, _ in Stream(rows).read()]
    for since in (None, places[10]):
        reading = Stream(rows).read(since)
        next(reading)
        reading.close()  # in the middle, too
        assert [row["text"] for row in rows] == before


@pytest.mark.parametrize("kind", [as_list, as_generator, as_table, in_files, streamed])
@pytest.mark.parametrize("change", [lambda texts: texts[:10], lambda texts: [*texts[:10], "x"]])
def test_another_text_at_the_place_is_refused(
    tmp_path: Path,
    kind: Callable[[Path], Any],
    change: Callable[[list[str]], list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    place = [place for place, _ in Stream(kind(tmp_path)).read()][10]
    monkeypatch.setattr(f"{__name__}.TEXTS", change(TEXTS))
    monkeypatch.setattr(f"{__name__}.ROWS", [{"text": text} for text in change(TEXTS)])
    other = tmp_path / "other"
    other.mkdir()
    if kind is in_files:
        # The file in which it was has fewer rows, or others.
        (tmp_path / "c.jsonl").write_text('{"text": "x"}')
        changed = read_texts([tmp_path])
    else:
        changed = kind(other)
    with pytest.raises(OtherTextsError, match="text 10 is not the one"):
        list(Stream(changed).read(place))


def test_texts_that_changed_before_the_place_are_refused_where_they_are_read():
    place = [place for place, _ in Stream(TEXTS).read()][10]
    with pytest.raises(OtherTextsError, match="text 10 is not the one"):
        list(Stream(["x", *TEXTS[1:]]).read(place))


def test_no_two_corpora_have_one_digest():
    corpora: list[Any] = [
        [],
        ["ab"],
        ["a", "b"],
        ["[1]"],
        [[1]],
        [[1], [1]],
        [[1, 1]],
        [[11]],
        ["", "ab"],
        ["ab", ""],
    ]
    digests: set[str] = set()
    for texts in corpora:
        corpus = Stream(texts)
        assert [text for _, text in corpus.read()] == texts
        digests.add(corpus.digest)
    assert len(digests) == len(corpora)
    as_array = Stream([np.array([1, 1])])
    list(as_array.read())
    assert as_array.digest in digests


# Tokens ahead


@given(st.lists(st.text("ab ", max_size=20), max_size=30), st.integers(0, 5), st.integers(0, 40))
def test_tokens_come_in_order_and_are_those_of_the_tokenizer(
    texts: list[str], ahead: int, length: int
):
    subject = letters.subject()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_TEXTS_AHEAD", ahead)
        patch.setattr(stream, "_LENGTH_AHEAD", length)
        found = list(tokens_ahead(subject, Stream(texts).read()))
    assert [(text, tokens) for _, text, tokens in found] == [
        (text, subject.tokens(text)) for text in texts
    ]


def test_texts_are_made_in_the_thread_of_the_caller_and_tokens_in_another(
    monkeypatch: pytest.MonkeyPatch,
):
    subject = letters.subject()
    of_texts: set[str] = set()
    of_tokens: set[str] = set()
    tokens = type(subject).tokens

    def noted(self: Any, text: str) -> list[int]:
        of_tokens.add(threading.current_thread().name)
        return tokens(self, text)

    def texts() -> Iterator[str]:
        for _ in range(3):
            of_texts.add(threading.current_thread().name)
            yield "ab"

    monkeypatch.setattr(type(subject), "tokens", noted)
    list(tokens_ahead(subject, Stream(texts()).read()))
    assert of_texts == {threading.current_thread().name}
    assert of_tokens == {"tokenizer_0"}


def test_an_error_of_the_worker_comes_to_the_caller_and_no_thread_stays():
    subject = letters.subject()
    before = threading.active_count()
    with pytest.raises(ValueError, match="text 1: "):
        list(tokens_ahead(subject, Stream(["ab", "a\ud800"]).read()))
    reading = tokens_ahead(subject, Stream(["ab"] * 200).read())
    next(reading)
    assert threading.active_count() == before + 1
    reading.close()
    assert threading.active_count() == before
