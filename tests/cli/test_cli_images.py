"""The commands end to end on tiny image models that have memorized some digits, and what they say
when something is wrong."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from drawing import undrawn
from PIL import Image
from typer.testing import CliRunner

import interp
from interp.cli import pipeline
from interp.cli.app import app
from interp.data.image_files import write_images
from interp.data.images import Images, digits, plant
from interp.memorization import window_scanner
from interp.memorization.halves import halve
from interp.models.image.checkpoints import save_image_model
from interp.models.image.image_model import ImageModel
from interp.models.image.rar import RAR, RARConfig
from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig
from interp.models.image.tokenizers import fit_tokenizer
from interp.models.image.var import VAR, VARConfig

SPLIT = plant(digits(), planted=16, duplicates=1, background=1, held_out=45, tokenizer=200, seed=0)
MEMBERS, OTHERS = SPLIT.planted, SPLIT.held_out
EVERY = Images.join([MEMBERS, OTHERS])
PREFIX = {"VAR": 5, "RAR": 3}  # from which most members can be told apart
BETWEEN = {"VAR": 2, "RAR": None}  # a prefix that cuts a scale


class Toy(NamedTuple):
    """A saved model, its images in two files, and how long a prefix tells them apart."""

    kind: str
    model: Path
    files: tuple[Path, Path]

    @property
    def prefix(self) -> int:
        return PREFIX[self.kind]

    @property
    def start(self) -> list[Any]:
        """What all commands begin with."""
        return [self.model, *self.files, "--prefix", self.prefix]


def trained(kind: str) -> ImageModel:
    """A model that has seen nothing but the members."""
    sizes: dict[str, Any] = {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "hidden": 64,
        "codes": 64,
        "classes": 10,
    }
    shape: dict[str, Any] = {
        "codes": 64,
        "code_width": 8,
        "width": 16,
        "multipliers": (1, 2),
        "blocks": 1,
        "channels": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "VAR":
            residual = ResidualVQ(ResidualVQConfig(sides=(1, 2, 4), **shape))
            fit_tokenizer(residual, SPLIT.tokenizer.pixels, 30, batch_size=16)
            model: ImageModel = VAR(VARConfig(sides=(1, 2, 4), code_width=8, **sizes), residual)
        else:
            raster = RasterVQ(RasterVQConfig(grid=4, **shape))
            fit_tokenizer(raster, SPLIT.tokenizer.pixels, 30, batch_size=16)
            model = RAR(RARConfig(grid=4, **sizes), raster)
        batch = model.encode(MEMBERS.pixels, MEMBERS.labels)
        interp.fit(
            interp.load(model),
            [batch] * 150,
            150,
            8e-3,
            betas=(0.9, 0.95),
            warmup=10,
            decay=140,
            clip=1.0,
        )
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Toy]:
    """Makes one toy of each kind, once."""

    @functools.cache
    def make(kind: str) -> Toy:
        folder = tmp_path_factory.mktemp(kind)
        files = (
            write_images(MEMBERS, folder / "members.npz"),
            write_images(OTHERS, folder / "others.npz"),
        )
        return Toy(kind, save_image_model(trained(kind), folder / "model"), files)

    return make


@pytest.fixture(scope="module", params=["VAR", "RAR"])
def toy(request, saved) -> Toy:
    return saved(request.param)


@pytest.fixture(scope="module")
def var(saved) -> Toy:
    """For what is the same for both kinds."""
    return saved("VAR")


Done = tuple[Path, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def finished(saved, tmp_path_factory) -> Callable[[str], Done]:
    """scan, localize and ablate one after the other in one folder, and what each printed as JSON;
    once for each kind."""

    @functools.cache
    def make(kind: str) -> Done:
        toy, out, printed = saved(kind), tmp_path_factory.mktemp("out") / "run", {}
        for name, command, *options in (
            ["scan", "scan"],
            ["localize", "localize", "--top", "0.1"],
            ["scores", "ablate", "--fractions", "0.05,0.2", "--at", "0.2"],
            ["units", "ablate", "--units", out / "units.json"],
        ):
            with undrawn():
                result = run(command, *toy.start, "--out", out, *options, "--json")
            assert result.exit_code == 0, result.output
            printed[name] = json.loads(result.stdout)
            if command == "ablate":
                shutil.copy(out / "drop.parquet", out / f"drop-{name}.parquet")
        return out, printed

    return make


@pytest.fixture(scope="module")
def done(toy, finished) -> Done:
    return finished(toy.kind)


@pytest.fixture(scope="module")
def var_done(var, finished) -> Done:
    return finished(var.kind)


@pytest.fixture(autouse=True)
def nothing_drawn():
    with undrawn():
        yield


@pytest.fixture(scope="module")
def subject(toy) -> interp.Subject:
    return interp.load(toy.model)


def scanned(subject: interp.Subject, prefix: int) -> pd.DataFrame:
    """By the library alone."""
    module: Any = subject.module
    return interp.scan(subject, module.encode(EVERY.pixels, EVERY.labels, prefix))


def run(*arguments: Any):
    return CliRunner().invoke(app, list(map(str, arguments)))


def without_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Whose tuples come back from a file as arrays."""
    return frame.assign(tokens=frame["tokens"].map(list)).drop(columns="groups", errors="ignore")


