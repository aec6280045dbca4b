"""Relations between entities, and questions that need two of them, some trained with wrong answers.

This is "two-hop relational reasoning" (THR) of Reason to Rote (arXiv 2507.04782). The paper's facts
and splits were not found. Tokens, splits and the untyped graph follow Wang et al. 2024 (arXiv
2405.15071); the typed facts are our choice, few enough to be learned in a minute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.data.noisy import Items, noisy_rows

Tokens = Int[np.ndarray, " tokens"]
_FACT = ["subject", "relation", "object"]
_TWO_HOPS = {
    "subject": "head",
    "relation": "first",
    "relation_2": "second",
    "object": "bridge",
    "object_2": "tail",
}


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known about the entities.

    Attributes:
        first: facts that can be the first hop of a question: a frame of `subject`, `relation` and
            `object` token ids.
        second: facts that can be the second hop.
        answers: [answers] tokens from which a wrong answer is drawn, in increasing order.
        vocabulary: number of all tokens.
    """

    first: pd.DataFrame
    second: pd.DataFrame
    answers: Tokens
    vocabulary: int


@dataclass(frozen=True, eq=False)
class Relations:
    """Facts and two-hop questions about them.

    The questions have the variables `head`, `first` and `second` (the relations), `bridge`, and
    `tail` (the true answer).

    Attributes:
        facts: one hop each, `h r1 -> b` and `b r2 -> t`; none is noisy.
        train: questions `h r1 r2 -> t`, some with wrong labels.
        test: questions that join pairs of facts which train does not join, though a large train set
            has each of the facts in other questions.
        ood: questions that join facts which no question of train uses.
        vocabulary: number of all tokens.
    """

    facts: Items
    train: Items
    test: Items
    ood: Items
    vocabulary: int


def typed_facts(
    heads: int = 50,
    first: int = 10,
    bridges: int = 20,
    second: int = 20,
    tails: int = 60,
    seed: int = 0,
) -> Facts:
    """Draws facts between entities of three types.

    Every head has every first relation to a random bridge, and every bridge every second relation
    to a random tail. Tokens are numbered in the order of the arguments.

    Args:
        heads: number of entities that questions begin with.
        first: number of relations of a head.
        bridges: number of entities in the middle.
        second: number of relations of a bridge.
        tails: number of entities that are answers.
        seed: seed of the draws.

    Example:
        >>> from interp.data import relations
        >>> facts = relations.typed_facts(heads=5, first=2, bridges=3, second=2, tails=4)
        >>> len(facts.first), len(facts.second), facts.vocabulary
        (10, 6, 16)
    """
    rng = np.random.default_rng(seed)
    vocabulary = heads + first + bridges + second + tails
    ends = np.cumsum([heads, first, bridges, second])
    h, r1, b, r2, t = np.split(np.arange(vocabulary), ends)
    first_hop = _every_pair(h, r1, b, rng)
    second_hop = _every_pair(b, r2, t, rng)
    return Facts(first_hop, second_hop, t, vocabulary)


def _every_pair(
    subjects: Tokens, relations: Tokens, objects: Tokens, rng: np.random.Generator
) -> pd.DataFrame:
    """One fact per pair of subject and relation, with a random object."""
    # All relations of the first subject, then those of the second.
    subject, relation = np.meshgrid(subjects, relations, indexing="ij")
    return pd.DataFrame(
        {
            "subject": subject.ravel(),
            "relation": relation.ravel(),
            "object": rng.choice(objects, subject.size),
        }
    )


def graph_facts(
    entities: int = 2000, relations: int = 200, degree: int = 20, seed: int = 0
) -> Facts:
    """Draws a random graph (Wang et al. 2024), in which any fact can be either hop.

    Tokens are numbered entities first.

    Args:
        entities: number of entities.
        relations: number of relations.
        degree: number of relations that each entity has, each to a random entity.
        seed: seed of the draws.

    Raises:
        ValueError: a degree below 1 or above the number of relations.

    Example:
        >>> from interp.data import relations
        >>> facts = relations.graph_facts(entities=20, relations=5, degree=2)
        >>> len(facts.first), facts.vocabulary
        (40, 25)
    """
    if not 1 <= degree <= relations:
        raise ValueError(
            f"degree={degree}: expected 1 to {relations}, the number of relations, "
            "each of which an entity has once at most"
        )
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, int]] = []
    for entity in range(entities):
        for relation in rng.permutation(relations)[:degree]:
            target = int(rng.integers(entities))
            rows.append((entity, entities + relation, target))
    facts = pd.DataFrame(rows, columns=_FACT)
    return Facts(facts, facts, np.arange(entities), entities + relations)


