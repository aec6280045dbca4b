"""The claims: A1 to A9 of the paper and its controls, and S1, whether localization methods find
sinks."""

from __future__ import annotations

from experiments.mem_sinks.build import FOR_CANARIES
from experiments.mem_sinks.measures import (
    CANARIES,
    HELD_OUT,
    REPEATED,
    gap_closure,
    held_out_at_equal_memory,
    isolation,
    of_run,
    recall,
    removed_share,
)
from experiments.mem_sinks.presets import (
    DEDUPLICATED,
    LARGE_POOL,
    NARROW,
    RESERVED,
    RESERVED_OFF,
    SAME_STEPS,
    SINKS,
    SMALL_POOL,
    STANDARD,
    UNTIED,
    WIDE,
    PostHoc,
    Preset,
    noisy,
)
from experiments.mem_sinks.study import DROPPED, OWN, PLAIN, SCALED
from interp.experiment.checks import Check, Measure, Tables, above, at_least, at_most, below, minus
from interp.localization.registry import methods
from interp.reporting.looks import in_percent

_COMPARED_AT = 0.4  # the share of the neurons at which code and canaries are compared


def checks(preset: Preset) -> list[Check]:
    """A1 to A9 and S1."""
    return [
        *_sinks_work(),
        *_post_hoc(preset),
        *_masking(),
        *_tying(preset),
        *_pools(),
        *_search(preset),
    ]


def _cost(run: str, mode: str, standard: str) -> Measure:
    """The held-out loss of a run above that of another, over the same sequences."""
    return minus(of_run(run, mode, HELD_OUT), of_run(standard, PLAIN, HELD_OUT))


def _sinks_work() -> list[Check]:
    levels = {
        "loss on repeated sequences, standard": of_run(STANDARD, PLAIN, REPEATED),
        "own sinks": of_run(SINKS, OWN, REPEATED),
        "sinks dropped": of_run(SINKS, DROPPED, REPEATED),
        "held-out sequences, sinks dropped": of_run(SINKS, DROPPED, HELD_OUT),
    }
    return [
        Check(
            id="A1 isolation",
            measure=isolation(SINKS),
            threshold=at_least(0.5),
            source="inferred",
            statement="dropping the sinks removes what was memorized: the isolation is {threshold}",
            controls={**levels, "isolation of canaries": isolation(SINKS, CANARIES)},
            evidence="figures/isolation.png",
        ),
        Check(
            id="A1 gap closure",
            measure=gap_closure(SINKS),
            threshold=at_least(0.45),
            paper="at least 0.5",
            source="inferred",
            statement="with the sinks dropped, the memorization gap of standard training closes: "
            "the gap closure is {threshold}",
            controls={
                "standard training of the general neurons alone": _gap_closure_of_plain(NARROW),
                "deduplicated": _gap_closure_of_plain(DEDUPLICATED),
            },
            evidence="figures/isolation.png",
        ),
        Check(
            id="A1 extraction",
            measure=of_run(SINKS, DROPPED, REPEATED, "exact"),
            threshold=at_most(0.1),
            source="chosen",
            statement="with the sinks dropped, repeated sequences are no longer extracted: the "
            "share that is continued word for word is {threshold}",
            controls={
                "own sinks": of_run(SINKS, OWN, REPEATED, "exact"),
                "all sinks, scaled": of_run(SINKS, SCALED, REPEATED, "exact"),
                "standard": of_run(STANDARD, PLAIN, REPEATED, "exact"),
                "tokens that are still right": of_run(SINKS, DROPPED, REPEATED, "accuracy"),
                "tokens that are right, held out": of_run(SINKS, DROPPED, HELD_OUT, "accuracy"),
            },
            evidence="figures/losses.png",
        ),
        Check(
            id="A2",
            measure=_cost(SINKS, DROPPED, STANDARD),
            threshold=at_most(0.02),
            paper="about equal",
            source="inferred",
            statement="dropping the sinks costs no generalization: the held-out loss is above that "
            "of standard training by {threshold} nats per token",
            controls={
                "standard training of the general neurons alone": _cost(NARROW, PLAIN, STANDARD),
                "sinks with all neurons, scaled": _cost(SINKS, SCALED, STANDARD),
            },
            evidence="figures/losses.png",
        ),
        Check(
            id="A3",
            measure=minus(of_run(DEDUPLICATED, PLAIN, HELD_OUT), of_run(SINKS, DROPPED, HELD_OUT)),
            threshold=at_least(0.05),
            paper="clearly lower",
            source="inferred",
            statement="sinks beat deduplication: with the sinks dropped, the held-out loss is "
            "lower by {threshold} nats per token",
            controls={
                "deduplication with as many steps, on further text": minus(
                    of_run(SAME_STEPS, PLAIN, HELD_OUT), of_run(SINKS, DROPPED, HELD_OUT)
                ),
                "standard minus sinks dropped": minus(
                    of_run(STANDARD, PLAIN, HELD_OUT), of_run(SINKS, DROPPED, HELD_OUT)
                ),
            },
            evidence="figures/losses.png",
        ),
    ]


