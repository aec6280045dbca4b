"""Measures how much of a corpus a model has memorized: `scan`.

A window is a prefix and the suffix that follows it in the corpus. A window is extracted when greedy
decoding from the prefix yields exactly the suffix.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.data.corpus_counts import Counts
from interp.data.tokenized import Share
from interp.memorization.scan_windows import BatchWindows, CorpusWindows, Cut
from interp.memorization.window_scanner import WindowScanner, check_sizes
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.subject.text_rows import Text

_DEFAULT_TOKENS = 32  # of the prefix and of the suffix, when texts are scanned


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

    check_sizes(prefix, length, stride, batch_size, shortest_prefix=0 if is_batch else 1)
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
    start_tokens = subject.bos if bos and not is_batch else ()
    cut = Cut(prefix + length, stride, start_tokens, share)
    corpus = BatchWindows(texts) if is_batch else CorpusWindows(subject, texts, cut)
    groups = texts.groups if is_batch else None
    scanner = WindowScanner(
        subject, cut, prefix, decode_from, batch_size, groups, reference, counts
    )
    shards = scanner.run(corpus, folder, tally=None)
    frame = shards.frame()
    frame.attrs |= {"texts": corpus.texts, "skipped": corpus.skipped} | shards.about
    return frame


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
