"""Relations between entities, and questions that join two: "two-hop relational reasoning" (THR) of
Reason to Rote (arXiv 2507.04782).

The paper's facts and splits were not found. Tokens, splits and the untyped graph follow Wang et al.
2024 (arXiv 2405.15071); the typed facts are chosen, few enough to be learned in a minute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.data.noisy import Items, noisy_rows

Tokens = Int[np.ndarray, " tokens"]
_FACT = ["subject", "relation", "object"]


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known: `first` and `second`, frames of `subject`, `relation`, `object` token ids, the
    facts that can be the first and the second hop of a question; `answers`, the tokens that a wrong
    answer is drawn from, in order; `vocabulary` counts all tokens."""

    first: pd.DataFrame
    second: pd.DataFrame
    answers: Tokens
    vocabulary: int


@dataclass(frozen=True, eq=False)
class Relations:
    """`facts` (one hop: `h r1 -> b` and `b r2 -> t`, all of them clean), and two-hop questions `h
    r1 r2 -> t`.

    `train` has wrong labels; `test` asks for pairs of facts that train does not join, though a
    large train has each of them in other questions; `ood` joins facts that no question of train
    uses. Variables: `head`, `first`, `second` (the relations), `bridge`, `tail` (the true answer).
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
    """Every head has every first relation to a random bridge, every bridge every second relation to
    a random tail. Tokens are numbered in the order heads, first relations, bridges, second
    relations, tails."""
    rng, vocabulary = np.random.default_rng(seed), heads + first + bridges + second + tails
    h, r1, b, r2, t = np.split(np.arange(vocabulary), np.cumsum([heads, first, bridges, second]))
    return Facts(_every_pair(h, r1, b, rng), _every_pair(b, r2, t, rng), t, vocabulary)


def _every_pair(
    subjects: Tokens, relations: Tokens, objects: Tokens, rng: np.random.Generator
) -> pd.DataFrame:
    subject, relation = (axis.ravel() for axis in np.meshgrid(subjects, relations, indexing="ij"))
    return pd.DataFrame(
        {"subject": subject, "relation": relation, "object": rng.choice(objects, len(subject))}
    )


def graph_facts(
    entities: int = 2000, relations: int = 200, degree: int = 20, seed: int = 0
) -> Facts:
    """A random graph (Wang et al. 2024): each entity has `degree` of the relations, each to a
    random entity; any fact can be either hop. Tokens are numbered entities first. Raises ValueError
    for a degree below 1 or above the number of relations."""
    if not 1 <= degree <= relations:
        raise ValueError(
            f"degree={degree}: expected 1 to {relations}, the number of relations, each is used once an entity"
        )
    rng = np.random.default_rng(seed)
    rows = [
        (s, entities + r, int(rng.integers(entities)))
        for s in range(entities)
        for r in rng.permutation(relations)[:degree]
    ]
    facts = pd.DataFrame(rows, columns=_FACT)
    return Facts(facts, facts, np.arange(entities), entities + relations)


def relations(
    facts: Facts, *, train: int, test: int, noise: float = 0.05, ood: float = 0.05, seed: int = 0
) -> Relations:
    """Two-hop questions over known facts.

    Args:
        train: questions to train on, of the pool that facts set aside have no part in.
        test: questions of that pool kept for the test.
        noise: share of train questions with a wrong answer, drawn evenly from the other answers; it
        stays the same.
        ood: share of facts set aside: they are trained as facts, and joined with each other in the
        questions of `ood` alone.

    Raises ValueError where the pool has too few questions, a share is outside its range, or a wrong
    answer has none to be drawn from.
    """
    rng = np.random.default_rng(seed)
    if not 0 <= ood < 1:
        raise ValueError(f"ood={ood}: expected the share of facts to set aside, from 0 to below 1")
    every = pd.concat([facts.first, facts.second]).drop_duplicates(ignore_index=True)
    aside = every.sample(round(ood * len(every)), random_state=rng)
    pool, apart = _joined(facts, aside, inside=False), _joined(facts, aside, inside=True)
    if min(train, test) < 1 or train + test > len(pool):
        raise ValueError(
            f"{train} + {test} questions: expected at least 1 of each; the facts that are not set aside make {len(pool)}"
        )
    chosen = pool.iloc[rng.permutation(len(pool))[: train + test]]
    wrong = noisy_rows(train, noise, rng)
    labels = np.array(chosen["tail"])
    labels[wrong] = _others(facts.answers, labels[wrong], rng)
    questions = _questions(chosen, labels)
    known = Items(
        every[_FACT[:2]].to_numpy(), every[["object"]].to_numpy(), every[["object"]].to_numpy(), {}
    )
    trained, held_out = (
        questions.rows(np.arange(train)),
        questions.rows(np.arange(train, train + test)),
    )
    return Relations(
        known, trained, held_out, _questions(apart, apart["tail"].to_numpy()), facts.vocabulary
    )


def tails(
    facts: Items, question: Int[np.ndarray, "items question"]
) -> Int[np.ndarray, "items answer"]:
    """The true answers to two-hop questions; -1 where a fact does not exist."""
    known = {
        (subject, relation): tail
        for (subject, relation), (tail,) in zip(
            facts.question.tolist(), facts.truth.tolist(), strict=True
        )
    }
    return np.array(
        [[known.get((known.get((h, r1), -1), r2), -1)] for h, r1, r2 in question.tolist()]
    )


def _joined(facts: Facts, aside: pd.DataFrame, *, inside: bool) -> pd.DataFrame:
    """All two-hop questions of facts that are set aside, or of facts that are not."""
    firsts, seconds = (_only(hop, aside, inside=inside) for hop in (facts.first, facts.second))
    pairs = firsts.merge(seconds, left_on="object", right_on="subject", suffixes=("", "_2"))
    return pairs.rename(
        columns={
            "subject": "head",
            "relation": "first",
            "relation_2": "second",
            "object": "bridge",
            "object_2": "tail",
        }
    )


def _only(hop: pd.DataFrame, aside: pd.DataFrame, *, inside: bool) -> pd.DataFrame:
    found = hop.merge(aside, how="left", on=_FACT, indicator=True)["_merge"].to_numpy() == "both"
    return hop.loc[found if inside else ~found]


def _others(answers: Tokens, truth: Tokens, rng: np.random.Generator) -> Tokens:
    """Another answer than the true one, each as likely."""
    if len(truth) and len(answers) < 2:
        raise ValueError(f"{len(answers)} answers: expected at least 2, to draw a wrong one")
    place = np.searchsorted(answers, truth)
    return answers[(place + rng.integers(1, len(answers), len(truth))) % len(answers)]


def _questions(pairs: pd.DataFrame, labels: Tokens) -> Items:
    variables = {
        name: pairs[name].to_numpy() for name in ("head", "first", "second", "bridge", "tail")
    }
    return Items(
        pairs[["head", "first", "second"]].to_numpy(),
        pairs[["tail"]].to_numpy(),
        labels[:, None],
        variables,
    )
