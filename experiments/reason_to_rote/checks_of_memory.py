"""C7 and C8: what a memory is made of; and K, the controls that must look otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.reason_to_rote.measures import apart, between, difference, effective_positions, last, mean, ratio, survival
from experiments.reason_to_rote.terms import (
    FDA,
    LOOKUP,
    MEM,
    NOISE_FREE,
    SHIFTED,
    SPREAD,
    TEST,
    THR,
    Check,
    at_least,
    at_most,
    donor,
    dose,
    erasure,
    probe,
)


def of_memory(about: Mapping[str, Any]) -> list[Check]:
    """C7, C8 and K; `about` as for `checks`."""
    return [*_distributed(), *_neurons(about), *_controls(about)]


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
