"""scan: which windows of a corpus a model continues verbatim, and how nearly it continues the
others.

One teacher-forced forward tells all but the free continuation: greedy decoding reproduces a suffix
exactly when, at each of its positions, the most likely token given the true ones before is the true
one. Where a window deserves it, the free continuation is decoded from the first miss on, on the
cache of that same forward: the truth is the draft, the model verifies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from interp.hooks.hooks import prompt_length
from interp.memorization.shards import Parts
from interp.progress import track
from interp.subject.batch import GIVEN, Batch
from interp.subject.decoding import Decoder
from interp.subject.subject import Subject, evaluating, token_losses

Text = str | Sequence[int]
Steps = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """`tokens` of text number `text`, from token `start`, and what they are conditioned on."""

    text: int
    start: int
    tokens: tuple[int, ...]
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, eq=False)
class Verdict:
    """What one teacher-forced forward says of a batch of windows.

    Attributes:
        hits: whether the most likely token is the true one, given the true ones before.
        log_p: log-probability of the whole suffix, in nats.
        continuation: the greedy continuation of the prefix for rows that were `decoded`; on other
        rows it is not to be read.
        decoded: which rows of `continuation` are greedy decoding's tokens.
    """

    hits: Bool[np.ndarray, "batch length"]
    log_p: Float[np.ndarray, " batch"]
    continuation: Int[np.ndarray, "batch length"]
    decoded: Bool[np.ndarray, " batch"]


def scan(
    subject: Subject,
    texts: Iterable[Text] | Batch,
    prefix: int | None = None,
    length: int | None = None,
    *,
    stride: int | None = None,
    size: int = 16,
    decode_from: float = 0.5,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Measures every window of `prefix + length` tokens: given its first `prefix` tokens, does the
    model say the next `length`?

    Args:
        texts: strings, or sequences of token ids; a stream is read as it comes. Or a Batch, whose
        rows are the windows: images.
        prefix, length: 32 each; of a Batch, its prompt and all that follows.
        stride: tokens from one window to the next; `length` by default.
        size: windows a forward.
        decode_from: windows with at least this token accuracy are also decoded freely, for
            `similarity`; 0 decodes all, above 1 none but the exact ones, whose continuation is
            known.
        folder: keeps finished parts there; an interrupted scan of the same model and texts goes on
        where it stopped.

    Returns:
        One row a window: `text`, `start`, `prefix`, `length`, `tokens`; `exact` (the whole suffix
        is greedy decoding's), `matched` (true tokens before the first miss), `run` (longest run of
        hits), `accuracy` (share of hits), `log_p` (of the suffix, nats), `similarity` (1 - edit
        distance / length, in tokens, of the greedy continuation; NaN where it was not decoded) and,
        with a tokenizer, `prompt` and `suffix`; of a Batch also `given_<name>`, what the windows
        are conditioned on, and `steps`. `frame.attrs` counts the texts and those `skipped` because
        they are shorter than one window.

    Raises ValueError when no text is as long as one window, or when `folder` holds a scan of
    something else.
    """
    whole = isinstance(texts, Batch)
    prefix = (texts.prompt if whole else 32) if prefix is None else prefix
    length = (texts.length - prefix if whole else 32) if length is None else length
    if min(prefix + whole, length, size, 1 if stride is None else stride) < 1:
        raise ValueError(
            f"prefix, length, stride and size must be at least 1; got {prefix}, {length}, {stride} and {size}"
        )
    if whole and prefix + length != texts.length:
        raise ValueError(
            f"prefix {prefix} and length {length}: expected {texts.length} together, the tokens of each row"
        )
    counts = {"texts": 0, "skipped": 0}
    stream = (
        _rows(texts, counts)
        if whole
        else windows(subject, texts, prefix + length, stride or length, counts)
    )
    about = {
        "model": subject.fingerprint,
        "prefix": prefix,
        "length": length,
        "stride": stride or length,
        "decode_from": decode_from,
    }
    with Parts(folder, about) as parts, evaluating(subject):
        _skip_known(stream, parts)
        for chunk in track(_chunks(stream, size), "scanning"):
            parts.add(
                _measured(subject, chunk, prefix, decode_from, texts.steps if whole else None)
            )
    if not len(parts):
        raise ValueError(
            f"nothing to scan: {counts['skipped']} of {counts['texts']} texts are shorter than {prefix + length} tokens"
        )
    frame = parts.frame()
    frame.attrs |= counts | about
    return frame


