"""C1 to C6: reasoning is learned first and stays, and memorized answers depend on it."""

from __future__ import annotations

from typing import Any

from experiments.reason_to_rote.measures import (
    FDA,
    LOOKUP,
    MEMORIZED,
    TEST,
    THR,
    Measure,
    Rows,
    at_first,
    component_correlation,
    difference,
    donor,
    erasure,
    largest,
    last,
    mean,
    overlap,
    probe,
    steps_ratio,
)
from interp.experiment.checks import Check, above, at_least, at_most

# What the paper says, and where that is known from.
PHASES = "generalize first, memorize later (summaries by others)"
BENIGN = "memorizing often leaves generalizable reasoning intact (abstract)"
COMPUTED = "intermediate results are still computed when the memorized label is said (abstract)"
LATE = "the noisy label is written in late layers (summaries by others)"
HARMS = "intervening on reasoning hurts memorization (abstract)"
CIRCUITS = "generalization and memorization circuits overlap strongly (summaries by others)"

TASKS = {"FDA": FDA, "THR": THR}


def of_reasoning(*, digit: str, position: int, blocks: int) -> list[Check]:
    """The checks C1 to C6.

    Args:
        digit: the variable of FDA that the token which is read shows.
        position: the position that predicts this token.
        blocks: number of blocks of the model of FDA.
    """
    variables = {"FDA": digit, "THR": "bridge"}
    found = _learning_phases()
    for name in TASKS:
        found += _reasoning_stays(name)
    found += _intermediate_results(digit, position)
    found += _noisy_digit(digit, position, float(blocks))
    for name in TASKS:
        found += _erasing(name, variables[name])
    found.append(_donors())
    for name in TASKS:
        found.append(_edges(name))
    for name in TASKS:
        found.append(_components(name))
    return found


def _learning_phases() -> list[Check]:
    curve = "figures/learning.png"
    return [
        Check(
            id="C1a FDA",
            statement="when the test accuracy first reaches 0.9, "
            "the fraction of noisy items that are memorized is {threshold}",
            measure=at_first("memorized", 0.9, 1.0, **FDA),
            threshold=at_most(0.05),
            evidence=curve,
            controls={"corrected then": at_first("corrected", 0.9, 0.0, **FDA)},
            paper=PHASES,
        ),
        Check(
            id="C1b FDA",
            statement="when the test accuracy first reaches 0.9, "
            "the fraction of noisy items that get their true answer is {threshold}",
            measure=at_first("corrected", 0.9, 0.0, **FDA),
            threshold=at_least(0.8),
            evidence=curve,
            controls={"memorized then": at_first("memorized", 0.9, 1.0, **FDA)},
            paper=PHASES,
        ),
        Check(
            id="C1c FDA",
            statement="the number of steps until half of the noisy items are memorized, "
            "divided by the number until the test accuracy is 0.9, is {threshold}",
            measure=steps_ratio(**FDA),
            threshold=at_least(2),
            evidence=curve,
            controls={},
            paper=PHASES,
        ),
        Check(
            id="C1a THR",
            statement="when the test accuracy first reaches 0.8, "
            "the fraction of noisy items that are memorized is {threshold}",
            measure=at_first("memorized", 0.8, 1.0, **THR),
            threshold=at_most(0.35),
            evidence=curve,
            controls={"corrected then": at_first("corrected", 0.8, 0.0, **THR)},
            paper=PHASES,
        ),
        Check(
            id="C1b THR",
            statement="the largest fraction of noisy items that get their true answer "
            "at one time during training is {threshold}",
            measure=largest("corrected", **THR),
            threshold=at_least(0.5),
            evidence=curve,
            controls={"at the end": last("corrected", **THR)},
            paper=PHASES,
        ),
    ]


