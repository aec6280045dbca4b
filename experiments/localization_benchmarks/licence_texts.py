"""The windows of the knock-out study on licences: passages that a model has memorized, and all the
text that their loss must be compared with.

`study_windows(subject)` scans the texts of `licence_texts.toml`, code of recent packages and prose,
and keeps what fits each set:

- `texts_score`, `texts_test`: exactly extracted passages of a few licences as `#` comments; each
  licence is cut in two at one place;
- `other_format`: the passages of `texts_test` in a `/* */` comment, and unwrapped;
- `nearly`: licences of which nothing is in `texts_score`, extracted but for a few tokens;
- `half_known`: other licences, memorized in part;
- `paraphrased`: licence language in other words;
- `memorized`: extracted text of other kinds;
- `rules`: extracted text that follows a rule, which needs no memory;
- `contrast`: code and prose to score against;
- `code`, `prose`: other code and prose, to judge damage on.

No window of another set shares eight words in a row, in whatever format, with `texts_score`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
BATCH_SIZE = 16  # windows per forward pass
CLOSE = 8  # stride in tokens, to find what is exact at some offset
APART = PREFIX + LENGTH  # stride in tokens at which windows share no token
RUN = 8  # words in a row that windows of two sets may not share: about twelve tokens
AT_MOST = 16  # windows per set
A_SOURCE = 4  # of them, windows per text and format
CONTRAST = 24  # windows of `contrast`
# Suffix accuracy of licences that are memorized but for a few tokens, and of those that are
# memorized in part; both ends are included.
NEARLY = (0.9, 1.0)
HALF = (0.4, 0.9)
_TEACHER_FORCED = 1.1  # `decode_from` above 1: no free continuations, which nothing here reads
_FORMATS = ("star", "unwrapped")
_MARK = re.compile(r"#|\*|/\*|\*/")


def study_windows(subject: Subject) -> dict[str, pd.DataFrame]:
    """Every set as windows of 32 + 32 tokens.

    It is the same for one model and one installation; about 400 windows are scanned.

    Returns:
        For each set the columns of `interp.scan`, and `set`, `source` (which text) and `style` (its
        format).

    Raises:
        ValueError: a set without windows.
    """
    texts = corpus()
    score, test = halves(_extracted(subject, texts["studied"], "hash"))
    studied = pd.concat([score, test])
    unstudied = _scanned(subject, texts["unstudied"], "hash", CLOSE)
    half_known = _scanned(subject, texts["half_known"], "hash", APART)
    paraphrased = _scanned(subject, texts["paraphrased"], "hash", APART)
    parts: dict[str, Frame] = {
        "texts_score": score,
        "texts_test": test,
        "other_format": apart(scan_reformatted(subject, texts["studied"], test), score),
        "nearly": apart(_known(unstudied, *NEARLY), studied),
        "paraphrased": apart(paraphrased, studied),
        "half_known": apart(_known(half_known, *HALF), studied),
        "memorized": _extracted(subject, texts["memorized"], "raw"),
        "rules": _extracted(subject, texts["rules"], "raw"),
        **_unrelated(subject, studied),
    }
    return {name: _capped(part, name) for name, part in parts.items()}


def halves(windows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(score, test): each source's windows before and after the token that leaves most windows on
    the smaller side.

    Windows that hold that token are in neither half. The first text is scored on its beginning, the
    next on its end, and so on, so that neither half has all the beginnings.
    """
    score: list[pd.DataFrame] = []
    test: list[pd.DataFrame] = []
    for number, (_, part) in enumerate(windows.groupby("source", sort=False)):
        sides = _sides(part)
        # Even texts are scored on their beginning (side 0), odd ones on their end.
        score.append(sides[number % 2])
        test.append(sides[1 - number % 2])
    scored = pd.concat(score, ignore_index=True)
    return scored, apart(pd.concat(test, ignore_index=True), scored)


