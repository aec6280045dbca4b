"""Laws of a scan that keeps some rows: its counts are those of all rows of a plain scan, however
it was interrupted and shared; and its memory does not grow with the corpus."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.data.tokenized import Share
from interp.memorization import shards
from interp.memorization.corpus_scan import CorpusScan
from interp.memorization.halves import halve
from interp.memorization.near_duplicates import wording_groups
from interp.memorization.spans import passages
from interp.memorization.tally import Keep

LENGTHS = (20, 12, 5, 30, 20, 7, 16, 20, 12)
SIZES: dict[str, Any] = {
    "prefix": 6,
    "length": 6,
    "stride": 3,
    "batch_size": 4,
    "decode_from": 0.5,
}


def subject() -> interp.Subject:
    return tiny.subject("llama", torch.float64)


def _text(number: int, length: int) -> list[int]:
    """Random tokens. In every other text the first window has what the model finds most likely, but
    in every fourth for one token."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, tiny.VOCABULARY, (length,), generator=generator)
    for place in range(6, min(length, 12)):
        if number % 2 == 0 and not (number % 4 == 0 and place == 10):
            tokens[place] = subject().module(tokens[None, :place]).logits[0, -1].argmax()
    return tokens.tolist()


TEXTS = [_text(number, length) for number, length in enumerate(LENGTHS)]


def corpus_scan(folder: Path, texts: Any = TEXTS, **options: Any) -> CorpusScan:
    return interp.scan_corpus(subject(), texts, folder, **SIZES | options)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    found = interp.scan(subject(), TEXTS, **SIZES)
    # Of every kind some, but not all.
    assert 0 < found["exact"].sum() < (found["accuracy"] >= 0.3).sum() < len(found)
    return found


def assert_counts_are_of(found: CorpusScan, rows: pd.DataFrame, keep: str) -> None:
    kept = rows.query(keep).reset_index(drop=True)
    pd.testing.assert_frame_equal(found.kept(), kept, rtol=1e-9, atol=1e-9)
    assert (found.windows, found.exact) == (len(rows), int(rows["exact"].sum()))
    assert found.accuracy == pytest.approx(rows["accuracy"].mean())
    assert (found.texts, found.skipped) == (rows.attrs["texts"], rows.attrs["skipped"])

    documents = pd.concat(list(found.documents()), ignore_index=True).set_index("text")
    by_text = rows.assign(right=np.rint(rows["accuracy"] * 6), kept=rows.eval(keep)).groupby("text")
    expected = by_text.agg(
        windows=("text", "size"),
        exact=("exact", "sum"),
        right=("right", "sum"),
        longest=("matched", "max"),
        log_p=("log_p", "sum"),
        kept=("kept", "sum"),
    )
    pd.testing.assert_frame_equal(documents, expected, check_dtype=False, rtol=1e-9)

    table = found.histograms
    for measure, values in (
        ("matched", rows["matched"]),
        ("run", rows["run"]),
        ("right", np.rint(rows["accuracy"] * 6)),
    ):
        counts = table[table["measure"] == measure]["windows"].tolist()
        assert counts == np.bincount(np.asarray(values, dtype=int), minlength=7).tolist()
    of_log_p = table[table["measure"] == "log_p per token"]
    per_token = rows["log_p"] / 6
    counted = [
        int(((per_token <= high) & (per_token > low)).sum())
        for low, high in zip(of_log_p["low"], of_log_p["high"], strict=True)
    ]
    assert of_log_p["windows"].tolist() == counted
    assert sum(counted) == len(rows)


@pytest.mark.parametrize(
    "keep", ["accuracy>=0.3", "log_p > -40", "exact==1", "matched<1", "run <= 0", "accuracy>=0"]
)
def test_counts_are_those_of_all_rows(tmp_path: Path, rows: pd.DataFrame, keep: str):
    assert_counts_are_of(corpus_scan(tmp_path, keep=keep), rows, keep)


def test_without_decoding_only_what_is_extracted_has_a_similarity(
    tmp_path: Path, rows: pd.DataFrame
):
    sizes = {name: size for name, size in SIZES.items() if name != "decode_from"}
    scan = interp.scan_corpus(subject(), TEXTS, tmp_path, **sizes, keep="accuracy>=0.3")
    found = scan.kept()
    assert found["similarity"].notna().tolist() == found["exact"].tolist()
    kept = rows.query("accuracy>=0.3").reset_index(drop=True)
    measures = ["text", "start", "exact", "matched", "run", "accuracy", "log_p"]
    pd.testing.assert_frame_equal(found[measures], kept[measures])


