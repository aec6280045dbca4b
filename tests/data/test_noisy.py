"""Laws of interp.data.noisy: rows that stay together, batches that predict the answer, shares that
are exact, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.data.noisy import Items, noisy_rows


def three() -> Items:
    question, truth = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[7, 8], [9, 7], [8, 8]])
    return Items(question, truth, np.array([[7, 8], [9, 6], [8, 8]]), {"sum": np.array([3, 7, 11])})


def test_an_item_is_noisy_where_any_token_of_its_label_is_wrong():
    assert three().noisy.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("chosen", "wanted"), [([2, 1, 1], [2, 1, 1]), ([True, False, True], [0, 2]), ([False] * 3, [])]
)
def test_rows_stay_together(chosen, wanted):
    items = three()
    found = items.rows(np.array(chosen))
    assert len(found) == len(wanted)
    for name in ("question", "truth", "label"):
        assert getattr(found, name).tolist() == [
            getattr(items, name)[row].tolist() for row in wanted
        ]
    assert found.variables["sum"].tolist() == [[3, 7, 11][row] for row in wanted]


def test_a_batch_predicts_the_label_or_the_answer_that_is_given():
    items = three()
    batch = items.batch()
    assert batch.tokens.tolist() == [[1, 2, 7, 8], [3, 4, 9, 6], [5, 6, 8, 8]]
    assert batch.prompt == 2
    assert batch.counted.all()
    assert items.batch(items.truth).targets.tolist() == items.truth.tolist()
    assert items.batch(items.truth).tokens[:, :2].tolist() == items.question.tolist()


def test_a_frame_has_a_row_for_each_item():
    assert three().frame().to_dict("records")[1] == {
        "question": (3, 4),
        "truth": (9, 7),
        "label": (9, 6),
        "noisy": True,
        "sum": 7,
    }
    assert len(three().frame()) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"question": np.ones((2, 2))},
        {"label": np.ones((3, 1))},
        {"truth": np.ones((2, 2))},
        {"variables": {"sum": np.ones(4)}},
    ],
)
def test_items_that_do_not_fit_each_other_are_refused(changed):
    items = three()
    given = {
        name: getattr(items, name) for name in ("question", "truth", "label", "variables")
    } | changed
    with pytest.raises(ValueError, match="questions, answers and variables need one row per item"):
        Items(**given)


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32))
def test_the_share_is_exact_and_rows_are_distinct_and_in_order(items, rate, seed):
    rows = noisy_rows(items, rate, np.random.default_rng(seed)).tolist()
    assert len(rows) == round(rate * items)
    assert rows == sorted(set(rows) & set(range(items)))


def test_every_item_is_drawn_as_often():
    rng = np.random.default_rng(0)
    drawn = np.bincount(
        np.concatenate([noisy_rows(10, 0.2, rng) for _ in range(2000)]), minlength=10
    )
    assert drawn / 2000 == pytest.approx(np.full(10, 0.2), abs=0.04)


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan")])
def test_a_share_that_is_none_is_named(rate):
    with pytest.raises(
        ValueError,
        match=f"noise={rate}: expected the share of items with a wrong label, between 0 and 1",
    ):
        noisy_rows(10, rate, np.random.default_rng(0))
