"""L1 to L8, the claims of Chang et al. 2024, and L0 about the planted look-up. Intervals are over
models and, within each, over the sequences that are hidden, deleted or looked up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from experiments.localization_benchmarks.presets import Condition, Preset
from experiments.localization_benchmarks.study import BLOCKS, SPREAD
from interp.experiment.checks import (
    Check,
    Measure,
    Measured,
    Tables,
    above,
    at_least,
    below,
    mean,
    minus,
    over_items,
    rows,
)
from interp.localization import methods
from interp.reporting.looks import in_percent
from interp.reporting.stats import Interval, statistic_interval

PRUNING = ("hard_concrete", "slimming")
BASELINES = ("random", "lowest", "smallest")
# The claim is that recall in INJ is at least this many times chance.
TIMES_CHANCE = 3
# The claim is that a sequence loses at least this many times what it loses to random neurons.
TIMES_RANDOM = 5
_RANKING = {
    "pruning": PRUNING,
    "zero_out and IG": ("zero_out", "integrated_gradients"),
    "activation": ("activation",),
}
_INJECTION = "figures/injection.png"
_TRADE_OFF = "figures/trade_off.png"
_ALL, _FIRST = -1, 0  # in the column `block` of the table `blocks`
_RESAMPLES = 500


def checks(preset: Preset) -> list[Check]:
    """All checks of a preset, of every method that is not a baseline."""
    headline = preset.headline
    judged = _judged()
    deleted = [method for method in sorted(judged) if method not in preset.not_deleted]

    found: list[Check] = []
    for condition in preset.injections:
        found += [_beats_chance(method, condition, preset.least) for method in judged]
    found += [_pruning_leads(preset), *_smaller_is_easier(preset)]
    for blocks in BLOCKS:
        found += [_beats_random(method, blocks, headline) for method in deleted]
        found += _ranks(blocks, headline)
    found += [_costs_others(blocks, preset) for blocks in BLOCKS]
    found += [_own_kind_falls(blocks, headline) for blocks in BLOCKS]
    found += [_no_sum(headline), _not_single(preset)]
    found += [_spread(method, preset.recipe.blocks) for method in SPREAD]
    found += [_finds_look_up(method) for method in judged]
    return found


def _judged() -> list[str]:
    return [method for method in methods() if method not in BASELINES]


def _recall(method: str, condition: Condition, least: float) -> Measure:
    """Recall in INJ among the same number of neurons as were injected, over the sequences that were
    memorized: one that was not is hidden nowhere.

    Args:
        method: the method.
        condition: how sequences were hidden.
        least: the lowest accuracy at which a sequence counts as memorized.
    """
    where = {"condition": condition.name, "multiple": 1, "method": method}

    def by_window(tables: Tables) -> pd.Series:
        chosen = rows(tables["injection"], where)
        memorized = chosen[chosen["accuracy"] >= least]
        return memorized.set_index("window")["recall"]

    return over_items(f"recall by {method}, {condition.name}", by_window, (0, 1))


def _memorized(condition: Condition, least: float) -> Measure:
    """The share of the hidden sequences that were memorized."""

    def by_window(tables: Tables) -> pd.Series:
        chosen = rows(tables["injection"], {"condition": condition.name, "multiple": 1})
        accuracy = chosen.groupby("window")["accuracy"].first()
        return (accuracy >= least).astype(float)

    return over_items(f"share memorized, {condition.name}", by_window, (0, 1))


def _items(measure: Measure, tables: Tables) -> pd.Series:
    assert measure.by_item is not None
    return measure.by_item(tables)


def _best(measures: Sequence[Measure]) -> Measure:
    """The best of several measures, by item: chosen on the even items for the odd ones, and on the
    odd ones for the even ones. Judged on the items that chose it, the best of many would be too
    good."""

    def by_item(tables: Tables) -> pd.Series:
        wide = pd.DataFrame({n: _items(one, tables) for n, one in enumerate(measures)})
        is_odd = np.arange(len(wide)) % 2 == 1
        parts: list[pd.Series] = []
        for judged in (is_odd, ~is_odd):
            # A single item leaves none to choose by.
            chooses = ~judged if (~judged).any() and judged.any() else np.ones_like(judged)
            chosen = wide[chooses].mean().idxmax()
            parts.append(wide.loc[judged, chosen])
        return pd.concat(parts).sort_index()

    bounds = {one.bounds for one in measures}
    return over_items("the best", by_item, bounds.pop() if len(bounds) == 1 else None)


def _of_all(measures: Sequence[Measure]) -> Measure:
    """The mean of several measures, by item."""

    def by_item(tables: Tables) -> pd.Series:
        wide = pd.DataFrame({n: _items(one, tables) for n, one in enumerate(measures)})
        return wide.mean(axis=1)

    return over_items("mean of all", by_item, measures[0].bounds)


def _beats_chance(method: str, condition: Condition, least: float) -> Check:
    where = {"condition": condition.name, "multiple": 1}
    kept = "" if condition.plain else ", whose rows keep their length"
    return Check(
        id=f"L1 {method}, {condition.name}",
        statement=f"where sequences are hidden in {condition.fraction:.3g} of the neurons"
        f"{kept}, {method} finds at least {TIMES_CHANCE} times as many of these as chance: recall "
        "is {threshold}",
        measure=_recall(method, condition, least),
        threshold=at_least(TIMES_CHANCE * condition.fraction),
        # Random neurons have the recall `fraction`. Less than that is the opposite; from there to
        # three times as much, neither is shown.
        opposite=below(condition.fraction),
        evidence=_INJECTION,
        paper="2 to 590 times",
        controls={
            "random": _recall("random", condition, least),
            "smallest": _recall("smallest", condition, least),
            "share of the sequences that were memorized, and so count": _memorized(
                condition, least
            ),
            "loss of all of them before": mean("injection", "before", item="window", **where),
            "and after": mean("injection", "loss", item="window", **where),
        },
    )


def _pruning_leads(preset: Preset) -> Check:
    condition = preset.injections[0]
    pruning = [_recall(method, condition, preset.least) for method in PRUNING]
    others: dict[str, Measure] = {}
    for method in _judged():
        if method not in PRUNING:
            others[method] = _recall(method, condition, preset.least)
    return Check(
        id="L2",
        statement="a pruning method finds the most injected neurons (INJ): recall of the better of "
        "the two minus that of the best other method is {threshold}",
        # Both sides are the best of several, chosen on other sequences than they are judged on: the
        # side with more methods would gain from choosing otherwise.
        measure=minus(_best(pruning), _best(list(others.values()))),
        threshold=above(0),
        opposite=below(0),
        evidence=_INJECTION,
        paper="hard_concrete or slimming first in 8 of 8 columns",
        controls=others,
        testable=preset.recipe.blocks >= 12,  # the paper claims it of GPT-2 and larger models
    )


def _smaller_is_easier(preset: Preset) -> list[Check]:
    """L3: whether a memory in fewer neurons is easier to find, if there are two fractions to
    compare."""
    plain = [condition for condition in preset.injections if condition.plain]
    plain.sort(key=lambda condition: condition.fraction)
    small = plain[0]
    large = plain[-1]
    if small is large:
        return []

    least = preset.least

    def of_all(condition: Condition) -> Measure:
        return _of_all([_recall(method, condition, least) for method in _judged()])

    return [
        Check(
            id="L3",
            statement=f"hard_concrete finds a larger share of the injected neurons where "
            f"{in_percent(small.fraction)} of all are injected than where "
            f"{in_percent(large.fraction)} are",
            measure=minus(
                _recall("hard_concrete", small, least), _recall("hard_concrete", large, least)
            ),
            threshold=above(0),
            opposite=below(0),
            evidence=_INJECTION,
            paper="higher in 4 of 4 models (46-56% and 30-50%)",
            controls={
                "difference of the mean of all methods (chance rises with the share)": minus(
                    of_all(small), of_all(large)
                )
            },
        )
    ]


def _fall(of: str | Sequence[str], blocks: str, headline: float, whose: str = "self") -> Measure:
    """The fall of accuracy in DEL, by target and as a mean over one or several methods.

    It is that of the target itself, or of other memorized sequences (`negative`).
    """
    names = [of] if isinstance(of, str) else list(of)

    def by_target(tables: Tables) -> pd.Series:
        chosen = rows(tables["deletion"], {"fraction": headline, "blocks": blocks})
        wanted = chosen[chosen["method"].isin(names)]
        return -wanted.groupby("target")[f"{whose}_accuracy"].mean()

    return over_items(f"fall by {', '.join(names)}", by_target, (-1, 1))


def _baseline_falls(blocks: str, headline: float) -> dict[str, Measured]:
    return {name: _fall(name, blocks, headline) for name in BASELINES}


def _beats_random(method: str, blocks: str, headline: float) -> Check:
    own = _fall(method, blocks, headline)
    random = _fall("random", blocks, headline)

    # A multiple is subtracted instead of divided by: what random neurons cost can be near 0, where
    # a ratio has no interval.
    def beyond(tables: Tables) -> pd.Series:
        by_chance = _items(random, tables)
        # Where accuracy rises under random neurons, there is no fall to take a multiple of: the
        # rise must not count in the method's favour.
        times = TIMES_RANDOM if by_chance.mean() > 0 else 0
        return _items(own, tables) - times * by_chance

    return Check(
        id=f"L4 {method}, {blocks}",
        statement=f"dropping {in_percent(headline)} of each block's neurons (blocks: {blocks}), "
        f"chosen by {method}, costs a sequence at least {TIMES_RANDOM} times what random ones "
        "cost: the difference is {threshold}",
        measure=over_items("fall beyond random", beyond, (-1 - TIMES_RANDOM, 1 + TIMES_RANDOM)),
        threshold=above(0),
        evidence=_TRADE_OFF,
        paper="28 to 290 times random (GPT-2 XL)",
        controls={method: own, **_baseline_falls(blocks, headline)},
    )


def _ranks(blocks: str, headline: float) -> list[Check]:
    found: list[Check] = []
    for (first, ours), (second, theirs) in pairwise(_RANKING.items()):
        one = _fall(ours, blocks, headline)
        other = _fall(theirs, blocks, headline)
        check = Check(
            id=f"L4 {first} over {second}, {blocks}",
            statement=f"dropping neurons chosen by {first} costs a sequence more accuracy than "
            f"dropping those chosen by {second} (DEL, blocks: {blocks})",
            measure=minus(one, other),
            threshold=above(0),
            opposite=below(0),
            evidence=_TRADE_OFF,
            paper="0.57-0.58 > 0.26-0.46 > 0.25-0.30",
            controls={first: one, second: other, **_baseline_falls(blocks, headline)},
        )
        found.append(check)
    return found


def _costs_others(blocks: str, preset: Preset) -> Check:
    def others_fall(method: str) -> Measured:
        return _fall(method, blocks, preset.headline, "negative")

    controls: dict[str, Measured] = {}
    for method in sorted(methods()):
        if method not in preset.not_deleted:
            # What the others lose says little without what the target itself loses.
            controls[f"own fall, {method}"] = _fall(method, blocks, preset.headline)
            controls[f"fall of the others, {method}"] = others_fall(method)
    return Check(
        id=f"L5 {blocks}",
        statement="dropping neurons chosen by hard_concrete costs other memorized sequences more "
        f"accuracy than dropping those chosen by integrated_gradients (blocks: {blocks})",
        measure=minus(others_fall("hard_concrete"), others_fall("integrated_gradients")),
        threshold=above(0),
        opposite=below(0),
        evidence=_TRADE_OFF,
        paper="0.147 and 0.049 (Pythia-6.9B)",
        controls=controls,
    )


def _own_kind_falls(blocks: str, headline: float) -> Check:
    def fall(method: str, *, same: bool) -> Measure:
        where = {"fraction": headline, "blocks": blocks, "method": method, "same": same}
        return mean("related", "fall", item="target", bounds=(-1, 1), **where)

    def difference(method: str) -> Measured:
        return minus(fall(method, same=True), fall(method, same=False))

    return Check(
        id=f"L6 {blocks}",
        statement="when a sequence's neurons by hard_concrete are dropped, other sequences of its "
        f"own kind lose more accuracy than those of other kinds (blocks: {blocks})",
        measure=difference("hard_concrete"),
        threshold=above(0),
        opposite=below(0),
        evidence="figures/confusion.png",
        paper="confusion matrices: addresses with addresses, poems with poems",
        controls={
            "own kind": fall("hard_concrete", same=True),
            "others": fall("hard_concrete", same=False),
            "difference by zero_out": difference("zero_out"),
            "difference by random": difference("random"),
        },
    )


def _no_sum(headline: float) -> Check:
    where = {"fraction": headline}

    def ratio(tables: Tables) -> Interval:
        chosen = rows(tables["sums"], where)
        # Losses are stored in single precision.
        joint = chosen["joint"].to_numpy(dtype=float)
        alone = chosen["sum"].to_numpy(dtype=float)

        def of_targets(targets: np.ndarray, axis: int = -1) -> Any:
            drawn = targets.astype(int)
            # The ratio of sums: in a mean of ratios, targets whose single effects nearly cancel
            # would decide.
            return joint[drawn].sum(axis) / alone[drawn].sum(axis)

        return statistic_interval([np.arange(len(chosen))], of_targets, resamples=_RESAMPLES)

    return Check(
        id="L7",
        statement="single neurons understate what they do together: the rise of the loss when they "
        "are dropped together, divided by the sum of their own effects, is {threshold}",
        measure=ratio,
        threshold=at_least(1.2),
        opposite=below(1),
        evidence="tables/sums.parquet",
        paper="zero_out is not the best method of DEL",
        controls={
            "joint (nats/token)": mean("sums", "joint", item="target", **where),
            "sum (nats/token)": mean("sums", "sum", item="target", **where),
        },
    )


def _not_single(preset: Preset) -> Check:
    skipped = (*preset.not_deleted, "zero_out")
    others: dict[str, Measure] = {}
    for method in _judged():
        if method not in skipped:
            others[method] = _fall(method, "all", preset.headline)
    zero_out = _fall("zero_out", "all", preset.headline)
    return Check(
        id="L7 rank",
        statement="zero_out is not the best method of DEL: dropping neurons chosen by the best "
        "other method costs a sequence more accuracy",
        measure=minus(_best(list(others.values())), zero_out),
        threshold=above(0),
        opposite=below(0),
        evidence=_TRADE_OFF,
        paper="0.57 to 0.46 (GPT-2 XL), 0.53 to 0.26 (Pythia-2.8B)",
        controls={"zero_out": zero_out, **others},
    )


def _spread(method: str, blocks: int) -> Check:
    def of(block: int) -> Measure:
        where = {"method": method, "evaluated": "self", "block": block}
        return mean("blocks", "fall", item="target", bounds=(-1, 1), **where)

    # The first block is left out, as in the claim: everything passes through it, so that dropping
    # its neurons costs all sequences.
    best_single = _best([of(block) for block in range(_FIRST + 1, blocks)])
    return Check(
        id=f"L8 {method}",
        statement=f"dropping neurons chosen by {method} over all blocks costs more accuracy than "
        "dropping the same number in any single block but the first",
        measure=minus(of(_ALL), best_single),
        threshold=above(0),
        opposite=below(0),
        evidence="figures/blocks.png",
        paper="all layers beat any layer but the first",
        controls={"all": of(_ALL), "first": of(_FIRST), "best other block": best_single},
    )


def _finds_look_up(method: str) -> Check:
    def of(name: str, column: str = "recall") -> Measure:
        return mean("lookup", column, item="window", bounds=(0, 1), method=name)

    return Check(
        id=f"L0 {method}",
        statement=f"{method} finds a planted look-up: the share of the look-up's neurons among the "
        "same number of highest-scoring neurons is {threshold}",
        measure=of(method),
        threshold=at_least(0.5),
        evidence="tables/lookup.parquet",
        source="chosen",
        controls={
            "random": of("random"),
            "its block scores highest": of(method, "block_first"),
        },
    )
