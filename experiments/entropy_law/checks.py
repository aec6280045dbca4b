"""The claims of the paper (A1 to A8), the controls that decide what they mean (C1 to C4), and what
else is asked (P1 to P5). Thresholds were fixed on pilots with other seeds and other code.

The text of the paper was not at hand: its claims are known from abstracts, reviews and summaries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from experiments.entropy_law.presets import Preset
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
    rows,
)
from interp.memorization.entropy.regression import FEWEST_TEXTS
from interp.reporting.stats import Interval, bootstrap

_BETWEEN = (-1.0, 1.0)
_LAW = at_least(0.7)
_P = 0.05
# When the strings are judged: by how far their mean score has fallen, not by the number of steps.
_EARLY = 0.9
_LATE = 0.25


def checks(preset: Preset) -> list[Check]:
    """All checks."""
    return [
        *_law(),
        *_controls(),
        *_slices(preset),
        *_inference(),
        *_gibberish(preset),
        *_strings(),
        *_copies(preset),
    ]


def correlation(quantity: str, data: str) -> Measure:
    """Returns the correlation of one quantity with the score, with its interval over texts."""
    where = {"quantity": quantity, "data": data}
    return Measure(f"r of {quantity} ({data})", _with_interval("fits", where), _BETWEEN)


def baseline(name: str, data: str) -> Measure:
    """Returns the correlation of what a single suffix says, with its interval over texts."""
    where = {"baseline": name, "data": data}
    return Measure(f"r of {name} ({data})", _with_interval("baselines", where), _BETWEEN)


def _size_of(measure: Measure) -> Measure:
    """A correlation without its sign."""

    def of(tables: Tables) -> Interval | None:
        found = measure(tables)
        if not isinstance(found, Interval):
            return None
        # An interval with 0 inside is folded: sizes begin at 0, and end at the end that is further
        # out.
        ends = sorted((abs(found.low), abs(found.high)))
        low = 0.0 if found.low <= 0 <= found.high else ends[0]
        return Interval(abs(found.estimate), low, ends[1], found.n)

    return Measure(f"|{measure.label}|", of, (0, 1))


def _with_interval(table: str, where: dict[str, str]) -> Callable[[Tables], Interval | None]:
    """Reads a correlation with the interval beside it; None where there is no interval, because a
    correlation of which the error is not known would pass for one without error."""

    def of(tables: Tables) -> Interval | None:
        row: Any = rows(tables[table], where).iloc[0]
        r, low, high = (float(row[name]) for name in ("r", "low", "high"))
        if np.isnan([r, low, high]).any():
            return None
        # The interval is one of groups of texts that are left out in turn.
        return Interval(r, min(low, r), max(high, r), FEWEST_TEXTS)

    return of


def of_shuffled(quantity: str, data: str) -> Measure:
    """Returns the mean correlation of shuffled scores."""
    where = {"quantity": quantity, "data": data}
    label = f"r of {quantity} with shuffled scores ({data})"
    return Measure(label, _number("fits", "null_mean", where), _BETWEEN)


def _of_size(data: str) -> Measure:
    """The correlation of the number of windows in a level with its score."""
    where = {"quantity": "windows", "data": data}
    return Measure(f"r of the level's size ({data})", _number("fits", "r", where), _BETWEEN)


def _number(table: str, column: str, where: dict[str, str]) -> Callable[[Tables], float | None]:
    """Reads one number; None where it could not be measured, such as the line of two levels."""

    def of(tables: Tables) -> float | None:
        value = float(rows(tables[table], where)[column].iloc[0])
        return None if np.isnan(value) else value

    return of


def _beats_shuffles(quantity: str, data: str) -> Callable[[Tables], bool]:
    """Whether the permutation test of a fit is passed."""

    def holds(tables: Tables) -> bool:
        found = rows(tables["fits"], {"quantity": quantity, "data": data})
        # A fit without an interval is not measured (see `_with_interval`), and has failed nothing.
        # One that is measured, but without a p, which is NaN, has not passed.
        is_measured = found["low"].notna()
        return bool((found["p"][is_measured] < _P).all())

    return holds


def _law() -> list[Check]:
    """A1 to A4: the law on data that was seen twice."""
    data = "seen twice"
    raw = correlation("entropy", data)
    equal_size = correlation("rarefied", data)
    shuffled = of_shuffled("entropy", data)
    entropy = baseline("entropy", data)
    compressed = baseline("zlib", data)
    return [
        Check(
            id="A1 raw",
            measure=raw,
            threshold=at_least(0.8),
            statement="the entropy of a level grows with its score: r is {threshold}",
            paper="about 0.9, up to 0.972",
            controls={
                "shuffled scores": shuffled,
                "Miller-Madow": correlation("miller_madow", data),
                "number of windows in the level": _of_size(data),
                "without trivial continuations": correlation("entropy", "without trivial"),
            },
            evidence="figures/law.png",
        ),
        Check(
            id="A1 equal size",
            measure=equal_size,
            threshold=_LAW,
            opposite=below(0),
            requires=_beats_shuffles("rarefied", data),
            statement="with bags of equal size the law holds: r is {threshold}, with p below 0.05 "
            "against shuffled scores on each seed",
            controls={
                "shuffled scores": of_shuffled("rarefied", data),
                "without trivial continuations": correlation("rarefied", "without trivial"),
            },
            evidence="figures/law.png",
        ),
        Check(
            id="A2 entropy",
            measure=_size_of(entropy),
            threshold=at_most(0.5),
            statement="the entropy of a single suffix hardly tells its score: |r| is {threshold}",
            paper="weak",
            controls={"level sets, equal size": equal_size},
            evidence="figures/baselines.png",
        ),
        Check(
            id="A2 zlib",
            measure=_size_of(compressed),
            threshold=at_most(0.5),
            statement="neither does its compressed size: |r| is {threshold}",
            paper="weak",
            controls={"log-perplexity": baseline("log_perplexity", data)},
            evidence="figures/baselines.png",
        ),
        Check(
            id="A2 gap",
            measure=minus(equal_size, entropy),
            threshold=at_least(0.3),
            statement="r of level sets at equal size minus r of single suffixes is {threshold}",
            controls={"level sets": equal_size, "single suffixes": entropy},
            evidence="figures/baselines.png",
        ),
        Check(
            id="A3",
            measure=correlation("log_types", data),
            threshold=at_least(0.8),
            statement="the number of different tokens grows exponentially with the score: r of its "
            "logarithm is {threshold}",
            paper="exponentially smaller in well-memorized levels",
            controls={"shuffled scores": of_shuffled("log_types", data)},
            evidence="figures/law.png",
        ),
        Check(
            id="A3 equal size",
            measure=correlation("rarefied_log_types", data),
            threshold=above(0),
            opposite=below(0),
            requires=_beats_shuffles("rarefied_log_types", data),
            statement="so it does at equal size: r is {threshold}, with p below 0.05 against "
            "shuffled scores on each seed",
            controls={"shuffled scores": of_shuffled("rarefied_log_types", data)},
            evidence="tables/fits.parquet",
        ),
        Check(
            id="A4",
            # The sizes of the levels alone give a correlation, which is that of shuffled scores.
            measure=minus(correlation("normalized", data), of_shuffled("normalized", data)),
            threshold=below(0),
            opposite=above(0),
            statement="normalized entropy falls with the score, by more than shuffled scores make "
            "it: the difference of the two r is {threshold}",
            paper="linear with a negative slope",
            controls={
                "r": correlation("normalized", data),
                "shuffled scores": of_shuffled("normalized", data),
                "r at equal size": correlation("rarefied_normalized", data),
            },
            evidence="figures/law.png",
        ),
    ]


def _controls() -> list[Check]:
    """C1 to C3: shuffled scores, and data that was never seen."""
    return [
        Check(
            id="C1",
            measure=of_shuffled("entropy", "seen twice"),
            threshold=at_least(0.7),
            source="measured",
            statement="shuffled scores alone give a raw r that is {threshold}: the size of the "
            "levels makes most of it",
            controls={"real scores": correlation("entropy", "seen twice")},
            evidence="figures/law.png",
        ),
        Check(
            id="C2",
            measure=correlation("rarefied", "unseen"),
            threshold=_LAW,
            opposite=below(0),
            requires=_beats_shuffles("rarefied", "unseen"),
            source="measured",
            statement="the law holds on text that the model never saw: r at equal size is "
            "{threshold}, so that it is about predictability and not only about memorization",
            controls={"seen twice": correlation("rarefied", "seen twice")},
            evidence="figures/law.png",
        ),
        Check(
            id="C3",
            measure=minus(
                correlation("rarefied", "with planted copies"),
                correlation("rarefied", "seen twice"),
            ),
            threshold=below(0),
            opposite=above(0),
            source="measured",
            statement="planted copies, which are memorized whatever their entropy, weaken the law: "
            "the difference of r at equal size is {threshold}",
            controls={
                "with planted copies": correlation("rarefied", "with planted copies"),
                "without": correlation("rarefied", "seen twice"),
            },
            evidence="tables/fits.parquet",
        ),
    ]


def _slices(preset: Preset) -> list[Check]:
    """A5 and A8: other windows, other files, another architecture."""
    slices = [f"{length} + {length} tokens" for length in preset.slice_lengths]
    found = [_slice(name) for name in [*slices, "files of packages"]]
    name = "other architecture"
    found.append(
        Check(
            id="A8",
            measure=correlation("rarefied", name),
            threshold=above(0),
            opposite=below(0),
            requires=_beats_shuffles("rarefied", name),
            statement="the law holds in another architecture: r at equal size is {threshold}, with "
            "p below 0.05 against shuffled scores on each seed",
            paper="four families of models",
            controls={
                "shuffled scores": of_shuffled("rarefied", name),
                "raw": correlation("entropy", name),
            },
            evidence="figures/slices.png",
        )
    )
    return found


def _slice(name: str) -> Check:
    return Check(
        id=f"A5 {name}",
        measure=correlation("rarefied", name),
        threshold=_LAW,
        opposite=below(0),
        requires=_beats_shuffles("rarefied", name),
        statement=f"the law holds on a slice ({name}): r at equal size is {{threshold}}, with p "
        "below 0.05 against shuffled scores on each seed",
        paper="persists",
        controls={
            "shuffled scores": of_shuffled("rarefied", name),
            "raw": correlation("entropy", name),
        },
        evidence="figures/slices.png",
    )


def auc(statistic: str, data: str) -> Measure:
    """Returns how well a statistic tells sets of windows of the named data from sets of unseen
    windows, which are always those of the same half of the unseen documents; `unseen` is the other
    half."""
    where = {"statistic": statistic, "data": data}
    return Measure(f"AUC of {statistic} ({data})", _number("inference", "auc", where), (0, 1))


def _inference() -> list[Check]:
    """A7: whether the intercept tells what was trained on, and whether plain means do it as
    well."""
    found: list[Check] = []
    for data in ("once", "twice", "often"):
        intercept = auc("intercept", data)
        found += [
            Check(
                id=f"A7 {data}",
                measure=intercept,
                threshold=at_least(0.9),
                statement=f"the intercept tells sets of data seen {data} from unseen sets: AUC is "
                "{threshold}",
                controls={
                    "mean edit distance": auc("edit_distance", data),
                    "mean loss": auc("loss", data),
                    "unseen against unseen": auc("intercept", "unseen"),
                },
                evidence="figures/inference.png",
            ),
            Check(
                id=f"C4 {data}",
                # Both are one number per seed, without an interval: it is over seeds alone.
                measure=minus(intercept, auc("edit_distance", data)),
                threshold=above(0),
                opposite=below(0),
                source="chosen",
                statement=f"on data seen {data} the intercept beats the mean edit distance: the "
                "difference of AUC is {threshold}",
                controls={
                    "intercept": intercept,
                    "mean edit distance": auc("edit_distance", data),
                    "mean loss": auc("loss", data),
                },
                evidence="figures/inference.png",
            ),
        ]
    return found


def _last_score_of(kind: str) -> Measure:
    """Mean score of one kind of string at the last step of training."""

    def of_items(tables: Tables) -> pd.Series:
        found: Any = rows(tables["kinds"], {"kind": kind})
        is_last = found["step"] == found["step"].max()
        return found[is_last].set_index("string")["score"]

    return Measure(f"score of {kind}", lambda tables: bootstrap(of_items(tables)), None, of_items)


def _gibberish(preset: Preset) -> list[Check]:
    """A6 and P1, P2: gibberish has little entropy; is it easy to memorize?"""
    gap = Measure(
        "gap of entropies over its standard deviation",
        lambda tables: float((tables["gap"]["gap"] / tables["gap"]["sd"]).iloc[0]),
    )
    found = [
        Check(
            id="A6",
            measure=gap,
            threshold=at_least(2),
            opposite=below(0),
            statement="gibberish has less token entropy than code at equal bag size: the gap is "
            "{threshold} standard deviations over bags",
            controls={
                "gibberish, bits": mean("gap", "first"),
                "code, bits": mean("gap", "second"),
            },
            evidence="tables/gap.parquet",
        )
    ]
    for name, kinds, seen in (
        ("P1", ("gibberish", "code"), f"seen {preset.gibberish_copies} times"),
        ("P2", ("gibberish, unseen", "code, unseen"), "never seen"),
    ):
        first, second = map(_last_score_of, kinds)
        found.append(
            Check(
                id=name,
                # Strings of both kinds are numbered from 0 and so are taken as pairs. They are
                # none, but a pairing at random leaves the variance of the difference what it is.
                measure=minus(first, second),
                threshold=below(0),
                opposite=above(0),
                source="inferred",
                statement=f"after training, gibberish that was {seen} has a lower score than code "
                "that was seen as often: the difference is {threshold} tokens",
                controls={"gibberish": first, "code": second},
                evidence="figures/gibberish.png",
            )
        )
    return found


def slope(strings: pd.DataFrame) -> float:
    """Returns the least-squares slope of the score per doubling of the alphabet."""
    sizes = np.log2(strings["alphabet"].to_numpy(dtype=np.float64))
    scores = strings["score"].to_numpy(dtype=np.float64)
    return float(np.polyfit(sizes, scores, 1)[0])


def step_below(strings: pd.DataFrame, share: float) -> int:
    """Returns the first step at which the mean score is below a share of what it was before
    training; the last step if it never is."""
    means: Any = strings.groupby("step")["score"].mean().sort_index()
    is_below = means < share * means.iloc[0]
    # Of booleans, `idxmax` is the first that is True.
    return int(is_below.idxmax() if is_below.any() else means.index[-1])


def _slope_when(share: float) -> Measure:
    """The slope at the first step below a share of the score, with its interval over strings."""

    def of(tables: Tables) -> Interval:
        strings = tables["strings"]
        step = step_below(strings, share)
        found: Any = rows(strings, {"step": step}).reset_index(drop=True)
        rng = np.random.default_rng(0)
        by_alphabet = [part.index.to_numpy() for _, part in found.groupby("alphabet")]
        drawn: list[float] = []
        for _ in range(500):
            # Drawn within each alphabet: every draw then has all sizes, and a slope.
            chosen = np.concatenate([rng.choice(part, len(part)) for part in by_alphabet])
            drawn.append(slope(found.iloc[chosen]))
        low, high = np.quantile(drawn, [0.025, 0.975])
        estimate = slope(found)
        return Interval(estimate, min(float(low), estimate), max(float(high), estimate), len(found))

    return Measure(f"slope when the mean score is below {share:.0%}", of)


def _strings() -> list[Check]:
    """P3 and P4: on random strings the sign depends on how far training is."""
    early = _slope_when(_EARLY)
    late = _slope_when(_LATE)
    return [
        Check(
            id="P3",
            measure=early,
            threshold=above(0),
            opposite=below(0),
            source="measured",
            statement="early in training random strings over small alphabets are reproduced "
            f"better: when the mean score has fallen below {_EARLY:.0%}, the slope is "
            "{threshold} tokens per doubling of the alphabet",
            controls={"late": late},
            evidence="figures/strings.png",
        ),
        Check(
            id="P4",
            measure=late,
            threshold=below(0),
            opposite=above(0),
            source="measured",
            statement="later those over large alphabets are memorized first: when the mean score "
            f"has fallen below {_LATE:.0%}, the slope is {{threshold}} tokens per doubling",
            controls={"early": early},
            evidence="figures/strings.png",
        ),
    ]


def _copies(preset: Preset) -> list[Check]:
    """P5: extraction against copies."""
    many, few = max(preset.copies), min(preset.copies)

    def exact(data: str) -> Measure:
        return mean("windows", "exact", item="text", bounds=(0, 1), data=data)

    return [
        Check(
            id="P5",
            measure=minus(exact(f"{many} times"), exact(f"{few} times")),
            threshold=above(0),
            opposite=below(0),
            source="measured",
            statement=f"passages planted {many} times are extracted more often than those planted "
            f"{few} times: the difference of shares is {{threshold}}",
            controls={
                f"{many} times": exact(f"{many} times"),
                f"{few} times": exact(f"{few} times"),
                "seen once": exact("once"),
                "unseen": exact("unseen"),
            },
            evidence="figures/copies.png",
        )
    ]
