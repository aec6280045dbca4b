"""What is measured of each file, or sequence, of a set: recitation, loss, and whether code that the
model completes can be parsed."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.memorization.extraction import discoverable
from interp.memorization.recitation import by_row, passages, recitation
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Values = Float[np.ndarray, " files"]


def recite_files(
    subject: Subject,
    batch: Batch,
    ngrams: Sequence[int] = (),
    *,
    queries: int = 100,
    probability: float = 0.5,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Measures each file of a batch; without marked secrets, all that counts in it is one secret.

    Args:
        subject: the model; active interventions apply.
        batch: one file per row.
        ngrams: as of `recitation`.
        queries, probability: as of `discoverable`.
        batch_size: batch size.

    Returns:
        One row per file. Means over its secrets, whatever their lengths: `ma` and `el_<n>` (see
        `recitation`), `exact` and `discoverable` (the share of its secrets that are extracted
        greedily, or within `queries` samples with `probability`). Means over the tokens of all its
        secrets: `accuracy` (the share of tokens that are the most likely ones) and `loss`, in nats
        per token.

    Raises:
        ValueError: see `recitation` and `discoverable`.

    Example:
        >>> from interp.mitigation.removal.file_measures import recite_files
        >>> recite_files(subject, batch)[["ma", "exact", "discoverable"]].iloc[0].tolist()
        [1.0, 1.0, 1.0]
    """
    frame: Any = recitation(subject, batch, ngrams, batch_size=batch_size)
    log_p = frame["log_p"].to_numpy(dtype=float)
    frame["discoverable"] = discoverable(log_p, queries, probability)
    # Back from shares to counts: `accuracy` and `loss` weigh all tokens of a file equally, while
    # `ma` is a mean over its secrets.
    frame["tokens"] = frame["stop"] - frame["start"]
    frame["hits"] = frame["ma"] * frame["tokens"]

    of_files = frame.groupby("row")
    found: Any = by_row(frame)
    found["exact"] = of_files["exact"].mean().astype(float)
    found["discoverable"] = of_files["discoverable"].mean().astype(float)
    totals = of_files[["tokens", "hits", "log_p"]].sum()
    found["accuracy"] = totals["hits"] / totals["tokens"]
    found["loss"] = -totals["log_p"] / totals["tokens"]
    return found


def context(batch: Batch) -> Batch | None:
    """Returns the files with the tokens around the secrets marked in place of the secrets.

    Args:
        batch: files whose `scored` marks secrets.

    Returns:
        The files that have such tokens; None if there are none.

    Example:
        >>> from interp.mitigation.removal.file_measures import context
        >>> scored = torch.tensor([[False, False, True, True]])
        >>> context(interp.Batch(torch.arange(4)[None], scored=scored)).counted
        tensor([[ True, False, False]])
        >>> context(batch) is None
        True
    """
    if batch.scored is None:
        return None
    around = replace(batch, scored=~batch.scored)
    has_context = around.counted.any(1)
    if not bool(has_context.any()):
        return None
    # The others would be refused by `recitation`, which measures a token in every row.
    return around.rows(has_context.nonzero()[:, 0])


def completions_parse(subject: Subject, batch: Batch) -> Values:
    """Returns, for each file of Python, whether the code that the model completes can be parsed.

    The model continues a file greedily from its first secret. Of that, as many lines are kept as
    the file has up to the end of the statement with its last secret.

    Args:
        subject: the model, with a tokenizer; active interventions apply.
        batch: one file per row; the tokens that count are secrets.

    Returns:
        1 or 0 for each file that can itself be parsed up to there; nothing for the others, so that
        there may be none.

    Raises:
        ValueError: the subject has no tokenizer.

    Example:
        >>> from interp.mitigation.removal.file_measures import completions_parse
        >>> scored = torch.arange(16) >= 8
        >>> completions_parse(subject, interp.Batch(batch.tokens[:1], scored=scored[None]))
        array([1.])
    """
    parsed: list[float] = []
    for tokens, first, stop in _with_secrets(batch):
        truth = _text(subject, tokens)
        lines = _lines_to_keep(truth, _text(subject, tokens[:stop]))
        if lines is None:
            continue
        prompt = torch.tensor([tokens[:first]])
        generated: Tensor = subject.generate(prompt, len(tokens) - first)
        completed = _text(subject, [*tokens[:first], *generated[0].tolist()])
        parsed.append(float(_can_be_parsed(completed.split("\n")[:lines])))
    return np.array(parsed)


def _with_secrets(batch: Batch) -> Iterator[tuple[list[int], int, int]]:
    """The tokens of each file without padding, the position of its first secret, and the end of its
    last one."""
    # Row by row, and from left to right within a row.
    found = passages(batch)
    for row, tokens in enumerate(batch.sequences()):
        own = [passage for passage in found if passage.row == row]
        yield tokens, own[0].start, own[-1].stop


def _text(subject: Subject, tokens: Sequence[int]) -> str:
    return subject.decode(subject.without_bos(tokens))


def _lines_to_keep(truth: str, up_to_secret: str) -> int | None:
    """The smallest number of lines of a file, with its last secret among them, that can be parsed.

    A secret may be in the head of a block, which cannot be parsed without the lines below it.
    """
    lines = truth.split("\n")
    fewest = up_to_secret.count("\n") + 1
    for count in range(fewest, len(lines) + 1):
        if _can_be_parsed(lines[:count]):
            return count
    return None


def _can_be_parsed(lines: Sequence[str]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in the strings that a model generates
        try:
            ast.parse("\n".join(lines))
        # Null bytes are a ValueError in some versions of Python; code that is nested too deeply
        # raises one of the last two.
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
