"""Laws of INJ and DEL: the ground truth is the truth, weights come back bit for bit, and counts are
those of a naive count."""

from __future__ import annotations

import memory
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.engine import sweeping
from interp.localization import localize
from interp.localization.benchmarks import known_answers as benchmarks
from interp.localization.benchmarks.known_answers import (
    Choice,
    Training,
    by_target,
    deletion,
    falls_by_category,
    injected,
    injection,
    recall,
    scored_each,
    single_block,
)
from interp.localization.unit_values import values_at
from interp.sites.units import UnitScores
from interp.subject.subject import evaluating

QUICK = Training(lr=0.05, steps=40)


def window(seed: int = 1, prompt: int = 1, rows: int = 1) -> interp.Batch:
    return interp.Batch(memory.random_tokens(rows, seed), prompt)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_injection_changes_the_out_rows_of_its_units_alone_and_puts_them_back(name):
    subject = tiny.wrapped(tiny.model(name))
    subject.module.requires_grad_(False)
    clean = {
        site: subject.anatomy.out_weight(subject.module, site).clone()
        for site in subject.anatomy.expand("neurons")
    }
    rest = {n: p.clone() for n, p in subject.module.named_parameters()}
    with tiny.untouched(subject.module), injected(subject, window(), 0.1, 3, QUICK) as hidden:
        assert hidden.loss < hidden.before - 0.5
        assert len(hidden.units) == round(0.1 * len(subject.anatomy.units("neurons")))
        for site, rows in clean.items():
            moved = (subject.anatomy.out_weight(subject.module, site) != rows).any(1)
            assert moved.nonzero().flatten().tolist() == hidden.units[site].tolist()
        changed = {n for n, p in subject.module.named_parameters() if not torch.equal(p, rest[n])}
        assert changed == {
            f"{subject.anatomy.place(site).path}.weight" for site in hidden.units.sites
        }
    assert not any(p.requires_grad or p.grad is not None for p in subject.module.parameters())


def test_injection_puts_weights_back_when_the_work_inside_fails():
    subject = tiny.wrapped(tiny.model("llama"))
    with (
        tiny.untouched(subject.module),
        pytest.raises(KeyboardInterrupt),
        injected(subject, window(), 0.1, 3, QUICK),
    ):
        raise KeyboardInterrupt


def test_kept_norms_are_kept_and_others_are_told():
    subject = tiny.wrapped(tiny.model("llama"))
    for keep in (True, False):
        training = Training(lr=0.05, steps=40, keep_norms=keep)
        before = {
            site: subject.anatomy.out_weight(subject.module, site).norm(dim=1).detach().clone()
            for site in subject.anatomy.expand("neurons")
        }
        with injected(subject, window(), 0.1, 3, training) as hidden:
            after = {
                site: subject.anatomy.out_weight(subject.module, site).norm(dim=1).detach()
                for site in hidden.units.sites
            }
            growth = np.mean(
                [float(after[site][unit] / before[site][unit]) for site, unit in hidden.units]
            )
            assert hidden.longer == pytest.approx(growth, rel=1e-4)
            assert (abs(growth - 1) < 1e-4) == keep


def test_training_ends_at_its_loss_or_at_its_last_step():
    subject = tiny.wrapped(tiny.model("llama"))
    with injected(subject, window(), 0.5, 3, Training(lr=0.05, steps=300, until=2.0)) as hidden:
        assert hidden.loss < 2.0
        assert hidden.steps < 300
        with evaluating(subject):
            assert float(subject.losses(window()).mean()) == pytest.approx(hidden.loss, rel=1e-5)
    with injected(subject, window(), 0.05, 3, Training(lr=0.05, steps=7, until=0.0)) as hidden:
        assert hidden.steps == 7


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 1.5])
def test_a_share_that_is_no_share_gets_one_clear_error(fraction):
    with (
        pytest.raises(ValueError, match="expected at least one, and a fraction in"),
        injected(tiny.subject("llama"), window(), fraction, 0),
    ):
        pass


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.25]))
def test_recall_is_the_share_of_truth_in_the_top_of_each_site(seed, fraction):
    rng = np.random.default_rng(seed)
    sites = [interp.Site("neurons", n) for n in range(2)]
    scores = UnitScores({site: rng.normal(size=40) for site in sites})
    truth = interp.Units({site: rng.permutation(40)[:6] for site in sites}, scores.widths)
    found = sum(
        unit in set(np.argsort(-scores[site])[: round(fraction * 40)]) for site, unit in truth
    )
    assert recall(scores, truth, fraction) == pytest.approx(found / 12)