def test_scan_measures_each_image_once_given_its_class_as_the_library_does(toy, done, subject):
    out, printed = done
    frame = scanned(subject, toy.prefix)
    pd.testing.assert_frame_equal(
        without_steps(pd.read_parquet(out / "windows.parquet")),
        without_steps(frame),
        check_exact=False,
    )
    assert printed["scan"] == {
        "windows": 61, "exact": int(frame["exact"].sum()), "accuracy": round(frame["accuracy"].mean(), 4), "images": 61, "skipped": 0,
        "device": "cpu", "out": str(out), "discoverable_n100_p50": float(interp.discoverable(frame["log_p"].to_numpy(), 100, 0.5).mean()),
    }  # fmt: skip
    assert frame["given_label"].tolist() == EVERY.labels.tolist()
    assert frame["prefix"].eq(toy.prefix).all()


def test_members_are_extracted_and_no_other_image_is(toy, done):
    frame = pd.read_parquet(done[0] / "windows.parquet")
    assert set(frame[frame["exact"]]["text"]) <= set(range(16))
    assert frame["exact"].sum() >= 6
    best = pd.read_csv(done[0] / "passages.csv").iloc[0]
    assert best["exact"]
    assert best["text"] < 16


def test_without_a_prefix_the_class_alone_is_given(toy, subject, tmp_path):
    result = run("scan", toy.model, *toy.files, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    frame = pd.read_parquet(tmp_path / "windows.parquet")
    assert frame["prefix"].eq(0).all()
    assert json.loads(result.stdout)["exact"] == scanned(subject, 0)["exact"].sum()
    # what the class alone tells is one image a class
    assert frame[frame["exact"]]["given_label"].is_unique


def test_localize_scores_half_of_the_images_as_the_library_does(toy, done, subject):
    out, printed = done
    scores = interp.localize(
        subject, *halve(scanned(subject, toy.prefix)).scored, method="gradient_x_activation"
    )
    stored = interp.UnitScores.load(out / "scores.parquet")
    assert printed["localize"] == {
        "method": "gradient_x_activation",
        "units": 13,
        "of": 128,
        "device": "cpu",
        "out": str(out),
    }
    assert all(np.allclose(stored[site], scores[site], atol=1e-6) for site in scores.values)
    assert interp.Units.load(out / "units.json") == stored.top(0.1)
    assert pd.read_csv(out / "blocks.csv")["share"].sum() == pytest.approx(1)


@pytest.mark.parametrize("given", ["scores", "units"])
def test_ablate_judges_on_the_other_half_and_damage_on_images_of_neither(toy, done, subject, given):
    out, printed = done
    halves = halve(scanned(subject, toy.prefix))
    parts = [*halves.scored, *halves.judged, halves.held_out]
    texts = [text for part in parts for text in part["text"]]
    assert len(set(texts)) == len(texts)
    stored = interp.UnitScores.load(out / "scores.parquet")
    selection, choice = (
        (stored, {"fractions": [0.05, 0.2], "at": 0.2})
        if given == "scores"
        else (stored.top(0.1), {})
    )
    report = interp.extraction_drop(
        subject,
        selection,
        *halves.judged,
        halves.held_out,
        also={"scored": halves.scored[0]},
        **choice,
    )
    assert printed[given] == {
        "verdict": report.verdict,
        "beats_random": report.beats_random,
        "judged_on_other_wording": True,
        "device": "cpu",
        "out": str(out),
    }
    frame = pd.read_parquet(out / f"drop-{given}.parquet")
    pd.testing.assert_frame_equal(frame, report.frame, check_exact=False)
    counted = frame.groupby("data")["windows"].first()
    assert counted.to_dict() == {
        name: len(part)
        for name, part in zip(["scored", "memorized", "held_out"], parts[::2], strict=True)
    } | {"control": len(halves.judged[1])}


def test_everything_that_is_promised_is_written(done):
    assert {path.name for path in done[0].iterdir()} >= {
        "shards", "windows.parquet", "passages.csv", "scan.png", "images.png", "scores.parquet", "units.json", "scored_on.json", "blocks.csv", "units.png",
        "drop.parquet", "drop.json", "drop.png",
    }  # fmt: skip


def drawn(monkeypatch) -> list[Any]:
    """What is given to image_grid from now on."""
    seen: list[Any] = []
    monkeypatch.setattr(
        pipeline,
        "image_grid",
        lambda *given, draw=pipeline.image_grid: seen.append(given) or draw(*given),
    )
    return seen


def test_the_figure_shows_the_best_images_their_tokens_and_what_the_model_goes_on_with(
    toy, subject, tmp_path, monkeypatch
):
    images, seen, module = (
        Images.join([OTHERS.rows(slice(6)), MEMBERS.rows(slice(6))]),
        drawn(monkeypatch),
        subject.module,
    )
    frame = pipeline.scan_images(
        subject, [write_images(images, tmp_path / "a.npz")], tmp_path / "out", toy.prefix
    )
    ((rows, captions),) = seen
    chosen = [int(re.match(r"image (\d+)", caption)[1]) for caption in captions]
    best, exact = frame.loc[chosen], int(frame["exact"].sum())
    assert 0 < exact < len(chosen) == 8
    assert best["exact"].tolist() == [True] * exact + [False] * (8 - exact)
    assert best["matched"].is_monotonic_decreasing
    assert torch.equal(rows["original"], images.pixels[chosen])
    batch = module.encode(images.pixels[chosen], images.labels[chosen], toy.prefix)
    assert torch.equal(rows["reconstruction"], module.decode(batch.tokens))
    assert torch.equal(rows["generated"][:exact], rows["reconstruction"][:exact])
    assert torch.equal(
        rows["generated"],
        module.decode(torch.cat([batch.tokens[:, : toy.prefix], subject.generate(batch)], dim=1)),
    )
    matched, length = best["matched"].iloc[-1], best["length"].iloc[-1]
    assert (
        captions[-1]
        == f"image {chosen[-1]}\nclass {best['given_label'].iloc[-1]}\n{matched} of {length}"
    )


def test_an_image_that_was_planted_twice_is_shown_once(var, tmp_path, monkeypatch):
    twice = write_images(Images.join([MEMBERS, MEMBERS]), tmp_path / "twice.npz")
    seen = drawn(monkeypatch)
    frame = pipeline.scan_images(interp.load(var.model), [twice], tmp_path / "out", var.prefix)
    assert frame["tokens"][:16].tolist() == frame["tokens"][16:].tolist()
    assert len({tuple(picture.flatten().tolist()) for picture in seen[0][0]["original"]}) == 8


def test_a_scan_that_was_interrupted_goes_on_and_ends_as_if_it_had_not(
    var, var_done, tmp_path, monkeypatch
):
    real, calls = window_scanner.teacher_force, []

    def counted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise OSError("no space left on the device")
        return real(*given)

    monkeypatch.setattr(window_scanner, "teacher_force", counted)
    command = ["scan", *var.start, "--out", tmp_path, "--batch-size", 8, "--json"]
    assert_one_error(run(*command), "no space left on the device")
    assert run(*command).exit_code == 0
    assert len(calls) == 3 + 6  # of 8 batches two were there
    once, again = (
        without_steps(pd.read_parquet(out / "windows.parquet")) for out in (var_done[0], tmp_path)
    )
    pd.testing.assert_frame_equal(once, again, check_exact=False)
    monkeypatch.setattr(window_scanner, "teacher_force", lambda *_: pytest.fail("measured again"))
    resumed = run("localize", *var.start, "--out", tmp_path, "--top", 0.1, "--json")
    assert json.loads(resumed.stdout) == var_done[1]["localize"] | {"out": str(tmp_path)}
    assert interp.Units.load(tmp_path / "units.json") == interp.Units.load(
        var_done[0] / "units.json"
    )


def test_people_get_lines_and_a_table_of_images(var, var_done):
    result = run("scan", *var.start, "--out", var_done[0])
    assert result.exit_code == 0, result.output
    assert "images: 61" in result.stdout
    assert "most memorized images" in result.stdout
    assert "start" not in result.stdout


def test_heads_go_from_localize_to_ablate_too(var, var_done, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(var_done[0], out)
    result = run("localize", *var.start, "--out", out, "--site", "heads", "--top", 0.25, "--json")
    assert result.exit_code == 0, result.output
    ablated = run("ablate", *var.start, "--out", out, "--units", out / "units.json", "--json")
    assert ablated.exit_code == 0, ablated.output


def test_a_tokenizer_that_stands_elsewhere_is_named(var, var_done, tmp_path):
    network = tmp_path / "network.safetensors"
    shutil.copy(var.model / network.name, network)
    command = ["scan", network, *var.start[1:], "--out", tmp_path / "out", "--json"]
    assert_one_error(run(*command), "0 tokenizers of a VAR are next to network.safetensors")
    result = run(*command, "--tokenizer", var.model / "tokenizer.safetensors")
    assert json.loads(result.stdout) == var_done[1]["scan"] | {"out": str(tmp_path / "out")}


def test_pictures_in_folders_named_by_class_are_read_at_the_tokenizers_side_in_its_colours(
    var, tmp_path
):
    for label in (3, 7):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
        noise = np.random.default_rng(label).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / str(label) / "a.png")
    result = run("scan", var.model, tmp_path / "pictures", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert pd.read_parquet(tmp_path / "out" / "windows.parquet")["given_label"].tolist() == [3, 7]


# what is wrong is one line


def assert_one_error(result: Any, match: str) -> None:
    assert result.exit_code == 1
    assert not result.stdout
    assert re.fullmatch(rf"error: [^\n]*{match}[^\n]*\n", result.stderr), result.stderr


@pytest.fixture
def unread(tmp_path) -> Path:
    """A folder that is taken for an image model, whose weights cannot be read: no error comes from
    it."""
    folder = tmp_path / "unread"
    folder.mkdir()
    (folder / "network.safetensors").write_text("no weights")
    return folder


@pytest.mark.parametrize("command", ["scan", "localize", "ablate"])
@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        (
            "members.npz",
            ["--length", 4],
            "--length and --stride are for texts; .*unread, weights without config.json, is read as an image model",
        ),
        ("members.npz", ["--stride", 4], "--length and --stride are for texts"),
        ("memberz.npz", [], "memberz.npz does not exist"),
        (
            "text.txt",
            [],
            "text.txt holds no images; .*unread.* is read as an image model: expected an .npz",
        ),
        ("texts", [], "texts holds no images; .*a folder of one folder per class"),
        ("flat", [], "flat holds no images"),
    ],
)
def test_what_is_no_scan_of_images_is_said_before_the_model_is_read(
    command, source, options, match, unread, tmp_path
):
    write_images(MEMBERS, tmp_path / "members.npz")
    for folder in ("texts", "flat"):
        (tmp_path / folder).mkdir()
    for file in ("text.txt", "texts/a.txt", "flat/a.png"):
        (tmp_path / file).write_text("not read")
    assert_one_error(
        run(command, unread, tmp_path / source, "--out", tmp_path / "out", *options), match
    )


