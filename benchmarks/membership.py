"""All token-level membership scores of a text, compared with one plain forward of the target model
and one of the reference model."""

from __future__ import annotations

import copy

import torch

import interp
from benchmarks import setting
from benchmarks.timing import Row, compared
from interp.memorization.membership.corpus import membership
from interp.subject.subject import evaluating, token_losses

_TEXTS = 8
_TOKENS = 128


def run(rounds: int = 3) -> list[Row]:
    """The cost of each variant; both give the mean log-probability of each text."""
    subject = setting.subject()
    reference = _other(subject)
    batch = setting.batch(_TEXTS, _TOKENS)

    def plain_forwards() -> torch.Tensor:
        with evaluating(subject), evaluating(reference):
            logits = subject.target_logits(batch)
            reference.target_logits(batch)
            return -token_losses(logits, batch).mean(1).double()

    def all_scores() -> torch.Tensor:
        scores = membership(subject, batch, reference)
        return torch.tensor(scores["loss"].to_numpy())

    variants = {"one forward per model": plain_forwards, "all membership scores": all_scores}
    bars = {"all membership scores": 1.25}
    return compared(f"membership, {_TEXTS} x {_TOKENS}", variants, rounds, bars)


def _other(subject: interp.Subject) -> interp.Subject:
    """A model of the same size with other weights."""
    module = copy.deepcopy(subject.module)
    with torch.no_grad():
        for parameter in module.parameters():
            # Not the same weights: then all ratios would be 0.
            parameter.mul_(1.01)
    return interp.Subject(module, subject.anatomy, subject.forward, subject.tokenizer)
