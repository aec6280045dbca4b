"""C1 to C6: is reasoning learned first, does it stay, and do memorized answers depend on it?"""

from __future__ import annotations

from typing import Any

from experiments.reason_to_rote.case import Case
from experiments.reason_to_rote.measures import (
    FAITHFUL,
    FEWEST_EDGES,
    LOOKUP,
    MEMORIZED,
    TEST,
    Rows,
    at_first,
    before_memory,
    component_correlation,
    difference,
    donor,
    erased_variance,
    erasure,
    faithfulness,
    if_removed,
    largest,
    last,
    less,
    mean,
    of_subspaces,
    overlap,
    overlap_if_faithful,
    overlap_of_smallest,
    probe,
    probe_at_best,
    steps_ratio,
)
from experiments.reason_to_rote.tasks import PASSED
from interp.experiment.checks import Check, Measure, above, at_least, at_most, below

# What the paper says, and where that is known from.
PHASES = "generalize first, memorize later (summaries by others)"
BENIGN = "memorizing often leaves generalizable reasoning intact (abstract)"
COMPUTED = "intermediate results are still computed when the memorized label is said (abstract)"
LATE = "the noisy label is written in late layers (summaries by others)"
HARMS = "intervening on reasoning hurts memorization (abstract)"
CIRCUITS = "generalization and memorization circuits overlap strongly (summaries by others)"

BEST_ON_TEST = "where it is read best on test items (before the last MLP)"


def of_reasoning(addition: Case, relations: Case) -> list[Check]:
    """The checks C1 to C6, those of both tasks next to each other."""
    cases = (addition, relations)
    found: list[Check] = []
    for case in cases:
        found += _learning_phases(case)
    for case in cases:
        found += _reasoning_stays(case)
    found.append(_out_of_distribution(relations))
    found += _intermediate_digit(addition)
    found += _intermediate_bridge(relations)
    for case in cases:
        found.append(_answer_is_formed(case))
    for case in cases:
        found += _noisy_answer(case)
    for case in cases:
        found += _erasing(case)
    for case in cases:
        found.append(_donors(case))
    for case in cases:
        found += _edges(case)
    for case in cases:
        found.append(_components(case))
    return found


def _learning_phases(case: Case) -> list[Check]:
    """C1: what is memorized when the test is first passed, and how much later half is."""
    curve = "figures/learning.png"
    when = f"when the test accuracy first reaches {PASSED:g}, "
    memorized = at_first("memorized", PASSED, **case.end)
    corrected = at_first("corrected", PASSED, **case.end)
    return [
        Check(
            id=f"C1a {case.name}",
            statement=f"{when}the fraction of noisy items that are memorized is {{threshold}}",
            measure=memorized,
            threshold=at_most(0.05),
            evidence=curve,
            controls={"corrected then": corrected},
            paper=PHASES,
        ),
        Check(
            id=f"C1b {case.name}",
            statement=f"{when}the fraction of noisy items that get their true answer is "
            "{threshold}",
            measure=corrected,
            threshold=at_least(0.8),
            evidence=curve,
            controls={
                "memorized then": memorized,
                "largest at any time": largest("corrected", **case.end),
                "at the end": last("corrected", **case.end),
            },
            paper=PHASES,
        ),
        Check(
            id=f"C1c {case.name}",
            statement="the number of steps until half of the noisy items are memorized, divided by "
            f"the number until the test accuracy is {PASSED:g}, is {{threshold}}",
            measure=steps_ratio(0.5, PASSED, **case.end),
            threshold=at_least(2),
            # At 1 or less, memory comes first or at the same time, which is the opposite; in
            # between, the order is as claimed but the phases overlap.
            opposite=at_most(1),
            evidence=curve,
            controls={},
            paper=PHASES,
        ),
    ]


