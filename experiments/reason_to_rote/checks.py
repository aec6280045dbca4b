"""What is checked: claims C1 to C8 of the paper, and the controls K.

What the paper claims was found in its abstract or in summaries by others; no number of it was. The thresholds are from pilots: they were
fixed before the seeds that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.reason_to_rote.measures import (
    Measure,
    apart,
    at_first,
    between,
    component_correlation,
    decoded,
    difference,
    effective_positions,
    largest,
    last,
    mean,
    overlap,
    ratio,
    steps_ratio,
    survival,
)
from interp.experiment import Source

END = {"stage": "end"}
FDA, THR = END | {"task": "FDA"}, END | {"task": "THR"}
LOOKUP = {"task": "FDA", "stage": "look-up"}
NOISE_FREE = {"task": "FDA", "stage": "without noise"}
MEM, TEST = {"set": "memorized"}, {"set": "test"}


@dataclass(frozen=True)
class Check:
    """A claim, what it is measured by on one seed, and what that is held against.

    `paper` is what the paper says and where that was found; controls of ours have none.
    """

    id: str
    statement: str
    measure: Measure
    holds: Callable[[float], bool]
    evidence: str
    controls: Mapping[str, Measure]
    paper: str | None = None
    source: Source = "found"


def at_least(value: float) -> Callable[[float], bool]:
    """The test of a threshold from below."""
    return lambda measured: measured >= value


def at_most(value: float) -> Callable[[float], bool]:
    """The test of a threshold from above."""
    return lambda measured: measured <= value


PHASES = "generalize first, memorize later (summaries by others)"
BENIGN = "memorizing often leaves generalizable reasoning intact (abstract)"
COMPUTED = "intermediate results are still computed when the memorized label is said (abstract)"
LATE = "the noisy label is written in late layers (summaries by others)"
HARMS = "intervening on reasoning hurts memorization (abstract)"
CIRCUITS = "generalization and memorization circuits overlap strongly (summaries by others)"
SPREAD = "memory aggregates several inputs and intermediate results, not a look-up (abstract)"
SHIFTED = "existing neuron activation patterns are shifted slightly, to the right, to fit the noise (abstract; the first author's thread)"


def erasure(removed: str, of: Mapping[str, Any], items: Mapping[str, Any] = MEM) -> Measure:
    """What is still said after a removal behind the first block."""
    return mean("erasure", "kept", removed=removed, block=0, **of, **items)


def donor(donors: str, of: Mapping[str, Any], items: Mapping[str, Any] = MEM) -> dict[str, Any]:
    """Rows of items patched behind the first block at the intermediate result."""
    return {"place": "intermediate", "donor": donors, "block": 0, **of, **items}


def probe(
    variable: str, depth: float, reading: str = "true", *, position: int, of: Mapping[str, Any], column: str = "accuracy", **where: Any
) -> Measure:
    """What a probe reads of memorized items, or of the set that is named; `apart` for inputs that it was not trained on."""
    rows = {**MEM, "apart": False, "variable": variable, "depth": depth, "reading": reading, "position": position}
    return decoded(column, **{**rows, **of, **where})


def dose(selection: str, k: int, block: int) -> dict[str, Any]:
    """Rows of memorized items with neurons of a block reset."""
    return {"selection": selection, "k": k, "block": block, **FDA, **MEM}


def checks(about: Mapping[str, Any]) -> list[Check]:
    """All checks of a run; `about` gives what depends on the preset: the read-out's variable and position, blocks, neurons and doses."""
    return [*_learning(), *_decoding(about), *_intervening(about), *_distributed(), *_neurons(about), *_controls(about)]


