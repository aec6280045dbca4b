"""Membership of the texts or images of a corpus: `membership`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.tokenized import tokenized
from interp.memorization.membership.token_scores import Mix, Over, TokenScores, token_scores
from interp.memorization.same_tokenizer import check_same_tokenizer
from interp.progress import track
from interp.subject.batch import Batch
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject, evaluating
from interp.subject.text_rows import Text

_LOWEST_SHARE = 0.2  # of a text's tokens, whose mean Min-K% takes
_EMPTY: Sequence[Subject] = ()


@dataclass(frozen=True, eq=False)
class ScoredTexts:
    """Some examples of a corpus with the scores of their tokens.

    Attributes:
        numbers: the number of each example in the corpus.
        batch: the examples.
        texts: the text of each, as far as it was measured; None without a tokenizer.
        scores: the scores of their targets.
    """

    numbers: list[int]
    batch: Batch
    texts: list[str | None]
    scores: TokenScores


def membership(
    subject: Subject,
    texts: Iterable[Text] | Batch,
    reference: Subject | Sequence[Subject] = _EMPTY,
    *,
    length: int | None = None,
    min_k: float = _LOWEST_SHARE,
    batch_size: int = 8,
    bos: bool = True,
    mix: Mix = "probabilities",
    over: Over = "vocabulary",
) -> pd.DataFrame:
    """Scores how likely each example of a corpus is one that the model was trained on.

    All scores come from one forward per model and batch. In every column, higher means more likely
    a member. Scores without a reference model mostly say how predictable an example is; those with
    one say how much better this model predicts it than models in general do.

    Args:
        subject: the target model.
        texts: strings or sequences of token ids, or rows with a `text`, such as those of a data set
            of `datasets`, read one at a time; or a Batch (images).
        reference: models that were not trained on the examples, with the same tokenizer, such as
            the model before it was fine-tuned.
        length: how many tokens to measure of each text, from its start; by default all.
        min_k: the share of an example's tokens, those with the lowest values, whose mean the
            Min-K% scores are; at least one token.
        batch_size: batch size, in examples.
        bos: whether texts are measured behind the start tokens of the subject's tokenizer.
        mix: how several reference models become one, see `token_scores`.
        over: which tokens the KL of InfoRMIA runs over, see `token_scores`.

    Returns:
        A frame with one row per example:

        - `text`: its number in the corpus; `tokens`: how many were measured;
        - `loss`: mean log-probability per token, in nats (the attack LOSS, with its sign turned);
        - `min_k`: mean log-probability of the least likely tokens (Min-K%);
        - `min_k_plus_plus`: the same of standardized log-probabilities (Min-K%++);
        - `zlib`, if the subject has a tokenizer: `loss` times tokens, per byte of the compressed
          text, in nats;
        - with a reference: `ratio`, the mean difference of log-probabilities (the attack Ref, which
          is InfoRMIA of whole examples); `informia`, the mean score of token-level InfoRMIA;
          `informia_min_k`, the mean over its lowest tokens; `informia_sum`, their sum; and
          `kl`, its second term, all in nats.

        `frame.attrs` holds the settings, the number of `texts`, how many were `skipped` because no
        token of them can be predicted, and the start tokens.

    Raises:
        ValueError: models with different tokenizers, texts that cannot be read, longer than the
            models have positions for, or all too short; a probability of 0 (see `token_scores`);
            logits that are NaN; a number out of range.

    Source: Tao & Shokri 2025 (arXiv 2510.05582); Carlini et al. 2021 (arXiv 2012.07805) for ratio
    and zlib; Shi et al. 2024 (arXiv 2310.16789) for Min-K%; Zhang et al. 2024 (arXiv 2404.02936)
    for Min-K%++.

    Example:
        >>> scores = interp.membership(subject, texts, untrained)
        >>> trained_on = [True] * 4 + [False] * 4
        >>> interp.roc(scores["ratio"], trained_on).auc.estimate
        1.0
    """
    if not 0 < min_k <= 1:
        raise ValueError(f"min_k={min_k}: expected a share above 0 and at most 1")
    references = as_models(reference)
    counts = {"texts": 0, "skipped": 0}
    stream = scored_texts(
        subject,
        texts,
        references,
        length=length,
        batch_size=batch_size,
        bos=bos,
        mix=mix,
        over=over,
        counts=counts,
    )
    frames = [_rows(part, min_k) for part in stream]
    if not frames:
        raise ValueError(
            f"nothing to score: in {counts['skipped']} of {counts['texts']} texts there is no "
            "token that can be predicted; expected texts of at least two tokens"
        )
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= counts | {
        "model": subject.name,
        "references": [each.name for each in references],
        "length": length,
        "min_k": min_k,
        "mix": mix,
        "over": over,
        "bos": list(subject.bos) if bos and not isinstance(texts, Batch) else [],
    }
    return frame


def scored_texts(
    subject: Subject,
    texts: Iterable[Text] | Batch,
    references: Sequence[Subject] = _EMPTY,
    *,
    length: int | None = None,
    batch_size: int = 8,
    bos: bool = True,
    mix: Mix = "probabilities",
    over: Over = "vocabulary",
    counts: dict[str, int] | None = None,
) -> Iterator[ScoredTexts]:
    """Yields the examples of a corpus with the scores of each token, batch by batch.

    At most one batch of logits per model is held, whatever the length of the corpus.

    Args:
        subject, texts, references, length, batch_size, bos, mix, over: as of `membership`.
        counts: updated in place: `texts` read, and `skipped` because no token can be predicted.

    Raises:
        ValueError: see `membership`.
    """
    if batch_size < 1 or (length is not None and length < 1):
        raise ValueError(f"batch_size and length must be at least 1; got {batch_size} and {length}")
    is_batch = isinstance(texts, Batch)
    check_same_tokenizer(subject, references, bos=bos and not is_batch)
    counted = counts if counts is not None else {"texts": 0, "skipped": 0}
    if is_batch:
        stream = _of_batch(texts, batch_size, counted)
    else:
        stream = _of_texts(subject, texts, length, batch_size, counted, bos=bos)

    def score(part: Batch) -> TokenScores:
        return _scores(subject, part, references, mix, over)

    limit = BatchLimit()
    for numbers, shown, batch in track(stream, "scoring"):
        # `limit` may cut a batch into parts, which come in order.
        done = 0
        for part, scores in limit.run(score, batch):
            rows = slice(done, done + len(part))
            done += len(part)
            yield ScoredTexts(numbers[rows], part, shown[rows], scores)


def as_models(reference: Subject | Sequence[Subject]) -> tuple[Subject, ...]:
    """Returns one reference model or several as a tuple."""
    return (reference,) if isinstance(reference, Subject) else tuple(reference)


def _of_batch(
    batch: Batch, batch_size: int, counts: dict[str, int]
) -> Iterator[tuple[list[int], list[str | None], Batch]]:
    """Rows of a batch, in the form that `scored_texts` measures."""
    first = 0
    for part in batch.split(batch_size):
        numbers = list(range(first, first + len(part)))
        first += len(part)
        counts["texts"] = first
        if not bool(part.counted.any(1).all()):
            row = int((~part.counted.any(1)).nonzero()[0, 0])
            raise ValueError(f"row {numbers[row]} of the batch has no target that is measured")
        yield numbers, [None] * len(part), part


def _of_texts(
    subject: Subject,
    texts: Iterable[Text],
    length: int | None,
    batch_size: int,
    counts: dict[str, int],
    *,
    bos: bool,
) -> Iterator[tuple[list[int], list[str | None], Batch]]:
    """Texts as padded batches, each behind the start tokens, in the form that `scored_texts`
    measures."""
    start_tokens = list(subject.bos) if bos else []
    # Without start tokens nothing predicts the first token of a text.
    prompt = max(1, len(start_tokens))

    def readable() -> Iterator[tuple[int, list[int], str | None]]:
        for number, (text, tokens) in enumerate(tokenized(subject, texts)):
            counts["texts"] += 1
            own_tokens = subject.without_bos(tokens) if bos else tokens
            measured = own_tokens[:length]
            if len(start_tokens) + len(measured) <= prompt:
                counts["skipped"] += 1
                continue
            is_whole = len(measured) == len(own_tokens)
            # As it was given, where all of it is measured: decoding may give another text.
            if isinstance(text, str) and is_whole:
                shown = text
            else:
                shown = None if subject.tokenizer is None else subject.decode(measured)
            yield number, [*start_tokens, *measured], shown

    stream = readable()
    while chunk := list(islice(stream, batch_size)):
        batch = Batch.pad([tokens for _, tokens, _ in chunk], prompt)
        yield [number for number, _, _ in chunk], [shown for _, _, shown in chunk], batch


def _scores(
    subject: Subject, batch: Batch, references: Sequence[Subject], mix: Mix, over: Over
) -> TokenScores:
    """The scores of a batch, on the CPU."""
    with ExitStack() as modes:
        for model in (subject, *references):
            modes.enter_context(evaluating(model))
        logits = subject.target_logits(batch)
        reference_logits: list[Tensor] = []
        for reference in references:
            found = reference.target_logits(batch).to(logits.device)
            _check_padding(subject, reference, logits, found)
            reference_logits.append(found)
        scores = token_scores(
            logits,
            batch.targets.to(logits.device),
            reference_logits,
            counted=batch.counted,
            mix=mix,
            over=over,
        )
    return replace(
        scores,
        **{name: value.cpu() for name, value in vars(scores).items() if value is not None},
    )


def _check_padding(subject: Subject, reference: Subject, logits: Tensor, other: Tensor) -> None:
    """Raises ValueError for predictions of different widths, unless the tokenizers show that one of
    them is padded."""
    widths = logits.shape[-1], other.shape[-1]
    is_known = subject.tokenizer is not None and reference.tokenizer is not None
    if widths[0] != widths[1] and not is_known:
        raise ValueError(
            f"{subject.name} predicts {widths[0]} tokens and {reference.name} {widths[1]}: without "
            "a tokenizer of both it cannot be seen whether they read the same tokens; pass "
            "interp.load(model, tokenizer=...)"
        )


def _rows(part: ScoredTexts, min_k: float) -> pd.DataFrame:
    """The rows of `membership` for some examples."""
    counted = part.batch.counted.cpu()
    scores = part.scores
    lengths = counted.sum(1)
    columns: dict[str, Any] = {
        "text": part.numbers,
        "tokens": lengths.numpy(),
        "loss": _mean(scores.log_p, counted),
        "min_k": mean_of_lowest(scores.log_p, counted, min_k),
        "min_k_plus_plus": mean_of_lowest(scores.standardized, counted, min_k),
    }
    if all(text is not None for text in part.texts):
        sizes = np.array([_compressed_bytes(text) for text in part.texts if text is not None])
        # The mean times the number of tokens is the log-probability of the whole text.
        columns["zlib"] = columns["loss"] * columns["tokens"] / sizes
    if scores.informia is not None and scores.log_p_reference is not None:
        assert scores.kl is not None  # the three come together
        columns["ratio"] = _mean(scores.log_p - scores.log_p_reference, counted)
        columns["informia"] = _mean(scores.informia, counted)
        columns["informia_min_k"] = mean_of_lowest(scores.informia, counted, min_k)
        columns["informia_sum"] = columns["informia"] * columns["tokens"]
        columns["kl"] = _mean(scores.kl, counted)
    return pd.DataFrame(columns)


def _compressed_bytes(text: str) -> int:
    return len(zlib.compress(text.encode()))


def _mean(values: Tensor, counted: Tensor) -> np.ndarray:
    total = values.double().where(counted, 0.0).sum(1)
    return (total / counted.sum(1)).numpy()


def mean_of_lowest(
    values: Float[Tensor, "texts tokens"], counted: Bool[Tensor, "texts tokens"], share: float
) -> Float[np.ndarray, " texts"]:
    """Returns the mean of the lowest values of each text: max(1, floor(share * n)) of its n.

    Args:
        values: one value per token.
        counted: which tokens count; at least one in each text.
        share: in (0, 1].

    Example:
        >>> from interp.memorization.membership.corpus import mean_of_lowest
        >>> log_p = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -5.0]])
        >>> mean_of_lowest(log_p, torch.ones(1, 5, dtype=torch.bool), 0.4)
        array([-4.5])
    """
    # Infinity sorts what does not count behind all that does.
    ordered = values.double().masked_fill(~counted, torch.inf).sort(1).values
    # A share of 0.2 of 5 tokens is 1 token, though 0.2 * 5 may be computed as 0.999...
    taken = (counted.sum(1) * share + 1e-9).floor().clamp(min=1)
    is_taken = torch.arange(values.shape[1]) < taken[:, None]
    return (ordered.where(is_taken, 0.0).sum(1) / taken).numpy()