def _reasoning_stays(case: Case) -> list[Check]:
    """C2: the test accuracy at the end, and what memorizing cost of it."""
    curve = "figures/learning.png"
    test = last("test", **case.end)
    noise_free = last("test", **case.noise_free)
    corrected = {"corrected": last("corrected", **case.end)}
    return [
        Check(
            id=f"C2a {case.name}",
            statement="at the end of training the test accuracy is {threshold}",
            measure=test,
            threshold=at_least(0.93),
            evidence=curve,
            controls={"trained without wrong labels": noise_free, **corrected},
            paper=BENIGN,
        ),
        Check(
            id=f"C2b {case.name}",
            statement="at the end of training "
            "the fraction of noisy items that are memorized is {threshold}",
            measure=last("memorized", **case.end),
            threshold=at_least(0.95),
            evidence=curve,
            controls=corrected,
            paper=BENIGN,
        ),
        Check(
            id=f"C2c {case.name}",
            statement="the cost of memory, which is the test accuracy of a model trained without "
            "wrong labels minus that of the model trained with them, is {threshold}",
            # Both models answer the same test items, but only their shares are kept: the interval
            # is that of two samples, which is wider.
            measure=less(noise_free, test),
            threshold=above(0),
            opposite=below(0),
            evidence=curve,
            controls={
                "without wrong labels": noise_free,
                "with wrong labels": test,
                "largest with at most 5% of them memorized": before_memory(
                    "test", 0.05, **case.end
                ),
            },
            paper=BENIGN,
            source="chosen",
        ),
    ]


def _out_of_distribution(relations: Case) -> Check:
    """Whether the reasoning that stays also answers questions of facts that were never joined."""
    return Check(
        id="C2d THR",
        statement="at the end of training the accuracy on questions whose facts occur in no other "
        "question is {threshold}",
        measure=last("ood", **relations.end),
        threshold=at_least(0.93),
        evidence="figures/learning.png",
        controls={
            "trained without wrong labels": last("ood", **relations.noise_free),
            "test items": last("test", **relations.end),
        },
        paper=BENIGN,
        source="chosen",
    )


def _intermediate_digit(addition: Case) -> list[Check]:
    """C3 of FDA: what probes read after the first block."""
    of = addition.reasoning

    def read(rows: Rows = addition.end, **options: Any) -> Measure:
        return probe(of.variable, 1.0, position=of.read, of=rows, **options)

    figure = "figures/decoding.png"
    return [
        Check(
            id="C3a FDA",
            statement="on memorized items, "
            "the accuracy of a probe for the true digit after the first block is {threshold}",
            measure=read(),
            threshold=at_least(0.9),
            evidence=figure,
            controls={
                "test items": read(**TEST),
                "untrained": read(addition.untrained),
                "shuffled labels": read(column="shuffled"),
            },
            paper=COMPUTED,
        ),
        Check(
            id="C3b FDA",
            statement="the accuracy of the same probe, trained on shuffled labels, is {threshold}",
            measure=read(column="shuffled"),
            threshold=at_most(0.2),
            evidence=figure,
            controls={"true labels": read()},
            paper=COMPUTED,
        ),
        Check(
            id="C3c FDA",
            statement="on memorized items with combinations of inputs that the probe was not "
            "trained on, its accuracy for the true digit is {threshold}",
            measure=read(apart=True),
            threshold=at_least(0.9),
            evidence=figure,
            controls={
                "test items": read(**TEST, apart=True),
                "untrained": read(addition.untrained, apart=True),
            },
            paper=COMPUTED,
        ),
    ]


def _intermediate_bridge(relations: Case) -> list[Check]:
    """C3 of THR: what probes read at the last token of the question.

    At the token before, which completes the inputs of the bridge, a memorized question has the same
    activations as clean questions that begin alike: what is read there says nothing about memory.
    """
    of = relations.reasoning

    def read(rows: Rows = relations.end, **options: Any) -> Measure:
        return probe_at_best(of.variable, position=of.read, of=rows, **options)

    figure = "figures/decoding.png"
    return [
        Check(
            id="C3a THR",
            statement="on memorized items, the accuracy of a probe for the bridge at the last "
            f"token of the question, {BEST_ON_TEST}, is {{threshold}}",
            measure=read(),
            threshold=at_least(0.95),
            evidence=figure,
            controls={
                "test items": read(**TEST),
                "untrained": read(relations.untrained),
                "shuffled labels": read(column="shuffled"),
            },
            paper=COMPUTED,
        ),
        Check(
            id="C3c THR",
            statement="on memorized items with combinations of inputs that the probe was not "
            "trained on, its accuracy for the bridge is {threshold}",
            measure=read(apart=True),
            threshold=at_least(0.95),
            evidence=figure,
            controls={
                "test items": read(**TEST, apart=True),
                "untrained": read(relations.untrained, apart=True),
            },
            paper=COMPUTED,
        ),
    ]


