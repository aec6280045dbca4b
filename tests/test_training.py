"""Laws of fit: it is AdamW written by hand, to the bit; what goes wrong leaves the model as it was a step before."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import pytest
import tiny
import torch

import interp

SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "warmup": 4},
    {"decay": 3, "clip": 0.05},
    {"warmup": 2, "decay": 2, "clip": 1.0, "weight_decay": 0.01},
]


def stream(padded: bool = True) -> Iterator[interp.Batch]:  # noqa: FBT001, FBT002
    return (tiny.batch("", rows=3, length=8, seed=seed, prompt=2, padded=padded) for seed in count())


def weights(subject: interp.Subject) -> dict[str, torch.Tensor]:
    return copy.deepcopy(subject.module.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def by_hand(
    module: Any, steps: int, lr: float, weight_decay: float = 0.0, warmup: int = 0, decay: int = 0, clip: float | None = None
) -> list[float]:
    """The same training in plain torch: losses before each step."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay)
    losses = []
    for step, batch in enumerate(islice(stream(), steps)):
        rise = (step + 1) / warmup if warmup else 1
        fall = (steps - step) / decay if decay else 1
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, rise, fall)
        logits = module(batch.tokens, use_cache=False).logits[:, batch.prompt - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (loss.view_as(batch.targets) * batch.counted).sum() / batch.counted.sum()
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])  # with and without dropout
def test_fit_is_adamw_by_hand_to_the_bit(name, settings):
    ours, theirs = tiny.wrapped(tiny.model(name)), tiny.model(name)
    torch.manual_seed(5)
    frame = interp.fit(ours, stream(), 6, lr=1e-2, **settings)
    torch.manual_seed(5)
    losses = by_hand(theirs, 6, 1e-2, **settings)
    assert frame["step"].tolist() == list(range(6))
    assert frame["loss"].tolist() == losses
    assert same(ours.module.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_weights_and_training_learns(precision):
    runs, frames = [], []
    for _ in range(2):
        subject = tiny.wrapped(tiny.model("gpt2"))
        torch.manual_seed(0)
        frames.append(interp.fit(subject, [next(stream())] * 30, 30, lr=1e-2, precision=precision))
        runs.append(weights(subject))
    assert same(*runs)
    assert frames[0].equals(frames[1])
    assert frames[0]["loss"].iloc[-1] < frames[0]["loss"].iloc[0] / 2
    assert {w.dtype for w in runs[0].values()} == {torch.float32}


def test_bfloat16_is_not_float32():
    results = []
    for precision in ("float32", "bfloat16"):
        subject = tiny.wrapped(tiny.model("llama"))
        interp.fit(subject, stream(), 3, lr=1e-2, precision=precision)
        results.append(weights(subject))
    assert not same(*results)


def test_every_modules_mode_comes_back_and_no_gradient_or_hook_stays():
    subject = tiny.wrapped(tiny.model("gpt2"))
    subject.module.transformer.h[1].train()
    modes, hooks = [m.training for m in subject.module.modules()], tiny.hook_count(subject.module)
    seen = []
    interp.fit(subject, stream(), 2, callback=lambda *_: seen.append(subject.module.transformer.h[0].training))
    assert seen == [True, True]
    assert [m.training for m in subject.module.modules()] == modes
    assert tiny.hook_count(subject.module) == hooks
    assert all(p.grad is None for p in subject.module.parameters())


def test_a_short_stream_says_how_far_it_went():
    subject = tiny.wrapped(tiny.model("llama"))
    with pytest.raises(ValueError, match="the stream ended after 2 batches; 3 steps were asked for"):
        interp.fit(subject, islice(stream(), 2), 3)
    assert not subject.module.training


def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_step_before():
    subject, reference = (tiny.wrapped(tiny.model("llama")) for _ in range(2))
    interp.fit(reference, stream(), 2, lr=1e-2)
    calls = []

    def breaks_at_third(*args: Any) -> Any:
        calls.append(1)
        return args[2] * float("nan") if len(calls) == 3 else None

    handle = subject.module.lm_head.register_forward_hook(breaks_at_third)
    with pytest.raises(ValueError, match="the loss is nan at step 2: lower the learning rate"):
        interp.fit(subject, stream(), 5, lr=1e-2)
    handle.remove()
    assert same(subject.module.state_dict(), reference.module.state_dict())
    assert not subject.module.training


def test_the_callback_sees_each_step_and_its_loss():
    seen: list[tuple[int, float]] = []
    frame = interp.fit(tiny.wrapped(tiny.model("llama")), stream(), 4, callback=lambda *step: seen.append(step))
    assert seen == list(frame.itertuples(index=False, name=None))


def test_training_runs_under_an_intervention():
    """A model trained with a neuron switched off never learns to use it: what it writes gets no gradient."""
    subject = tiny.wrapped(tiny.model("llama"))
    off = tiny.units(subject, "blocks.1.neurons", [3])
    down = subject.module.model.layers[1].mlp.down_proj.weight
    before = down.detach().clone()
    with subject.intervened(interp.Zero(off)):
        interp.fit(subject, stream(), 3, lr=1e-2)
    moved = (down != before).any(0)
    assert not moved[3]
    assert moved.sum() == len(moved) - 1