def _sides(part: Frame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The windows of one text that end before a token, and those that start there or later."""
    starts = part["start"].to_numpy()
    ends = starts + PREFIX + LENGTH

    def smaller_side(cut: int) -> int:
        return min((ends <= cut).sum(), (starts >= cut).sum())

    # Where several tokens are best, `max` takes the first.
    cut = max(sorted(starts), key=smaller_side)
    return part[ends <= cut], part[starts >= cut]


def apart(windows: pd.DataFrame, others: pd.DataFrame, run: int = RUN) -> pd.DataFrame:
    """The windows that share no `run` words in a row with any of the others, whatever their
    format."""
    known: set[tuple[str, ...]] = set()
    for text in _texts(others):
        known |= _runs(text, run)
    is_apart = [known.isdisjoint(_runs(text, run)) for text in _texts(windows)]
    kept: Frame = windows[is_apart]
    return kept.reset_index(drop=True)


def _texts(windows: pd.DataFrame) -> list[str]:
    pairs = zip(windows["prompt"], windows["suffix"], strict=True)
    return [prompt + suffix for prompt, suffix in pairs]


def _runs(text: str, run: int) -> set[tuple[str, ...]]:
    """All runs of `run` consecutive words in a text, without punctuation and comment marks."""
    words = re.findall(r"[^\W_]+", text.lower())
    starts = range(len(words) - run + 1)
    return {tuple(words[start : start + run]) for start in starts}


def scan_reformatted(
    subject: Subject, texts: Mapping[str, str], windows: pd.DataFrame
) -> pd.DataFrame:
    """The windows again in each other format, with the suffix from the same word on.

    Passages that the new marks push out of the text are left out.
    """
    # Windows that start at the same token of a text are one passage.
    passages: dict[tuple[str, str, int], list[int]] = {}
    for style in _FORMATS:
        for source, start in zip(windows["source"], windows["start"], strict=True):
            # Marks and line breaks of another format move every token. The words are the same: the
            # suffix is found again by the number of words before it.
            word = _words_before(subject, as_comment(texts[source], "hash"), start + PREFIX)
            tokens = _passage(subject, restyle(texts[source], style), word)
            if len(tokens) == PREFIX + LENGTH:
                passages[source, style, start] = tokens
    frame = scan(subject, passages.values(), PREFIX, LENGTH, batch_size=BATCH_SIZE)
    scanned = [list(passages)[number] for number in frame["text"]]
    return frame.assign(
        source=[source for source, _, _ in scanned], style=[style for _, style, _ in scanned]
    )


def _words_before(subject: Subject, text: str, token: int) -> int:
    """How many words of a text begin before a token, not counting comment marks."""
    before = subject.decode(subject.tokens(text)[:token])
    return sum(not _MARK.fullmatch(word) for word in before.split())


def _passage(subject: Subject, text: str, word: int) -> list[int]:
    """The window whose suffix begins with a word, not counting comment marks; shorter where the
    text ends earlier."""
    words = [found for found in re.finditer(r"\S+", text) if not _MARK.fullmatch(found[0])]
    before = text[: words[word - 1].end()]
    middle = len(subject.tokens(before))
    return subject.tokens(text)[max(middle - PREFIX, 0) : middle + LENGTH]


def restyle(text: str, style: str) -> str:
    """A text as it is (`raw`), with each paragraph and list item on one line (`unwrapped`), or as a
    comment (`hash`, `star`)."""
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
    """A scan with `source` and `style`."""
    names = list(texts)
    written = [restyle(text, style) for text in texts.values()]
    frame = scan(
        subject,
        written,
        PREFIX,
        LENGTH,
        stride=stride,
        batch_size=BATCH_SIZE,
        decode_from=_TEACHER_FORCED,
    )
    return frame.assign(source=[names[number] for number in frame["text"]], style=style)


def _extracted(subject: Subject, texts: Mapping[str, str], style: str) -> pd.DataFrame:
    frame: Frame = _scanned(subject, texts, style, CLOSE)
    return frame[frame["exact"]]


def _known(windows: Frame, least: float, most: float) -> pd.DataFrame:
    return windows[windows["accuracy"].between(least, most)]


def _unrelated(subject: Subject, taken: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`contrast`, half code and half prose, and `code` and `prose`: one window per text, no text in
    two sets, none extracted."""
    prose = background(0)
    bodies = list(islice(code(CHARACTERS), 60))
    held_out = {
        "code": _first_windows(subject, bodies[1::2], "code", taken),
        "prose": _first_windows(subject, prose.held_out, "prose", taken),
    }
    avoided = pd.concat([taken, *held_out.values()])
    contrast = [
        _first_windows(subject, bodies[::2], "code", avoided)[: CONTRAST // 2],
        _first_windows(subject, prose.control, "prose", avoided)[: CONTRAST // 2],
    ]
    joined = pd.concat(contrast, ignore_index=True)
    # Code and prose were scanned apart and both count their texts from 0.
    return {"contrast": joined.assign(text=range(len(joined))), **held_out}


def _first_windows(
    subject: Subject, texts: Sequence[str], kind: str, others: pd.DataFrame
) -> pd.DataFrame:
    """The first window of each text that is long enough, for one forward pass of texts; each text
    is a source of its own."""
    windows = islice(_long_enough(subject, texts), BATCH_SIZE)
    frame: Frame = scan(subject, windows, PREFIX, LENGTH, decode_from=_TEACHER_FORCED)
    named = frame.assign(source=[f"{kind} {number}" for number in frame["text"]], style="raw")
    return apart(named[~named["exact"]], others)


def _long_enough(subject: Subject, texts: Iterable[str]) -> Iterator[list[int]]:
    for text in texts:
        tokens = subject.tokens(text)[: PREFIX + LENGTH]
        if len(tokens) == PREFIX + LENGTH:
            yield tokens


def _capped(part: Frame, name: str) -> pd.DataFrame:
    """At most A_SOURCE windows of each text in each format, evenly spread over the text, and at
    most AT_MOST of the set (CONTRAST of `contrast`), in turn from each text."""
    if part.empty:
        raise ValueError(
            f"no window for the set {name}: this model has other memories; expected one that "
            "extracts the licences of the study"
        )
    groups = part.groupby(["source", "style"], sort=False)
    spread: Frame = pd.concat([_spread(group) for _, group in groups])
    # The first window of every text and format, then the second of each, and so on.
    turn = spread.groupby(["source", "style"]).cumcount().sort_values(kind="stable")
    most = CONTRAST if name == "contrast" else AT_MOST
    kept = spread.loc[turn.index[:most]].sort_index()
    return kept.assign(set=name).reset_index(drop=True)


def _spread(group: Frame) -> Frame:
    count = min(A_SOURCE, len(group))
    rows = np.linspace(0, len(group) - 1, count).round().astype(int)
    return group.iloc[np.unique(rows)]
