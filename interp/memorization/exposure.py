"""Exposure: how much easier a planted canary is to guess for a model than by chance."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def exposure(
    log_p: Float[np.ndarray, " canaries"], references: Float[np.ndarray, " references"]
) -> Float[np.ndarray, " canaries"]:
    """Returns the exposure of each canary, in bits: log2 of the number of candidates minus log2 of
    its rank among them.

    The candidates are the canary itself and references of the same form that the model was never
    trained on. A canary that is more likely than all of them has the most that so many references
    can show, log2(references + 1); one that was not memorized has about 1.4 on average.

    Source: Carlini et al. 2019 (arXiv 1802.08232), definition 4, with the rank among a sample.

    Args:
        log_p: log-probability of each canary, in nats; NaN stays NaN.
        references: those of the references.

    Raises:
        ValueError: no references, or one that is NaN.

    Example:
        >>> from interp.memorization.exposure import exposure
        >>> exposure(np.array([-1.0, -50.0]), references=np.array([-40.0, -45.0, -60.0]))
        array([2.       , 0.4150375])
    """
    if not len(references) or np.isnan(references).any():
        raise ValueError(
            f"{len(references)} references, {int(np.isnan(references).sum())} of them NaN: "
            "expected the log-probabilities of canaries that were never trained on, at least one"
        )
    ranks = 1 + (references[None, :] > log_p[:, None]).sum(1)
    bits = np.log2(len(references) + 1) - np.log2(ranks)
    # Comparisons with NaN are false: a canary without a number would have the first rank.
    return np.where(np.isnan(log_p), np.nan, bits)