def _learning() -> list[Check]:
    curve = "figures/learning.png"
    return [
        Check(
            "C1a FDA",
            "when the test is first passed at .9, at most .05 of noisy items are memorized",
            at_first("memorized", 0.9, 1.0, **FDA),
            at_most(0.05),
            curve,
            {"corrected then": at_first("corrected", 0.9, 0.0, **FDA)},
            PHASES,
        ),
        Check(
            "C1b FDA",
            "and at least .8 of them get their true answer",
            at_first("corrected", 0.9, 0.0, **FDA),
            at_least(0.8),
            curve,
            {"memorized then": at_first("memorized", 0.9, 1.0, **FDA)},
            PHASES,
        ),
        Check(
            "C1c FDA",
            "half are memorized after at least twice the steps to pass the test",
            steps_ratio(**FDA),
            at_least(2),
            curve,
            {},
            PHASES,
        ),
        Check(
            "C1a THR",
            "when the test is first passed at .8, at most .35 of noisy items are memorized",
            at_first("memorized", 0.8, 1.0, **THR),
            at_most(0.35),
            curve,
            {"corrected then": at_first("corrected", 0.8, 0.0, **THR)},
            PHASES,
        ),
        Check(
            "C1b THR",
            "at some time at least .5 of them get their true answer",
            largest("corrected", **THR),
            at_least(0.5),
            curve,
            {"at the end": last("corrected", **THR)},
            PHASES,
        ),
        *(
            Check(
                f"C2{part} {name}",
                f"at the end {what} is at least {least}",
                last(column, **of),
                at_least(least),
                curve,
                {"corrected": last("corrected", **of)},
                BENIGN,
            )
            for name, of in (("FDA", FDA), ("THR", THR))
            for part, what, column, least in (
                ("a", "test accuracy", "test", 0.93),
                ("b", "the share of noisy items memorized", "memorized", 0.95),
            )
        ),
    ]


def _decoding(about: Mapping[str, Any]) -> list[Check]:
    digit, at, depth = about["variable"], about["position"], float(about["blocks"])
    read = {"position": at, "of": FDA}
    untrained = {"task": "FDA", "stage": "untrained"}
    bridge = {"position": 1, "of": THR}
    figure = "figures/decoding.png"
    return [
        Check(
            "C3a FDA",
            "a probe reads the true digit of memorized items behind the first block, at least .9",
            probe(digit, 1.0, **read),
            at_least(0.9),
            figure,
            {
                "test items": probe(digit, 1.0, **read, **TEST),
                "untrained": probe(digit, 1.0, position=at, of=untrained),
                "shuffled labels": probe(digit, 1.0, **read, column="shuffled"),
            },
            COMPUTED,
        ),
        Check(
            "C3b FDA",
            "a probe of shuffled labels at most .2",
            probe(digit, 1.0, **read, column="shuffled"),
            at_most(0.2),
            figure,
            {"true labels": probe(digit, 1.0, **read)},
            COMPUTED,
        ),
        Check(
            "C3a THR",
            "a probe reads the bridge of memorized items behind the first block, at least .95",
            probe("bridge", 1.0, **bridge),
            at_least(0.95),
            figure,
            {
                "test items": probe("bridge", 1.0, **bridge, **TEST),
                "untrained": probe("bridge", 1.0, position=1, of=THR | {"stage": "untrained"}),
                "shuffled labels": probe("bridge", 1.0, **bridge, column="shuffled"),
            },
            COMPUTED,
        ),
        *(
            Check(
                f"C3c {name}",
                f"and of inputs that the probe was not trained on, at least {least}",
                probe(variable, 1.0, **where, apart=True),
                at_least(least),
                figure,
                {
                    "test items": probe(variable, 1.0, **where, **TEST, apart=True),
                    "untrained": probe(variable, 1.0, **where | {"of": where["of"] | {"stage": "untrained"}}, apart=True),
                },
                COMPUTED,
            )
            for name, variable, where, least in (("FDA", digit, read, 0.9), ("THR", "bridge", bridge, 0.95))
        ),
        Check(
            "C4a FDA",
            "before the last MLP a probe reads the noisy digit of at most .1",
            probe(digit, depth - 0.5, "noisy", **read),
            at_most(0.1),
            figure,
            {"true digit": probe(digit, depth - 0.5, **read)},
            LATE,
        ),
        Check(
            "C4b FDA",
            "behind it of at least .7",
            probe(digit, depth, "noisy", **read),
            at_least(0.7),
            figure,
            {"true digit": probe(digit, depth, **read)},
            LATE,
        ),
    ]