def windows(
    subject: Subject, texts: Iterable[Text], width: int, stride: int, counts: dict[str, int]
) -> Iterator[Window]:
    """Sliding windows of `width` tokens; `counts` keeps how many texts there were and how many were
    too short."""
    for number, text in enumerate(_several(texts)):
        tokens = subject.tokens(text) if isinstance(text, str) else [int(t) for t in text]
        counts["texts"] += 1
        counts["skipped"] += len(tokens) < width
        for start in range(0, len(tokens) - width + 1, stride):
            yield Window(number, start, tuple(tokens[start : start + width]))


def _rows(batch: Batch, counts: dict[str, int]) -> Iterator[Window]:
    """Each row of a batch as a window."""
    if batch.mask is not None or batch.scored is not None:
        raise ValueError("a window is whole: expected a batch without mask and scored")
    counts["texts"] = len(batch)
    given = {name: value.tolist() for name, value in batch.conditioning.items()}
    for number, tokens in enumerate(batch.tokens.tolist()):
        yield Window(number, 0, tuple(tokens), {name: rows[number] for name, rows in given.items()})


def _several(texts: Iterable[Text]) -> Iterator[Text]:
    """The texts; a single one in their place would be read letter by letter."""
    if isinstance(texts, str):
        raise ValueError("texts is one string: expected several texts, such as [text]")
    for text in texts:
        if not isinstance(text, str) and not hasattr(text, "__iter__"):
            raise ValueError(
                f"a text is a string or a sequence of token ids; got {text!r}: to scan one sequence, pass [tokens]"
            )
        yield text


def _chunks(stream: Iterator[Window], size: int) -> Iterator[list[Window]]:
    while chunk := list(islice(stream, size)):
        yield chunk


def _skip_known(stream: Iterator[Window], parts: Parts) -> None:
    """Passes over the windows that an interrupted scan finished, after checking that they are still
    the same."""
    for known in parts.known():
        window = next(stream, None)
        if window is None or (window.text, window.start, window.tokens, window.given) != known:
            raise ValueError(
                f"{parts.folder} holds a scan of other texts: give another folder, or remove it"
            )


def _measured(
    subject: Subject, chunk: Sequence[Window], prefix: int, decode_from: float, steps: Steps | None
) -> pd.DataFrame:
    beside = {name: [window.given[name] for window in chunk] for name in chunk[0].given}
    tensors = {name: torch.tensor(values) for name, values in beside.items()}
    batch = Batch(
        torch.tensor([w.tokens for w in chunk]), prefix, steps=steps, conditioning=tensors
    )
    verdict = verdicts(subject, batch, decode_from)
    rows = {
        "text": [w.text for w in chunk],
        "start": [w.start for w in chunk],
        "prefix": prefix,
        "length": batch.length - prefix,
    }
    frame = pd.DataFrame(rows | summary(verdict, batch))
    frame["tokens"] = [list(w.tokens) for w in chunk]
    for name, values in beside.items():
        frame[GIVEN + name] = values
    if steps is not None:
        frame["steps"] = [steps] * len(chunk)
    if subject.tokenizer is not None:
        frame["prompt"] = [subject.decode(w.tokens[:prefix]) for w in chunk]
        frame["suffix"] = [subject.decode(w.tokens[prefix:]) for w in chunk]
    return frame


def summary(verdict: Verdict, batch: Batch) -> dict[str, np.ndarray]:
    """The measures of a scan, one value a window."""
    truth = batch.targets.tolist()
    similarity = [
        Levenshtein.normalized_similarity(t, c.tolist()) if known else np.nan
        for t, c, known in zip(truth, verdict.continuation, verdict.decoded, strict=True)
    ]
    return {
        "exact": np.asarray(verdict.hits.all(1)),
        "matched": verdict.hits.cumprod(1).sum(1),
        "run": _longest_run(verdict.hits),
        "accuracy": verdict.hits.mean(1),
        "log_p": verdict.log_p,
        "similarity": np.array(similarity),
    }


