"""Token maps: the numbers of the corpus measure, and what is shown of them."""

from __future__ import annotations

import html
import re
from io import StringIO
from typing import Any

import letters
import numpy as np
import pytest
from numpy.testing import assert_allclose
from rich.console import Console

import interp
from interp.memorization.membership.corpus import membership
from interp.memorization.membership.token_map import token_map

TEXT = "a <b>&$x_1$ 'q'\nz"


@pytest.fixture(scope="module")
def pair() -> tuple[interp.Subject, interp.Subject]:
    return letters.subject(seed=0), letters.subject(seed=1)


def test_numbers_are_those_of_the_corpus(pair: Any):
    target, reference = pair
    shown = token_map(target, TEXT, reference)
    frame: Any = shown.frame
    assert "".join(frame["piece"]) == TEXT
    assert frame["token"].tolist() == target.encode(TEXT)
    assert np.isnan(frame["score"][0])
    row = membership(target, [TEXT], reference).iloc[0]
    assert frame["score"].mean() == pytest.approx(row["informia"], abs=1e-6)
    difference = frame["log_p"] - frame["log_p_reference"]
    assert difference.mean() == pytest.approx(row["ratio"], abs=1e-6)
    assert shown.limit == pytest.approx(frame["score"].abs().max())


def test_html_holds_the_text_and_a_colour_per_token(pair: Any):
    shown: Any = token_map(pair[0], TEXT, pair[1])
    shown = shown._repr_html_()
    passage = shown.partition("<small>")[0]
    assert html.unescape(re.sub(r"<[^>]+>", "", passage)) == TEXT
    assert "<b>" not in passage
    assert passage.count("<span") == len(TEXT) - 1  # nothing predicts the first


def test_colours_follow_sign_and_limit(pair: Any):
    shown: Any = token_map(pair[0], TEXT, pair[1], limit=1e-3)
    colours = dict(zip(shown.frame["position"], (c for _, c in shown._coloured()), strict=True))
    for position, score in zip(shown.frame["position"], shown.frame["score"], strict=True):
        if np.isnan(score):
            assert colours[position] is None
        elif score > 1e-3:
            assert colours[position] == (213, 94, 0)
        elif score < -1e-3:
            assert colours[position] == (0, 114, 178)
    faint: Any = token_map(pair[0], TEXT, pair[1], limit=1e9)
    assert {c for _, c in faint._coloured()} == {None, (255, 255, 255)}


def test_terminal_and_figure(pair: Any):
    shown: Any = token_map(pair[0], TEXT * 3, pair[1])
    console = Console(file=StringIO(), force_terminal=True, width=200, color_system="truecolor")
    console.print(shown)
    output = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert "".join(plain.split()).startswith("".join((TEXT * 3).split()))
    assert "\x1b[30;48;2;" in output
    figure: Any = shown.plot()
    assert len(figure.axes) == 3  # 51 tokens in rows of 24
    bars = [bar.get_height() for axes in figure.axes for bar in axes.patches]
    assert_allclose(sorted(bars), sorted(shown.frame["score"].dropna()), atol=1e-9)


def test_a_model_compared_with_itself_is_without_colour(pair: Any):
    shown: Any = token_map(pair[0], TEXT, pair[0])
    assert shown.frame["score"].abs().max() < 1e-6
    assert repr(shown).startswith("TokenMap(17 tokens, mean score")


@pytest.mark.parametrize(
    ("text", "reference", "limit", "message"),
    [
        (TEXT, [], None, "at least one reference model, got none"),
        (TEXT, None, 0.0, "limit=0.0: expected a positive number"),
        ("a", None, None, "fewer than two tokens"),
        ("", None, None, "fewer than two tokens"),
    ],
)
def test_bad_input_is_one_clear_error(
    pair: Any, text: str, reference: Any, limit: float | None, message: str
):
    with pytest.raises(ValueError, match=message):
        token_map(pair[0], text, pair[1] if reference is None else reference, limit=limit)