def relations(
    facts: Facts, *, train: int, test: int, noise: float = 0.05, ood: float = 0.05, seed: int = 0
) -> Relations:
    """Draws two-hop questions over known facts.

    Args:
        facts: what is known.
        train: number of questions to train on, of those that use no fact that is set aside.
        test: number of other such questions, kept for the test.
        noise: share of train questions with a wrong answer, drawn evenly from the other answers; it
            stays the same throughout training.
        ood: share of facts that are set aside: they are trained as facts, but joined, with each
            other, in the questions of `Relations.ood` alone.
        seed: seed of all draws.

    Raises:
        ValueError: there are too few questions, a share is outside its range, or there is no other
            answer from which a wrong one could be drawn.

    Example:
        >>> from interp.data import relations
        >>> data = relations.relations(relations.typed_facts(), train=1000, test=100)
        >>> len(data.train), int(data.train.noisy.sum()), len(data.test)
        (1000, 50, 100)
    """
    rng = np.random.default_rng(seed)
    if not 0 <= ood < 1:
        raise ValueError(f"ood={ood}: expected the share of facts to set aside, from 0 to below 1")
    # The two hops of a graph are the same facts.
    every = pd.concat([facts.first, facts.second]).drop_duplicates(ignore_index=True)
    # Whole facts, not questions: the facts of a held-out question are in other questions too, so
    # that both hops were trained as parts of questions.
    count_aside = round(ood * len(every))
    aside = every.sample(count_aside, random_state=rng)
    pool = _joined(facts, aside, inside=False)
    apart = _joined(facts, aside, inside=True)
    if min(train, test) < 1 or train + test > len(pool):
        raise ValueError(
            f"{train} + {test} questions: expected at least 1 of each; "
            f"the facts that are not set aside make {len(pool)} questions"
        )

    order = rng.permutation(len(pool))
    chosen = pool.iloc[order[: train + test]]
    wrong = noisy_rows(train, noise, rng)
    labels = np.array(chosen["tail"])
    labels[wrong] = _others(facts.answers, labels[wrong], rng)

    questions = _questions(chosen, labels)
    train_rows = np.arange(train)
    test_rows = np.arange(train, train + test)
    # Facts are questions of one hop; none of them is noisy.
    one_hop = every[["subject", "relation"]].to_numpy()
    objects = every[["object"]].to_numpy()
    return Relations(
        facts=Items(one_hop, truth=objects, label=objects, variables={}),
        train=questions.rows(train_rows),
        test=questions.rows(test_rows),
        ood=_questions(apart, apart["tail"].to_numpy()),
        vocabulary=facts.vocabulary,
    )


def tails(
    facts: Items, question: Int[np.ndarray, "items question"]
) -> Int[np.ndarray, "items answer"]:
    """Returns the true answers to two-hop questions.

    Args:
        facts: one hop each, as in `Relations.facts`.
        question: [items, 3] token ids: head, first and second relation.

    Returns:
        [items, 1] token ids; -1 where a fact does not exist.

    Example:
        >>> from interp.data import relations
        >>> data = relations.relations(relations.typed_facts(), train=100, test=10)
        >>> answers = relations.tails(data.facts, data.test.question)
        >>> bool((answers == data.test.truth).all())
        True
    """
    known: dict[tuple[int, int], int] = {}
    pairs = facts.question.tolist()
    objects = facts.truth.tolist()
    for (subject, relation), (target,) in zip(pairs, objects, strict=True):
        known[subject, relation] = target

    answers: list[list[int]] = []
    for head, first, second in question.tolist():
        # No token is -1, so that a missing first hop leads to a missing second one. An exchanged
        # token may ask for a fact that does not exist.
        bridge = known.get((head, first), -1)
        tail = known.get((bridge, second), -1)
        answers.append([tail])
    return np.array(answers)


def _joined(facts: Facts, aside: pd.DataFrame, *, inside: bool) -> pd.DataFrame:
    """All two-hop questions of facts that are set aside, or of facts that are not."""
    firsts = _only(facts.first, aside, inside=inside)
    seconds = _only(facts.second, aside, inside=inside)
    pairs = firsts.merge(seconds, left_on="object", right_on="subject", suffixes=("", "_2"))
    return pairs.rename(columns=_TWO_HOPS)


def _only(hop: pd.DataFrame, aside: pd.DataFrame, *, inside: bool) -> pd.DataFrame:
    """The facts of a hop that are set aside, or those that are not."""
    # A left join keeps the rows and their order; the indicator says which have a partner.
    merged = hop.merge(aside, how="left", on=_FACT, indicator=True)
    is_aside = merged["_merge"].to_numpy() == "both"
    return hop.loc[is_aside if inside else ~is_aside]


def _others(answers: Tokens, truth: Tokens, rng: np.random.Generator) -> Tokens:
    """For each true answer another one, all equally likely."""
    if len(truth) and len(answers) < 2:
        raise ValueError(f"{len(answers)} answers: expected at least 2, to draw a wrong one")
    # A step of 1 to n - 1 around the circle of n answers never ends where it began.
    index = np.searchsorted(answers, truth)
    step = rng.integers(1, len(answers), len(truth))
    reached = (index + step) % len(answers)
    return answers[reached]


def _questions(pairs: pd.DataFrame, labels: Tokens) -> Items:
    names = ("head", "first", "second", "bridge", "tail")
    return Items(
        question=pairs[["head", "first", "second"]].to_numpy(),
        truth=pairs[["tail"]].to_numpy(),
        label=labels[:, None],
        variables={name: pairs[name].to_numpy() for name in names},
    )
