"""Scans of a model that vLLM serves: `scan_served`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from interp.adapters import vllm
from interp.memorization.scan_windows import CorpusWindows, Cut, Window, window_batches
from interp.memorization.teacher_forcing import TeacherForced, summary
from interp.memorization.window_scanner import check_sizes, nothing_to_scan, shown_parts
from interp.progress import track
from interp.sites.anatomy import Anatomy
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.subject.text_rows import Text


def scan_served(
    llm: Any,
    texts: Iterable[Text],
    prefix: int = 32,
    length: int = 32,
    *,
    stride: int | None = None,
    batch_size: int = 256,
    bos: bool = True,
    top: int = 5,
) -> pd.DataFrame:
    """Scans texts as `interp.scan` does, with the verdicts of a model that vLLM serves.

    vLLM computes in its own kernels and precision, so that a window at the edge may be judged
    otherwise than by `interp.scan` of the same weights.

    Args:
        llm: a `vllm.LLM(..., enable_prefix_caching=False)`.
        texts, prefix, length, stride, bos: see `interp.scan`.
        batch_size: number of windows that vLLM gets at a time; it makes its own batches of them.
        top: how many tokens vLLM lists at each position, see `interp.adapters.vllm.teacher_force`.

    Returns:
        A frame with one row per window, as of `interp.scan`, with `text`, `start`, `prefix`,
        `length`, `tokens`, `exact`, `matched`, `run`, `accuracy`, `log_p`, `prompt`, `suffix` and
        `bos`; `similarity`, which is known of extracted windows alone; and `tied`: at how many
        tokens of the suffix the true one shares the first rank with others. There it counts as a
        hit if it has the lowest id of them, as in `interp.scan`; where `tied` is 0, the verdict
        does not depend on that.

    Raises:
        ValueError: a number below 1, what is not texts, no text as long as one window, or output of
            vLLM from which a verdict cannot be told.

    Example:
        >>> from interp.memorization.served import scan_served
        >>> from vllm import LLM  # doctest: +SKIP
        >>> llm = LLM("owner/name", enable_prefix_caching=False)  # doctest: +SKIP
        >>> frame = scan_served(llm, texts, prefix=32, length=32)  # doctest: +SKIP
        >>> interp.split(frame)  # doctest: +SKIP
    """
    check_sizes(prefix, length, stride, batch_size)
    vllm.check_engine(llm)
    reader = _reader(llm)
    start_tokens = reader.bos if bos else ()
    cut = Cut(prefix + length, length if stride is None else stride, start_tokens)
    corpus = CorpusWindows(reader, texts, cut)
    frames: list[pd.DataFrame] = []
    with closing(corpus.read()) as windows:
        for part in track(window_batches(windows, batch_size), "scanning"):
            frame = _measure(llm, reader, part, prefix, top)
            if start_tokens:
                frame["bos"] = [list(window.bos) for window in part]
            frames.append(frame)
    if not frames:
        raise nothing_to_scan(corpus, cut)
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= {
        "texts": corpus.texts,
        "skipped": corpus.skipped,
        "served": reader.name,
        "prefix": prefix,
        "length": length,
        "stride": cut.stride,
        "bos": list(start_tokens),
    }
    return frame


def _reader(llm: Any) -> Subject:
    """A subject that reads texts with the tokenizer of a served model, and computes nothing."""

    def forward(*_: Any) -> Any:
        raise ValueError("the model is in vLLM: only its verdicts can be had here")

    name = str(llm.llm_engine.vllm_config.model_config.model)
    return Subject(nn.Identity(), Anatomy({}, {}), forward, llm.get_tokenizer(), name)


def _measure(
    llm: Any, reader: Subject, part: Sequence[Window], prefix: int, top: int
) -> pd.DataFrame:
    # The same for all, see `window_batches`.
    bos = part[0].bos
    sequences = [[*bos, *window.tokens] for window in part]
    batch = Batch(torch.tensor(sequences), len(bos) + prefix)
    served = vllm.teacher_force(llm, sequences, batch.prompt, top)
    forced = TeacherForced(
        hits=served.hits,
        log_p=served.log_p.sum(1),
        continuation=batch.targets.numpy(),
        decoded=np.asarray(served.hits.all(1)),  # whose continuation is known to be the suffix
    )
    columns = {
        "text": [window.text for window in part],
        "start": [window.start for window in part],
        "prefix": prefix,
        "length": batch.length - batch.prompt,
    }
    frame = pd.DataFrame(columns | summary(forced, batch))
    frame["tied"] = served.tied.sum(1)
    frame["tokens"] = [list(window.tokens) for window in part]
    shown = [shown_parts(reader, window, prefix) for window in part]
    frame["prompt"] = [prompt for prompt, _ in shown]
    frame["suffix"] = [suffix for _, suffix in shown]
    return frame
