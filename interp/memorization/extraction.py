"""Measures how much of a corpus a model has memorized: `scan`.

A window is a prefix and the suffix that follows it in the corpus. A window is extracted when greedy
decoding from the prefix yields exactly the suffix.

One teacher-forced forward decides that without decoding: greedy decoding yields the suffix exactly
when, at every position of the suffix, the most likely token given the true tokens before it is the
true token. Only windows that are nearly extracted are decoded, from their first wrong token on, and
on the cache of that same forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from interp.data.corpus_counts import Counts
from interp.data.tokenized import Corpus, Share
from interp.hooks.clock import prompt_length
from interp.hooks.modes import checkpointing_off
from interp.memorization.same_tokenizer import check_counted_tokens, check_same_tokenizer
from interp.memorization.shards import Shards, only_writer
from interp.progress import track
from interp.subject.batch import GIVEN, Batch
from interp.subject.batch_limit import BatchLimit
from interp.subject.decoding import Decoder, at_tokens, check_finite
from interp.subject.fingerprint import fingerprint, identify
from interp.subject.subject import Subject, evaluating, token_losses
from interp.subject.text_rows import Text, numbered, tokens_of

Groups = tuple[tuple[int, int], ...]

_DEFAULT_TOKENS = 32  # of the prefix and of the suffix, when texts are scanned
_SHOWN_AROUND = 8  # tokens: a letter has at most 4, and the space before a word depends on one


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
    """

    text: int
    start: int
    tokens: tuple[int, ...]
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    bos: tuple[int, ...] = ()


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


