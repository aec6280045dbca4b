"""The figures: for each claim at least one on which a reader can see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.reason_to_rote.measures import FAITHFUL
from interp.experiment.checks import Tables
from interp.reporting.layout import LEVEL
from interp.reporting.looks import looks
from interp.reporting.panels import Draw, bars, cells, level, lines, over_seeds, panels, with_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Names of y axes that several figures have.
_ANSWERS = "share of answers"
_KEPT = "share of answers kept"

_NAMED_FROM = 0.15  # the share of memorized answers lost from which components are named
_VARIABLES = {
    "digit0": "units digit of the sum",
    "raw0": "sum of the units digits",
    "x0": "units digit of x",
    "y0": "units digit of y",
    "bridge": "bridge",
    "tail": "tail",
}


def _per_seed(frame: pd.DataFrame, by: list[str], value: str, name: str) -> pd.DataFrame:
    """The mean over items on each seed, so that bands and bars show the spread over seeds."""
    return frame.groupby([*by, "seed"], sort=False)[value].mean().rename(name).reset_index()


def _above_chance(draw_lines: Draw) -> Draw:
    """Draws accuracies of probes, with the level of chance."""

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        draw_lines(part, axes)
        level(axes, part["chance"].mean(), "by chance (most frequent value)")
        # A little beyond 0 and 1, where many points are: half of each would be cut off.
        axes.set_ylim(-0.04, 1.06)

    return draw


def _trained(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the stage "end" named as a reader would."""
    return frame.assign(stage=frame["stage"].replace({"end": "trained"}))


def learning(dynamics: pd.DataFrame) -> Figure:
    """Accuracy against optimizer steps."""
    names = {
        "test": "test items",
        "corrected": "noisy items, true answer",
        "memorized": "noisy items, as trained",
        "one_hop": "one hop",
        "ood": "out of distribution",
    }
    renamed = dynamics.rename(columns=names)
    measured = [name for name in names.values() if name in renamed]
    long = renamed.melt(["task", "stage", "step", "seed"], measured, "answers", "share right")
    stages = long["stage"].replace({"end": "with noise"})
    # Addition has no one-hop and no out-of-distribution questions.
    shown = long.assign(stage=stages).dropna(subset="share right")
    draw = lines(shown, "step", "share right", "answers", xlabel="optimizer steps", ylabel=_ANSWERS)
    return panels(
        shown,
        ["task", "stage"],
        draw,
        title="When reasoning and wrong labels are learned: answers during training, of addition "
        "(FDA) and of two-hop relations (THR)",
        key=over_seeds(shown, "point", "band"),
    )


def decoding(probes: pd.DataFrame) -> Figure:
    """The accuracy of probes at each depth: for the true and the noisy value on memorized items,
    for the true value on test items and in an untrained model."""
    where = probes["variable"].map(_VARIABLES) + " at token " + probes["position"].astype(str)
    where += probes["apart"].map({True: ", inputs not trained on", False: ""})
    probes = probes.assign(where=where)

    noisy = probes["reading"] == "noisy"
    on_test = probes["set"] == "test"
    on_memorized = probes["set"] == "memorized"
    at_end = probes["stage"] == "end"
    # The label of a test item is its true answer: what a probe reads there as noisy is the true
    # value again.
    trained = probes[at_end & ~(noisy & on_test)]
    trained = trained.assign(read=trained["set"] + ", " + trained["reading"] + " value")
    in_untrained = probes["stage"] == "untrained"
    untrained = probes[in_untrained & on_memorized & ~noisy]
    shown = pd.concat([trained, untrained.assign(read="untrained model")])
    draw_lines = lines(
        shown,
        "depth",
        "accuracy",
        "read",
        xlabel="depth (blocks)",
        ylabel="accuracy of the probe",
        spread="line",
    )

    return panels(
        shown,
        ["task", "where"],
        _above_chance(draw_lines),
        title="What can be read from the residual stream, at each depth: probes for intermediate "
        "results and inputs, on memorized items, test items and in an untrained model",
        key=over_seeds(shown, "point") + "; points side by side are at the same depth",
        height=2.6,
    )


