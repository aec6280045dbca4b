"""The figures of the localization benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.reporting.plotting import dose_response, intervals, matrix, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def injection(recalls: pd.DataFrame) -> Figure:
    """Recall by method under each condition, with as many units predicted as were injected, beside chance."""
    shown = _recalls(recalls[recalls["multiple"] == 1])
    return intervals(shown, "method", levels={str(panel): float(rows["fraction"].iloc[0]) for panel, rows in shown.groupby("panel")})


def injection_curve(recalls: pd.DataFrame) -> Figure:
    """Recall against how many units are predicted, as a multiple of the injected share."""
    shown = _recalls(recalls)
    return dose_response(shown, "multiple", "method", "panel", labels={"multiple": "units predicted, by units injected"})


def _recalls(rows: pd.DataFrame) -> pd.DataFrame:
    bounds = rows[["low", "high"]].clip(0, 1)
    return rows.assign(panel="recall, " + rows["condition"] + " injected", low=bounds["low"], high=bounds["high"])


def trade_off(deleted: pd.DataFrame) -> Figure:
    """What a sequence loses against what other memorized sequences and held-out text lose, by method, for growing shares dropped: of all
    blocks but the first, and of all."""
    import seaborn as sns
    from matplotlib.figure import Figure

    wide: Any = deleted.pivot_table(index=["blocks", "method", "fraction"], columns="measure", values="estimate", sort=False).reset_index()
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
                    sign, mark = (-1 if x == "negative_accuracy" else 1), {"random": "s", "lowest": "v"}.get(str(name), "o")
                    axes.plot(sign * line[x], -line["self_accuracy"], marker=mark, label=name, color=palette[str(name)])
                axes.set(xlabel=f"{label}\n(blocks: {blocks})", ylabel="fall of accuracy, the sequence itself")
        grid[0][1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def correlation(rows: pd.DataFrame) -> Figure:
    """Rank correlation of every two methods over all neurons, mean over targets and seeds."""
    wide: Any = rows.pivot_table(index="method", columns="other", values="correlation")
    return matrix(wide, "Spearman correlation", center=0.0)


def confusion(rows: pd.DataFrame) -> Figure:
    """The mean fall of accuracy by kind of the sequence whose neurons were dropped and of the one evaluated."""
    wide: Any = rows.pivot_table(index="category", columns="evaluated", values="fall")
    wide.index.name, wide.columns.name = "neurons of a sequence of", "evaluated on others of"
    return matrix(wide, "fall of accuracy")


def blocks(rows: pd.DataFrame) -> Figure:
    """The fall of accuracy when the same number of neurons is dropped in one block, or in all of them."""
    shown = rows.assign(
        panel=rows["method"] + ", " + rows["evaluated"],
        where=np.where(rows["block"] < 0, "all blocks", "block " + rows["block"].astype(str)),
    )
    return intervals(shown, "where", labels={panel: f"{panel}: fall" for panel in shown["panel"].unique()})


_SETS = {
    "texts_test": "this text", "other_format": "other format",
    "unstudied": "other licences, known", "half_known": "other licences, half known",
    "paraphrased": "licences in other words", "memorized": "other memorized text", "rules": "rules", "code": "code", "prose": "prose",
}  # fmt: skip


def real(effects: pd.DataFrame, headline: float) -> dict[str, Figure]:
    """Of this text, or of licence language: what each set of windows loses as each method's neurons are zeroed, and the controls.

    `effects`: rows of `real.summary`.
    """
    shown: Any = effects.assign(data=effects["data"].map(_SETS))
    top = shown[shown["selected"] == "top"]
    at = top[(top["fraction"] == headline) & (top["measure"] == "loss")]
    table: Any = at.pivot_table(index="method", columns="data", values="estimate", sort=False)[list(_SETS.values())]
    table.columns.name = ""
    accuracy, loss = (top[top["measure"] == measure].rename(columns={"measure": "what"}) for measure in ("accuracy", "loss"))
    judged = shown[(shown["fraction"] == headline) & (shown["data"] == "this text") & (shown["measure"] != "loss")]
    controls = judged.assign(which=judged["method"] + ", " + judged["selected"])
    scales = dict.fromkeys(loss["method"].unique(), "symlog")
    named = {"fraction": "share of neurons zeroed"}
    return {
        "question": matrix(table, f"rise of loss, {headline:.1%} zeroed"),
        "accuracy": dose_response(accuracy, "fraction", "data", "method", labels=named | _titles(accuracy, "fall of accuracy")),
        "loss": dose_response(loss, "fraction", "data", "method", labels=named | _titles(loss, "rise of loss (nats/token)"), scales=scales),
        "controls": intervals(
            controls, "which", "measure", labels={m: f"fall of {m}, text not scored on" for m in set(controls["measure"])}
        ),
    }


def _titles(rows: pd.DataFrame, what: str) -> dict[str, str]:
    return {method: f"{method}\n{what}" for method in rows["method"].unique()}
