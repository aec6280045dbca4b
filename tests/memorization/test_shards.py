"""Laws of a scan that was interrupted: nothing measured is lost or measured again, and a folder of
something else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.memorization import shards
from interp.memorization.extraction import scan
from interp.subject.fingerprint import fingerprint, identify

TEXTS = torch.randint(
    0, tiny.VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(0)
).tolist()
BATCHES = 9  # 6 texts of 3 windows, 2 a batch


class Foreign:
    """Somebody's hook, which counts forwards and is interrupted at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.forwards, self.stop_at = 0, stop_at

    def __call__(self, *_: object) -> None:
        self.forwards += 1
        if self.forwards == self.stop_at:
            raise KeyboardInterrupt


def scanned(
    folder: Path | None, hook: Foreign, texts: object = TEXTS, **options: object
) -> pd.DataFrame:
    """With `decode_from` above 1, one forward is one batch."""
    subject = tiny.subject("llama")
    defaults = {
        "prefix": 6,
        "length": 6,
        "stride": 4,
        "batch_size": 2,
        "decode_from": 2.0,
        "folder": folder,
    }
    handle = subject.module.register_forward_pre_hook(hook)
    try:
        with tiny.untouched(subject.module):
            return scan(subject, texts, **defaults | options)
    finally:
        handle.remove()


@settings(deadline=None, max_examples=12)
@given(stop_at=st.integers(1, BATCHES), rows_a_file=st.integers(1, 20))
def test_a_resumed_scan_equals_an_uninterrupted_one_and_measures_nothing_twice(
    tmp_path_factory, stop_at, rows_a_file
):
    folder = tmp_path_factory.mktemp("scan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_WINDOWS", rows_a_file)
        with pytest.raises(KeyboardInterrupt):
            scanned(folder, Foreign(stop_at))
        assert not list(folder.rglob("*.part"))
        rest, whole = Foreign(), Foreign()
        frame = scanned(folder, rest)
    pd.testing.assert_frame_equal(frame, scanned(None, whole), check_exact=True)
    assert (whole.forwards, rest.forwards) == (BATCHES, BATCHES - (stop_at - 1))
    again = Foreign()
    pd.testing.assert_frame_equal(scanned(folder, again), frame, check_exact=True)
    assert again.forwards == 0


def test_an_interruption_while_writing_loses_nothing_and_leaves_no_half_file(tmp_path, monkeypatch):
    write, calls = pd.DataFrame.to_parquet, []

    def interrupted_once(frame: pd.DataFrame, path: Path) -> None:
        calls.append(path)
        write(frame, path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(shards, "_WINDOWS", 4)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        scanned(tmp_path, Foreign())
    assert not list(tmp_path.rglob("*.part"))
    rest = Foreign()
    assert len(scanned(tmp_path, rest)) == 2 * BATCHES
    assert rest.forwards == BATCHES - 4


def test_what_a_killed_process_had_not_finished_writing_is_removed(tmp_path):
    (tmp_path / ".shard-000000.parquet.1.part").write_bytes(b"half")
    scanned(tmp_path, Foreign())
    assert not list(tmp_path.glob(".*.part"))


def test_a_folder_in_which_nothing_was_scanned_is_free_for_other_windows(tmp_path):
    with pytest.raises(ValueError, match="nothing to scan"):
        scanned(tmp_path, Foreign(), length=1000)
    assert len(scanned(tmp_path, Foreign())) == 2 * BATCHES


@pytest.mark.parametrize(
    "setting", [{"prefix": 5}, {"length": 5}, {"stride": 3}, {"decode_from": 0.5}]
)
def test_a_folder_of_other_settings_is_refused_by_name(tmp_path, setting):
    scanned(tmp_path, Foreign())
    name = next(iter(setting))
    with pytest.raises(
        ValueError, match=rf"holds another scan \(.*{name} was .* and is {setting[name]}"
    ):
        scanned(tmp_path, Foreign(), **setting)


def test_a_folder_of_another_model_is_refused(tmp_path):
    scanned(tmp_path, Foreign())
    with pytest.raises(ValueError, match=r"holds another scan \(model was"):
        scan(tiny.subject("gpt2"), TEXTS, 6, 6, stride=4, decode_from=2.0, folder=tmp_path)


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param([TEXTS[1], *TEXTS[1:]], id="one changed"),
        pytest.param(TEXTS[1:], id="one fewer"),
        pytest.param([[1, 2], *TEXTS], id="a short one before, which moves the numbers of all"),
        pytest.param(TEXTS[:3], id="fewer windows than are known"),
    ],
)
def test_a_folder_of_other_texts_is_refused(tmp_path, texts):
    scanned(tmp_path, Foreign())
    with pytest.raises(
        ValueError, match="holds a scan of other texts: give another folder, or remove it"
    ):
        scanned(tmp_path, Foreign(), texts)


def test_a_longer_corpus_goes_on_where_the_shorter_ended(tmp_path):
    scanned(tmp_path, Foreign(), TEXTS[:2])
    rest = Foreign()
    frame = scanned(tmp_path, rest)
    assert len(frame) == 2 * BATCHES
    assert rest.forwards == BATCHES - 3


def test_what_is_kept_is_plain_and_says_what_it_is_of(tmp_path):
    scanned(tmp_path, Foreign())
    about = json.loads((tmp_path / "scan.json").read_text())
    subject = tiny.subject("llama")
    handle = subject.module.register_forward_pre_hook(Foreign())
    try:
        parts = identify(subject)
    finally:
        handle.remove()
    assert about == {
        "model": fingerprint(parts),
        "model parts": parts,
        "prefix": 6,
        "length": 6,
        "stride": 4,
        "decode_from": 2.0,
        "bos": [],
        "reference": None,
        "counts": None,
    }
    assert [p.name for p in tmp_path.glob("*.parquet")] == ["shard-000000.parquet"]


@pytest.mark.parametrize(
    "texts",
    [
        [[1.9] * 12],
        [[tiny.VOCABULARY] * 12],
        [{"text": "a row"}],
        interp.Batch(torch.ones(2, 12, dtype=torch.long), 6, torch.arange(12).expand(2, 12) < 11),
    ],
)
def test_input_that_is_refused_leaves_nothing(tmp_path, texts):
    with pytest.raises(ValueError, match=r"."):
        scan(tiny.subject("llama"), texts, 6, 6, folder=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} <= {".lock"}


def test_shards_that_do_not_say_what_they_are_of_are_refused(tmp_path):
    scanned(tmp_path, Foreign())
    (tmp_path / "scan.json").unlink()
    with pytest.raises(ValueError, match=r"holds 1 shards but no scan\.json"):
        scanned(tmp_path, Foreign())
