"""Laws of a scan that several processes share: joined, it is one scan; what is missing, unfinished
or of another scan is refused; and a process that is killed goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from forks import fork
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.data import stream
from interp.data.tokenized import Share
from interp.memorization import shards
from interp.memorization.shards import merge, only_writer

LENGTHS = (20, 12, 5, 30, 20, 7, 16, 20)  # two are shorter than a window
TEXTS = [
    torch.randint(
        0, tiny.VOCABULARY, (length,), generator=torch.Generator().manual_seed(number)
    ).tolist()
    for number, length in enumerate(LENGTHS)
]


def scanned(folder: Path | None, share: Share | None, texts: Any = TEXTS, **options: Any) -> Any:
    defaults: dict[str, Any] = {"prefix": 6, "length": 6, "stride": 4, "batch_size": 3}
    subject = tiny.subject("llama", torch.float64)
    return interp.scan(subject, texts, folder=folder, share=share, **defaults | options)


def all_shares(root: Path, of: int, **options: Any) -> list[Path]:
    folders = [root / str(index) for index in range(of)]
    for index, folder in enumerate(folders):
        scanned(folder, Share(index, of), **options)
    return folders


@settings(deadline=None, max_examples=8)
@given(of=st.integers(1, 10), rows_a_file=st.integers(1, 20), seed=st.integers(0, 100))
def test_shares_joined_are_one_scan(tmp_path_factory: Any, of: int, rows_a_file: int, seed: int):
    """More shares than there are texts, too, and in any order of the folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_WINDOWS", rows_a_file)
        folders = all_shares(tmp_path_factory.mktemp("shares"), of)
    random.Random(seed).shuffle(folders)
    joined, whole = merge(folders), scanned(None, None)
    # The windows of a batch are others, so that sums may be rounded otherwise.
    pd.testing.assert_frame_equal(joined, whole, rtol=1e-9, atol=1e-9)
    assert joined.attrs == whole.attrs
    assert whole.attrs["skipped"] == 2


@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS, TEXTS[2]], TEXTS[:6]])
def test_a_scan_goes_on_from_shares_that_were_joined(tmp_path: Path, texts: list[list[int]]):
    """Also where the last texts, or the last with a window, are of another share."""
    folders = all_shares(tmp_path, 3, texts=texts)
    for _ in range(2):
        merge(folders, tmp_path / "all")
    forwards: list[int] = []
    whole = scanned(None, None, texts)
    module = tiny.subject("llama", torch.float64).module
    # Not a hook on the module, which would be part of what the model is.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module), "forward", lambda *_, **__: forwards.append(1))
        again = scanned(tmp_path / "all", None, texts)
    assert not forwards
    pd.testing.assert_frame_equal(again, whole, rtol=1e-9, atol=1e-9)
    assert again.attrs == whole.attrs
    # And on to texts that have come since.
    grown = [*texts, TEXTS[0]]
    longer = scanned(tmp_path / "all", None, grown)
    pd.testing.assert_frame_equal(longer, scanned(None, None, grown), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="holds another scan"):
        merge(folders, tmp_path / "all")


def test_a_share_measures_its_own_texts_alone_and_numbers_them_as_in_the_corpus(tmp_path: Path):
    found = scanned(tmp_path, Share(1, 3))
    assert found["text"].unique().tolist() == [1, 4, 7]
    assert found.attrs["texts"] == 3


def test_a_share_without_a_whole_window_is_no_error_and_counts(tmp_path: Path):
    short = [TEXTS[0], TEXTS[2]]
    folders = all_shares(tmp_path, 2, texts=short)
    empty = scanned(folders[1], Share(1, 2), short)
    whole = scanned(folders[0], Share(0, 2), short)
    assert empty.empty
    assert empty.dtypes.to_dict() == whole.dtypes[list(empty)].to_dict()
    assert scanned(None, Share(1, 2), short).dtypes.equals(empty.dtypes)
    joined = merge(folders)
    assert joined.attrs["skipped"] == 1
    assert set(joined["text"]) == {0}
    nothing = all_shares(tmp_path / "nothing", 2, texts=[TEXTS[2], TEXTS[2]])
    with pytest.raises(ValueError, match="no text of 2 shares has a whole window"):
        merge(nothing)


def test_a_share_that_is_killed_at_any_moment_goes_on_and_ends_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "_WINDOWS", 2)

    def slowly() -> Iterator[list[int]]:
        for text in TEXTS:
            time.sleep(0.05)
            yield text

    def run(folder: Path) -> None:
        scanned(folder, Share(0, 2), slowly(), batch_size=1)

    scanned(tmp_path / "other", Share(1, 2), batch_size=1)
    whole = scanned(None, None, batch_size=1)
    draw = random.Random(3)
    kills = 0
    for number in range(10):
        folder = tmp_path / str(number)
        child = fork(partial(run, folder), tmp_path / "log" / str(number))
        time.sleep(draw.uniform(0.05, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        code, _, _ = child.end()
        kills += code == -signal.SIGKILL
        scanned(folder, Share(0, 2), batch_size=1)
        joined = merge([folder, tmp_path / "other"])
        pd.testing.assert_frame_equal(joined, whole, check_exact=True)
    assert kills >= 5


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path):
    with only_writer(tmp_path / "0"):
        child = fork(lambda: scanned(tmp_path / "0", Share(0, 2)), tmp_path / "log")
        code, _, err = child.end()
    assert code == 1
    assert "is being written by another scan" in err
    assert not list((tmp_path / "0").glob("*.parquet"))
    # The lock goes with its process, also without a word.
    killed = fork(lambda: _hold(tmp_path / "0"), tmp_path / "log2")
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match="is being written by another scan"):
        scanned(tmp_path / "0", Share(0, 2))
    os.kill(killed.pid, signal.SIGKILL)
    killed.end()
    assert len(scanned(tmp_path / "0", Share(0, 2)))


