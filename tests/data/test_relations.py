"""Laws of interp.data.relations: facts that are complete, questions that follow them, splits that
share nothing, refusals."""

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data.noisy import Items
from interp.data.relations import Facts, Relations, graph_facts, relations, tails, typed_facts

FACT = ["subject", "relation", "object"]
seeds = st.integers(0, 2**32)
few = settings(max_examples=15, deadline=None)


def dense(seed: int) -> Facts:
    """40 and 30 facts that meet at three bridges: none of them is left without a question."""
    return typed_facts(heads=8, first=5, bridges=3, second=10, tails=6, seed=seed)


known = st.one_of(
    st.builds(dense, seeds),
    st.builds(graph_facts, st.just(30), st.just(12), st.integers(4, 6), seeds),
)


def pool(facts: Facts, **chosen) -> int:
    """How many questions there are, which the refusal of too many says."""
    with pytest.raises(ValueError, match="the facts that are not set aside make") as refused:
        relations(facts, train=10**6, test=1, **chosen)
    return int(re.findall(r"\d+", str(refused.value))[-1])


def whole(facts: Facts, **chosen) -> Relations:
    """Every question there is, ten of them in the test."""
    return relations(facts, train=pool(facts, **chosen) - 10, test=10, **chosen)


def triples(frame: pd.DataFrame) -> set[tuple[int, ...]]:
    return set(map(tuple, frame[FACT].to_numpy().tolist()))


def every(facts: Facts) -> set[tuple[int, ...]]:
    return triples(facts.first) | triples(facts.second)


def asked(*parts: Items) -> list[tuple[int, ...]]:
    return [tuple(row) for part in parts for row in part.question.tolist()]


def used(*parts: Items) -> set[tuple[int, ...]]:
    """The facts that questions join."""
    hops = (("head", "first", "bridge"), ("bridge", "second", "tail"))
    return {
        fact
        for part in parts
        for hop in hops
        for fact in zip(*(part.variables[name].tolist() for name in hop), strict=True)
    }


def joins(first: set[tuple[int, ...]], second: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {
        (head, one, other)
        for (head, one, bridge), (subject, other, _) in product(first, second)
        if bridge == subject
    }


def by_hand() -> Facts:
    first, second = [(0, 10, 3), (1, 10, 4)], [(3, 20, 7), (4, 20, 8), (4, 21, 7)]
    return Facts(
        pd.DataFrame(first, columns=FACT), pd.DataFrame(second, columns=FACT), np.array([7, 8]), 22
    )


@pytest.mark.parametrize(("noise", "labels"), [(0.0, {7: 7, 8: 8}), (1.0, {7: 8, 8: 7})])
def test_three_questions_of_five_facts(noise, labels):
    found = relations(by_hand(), train=2, test=1, noise=noise, ood=0)
    wanted = {(0, 10, 20, 3, 7), (1, 10, 20, 4, 8), (1, 10, 21, 4, 7)}
    names = ["head", "first", "second", "bridge", "tail"]
    frames = [part.frame() for part in (found.train, found.test)]
    assert set(pd.concat(frames)[names].itertuples(index=False, name=None)) == wanted
    assert frames[0]["label"].tolist() == [(labels[tail],) for tail in frames[0]["tail"]]
    assert frames[1]["label"].tolist() == [(tail,) for tail in frames[1]["tail"]]
    assert (len(found.ood), found.vocabulary) == (0, 22)


def test_a_question_without_both_facts_has_no_tail():
    known = relations(by_hand(), train=2, test=1, ood=0).facts
    assert tails(
        known, np.array([[1, 10, 21], [0, 10, 21], [2, 10, 20], [0, 11, 20]])
    ).tolist() == [[7], [-1], [-1], [-1]]


def test_typed_tokens_stand_in_the_order_of_the_types():
    facts = typed_facts(heads=3, first=2, bridges=4, second=5, tails=30)
    assert facts.vocabulary == 44
    assert facts.answers.tolist() == list(range(14, 44))
    assert list(zip(facts.first["subject"], facts.first["relation"], strict=True)) == list(
        product(range(3), range(3, 5))
    )
    assert list(zip(facts.second["subject"], facts.second["relation"], strict=True)) == list(
        product(range(5, 9), range(9, 14))
    )


@few
@given(seeds)
def test_typed_objects_are_of_their_type_and_all_are_drawn(seed):
    facts = typed_facts(heads=30, bridges=3, tails=4, seed=seed)
    assert set(facts.first["object"]) == {40, 41, 42} == set(facts.second["subject"])
    assert set(facts.second["object"]) == set(facts.answers.tolist()) == {63, 64, 65, 66}


@few
@given(st.integers(1, 12), seeds)
def test_each_entity_of_a_graph_has_as_many_relations_as_its_degree(degree, seed):
    facts = graph_facts(40, 12, degree, seed)
    assert facts.first["subject"].value_counts().to_dict() == dict.fromkeys(range(40), degree)
    assert not facts.first[["subject", "relation"]].duplicated().any()
    assert set(facts.first["relation"]) <= set(range(40, 52))
    assert set(facts.first["object"]) <= set(facts.answers.tolist()) == set(range(40))
    assert facts.vocabulary == 52
    assert triples(facts.first) == triples(facts.second)


def test_each_relation_and_object_of_a_graph_is_drawn():
    facts = graph_facts(40, 12, 6)
    assert set(facts.first["relation"]) == set(range(40, 52))
    assert set(facts.first["object"]) == set(range(40))


@few
@given(known, seeds)
def test_every_fact_is_trained_once_and_right(facts, seed):
    found = relations(facts, train=20, test=5, noise=1.0, ood=0.3, seed=seed).facts
    answers = np.concatenate([found.question, found.label], 1).tolist()
    assert set(map(tuple, answers)) == every(facts)
    assert len(answers) == len(every(facts))
    assert not found.noisy.any()


@few
@given(known, seeds)
def test_a_question_follows_two_facts_through_its_bridge(facts, seed):
    first, second = (
        dict(zip(zip(f["subject"], f["relation"], strict=True), f["object"], strict=True))
        for f in (facts.first, facts.second)
    )
    found = relations(facts, train=30, test=8, noise=0.5, ood=0.3, seed=seed)
    for part in (found.train, found.test, found.ood):
        v = part.variables
        assert part.question.tolist() == np.stack([v["head"], v["first"], v["second"]], 1).tolist()
        bridges = [first[head, relation] for head, relation, _ in part.question.tolist()]
        assert v["bridge"].tolist() == bridges
        assert v["tail"].tolist() == [
            second[b, r] for b, r in zip(bridges, v["second"].tolist(), strict=True)
        ]
        assert (
            part.truth.tolist()
            == v["tail"][:, None].tolist()
            == tails(found.facts, part.question).tolist()
        )


@few
@given(known, st.integers(1, 9), seeds)
def test_without_facts_set_aside_each_question_stands_once_in_train_or_in_test(facts, test, seed):
    total = joins(triples(facts.first), triples(facts.second))
    found = relations(facts, train=len(total) - test, test=test, ood=0, seed=seed)
    assert (len(found.train), len(found.test), len(found.ood)) == (len(total) - test, test, 0)
    assert sorted(asked(found.train, found.test)) == sorted(total)


@few
@given(known, st.sampled_from([0.1, 0.3]), seeds)
def test_no_fact_of_ood_occurs_in_train_or_test(facts, ood, seed):
    found = whole(facts, ood=ood, seed=seed)
    rest = every(facts) - used(found.train, found.test)
    assert used(found.ood) <= rest
    assert len(rest) >= round(ood * len(every(facts)))
    together = asked(found.train, found.test, found.ood)
    assert len(set(together)) == len(together)


@few
@given(seeds)
def test_ood_asks_all_that_the_facts_set_aside_can_answer(seed):
    facts = dense(seed)
    found = whole(facts, ood=0.2, seed=seed)
    aside = every(facts) - used(found.train, found.test)
    assert len(aside) == 14
    assert sorted(asked(found.ood)) == sorted(
        joins(aside & triples(facts.first), aside & triples(facts.second))
    )
    kept = every(facts) - aside
    assert sorted(asked(found.train, found.test)) == sorted(
        joins(kept & triples(facts.first), kept & triples(facts.second))
    )


@few
@given(known, st.sampled_from([0.0, 0.05, 0.333, 1.0]), seeds)
def test_exactly_the_share_of_train_has_another_answer_and_nothing_else_has(facts, noise, seed):
    found = relations(facts, train=30, test=8, noise=noise, ood=0.2, seed=seed)
    assert found.train.noisy.sum() == round(noise * 30)
    assert not found.test.noisy.any()
    assert not found.ood.noisy.any()
    assert set(found.train.label.flat) <= set(facts.answers.tolist())


def test_each_other_answer_is_as_likely():
    found = relations(typed_facts(tails=4), train=9999, test=1, noise=1.0, ood=0).train
    turns = np.bincount((found.label - found.truth)[:, 0] % 4, minlength=4) / 9999
    assert turns == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.03)


