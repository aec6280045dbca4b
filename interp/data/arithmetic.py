"""Additions of two numbers, digit by digit, of which a share is trained with a wrong sum.

This is "four-digit addition" (FDA) of Reason to Rote (arXiv 2507.04782). The paper's layout,
sampling and kind of noise were not found; those here are our choice: one token per digit, pairs
drawn without repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from interp.data.noisy import Items, noisy_rows
from interp.errors import closest

Order = Literal["reversed", "plain"]
Rule = Literal["random_sum", "one_digit", "permute"]
Numbers = Int[np.ndarray, " items"]

PLUS = 10  # after the digits, whose tokens are 0 to 9
EQUALS = 11
VOCABULARY = 12


def addition(
    train: int,
    test: int,
    *,
    digits: int = 4,
    order: Order = "reversed",
    noise: float = 0.05,
    rule: Rule = "random_sum",
    seed: int = 0,
) -> tuple[Items, Items]:
    """Draws additions to train and to test on.

    A question is `a b c d + e f g h =`, its answer the `digits` + 1 digits of the sum, one token
    per digit.

    Args:
        train: number of items to train on.
        test: number of other items to test on.
        digits: number of digits of each operand, 1 to 9.
        order: order of the answer's digits; `reversed` begins with the units.
        noise: share of train items with a wrong label, which stays the same throughout training.
        rule: how a wrong label is made. `random_sum`: the sum of another random pair; `one_digit`:
            the truth with one digit changed; `permute`: the truth of another noisy item. It is
            never the item's own truth.
        seed: seed of all draws.

    Returns:
        The train items and the test items. Their variables, with k = 0 for the units: `x{k}` and
        `y{k}` (digits of the operands), `carry{k}` (the carry into k), `raw{k}` = x{k} + y{k}, and
        `digit{k}` (of the true sum, up to k = `digits`).

    Raises:
        ValueError: more items than there are pairs, digits outside 1 to 9, an unknown order or
            rule, a share outside [0, 1], or `permute` where more than half of the noisy items have
            the same sum.

    Example:
        >>> from interp.data import arithmetic
        >>> train, test = arithmetic.addition(100, 20, digits=2, noise=0.1)
        >>> len(train), int(train.noisy.sum()), int(test.noisy.sum())
        (100, 10, 0)
    """
    _check_choice("order", order, get_args(Order))
    _check_choice("rule", rule, get_args(Rule))
    if not 1 <= digits <= 9:
        raise ValueError(f"digits={digits}: expected 1 to 9, so that 64 bits can number the pairs")
    pairs_there_are = 100**digits
    if min(train, test) < 1 or train + test > pairs_there_are:
        raise ValueError(
            f"{train} + {test} items of {digits} digits: expected at least 1 of each, "
            f"at most {pairs_there_are} together"
        )

    rng = np.random.default_rng(seed)
    # Each number below 100^digits is one pair of operands: its first and its second half of digits.
    pairs = rng.choice(pairs_there_are, train + test, replace=False)
    x, y = np.divmod(pairs, 10**digits)

    truth = x + y
    labels = truth.copy()
    wrong = noisy_rows(train, noise, rng)
    labels[wrong] = _RULES[rule](truth[wrong], digits, rng)

    items = _items(x, y, labels, digits, order)
    train_rows = np.arange(train)
    test_rows = np.arange(train, train + test)
    return items.rows(train_rows), items.rows(test_rows)


def sums(
    question: Int[np.ndarray, "items question"], order: Order = "reversed"
) -> Int[np.ndarray, "items answer"]:
    """Returns the true answers to questions that `addition` makes.

    Args:
        question: [items, 2 * digits + 2] token ids.
        order: order of the answer's digits.

    Returns:
        [items, digits + 1] token ids.

    Example:
        >>> from interp.data import arithmetic
        >>> question = np.array([[4, 7, arithmetic.PLUS, 8, 5, arithmetic.EQUALS]])
        >>> arithmetic.sums(question, order="plain").tolist()
        [[1, 3, 2]]
    """
    # Digits of x, plus, digits of y, equals.
    digits = question.shape[1] // 2 - 1
    place_values = 10 ** np.arange(digits)[::-1]
    x_digits = question[:, :digits]
    y_digits = question[:, digits + 1 : -1]
    x = x_digits @ place_values
    y = y_digits @ place_values
    return _answer(x + y, digits, order)


def text(tokens: Iterable[int]) -> str:
    """Returns token ids in the form that people read.

    Example:
        >>> from interp.data import arithmetic
        >>> arithmetic.text([4, 7, 10, 8, 5, 11])
        '4 7 + 8 5 ='
    """
    return " ".join("0123456789+="[token] for token in tokens)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"{name}={value!r}: expected one of {', '.join(known)}; "
            f"nearest: {closest(value, known)}"
        )


def _items(x: Numbers, y: Numbers, labels: Numbers, digits: int, order: Order) -> Items:
    x_digits = _digits(x, digits)[:, ::-1]
    y_digits = _digits(y, digits)[:, ::-1]
    plus = np.full((len(x), 1), PLUS)
    equals = np.full((len(x), 1), EQUALS)
    question = np.concatenate([x_digits, plus, y_digits, equals], axis=1)
    return Items(
        question,
        truth=_answer(x + y, digits, order),
        label=_answer(labels, digits, order),
        variables=_variables(x, y, digits),
    )


def _answer(numbers: Numbers, digits: int, order: Order) -> Int[np.ndarray, "items answer"]:
    units_first = _digits(numbers, digits + 1)
    return units_first if order == "reversed" else units_first[:, ::-1]


def _digits(numbers: Numbers, count: int) -> Int[np.ndarray, "items digits"]:
    """The last `count` digits of each number, the units first."""
    place_values = 10 ** np.arange(count)
    return numbers[:, None] // place_values % 10


def _variables(x: Numbers, y: Numbers, digits: int) -> dict[str, Numbers]:
    found: dict[str, Numbers] = {}
    digits_of_sum = _digits(x + y, digits + 1)
    for k, values in enumerate(digits_of_sum.T):
        found[f"digit{k}"] = values
    for k in range(digits):
        unit = 10**k
        x_digit = x // unit % 10
        y_digit = y // unit % 10
        found[f"x{k}"] = x_digit
        found[f"y{k}"] = y_digit
        # The parts of both numbers below place k; their sum holds the unit of k once or not at all.
        lower_digits = x % unit + y % unit
        found[f"carry{k}"] = lower_digits // unit
        found[f"raw{k}"] = x_digit + y_digit
    return found


def _random_sum(truth: Numbers, digits: int, rng: np.random.Generator) -> Numbers:
    """Sums of other random pairs, drawn again until none is the truth."""
    labels = truth.copy()
    while True:
        same = np.flatnonzero(labels == truth)
        if not len(same):
            return labels
        pairs = rng.integers(0, 10**digits, (2, len(same)))
        labels[same] = pairs.sum(0)


def _one_digit(truth: Numbers, digits: int, rng: np.random.Generator) -> Numbers:
    """The truths with one digit changed."""
    place = rng.integers(0, digits + 1, len(truth))
    unit = 10**place
    old = truth // unit % 10
    shift = rng.integers(1, 10, len(truth))  # never 0 or 10, which would lead back to the digit
    new = (old + shift) % 10
    return truth + (new - old) * unit


def _permute(truth: Numbers, digits: int, rng: np.random.Generator) -> Numbers:  # noqa: ARG001 - a rule's signature
    """The truths in an order in which none is at its own place."""
    values, counts = np.unique(truth, return_counts=True)
    if len(truth) and 2 * counts.max() > len(truth):
        raise ValueError(
            f"permute: {counts.max()} of {len(truth)} noisy items have the sum "
            f"{values[counts.argmax()]}, too many to swap"
        )

    labels = rng.permutation(truth)
    # Each swap settles at least one item and unsettles none, so that the loop ends. There is always
    # an item to swap with, because no sum is that of more than half of the items.
    while True:
        same = np.flatnonzero(labels == truth)
        if not len(same):
            return labels
        unsettled = same[0]
        value = truth[unsettled]
        # A partner gets the value and gives its own label: neither may be this value.
        can_swap = (labels != value) & (truth != value)
        partners = np.flatnonzero(can_swap)
        partner = rng.choice(partners)
        labels[[unsettled, partner]] = labels[[partner, unsettled]]


_RULES: dict[Rule, Callable[[Numbers, int, np.random.Generator], Numbers]] = {
    "random_sum": _random_sum,
    "one_digit": _one_digit,
    "permute": _permute,
}
