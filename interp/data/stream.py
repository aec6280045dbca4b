"""A corpus as a stream: texts that are read one at a time, from the middle on if need be, with a
digest of all that was read; and their tokens, made ahead of the model."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from interp.subject.batch import token_ids
from interp.subject.subject import Subject
from interp.subject.text_rows import Text, naming, numbered, tokens_of

# Texts that wait for the model, and their characters or tokens: enough for a batch of short ones,
# few where each is a book.
_TEXTS_AHEAD = 64
_LENGTH_AHEAD = 1_000_000


class OtherTextsError(ValueError):
    """A stream does not hold what was read from it before."""


@dataclass(frozen=True)
class Place:
    """Where a text stands in a stream, as JSON can hold it.

    Attributes:
        number: number of the text, from 0.
        state: what the stream's own `state_dict` gave before the text, or the fingerprint of a
            data set with a length; None for a stream that has no such thing.
        before: a digest of all texts before this one.
        through: the same with this one.
    """

    number: int
    state: Any
    before: str
    through: str


class Stream:
    """The texts of a corpus, each with its place.

    Args:
        texts: see `interp.data.tokenized.tokenized`. What has a `state_dict` and a
            `load_state_dict`, such as a streamed data set of `datasets`, is continued by them; a
            data set with a length at a row. Both are trusted about the texts before the place.
            Anything else is read again up to the place, which the digest then verifies; so is what
            says that it has changed: text files, whose state says so, and a data set with another
            fingerprint.

    Attributes:
        digest: a digest of all texts that were read so far. No two corpora have the same.

    Example:
        >>> from interp.data.stream import Stream
        >>> [(_, first), (place, second), _] = Stream(["one", "two", "three"]).read()
        >>> [text for _, text in Stream(["one", "two", "three"]).read(place)]
        ['two', 'three']
    """

    def __init__(self, texts: Iterable[Text]) -> None:
        self._texts = texts
        has_state = hasattr(texts, "state_dict") and hasattr(texts, "load_state_dict")
        # An iterator stands somewhere already, and this stream begins there.
        if has_state and iter(texts) is texts:
            reader: Any = texts
            self._beginning = reader.state_dict()
        elif has_state and "_starting_state_dict" in vars(texts) and not _shuffles(texts):
            # A data set of `datasets` says in no other way where its next reading begins: after
            # one, its `state_dict` is that of the end.
            self._beginning = vars(texts)["_starting_state_dict"]
        else:
            has_state = False
            self._beginning = _fingerprint(texts)
        self._has_state = has_state
        self.digest = ""

    def read(self, since: Place | None = None) -> Generator[tuple[Place, Text]]:
        """Yields texts with their places.

        Args:
            since: the place of the first one; by default, the beginning.

        Raises:
            OtherTextsError: at that place stands another text than before, or none; or others came
                before it, where these are read.
            ValueError: as in `tokenized`.
        """
        try:
            yield from self._all() if since is None else self._since(since)
        finally:
            # A data set of `datasets` would go on from here wherever it is read next.
            self._load(self._beginning)

    def _all(self) -> Iterator[tuple[Place, Text]]:
        self._load(self._beginning)
        self.digest = ""
        return self._placed(self._texts, 0, self._beginning)

    def _since(self, place: Place) -> Iterator[tuple[Place, Text]]:
        # A stream may not continue to the row, and then it is read again. So is one whose state is
        # that of other files, or of a data set that was put together otherwise: `datasets` finds
        # that out in the middle of what it loads.
        try:
            found = _beginning_with(place, self._continued(place))
        except (ValueError, LookupError, TypeError, AttributeError):
            found = None
        if found is None:
            found = _beginning_with(place, self._read_again(place))
        if found is None:
            raise OtherTextsError(f"text {place.number} is not the one that was read there before")
        return found

    def _continued(self, place: Place) -> Iterator[tuple[Place, Text]]:
        rows: Any = self._texts
        has_length = hasattr(rows, "select") and hasattr(rows, "__len__")
        if self._has_state and place.state is not None:
            self._load(place.state)
        elif has_length and place.state == _fingerprint(rows):
            # `datasets` refuses to select no row from the end.
            rest = range(place.number, len(rows))
            rows = rows.select(rest) if rest else []
        else:
            return self._read_again(place)
        self.digest = place.before
        return self._placed(rows, place.number, place.state)

    def _read_again(self, place: Place) -> Iterator[tuple[Place, Text]]:
        """From the beginning, but yielding nothing before the place."""
        for found, text in self._all():
            if found.number >= place.number:
                yield found, text

    def _placed(
        self, texts: Iterable[Text], first: int, state: Any
    ) -> Iterator[tuple[Place, Text]]:
        """The texts with their places.

        Args:
            texts: the texts.
            first: number of the first one.
            state: the stream's own state before it.
        """
        for number, text in numbered(texts, first):
            before = self.digest
            self.digest = _chained(before, text, number)
            yield Place(number, state, before, self.digest), text
            # Now, when one text was taken and the next was not, it is the place of the next.
            state = self._state()

    def _state(self) -> Any:
        texts: Any = self._texts
        return texts.state_dict() if self._has_state else _fingerprint(texts)

    def _load(self, state: Any) -> None:
        texts: Any = self._texts
        if self._has_state:
            texts.load_state_dict(state)


def _beginning_with(
    place: Place, texts: Iterator[tuple[Place, Text]]
) -> Iterator[tuple[Place, Text]] | None:
    """The texts; None if the first of them is not the one that belongs to the place."""
    first = next(texts, None)
    if first is None or first[0].through != place.through:
        return None
    return chain([first], texts)


def _fingerprint(texts: Any) -> str | None:
    """What a data set of `datasets` that has a length says of its contents: another one has
    another."""
    return getattr(texts, "_fingerprint", None)


def _shuffles(rows: Any) -> bool:
    """Whether a streamed data set of `datasets`, or one that it is made of, shuffles within a
    buffer.

    Its state does not hold the buffer: the rows that are in it would be left out. That the first
    text is the right one does not show it where a text is there several times.
    """
    if type(rows).__name__ == "BufferShuffledExamplesIterable":
        return True
    inner = [vars(rows).get(name) for name in ("_ex_iterable", "ex_iterable")]
    inner += vars(rows).get("ex_iterables", [])
    return any(_shuffles(part) for part in inner if part is not None)


def _chained(before: str, text: Text, number: int) -> str:
    """The digest of a corpus with one text more."""
    is_string = isinstance(text, str)
    with naming(number):
        content = text if is_string else repr(token_ids(text))
    kind = "text" if is_string else "ids"
    # Half of a surrogate pair is refused where the text is tokenized.
    encoded = content.encode("utf-8", "surrogatepass")
    return hashlib.sha256(f"{before} {kind} ".encode() + encoded).hexdigest()


def tokens_ahead(
    subject: Subject, placed: Iterable[tuple[Place, Text]]
) -> Generator[tuple[Place, Text, list[int]]]:
    """Yields every text with its token ids, which a thread makes while the model runs.

    The texts are asked for by the caller's thread: a generator of texts may use what is bound to
    it, such as the model itself.

    Args:
        subject: tokenizes strings.
        placed: texts with their places.

    Raises:
        ValueError: a text is neither a string nor a sequence of whole numbers.

    Example:
        >>> from interp.data.stream import Stream, tokens_ahead
        >>> for place, text, tokens in tokens_ahead(subject, Stream(["ab", [1, 2, 3]]).read()):
        ...     print(place.number, len(tokens))
        0 2
        1 3
    """
    waiting: deque[tuple[Place, Text, Future[list[int]]]] = deque()
    length = 0
    with ThreadPoolExecutor(1, "tokenizer") as worker:
        try:
            for place, text in placed:
                tokens = worker.submit(tokens_of, subject, text, place.number)
                waiting.append((place, text, tokens))
                length += len(text)
                while len(waiting) > _TEXTS_AHEAD or length > _LENGTH_AHEAD:
                    next_place, next_text, next_tokens = waiting.popleft()
                    length -= len(next_text)
                    yield next_place, next_text, next_tokens.result()
            for next_place, next_text, next_tokens in waiting:
                yield next_place, next_text, next_tokens.result()
        finally:
            worker.shutdown(cancel_futures=True)
