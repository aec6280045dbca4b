"""C7 and C8: what a memory is made of; and K, the controls that must look otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.reason_to_rote.measures import (
    apart,
    between,
    difference,
    effective_positions,
    last,
    mean,
    ratio,
    survival,
)
from experiments.reason_to_rote.terms import (
    FDA,
    LOOKUP,
    MEM,
    NOISE_FREE,
    SHIFTED,
    SPREAD,
    TEST,
    THR,
    donor,
    dose,
    erasure,
    probe,
)
from interp.experiment.checks import Check, at_least, at_most


def of_memory(about: Mapping[str, Any]) -> list[Check]:
    """C7, C8 and K; `about` as for `checks`."""
    return [*_distributed(), *_neurons(about), *_controls(about)]


def _distributed() -> list[Check]:
    ablated, changed = "figures/positions.png", "figures/perturbed.png"
    return [
        Check(
            id="C7a FDA",
            statement="memorized answers depend on at least 4.5 of 8 digits (as a look-up would)",
            measure=effective_positions(depth=0, **FDA),
            threshold=at_least(4.5),
            evidence=ablated,
            controls={"look-up": effective_positions(depth=0, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7b FDA",
            statement="on at least 2 digits more than test answers (as a look-up would)",
            measure=effective_positions(depth=0, less_test=True, **FDA),
            threshold=at_least(2),
            evidence=ablated,
            controls={"look-up": effective_positions(depth=0, less_test=True, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7c FDA",
            statement="unlike a look-up they survive a changed digit, with rates that differ by .3 or more between digits",
            measure=survival(np.ptp, **FDA),
            threshold=at_least(0.3),
            evidence=changed,
            controls={"look-up": survival(np.ptp, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7d FDA",
            statement="and reach .4 or more at some digit",
            measure=survival(np.max, **FDA),
            threshold=at_least(0.4),
            evidence=changed,
            controls={"look-up": survival(np.max, **LOOKUP)},
            paper=SPREAD,
        ),
        Check(
            id="C7e THR",
            statement="a donor with the same bridge costs memorized items at least .2 more than test items",
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


def _neurons(about: Mapping[str, Any]) -> list[Check]:
    block, top, width = about["blocks"] - 1, about["top"], about["neurons"]
    memorized, test = {"block": block, **FDA, **MEM}, {"block": block, **FDA, **TEST}
    free = {"block": block, **NOISE_FREE}
    figure, doses = "figures/outliers.png", "figures/doses.png"
    return [
        Check(
            id="C8a FDA",
            statement="mean |z| of the last MLP's neurons on memorized items is at least 1.3 times that on test items",
            measure=ratio("outliers", "mean_abs_z", memorized, test),
            threshold=at_least(1.3),
            evidence=figure,
            controls={"without noise": ratio("outliers", "mean_abs_z", free | MEM, free | TEST)},
            paper=SHIFTED,
        ),
        Check(
            id="C8b FDA",
            statement="their profile correlates with their group's at .6 or more",
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
            statement=f"{top} neurons reset give at least .6 more true answers than {top} random ones",
            measure=difference(
                "doses", "true", dose("largest", top, block), dose("random", top, block)
            ),
            threshold=at_least(0.6),
            evidence=doses,
            controls={
                "largest": mean("doses", "true", **dose("largest", top, block)),
                "random": mean("doses", "true", **dose("random", top, block)),
                "test items keep theirs": mean("doses", "true", selection="largest", k=top, **test),
            },
            paper=SHIFTED,
        ),
        Check(
            id="C8d FDA",
            statement="the whole last MLP reset gives at least .85 true answers",
            measure=mean("doses", "true", **dose("all", width, block)),
            threshold=at_least(0.85),
            evidence=doses,
            controls={"first MLP": mean("doses", "true", **dose("all", width, 0))},
            paper=SHIFTED,
        ),
        Check(
            id="C8e FDA",
            statement=f"the {top} largest contributors shift to the right more often than all neurons, by .05",
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


def _controls(about: Mapping[str, Any]) -> list[Check]:
    digit, at, block = about["variable"], about["position"], about["blocks"] - 1
    free = {"block": block, **NOISE_FREE}
    return [
        Check(
            id="K1 look-up, C5",
            statement="of a look-up planted beside the network the removal leaves at least .95",
            measure=erasure("class means", LOOKUP),
            threshold=at_least(0.95),
            evidence="figures/erasing.png",
            controls={"test items": erasure("class means", LOOKUP, TEST)},
            paper=None,
            source="chosen",
        ),
        Check(
            id="K2 look-up, C7",
            statement="a planted look-up survives a changed digit of at most .1 of its items, at any position",
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
        *(
            Check(
                id=f"K3 untrained {name}, {inputs}",
                statement=f"a probe reads the {variable} of an untrained model at {most} at most, {inputs}",
                measure=probe(
                    variable, 1.0, position=position, of=of | {"stage": "untrained"}, apart=apart
                ),
                threshold=at_most(most),
                evidence="figures/decoding.png",
                controls={"trained": probe(variable, 1.0, position=position, of=of, apart=apart)},
                paper=None,
                source="chosen",
            )
            for name, variable, position, of, most in (
                ("FDA", digit, at, FDA, 0.2),
                ("THR", "bridge", 1, THR, 0.15),
            )
            for apart, inputs in ((False, "new items"), (True, "new inputs"))
        ),
        Check(
            id="K4 without noise",
            statement="trained on right labels the wrong ones are said of at most .02",
            measure=last("memorized", **NOISE_FREE),
            threshold=at_most(0.02),
            evidence="figures/learning.png",
            controls={"test": last("test", **NOISE_FREE)},
            paper=None,
            source="chosen",
        ),
        Check(
            id="K5 without noise",
            statement="and (after fewer steps) items that would be noisy are no outliers: mean |z| at most 1.15 times that of test items",
            measure=ratio("outliers", "mean_abs_z", free | MEM, free | TEST),
            threshold=at_most(1.15),
            evidence="figures/outliers.png",
            controls={
                "with noise": ratio(
                    "outliers",
                    "mean_abs_z",
                    {"block": block, **FDA, **MEM},
                    {"block": block, **FDA, **TEST},
                )
            },
            paper=None,
            source="chosen",
        ),
    ]
