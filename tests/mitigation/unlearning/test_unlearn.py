"""Laws of unlearn: it forgets what it is told to, stops where it should, equals its steps by hand,
continues to the bit, and leaves everything as it was if it fails."""

from __future__ import annotations

import copy
import functools
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import letters
import pandas as pd
import pytest
import tiny
import torch
from forks import fork

import interp
from interp.memorization.recitation import levels, recitation
from interp.mitigation.unlearning.methods import find, methods
from interp.mitigation.unlearning.sets import Sets, check_sets
from interp.mitigation.unlearning.stopping import Stop
from interp.training.fit import Checkpoints, Step
from interp.training.state import load_weights, save_weights

TEXTS = letters.noise(8, 16, seed=3)


@functools.cache
def memorized() -> interp.Subject:
    """A model that knows all texts but the last two; no test may change it."""
    subject = letters.subject()
    interp.fit(subject, [subject.encode_all(TEXTS[:6])] * 60, 60, lr=1e-2)
    return subject


def learner() -> interp.Subject:
    module = copy.deepcopy(memorized().module)
    return interp.load(module, tokenizer=memorized().tokenizer)


def data() -> tuple[interp.Batch, interp.Batch]:
    """Two texts whose last eight letters are secrets, and two texts to retain."""
    forget = memorized().encode_all(TEXTS[:2])
    scored = torch.zeros_like(forget.tokens, dtype=torch.bool)
    scored[:, 8:] = True
    return replace(forget, scored=scored), memorized().encode_all(TEXTS[2:4])


def ma(subject: interp.Subject, batch: interp.Batch) -> float:
    return levels(recitation(subject, batch, ngrams=()))["ma"]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


RATES = {"rmu": 1e-2}
OPTIONS: dict[str, dict[str, Any]] = {"rmu": {"coefficient": 40.0, "alpha": 1.0}}


