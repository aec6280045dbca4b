"""One teacher-forced forward over a window decides whether greedy decoding would continue it.

Greedy decoding yields the suffix exactly when, at every position of the suffix, the most likely
token given the true tokens before it is the true token. Only windows that are nearly extracted are
decoded, from their first wrong token on, and on the cache of that same forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from interp.hooks.clock import prompt_length
from interp.hooks.modes import checkpointing_off
from interp.memorization.scan_windows import refuse_partial
from interp.subject.batch import Batch
from interp.subject.decoding import Decoder, at_tokens, check_finite
from interp.subject.subject import Subject, evaluating, token_losses


@dataclass(frozen=True, eq=False)
class TeacherForced:
    """The result of one teacher-forced forward over a batch of windows.

    Attributes:
        hits: whether the most likely token is the true one, given the true tokens before it.
        log_p: log-probability of the whole suffix, in nats.
        continuation: tokens of the greedy continuation; valid only in rows that are `decoded`.
        decoded: which rows of `continuation` are valid.
    """

    hits: Bool[np.ndarray, "batch length"]
    log_p: Float[np.ndarray, " batch"]
    continuation: Int[np.ndarray, "batch length"]
    decoded: Bool[np.ndarray, " batch"]


def summary(forced: TeacherForced, batch: Batch) -> dict[str, np.ndarray]:
    """Returns the measures of a scan (see `scan`), each with one value per window.

    Args:
        forced: what `teacher_force` returned for the batch.
        batch: the windows.

    Example:
        >>> from interp.memorization.teacher_forcing import teacher_force
        >>> measures = summary(teacher_force(subject, batch), batch)
        >>> int(measures["exact"].sum()), int(measures["matched"].min())
        (12, 8)
    """
    similarity = np.full(len(batch), np.nan)
    truth = batch.targets.tolist()
    # Only of rows that were decoded: what follows the first miss of another row was predicted from
    # true tokens, and is not what the model would generate.
    for row in np.flatnonzero(forced.decoded):
        continuation = forced.continuation[row].tolist()
        similarity[row] = Levenshtein.normalized_similarity(truth[row], continuation)
    return {
        "exact": np.asarray(forced.hits.all(1)),
        "matched": forced.hits.cumprod(1).sum(1),
        "run": _longest_run(forced.hits),
        "accuracy": forced.hits.mean(1),
        "log_p": forced.log_p,
        "similarity": similarity,
    }


def _longest_run(hits: Bool[np.ndarray, "batch length"]) -> Int[np.ndarray, " batch"]:
    current = np.zeros(len(hits), dtype=int)
    longest = np.zeros(len(hits), dtype=int)
    for column in hits.T:
        current = (current + 1) * column  # a miss sets the run back to 0
        longest = np.maximum(longest, current)
    return longest


def teacher_force(subject: Subject, batch: Batch, decode_from: float = 0.0) -> TeacherForced:
    """Returns hits, log-probability and greedy continuation of each window of a batch.

    Where tokens are predicted together (a scale of VAR), this holds group by group. Active
    interventions apply: the result is then about the changed model.

    Args:
        subject: the model.
        batch: windows; the suffix is what follows the prompt.
        decode_from: only windows with at least this fraction of hits are decoded.

    Raises:
        ValueError: for batches with padding, for a prompt that the model cannot continue, and for
            logits that are NaN or infinite.

    Example:
        >>> forced = teacher_force(subject, batch)
        >>> forced.hits.shape, bool(forced.hits.all()), bool(forced.decoded.all())
        ((12, 8), True, True)
    """
    refuse_partial(batch)
    subject.check(batch)
    subject.check_prompt(batch)
    given = batch.to(subject.device)
    all_groups = subject.stepwise.groups(batch.length)
    groups = tuple(group for group in all_groups if group[0] >= batch.prompt)
    last_start, _ = groups[-1]
    suffix_length = batch.length - batch.prompt

    with (
        evaluating(subject),
        checkpointing_off(subject.module),
        prompt_length(subject.lead + batch.prompt),
    ):
        # One forward over everything before the last group: the logits after it are those of all
        # targets, and what it leaves in the decoder's cache is where decoding continues from.
        decoder = Decoder(subject, len(batch), given.conditioning)
        logits = decoder.feed(given.tokens[:, :last_start], keep=suffix_length)
        greedy = logits.argmax(-1)
        check_finite(at_tokens(logits, greedy), first=batch.prompt)
        targets = given.targets
        hits = greedy == targets
        exact = hits.all(1)
        wanted = hits.float().mean(1) >= decode_from

        # The truth is the draft of greedy decoding, which one forward checks. Before the first
        # miss, greedy decoding has the true tokens. In the group of the first miss it has
        # `greedy`, predicted from true tokens alone. What follows must be decoded.
        before_miss = hits.cumprod(1).bool()
        continuation = torch.where(before_miss, targets, greedy)
        _decode_after_miss(decoder, continuation, hits, wanted & ~exact, batch.prompt, groups)

    log_p = -token_losses(logits, batch).sum(1).double()
    return TeacherForced(
        hits=hits.cpu().numpy(),
        log_p=log_p.cpu().numpy(),
        continuation=continuation.cpu().numpy(),
        decoded=(wanted | exact).cpu().numpy(),
    )


def _decode_after_miss(
    decoder: Decoder,
    continuation: Tensor,
    hits: Tensor,
    wanted: Tensor,
    prompt: int,
    groups: Sequence[tuple[int, int]],
) -> None:
    """Completes the wanted rows of `continuation` ([batch, length]) in place.

    A row is right up to the end of the group with its first miss.
    """
    rows = wanted.nonzero()[:, 0]
    if not len(rows):
        return
    hits_before_miss = hits[rows].cumprod(1).sum(1)
    first_miss = prompt + hits_before_miss
    starts = torch.tensor([start for start, _ in groups], device=first_miss.device)
    missed_group = torch.searchsorted(starts, first_miss, right=True) - 1  # [rows]
    first = int(missed_group.min())

    # All rows are decoded together from the earliest group with a miss. The cache is cut back to
    # there: beyond that group it holds the true tokens, which are not what a row with a miss
    # continues from. A row whose own first miss comes later reads its true tokens until then, so
    # that its verified tokens are not predicted a second time.
    decoder.select(rows)
    decoder.crop(groups[first][0])
    tokens = continuation[rows]
    largest: list[Tensor] = []
    for number in range(first, len(groups) - 1):
        start, stop = groups[number]
        _, next_stop = groups[number + 1]
        group = tokens[:, start - prompt : stop - prompt]
        logits = decoder.feed(group)
        predicted = logits.argmax(-1)
        largest.append(at_tokens(logits, predicted))
        ahead = slice(stop - prompt, next_stop - prompt)
        has_missed = missed_group <= number
        verified = tokens[:, ahead]
        tokens[:, ahead] = torch.where(has_missed[:, None], predicted, verified)
    if largest:
        check_finite(torch.cat(largest, dim=1), first=groups[first][1])
    continuation[rows] = tokens
