"""The figures: for each claim at least one on which a reader can see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd

from interp.experiment.checks import Tables
from interp.reporting.panels import Draw, bars, lines, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _per_seed(frame: pd.DataFrame, by: list[str], value: str, name: str) -> pd.DataFrame:
    """The mean over items on each seed, so that bands and bars show the spread over seeds."""
    return frame.groupby([*by, "seed"], sort=False)[value].mean().rename(name).reset_index()


def _trained(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the stage "end" named as a reader would."""
    return frame.assign(stage=frame["stage"].replace({"end": "trained"}))


def learning(dynamics: pd.DataFrame) -> Figure:
    """Accuracy against optimizer steps."""
    names = {
        "test": "test",
        "corrected": "noisy, true answer",
        "memorized": "noisy, as trained",
        "one_hop": "one hop",
        "ood": "out of distribution",
    }
    renamed = dynamics.rename(columns=names)
    measured = [name for name in names.values() if name in renamed]
    long = renamed.melt(["task", "stage", "step", "seed"], measured, "answers", "share right")
    stages = long["stage"].replace({"end": "with noise"})
    shown = long.assign(stage=stages).dropna(subset="share right")
    return panels(shown, ["task", "stage"], lines(shown, "step", "share right", "answers", "steps"))


def decoding(probes: pd.DataFrame) -> Figure:
    """The accuracy of probes at each depth: for the true and the noisy value on memorized items,
    for the true value on test items and in an untrained model."""
    where = probes["variable"] + " at token " + probes["position"].astype(str)
    where += probes["apart"].map({True: ", inputs not trained on", False: ""})
    probes = probes.assign(where=where)

    noisy = probes["reading"] == "noisy"
    on_test = probes["set"] == "test"
    on_memorized = probes["set"] == "memorized"
    trained = probes[(probes["stage"] == "end") & ~(noisy & on_test)]
    trained = trained.assign(read=trained["set"] + ", " + trained["reading"] + " value")
    untrained = probes[(probes["stage"] == "untrained") & on_memorized & ~noisy]
    shown = pd.concat([trained, untrained.assign(read="untrained model")])
    return panels(
        shown, ["task", "where"], lines(shown, "depth", "accuracy", "read", "depth (blocks)")
    )


def lens(table: pd.DataFrame) -> Figure:
    """How often the model's own output head ranks an answer first, at each depth."""
    stages = {"generalized": "when it passed the test", "end": "at the end"}
    shown = table.assign(read=table["set"] + ", " + table["answer"] + " answer")
    shown = shown.replace({"stage": stages}).rename(columns={"top": "share ranked first"})
    return panels(
        shown,
        ["task", "stage"],
        lines(shown, "depth", "share ranked first", "read", "depth (blocks)"),
    )


def erasing(table: pd.DataFrame) -> Figure:
    """The answers that stay without a subspace behind each block."""
    shown = table[~table["removed"].str.contains("INLP")]
    kept = _per_seed(shown, ["task", "stage", "block", "removed", "set"], "kept", "answers kept")
    named = _trained(kept).assign(block="behind block " + kept["block"].astype(str))
    return panels(
        named, ["task", "stage", "block"], bars(named, "removed", "answers kept", "set"), width=3.8
    )


def inlp(table: pd.DataFrame) -> Figure:
    """The answers that stay without the directions of several rounds of INLP, and without the same
    number of random directions, behind the first block."""
    shown = table[table["removed"].str.contains("INLP") & (table["block"] == 0)]
    kept = _per_seed(shown, ["task", "stage", "removed", "set", "rank"], "kept", "answers kept")
    directions = kept["removed"].replace({"random for INLP": "random"})
    kept["removed from"] = directions + ", " + kept["set"]
    return panels(
        _trained(kept),
        ["task", "stage"],
        lines(kept, "rank", "answers kept", "removed from", "directions removed"),
    )


def donors(table: pd.DataFrame) -> Figure:
    """The answers with another item's residual stream behind the first block, by what that item has
    in common with the item itself."""
    long = table.rename(columns={"kept": "as before", "true": "true answer"}).melt(
        ["task", "stage", "block", "place", "donor", "set", "seed"],
        ["as before", "true answer"],
        "said",
        "share",
    )
    # Of a test item, the answer as before is the true one.
    distinct = (long["set"] == "memorized") | (long["said"] == "as before")
    long = long[distinct & (long["block"] == 0)]
    long = long.assign(
        said=long["set"] + ", " + long["said"], donor=long["donor"] + ", " + long["place"]
    )
    share = _per_seed(_trained(long), ["task", "stage", "donor", "said"], "share", "share said")
    return panels(share, ["task", "stage"], bars(share, "donor", "share said", "said"))