@pytest.mark.parametrize("name", methods())
def test_every_method_forgets_and_stops_there(name):
    subject, (forget, retain) = learner(), data()
    stop = Stop({"ma": 0.25, "el_3": 0.0}, epochs=60)
    history = interp.unlearn(
        subject, forget, retain, name, stop=stop, lr=RATES.get(name, 2e-3), **OPTIONS.get(name, {})
    )
    parts = list(find(name, {}).losses(memorized(), Sets(forget, retain)))
    assert history.attrs["method"] == name
    assert history.attrs["before"]["ma"] == 1.0
    assert history.attrs["reached"] is True
    assert history["part"].tolist() == parts * (len(history) // len(parts))
    assert history["epoch"].tolist() == [step // len(parts) for step in history["step"]]
    assert history["ma"].notna().sum() == len(history) // len(parts)

    last = stop.measure(subject, forget)
    assert stop.met(last)
    assert history["ma"].iloc[-1] == last["ma"]
    earlier = history.dropna(subset="ma").iloc[:-1]
    assert not any(stop.met(dict(row)) for _, row in earlier.iterrows())
    if name in ("codeeraser", "cu"):
        assert ma(subject, retain) > 0.9
    assert ma(memorized(), forget) == 1.0
    assert not tiny.hook_count(subject.module)
    assert all(parameter.grad is None for parameter in subject.module.parameters())


def test_equals_adam_on_the_losses_by_hand():
    """Two steps an epoch, one optimizer, no dropout; the losses compare with the first model."""
    subject, hand, (forget, retain) = learner(), learner(), data()
    interp.unlearn(subject, forget, retain, stop=Stop(epochs=3), lr=1e-3)
    losses = find("codeeraser", {}).losses(hand, Sets(forget, retain))
    optimizer = torch.optim.Adam(hand.module.parameters(), lr=1e-3, betas=(0.9, 0.98))
    for _ in range(3):
        for loss in losses.values():
            optimizer.zero_grad()
            loss(hand).backward()
            optimizer.step()
    for name, value in subject.module.state_dict().items():
        torch.testing.assert_close(value, hand.module.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_gradient_ascent_and_its_reductions_end_with_the_same_bits():
    ended = []
    forget, retain = data()
    forget = replace(forget, scored=None)
    for name, options in (
        ("ga", {}),
        ("codeeraser", {"gamma": 0.0, "lam": 0.0}),
        ("ssga", {"gamma": 0.0}),
    ):
        subject = learner()
        stop = Stop(epochs=3)
        history = interp.unlearn(subject, forget, retain, name, stop=stop, lr=1e-3, **options)
        ended.append((subject.module, history["loss"].tolist()))
    assert all(same(ended[0][0], module) for module, _ in ended[1:])
    assert ended[0][1] == ended[1][1] == ended[2][1]


def test_dropout_is_off():
    module = tiny.model("gpt2")  # dropout of 0.1 in training mode
    forget = tiny.batch("gpt2", rows=2, length=8)
    histories = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        subject = tiny.wrapped(copy.deepcopy(module))
        histories.append(interp.unlearn(subject, forget, method="ga", stop=Stop(epochs=2), lr=1e-3))
    assert histories[0].equals(histories[1])


def test_an_el_that_is_stuck_at_0_ends_training():
    """The trap of a strict comparison: the EL_10 of secrets of 8 tokens is 0 or 1."""
    subject, (forget, retain) = learner(), data()
    stop = Stop({"ma": 0.3, "el_10": 0.0}, epochs=100)
    history = interp.unlearn(subject, forget, retain, "ga", stop=stop, lr=2e-3)
    assert history["el_10"].iloc[-1] == 0.0
    assert len(history) < 60


@pytest.mark.parametrize("name", tiny.IMAGE)
def test_images_can_be_forgotten(name):
    subject = tiny.wrapped(copy.deepcopy(tiny.model(name)))
    forget, retain = (tiny.image_batch(name, seed=seed) for seed in (0, 1))
    before = subject.losses(forget).mean().item()
    history = interp.unlearn(subject, forget, retain, stop=Stop(epochs=2), lr=1e-3)
    assert history["loss"].iloc[0] == pytest.approx(-before, rel=1e-5)
    assert subject.losses(forget).mean().item() > before


def test_the_cap_ends_training_that_does_not_get_there():
    subject, (forget, retain) = learner(), data()
    stop = Stop({"ma": 0.0}, epochs=3, every=2)
    history = interp.unlearn(subject, forget, retain, stop=stop, lr=1e-6)
    assert history["epoch"].tolist() == [0, 0, 1, 1, 2, 2]
    assert history.attrs["reached"] is False
    assert history["ma"].notna().tolist() == [False, False, False, True, False, True]


def test_only_the_units_change():
    subject, (forget, retain) = learner(), data()
    units = subject.units("blocks.1.neurons", [3, 5, 7])
    interp.unlearn(subject, forget, retain, stop=Stop(epochs=3), units=units, lr=1e-2)
    before = memorized().module.state_dict()
    for name, value in subject.module.state_dict().items():
        changed = (value != before[name]).nonzero()
        if name == "model.layers.1.mlp.down_proj.weight":
            assert set(changed[:, 1].tolist()) == {3, 5, 7}
        else:
            assert not len(changed), name
    assert all(parameter.requires_grad for parameter in subject.module.parameters())
    assert not any(parameter._backward_hooks for parameter in subject.module.parameters())


def test_units_behind_the_site_of_the_loss_are_refused():
    subject, (forget, retain) = learner(), data()
    units = subject.units("blocks.1.neurons", [3])
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match="does not depend on any weight"),
    ):
        interp.unlearn(subject, forget, retain, "rmu", units=units, site="blocks.0.resid_post")


def test_holds_under_an_intervention():
    """What is zeroed in every forward is zeroed in the original model that the losses remember."""
    subject, (forget, retain) = learner(), data()
    with subject.intervened(interp.Zero(subject.units("blocks.0.neurons", [1, 2]))):
        history = interp.unlearn(subject, forget, retain, "cu", stop=Stop(epochs=1), lr=1e-3)
        ascent = -recitation(memorized(), forget, ngrams=())["log_p"].sum()
    with_kl_of_0 = history["loss"].iloc[0]
    hand = learner()
    with hand.intervened(interp.Zero(hand.units("blocks.0.neurons", [1, 2]))):
        expected = -hand.losses(replace(forget, scored=None)).mean().item()
    assert with_kl_of_0 == pytest.approx(expected)
    assert ascent > 0


def test_what_else_is_measured_is_in_the_history():
    subject, (forget, retain) = learner(), data()
    history = interp.unlearn(
        subject,
        forget,
        retain,
        stop=Stop(epochs=2),
        lr=1e-3,
        measure=lambda trained: {"retained_ma": ma(trained, retain)},
    )
    assert history["retained_ma"].notna().tolist() == [False, True, False, True]
    assert history["retained_ma"].iloc[-1] == ma(subject, retain)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_divergence_is_0_in_each_precision(precision):
    subject, (forget, retain) = learner(), data()
    plain = interp.unlearn(
        learner(), forget, retain, "ssga", stop=Stop(epochs=1), precision=precision
    )
    history = interp.unlearn(subject, forget, retain, stop=Stop(epochs=1), precision=precision)
    assert history["loss"].iloc[0] == plain["loss"].iloc[0]


def folder_run(folder: Path, callback: Any = None) -> tuple[interp.Subject, pd.DataFrame]:
    subject, (forget, retain) = learner(), data()
    history = interp.unlearn(
        subject,
        forget,
        retain,
        stop=Stop({"ma": 0.1, "el_3": 0.0}, epochs=20),
        units=subject.units("neurons"),
        lr=1e-3,
        callback=callback,
        checkpoints=Checkpoints(folder, every=3),
    )
    return subject, history


@pytest.mark.parametrize("at", [1, 4, 8])
def test_an_interrupted_unlearning_ends_with_the_same_bits(at, tmp_path):
    whole, history = folder_run(tmp_path / "whole")

    def stops(step: Step) -> None:
        if step.number == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder_run(tmp_path / "broken", stops)
    seen: list[int] = []
    resumed, joined = folder_run(tmp_path / "broken", lambda step: seen.append(step.number))
    assert seen[0] == (at // 3) * 3
    assert same(whole.module, resumed.module)
    pd.testing.assert_frame_equal(history, joined, check_exact=True)
    assert history.attrs == joined.attrs


def test_killed_at_any_step_it_ends_with_the_same_bits(tmp_path):
    whole, history = folder_run(tmp_path / "whole")
    heard, said = os.pipe()

    def train() -> None:
        folder_run(tmp_path / "killed", lambda step: os.write(said, f"{step.number}\n".encode()))

    child = fork(train, tmp_path / "log")
    os.close(said)
    with os.fdopen(heard) as lines:
        for _ in range(7):
            lines.readline()
        os.kill(child.pid, signal.SIGKILL)
    child.end()
    resumed, joined = folder_run(tmp_path / "killed")
    assert same(whole.module, resumed.module)
    pd.testing.assert_frame_equal(history, joined, check_exact=True)


def test_the_state_of_another_unlearning_is_refused(tmp_path):
    forget, retain = data()
    # what counts is the same, but not the context
    mask = torch.ones_like(forget.tokens, dtype=torch.bool)
    mask[:, -1] = False
    scored = torch.arange(forget.length) == forget.length - 2
    forget = replace(forget, scored=scored.expand(len(forget), -1))
    shorter = replace(forget, mask=mask)
    given: dict[str, Any] = {"lr": 1e-3, "checkpoints": Checkpoints(tmp_path, every=1)}
    interp.unlearn(learner(), forget, retain, stop=Stop(epochs=2), **given)
    trained = learner()
    interp.unlearn(trained, forget, retain, stop=Stop(epochs=1), lr=1e-3)
    for subject, options, sets, message in (
        (trained, {}, (forget, retain), "model="),
        (learner(), {"gamma": 0.1}, (forget, retain), r"options=.*'gamma': 0.5"),
        (learner(), {"method": "cu"}, (forget, retain), "method='codeeraser', now 'cu'"),
        (learner(), {"units": trained.units("neurons")}, (forget, retain), "units=None"),
        (learner(), {}, (retain, forget), "forget="),
        (learner(), {}, (shorter, retain), "forget="),
    ):
        with pytest.raises(ValueError, match=f"another training: {message}"):
            interp.unlearn(subject, *sets, stop=Stop(epochs=2), **given, **options)


def test_the_original_comes_back_from_a_file(tmp_path):
    subject, (forget, retain) = learner(), data()
    save_weights(tmp_path / "original.safetensors", subject.module)
    interp.unlearn(subject, forget, retain, stop=Stop(epochs=2), lr=1e-3)
    assert not same(subject.module, memorized().module)
    load_weights(tmp_path / "original.safetensors", subject.module)
    assert same(subject.module, memorized().module)


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (1, r"training broke the model: lower the learning rate \(inf\).*the logits that predict"),
        (9, "the loss is nan at step 1: lower the learning rate"),
    ],
)
def test_what_is_not_finite_leaves_everything_as_it_was(every, message):
    subject, (forget, retain) = learner(), data()
    stop = Stop(epochs=50, every=every)
    with tiny.untouched(subject.module), pytest.raises(ValueError, match=message):
        interp.unlearn(subject, forget, retain, "ga", stop=stop, lr=math.inf)
    assert all(parameter.grad is None for parameter in subject.module.parameters())


