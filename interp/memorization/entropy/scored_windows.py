"""Memorization scores: how far what a model generates is from what stands in the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Int
from rapidfuzz.distance import Levenshtein

from interp.memorization.scan_windows import CorpusWindows, Cut, Window, window_batches
from interp.memorization.teacher_forcing import TeacherForced, teacher_force
from interp.progress import track
from interp.subject.batch import Batch
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject
from interp.subject.text_rows import Text

_BUFFERED = 100_000  # digests that are not sorted yet


@dataclass(frozen=True, eq=False)
class ScoredWindows:
    """Some windows of a corpus with their memorization scores.

    Attributes:
        texts: [windows] number of each window's text in the corpus.
        prompts: [windows, prefix] the tokens that the model is given.
        suffixes: [windows, length] the tokens that follow in the corpus.
        scores: [windows] token edit distance between the greedy continuation and the suffix, from 0
            (reproduced) to `length`.
        log_p: [windows] log-probability of the suffix, in nats.
    """

    texts: Int[np.ndarray, " windows"]
    prompts: Int[np.ndarray, "windows prefix"]
    suffixes: Int[np.ndarray, "windows length"]
    scores: Int[np.ndarray, " windows"]
    log_p: Float[np.ndarray, " windows"]

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, chosen: np.ndarray) -> ScoredWindows:
        """Returns some of the windows.

        Args:
            chosen: their numbers, or a mask.
        """
        return ScoredWindows(
            self.texts[chosen],
            self.prompts[chosen],
            self.suffixes[chosen],
            self.scores[chosen],
            self.log_p[chosen],
        )


def joined(parts: Sequence[ScoredWindows]) -> ScoredWindows:
    """Returns the windows of several parts as one.

    Args:
        parts: at least one, all with the same prefix and length.
    """
    return ScoredWindows(
        np.concatenate([part.texts for part in parts]),
        np.concatenate([part.prompts for part in parts]),
        np.concatenate([part.suffixes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.log_p for part in parts]),
    )


def joined_corpora(corpora: Sequence[ScoredWindows]) -> ScoredWindows:
    """Returns the windows of several corpora as those of one, in which the texts of each are
    numbered on from those before: else windows of different texts would pass for neighbours.

    Args:
        corpora: at least one, all with the same prefix and length.

    Example:
        >>> from interp.memorization.entropy.scored_windows import joined_corpora, score_all
        >>> scored = score_all(subject, texts[:2], prefix=8, length=16)
        >>> joined_corpora([scored, scored]).texts
        array([0, 1, 2, 3])
    """
    together = joined(corpora)
    first = 0
    numbers: list[np.ndarray] = []
    for corpus in corpora:
        numbers.append(first + corpus.texts)
        first += int(corpus.texts.max()) + 1
    return replace(together, texts=np.concatenate(numbers))


def score_windows(
    subject: Subject,
    texts: Iterable[Text],
    prefix: int = 32,
    length: int = 32,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    bos: bool = True,
    distinct: bool = True,
    counts: dict[str, int] | None = None,
) -> Iterator[ScoredWindows]:
    """Yields the windows of a corpus with their memorization scores, batch by batch.

    The score is the token-level Levenshtein distance between the suffix and the greedy continuation
    of the prompt, which is always decoded to the length of the suffix: an end token does not end
    it. A *low* score means that the window is memorized, or easy to guess.

    Source: Huang et al. 2025 (arXiv 2507.06056); "discoverable memorization" is Carlini et al. 2023
    (arXiv 2202.07646).

    Args:
        subject: the model.
        texts: strings or sequences of token ids, read one at a time.
        prefix: tokens of the prompt.
        length: tokens of the suffix.
        stride: tokens from the start of one window to the start of the next; by default `length`.
            With less, suffixes overlap, so that levels hold the same tokens several times.
        batch_size: batch size, in windows.
        bos: whether each window is measured behind the start tokens of the subject's tokenizer.
        distinct: whether a window that has been seen before is left out. A licence that stands in a
            thousand files would otherwise be most of a level. 8 bytes per window are kept for this.
        counts: updated in place: `texts` read, `skipped` because they are shorter than a window,
            and `repeated` windows that were left out.

    Raises:
        ValueError: a number below 1, texts that cannot be read, a window that is longer than the
            model has positions for, or logits that are NaN or infinite.

    Example:
        >>> from interp.memorization.entropy.scored_windows import score_windows
        >>> parts = score_windows(subject, texts, prefix=8, length=8)
        >>> [part.scores.tolist() for part in parts]
        [[0, 0, 0, 0, ...]]
    """
    stride = length if stride is None else stride
    if min(prefix, length, stride, batch_size) < 1:
        raise ValueError(
            "prefix, length, stride and batch_size must be at least 1; "
            f"got {prefix}, {length}, {stride} and {batch_size}"
        )
    counted = counts if counts is not None else {}
    for name in ("texts", "skipped", "repeated"):
        counted.setdefault(name, 0)
    start_tokens = subject.bos if bos else ()
    corpus = CorpusWindows(subject, texts, Cut(prefix + length, stride, start_tokens))
    stream = _counting(corpus, counted)
    if distinct:
        stream = _distinct(stream, counted)

    def measure(part: Sequence[Window]) -> ScoredWindows:
        return _score(subject, part, prefix)

    limit = BatchLimit()
    # Each batch switches gradients and dropout off for itself. Around the loop, that would last
    # while the caller works on what is yielded.
    for chunk in track(window_batches(stream, batch_size), "scoring"):
        for _, scored in limit.run(measure, chunk):
            yield scored


def score_all(
    subject: Subject,
    texts: Iterable[Text],
    prefix: int = 32,
    length: int = 32,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    bos: bool = True,
    distinct: bool = True,
) -> ScoredWindows:
    """Returns all windows of a corpus with their memorization scores, in memory.

    Args:
        subject, texts, prefix, length, stride, batch_size, bos, distinct: see `score_windows`.

    Raises:
        ValueError: as `score_windows`; or no text is as long as one window.

    Example:
        >>> from interp.memorization.entropy.scored_windows import score_all
        >>> len(score_all(subject, texts, prefix=8, length=8))
        24
    """
    counts: dict[str, int] = {}
    parts = list(
        score_windows(
            subject,
            texts,
            prefix,
            length,
            stride=stride,
            batch_size=batch_size,
            bos=bos,
            distinct=distinct,
            counts=counts,
        )
    )
    if not parts:
        raise ValueError(
            f"nothing to score: {counts['skipped']} of {counts['texts']} texts are shorter than "
            f"{prefix + length} tokens"
        )
    return joined(parts)


def edit_distances(
    forced: TeacherForced, targets: Int[np.ndarray, "windows length"]
) -> Int[np.ndarray, " windows"]:
    """Returns the token edit distance between greedy continuations and the true suffixes.

    Args:
        forced: what `teacher_force` returned, with all windows decoded.
        targets: the true suffixes.
    """
    pairs = zip(forced.continuation.tolist(), targets.tolist(), strict=True)
    distances = [Levenshtein.distance(continuation, truth) for continuation, truth in pairs]
    return np.array(distances, dtype=np.int64)


def _score(subject: Subject, part: Sequence[Window], prefix: int) -> ScoredWindows:
    # The same for all, see `window_batches`.
    bos = part[0].bos
    tokens = torch.tensor([[*bos, *window.tokens] for window in part])
    batch = Batch(tokens, len(bos) + prefix)
    # From 0 on every window is decoded: scores need all continuations.
    forced = teacher_force(subject, batch, decode_from=0.0)
    suffixes = batch.targets.numpy()
    return ScoredWindows(
        texts=np.array([window.text for window in part], dtype=np.int64),
        prompts=tokens[:, len(bos) : len(bos) + prefix].numpy().astype(np.int32),
        suffixes=suffixes.astype(np.int32),
        scores=edit_distances(forced, suffixes),
        log_p=forced.log_p,
    )


def _counting(corpus: CorpusWindows, counts: dict[str, int]) -> Iterator[Window]:
    """The windows, while `counts` says how many texts were read."""
    read = counts["texts"]
    skipped = counts["skipped"]
    for window in corpus.read():
        yield window
        counts["texts"] = read + corpus.texts
        counts["skipped"] = skipped + corpus.skipped
    # Texts that are too short may follow the last window.
    counts["texts"] = read + corpus.texts
    counts["skipped"] = skipped + corpus.skipped


def _distinct(stream: Iterator[Window], counts: dict[str, int]) -> Iterator[Window]:
    """The windows, each of them once."""
    # Digests of 64 bits, sorted in an array: a set of Python objects would take ten times as much
    # memory, more than the windows themselves. Among ten million windows the chance that any two
    # share a digest by accident is 3 in a million, and would cost one window.
    ordered = np.empty(0, dtype=np.uint64)
    recent: set[int] = set()
    for window in stream:
        packed = np.array(window.tokens, dtype=np.int64).tobytes()
        digest = int.from_bytes(blake2b(packed, digest_size=8).digest(), "little")
        if digest in recent or _contains(ordered, digest):
            counts["repeated"] += 1
            continue
        recent.add(digest)
        if len(recent) == _BUFFERED:
            # `union1d` returns sorted values, as `_contains` needs.
            ordered = np.union1d(ordered, np.array(list(recent), dtype=np.uint64))
            recent.clear()
        yield window


def _contains(ordered: np.ndarray, digest: int) -> bool:
    wanted = np.uint64(digest)
    place = int(np.searchsorted(ordered, wanted))
    return place < len(ordered) and ordered[place] == wanted