def circuits(table: pd.DataFrame) -> Figure:
    """The overlap of the top edges of memorized items with those of other sets, against the
    fraction of edges taken, with what is expected by chance."""
    all_items = table[table["sample"] == 0]
    chance = all_items.drop_duplicates(["task", "fraction", "seed"])
    chance = chance.assign(other="by chance", iou=chance["chance"])
    shown = pd.concat([all_items, chance]).rename(columns={"iou": "intersection over union"})
    return panels(
        shown,
        ["task"],
        lines(shown, "fraction", "intersection over union", "other", "share of edges"),
    )


def faithfulness(table: pd.DataFrame) -> Figure:
    """How much of the answers each circuit alone gives, against its fraction of edges."""
    value = "faithfulness (1 = whole model)"
    shown = table.assign(on="on " + table["on"] + " items")
    shown = shown.rename(columns={"faithfulness": value, "circuit": "circuit of"})
    return panels(
        shown,
        ["task", "on"],
        lines(shown, "fraction", value, "circuit of", "share of edges"),
        across=2,
    )


def components(table: pd.DataFrame) -> Figure:
    """The memorized answers that are lost when a component is ablated, against the test answers
    that are."""
    shown = table[(table["component"] != "none") & (table["stage"] == "end")]
    shown = shown.assign(lost=1.0 - shown["kept"])
    lost = _per_seed(shown, ["task", "component", "set"], "lost", "lost")
    wide = lost.pivot_table(
        index=["task", "component", "seed"], columns="set", values="lost", sort=False
    ).reset_index()
    wide["part"] = wide["component"].str.extract(r"^\d+ (MLP|head)")[0]

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.scatterplot(part, x="test", y="memorized", hue="part", style="part", s=70, ax=axes)
        axes.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--")
        over_seeds = part.groupby("component")[["test", "memorized"]].mean()
        for name, row in over_seeds[over_seeds["memorized"] > 0.15].iterrows():
            axes.annotate(
                str(name),
                (row["test"], row["memorized"]),
                xytext=(4, 4),
                textcoords="offset points",
                size=8,
            )
        axes.set(
            xlabel="test answers lost",
            ylabel="memorized answers lost",
            xlim=(-0.03, 1.03),
            ylim=(-0.03, 1.03),
        )

    return panels(wide, ["task"], draw)


def positions(table: pd.DataFrame) -> Figure:
    """The answers that are lost when the residual stream at one input position is ablated, at each
    depth."""
    lost = _per_seed(
        table.assign(lost=1.0 - table["kept"]),
        ["task", "stage", "set", "depth", "position"],
        "lost",
        "answers lost",
    )
    return panels(
        _trained(lost),
        ["task", "stage", "set"],
        _cells("depth", "position", "answers lost"),
        across=2,
        height=2.6,
    )


def _cells(row: str, column: str, value: str) -> Draw:
    """A heat map of a value between 0 and 1, with the number in each cell."""

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        wide = part.pivot_table(index=row, columns=column, values=value, sort=False)
        sns.heatmap(
            wide,
            annot=True,
            fmt=".2f",
            annot_kws={"size": 8},
            cmap="crest",
            vmin=0,
            vmax=1,
            cbar=False,
            ax=axes,
        )
        axes.set(xlabel=f"input {column}", ylabel=f"{row} (blocks)")

    return draw


def perturbed(table: pd.DataFrame) -> Figure:
    """How often the old answer stays when the token at one position is exchanged, and how often the
    answer that is true now is given."""
    long = table.rename(columns={"kept": "old answer", "true_now": "what is true now"}).melt(
        ["task", "stage", "set", "position", "seed"],
        ["old answer", "what is true now"],
        "said",
        "share",
    )
    long = long.assign(said=long["set"] + ": " + long["said"])
    shown = _per_seed(long, ["task", "stage", "position", "said"], "share", "share said")
    return panels(
        _trained(shown), ["task", "stage"], bars(shown, "position", "share said", "said"), width=6.0
    )


def outliers(table: pd.DataFrame) -> Figure:
    """How far the neurons of the last MLP are from their mean on clean items with the same digits,
    and how well their pattern correlates with that mean."""
    stages = {"end": "trained", "generalized": "when it passed the test"}
    columns = {
        "mean_abs_z": "mean |z| over neurons",
        "profile": "correlation with the group's profile",
    }
    last = table[table["block"] == table["block"].max()]
    last = last.assign(items=last["set"] + ", " + last["stage"].replace(stages))
    shown = last.rename(columns=columns).melt(["items"], list(columns.values()), "measure", "value")

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.boxplot(part, y="items", x="value", fliersize=1, ax=axes)
        axes.set(xlabel="", ylabel="")

    return panels(shown, ["measure"], draw, across=1, width=8.0)


