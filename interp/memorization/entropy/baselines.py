"""What one suffix alone says about its memorization score: the first attempts that the level sets
improve on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from interp.memorization.entropy.bags import entropies_of_tokens
from interp.memorization.entropy.regression import correlation_interval, groups_to_leave_out
from interp.memorization.entropy.scored_windows import ScoredWindows
from interp.memorization.recitation import overlap

_RUN = 5  # tokens that stand in the prompt in the same order


def trivial_overlap(prompt: Sequence[int], suffix: Sequence[int], run: int = _RUN) -> float:
    """Returns the share of a suffix's runs of tokens that also stand in its prompt.

    Args:
        prompt: token ids.
        suffix: token ids.
        run: tokens per run. A suffix that is shorter than a run has no run, and gives 0.

    Example:
        >>> from interp.memorization.entropy.baselines import trivial_overlap
        >>> trivial_overlap([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 9])
        0.5
    """
    return overlap(suffix, prompt, run) if len(suffix) >= run else 0.0


def is_trivial(
    prompts: Int[np.ndarray, "windows prefix"], suffixes: Int[np.ndarray, "windows length"]
) -> Bool[np.ndarray, " windows"]:
    """Returns which suffixes can be continued by copying: more than half of their runs of five
    tokens stand in the prompt, or they consist of at most two different tokens.

    That the paper leaves such windows out is known, its rule is not; this one is ours.

    Args:
        prompts: the tokens before each suffix.
        suffixes: the tokens.
    """
    types = [len(set(suffix)) for suffix in suffixes.tolist()]
    pairs = zip(prompts.tolist(), suffixes.tolist(), strict=True)
    overlaps = [trivial_overlap(prompt, suffix) for prompt, suffix in pairs]
    return (np.array(overlaps) > 0.5) | (np.array(types) <= 2)


def text_baselines(
    windows: ScoredWindows, decode: Callable[[Sequence[int]], str] | None = None
) -> pd.DataFrame:
    """Correlates the memorization score with what can be read off one suffix.

    Args:
        windows: scored windows.
        decode: turns tokens into text, for the compressed size; without it that row is missing.

    Returns:
        One row per `baseline`: its Pearson correlation `r` with the score, over windows, and the
        95% interval `low`, `high` over texts.

        - `entropy`: plug-in entropy of the suffix's own tokens, in bits;
        - `zlib`: bytes of the compressed suffix per byte of its text;
        - `log_perplexity`: mean loss of the suffix, in nats per token. It is read off the same
          predictions as the score, and is not a property of the text alone.
    """
    bits, _ = entropies_of_tokens(windows.suffixes)
    values = {"entropy": bits}
    if decode is not None:
        texts = [decode(suffix).encode() for suffix in windows.suffixes.tolist()]
        values["zlib"] = np.array([len(zlib.compress(text)) / max(len(text), 1) for text in texts])
    values["log_perplexity"] = -windows.log_p / windows.suffixes.shape[1]
    groups = groups_to_leave_out(windows.texts)
    rows: list[dict[str, Any]] = []
    for name, value in values.items():
        r = _correlation(value, windows.scores)
        left_out = [_correlation(value[~group], windows.scores[~group]) for group in groups]
        low, high = correlation_interval(r, left_out)
        rows.append({"baseline": name, "r": r, "low": low, "high": high, "windows": len(windows)})
    return pd.DataFrame(rows)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    # There is none where one of the two does not vary, or a suffix has the probability 0.
    if len(x) < 3 or not np.isfinite(x).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])
