"""The figures of the localization benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.localization_benchmarks.checks import BASELINES
from experiments.localization_benchmarks.tables import over_seeds
from interp.reporting.looks import in_percent, in_words, looks
from interp.reporting.panels import panels
from interp.reporting.plotting import dose_response, intervals, matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp.experiment.checks import Tables

# Methods by what they compute, so that each panel has few lines.
_FAMILIES = {
    "activations": ("activation", "z_score", "unitmem"),
    "gradients": (
        "gradient_x_activation",
        "absolute_gradient_x_activation",
        "attribution_patching",
        "integrated_gradients",
    ),
    "learned masks": ("slimming", "hard_concrete"),
    "interventions": ("zero_out", "neuron_flipping", "causal_tracing"),
}
# For each price of a deletion, the x axis.
_COSTS = {
    "others": "others' fall of accuracy (percentage points)",
    "loss": "rise of held-out loss (nats per token)",
}
# The sets of the real study, as figures name them.
_SETS = {
    "texts_test": "this text",
    "other_format": "other format",
    "fold: studied": "this text, by fold",
    "fold: unstudied": "other exact licence, by fold",
    "nearly": "other licences, nearly exact",
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
    shown = recalls[recalls["multiple"] == 1]
    chance: dict[str, float] = {}
    titles: dict[str, str] = {}
    for condition, rows in shown.groupby("condition"):
        chance[str(condition)] = float(rows["fraction"].iloc[0])
        accuracy = float(rows["memorized"].iloc[0])
        titles[str(condition)] = (
            f"{condition} injected\n(tokens memorized: {in_percent(accuracy, 2)})"
        )
    return intervals(
        shown,
        "method",
        "condition",
        labels=dict.fromkeys(chance, "recall (share of injected neurons found)"),
        titles=titles,
        levels=chance,
        level="chance: the injected share of all neurons",
        title="Injected memory: which methods find the neurons that hold it, among the same number "
        "of highest-scoring neurons",
        key=_over_hidden(recalls),
    )


def injection_curve(recalls: pd.DataFrame) -> Figure:
    """Recall by the number of units predicted, as a multiple of the number injected."""
    shown = _by_family(recalls, ["condition"])
    shown["panel"] = shown["condition"] + " injected\n" + shown["family"]
    panels = shown["panel"].unique()
    return dose_response(
        shown,
        "multiple",
        "method",
        "panel",
        labels={"multiple": "neurons taken / injected", **dict.fromkeys(panels, "recall")},
        titles={panel: panel for panel in panels},
        title="Injected memory: the share of the injected neurons (recall) among growing numbers "
        "of highest-scoring neurons, by kind of method and share of neurons injected",
        key=_over_hidden(recalls),
        across=len(_FAMILIES),
    )


def _by_family(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The rows of each group, one family of methods after the other, each with the controls: more
    methods than a panel can show are drawn in a panel for each family."""
    parts: list[pd.DataFrame] = []
    for _, group in rows.groupby(by, sort=False):
        for family, methods in _FAMILIES.items():
            chosen = group["method"].isin([*methods, *BASELINES])
            parts.append(group[chosen].assign(family=family))
    return pd.concat(parts)


def _over_models(rows: pd.DataFrame) -> str:
    seeds = rows["seeds"].max()
    if seeds == 1:
        return "points: one model; lines through them: 95% intervals over sequences"
    return (
        f"points: means over {seeds} models; lines through them: 95% intervals over models and "
        "sequences"
    )


def _over_hidden(rows: pd.DataFrame) -> str:
    # Claims about recall count the sequences that were memorized alone.
    return f"{_over_models(rows)}; over all sequences, memorized or not"