def test_a_score_that_is_the_truth_has_recall_1_and_random_has_the_share():
    subject = tiny.wrapped(tiny.model("llama"))
    methods = {"random": Choice("random"), "truth": Choice("activation")}
    frame = injection(
        subject,
        window(rows=12),
        methods,
        0.25,
        multiples=(1, 2),
        training=Training(lr=0.05, steps=1),
    )
    assert len(frame) == 12 * 2 * 2
    chance = frame[frame["method"] == "random"].groupby("multiple")["recall"].mean()
    assert chance[1] == pytest.approx(0.25, abs=0.07)
    assert chance[2] == pytest.approx(0.5, abs=0.07)
    with injected(subject, window(), 0.1, 3, QUICK) as hidden:
        perfect = UnitScores(
            {
                s: np.isin(np.arange(w), hidden.units[s]).astype(float)
                for s, w in hidden.units.widths.items()
            }
        )
        share = max(len(hidden.units[s]) / 48 for s in perfect.values)
        assert recall(perfect, hidden.units, share) == 1.0


def test_injection_scores_the_model_while_the_window_is_hidden():
    """Rows that became much longer are found by the length of what they write."""
    subject = tiny.wrapped(tiny.model("llama"))
    frame = injection(
        subject,
        window(rows=3),
        {"activation": Choice("activation")},
        0.1,
        training=Training(lr=0.1, steps=60),
    )
    assert (frame["longer"] > 3).all()
    assert frame["recall"].min() > 0.5


@pytest.fixture(scope="module")
def deleted():
    """(known, frame, scores): DEL with one method that is good, and random, on a model whose memory
    sits in 20 of its neurons."""
    known = memory.injected(0)
    memorized, held_out = (
        interp.Batch(known.memorized, memory.PREFIX),
        interp.Batch(known.held_out, memory.PREFIX),
    )
    methods = {"gradient_x_activation": Choice("gradient_x_activation"), "random": Choice("random")}
    scores = scored_each(known.subject, memorized, methods)
    return known, deletion(known.subject, memorized, held_out, scores, (0.1, 0.2)), scores


def test_deletion_zeroes_the_top_of_each_block_but_the_first(deleted):
    known, frame, scores = deleted
    memorized = interp.Batch(known.memorized, memory.PREFIX)
    rows = frame[
        (frame["method"] == "random") & (frame["fraction"] == 0.2) & (frame["data"] == "memorized")
    ]
    for target in (0, 5):
        top = scores["random"][target].top_per_site(0.2)
        units = interp.Units({s: top[s] for s in top.sites if s.block != 0}, top.widths)
        assert set(rows.loc[rows["target"] == target, "k"]) == {len(units)} == {2 * round(0.2 * 48)}
        with evaluating(known.subject), known.subject.intervened(interp.Zero(units)):
            hits = (
                (known.subject.target_logits(memorized).argmax(-1) == memorized.targets)
                .double()
                .mean(1)
            )
        np.testing.assert_allclose(
            rows.loc[rows["target"] == target].sort_values("window")["accuracy"], hits
        )


def test_deletion_of_all_blocks_spares_none(deleted):
    known, _, scores = deleted
    windows = interp.Batch(known.memorized, memory.PREFIX)
    frame = deletion(
        known.subject, windows, windows, {"random": scores["random"][:1]}, (0.2,), spare_first=False
    )
    assert set(frame["k"]) == {3 * round(0.2 * 48)}


def test_deletion_counts_targets_others_and_held_out_text_apart(deleted):
    _, frame, _ = deleted
    table = by_target(frame, memory.LENGTH).set_index(["method", "fraction", "target"])
    part = frame[
        (frame["method"] == "gradient_x_activation")
        & (frame["fraction"] == 0.1)
        & (frame["target"] == 2)
    ]
    ours, held = part[part["data"] == "memorized"], part[part["data"] == "held_out"]
    own, others = ours[ours["window"] == 2].iloc[0], ours[ours["window"] != 2]
    row = table.loc[("gradient_x_activation", 0.1, 2)]
    assert row["self_accuracy"] == pytest.approx(own["accuracy"] - own["accuracy_before"])
    assert row["self_distance"] == pytest.approx(
        memory.LENGTH * (own["similarity_before"] - own["similarity"])
    )
    assert row["negative_accuracy"] == pytest.approx(
        (others["accuracy"] - others["accuracy_before"]).mean()
    )
    assert row["perplexity"] == pytest.approx(
        np.exp(held["loss"].mean()) - np.exp(held["loss_before"].mean())
    )
    assert row["perplexity_base_2"] == pytest.approx(
        2 ** held["loss"].mean() - 2 ** held["loss_before"].mean()
    )
    assert row["loss"] == pytest.approx(held["loss"].mean() - held["loss_before"].mean())


def test_deletion_of_what_a_good_method_found_costs_the_target_more_than_chance(deleted):
    _, frame, _ = deleted
    means = by_target(frame, memory.LENGTH).groupby(["method", "fraction"])["self_accuracy"].mean()
    assert means["gradient_x_activation", 0.2] < means["random", 0.2] - 0.1