def _reasoning_stays(name: str) -> list[Check]:
    curve = "figures/learning.png"
    of = TASKS[name]
    corrected = {"corrected": last("corrected", **of)}
    return [
        Check(
            id=f"C2a {name}",
            statement="at the end of training the test accuracy is {threshold}",
            measure=last("test", **of),
            threshold=at_least(0.93),
            evidence=curve,
            controls=corrected,
            paper=BENIGN,
        ),
        Check(
            id=f"C2b {name}",
            statement="at the end of training "
            "the fraction of noisy items that are memorized is {threshold}",
            measure=last("memorized", **of),
            threshold=at_least(0.95),
            evidence=curve,
            controls=corrected,
            paper=BENIGN,
        ),
    ]


def _intermediate_results(digit: str, position: int) -> list[Check]:
    """C3: what probes read after the first block."""

    def read_digit(of: Rows = FDA, **options: Any) -> Measure:
        return probe(digit, 1.0, position=position, of=of, **options)

    def read_bridge(of: Rows = THR, **options: Any) -> Measure:
        return probe("bridge", 1.0, position=1, of=of, **options)

    untrained_digit = {**FDA, "stage": "untrained"}
    untrained_bridge = {**THR, "stage": "untrained"}
    figure = "figures/decoding.png"
    return [
        Check(
            id="C3a FDA",
            statement="on memorized items, "
            "the accuracy of a probe for the true digit after the first block is {threshold}",
            measure=read_digit(),
            threshold=at_least(0.9),
            evidence=figure,
            controls={
                "test items": read_digit(**TEST),
                "untrained": read_digit(untrained_digit),
                "shuffled labels": read_digit(column="shuffled"),
            },
            paper=COMPUTED,
        ),
        Check(
            id="C3b FDA",
            statement="the accuracy of the same probe, trained on shuffled labels, is {threshold}",
            measure=read_digit(column="shuffled"),
            threshold=at_most(0.2),
            evidence=figure,
            controls={"true labels": read_digit()},
            paper=COMPUTED,
        ),
        Check(
            id="C3a THR",
            statement="on memorized items, "
            "the accuracy of a probe for the bridge after the first block is {threshold}",
            measure=read_bridge(),
            threshold=at_least(0.95),
            evidence=figure,
            controls={
                "test items": read_bridge(**TEST),
                "untrained": read_bridge(untrained_bridge),
                "shuffled labels": read_bridge(column="shuffled"),
            },
            paper=COMPUTED,
        ),
        Check(
            id="C3c FDA",
            statement="on memorized items with combinations of inputs that the probe was not "
            "trained on, its accuracy for the true digit is {threshold}",
            measure=read_digit(apart=True),
            threshold=at_least(0.9),
            evidence=figure,
            controls={
                "test items": read_digit(**TEST, apart=True),
                "untrained": read_digit(untrained_digit, apart=True),
            },
            paper=COMPUTED,
        ),
        Check(
            id="C3c THR",
            statement="on memorized items with combinations of inputs that the probe was not "
            "trained on, its accuracy for the bridge is {threshold}",
            measure=read_bridge(apart=True),
            threshold=at_least(0.95),
            evidence=figure,
            controls={
                "test items": read_bridge(**TEST, apart=True),
                "untrained": read_bridge(untrained_bridge, apart=True),
            },
            paper=COMPUTED,
        ),
    ]


def _noisy_digit(digit: str, position: int, blocks: float) -> list[Check]:
    """C4: whether the wrong answer appears in the last MLP."""
    before = blocks - 0.5
    figure = "figures/decoding.png"
    return [
        Check(
            id="C4a FDA",
            statement="before the last MLP, the fraction of memorized items of which a probe reads "
            "the noisy digit is {threshold}",
            measure=probe(digit, before, "noisy", position=position, of=FDA),
            threshold=at_most(0.1),
            evidence=figure,
            controls={"true digit": probe(digit, before, position=position, of=FDA)},
            paper=LATE,
        ),
        Check(
            id="C4b FDA",
            statement="after the last MLP, the fraction of memorized items of which a probe reads "
            "the noisy digit is {threshold}",
            measure=probe(digit, blocks, "noisy", position=position, of=FDA),
            threshold=at_least(0.7),
            evidence=figure,
            controls={"true digit": probe(digit, blocks, position=position, of=FDA)},
            paper=LATE,
        ),
    ]