def _gap_closure_of_plain(run: str) -> Measure:
    """How much of the gap of standard training is not there in another run without sinks."""

    def of(tables: Tables) -> float | None:
        levels = [
            of_run(run, PLAIN, REPEATED)(tables),
            of_run(STANDARD, PLAIN, REPEATED)(tables),
            of_run(STANDARD, PLAIN, HELD_OUT)(tables),
        ]
        # Nothing is dropped in such a run: its own loss is in the place of that with sinks dropped.
        own, standard, held_out = (float(level.estimate) for level in levels)
        return (own - standard) / (held_out - standard)

    return Measure(f"gap closure of {run}", of)


def _post_hoc(preset: Preset) -> list[Check]:
    settings = preset.post_hoc
    costs = [_costs_more(method, settings.against) for method in settings.methods]
    return [*costs, _natural_or_random(settings)]


def _costs_more(method: str, against: str) -> Check:
    return Check(
        id=f"A4 {method}",
        measure=held_out_at_equal_memory(method, against),
        threshold=at_least(0.1),
        paper="repeated and held-out loss rise together",
        source="inferred",
        statement=f"removal after training by {method} costs more than sinks: where repeated "
        "sequences have the same loss, the held-out loss is higher by {threshold} nats per token",
        controls={
            "random neurons": held_out_at_equal_memory("random", against),
            "standard training before removal": minus(
                of_run(WIDE, PLAIN, HELD_OUT), of_run(against, DROPPED, HELD_OUT)
            ),
            "loss on repeated sequences with sinks dropped": of_run(against, DROPPED, REPEATED),
        },
        evidence="figures/post_hoc.png",
    )


def _natural_or_random(settings: PostHoc) -> Check:
    method = FOR_CANARIES
    # The nearest fraction that the preset measures.
    fraction = min(settings.fractions, key=lambda each: abs(each - _COMPARED_AT))
    natural = removed_share(method, fraction, REPEATED)
    canaries = removed_share(method, fraction, CANARIES)
    return Check(
        id="A5",
        measure=minus(natural, canaries),
        threshold=below(0),
        paper="natural text is harder",
        source="found",
        statement="repeated code is harder to remove than canaries: without the "
        f"{in_percent(fraction)} of the neurons that {method} finds for each, the share of the "
        "memory of code that is gone, minus that of canaries, is {threshold}",
        controls={"code": natural, "canaries": canaries},
        evidence="figures/post_hoc.png",
    )