def trade_off(deleted: pd.DataFrame) -> Figure:
    """What a sequence loses against what other memorized sequences and held-out text lose, by
    method, for growing fractions dropped: of all blocks but the first, and of all."""
    wide: Any = deleted.pivot_table(
        index=["blocks", "method", "fraction"], columns="measure", values="estimate", sort=False
    ).reset_index()
    # Changes of accuracy are drawn as falls, those of the loss as rises.
    falls = {"own": -100 * wide["self_accuracy"], "others": -100 * wide["negative_accuracy"]}
    long = wide.assign(**falls).melt(
        ["blocks", "method", "fraction", "own"], list(_COSTS), var_name="cost", value_name="price"
    )
    shown = _by_family(long, ["cost", "blocks"])
    dropped_in = shown["blocks"].map({"all": "all blocks", "all but the first": "not block 0"})
    shown["panel"] = shown["family"] + "\nprice: " + shown["cost"] + "; " + dropped_in
    look_of = looks(shown["method"])

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        for name, line in part.groupby("method", sort=False):
            words, colour, marker = look_of[str(name)]
            axes.plot(
                line["price"],
                line["own"],
                color=colour,
                marker=marker,
                markersize=4.5,
                linewidth=1.3,
                label=words,
            )
        axes.set(
            xlabel=_COSTS[part["cost"].iloc[0]], ylabel="own fall of accuracy (percentage points)"
        )

    fractions = ", ".join(in_percent(fraction) for fraction in deleted["fraction"].unique())
    return panels(
        shown,
        ["panel"],
        draw,
        title="Deleting the neurons of a memorized sequence: how much accuracy the sequence itself "
        "loses, against the price: what other memorized sequences or held-out text lose",
        key=f"points: means over {deleted['seeds'].max()} models; along a line, growing shares of "
        f"neurons are dropped ({fractions}); higher and further left is better",
        across=len(_FAMILIES),
        height=2.4,
    )


def correlation(rows: pd.DataFrame) -> Figure:
    """Rank correlation of every two methods over all neurons, mean over targets and seeds."""
    wide: Any = rows.pivot_table(index="method", columns="other", values="correlation")
    wide.index.name = wide.columns.name = "method"
    return matrix(
        wide,
        "Spearman correlation over neurons",
        center=0.0,
        title="Do methods rank neurons in the same way? Correlation of the scores of each pair of "
        "methods",
        key=_mean_of_cells(rows, "targets and "),
    )


def confusion(rows: pd.DataFrame) -> Figure:
    """The mean fall of accuracy by kind of the sequence whose neurons were dropped and of the one
    evaluated."""
    wide: Any = rows.pivot_table(index="category", columns="evaluated", values="fall")
    wide.index.name = "neurons of a sequence of"
    wide.columns.name = "evaluated on other sequences of"
    return matrix(
        wide,
        "fall of accuracy (fraction of tokens)",
        title="Which kinds of text share neurons? Fall of accuracy on other sequences when the "
        "neurons of one are dropped (hard concrete, all blocks)",
        key=_mean_of_cells(rows),
    )


def _mean_of_cells(rows: pd.DataFrame, also: str = "") -> str:
    return f"colour and number of a cell: mean over {also}{rows['seed'].nunique()} models"


def blocks(rows: pd.DataFrame) -> Figure:
    """The fall of accuracy when the same number of neurons is dropped in one block, or in all of
    them."""
    where = np.where(rows["block"] < 0, "all blocks", "block " + rows["block"].astype(str))
    evaluated = rows["evaluated"].map({"self": "the sequence itself", "negative": "others"})
    shown = rows.assign(panel=rows["method"].map(in_words) + ": " + evaluated, where=where)
    panels = shown["panel"].unique()
    return intervals(
        shown.rename(columns={"where": "neurons dropped in"}),
        "neurons dropped in",
        labels=dict.fromkeys(panels, "fall of accuracy (fraction of tokens)"),
        titles={panel: panel for panel in panels},
        title="Is memory spread over blocks? Fall of accuracy on a memorized sequence itself and "
        "on others when the same number of neurons is dropped in one block, or over all",
        key=_over_models(rows),
        across=2,
    )


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "injection": lambda tables: injection(tables["injection_summary"]),
    "injection_curve": lambda tables: injection_curve(tables["injection_summary"]),
    "trade_off": lambda tables: trade_off(tables["deletion_summary"]),
    "correlation": lambda tables: correlation(tables["correlation"]),
    "confusion": lambda tables: confusion(tables["confusion"]),
    "blocks": lambda tables: blocks(
        over_seeds(
            tables["blocks"], ["method", "evaluated", "block"], {"fall": (-1, 1)}, item="target"
        )
    ),
}


