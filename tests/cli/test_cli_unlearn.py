"""`interp unlearn` on a model that has memorized code with secrets: what it writes is what the
functions make, an interrupted run ends with the same bits, and contradictions are one line."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import letters
import pandas as pd
import pytest
import torch
from forks import fork
from safetensors.torch import load_file
from typer.testing import CliRunner

import interp
from interp.cli.app import app
from interp.cli.unlearning import notes_on, read_sets
from interp.data.code_secrets import SecretFile, draw, find_secrets, mark
from interp.memorization.recitation import levels, recitation
from interp.mitigation.removal.stress import duplicate
from interp.mitigation.unlearning.stopping import Stop

SETS = {"forget": 2, "retain": 2, "others": 1, "memorized": 1, "unseen": 3, "twins": 2}


def code() -> Iterator[str]:
    """Files of three statements, with an e-mail address in the second."""
    random = Random(5)
    seed = 0
    while True:
        seed += 1
        one, two = letters.noise(2, 4, seed)
        yield f"{one} = 1\n{two} = '{draw('email', random)}'"


def texts() -> dict[str, list[str]]:
    files = code()
    found = {name: [next(files) for _ in range(count)] for name, count in SETS.items()}
    # a twin is the file itself with another secret
    random = Random(6)
    for number, text in enumerate(found["forget"]):
        (secret,) = find_secrets(text, ["email"])
        found["twins"][number] = text.replace(secret.value, draw("email", random))
    return found


TEXTS = texts()
LEARNED = [text for name in ("forget", "retain", "others", "memorized") for text in TEXTS[name]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlearn")
    learner = letters.subject()
    interp.fit(learner, [learner.encode_all(LEARNED)] * 100, 100, lr=1e-2)
    letters.saved(learner, folder / "model")
    for name, lines in TEXTS.items():
        written(folder / f"{name}.jsonl", lines)
    return folder


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def given(files: Path, *names: str, **other: Any) -> list[Any]:
    """The options of a run: files by their names, or others in their place."""
    arguments: list[Any] = ["unlearn", files / "model", "--kind", "email", "--lr", 1e-3]
    for name in names:
        arguments += [f"--{name}", other.get(name, files / f"{name}.jsonl")]
    return arguments


def unlearned(files: Path, out: Path, *more: Any) -> Any:
    sets = given(files, "forget", "retain", "unseen")
    return run(*sets, "--no-relearn", "--epochs", 25, "--checkpoint", 1, "--out", out, *more)


def marked(subject: interp.Subject, name: str) -> interp.Batch:
    lines = TEXTS[name]
    return mark(subject, [SecretFile("", text, find_secrets(text, ["email"])) for text in lines])


def test_the_files_are_what_the_functions_make(files: Path, tmp_path: Path):
    before = (files / "model" / "model.safetensors").read_bytes()
    names = ("others", "memorized", "twins")
    more: list[Any] = []
    for name in names:
        more += [f"--{name}", files / f"{name}.jsonl"]
    result = unlearned(files, tmp_path, "--held-out", files / "unseen.jsonl", *more, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (files / "model" / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "model",
        "training",
        "training.parquet",
        "removal.parquet",
        "removal.json",
        "removal.png",
    }

    subject = interp.load(files / "model")
    hand = duplicate(subject)
    forget = marked(subject, "forget")
    retain = subject.encode_all(TEXTS["retain"])
    thresholds = levels(recitation(subject, marked(subject, "unseen"), (10,)))
    assert summary["thresholds"] == thresholds
    history = interp.unlearn(hand, forget, retain, stop=Stop(thresholds, epochs=25), lr=1e-3)
    loaded = interp.load(tmp_path / "model")
    saved = dict(loaded.module.named_parameters())
    assert all(torch.equal(saved[name], value) for name, value in hand.module.named_parameters())
    assert loaded.decode(loaded.encode("ab = 'c'")) == "ab = 'c'"
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "training.parquet"), history)
    assert summary["reached"] is history.attrs["reached"] is True
    assert summary["epochs"] == len(history) // 2

    report = interp.removal_report(
        subject,
        hand,
        forget,
        twins=marked(subject, "twins"),
        retain=retain,
        memorized=subject.encode_all(TEXTS["memorized"]),
        others=marked(subject, "others"),
        held_out=subject.encode_all(TEXTS["unseen"]),
        thresholds=thresholds,
        relearning=None,
    )
    found = pd.read_parquet(tmp_path / "removal.parquet")
    pd.testing.assert_frame_equal(found, report.frame)
    about = json.loads((tmp_path / "removal.json").read_text())
    assert about["verdict"] == summary["verdict"]
    assert about["thresholds from"] == "unseen data"
    assert summary["outcome"] == about["outcome"] == report.outcome


def test_a_finished_run_is_not_trained_again_and_another_one_is_refused(
    files: Path, tmp_path: Path
):
    first = unlearned(files, tmp_path, "--json")
    assert first.exit_code == 0, first.output
    weights = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    again = unlearned(files, tmp_path, "--json")
    assert again.stdout == first.stdout
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert_one_error(unlearned(files, tmp_path, "--set", "gamma=0.1"), "state of another training")
    (tmp_path / "training" / "state.safetensors").unlink()
    message = "exists, without the state of its training: give another --out"
    assert_one_error(unlearned(files, tmp_path), message)


@pytest.mark.parametrize("kill_after", [1, 4])
def test_killed_it_ends_with_the_same_bits(files: Path, tmp_path: Path, kill_after: int):
    """It is killed once its state has been written so many times."""
    # A threshold that is not reached: it trains for all epochs.
    more = ("--threshold", "ma=0.0", "--json")
    whole = unlearned(files, tmp_path / "whole", *more)
    assert whole.exit_code == 0, whole.output

    killed = tmp_path / "killed"
    state = killed / "training" / "state.safetensors"
    child = fork(lambda: unlearned(files, killed, *more), tmp_path / "log")
    versions: set[int] = set()
    deadline = time.monotonic() + 120
    while len(versions) < kill_after and time.monotonic() < deadline:
        if state.exists():
            versions.add(state.stat().st_mtime_ns)
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    child.end()
    assert versions
    assert not (killed / "model").exists()

    resumed = unlearned(files, killed, *more)
    assert resumed.exit_code == 0, resumed.output
    expected = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    found = load_file(killed / "model" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for name in ("training", "removal"):
        one = pd.read_parquet(tmp_path / "whole" / f"{name}.parquet")
        other = pd.read_parquet(killed / f"{name}.parquet")
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_without_json_it_prints_the_verdict_and_what_to_do(files: Path, tmp_path: Path):
    sets = given(files, "forget", "retain")
    values = tmp_path / "secrets.txt"
    secrets = [find_secrets(text, ["email"])[0].value for text in TEXTS["forget"]]
    values.write_text("\n".join(secrets) + "\n\n")
    options = ("--secrets", values, "--threshold", "ma=0.01", "--epochs", 1, "--relearn-steps", "2")
    result = run(*sets, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "The removal failed: MA of the forget set" in " ".join(result.stdout.split())
    frame = pd.read_parquet(tmp_path / "out" / "removal.parquet")
    assert set(frame["at"][frame["group"] == "relearning"]) == {0, 2}
    assert "not reached in 1 epochs: raise --lr or --epochs" in result.stderr


def test_what_is_not_measured_is_said(files: Path, tmp_path: Path):
    subject = letters.subject()
    (secret,) = find_secrets(TEXTS["forget"][0], ["email"])
    twice = f"{TEXTS['forget'][0]}\n{'x' * 40} = '{secret.value}'"
    plain = [*TEXTS["unseen"], "nothing to hide"]
    sets = read_sets({"forget": [twice], "unseen": plain}, None, ["email"])
    cut, whole = notes_on(subject, sets, len(TEXTS["forget"][0]))
    assert cut.startswith("1 of 2 secrets of --forget do not lie fully in the first ")
    assert whole.startswith("not every text of --unseen has a secret, so that all of its tokens")
    clean = read_sets({"forget": [twice], "unseen": TEXTS["unseen"]}, None, ["email"])
    assert not notes_on(subject, clean, 512)

    sets_given = given(
        files, "forget", "retain", "unseen", unseen=written(tmp_path / "plain.jsonl", plain)
    )
    options = ("--no-relearn", "--epochs", 1, "--out", tmp_path / "out")
    result = run(*sets_given, *options)
    assert result.exit_code == 0, result.output
    assert f"note: {whole}" in " ".join(result.stderr.split())


def assert_one_error(result: Any, message: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error:") == 1
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("role", "lines", "message"),
    [
        ("forget", [TEXTS["forget"][0], "x = 1"], "text 1 of --forget has no secret (looked for: "),
        ("others", ["x = 1"], "text 0 of --others has no secret (looked for: email)"),
        (
            "retain",
            TEXTS["forget"],
            "text 0 of --retain is text 0 of --forget: it would be trained to be kept",
        ),
        (
            "retain",
            [TEXTS["retain"][0], "# " + TEXTS["forget"][1]],
            "text 1 of --retain contains the secret of text 1 of --forget at characters 17 to 39",
        ),
        ("unseen", TEXTS["forget"], "text 0 of --unseen is text 0 of --forget: the model has seen"),
        ("memorized", TEXTS["forget"][1:], "text 0 of --memorized is text 1 of --forget"),
        ("twins", TEXTS["twins"][:1], "--twins has 1 texts and --forget 2: expected one twin per"),
    ],
)
def test_texts_that_contradict_each_other_are_one_line(
    files: Path, tmp_path: Path, role: str, lines: list[str], message: str
):
    path = written(tmp_path / "given.jsonl", lines)
    names = dict.fromkeys(["forget", "retain", "unseen", role])
    result = run(*given(files, *names, **{role: path}), "--out", tmp_path / "out")
    assert_one_error(result, message)
    secrets = [secret.value for text in TEXTS["forget"] for secret in find_secrets(text, ["email"])]
    assert not any(secret in result.stderr for secret in secrets)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        (["forget", "unseen"], [], "--method codeeraser needs texts that the model should keep"),
        (["forget", "retain"], [], "nothing says when to stop: pass --unseen FILE"),
        (["forget", "retain"], ["--threshold", "ma"], "--threshold 'ma': expected name=value"),
        (["forget", "retain"], ["--threshold", "ma=low"], "ma=low: expected a number"),
        (["forget", "retain"], ["--threshold", "loss=1"], "a threshold of 'loss': expected 'ma'"),
        (
            ["forget", "retain"],
            ["--threshold", "ma=1.0"],
            "the forget set counts as forgotten before any training (ma is 1, at most 1)",
        ),
        (["forget", "unseen"], ["--method", "codeerase"], "nearest: codeeraser"),
        (["forget", "retain", "unseen"], ["--set", "gama=1"], "no option 'gama'"),
        (["forget", "retain", "unseen"], ["--kind", "password"], "'password' is no kind of secret"),
        (
            ["forget", "retain", "unseen"],
            ["--relearn-steps", "a"],
            "expected whole numbers between",
        ),
        (["forget", "retain", "unseen"], ["--relearn-steps", "-3"], "none below 0"),
        (["forget", "retain", "unseen"], ["--relearn-lr", 0], "expected a learning rate above 0"),
        (["forget", "retain", "unseen"], ["--relearn-lr", "nan"], "expected a learning rate above"),
        (["forget", "retain", "unseen"], ["--length", 8], "no token of a secret among its first 8"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    files: Path, tmp_path: Path, sets: list[str], options: list[Any], message: str
):
    assert_one_error(run(*given(files, *sets), *options, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out" / "model").exists()


def test_an_empty_file_of_secrets_is_one_line(files: Path, tmp_path: Path):
    (tmp_path / "secrets.txt").write_text("\n\n")
    sets = given(files, "forget", "retain", "unseen")
    result = run(*sets, "--secrets", tmp_path / "secrets.txt", "--out", tmp_path / "out")
    assert_one_error(result, "secrets.txt is empty: expected one secret per line")


def test_help_shows_an_example_and_all_methods():
    result = run("unlearn", "--help")
    assert result.exit_code == 0
    words = " ".join(result.stdout.replace("│", " ").split())
    assert "Example: interp unlearn path/to/model --forget" in words
    assert "ga, cu, ssga, codeeraser, graddiff, npo, simnpo, rmu" in words