def doses(table: pd.DataFrame) -> Figure:
    """The answers with neurons reset to the mean of their group, by which and how many."""
    # The whole layer is the last point of both lines.
    whole = table[table["selection"] == "all"]
    shown = pd.concat(
        [
            table[table["selection"] != "all"],
            whole.assign(selection="largest"),
            whole.assign(selection="random"),
        ]
    )
    long = shown.rename(columns={"true": "true answer", "wrong": "wrong answer"}).melt(
        ["block", "set", "selection", "k", "seed"], ["true answer", "wrong answer"], "said", "share"
    )
    share = _per_seed(long, ["set", "block", "selection", "k", "said"], "share", "share said")
    share["reset"] = share["selection"] + ", " + share["said"]
    named = share.assign(block="MLP " + share["block"].astype(str))

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        lines(named, "k", "share said", "reset", "neurons reset")(part, axes)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=-0.1)

    return panels(named, ["set", "block"], draw, across=2)


def heuristics(table: pd.DataFrame) -> Figure:
    """Histograms of the activations of the neuron that a heuristic describes best, on the first
    seed."""
    first = table[table["seed"] == table["seed"].min()]
    one = first.iloc[0]
    neuron = f"neuron {one['neuron']} of MLP {one['block']}"
    title = f"{neuron}: {one['heuristic']}, score {one['score']:.2f}"

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.histplot(
            part,
            x="activation",
            hue="items",
            bins=40,
            stat="density",
            common_norm=False,
            element="step",
            ax=axes,
        )

    figure = panels(first.assign(title=title), ["title"], draw, width=7.0)

    # seaborn gives a histogram by hue no handles that the common legend of `panels` could use. It
    # draws the last hue first, as bar containers or, for `element="step"`, as filled areas.
    axes = figure.axes[0]
    names = list(first["items"].unique())
    drawn = axes.containers if len(axes.containers) == len(names) else axes.collections
    axes.legend(drawn[::-1], names)
    return figure


def knock_out(table: pd.DataFrame) -> Figure:
    """The clean items that are still answered correctly with a heuristic's neurons at zero, and
    with the same number of random neurons at zero."""
    covered = table["covered"].map({True: "covered", False: "other"})
    shown = table.assign(
        items=table["knocked_out"] + ", " + covered + " items",
        block="MLP " + table["block"].astype(str),
    )
    right = _per_seed(shown, ["block", "heuristic", "items"], "right", "share right")
    return panels(
        right, ["block"], bars(right, "heuristic", "share right", "items"), width=7.0, across=1
    )


def shared(table: pd.DataFrame) -> Figure:
    """The fraction of memorized items whose first contributors each neuron of the last MLP is
    among, neurons in falling order, and what is expected by chance."""
    long = table.rename(columns={"items": "first contributors"}).melt(
        ["seed", "memorized"], ["first contributors", "by chance"], "neurons", "count"
    )
    long["rank"] = long.groupby(["seed", "neurons"])["count"].rank(ascending=False, method="first")
    long["share of memorized items"] = long["count"] / long["memorized"]

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        lines(long, "rank", "share of memorized items", "neurons", "neurons, in order")(part, axes)
        axes.set_xscale("log")

    titled = long.assign(title="which neurons write memorized answers")
    return panels(titled, ["title"], draw, width=6.5)


def _of(name: str, draw: Callable[[pd.DataFrame], Figure]) -> Callable[[Tables], Figure]:
    """A figure of one table as a figure of all tables."""
    return lambda tables: draw(tables[name])


FIGURES = {
    "learning": _of("dynamics", learning),
    "decoding": _of("probes", decoding),
    "lens": _of("lens", lens),
    "erasing": _of("erasure", erasing),
    "inlp": _of("erasure", inlp),
    "donors": _of("donors", donors),
    "circuits": _of("overlap", circuits),
    "faithfulness": _of("faithfulness", faithfulness),
    "components": _of("components", components),
    "positions": _of("positions", positions),
    "perturbed": _of("perturbed", perturbed),
    "outliers": _of("outliers", outliers),
    "doses": _of("doses", doses),
    "heuristics": _of("activations", heuristics),
    "knock_out": _of("knock_out", knock_out),
    "shared": _of("shared", shared),
}
