"""The windows that a scan measures, cut out of texts as they are read; and how far it has come."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any

from interp.data.stream import Place, Stream, tokens_ahead
from interp.data.tokenized import Share
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.subject.text_rows import Text

_SHOWN_AROUND = 8  # tokens: a letter has at most 4, and the space before a word depends on one


@dataclass(frozen=True)
class Progress:
    """How far a scan has come, as JSON can hold it.

    Attributes:
        place: the text of which a window was measured last.
        windows: how many of its windows are measured.
        texts: how many texts come before it, of the share that is scanned.
        skipped: how many of these are shorter than one window.
    """

    place: Place
    windows: int
    texts: int
    skipped: int

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Progress:
        """Returns what `dataclasses.asdict` has made a dictionary of."""
        place = Place(**fields["place"])
        return cls(place, fields["windows"], fields["texts"], fields["skipped"])


@dataclass(frozen=True)
class Window:
    """A prefix and its suffix, cut out of one text.

    Attributes:
        text: number of the text in the corpus.
        start: position of the window's first token in the text.
        tokens: the tokens of prefix and suffix.
        given: what the model is conditioned on, by name (class labels, for instance).
        before, after: a few tokens of the text around the window, to show its text as it reads
            there.
        bos: start tokens that the window is measured behind; they are no part of `tokens`.
        progress: how far a scan has come that has measured all windows up to this one.
    """

    text: int
    start: int
    tokens: tuple[int, ...]
    progress: Progress = field(repr=False, compare=False)
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    bos: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cut:
    """How texts are cut into windows.

    Attributes:
        width: tokens per window.
        stride: tokens from one window to the next.
        bos: start tokens that each window is put behind, and that a text may begin with.
        share: which of the texts; None for all.
    """

    width: int
    stride: int
    bos: tuple[int, ...] = ()
    share: Share | None = None

    def windows(self, text: Text, tokens: list[int], begun: Progress) -> Iterator[Window]:
        """Yields the windows of one text; none if it is shorter than one.

        Args:
            text: the text as it was given.
            tokens: its tokens.
            begun: how far a scan has come that has measured nothing of it.
        """
        behind = self.bos
        if self.bos and tuple(tokens[: len(self.bos)]) == self.bos:
            if not isinstance(text, str) and len(tokens) == self.width:
                behind = ()  # a window by hand, whose start tokens are within it
            else:
                tokens = tokens[len(self.bos) :]
        starts = range(0, len(tokens) - self.width + 1, self.stride)
        for measured, start in enumerate(starts, start=1):
            stop = start + self.width
            first_shown = max(start - _SHOWN_AROUND, 0)
            before = tuple(tokens[first_shown:start])
            after = tuple(tokens[stop : stop + _SHOWN_AROUND])
            yield Window(
                begun.place.number,
                start,
                tuple(tokens[start:stop]),
                replace(begun, windows=measured),
                before=before,
                after=after,
                bos=behind,
            )


class CorpusWindows:
    """The windows of a stream of texts.

    Attributes:
        texts: how many texts were read so far, of the share that is scanned.
        skipped: how many of these are shorter than one window.

    Example:
        >>> from interp.memorization.scan_windows import CorpusWindows, Cut
        >>> corpus = CorpusWindows(subject, [[1, 2, 3, 4, 5], [6]], Cut(width=3, stride=2))
        >>> [(window.text, window.start, window.tokens) for window in corpus.read()]
        [(0, 0, (1, 2, 3)), (0, 2, (3, 4, 5))]
        >>> corpus.texts, corpus.skipped
        (2, 1)
    """

    def __init__(self, subject: Subject, texts: Iterable[Text], cut: Cut) -> None:
        self.texts = 0
        self.skipped = 0
        self._subject = subject
        self._stream = Stream(texts)
        self._cut = cut

    @property
    def digest(self) -> str:
        """A digest of all texts that were read so far, also those of other shares."""
        return self._stream.digest

    def read(self, since: Progress | None = None) -> Generator[Window]:
        """Yields the windows.

        Args:
            since: a scan has come so far; by default, nowhere.

        Raises:
            OtherTextsError: the texts are not those of that scan.
            ValueError: see `interp.data.tokenized.tokenized`.
        """
        if since is not None:
            self.texts = since.texts
            self.skipped = since.skipped
        known = 0 if since is None else since.windows
        # Closed at once when an error comes from within, which keeps them alive as long as somebody
        # looks at it: until then a data set would begin in the middle, and a thread would wait.
        with (
            closing(self._stream.read(None if since is None else since.place)) as stream,
            closing(tokens_ahead(self._subject, self._taken(stream))) as texts,
        ):
            for place, text, tokens in texts:
                begun = Progress(place, 0, self.texts, self.skipped)
                windows = 0
                for window in self._cut.windows(text, tokens, begun):
                    windows += 1
                    if windows > known:
                        yield window
                self.texts += 1
                self.skipped += windows == 0
                known = 0  # only the first text was begun before

    def _taken(self, texts: Iterable[tuple[Place, Text]]) -> Iterator[tuple[Place, Text]]:
        share = self._cut.share
        for place, text in texts:
            if share is None or share.takes(place.number):
                yield place, text


class BatchWindows:
    """The rows of a batch as windows, such as images.

    Attributes:
        texts: how many rows there are.
        skipped: 0, since a row is a window.

    Raises:
        ValueError: the batch has padding, or scores some tokens only.
    """

    def __init__(self, batch: Batch) -> None:
        refuse_partial(batch)
        self.texts = len(batch)
        self.skipped = 0
        conditioning = {name: value.tolist() for name, value in batch.conditioning.items()}
        self._rows: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        for number, tokens in enumerate(batch.tokens.tolist()):
            given = {name: values[number] for name, values in conditioning.items()}
            self._rows.append((tuple(tokens), given))
        # Only for places and a digest: `read` takes the rows themselves by their number.
        self._stream = Stream(map(repr, self._rows))

    @property
    def digest(self) -> str:
        """A digest of all rows that were read so far."""
        return self._stream.digest

    def read(self, since: Progress | None = None) -> Generator[Window]:
        """Yields the windows; see `CorpusWindows.read`."""
        for place, _ in self._stream.read(None if since is None else since.place):
            tokens, given = self._rows[place.number]
            progress = Progress(place, 1, place.number, 0)
            # The row at the place was measured before.
            if progress != since:
                yield Window(place.number, 0, tokens, progress, given)


def refuse_partial(batch: Batch) -> None:
    """Raises ValueError for a batch with padding, or of which some tokens only are scored."""
    if batch.mask is not None or batch.scored is not None:
        raise ValueError("windows are scanned whole: expected a batch without `mask` and `scored`")


def window_batches(stream: Iterable[Window], batch_size: int) -> Iterator[Sequence[Window]]:
    """Yields consecutive windows that can be one batch: behind the same start tokens. Those of
    several texts are in one batch.

    Args:
        stream: the windows.
        batch_size: the most windows in a batch.
    """
    # `groupby` begins anew wherever the start tokens change, and keeps the order of the windows.
    for _, alike in groupby(stream, lambda window: window.bos):
        while chunk := list(islice(alike, batch_size)):
            yield chunk
