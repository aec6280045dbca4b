"""`interp entropy-law` and `interp dataset-inference` on a model that was trained on some texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import letters
import pandas as pd
import pytest
from typer.testing import CliRunner

import interp
from interp.cli.app import app
from interp.memorization.entropy.scored_windows import score_all

SEEN = letters.noise(20, 64, seed=1)
UNSEEN = letters.noise(20, 64, seed=2)
LATER = letters.noise(20, 64, seed=3)
WINDOWS = ("--prefix", "8", "--length", "8")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entropy")
    letters.saved(letters.overfitted(SEEN), folder / "model")
    for name, texts in (("seen", [*SEEN, "short"]), ("unseen", UNSEEN), ("later", LATER)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)
        pd.DataFrame({"body": texts}).to_parquet(folder / f"{name}.parquet")
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def entropy_law(files: Path, *more: Any) -> Any:
    few = ("--min-windows", 2, "--rarefied-to", 2, "--shuffles", 5)
    return run("entropy-law", files / "model", *WINDOWS, *few, *more)


def inference(files: Path, *more: Any) -> Any:
    data = ("--reference", files / "seen.jsonl", "--candidate", files / "unseen.jsonl")
    few = ("--windows-per-set", 20, "--sets", 10)
    return run("dataset-inference", files / "model", *data, *WINDOWS, *few, *more)


def test_the_law_of_files_is_that_of_the_function(files: Path, tmp_path: Path):
    both = (files / "seen.jsonl", files / "unseen.jsonl")
    result = entropy_law(files, *both, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    fits = pd.read_parquet(tmp_path / "fits.parquet")
    subject = interp.load(files / "model")
    expected = interp.entropy_law(
        subject, [*SEEN, *UNSEEN], 8, 8, min_windows=2, rarefied_to=2, shuffles=5
    )
    pd.testing.assert_frame_equal(fits, expected.fits)
    about = json.loads((tmp_path / "entropy_law.json").read_text())
    assert (about["windows"], about["skipped"], about["texts"]) == (280, 1, 41)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {
        "levels.parquet",
        "fits.parquet",
        "baselines.parquet",
        "entropy_law.json",
        "entropy_law.png",
    }
    assert "rarefied" in result.output


def test_json_is_one_object_without_nan(files: Path, tmp_path: Path):
    result = entropy_law(files, files / "seen.jsonl", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads(result.stdout, parse_constant=refuse)
    assert summary["windows"] == 140
    # what was memorized has one level, of which there is no law
    assert summary["rarefied r"] is None


def test_unseen_texts_are_told_apart(files: Path, tmp_path: Path):
    result = inference(files, "--unseen", files / "later.jsonl", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(tmp_path / "statistics.parquet").set_index("statistic")
    assert table.loc["edit_distance", "verdict"] == "not a member"
    # every window of the reference has score 0, so that there is no line and no intercept
    assert table.loc["intercept", "verdict"] == "cannot tell"
    assert json.loads((tmp_path / "dataset_inference.json").read_text())["verdict"] == "cannot tell"
    assert (tmp_path / "dataset_inference.png").stat().st_size > 1000
    assert len(pd.read_parquet(tmp_path / "sets.parquet")) == 30


def test_without_unseen_texts_it_says_what_is_not_known(files: Path, tmp_path: Path):
    result = inference(files, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "without --unseen" in result.stderr
    table = pd.read_parquet(tmp_path / "statistics.parquet").set_index("statistic")
    assert table.loc["loss", "verdict"] == "unlike it"
    scored = score_all(interp.load(files / "model"), SEEN, 8, 8)
    assert table.loc["edit_distance", "reference"] == scored.scores.mean()


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("entropy-law", ["seen.parquet"], "no column 'text'"),
        ("entropy-law", ["missing.jsonl"], "missing.jsonl"),
        ("entropy-law", ["seen.jsonl", "--prefix", 60, "--length", 30], "shorter than 90 tokens"),
        ("entropy-law", ["seen.jsonl", "--rarefied-to", 9], "rarefied_to=9"),
        ("dataset-inference", [], "expected at least 600"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    files: Path, tmp_path: Path, command: str, arguments: list[Any], message: str
):
    given = [files / each if "." in str(each) else each for each in arguments]
    if command == "dataset-inference":
        given = ["--reference", files / "seen.jsonl", "--candidate", files / "unseen.jsonl"]
    windows = [] if "--prefix" in arguments else WINDOWS
    result = run(command, files / "model", *given, *windows, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("error:") == 1
    assert message in " ".join(result.stderr.split())


def test_a_table_is_read_by_its_column(files: Path, tmp_path: Path):
    result = entropy_law(files, files / "seen.parquet", "--column", "body", "--out", tmp_path)
    assert result.exit_code == 0, result.output