def scan(
    subject: Subject,
    texts: Iterable[Text] | Batch,
    prefix: int | None = None,
    length: int | None = None,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    decode_from: float = 0.5,
    folder: str | Path | None = None,
    bos: bool = True,
    reference: Subject | None = None,
    counts: Counts | None = None,
    share: Share | None = None,
) -> pd.DataFrame:
    """Measures, for every window of a corpus, how much of its suffix the model continues verbatim.

    Args:
        subject: the model.
        texts: strings or sequences of token ids, or rows with a `text`, such as those of a data set
            of `datasets`, read one at a time; or a Batch, whose rows are the windows (images).
        prefix: tokens given to the model. By default 32; for a Batch, its prompt.
        length: tokens of the suffix. By default 32; for a Batch, all tokens after the prefix.
        stride: tokens from the start of one window to the start of the next; by default `length`.
        batch_size: batch size, in windows.
        decode_from: windows whose token accuracy is at least this are also decoded greedily, to
            measure `similarity`. With 0 all windows are decoded; above 1 only extracted windows
            have a `similarity`, since their continuation is known without decoding.
        folder: where finished shards of the scan are kept. A scan of the same model and texts that
            was interrupted continues from there.
        bos: whether every window is measured behind the start tokens of the subject's tokenizer
            (`subject.bos`), which are not scored and no part of the window. Token ids that begin
            with them do not get them twice: they are taken off and put in front of each window,
            but for a text that with its start tokens is exactly one window, which stays as it is.
            A Batch is measured as it is.
        reference: a model with the same tokenizer that was not trained on the texts. What it also
            finds likely is likely text; what only `subject` does is memorized (arXiv 2602.18733).
        counts: counts of the training data, see `interp.data.corpus_counts.counts`, made with the
            same tokenizer: they say whether what is memorized was seen often.
        share: which of the texts are scanned, the others being left to other processes: see
            `interp.memorization.shards.merge`. The numbers of texts are those in the whole corpus.

    Returns:
        A frame with one row per window:

        - `text`, `start`, `prefix`, `length`, `tokens`: which window it is;
        - `exact`: whether the greedy continuation is the whole suffix;
        - `matched`: how many tokens of the suffix come before the first miss;
        - `run`: length of the longest run of hits;
        - `accuracy`: fraction of hits;
        - `log_p`: log-probability of the suffix, in nats;
        - with a reference model: `log_p_reference`, the same under it, and `log_ratio`, how much
          larger `log_p` is;
        - with counts: `count`, how often the tokens of the window stand in the corpus that was
          counted, and `count_suffix`, how often those of its suffix do, whatever comes before;
        - `similarity`: 1 - edit distance / length between the greedy continuation and the suffix,
          in tokens; NaN where the window was not decoded;
        - `prompt`, `suffix`: the two parts as they read in the text, if the subject has a
          tokenizer; a letter whose tokens are in two parts is in the later one;
        - `bos`, if there are start tokens: those that the window was measured behind;
        - `given_<name>` and `groups`, for a Batch: what each window is conditioned on, and which
          tokens are predicted together.

        `frame.attrs` records the settings, the start tokens (`bos`), the number of `texts`, and how
        many were `skipped` because they are shorter than one window.

    Raises:
        ValueError: if a number is too small, if what is given is not texts (the message gives the
            number of the text), if no text is as long as one window, if a window is longer than the
            model has positions for, if a logit is NaN or infinite, if the reference model or the
            counts have another tokenizer, if a Batch is to be shared, or if `folder` holds a scan
            of something else or is being written by another process.

    Example:
        >>> frame = interp.scan(subject, texts, prefix=8, length=8)
        >>> frame[["text", "start", "exact", "matched"]].head(3)
           text  start  exact  matched
        0     0      0   True        8
        1     0      8   True        8
        2     0     16   True        8
        >>> frame.groupby("exact").size().to_dict()
        {False: 12, True: 12}
    """
    is_batch = isinstance(texts, Batch)
    if prefix is None:
        prefix = texts.prompt if is_batch else _DEFAULT_TOKENS
    if length is None:
        length = texts.length - prefix if is_batch else _DEFAULT_TOKENS

    # an image may be generated without any prompt; text needs a first token to continue
    shortest_prefix = 0 if is_batch else 1
    shortest = min(length, batch_size, 1 if stride is None else stride)
    if prefix < shortest_prefix or shortest < 1:
        raise ValueError(
            "prefix, length, stride and batch_size must be at least 1; "
            f"got {prefix}, {length}, {stride} and {batch_size}"
        )
    if is_batch and prefix + length != texts.length:
        raise ValueError(
            f"prefix {prefix} and length {length}: "
            f"expected {texts.length} together, the tokens of each row"
        )

    if is_batch and share is not None:
        raise ValueError(
            "share= is for texts: expected the rows of the Batch that are to be scanned"
        )

    stride = length if stride is None else stride
    read = {"texts": 0, "skipped": 0}  # filled while the stream is read
    corpus = Corpus()
    start_tokens: tuple[int, ...] = ()
    if is_batch:
        stream = _rows(texts, read)
        groups = texts.groups
    else:
        if bos:
            start_tokens = subject.bos
        # All processes read all texts: what they say of them tells whether these are the same.
        seen = texts if share is None else corpus.of(texts)
        stream = windows(subject, seen, prefix + length, stride, read, start_tokens, share)
        groups = None

    parts = identify(subject)
    about = {
        "model": fingerprint(parts),
        "prefix": prefix,
        "length": length,
        "stride": stride,
        "decode_from": decode_from,
        "bos": list(start_tokens),
        "reference": None if reference is None else reference.fingerprint,
        "counts": None if counts is None else counts.digest,
    }
    if share is not None:
        about["share"] = [share.index, share.of]
    if reference is not None:
        check_same_tokenizer(subject, [reference], bos=bos and not is_batch)
    if counts is not None:
        check_counted_tokens(subject, counts)
    with (
        only_writer(folder),
        Shards(folder, about | {"model parts": parts}) as shards,
        evaluating(subject),
    ):
        _skip_known(stream, shards)
        limit = BatchLimit()
        for chunk in track(window_batches(stream, batch_size), "scanning"):
            measured = limit.run(
                lambda part: _measure(subject, part, prefix, decode_from, groups, reference), chunk
            )
            for part, rows in measured:
                if start_tokens:
                    rows["bos"] = [list(window.bos) for window in part]
                if counts is not None:
                    rows["count"], rows["count_suffix"] = _counted(subject, part, counts, prefix)
                shards.add(rows)
        if share is not None:
            shards.finish({**read, "corpus": corpus.digest})

    # Another process may have all the texts that are long enough.
    if not len(shards) and share is None:
        raise ValueError(
            f"nothing to scan: {read['skipped']} of {read['texts']} texts "
            f"are shorter than {prefix + length} tokens"
        )
    frame = shards.frame()
    frame.attrs |= read | about
    return frame