def _hold(folder: Path) -> None:
    with only_writer(folder):
        (folder.parent / "held").touch()
        time.sleep(60)


# What cannot be joined


def test_what_is_not_all_of_one_scan_is_refused(tmp_path: Path):
    folders = all_shares(tmp_path, 3)
    with pytest.raises(ValueError, match="expected those of all shares"):
        merge([])
    with pytest.raises(ValueError, match="1 of 3 shares are missing: 1"):
        merge([folders[0], folders[2]])
    shutil.copytree(folders[0], tmp_path / "again")
    with pytest.raises(ValueError, match="both hold share 0 of 3"):
        merge([*folders, tmp_path / "again"])
    scanned(tmp_path / "whole", None)
    with pytest.raises(ValueError, match="holds no share of a scan"):
        merge([*folders, tmp_path / "whole"])
    with pytest.raises(ValueError, match="holds no share of a scan"):
        merge([tmp_path / "nowhere"])
    (folders[1] / "finished.json").unlink()
    with pytest.raises(ValueError, match=r"share 1 of 3 in .* is not finished: run it again"):
        merge(folders)


def test_shares_of_a_corpus_that_has_grown_are_not_finished_until_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "_WINDOWS", 1)
    monkeypatch.setattr(stream, "_TEXTS_AHEAD", 0)
    folders = all_shares(tmp_path, 2)
    grown = [*TEXTS, *TEXTS]

    def interrupted() -> Iterator[list[int]]:
        yield from grown[:-2]
        raise KeyboardInterrupt

    for index, folder in enumerate(folders):
        with pytest.raises(KeyboardInterrupt):
            scanned(folder, Share(index, 2), interrupted())
    with pytest.raises(ValueError, match="is not finished"):
        merge(folders)
    all_shares(tmp_path, 2, texts=grown)
    whole = scanned(None, None, grown)
    pd.testing.assert_frame_equal(merge(folders), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"length": 4}, "length was 6 and is 4"),
        ({"texts": [*TEXTS[:-1], TEXTS[0]]}, "scanned over other texts"),
        ({"texts": TEXTS[:-1]}, "scanned over other texts"),
    ],
)
def test_shares_of_other_settings_or_texts_are_refused(
    tmp_path: Path, other: dict[str, Any], message: str
):
    scanned(tmp_path / "0", Share(0, 2))
    scanned(tmp_path / "1", Share(1, 2), **other)
    with pytest.raises(ValueError, match=message):
        merge([tmp_path / "0", tmp_path / "1"])


def test_shares_of_another_model_or_of_other_numbers_are_refused(tmp_path: Path):
    scanned(tmp_path / "0", Share(0, 2))
    other = tiny.subject("gpt2", torch.float64)
    share = Share(1, 2)
    interp.scan(other, TEXTS, 6, 6, stride=4, batch_size=3, folder=tmp_path / "1", share=share)
    with pytest.raises(ValueError, match=r"holds another scan .*model"):
        merge([tmp_path / "0", tmp_path / "1"])
    scanned(tmp_path / "2", Share(1, 3))
    with pytest.raises(ValueError, match=r"one of 2 shares and .* one of 3"):
        merge([tmp_path / "0", tmp_path / "2"])


def test_a_folder_of_another_share_is_refused(tmp_path: Path):
    scanned(tmp_path, Share(0, 2))
    with pytest.raises(ValueError, match=r"share was \[0, 2\] and is \[1, 2\]"):
        scanned(tmp_path, Share(1, 2))
    with pytest.raises(ValueError, match=r"share was \[0, 2\] and is None"):
        scanned(tmp_path, None)


@pytest.mark.parametrize(("index", "of"), [(2, 2), (-1, 2), (0, 0)])
def test_a_share_that_there_is_not_is_refused(index: int, of: int):
    with pytest.raises(ValueError, match="expected"):
        Share(index, of)


@pytest.mark.parametrize("bad", [5, [1.9] * 20, b"text", None])
def test_what_is_no_text_is_named_also_in_the_share_of_another(tmp_path: Path, bad: Any):
    for index in range(2):
        with pytest.raises(ValueError, match=r"^text 1: "):
            scanned(tmp_path / str(index), Share(index, 2), [TEXTS[0], bad])


def test_images_are_not_shared():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=2)
    with pytest.raises(ValueError, match="share= is for texts"):
        interp.scan(subject, batch, share=Share(0, 2))


# Rows of a data set


def test_rows_of_a_data_set_are_scanned_as_its_texts(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    subject = tiny.subject("llama", torch.float64)
    options = {"prefix": 6, "length": 6}
    ids = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
    expected = interp.scan(subject, TEXTS, **options)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ids)))
    stream = datasets.load_dataset(
        "json", data_files=str(file), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    for rows in (ids, datasets.Dataset.from_list(ids), stream):
        pd.testing.assert_frame_equal(interp.scan(subject, rows, **options), expected)


def test_a_row_without_a_text_is_named():
    subject = tiny.subject("llama")
    rows = [{"text": TEXTS[0]}, {"content": "a", "id": 1}]
    with pytest.raises(ValueError, match="row 1 has no 'text', only 'content', 'id'"):
        interp.scan(subject, rows, prefix=6, length=6)
