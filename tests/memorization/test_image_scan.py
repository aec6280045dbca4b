"""Laws of scanning images: rows of a Batch are the windows, groups are whole, a frame gives the
batch back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import interp
from interp.memorization.extraction import scan
from interp.memorization.teacher_forcing import teacher_force


@pytest.fixture(params=tiny.IMAGE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def subject(name: str) -> interp.Subject:
    return tiny.subject(name, torch.float64)


def half_said(name: str, rows: int = 8, prompt: int = 5) -> interp.Batch:
    """Images that the model says itself from `prompt` on, every second one with a wrong token, at
    another place in each."""
    subject, batch = tiny.subject(name, torch.float64), tiny.image_batch(name, rows, prompt=prompt)
    tokens = torch.cat([batch.tokens[:, :prompt], subject.generate(batch)], dim=1)
    for row in range(1, rows, 2):
        tokens[row, prompt + row] = (tokens[row, prompt + row] + 1) % tiny.VOCABULARY
    return interp.Batch(tokens, prompt, groups=batch.groups, conditioning=batch.conditioning)


def assert_same(one: interp.Batch, other: interp.Batch) -> None:
    assert torch.equal(one.tokens, other.tokens)
    assert (one.prompt, one.groups, one.mask, one.scored) == (
        other.prompt,
        other.groups,
        None,
        None,
    )
    assert one.conditioning.keys() == other.conditioning.keys()
    assert all(
        torch.equal(value, other.conditioning[key]) for key, value in one.conditioning.items()
    )


def test_rows_of_a_batch_are_its_windows(name, subject):
    batch = half_said(name)
    with tiny.untouched(subject.module):
        frame = scan(subject, batch, batch_size=3, decode_from=0)
    assert frame["tokens"].tolist() == batch.tokens.tolist()
    assert frame["text"].tolist() == list(range(8))
    assert set(frame["start"]) == {0}
    assert set(frame["prefix"]) == {5}
    assert set(frame["length"]) == {batch.length - 5}
    assert frame["given_label"].tolist() == batch.conditioning["label"].tolist()
    assert ("groups" in frame) == (name == "var")
    assert frame["exact"].tolist() == [True, False] * 4
    forced = teacher_force(subject, batch)
    assert frame["accuracy"].tolist() == forced.hits.mean(1).tolist()
    np.testing.assert_allclose(frame["log_p"], forced.log_p, rtol=1e-9)
    assert frame["matched"].tolist()[1::2] == [1, 3, 5, 7]
    assert (frame.attrs["texts"], frame.attrs["skipped"]) == (8, 0)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_size_of_a_batch_changes_no_row(name, subject, size):
    one, other = (scan(subject, half_said(name), batch_size=n, decode_from=0) for n in (8, size))
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_a_frame_gives_the_batch_back(name, subject, tmp_path: Path):
    batch = half_said(name)
    frame = scan(subject, batch)
    assert_same(interp.Batch.from_frame(frame), batch)
    frame.to_parquet(tmp_path / "frame.parquet")
    assert_same(interp.Batch.from_frame(pd.read_parquet(tmp_path / "frame.parquet")), batch)
    exact = interp.Batch.from_frame(frame[frame["exact"]])
    assert_same(exact, batch.rows(slice(0, None, 2)))
    assert teacher_force(subject, exact).hits.all()


def test_an_interrupted_scan_goes_on(name, subject, tmp_path: Path, monkeypatch):
    batch, whole = half_said(name), scan(subject, half_said(name), batch_size=2)
    calls: list[int] = []
    real = teacher_force

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("interp.memorization.window_scanner.teacher_force", failing)
    with pytest.raises(KeyboardInterrupt):
        scan(subject, batch, batch_size=2, folder=tmp_path)
    again = scan(subject, batch, batch_size=2, folder=tmp_path)
    assert len(calls) == 5
    assert again["exact"].tolist() == whole["exact"].tolist()
    assert_same(interp.Batch.from_frame(again), batch)


def test_prefix_and_length_are_those_of_the_batch_or_given(name, subject):
    batch = half_said(name)
    frame = scan(subject, batch, 1, batch.length - 1)
    assert set(frame["prefix"]) == {1}
    assert set(scan(subject, batch, 0, batch.length)["prefix"]) == {0}
    with pytest.raises(
        ValueError,
        match=rf"prefix 5 and length 3: expected {batch.length} together, the tokens of each row",
    ):
        scan(subject, batch, 5, 3)
    with pytest.raises(ValueError, match="must be at least 1"):
        scan(subject, batch, -1)


def tokens_of(name: str, length: int | None = None) -> torch.Tensor:
    return tiny.image_batch(name).tokens[:, :length]


@pytest.mark.parametrize(
    ("prompt", "nearest"),
    [(2, "0 or 1"), (3, "1 or 5"), (4, "1 or 5"), (6, "1 or 5"), (9, "5 or 14"), (13, "5 or 14")],
)
def test_a_prompt_that_cuts_a_scale_names_the_nearest_ends(prompt, nearest):
    subject, batch = tiny.subject("var"), tiny.image_batch("var", prompt=prompt)
    message = rf"{prompt} tokens are not a whole number of groups of this model \(3 groups, 14 tokens\); nearest: {nearest}"
    for call in (teacher_force, scan, interp.Subject.generate):
        with pytest.raises(ValueError, match=message):
            call(subject, batch)


@pytest.mark.parametrize("length", [4, 13])
def test_images_that_end_within_a_scale_are_refused(length):
    batch = interp.Batch(
        tokens_of("var", length), 0, conditioning=tiny.image_batch("var").conditioning
    )
    for call in (teacher_force, scan, interp.Subject.logits):
        with pytest.raises(ValueError, match=f"{length} tokens are not a whole number of groups"):
            call(tiny.subject("var"), batch)


def test_coarse_scales_alone_are_an_image_too(name, subject):
    whole = dataclasses.replace(half_said(name), prompt=1)
    batch = whole.until(5)
    assert (
        teacher_force(subject, batch).hits.tolist()
        == teacher_force(subject, whole).hits[:, :4].tolist()
    )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (
            {"label": torch.tensor([0, 6])},
            r"labels must be classes 0 to 4 \(5 for none\); got 0 to 6",
        ),
        (
            {"label": torch.tensor([-1, 2])},
            r"labels must be classes 0 to 4 \(5 for none\); got -1 to 2",
        ),
        (
            {"label": torch.tensor([[1], [2]])},
            r"conditioning\['label'\] must hold one class for each of 2 images; got shape \(2, 1\)",
        ),
        ({"label": torch.tensor([1])}, r"one class for each of 2 images; got shape \(1,\)"),
        ({}, r"one class for each of 2 images; got none"),
    ],
)
def test_labels_that_the_model_has_not_are_refused(name, subject, wrong, match):
    batch = interp.Batch(tokens_of(name), 0, conditioning=wrong)
    calls = [teacher_force, interp.Subject.logits, interp.Subject.generate]
    for call in calls if len(wrong.get("label", [0, 0])) == 2 else calls[:1]:
        with pytest.raises(ValueError, match=match):
            call(subject, batch)


def test_tokens_that_the_model_has_not_are_refused(name, subject):
    given = tiny.image_batch(name).conditioning
    for token in (-1, tiny.VOCABULARY):
        tokens = tokens_of(name).clone()
        tokens[1, 3] = token
        with pytest.raises(
            ValueError,
            match=rf"token ids must be 0 to {tiny.VOCABULARY - 1} for {subject.name}; got .*: another model's tok",
        ):
            scan(subject, interp.Batch(tokens, 0, conditioning=given))
    long = tokens_of(name).repeat(1, 2)
    with pytest.raises(
        ValueError,
        match=rf"an image has {long.shape[1] // 2} tokens here; got {long.shape[1]}: another model's tokens",
    ):
        scan(subject, interp.Batch(long, 0, conditioning=given))


@pytest.mark.parametrize("wrong", ["mask", "scored"])
def test_windows_are_whole(name, subject, wrong):
    batch = tiny.image_batch(name)
    partial = interp.Batch(
        batch.tokens,
        0,
        conditioning=batch.conditioning,
        **{wrong: torch.arange(batch.length).expand(2, -1) < 5},
    )
    for call in (teacher_force, scan):
        with pytest.raises(
            ValueError, match="windows are scanned whole: expected a batch without `mask`"
        ):
            call(subject, partial)


def test_images_are_encoded_with_their_classes_and_decoded(name, subject):
    module = tiny.subject(name).module
    images = torch.rand(
        3,
        1,
        module.tokenizer.side,
        module.tokenizer.side,
        generator=torch.Generator().manual_seed(0),
    )
    batch = module.encode(images, torch.tensor([0, 4, 2]), prompt=5)
    assert torch.equal(batch.tokens, module.tokenizer.encode(images))
    assert (batch.prompt, batch.groups, batch.conditioning["label"].tolist()) == (
        5,
        module.all_groups if name == "var" else None,
        [0, 4, 2],
    )
    assert torch.equal(module.decode(batch.tokens), module.tokenizer.decode(batch.tokens))
    with pytest.raises(ValueError, match="labels must be classes 0 to 4"):
        module.encode(images, torch.tensor([0, 4, 9]))