@pytest.mark.parametrize("units", [False, True])
def test_an_error_in_a_callback_leaves_everything_as_it_was(units):
    subject, (forget, retain) = learner(), data()

    def breaks(step: Step) -> None:
        if step.number == 3:
            raise RuntimeError("no space left")

    with tiny.untouched(subject.module), pytest.raises(RuntimeError, match="no space left"):
        interp.unlearn(
            subject,
            forget,
            retain,
            lr=1e-3,
            callback=breaks,
            units=subject.units("heads") if units else None,
        )
    assert all(parameter.requires_grad for parameter in subject.module.parameters())


def short(batch: interp.Batch, row: int) -> interp.Batch:
    """The batch without a scored token in one row."""
    assert batch.scored is not None
    scored = batch.scored.clone()
    scored[row] = False
    return replace(batch, scored=scored)


@pytest.mark.parametrize("tokenizer", [True, False])
def test_sets_that_contradict_each_other_are_refused(tokenizer):
    subject, (forget, retain) = learner(), data()
    if not tokenizer:
        subject.tokenizer = None
    secret = TEXTS[1][8:]
    leaking = memorized().encode_all([TEXTS[2], f"key = '{secret}'"])
    within = memorized().encode_all([TEXTS[2], TEXTS[1][2:14]])
    for sets, message in (
        ((forget, None), "codeeraser needs a retained set: pass retain="),
        ((short(forget, 1), retain), r"forget: row 1 has no token that counts.*leave the row out"),
        ((forget, short(forget, 0)), r"retain: row 0 has no token that counts"),
        ((forget, forget), r"row 0 of retain is row 0 of forget"),
        (
            (forget, memorized().encode_all([TEXTS[4], TEXTS[1]])),
            "row 1 of retain is row 1 of forget",
        ),
        (
            (forget, leaking),
            r"row 1 of retain contains the secret of row 1 of forget \(tokens 8 to 16\)",
        ),
    ):
        with tiny.untouched(subject.module), pytest.raises(ValueError, match=message):
            interp.unlearn(subject, *sets)
    # a part of a secret is not the secret
    interp.unlearn(subject, forget, within, stop=Stop(epochs=1))


