"""The loss with each of 30 blocks' MLPs zeroed in turn, on 4 x 64 tokens (compute-bound) and on 1 x
16 (launch-bound)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import interp
from benchmarks import peers, setting
from benchmarks.timing import Row, compared, lap
from interp.engine import sweeping

BAR = 0.68


def run(rounds: int = 2) -> list[Row]:
    """Ratios to the naive loop, one whole forward for each block."""
    large, small = setting.batch(4, 64), setting.batch(1, 16)
    beside = {
        "nnsight, one trace a block": lambda: peers.sweep_nnsight(small),
        "TransformerLens start_at_layer": lambda: peers.sweep_transformer_lens(small),
    }
    costly = {
        name: run for name, run in _ours(large).items() if name != "grown"
    }  # for small batches
    return [
        *compared(
            "sweep 30 blocks, 4 x 64",
            costly,
            rounds,
            dict.fromkeys(("interp.sweep", "resumed"), BAR),
        ),
        *compared(
            "sweep 30 blocks, 1 x 16", _ours(small) | beside, rounds + 2, {"interp.sweep": BAR}
        ),
    ]


def _ours(batch: interp.Batch) -> dict[str, Callable[[], list[float]]]:
    subject = setting.subject()
    plans = [interp.Zero(subject.anatomy.units(site)) for site in subject.anatomy.expand("neurons")]
    return {
        "naive": lambda: sweeping.naive(subject, batch, plans, _lapped_loss),
        "resumed": lambda: sweeping.resumed(subject, batch, plans, _lapped_loss),
        "grown": lambda: sweeping.grown(subject, batch, plans, _lapped_loss),
        "interp.sweep": lambda: interp.sweep(
            subject, batch, plans
        ),  # one lap: its parts depend on the method it picks
    }


def _lapped_loss(logits: Tensor, batch: interp.Batch) -> float:
    loss = interp.mean_loss(logits, batch)
    lap()
    return loss
