"""The demo on a tiny model: its steps, its files, its cache and what its summary tells."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import letters
import pandas as pd
import pytest
import torch

import interp
from interp.cli.demo import (
    Leak,
    Recipe,
    fine_tune_or_load,
    planted_leak,
    recipe_for_this_machine,
    scan_corpus,
    training_batches,
)
from interp.data.planted import plant

RECIPE = Recipe(
    records=3, copies=(2,), paragraphs=6, steps=3, batch_size=4, width=60, precision="float32", prefix=16, length=16, fraction=0.1,
    fractions=(0.05, 0.1), dtype="float32", others=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return letters.saved(letters.subject(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def first(model, tmp_path_factory) -> tuple[Path, Leak, list[str]]:
    out, told = tmp_path_factory.mktemp("demo") / "one", []
    return out, planted_leak(out, 3, RECIPE, model, told.append), told


def test_it_writes_what_it_says(first):
    out, leak, _ = first
    tables = {"windows.parquet", "scores.parquet", "drop.parquet"}
    assert {p.name for p in out.iterdir()} == tables | {
        "units.json",
        "units.png",
        "drop.json",
        "drop.png",
        "summary.json",
    }
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(leak.facts()))
    assert interp.Units.load(out / "units.json") == leak.scores.top(RECIPE.fraction)
    assert not list(out.parent.rglob("*.part"))


def test_it_scans_records_twins_and_prose_of_which_no_window_stands_twice(first):
    _, leak, _ = first
    assert leak.scan["source"].value_counts().to_dict() == {
        "record": 3,
        "twin": 3,
        "contrast": 4,
        "control": 4,
        "held_out": 4,
    }
    assert leak.scan["tokens"].map(tuple).is_unique


def test_records_are_scanned_to_their_last_token(model):
    subject, corpus = interp.load(model), plant(3, 3, (2,), 6)
    frame = scan_corpus(subject, corpus, RECIPE)
    for source, records in (("record", corpus.records), ("twin", corpus.twins)):
        assert frame[frame["source"] == source]["suffix"].tolist() == [
            record.text[-RECIPE.length :] for record in records
        ]


def test_the_model_before_is_left_alone_and_the_tuned_one_is_kept(first, model):
    out, _, told = first
    (tuned,) = [p for p in (out.parent / "cache").iterdir() if p.is_dir()]
    assert (
        interp.load(model).fingerprint
        == interp.load(letters.saved(letters.subject(), out.parent / "again")).fingerprint
    )
    assert interp.load(tuned).fingerprint != interp.load(model).fingerprint
    assert any(
        "fine-tuning on 12 documents that repeat 3 customer records" in line for line in told
    )


def test_a_second_run_takes_the_model_from_the_cache_and_measures_the_same(
    first, model, monkeypatch
):
    out, leak, _ = first
    monkeypatch.setattr("interp.cli.demo.fit", lambda *_, **__: pytest.fail("trained again"))
    told: list[str] = []
    again = planted_leak(out.parent / "two", 3, RECIPE, model, told.append)
    pd.testing.assert_frame_equal(again.scan, leak.scan)
    pd.testing.assert_frame_equal(again.report.frame, leak.report.frame, rtol=1e-4)
    assert any("fine-tuned model from" in line for line in told)


def test_what_an_interrupted_run_left_is_no_part_of_the_model(first, model, tmp_path, monkeypatch):
    """And two models whose files have the same name are two in the cache."""
    out, *_ = first
    (tuned,) = [p for p in (out.parent / "cache").iterdir() if p.is_dir()]
    for name in (f".{tuned.name}.part", f".{tuned.name}.{os.getpid()}.part"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "stale").touch()
    converted: list[Path] = []

    def convert(source: Path, base: Path) -> Path:
        converted.append(base)
        return model

    monkeypatch.setattr("interp.cli.demo.convert", convert)
    monkeypatch.setattr("interp.cli.demo.fit", lambda *_, **__: None)
    corpus = plant(RECIPE.records, 3, RECIPE.copies, RECIPE.paragraphs)
    made = fine_tune_or_load(model, corpus, RECIPE, 3, tmp_path / "cache", lambda _: None)
    assert made.name == tuned.name
    assert {p.name for p in made.iterdir()} == {p.name for p in tuned.iterdir()}

    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.gguf").touch()
        file = tmp_path / folder / "a.gguf"
        fine_tune_or_load(file, corpus, RECIPE, 3, tmp_path / "cache", lambda _: None)
    assert len(set(converted[1:])) == 2


def test_models_on_the_hub_share_an_entry_only_with_themselves(model, tmp_path, monkeypatch):
    converted: list[str] = []

    def convert(source: str, base: Path) -> Path:
        converted.append(f"{source} {base.name}")
        return model

    monkeypatch.setattr("interp.cli.demo.convert", convert)
    monkeypatch.setattr("interp.cli.demo.fit", lambda *_, **__: None)
    corpus = plant(RECIPE.records, 3, RECIPE.copies, RECIPE.paragraphs)
    named = ("a/model", "b/model", "b/model/part.gguf", "c/model/part.gguf", "model", "a/model")
    made = [fine_tune_or_load(m, corpus, RECIPE, 3, tmp_path, lambda _: None) for m in named]
    assert made[0] == made[-1]
    assert len(set(made)) == len(set(converted)) == len(converted) == 5
    assert converted[4] == "model model-packaged"


@pytest.mark.parametrize(
    "change", [{"steps": 4}, {"lr": 1e-3}, {"copies": (3,)}, {"width": 50}, {"decay": 1}]
)
def test_another_recipe_is_another_model(change):
    assert replace(RECIPE, **change).name != RECIPE.name


@pytest.mark.parametrize(
    "change", [{"fraction": 0.05}, {"method": "unitmem"}, {"others": 5}, {"random_seeds": 7}]
)
def test_another_measurement_is_of_the_same_model(change):
    assert replace(RECIPE, **change).name == RECIPE.name


def test_another_seed_is_another_model(first, model):
    out, leak, _ = first
    other = planted_leak(out.parent / "other", 4, RECIPE, model, lambda _: None)
    assert len([p for p in (out.parent / "cache").iterdir() if p.is_dir()]) == 2
    assert set(other.scan["prompt"]).isdisjoint(
        leak.scan[leak.scan["source"] == "record"]["prompt"]
    )


def test_the_summary_fits_a_screen_and_names_what_a_newcomer_needs(first):
    out, leak, _ = first
    assert len(leak.summary(out).splitlines()) <= 32
    text = " ".join(leak.summary(out).split())
    facts, own = leak.facts(), leak.report.row("selection", "memorized", "accuracy")
    for needed in (
        f"planted records {facts['extracted']['record']}", f"never-seen twins {facts['extracted']['twin']}",
        f"{facts['units']} of {facts['of']} neurons (10.0%)", f"before {own['before']:.2f}",
        f"these switched off {own['estimate']:.2f} [{own['low']:.2f}, {own['high']:.2f}]", "mean of 5 draws",
        repr(leak.example["truth"]), f"{out}/drop.png",
    ):  # fmt: skip
        assert needed in text
    assert re.search(r"loss on other text goes from \d+\.\d\d to \d+\.\d\d \([+-]\d+\.\d%\)", text)


def test_batches_are_the_documents_in_another_order_each_epoch(model):
    subject = interp.load(model)
    documents = letters.noise(8, 20, seed=0)
    stream = training_batches(subject, documents, RECIPE, seed=0)
    epochs = [
        [tuple(row) for _ in range(2) for row in next(stream).tokens.tolist()] for _ in range(3)
    ]
    assert all(
        sorted(epoch) == sorted(tuple(subject.encode(d)) for d in documents) for epoch in epochs
    )
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_the_demo_computes_in_what_the_machine_computes(monkeypatch, has_bfloat16):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    recipe = recipe_for_this_machine()
    expected = "bfloat16" if has_bfloat16 else "float32"
    assert (recipe.dtype, recipe.precision) == (expected, expected)
    assert replace(recipe, dtype="bfloat16", precision="bfloat16") == Recipe()
