"""What claims and figures are made of: losses per sequence, and how much of what was memorized a
removal removes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.mem_sinks.build import NOTHING
from experiments.mem_sinks.presets import STANDARD
from experiments.mem_sinks.study import DROPPED, OWN, PLAIN
from interp.experiment.checks import Measure, Tables, mean, rows
from interp.reporting.stats import Interval, interpolate, statistic_interval

REPEATED = "repeated"
CANARIES = "canaries"
HELD_OUT = "held out"
# What a set would be like if it had never been presented.
_UNSEEN = {REPEATED: HELD_OUT, CANARIES: "unseen canaries"}


def of_run(run: str, mode: str, data: str, column: str = "loss") -> Measure:
    """Returns a measure of the sequences of a set in a mode, with its interval over sequences."""
    bounds = None if column == "loss" else (0.0, 1.0)
    return mean("losses", column, item="sequence", bounds=bounds, run=run, mode=mode, data=data)


def isolation(run: str, data: str = REPEATED) -> Measure:
    """Returns the isolation of a run: 1 where dropping its sinks brings repeated sequences to the
    loss of sequences of their kind that were never presented, 0 where it changes nothing.

    ISO = (L_rep(drop) - L_rep(own)) / (L_val(drop) - L_rep(own)).
    """
    return _of_losses(
        f"isolation of {run}",
        [(run, DROPPED, data), (run, OWN, data)],
        (run, DROPPED, _UNSEEN[data]),
        lambda dropped, own, held_out: (dropped - own) / (held_out - own),
    )


def gap_closure(run: str, standard: str = STANDARD) -> Measure:
    """Returns how much of the memorization gap of a standard training is not there once the sinks
    are dropped.

    GC = (L_rep(drop) - L_rep(standard)) / (L_val(standard) - L_rep(standard)).
    """
    return _of_losses(
        f"gap closure of {run}",
        [(run, DROPPED, REPEATED), (standard, PLAIN, REPEATED)],
        (standard, PLAIN, HELD_OUT),
        lambda dropped, own, held_out: (dropped - own) / (held_out - own),
    )


def _of_losses(
    label: str,
    repeated: Sequence[tuple[str, str, str]],
    held_out: tuple[str, str, str],
    formula: Callable[..., Any],
) -> Measure:
    """A formula of mean losses, with its interval over sequences: repeated ones, which are the same
    in all their places in it, and held-out ones."""

    def of(tables: Tables) -> Interval:
        of_repeated = [losses(tables, *place) for place in repeated]
        of_held_out = losses(tables, *held_out)

        def value(repeated_rows: Any, held_out_rows: Any, axis: int = -1) -> Any:
            # What is resampled are numbers of sequences, which come back as floats: a repeated
            # sequence is drawn with its loss in every mode at once.
            chosen = repeated_rows.astype(int)
            means = [each[chosen].mean(axis) for each in of_repeated]
            return formula(*means, of_held_out[held_out_rows.astype(int)].mean(axis))

        numbers = [np.arange(len(of_repeated[0])), np.arange(len(of_held_out))]
        return statistic_interval(numbers, value)

    return Measure(label, of)


def losses(tables: Tables, run: str, mode: str, data: str) -> np.ndarray:
    """Returns the loss of each sequence of a set, in the order of the sequences."""
    found: Any = rows(tables["losses"], {"run": run, "mode": mode, "data": data})
    return found.sort_values("sequence")["loss"].to_numpy(dtype=float)


def removal_curve(table: pd.DataFrame, method: str, found_for: str = REPEATED) -> pd.DataFrame:
    """Returns the mean loss of each set, one per column, at each fraction of the neurons that a
    method finds for a set, from 0 on; of random ones over all draws."""
    is_own = (table["method"] == method) & (table["found_for"] == found_for)
    own: Any = table[is_own | (table["method"] == NOTHING)]
    return own.pivot_table(index="fraction", columns="data", values="loss").sort_index()


def held_out_at_equal_memory(method: str, against: str) -> Measure:
    """Returns the loss on held-out text, above that of a model with its sinks dropped, where the
    removal of a method has brought repeated sequences to the loss that they have there.

    It is interpolated between the measured fractions; not measured where no fraction gets there.

    Args:
        method: the method of the removal.
        against: the run with sinks.
    """

    def of(tables: Tables) -> float | None:
        curve = removal_curve(tables["post_hoc"], method)
        # The fraction of neurons is free: what is compared is the price at the same forgetting.
        wanted = losses(tables, against, DROPPED, REPEATED).mean()
        reached = np.flatnonzero(curve[REPEATED].to_numpy() >= wanted)
        # Before any removal, where the standard model has memorized less: nothing to compare.
        if not len(reached) or not reached[0]:
            return None
        around = curve.iloc[reached[0] - 1 : reached[0] + 1]
        (found,) = interpolate([wanted], around[REPEATED], around[HELD_OUT])
        # The same held-out sequences as those of the removal.
        removed = tables["post_hoc"]
        number = removed[removed["data"] == HELD_OUT]["window"].nunique()
        return float(found) - losses(tables, against, DROPPED, HELD_OUT)[:number].mean()

    return Measure(f"held-out loss of {method} minus that of {against}", of)


def removed_share(method: str, fraction: float, data: str) -> Measure:
    """Returns how far the removal of the neurons that a method finds for a repeated set brings it
    on the way to the loss that sequences of its kind that were never presented have before it."""

    def of(tables: Tables) -> float:
        curve = removal_curve(tables["post_hoc"], method, data)
        # The first row is fraction 0, the model as it is.
        before = float(curve[data].iloc[0])
        unseen = float(curve[_UNSEEN[data]].iloc[0])
        return (float(curve.loc[fraction, data]) - before) / (unseen - before)

    return Measure(f"share of the memory of {data} that {method} removes", of)


def recall(method: str, truth: str, selection: str = "highest") -> Measure:
    """Returns the recall of sinks by a method, with its interval over sequences."""
    item = "window"
    where = {"method": method, "truth": truth, "selection": selection}
    return mean("recall", "recall", item=item, bounds=(0.0, 1.0), **where)