def windows(
    subject: Subject,
    texts: Iterable[Text],
    width: int,
    stride: int,
    counts: dict[str, int],
    bos: tuple[int, ...] = (),
    share: Share | None = None,
) -> Iterator[Window]:
    """Yields the sliding windows of `width` tokens of every text.

    Args:
        subject: tokenizes strings.
        texts: strings or sequences of token ids.
        width: tokens per window.
        stride: tokens from one window to the next.
        counts: updated in place: `texts` read, and `skipped` because they are too short.
        bos: start tokens that each window is put behind, and that a text may begin with.
        share: which of the texts; by default all.

    Raises:
        ValueError: if `texts` is a single text or a table, or a text is neither a string nor a
            sequence of whole numbers; the message gives its number.
    """
    for number, text in numbered(texts):
        if share is not None and not share.takes(number):
            continue
        given = tokens_of(subject, text, number)
        behind = bos
        tokens = given
        if bos and tuple(given[: len(bos)]) == bos:
            if not isinstance(text, str) and len(given) == width:
                behind = ()  # a window by hand, whose start tokens are within it
            else:
                tokens = given[len(bos) :]
        counts["texts"] += 1
        counts["skipped"] += len(tokens) < width
        for start in range(0, len(tokens) - width + 1, stride):
            stop = start + width
            first_shown = max(start - _SHOWN_AROUND, 0)
            before = tuple(tokens[first_shown:start])
            after = tuple(tokens[stop : stop + _SHOWN_AROUND])
            window = tuple(tokens[start:stop])
            yield Window(number, start, window, before=before, after=after, bos=behind)


def _rows(batch: Batch, counts: dict[str, int]) -> Iterator[Window]:
    """Each row of a batch as a window."""
    _refuse_partial(batch)
    counts["texts"] = len(batch)
    conditioning = {name: value.tolist() for name, value in batch.conditioning.items()}
    for number, tokens in enumerate(batch.tokens.tolist()):
        given = {name: values[number] for name, values in conditioning.items()}
        yield Window(number, 0, tuple(tokens), given)


def _refuse_partial(batch: Batch) -> None:
    if batch.mask is not None or batch.scored is not None:
        raise ValueError("windows are scanned whole: expected a batch without `mask` and `scored`")