def _intervening(about: Mapping[str, Any]) -> list[Check]:
    variables = {"FDA": about["variable"], "THR": "bridge"}
    erasing = [
        check
        for name, of in (("FDA", FDA), ("THR", THR))
        for check in (
            Check(
                f"C5a {name}",
                f"without the {variables[name]} subspace behind the first block at most .5 of memorized answers are said",
                erasure("class means", of),
                at_most(0.5),
                "figures/erasing.png",
                {
                    "random subspace": erasure("random", of),
                    "unrelated variable": erasure("unrelated, apart", of),
                    "most variance apart from it": erasure("most variance, apart", of),
                    "test items": erasure("class means", of, TEST),
                },
                HARMS,
            ),
            Check(
                f"C5b {name}",
                "without a random subspace of the same rank at least .95",
                erasure("random", of),
                at_least(0.95),
                "figures/erasing.png",
                {"target": erasure("class means", of)},
                HARMS,
            ),
            Check(
                f"C5c {name}",
                "the removal costs more than the random one and .1 (what refutes the claim otherwise)",
                difference(
                    "erasure", "kept", {"removed": "random", "block": 0, **of, **MEM}, {"removed": "class means", "block": 0, **of, **MEM}
                ),
                lambda v: v > 0.1,
                "figures/erasing.png",
                {
                    name: difference(
                        "erasure", "kept", {"removed": "random", "block": 0, **of, **MEM}, {"removed": name, "block": 0, **of, **MEM}
                    )
                    for name in ("unrelated, apart", "most variance, apart")
                }
                | {
                    "look-up": difference(
                        "erasure",
                        "kept",
                        {"removed": "random", "block": 0, **LOOKUP, **MEM},
                        {"removed": "class means", "block": 0, **LOOKUP, **MEM},
                    ),
                },
                HARMS,
            ),
        )
    ]
    return [
        *erasing,
        Check(
            "C5d THR",
            "a donor with the same bridge keeps at least .3 more memorized answers than one with another",
            difference("donors", "kept", donor("same", THR), donor("other", THR)),
            at_least(0.3),
            "figures/donors.png",
            {"same": mean("donors", "kept", **donor("same", THR)), "other": mean("donors", "kept", **donor("other", THR))},
            HARMS,
        ),
        *(
            Check(
                f"C6a {name}",
                "the top 10% of edges overlap by more than .1 over what random prompts give",
                overlap(0.1, "random prompts", **of),
                lambda v: v > 0.1,
                "figures/circuits.png",
                {
                    "with test items": overlap(0.1, **of),
                    "with random prompts": overlap(0.1, other="random prompts", **of),
                    "untrained": overlap(0.1, other="untrained", **of),
                },
                CIRCUITS,
            )
            for name, of in (("FDA", FDA), ("THR", THR))
        ),
        *(
            Check(
                f"C6b {name}",
                "what ablating a component costs memorized and test items correlates at .7 or more",
                component_correlation(**of),
                at_least(0.7),
                "figures/components.png",
                {"heads alone": component_correlation("head", **of)},
                CIRCUITS,
            )
            for name, of in (("FDA", FDA), ("THR", THR))
        ),
    ]


def _distributed() -> list[Check]:
    ablated, changed = "figures/positions.png", "figures/perturbed.png"
    return [
        Check(
            "C7a FDA",
            "memorized answers depend on at least 4.5 of 8 digits (as a look-up would)",
            effective_positions(depth=0, **FDA),
            at_least(4.5),
            ablated,
            {"look-up": effective_positions(depth=0, **LOOKUP)},
            SPREAD,
        ),
        Check(
            "C7b FDA",
            "on at least 2 digits more than test answers (as a look-up would)",
            effective_positions(depth=0, less_test=True, **FDA),
            at_least(2),
            ablated,
            {"look-up": effective_positions(depth=0, less_test=True, **LOOKUP)},
            SPREAD,
        ),
        Check(
            "C7c FDA",
            "unlike a look-up they survive a changed digit, with rates that differ by .3 or more between digits",
            survival(np.ptp, **FDA),
            at_least(0.3),
            changed,
            {"look-up": survival(np.ptp, **LOOKUP)},
            SPREAD,
        ),
        Check(
            "C7d FDA",
            "and reach .4 or more at some digit",
            survival(np.max, **FDA),
            at_least(0.4),
            changed,
            {"look-up": survival(np.max, **LOOKUP)},
            SPREAD,
        ),
        Check(
            "C7e THR",
            "a donor with the same bridge costs memorized items at least .2 more than test items",
            apart("donors", "kept", donor("same", THR, TEST), donor("same", THR)),
            at_least(0.2),
            "figures/donors.png",
            {"test items": mean("donors", "kept", **donor("same", THR, TEST)), "memorized": mean("donors", "kept", **donor("same", THR))},
            SPREAD,
        ),
    ]


