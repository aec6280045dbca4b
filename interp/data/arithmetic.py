"""Addition of two numbers, digit by digit, with a share of wrong sums: "four-digit addition" (FDA)
of Reason to Rote (arXiv 2507.04782).

The paper's layout, sampling and kind of noise were not found; those here are chosen: a token a
digit, pairs drawn without repetition.
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

PLUS, EQUALS = 10, 11  # after the digits, which are their own tokens
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
    """Train and test items: `a b c d + e f g h =`, then the sum's `digits` + 1 digits, one token
    each.

    Args:
        order: of the answer's digits; `reversed` begins with the units.
        noise: share of train items with a wrong label, which stays the same.
        rule: what a wrong label is: `random_sum`, the sum of another random pair; `one_digit`, the
            truth with one digit changed; `permute`, the truth of another noisy item. Never the
            item's own truth.

    Variables of an item, k = 0 being the units: `x{k}`, `y{k}` (digits of the operands), `carry{k}`
    (into k), `raw{k}` = x{k} + y{k}, `digit{k}` (of the true sum, up to k = `digits`).

    Raises ValueError for more items than there are pairs, digits outside 1 to 9, an unknown order
    or rule, a share outside [0, 1], and for `permute` where more than half of the noisy items share
    one sum.
    """
    _one_of("order", order, get_args(Order))
    _one_of("rule", rule, get_args(Rule))
    if not 1 <= digits <= 9:
        raise ValueError(f"digits={digits}: expected 1 to 9, for pairs to be numbered in 64 bits")
    if min(train, test) < 1 or train + test > 100**digits:
        raise ValueError(
            f"{train} + {test} items of {digits} digits: expected at least 1 of each, at most {100**digits} together"
        )
    rng = np.random.default_rng(seed)
    x, y = np.divmod(rng.choice(100**digits, train + test, replace=False), 10**digits)
    labels = x + y
    wrong = noisy_rows(train, noise, rng)
    labels[wrong] = _RULES[rule]((x + y)[wrong], digits, rng)
    items = _items(x, y, labels, digits, order)
    return items.rows(np.arange(train)), items.rows(np.arange(train, train + test))


def sums(
    question: Int[np.ndarray, "items question"], order: Order = "reversed"
) -> Int[np.ndarray, "items answer"]:
    """The true answers to questions as `addition` makes them."""
    digits = question.shape[1] // 2 - 1
    x, y = (
        part @ 10 ** np.arange(digits)[::-1]
        for part in (question[:, :digits], question[:, digits + 1 : -1])
    )
    return _answer(x + y, digits, order)


def text(tokens: Iterable[int]) -> str:
    """Token ids as they are read: `4 7 + 8 5 =`."""
    return " ".join("0123456789+="[token] for token in tokens)


def _answer(numbers: Numbers, digits: int, order: Order) -> Int[np.ndarray, "items answer"]:
    return _digits(numbers, digits + 1)[:, :: 1 if order == "reversed" else -1]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"{name}={value!r}: expected one of {', '.join(known)}; nearest: {closest(value, known)}"
        )


def _items(x: Numbers, y: Numbers, labels: Numbers, digits: int, order: Order) -> Items:
    truth, label = (_answer(numbers, digits, order) for numbers in (x + y, labels))
    sign = np.full((len(x), 1), PLUS)
    question = np.concatenate(
        [_digits(x, digits)[:, ::-1], sign, _digits(y, digits)[:, ::-1], sign - PLUS + EQUALS], 1
    )
    return Items(question, truth, label, _variables(x, y, digits))


def _digits(numbers: Numbers, count: int) -> Int[np.ndarray, "items digits"]:
    """The units first."""
    return numbers[:, None] // 10 ** np.arange(count) % 10


def _variables(x: Numbers, y: Numbers, digits: int) -> dict[str, Numbers]:
    found = {f"digit{k}": values for k, values in enumerate(_digits(x + y, digits + 1).T)}
    for k in range(digits):
        unit = 10**k
        found |= {
            f"x{k}": x // unit % 10,
            f"y{k}": y // unit % 10,
            f"carry{k}": (x % unit + y % unit) // unit,
        }
        found[f"raw{k}"] = found[f"x{k}"] + found[f"y{k}"]
    return found


def _random_sum(truth: Numbers, digits: int, rng: np.random.Generator) -> Numbers:
    labels = truth.copy()
    while len(same := np.flatnonzero(labels == truth)):
        labels[same] = rng.integers(0, 10**digits, (2, len(same))).sum(0)
    return labels


def _one_digit(truth: Numbers, digits: int, rng: np.random.Generator) -> Numbers:
    unit = 10 ** rng.integers(0, digits + 1, len(truth))
    old = truth // unit % 10
    return truth + ((old + rng.integers(1, 10, len(truth))) % 10 - old) * unit


def _permute(truth: Numbers, digits: int, rng: np.random.Generator) -> Numbers:  # noqa: ARG001 - a rule's signature
    values, counts = np.unique(truth, return_counts=True)
    if len(truth) and 2 * counts.max() > len(truth):
        raise ValueError(
            f"permute: {counts.max()} of {len(truth)} noisy items have the sum {values[counts.argmax()]}, too many to swap"
        )
    labels = rng.permutation(truth)
    while len(
        same := np.flatnonzero(labels == truth)
    ):  # each swap ends at least one: no sum is more than half
        free = np.flatnonzero((labels != truth[same[0]]) & (truth != truth[same[0]]))
        swapped = [same[0], rng.choice(free)]
        labels[swapped] = labels[swapped[::-1]]
    return labels


_RULES: dict[Rule, Callable[[Numbers, int, np.random.Generator], Numbers]] = {
    "random_sum": _random_sum,
    "one_digit": _one_digit,
    "permute": _permute,
}
