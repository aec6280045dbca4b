"""C7 and C8: what a memory is made of; K1 to K5: controls that must turn out otherwise."""

from __future__ import annotations

import numpy as np

from experiments.reason_to_rote.measures import (
    FDA,
    LOOKUP,
    MEMORIZED,
    NOISE_FREE,
    TEST,
    THR,
    Rows,
    apart,
    between,
    difference,
    donor,
    dose,
    effective_positions,
    erasure,
    last,
    mean,
    probe,
    ratio,
    survival,
)
from experiments.reason_to_rote.neurons import TOP
from interp.experiment.checks import Check, at_least, at_most

# What the paper says, and where that is known from.
SPREAD = "memory aggregates several inputs and intermediate results, not a look-up (abstract)"
SHIFTED = (
    "existing neuron activation patterns are shifted slightly, to the right, to fit the noise "
    "(abstract; the first author's thread)"
)


def of_memory(*, digit: str, position: int, blocks: int, neurons: int) -> list[Check]:
    """The checks C7, C8 and K1 to K5.

    Args:
        digit, position, blocks: as for `of_reasoning`.
        neurons: number of neurons of each MLP of the model of FDA.
    """
    last_block = blocks - 1
    found = _distributed()
    found += _neurons(last_block, neurons)
    found += _lookup_controls()
    for kind in ("new items", "new inputs"):
        found.append(_untrained("FDA", digit, position, 0.2, kind))
    for kind in ("new items", "new inputs"):
        found.append(_untrained("THR", "bridge", 1, 0.15, kind))
    found += _noise_free_controls(last_block)
    return found