def lens(table: pd.DataFrame) -> Figure:
    """How often the model's own output head ranks an answer first, at each depth."""
    stages = {"generalized": "when it passed the test", "end": "at the end"}
    shown = table.assign(read=table["set"] + " items, " + table["answer"] + " answer")
    shown = shown.replace({"stage": stages})
    draw = lines(
        shown, "depth", "top", "read", xlabel="depth (blocks)", ylabel="share ranked first"
    )
    return panels(
        shown,
        ["task", "stage"],
        draw,
        title="Which answer the model's own output head ranks first at each depth (logit lens)",
        key=over_seeds(shown, "point", "band"),
    )


def erasing(table: pd.DataFrame) -> Figure:
    """The answers that stay when a subspace is removed after each block, and the share of the
    variance that the subspace holds."""
    shown = table[~table["removed"].str.contains("INLP")]
    by = ["task", "stage", "block", "removed"]
    share = shown.groupby(by)["variance"].transform("mean")
    # The mean over seeds: with a share of its own, each seed would have bars of its own.
    percent = (100 * share).round().astype(int).astype(str)
    shown = shown.assign(removed=shown["removed"] + " (" + percent + "%)")
    kept = _per_seed(shown, [*by, "set"], "kept", "answers kept")
    named = _trained(kept).assign(block="after block " + kept["block"].astype(str))
    draw_bars = bars(
        named,
        "removed",
        "answers kept",
        "set",
        xlabel="subspace removed (share of the variance that it holds)",
        ylabel=_KEPT,
    )
    return panels(
        named,
        ["task", "stage", "block"],
        _with_unedited(draw_bars),
        title="Do memorized answers need the intermediate result? Answers that stay without its "
        "subspace (class means), without others, and without random ones",
        key=over_seeds(named, "bar"),
        width=5.0,
        height=3.6,
        across=2,
    )


def _with_unedited(draw_panel: Draw) -> Draw:
    """Adds the line of the unedited model, which keeps all answers."""

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        draw_panel(part, axes)
        level(axes, 1, "unedited model")

    return draw


def inlp(table: pd.DataFrame) -> Figure:
    """The answers that stay when the directions of several rounds of INLP, or the same number of
    random directions, are removed after the first block."""
    shown = table[table["removed"].str.contains("INLP") & (table["block"] == 0)]
    kept = _per_seed(shown, ["task", "stage", "removed", "set", "rank"], "kept", "answers kept")
    directions = kept["removed"].replace({"random for INLP": "random directions"})
    kept["removed from"] = directions + ", " + kept["set"] + " items"
    draw_lines = lines(
        kept,
        "rank",
        "answers kept",
        "removed from",
        xlabel="number of directions removed",
        ylabel=_KEPT,
        spread="line",
    )
    return panels(
        _trained(kept),
        ["task", "stage"],
        _with_unedited(draw_lines),
        title="Answers that stay without the directions that a linear probe reads the intermediate "
        "result from (INLP), and without random ones, after the first block",
        key=over_seeds(kept, "point") + "; points side by side are at the same number",
    )


def erased(table: pd.DataFrame) -> Figure:
    """How well the intermediate result can still be read when directions are removed after the
    first block."""
    shown = table[table["block"] == 0]
    names = {"INLP": "without the directions of INLP", "class means": "without its class means"}
    draw_lines = lines(
        _trained(shown.replace({"removed": names})),
        "rank",
        "accuracy",
        "removed",
        xlabel="number of directions removed",
        ylabel="accuracy of a new probe on held-out items",
        spread="line",
    )

    return panels(
        _trained(shown.replace({"removed": names})),
        ["task", "stage"],
        _above_chance(draw_lines),
        title="Is the intermediate result erased? What a new probe reads when directions are "
        "removed after the first block",
        key=over_seeds(shown, "point"),
    )


def donors(table: pd.DataFrame) -> Figure:
    """The answers with another item's residual stream after the first block, by what that item has
    in common with the item itself."""
    long = table.rename(columns={"kept": "as before", "true": "true answer"}).melt(
        ["task", "stage", "block", "place", "donor", "set", "seed"],
        ["as before", "true answer"],
        "said",
        "share",
    )
    # For a test item, keeping the answer means giving the true one.
    distinct = (long["set"] == "memorized") | (long["said"] == "as before")
    long = long[distinct & (long["block"] == 0)]
    places = {"intermediate": "this token", "and inputs": "and inputs"}
    long = long.assign(
        said=long["set"] + " items, " + long["said"],
        donor=long["donor"] + " result, " + long["place"].replace(places),
    )
    share = _per_seed(_trained(long), ["task", "stage", "donor", "said"], "share", "share said")
    draw = bars(
        share,
        "donor",
        "share said",
        "said",
        xlabel="intermediate result of the other item, tokens replaced",
        ylabel=_ANSWERS,
    )
    return panels(
        share,
        ["task", "stage"],
        _with_unedited(draw),
        title="Answers with another item's residual stream after the first block, from an item "
        "with the same intermediate result or another one",
        key=over_seeds(share, "bar"),
        height=3.2,
    )