def _named(effects: pd.DataFrame) -> Any:
    """Rows of the real study's `effects`, of the sets and with the names that figures give them.

    The code and prose of folds are left out: they are those of the whole study again."""
    shown = effects[effects["data"].isin(list(_SETS))]
    return shown.assign(data=shown["data"].map(_SETS))


def question(tables: Tables, headline: float) -> Figure:
    """Do the neurons serve this text, or licence language? The rise of the loss of each set of
    windows when each method's neurons are zeroed."""
    shown = _named(tables["effects"])
    is_top = (shown["selected"] == "top") & (shown["fraction"] == headline)
    losses = shown[is_top & (shown["measure"] == "loss")].rename(columns={"data": "text"})
    methods = losses["method"].unique()
    return intervals(
        # In the order of `_SETS`, from the studied text to unrelated text, so that the figure shows
        # how far an effect reaches.
        losses.set_index("text").loc[list(_SETS.values())].reset_index(),
        "text",
        "method",
        labels=dict.fromkeys(methods, "rise of the loss (nats per token)"),
        titles={method: in_words(method) for method in methods},
        levels=dict.fromkeys(methods, 0.0),
        level="unchanged",
        title="Do neurons serve the studied text, or licence language in general? Rise of the loss "
        f"of each set of texts when {in_percent(headline)} of the neurons are zeroed, by method",
        key=_over_texts(losses),
        across=3,
    )


def _over_texts(rows: pd.DataFrame) -> str:
    counts = sorted({rows["texts"].min(), rows["texts"].max()})
    return (
        f"points: means over {' to '.join(map(str, counts))} texts; lines through them: 95% "
        "intervals over texts; one model"
    )


def accuracy(tables: Tables, headline: float) -> Figure:  # noqa: ARG001 - all shares are shown
    """The fall of each set's accuracy by the share of neurons zeroed, for each method."""
    return _doses(tables["effects"], "accuracy", "fall of accuracy")


def loss(tables: Tables, headline: float) -> Figure:  # noqa: ARG001 - all shares are shown
    """The rise of each set's loss by the share of neurons zeroed, for each method."""
    # Symmetric logarithm: rises differ by orders of magnitude, and some losses fall.
    return _doses(tables["effects"], "loss", "rise of the loss (nats per token)", "symlog")


def _doses(effects: pd.DataFrame, measure: str, what: str, scale: str = "linear") -> Figure:
    """One panel per set and one line per method."""
    shown = _named(effects)
    is_shown = (shown["selected"] == "top") & (shown["measure"] == measure)
    rows = shown[is_shown].rename(columns={"measure": "what"})
    sets = list(_SETS.values())
    return dose_response(
        rows,
        "fraction",
        "method",
        "data",
        labels={"fraction": "share of neurons zeroed", **dict.fromkeys(sets, what)},
        scales=dict.fromkeys(sets, scale),
        before=dict.fromkeys(sets, 0.0),
        titles={name: name for name in sets},
        title=f"{what.partition(' (')[0].capitalize()} on each set of texts, by the share of "
        "neurons zeroed and the method that chose them",
        key=_over_texts(rows),
    )


def controls(tables: Tables, headline: float) -> Figure:
    """What passages that were not scored on lose to each method's neurons and to those of its
    controls."""
    shown = _named(tables["effects"])
    is_judged = (shown["fraction"] == headline) & (shown["data"] == "this text")
    judged = shown[is_judged & (shown["measure"] != "loss")]
    selected = judged["selected"].replace({"top": "highest scores", "lowest": "lowest scores"})
    named = judged.assign(neurons=judged["method"] + ": " + selected.map(in_words))
    units = {"exact": "windows", "accuracy": "tokens", "similarity": "tokens"}
    return intervals(
        named,
        "neurons",
        "measure",
        labels={measure: f"fall (fraction of {unit})" for measure, unit in units.items()},
        titles={"exact": "extracted exactly", "accuracy": "accuracy", "similarity": "similarity"},
        levels=dict.fromkeys(units, 0.0),
        level="unchanged",
        title="What passages that were not scored on lose when "
        f"{in_percent(headline)} of the neurons are zeroed: those of each method, and its controls",
        key=_over_texts(named),
    )


REAL = {"question": question, "accuracy": accuracy, "loss": loss, "controls": controls}
