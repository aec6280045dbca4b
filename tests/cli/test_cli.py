"""The commands end to end on a tiny model that has memorized some texts, and what they say when
something is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
from drawing import undrawn
from typer.testing import CliRunner

import interp
from interp.cli.app import app
from interp.data import texts
from interp.loading import load as loading

KNOWN = [
    text[:20] + "[/b] [red]" + text[30:] for text in letters.noise(4, 64, seed=1)
]  # brackets are markup to a terminal library
UNKNOWN = letters.noise(14, 64, seed=2)
WINDOW = ["--prefix", "8", "--length", "8"]
COMMANDS = (
    "scan",
    "merge",
    "localize",
    "ablate",
    "membership",
    "unlearn",
    "demo",
    "reproduce",
    "claims",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return letters.saved(
        letters.overfitted(KNOWN), tmp_path_factory.mktemp("models") / "overfitted"
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "known.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in KNOWN)
    )
    (folder / "unknown.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*UNKNOWN, "short"])
    )
    return folder


@pytest.fixture(scope="module")
def done(model, corpus, tmp_path_factory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """scan, localize and ablate one after the other in one folder, and what each printed as JSON."""
    out = tmp_path_factory.mktemp("out") / "run"
    units = ["--units", out / "units.json"]
    printed = {}
    for command, *options in (
        ["scan"],
        ["localize", "--top", "0.1"],
        ["ablate", *units],
        ["ablate", "--fractions", "0.05,0.2", "--at", "0.2"],
    ):
        result = run(command, model, corpus, "--out", out, *WINDOW, *options, "--json")
        assert result.exit_code == 0, result.output
        printed[command + ("" if "--fractions" not in options else " scores")] = json.loads(
            result.stdout
        )
    return out, printed


@pytest.fixture(autouse=True)
def nothing_drawn():
    """The figures of `done`, which is made before, are drawn; no others are."""
    with undrawn():
        yield


def run(*arguments: Any):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_scan_finds_the_texts_known_by_heart(done):
    out, printed = done
    frame = pd.read_parquet(out / "windows.parquet")
    assert printed["scan"] == {
        "windows": 18 * 7, "exact": int(frame["exact"].sum()), "accuracy": round(frame["accuracy"].mean(), 4), "texts": 19, "skipped": 1,
        "device": "cpu", "out": str(out), "start_tokens": "none", "discoverable_n100_p50": float((1 - (1 - np.exp(frame["log_p"])) ** 100 >= 0.5).mean()),
    }  # fmt: skip
    assert set(frame[frame["exact"]]["text"]) == {0, 1, 2, 3}
    assert frame["exact"].sum() > 20
    best = pd.read_csv(out / "passages.csv").iloc[0]
    assert best["suffix"] in KNOWN[best["text"]]
    assert (out / "scan.png").exists()


def test_shares_of_a_scan_are_joined_to_what_one_scan_prints_and_writes(
    done: Any, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, printed = done
    before = run("merge", tmp_path, "--json")
    assert before.exit_code == 1
    assert "holds no shares" in before.output
    scan = ["scan", model, corpus, "--out", tmp_path, *WINDOW]
    first = run(*scan, "--num-shards", 2, "--shard-index", 1, "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["share"] == "1 of 2"
    assert "takes share 1 of 2" in first.stderr
    assert not (tmp_path / "windows.parquet").exists()
    missing = run("merge", tmp_path)
    assert missing.exit_code == 1
    assert "1 of 2 shares are missing: 0" in missing.output
    # Of an array of which one job is started again, SLURM counts that one alone.
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "1")
    for index, message in (
        (0, "holds shares of a scan, such as 1-of-2"),
        (1, "share 1 of 1: expected"),
    ):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        again = run(*scan)
        assert again.exit_code == 1
        assert message in again.output
        assert "give --num-shards, the number of all" in " ".join(again.output.split())
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    # As SLURM and torchrun say it.
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("RANK", "0")
    assert run(*scan).exit_code == 0
    merged = run("merge", tmp_path, "--json")
    assert merged.exit_code == 0, merged.output
    said = {**printed["scan"], "out": str(tmp_path)}
    for name in ("device", "start_tokens"):
        del said[name]
    assert json.loads(merged.stdout) == said
    names = ["text", "start", "exact", "matched", "suffix", "log_p"]
    frames = [pd.read_parquet(folder / "windows.parquet")[names] for folder in (tmp_path, out)]
    pd.testing.assert_frame_equal(*frames, rtol=1e-4)
    assert (tmp_path / "scan.png").exists()
    # The next step takes what was joined, and measures no window again.
    with monkeypatch.context() as patch:
        patch.setattr(
            "interp.memorization.window_scanner.teacher_force", lambda *_: pytest.fail("scanned")
        )
        localized = run("localize", model, corpus, "--out", tmp_path, *WINDOW)
    assert localized.exit_code == 0, localized.output
    wrong = run(*scan, "--num-shards", 2, "--shard-index", 2)
    assert wrong.exit_code == 1
    assert "share 2 of 2: expected a number from 0 to 1" in wrong.output


def test_a_scan_that_keeps_some_rows_says_what_one_of_all_rows_does(
    done: Any, model: Path, corpus: Path, tmp_path: Path
):
    out, printed = done
    scan = ["scan", model, corpus, *WINDOW, "--json", "--keep", "exact==1"]
    one = run(*scan, "--out", tmp_path / "one")
    assert one.exit_code == 0, one.output
    for index in range(2):
        share = ["--num-shards", 2, "--shard-index", index]
        assert run(*scan, "--out", tmp_path / "two", *share).exit_code == 0
    two = run("merge", tmp_path / "two", "--json")
    assert two.exit_code == 0, two.output
    whole = pd.read_parquet(out / "windows.parquet")
    extracted = whole[whole["exact"]].reset_index(drop=True)
    for result, folder in ((one, tmp_path / "one"), (two, tmp_path / "two")):
        said = json.loads(result.stdout)
        for name in ("windows", "exact", "accuracy", "texts", "skipped"):
            assert said[name] == printed["scan"][name]
        assert (said["kept"], said["keep"]) == (len(extracted), "exact==1")
        names = ["text", "start", "exact", "matched", "suffix", "log_p"]
        kept = pd.read_parquet(folder / "windows.parquet")
        pd.testing.assert_frame_equal(kept[names], extracted[names], rtol=1e-4)
        documents = pd.read_parquet(folder / "documents.parquet").set_index("text")
        assert documents["exact"].to_dict() == whole.groupby("text")["exact"].sum().to_dict()
        assert (folder / "histograms.csv").exists()
    for keep, message in (("exactly==1", "did you mean 'exact'"), ("count>1", "needs counts")):
        wrong = run("scan", model, corpus, "--keep", keep, "--out", tmp_path / "wrong")
        assert wrong.exit_code == 1
        assert message in wrong.output
    # The folder has not all rows that the next step needs.
    localized = run("localize", model, corpus, "--out", tmp_path / "one", *WINDOW)
    assert localized.exit_code == 1
    assert "keep was 'exact==1' and is None" in localized.output


def test_localize_writes_the_units_that_ablate_takes(done):
    out, printed = done
    units, scores = (
        interp.Units.load(out / "units.json"),
        interp.UnitScores.load(out / "scores.parquet"),
    )
    assert printed["localize"] == {
        "method": "gradient_x_activation",
        "units": 10,
        "of": 96,
        "device": "cpu",
        "out": str(out),
    }
    assert len(scores) == 96
    assert units == scores.top(0.1)


def test_ablate_measures_beside_the_controls(done):
    out, printed = done
    frame = pd.read_parquet(out / "drop.parquet")
    assert set(frame["selection"]) == {"selection", "random", "lowest", "smallest"}
    assert sorted(set(frame["fraction"])) == [0.05, 0.2]
    for name in ("ablate", "ablate scores"):
        assert {"verdict", "beats_random", "out"} <= printed[name].keys()
    assert printed["ablate"]["verdict"].startswith("Ablating 10 units (10.42%)")
    assert printed["ablate scores"]["verdict"].startswith("Ablating 19 units (20%)")
    assert (
        json.loads((out / "drop.json").read_text())["verdict"]
        == printed["ablate scores"]["verdict"]
    )
    assert (out / "drop.png").exists()


def test_people_get_lines_and_a_table_with_every_letter_of_the_text(done, model, corpus):
    out, _ = done
    result = run("scan", model, corpus, "--out", out, *WINDOW)
    assert result.exit_code == 0, result.output
    assert "most memorized passages" in result.stdout
    assert f"windows: {18 * 7}" in result.stdout
    assert "[/b]" in result.stdout


def test_ablate_shows_people_a_table_that_a_terminal_has_room_for(done, model, corpus, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "run")
    units = ["--units", out / "units.json"]
    result = run("ablate", model, corpus, "--out", out, *WINDOW, *units)
    assert result.exit_code == 0, result.output
    _, _, table = result.stdout.partition("after ablation")
    assert all(
        word in table
        for word in ("selection", "random", "memorized", "accuracy", "control", "loss")
    )
    assert "…" not in table


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_scan_without_an_extraction_says_what_to_try(model, corpus, tmp_path, as_json):
    result = run("scan", model, corpus / "unknown.jsonl", "--out", tmp_path, *WINDOW, *as_json)
    assert result.exit_code == 0, result.output
    assert ("nothing was extracted: try" in result.stderr) == (not as_json)


@pytest.mark.parametrize("emulates", [True, False])
def test_a_slow_precision_is_named(model, corpus, tmp_path, monkeypatch, emulates):
    monkeypatch.setattr("interp.cli.precision.cpu_emulates_bfloat16", lambda: emulates)
    scan = ["scan", model, corpus, "--out", tmp_path, *WINDOW, "--json"]
    result = run(*scan, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert ("--dtype float32" in result.stderr) == emulates


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example: +interp {command} ", " ".join(result.stdout.split()))


def test_without_a_command_the_commands_are_listed():
    assert all(command in run().output for command in COMMANDS)


def assert_one_error(result: Any, match: str) -> None:
    assert result.exit_code == 1
    assert not result.stdout
    assert re.fullmatch(rf"error: [^\n]*{match}[^\n]*\n", result.stderr), result.stderr


@pytest.mark.parametrize("command", ["scan", "localize", "ablate"])
def test_a_device_is_chosen_and_one_that_is_not_there_is_named_before_any_work(
    command, model, corpus, tmp_path
):
    for device in ("xpu:7", "gpu"):
        result = run(command, model, corpus, "--out", tmp_path, *WINDOW, "--device", device)
        assert_one_error(result, f"device='{device}'.*cpu")
    assert not (tmp_path / "windows.parquet").exists()


@pytest.mark.parametrize("command", ["scan", "localize", "ablate"])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_model_that_is_not_there_is_one_line(command, as_json, corpus, tmp_path):
    assert_one_error(
        run(command, tmp_path / "no" / "model", corpus, "--out", tmp_path, *as_json),
        "model does not exist",
    )


@pytest.mark.parametrize("command", ["scan", "localize", "ablate"])
def test_a_text_that_is_not_there_is_one_line_before_the_model_is_loaded(
    command, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "interp.loading.load.load", lambda *_, **__: pytest.fail("the model was loaded")
    )
    assert_one_error(
        run(command, model, tmp_path / "no.txt", "--out", tmp_path), "no.txt does not exist"
    )
    (tmp_path / "empty").mkdir()
    assert_one_error(
        run(command, model, tmp_path / "empty", "--out", tmp_path), "empty holds no text file"
    )


@pytest.mark.parametrize("command", ["scan", "localize", "ablate"])
def test_a_command_enters_its_texts_once_and_before_the_model(
    command, model, corpus, tmp_path, monkeypatch
):
    entered: list[str] = []

    def noted(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: (entered.append(name), function(*args, **kwargs))[1]

    monkeypatch.setattr("interp.data.texts.read_texts", noted("texts", texts.read_texts))
    monkeypatch.setattr("interp.data.texts.texts_of", noted("file", texts.texts_of))
    monkeypatch.setattr("interp.loading.load.load", noted("model", loading.load))
    quick = ["--fractions", "0.1,0.2"] if command == "ablate" else []
    result = run(command, model, corpus, "--out", tmp_path / "out", *WINDOW, *quick)
    assert result.exit_code == 0, result.output
    assert entered == ["texts", "model", "file", "file"]


@pytest.mark.parametrize("command", ["scan", "localize", "ablate"])
def test_an_out_that_is_a_file_is_one_line(command, model, corpus, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_error(
        run(command, model, corpus, "--out", tmp_path / "file"), "cannot write to .*file"
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_truncated_weights_are_one_line(model, corpus, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(
            file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None]
        )
    assert_one_error(
        run("scan", broken, corpus, "--out", tmp_path / "out"),
        "model.safetensors is truncated or damaged",
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--fractions", "a,b"], "--fractions 'a,b': expected numbers between commas"),
        (["--fractions", "0.1", "--at", "0.2"], "--at 0.2 is not among --fractions 0.1"),
        (["--fractions", "0.1,0"], "--fractions 0.1,0: expected shares .* above 0 and below 1"),
        (["--fractions", "1.0"], "below 1, got 1"),
        (["--fractions", "nan"], "below 1, got nan"),
        (["--units", "UNITS", "--at", "0.1"], "--at chooses among --fractions"),
        (["--units", "DAMAGED"], "damaged.json holds no units"),
        (["--units", "MISSING"], "No such file"),
    ],
)
def test_wrong_choices_for_ablate_are_one_line_before_any_work(options, match, done, tmp_path):
    (tmp_path / "damaged.json").write_text('{"widths": 3}')
    files = {
        "UNITS": done[0] / "units.json",
        "DAMAGED": tmp_path / "damaged.json",
        "MISSING": tmp_path / "missing.json",
    }
    assert_one_error(
        run(
            "ablate",
            "no-such-model",
            "no-such-text",
            "--out",
            tmp_path,
            *(files.get(o, o) for o in options),
        ),
        match,
    )


@pytest.mark.parametrize("top", ["0", "1.5", "nan", "-0.1"])
def test_a_top_share_that_cannot_be_taken_is_refused_before_any_work(top, tmp_path):
    result = run("localize", "no-such-model", "no-such-text", "--out", tmp_path, "--top", top)
    assert result.exit_code == 2
    said = " ".join(re.sub("[^ -~]", " ", result.stderr).split())
    assert f"'--top': expected a share above 0, and at most 1, got {top}" in said


def test_a_seed_that_no_generator_takes_is_refused_before_any_work(tmp_path):
    given = ("no-such-model", "--candidate", "no-text", "--reference", "no-text", "--seed", -1)
    result = run("dataset-inference", *given, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--seed" in result.stderr


@pytest.mark.parametrize("command", ["localize", "ablate"])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--method", "zero_aut"], "nearest: zero_out"),
        (
            ["--method", "slimming", "--set", "step=3"],
            "slimming has no option 'step'.*nearest: steps",
        ),
        (["--set", "steps"], "--set 'steps': expected name=value"),
    ],
)
def test_methods_and_options_that_do_not_exist_are_one_line_before_any_work(
    command, options, match, tmp_path
):
    assert_one_error(
        run(command, "no-such-model", "no-such-text", "--out", tmp_path, *options), match
    )


@pytest.mark.parametrize(
    ("site", "options", "top"),
    [
        ("neurons", ["--method", "slimming", "--set", "steps=3", "--set", "pressure=0.2"], 0.1),
        (
            "heads",
            [
                "--method",
                "integrated_gradients",
                "--set",
                "positions=all",
                "--set",
                "rule=gauss",
                "--set",
                "points=2",
            ],
            0.25,
        ),
        ("blocks", ["--method", "zero_out"], 0.5),
    ],
)
def test_every_kind_of_unit_goes_from_localize_to_ablate(
    site, options, top, done, model, corpus, tmp_path
):
    out = tmp_path / "run"
    shutil.copytree(done[0], out)
    result = run(
        "localize",
        model,
        corpus,
        "--out",
        out,
        *WINDOW,
        "--site",
        site,
        "--top",
        top,
        *options,
        "--json",
    )
    assert result.exit_code == 0, result.output
    units = interp.Units.load(out / "units.json")
    assert {s.point for s in units.sites} == {"block_out" if site == "blocks" else site}
    assert pd.read_csv(out / "blocks.csv")["share"].sum() == pytest.approx(1)
    assert (out / "units.png").exists()
    ablated = run(
        "ablate", model, corpus, "--out", out, *WINDOW, "--units", out / "units.json", "--json"
    )
    assert ablated.exit_code == 0, ablated.output
    printed = json.loads(ablated.stdout)
    assert printed["verdict"].startswith(f"Ablating {len(units)} units")
    assert printed["judged_on_other_wording"] is True


def test_nothing_extracted_is_said_plainly(model, tmp_path):
    (tmp_path / "a.txt").write_text(UNKNOWN[0])
    result = run("localize", model, tmp_path / "a.txt", "--out", tmp_path / "out", *WINDOW)
    assert result.exit_code == 1
    assert "error: none of 7 windows was extracted" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_passed_over_is_one_line_beside_what_scripts_read(model, tmp_path):
    for name in ("known.txt", "code.c", "more.c", ".git/config"):
        (tmp_path / "mixed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixed" / name).write_text(KNOWN[0])
    result = run("scan", model, tmp_path / "mixed", "--out", tmp_path / "out", *WINDOW, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["texts"] == 1
    notes = [line for line in result.stderr.splitlines() if "passed over" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: 3 passed over (2 .c, 1 hidden)")