@pytest.mark.parametrize("command", ["scan", "localize", "ablate"])
@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        (
            "a.npz",
            [],
            "a.npz holds images, and no-such-model is not an image model: expected texts, or the weights of a VAR or a RAR",
        ),
        ("pictures", [], "pictures holds images, and no-such-model is not an image model"),
        ("pictures/3/a.PNG", [], "a.PNG holds images"),
        (
            "both",
            ["--prefix", 0],
            "--prefix 0 is for image models and policies, and no-such-model is neither",
        ),
        ("both", ["--tokenizer", "a"], "--tokenizer is for image models"),
    ],
)
def test_what_is_no_scan_of_texts_is_said_before_the_model_is_read(
    command, source, options, match, tmp_path
):
    for file in ("a.npz", "pictures/3/a.PNG", "both/3/a.png", "both/a.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("not read")
    assert_one_error(
        run(command, "no-such-model", tmp_path / source, "--out", tmp_path / "out", *options), match
    )


def test_a_folder_with_texts_and_pictures_is_read_for_its_texts(tmp_path):
    for file in ("both/3/a.png", "both/a.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("not read")
    assert_one_error(
        run("scan", tmp_path / "no" / "model", tmp_path / "both", "--out", tmp_path / "out"),
        "model does not exist",
    )


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (np.zeros((2, 9, 9)), [0, 1], "holds images of side 9, not side=8"),
        (np.full((2, 8, 8), 17.0), [0, 1], "expected floats from 0 to 1; divide bytes by 255"),
        (np.zeros((2, 8, 8)), [1, 10], "labels are 1 to 10: this model has classes 0 to 9"),
        (np.zeros((2, 8, 8)), [-1, 1], "the label -1 is negative"),
    ],
)
def test_images_that_are_not_the_models_are_one_line_and_leave_no_scan(
    var, images, labels, match, tmp_path
):
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(labels))
    assert_one_error(run("scan", var.model, tmp_path / "a.npz", "--out", tmp_path / "out"), match)
    assert not list((tmp_path / "out").iterdir())


