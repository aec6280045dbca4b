"""Texts as tokens, one at a time: `tokenized`; and a share of them, for one process of several."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd

from interp.subject.batch import token_ids
from interp.subject.subject import Subject

Text = str | Sequence[int]


@dataclass(frozen=True)
class Share:
    """Which texts of a corpus one of several processes takes: each `of`-th one, from `index` on.

    Attributes:
        index: the number of the process, from 0.
        of: the number of processes.

    Raises:
        ValueError: an index that is not from 0 to `of` - 1.

    Example:
        >>> from interp.data.tokenized import Share
        >>> [number for number in range(7) if Share(1, of=3).takes(number)]
        [1, 4]
    """

    index: int
    of: int

    def __post_init__(self) -> None:
        if self.of < 1:
            raise ValueError(f"{self.of} shares: expected at least 1")
        if not 0 <= self.index < self.of:
            raise ValueError(
                f"share {self.index} of {self.of}: expected a number from 0 to {self.of - 1}"
            )

    def takes(self, number: int) -> bool:
        """Returns whether the text of a number is in this share."""
        return number % self.of == self.index


def tokenized(subject: Subject, texts: Iterable[Text]) -> Iterator[tuple[Text, list[int]]]:
    """Yields every text with its token ids, without start tokens but those it was given with.

    Args:
        subject: tokenizes strings.
        texts: strings or sequences of token ids, or rows with a `text`, such as those of a data set
            of `datasets`.

    Raises:
        ValueError: if `texts` is a single text or a table, or a text is neither a string nor a
            sequence of whole numbers, or a row has no `text`; the message gives its number.

    Example:
        >>> from interp.data.tokenized import tokenized
        >>> [len(tokens) for _, tokens in tokenized(subject, texts[:2])]
        [32, 32]
    """
    for number, text in numbered(texts):
        yield text, tokens_of(subject, text, number)


def tokens_of(subject: Subject, text: Text, number: int) -> list[int]:
    """Returns the token ids of a text.

    Args:
        subject: tokenizes strings.
        text: a string or a sequence of token ids.
        number: its number in the corpus, for the message.

    Raises:
        ValueError: it is neither.
    """
    with named_text(number):
        return subject.tokens(text) if isinstance(text, str) else token_ids(text)


@contextmanager
def named_text(number: int) -> Generator[None]:
    """Says in an error which text it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"text {number}: {error}") from error


def numbered(texts: Iterable[Text], first: int = 0) -> Iterator[tuple[int, Text]]:
    """Yields every text with its number.

    Args:
        texts: see `tokenized`.
        first: number of the first one.

    Raises:
        ValueError: if `texts` is a single text or a table, or a row has no `text`.

    Example:
        >>> from interp.data.tokenized import numbered
        >>> list(numbered([{"text": "one", "id": 7}, "another"]))
        [(0, 'one'), (1, 'another')]
    """
    for number, row in enumerate(_several(texts), start=first):
        yield number, _text_of(row, number) if isinstance(row, Mapping) else row


def _text_of(row: Mapping[str, Any], number: int) -> Text:
    if "text" not in row:
        names = ", ".join(repr(name) for name in islice(row, 4))
        raise ValueError(
            f"row {number} has no 'text', only {names or 'nothing'}: expected texts, or rows with "
            "a column 'text'; rename the column that holds them"
        )
    return row["text"]


def _several(texts: Iterable[Text]) -> Iterable[Any]:
    """The texts, refusing what is not several: letters of a string would be read as texts, and so
    would the names of a table's columns."""
    if isinstance(texts, str | bytes):
        raise ValueError("texts is one string: expected several texts, such as [text]")
    if isinstance(texts, pd.DataFrame | Mapping):
        names = ", ".join(repr(name) for name in islice(texts, 4))
        raise ValueError(
            f"texts is a {type(texts).__name__} of {names or 'nothing'}: expected several texts; "
            'take the one column that holds them, such as frame["text"]'
        )
    if isinstance(texts, os.PathLike) or not hasattr(texts, "__iter__"):
        raise ValueError(
            f"texts is {texts!r}: expected several texts, such as [text]; "
            "to read files, see interp.data.texts.read_texts"
        )
    return texts
