"""Recitation: how much of a passage a model gives back, as unlearning measures it.

Two measures, of whole sequences or of the secrets in them:

- *MA*, memorization accuracy: the fraction of tokens that are the most likely ones, given the true
  tokens before them.
- *EL_n*, extraction likelihood: the model continues the passage greedily from each of its
  beginnings. EL_n is the mean fraction of the n-grams of a continuation that the true rest of the
  passage contains. It is 1 where the model recites from everywhere, and small where it
  paraphrases.

One teacher-forced forward gives MA, and most of EL_n. A greedy continuation is the truth up to the
first token that the model gets wrong. All beginnings that end between two wrong tokens therefore
share what follows the second one, so that one continuation is decoded per wrong token, not one per
beginning, and none for a passage that the model knows.

Sources: Tirumala et al. 2022 (arXiv 2205.10770) for MA, Jang et al. 2022 (arXiv 2210.01504) for
EL_n, Chu et al. 2025 (arXiv 2509.13755) for both on secrets and for `reduction` and `retention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.hooks.clock import prompt_length
from interp.hooks.modes import checkpointing_off
from interp.progress import track
from interp.subject.batch import Batch
from interp.subject.batch_limit import BatchLimit
from interp.subject.decoding import Decoder, at_tokens, check_finite
from interp.subject.subject import Subject, evaluating, token_losses

NGRAMS = (3, 5, 10)


@dataclass(frozen=True)
class Passage:
    """A run of tokens that count, in one row of a batch: a secret, or all tokens after the prompt.

    Attributes:
        row: the row.
        start, stop: positions of its tokens, `stop` excluded.
    """

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Miss:
    """A wrong token of a passage, after which the model is continued up to `stop`."""

    row: int
    position: int
    stop: int


def recitation(
    subject: Subject, batch: Batch, ngrams: Sequence[int] = NGRAMS, *, batch_size: int = 16
) -> pd.DataFrame:
    """Measures MA and EL_n of each passage of a batch.

    A passage is a run of neighbouring tokens that count (see `Batch.counted`): all tokens after the
    prompt, or one secret where `scored` marks secrets. It is measured given everything before it.
    For a secret of K tokens, EL_n is the mean over i = 0 to K - n of the overlap of the
    continuation after its first i tokens; a passage of fewer than n tokens has an EL_n of 1 if its
    greedy continuation is the passage, else of 0. Padding is never counted. Active interventions
    apply: the result is then about the changed model.

    Args:
        subject: the model.
        batch: the passages in their rows.
        ngrams: the numbers n of EL_n; with none, only MA is measured, without any decoding.
        batch_size: batch size, in rows or continuations.

    Returns:
        One row per passage: `row`, `start` and `stop` (positions in the row), `ma`, `exact`
        (whether the greedy continuation from its start is the passage), `log_p` of the passage in
        nats, and `el_<n>` for each n. See `levels` for means.

    Raises:
        ValueError: a row without a token that counts, a passage without a token before it, an n
            below 1, EL_n of a model that predicts several tokens together, or a logit that is NaN
            or infinite.

    Example:
        >>> from interp.memorization.recitation import recitation
        >>> recitation(subject, batch, ngrams=(3,)).head(2)
           row  start  stop   ma  exact     log_p  el_3
        0    0      8    16  1.0   True ...   1.0
        1    1      8    16  1.0   True ...   1.0
    """
    if any(n < 1 for n in ngrams):
        raise ValueError(f"ngrams={tuple(ngrams)}: expected numbers of tokens, at least 1")
    subject.check(batch)
    found = passages(batch)
    if ngrams:
        _check_continuable(subject, batch, found)

    with evaluating(subject), checkpointing_off(subject.module):
        # Three steps: one forward finds the wrong tokens, each of them is continued, and further
        # down the continuation of every beginning is put together of truth and what was decoded.
        hits, greedy, log_p = _teacher_force(subject, batch, batch_size)
        continuations: dict[_Miss, np.ndarray] = {}
        if ngrams:
            misses = list(_misses(found, hits))
            continuations = _continue(subject, batch, misses, greedy, batch_size)

    tokens = batch.tokens.cpu().numpy()
    rows: list[dict[str, Any]] = []
    for passage in found:
        of_passage = slice(passage.start, passage.stop)
        own_hits = hits[passage.row, of_passage]
        columns: dict[str, Any] = {
            "row": passage.row,
            "start": passage.start,
            "stop": passage.stop,
            "ma": own_hits.mean(),
            "exact": bool(own_hits.all()),
            "log_p": log_p[passage.row, of_passage].sum(),
        }
        if ngrams:
            truth = tokens[passage.row, of_passage]
            recited = _recited(passage, truth, own_hits, continuations)
            for n in ngrams:
                columns[f"el_{n}"] = extraction_likelihood(recited, truth.tolist(), n)
        rows.append(columns)
    return pd.DataFrame(rows)


def passages(batch: Batch) -> list[Passage]:
    """Returns the runs of tokens that count, row by row.

    Args:
        batch: the batch.

    Raises:
        ValueError: a row without a token that counts.

    Example:
        >>> from interp.memorization.recitation import passages
        >>> scored = torch.tensor([[False, True, True, False, True]])
        >>> passages(interp.Batch(torch.arange(5)[None], scored=scored))
        [Passage(row=0, start=1, stop=3), Passage(row=0, start=4, stop=5)]
    """
    found: list[Passage] = []
    for row, counted in enumerate(batch.counted.cpu().numpy()):
        # A run begins where the difference to the neighbour is 1, and ends where it is -1.
        steps = np.diff(counted.astype(int), prepend=0, append=0)
        starts = np.flatnonzero(steps == 1) + batch.prompt
        stops = np.flatnonzero(steps == -1) + batch.prompt
        if not len(starts):
            raise ValueError(
                f"row {row} has no token that counts: expected at least one after the prompt that "
                "is not padding and, where `scored` is given, is scored; leave the row out"
            )
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            found.append(Passage(row, start, stop))
    return found


def overlap(generated: Sequence[int], truth: Sequence[int], n: int) -> float:
    """Returns the fraction of the n-grams of one sequence that another one contains.

    Repeats in `generated` all count (equation 5 of arXiv 2509.13755, as its authors compute it).

    Args:
        generated: what the model generated, at least n tokens.
        truth: what it is compared with.
        n: tokens per n-gram.

    Raises:
        ValueError: `generated` is shorter than n.

    Example:
        >>> from interp.memorization.recitation import overlap
        >>> overlap("bcbcb", "bcdef", n=2)
        0.5
    """
    count = len(generated) - n + 1
    if count < 1:
        raise ValueError(f"{len(generated)} tokens have no {n}-gram: expected at least {n} tokens")
    known = set(_ngrams(truth, n))
    shared = [ngram for ngram in _ngrams(generated, n) if ngram in known]
    return len(shared) / count


def _ngrams(sequence: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    for start in range(len(sequence) - n + 1):
        yield tuple(sequence[start : start + n])


def extraction_likelihood(recited: Sequence[Sequence[int]], truth: Sequence[int], n: int) -> float:
    """Returns EL_n of a passage from its continuations.

    Args:
        recited: for each i from 0, the greedy continuation after the first i tokens of the
            passage, up to its end.
        truth: the tokens of the passage.
        n: tokens per n-gram.

    Returns:
        The mean overlap with the rest of the passage, over all i that leave at least n tokens. If
        the passage has fewer than n tokens: 1 if the first continuation is the passage, else 0.

    Example:
        >>> from interp.memorization.recitation import extraction_likelihood
        >>> extraction_likelihood(["abx", "bc"], "abc", n=2)
        0.75
    """
    length = len(truth)
    if length < n:
        return float(list(recited[0]) == list(truth))
    starts = range(length - n + 1)
    overlaps = [overlap(recited[start], truth[start:], n) for start in starts]
    return float(np.mean(overlaps))


def by_row(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean of each measure over the passages of each row.

    Args:
        frame: what `recitation` returned.

    Returns:
        One row per row of the batch, with `ma` and the `el_<n>` that were measured.

    Example:
        >>> from interp.memorization.recitation import by_row
        >>> by_row(pd.DataFrame({"row": [0, 0], "ma": [0.75, 1.0]}))
              ma
        row
        0    0.875
    """
    names = [name for name in map(str, frame) if name == "ma" or name.startswith("el_")]
    grouped: Any = frame.groupby("row")
    return grouped[names].mean()