def _masking() -> list[Check]:
    found: list[Check] = []
    for run in (RESERVED, RESERVED_OFF):
        # Of one model, over the same sequences: with the reserved neurons and without.
        dropped = minus(of_run(run, DROPPED, HELD_OUT), of_run(run, PLAIN, HELD_OUT))
        levels = {
            "loss on repeated sequences": of_run(run, PLAIN, REPEATED),
            "reserved neurons dropped": of_run(run, DROPPED, REPEATED),
            "sinks dropped, minus standard": _cost(SINKS, DROPPED, STANDARD),
        }
        found += [
            Check(
                id=f"A6 starves, {run}",
                measure=_cost(run, PLAIN, STANDARD),
                threshold=at_least(0.1),
                source="inferred",
                statement=f"{run} starves generalization: the held-out loss is above that of "
                "standard training by {threshold} nats per token",
                controls=levels,
                evidence="figures/losses.png",
            ),
            Check(
                id=f"A6 co-adapts, {run}",
                measure=dropped,
                threshold=at_least(0.5),
                source="inferred",
                statement=f"under {run} other neurons come to need the reserved ones: without "
                "these the held-out loss is higher by {threshold} nats per token",
                controls=levels,
                evidence="figures/losses.png",
            ),
        ]
    return found


def _tying(preset: Preset) -> list[Check]:
    found = [
        Check(
            id="A7",
            measure=isolation(UNTIED),
            threshold=at_most(0.05),
            source="inferred",
            statement="it is the tie between a document and its sinks: with a random id at each "
            "presentation the isolation is {threshold}",
            controls={
                "tied": isolation(SINKS),
                "loss on repeated sequences, sinks dropped": of_run(UNTIED, DROPPED, REPEATED),
            },
            evidence="figures/isolation.png",
        )
    ]
    # At 1 masks are untied, which is A7.
    noise = [run.noise for run in preset.runs if 0 < run.noise < 1]
    return [*found, *map(_under_noise, noise)]


def _under_noise(share: float) -> Check:
    return Check(
        id=f"A8 {in_percent(share)}",
        measure=_ratio(isolation(noisy(share)), isolation(SINKS)),
        threshold=at_least(0.4),
        paper="tolerates about 10%" if share == 0.1 else None,
        source="inferred",
        statement=f"noise is tolerated: with a random id at {in_percent(share)} of the "
        "presentations, the isolation is {threshold} of that without noise",
        controls={
            "isolation": isolation(noisy(share)),
            "rise of the held-out loss": _cost(noisy(share), DROPPED, STANDARD),
        },
        evidence="figures/isolation.png",
    )


def _ratio(one: Measure, other: Measure) -> Measure:
    def of(tables: Tables) -> float:
        # A plain number: its interval is over seeds alone.
        return float(one(tables).estimate) / float(other(tables).estimate)

    return Measure(f"{one.label} as a share of {other.label}", of)


def _pools() -> list[Check]:
    found: list[Check] = []
    for smaller, larger in ((SMALL_POOL, SINKS), (SINKS, LARGE_POOL)):
        found.append(
            Check(
                id=f"A9 {larger}, {smaller}",
                measure=minus(isolation(larger), isolation(smaller)),
                threshold=above(0),
                source="inferred",
                statement=f"a larger pool isolates more ({larger}, {smaller}), with as many "
                "active sinks: the difference in isolation is {threshold}",
                controls={
                    larger: isolation(larger),
                    smaller: isolation(smaller),
                },
                evidence="figures/isolation.png",
            )
        )
    return found


def searched(preset: Preset) -> list[str]:
    """The names of the methods that search for sinks."""
    return [name for name in methods() if name not in preset.not_searched]


def _search(preset: Preset) -> list[Check]:
    found: list[Check] = []
    for method in searched(preset):
        own = recall(method, "own sinks")
        found.append(
            Check(
                id=f"S1 {method}",
                measure=minus(own, recall(method, "own sinks", "random")),
                threshold=above(0),
                source="chosen",
                statement=f"{method} finds the sinks of a sequence: its recall, minus that of "
                "random neurons, is {threshold}",
                controls={
                    "recall": own,
                    "lowest scores": recall(method, "own sinks", "lowest"),
                    "among sinks": recall(method, "own sinks, among sinks"),
                    "random, among sinks": recall(method, "own sinks, among sinks", "random"),
                    "of the pool": recall(method, "pool"),
                    "random, of the pool": recall(method, "pool", "random"),
                },
                evidence="figures/recall.png",
            )
        )
    return found
