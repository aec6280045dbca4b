"""The figures: one a person can read for each claim."""

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
    """The mean over items on each seed, so that what spreads is the seeds."""
    return frame.groupby([*by, "seed"], sort=False)[value].mean().rename(name).reset_index()


def learning(dynamics: pd.DataFrame) -> Figure:
    """Accuracy against steps."""
    names = {
        "test": "test",
        "corrected": "noisy, true answer",
        "memorized": "noisy, as trained",
        "one_hop": "one hop",
        "ood": "out of distribution",
    }
    long = dynamics.rename(columns=names).melt(
        ["task", "stage", "step", "seed"],
        [n for n in names.values() if n in {*dynamics.rename(columns=names)}],
        "answers",
        "share right",
    )
    stages = long["stage"].replace({"end": "with noise"})
    shown = long.assign(stage=stages).dropna(subset="share right")
    return panels(shown, ["task", "stage"], lines(shown, "step", "share right", "answers", "steps"))


def decoding(probes: pd.DataFrame) -> Figure:
    """What probes read at each depth: on memorized items the true and the noisy value, on test
    items, and in an untrained model."""
    probes = probes.assign(where=probes["variable"] + " at token " + probes["position"].astype(str))
    probes["where"] += probes["apart"].map({True: ", inputs not trained on", False: ""})
    noisy = probes["reading"] == "noisy"
    kinds = probes["set"] + ", " + probes["reading"] + " value"
    shown = probes[(probes["stage"] == "end") & ~(noisy & (probes["set"] == "test"))].assign(
        read=kinds
    )
    before = probes[
        (probes["stage"] == "untrained") & (probes["set"] == "memorized") & ~noisy
    ].assign(read="untrained model")
    both = pd.concat([shown, before])
    return panels(
        both, ["task", "where"], lines(both, "depth", "accuracy", "read", "depth (blocks)")
    )


def lens(table: pd.DataFrame) -> Figure:
    """What the model's own output head reads at each depth."""
    shown = table.assign(read=table["set"] + ", " + table["answer"] + " answer")
    named = shown.replace(
        {"stage": {"generalized": "when it passed the test", "end": "at the end"}}
    ).rename(columns={"top": "share ranked first"})
    return panels(
        named,
        ["task", "stage"],
        lines(named, "depth", "share ranked first", "read", "depth (blocks)"),
    )


def erasing(table: pd.DataFrame) -> Figure:
    """What is still said without a subspace, behind each block."""
    shown = table[~table["removed"].str.contains("INLP")]
    kept = _per_seed(shown, ["task", "stage", "block", "removed", "set"], "kept", "answers kept")
    named = kept.assign(
        stage=kept["stage"].replace({"end": "trained"}),
        block="behind block " + kept["block"].astype(str),
    )
    return panels(
        named, ["task", "stage", "block"], bars(named, "removed", "answers kept", "set"), width=3.8
    )


def inlp(table: pd.DataFrame) -> Figure:
    """What is still said without the directions of so many rounds of INLP, beside random ones,
    behind the first block."""
    shown = table[table["removed"].str.contains("INLP") & (table["block"] == 0)]
    kept = _per_seed(shown, ["task", "stage", "removed", "set", "rank"], "kept", "answers kept")
    kept["removed from"] = (
        kept["removed"].replace({"random for INLP": "random"}) + ", " + kept["set"]
    )
    return panels(
        _trained(kept),
        ["task", "stage"],
        lines(kept, "rank", "answers kept", "removed from", "directions removed"),
    )


def donors(table: pd.DataFrame) -> Figure:
    """What is said with another item's residual, by what the donor shares."""
    long = table.rename(columns={"kept": "as before", "true": "true answer"}).melt(
        ["task", "stage", "block", "place", "donor", "set", "seed"],
        ["as before", "true answer"],
        "said",
        "share",
    )
    long = long[(long["set"] == "memorized") | (long["said"] == "as before")].assign(
        said=long["set"] + ", " + long["said"], donor=long["donor"] + ", " + long["place"]
    )
    share = _per_seed(
        _trained(long[long["block"] == 0]),
        ["task", "stage", "donor", "said"],
        "share",
        "share said",
    )
    return panels(share, ["task", "stage"], bars(share, "donor", "share said", "said"))


def circuits(table: pd.DataFrame) -> Figure:
    """Overlap of the edges of memorized items with those of others, against the share of edges
    taken."""
    whole = table[table["sample"] == 0]
    chance = whole.drop_duplicates(["task", "fraction", "seed"]).assign(
        other="by chance", iou=lambda f: f["chance"]
    )
    shown = pd.concat([whole, chance]).rename(columns={"iou": "intersection over union"})
    return panels(
        shown,
        ["task"],
        lines(shown, "fraction", "intersection over union", "other", "share of edges"),
    )


def faithfulness(table: pd.DataFrame) -> Figure:
    """How much of the answer each circuit alone gives."""
    shown = table.assign(on="on " + table["on"] + " items").rename(
        columns={"faithfulness": "faithfulness (1 = whole model)", "circuit": "circuit of"}
    )
    return panels(
        shown,
        ["task", "on"],
        lines(shown, "fraction", "faithfulness (1 = whole model)", "circuit of", "share of edges"),
        across=2,
    )