def _answer_is_formed(case: Case) -> Check:
    """C3d: whether the true answer can be read where the wrong one is said."""
    of = case.reasoning

    def read(reading: str = "true", **options: Any) -> Measure:
        return probe_at_best(of.result, reading, position=of.read, of=case.end, **options)

    return Check(
        id=f"C3d {case.name}",
        statement="the accuracy of a probe for the true answer at the last token of the question, "
        f"{BEST_ON_TEST}, on memorized items minus on test items, is {{threshold}}",
        # The depth is chosen on test items, which favours these: the choice errs against the claim.
        measure=less(read(), read(**TEST)),
        # More than 20 points below is where the claim counts as refuted; answers of memorized items
        # are expected to be read somewhat worse.
        threshold=at_least(-0.2),
        evidence="figures/decoding.png",
        controls={
            "memorized items": read(),
            "test items": read(**TEST),
            "noisy answer instead, memorized items": read("noisy"),
        },
        paper=COMPUTED,
    )


def _noisy_answer(case: Case) -> list[Check]:
    """C4: whether the wrong answer appears in the last MLP."""
    of = case.reasoning
    # Depths are counted in blocks: half a block before the end is behind the last attention.
    before = case.blocks - 0.5
    after = float(case.blocks)

    def read(depth: float, reading: str = "true") -> Measure:
        return probe(of.result, depth, reading, position=of.read, of=case.end)

    figure = "figures/decoding.png"
    return [
        Check(
            id=f"C4a {case.name}",
            statement="before the last MLP, the fraction of memorized items of which a probe reads "
            "the noisy answer is {threshold}",
            measure=read(before, "noisy"),
            threshold=at_most(0.1),
            evidence=figure,
            controls={"true answer": read(before)},
            paper=LATE,
        ),
        Check(
            id=f"C4b {case.name}",
            statement="after the last MLP, the fraction of memorized items of which a probe reads "
            "the noisy answer is {threshold}",
            measure=read(after, "noisy"),
            threshold=at_least(0.7),
            evidence=figure,
            controls={"true answer": read(after)},
            paper=LATE,
        ),
    ]


def _erasing(case: Case) -> list[Check]:
    """C5a, b, c, e and f: the memorized answers that are lost without a subspace after the first
    block, next to those lost without others."""
    of = case.end
    variable = case.reasoning.variable
    figure = "figures/erasing.png"
    held = "share of the variance"
    contained = "of it contained"
    part = "part of class means"
    return [
        Check(
            id=f"C5a {case.name}",
            statement=f"without the {variable} subspace after the first block, "
            "the fraction of memorized answers that stay is {threshold}",
            measure=erasure("class means", of),
            threshold=at_most(0.5),
            evidence=figure,
            controls={
                "random subspace": erasure("random", of),
                "random subspace of equal variance": erasure("random, same variance", of),
                "unrelated variable": erasure("unrelated", of),
                "unrelated variable apart from it": erasure("unrelated, apart", of),
                "most variance apart from it": erasure("most variance, apart", of),
                "test items": erasure("class means", of, TEST),
            },
            paper=HARMS,
        ),
        Check(
            id=f"C5b {case.name}",
            statement="without a random subspace of the same rank, "
            "the fraction of memorized answers that stay is {threshold}",
            measure=erasure("random", of),
            threshold=at_least(0.95),
            evidence=figure,
            controls={
                "target": erasure("class means", of),
                f"{held}, target": erased_variance("class means", of),
                f"{held}, random": erased_variance("random", of),
            },
            paper=HARMS,
        ),
        Check(
            id=f"C5c {case.name}",
            statement=f"the fraction of memorized answers lost without the {variable} subspace, "
            "minus the fraction lost without a random one, is {threshold} "
            "(otherwise the claim is refuted)",
            measure=_lost_beyond("random", "class means", of),
            threshold=above(0.1),
            evidence=figure,
            controls={
                "unrelated": _lost_beyond("random", "unrelated", of),
                "unrelated, apart": _lost_beyond("random", "unrelated, apart", of),
                "most variance, apart": _lost_beyond("random", "most variance, apart", of),
                "look-up": _lost_beyond("random", "class means", LOOKUP),
            },
            paper=HARMS,
        ),
        Check(
            id=f"C5e {case.name}",
            statement=f"the fraction of memorized answers lost without the {variable} subspace, "
            "minus the fraction lost without random ones of the same rank and the same share of "
            "the variance, is {threshold}",
            # Random directions of the same rank hold a much smaller share of the variance than
            # class means do: part of what C5c finds may be the mere size of what was removed.
            measure=_lost_beyond("random, same variance", "class means", of),
            threshold=above(0.1),
            opposite=below(0),
            evidence=figure,
            controls={
                f"{held}, target": erased_variance("class means", of),
                f"{held}, random of equal variance": erased_variance("random, same variance", of),
                f"{contained}, random of equal variance": of_subspaces(
                    "of_result", "random, same variance", of
                ),
                f"{held}, unrelated": erased_variance("unrelated", of),
                f"{contained}, unrelated": of_subspaces("of_result", "unrelated", of),
                f"{held}, unrelated, apart": erased_variance("unrelated, apart", of),
            },
            paper=HARMS,
        ),
        Check(
            id=f"C5f {case.name}",
            statement=f"the fraction of memorized answers lost without random parts of the "
            f"{variable} subspace, minus the fraction lost without the directions of most variance "
            "outside it, which hold the same share of the variance, is {threshold}",
            measure=if_removed(part, of, _lost_beyond("most variance, apart", part, of)),
            threshold=above(0.1),
            opposite=below(0),
            evidence=figure,
            controls={
                f"{held}, parts": if_removed(part, of, erased_variance(part, of)),
                f"{held}, outside": erased_variance("most variance, apart", of),
                "kept without parts": if_removed(part, of, erasure(part, of)),
                "kept without those outside": erasure("most variance, apart", of),
            },
            paper=HARMS,
        ),
    ]


