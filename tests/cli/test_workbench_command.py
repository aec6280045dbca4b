"""`interp workbench` writes a notebook that runs."""

from __future__ import annotations

import json
from pathlib import Path

import letters
import pytest
from typer.testing import CliRunner

from interp.cli.app import app
from interp.data.texts import read_texts

TEXTS = letters.noise(8, 32, seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return letters.saved(letters.overfitted(TEXTS[:4]), folder / "model")


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, words)))
    return result.exit_code, result.output


def test_the_notebook_runs_and_shows_a_workbench(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, text in enumerate([*TEXTS, *(text[::-1] for text in TEXTS)]):
        (texts / f"{number}.txt").write_text(text)
    out = tmp_path / "w.ipynb"
    sizes = ("--prefix", 8, "--length", 8, "--stride", 16)
    code, said = run("workbench", model, texts, "--out", out, *sizes, "--no-open")
    assert code == 0, said
    monkeypatch.chdir("/")  # the notebook may stand anywhere
    names: dict[str, object] = {"display": lambda _: None}
    for cell in json.loads(out.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = cell["source"].replace("%matplotlib inline", "")
            exec(source, names)
    bench = names["bench"]
    assert type(bench).__name__ == "Workbench"
    assert bench.space.scored_apart  # type: ignore[attr-defined]


def sources_in(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """What the notebook reads, when it is run in another folder."""
    (cell,) = [c for c in json.loads(notebook.read_text())["cells"] if "interp.scan" in c["source"]]
    monkeypatch.chdir("/")
    read: list[object] = []
    names = {"interp": letters, "subject": None, "read_texts": lambda *given: read.append(given)}
    monkeypatch.setattr(letters, "scan", lambda *_, **__: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        exec(cell["source"], names)
    return read[0]


def test_sources_are_those_of_scan_and_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "runs [1]"
    (place / "corpus").mkdir(parents=True)
    for name in ("b", "a"):
        (place / "corpus" / f"{name}.txt").write_text(name)
    looked_for: list[str] = []
    monkeypatch.setattr("interp.data.texts.hub_texts", lambda path, _: looked_for.append(str(path)))
    monkeypatch.chdir(place)
    hub = "some-user/name-v1.5:en@train"
    out = place / "w.ipynb"
    code, said = run("workbench", "model", "corpus/*.txt", hub, "--out", out, "--no-open")
    assert code == 0, said
    assert looked_for == [hub]
    ((pattern, same_hub), column) = sources_in(out, monkeypatch)  # type: ignore[misc]
    assert (same_hub, column) == (hub, "text")
    assert list(read_texts([pattern])) == ["a", "b"]


def test_a_column_or_pattern_of_nothing_is_named_before_the_notebook_is_written(tmp_path: Path):
    (tmp_path / "a.csv").write_text("body\none\n")
    for source, said in (
        (tmp_path / "a.csv", "has no column 'text'"),
        (tmp_path / "*.parquet", "matches no file"),
    ):
        code, output = run("workbench", "model", source, "--out", tmp_path / "n.ipynb", "--no-open")
        assert code == 1
        assert said in " ".join(output.split())
    assert not (tmp_path / "n.ipynb").exists()


def test_bad_input_is_one_line(model: Path, tmp_path: Path):
    there = tmp_path / "w.ipynb"
    there.write_text("{}")
    for words, said in (
        ((model, tmp_path, "--out", there), "is there"),
        ((model, tmp_path, "--out", tmp_path / "w.py"), "expected the name of a notebook"),
        ((model, tmp_path, "--dtype", "float99", "--out", tmp_path / "n.ipynb"), "nearest: float"),
        ((model, tmp_path, "--tokenizer", there, "--out", tmp_path / "n.ipynb"), "image models"),
        ((model, "nothere/", "--out", tmp_path / "n.ipynb"), "nothere does not exist"),
        ((model, tmp_path / "no.txt", "--out", tmp_path / "n.ipynb"), "no.txt does not exist"),
    ):
        code, output = run("workbench", *words, "--no-open")
        assert code == 1
        assert said in " ".join(output.split())
    assert there.read_text() == "{}"
