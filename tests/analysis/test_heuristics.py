"""Laws of matching neurons to heuristics: golden cases, ties as the mean over all orders, chance,
and what no score may depend on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.analysis.heuristics import (
    best_matches,
    digit_features,
    keep_matches,
    key_value,
    match,
    neurons_of,
)
from interp.analysis.neuron_shifts import ReadOut


def scores(maps: np.ndarray, cover: list[bool] | np.ndarray, side: str = "top") -> list[float]:
    frame = match(maps, {"h": np.asarray(cover)}, both=side == "bottom")
    return frame.loc[frame["side"] == side, "score"].tolist()


def test_a_score_by_hand():
    maps = np.array([[9.0, 1], [8, 2], [7, 3], [1, 4], [0, 5]])
    frame = match(
        maps,
        {
            "ends": np.array([True, False, False, False, True]),
            "first": np.array([True, True, True, False, False]),
        },
    )
    assert frame.columns.tolist() == ["neuron", "heuristic", "side", "score", "chance"]
    assert frame[["neuron", "heuristic", "side"]].values.tolist() == [
        [0, "ends", "top"],
        [1, "ends", "top"],
        [0, "first", "top"],
        [1, "first", "top"],
    ]
    np.testing.assert_allclose(frame["score"], [1 / 2, 1 / 2, 1, 1 / 3])
    np.testing.assert_allclose(frame["chance"], [0.4, 0.4, 0.6, 0.6])


def test_the_bottom_is_the_top_of_the_negated_map():
    rng = np.random.default_rng(0)
    maps, cover = rng.normal(size=(30, 7)), rng.random(30) < 0.4
    assert scores(maps, cover, "bottom") == scores(-maps, cover)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
        lambda p: any(c for _, c in p)
    )
)
@settings(deadline=None, max_examples=60)
def test_ties_score_the_mean_over_all_orders_of_the_prompts(prompts):
    k = sum(covered for _, covered in prompts)
    orders = [sorted(order, key=lambda p: -p[0])[:k] for order in itertools.permutations(prompts)]
    expected = np.mean([[covered for _, covered in order] for order in orders])
    values, cover = zip(*prompts, strict=True)
    assert scores(np.array(values, dtype=float)[:, None], list(cover)) == pytest.approx([expected])


def test_a_planted_neuron_scores_one_and_a_constant_one_chance():
    rng = np.random.default_rng(1)
    cover = rng.random(100) < 0.13
    maps = np.stack(
        [rng.random(100) + 2 * cover, np.full(100, 0.3), rng.random(100) - 2 * cover], 1
    )
    planted, constant, inverse = scores(maps, cover)
    assert planted == 1
    assert constant == pytest.approx(cover.mean())
    assert inverse == 0
    assert scores(maps, cover, "bottom")[2] == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_random_maps_score_chance(seed, share):
    """Hits among the top k are hypergeometric; the mean over neurons is within 4 of its standard
    errors."""
    rng = np.random.default_rng(seed)
    prompts, neurons, k = 200, 400, int(200 * share)
    found = scores(rng.normal(size=(prompts, neurons)), rng.permutation(prompts) < k)
    error = np.sqrt(share * (1 - share) / k * (prompts - k) / (prompts - 1))
    assert abs(np.mean(found) - share) < 4 * error / np.sqrt(neurons)
    assert np.std(found) == pytest.approx(error, rel=0.15)


@given(st.integers(0, 2**32 - 1), st.integers(1, 19))
@settings(deadline=None, max_examples=50)
def test_a_score_depends_on_the_order_of_activations_alone(seed, k):
    rng = np.random.default_rng(seed)
    maps, cover = rng.integers(-4, 5, size=(20, 3)).astype(float), rng.permutation(20) < k
    shuffled = rng.permutation(20)
    expected = scores(maps, cover)
    assert scores(np.exp(maps), cover) == expected
    assert scores(maps**3 - 7, cover) == expected
    np.testing.assert_allclose(scores(maps[shuffled], cover[shuffled]), expected)


@pytest.mark.parametrize(
    ("cover", "why"),
    [
        (
            np.array([True, False]),
            r"for each of 3 prompts, True for some; got bool of shape \(2,\), 1",
        ),
        (np.array([0, 1, 1]), "got int64"),
        (np.zeros(3, dtype=bool), "0 of them covered"),
    ],
)
def test_bad_heuristics_are_refused_by_name(cover, why):
    with pytest.raises(ValueError, match=rf"heuristic 'x = 3': .*{why}"):
        match(np.zeros((3, 2)), {"x = 3": cover})


def test_bad_maps_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1\), 1 not finite"):
        match(np.array([[np.nan], [1.0]]), {"h": np.array([True, False])})
    with pytest.raises(ValueError, match="0 heuristics"):
        match(np.zeros((2, 1)), {})


def test_neurons_above_the_threshold_are_units_to_knock_out():
    frame = match(
        np.array([[3.0, 0, 1], [2, 1, 0], [1, 2, 3], [0, 3, 2]]),
        {"early": np.array([True, True, False, False])},
        both=True,
    )
    found = keep_matches(frame)
    assert found[["neuron", "side", "score"]].values.tolist() == [
        [0, "top", 1.0],
        [1, "bottom", 1.0],
        [2, "bottom", 1.0],
    ]
    assert len(keep_matches(frame, 0.0)) == len(frame) == 6
    site = interp.Site("neurons", 1)
    assert (
        neurons_of(found, "early", "blocks.1.neurons", 3)
        == neurons_of(found, "early", site, 3)
        == interp.Units({site: [0, 1, 2]}, {site: 3})
    )
    with pytest.raises(ValueError, match="no neuron matched 'late'; nearest of 1 that were: early"):
        neurons_of(found, "late", site, 3)


def test_knocking_out_is_zeroing():
    subject, batch = tiny.subject("gpt2"), tiny.batch("gpt2", prompt=4)
    site = interp.Site("neurons", 2)
    frame = match(np.eye(2, tiny.NEURONS), {"first": np.array([True, False])})
    units = neurons_of(keep_matches(frame), "first", site, tiny.NEURONS)
    with torch.no_grad(), interp.intervened(subject, interp.Zero(units)):
        assert not tiny.values_by_hand(subject, batch, site)[..., 0].any()


def test_digit_features_by_hand():
    found = digit_features({"x": np.arange(10), "c": np.array([0, 1] * 5), "same": np.full(10, 4)})
    names = (
        [f"x = {v}" for v in range(10)]
        + ["x % 2 = 0", "x % 2 = 1"]
        + [f"x % 5 = {r}" for r in range(5)]
        + ["x low", "x high"]
    )
    assert list(found) == [*names, "c = 0", "c = 1"]
    assert np.flatnonzero(found["x = 3"]).tolist() == [3]
    assert np.flatnonzero(found["x % 5 = 2"]).tolist() == [2, 7]
    assert np.flatnonzero(found["x high"]).tolist() == [5, 6, 7, 8, 9]
    assert all(cover.dtype == bool and 0 < cover.sum() < 10 for cover in found.values())


def test_the_upper_half_of_a_sum_of_digits_is_its_carry():
    x, y = np.divmod(np.arange(100), 10)
    found = digit_features({"sum": x + y})
    np.testing.assert_array_equal(found["sum high"], x + y >= 10)


def test_a_key_value_map_is_activation_times_the_logit_of_the_output_row():
    """Without a final norm the logit of an output row is plain: the row times the unembedding."""
    module = tiny.seeded(
        lambda: tiny.Language(*(tiny.Block(32, 4, causal=True) for _ in range(2))), torch.float64
    )
    module.norm = torch.nn.Identity()
    subject, batch = interp.load(module), tiny.batch("gpt2", rows=6, prompt=4)
    out = ReadOut(subject, batch, interp.Site("neurons", 0))
    results = batch.targets[:, 0]
    seen = tiny.values_by_hand(subject, batch, out.site)[:, 3]
    logit = module.head.weight[results] @ module.trunk[0].down.weight
    np.testing.assert_allclose(
        key_value(out, results), (seen * logit).detach().numpy(), rtol=1e-9, atol=1e-12
    )


def test_the_best_of_many_heuristics_is_no_better_than_chance_on_prompts_that_did_not_choose_it():
    """Neurons that fire at random, and 60 heuristics of which each covers a fifth."""
    rng = np.random.default_rng(0)
    covers = {f"rule {number}": rng.random(300) < 0.2 for number in range(60)}
    first = {name: cover[:150] for name, cover in covers.items()}
    second = {name: cover[150:] for name, cover in covers.items()}
    maps = rng.normal(size=(300, 50))
    found = best_matches(match(maps[:150], first), match(maps[150:], second))
    assert found["neuron"].tolist() == list(range(50))
    above_chance = found["score"] - found["chance"]
    assert (found["score_where_chosen"] - found["chance"]).mean() > 0.1
    assert abs(above_chance.mean()) < 4 * above_chance.std() / np.sqrt(50)


def test_the_best_match_is_the_one_that_exceeds_chance_most():
    maps = np.array([[9.0, 1], [8, 2], [1, 8], [0, 9]])
    covers = {
        "first": np.array([True, True, False, False]),
        "most": np.array([True, True, True, False]),
    }
    scored = match(maps, covers)
    found = best_matches(scored, scored)
    assert found["heuristic"].tolist() == ["first", "most"]
    assert found["score"].tolist() == found["score_where_chosen"].tolist()
    # Tables that were joined have labels that repeat.
    relabelled = scored.set_axis([0] * len(scored), axis=0)
    assert best_matches(relabelled, scored).equals(found)
    with pytest.raises(ValueError, match="2 have none"):
        best_matches(scored, scored[scored["heuristic"] == "none"])
