"""C7 and C8: what a memory is made of; K1 to K7: controls that must turn out otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from experiments.reason_to_rote.case import Case
from experiments.reason_to_rote.measures import (
    DIFFERENCE,
    LOOKUP,
    MEMORIZED,
    TEST,
    Rows,
    apart,
    between,
    difference,
    different_neurons,
    donor,
    dose,
    effective_positions,
    erasure,
    erasure_of_all,
    last,
    mean,
    probe,
    probe_at_best,
    ratio,
    still_read,
    survival,
)
from experiments.reason_to_rote.neurons import TOP
from interp.experiment.checks import Check, Measure, Tables, at_least, at_most
from interp.reporting.stats import Interval

# What the paper says, and where that is known from.
SPREAD = "memory aggregates several inputs and intermediate results, not a look-up (abstract)"
SHIFTED = (
    "existing neuron activation patterns are shifted slightly, to the right, to fit the noise "
    "(abstract; the first author's thread)"
)


def of_memory(addition: Case, relations: Case) -> list[Check]:
    """The checks C7, C8 and K1 to K7."""
    found = _digits_depended_on(addition)
    found += _survival(addition, {"look-up": LOOKUP})
    found += _survival(relations, {})
    for case in (addition, relations):
        found.append(_same_donors(case))
    found += _neurons(addition)
    found += _choices_of_neurons(addition)
    found += _lookup_controls(addition)
    found += _untrained_controls(addition, relations)
    found += _noise_free_controls(addition)
    for case in (addition, relations):
        found += _removal_controls(case)
    return found


def _digits_depended_on(addition: Case) -> list[Check]:
    """C7a and C7b, of FDA alone: their thresholds are numbers of digits."""
    inputs = len(addition.reasoning.inputs)

    def depended_on(of: Rows, *, less_test: bool = False) -> Measure:
        return effective_positions(inputs=inputs, less_test=less_test, depth=0, **of)

    figure = "figures/positions.png"
    return [
        Check(
            id="C7a FDA",
            statement="the effective number of input digits (of 8 in four-digit sums) that "
            "memorized answers depend on is {threshold} (as for a look-up)",
            measure=depended_on(addition.end),
            # Pilots measured 6.5 and 7.1 of the 8 digits for memorized answers; test answers, whose
            # first digit needs the two units digits only, depended on 2.0.
            threshold=at_least(4.5),
            evidence=figure,
            controls={"look-up": depended_on(LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7b FDA",
            statement="the effective number of input digits that memorized answers depend on, "
            "minus that of test answers, is {threshold} (as for a look-up)",
            measure=depended_on(addition.end, less_test=True),
            threshold=at_least(2),
            evidence=figure,
            controls={"look-up": depended_on(LOOKUP, less_test=True)},
            paper=SPREAD,
        ),
    ]


def _survival(case: Case, others: Mapping[str, Rows]) -> list[Check]:
    """C7c and C7d; `others` are models that are reported with the one of the case."""
    figure = "figures/perturbed.png"
    token = {"FDA": "digit", "THR": "token"}[case.name]
    unlike = " (unlike for a look-up)" if others else ""
    return [
        Check(
            id=f"C7c {case.name}",
            statement=f"the rate at which memorized answers survive a changed {token} depends on "
            f"the {token}: the largest rate minus the smallest is {{threshold}}{unlike}",
            # A look-up depends on all tokens too, so that C7a and C7b cannot refute one. But none
            # of its answers survives any change: its rates are 0, and so is their range.
            measure=survival(np.ptp, **case.end),
            threshold=at_least(0.3),
            evidence=figure,
            controls={name: survival(np.ptp, **of) for name, of in others.items()},
            paper=SPREAD,
        ),
        Check(
            id=f"C7d {case.name}",
            statement=f"the largest rate, over {token}s, at which memorized answers survive a "
            f"changed {token} is {{threshold}}",
            measure=survival(np.max, **case.end),
            threshold=at_least(0.4),
            evidence=figure,
            controls={name: survival(np.max, **of) for name, of in others.items()},
            paper=SPREAD,
        ),
    ]


def _same_donors(case: Case) -> Check:
    of_memorized = donor("same", case.end)
    of_test = donor("same", case.end, TEST)
    return Check(
        id=f"C7e {case.name}",
        statement="the fraction of test answers that stay with the residual stream of an item with "
        f"the same {case.reasoning.variable}, minus that of memorized answers, is {{threshold}}",
        measure=apart("donors", "kept", of_test, of_memorized),
        threshold=at_least(0.2),
        evidence="figures/donors.png",
        controls={
            "test items": mean("donors", "kept", **of_test),
            "memorized": mean("donors", "kept", **of_memorized),
        },
        paper=SPREAD,
    )


def _neurons(addition: Case) -> list[Check]:
    """C8 of the last MLP: how memorized items differ there, and what undoes it."""
    block = addition.blocks - 1
    memorized: Rows = {"block": block, **addition.end, **MEMORIZED}
    test: Rows = {"block": block, **addition.end, **TEST}
    figure = "figures/outliers.png"

    def profile(column: str, of: Rows) -> Measure:
        return mean("outliers", column, DIFFERENCE, **of)

    def right(column: str, of: Rows) -> Measure:
        return between("outliers", column, "right", **of)

    return [
        Check(
            id="C8a FDA",
            statement="the mean |z| of the last MLP's neurons on memorized items, divided by that "
            "on test items, is {threshold}",
            measure=_distance(addition.end, block),
            threshold=at_least(1.3),
            evidence=figure,
            controls={"without noise": _distance(addition.noise_free, block)},
            paper=SHIFTED,
        ),
        Check(
            id="C8b FDA",
            statement="the correlation of the last MLP's activations on a memorized item with "
            "their mean on clean items with the same digits is {threshold}",
            measure=profile("profile", memorized),
            threshold=at_least(0.6),
            evidence=figure,
            controls={
                # Activations of any two groups correlate, because some neurons are always large.
                # The profile counts as kept only if it is nearer to its own group.
                "with a group of another answer": profile("profile_of_other", memorized),
                "test items": profile("profile", test),
            },
            paper=SHIFTED,
        ),
        Check(
            id="C8d FDA",
            # The only reset in which no neuron is chosen, by the label or otherwise: it cannot
            # succeed because of the choice.
            statement="the fraction of memorized items that get their true answer when the whole "
            "last MLP is reset is {threshold}",
            measure=mean("doses", "true", **dose("all", addition.neurons, block)),
            threshold=at_least(0.85),
            evidence="figures/doses.png",
            controls={"first MLP": mean("doses", "true", **dose("all", addition.neurons, 0))},
            paper=SHIFTED,
        ),
        Check(
            id="C8e FDA",
            statement=f"of the {TOP} neurons that contribute most to a memorized answer, the "
            "fraction shifted to the right, minus that of all neurons, is {threshold}",
            # Beyond all neurons, because the shifts of a whole layer may lean to one side without
            # any of them being chosen.
            measure=right("right_of_top", memorized),
            threshold=at_least(0.05),
            evidence=figure,
            controls={
                f"the {TOP} whose shift writes most": right("right_of_written", memorized),
                "test items, towards a random wrong digit": right("right_of_top", test),
            },
            paper=SHIFTED,
        ),
    ]


def _distance(of: Rows, block: int) -> Callable[[Tables], Interval]:
    """How far memorized items are from their group, in units of how far test items are."""
    memorized = {"block": block, **of, **MEMORIZED}
    test = {"block": block, **of, **TEST}
    return ratio("outliers", "mean_abs_z", memorized, test)


def _choices_of_neurons(addition: Case) -> list[Check]:
    """C8c, f, g and h: a few neurons of the last MLP are reset, chosen in three ways."""
    block = addition.blocks - 1
    figure = "figures/doses.png"
    reset = (
        f"the fraction of memorized items that get their true answer when {TOP} neurons of the "
        "last MLP are reset"
    )
    less_random = f"minus that with {TOP} random ones, is {{threshold}}"

    def beyond_random(selection: str) -> Measure:
        return difference("doses", "true", dose(selection, TOP, block), dose("random", TOP, block))

    def true(selection: str) -> Measure:
        return mean("doses", "true", **dose(selection, TOP, block))

    random = {"random": true("random")}
    on_test: Rows = {"selection": "largest", "k": TOP, "block": block, **addition.end, **TEST}
    shared: Rows = {"block": block, **addition.end}
    return [
        Check(
            id="C8c FDA",
            statement=f"{reset}, which are chosen for each item by what they add to its label "
            f"minus its true answer, {less_random}",
            measure=beyond_random("largest"),
            threshold=at_least(0.6),
            evidence=figure,
            controls={
                "chosen so": true("largest"),
                **random,
                "test items keep theirs": mean("doses", "true", **on_test),
            },
            paper=SHIFTED,
        ),
        Check(
            id="C8f FDA",
            statement=f"{reset}, the same for all items (chosen on the other half of them), "
            f"{less_random}",
            measure=beyond_random("fixed"),
            threshold=at_least(0.6),
            evidence=figure,
            controls={"chosen so": true("fixed"), **random},
            paper=SHIFTED,
            source="chosen",
        ),
        Check(
            id="C8g FDA",
            statement=f"{reset}, which are chosen for each item by the size of what their shift "
            f"writes, without its label, {less_random}",
            measure=beyond_random("most written"),
            threshold=at_least(0.6),
            evidence=figure,
            controls={"chosen so": true("most written"), **random},
            paper=SHIFTED,
            source="chosen",
        ),
        Check(
            id="C8h FDA",
            statement=f"the fraction of the last MLP's neurons that are among the {TOP} first "
            "contributors of any memorized item is {threshold} (otherwise they are few for an "
            "item, not for the memory)",
            measure=different_neurons("items", **shared),
            threshold=at_most(0.1),
            evidence="figures/shared.png",
            controls={"drawn at random": different_neurons("by chance", **shared)},
            paper=SHIFTED,
            source="chosen",
        ),
    ]


def _lookup_controls(addition: Case) -> list[Check]:
    return [
        Check(
            id="K1 look-up, C5",
            statement="of a look-up planted next to the network, the fraction of answers that stay "
            "without the subspace of the digit is {threshold}",
            measure=erasure("class means", LOOKUP),
            threshold=at_least(0.95),
            evidence="figures/erasing.png",
            controls={"test items": erasure("class means", LOOKUP, TEST)},
            paper=None,
            source="chosen",
        ),
        Check(
            id="K2 look-up, C7",
            statement="the largest rate, over digits, at which the answers of a planted look-up "
            "survive a changed digit is {threshold}",
            measure=survival(np.max, **LOOKUP),
            threshold=at_most(0.1),
            evidence="figures/perturbed.png",
            controls={
                "positions it depends on": effective_positions(
                    inputs=len(addition.reasoning.inputs), depth=0, **LOOKUP
                ),
                "memory": survival(np.max, **addition.end),
            },
            paper=None,
            source="chosen",
        ),
    ]


def _untrained_controls(addition: Case, relations: Case) -> list[Check]:
    """K3: what a probe reads of an untrained model, where it reads of the trained one."""

    def digit(of: Rows, *, apart: bool) -> Measure:
        read = addition.reasoning
        return probe(read.variable, 1.0, position=read.read, of=of, apart=apart)

    def bridge(of: Rows, *, apart: bool) -> Measure:
        read = relations.reasoning
        return probe_at_best(read.variable, position=read.read, of=of, apart=apart)

    found: list[Check] = []
    # A tenth above what guessing gives in `small`: a digit has ten values, a bridge twenty.
    for case, read, threshold in ((addition, digit, 0.2), (relations, bridge, 0.15)):
        for kind, is_apart in (("new items", False), ("new inputs", True)):
            tested_on = "combinations of inputs" if is_apart else "items"
            found.append(
                Check(
                    id=f"K3 untrained {case.name}, {kind}",
                    statement="in an untrained model, the accuracy of a probe for the "
                    f"{case.reasoning.variable} on {tested_on} that it was not trained on is "
                    "{threshold}",
                    measure=read(case.untrained, apart=is_apart),
                    threshold=at_most(threshold),
                    evidence="figures/decoding.png",
                    controls={"trained": read(case.end, apart=is_apart)},
                    paper=None,
                    source="chosen",
                )
            )
    return found


def _noise_free_controls(addition: Case) -> list[Check]:
    block = addition.blocks - 1
    return [
        Check(
            id="K4 without noise",
            statement="in a model trained with right labels only, the fraction of noisy items that "
            "get their wrong label is {threshold}",
            # If right labels alone gave some wrong ones, these could be guessed, and would need no
            # memory.
            measure=last("memorized", **addition.noise_free),
            threshold=at_most(0.02),
            evidence="figures/learning.png",
            controls={"test": last("test", **addition.noise_free)},
            paper=None,
            source="chosen",
        ),
        Check(
            id="K5 without noise",
            statement="in the model trained (for fewer steps) with right labels only, the mean |z| "
            "of the last MLP's neurons on the noisy items, divided by that on test items, is "
            "{threshold}: they are not outliers",
            measure=_distance(addition.noise_free, block),
            threshold=at_most(1.15),
            evidence="figures/outliers.png",
            controls={"with noise": _distance(addition.end, block)},
            paper=None,
            source="chosen",
        ),
    ]


def _removal_controls(case: Case) -> list[Check]:
    """K6 and K7: whether what is removed can still be read, so that it was not erased."""
    of = case.end
    statement = (
        f"the accuracy of a new probe for the {case.reasoning.variable} {{without}}, minus that of "
        "always saying the most frequent one, is {{threshold}} (otherwise it is not erased, and "
        "what is lost does not show that memory needs it)"
    )
    return [
        Check(
            id=f"K6 {case.name}, INLP",
            statement=statement.format(without="after the last round of INLP"),
            measure=still_read("INLP", of),
            threshold=at_most(0.1),
            evidence="figures/erased.png",
            controls={
                "memorized answers that stay": erasure_of_all("INLP", of),
                "random directions of that rank": erasure_of_all("random for INLP", of),
            },
            paper=None,
            source="chosen",
        ),
        Check(
            id=f"K7 {case.name}, class means",
            statement=statement.format(without="without the span of its class means"),
            measure=still_read("class means", of),
            threshold=at_most(0.1),
            evidence="figures/erased.png",
            controls={"memorized answers that stay": erasure("class means", of)},
            paper=None,
            source="chosen",
        ),
    ]
