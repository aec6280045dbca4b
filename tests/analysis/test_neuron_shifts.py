"""Laws of the outlier test: statistics by hand, contributions as slopes of the logits, resets as
changes made by plain hooks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.analysis import neuron_shifts as outliers
from interp.analysis.neuron_shifts import (
    Groups,
    ReadOut,
    dose_curve,
    fit_groups,
    fixed_ranking,
    largest,
    random_choice,
)
from interp.analysis.probes import rows_at

ITEMS, PROMPT, STEP = 5, 4, 2
CLEAN = np.array([[0.0, 1, 7], [2, 1, 7], [9, 9, 7], [4, 5, 7], [8, 5, 7], [6, 5, 7]])
KINDS = ["a", "a", "alone", "b", "b", "b"]


def read_out(name: str = "gpt2", block: int = -1, items: int = ITEMS) -> ReadOut:
    batch = tiny.batch(name, items, prompt=PROMPT, dtype=torch.float64)
    subject = tiny.subject(name, torch.float64)
    sites = [site for site in subject.anatomy.expand("neurons") if site.stack != "vision"]
    return ReadOut(subject, batch, sites[block], STEP)


def tokens(seed: int, items: int = ITEMS) -> torch.Tensor:
    return torch.randint(
        0, tiny.VOCABULARY, (items,), generator=torch.Generator().manual_seed(seed)
    )


def random_rows(out: ReadOut, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=out.rows.shape)


def logits_by_hand(out: ReadOut, change: np.ndarray) -> torch.Tensor:
    """[items, vocabulary] at the read-out when `change` is added to the neurons there, by a plain
    hook."""

    def add(value: torch.Tensor) -> torch.Tensor:
        moved = value.clone()
        moved[:, out.position] += torch.tensor(change)
        return moved

    with (
        torch.no_grad(),
        tiny.by_hand(out.subject.module, out.subject.anatomy.place(out.site), add),
    ):
        return out.subject.target_logits(out.batch)[:, out.target]


def difference(logits: torch.Tensor, towards: torch.Tensor, away: torch.Tensor) -> np.ndarray:
    items = torch.arange(len(towards))
    return (logits[items, towards] - logits[items, away]).numpy()


def test_means_and_spread_by_hand():
    fitted = fit_groups(CLEAN, KINDS)
    assert {kind: mean.tolist() for kind, mean in fitted.means.items()} == {
        "a": [1, 1, 7],
        "alone": [9, 9, 7],
        "b": [6, 5, 7],
    }
    np.testing.assert_allclose(fitted.spread, [np.sqrt((1 + 1 + 4 + 4 + 0) / 5), 0, 0])


def test_z_by_hand_and_without_a_spread():
    fitted = Groups({0: np.array([1.0, 1, 1]), 1: np.array([2.0, 2, 2])}, np.array([2.0, 0, 0]))
    z = fitted.z(np.array([[5.0, 1, 0.5], [1, 3, 2]]), [0, 1])
    np.testing.assert_array_equal(z, [[2, 0, -np.inf], [-0.5, np.inf, 0]])


def test_a_neuron_that_never_varies_has_no_spread_by_rounding():
    assert fit_groups(np.full((7, 3), 0.1), [0] * 7).spread.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [np.array, torch.tensor, lambda rows: [tuple(row) for row in rows]],
    ids=["array", "tensor", "tuples"],
)
def test_groups_may_be_rows_of_an_array(make):
    rows = [[0, 1], [0, 1], [3, 0], [3, 0], [3, 0]]
    fitted = fit_groups(CLEAN[:5], make(rows))
    assert set(fitted.means) == {(0, 1), (3, 0)}
    np.testing.assert_allclose(
        fitted.expected(make(rows[1:3])), [CLEAN[:2].mean(0), CLEAN[2:5].mean(0)]
    )


def test_groups_refuse_what_they_cannot_fit_or_never_saw():
    with pytest.raises(
        ValueError, match=r"1 groups: \['c'\]; fitted were 3: \['a', 'alone', 'b'\]"
    ):
        fit_groups(CLEAN, KINDS).expected(["a", "c", "c"])
    with pytest.raises(ValueError, match="none of 6 groups has two items"):
        fit_groups(CLEAN, range(6))
    with pytest.raises(ValueError, match=r"\(6, 3\) and 4 groups"):
        fit_groups(CLEAN, KINDS[:4])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_spread_is_the_deviation_of_z_whatever_the_groups(seed, groups):
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(groups), 3)
    rows = rng.normal(size=(len(kinds), 6)) * 3 + rng.normal(size=(groups, 6))[kinds] * 50
    z = fit_groups(rows, kinds).z(rows, kinds)
    np.testing.assert_allclose((z**2).mean(0), 1)
    np.testing.assert_allclose(z.reshape(groups, 3, 6).mean(1), 0, atol=1e-12)


def test_profile_is_pearsons_correlation():
    rng = np.random.default_rng(0)
    fitted = fit_groups(rng.normal(size=(6, 8)), [0, 0, 0, 1, 1, 1])
    rows = rng.normal(size=(2, 8))
    expected = [scipy.stats.pearsonr(rows[i], fitted.means[i]).statistic for i in range(2)]
    np.testing.assert_allclose(fitted.profile(rows, [0, 1]), expected)
    np.testing.assert_allclose(fitted.profile(fitted.means[1][None] * 3 - 1, [1]), 1)
    assert np.isnan(fitted.profile(np.full((1, 8), 0.1), [0])).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "policy"])
def test_rows_are_the_neurons_where_the_target_is_predicted(name):
    out = read_out(name, block=0)
    assert out.position == PROMPT + STEP - (name != "policy")
    seen = tiny.values_by_hand(out.subject, out.batch, out.site)
    np.testing.assert_array_equal(out.rows, seen[:, out.position].numpy())


def test_a_read_out_refuses_what_is_no_neuron_or_no_target():
    out = read_out()
    with pytest.raises(
        interp.SiteError,
        match=r"blocks.1.heads holds no neurons: expected a site such as blocks.1.neurons",
    ):
        ReadOut(out.subject, out.batch, interp.Site("heads", 1))
    with pytest.raises(ValueError, match="target=5: the batch has targets 0 to 4"):
        ReadOut(out.subject, out.batch, out.site, 5)
    vision = interp.Site("neurons", 0, "vision")
    with pytest.raises(ValueError, match="no single position predicts target 0"):
        _ = ReadOut(tiny.subject("policy"), tiny.batch("policy", prompt=PROMPT), vision).position


@pytest.mark.parametrize("name", ["gpt2", "llama", "policy"])
def test_contributions_of_the_last_block_add_up_to_the_slope_of_the_logit_difference(name):
    out, towards, away = read_out(name), tokens(1), tokens(2)
    shift = random_rows(out)
    contribution = out.contribution(shift, towards, away)
    step, close = (1e-2, 1e-3) if name == "llama" else (1e-5, 1e-6)  # its norm computes in float32
    high, low = (
        difference(logits_by_hand(out, sign * step * shift), towards, away) for sign in (1, -1)
    )
    np.testing.assert_allclose(contribution.sum(1), (high - low) / (2 * step), rtol=close)


def test_one_neuron_of_the_last_block_contributes_its_own_slope():
    out, towards, away = read_out(), tokens(1), tokens(2)
    effects = out.direct_effects(towards, away)
    only = np.zeros_like(out.rows)
    only[:, 17] = 1e-5
    high, low = (difference(logits_by_hand(out, sign * only), towards, away) for sign in (1, -1))
    np.testing.assert_allclose(effects[:, 17], (high - low) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("block", [0, -1])
def test_direct_effects_are_the_derivative_of_gpt2s_final_norm_by_hand(block):
    """d LayerNorm / dr = weight * (1 - 1/d - xhat xhat^T / d) / sigma; also for an early block,
    whose later ones are passed over."""
    out, towards, away = read_out(block=block), tokens(1), tokens(2)
    module = out.subject.module
    norm, blocks = module.transformer.ln_f, len(module.transformer.h)
    residual = tiny.values_by_hand(out.subject, out.batch, f"blocks.{blocks - 1}.resid_post")[
        :, out.position
    ]
    sigma = (residual.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    unit = (residual - residual.mean(1, keepdim=True)) / sigma
    with torch.no_grad():
        wanted = (module.lm_head.weight[towards] - module.lm_head.weight[away]) * norm.weight
        wanted = (
            wanted - wanted.mean(1, keepdim=True) - unit * (unit * wanted).mean(1, keepdim=True)
        ) / sigma
        written = module.transformer.h[block].mlp.c_proj.weight
        expected = (wanted @ written.T).numpy()
    np.testing.assert_allclose(out.direct_effects(towards, away), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        out.direct_effects(towards) - out.direct_effects(away), expected, rtol=1e-9, atol=1e-9
    )


def test_direct_effects_do_not_depend_on_how_many_items_are_differentiated_at_once(monkeypatch):
    out, towards, away = read_out(), tokens(1), tokens(2)
    whole = out.direct_effects(towards, away)
    monkeypatch.setattr(outliers, "_ITEMS_PER_GRAPH", 2)
    np.testing.assert_allclose(out.direct_effects(towards, away), whole, rtol=1e-12)


def test_contribution_refuses_other_shapes():
    out = read_out()
    with pytest.raises(ValueError, match=r"a shift of \(5, 48\) \[items, neurons\]; got \(4, 48\)"):
        out.contribution(out.rows[:4], tokens(1), tokens(2))
    with pytest.raises(ValueError, match=r"each of 5 items; got shape \(3,\)"):
        out.direct_effects(tokens(1)[:3])


@pytest.mark.parametrize("name", ["gpt2", "llama", "policy"])
@pytest.mark.parametrize("block", [0, -1])
def test_a_reset_changes_the_chosen_neurons_of_each_item_at_one_position(name, block):
    out = read_out(name, block)
    expected, chosen = random_rows(out), random_choice(out.rows.shape, 9, seed=4)
    with interp.intervened(out.subject, out.reset(expected, chosen)), torch.no_grad():
        found = out.subject.target_logits(out.batch)[:, STEP]
    by_hand = logits_by_hand(out, np.where(chosen, expected - out.rows, 0.0))
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-9)
    clean = logits_by_hand(out, np.zeros_like(out.rows))
    assert (found - clean).abs().amax(1).min() > 1e-3


def test_resetting_nothing_leaves_every_bit_and_leaves_no_trace():
    out = read_out()
    with tiny.untouched(out.subject.module):
        said = out.answers(out.reset(random_rows(out), np.zeros(out.rows.shape, dtype=bool)))
        assert said.tolist() == out.answers().tolist()
    with pytest.raises(ValueError, match=r"got means \(5, 3\)"):
        out.reset(out.rows[:, :3], np.ones(out.rows.shape, dtype=bool))


def test_the_largest_of_each_item_by_hand():
    contribution = np.array([[3.0, -9, 1, 2], [-1, -2, -3, -4]])
    assert largest(contribution, 2).tolist() == [
        [True, False, False, True],
        [True, True, False, False],
    ]
    assert not largest(contribution, 0).any()
    with pytest.raises(ValueError, match="cannot take 5 of 4 neurons"):
        largest(contribution, 5)


def test_random_choices_are_of_one_size_differ_by_item_and_come_back():
    chosen = random_choice((200, 50), 5, seed=0)
    assert (chosen.sum(1) == 5).all()
    assert len(np.unique(chosen, axis=0)) > 190
    assert np.abs(chosen.mean(0) - 0.1).max() < 4 * np.sqrt(0.09 / 200)
    assert np.array_equal(chosen, random_choice((200, 50), 5, seed=0))
    assert not np.array_equal(chosen, random_choice((200, 50), 5, seed=1))


def test_a_dose_curve_finds_the_planted_neurons():
    """Three neurons of each item, other ones for each, are moved until it says something else:
    setting them back undoes it."""
    clean, items = read_out(items=6), 6
    true, planted = (
        clean.answers(),
        random_choice(clean.rows.shape, 3, seed=99),
    )  # not a seed of the curve
    push = 40 * planted * np.sign(clean.direct_effects(tokens(1, items), true))
    contribution = clean.contribution(push, tokens(1, items), true)
    moved = ReadOut(clean.subject, clean.batch, clean.site, STEP)
    assert (
        moved.position == clean.position
    )  # found before the plan, whose donors are for whole batches
    with interp.intervened(clean.subject, clean.reset(clean.rows + push, planted)):
        wrong = moved.answers()
        curve = dose_curve(
            moved,
            clean.rows,
            {"largest": contribution},
            {"true": true, "wrong": wrong},
            [0, 3],
            seeds=4,
        )
    np.testing.assert_array_equal(moved.rows != clean.rows, planted)
    assert (wrong != true).all()
    assert len(curve) == items * (2 * (1 + 4) + 1)
    assert curve.columns.tolist() == ["selection", "k", "seed", "item", "true", "wrong"]
    share = curve.groupby(["selection", "k"])[["true", "wrong"]].mean()
    assert share.loc[("largest", 0)].tolist() == share.loc[("random", 0)].tolist() == [0, 1]
    assert (
        share.loc[("largest", 3)].tolist()
        == share.loc[("all", clean.rows.shape[1])].tolist()
        == [1, 0]
    )
    assert share.loc[("random", 3), "wrong"] > 0.8


def test_a_dose_curve_marks_each_item():
    out, expected = read_out(), random_rows(read_out())
    said = out.answers(out.reset(expected, largest(expected, 20)))
    curve = dose_curve(out, expected, {"largest": expected}, {"said": said}, [20], seeds=1)
    largest_rows = curve[curve["selection"] == "largest"]
    assert largest_rows["item"].tolist() == list(range(ITEMS))
    assert largest_rows["said"].all()


@given(st.integers(2, 7), st.integers(0, 6), st.integers(0, 100))
def test_no_item_has_a_part_in_its_own_fixed_ranking(items, changed, seed):
    values = np.random.default_rng(seed).normal(size=(items, 4))
    ranking = fixed_ranking(values)
    assert (ranking[::2] == ranking[0]).all()
    assert (ranking[1::2] == ranking[1]).all()
    changed %= items
    other = values.copy()
    other[changed] += 9
    np.testing.assert_array_equal(fixed_ranking(other)[changed], ranking[changed])


def test_what_a_shift_writes_is_the_length_of_the_change_of_the_residual():
    """Two paths: the formula, and the MLP's output with one neuron moved."""
    out = read_out()
    shift = np.zeros_like(out.rows)
    shift[:, 3] = np.linspace(-2, 2, len(shift))
    mlp = interp.Site("mlp_out", out.site.block)
    plan = out.reset(out.rows + shift, shift != 0)
    before = rows_at(out.subject, out.batch, mlp, out.position)[mlp]
    with out.subject.intervened(plan):
        after = rows_at(out.subject, out.batch, mlp, out.position)[mlp]
    by_hand = np.linalg.norm(after - before, axis=1)
    np.testing.assert_allclose(out.written(shift)[:, 3], by_hand, rtol=1e-4, atol=1e-6)
    assert (np.delete(out.written(shift), 3, axis=1) == 0).all()
    with pytest.raises(ValueError, match="expected a shift of"):
        out.written(shift[:, :3])