@settings(deadline=None, max_examples=10)
@given(
    of=st.integers(1, 5), per_file=st.integers(1, 20), stop=st.integers(0, 20), seed=st.integers(0)
)
def test_shares_that_were_interrupted_are_one_scan(
    tmp_path_factory: Any, rows: pd.DataFrame, of: int, per_file: int, stop: int, seed: int
):
    root = tmp_path_factory.mktemp("shares")
    model = subject().module
    forwards = 0

    def interrupted(*_: object) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == stop:
            raise KeyboardInterrupt

    folders = [root / str(index) for index in range(of)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_WINDOWS", per_file)
        handle = model.register_forward_pre_hook(interrupted)
        try:
            for index, folder in enumerate(folders):
                share = Share(index, of)
                try:
                    corpus_scan(folder, share=share, keep="matched>=1")
                except KeyboardInterrupt:
                    corpus_scan(folder, share=share, keep="matched>=1")
        finally:
            handle.remove()
    random.Random(seed).shuffle(folders)
    assert_counts_are_of(CorpusScan.read(folders), rows, "matched>=1")


def test_an_interruption_at_any_moment_counts_nothing_twice(
    tmp_path: Path, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    """Also between a count and the row that belongs to it, and while files are written."""
    monkeypatch.setattr(shards, "_WINDOWS", 5)
    places = [
        "interp.memorization.tally.Tally.plus",
        "interp.memorization.tally.Tally.documents",
        "interp.memorization.tally.Tally.without_documents",
        "interp.memorization.shards._write_table",
        "interp.memorization.shards.write_json",
        "interp.memorization.window_scanner.WindowScanner._described",
    ]
    for number, place in enumerate(places):
        for call in range(1, 4):
            folder = tmp_path / f"{number}-{call}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, _interrupting(place, call))
                with pytest.raises(KeyboardInterrupt):
                    corpus_scan(folder, keep="matched>=1")
            assert_counts_are_of(corpus_scan(folder, keep="matched>=1"), rows, "matched>=1")


def _interrupting(place: str, call: int) -> Any:
    """What stands at a place, interrupted after one of its calls."""
    from pydoc import locate

    original: Any = locate(place)
    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*args, **kwargs)
        if calls == call:
            raise KeyboardInterrupt
        return result

    return interrupted


def test_a_finished_scan_is_measured_no_more_and_a_longer_corpus_goes_on(
    tmp_path: Path, rows: pd.DataFrame
):
    forwards: list[int] = []
    handle = subject().module.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        corpus_scan(tmp_path, TEXTS[:4], keep="matched>=1")
        forwards.clear()
        again = corpus_scan(tmp_path, TEXTS[:4], keep="matched>=1")
        assert not forwards
        assert again.texts == 4
        assert_counts_are_of(corpus_scan(tmp_path, keep="matched>=1"), rows, "matched>=1")
    finally:
        handle.remove()


def test_what_is_saved_is_what_was_found(tmp_path: Path, rows: pd.DataFrame):
    folders = [tmp_path / "a", tmp_path / "b"]
    for index, folder in enumerate(folders):
        corpus_scan(folder, share=Share(index, 2), keep="matched>=1")
    found = CorpusScan.read(folders)
    found.save(tmp_path / "out")
    documents = pq.read_table(tmp_path / "out" / "documents.parquet").to_pandas()
    assert documents["text"].tolist() == sorted(set(rows["text"]))
    assert documents["windows"].sum() == len(rows)
    kept = pd.read_parquet(tmp_path / "out" / "windows.parquet")
    assert kept["start"].tolist() == rows.query("matched>=1")["start"].tolist()
    histogram = pd.read_csv(tmp_path / "out" / "histograms.csv")
    assert histogram.groupby("measure")["windows"].sum().unique().tolist() == [len(rows)]
    assert (tmp_path / "out" / "scan.png").stat().st_size
    assert f"{len(rows)} windows" in found.plot().get_suptitle()


def test_nothing_is_kept_in_memory_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rows that are held, and the documents, do not grow with the corpus."""
    monkeypatch.setattr(shards, "_WINDOWS", 8)
    held: list[int] = []
    add = shards.Shards.add

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        add(self, *args, **kwargs)
        state: Any = self._state
        held.append(sum(map(len, state.fresh)) + len(state.tally.complete))

    monkeypatch.setattr(shards.Shards, "add", noted)

    def many() -> Iterator[list[int]]:
        for _ in range(20):
            yield from TEXTS

    corpus_scan(tmp_path, many(), keep="accuracy>=0")
    assert max(held) <= 2 * 8 + 4
    assert len(held) > 60


# Bad input


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("acuracy>=0.5", "did you mean 'accuracy'"),
        ("accuracy", "expected a measure, a relation and a number"),
        ("accuracy>=half", "expected a measure, a relation and a number"),
        ("accuracy>=nan", "expected a measure, a relation and a number"),
        ("log_ratio>1", "needs a reference model"),
        ("count>1", "needs counts of texts"),
        ("similarity>0.5", "does not measure 'similarity'"),
    ],
)
def test_a_condition_that_cannot_be_measured_is_refused(tmp_path: Path, keep: str, message: str):
    with pytest.raises(ValueError, match=message):
        corpus_scan(tmp_path / "scan", keep=keep)
    assert not (tmp_path / "scan").exists()


def test_a_condition_is_read_as_it_is_written():
    assert str(Keep.parse(" log_p> -20 ")) == "log_p>-20"
    # To the last digit: a scan with another condition is another scan.
    for condition in ("accuracy>=0.99999999", "log_p>-20.000001", "count>=10000001", "exact==1"):
        assert str(Keep.parse(condition)) == condition
    assert Keep.parse("exact==1") == Keep("exact", "==", 1.0)


def test_scans_of_two_kinds_are_not_mixed(tmp_path: Path):
    corpus_scan(tmp_path / "some", share=Share(0, 1))
    with pytest.raises(ValueError, match=r"keeps only the rows with accuracy>=0\.5"):
        shards.merge([tmp_path / "some"])
    interp.scan(subject(), TEXTS, folder=tmp_path / "all", share=Share(0, 1), **SIZES)
    with pytest.raises(ValueError, match="holds all rows"):
        CorpusScan.read([tmp_path / "all"])
    with pytest.raises(ValueError, match=r"keep was 'accuracy>=0\.5' and is 'exact==1'"):
        corpus_scan(tmp_path / "some", share=Share(0, 1), keep="exact==1")
    with pytest.raises(ValueError, match=r"keep was 'accuracy>=0\.5' and is None"):
        interp.scan(subject(), TEXTS, folder=tmp_path / "some", share=Share(0, 1), **SIZES)


def test_a_corpus_without_a_whole_window_is_an_error_but_not_in_a_share(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to scan: 2 of 2 texts are shorter than 12"):
        corpus_scan(tmp_path / "all", [TEXTS[2], TEXTS[5]])
    # Nothing was measured, so that the folder is free for smaller windows.
    assert corpus_scan(tmp_path / "all", [TEXTS[2], TEXTS[5]], length=1).windows == 1
    found = corpus_scan(tmp_path / "share", [TEXTS[2]], share=Share(0, 1))
    assert (found.windows, found.kept().empty, list(found.documents())) == (0, True, [])
    assert np.isnan(found.accuracy)
    with pytest.raises(ValueError, match="there is no window"):
        found.plot()


def test_after_an_error_a_data_set_begins_at_its_beginning_and_no_thread_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also while somebody looks at the error, as a notebook does at the last one."""
    datasets = pytest.importorskip("datasets")
    scanned = letters.subject()
    tokens = type(scanned).tokens

    def refusing(self: Any, text: str) -> list[int]:
        if text == "c":
            raise ValueError("what the tokenizer says")
        return tokens(self, text)

    monkeypatch.setattr(type(scanned), "tokens", refusing)
    many = ["ab" * 8] * 100
    rows = datasets.Dataset.from_dict({"text": [*many, "c", *many]}).to_iterable_dataset()
    threads = threading.active_count()
    errors: list[BaseException] = []
    for _ in range(2):
        with pytest.raises(ValueError, match="text 100: what the tokenizer says") as seen:
            interp.scan_corpus(scanned, rows, tmp_path, **SIZES)
        errors.append(seen.value)
        assert json.loads((tmp_path / "progress.json").read_text())["progress"]["texts"] > 0
        assert len(list(rows)) == 201
        assert threading.active_count() == threads


def test_where_no_row_is_kept_columns_have_their_types(tmp_path: Path, rows: pd.DataFrame):
    found = corpus_scan(tmp_path / "scan", keep="matched>6")
    found.save(tmp_path)
    kept = pd.read_parquet(tmp_path / "windows.parquet")
    assert kept.empty
    assert kept.dtypes.to_dict() == rows[list(kept)].dtypes.to_dict()


def test_what_reads_a_scan_says_that_no_row_is_kept(tmp_path: Path):
    found = corpus_scan(tmp_path / "scan", keep="matched>6")
    found.save(tmp_path)
    with_rows = passages(corpus_scan(tmp_path / "other", keep="matched>=0").kept())
    for kept in (found.kept(), pd.read_parquet(tmp_path / "windows.parquet")):
        assert list(passages(kept)) == list(with_rows)
        assert passages(kept).empty
        assert wording_groups(kept).tolist() == []
        assert interp.discoverable(kept["log_p"], 10, 0.5).tolist() == []
        for refused in (interp.split, halve):
            with pytest.raises(ValueError, match="the frame has no windows"):
                refused(kept)
        with pytest.raises(ValueError, match="the memorized set is empty"):
            interp.localize(subject(), kept, kept)
        with pytest.raises(ValueError, match="expected at least one row, got none"):
            interp.plotting.matched_tokens(kept)
        with pytest.raises(ValueError, match="got 0 rows, missing columns none"):
            interp.Batch.from_frame(kept)


def test_other_texts_in_the_same_folder_are_refused(tmp_path: Path):
    corpus_scan(tmp_path)
    with pytest.raises(ValueError, match="holds a scan of other texts"):
        corpus_scan(tmp_path, [*TEXTS[:3], TEXTS[0], *TEXTS[4:]])


def test_progress_is_plain_json(tmp_path: Path):
    corpus_scan(tmp_path, keep="accuracy>=0")
    written = json.loads((tmp_path / "progress.json").read_text())
    assert written["progress"]["place"]["number"] == 8
    assert written["progress"]["texts"] == 8