def window_batches(stream: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    """Yields consecutive windows that can be one batch: behind the same start tokens.

    Args:
        stream: the windows.
        batch_size: the most windows in a batch.
    """
    for _, alike in groupby(stream, lambda window: window.bos):
        while chunk := list(islice(alike, batch_size)):
            yield chunk


def _skip_known(stream: Iterator[Window], shards: Shards) -> None:
    """Skips the windows that an interrupted scan has measured, after checking that they are still
    the same."""
    for known in shards.windows():
        window = next(stream, None)
        if window is None or (window.text, window.start, window.tokens, window.given) != known:
            raise ValueError(
                f"{shards.folder} holds a scan of other texts: give another folder, or remove it"
            )


def _measure(
    subject: Subject,
    chunk: Sequence[Window],
    prefix: int,
    decode_from: float,
    groups: Groups | None,
    reference: Subject | None,
) -> pd.DataFrame:
    """The rows of a scan for one batch of windows."""
    given: dict[str, list[Any]] = {}
    for name in chunk[0].given:
        given[name] = [window.given[name] for window in chunk]

    bos = chunk[0].bos
    batch = Batch(
        torch.tensor([[*bos, *window.tokens] for window in chunk]),
        len(bos) + prefix,
        groups=groups,
        conditioning={name: torch.tensor(values) for name, values in given.items()},
    )
    columns = {
        "text": [window.text for window in chunk],
        "start": [window.start for window in chunk],
        "prefix": prefix,
        "length": batch.length - batch.prompt,
    }
    forced = teacher_force(subject, batch, decode_from)
    frame = pd.DataFrame(columns | summary(forced, batch))
    if reference is not None:
        with evaluating(reference):
            losses = reference.losses(batch)
        frame["log_p_reference"] = -losses.sum(1).double().cpu().numpy()
        frame["log_ratio"] = frame["log_p"] - frame["log_p_reference"]
    frame["tokens"] = [list(window.tokens) for window in chunk]
    for name, values in given.items():
        frame[GIVEN + name] = values
    if groups is not None:
        frame["groups"] = [groups] * len(chunk)
    if subject.tokenizer is not None:
        shown = [shown_parts(subject, window, prefix) for window in chunk]
        frame["prompt"] = [prompt for prompt, _ in shown]
        frame["suffix"] = [suffix for _, suffix in shown]
    return frame


def _counted(
    subject: Subject, part: Sequence[Window], counts: Counts, prefix: int
) -> tuple[Int[np.ndarray, " windows"], Int[np.ndarray, " windows"]]:
    """How often windows, and their suffixes, stand in the corpus that was counted."""
    whole = [_as_in_documents(subject, window) for window in part]
    suffixes = [window.tokens[prefix:] for window in part]
    found = np.zeros(len(part), dtype=np.int64)
    lengths = np.array(list(map(len, whole)))
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        found[rows] = counts.count([whole[row] for row in rows])
    return found, counts.count(suffixes)


def _as_in_documents(subject: Subject, window: Window) -> list[int]:
    """The tokens of a window as they were counted: start tokens that a text begins with are no part
    of it. Anywhere else the same tokens are, such as the end of one of several joined texts."""
    begins_a_text = window.start == 0 and not window.bos
    tokens = list(window.tokens)
    return subject.without_bos(tokens) if begins_a_text else tokens


def shown_parts(subject: Subject, window: Window, prefix: int) -> tuple[str, str]:
    """Returns prompt and suffix of a window, as they read in its text."""
    start = len(window.before)
    stop = start + len(window.tokens)
    in_text = [*window.before, *window.tokens, *window.after]
    cuts = [start, start + prefix, stop]
    _, prompt, suffix, _ = subject.decode_parts(in_text, cuts)
    return prompt, suffix


def summary(forced: TeacherForced, batch: Batch) -> dict[str, np.ndarray]:
    """Returns the measures of a scan (see `scan`), each with one value per window.

    Args:
        forced: what `teacher_force` returned for the batch.
        batch: the windows.

    Example:
        >>> from interp.memorization.extraction import teacher_force
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
    _refuse_partial(batch)
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


def discoverable(
    log_p: Float[np.ndarray, " windows"], queries: int, probability: float
) -> Bool[np.ndarray, " windows"]:
    """Returns whether sampling `queries` times yields a suffix at least once with `probability`.

    (n, p)-discoverable extraction, Hayes et al. 2024 (arXiv 2410.19482): 1 - (1 - p)^n >= P, where
    p is the suffix's probability under sampling at temperature 1. The mean over windows is the
    discoverable rate.

    Args:
        log_p: log-probability of each suffix, in nats, as in the column `log_p` of `scan`.
        queries: n, how often a suffix is sampled.
        probability: P, with which it must appear at least once; in (0, 1).

    Raises:
        ValueError: for less than one query or a probability outside (0, 1).

    Example:
        >>> interp.discoverable(np.log([0.5, 0.001]), queries=10, probability=0.9)
        array([ True, False])
    """
    if queries < 1 or not 0 < probability < 1:
        raise ValueError(
            f"expected queries >= 1 and a probability in (0, 1); got {queries} and {probability}"
        )
    # log(1 - p) and expm1 instead of (1 - p)^n: the probability of a suffix may be so small that
    # 1 - p rounds to 1. log_p is capped because rounding can bring it slightly above 0.
    capped = np.minimum(np.asarray(log_p, dtype=np.float64), 0.0)
    p = np.exp(capped)
    log_missed_once = np.full(p.shape, -np.inf)
    np.log1p(-p, out=log_missed_once, where=p < 1)
    return -np.expm1(queries * log_missed_once) >= probability
