"""Exposure by hand, and of canaries that nobody memorized."""

from __future__ import annotations

import numpy as np
import pytest

from interp.memorization.exposure import exposure


def test_exposure_by_hand():
    references = np.array([-4.0, -3.0, -2.0])
    found = exposure(np.array([-1.0, -2.5, -9.0, np.nan]), references)
    assert found[:3].tolist() == [2.0, 1.0, 0.0]
    assert np.isnan(found[3])


def test_canaries_that_were_not_memorized_have_the_exposure_of_a_random_rank():
    rng = np.random.default_rng(0)
    references = rng.normal(size=255)
    found = exposure(rng.normal(size=20_000), references)
    ranks = np.arange(1, 257)
    assert found.mean() == pytest.approx((8 - np.log2(ranks)).mean(), abs=0.05)


def test_no_references_are_refused():
    with pytest.raises(ValueError, match="0 references"):
        exposure(np.array([-1.0]), np.array([]))
    with pytest.raises(ValueError, match="1 of them NaN"):
        exposure(np.array([-1.0]), np.array([-2.0, np.nan]))