def circuits(table: pd.DataFrame) -> Figure:
    """The overlap of the top edges of memorized items with those of other sets, against the
    fraction of edges taken, with what is expected by chance."""
    # The other samples are resamples of the items, which intervals are made of.
    all_items = table[table["sample"] == 0]
    chance = all_items.drop_duplicates(["task", "fraction", "seed"])
    chance = chance.assign(other="by chance", iou=chance["chance"])
    others = {"test": "test items", "untrained": "memorized items, untrained model"}
    shown = pd.concat([all_items, chance]).replace({"other": others})
    draw = lines(
        shown,
        "fraction",
        "iou",
        "other",
        xlabel="share of edges taken",
        ylabel="intersection over union",
    )
    return panels(
        shown,
        ["task"],
        draw,
        title="How much the circuit of memorized items overlaps with that of other items",
        key=over_seeds(shown, "point", "band"),
        width=5.0,
        across=2,
    )


def faithfulness(table: pd.DataFrame) -> Figure:
    """How much of the answers each circuit alone gives, against its fraction of edges."""
    circuits_of = {
        "memorized": "circuit of memorized items",
        "test": "circuit of test items",
        "random prompts": "circuit of random prompts",
    }
    shown = table.assign(on="on " + table["on"] + " items").replace({"circuit": circuits_of})
    draw_lines = lines(
        shown,
        "fraction",
        "faithfulness",
        "circuit",
        xlabel="share of edges in the circuit",
        ylabel="faithfulness (0: none of the model's effect, 1: all)",
    )

    return panels(
        shown,
        ["task", "on"],
        with_level(draw_lines, FAITHFUL, "needed for a claim about a circuit"),
        title="How much of the model's answers a circuit alone gives, on memorized and on test "
        "items",
        key=over_seeds(shown, "point", "band"),
        width=5.0,
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
    look_of = looks(wide["part"])

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        below = -1.0
        by_component = part.groupby(["component", "part"])[["test", "memorized"]]
        means = by_component.mean().reset_index().sort_values("memorized")
        for _, row in means.iterrows():
            words, colour, marker = look_of[row["part"]]
            own = part[part["component"] == row["component"]]
            at = (row["test"], row["memorized"])
            axes.plot(*at, marker, color=colour, markersize=6, label=words)
            axes.hlines(at[1], own["test"].min(), own["test"].max(), color=colour, linewidth=1)
            axes.vlines(
                at[0], own["memorized"].min(), own["memorized"].max(), color=colour, linewidth=1
            )
            if row["memorized"] > _NAMED_FROM:
                # Names of components at nearly the same height are written above each other.
                below = max(row["memorized"], below + 0.045)
                name = f"block {row['component']}"
                axes.annotate(
                    name,
                    at,
                    (1.08, below),
                    va="center",
                    size=7.5,
                    color="0.2",
                    arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6},
                )
        axes.axline(
            (0, 0), slope=1, label="the same share of memorized and of test answers", **LEVEL
        )
        axes.set(
            xlabel="share of test answers lost",
            ylabel="share of memorized answers lost",
            # The names of components stand to the right of 1.
            xlim=(-0.03, 1.4),
            ylim=(-0.03, 1.06),
            xticks=np.linspace(0, 1, 5),
        )

    return panels(
        wide,
        ["task"],
        draw,
        title="Do memorized and test answers need the same components? Answers lost when one head "
        "or MLP is ablated",
        key=over_seeds(wide, "point", "thin lines")
        + f"; named: components that cost more than {_NAMED_FROM:.0%} of the memorized answers",
        width=5.0,
        height=4.2,
        across=2,
    )


