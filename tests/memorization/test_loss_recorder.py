"""Loss histories are those of the training, and recording them changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

import interp
from interp.memorization.dynamics import LossHistory
from interp.memorization.loss_recorder import CheckpointRecorder, PresentationRecorder
from interp.subject.subject import token_losses
from interp.training.fit import Checkpoints, epoch_rows, epochs, fit

STEPS = 6


@pytest.fixture
def subject():
    return interp.load(tiny.model("llama"))


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 20, (6, 9), generator=generator)
    return interp.Batch.pad([row[: 9 - number % 3].tolist() for number, row in enumerate(tokens)])


def own_losses(subject, examples):
    """The mean loss of each example, one example at a time."""
    found = []
    for number in range(len(examples)):
        row = examples.rows(slice(number, number + 1))
        with torch.no_grad():
            losses = token_losses(subject.target_logits(row), row)
        found.append(float(losses.sum() / row.counted.sum()))
    return found


def test_checkpoints_are_the_losses_of_the_model_at_that_step(subject, examples):
    copies = {0: copy.deepcopy(subject.module)}
    recorder = CheckpointRecorder(subject, examples, (0, 2, 5), batch_size=4)

    def callback(step):
        recorder(step)
        copies[step.number + 1] = copy.deepcopy(subject.module)

    fit(subject, epochs(examples, 3), STEPS, lr=1e-2, callback=callback)
    history = recorder.history
    assert history.steps.tolist() == [0, 2, 5]
    for losses, step in zip(history.losses, history.steps, strict=True):
        expected = own_losses(interp.load(copies[int(step)].eval()), examples)
        assert losses == pytest.approx(expected, abs=1e-5)


def test_accuracy_is_the_share_of_an_examples_own_tokens(subject, examples):
    recorder = CheckpointRecorder(subject, examples, (0, 1))
    fit(subject, [examples], 1, lr=1e-3, callback=recorder)
    recorded = recorder.history.accuracy
    assert recorded is not None
    untrained = interp.load(tiny.model("llama"))
    for number in range(len(examples)):
        row = examples.rows(slice(number, number + 1))
        hits = (untrained.target_logits(row).argmax(-1) == row.targets) & row.counted
        assert recorded[0, number] == pytest.approx(float(hits.sum() / row.counted.sum()))


def test_presentations_are_the_losses_before_each_update(subject, examples):
    recorder = PresentationRecorder(epoch_rows(len(examples), 3, seed=5), len(examples))
    expected: list[list[float]] = [[] for _ in range(len(examples))]
    stream = epoch_rows(len(examples), 3, seed=5)
    before = {"model": copy.deepcopy(subject.module)}

    def callback(step):
        recorder(step)
        losses = own_losses(interp.load(before["model"].eval()), examples)
        for number in next(stream).tolist():
            expected[number].append(losses[number])
        before["model"] = copy.deepcopy(subject.module)

    fit(subject, epochs(examples, 3, seed=5), STEPS, lr=1e-2, callback=callback)
    history = recorder.history
    assert history.recorded == "presentations"
    assert history.losses.shape == (STEPS * 3 // len(examples), len(examples))
    assert history.losses == pytest.approx(np.array(expected).T, abs=1e-5)


def test_recording_changes_nothing(examples):
    trained = []
    for kind in ("none", "checkpoints", "presentations"):
        subject = interp.load(tiny.model("llama"))
        recorder = None
        if kind == "checkpoints":
            recorder = CheckpointRecorder(subject, examples, range(STEPS))
        elif kind == "presentations":
            recorder = PresentationRecorder(epoch_rows(len(examples), 3), len(examples))
        fit(subject, epochs(examples, 3), STEPS, lr=1e-2, callback=recorder)
        assert subject.module.training == interp.load(tiny.model("llama")).module.training
        trained.append(subject.module.state_dict())
    for other in trained[1:]:
        assert all(torch.equal(other[name], value) for name, value in trained[0].items())


def test_scored_tokens_alone_count(subject, examples):
    scored = torch.zeros_like(examples.tokens, dtype=torch.bool)
    scored[:, 2:4] = True
    marked = replace(examples, scored=scored)
    recorder = CheckpointRecorder(subject, marked, (0, 1))
    fit(subject, [marked], 1, lr=1e-3, callback=recorder)
    expected = own_losses(interp.load(tiny.model("llama")), marked)
    assert recorder.history.losses[0] == pytest.approx(expected, abs=1e-5)


def test_presentations_of_a_continued_training_are_refused(subject, examples, tmp_path):
    def run(steps, recorder=None):
        checkpoints = Checkpoints(tmp_path, every=1)
        fit(subject, epochs(examples, 3), steps, callback=recorder, checkpoints=checkpoints)

    def stop(step):
        if step.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(4, stop)
    with pytest.raises(ValueError, match="step 2 comes where step 0 was expected"):
        run(4, PresentationRecorder(epoch_rows(len(examples), 3), len(examples)))


def test_bad_recordings_are_refused(subject, examples):
    with pytest.raises(ValueError, match="at least two different"):
        CheckpointRecorder(subject, examples, (3, 3))
    none = replace(examples, scored=torch.zeros_like(examples.tokens, dtype=torch.bool))
    with pytest.raises(ValueError, match="example 0 has no token that counts"):
        CheckpointRecorder(subject, none, (0, 1))
    recorder = PresentationRecorder(epoch_rows(len(examples), 2), len(examples))
    with pytest.raises(ValueError, match="has 3 rows, and the numbers of 2"):
        fit(subject, epochs(examples, 3), 1, callback=recorder)
    recorder = PresentationRecorder(epoch_rows(len(examples), 3), len(examples))
    fit(subject, epochs(examples, 3), 2, callback=recorder)
    with pytest.raises(ValueError, match="was presented 1 times"):
        _ = recorder.history
    recorder = PresentationRecorder([np.arange(len(examples))], len(examples))
    with pytest.raises(ValueError, match="objective of its own"):
        fit(
            subject,
            [examples],
            1,
            objective=lambda trained, batch, _: trained.target_logits(batch).mean(),
            callback=recorder,
        )


def test_a_training_that_is_stopped_leaves_what_was_recorded(subject, examples, tmp_path):
    file = tmp_path / "history.safetensors"
    recorder = CheckpointRecorder(subject, examples, (0, 2, 4), file=file)

    def stopped(step):
        recorder(step)
        if step.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(subject, epochs(examples, 2), STEPS, callback=stopped)
    left = LossHistory.load(file)
    assert left.steps.tolist() == [0, 2]
    assert np.array_equal(left.losses, recorder.history.losses)
