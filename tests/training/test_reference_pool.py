"""Laws of reference pools: every example is untrained in exactly one model of each pair, and pools
continue with the model they stopped at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import letters
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.training.reference_pool import ReferencePool, complementary_halves, train_pool


@given(
    examples=st.integers(2, 40), pairs=st.integers(2, 5), seed=st.integers(0, 99), data=st.data()
)
def test_references_were_not_trained_on_the_example(
    examples: int, pairs: int, seed: int, data: st.DataObject
):
    pool = complementary_halves(examples, pairs, seed)
    assert (pool.members.sum(0) == pairs).all()
    assert set(pool.members.sum(1)) <= {examples // 2, examples - examples // 2}
    target = data.draw(st.integers(0, 2 * pairs - 1))
    count = data.draw(st.integers(1, pairs - 1))
    chosen = pool.untrained_on(target, count)
    assert chosen.shape == (count, examples)
    for example in range(examples):
        models = chosen[:, example]
        assert not pool.members[models, example].any()
        assert len({model // 2 for model in models}) == count
        assert target // 2 not in {model // 2 for model in models}
    of_points = pool.untrained_on_population(target, count, 30, seed)
    assert (of_points // 2 == np.array(pool.other_pairs(target, count))[:, None]).all()
    numbers = np.arange(2 * pairs)[:, None] * 100.0 + np.arange(examples)
    expected = chosen * 100.0 + np.arange(examples)
    assert (pool.choose(numbers, target, count) == expected).all()


def test_bad_pools_are_refused():
    with pytest.raises(ValueError, match="complementary halves"):
        ReferencePool(np.array([[True, False], [True, False]]))
    with pytest.raises(ValueError, match="complementary halves"):
        ReferencePool(np.array([[True, False]]))
    with pytest.raises(ValueError, match="at least 2 examples and 1 pair"):
        complementary_halves(1, 1, 0)
    with pytest.raises(ValueError, match="expected 1 to 1 of the other pairs"):
        complementary_halves(4, 2, 0).untrained_on(0, 2)


def test_a_pool_continues_with_the_model_that_it_stopped_at(tmp_path: Path):
    pool = complementary_halves(6, 2, seed=0)
    trained: list[int] = []

    def make(number: int) -> interp.Subject:
        return letters.subject(seed=number)

    def train(learner: interp.Subject, members: Any, number: int) -> None:
        if number == 2 and len(trained) == 2:
            trained.append(-1)
            raise KeyboardInterrupt
        assert (members == np.flatnonzero(pool.members[number])).all()
        trained.append(number)
        with torch.no_grad():
            next(learner.module.parameters()).add_(float(number))

    with pytest.raises(KeyboardInterrupt):
        list(train_pool(pool, make, train, tmp_path))
    models = list(train_pool(pool, make, train, tmp_path))
    with pytest.raises(ValueError, match="models of another pool"):
        next(train_pool(complementary_halves(6, 2, seed=1), make, train, tmp_path))
    assert trained == [0, 1, -1, 2, 3]
    for number, model in enumerate(models):
        untrained = next(make(number).module.parameters())
        assert torch.equal(next(model.module.parameters()), untrained + number)