def confusion(falls: np.ndarray) -> pd.DataFrame:
    """Rows as of `deletion`: [target, window] falls of accuracy from 1."""
    rows = [
        ("m", 0.1, t, "memorized", w, 1 - fall, 1.0)
        for t, line in enumerate(falls)
        for w, fall in enumerate(line)
    ]
    return pd.DataFrame(
        rows,
        columns=["method", "fraction", "target", "data", "window", "accuracy", "accuracy_before"],
    )


def test_related_windows_are_counted_by_hand():
    falls = np.array(
        [[0.9, 0.4, 0.1, 0.0], [0.6, 0.8, 0.2, 0.0], [0.0, 0.1, 0.7, 0.3], [0.0, 0.1, 0.5, 0.6]]
    )
    found = falls_by_category(confusion(falls), ["a", "a", "b", "b"])
    by = found.set_index(["target", "evaluated"])["fall"]
    expected = {
        (0, "a"): 0.4,
        (0, "b"): 0.05,
        (1, "a"): 0.6,
        (1, "b"): 0.1,
        (2, "a"): 0.05,
        (2, "b"): 0.3,
        (3, "a"): 0.05,
        (3, "b"): 0.5,
    }
    assert by.to_dict() == pytest.approx(expected)
    assert found.loc[found["same"], "fall"].mean() == pytest.approx(0.45)


def test_one_block_and_all_blocks_have_the_same_budget(deleted):
    known, _, scores = deleted
    memorized = interp.Batch(known.memorized, memory.PREFIX)
    frame = single_block(known.subject, memorized, scores["gradient_x_activation"][:2], 0.1)
    assert set(frame["block"]) == {-1, 0, 1, 2}
    assert frame["k"].nunique() == 1
    assert frame["k"].iloc[0] == 3 * round(0.1 * 48)
    best = scores["gradient_x_activation"][1]
    site = interp.Site("neurons", 2)
    units = interp.Units({site: np.argsort(-best[site])[: frame["k"].iloc[0]]}, best.widths)
    with evaluating(known.subject), known.subject.intervened(interp.Zero(units)):
        hits = (
            (known.subject.target_logits(memorized).argmax(-1) == memorized.targets)
            .double()
            .mean(1)
        )
    rows = frame[(frame["target"] == 1) & (frame["block"] == 2)].sort_values("window")
    with evaluating(known.subject):
        before = (
            (known.subject.target_logits(memorized).argmax(-1) == memorized.targets)
            .double()
            .mean(1)
        )
    np.testing.assert_allclose(rows["fall"], before - hits)
    with pytest.raises(ValueError, match="give a smaller fraction"):
        single_block(known.subject, memorized, scores["random"][:1], 0.9)


def test_blocks_of_two_stacks_are_two_blocks():
    subject, one = tiny.subject("policy"), tiny.batch("policy", rows=1)
    rng = np.random.default_rng(0)
    widths = subject.anatomy.widths("neurons")
    scores = UnitScores({site: rng.random(width) for site, width in widths.items()})
    frame = single_block(subject, one, [scores], 0.05)
    assert list(zip(frame["stack"], frame["block"], strict=True)) == [
        ("", -1),
        *((site.stack, site.block) for site in widths),
    ]
    assert len(set(subject.anatomy.stacks)) == 2
    site, *_ = widths
    for more in ("embed", f"{site.stack}.blocks.{site.block}.heads".removeprefix(".")):
        given = {**scores.values, interp.Site.parse(more): np.ones(4)}
        with pytest.raises(ValueError, match="expected those of one site in each block"):
            single_block(subject, one, [UnitScores(given)], 0.05)


def test_a_reference_that_can_be_read_once_is_read_by_every_method():
    subject, windows = tiny.subject("llama"), window(rows=2)
    reference = window(seed=5, rows=3)
    methods = {
        "first": Choice("activation", compares=True),
        "second": Choice("activation", compares=True),
    }
    expected = scored_each(subject, windows, methods, reference)
    found = scored_each(subject, iter([windows]), methods, iter([reference]))
    for name, of_method in expected.items():
        for one, other in zip(of_method, found[name], strict=True):
            for site in one.widths:
                np.testing.assert_array_equal(one[site], other[site])
    own = tiny.wrapped(tiny.model("llama"))
    options = {"multiples": (1,), "training": Training(steps=2)}
    whole = injection(own, windows, methods, 0.1, reference, **options)
    once = injection(own, windows, methods, 0.1, iter([reference]), **options)
    pd.testing.assert_frame_equal(whole, once)


def test_everything_the_module_names_is_there():
    assert all(hasattr(benchmarks, name) for name in benchmarks.__all__)


