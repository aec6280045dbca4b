"""How often windows of tokens stand in a corpus: `counts`.

A window stands in a document at each position at which its tokens follow one another there, so that
occurrences may overlap: [1, 1] stands twice in [1, 1, 1]. A window never runs from one document
into the next. All counts are exact.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Int

from interp.data.tokenized import tokenized
from interp.progress import track
from interp.subject.batch import token_ids
from interp.subject.subject import Subject
from interp.subject.text_rows import Text

Engine = Literal["memory", "infini-gram"]
Windows = Int[np.ndarray, "windows width"]

# Odd, so that no token is multiplied to 0 modulo 2**64.
_HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
_TOKENS_AT_ONCE = 2**20  # compared, 8 MB
# Of infini-gram's 16-bit index. Its 32-bit index takes 34 GB of memory whatever the corpus.
_SEPARATOR = 2**16 - 1
_GIGABYTES = 4  # for infini-gram to sort in, at most


class Counts:
    """How often any window of tokens stands in a corpus; made by `counts`.

    Attributes:
        documents: number of documents in the corpus.
        tokens: number of tokens in it.
        digest: hash of the documents as tokens: the same for the same corpus and tokenizer.
        tokenizer: what cut the documents into tokens; None if they were given as tokens.
        engine: what counts.

    Example:
        >>> from interp.data.corpus_counts import counts
        >>> counts(subject, texts)
        Counts(8 documents, 256 tokens)
    """

    def __init__(self, index: _Index, digest: str, tokenizer: Any, engine: Engine) -> None:
        self.documents = index.documents
        self.tokens = index.tokens
        self.digest = digest
        self.tokenizer = tokenizer
        self.engine = engine
        self._index = index

    def __repr__(self) -> str:
        return f"Counts({self.documents:,} documents, {self.tokens:,} tokens)"

    def count(self, windows: Sequence[Sequence[int]] | Windows) -> Int[np.ndarray, " windows"]:
        """Returns how often each window stands in the corpus.

        Args:
            windows: token ids, the same number in each window.

        Raises:
            ValueError: windows without tokens or of several lengths, or what is not token ids.

        Example:
            >>> from interp.data.corpus_counts import counts
            >>> corpus = counts(subject, [[1, 1, 1], [1, 2]])
            >>> corpus.count([[1, 1], [1, 2], [2, 1]])
            array([2, 1, 0])
        """
        rows = [_window(number, window) for number, window in enumerate(windows)]
        if not rows:
            return np.zeros(0, dtype=np.int64)
        widths = set(map(len, rows))
        if len(widths) > 1 or widths == {0}:
            raise ValueError(
                f"the windows have {', '.join(map(str, sorted(widths)))} tokens: expected the same "
                "number in each, and at least 1; count those of each length by themselves"
            )
        return self._index.count(np.array(rows, dtype=np.int64))


def _window(number: int, window: Sequence[int]) -> list[int]:
    """The tokens of a window, refusing fractions, which would be rounded, and what is no window."""
    try:
        tokens = token_ids(window)
        _check_range(tokens, 2**63)
    except ValueError as error:
        raise ValueError(f"window {number}: {error}") from error
    return tokens


def _check_range(tokens: Sequence[int], end: int) -> None:
    if tokens and not (min(tokens) >= 0 and max(tokens) < end):
        raise ValueError(
            f"its tokens are from {min(tokens)} to {max(tokens)}: expected token ids of at least 0 "
            f"and below {end}"
        )


class _Index(Protocol):
    """What finds windows among documents."""

    documents: int
    tokens: int

    def count(self, windows: Windows) -> Int[np.ndarray, " windows"]: ...


def counts(subject: Subject, texts: Iterable[Text], *, engine: Engine | None = None) -> Counts:
    """Counts the windows of a corpus, such as the one that a model was trained on.

    Args:
        subject: tokenizes strings. Start tokens that documents begin with are left out.
        texts: the documents, as strings or sequences of token ids, read one at a time.
        engine: "infini-gram" for an index on disk, in the folder for temporary files, until the
            counts are no longer used: needs the package infini-gram, and tokens below 65,535.
            "memory" for an index in memory: 4 bytes per token, and 16 more for each length of
            windows that is asked for. By default infini-gram where it is installed and the
            tokenizer has no more tokens than that. Both give the same counts.

    Returns:
        The counts of any window: see `Counts.count`; for `scan(..., counts=)`.

    Raises:
        ValueError: no documents; what is no text, or token ids out of range (the message gives the
            number of the text); or tokens that infini-gram cannot hold.
        ImportError: infini-gram is asked for and not installed.

    Source: Liu et al. 2024 (arXiv 2401.17377) for infini-gram.

    Example:
        >>> from interp.data.corpus_counts import counts
        >>> corpus = counts(subject, [*texts, *texts[:2]])
        >>> seen = interp.scan(subject, texts, prefix=8, length=8, counts=corpus)
        >>> seen.groupby("text")["count"].first().tolist()
        [2, 2, 1, 1, 1, 1, 1, 1]
    """
    chosen = engine or _default_engine(subject)
    if chosen == "infini-gram":
        _require_infini_gram()
    elif chosen != "memory":
        raise ValueError(f"engine={engine!r}: expected 'memory', 'infini-gram' or None")
    digest = hashlib.sha256()
    documents = _documents(subject, texts, digest)
    index = _OnDisk(documents) if chosen == "infini-gram" else _InMemory(documents)
    if not index.documents:
        raise ValueError("texts holds no document: expected the corpus in which to count")
    return Counts(index, digest.hexdigest()[:16], subject.tokenizer, chosen)


def _documents(
    subject: Subject, texts: Iterable[Text], digest: Any
) -> Iterator[Int[np.ndarray, " tokens"]]:
    """The tokens of each document, from which the digest is made on the way."""
    stream = track(tokenized(subject, texts), "counting")
    for number, (_, tokens) in enumerate(stream):
        try:
            _check_range(tokens, 2**32)
        except ValueError as error:
            raise ValueError(f"text {number}: {error}") from error
        document = np.asarray(subject.without_bos(tokens), dtype=np.uint32)
        digest.update(len(document).to_bytes(8, "little"))
        digest.update(document.astype("<u4").tobytes())
        yield document


def _default_engine(subject: Subject) -> Engine:
    is_installed = importlib.util.find_spec("infini_gram") is not None
    is_small = subject.tokenizer is not None and len(subject.tokenizer) <= _SEPARATOR
    return "infini-gram" if is_installed and is_small else "memory"


def _require_infini_gram() -> None:
    if importlib.util.find_spec("infini_gram") is None:
        raise ImportError(
            'an index on disk needs infini-gram: pip install "interp[counts]" (Linux, or macOS on '
            'ARM); or count with engine="memory"'
        )


class _InMemory:
    """An index of hashes of all windows of one width, made when a width is first asked for.

    Two windows may have one hash, so a hash only says where to look: what counts are the tokens.
    """

    def __init__(self, documents: Iterator[Int[np.ndarray, " tokens"]]) -> None:
        parts = list(documents)
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        self.documents = len(parts)
        self.tokens = int(lengths.sum())
        self._corpus = np.concatenate([*parts, np.zeros(0, dtype=np.uint32)])
        self._ends = lengths.cumsum()
        self._by_width: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def count(self, windows: Windows) -> Int[np.ndarray, " windows"]:
        width = windows.shape[1]
        if width not in self._by_width:
            self._by_width[width] = self._sorted_hashes(width)
        hashes, starts = self._by_width[width]
        of_windows = _hashes(windows.T)
        first = np.searchsorted(hashes, of_windows, side="left")
        last = np.searchsorted(hashes, of_windows, side="right")
        found = [
            self._equal(window, starts[begin:end])
            for window, begin, end in zip(windows, first, last, strict=True)
        ]
        return np.array(found, dtype=np.int64)

    def _sorted_hashes(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of all windows that lie within one document, sorted, and where each starts."""
        starts = np.arange(max(self.tokens - width + 1, 0))
        # The first tokens of all windows, their second ones, and so on, each as one slice.
        hashes = _hashes([self._corpus[offset : offset + len(starts)] for offset in range(width)])
        # The first document that ends behind a place is the one that it lies in.
        document = np.searchsorted(self._ends, starts, side="right")
        is_within = starts + width <= self._ends[document]
        starts = starts[is_within]
        hashes = hashes[is_within]
        order = hashes.argsort()
        return hashes[order], starts[order]

    def _equal(self, window: Int[np.ndarray, " width"], starts: Int[np.ndarray, " places"]) -> int:
        """At how many places the corpus has the tokens of a window."""
        at_once = max(_TOKENS_AT_ONCE // len(window), 1)
        offsets = np.arange(len(window))
        equal = 0
        for begin in range(0, len(starts), at_once):
            places = starts[begin : begin + at_once, None] + offsets  # [places, width]
            is_same: Bool[np.ndarray, " places"] = (self._corpus[places] == window).all(1)
            equal += int(is_same.sum())
        return equal


def _hashes(columns: Iterable[Int[np.ndarray, " windows"]]) -> np.ndarray:
    """A hash of each window, from the first tokens of all windows, the second, and so on: a
    polynomial modulo 2**64."""
    hashes = np.uint64(0)
    for column in columns:
        # 1 more, so that token 0 counts too.
        hashes = hashes * _HASH_BASE + column.astype(np.uint64) + np.uint64(1)
    return np.asarray(hashes)


class _OnDisk:
    """A suffix array of infini-gram, in a temporary folder."""

    def __init__(self, documents: Iterator[Int[np.ndarray, " tokens"]]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="interp-counts-")
        folder = Path(self._folder.name)
        # These are the files that infini-gram makes of texts with the tokenizers it knows. Where it
        # finds them, it goes on from there.
        with (folder / "tokenized.0").open("wb") as tokens, (folder / "offset.0").open("wb") as at:
            self.documents, self.tokens = _write(documents, tokens, at)
        if not self.documents:
            return
        _build(folder)
        from infini_gram.engine import InfiniGramEngine

        engine: Any = InfiniGramEngine(
            [str(folder)], eos_token_id=0, vocab_size=_SEPARATOR, token_dtype="u16"
        )
        self._engine = engine

    def count(self, windows: Windows) -> Int[np.ndarray, " windows"]:
        found = [self._count(window.tolist()) for window in windows]
        return np.array(found, dtype=np.int64)

    def _count(self, window: list[int]) -> int:
        if max(window) >= _SEPARATOR or min(window) < 0:
            return 0  # no token of the corpus
        return self._engine.count(window)["count"]


def _write(
    documents: Iterator[Int[np.ndarray, " tokens"]], tokens: BinaryIO, offsets: BinaryIO
) -> tuple[int, int]:
    """Writes documents, each behind a separator, and where each begins; returns how many documents
    and tokens there are."""
    written = 0
    total = 0
    for document in documents:
        if len(document) and document.max() >= _SEPARATOR:
            raise ValueError(
                f"document {written} has token {document.max()}: infini-gram counts tokens below "
                f'{_SEPARATOR}; count with engine="memory"'
            )
        # Two bytes for each token, and for the separator of each document, that came before.
        offset = 2 * (total + written)  # bytes
        offsets.write(offset.to_bytes(8, "little"))
        tokens.write(_SEPARATOR.to_bytes(2, "little"))
        tokens.write(document.astype("<u2").tobytes())
        written += 1
        total += len(document)
    return written, total


def _build(folder: Path) -> None:
    """Sorts the suffixes of the tokens in a folder."""
    import resource  # infini-gram runs only where this module exists

    if shlex.quote(str(folder)) != str(folder):
        raise ValueError(
            f"infini-gram cannot work in {folder}, whose name a shell would not take as it is: set "
            'TMPDIR to another folder for temporary files, or count with engine="memory"'
        )
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # In a process of its own: it changes the working directory and the limits of its process. With
    # one job, because suffixes are compared over 50,000 tokens at most where the parts of several
    # jobs meet.
    command = [sys.executable, "-m", "infini_gram.indexing"]
    command += ["--data_dir", str(folder), "--save_dir", str(folder), "--token_dtype", "u16"]
    command += ["--cpus", "1", "--mem", str(_GIGABYTES), "--ulimit", str(open_files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / "table.0").exists():
        last_line = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise RuntimeError(
            f'infini-gram could not index the corpus ({last_line}); count with engine="memory"'
        )
