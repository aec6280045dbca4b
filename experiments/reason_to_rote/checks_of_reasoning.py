"""C1 to C6: reasoning is learned first, stays, and memory uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.reason_to_rote.measures import (
    at_first,
    component_correlation,
    difference,
    largest,
    last,
    mean,
    overlap,
    steps_ratio,
)
from experiments.reason_to_rote.terms import (
    BENIGN,
    CIRCUITS,
    COMPUTED,
    FDA,
    HARMS,
    LATE,
    LOOKUP,
    MEM,
    PHASES,
    TEST,
    THR,
    donor,
    erasure,
    probe,
)
from interp.experiment.checks import Check, above, at_least, at_most


def of_reasoning(about: Mapping[str, Any]) -> list[Check]:
    """C1 to C6; `about` as for `checks`."""
    return [*_learning(), *_decoding(about), *_intervening(about)]


def _learning() -> list[Check]:
    curve = "figures/learning.png"
    return [
        Check(
            id="C1a FDA",
            statement="when the test is first passed at .9, at most .05 of noisy items are memorized",
            measure=at_first("memorized", 0.9, 1.0, **FDA),
            threshold=at_most(0.05),
            evidence=curve,
            controls={"corrected then": at_first("corrected", 0.9, 0.0, **FDA)},
            paper=PHASES,
        ),
        Check(
            id="C1b FDA",
            statement="and at least .8 of them get their true answer",
            measure=at_first("corrected", 0.9, 0.0, **FDA),
            threshold=at_least(0.8),
            evidence=curve,
            controls={"memorized then": at_first("memorized", 0.9, 1.0, **FDA)},
            paper=PHASES,
        ),
        Check(
            id="C1c FDA",
            statement="half are memorized after at least twice the steps to pass the test",
            measure=steps_ratio(**FDA),
            threshold=at_least(2),
            evidence=curve,
            controls={},
            paper=PHASES,
        ),
        Check(
            id="C1a THR",
            statement="when the test is first passed at .8, at most .35 of noisy items are memorized",
            measure=at_first("memorized", 0.8, 1.0, **THR),
            threshold=at_most(0.35),
            evidence=curve,
            controls={"corrected then": at_first("corrected", 0.8, 0.0, **THR)},
            paper=PHASES,
        ),
        Check(
            id="C1b THR",
            statement="at some time at least .5 of them get their true answer",
            measure=largest("corrected", **THR),
            threshold=at_least(0.5),
            evidence=curve,
            controls={"at the end": last("corrected", **THR)},
            paper=PHASES,
        ),
        *(
            Check(
                id=f"C2{part} {name}",
                statement=f"at the end {what} is at least {least}",
                measure=last(column, **of),
                threshold=at_least(least),
                evidence=curve,
                controls={"corrected": last("corrected", **of)},
                paper=BENIGN,
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
            id="C3a FDA",
            statement="a probe reads the true digit of memorized items behind the first block, at least .9",
            measure=probe(digit, 1.0, **read),
            threshold=at_least(0.9),
            evidence=figure,
            controls={
                "test items": probe(digit, 1.0, **read, **TEST),
                "untrained": probe(digit, 1.0, position=at, of=untrained),
                "shuffled labels": probe(digit, 1.0, **read, column="shuffled"),
            },
            paper=COMPUTED,
        ),
        Check(
            id="C3b FDA",
            statement="a probe of shuffled labels at most .2",
            measure=probe(digit, 1.0, **read, column="shuffled"),
            threshold=at_most(0.2),
            evidence=figure,
            controls={"true labels": probe(digit, 1.0, **read)},
            paper=COMPUTED,
        ),
        Check(
            id="C3a THR",
            statement="a probe reads the bridge of memorized items behind the first block, at least .95",
            measure=probe("bridge", 1.0, **bridge),
            threshold=at_least(0.95),
            evidence=figure,
            controls={
                "test items": probe("bridge", 1.0, **bridge, **TEST),
                "untrained": probe("bridge", 1.0, position=1, of=THR | {"stage": "untrained"}),
                "shuffled labels": probe("bridge", 1.0, **bridge, column="shuffled"),
            },
            paper=COMPUTED,
        ),
        *(
            Check(
                id=f"C3c {name}",
                statement=f"and of inputs that the probe was not trained on, at least {least}",
                measure=probe(variable, 1.0, **where, apart=True),
                threshold=at_least(least),
                evidence=figure,
                controls={
                    "test items": probe(variable, 1.0, **where, **TEST, apart=True),
                    "untrained": probe(
                        variable,
                        1.0,
                        **where | {"of": where["of"] | {"stage": "untrained"}},
                        apart=True,
                    ),
                },
                paper=COMPUTED,
            )
            for name, variable, where, least in (
                ("FDA", digit, read, 0.9),
                ("THR", "bridge", bridge, 0.95),
            )
        ),
        Check(
            id="C4a FDA",
            statement="before the last MLP a probe reads the noisy digit of at most .1",
            measure=probe(digit, depth - 0.5, "noisy", **read),
            threshold=at_most(0.1),
            evidence=figure,
            controls={"true digit": probe(digit, depth - 0.5, **read)},
            paper=LATE,
        ),
        Check(
            id="C4b FDA",
            statement="behind it of at least .7",
            measure=probe(digit, depth, "noisy", **read),
            threshold=at_least(0.7),
            evidence=figure,
            controls={"true digit": probe(digit, depth, **read)},
            paper=LATE,
        ),
    ]


def _intervening(about: Mapping[str, Any]) -> list[Check]:
    variables = {"FDA": about["variable"], "THR": "bridge"}
    erasing = [
        check
        for name, of in (("FDA", FDA), ("THR", THR))
        for check in (
            Check(
                id=f"C5a {name}",
                statement=f"without the {variables[name]} subspace behind the first block at most .5 of memorized answers are said",
                measure=erasure("class means", of),
                threshold=at_most(0.5),
                evidence="figures/erasing.png",
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
                statement="without a random subspace of the same rank at least .95",
                measure=erasure("random", of),
                threshold=at_least(0.95),
                evidence="figures/erasing.png",
                controls={"target": erasure("class means", of)},
                paper=HARMS,
            ),
            Check(
                id=f"C5c {name}",
                statement="the removal costs more than the random one and .1 (what refutes the claim otherwise)",
                measure=difference(
                    "erasure",
                    "kept",
                    {"removed": "random", "block": 0, **of, **MEM},
                    {"removed": "class means", "block": 0, **of, **MEM},
                ),
                threshold=above(0.1),
                evidence="figures/erasing.png",
                controls={
                    name: difference(
                        "erasure",
                        "kept",
                        {"removed": "random", "block": 0, **of, **MEM},
                        {"removed": name, "block": 0, **of, **MEM},
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
                paper=HARMS,
            ),
        )
    ]
    return [
        *erasing,
        Check(
            id="C5d THR",
            statement="a donor with the same bridge keeps at least .3 more memorized answers than one with another",
            measure=difference("donors", "kept", donor("same", THR), donor("other", THR)),
            threshold=at_least(0.3),
            evidence="figures/donors.png",
            controls={
                "same": mean("donors", "kept", **donor("same", THR)),
                "other": mean("donors", "kept", **donor("other", THR)),
            },
            paper=HARMS,
        ),
        *(
            Check(
                id=f"C6a {name}",
                statement="the top 10% of edges overlap by more than .1 over what random prompts give",
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
            for name, of in (("FDA", FDA), ("THR", THR))
        ),
        *(
            Check(
                id=f"C6b {name}",
                statement="what ablating a component costs memorized and test items correlates at .7 or more",
                measure=component_correlation(**of),
                threshold=at_least(0.7),
                evidence="figures/components.png",
                controls={"heads alone": component_correlation("head", **of)},
                paper=CIRCUITS,
            )
            for name, of in (("FDA", FDA), ("THR", THR))
        ),
    ]