def _neurons(about: Mapping[str, Any]) -> list[Check]:
    block, top, width = about["blocks"] - 1, about["top"], about["neurons"]
    memorized, test = {"block": block, **FDA, **MEM}, {"block": block, **FDA, **TEST}
    free = {"block": block, **NOISE_FREE}
    figure, doses = "figures/outliers.png", "figures/doses.png"
    return [
        Check(
            "C8a FDA",
            "mean |z| of the last MLP's neurons on memorized items is at least 1.3 times that on test items",
            ratio("outliers", "mean_abs_z", memorized, test),
            at_least(1.3),
            figure,
            {"without noise": ratio("outliers", "mean_abs_z", free | MEM, free | TEST)},
            SHIFTED,
        ),
        Check(
            "C8b FDA",
            "their profile correlates with their group's at .6 or more",
            mean("outliers", "profile", **memorized),
            at_least(0.6),
            figure,
            {
                "with a group of another answer": mean("outliers", "profile_of_other", **memorized),
                "test items": mean("outliers", "profile", **test),
            },
            SHIFTED,
        ),
        Check(
            "C8c FDA",
            f"{top} neurons reset give at least .6 more true answers than {top} random ones",
            difference("doses", "true", dose("largest", top, block), dose("random", top, block)),
            at_least(0.6),
            doses,
            {
                "largest": mean("doses", "true", **dose("largest", top, block)),
                "random": mean("doses", "true", **dose("random", top, block)),
                "test items keep theirs": mean("doses", "true", selection="largest", k=top, **test),
            },
            SHIFTED,
        ),
        Check(
            "C8d FDA",
            "the whole last MLP reset gives at least .85 true answers",
            mean("doses", "true", **dose("all", width, block)),
            at_least(0.85),
            doses,
            {"first MLP": mean("doses", "true", **dose("all", width, 0))},
            SHIFTED,
        ),
        Check(
            "C8e FDA",
            f"the {top} largest contributors shift to the right more often than all neurons, by .05",
            between("outliers", "right_of_top", "right", **memorized),
            at_least(0.05),
            figure,
            {"test items, towards a random wrong digit": between("outliers", "right_of_top", "right", **test)},
            SHIFTED,
        ),
    ]


def _controls(about: Mapping[str, Any]) -> list[Check]:
    digit, at, block = about["variable"], about["position"], about["blocks"] - 1
    free = {"block": block, **NOISE_FREE}
    return [
        Check(
            "K1 look-up, C5",
            "of a look-up planted beside the network the removal leaves at least .95",
            erasure("class means", LOOKUP),
            at_least(0.95),
            "figures/erasing.png",
            {"test items": erasure("class means", LOOKUP, TEST)},
            None,
            "chosen",
        ),
        Check(
            "K2 look-up, C7",
            "a planted look-up survives a changed digit of at most .1 of its items, at any position",
            survival(np.max, **LOOKUP),
            at_most(0.1),
            "figures/perturbed.png",
            {"positions it depends on": effective_positions(depth=0, **LOOKUP), "memory": survival(np.max, **FDA)},
            None,
            "chosen",
        ),
        *(
            Check(
                f"K3 untrained {name}, {inputs}",
                f"a probe reads the {variable} of an untrained model at {most} at most, {inputs}",
                probe(variable, 1.0, position=position, of=of | {"stage": "untrained"}, apart=apart),
                at_most(most),
                "figures/decoding.png",
                {"trained": probe(variable, 1.0, position=position, of=of, apart=apart)},
                None,
                "chosen",
            )
            for name, variable, position, of, most in (("FDA", digit, at, FDA, 0.2), ("THR", "bridge", 1, THR, 0.15))
            for apart, inputs in ((False, "new items"), (True, "new inputs"))
        ),
        Check(
            "K4 without noise",
            "trained on right labels the wrong ones are said of at most .02",
            last("memorized", **NOISE_FREE),
            at_most(0.02),
            "figures/learning.png",
            {"test": last("test", **NOISE_FREE)},
            None,
            "chosen",
        ),
        Check(
            "K5 without noise",
            "and (after fewer steps) items that would be noisy are no outliers: mean |z| at most 1.15 times that of test items",
            ratio("outliers", "mean_abs_z", free | MEM, free | TEST),
            at_most(1.15),
            "figures/outliers.png",
            {"with noise": ratio("outliers", "mean_abs_z", {"block": block, **FDA, **MEM}, {"block": block, **FDA, **TEST})},
            None,
            "chosen",
        ),
    ]
