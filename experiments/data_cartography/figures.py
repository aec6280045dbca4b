"""The figures: the map, what each score separates, and what second trainings leak and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.data_cartography.build import DEDUPLICATE, HALVE, NOTHING, POLICY, PRUNE
from experiments.data_cartography.corpus import CANARY
from experiments.data_cartography.study import (
    AMONG_CANARIES,
    CANARIES,
    HELD_OUT,
    REPEATED,
    SINGLE,
)
from interp.experiment.checks import Tables
from interp.mitigation.data_map import data_map
from interp.reporting.layout import LEVEL, finish, new_figure, style
from interp.reporting.looks import looks
from interp.reporting.panels import bars, lines, over_seeds, panels, ranges
from interp.reporting.plotting import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EXTRACTED = "canaries extracted"
_RECALLED = "tokens of canaries recalled"
_COST = "rise of the loss on held-out text"
_MEMBERSHIP = "membership of training text"
_UNITS = {
    _EXTRACTED: "share of the canaries",
    _RECALLED: "share of the tokens",
    _COST: "nats per token",
    _MEMBERSHIP: "AUC by the loss",
}


def _of_first_seed(table: pd.DataFrame, model: str) -> Any:
    chosen = (table["model"] == model) & (table["seed"] == table["seed"].min())
    return table[chosen]


def _map(tables: Tables, column: str, score: str, title: str) -> Figure:
    # Of one seed: the thresholds are those of its examples.
    table = _of_first_seed(tables["map"], "GPT")
    return data_map(
        table["difficulty"].to_numpy(),
        table[column].to_numpy(),
        canaries=((table["kind"] == CANARY) & (table["copies"] > 1)).to_numpy(),
        score=score,
        title=title,
    )


def published_map(tables: Tables) -> Figure:
    """The map of the paper, with repeated canaries marked."""
    return _map(
        tables,
        "forget_events",
        "memorization: share of moments with a forget event",
        "Repeated canaries on the published map (GPT, one seed, each sequence once)",
    )


def drop_map(tables: Tables) -> Figure:
    """The same map with the loss drop in the place of the published score."""
    return _map(
        tables,
        "loss_drop",
        "memorization: loss drop (nats per token)",
        "Repeated canaries on a map by the loss drop (GPT, one seed, each sequence once)",
    )


def separation(tables: Tables) -> Figure:
    """The AUC of every score, for each contrast and model."""
    table = tables["separation"].assign(
        panel=lambda frame: frame["model"] + ": " + frame["contrast"]
    )
    order = [
        f"{model}: {contrast}"
        for model in table["model"].unique()
        for contrast in (CANARIES, REPEATED, SINGLE, AMONG_CANARIES)
    ]
    return ranges(
        pd.concat([table[table["panel"] == name] for name in order]),
        "score",
        "panel",
        "auc",
        label="AUC",
        value_of_level=0.5,
        level="chance",
        title="What each score of the loss history tells apart",
    )


def trajectories(tables: Tables) -> Figure:
    """How the loss of each kind of row moves."""
    table = tables["trajectories"]
    draw = lines(
        table, "step", "loss", "rows", xlabel="optimizer steps", ylabel="loss (nats per token)"
    )
    return panels(
        table,
        ["model"],
        draw,
        title="Repeated rows are learned once and stay learned",
        key=over_seeds(table, "line", "band"),
        width=5.0,
        height=3.4,
        across=2,
    )


def _measured(tables: Tables) -> pd.DataFrame:
    """What each run leaks and costs: one row per run and measure."""
    keys = ["model", "action", "by", "share", "seed"]
    sequences = tables["sequences"]
    is_canary = sequences["kind"] == CANARY
    most = sequences["copies"] == sequences["copies"].max()
    leaked: Any = sequences[is_canary & most].groupby(keys, sort=False)[["exact", "accuracy"]]
    outside: Any = sequences[sequences["kind"] == HELD_OUT].groupby(keys, sort=False)["loss"]
    wide = leaked.mean().join(outside.mean()).reset_index()
    wide = wide.merge(tables["runs"][[*keys, "auc_text"]], on=keys)
    plain: Any = wide[wide["action"] == NOTHING].set_index(["model", "seed"])["loss"]
    # The loss of the unchanged training of the same model and seed, for each row of `wide`.
    before = plain.loc[list(zip(wide["model"], wide["seed"], strict=True))].to_numpy()
    wide["loss"] -= before
    named = wide.rename(
        columns={
            "exact": _EXTRACTED,
            "accuracy": _RECALLED,
            "loss": _COST,
            "auc_text": _MEMBERSHIP,
        }
    )
    return named.melt(keys, list(_UNITS), "measure", "value")


def pruning(tables: Tables) -> Figure:
    """What is extracted, and what it costs, by the share of rows that are pruned."""
    measured = _measured(tables)
    pruned = measured[measured["action"] == PRUNE]
    # Without pruning, all scores have the same model: it is the first point of each line.
    none: Any = measured[measured["action"] == NOTHING]
    table = pd.concat([pruned, *(none.assign(by=name) for name in pruned["by"].unique())])
    shown = table[table["measure"].isin([_EXTRACTED, _RECALLED, _COST])]
    # One row of panels per model.
    shown = shown.assign(pruned=100 * shown["share"]).sort_values("model", kind="stable")
    draw = lines(
        shown,
        "pruned",
        "value",
        "by",
        xlabel="rows pruned (percent)",
        spread="line",
    )

    def with_unit(part: pd.DataFrame, axes: Axes) -> None:
        draw(part, axes)
        axes.set_ylabel(_UNITS[part["measure"].iloc[0]])

    return panels(
        shown,
        ["model", "measure"],
        with_unit,
        title="Training again without the rows that a score ranks highest",
        key=over_seeds(shown, "point") + "; lines: what rows are pruned by",
    )


def reweighting(tables: Tables) -> Figure:
    """What is left after down-weighting, the whole policy, and deduplication."""
    measured = _measured(tables)
    names = {
        NOTHING: "nothing changed",
        POLICY: "whole policy",
        DEDUPLICATE: DEDUPLICATE,
    }
    by = {
        "forget events": "half weight, high published score",
        "random": "half weight on random rows",
        "loss drop": "half weight, largest loss drop",
    }
    chosen: Any = measured[measured["action"].isin([*names, HALVE]) & (measured["model"] == "GPT")]
    of_score = chosen["by"].map(by)
    run = of_score.where(chosen["action"] == HALVE, chosen["action"].map(names))
    order = [names[NOTHING], *by.values(), names[POLICY], names[DEDUPLICATE]]
    groups: Any = chosen.assign(training=run).groupby(["measure", "training"], sort=False)
    spread = groups["value"].agg(estimate="mean", low="min", high="max").reset_index()
    by_row = spread.set_index("training").loc[order].reset_index()
    return intervals(
        by_row,
        "training",
        "measure",
        labels=_UNITS,
        titles={name: name for name in _UNITS},
        levels=spread[spread["training"] == names[NOTHING]].set_index("measure")["estimate"],
        level="nothing changed",
        title="Training again with other weights, or without copies (GPT)",
        key=over_seeds(chosen, "point", "line"),
        across=4,
    )


def influence(tables: Tables) -> Figure:
    """The self-influence of each sample against its lower bound."""
    table = tables["influence"]
    with style():
        figure = new_figure(6.4, 4.8)
        axes = figure.subplots()
        (look,) = looks(["samples"]).values()
        axes.scatter(
            table["bound"],
            table["self_influence"],
            s=14,
            alpha=0.5,
            linewidths=0,
            color=look.colour,
            label="samples of all seeds",
        )
        ends = np.array([0, table["bound"].max() * 1.05])
        axes.plot(ends, ends, label="influence equal to its bound", **LEVEL)
        axes.set(
            xlabel="lower bound from forgetting with a margin",
            ylabel="mean self-influence over training",
        )
        finish(
            figure,
            [axes],
            "Forgetting with a margin bounds self-influence (logistic regression)",
            "marks: one sample each; the bound holds above the dashed line",
        )
    return figure


def stability(tables: Tables) -> Figure:
    """The generalization gap and its bound, for each way of weighting."""
    table = tables["stability"]
    keys = ["weights", "seed"]
    by_seed = table.groupby(keys, sort=False)[["gap", "bound"]].mean().reset_index()
    named = by_seed.rename(columns={"gap": "measured gap", "bound": "stability bound"})
    long = named.melt(keys, ["measured gap", "stability bound"], "quantity", "nats")
    draw = bars(
        long, "weights", "nats", "quantity", xlabel="weights", ylabel="test minus training (nats)"
    )
    return panels(
        long.assign(panel="logistic regression, weighted SGD"),
        ["panel"],
        draw,
        title="The generalization gap of weighted training, and its bound",
        key=over_seeds(long, "bar"),
        width=8.0,
        height=3.6,
    )


FIGURES = {
    "map": published_map,
    "map_by_loss_drop": drop_map,
    "separation": separation,
    "trajectories": trajectories,
    "pruning": pruning,
    "reweighting": reweighting,
    "influence": influence,
    "stability": stability,
}