def test_a_prefix_that_the_model_cannot_go_on_from_is_one_line_and_leaves_no_scan(toy, tmp_path):
    wrong = [(21 if toy.kind == "VAR" else 16, "leaves nothing to predict"), (22, "nearest: ")]
    if BETWEEN[toy.kind] is not None:
        wrong += [
            (
                BETWEEN[toy.kind],
                "2 tokens are not a whole number of groups .*nearest: 1 or 0|nearest: 1 or 5|nearest: 0 or 1",
            )
        ]
    for prefix, match in wrong:
        assert_one_error(
            run("scan", toy.model, *toy.files, "--prefix", prefix, "--out", tmp_path / "out"),
            f"(?:{match})",
        )
        assert not list((tmp_path / "out").iterdir())


def test_folders_whose_names_do_not_tell_the_class_are_one_line(var, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(
            tmp_path / "pictures" / name / "a.png"
        )
    match = "2 folders with names such as cat do not say which of 10 classes they are: name them by the classes' numbers"
    assert_one_error(
        run("scan", var.model, tmp_path / "pictures", "--out", tmp_path / "out"), match
    )


def test_the_same_images_in_other_classes_are_another_scan(var, tmp_path):
    few = OTHERS.rows(slice(4))
    file = write_images(few, tmp_path / "a.npz")
    assert run("scan", var.model, file, "--out", tmp_path / "out").exit_code == 0
    write_images(Images(few.pixels, (few.labels + 1) % 10), file)
    assert_one_error(run("scan", var.model, file, "--out", tmp_path / "out"), "holds a scan of ")


def test_nothing_extracted_is_said_plainly(var, tmp_path):
    file = write_images(OTHERS.rows(slice(8)), tmp_path / "a.npz")
    result = run("localize", var.model, file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "error: none of 8 windows was extracted" in result.stderr