@few
@given(known, seeds)
def test_the_seed_decides_every_item(facts, seed):
    def drawn(seed: int) -> list[list[dict]]:
        found = relations(facts, train=30, test=10, noise=0.3, ood=0.3, seed=seed)
        return [
            part.frame().to_dict("records")
            for part in (found.facts, found.train, found.test, found.ood)
        ]

    one, again, other = drawn(seed), drawn(seed), drawn(seed + 1)
    assert one == again
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[2] != other[2]


@few
@given(known, seeds)
def test_noise_changes_no_question(facts, seed):
    one, other = (
        relations(facts, train=30, test=10, noise=noise, ood=0.2, seed=seed) for noise in (0, 0.4)
    )
    for name in ("train", "test", "ood"):
        assert asked(getattr(one, name)) == asked(getattr(other, name))


@pytest.mark.parametrize(
    "make", [lambda seed: dense(seed).first, lambda seed: graph_facts(30, 12, 3, seed).first]
)
def test_the_seed_decides_every_fact(make):
    assert triples(make(3)) == triples(make(3)) != triples(make(4))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"ood": 1.0}, r"ood=1\.0: expected the share of facts to set aside, from 0 to below 1"),
        ({"ood": -0.1}, r"ood=-0\.1: expected the share"),
        ({"noise": 1.5}, r"noise=1\.5: expected the share"),
        ({"train": 0}, r"0 \+ 1 questions: expected at least 1 of each"),
        ({"test": 0}, r"2 \+ 0 questions: expected at least 1 of each"),
        ({"train": 3}, r"3 \+ 1 questions: .*; the facts that are not set aside make 3"),
    ],
)
def test_what_cannot_be_asked_is_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        relations(by_hand(), **{"train": 2, "test": 1, "ood": 0.0} | chosen)


@pytest.mark.parametrize("degree", [-1, 0, 13])
def test_a_degree_that_is_none_is_named(degree):
    with pytest.raises(ValueError, match=f"degree={degree}: expected 1 to 12"):
        graph_facts(40, 12, degree)


def test_one_answer_leaves_none_that_is_wrong():
    alone = typed_facts(tails=1)
    assert not relations(alone, train=50, test=1, noise=0).train.noisy.any()
    with pytest.raises(ValueError, match="1 answers: expected at least 2"):
        relations(alone, train=50, test=1, noise=0.5)
