"""The figures of the localization benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.localization_benchmarks.tables import over_seeds
from interp.reporting.plotting import dose_response, intervals, matrix, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.experiment.checks import Tables


def injection(recalls: pd.DataFrame) -> Figure:
    """Recall by method under each condition, with as many units predicted as were injected, beside
    chance."""
    shown = _recalls(recalls[recalls["multiple"] == 1])
    return intervals(
        shown,
        "method",
        levels={
            str(panel): float(rows["fraction"].iloc[0]) for panel, rows in shown.groupby("panel")
        },
    )


def injection_curve(recalls: pd.DataFrame) -> Figure:
    """Recall against how many units are predicted, as a multiple of the injected share."""
    shown = _recalls(recalls)
    return dose_response(
        shown,
        "multiple",
        "method",
        "panel",
        labels={"multiple": "units predicted, by units injected"},
    )


def _recalls(rows: pd.DataFrame) -> pd.DataFrame:
    bounds = rows[["low", "high"]].clip(0, 1)
    return rows.assign(
        panel="recall, " + rows["condition"] + " injected", low=bounds["low"], high=bounds["high"]
    )


def trade_off(deleted: pd.DataFrame) -> Figure:
    """What a sequence loses against what other memorized sequences and held-out text lose, by
    method, for growing shares dropped: of all blocks but the first, and of all."""
    import seaborn as sns
    from matplotlib.figure import Figure

    wide: Any = deleted.pivot_table(
        index=["blocks", "method", "fraction"], columns="measure", values="estimate", sort=False
    ).reset_index()
    names, across = (
        list(wide["method"].unique()),
        {"negative_accuracy": "fall of accuracy, other memorized", "loss": "rise of held-out loss"},
    )
    with style():
        figure = Figure(figsize=(12, 8), layout="constrained")
        palette = dict(zip(names, sns.color_palette("husl", len(names)), strict=True))
        grid = figure.subplots(wide["blocks"].nunique(), 2, squeeze=False)
        for row, (blocks, part) in zip(grid, wide.groupby("blocks", sort=False), strict=True):
            for axes, (x, label) in zip(row, across.items(), strict=True):
                for name, line in part.groupby("method", sort=False):
                    sign, mark = (
                        (-1 if x == "negative_accuracy" else 1),
                        {"random": "s", "lowest": "v"}.get(str(name), "o"),
                    )
                    axes.plot(
                        sign * line[x],
                        -line["self_accuracy"],
                        marker=mark,
                        label=name,
                        color=palette[str(name)],
                    )
                axes.set(
                    xlabel=f"{label}\n(blocks: {blocks})",
                    ylabel="fall of accuracy, the sequence itself",
                )
        grid[0][1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def correlation(rows: pd.DataFrame) -> Figure:
    """Rank correlation of every two methods over all neurons, mean over targets and seeds."""
    wide: Any = rows.pivot_table(index="method", columns="other", values="correlation")
    return matrix(wide, "Spearman correlation", center=0.0)


def confusion(rows: pd.DataFrame) -> Figure:
    """The mean fall of accuracy by kind of the sequence whose neurons were dropped and of the one
    evaluated."""
    wide: Any = rows.pivot_table(index="category", columns="evaluated", values="fall")
    wide.index.name, wide.columns.name = "neurons of a sequence of", "evaluated on others of"
    return matrix(wide, "fall of accuracy")


def blocks(rows: pd.DataFrame) -> Figure:
    """The fall of accuracy when the same number of neurons is dropped in one block, or in all of
    them."""
    shown = rows.assign(
        panel=rows["method"] + ", " + rows["evaluated"],
        where=np.where(rows["block"] < 0, "all blocks", "block " + rows["block"].astype(str)),
    )
    return intervals(
        shown, "where", labels={panel: f"{panel}: fall" for panel in shown["panel"].unique()}
    )


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


_SETS = {
    "texts_test": "this text", "other_format": "other format",
    "unstudied": "other licences, known", "half_known": "other licences, half known",
    "paraphrased": "licences in other words", "memorized": "other memorized text", "rules": "rules", "code": "code", "prose": "prose",
}  # fmt: skip


def _named(effects: pd.DataFrame) -> Any:
    """Rows of the real study's `effects`, with sets as figures call them."""
    return effects.assign(data=effects["data"].map(_SETS))


def question(tables: Tables, headline: float) -> Figure:
    """Of this text, or of licence language: by how much the loss of each set of windows rises as
    each method's neurons are zeroed."""
    shown = _named(tables["effects"])
    at = shown[
        (shown["selected"] == "top")
        & (shown["fraction"] == headline)
        & (shown["measure"] == "loss")
    ]
    table: Any = at.pivot_table(index="method", columns="data", values="estimate", sort=False)[
        list(_SETS.values())
    ]
    table.columns.name = ""
    return matrix(table, f"rise of loss, {headline:.1%} zeroed")


def accuracy(tables: Tables, headline: float) -> Figure:  # noqa: ARG001 - all shares are shown
    """The fall of each set's accuracy against the share of neurons zeroed, by method."""
    return _doses(tables["effects"], "accuracy", "fall of accuracy")


def loss(tables: Tables, headline: float) -> Figure:  # noqa: ARG001 - all shares are shown
    """The rise of each set's loss against the share of neurons zeroed, by method."""
    return _doses(tables["effects"], "loss", "rise of loss (nats/token)", "symlog")


def _doses(effects: pd.DataFrame, measure: str, what: str, scale: str | None = None) -> Figure:
    shown = _named(effects)
    rows = shown[(shown["selected"] == "top") & (shown["measure"] == measure)].rename(
        columns={"measure": "what"}
    )
    methods = rows["method"].unique()
    labels = {"fraction": "share of neurons zeroed"} | {
        method: f"{method}\n{what}" for method in methods
    }
    return dose_response(
        rows,
        "fraction",
        "data",
        "method",
        labels=labels,
        scales=dict.fromkeys(methods, scale) if scale else {},
    )


def controls(tables: Tables, headline: float) -> Figure:
    """What passages that were not scored on lose to each method's neurons and to those of its
    controls."""
    shown = _named(tables["effects"])
    judged = shown[
        (shown["fraction"] == headline)
        & (shown["data"] == "this text")
        & (shown["measure"] != "loss")
    ]
    named = judged.assign(which=judged["method"] + ", " + judged["selected"])
    labels = {
        measure: f"fall of {measure}, text not scored on" for measure in set(named["measure"])
    }
    return intervals(named, "which", "measure", labels=labels)


REAL = {"question": question, "accuracy": accuracy, "loss": loss, "controls": controls}
