"""Texts as they are given: strings, token ids, or rows of a data set; and as batches."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pandas as pd

from interp.subject.batch import Batch, token_ids
from interp.subject.subject import Subject

Text = str | Sequence[int]


def numbered(texts: Iterable[Text], first: int = 0) -> Iterator[tuple[int, Text]]:
    """Yields every text with its number.

    Args:
        texts: strings or sequences of token ids, or rows with a `text`, such as those of a data set
            of `datasets`, also a streamed one.
        first: number of the first one.

    Raises:
        ValueError: if `texts` is a single text or a table, or a row has no `text`.

    Example:
        >>> from interp.subject.text_rows import numbered
        >>> list(numbered([{"text": "one", "id": 7}, "another"]))
        [(0, 'one'), (1, 'another')]
    """
    for number, row in enumerate(several(texts), start=first):
        yield number, _text_of(row, number) if isinstance(row, Mapping) else row


def _text_of(row: Mapping[str, Any], number: int) -> Text:
    if "text" not in row:
        names = ", ".join(repr(name) for name in islice(row, 4))
        raise ValueError(
            f"row {number} has no 'text', only {names or 'nothing'}: expected texts, or rows with "
            "a column 'text'; rename the column that holds them"
        )
    return row["text"]


def several(texts: Iterable[Any]) -> Iterable[Any]:
    """Returns the texts, refusing what is not several: letters of a string would be read as texts,
    and so would the names of a table's columns.

    Raises:
        ValueError: one text, a table, or no texts at all.
    """
    if isinstance(texts, str | bytes):
        raise ValueError("texts is one string: expected several texts, such as [text]")
    if isinstance(texts, pd.DataFrame | Mapping):
        names = ", ".join(repr(name) for name in islice(texts, 4))
        raise ValueError(
            f"texts is a {type(texts).__name__} of {names or 'nothing'}: expected several texts; "
            'take the one column that holds them, such as frame["text"], or one split of a data '
            'set, such as splits["train"]'
        )
    if isinstance(texts, os.PathLike) or not hasattr(texts, "__iter__"):
        raise ValueError(
            f"texts is {texts!r}: expected several texts, such as [text]; "
            "to read files, see interp.data.texts.read_texts"
        )
    return texts


def tokens_of(subject: Subject, text: Text, number: int) -> list[int]:
    """Returns the token ids of a text.

    Args:
        subject: tokenizes strings.
        text: a string or a sequence of token ids.
        number: its number in the corpus, for the message.

    Raises:
        ValueError: it is neither.
    """
    with naming(number):
        return subject.tokens(text) if isinstance(text, str) else token_ids(text)


@contextmanager
def naming(number: int) -> Generator[None]:
    """Says in an error which text it is about.

    Args:
        number: its number in the corpus.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"text {number}: {error}") from error


def text_batches(
    subject: Subject,
    texts: Iterable[Text],
    batch_size: int,
    *,
    length: int | None = None,
    bos: bool = True,
) -> Iterator[Batch]:
    """Yields texts as right-padded batches, read one batch at a time.

    Each batch is what `subject.encode_all` makes of its texts. Only a batch of single tokens
    without start tokens, which `encode_all` refuses because there is nothing to predict, is yielded
    here with an empty prompt: what it activates can be recorded all the same.

    Args:
        subject: tokenizes strings.
        texts: see `numbered`.
        batch_size: number of texts in a batch.
        length: how many tokens to keep of each text, start tokens not counted; by default all.
        bos: whether texts are put behind the start tokens of the tokenizer, which are then the
            prompt.

    Raises:
        ValueError: a number below 1, a text that cannot be read, or one without tokens; the message
            gives its number.

    Example:
        >>> from interp.subject.text_rows import text_batches
        >>> [part.length for part in text_batches(subject, ["abc", "de", "f"], batch_size=2)]
        [3, 1]
    """
    if batch_size < 1 or (length is not None and length < 1):
        raise ValueError(f"batch_size and length must be at least 1; got {batch_size} and {length}")
    start_tokens = subject.bos if bos else ()

    def sequences() -> Iterator[list[int]]:
        for number, text in numbered(texts):
            tokens = tokens_of(subject, text, number)
            own = subject.without_bos(tokens) if bos else tokens
            if not own:
                # Passed over, it would shift the numbers of all examples after it.
                raise ValueError(
                    f"text {number} is empty: expected at least one token in each; leave it out"
                )
            yield [*start_tokens, *own[:length]]

    stream = sequences()
    while chunk := list(islice(stream, batch_size)):
        longest = max(map(len, chunk))
        # A prompt has to leave something to predict, which a single token without start tokens does
        # not.
        prompt = min(max(1, len(start_tokens)), longest - 1)
        yield Batch.pad(chunk, prompt)
