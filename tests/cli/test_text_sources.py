"""The commands on tables, compressed files and other columns, and `--counts`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import letters
import pandas as pd
import pytest
from drawing import undrawn
from typer.testing import CliRunner

from interp.cli.app import app

TEXTS = letters.noise(14, 32, seed=1)
WINDOW = ("--prefix", 8, "--length", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    letters.saved(letters.overfitted(TEXTS[:2]), folder / "model")
    pd.DataFrame({"body": TEXTS}).to_parquet(folder / "texts.parquet")
    lines = "".join(json.dumps({"body": text}) + "\n" for text in [*TEXTS, TEXTS[0]])
    (folder / "seen.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder


@pytest.fixture(autouse=True)
def nothing_drawn():
    with undrawn():
        yield


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_scan_of_a_column_is_counted_and_used_again(folder: Path, tmp_path: Path):
    given = (folder / "model", folder / "texts.parquet", "--column", "body", "--out", tmp_path)
    seen = ("--counts", folder / "seen.jsonl.gz")
    result = run("scan", *given, *WINDOW, *seen)
    assert result.exit_code == 0, result.output
    frame = pd.read_parquet(tmp_path / "windows.parquet")
    assert frame.groupby("text")["count"].unique().map(list).tolist() == [[2], *[[1]] * 13]
    assert (frame["count_suffix"] >= frame["count"]).all()
    result = run("localize", *given, *WINDOW, *seen)
    assert result.exit_code == 0, result.output
    result = run("localize", *given, *WINDOW)
    assert result.exit_code == 1
    assert "holds another scan (counts was" in result.output


def test_membership_reads_a_column(folder: Path, tmp_path: Path):
    files = (folder / "texts.parquet", folder / "seen.jsonl.gz")
    result = run("membership", folder / "model", *files, "--column", "body", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert len(pd.read_parquet(tmp_path / "membership.parquet")) == 29


@pytest.mark.parametrize("command", ["scan", "localize", "ablate", "membership"])
def test_a_wrong_column_is_one_line_before_the_model_is_loaded(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("interp.loading.load.load", lambda *_, **__: pytest.fail("was loaded"))
    result = run(command, folder / "model", folder / "texts.parquet", "--out", tmp_path)
    assert result.exit_code == 1
    assert "has no column 'text': its columns are body; name one, such as 'body'" in result.stderr
    assert "--column" in result.stderr


def test_wrong_counts_are_named_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("interp.loading.load.load", lambda *_, **__: pytest.fail("was loaded"))
    given = (folder / "texts.parquet", "--column", "body", "--out", tmp_path)
    result = run("scan", folder / "model", *given, "--counts", tmp_path / "none.txt")
    assert result.exit_code == 1
    assert "none.txt does not exist: expected a text file" in result.stderr
