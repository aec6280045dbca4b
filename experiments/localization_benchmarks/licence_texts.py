"""The windows of the knock-out study on licences: passages that a model knows by heart, and all
that their loss must be told apart from.

`study_windows(subject)` scans the texts of `licence_texts.toml`, code of recent packages and prose,
and keeps what fits each set:

- `texts_score`, `texts_test`: exactly extracted passages of a few licences as `#` comments, each
licence cut in two at one place;
- `other_format`: the passages of `texts_test` in a `/* */` comment, and unwrapped;
- `unstudied`: licences of which nothing is in `texts_score` and that the model knows nearly as
well, `half_known`: others, known in part;
- `paraphrased`: licence language in other words;
- `memorized`: extracted text of other kinds; `rules`: extracted text that follows a rule, which
needs no memory;
- `contrast`: code and prose to score against; `code`, `prose`: other such text, to judge damage on.

No window of another set shares eight words in a row, in whatever format, with `texts_score`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.licence_headers.build import as_comment, code
from experiments.licence_headers.presets import CHARACTERS
from interp import Subject, scan
from interp.data.planted import background

Frame = Any  # pandas' stubs lose the type of a frame that is indexed
PREFIX = LENGTH = 32
SIZE = 16  # windows a forward
CLOSE, APART = (
    8,
    PREFIX + LENGTH,
)  # strides in tokens: to find what is exact at some offset, and to share no token
RUN = 8  # words in a row that windows of two sets may not share: about twelve tokens
AT_MOST, A_SOURCE, CONTRAST = (
    16,
    4,
    24,
)  # windows a set, of them windows a text, and windows of `contrast`
NEARLY, HALF = (0.9, 1.0), (0.4, 0.9)  # suffix token accuracy, both ends included
_FORMATS = ("star", "unwrapped")
_MARK = re.compile(r"#|\*|/\*|\*/")


def study_windows(subject: Subject) -> dict[str, pd.DataFrame]:
    """Every set as windows of 32 + 32 tokens: the columns of `interp.scan`, and `set`, `source`
    (which text) and `style` (its format).

    Deterministic for one model and one installation; about 400 windows are scanned.
    """
    texts = corpus()
    score, test = halves(_extracted(subject, texts["studied"], "hash"))
    taken = pd.concat([score, test])
    parts: dict[str, Frame] = {"texts_score": score, "texts_test": test}
    parts["other_format"] = apart(reformatted(subject, texts["studied"], test), score)
    parts["unstudied"] = apart(
        _known(_scanned(subject, texts["unstudied"], "hash", CLOSE), *NEARLY), taken
    )
    parts["paraphrased"] = apart(_scanned(subject, texts["paraphrased"], "hash", APART), taken)
    parts["half_known"] = apart(
        _known(_scanned(subject, texts["half_known"], "hash", APART), *HALF), taken
    )
    parts["memorized"] = _extracted(subject, texts["memorized"], "raw")
    parts["rules"] = _extracted(subject, texts["rules"], "raw")
    parts |= _unrelated(subject, taken)
    return {name: _capped(part, name) for name, part in parts.items()}


def halves(windows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(score, test): each source's windows before and after the token that leaves most windows on
    the smaller side.

    Windows that hold that token are in neither half. The first text is scored on its beginning, the
    next on its end, and so on.
    """
    score, test = [], []
    for number, (_, part) in enumerate(windows.groupby("source", sort=False)):
        sides = _sides(part)
        score.append(sides[number % 2])
        test.append(sides[1 - number % 2])
    scored = pd.concat(score, ignore_index=True)
    return scored, apart(pd.concat(test, ignore_index=True), scored)


