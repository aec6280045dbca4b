"""Laws of Slimming and Hard Concrete: masks between 0 and 1, learned for many windows at once as
for each of them alone."""

from __future__ import annotations

import math
from contextlib import ExitStack

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.special import expit
from torch import Tensor

import interp
from interp.localization import localize_each
from interp.localization.methods.learned_masks import clipped, concrete_mask

METHODS = ("slimming", "hard_concrete")
GAMMA, ZETA = -0.1, 1.1
logits = npst.arrays(np.float64, 5, elements=st.floats(-30, 30))
noises = npst.arrays(np.float64, 5, elements=st.floats(0, 1))
betas = st.floats(0.05, 5)


@given(logits, noises, betas)
def test_a_concrete_mask_is_the_formula_and_lies_between_0_and_1(a, u, beta):
    mask = concrete_mask(torch.tensor(a), beta, torch.tensor(u)).numpy()
    kept = np.clip(u, 1e-4, 1 - 1e-4)
    s = expit((np.log(kept) - np.log(1 - kept) + a) / beta)
    np.testing.assert_allclose(
        mask, np.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1), rtol=1e-9, atol=1e-12
    )
    assert ((mask >= 0) & (mask <= 1)).all()


@given(logits, betas, betas)
def test_without_noise_a_mask_is_determined_by_its_logit_alone(a, beta, other):
    mask = concrete_mask(torch.tensor(a), beta)
    assert torch.equal(mask, concrete_mask(torch.tensor(a), other))
    np.testing.assert_allclose(
        mask.numpy(), np.clip(1.2 * expit(a) - 0.1, 0, 1), rtol=1e-9, atol=1e-12
    )


@given(npst.arrays(np.float64, 7, elements=st.floats(-3, 3)))
def test_clipped_is_the_clip_and_moves_only_below_1(values):
    leaf = torch.tensor(values, requires_grad=True)
    mask = clipped(leaf)
    mask.sum().backward()
    np.testing.assert_array_equal(mask.detach().numpy(), np.clip(values, 0, 1))
    assert ((leaf.grad == 1) == torch.tensor((values > 0) & (values < 1)))[
        torch.tensor(values != 0)
    ].all()
    assert not leaf.grad[torch.tensor(values >= 1)].any()


@pytest.mark.parametrize("mask_p", [0.1, 0.5, 0.9])
def test_a_hard_concrete_score_is_the_sigmoid_of_a_logit_that_begins_with_the_expected_mask(mask_p):
    scores = localize_each(
        tiny.subject("llama"), windows("llama"), method="hard_concrete", mask_p=mask_p, steps=0
    )
    score = scores[0]["blocks.0.neurons"]
    logit = np.log(score / (1 - score))
    np.testing.assert_allclose(concrete_mask(torch.tensor(logit)).numpy(), mask_p, rtol=1e-5)
    np.testing.assert_allclose(score * (ZETA - GAMMA) + GAMMA, mask_p, rtol=1e-5)


@pytest.mark.parametrize("mask_p", [0, 1, -0.5, 1.5])
def test_a_share_outside_of_0_and_1_is_refused(mask_p):
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        localize_each(
            tiny.subject("llama"), windows("llama"), method="hard_concrete", mask_p=mask_p
        )