def levels(frame: pd.DataFrame) -> dict[str, float]:
    """Returns the mean of each measure: over the passages of a row first, then over rows.

    Of data that the model has not seen, these are the thresholds below which a passage counts as
    forgotten (equation 6 of arXiv 2509.13755).

    Args:
        frame: what `recitation` returned.

    Example:
        >>> from interp.memorization.recitation import levels, recitation
        >>> unseen = interp.Batch.from_frame(control)
        >>> levels(recitation(subject, unseen, ngrams=(3,)))["el_3"] < 0.5
        True
    """
    means = by_row(frame).mean()
    return {str(name): float(value) for name, value in means.items()}


def reduction(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Returns how much of the recitation is gone: the mean over measures of 1 - after / before.

    It is `Red.` in table 3 of arXiv 2509.13755, over MA, EL_3, EL_5 and EL_10.

    Args:
        before: the level of each measure before unlearning.
        after: the same measures afterwards.

    Raises:
        ValueError: different measures, none, or one that was 0 before.

    Example:
        >>> from interp.memorization.recitation import reduction
        >>> reduction({"ma": 1.0, "el_3": 0.5}, {"ma": 0.25, "el_3": 0.0})
        0.875
    """
    return 1 - _mean_ratio(before, after)


def retention(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Returns how much of a utility is left: the mean over measures of after / before.

    It is `Ret.` in table 4 of arXiv 2509.13755, over pass@1, pass@5 and pass@10.

    Args:
        before: each measure of utility before unlearning, higher for a better model.
        after: the same measures afterwards.

    Raises:
        ValueError: different measures, none, or one that was 0 before.

    Example:
        >>> from interp.memorization.recitation import retention
        >>> retention({"pass_1": 50.0, "pass_5": 80.0}, {"pass_1": 25.0, "pass_5": 80.0})
        0.75
    """
    return _mean_ratio(before, after)


def _mean_ratio(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    if not before or before.keys() != after.keys():
        raise ValueError(
            f"before has {', '.join(before) or 'nothing'} and after {', '.join(after) or 'nothing'}"
            ": expected the same measures, at least one"
        )
    zero = [name for name, value in before.items() if not value > 0]
    if zero:
        raise ValueError(
            f"{zero[0]} was {before[zero[0]]} before, so that no share of it can be left: expected "
            "positive numbers; leave this measure out"
        )
    return float(np.mean([after[name] / value for name, value in before.items()]))


def _check_continuable(subject: Subject, batch: Batch, found: Sequence[Passage]) -> None:
    groups = subject.stepwise.groups(batch.length)
    if any(stop - start != 1 for start, stop in groups):
        raise ValueError(
            f"{subject.name} predicts several tokens together, so that it cannot be continued from "
            "each token: EL_n is not defined; pass ngrams=() for MA alone"
        )
    first = min(passage.start for passage in found)
    subject.stepwise.check_prompt(first)


def _teacher_force(
    subject: Subject, batch: Batch, batch_size: int
) -> tuple[Bool[np.ndarray, "batch position"], Int[Tensor, "batch position"], np.ndarray]:
    """For each position: whether its token is the most likely one, which token is, and the log p of
    the true one. Positions that do not count (the prompt, padding, what is not scored) mean
    nothing."""

    def measure(part: Batch) -> tuple[Tensor, Tensor]:
        logits = subject.target_logits(part)
        return logits.argmax(-1).cpu(), -token_losses(logits, part).cpu().double()

    greedy = torch.zeros(batch.tokens.shape, dtype=torch.long)
    log_p = torch.zeros(batch.tokens.shape, dtype=torch.double)
    limit = BatchLimit()
    done = 0
    for part in track(list(batch.split(batch_size)), "reciting"):
        for smaller, (most_likely, of_true) in limit.run(measure, part):
            rows = slice(done, done + len(smaller))
            greedy[rows, batch.prompt :] = most_likely
            log_p[rows, batch.prompt :] = of_true
            done += len(smaller)
    hits = greedy == batch.tokens.cpu()
    return hits.numpy(), greedy, log_p.numpy()


def _misses(found: Sequence[Passage], hits: np.ndarray) -> Iterator[_Miss]:
    """The wrong tokens of all passages."""
    for passage in found:
        wrong = np.flatnonzero(~hits[passage.row, passage.start : passage.stop])
        for position in (wrong + passage.start).tolist():
            yield _Miss(passage.row, position, passage.stop)


def _continue(
    subject: Subject,
    batch: Batch,
    misses: Sequence[_Miss],
    greedy: Int[Tensor, "batch position"],
    batch_size: int,
) -> dict[_Miss, Int[np.ndarray, " generated"]]:
    """The greedy continuation from each wrong token on, up to the end of its passage."""
    limit = BatchLimit()
    continuations: dict[_Miss, np.ndarray] = {}
    for chunk in track(list(_chunks(misses, batch_size)), "continuing"):
        parts = limit.run(lambda part: _decode(subject, batch, part, greedy), chunk)
        for part, generated in parts:
            for miss, row in zip(part, generated, strict=True):
                continuations[miss] = row[miss.position : miss.stop]
    return continuations


def _chunks(misses: Sequence[_Miss], batch_size: int) -> Iterator[list[_Miss]]:
    """Wrong tokens that are continued together, in order of their positions. Each begins before
    the longest of those before it has ended: otherwise the rows would not be decoded at the same
    time, and one would only wait for the other."""
    chunk: list[_Miss] = []
    end = 0
    for miss in sorted(misses, key=lambda miss: (miss.position, miss.stop, miss.row)):
        # At `end` all rows of the chunk have ended.
        if chunk and (len(chunk) == batch_size or miss.position >= end):
            yield chunk
            chunk = []
            end = 0
        chunk.append(miss)
        end = max(end, miss.stop)
    if chunk:
        yield chunk


def _decode(
    subject: Subject,
    batch: Batch,
    misses: Sequence[_Miss],
    greedy: Int[Tensor, "batch position"],
) -> Int[np.ndarray, "misses position"]:
    """Decodes one row per wrong token, all in step.

    A row whose wrong token comes later reads its true tokens until then: the truth is what greedy
    decoding has there, or a token before the passage.
    """
    rows = torch.tensor([miss.row for miss in misses])
    at = torch.tensor([miss.position for miss in misses])
    first = int(at.min())
    end = max(miss.stop for miss in misses)
    given = batch.rows(rows).to(subject.device)
    tokens = given.tokens[:, :end].clone()
    # The first token of a continuation is the wrong one that the forward has predicted.
    tokens[range(len(misses)), at] = greedy[rows, at].to(tokens.device)
    at = at.to(tokens.device)

    largest: list[Tensor] = []
    # The prompt of the whole row: an intervention on the prompt acts where it did in the forward.
    with prompt_length(subject.lead + batch.prompt):
        decoder = Decoder(subject, len(misses), given.conditioning)
        new_tokens = tokens[:, : first + 1]
        # The last token that is fed at `position - 1` predicts the token at `position`.
        for position in range(first + 1, end):
            logits = decoder.feed(new_tokens)[:, -1:]  # [misses, 1, vocabulary]
            predicted = logits.argmax(-1)
            largest.append(at_tokens(logits, predicted))
            is_decoded = (at < position)[:, None]
            known = tokens[:, position : position + 1]
            new_tokens = torch.where(is_decoded, predicted, known)
            tokens[:, position : position + 1] = new_tokens
    if largest:
        found = torch.cat(largest, dim=1)
        # Behind the end of a shorter passage there may be anything.
        positions = torch.arange(first + 1, end, device=found.device)
        stops = torch.tensor([miss.stop for miss in misses], device=found.device)
        used = positions < stops[:, None]
        check_finite(found.masked_fill(~used, 0), first=first + 1)
    return tokens.cpu().numpy()


def _recited(
    passage: Passage,
    truth: Int[np.ndarray, " passage"],
    hits: Bool[np.ndarray, " passage"],
    continuations: Mapping[_Miss, np.ndarray],
) -> list[list[int]]:
    """The greedy continuation after each beginning of a passage, up to its end."""
    recited: list[list[int]] = []
    next_miss = len(truth)
    # Backwards, so that the next wrong token is known.
    for start in reversed(range(len(truth))):
        if not hits[start]:
            next_miss = start
        own = truth[start:next_miss].tolist()
        if next_miss < len(truth):
            miss = _Miss(passage.row, passage.start + next_miss, passage.stop)
            own += continuations[miss].tolist()
        recited.append(own)
    return recited[::-1]
