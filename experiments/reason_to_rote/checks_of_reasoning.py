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
    Check,
    at_least,
    at_most,
    donor,
    erasure,
    probe,
)


def of_reasoning(about: Mapping[str, Any]) -> list[Check]:
    """C1 to C6; `about` as for `checks`."""
    return [*_learning(), *_decoding(about), *_intervening(about)]


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
