"""Laws of the main job: nothing is judged on what it was scored on, and what is on disk is
not measured again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import interp
from interp.cli.pipeline import (
    judged_on_other_wording,
    localize_files,
    scan_images,
    scan_texts,
)
from interp.memorization.halves import Halves, halve

PREFIX, LENGTH = 3, 4
WIDTH = PREFIX + LENGTH
ENOUGH = settings(deadline=None, max_examples=30)


def scan_of(
    texts: int, windows: int, stride: int, exact: np.ndarray, matched: np.ndarray
) -> pd.DataFrame:
    """A scan of texts of equal length, no token of which stands twice."""
    rows = [(text, stride * n) for text in range(texts) for n in range(windows)]
    frame = pd.DataFrame(rows, columns=["text", "start"]).assign(
        prefix=PREFIX, length=LENGTH, exact=exact, log_p=-1.0
    )
    tokens = [[1000 * text + start + i for i in range(WIDTH)] for text, start in rows]
    matched = np.where(exact, LENGTH, matched)
    return frame.assign(tokens=tokens, matched=matched, accuracy=matched / LENGTH)


@st.composite
def scans(draw: st.DrawFn) -> pd.DataFrame:
    texts, windows = draw(st.integers(1, 8)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    many = texts * windows
    return scan_of(
        texts,
        windows,
        draw(st.integers(1, 8)),
        rng.random(many) < 0.2,
        rng.integers(0, LENGTH, many),
    )


def halved(frame: pd.DataFrame) -> Halves:
    try:
        return halve(frame)
    except ValueError:
        assume(False)
        raise


def share_a_token(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return bool(
        {t for tokens in a["tokens"] for t in tokens}
        & {t for tokens in b["tokens"] for t in tokens}
    )


@ENOUGH
@given(scans())
def test_no_unit_is_judged_on_what_it_was_scored_on_and_held_out_windows_are_of_neither(frame):
    halves = halved(frame)
    scored, judged = halves.scored[0], halves.judged[0]
    assert len(scored)
    assert len(judged)
    assert not share_a_token(scored, judged)
    if frame[frame["exact"]]["text"].nunique() > 1:
        assert not set(scored["text"]) & set(judged["text"])
    check_controls(halves)
    check_held_out(halves, frame)


def check_controls(halves: Halves) -> None:
    """Each half has a control for each window, and no window stands twice."""
    for memorized, control in (halves.scored, halves.judged):
        assert len(memorized) == len(control)
        assert memorized["exact"].all()
        assert not control["exact"].any()
    parts = [*halves.scored, *halves.judged]
    every = [tuple(tokens) for part in parts for tokens in part["tokens"]]
    assert len(every) == len(set(every))


def check_held_out(halves: Halves, frame: pd.DataFrame) -> None:
    """Held-out windows share no token with either half, nor with any extracted window."""
    assert 0 < len(halves.held_out) <= 64
    for part in (*halves.scored, *halves.judged, frame[frame["exact"]]):
        assert not share_a_token(halves.held_out, part)
    assert (halves.held_out["matched"] < LENGTH / 2).all()


def test_copies_of_a_wording_stay_in_one_half_whatever_their_text_and_offset():
    rng = np.random.default_rng(0)
    wordings = [rng.integers(0, 5000, 64).tolist() for _ in range(4)]
    texts = [
        rng.integers(0, 5000, shift).tolist() + wording
        for wording in wordings
        for shift in (0, 5, 11)
    ]
    rows = [
        (n, start, text[start : start + 40], True)
        for n, text in enumerate(texts)
        for start in (0, 20)
    ]
    rows += [(100 + n, 0, rng.integers(0, 5000, 40).tolist(), False) for n in range(80)]
    frame = pd.DataFrame(rows, columns=["text", "start", "tokens", "exact"]).assign(
        prefix=20, length=20, log_p=-1.0, accuracy=0.0
    )
    halves = halve(frame.assign(matched=np.where(frame["exact"], 20, 0)))
    origins = [{text // 3 for text in half[0]["text"]} for half in (halves.scored, halves.judged)]
    assert halves.apart
    assert not origins[0] & origins[1]
    assert origins[0] | origins[1] == {0, 1, 2, 3}


def test_one_wording_in_several_texts_is_judged_on_what_it_was_scored_on_and_says_so():
    wording = list(range(1000, 1020))
    memorized = [(0, wording, True), (1, [1, 2, *wording[:-2]], True)]
    others = [(n, list(range(100 * n, 100 * n + 20)), False) for n in range(20, 30)]
    frame = pd.DataFrame([*memorized, *others], columns=["text", "tokens", "exact"]).assign(
        start=0, prefix=10, length=10, log_p=-1.0
    )
    halves = halve(frame.assign(matched=np.where(frame["exact"], 10, 0), accuracy=0.0))
    assert not halves.apart
    assert halves.scored[0]["text"].tolist() == halves.judged[0]["text"].tolist() == [0, 1]
    assert not share_a_token(halves.scored[1], halves.judged[1])


def one_text(exact: list[int], stride: int = WIDTH, windows: int = 12) -> pd.DataFrame:
    return scan_of(
        1, windows, stride, np.isin(np.arange(windows), exact), np.zeros(windows, dtype=int)
    )


def test_one_text_is_halved_at_its_middle():
    halves = halve(one_text([0, 1, 5, 6]))
    assert [part[0]["start"].tolist() for part in (halves.scored, halves.judged)] == [
        [0, WIDTH],
        [5 * WIDTH, 6 * WIDTH],
    ]


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (one_text([]), "none of 12 windows was extracted"),
        (
            one_text([3]),
            "1 windows were extracted, all in one place; .* needs two that share no token",
        ),
        (one_text([3, 4], stride=2), "2 windows were extracted, all in one place"),
        (one_text([0, 1, 2, 3], windows=8), "no window is left to judge damage on"),
    ],
)
def test_too_little_to_halve_says_what_is_missing(frame, match):
    with pytest.raises(ValueError, match=match):
        halve(frame)


def images(
    tokens: list[list[int]], exact: list[int], labels: list[int] | None = None, prefix: int = 0
) -> pd.DataFrame:
    """A scan of images, one window each."""
    known = np.isin(np.arange(len(tokens)), exact)
    frame = pd.DataFrame(
        {
            "text": range(len(tokens)),
            "start": 0,
            "prefix": prefix,
            "length": len(tokens[0]) - prefix,
            "tokens": tokens,
        }
    )
    frame = frame.assign(
        exact=known,
        log_p=-1.0,
        matched=np.where(known, frame["length"], 0),
        accuracy=known.astype(float),
    )
    return frame.assign(given_label=labels or [0] * len(tokens))


def blank_above(count: int) -> list[list[int]]:
    """Different images, the first 16 tokens of which are the same."""
    return [[5] * 16 + [n, n + 1, n + 2, n + 3] for n in range(count)]


@ENOUGH
@given(st.integers(2, 10), st.integers(21, 30), st.sampled_from([0, 4]))
def test_images_with_a_blank_part_in_common_are_several_and_stand_in_one_half_each(
    known, count, prefix
):
    halves = halve(images(blank_above(count), list(range(known)), prefix=prefix))
    parts = [
        halves.scored[0],
        halves.judged[0],
        halves.scored[1],
        halves.judged[1],
        halves.held_out,
    ]
    assert halves.apart
    assert [len(part) for part in parts] == [
        -(-known // 2),
        known // 2,
        -(-known // 2),
        known // 2,
        count - 2 * known,
    ]
    every = [text for part in parts for text in part["text"]]
    assert len(every) == len(set(every)) == count


def test_labels_of_rows_change_no_half():
    """Frames that were joined have labels that repeat."""
    tokens = blank_above(20)
    frame = images(tokens, [0, 1, 2, 3])
    labels = [row % 3 for row in range(len(frame))]
    found = halve(frame)
    again = halve(frame.set_axis(labels, axis=0))
    pairs = zip(
        [*found.scored, *found.judged, found.held_out],
        [*again.scored, *again.judged, again.held_out],
        strict=True,
    )
    for part, other in pairs:
        pd.testing.assert_frame_equal(part, other)


def test_texts_with_as_much_in_common_are_one_wording():
    frame: pd.DataFrame = images(blank_above(20), [0, 1, 2]).drop(columns="given_label")
    assert not halve(frame).apart


def test_equal_images_are_one_wording_whatever_their_class_and_no_control_is_one_of_them():
    tokens = blank_above(20)
    copies, classes = [tokens[0], tokens[1], *tokens, tokens[0], tokens[1]], [1, 2, *[0] * 20, 3, 4]
    halves = halve(images(copies, [2, 3, 22, 23], classes))
    scored, judged = (
        [tuple(row) for row in half[0]["tokens"]] for half in (halves.scored, halves.judged)
    )
    assert sorted(scored + judged) == [tuple(tokens[0]), tuple(tokens[1])]
    others = pd.concat([halves.scored[1], halves.judged[1], halves.held_out])
    assert not {tuple(row) for row in others["tokens"]} & {*scored, *judged}


@pytest.mark.parametrize(
    ("known", "match"),
    [
        ([3], "needs two that share no token: scan more images"),
        ([0, 1, 2, 3], "no window is left to judge damage on: scan more images"),
    ],
)
def test_too_few_images_say_that_images_are_missing(known, match):
    with pytest.raises(ValueError, match=match):
        halve(images(blank_above(8), known))


def test_scan_images_is_of_image_models_only(tmp_path):
    with pytest.raises(
        ValueError, match="LlamaForCausalLM is not an image model: expected a VAR or a RAR"
    ):
        scan_images(letters.subject(), [tmp_path], tmp_path / "out")


def test_scan_texts_writes_what_it_says_and_measures_nothing_twice(tmp_path, monkeypatch):
    subject, texts, out = (
        letters.subject(),
        [letters.noise(1, 30, seed=n)[0] for n in range(3)],
        tmp_path / "out",
    )
    frame = scan_texts(subject, iter(texts), out, PREFIX, LENGTH)
    assert sorted(p.name for p in out.iterdir()) == [
        "passages.csv",
        "scan.png",
        "shards",
        "windows.parquet",
    ]
    assert len(frame) == 3 * 6 == len(pd.read_parquet(out / "windows.parquet"))
    monkeypatch.setattr(
        "interp.memorization.window_scanner.teacher_force", lambda *_: pytest.fail("measured again")
    )
    again = scan_texts(subject, iter(texts), out, PREFIX, LENGTH)
    pd.testing.assert_frame_equal(frame, again)


@pytest.mark.parametrize(("site", "figure"), [("neurons", True), ("embed", False)])
def test_localize_files_writes_scores_the_top_share_and_where_it_sits(
    tmp_path, llama, site, figure
):
    rng = torch.Generator().manual_seed(0)
    parts = [
        pd.DataFrame(
            {"tokens": torch.randint(0, 60, (3, WIDTH), generator=rng).tolist(), "prefix": PREFIX}
        )
        for _ in range(2)
    ]
    halves = Halves((parts[0], parts[1]), (parts[0], parts[1]), parts[1], apart=True)
    scores = localize_files(llama, halves, tmp_path, "gradient_x_activation", site, 0.1)
    assert interp.Units.load(tmp_path / "units.json") == scores.top(0.1)
    units = tmp_path / "units.json"
    assert judged_on_other_wording(halves, units) is False  # both halves are the same windows
    others = replace(halves, judged=(parts[1], parts[0]))
    assert judged_on_other_wording(others, units) is True
    assert judged_on_other_wording(others, None) is True
    # Scored on other windows, changed by hand, or put somewhere else.
    swapped = replace(halves, scored=(parts[1], parts[0]))
    assert judged_on_other_wording(swapped, units) is None
    before = units.read_bytes()
    scores.top(0.2).save(units)
    assert judged_on_other_wording(others, units) is None
    units.write_bytes(before)
    elsewhere = tmp_path / "elsewhere" / "units.json"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(before)
    assert judged_on_other_wording(others, elsewhere) is None
    stored = interp.UnitScores.load(tmp_path / "scores.parquet")
    assert all(np.array_equal(stored[s], scores[s]) for s in scores.values)
    assert (tmp_path / "units.png").exists() == figure


def test_halves_of_one_text_that_says_the_same_twice_are_worded_alike():
    def windows(starts: list[int], tokens: list[list[int]]) -> pd.DataFrame:
        return pd.DataFrame({"text": 0, "start": starts, "prefix": 4, "tokens": tokens})

    once = [list(range(8)), list(range(8, 16))]
    others = [list(range(20, 28)), list(range(30, 38))]
    control = windows([200], [list(range(50, 58))])
    for later, is_other in ((once, False), (others, True)):
        scored, judged = windows([0, 8], once), windows([100, 108], later)
        halves = Halves((scored, control), (judged, control), control, apart=True)
        assert halves.other_wording is is_other


def test_scores_are_kept_where_no_share_of_them_can_be_taken(tmp_path, monkeypatch):
    scores = interp.UnitScores({interp.Site.parse("blocks.0.neurons"): np.arange(4.0)})
    monkeypatch.setattr("interp.cli.pipeline.localize", lambda *_, **__: scores)
    halves: Any = Halves((pd.DataFrame(), pd.DataFrame()), (), pd.DataFrame(), apart=True)
    with pytest.raises(ValueError, match="cannot take 0"):
        localize_files(None, halves, tmp_path, "gradient", "neurons", 0.0)  # pyright: ignore[reportArgumentType]
    stored = interp.UnitScores.load(tmp_path / "scores.parquet")
    assert stored.values.keys() == scores.values.keys()