def _sides(part: Frame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The windows of one text that end before a token, and those that start there or later."""
    starts, width = part["start"].to_numpy(), PREFIX + LENGTH
    cuts = [(min((starts + width <= cut).sum(), (starts >= cut).sum()), -cut) for cut in starts]
    cut = -max(cuts)[1]
    return part[starts + width <= cut], part[starts >= cut]


def apart(windows: pd.DataFrame, others: pd.DataFrame, run: int = RUN) -> pd.DataFrame:
    """Those of the windows that share no `run` words in a row, whatever their format, with any of
    the others."""
    known = {shared for text in _texts(others) for shared in _runs(text, run)}
    kept: Frame = windows[[known.isdisjoint(_runs(text, run)) for text in _texts(windows)]]
    return kept.reset_index(drop=True)


def _texts(windows: pd.DataFrame) -> list[str]:
    return [
        prompt + suffix for prompt, suffix in zip(windows["prompt"], windows["suffix"], strict=True)
    ]


def _runs(text: str, run: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[i : i + run]) for i in range(len(words) - run + 1)}


def reformatted(subject: Subject, texts: Mapping[str, str], windows: pd.DataFrame) -> pd.DataFrame:
    """The windows again in each other format, the suffix from the same word on; passages that the
    new marks push out of the text are left out."""
    passages: dict[tuple[str, str, int], list[int]] = {}
    for style in _FORMATS:
        for source, start in zip(windows["source"], windows["start"], strict=True):
            word = _words_before(subject, as_comment(texts[source], "hash"), start + PREFIX)
            tokens = _passage(subject, styled(texts[source], style), word)
            if len(tokens) == PREFIX + LENGTH:
                passages[source, style, start] = tokens
    frame = scan(subject, passages.values(), PREFIX, LENGTH, size=SIZE)
    keys = list(passages)
    return frame.assign(
        source=[keys[n][0] for n in frame["text"]], style=[keys[n][1] for n in frame["text"]]
    )


def _words_before(subject: Subject, text: str, token: int) -> int:
    """How many words of a text begin before a token, marks not counted."""
    return sum(
        not _MARK.fullmatch(word) for word in subject.decode(subject.tokens(text)[:token]).split()
    )


def _passage(subject: Subject, text: str, word: int) -> list[int]:
    """The window whose suffix begins where a word, marks not counted, begins; shorter where the
    text does not reach."""
    words = [found for found in re.finditer(r"\S+", text) if not _MARK.fullmatch(found[0])]
    middle = len(subject.tokens(text[: words[word - 1].end()]))
    return subject.tokens(text)[max(middle - PREFIX, 0) : middle + LENGTH]


def styled(text: str, style: str) -> str:
    """A text as it is (`raw`), with each paragraph and list item on one line (`unwrapped`), or as a
    comment."""
    if style == "raw":
        return text
    if style != "unwrapped":
        return as_comment(text, style)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:\d\.|\*) )", text.strip())
    return "".join(" ".join(paragraph.split()) + "\n\n" for paragraph in paragraphs)


def corpus() -> dict[str, dict[str, str]]:
    """Texts by kind and name."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _scanned(subject: Subject, texts: Mapping[str, str], style: str, stride: int) -> pd.DataFrame:
    """A scan with `source` and `style`; free continuations are not decoded."""
    names, written = list(texts), [styled(text, style) for text in texts.values()]
    frame = scan(subject, written, PREFIX, LENGTH, stride=stride, size=SIZE, decode_from=1.1)
    return frame.assign(source=[names[number] for number in frame["text"]], style=style)


def _extracted(subject: Subject, texts: Mapping[str, str], style: str) -> pd.DataFrame:
    frame: Frame = _scanned(subject, texts, style, CLOSE)
    return frame[frame["exact"]]


def _known(windows: Frame, least: float, most: float) -> pd.DataFrame:
    return windows[windows["accuracy"].between(least, most)]


def _unrelated(subject: Subject, taken: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`contrast`, half code and half prose, and `code` and `prose`: one window a text, no text in
    two sets, none extracted."""
    prose, bodies = background(0), list(islice(code(CHARACTERS), 60))
    held_out = {
        "code": _first_windows(subject, bodies[1::2], "code", taken),
        "prose": _first_windows(subject, prose.held_out, "prose", taken),
    }
    avoided = pd.concat([taken, *held_out.values()])
    contrast = [
        _first_windows(subject, texts, kind, avoided)
        for kind, texts in (("code", bodies[::2]), ("prose", prose.control))
    ]
    joined = pd.concat([part[: CONTRAST // 2] for part in contrast], ignore_index=True)
    return {"contrast": joined.assign(text=range(len(joined)))} | held_out


def _first_windows(
    subject: Subject, texts: Sequence[str], kind: str, others: pd.DataFrame
) -> pd.DataFrame:
    """The first window of each text that is long enough, of as many as one forward takes; each text
    is a source of its own."""
    tokens = (subject.tokens(text)[: PREFIX + LENGTH] for text in texts)
    frame: Frame = scan(
        subject,
        islice((row for row in tokens if len(row) == PREFIX + LENGTH), SIZE),
        PREFIX,
        LENGTH,
        decode_from=1.1,
    )
    named = frame.assign(source=[f"{kind} {number}" for number in frame["text"]], style="raw")
    return apart(named[~named["exact"]], others)


def _capped(part: Frame, name: str) -> pd.DataFrame:
    """At most A_SOURCE windows of each text in each format, spread over those there are, and of the
    whole set the first of each."""
    if part.empty:
        raise ValueError(
            f"no window for the set {name}: this model knows other texts; expected one that extracts the licences of the study"
        )
    spread: Frame = pd.concat(
        [_spread(group) for _, group in part.groupby(["source", "style"], sort=False)]
    )
    turn = spread.groupby(["source", "style"]).cumcount().sort_values(kind="stable")
    kept = spread.loc[turn.index[: CONTRAST if name == "contrast" else AT_MOST]].sort_index()
    return kept.assign(set=name).reset_index(drop=True)


def _spread(group: Frame) -> Frame:
    return group.iloc[
        np.unique(np.linspace(0, len(group) - 1, min(A_SOURCE, len(group))).round().astype(int))
    ]
