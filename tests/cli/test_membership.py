"""`interp membership` on a model that was trained on some texts and a reference that was not."""

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
from interp.cli.membership import SCORES, judged

KNOWN = letters.noise(6, 32, seed=1)
UNKNOWN = letters.noise(8, 32, seed=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("membership")
    letters.saved(letters.overfitted(KNOWN), folder / "target")
    letters.saved(letters.subject(), folder / "reference")
    for name, texts in (("known", [*KNOWN, "a"]), ("unknown", UNKNOWN)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["membership", *map(str, arguments)])


def test_members_are_told_from_others(files: Path, tmp_path: Path):
    result = run(
        files / "target",
        files / "known.jsonl",
        "--reference",
        files / "reference",
        "--nonmembers",
        files / "unknown.jsonl",
        "--out",
        tmp_path,
    )
    assert result.exit_code == 0, result.output
    table = judged(pd.read_parquet(tmp_path / "membership.parquet"))
    assert table["score"].tolist() == list(SCORES)
    assert str(table["auc"][0]).startswith("1.000 [0.7")
    assert set(table["tpr at 1.0%"]) == {"-"}  # 8 non-members cannot show 1%
    assert "how well each score tells members" in result.output
    frame = pd.read_parquet(tmp_path / "membership.parquet")
    assert frame["member"].tolist() == [True] * 6 + [False] * 8
    assert frame["beginning"].tolist() == [*KNOWN, *UNKNOWN]
    target, reference = interp.load(files / "target"), interp.load(files / "reference")
    expected = interp.membership(target, KNOWN, reference)
    assert frame["ratio"][:6].tolist() == pytest.approx(expected["ratio"].tolist(), abs=1e-6)
    assert (tmp_path / "membership.png").stat().st_size > 1000


def test_without_non_members_the_likeliest_are_listed(files: Path, tmp_path: Path):
    arguments = [
        files / "target",
        files / "known.jsonl",
        files / "unknown.jsonl",
        "--out",
        tmp_path,
    ]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "without --reference" in result.output
    frame = pd.read_parquet(tmp_path / "membership.parquet")
    best = frame.sort_values("loss", ascending=False)["beginning"].head(6)
    assert sorted(best) == sorted(KNOWN)
    as_json = run(*arguments, "--json")
    found = json.loads(as_json.output.splitlines()[-1])
    assert found["texts"] == 14
    assert found["skipped"] == 1


def test_another_tokenizer_is_one_line(files: Path, tmp_path: Path):
    other = letters.subject()
    other.tokenizer.add_tokens(["ab"])
    letters.saved(other, tmp_path / "other")
    result = run(files / "target", files / "known.jsonl", "--reference", tmp_path / "other")
    assert result.exit_code == 1
    assert "reads other tokens" in result.output
    assert "Traceback" not in result.output