def components(table: pd.DataFrame) -> Figure:
    """What ablating each component costs test items and memorized items."""
    shown = table[(table["component"] != "none") & (table["stage"] == "end")]
    lost = _per_seed(
        shown.assign(lost=1.0 - shown["kept"]), ["task", "component", "set"], "lost", "lost"
    )
    wide = lost.pivot_table(
        index=["task", "component", "seed"], columns="set", values="lost", sort=False
    ).reset_index()
    wide["part"] = wide["component"].str.extract(r"^\d+ (MLP|head)")[0]

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.scatterplot(part, x="test", y="memorized", hue="part", style="part", s=70, ax=axes)
        axes.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--")
        middle = part.groupby("component")[["test", "memorized"]].mean()
        for name, row in middle[middle["memorized"] > 0.15].iterrows():
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
    """What ablating the residual at one input position costs, at each depth."""
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


def perturbed(table: pd.DataFrame) -> Figure:
    """How often an answer survives another token at one position, and how often what is true now is
    said."""
    long = table.rename(columns={"kept": "old answer", "true_now": "what is true now"}).melt(
        ["task", "stage", "set", "position", "seed"],
        ["old answer", "what is true now"],
        "said",
        "share",
    )
    shown = _per_seed(
        long.assign(said=long["set"] + ": " + long["said"]),
        ["task", "stage", "position", "said"],
        "share",
        "share said",
    )
    return panels(
        _trained(shown), ["task", "stage"], bars(shown, "position", "share said", "said"), width=6.0
    )


def _trained(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(stage=frame["stage"].replace({"end": "trained"}))


def _cells(row: str, column: str, value: str) -> Draw:
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


def outliers(table: pd.DataFrame) -> Figure:
    """How far the neurons of the last MLP are from the mean of clean items with the same digits,
    and how alike the pattern stays."""
    last = table[table["block"] == table["block"].max()].assign(
        items=lambda f: (
            f["set"]
            + ", "
            + f["stage"].replace({"end": "trained", "generalized": "when it passed the test"})
        )
    )
    long = last.rename(
        columns={
            "mean_abs_z": "mean |z| over neurons",
            "profile": "correlation with the group's profile",
        }
    )
    shown = long.melt(
        ["items"],
        ["mean |z| over neurons", "correlation with the group's profile"],
        "measure",
        "value",
    )

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.boxplot(part, y="items", x="value", fliersize=1, ax=axes)
        axes.set(xlabel="", ylabel="")

    return panels(shown, ["measure"], draw, across=1, width=8.0)


def doses(table: pd.DataFrame) -> Figure:
    """What is said with neurons reset to their group's mean, by how many and which; the whole layer
    as the last point."""
    whole = table[table["selection"] == "all"]
    both = pd.concat(
        [
            table[table["selection"] != "all"],
            *(whole.assign(selection=name) for name in ("largest", "random")),
        ]
    )
    long = both.rename(columns={"true": "true answer", "wrong": "wrong answer"}).melt(
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
    """Activations of the neuron that a heuristic describes best, with memorized items apart."""
    first = table[table["seed"] == table["seed"].min()]
    one = first.iloc[0]
    title = f"neuron {one['neuron']} of MLP {one['block']}: {one['heuristic']}, score {one['score']:.2f}"

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
    axes = figure.axes[0]
    names = list(dict.fromkeys(first["items"]))
    axes.legend(
        axes.containers[::-1] if len(axes.containers) == len(names) else axes.collections[::-1],
        names,
    )
    return figure


def knock_out(table: pd.DataFrame) -> Figure:
    """Clean items still right with a heuristic's neurons at zero, those it covers and others,
    beside as many random neurons."""
    shown = table.assign(
        items=table["knocked_out"]
        + ", "
        + table["covered"].map({True: "covered", False: "other"})
        + " items",
        block="MLP " + table["block"].astype(str),
    )
    right = _per_seed(shown, ["block", "heuristic", "items"], "right", "share right")
    return panels(
        right, ["block"], bars(right, "heuristic", "share right", "items"), width=7.0, across=1
    )


def shared(table: pd.DataFrame) -> Figure:
    """Of how many memorized items each neuron of the last MLP is among the first contributors,
    neurons in order, beside chance."""
    long = table.rename(columns={"items": "first contributors"}).melt(
        ["seed", "memorized"], ["first contributors", "by chance"], "neurons", "count"
    )
    long["rank"] = long.groupby(["seed", "neurons"])["count"].rank(ascending=False, method="first")
    long["share of memorized items"] = long["count"] / long["memorized"]

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        lines(long, "rank", "share of memorized items", "neurons", "neurons, in order")(part, axes)
        axes.set_xscale("log")

    return panels(
        long.assign(title="which neurons write memorized answers"), ["title"], draw, width=6.5
    )


def _of(name: str, draw: Callable[[pd.DataFrame], Figure]) -> Callable[[Tables], Figure]:
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
