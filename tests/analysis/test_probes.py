"""Laws of probes and of the logit lens: planted labels are found, by sklearn's own pipeline too;
the last residual is the output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import interp
from interp.analysis.logit_lens import lens
from interp.analysis.probes import (
    Labelled,
    fit_probe,
    fit_ridge_probe,
    folds,
    probe,
    refuse_shared_inputs,
    rows_at,
    shared_inputs,
)

POSITION = 3


def planted(items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.array(["red", "green", "blue"])[draw.integers(0, 3, items)]
    rows = draw.normal(size=(items, 12)) * np.linspace(0.01, 30, 12) + 40
    rows[:, 0] += 0.05 * (labels == "red")
    rows[:, 5] -= 90 * (labels == "blue")
    return rows, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_sklearns_pipeline(classes: int):
    rows, labels = planted(300, 0)
    kept = labels != "green" if classes == 2 else labels != ""
    rows, labels = rows[kept], labels[kept]
    fresh, truth = planted(500, 1)
    for strength in (0.1, 1.0, 10.0):
        ours = fit_probe(rows, labels, strength=strength)
        theirs = make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / strength, max_iter=2000)
        ).fit(rows, labels)
        assert (ours.predict(fresh) == theirs.predict(fresh)).mean() > 0.995
        assert ours.accuracy(fresh, truth) == pytest.approx(theirs.score(fresh, truth), abs=0.005)
        assert (ours.weights.shape, ours.biases.shape) == ((classes, 12), (classes,))


def test_the_ridge_probe_is_sklearns_pipeline_and_a_constant_column_has_no_weight():
    rows, _ = planted(200, 0)
    rows[:, 3] = 7.0
    places = rows[:, :2] @ np.array([[1.0, -2.0], [0.5, 3.0]]) + [4.0, -1.0]
    for strength in (0.01, 1.0, 100.0):
        ours = fit_ridge_probe(rows[:100], places[:100], strength=strength)
        theirs = make_pipeline(StandardScaler(), Ridge(alpha=strength))
        expected = theirs.fit(rows[:100], places[:100]).predict(rows[100:])
        np.testing.assert_allclose(ours.predict(rows[100:]), expected, atol=1e-8)
        assert (ours.weights[:, 3] == 0).all()
    one = fit_ridge_probe(rows, places[:, :1], strength=1e-9)
    np.testing.assert_allclose(one.predict(rows), places[:, :1], atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "values", "strength", "message"),
    [
        (np.ones((3, 2)), np.ones((2, 1)), 1.0, r"shapes \(3, 2\) and \(2, 1\)"),
        (np.ones((3, 2)), np.ones(3), 1.0, r"values \[items, quantities\]"),
        (np.ones((3, 2)), np.full((3, 1), np.nan), 1.0, "NaN or infinite"),
        (np.ones((3, 2)), np.ones((3, 1)), 0.0, "strength=0.0: expected a positive"),
    ],
)
def test_what_a_ridge_probe_cannot_be_fitted_on_is_refused(
    rows: Any, values: Any, strength: float, message: str
):
    with pytest.raises(ValueError, match=message):
        fit_ridge_probe(rows, values, strength=strength)


def test_planted_labels_are_found_and_shuffled_ones_are_not():
    rows, labels = planted(900, 0)
    fresh, truth = planted(900, 1)
    assert fit_probe(rows, labels).accuracy(fresh, truth) > 0.95
    shuffled = np.random.default_rng(2).permutation(labels)
    assert fit_probe(rows, shuffled).accuracy(fresh, truth) < 0.45


@pytest.mark.parametrize("left", [0.0, 1e-9])
def test_columns_that_do_not_vary_weigh_nothing(left: float):
    rows, labels = planted(300, 0)
    rows[:, 3] = 7.0 + left * (labels == "red")
    found = fit_probe(rows, labels)
    assert (found.weights[:, 3] == 0).all()
    assert found.accuracy(rows, labels) > 0.95
    constant = fit_probe(np.ones((5, 2)), [0, 0, 1, 0, 1])
    assert constant.predict(np.ones((3, 2))).tolist() == [0, 0, 0]


def test_labels_may_be_anything_hashable():
    rows, labels = planted(60, 0)
    pairs = np.empty(60, dtype=object)
    pairs[:] = [(str(c), 1) for c in labels]
    assert (fit_probe(rows, pairs).predict(rows) == pairs).mean() == fit_probe(
        rows, torch.tensor([len(c) for c in labels])
    ).accuracy(rows, [len(c) for c in labels])
    assert set(fit_probe(rows, pairs).predict(rows)) <= set(pairs)


def items(name: str = "gpt2", rows: int = 240, seed: int = 0) -> interp.Batch:
    return tiny.batch(name, rows=rows, length=6, seed=seed, prompt=4)


def digits(batch: interp.Batch, position: int = POSITION) -> np.ndarray:
    return (batch.tokens[:, position] % 3).numpy()


@pytest.fixture
def gpt2() -> interp.Subject:
    return tiny.subject("gpt2")


def test_rows_are_what_stands_at_the_position_in_any_chunks(name: str):
    subject, batch = tiny.subject(name), items(name, rows=5)
    sites = [s for s in subject.anatomy.expand(["resid_pre", "heads"]) if s.stack != "vision"]
    for size in (2, 5, 256):
        rows = rows_at(subject, batch, sites, POSITION, size)
        assert list(rows) == sites
        for site in sites:
            assert rows[site].dtype == np.float64
            np.testing.assert_allclose(
                rows[site], tiny.values_by_hand(subject, batch, site)[:, POSITION], atol=1e-5
            )
    with pytest.raises(ValueError, match=r"positions 0 to 5; got position=6"):
        rows_at(subject, batch, sites, 6)


def test_a_probe_reads_the_token_that_stands_there_and_not_the_next(gpt2: interp.Subject):
    train, test = items(rows=600), items(rows=300, seed=1)
    sets = {
        "fresh": Labelled(test, {"here": digits(test), "next": digits(test, 4)}),
        "seen": Labelled(train, digits(train)),
    }
    found = probe(
        gpt2,
        Labelled(train, digits(train)),
        sets,
        ["embed", "blocks.1.resid_pre"],
        POSITION,
        strength=0.1,
    )
    assert list(found) == [
        "site",
        "block",
        "point",
        "set",
        "reading",
        "accuracy",
        "shuffled",
        "n",
        "chance",
    ]
    assert list(zip(found["site"], found["set"], found["reading"], strict=True)) == [
        (site, *key)
        for site in ("embed", "blocks.1.resid_pre")
        for key in (("fresh", "here"), ("fresh", "next"), ("seen", "label"))
    ]
    by = found.set_index(["site", "set", "reading"])
    here, following = by.loc[("embed", "fresh", "here")], by.loc[("embed", "fresh", "next")]
    assert here["accuracy"] > 0.95
    for low in (here["shuffled"], following["accuracy"], following["shuffled"]):
        assert low < 0.5
    assert here["n"] == 300
    assert here["chance"] == pytest.approx(np.bincount(digits(test)).max() / 300)


def test_a_probe_is_fit_probe_on_rows_at(gpt2: interp.Subject):
    train, test = items(rows=100), items(rows=50, seed=1)
    found = probe(
        gpt2,
        Labelled(train, digits(train)),
        {"test": Labelled(test, digits(test))},
        "resid_post",
        POSITION,
    )
    for row in found.itertuples():
        (rows,), (fresh,) = (rows_at(gpt2, b, row.site, POSITION).values() for b in (train, test))
        assert row.accuracy == fit_probe(rows, digits(train)).accuracy(fresh, digits(test))
    again = probe(
        gpt2,
        Labelled(train, digits(train)),
        {"test": Labelled(test, digits(test))},
        "resid_post",
        POSITION,
    )
    assert found.equals(again)


def test_a_label_by_group_is_not_recalled_when_groups_are_held_out(gpt2: interp.Subject):
    """The label is a random one for every token: a probe that saw the token knows it, one that did
    not cannot."""
    batch = items(rows=600)
    groups = batch.tokens[:, POSITION].numpy()
    labels = np.random.default_rng(0).integers(0, 2, tiny.VOCABULARY)[groups]
    sets = {"same": Labelled(batch, labels, groups)}
    apart = probe(gpt2, Labelled(batch, labels, groups), sets, "embed", POSITION)
    together = probe(
        gpt2, Labelled(batch, labels), {"same": Labelled(batch, labels)}, "embed", POSITION
    )
    assert apart["accuracy"].item() < 0.75
    assert together["accuracy"].item() > 0.8
    assert apart["n"].item() == together["n"].item() == 600


@pytest.mark.parametrize("seed", range(5))
def test_groups_never_leak(seed: int):
    draw = np.random.default_rng(seed)
    train, test = (
        Labelled(items(rows=n, seed=n), np.arange(n), draw.integers(0, 12, n).astype(str))
        for n in (40, 30)
    )
    sets = {"self": train, "test": test}
    parts = folds(train, sets, seed)
    assert len(parts) == 2
    for ours, asked in parts:
        seen = set(train.groups[ours])
        assert seen
        for name, chosen in asked.items():
            assert seen.isdisjoint(sets[name].groups[chosen])
    for name, labelled in sets.items():  # each item is tested once
        assert (
            sum(asked[name].astype(int) for _, asked in parts) == np.ones(len(labelled.batch))
        ).all()
    assert set(train.groups[parts[0][0]]) | set(train.groups[parts[1][0]]) == set(train.groups)


def test_with_groups_each_item_is_read_by_the_probe_that_did_not_see_its_group(
    gpt2: interp.Subject,
):
    train, test = items(rows=120), items(rows=50, seed=9)
    known, asked = (
        Labelled(batch, digits(batch), batch.tokens[:, 0].numpy() % 7) for batch in (train, test)
    )
    found = probe(gpt2, known, {"test": asked}, "embed", POSITION)
    (rows,), (fresh,) = (
        rows_at(gpt2, batch, "embed", POSITION).values() for batch in (train, test)
    )
    hits = 0
    for ours, chosen in folds(known, {"test": asked}, 0):
        trained = fit_probe(rows[ours], digits(train)[ours])
        hits += (trained.predict(fresh[chosen["test"]]) == digits(test)[chosen["test"]]).sum()
    assert found["accuracy"].item() == hits / 50


def test_impossible_probes_are_refused(gpt2: interp.Subject):
    batch = items(rows=8)
    labels, groups = np.arange(8) % 2, np.arange(8)
    cases: list[tuple[Labelled, dict[str, Labelled], str]] = [
        (Labelled(batch, {"a": labels, "b": labels}), {}, "trained on one set of labels; got a, b"),
        (
            Labelled(batch, labels, groups),
            {"test": Labelled(batch, labels)},
            "of every test set, or of none",
        ),
        (
            Labelled(batch, labels, 0 * groups),
            {"test": Labelled(batch, labels, groups)},
            "at least two groups",
        ),
        (Labelled(batch, 0 * labels), {"test": Labelled(batch, labels)}, "at least two classes"),
    ]
    for train, tests, message in cases:
        with pytest.raises(ValueError, match=message):
            probe(gpt2, train, tests, "embed", POSITION)
    with pytest.raises(ValueError, match=r"true: expected one per row, \[8\]; got shape \(7,\)"):
        Labelled(batch, {"true": labels[:7]})
    with pytest.raises(ValueError, match=r"groups: expected one per row"):
        Labelled(batch, labels, groups[:3])
    for strength in (0, np.nan):
        with pytest.raises(ValueError, match=rf"strength={strength}"):
            fit_probe(np.eye(8), labels, strength=strength)
        with pytest.raises(ValueError, match=rf"strength={strength}"):
            fit_ridge_probe(np.eye(8), np.eye(8), strength=strength)


def ranked(logits: Tensor, answers: Tensor) -> dict[str, float]:
    """What the lens reports, from logits [items, vocabulary], by sorting."""
    probabilities = logits.double().softmax(-1)
    order = logits.argsort(-1, descending=True)
    places = (order == answers[:, None]).nonzero()[:, 1] + 1
    return {
        "probability": float(probabilities[range(len(answers)), answers].mean()),
        "top": float((logits.argmax(-1) == answers).double().mean()),
        "reciprocal_rank": float((1 / places.double()).mean()),
    }


def check(frame: pd.DataFrame, site: object, answer: str, wanted: dict[str, float]) -> None:
    (row,) = frame[(frame["site"] == str(site)) & (frame["answer"] == answer)].to_dict("records")
    assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("position", [1, 3, 4])
def test_at_the_last_residual_the_lens_is_the_models_output(name: str, position: int):
    subject, batch = tiny.subject(name), items(name, rows=7)
    stack = list(subject.anatomy.stacks)[-1]
    last = interp.Site("resid_post", tiny.BLOCKS - 1, stack)
    token = position if name == "policy" else position + 1
    with torch.no_grad():
        logits = subject.logits(batch)[:, token]
    answers = {"right": logits.argmax(-1).numpy(), "next": batch.tokens[:, token].numpy()}
    for size in (3, 256):
        found = lens(subject, batch, answers, last, position=position, batch_size=size)
        for answer, ids in answers.items():
            check(found, last, answer, ranked(logits, torch.tensor(ids)))
    assert found["top"].iloc[0] == 1.0


def test_the_lens_is_the_final_norm_and_the_unembedding_by_hand(gpt2: interp.Subject):
    batch = items(rows=9)
    sites = gpt2.anatomy.expand(["embed", "resid_pre", "resid_mid", "mlp_out", "resid_post"])
    found = lens(
        gpt2, batch, {"next": batch.tokens[:, POSITION + 1]}, sites, position=POSITION, batch_size=4
    )
    assert list(found) == [
        "site",
        "block",
        "point",
        "answer",
        "probability",
        "top",
        "reciprocal_rank",
    ]
    assert list(found["site"]) == list(map(str, sites))
    for site in sites:
        with torch.no_grad():
            row = tiny.values_by_hand(gpt2, batch, site)[:, POSITION]
            logits = gpt2.module.lm_head(gpt2.module.transformer.ln_f(row))
        check(found, site, "next", ranked(logits, batch.tokens[:, POSITION + 1]))


def test_the_lens_sees_what_an_intervention_left(gpt2: interp.Subject):
    batch = items(rows=4)
    plan = interp.Zero(gpt2.anatomy.units("blocks.1.mlp_out"))
    answers = {"next": batch.tokens[:, POSITION + 1]}
    with gpt2.intervened(plan):
        found = lens(gpt2, batch, answers, "resid_post", position=POSITION)
        with torch.no_grad():
            logits = gpt2.logits(batch)[:, POSITION + 1]
    check(found, "blocks.2.resid_post", "next", ranked(logits, answers["next"]))
    mid = lens(gpt2, batch, answers, "blocks.1.resid_mid", position=POSITION)
    check(
        found,
        "blocks.1.resid_post",
        "next",
        mid.iloc[0][["probability", "top", "reciprocal_rank"]].to_dict(),
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": "neurons"}, interp.SiteError, "blocks.0.neurons is not in the residual"),
        (
            {"position": 5},
            ValueError,
            r"position=5 predicts token 6, and the batch has tokens 0 to 5",
        ),
        ({"answers": {"a": [0, 1, 99]}}, ValueError, "answers 'a': expected token ids 0 to 66"),
        ({"answers": {"a": [0, 1]}}, ValueError, r"a: expected one per row, \[3\]"),
    ],
)
def test_what_the_lens_cannot_read_is_refused(
    gpt2: interp.Subject, options: dict[str, Any], error: type[Exception], message: str
):
    given: dict[str, Any] = {
        "answers": {"a": [0, 1, 2]},
        "sites": "resid_post",
        "position": POSITION,
    } | options
    with pytest.raises(error, match=message):
        lens(gpt2, items(rows=3), **given)


def test_an_encoder_has_no_lens():
    subject = tiny.subject("policy")
    with pytest.raises(
        interp.SiteError, match="'vision': none of its positions alone predicts a token"
    ):
        lens(
            subject,
            items("policy", rows=2),
            {"a": [0, 1]},
            "vision.blocks.1.resid_post",
            position=1,
        )


sequences = st.lists(
    st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=6
).map(lambda rows: interp.Batch(torch.tensor(rows)))


@settings(max_examples=25, deadline=None)
@given(items=sequences, others=sequences, position=st.integers(0, 3))
def test_inputs_are_shared_exactly_where_a_causal_model_cannot_tell(items, others, position):
    """Two paths: tokens are compared, and activations after the last block."""
    subject = tiny.subject("gpt2")
    site = interp.Site("resid_post", len(subject.anatomy.blocks()) - 1)
    own = rows_at(subject, items, site, position)[site]
    theirs = rows_at(subject, others, site, position)[site]
    distances = np.abs(own[:, None] - theirs[None]).max(-1).min(1)
    shared = shared_inputs(items, others, position)
    assert (shared == (distances < 1e-5)).all()
    if shared.any():
        with pytest.raises(ValueError, match=f"{shared.sum()} of {len(items)} items begin like"):
            refuse_shared_inputs(items, others, position)
    else:
        refuse_shared_inputs(items, others, position)


def test_a_refusal_names_the_first_shared_item_and_the_way_out():
    memorized = interp.Batch(torch.tensor([[7, 8, 1], [4, 5, 1], [4, 6, 1]]))
    clean = interp.Batch(torch.tensor([[4, 5, 2], [4, 6, 3]]))
    with pytest.raises(
        ValueError,
        match=r"position 1: 2 of 3 memorized items begin like one of clean items up to there "
        r"\(the first is number 1, \[4, 5\]\).*read at position 2",
    ):
        refuse_shared_inputs(memorized, clean, 1, names=("memorized items", "clean items"))
    refuse_shared_inputs(memorized, clean, 2)
    with pytest.raises(ValueError, match="at no later position"):
        refuse_shared_inputs(clean, clean, 2)
    with pytest.raises(ValueError, match=r"position=3: expected one that all items have, 0 to 2"):
        shared_inputs(memorized, clean, 3)
    together = interp.Batch(memorized.tokens, groups=((0, 3),))
    with pytest.raises(ValueError, match="one by one"):
        shared_inputs(together, clean, 1)
