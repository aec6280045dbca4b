"""The loss with the MLP of each of 30 blocks zeroed in turn: on 4 x 64 tokens, where computing
dominates the cost, and on 1 x 16, where launching operations does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import interp
from benchmarks import peers, setting
from benchmarks.timing import Row, compared, lap
from interp.engine import sweeping

BAR = 0.68
Variants = dict[str, Callable[[], list[float]]]


def run(rounds: int = 2) -> list[Row]:
    """The cost of each variant; ratios are to the naive loop, one whole forward pass per block."""
    large = _ours(setting.batch(4, 64))
    del large["grown"]  # meant for small batches

    small_batch = setting.batch(1, 16)
    small = _ours(small_batch)
    small["nnsight, one trace a block"] = lambda: peers.sweep_nnsight(small_batch)
    small["TransformerLens start_at_layer"] = lambda: peers.sweep_transformer_lens(small_batch)

    large_bars = {"interp.sweep": BAR, "resumed": BAR}
    return [
        *compared("sweep 30 blocks, 4 x 64", large, rounds, large_bars),
        *compared("sweep 30 blocks, 1 x 16", small, rounds + 2, {"interp.sweep": BAR}),
    ]


def _ours(batch: interp.Batch) -> Variants:
    subject = setting.subject()
    plans = [interp.Zero(subject.anatomy.units(site)) for site in subject.anatomy.expand("neurons")]
    return {
        "naive": lambda: sweeping.sweep_naively(subject, batch, plans, _lapped_loss),
        "resumed": lambda: sweeping.sweep_resuming(subject, batch, plans, _lapped_loss),
        "grown": lambda: sweeping.sweep_growing(subject, batch, plans, _lapped_loss),
        # Without laps: its parts depend on which of the methods it chooses.
        "interp.sweep": lambda: interp.sweep(subject, batch, plans),
    }


def _lapped_loss(logits: Tensor, batch: interp.Batch) -> float:
    loss = interp.mean_loss(logits, batch)
    lap()
    return loss
