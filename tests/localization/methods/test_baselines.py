"""Laws of the controls: random scores come back from their seed in any company, and the lowest are
a method upside down."""

from __future__ import annotations

import memory
import numpy as np
import pytest
import tiny

from interp.localization import localize, localize_each

WINDOWS, REFERENCE = (
    memory.frame(memory.random_tokens(4, 1)),
    memory.frame(memory.random_tokens(3, 2)),
)


def flat(scores) -> np.ndarray:
    return np.concatenate(list(scores.values.values()))


def test_random_scores_come_back_from_the_seed(llama):
    one, again, other = (
        flat(localize(llama, WINDOWS, method="random", seed=seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()
    assert ((one >= 0) & (one < 1)).all()
    assert abs(one.mean() - 0.5) < 5 / np.sqrt(12 * len(one))


def test_random_scores_of_a_set_do_not_depend_on_its_windows(llama):
    np.testing.assert_array_equal(
        flat(localize(llama, WINDOWS, method="random")),
        flat(localize(llama, REFERENCE, REFERENCE, "random")),
    )


def test_random_scores_of_windows_differ_from_each_other(llama):
    rows = [flat(scores) for scores in localize_each(llama, WINDOWS, method="random")]
    assert all((a != b).all() for n, a in enumerate(rows) for b in rows[:n])


@pytest.mark.parametrize(
    ("of", "options"),
    [
        ("gradient_x_activation", {}),
        ("activation", {"abs_after_mean": True}),
        ("z_score", {"batch_size": 2}),
    ],
)
def test_the_lowest_are_minus_a_method_with_its_options(llama, of, options):
    group, turned = (
        localize(llama, WINDOWS, REFERENCE, m, "heads", **o)
        for m, o in ((of, options), ("lowest", {"of": of} | options))
    )
    np.testing.assert_array_equal(flat(turned), -flat(group))
    assert turned.lowest(3) == group.top(3)
    assert turned.about["of"] == of
    each, turned = (
        localize_each(llama, WINDOWS, REFERENCE, m, "heads", **o)
        for m, o in ((of, options), ("lowest", {"of": of} | options))
    )
    for row, minus in zip(each, turned, strict=True):
        np.testing.assert_array_equal(flat(minus), -flat(row))


def test_the_smallest_are_those_nearest_to_0_whatever_their_sign(llama):
    group, turned = (
        localize(llama, WINDOWS, REFERENCE, m, "heads")
        for m in ("gradient_x_activation", "smallest")
    )
    assert (flat(group) < 0).any()
    np.testing.assert_array_equal(flat(turned), -np.abs(flat(group)))
    assert turned.top(3) == group.smallest(3) != group.lowest(3)
    for row, minus in zip(
        localize_each(llama, WINDOWS, REFERENCE, "gradient_x_activation", "heads"),
        localize_each(llama, WINDOWS, REFERENCE, "smallest", "heads"),
        strict=True,
    ):
        np.testing.assert_array_equal(flat(minus), -np.abs(flat(row)))


def test_the_lowest_of_nothing_known_offers_the_nearest(llama):
    with tiny.untouched(llama.module):
        with pytest.raises(ValueError, match="nearest: activation"):
            localize(llama, WINDOWS, method="lowest", of="activations")
        with pytest.raises(
            ValueError, match=r"activation has no option 'abs_after_means'.*nearest: abs_after_mean"
        ):
            localize_each(llama, WINDOWS, method="lowest", of="activation", abs_after_means=True)
