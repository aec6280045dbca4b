"""The scores of a loss history, by hand and against the definitions of the papers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from interp.memorization.dynamics import LossHistory

# Five moments of four examples: learned and kept, learned and lost twice, never learned, easy.
LOSSES = np.array(
    [
        [6.0, 6.0, 6.0, 1.0],
        [2.0, 2.0, 6.0, 1.0],
        [1.0, 4.0, 6.0, 1.0],
        [0.5, 2.0, 6.0, 1.0],
        [0.1, 4.0, 6.0, 1.0],
    ]
)
STEPS = np.arange(5) * 10


def history(**more):
    return LossHistory(LOSSES, STEPS, **more)


def test_difficulty_by_hand():
    assert history().difficulty().tolist() == [6, 6, 6, 1]  # a fifth of five moments is one
    assert history().difficulty(2).tolist() == [4, 4, 6, 1]


def test_forget_events_by_hand():
    assert history().forget_events(3.0).tolist() == [0, 2 / 4, 0, 0]
    # Half of the examples are above the median of the first moment at most.
    assert history().forget_events().tolist() == [0, 0, 0, 0]


def test_a_crossing_is_counted_once_and_small_ones_are_left_out_by_hysteresis():
    losses = np.array([[2.0], [3.1], [3.2], [2.9], [3.1], [2.0], [4.0]])
    found = LossHistory(losses, np.arange(7))
    assert found.forget_events(3.0).tolist() == [3 / 6]
    assert found.forget_events(3.0, hysteresis=1.0).tolist() == [1 / 6]


def test_hysteresis_counts_a_slow_rise():
    losses = np.array([[2.0], [3.0], [4.0]])
    found = LossHistory(losses, np.arange(3))
    assert found.forget_events(3.0, hysteresis=1.0).tolist() == [1 / 2]


def test_relative_events_by_hand():
    assert history().relative_forget_events(0.2).tolist() == [0, 2 / 4, 0, 0]
    assert history().relative_forget_events(3.0).tolist() == [0, 0, 0, 0]


def test_the_drop_and_cartography_by_hand():
    assert history().loss_drop.tolist() == pytest.approx([5.9, 2, 0, 0])
    p = np.exp(-LOSSES[:, 1])
    assert history().confidence[1] == pytest.approx(p.mean())
    assert history().variability[1] == pytest.approx(np.sqrt(((p - p.mean()) ** 2).mean()))
    assert history().variability[3] == 0


def test_forgetfulness_as_the_code_of_dataset_cartography_counts_it():
    right = np.array([[0, 0], [1, 0], [0, 0], [1, 0], [1, 0]], dtype=float)
    found = LossHistory(np.ones((5, 2)), STEPS, accuracy=right)
    assert found.forgetfulness().tolist() == [1, 1000]
    assert found.correctness().tolist() == [3, 0]


LOSS = st.floats(0, 12, width=32)


@given(arrays(float, (6, 5), elements=LOSS), st.floats(0.1, 11), st.floats(0, 2))
def test_forget_events_equal_a_plain_count(losses, threshold, hysteresis):
    found = LossHistory(losses, np.arange(6)).forget_events(threshold, hysteresis)
    for example in range(5):
        events = 0
        learned = False
        for loss in losses[:, example]:
            if learned and loss > threshold + hysteresis / 2:
                events += 1
                learned = False
            elif loss < threshold - hysteresis / 2:
                learned = True
        assert found[example] == events / 5


@given(arrays(float, (5, 4), elements=LOSS), st.permutations(range(4)))
def test_scores_go_with_their_examples(losses, order):
    # A fixed threshold: its default is about all examples.
    original = LossHistory(losses, STEPS)
    mixed = LossHistory(losses[:, order], STEPS)
    assert np.array_equal(mixed.forget_events(3.0), original.forget_events(3.0)[order])
    assert np.array_equal(mixed.relative_forget_events(), original.relative_forget_events()[order])
    assert np.array_equal(mixed.difficulty(), original.difficulty()[order])


@given(arrays(float, (5, 4), elements=LOSS))
def test_a_loss_that_only_falls_has_no_events(losses):
    falling = -np.sort(-losses, axis=0)
    found = LossHistory(falling, STEPS)
    assert not found.forget_events(3.0).any()
    assert not found.relative_forget_events(0.0).any()
    assert (found.loss_drop >= 0).all()


@pytest.mark.parametrize(
    ("losses", "steps", "more", "message"),
    [
        (LOSSES[:1], STEPS[:1], {}, "at least two moments"),
        (LOSSES[:, :0], STEPS, {}, r"shape \[5, 0\]"),
        (LOSSES, STEPS[:4], {}, "4 steps of 5 moments"),
        (LOSSES, STEPS[::-1], {}, "increasing"),
        (np.where(LOSSES == 0.1, np.nan, LOSSES), STEPS, {}, "example 0 at step 40 is nan"),
        (LOSSES, STEPS, {"accuracy": LOSSES[:2]}, r"accuracy has the shape \[2, 4\]"),
        (LOSSES, STEPS, {"recorded": "checkpoint"}, "nearest: checkpoints"),
    ],
)
def test_bad_histories_are_refused(losses, steps, more, message):
    with pytest.raises(ValueError, match=message):
        LossHistory(losses, steps, **more)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 5"):
        history().difficulty(6)
    with pytest.raises(ValueError, match="from 0 on"):
        history().forget_events(hysteresis=-1)
    with pytest.raises(ValueError, match="accuracy was not recorded"):
        history().forgetfulness()


@given(
    arrays(np.float64, (3, 4), elements=LOSS),
    st.sampled_from(["checkpoints", "presentations"]),
    st.booleans(),
)
def test_a_saved_history_comes_back_to_the_bit(tmp_path_factory, losses, recorded, with_accuracy):
    accuracy = losses / 12 if with_accuracy else None
    # Transposed twice, so that its memory is not in the order of its rows.
    saved = LossHistory(np.asfortranarray(losses), np.array([0, 5, 9]), recorded, accuracy)
    folder = tmp_path_factory.mktemp("history")
    found = LossHistory.load(saved.save(folder / "new" / "history.safetensors"))
    assert np.array_equal(found.losses, losses)
    assert found.steps.tolist() == [0, 5, 9]
    assert found.recorded == recorded
    assert (found.accuracy is None) == (not with_accuracy)
    if with_accuracy:
        assert np.array_equal(found.accuracy, accuracy)
    assert [file.name for file in (folder / "new").iterdir()] == ["history.safetensors"]


def test_a_file_that_is_no_history_is_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no tensors")
    other = tmp_path / "other.safetensors"
    save_file({"losses": LOSSES, "steps": STEPS}, other)
    cut = history().save(tmp_path / "cut.safetensors")
    cut.write_bytes(cut.read_bytes()[:-8])
    for file in (text, other, cut, tmp_path):
        with pytest.raises(ValueError, match=f"{file.name} is not a loss history"):
            LossHistory.load(file)
    with pytest.raises(FileNotFoundError, match="expected a saved LossHistory"):
        LossHistory.load(tmp_path / "absent")


def test_the_table_has_every_score():
    accuracy = (LOSSES < 3).astype(float)
    found = history(accuracy=accuracy).frame()
    assert found["example"].tolist() == [0, 1, 2, 3]
    assert found["loss_drop"].tolist() == history().loss_drop.tolist()
    assert found["difficulty"].tolist() == history().difficulty().tolist()
    assert found["forgetfulness"].tolist() == [0, 2, 1000, 0]
    assert "forgetfulness" not in history().frame()
