"""Texts as tokens, one at a time: `tokenized`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import pandas as pd

from interp.subject.batch import token_ids
from interp.subject.subject import Subject

Text = str | Sequence[int]


def tokenized(subject: Subject, texts: Iterable[Text]) -> Iterator[tuple[Text, list[int]]]:
    """Yields every text with its token ids, without start tokens but those it was given with.

    Args:
        subject: tokenizes strings.
        texts: strings or sequences of token ids.

    Raises:
        ValueError: if `texts` is a single text or a table, or a text is neither a string nor a
            sequence of whole numbers; the message gives its number.

    Example:
        >>> from interp.data.tokenized import tokenized
        >>> [len(tokens) for _, tokens in tokenized(subject, texts[:2])]
        [32, 32]
    """
    for number, text in enumerate(_several(texts)):
        try:
            yield text, subject.tokens(text) if isinstance(text, str) else token_ids(text)
        except ValueError as error:
            raise ValueError(f"text {number}: {error}") from error


def _several(texts: Iterable[Text]) -> Iterable[Text]:
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