def _lost_beyond(control: str, removed: str, of: Rows) -> Measure:
    """Memorized answers lost without a subspace, minus those lost without a control."""
    return difference(
        "erasure",
        "kept",
        {"removed": control, "block": 0, **of, **MEMORIZED},
        {"removed": removed, "block": 0, **of, **MEMORIZED},
    )


def _donors(case: Case) -> Check:
    of = case.end
    variable = case.reasoning.variable
    return Check(
        id=f"C5d {case.name}",
        statement="the fraction of memorized answers that stay with the residual stream of an item "
        f"with the same {variable}, minus that with another {variable}, is {{threshold}}",
        # Both donors bring activations that are not the item's own. The difference is what the
        # intermediate result adds to that disturbance.
        measure=difference("donors", "kept", donor("same", of), donor("other", of)),
        threshold=at_least(0.3),
        evidence="figures/donors.png",
        controls={
            "same": mean("donors", "kept", **donor("same", of)),
            "other": mean("donors", "kept", **donor("other", of)),
        },
        paper=HARMS,
    )


def _edges(case: Case) -> list[Check]:
    """C6a at the share of edges that was fixed beforehand, C6c at the smallest one at which
    circuits can be compared."""
    of = case.end
    items = case.circuit_items
    premise = (
        f"where both circuits have at least {FEWEST_EDGES} edges and give at least {FAITHFUL:g} of "
        "the model's effect on their own items"
    )
    compared = "with those of test items, minus that with those of random prompts, is {threshold}"
    return [
        Check(
            id=f"C6a {case.name}",
            statement="the intersection over union of the top 10% of edges of memorized items "
            f"{compared} ({premise})",
            measure=overlap_if_faithful(0.1, items, "random prompts", **of),
            threshold=above(0.1),
            evidence="figures/circuits.png",
            controls={
                "with test items": overlap(0.1, items, **of),
                "with random prompts": overlap(0.1, items, other="random prompts", **of),
                "untrained": overlap(0.1, items, other="untrained", **of),
                "effect of the circuit of memorized items": faithfulness("memorized", 0.1, **of),
                "effect of the circuit of test items": faithfulness("test", 0.1, **of),
            },
            paper=CIRCUITS,
        ),
        Check(
            id=f"C6c {case.name}",
            statement="the intersection over union of the edges of memorized items "
            f"{compared} (for the smallest share of edges, {premise})",
            measure=overlap_of_smallest(items, "random prompts", **of),
            threshold=above(0.1),
            evidence="figures/faithfulness.png",
            controls={
                "effect of half of the edges, memorized items": faithfulness(
                    "memorized", 0.5, **of
                ),
                "effect of half of the edges, test items": faithfulness("test", 0.5, **of),
            },
            paper=CIRCUITS,
        ),
    ]


def _components(case: Case) -> Check:
    of = case.end
    return Check(
        id=f"C6b {case.name}",
        statement="the correlation, over components, between the memorized answers and the test "
        "answers that are lost when a component is ablated is {threshold}",
        measure=component_correlation(**of),
        threshold=at_least(0.7),
        evidence="figures/components.png",
        controls={"heads alone": component_correlation("head", **of)},
        paper=CIRCUITS,
    )