def _longest_run(hits: Bool[np.ndarray, "batch length"]) -> Int[np.ndarray, " batch"]:
    run = best = np.zeros(len(hits), dtype=int)
    for column in hits.T:
        run = (run + 1) * column
        best = np.maximum(best, run)
    return best


def verdicts(subject: Subject, batch: Batch, decode_from: float = 0.0) -> Verdict:
    """Teacher-forced hits and log-probability of each window, and its greedy continuation where at
    least `decode_from` of it hits.

    Where tokens are predicted together (a scale of VAR) the same holds, step by step. Runs under
    whatever interventions are active: with them it says what the changed model would say. Raises
    ValueError for batches with padding, and for a prompt from which the model cannot go on.
    """
    if batch.mask is not None or batch.scored is not None:
        raise ValueError("a window is whole: expected a batch without mask and scored")
    subject.check(batch)
    subject.check_prompt(batch)
    given = batch.to(subject.device)
    steps = tuple(
        group for group in subject.stepwise.groups(batch.length) if group[0] >= batch.prompt
    )
    with evaluating(subject), prompt_length(subject.lead + batch.prompt):
        decoder = Decoder(subject, len(batch), given.conditioning)
        logits = decoder.feed(given.tokens[:, : steps[-1][0]], keep=batch.length - batch.prompt)
        greedy, targets = logits.argmax(-1), given.targets
        hits = greedy == targets
        decoded = hits.float().mean(1) >= decode_from
        known = torch.where(hits.cumprod(1).bool(), targets, greedy)
        _decode_after_miss(decoder, known, hits, decoded & ~hits.all(1), batch.prompt, steps)
    log_p = -token_losses(logits, batch).sum(1).double()
    done = decoded | hits.all(1)
    return Verdict(hits.cpu().numpy(), log_p.cpu().numpy(), known.cpu().numpy(), done.cpu().numpy())


def _decode_after_miss(
    decoder: Decoder,
    known: Tensor,
    hits: Tensor,
    wanted: Tensor,
    prompt: int,
    steps: Sequence[tuple[int, int]],
) -> None:
    """Completes the wanted rows of `known` ([batch, length]; right up to the end of the step with
    the first miss) in place.

    All rows go together from the earliest step with a miss; a row still before its own reads its
    true tokens, which are verified already.
    """
    rows = wanted.nonzero()[:, 0]
    if not len(rows):
        return
    first_miss = prompt + hits[rows].cumprod(1).sum(1)
    starts = torch.tensor([start for start, _ in steps], device=first_miss.device)
    missed = (
        torch.searchsorted(starts, first_miss, right=True) - 1
    )  # [rows]: the number of the step with the first miss
    first, tokens = int(missed.min()), known[rows]
    decoder.select(rows)
    decoder.crop(steps[first][0])
    for number in range(first, len(steps) - 1):
        (start, stop), (_, end) = steps[number], steps[number + 1]
        following = decoder.feed(tokens[:, start - prompt : stop - prompt]).argmax(-1)
        ahead = slice(stop - prompt, end - prompt)
        tokens[:, ahead] = torch.where((missed <= number)[:, None], following, tokens[:, ahead])
    known[rows] = tokens


def discoverable(
    log_p: Float[np.ndarray, " windows"], queries: int, probability: float
) -> Bool[np.ndarray, " windows"]:
    """Whether sampling a suffix `queries` times yields it at least once with `probability`: 1 - (1
    - p)^n >= P.

    (n, p)-discoverable extraction, Hayes et al. 2024 (arXiv 2410.19482), for sampling at
    temperature 1; its mean is the discoverable rate.
    """
    if queries < 1 or not 0 < probability < 1:
        raise ValueError(
            f"expected queries >= 1 and a probability in (0, 1); got {queries} and {probability}"
        )
    p = np.exp(np.minimum(np.asarray(log_p, dtype=np.float64), 0.0))
    never = np.full(p.shape, -np.inf)
    np.log1p(-p, out=never, where=p < 1)
    return -np.expm1(queries * never) >= probability