def test_a_secret_is_not_found_in_tokens_whose_numbers_begin_or_end_like_its_own():
    subject = learner()
    subject.tokenizer = None
    secret = [2, 3, 4, 12]
    forget = interp.Batch(torch.tensor([secret]), prompt=0)
    for kept in ([2, 3, 4, 123, 5], [32, 3, 4, 12, 5], [1, 42, 3, 4, 125]):
        check_sets(subject, Sets(forget, interp.Batch(torch.tensor([kept]), prompt=0)))
    for kept in ([2, 3, 4, 12, 5], [5, 2, 3, 4, 12], [5, 2, 3, 4, 12, 6]):
        with pytest.raises(ValueError, match="row 0 of retain contains the secret of row 0"):
            check_sets(subject, Sets(forget, interp.Batch(torch.tensor([kept]), prompt=0)))


def test_a_secret_with_other_quotes_is_found():
    """As tokens of a file it may carry its quotes, as text it is the same secret."""
    subject = learner()
    forget = subject.encode_all([f"a='{TEXTS[6]}'", TEXTS[7]])
    scored = torch.zeros_like(forget.tokens, dtype=torch.bool)
    scored[0, 2:] = True
    scored[1, 4:] = True
    retain = subject.encode_all([f'b="{TEXTS[6]}"'])
    with pytest.raises(ValueError, match="row 0 of retain contains the secret of row 0"):
        interp.unlearn(subject, replace(forget, scored=scored), retain)


def test_what_is_already_forgotten_is_refused():
    subject, (forget, retain) = learner(), data()
    unseen = memorized().encode_all(TEXTS[6:])
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match=r"before any training \(ma is 0.*, at most 0.5\)"),
    ):
        interp.unlearn(subject, unseen, retain, stop=Stop({"ma": 0.5}))
    with pytest.raises(ValueError, match="method='gaa': expected one of"):
        interp.unlearn(subject, forget, retain, "gaa")
