"""Whether 16 suffixes of 32 tokens are extracted: generating them beside one teacher-forced
forward."""

from __future__ import annotations

import torch

from benchmarks import setting
from benchmarks.timing import Row, compared
from interp.memorization.extraction import verdicts


def run(rounds: int = 2) -> list[Row]:
    """All variants must give the same 16 verdicts; the last also gives the whole free continuation
    of near misses."""
    subject, batch = setting.subject(), setting.suffixes(16)
    prompt, truth = batch.tokens[:, : batch.prompt], batch.targets

    def transformers() -> torch.Tensor:
        some = torch.ones_like(prompt)
        found = subject.module.generate(
            prompt, attention_mask=some, max_new_tokens=32, min_new_tokens=32, do_sample=False
        )
        return (found[:, batch.prompt :] == truth).all(1)

    variants = {
        "transformers generate": transformers,
        "subject.generate": lambda: (subject.generate(prompt, 32) == truth).all(1),
        "teacher-forced verdicts": lambda: verdicts(subject, batch, decode_from=2.0).hits.all(1),
        "verdicts, near misses decoded": lambda: verdicts(subject, batch, decode_from=0.5).hits.all(
            1
        ),
    }
    return compared("extraction, 16 x (32 + 32)", variants, rounds, tolerance=0.0)
