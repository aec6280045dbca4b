"""Texts as tokens, one at a time: `tokenized`; and a share of them, for one process of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from interp.subject.subject import Subject
from interp.subject.text_rows import Text, numbered, tokens_of


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
        texts: see `numbered`.

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
