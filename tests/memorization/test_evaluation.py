"""measure_under returns what a naive loop of ablations measures."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import interp
from interp.memorization.evaluation import MEASURES, measure_under, window_measures
from interp.subject.subject import evaluating


@pytest.fixture(params=("gpt2", "llama", "opt", "gemma3", "mixtral"))
def subject(request: pytest.FixtureRequest) -> interp.Subject:
    return tiny.subject(request.param, torch.float64)


def naive(
    subject: interp.Subject, plan: list[interp.Intervention], window: interp.Batch
) -> dict[str, float]:
    length = window.length if window.mask is None else int(window.mask.sum())
    with evaluating(subject), subject.intervened(*plan):
        log_p = (
            subject.module(window.tokens[:, :length])
            .logits[0, window.prompt - 1 : -1]
            .log_softmax(-1)
        )
    truth = window.tokens[0, window.prompt : length]
    hits = [bool(p.argmax() == t) for p, t in zip(log_p, truth, strict=True)]
    loss = -float(np.mean([p[t] for p, t in zip(log_p, truth, strict=True)]))
    similarity = 1 - edits(log_p.argmax(-1).tolist(), truth.tolist()) / len(hits)
    return {
        "exact": float(all(hits)),
        "accuracy": sum(hits) / len(hits),
        "similarity": similarity,
        "loss": loss,
    }


def edits(one: list[int], other: list[int]) -> int:
    """The edit distance, by its recursion."""
    if not one or not other:
        return len(one) + len(other)
    same = edits(one[1:], other[1:]) + (one[0] != other[0])
    return min(same, edits(one[1:], other) + 1, edits(one, other[1:]) + 1)


def half_said(subject: interp.Subject, rows: int, seed: int, *, padded: bool) -> interp.Batch:
    """Windows of which some are what the model says."""
    batch = tiny.batch("", rows=rows, length=9, seed=seed, prompt=4, padded=padded)
    said = torch.cat([batch.tokens[:, :4], subject.generate(batch.tokens[:, :4], 5)], dim=1)
    return interp.Batch(
        torch.where(torch.arange(rows)[:, None] % 2 == 0, said, batch.tokens), 4, batch.mask
    )


@pytest.mark.parametrize("size", [2, 16])
def test_effects_are_those_of_a_naive_loop(subject, size):
    sites = [s for s in subject.sites if s.point == "mlp_out"]
    plans = [[], *([interp.Zero(tiny.units(subject, site, [1, 2, 5]))] for site in sites)]
    data = {
        "padded": half_said(subject, 3, 1, padded=True),
        "whole": half_said(subject, 5, 2, padded=False),
    }
    with tiny.untouched(subject.module):
        frame = measure_under(subject, plans, data, size).set_index(["plan", "data", "window"])
    assert len(frame) == len(plans) * (3 + 5)
    for number, plan in enumerate(plans):
        for name, batch in data.items():
            for row, window in enumerate(batch.split(1)):
                found = frame.loc[(number, name, row)]
                np.testing.assert_allclose(
                    found[list(MEASURES)], list(naive(subject, plan, window).values()), rtol=1e-6
                )
    assert {0.0, 1.0} <= set(frame["exact"])


def test_a_suffix_said_one_token_late_is_alike_though_no_token_is_right():
    batch = interp.Batch(torch.tensor([[9, 1, 2, 3, 4]]), 1)
    said = torch.nn.functional.one_hot(torch.tensor([[5, 1, 2, 3]]), 10).float()
    found = window_measures(said, batch)
    assert (found["accuracy"], found["exact"], found["similarity"]) == (
        0,
        0,
        0.5,
    )  # one token added, one left out, of four


def test_similarity_is_of_the_targets_that_count_wherever_they_stand():
    """Of 7 and 8, which count, one is right; what stands around them does not matter."""
    scored = torch.tensor([[False, False, False, True, True, False]])
    batch = interp.Batch(torch.tensor([[9, 1, 2, 7, 8, 3]]), 1, scored=scored)
    most_likely = torch.tensor([[1, 2, 7, 4, 3]])
    found = window_measures(torch.nn.functional.one_hot(most_likely, 10).float(), batch)
    assert (found["accuracy"], found["exact"], found["similarity"]) == (0.5, 0, 0.5)


def test_windows_joined_with_others_measure_the_same():
    """Of a joined batch with several prompts the targets of some rows come late, and are padded."""
    subject = tiny.subject("llama", torch.float64)
    parts = [
        half_said(subject, 3, 1, padded=False),
        tiny.batch("llama", rows=2, length=7, seed=3, prompt=5),
        tiny.batch("llama", rows=2, length=6, seed=4, prompt=2),
    ]
    joined = interp.Batch.join(parts)
    with torch.no_grad():
        together = window_measures(subject.target_logits(joined), joined)
        apart = [window_measures(subject.target_logits(part), part) for part in parts]
    for measure, values in together.items():
        own = np.concatenate([each[measure] for each in apart])
        np.testing.assert_allclose(values, own, rtol=1e-9, err_msg=measure)


def test_windows_of_which_nothing_is_measured_are_refused():
    subject = tiny.subject("llama")
    tokens = torch.arange(12).reshape(2, 6)
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[1, 3:] = False
    batch = interp.Batch(tokens, 3, scored=scored)
    with pytest.raises(ValueError, match="row 1 has no target that counts: expected at least one"):
        window_measures(torch.zeros(2, 3, tiny.VOCABULARY), batch)
    with pytest.raises(ValueError, match="window 'judged' 1 has no target that counts"):
        measure_under(subject, [[]], {"judged": batch}, batch_size=1)
    with pytest.raises(ValueError, match="1 plans and 0 batches of windows"):
        measure_under(subject, [[]], {})