def windows(name: str, rows: int = 4, dtype: torch.dtype = torch.float32) -> interp.Batch:
    return tiny.batch(name, rows, length=9, prompt=4, padded=True, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gpt2", "policy"])
def test_without_pressure_no_slimming_mask_moves(name, dtype):
    scores = localize_each(
        tiny.subject(name, dtype),
        windows(name, dtype=dtype),
        method="slimming",
        pressure=0,
        steps=15,
    )
    assert all((row == 1).all() for window in scores for row in window.values.values())


@pytest.mark.parametrize("method", METHODS)
def test_scores_lie_between_0_and_1(method):
    scores = localize_each(
        tiny.subject("llama"), windows("llama"), method=method, lr=0.3, steps=25, stop=0
    )
    rows = np.concatenate([row for window in scores for row in window.values.values()])
    assert ((rows >= 0) & (rows <= 1)).all()
    assert rows.min() < 0.05
    assert rows.max() > 0.5


def naive(
    subject: interp.Subject, window: interp.Batch, method: str, pressure: float, steps: int
) -> dict[interp.Site, np.ndarray]:
    """One window, its noise always a half, by plain hooks and torch's own Adam, with nothing to
    stop it."""
    sites = subject.anatomy.expand("heads")
    start = 1.0 if method == "slimming" else math.log((0.5 - GAMMA) / (ZETA - 0.5))
    leaves = {
        site: torch.full(
            (subject.anatomy.place(site).units,), start, dtype=torch.float64, requires_grad=True
        )
        for site in sites
    }
    adam = torch.optim.Adam(leaves.values(), lr=0.05)

    def mask(leaf: Tensor) -> Tensor:
        if method == "slimming":  # the slope at 1 is 0, which torch's clamp takes to be 1
            return leaf.clamp(0, 1) * (leaf < 1) + (leaf >= 1)
        return (torch.sigmoid(leaf / 0.33) * 1.2 - 0.1).clamp(0, 1)

    for _ in range(steps):
        with ExitStack() as stack:
            for site in sites:
                size = subject.anatomy.place(site).width // len(leaves[site])
                gate = mask(leaves[site]).repeat_interleave(size)
                stack.enter_context(
                    tiny.by_hand(
                        subject.module, subject.anatomy.place(site), lambda v, gate=gate: v * gate
                    )
                )
            loss = subject.losses(window).sum() / window.counted.sum()
        every = torch.cat(list(leaves.values()))
        loss = (
            loss
            + pressure
            * (
                every.abs()
                if method == "slimming"
                else torch.sigmoid(every - 0.33 * math.log(0.1 / 1.1))
            ).sum()
        )
        adam.zero_grad()
        loss.backward(inputs=list(leaves.values()))
        adam.step()
    return {
        s: (leaf.clamp(0, 1) if method == "slimming" else torch.sigmoid(leaf)).detach().numpy()
        for s, leaf in leaves.items()
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "policy"])
def test_masks_are_what_adam_makes_of_loss_and_pressure(monkeypatch, name, method):
    subject, batch = tiny.subject(name, torch.float64), windows(name, 2, torch.float64)
    monkeypatch.setattr(
        torch, "rand", lambda *size, dtype=None, **_: torch.full(size, 0.5, dtype=dtype)
    )
    scores = localize_each(
        subject, batch, method=method, site="heads", lr=0.05, pressure=0.05, steps=12, stop=0
    )
    for row, window in zip(scores, batch.split(1), strict=True):
        for site, expected in naive(subject, window, method, 0.05, 12).items():
            np.testing.assert_allclose(row[site], expected, rtol=1e-5, atol=1e-7, err_msg=str(site))


STOPS = {
    "slimming": {"lr": 0.05, "pressure": 0.02, "stop": 0.45},
    "hard_concrete": {"lr": 0.1, "pressure": 0.02, "stop": 0.6},
}


def forwards(
    subject: interp.Subject, window: interp.Batch, method: str, **options: float
) -> tuple[interp.UnitScores, int]:
    """The scores of one window, and how often the model ran for them."""
    ran: list[int] = []
    counter = subject.module.register_forward_hook(lambda *_: ran.append(1))
    try:
        (scores,) = localize_each(subject, window, method=method, **options)
    finally:
        counter.remove()
    return scores, len(ran)


@pytest.mark.parametrize(
    ("name", "method"),
    [("gpt2", "slimming"), ("gpt2", "hard_concrete"), ("policy", "hard_concrete")],
)
def test_masks_learned_together_are_those_learned_alone_also_where_windows_stop_at_different_steps(
    name, method
):
    subject, batch = tiny.subject(name, torch.float64), windows(name, 5, torch.float64)
    options = STOPS[method] | {"site": "heads", "steps": 100}
    together = localize_each(subject, batch, method=method, batch_size=16, **options)
    lasted = set()
    for row, window in enumerate(batch.split(1)):
        alone, steps = forwards(subject, window, method, **options)
        lasted.add(steps)
        for site in subject.anatomy.expand("heads"):
            np.testing.assert_allclose(together[row][site], alone[site], rtol=0, atol=1e-5)
    assert len(lasted) > 1, "the windows must stop at different steps"


@pytest.mark.parametrize("method", METHODS)
def test_windows_of_different_lengths_get_the_masks_that_they_get_alone(method):
    subject = tiny.subject("gpt2", torch.float64)
    tokens = tiny.batch("gpt2", 3).tokens.tolist()
    frame = pd.DataFrame({"tokens": [tokens[0][:6], tokens[1], tokens[2][:8]], "prefix": 4})
    together = localize_each(subject, frame, method=method, steps=20, stop=0)
    for row in range(3):
        (alone,) = localize_each(subject, frame.iloc[[row]], method=method, steps=20, stop=0)
        for site in subject.anatomy.expand("neurons"):
            np.testing.assert_allclose(together[row][site], alone[site], rtol=0, atol=1e-5)


def test_hard_concrete_draws_from_its_seed_and_the_window():
    subject, batch = tiny.subject("llama"), windows("llama")

    def run(seed: int, rows: interp.Batch) -> np.ndarray:
        return np.stack(
            [
                s["blocks.1.neurons"]
                for s in localize_each(subject, rows, method="hard_concrete", seed=seed, steps=3)
            ]
        )

    np.testing.assert_array_equal(run(1, batch), run(1, batch))
    assert (run(1, batch) != run(2, batch)).any()
    twice = interp.Batch(batch.tokens[[0, 0]], 4)
    np.testing.assert_allclose(*run(1, twice), rtol=1e-5)