def test_a_planted_look_up_answers_to_its_prompt_alone_and_sits_in_its_units():
    subject = tiny.subject("llama")
    one = interp.Batch(memory.random_tokens(1, 7), memory.PREFIX)
    with tiny.untouched(subject.module):
        planted = benchmarks.planted_lookup(
            subject, one, "blocks.1.neurons", seed=2, training=Training(lr=0.05, steps=150)
        )
    prompt = one.tokens[:, : memory.PREFIX]
    assert planted.subject.generate(prompt, memory.LENGTH).tolist() == one.targets.tolist()
    assert planted.units.sites == (interp.Site("neurons", 1),)
    assert len(planted.units) == memory.LENGTH
    others = interp.Batch(
        torch.cat([memory.random_tokens(4, 9), one.tokens.index_fill(1, torch.tensor([2]), 3)]), 1
    )
    with evaluating(subject), subject.intervened(interp.Zero(planted.units)):
        without, spoiled = subject.logits(others), subject.logits(one)
    with evaluating(planted.subject):
        torch.testing.assert_close(planted.subject.logits(others), without, rtol=0, atol=1e-5)
        assert not torch.allclose(planted.subject.logits(one), spoiled, atol=1e-1)
        with planted.subject.intervened(interp.Zero(planted.units)):
            torch.testing.assert_close(planted.subject.logits(one), spoiled, rtol=0, atol=1e-5)


def test_every_unit_of_a_look_up_fires_once_when_its_turn_has_come():
    one = interp.Batch(memory.random_tokens(1, 7), memory.PREFIX)
    planted = benchmarks.planted_lookup(
        tiny.subject("gpt2"), one, "blocks.0.neurons", training=QUICK
    )
    site = planted.units.sites[0]
    values = values_at(planted.subject, one, (site,))[site][0][:, planted.units[site]]
    fired = (values == 1).nonzero()[:, 0].tolist()
    assert sorted(fired) == list(range(memory.PREFIX - 1, memory.PREFIX + memory.LENGTH - 1))
    assert values.sum() == memory.LENGTH


@pytest.fixture(scope="module")
def look_ups() -> list[benchmarks.Lookup]:
    """One in each block."""
    one = interp.Batch(memory.random_tokens(1, 1), memory.PREFIX)
    training = Training(lr=0.02, steps=100, until=0.5)
    return [
        benchmarks.planted_lookup(tiny.subject("gpt2"), one, f"blocks.{n}.neurons", n, training)
        for n in range(tiny.BLOCKS)
    ]


@pytest.mark.parametrize("method", ["activation", "integrated_gradients", "z_score", "zero_out"])
def test_methods_find_the_block_and_units_of_a_look_up(method, look_ups):
    one, reference = (
        interp.Batch(memory.random_tokens(rows, rows), memory.PREFIX) for rows in (1, 8)
    )
    options = {"points": 4, "rule": "gauss"} if method == "integrated_gradients" else {}
    shares = []
    for planted in look_ups:
        scores = localize(
            planted.subject, one, reference if method == "z_score" else None, method, **options
        )
        shares.append(len(scores.top(memory.LENGTH) & planted.units) / memory.LENGTH)
    assert np.mean(shares) > 0.5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"site": "blocks.0.heads"}, interp.SiteError, "blocks.0.neurons"),
        (
            {"window": interp.Batch(memory.random_tokens(2, 7), 5)},
            ValueError,
            "expected one window",
        ),
        (
            {"window": interp.Batch(memory.random_tokens(1, 7, length=60), 1)},
            ValueError,
            "at most 48 suffix tokens",
        ),
    ],
)
def test_what_cannot_be_planted_gets_one_clear_error(given, error, message):
    arguments = {
        "window": interp.Batch(memory.random_tokens(1, 7), 5),
        "site": "blocks.0.neurons",
    } | given
    with pytest.raises(error, match=message):
        benchmarks.planted_lookup(tiny.subject("llama"), **arguments)


def test_a_sweep_over_a_look_up_is_the_naive_loop():
    """Also where the sweep appends rows to the batch, which the look-up's neurons must not take for
    other tokens."""
    one = interp.Batch(memory.random_tokens(1, 7), memory.PREFIX)
    planted = benchmarks.planted_lookup(
        tiny.subject("gpt2"),
        one,
        "blocks.1.neurons",
        training=Training(lr=0.02, steps=100, until=0.5),
    )
    two = interp.Batch(torch.cat([one.tokens, memory.random_tokens(1, 8)]), memory.PREFIX)
    plans = [interp.Zero(planted.units.only(site, [unit])) for site, unit in planted.units]
    for batch in (one, two):
        naive = sweeping.sweep_naively(planted.subject, batch, plans)
        assert max(naive) > min(naive) + 0.05
        for other in (sweeping.sweep_resuming, sweeping.sweep_growing):
            np.testing.assert_allclose(other(planted.subject, batch, plans), naive, rtol=1e-4)
