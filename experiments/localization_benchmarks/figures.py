"""The figures of the localization benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.localization_benchmarks.tables import over_seeds
from interp.reporting.plotting import dose_response, intervals, matrix, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp.experiment.checks import Tables

# The sets of the real study, as figures name them.
_SETS = {
    "texts_test": "this text",
    "other_format": "other format",
    "unstudied": "other licences, known",
    "half_known": "other licences, half known",
    "paraphrased": "licences in other words",
    "memorized": "other memorized text",
    "rules": "rules",
    "code": "code",
    "prose": "prose",
}


def injection(recalls: pd.DataFrame) -> Figure:
    """Recall by method under each condition, with the same number of units predicted as injected;
    chance is the injected fraction."""
    shown = _recalls(recalls[recalls["multiple"] == 1])
    chance: dict[str, float] = {}
    for panel, rows in shown.groupby("panel"):
        chance[str(panel)] = float(rows["fraction"].iloc[0])
    return intervals(shown, "method", levels=chance)


def injection_curve(recalls: pd.DataFrame) -> Figure:
    """Recall by the number of units predicted, as a multiple of the number injected."""
    labels = {"multiple": "units predicted, by units injected"}
    return dose_response(_recalls(recalls), "multiple", "method", "panel", labels=labels)


def _recalls(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a panel per condition. Student's interval does not know that a recall lies
    between 0 and 1; it is cut there."""
    bounds = rows[["low", "high"]].clip(0, 1)
    return rows.assign(
        panel="recall, " + rows["condition"] + " injected", low=bounds["low"], high=bounds["high"]
    )


def trade_off(deleted: pd.DataFrame) -> Figure:
    """What a sequence loses against what other memorized sequences and held-out text lose, by
    method, for growing fractions dropped: of all blocks but the first, and of all."""
    import seaborn as sns
    from matplotlib.figure import Figure

    wide: Any = deleted.pivot_table(
        index=["blocks", "method", "fraction"], columns="measure", values="estimate", sort=False
    ).reset_index()
    names = list(wide["method"].unique())
    across = {
        "negative_accuracy": "fall of accuracy, other memorized",
        "loss": "rise of held-out loss",
    }
    with style():
        figure = Figure(figsize=(12, 8), layout="constrained")
        palette = dict(zip(names, sns.color_palette("husl", len(names)), strict=True))
        grid = figure.subplots(wide["blocks"].nunique(), 2, squeeze=False)
        for row, (blocks, part) in zip(grid, wide.groupby("blocks", sort=False), strict=True):
            for axes, (measure, label) in zip(row, across.items(), strict=True):
                _draw_losses(axes, part, measure, palette)
                axes.set(
                    xlabel=f"{label}\n(blocks: {blocks})",
                    ylabel="fall of accuracy, the sequence itself",
                )
        grid[0][1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_losses(axes: Axes, part: Any, measure: str, palette: Mapping[str, Any]) -> None:
    """One line per method: the fall of a sequence's own accuracy against another measure."""
    markers = {"random": "s", "lowest": "v"}
    # Changes of accuracy are drawn as falls, those of the loss as rises.
    sign = -1 if measure == "negative_accuracy" else 1
    for name, line in part.groupby("method", sort=False):
        axes.plot(
            sign * line[measure],
            -line["self_accuracy"],
            marker=markers.get(str(name), "o"),
            label=name,
            color=palette[str(name)],
        )


def correlation(rows: pd.DataFrame) -> Figure:
    """Rank correlation of every two methods over all neurons, mean over targets and seeds."""
    wide: Any = rows.pivot_table(index="method", columns="other", values="correlation")
    return matrix(wide, "Spearman correlation", center=0.0)


def confusion(rows: pd.DataFrame) -> Figure:
    """The mean fall of accuracy by kind of the sequence whose neurons were dropped and of the one
    evaluated."""
    wide: Any = rows.pivot_table(index="category", columns="evaluated", values="fall")
    wide.index.name = "neurons of a sequence of"
    wide.columns.name = "evaluated on others of"
    return matrix(wide, "fall of accuracy")


def blocks(rows: pd.DataFrame) -> Figure:
    """The fall of accuracy when the same number of neurons is dropped in one block, or in all of
    them."""
    where = np.where(rows["block"] < 0, "all blocks", "block " + rows["block"].astype(str))
    shown = rows.assign(panel=rows["method"] + ", " + rows["evaluated"], where=where)
    labels = {panel: f"{panel}: fall" for panel in shown["panel"].unique()}
    return intervals(shown, "where", labels=labels)


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "injection": lambda tables: injection(tables["injection_summary"]),
    "injection_curve": lambda tables: injection_curve(tables["injection_summary"]),
    "trade_off": lambda tables: trade_off(tables["deletion_summary"]),
    "correlation": lambda tables: correlation(tables["correlation"]),
    "confusion": lambda tables: confusion(tables["confusion"]),
    "blocks": lambda tables: blocks(
        over_seeds(tables["blocks"], ["method", "evaluated", "block"], ["fall"])
    ),
}


def _named(effects: pd.DataFrame) -> Any:
    """Rows of the real study's `effects`, with the names that figures give to sets."""
    return effects.assign(data=effects["data"].map(_SETS))


def question(tables: Tables, headline: float) -> Figure:
    """Do the neurons serve this text, or licence language? The rise of the loss of each set of
    windows when each method's neurons are zeroed."""
    shown = _named(tables["effects"])
    is_top = (shown["selected"] == "top") & (shown["fraction"] == headline)
    losses = shown[is_top & (shown["measure"] == "loss")]
    by_set: Any = losses.pivot_table(index="method", columns="data", values="estimate", sort=False)
    table = by_set[list(_SETS.values())]
    table.columns.name = ""
    return matrix(table, f"rise of loss, {headline:.1%} zeroed")


def accuracy(tables: Tables, headline: float) -> Figure:  # noqa: ARG001 - all shares are shown
    """The fall of each set's accuracy by the share of neurons zeroed, for each method."""
    return _doses(tables["effects"], "accuracy", "fall of accuracy")


def loss(tables: Tables, headline: float) -> Figure:  # noqa: ARG001 - all shares are shown
    """The rise of each set's loss by the share of neurons zeroed, for each method."""
    return _doses(tables["effects"], "loss", "rise of loss (nats/token)", "symlog")


def _doses(effects: pd.DataFrame, measure: str, what: str, scale: str | None = None) -> Figure:
    """One panel per method and one line per set."""
    shown = _named(effects)
    is_shown = (shown["selected"] == "top") & (shown["measure"] == measure)
    rows = shown[is_shown].rename(columns={"measure": "what"})
    methods = rows["method"].unique()
    labels = {"fraction": "share of neurons zeroed"}
    for method in methods:
        labels[method] = f"{method}\n{what}"
    scales = dict.fromkeys(methods, scale) if scale else {}
    return dose_response(rows, "fraction", "data", "method", labels=labels, scales=scales)


def controls(tables: Tables, headline: float) -> Figure:
    """What passages that were not scored on lose to each method's neurons and to those of its
    controls."""
    shown = _named(tables["effects"])
    is_judged = (shown["fraction"] == headline) & (shown["data"] == "this text")
    judged = shown[is_judged & (shown["measure"] != "loss")]
    named = judged.assign(which=judged["method"] + ", " + judged["selected"])
    measures = set(named["measure"])
    labels = {measure: f"fall of {measure}, text not scored on" for measure in measures}
    return intervals(named, "which", "measure", labels=labels)


REAL = {"question": question, "accuracy": accuracy, "loss": loss, "controls": controls}
