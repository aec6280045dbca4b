"""Recording the mean |activation| of all 46,080 neurons on 8 x 64 tokens, compared with a forward
pass."""

from __future__ import annotations

import torch

import interp
from benchmarks import peers, setting
from benchmarks.timing import Row, compared

BAR = 0.85


def run(rounds: int = 5) -> list[Row]:
    """The cost of each variant. The plain forward pass computes logits and keeps nothing; the
    results of the other variants must be equal."""
    subject = setting.subject()
    batch = setting.batch(8, 64)

    def plain() -> None:
        with torch.inference_mode():
            subject.module(batch.tokens, use_cache=False)

    def ours() -> dict[str, object]:
        recorded = interp.record(subject, batch, "neurons", reduce="mean_abs")
        return {str(site): value for site, value in recorded.items()}

    variants = {
        "plain forward": plain,
        "interp.record, no logits": ours,
        "torch hooks, whole forward": lambda: peers.record_raw_hooks(batch),
        "nnsight, whole forward": lambda: peers.record_nnsight(batch),
        "TransformerLens run_with_cache": lambda: peers.record_transformer_lens(batch),
    }
    return compared("record neurons, 8 x 64", variants, rounds, {"interp.record, no logits": BAR})
