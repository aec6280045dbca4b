"""`interp cartography` on a history by hand and on one of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp.cli.app import app
from interp.memorization.dynamics import LossHistory
from interp.memorization.loss_recorder import CheckpointRecorder
from interp.mitigation.reweighting import quadrants
from interp.subject.batch import Batch
from interp.training.fit import epochs, fit

# Three moments of twelve examples: number 3 is learned most, number 5 is lost again.
LOSSES = np.tile(np.array([[5.0], [4.5], [4.4]]), 12)
LOSSES[:, 3] = [5.0, 1.0, 0.1]
LOSSES[:, 5] = [6.0, 4.0, 6.0]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["cartography", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    accuracy = (LOSSES < 2).astype(float)
    history = LossHistory(LOSSES, np.array([10, 20, 30]), accuracy=accuracy)
    return history.save(tmp_path / "history.safetensors")


def test_the_largest_drop_comes_first(file: Path, tmp_path: Path):
    ended = run(file, "--top", 2, "--figure", tmp_path / "map.png", "--save", tmp_path / "all.csv")
    assert ended.exit_code == 0, ended.output
    assert "examples: 12" in ended.output
    assert "hotspot, memorized" in ended.output
    assert (tmp_path / "map.png").stat().st_size > 1000
    table = pd.read_csv(tmp_path / "all.csv")
    scores = LossHistory.load(file).frame()
    pd.testing.assert_frame_equal(table[scores.columns], scores)
    regions = quadrants(scores["difficulty"].to_numpy(), scores["loss_drop"].to_numpy())
    assert table["quadrant"].tolist() == regions.tolist()


@pytest.mark.parametrize(
    ("score", "first"),
    [("loss_drop", 3), ("forget_events", 5), ("relative_forget_events", 5), ("correctness", 3)],
)
def test_scores_rank_by_their_names(file: Path, score: str, first: int):
    ended = run(file, "--score", score, "--top", 3, "--json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found["score"] == score
    assert found["top"][0]["example"] == first
    assert len(found["top"]) == 3
    assert score in found["top"][0]


def test_a_score_of_zeros_is_said_to_mean_nothing(tmp_path: Path):
    falling = LossHistory(LOSSES[:, :5], np.array([10, 20, 30])).save(tmp_path / "falling")
    ended = run(falling, "--score", "forget_events")
    assert ended.exit_code == 0, ended.output
    assert "is 0 for all examples" in ended.stderr


def test_mistakes_are_one_line(file: Path, tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("no history")
    without = LossHistory(LOSSES, np.array([10, 20, 30])).save(tmp_path / "without")
    for arguments, message in [
        ((file, "--score", "los_drop"), "nearest: loss_drop"),
        ((without, "--score", "forgetfulness"), "accuracy was not recorded"),
        ((text,), "is not a loss history"),
        ((tmp_path / "absent",), "does not exist"),
        ((file, "--figure", tmp_path / "map"), "expected a name ending in"),
    ]:
        ended = run(*arguments)
        assert ended.exit_code == 1
        assert message in ended.stderr, ended.stderr
        assert ended.stderr.count("\n") == 1


def test_what_is_repeated_in_a_training_is_on_top(tmp_path: Path):
    """Ten rows of letters, of which one is there eight times."""
    subject = letters.subject()
    ids = [subject.encode(text) for text in letters.noise(10, 16, seed=3)]
    once = torch.tensor(ids)
    train = Batch(torch.cat([once, once[:1].repeat(7, 1)]))
    recorder = CheckpointRecorder(subject, train, moments=range(0, 61, 10))
    fit(subject, epochs(train, 8), 60, lr=3e-3, callback=recorder)
    file = recorder.history.save(tmp_path / "history.safetensors")
    found = json.loads(run(file, "--top", 8, "--json").stdout)
    assert {row["example"] for row in found["top"]} == {0, *range(10, 17)}
    assert isinstance(subject, interp.Subject)