def _erasing(name: str, variable: str) -> list[Check]:
    """C5a to C5c of one task."""
    of = TASKS[name]
    figure = "figures/erasing.png"
    return [
        Check(
            id=f"C5a {name}",
            statement=f"without the {variable} subspace after the first block, "
            "the fraction of memorized answers that stay is {threshold}",
            measure=erasure("class means", of),
            threshold=at_most(0.5),
            evidence=figure,
            controls={
                "random subspace": erasure("random", of),
                "unrelated variable": erasure("unrelated, apart", of),
                "most variance apart from it": erasure("most variance, apart", of),
                "test items": erasure("class means", of, TEST),
            },
            paper=HARMS,
        ),
        Check(
            id=f"C5b {name}",
            statement="without a random subspace of the same rank, "
            "the fraction of memorized answers that stay is {threshold}",
            measure=erasure("random", of),
            threshold=at_least(0.95),
            evidence=figure,
            controls={"target": erasure("class means", of)},
            paper=HARMS,
        ),
        Check(
            id=f"C5c {name}",
            statement=f"the fraction of memorized answers lost without the {variable} subspace, "
            "minus the fraction lost without a random one, is {threshold} "
            "(otherwise the claim is refuted)",
            measure=_lost_beyond_random("class means", of),
            threshold=above(0.1),
            evidence=figure,
            controls={
                "unrelated, apart": _lost_beyond_random("unrelated, apart", of),
                "most variance, apart": _lost_beyond_random("most variance, apart", of),
                "look-up": _lost_beyond_random("class means", LOOKUP),
            },
            paper=HARMS,
        ),
    ]


def _lost_beyond_random(removed: str, of: Rows) -> Measure:
    """Memorized answers lost without a subspace, minus those lost without a random one."""
    return difference(
        "erasure",
        "kept",
        {"removed": "random", "block": 0, **of, **MEMORIZED},
        {"removed": removed, "block": 0, **of, **MEMORIZED},
    )


def _donors() -> Check:
    return Check(
        id="C5d THR",
        statement="the fraction of memorized answers that stay with the residual stream of an item "
        "with the same bridge, minus that with another bridge, is {threshold}",
        measure=difference("donors", "kept", donor("same", THR), donor("other", THR)),
        threshold=at_least(0.3),
        evidence="figures/donors.png",
        controls={
            "same": mean("donors", "kept", **donor("same", THR)),
            "other": mean("donors", "kept", **donor("other", THR)),
        },
        paper=HARMS,
    )


def _edges(name: str) -> Check:
    of = TASKS[name]
    return Check(
        id=f"C6a {name}",
        statement="the intersection over union of the top 10% of edges of memorized items with "
        "those of test items, minus that with those of random prompts, is {threshold}",
        measure=overlap(0.1, "random prompts", **of),
        threshold=above(0.1),
        evidence="figures/circuits.png",
        controls={
            "with test items": overlap(0.1, **of),
            "with random prompts": overlap(0.1, other="random prompts", **of),
            "untrained": overlap(0.1, other="untrained", **of),
        },
        paper=CIRCUITS,
    )


def _components(name: str) -> Check:
    of = TASKS[name]
    return Check(
        id=f"C6b {name}",
        statement="the correlation, over components, between the memorized answers and the test "
        "answers that are lost when a component is ablated is {threshold}",
        measure=component_correlation(**of),
        threshold=at_least(0.7),
        evidence="figures/components.png",
        controls={"heads alone": component_correlation("head", **of)},
        paper=CIRCUITS,
    )