def positions(table: pd.DataFrame) -> Figure:
    """The answers that are lost when the residual stream at one input position is ablated, at each
    depth."""
    lost = _per_seed(
        table.assign(lost=1.0 - table["kept"]),
        ["task", "stage", "set", "depth", "position"],
        "lost",
        "answers lost",
    )
    draw = cells(
        "depth",
        "position",
        "answers lost",
        xlabel="input position (token)",
        ylabel="depth (blocks)",
        limits=(0, 1),
    )
    return panels(
        _trained(lost).assign(set=lost["set"] + " items"),
        ["task", "stage", "set"],
        draw,
        title="Which input positions answers depend on: the share of answers that are lost when "
        "the residual stream at one position is ablated, by depth",
        key=f"colour and number of a cell: mean over {lost['seed'].nunique()} seeds",
        across=2,
        width=5.0,
        height=2.3,
    )


def perturbed(table: pd.DataFrame) -> Figure:
    """How often the old answer stays when the token at one position is exchanged, and how often the
    answer that is true now is given."""
    long = table.rename(columns={"kept": "old answer", "true_now": "what is true now"}).melt(
        ["task", "stage", "set", "position", "seed"],
        ["old answer", "what is true now"],
        "said",
        "share",
    )
    long = long.assign(said=long["set"] + " items: " + long["said"])
    shown = _per_seed(long, ["task", "stage", "position", "said"], "share", "share said")
    draw = bars(
        shown,
        "position",
        "share said",
        "said",
        xlabel="position of the exchanged token",
        ylabel=_ANSWERS,
    )
    return panels(
        _trained(shown),
        ["task", "stage"],
        draw,
        title="What the model answers when one token of the question is exchanged: the old answer, "
        "or what is true now",
        key=over_seeds(shown, "bar"),
        width=5.0,
        across=2,
    )


def outliers(table: pd.DataFrame) -> Figure:
    """How far the neurons of the last MLP are from their mean on clean items with the same digits,
    and how well their pattern correlates with that mean."""
    stages = {"end": "trained", "generalized": "when it passed the test"}
    columns = {"mean_abs_z": "distance from the mean", "profile": "pattern over neurons"}
    units = {
        "distance from the mean": "mean |z| over neurons (standard deviations)",
        "pattern over neurons": "correlation with the mean of clean items with the same digits",
    }
    last = table[table["block"] == table["block"].max()]
    model = last["stage"].replace(stages)
    last = last.assign(items=last["set"] + " items, " + model)
    shown = last.rename(columns=columns).melt(["items"], list(columns.values()), "measure", "value")

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        names = list(part["items"].unique())
        (look,) = looks(["items"]).values()
        axes.boxplot(
            [part[part["items"] == name]["value"] for name in names],
            orientation="horizontal",
            tick_labels=names,
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": look.colour, "alpha": 0.45},
            medianprops={"color": "black"},
            flierprops={"marker": ".", "markersize": 2, "alpha": 0.5},
        )
        axes.invert_yaxis()
        axes.set(xlabel=units[part["measure"].iloc[0]], ylabel="items and model")

    return panels(
        shown,
        ["measure"],
        draw,
        title="Are memorized items outliers? Activations of the last MLP compared with those on "
        "clean items with the same digits",
        key=f"box: quartiles of items, pooled over {table['seed'].nunique()} seeds; black line: "
        "median; whiskers: 1.5 times the box; dots: items further out",
        across=1,
        width=8.0,
        height=2.5,
    )


def doses(table: pd.DataFrame) -> Figure:
    """The answers with neurons reset to the mean of their group, by which and how many."""
    neurons = {
        "largest": "largest contributors of each item",
        "fixed": "the same for all items",
        "most written": "chosen without the label",
        "random": "random neurons",
    }
    # The whole layer is the last point of all lines.
    whole = table[table["selection"] == "all"]
    shown = table[table["selection"] != "all"]
    shown = pd.concat([shown, *(whole.assign(selection=name) for name in neurons)])
    long = shown.rename(columns={"true": "true answer", "wrong": "wrong answer"}).melt(
        ["block", "set", "selection", "k", "seed"], ["true answer", "wrong answer"], "said", "share"
    )
    share = _per_seed(long, ["set", "block", "selection", "k", "said"], "share", "share said")
    share["reset"] = share["selection"].replace(neurons) + ", " + share["said"]
    named = share.assign(block="MLP " + share["block"].astype(str), set=share["set"] + " items")
    draw = lines(
        named,
        "k",
        "share said",
        "reset",
        xlabel="number of neurons reset (equal distances; the last is the whole layer)",
        ylabel=_ANSWERS,
        spread="line",
        ordinal=True,
    )
    return panels(
        named,
        ["set", "block"],
        draw,
        title="Answers when neurons are reset to their mean on clean items with the same digits, "
        "by how they are chosen",
        key=over_seeds(named, "point") + "; points side by side are at the same number",
        width=5.0,
        across=2,
    )


