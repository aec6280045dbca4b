"""The checks of B1 to B7, and of what finds duplicates instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from experiments.data_cartography import bounds
from experiments.data_cartography.build import DEDUPLICATE, HALVE, NOTHING, POLICY, PRUNE
from experiments.data_cartography.corpus import CANARY
from experiments.data_cartography.presets import (
    DIFFICULTY,
    DROP,
    FORGET,
    ORACLE,
    RANDOM,
    Network,
    Preset,
)
from experiments.data_cartography.study import (
    AMONG_CANARIES,
    CANARIES,
    DUPLICATES,
    EARLY,
    HELD_OUT,
    REFERENCE,
    REPEATED,
    SINGLE,
)
from interp.experiment.checks import (
    Check,
    Measure,
    Tables,
    above,
    at_least,
    at_most,
    below,
    mean,
    minus,
    over_items,
    rows,
)
from interp.mitigation.reweighting import HOTSPOT, OUTLIER
from interp.reporting.looks import in_percent
from interp.reporting.stats import Interval

_KEPT = 0.6  # the share of what is extracted after random pruning that may be left
_COST = 0.02  # nats per token: 2% of the perplexity
_ITEM = "sequence"
_PRUNING = "figures/pruning.png"
_SEPARATION = "figures/separation.png"
# What the paper reports of pruning, by model.
_EXTRACTED = {"LSTM": "100% to 40% (LSTM, 5% pruned)", "GPT": "more than 40% less (10% pruned)"}
_PERPLEXITY = {"LSTM": "less than 0.5% more", "GPT": "less than 1% more"}


def checks(preset: Preset) -> list[Check]:
    """Returns the checks of a preset."""
    copies = max(preset.corpus.copies)
    found: list[Check] = []
    for network in preset.networks:
        found += _separation(network.name)
        for share in sorted({share for _, share in network.pruned}):
            found += _pruning(network, share, copies)
        found += _deduplication(network.name, copies)
        if network.reweighted:
            found += _reweighting(network.name, copies, fewer=sorted(preset.corpus.copies)[-2])
    return [*found, *_bounds()]


def _auc(model: str, score: str, contrast: str) -> Measure:
    """How well a score tells one kind of sequence from another."""

    def of(tables: Tables) -> Interval:
        where = {"model": model, "score": score, "contrast": contrast}
        [row] = rows(tables["separation"], where).to_dict("records")
        return Interval(row["auc"], row["low"], row["high"], int(row["n"]))

    return Measure(f"AUC of {score}", of, (0, 1))


def _separation(model: str) -> list[Check]:
    """B4 and B7: which scores find what is repeated, and which find what is random."""
    others = (
        "relative forget events",
        "forgetfulness",
        "variability",
        "confidence",
        DIFFICULTY,
        EARLY,
        DROP,
        DUPLICATES,
    )
    return [
        Check(
            id=f"B4 {model}",
            measure=_auc(model, FORGET, CANARIES),
            threshold=at_least(0.7),
            opposite=below(0.5),
            source="inferred",
            statement=f"the published score finds repeated canaries ({model}): its AUC against "
            "text seen once is {threshold}",
            paper="the premise of pruning by it, without a number",
            controls={name: _auc(model, name, CANARIES) for name in others},
            evidence=_SEPARATION,
        ),
        Check(
            id=f"B4 text, {model}",
            measure=_auc(model, FORGET, REPEATED),
            threshold=at_least(0.7),
            opposite=below(0.5),
            source="inferred",
            statement=f"the published score finds repeated text ({model}): its AUC against text "
            "seen once is {threshold}",
            controls={name: _auc(model, name, REPEATED) for name in others},
            evidence=_SEPARATION,
        ),
        Check(
            id=f"B7 {model}",
            measure=_auc(model, EARLY, CANARIES),
            threshold=at_least(0.9),
            source="inferred",
            statement=f"the loss early in training separates repeated canaries ({model}): its AUC "
            "against text seen once is {threshold}",
            controls={
                "canaries seen once": _auc(model, EARLY, SINGLE),
                "difficulty": _auc(model, DIFFICULTY, CANARIES),
            },
            evidence=_SEPARATION,
        ),
        Check(
            id=f"P1 {model}",
            measure=_auc(model, EARLY, REPEATED),
            threshold=below(0.5),
            opposite=above(0.5),
            source="inferred",
            statement="the loss early in training does so because canaries are random, not "
            f"because they are repeated ({model}): its AUC for repeated text is {{threshold}}",
            controls={"repeated canaries": _auc(model, EARLY, CANARIES)},
            evidence=_SEPARATION,
        ),
        *[
            Check(
                id=f"P2 {name}, {model}",
                measure=_auc(model, DROP, contrast),
                threshold=at_least(0.8),
                opposite=below(0.5),
                source="measured",
                statement=f"the loss drop finds {words} ({model}): its AUC is {{threshold}}",
                controls={
                    "published score": _auc(model, FORGET, contrast),
                    "final loss, negated": _auc(model, "final loss, negated", contrast),
                },
                evidence=_SEPARATION,
            )
            for name, words, contrast in (
                ("canaries", "repeated canaries among text seen once", CANARIES),
                ("text", "repeated text among text seen once", REPEATED),
                ("copies", "repeated canaries among canaries seen once", AMONG_CANARIES),
            )
        ],
        Check(
            id=f"P3 {model}",
            measure=_filed_as_memorized(model),
            threshold=below(0.5),
            opposite=above(0.5),
            source="inferred",
            statement="the published map misses most repeated canaries: the share that it files as "
            f"memorized, that is as hotspots or outliers, is {{threshold}} ({model})",
            controls={"weight of repeated canaries in the policy": _policy_weight(model)},
            evidence="figures/map.png",
        ),
    ]


def _repeated_canaries(tables: Tables, model: str) -> pd.DataFrame:
    table = rows(tables["map"], {"model": model, "kind": CANARY})
    found: Any = table[table["copies"] > 1]
    return found.set_index(_ITEM)


def _filed_as_memorized(model: str) -> Measure:
    def by_item(tables: Tables) -> pd.Series:
        regions: Any = _repeated_canaries(tables, model)["quadrant"]
        return regions.isin([HOTSPOT, OUTLIER]).astype(float)

    return over_items("share of repeated canaries", by_item, (0, 1))


def _policy_weight(model: str) -> Measure:
    def by_item(tables: Tables) -> Any:
        return _repeated_canaries(tables, model)["weight"]

    return over_items("weight", by_item)


def _leaked(model: str, copies: int, column: str, **run: Any) -> Measure:
    """What is left of the most frequent canaries in a run."""
    limits = None if column in ("loss", "exposure") else (0, 1)
    where = {"model": model, "kind": CANARY, "copies": copies, **run}
    return mean("sequences", column, item=_ITEM, bounds=limits, **where)


def _held_out(model: str, **run: Any) -> Measure:
    """The loss on held-out text after a run, in nats per token."""
    return mean("sequences", "loss", item=_ITEM, model=model, kind=HELD_OUT, **run)


def _rise(model: str, **run: Any) -> Measure:
    return minus(_held_out(model, **run), _held_out(model, action=NOTHING))


def _membership(model: str, of: str, **run: Any) -> Measure:
    return mean("runs", f"auc_{of}", bounds=(0, 1), model=model, **run)


def _beyond(share: float, one: Measure, other: Measure) -> Measure:
    """One measure minus a share of another, item by item."""
    first, second = one.by_item, other.by_item
    assert first is not None
    assert second is not None

    def by_item(tables: Tables) -> pd.Series:
        # Both are of the same canaries, in two trainings: pairs by the number of the sequence.
        return first(tables) - share * second(tables)

    return over_items(f"{one.label} minus {share:g} times {other.label}", by_item, (-share, 1))


def _is_extracted(model: str, copies: int) -> Callable[[Tables], bool]:
    """The premise of all claims about less extraction: that there is some."""

    def holds(tables: Tables) -> bool:
        where = {"model": model, "action": NOTHING, "kind": CANARY, "copies": copies}
        return float(np.mean(rows(tables["sequences"], where)["exact"])) >= 0.5

    return holds


def _pruning(network: Network, share: float, copies: int) -> list[Check]:
    """B1 and B2 for one share of pruned rows, and the same by other scores."""
    model = network.name
    used = [name for name, of_score in network.pruned if of_score == share]

    def extracted(name: str, column: str = "exact") -> Measure:
        return _leaked(model, copies, column, action=PRUNE, by=name, share=share)

    found: list[Check] = []
    for name in used:
        if name == RANDOM:
            continue
        claim = "B1" if name == FORGET else f"P4 {name}"
        verb = "by the published score" if name == FORGET else f"by {name}"
        found.append(
            Check(
                id=f"{claim}, {in_percent(share)}, {model}",
                # Random pruning removes copies of canaries too: only what goes beyond it is the
                # score's doing.
                measure=_beyond(_KEPT, extracted(name), extracted(RANDOM)),
                threshold=at_most(0),
                opposite=above(0),
                requires=_is_extracted(model, copies),
                source="found" if name == FORGET else "chosen",
                statement=f"pruning {in_percent(share)} {verb} cuts extraction ({model}): of "
                f"canaries with {copies} copies, the share extracted minus {_KEPT:g} times that "
                "after random pruning is {threshold}",
                paper=_EXTRACTED[model] if name == FORGET else None,
                controls={
                    "extracted": extracted(name),
                    "after random pruning": extracted(RANDOM),
                    "without pruning": _leaked(model, copies, "exact", action=NOTHING),
                    "never planted": mean(
                        "sequences", "exact", model=model, kind=REFERENCE, action=NOTHING
                    ),
                    "tokens recalled": extracted(name, "accuracy"),
                    "exposure in bits": extracted(name, "exposure"),
                    "share of pruned rows with a score above 0": mean(
                        "runs", "above_zero", model=model, action=PRUNE, by=name, share=share
                    ),
                },
                evidence=_PRUNING,
            )
        )
    run = {"action": PRUNE, "by": FORGET, "share": share}
    others = {f"by {name}": _rise(model, **{**run, "by": name}) for name in used if name != FORGET}
    found.append(
        Check(
            id=f"B2, {in_percent(share)}, {model}",
            measure=_rise(model, **run),
            threshold=at_most(_COST),
            opposite=above(_COST),
            statement=f"pruning {in_percent(share)} by the published score keeps utility at "
            f"equal steps ({model}): the loss on held-out text rises by {{threshold}} nats per "
            "token, where 0.02 is 2% of the perplexity",
            paper=_PERPLEXITY[model],
            controls=others,
            evidence=_PRUNING,
        )
    )
    if DROP in used:
        found.append(
            Check(
                id=f"P5, {in_percent(share)}, {model}",
                measure=_rise(model, **{**run, "by": DROP}),
                threshold=at_most(_COST),
                opposite=above(_COST),
                source="chosen",
                statement=f"pruning {in_percent(share)} by the loss drop keeps utility at equal "
                f"steps ({model}): the loss on held-out text rises by {{threshold}} nats per token",
                controls={f"by {ORACLE}": _rise(model, **{**run, "by": ORACLE})},
                evidence=_PRUNING,
            )
        )
    return found


def _deduplication(model: str, copies: int) -> list[Check]:
    """What removing exact copies does, which needs no score."""
    once = {"action": DEDUPLICATE}
    return [
        Check(
            id=f"P6 {model}",
            measure=_leaked(model, copies, "exact", **once),
            threshold=at_most(0.1),
            requires=_is_extracted(model, copies),
            source="chosen",
            statement=f"keeping one copy of each row prevents extraction ({model}): of canaries "
            f"that had {copies} copies, the share extracted is {{threshold}}",
            controls={
                "before": _leaked(model, copies, "exact", action=NOTHING),
                "tokens recalled": _leaked(model, copies, "accuracy", **once),
                "exposure in bits": _leaked(model, copies, "exposure", **once),
                "rise of the loss on held-out text": _rise(model, **once),
            },
            evidence="figures/reweighting.png",
        )
    ]


def _reweighting(model: str, copies: int, fewer: int) -> list[Check]:
    """B3: half the weight on what has a high score; and the whole policy."""

    def lost(column: str, copies: int = copies, **run: Any) -> Measure:
        before = _leaked(model, copies, column, action=NOTHING)
        return minus(before, _leaked(model, copies, column, **run))

    def less_membership(of: str, **run: Any) -> Measure:
        return minus(_membership(model, of, action=NOTHING), _membership(model, of, **run))

    halved = {"action": HALVE, "by": FORGET}
    others = {"random rows": RANDOM, "rows of the largest loss drop": DROP}
    policy = {"action": POLICY}
    evidence = "figures/reweighting.png"
    found = [
        Check(
            id=f"B3 leakage, {model}",
            # A share of tokens moves before a whole canary is lost; whole ones are among the
            # controls.
            measure=lost("accuracy", **halved),
            threshold=above(0),
            opposite=below(0),
            requires=_is_extracted(model, copies),
            statement=f"half the weight on rows with a high published score lowers leakage "
            f"({model}): the fall of the share of tokens recalled, of canaries with {copies} "
            "copies, is {threshold}",
            paper="-30%",
            controls={
                "extracted canaries": lost("exact", **halved),
                **{
                    name: lost("accuracy", **{**halved, "by": score})
                    for name, score in others.items()
                },
            },
            evidence=evidence,
        )
    ]
    for of, words in (("text", "of text seen in training"), ("canaries", "of canaries")):
        found.append(
            Check(
                id=f"B3 membership, {of}, {model}",
                # One AUC per run, without an interval over rows: that of the claim is over seeds
                # alone.
                measure=less_membership(of, **halved),
                threshold=above(0),
                opposite=below(0),
                statement="half the weight on rows with a high published score lowers membership "
                f"inference ({model}): the fall of the AUC {words}, by the loss, is {{threshold}}",
                paper="-15%",
                controls={
                    "before": _membership(model, of, action=NOTHING),
                    "Min-K%": less_membership(f"{of}_min_k", **halved),
                    **{
                        name: less_membership(of, **{**halved, "by": score})
                        for name, score in others.items()
                    },
                },
                evidence=evidence,
            )
        )
    found.append(
        Check(
            id=f"P7 {model}",
            measure=lost("accuracy", **policy),
            threshold=above(0),
            opposite=below(0),
            source="inferred",
            requires=_is_extracted(model, copies),
            statement=f"the whole policy lowers leakage ({model}): the fall of the share of tokens "
            f"recalled, of canaries with {copies} copies, is {{threshold}}",
            controls={
                "exposure in bits": lost("exposure", **policy),
                f"canaries with {fewer} copies": lost("accuracy", fewer, **policy),
                "rise of the loss on held-out text": _rise(model, **policy),
            },
            evidence=evidence,
        )
    )
    return found


def _bounds() -> list[Check]:
    """B5 and B6: the two inequalities, on convex models."""

    def violations(tables: Tables) -> float:
        return float(tables["influence"]["violated"].sum())

    def is_not_empty(tables: Tables) -> bool:
        return bool((tables["influence"]["bound"] > 0).any())

    def of_rank(column: str) -> Measure:
        def rank(tables: Tables) -> float:
            table: Any = tables["influence"]
            return float(table["self_influence"].corr(table[column], method="spearman"))

        return Measure(f"rank correlation with {column}", rank, (-1, 1))

    def excess(tables: Tables) -> float:
        # The bound is on the expectation, so that gaps are averaged over data sets before the
        # comparison.
        groups: Any = tables["stability"].groupby("weights")
        return float((groups["gap"].mean() - groups["bound"].mean()).max())

    def gap(weights: str) -> Measure:
        return mean("stability", "gap", item="draw", weights=weights)

    def bound(weights: str) -> Measure:
        return mean("stability", "bound", weights=weights)

    return [
        Check(
            id="B5",
            # An inequality that is proved: a single violation, on any seed, would refute it.
            measure=Measure("violations", violations),
            threshold=at_most(0),
            over="every",
            requires=is_not_empty,
            statement="with a margin, forgetting bounds self-influence from below: the number of "
            "samples that violate the bound is {threshold}, on every seed",
            paper="a lower bound on influence, whose form is not known here",
            controls={
                "share of samples with a bound above 0": mean_above_zero("influence", "bound"),
                "bound as a share of the self-influence": _ratio,
                "rank correlation of the published score": of_rank("published"),
            },
            evidence="figures/influence.png",
        ),
        Check(
            id="B6 bound",
            measure=Measure("largest gap minus its bound", excess),
            threshold=at_most(0),
            over="every",
            statement="the generalization gap stays below the stability bound: the largest "
            "difference over ways of weighting is {threshold} nats, on every seed",
            paper="a bound by uniform stability, whose form is not known here",
            controls={
                "gap with weight 1": gap(bounds.PLAIN),
                "bound with weight 1": bound(bounds.PLAIN),
            },
            evidence="figures/stability.png",
        ),
        Check(
            id="B6 gap",
            # Pairs: a draw is the same data set in the same order for both weights.
            measure=minus(gap(bounds.HALVED), gap(bounds.PLAIN)),
            threshold=below(0),
            opposite=above(0),
            statement="half the weight on samples with random labels lowers the generalization "
            "gap: the change is {threshold} nats",
            paper="lower",
            controls={
                "no weight on them": minus(gap(bounds.REMOVED), gap(bounds.PLAIN)),
                "half weight on as many others": minus(gap(bounds.MISSED), gap(bounds.PLAIN)),
            },
            evidence="figures/stability.png",
        ),
        Check(
            id="P8",
            measure=minus(bound(bounds.POLICY), bound(bounds.PLAIN)),
            threshold=above(0),
            opposite=below(0),
            over="every",
            source="inferred",
            statement="the bound does not cover the whole policy: with 1.5 on the other samples "
            "the change is {threshold} nats, on every seed",
            controls={
                "measured gap": minus(gap(bounds.POLICY), gap(bounds.PLAIN)),
                "bound with half weight only": minus(bound(bounds.HALVED), bound(bounds.PLAIN)),
            },
            evidence="figures/stability.png",
        ),
    ]


def mean_above_zero(table: str, column: str) -> Measure:
    """Returns the share of the rows of a table in which a column is above 0."""

    def share(tables: Tables) -> float:
        return float((tables[table][column] > 0).mean())

    return Measure(f"share of {column} above 0", share, (0, 1))


def _ratio(tables: Tables) -> float:
    """The median of the bound as a share of the self-influence."""
    table: Any = tables["influence"]
    return float((table["bound"] / table["self_influence"]).median())