def _distributed() -> list[Check]:
    ablated = "figures/positions.png"
    changed = "figures/perturbed.png"
    return [
        Check(
            id="C7a FDA",
            statement="the effective number of input digits (of 8 in four-digit sums) that "
            "memorized answers depend on is {threshold} (as for a look-up)",
            measure=effective_positions(depth=0, **FDA),
            threshold=at_least(4.5),
            evidence=ablated,
            controls={"look-up": effective_positions(depth=0, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7b FDA",
            statement="the effective number of input digits that memorized answers depend on, "
            "minus that of test answers, is {threshold} (as for a look-up)",
            measure=effective_positions(depth=0, less_test=True, **FDA),
            threshold=at_least(2),
            evidence=ablated,
            controls={"look-up": effective_positions(depth=0, less_test=True, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7c FDA",
            statement="the rate at which memorized answers survive a changed digit depends on the "
            "digit: the largest rate minus the smallest is {threshold} (unlike for a look-up)",
            measure=survival(np.ptp, **FDA),
            threshold=at_least(0.3),
            evidence=changed,
            controls={"look-up": survival(np.ptp, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7d FDA",
            statement="the largest rate, over digits, at which memorized answers survive a changed "
            "digit is {threshold}",
            measure=survival(np.max, **FDA),
            threshold=at_least(0.4),
            evidence=changed,
            controls={"look-up": survival(np.max, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7e THR",
            statement="the fraction of test answers that stay with the residual stream of an item "
            "with the same bridge, minus that of memorized answers, is {threshold}",
            measure=apart("donors", "kept", donor("same", THR, TEST), donor("same", THR)),
            threshold=at_least(0.2),
            evidence="figures/donors.png",
            controls={
                "test items": mean("donors", "kept", **donor("same", THR, TEST)),
                "memorized": mean("donors", "kept", **donor("same", THR)),
            },
            paper=SPREAD,
        ),
    ]


def _neurons(block: int, neurons: int) -> list[Check]:
    """C8, of the neurons of the last MLP."""
    memorized: Rows = {"block": block, **FDA, **MEMORIZED}
    test: Rows = {"block": block, **FDA, **TEST}
    noise_free: Rows = {"block": block, **NOISE_FREE}
    figure = "figures/outliers.png"
    doses = "figures/doses.png"
    return [
        Check(
            id="C8a FDA",
            statement="the mean |z| of the last MLP's neurons on memorized items, divided by that "
            "on test items, is {threshold}",
            measure=ratio("outliers", "mean_abs_z", memorized, test),
            threshold=at_least(1.3),
            evidence=figure,
            controls={
                "without noise": ratio(
                    "outliers", "mean_abs_z", {**noise_free, **MEMORIZED}, {**noise_free, **TEST}
                )
            },
            paper=SHIFTED,
        ),
        Check(
            id="C8b FDA",
            statement="the correlation of the last MLP's activations on a memorized item with "
            "their mean on clean items with the same digits is {threshold}",
            measure=mean("outliers", "profile", **memorized),
            threshold=at_least(0.6),
            evidence=figure,
            controls={
                "with a group of another answer": mean("outliers", "profile_of_other", **memorized),
                "test items": mean("outliers", "profile", **test),
            },
            paper=SHIFTED,
        ),
        Check(
            id="C8c FDA",
            statement="the fraction of memorized items that get their true answer when the "
            f"{TOP} neurons of the last MLP that contribute most are reset, minus that with {TOP} "
            "random ones, is {threshold}",
            measure=difference(
                "doses", "true", dose("largest", TOP, block), dose("random", TOP, block)
            ),
            threshold=at_least(0.6),
            evidence=doses,
            controls={
                "largest": mean("doses", "true", **dose("largest", TOP, block)),
                "random": mean("doses", "true", **dose("random", TOP, block)),
                "test items keep theirs": mean("doses", "true", selection="largest", k=TOP, **test),
            },
            paper=SHIFTED,
        ),
        Check(
            id="C8d FDA",
            statement="the fraction of memorized items that get their true answer when the whole "
            "last MLP is reset is {threshold}",
            measure=mean("doses", "true", **dose("all", neurons, block)),
            threshold=at_least(0.85),
            evidence=doses,
            controls={"first MLP": mean("doses", "true", **dose("all", neurons, 0))},
            paper=SHIFTED,
        ),
        Check(
            id="C8e FDA",
            statement=f"of the {TOP} neurons that contribute most to a memorized answer, the "
            "fraction shifted to the right, minus that of all neurons, is {threshold}",
            measure=between("outliers", "right_of_top", "right", **memorized),
            threshold=at_least(0.05),
            evidence=figure,
            controls={
                "test items, towards a random wrong digit": between(
                    "outliers", "right_of_top", "right", **test
                )
            },
            paper=SHIFTED,
        ),
    ]


def _lookup_controls() -> list[Check]:
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
                "positions it depends on": effective_positions(depth=0, **LOOKUP),
                "memory": survival(np.max, **FDA),
            },
            paper=None,
            source="chosen",
        ),
    ]


def _untrained(name: str, variable: str, position: int, bar: float, kind: str) -> Check:
    """K3: what a probe reads of an untrained model, on new items or on new combinations of
    inputs."""
    trained = {"FDA": FDA, "THR": THR}[name]
    untrained = {**trained, "stage": "untrained"}
    new_inputs = kind == "new inputs"
    tested_on = {
        "new items": "on items that it was not trained on",
        "new inputs": "on combinations of inputs that it was not trained on",
    }
    return Check(
        id=f"K3 untrained {name}, {kind}",
        statement=f"in an untrained model, the accuracy of a probe for the {variable} "
        f"{tested_on[kind]} is {{threshold}}",
        measure=probe(variable, 1.0, position=position, of=untrained, apart=new_inputs),
        threshold=at_most(bar),
        evidence="figures/decoding.png",
        controls={"trained": probe(variable, 1.0, position=position, of=trained, apart=new_inputs)},
        paper=None,
        source="chosen",
    )


def _noise_free_controls(block: int) -> list[Check]:
    with_noise: Rows = {"block": block, **FDA}
    noise_free: Rows = {"block": block, **NOISE_FREE}
    return [
        Check(
            id="K4 without noise",
            statement="in a model trained with right labels only, the fraction of noisy items that "
            "get their wrong label is {threshold}",
            measure=last("memorized", **NOISE_FREE),
            threshold=at_most(0.02),
            evidence="figures/learning.png",
            controls={"test": last("test", **NOISE_FREE)},
            paper=None,
            source="chosen",
        ),
        Check(
            id="K5 without noise",
            statement="in the model trained (for fewer steps) with right labels only, the mean |z| "
            "of the last MLP's neurons on the noisy items, divided by that on test items, is "
            "{threshold}: they are not outliers",
            measure=ratio(
                "outliers", "mean_abs_z", {**noise_free, **MEMORIZED}, {**noise_free, **TEST}
            ),
            threshold=at_most(1.15),
            evidence="figures/outliers.png",
            controls={
                "with noise": ratio(
                    "outliers", "mean_abs_z", {**with_noise, **MEMORIZED}, {**with_noise, **TEST}
                )
            },
            paper=None,
            source="chosen",
        ),
    ]