def heuristics(table: pd.DataFrame) -> Figure:
    """Histograms of the activations of the neuron that a heuristic describes best, on the first
    seed."""
    first = table[table["seed"] == table["seed"].min()]
    one = first.iloc[0]
    first = first.assign(items=first["items"].replace("memorized", "memorized items"))
    look_of = looks(first["items"])
    # The same bins for all kinds of items, and densities instead of counts: there are many more
    # clean items than memorized ones.
    edges = np.histogram_bin_edges(first["activation"], 40)

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        for name, own in part.groupby("items", sort=False):
            words, colour, _ = look_of[str(name)]
            axes.hist(
                own["activation"],
                list(edges),
                density=True,
                color=colour,
                alpha=0.45,
                label=words.replace("clean, ", "clean items, "),
            )
        axes.set(xlabel="activation of the neuron", ylabel="density of items")

    neuron = f"neuron {one['neuron']} of MLP {one['block']}"
    return panels(
        first.assign(title=neuron),
        ["title"],
        draw,
        title=f"The neuron that a heuristic describes best: it answers to {one['heuristic']} "
        f"(score {one['score']:.2f} on items that did not choose it, 1 is perfect)",
        key="bars: share of the items of a kind per unit of activation; one seed",
        width=7.5,
        height=3.4,
    )


def knock_out(table: pd.DataFrame) -> Figure:
    """The clean items that are still answered correctly with a heuristic's neurons at zero, and
    with the same number of random neurons at zero."""
    covered = table["covered"].map({True: "covered", False: "other"})
    knocked = table["knocked_out"].replace({"matched": "its neurons", "random": "random neurons"})
    shown = table.assign(
        items=knocked + " at zero, " + covered + " items",
        block="MLP " + table["block"].astype(str),
    )
    right = _per_seed(shown, ["block", "heuristic", "items"], "right", "share right")
    draw = bars(
        right,
        "heuristic",
        "share right",
        "items",
        xlabel="heuristic (a condition on the question or the answer)",
        ylabel="share of items answered correctly",
    )
    return panels(
        right,
        ["block"],
        draw,
        title="Do heuristics matter? Clean items answered correctly with the neurons of a "
        "heuristic at zero, on items that it covers and on others",
        key="bar: mean over the seeds on which the heuristic was found; thin line: from the lowest "
        "to the highest",
        width=9.0,
        across=1,
    )


def shared(table: pd.DataFrame) -> Figure:
    """The fraction of memorized items whose first contributors each neuron of the last MLP is
    among, neurons in falling order, and what is expected by chance."""
    long = table.rename(columns={"items": "first contributors"}).melt(
        ["seed", "memorized"], ["first contributors", "by chance"], "neurons", "count"
    )
    long["rank"] = long.groupby(["seed", "neurons"])["count"].rank(ascending=False, method="first")
    long["share"] = long["count"] / long["memorized"]
    draw_lines = lines(
        long,
        "rank",
        "share",
        "neurons",
        xlabel="neurons, most shared first (rank)",
        ylabel="share of memorized items",
    )

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        draw_lines(part, axes)
        # A few neurons are shared by many items and hundreds by hardly any: on a linear axis the
        # few would be one line at its left end.
        axes.set_xscale("log")

    return panels(
        long.assign(title="neurons of the last MLP"),
        ["title"],
        draw,
        title="Do memorized items share neurons? The share of items to whose answer a neuron "
        "contributes most",
        key=over_seeds(long, "line", "band"),
        width=7.5,
        height=3.2,
    )


def _of(name: str, draw: Callable[[pd.DataFrame], Figure]) -> Callable[[Tables], Figure]:
    """Turns a function that draws one table into one that is given all tables."""
    return lambda tables: draw(tables[name])


FIGURES = {
    "learning": _of("dynamics", learning),
    "decoding": _of("probes", decoding),
    "lens": _of("lens", lens),
    "erasing": _of("erasure", erasing),
    "inlp": _of("erasure", inlp),
    "erased": _of("inlp", erased),
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
