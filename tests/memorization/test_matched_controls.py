"""Laws of split: the control is apart from all that was extracted, and as like it in token
frequency as can be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interp.memorization.matched_controls import keep_unmemorized, split
from interp.memorization.shards import no_rows
from interp.memorization.spans import passages

PREFIX, LENGTH, STRIDE = 3, 4, 2
ENOUGH = settings(deadline=None, max_examples=60)


def scan_of(
    texts: list[list[int]], exact: list[bool], matched: list[int], log_p: list[float]
) -> pd.DataFrame:
    """The windows of the texts, with the verdicts given; windows of the same tokens have the same."""
    width = PREFIX + LENGTH
    windows = [
        (t, s, text[s : s + width])
        for t, text in enumerate(texts)
        for s in range(0, len(text) - width + 1, STRIDE)
    ]
    verdicts = {
        tuple(tokens): verdict
        for (_, _, tokens), *verdict in zip(windows, exact, matched, log_p, strict=False)
    }
    rows = [
        {
            "text": t,
            "start": s,
            "prefix": PREFIX,
            "length": LENGTH,
            "tokens": tokens,
            "exact": e,
            "log_p": p,
        }
        | {"matched": LENGTH if e else m, "accuracy": 1.0 if e else m / LENGTH}
        for t, s, tokens in windows
        for e, m, p in [verdicts[tuple(tokens)]]
    ]
    return pd.DataFrame(rows)


@st.composite
def scans(draw: st.DrawFn) -> pd.DataFrame:
    """Scans with repeated texts among them, of which some windows are extracted, and enough others
    for a control."""
    texts = draw(
        st.lists(st.lists(st.integers(0, 9), min_size=7, max_size=25), min_size=3, max_size=8)
    )
    texts += [texts[0]]
    many = sum((len(t) - 7) // STRIDE + 1 for t in texts)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    frame = scan_of(
        texts,
        list(rng.random(many) < 0.15),
        list(rng.integers(0, LENGTH, many)),
        list(-rng.random(many)),
    )
    assume(frame["exact"].any())
    return frame


def control_of(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    try:
        return split(frame)
    except ValueError:
        assume(False)
        raise


def touches(a: pd.Series, b: pd.Series) -> bool:
    return a["text"] == b["text"] and abs(a["start"] - b["start"]) < PREFIX + LENGTH


@ENOUGH
@given(scans())
def test_memorized_are_the_extracted_windows_once_each_and_most_certain_first(frame):
    memorized, control = control_of(frame)
    assert memorized["exact"].all()
    assert sorted(map(tuple, memorized["tokens"])) == sorted(
        set(map(tuple, frame[frame["exact"]]["tokens"]))
    )
    assert memorized["log_p"].is_monotonic_decreasing
    assert list(memorized.index) == list(control.index) == list(range(len(memorized)))


@ENOUGH
@given(scans())
def test_controls_are_other_windows_that_share_no_token_with_an_extracted_one(frame):
    _, control = control_of(frame)
    assert not control["exact"].any()
    assert (control["matched"] < LENGTH / 2).all()
    assert control["tokens"].map(tuple).is_unique
    extracted = frame[frame["exact"]]
    assert not any(touches(c, m) for _, c in control.iterrows() for _, m in extracted.iterrows())


def rarity(frame: pd.DataFrame, scanned: pd.DataFrame) -> np.ndarray:
    distinct = set(map(tuple, scanned["tokens"]))
    counts = Counter(t for tokens in distinct for t in tokens)
    total = sum(counts.values())
    return np.array(
        [
            np.mean([np.log(counts[t] / total) for t in tokens[PREFIX:]])
            for tokens in frame["tokens"]
        ]
    )


@ENOUGH
@given(scans(), st.integers(0, 2**32))
def test_no_other_pairing_of_allowed_windows_is_nearer_in_frequency(frame, seed):
    memorized, control = control_of(frame)
    extracted = frame[frame["exact"]]
    distinct = frame[~frame["tokens"].map(tuple).duplicated()]
    apart = [
        not any(touches(r, m) for _, m in extracted.iterrows()) for _, r in distinct.iterrows()
    ]
    allowed = distinct[np.array(apart) & ~distinct["exact"] & (distinct["matched"] < LENGTH / 2)]
    ours = np.abs(rarity(memorized, frame) - rarity(control, frame)).sum()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        drawn = allowed.iloc[rng.permutation(len(allowed))[: len(memorized)]]
        assert ours <= np.abs(rarity(memorized, frame) - rarity(drawn, frame)).sum() + 1e-9


@ENOUGH
@given(scans(), st.integers(1, 4))
def test_at_most_keeps_the_most_certain(frame, at_most):
    memorized, _ = control_of(frame)
    fewer, control = split(frame, at_most)
    assert list(fewer["log_p"]) == list(memorized["log_p"])[:at_most]
    assert len(control) == len(fewer)


def two_texts(exact: list[bool], matched: list[int]) -> pd.DataFrame:
    return scan_of([[1] * 7, [2] * 7, [3] * 7][: len(exact)], exact, matched, [-1.0] * len(exact))


def test_nothing_extracted_names_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"none of 2 windows was extracted; the nearest matched 3 of 4 tokens \(text 1, token 0\)",
    ):
        split(two_texts([False, False], [1, 3]))


@pytest.mark.parametrize(
    ("exact", "matched", "match"),
    [
        (
            [True, True, False],
            [4, 4, 0],
            "2 memorized windows but 1 control candidates: .* or pass at_most=1",
        ),
        (
            [True, False],
            [4, 3],
            "1 memorized windows but 0 control candidates: scan more text that is not memorized$",
        ),
    ],
)
def test_too_few_controls_say_how_many_there_are(exact, matched, match):
    with pytest.raises(ValueError, match=match):
        split(two_texts(exact, matched))


def test_a_frame_without_windows_and_at_most_none_are_refused():
    frame = two_texts([True, False], [4, 0])
    with pytest.raises(ValueError, match="has no windows"):
        split(frame[:0])
    with pytest.raises(ValueError, match="at_most=0"):
        split(frame, 0)


@ENOUGH
@given(frame=scans(), seed=st.integers(0, 99))
def test_labels_of_rows_change_nothing(frame: pd.DataFrame, seed: int):
    """Frames that were joined have labels that repeat."""
    memorized, control = control_of(frame)
    labels = np.random.default_rng(seed).integers(0, 4, len(frame))
    relabelled = frame.set_axis(labels, axis=0)
    again = split(relabelled)
    pd.testing.assert_frame_equal(again[0], memorized)
    pd.testing.assert_frame_equal(again[1], control)
    kept = keep_unmemorized(relabelled, relabelled).reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, keep_unmemorized(frame, frame).reset_index(drop=True))
    columns = {"run": frame["matched"], "similarity": np.nan}
    pd.testing.assert_frame_equal(
        passages(relabelled.assign(**columns)), passages(frame.assign(**columns))
    )


def test_a_scan_without_windows_is_refused():
    for empty in (no_rows(), pd.DataFrame()):
        with pytest.raises(ValueError, match="the frame has no windows: expected what scan"):
            split(empty)
