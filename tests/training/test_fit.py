"""Laws of fit: it equals AdamW written by hand, bit for bit; what goes wrong leaves the model as it
was a step before."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from forks import fork
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.training import fit as training
from interp.training.fit import Checkpoints, Evaluation, Step, epochs
from interp.training.state import _gathered, load_weights, save_weights

SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "warmup": 4},
    {"decay": 3, "clip": 0.05},
    {"warmup": 2, "decay": 2, "clip": 1.0, "weight_decay": 0.01},
]


def stream(padded: bool = True) -> Iterator[interp.Batch]:  # noqa: FBT001, FBT002
    return (
        tiny.batch("", rows=3, length=8, seed=seed, prompt=2, padded=padded) for seed in count()
    )


def weights(subject: interp.Subject) -> dict[str, torch.Tensor]:
    return copy.deepcopy(subject.module.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def by_hand(
    module: Any,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    warmup: int = 0,
    decay: int = 0,
    clip: float | None = None,
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
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="none"
        )
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
    interp.fit(
        subject,
        stream(),
        2,
        callback=lambda *_: seen.append(subject.module.transformer.h[0].training),
    )
    assert seen == [True, True]
    assert [m.training for m in subject.module.modules()] == modes
    assert tiny.hook_count(subject.module) == hooks
    assert all(p.grad is None for p in subject.module.parameters())


def test_gradients_of_before_are_no_part_of_the_first_step():
    trained: list[torch.Tensor] = []
    for before in (None, 1.0):
        subject = tiny.wrapped(tiny.model("gpt2"))
        weight = subject.module.transformer.h[0].mlp.c_proj.weight
        weight.grad = None if before is None else torch.full_like(weight, before)
        torch.manual_seed(0)  # for dropout
        interp.fit(subject, stream(), 1)
        trained.append(weight.detach())
    assert torch.equal(*trained)


def test_an_objective_that_is_the_mean_loss_changes_nothing():
    steps: list[int] = []

    def mean_loss(subject: interp.Subject, batch: interp.Batch, step: int) -> torch.Tensor:
        steps.append(step)
        return subject.losses(batch).sum() / batch.counted.sum()

    plain, given_one = (tiny.wrapped(tiny.model("gpt2")) for _ in range(2))
    histories = []
    seen: list[Step] = []
    for subject, objective in ((plain, None), (given_one, mean_loss)):
        torch.manual_seed(4)
        histories.append(
            interp.fit(subject, stream(), 4, lr=1e-2, objective=objective, callback=seen.append)
        )
    assert steps == list(range(4))
    assert histories[0].equals(histories[1])
    assert same(weights(plain), weights(given_one))
    assert [step.losses is None for step in seen] == [False] * 4 + [True] * 4


def uneven() -> Iterator[interp.Batch]:
    """Batches of several lengths and numbers of rows, of which few tokens count in some and many in
    others."""
    for seed in count():
        batch = tiny.batch("", rows=1 + seed % 3, length=6 + seed % 4, seed=seed, prompt=2)
        generator = torch.Generator().manual_seed(seed)
        share = 0.2 if seed % 2 else 0.9
        scored = torch.rand(batch.tokens.shape, generator=generator) < share
        scored[:, 2] = True
        yield replace(batch, scored=scored)


def joined(batches: Iterator[interp.Batch], number: int) -> Iterator[interp.Batch]:
    while parts := list(islice(batches, number)):
        yield interp.Batch.join(parts)


@pytest.mark.parametrize("number", [2, 3])
def test_accumulated_batches_make_the_step_of_one_batch_with_all_their_rows(number: int):
    """Not the step of the mean of their means: their numbers of targets differ fivefold."""
    parts, whole = (undropped() for _ in range(2))
    seen: list[Step] = []
    settings: dict[str, Any] = {"steps": 4, "lr": 1e-2, "weight_decay": 0.1, "clip": 0.5}
    frame = interp.fit(parts, uneven(), accumulate=number, callback=seen.append, **settings)
    wanted: list[Step] = []
    expected = interp.fit(whole, joined(uneven(), number), callback=wanted.append, **settings)
    assert frame["loss"].tolist() == pytest.approx(expected["loss"].tolist(), abs=1e-9)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=0, atol=1e-8)
    for step, other in zip(seen, wanted, strict=True):
        assert torch.equal(step.batch.tokens, other.batch.tokens)
        assert torch.equal(step.batch.counted, other.batch.counted)
        torch.testing.assert_close(step.losses, other.losses, rtol=0, atol=1e-6)


def undropped() -> interp.Subject:
    module = tiny.model("gpt2", torch.float64)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return tiny.wrapped(module)


def test_an_interrupted_training_with_accumulated_batches_goes_on_with_the_next(tmp_path: Path):
    def trained(folder: Path, callback: Any = None) -> interp.Subject:
        subject = tiny.wrapped(tiny.model("gpt2"))
        torch.manual_seed(3)
        kept = Checkpoints(folder, 2)
        interp.fit(subject, uneven(), 5, accumulate=2, checkpoints=kept, callback=callback)
        return subject

    def stops(step: Step) -> None:
        if step.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", stops)
    whole, resumed = trained(tmp_path / "whole"), trained(tmp_path / "broken")
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate=0: expected a number of batches, at least 1"),
        (
            {
                "accumulate": 2,
                "objective": lambda subject, batch, step: subject.losses(batch).sum(),
            },
            "objective= with 2 accumulated batches: expected one",
        ),
        ({"accumulate": 3}, "the stream ended after 1 steps of 3 batches; 2 steps were asked for"),
    ],
)
def test_what_cannot_be_accumulated_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        interp.fit(undropped(), islice(stream(), 5), 2, **options)


def test_accumulated_batches_with_several_prompts_are_refused():
    batches = [tiny.batch("", prompt=prompt) for prompt in (2, 3)]
    with pytest.raises(ValueError, match="accumulated batches have prompts of 2, 3 tokens"):
        interp.fit(undropped(), batches, 1, accumulate=2)


def test_a_loss_that_is_not_finite_in_one_accumulated_batch_leaves_the_step_before(monkeypatch):
    """The gradient of the batch before it is thrown away."""
    subject = undropped()
    before = copy.deepcopy(subject.module.state_dict())
    of_batch = training._losses
    calls: list[int] = []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        losses = of_batch(*arguments)
        return losses * float("nan") if len(calls) == 4 else losses

    def after_one(step: Step) -> None:
        before.update(copy.deepcopy(subject.module.state_dict()))

    monkeypatch.setattr(training, "_losses", broken)
    with pytest.raises(ValueError, match="the loss is nan at step 1"):
        interp.fit(subject, stream(), 3, lr=1e-2, accumulate=2, callback=after_one)
    assert len(calls) == 4
    assert same(before, subject.module.state_dict())
    assert all(weight.grad is None for weight in subject.module.parameters())


def test_a_short_stream_says_how_far_it_went():
    subject = tiny.wrapped(tiny.model("llama"))
    with pytest.raises(
        ValueError, match="the stream ended after 2 batches; 3 steps were asked for"
    ):
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


def test_the_callback_sees_each_step_and_the_losses_of_its_examples():
    seen: list[Step] = []
    subject = tiny.wrapped(tiny.model("llama"))
    before = subject.losses(next(stream())).detach()
    frame = interp.fit(subject, stream(), 4, callback=seen.append)
    assert [(step.number, step.loss) for step in seen] == list(
        frame.itertuples(index=False, name=None)
    )
    assert torch.equal(seen[0].losses, before)
    for step, batch in zip(seen, stream(), strict=False):
        assert torch.equal(step.batch.tokens, batch.tokens)
        assert step.losses.sum().item() / int(batch.counted.sum()) == pytest.approx(step.loss)


def norm(subject: interp.Subject) -> dict[str, float]:
    assert not torch.is_grad_enabled()
    return {"norm": sum(p.double().square().sum().item() for p in subject.module.parameters())}


def evaluated(every: int, **options: Any) -> Evaluation:
    return Evaluation(norm, every, **options)


def test_what_is_measured_is_measured_after_the_step_and_at_the_end_and_changes_nothing():
    plain, measured = (tiny.wrapped(tiny.model("gpt2")) for _ in range(2))
    histories = []
    for subject, evaluation in ((plain, None), (measured, evaluated(3))):
        torch.manual_seed(1)
        histories.append(interp.fit(subject, stream(), 8, lr=1e-2, evaluation=evaluation))
    assert same(weights(plain), weights(measured))
    assert histories[0]["loss"].equals(histories[1]["loss"])
    assert histories[1].dropna()["step"].tolist() == [2, 5, 7]
    assert histories[1]["norm"].iloc[-1] == norm_of(measured)


def norm_of(subject: interp.Subject) -> float:
    with torch.no_grad():
        return norm(subject)["norm"]


def test_training_ends_where_it_was_told_to():
    reached = interp.fit(
        tiny.wrapped(tiny.model("llama")),
        stream(),
        20,
        lr=1e-2,
        evaluation=evaluated(2, until=lambda found: True),
    )
    assert reached["step"].tolist() == [0, 1]


def test_the_end_is_decided_by_what_is_measured_alone():
    """A condition on all that was measured must not meet the number of the step, or the loss."""
    seen: list[set[str]] = []
    interp.fit(
        tiny.wrapped(tiny.model("llama")),
        stream(),
        4,
        lr=1e-2,
        evaluation=evaluated(2, until=lambda found: bool(seen.append(set(found)))),
    )
    assert seen
    assert all(names == {"norm"} for names in seen)


def test_the_learning_rate_rises_holds_and_falls_to_the_floor():
    shares = [training._lr_factor(step, 10, 2, 5, 0.2) for step in range(10)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.84, 0.68, 0.52, 0.36])
    assert [training._lr_factor(step, 4, 0, 0, 0.0) for step in range(4)] == [1, 1, 1, 1]


@given(rows=st.integers(1, 12), size=st.integers(1, 12), seed=st.integers(0, 5))
def test_an_epoch_has_every_row_once_and_a_seed_one_order(rows, size, seed):
    whole = interp.Batch(torch.arange(2 * size).reshape(size, 2))
    if rows > size:
        with pytest.raises(ValueError, match=f"{size} rows do not fill a batch of {rows}"):
            next(epochs(whole, rows))
        return
    per_epoch = size // rows
    firsts = [
        batch.tokens[:, 0].tolist() for batch in islice(epochs(whole, rows, seed), 2 * per_epoch)
    ]
    again = [
        batch.tokens[:, 0].tolist() for batch in islice(epochs(whole, rows, seed), 2 * per_epoch)
    ]
    assert firsts == again
    for epoch in (firsts[:per_epoch], firsts[per_epoch:]):
        seen = [n for batch in epoch for n in batch]
        assert len(seen) == len(set(seen)) == rows * per_epoch


def checkpoints(folder: Path, **options: Any) -> Checkpoints:
    return Checkpoints(folder, every=3, **options)


def run(folder: Path, steps: int = 12, callback: Any = None) -> tuple[interp.Subject, Any]:
    """A model with dropout, warmup, decay, clipping and weight decay: all that resuming could get
    wrong."""
    subject = tiny.wrapped(tiny.model("gpt2"))
    torch.manual_seed(11)
    history = interp.fit(
        subject, stream(), steps, lr=1e-2, weight_decay=0.1, warmup=3, decay=6, clip=0.5, callback=callback,
        evaluation=evaluated(2), checkpoints=checkpoints(folder),
    )  # fmt: skip
    return subject, history


@pytest.mark.parametrize("at", [0, 4, 11])
def test_an_interrupted_training_ends_as_one_that_was_not(at, tmp_path):
    whole, history = run(tmp_path / "whole")

    def stops(step: Step) -> None:
        if step.number == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", callback=stops)
    steps: list[int] = []
    resumed, joined = run(tmp_path / "broken", callback=lambda step: steps.append(step.number))
    assert steps == list(range(at // 3 * 3, 12))
    assert same(weights(whole), weights(resumed))
    pd.testing.assert_frame_equal(history, joined, check_exact=True)
    assert (tmp_path / "whole/state.safetensors").read_bytes() == (
        tmp_path / "broken/state.safetensors"
    ).read_bytes()


def test_a_training_that_is_done_is_only_read(tmp_path):
    first, history = run(tmp_path)
    again, same_history = run(tmp_path, callback=lambda step: pytest.fail("trained again"))
    assert same(weights(first), weights(again))
    pd.testing.assert_frame_equal(history, same_history, check_exact=True)


# What it imports takes seconds: the program does so once, and every training that is killed is a
# fork of it.
STEPS = 60


def killed_after(steps: int, folder: Path) -> int:
    """Trains in a process of its own, killed `steps` steps after it went on, wherever it is by
    then; the number of the last step."""
    heard, said = os.pipe()

    def train() -> None:
        run(folder, STEPS, lambda step: os.write(said, f"{step.number}\n".encode()))

    child = fork(train, folder.with_name("log"))
    os.close(said)  # so that reading ends when the child does
    with os.fdopen(heard) as lines:
        last = [lines.readline() for _ in range(steps)][-1]
        os.kill(child.pid, signal.SIGKILL)
    code, _, err = child.end()
    assert code == -signal.SIGKILL, err
    return int(last)


def test_kill_9_at_random_steps_leaves_the_same_weights_and_metrics(tmp_path):
    """Killed three times, each time some steps after it went on, wherever that is: also between two
    writes."""
    whole, history = run(tmp_path / "whole", STEPS)
    moments = np.random.default_rng().integers(4, 15, 3)
    last_steps = [killed_after(int(steps), tmp_path / "killed") for steps in moments]
    resumed, joined = run(tmp_path / "killed", STEPS)
    assert 8 < last_steps[-1] < STEPS - 1
    assert same(weights(whole), weights(resumed))
    pd.testing.assert_frame_equal(history, joined, check_exact=True)


def test_weights_are_kept_at_the_first_measurement_that_meets_a_condition(tmp_path):
    for name in ("whole", "resumed"):
        subject, at = tiny.wrapped(tiny.model("llama")), {}

        def measure(s: interp.Subject, at: dict[int, Any] = at) -> dict[str, float]:
            at[len(at)] = weights(s)
            return {"count": float(len(at))}

        def stops(step: Step, name: str = name, at: dict[int, Any] = at) -> None:
            if name == "resumed" and step.number == 5 and len(at) == 2:
                raise KeyboardInterrupt

        kept = Checkpoints(
            tmp_path / name,
            2,
            {"early": lambda found: found["count"] >= 2, "never": lambda found: False},
        )
        for _ in range(2 if name == "resumed" else 1):
            with suppress(KeyboardInterrupt):
                interp.fit(
                    subject,
                    stream(),
                    8,
                    lr=1e-2,
                    callback=stops,
                    evaluation=Evaluation(measure, 2),
                    checkpoints=kept,
                )
        assert not (tmp_path / name / "never.safetensors").exists()
        early = tiny.wrapped(tiny.model("llama"))
        load_weights(tmp_path / name / "early.safetensors", early.module)
        assert same(weights(early), at[1])


def test_tied_weights_are_written_once_and_read_back(tmp_path):
    subject, other = tiny.wrapped(tiny.model("gpt2")), tiny.wrapped(tiny.model("gpt2"))
    interp.fit(other, stream(), 2, lr=1e-2)
    save_weights(tmp_path / "weights.safetensors", other.module)
    load_weights(tmp_path / "weights.safetensors", subject.module)
    assert same(weights(subject), weights(other))
    assert subject.module.lm_head.weight is subject.module.transformer.wte.weight


def test_the_state_of_another_model_is_refused(tmp_path):
    interp.fit(tiny.wrapped(tiny.model("gpt2")), stream(), 3, checkpoints=checkpoints(tmp_path))
    other = tiny.wrapped(tiny.model("llama"))
    before = weights(other)
    with pytest.raises(ValueError, match=r"state.safetensors holds another model's weights"):
        interp.fit(other, stream(), 3, checkpoints=checkpoints(tmp_path))
    assert same(before, weights(other))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.5}, r"lr=0.0001, now 0.5; give another folder"),
        ({"steps": 9}, "steps=3, now 9"),
        ({"betas": (0.9, 0.5)}, "betas="),
        ({"about": {"seed": 2}}, "seed=1, now 2"),
        ({"accumulate": 2}, "accumulate=None, now 2"),
        ({"objective": lambda subject, batch, step: subject.losses(batch).mean()}, "objective="),
    ],
)
def test_the_state_of_another_training_is_refused(changed, message, tmp_path):
    def trained(steps: int = 3, about: dict[str, int] | None = None, **options: Any) -> None:
        kept = checkpoints(tmp_path, about={"seed": 1} if about is None else about)
        interp.fit(tiny.wrapped(tiny.model("gpt2")), stream(), steps, checkpoints=kept, **options)

    trained()
    trained()
    with pytest.raises(ValueError, match=message):
        trained(**changed)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda folder: Evaluation(norm, 0), "every=0"),
        (lambda folder: Checkpoints(folder, 0), "every=0"),
        (lambda folder: Checkpoints(folder, 1, {"state": bool}), "that file holds the state"),
        (
            lambda folder: fitted(checkpoints=Checkpoints(folder, 1, {"early": bool})),
            "keep=early.*which need evaluation=",
        ),
        (
            lambda folder: fitted(evaluation=Evaluation(lambda s: {"loss": 0.0}, 1)),
            "a measure is named loss",
        ),
    ],
)
def test_impossible_evaluations_and_checkpoints_are_refused(made, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        made(tmp_path)


def fitted(**options: Any) -> None:
    interp.fit(tiny.wrapped(tiny.model("llama")), stream(), 1, **options)


def test_training_runs_under_an_intervention():
    """A model trained with a neuron switched off never learns to use it: what it writes gets no
    gradient."""
    subject = tiny.wrapped(tiny.model("llama"))
    off = tiny.units(subject, "blocks.1.neurons", [3])
    down = subject.module.model.layers[1].mlp.down_proj.weight
    before = down.detach().clone()
    with subject.intervened(interp.Zero(off)):
        interp.fit(subject, stream(), 3, lr=1e-2)
    moved = (down != before).any(0)
    assert not moved[3]
    assert moved.sum() == len(moved) - 1


@pytest.mark.parametrize("when", ["prompt", "decode"])
def test_training_sees_a_plan_at_the_positions_of_the_subject(when):
    """Here three tokens stand in front of each text: what is prompt begins behind them."""

    def behind(module: Any, batch: interp.Batch, keep: int) -> torch.Tensor:
        start = torch.tensor([[5, 6, 7]]).expand(len(batch), -1)
        tokens = torch.cat([start, batch.tokens], dim=1)
        return module(tokens, use_cache=False).logits[:, -keep - 1 : -1]

    llama = tiny.wrapped(tiny.model("llama"))
    subject = interp.Subject(llama.module, llama.anatomy, behind, context=20, lead=3)
    batch = tiny.batch("llama", rows=3, length=9, prompt=4)
    scaled = interp.Scale(subject.units("blocks.1.attn_out"), factor=-3.0, when=when)
    with subject.intervened(scaled):
        loss = subject.losses(batch).mean().item()
        history = interp.fit(subject, [batch], 1)
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_training_without_steps_is_refused(steps):
    subject = tiny.wrapped(tiny.model("llama"))
    with tiny.untouched(subject.module), pytest.raises(ValueError, match=f"steps={steps}: expecte"):
        interp.fit(subject, stream(), steps)


def test_what_is_not_sharded_is_written_from_where_it_is():
    """A copy of weights on an accelerator would take as much memory of the machine again; tensors
    without values stand for them here, which cannot be copied to the CPU."""
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    gathered = _gathered(module, dict(module.named_parameters()))
    assert {name: value.device.type for name, value in gathered.items()} == {
        "weight": "meta",
        "bias": "meta",
    }


def test_training_refuses_texts_that_are_longer_than_the_model_has_positions():
    subject = tiny.wrapped(tiny.model("opt"))
    with tiny.untouched(subject.module), pytest.raises(ValueError, match="more than the 64"):
        interp.fit(subject, [tiny.batch("opt", length=65)], 1)


def test_an_objective_is_given_a_subject_with_the_tokenizer_and_all_else():
    module = tiny.model("llama")
    subject = interp.load(module, tokenizer=tiny.tokenizer(tiny.VOCABULARY))
    seen: list[interp.Subject] = []

    def objective(trained: interp.Subject, batch: interp.Batch, step: int) -> torch.Tensor:
        seen.append(trained)
        return trained.run(batch, keep=1).mean()

    interp.fit(subject, [tiny.batch("llama")], 1, objective=objective)
    [trained] = seen
    for name in ("anatomy", "forward", "tokenizer", "name", "decoding", "context", "lead"):
        assert getattr(trained, name) is getattr(subject, name), name


@pytest.mark.parametrize("size", [0, -2])
def test_an_epoch_has_batches_with_rows(size):
    with pytest.raises(ValueError, match=f"batch_size={size}: expected a number of rows, at least"):
        next(epochs(interp.Batch(torch.ones(4, 2, dtype=torch.long)), size))
