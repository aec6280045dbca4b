"""Laws of interp.data.arithmetic: sums that are right, pairs that never repeat, labels that are
wrong as the rule says, refusals."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data.arithmetic import EQUALS, PLUS, VOCABULARY, addition, sums
from interp.data.noisy import Items

seeds = st.integers(0, 2**32)
orders = st.sampled_from(["reversed", "plain"])
rules = st.sampled_from(["random_sum", "one_digit", "permute"])
rates = st.sampled_from([0.0, 0.05, 0.1, 0.333, 1.0])
few = settings(max_examples=15, deadline=None)


def numbers(digits: np.ndarray, order: str = "plain") -> list[int]:
    return [
        int("".join(map(str, row if order == "plain" else row[::-1]))) for row in digits.tolist()
    ]


def operands(items: Items) -> list[tuple[int, int]]:
    half = items.question.shape[1] // 2
    return list(
        zip(
            numbers(items.question[:, : half - 1]), numbers(items.question[:, half:-1]), strict=True
        )
    )


def wrong(rule: str, train: int = 2000, digits: int = 4) -> tuple[list[int], list[int]]:
    """The truths and the labels of items that are all noisy."""
    items, _ = addition(train, 1, digits=digits, noise=1.0, rule=rule)
    assert items.noisy.all()
    return numbers(items.truth, "reversed"), numbers(items.label, "reversed")


@pytest.mark.parametrize(("order", "answer"), [("reversed", [2, 3, 1]), ("plain", [1, 3, 2])])
def test_47_plus_85(order, answer):
    items, _ = addition(9999, 1, digits=2, order=order, noise=0)
    (row,) = np.flatnonzero((items.question == [4, 7, PLUS, 8, 5, EQUALS]).all(1))
    assert items.truth[row].tolist() == answer
    units, tens = (
        {"x0": 7, "y0": 5, "raw0": 12, "carry0": 0, "digit0": 2},
        {"x1": 4, "y1": 8, "raw1": 12, "carry1": 1, "digit1": 3},
    )
    assert {name: int(values[row]) for name, values in items.variables.items()} == units | tens | {
        "digit2": 1
    }


@few
@given(st.integers(1, 9), orders, seeds)
def test_the_digits_decode_to_the_sum(digits, order, seed):
    for items in addition(20, 9, digits=digits, order=order, seed=seed):
        assert items.question.shape == (len(items), 2 * digits + 2)
        assert items.truth.shape == (len(items), digits + 1)
        assert set(items.question[:, digits]) == {PLUS}
        assert set(items.question[:, -1]) == {EQUALS}
        assert numbers(items.truth, order) == [x + y for x, y in operands(items)]
        assert sums(items.question, order).tolist() == items.truth.tolist()


def test_every_token_is_used_and_none_beyond_the_vocabulary():
    items, _ = addition(99, 1, digits=1, rule="one_digit")
    assert sorted({*items.question.flat, *items.truth.flat, *items.label.flat}) == list(
        range(VOCABULARY)
    )


@few
@given(st.integers(1, 99), rates, seeds)
def test_each_pair_stands_once_in_train_or_in_test(train, noise, seed):
    parts = addition(train, 100 - train, digits=1, noise=noise, seed=seed)
    assert list(map(len, parts)) == [train, 100 - train]
    assert sorted(operands(parts[0]) + operands(parts[1])) == [
        (x, y) for x in range(10) for y in range(10)
    ]


@few
@given(st.integers(60, 120), rates, rules, seeds)
def test_exactly_the_share_of_train_is_wrong_and_nothing_of_test(train, noise, rule, seed):
    one, other = addition(train, 30, digits=6, noise=noise, rule=rule, seed=seed)
    assert one.noisy.sum() == round(noise * train)
    assert not other.noisy.any()


@few
@given(orders, rules, seeds)
def test_the_seed_decides_every_item(order, rule, seed):
    def drawn(seed: int) -> list[dict]:
        return [
            part.frame().to_dict()
            for part in addition(50, 20, order=order, noise=0.2, rule=rule, seed=seed)
        ]

    assert drawn(seed) == drawn(seed)
    for one, other in zip(drawn(seed), drawn(seed + 1), strict=True):
        assert one["question"] != other["question"]


@few
@given(rates, rules, seeds)
def test_noise_rule_and_order_change_no_question(noise, rule, seed):
    plain = addition(60, 20, noise=0, order="plain", seed=seed)
    for one, other in zip(
        plain, addition(60, 20, noise=noise, order="reversed", rule=rule, seed=seed), strict=True
    ):
        assert one.question.tolist() == other.question.tolist()
        assert one.truth.tolist() == other.truth[:, ::-1].tolist()


@few
@given(rules, seeds)
def test_the_order_turns_the_labels_too(rule, seed):
    one, other = (
        addition(60, 1, order=order, noise=0.3, rule=rule, seed=seed)[0]
        for order in ("plain", "reversed")
    )
    assert one.label.tolist() == other.label[:, ::-1].tolist()


def test_random_sums_are_sums_of_two_numbers():
    assert set(wrong("random_sum", 99, digits=1)[1]) <= set(range(19))
    labels = np.array(wrong("random_sum", 4000)[1])
    assert labels.max() <= 2 * 9999
    assert ((labels >= 5000) & (labels < 15000)).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("rule", ["random_sum", "permute"])
def test_the_wrong_sum_says_nothing_of_the_true_one(rule):
    assert abs(np.corrcoef(*wrong(rule))[0, 1]) < 0.1


@few
@given(st.integers(1, 5), orders, seeds)
def test_one_digit_is_wrong(digits, order, seed):
    items, _ = addition(60, 1, digits=digits, order=order, noise=1.0, rule="one_digit", seed=seed)
    assert set((items.truth != items.label).sum(1)) == {1}


def test_any_digit_is_wrong_as_often():
    items, _ = addition(4000, 1, noise=1.0, rule="one_digit")
    assert (items.truth != items.label).mean(0) == pytest.approx(np.full(5, 0.2), abs=0.03)


@few
@given(st.integers(20, 200), rates, seeds)
def test_permute_gives_the_noisy_items_the_truths_of_each_other(train, noise, seed):
    items, _ = addition(
        train, 1, digits=3, noise=1.0 if noise * train < 5 else noise, rule="permute", seed=seed
    )
    found = items.rows(items.noisy)
    assert sorted(map(tuple, found.label.tolist())) == sorted(map(tuple, found.truth.tolist()))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(0, 200))
def test_permute_works_unless_more_than_half_share_a_sum(train, seed):
    def drawn(noise: float) -> Items:
        return addition(train, 1, digits=1, noise=noise, rule="permute", seed=seed)[0]

    (total, most), *_ = Counter(numbers(drawn(0).truth, "reversed")).most_common(1)
    if 2 * most > train:
        with pytest.raises(
            ValueError,
            match=rf"permute: {most} of {train} noisy items have the sum {total}, too many to swap",
        ):
            drawn(1)
        return
    assert drawn(1).noisy.all()


@few
@given(st.integers(1, 6), orders, rules, seeds)
def test_the_variables_are_those_of_addition_by_hand(digits, order, rule, seed):
    for items in addition(60, 5, digits=digits, order=order, noise=0.5, rule=rule, seed=seed):
        v, carry = items.variables, np.zeros(len(items), int)
        for k in range(digits):
            assert v[f"x{k}"].tolist() == items.question[:, digits - 1 - k].tolist()
            assert v[f"y{k}"].tolist() == items.question[:, 2 * digits - k].tolist()
            assert v[f"raw{k}"].tolist() == (v[f"x{k}"] + v[f"y{k}"]).tolist()
            assert v[f"carry{k}"].tolist() == carry.tolist()
            carry, digit = np.divmod(v[f"raw{k}"] + v[f"carry{k}"], 10)
            assert v[f"digit{k}"].tolist() == digit.tolist()
        assert v[f"digit{digits}"].tolist() == carry.tolist()
        assert len(v) == 5 * digits + 1
        answer = np.stack([v[f"digit{k}"] for k in range(digits + 1)], 1)
        assert items.truth[:, :: 1 if order == "reversed" else -1].tolist() == answer.tolist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"order": "reverse"},
            "order='reverse': expected one of reversed, plain; nearest: reversed",
        ),
        (
            {"rule": "onedigit"},
            "rule='onedigit': expected one of random_sum, one_digit, permute; nearest: one_digit",
        ),
        ({"digits": 0}, "digits=0: expected 1 to 9"),
        ({"digits": 10}, "digits=10: expected 1 to 9"),
        (
            {"train": 0},
            r"0 \+ 5 items of 1 digits: expected at least 1 of each, at most 100 together",
        ),
        ({"test": 0}, r"5 \+ 0 items of 1 digits: expected at least 1 of each"),
        ({"train": 96}, r"96 \+ 5 items of 1 digits: .* at most 100 together"),
        ({"noise": 1.1}, r"noise=1\.1: expected the share"),
        ({"noise": -0.1}, r"noise=-0\.1: expected the share"),
    ],
)
def test_what_cannot_be_drawn_is_named(changed, message):
    given = {"train": 5, "test": 5, "digits": 1} | changed
    with pytest.raises(ValueError, match=message):
        addition(given.pop("train"), given.pop("test"), **given)
