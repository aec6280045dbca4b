"""Golden cases of the entropy of bags, and equality with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from interp.memorization.entropy.bags import bag_entropy, entropies, entropies_of_tokens


def test_golden_level():
    a, b, c = 0, 1, 2
    found = bag_entropy(np.bincount([a, a, b, b, a, c, a, c]))
    assert found.entropy == pytest.approx(1.5)
    assert found.entropy * np.log(2) == pytest.approx(1.0397, abs=1e-4)
    assert (found.types, found.tokens) == (3, 8)
    assert found.normalized == pytest.approx(0.9464, abs=1e-4)
    assert found.miller_madow == pytest.approx(1.6803, abs=1e-4)
    # pooling raises entropy: each of the two suffixes has 1 bit
    each, types = entropies_of_tokens(np.array([[a, a, b, b], [a, c, a, c]]))
    assert each.tolist() == [1.0, 1.0]
    assert types.tolist() == [2, 2]


def test_distinct_tokens_and_one_token():
    distinct = bag_entropy(np.ones(32))
    assert (distinct.entropy, distinct.normalized) == (5.0, 1.0)
    single = bag_entropy([0, 7, 0])
    assert (single.entropy, single.normalized, single.types) == (0.0, 0.0, 1)


def test_pooled_suffixes_of_two_levels():
    assert bag_entropy(np.bincount([1, 1, 1, 2])).entropy == pytest.approx(0.8113, abs=1e-4)
    assert bag_entropy(np.bincount([3, 4])).entropy == 1.0


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any))
def test_equals_scipy(counts: list[int]):
    expected = stats.entropy(counts, base=2)
    assert bag_entropy(counts).entropy == pytest.approx(expected, abs=1e-12)


@given(
    st.integers(1, 5).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(0, 6), min_size=size, max_size=size), min_size=1, max_size=4
        )
    )
)
def test_counting_by_sorting_equals_a_table_of_counts(bags: list[list[int]]):
    tokens = np.array(bags)
    counts = np.stack([np.bincount(row, minlength=7) for row in tokens]).astype(float)
    bits, types = entropies(counts)
    by_sorting, types_by_sorting = entropies_of_tokens(tokens)
    assert by_sorting == pytest.approx(bits, abs=1e-12)
    assert types_by_sorting.tolist() == types.tolist()


@pytest.mark.parametrize("wrong", [[], [0, 0], [1, -1, 3]])
def test_a_bag_without_tokens_is_refused(wrong: list[int]):
    with pytest.raises(ValueError, match="at least one token"):
        bag_entropy(wrong)


def test_a_row_without_tokens_has_no_entropy():
    bits, types = entropies(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(bits[0])
    assert (bits[1], types.tolist()) == (1.0, [0, 2])
