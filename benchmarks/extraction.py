"""Are 16 suffixes of 32 tokens extracted? Generating them, compared with one teacher-forced forward
pass."""

from __future__ import annotations

import torch

from benchmarks import setting
from benchmarks.timing import Row, compared
from interp.memorization.teacher_forcing import teacher_force


def run(rounds: int = 2) -> list[Row]:
    """The cost of each variant; all must give the same 16 results. The last variant also decodes
    the whole continuation of windows that are nearly extracted."""
    subject = setting.subject()
    batch = setting.suffixes(16)
    prompt = batch.tokens[:, : batch.prompt]
    suffix = batch.targets

    def transformers() -> torch.Tensor:
        generated = subject.module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=32,
            min_new_tokens=32,
            do_sample=False,
        )
        return (generated[:, batch.prompt :] == suffix).all(1)

    def ours() -> torch.Tensor:
        return (subject.generate(prompt, 32) == suffix).all(1)

    def teacher_forced() -> torch.Tensor:
        # No window has more than 100% of hits, so that none is decoded.
        return teacher_force(subject, batch, decode_from=2.0).hits.all(1)

    def near_misses_decoded() -> torch.Tensor:
        return teacher_force(subject, batch, decode_from=0.5).hits.all(1)

    variants = {
        "transformers generate": transformers,
        "subject.generate": ours,
        "teacher-forced verdicts": teacher_forced,
        "verdicts, near misses decoded": near_misses_decoded,
    }
    return compared("extraction, 16 x (32 + 32)", variants, rounds, tolerance=0.0)
