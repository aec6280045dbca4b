"""The figures: success and traps in every arm, what the input parts decide, where they are carried,
and what ablation does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from experiments.libero_pro.presets import CONTROL
from experiments.libero_pro.study import NOTHING, POLICY
from interp.experiment.checks import Tables
from interp.reporting.panels import bars, cells, lines, over_seeds, panels, ranges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUCCESS = "success"
_OLD_PLACE = "old place"


def arms(tables: Tables) -> Figure:
    """Success and visits to the old place under every perturbation, of the policy and of the
    control policy in the same scenes."""
    table = tables["episodes"]
    valid = table[table["valid"]]
    of_scenes = valid[valid["scenes"] != CONTROL]
    who = of_scenes["policy"].where(of_scenes["policy"] == CONTROL, "policy")
    long = pd.concat(
        [
            of_scenes.assign(value=of_scenes[column].astype(float), panel=name, who=who)
            for column, name in (("success", _SUCCESS), ("old_place", _OLD_PLACE))
        ]
    )
    long["panel"] = long["scenes"] + "\n" + long["panel"]
    long["arm"] = long["who"] + ": " + long["perturbation"].str.replace("_", " ")
    by_seed = long.groupby(["panel", "arm", "seed"], sort=False)["value"].mean().reset_index()
    return ranges(
        by_seed,
        "arm",
        "panel",
        "value",
        label="share of episodes",
        value_of_level=0.5,
        level="half of the episodes",
        title="Success, and hands that went to where the target was in training",
    )


def inputs(tables: Tables) -> Figure | None:
    """How far the action moves when a part of the input comes from another frame."""
    table = tables["inputs"].dropna(subset="change")
    # A policy that always does the same, as one that is hardly trained, has no bars.
    table = table[table.groupby("policy")["change"].transform("max") > 0]
    if table.empty:
        return None
    draw = bars(
        table,
        "part",
        "change",
        "source",
        xlabel="part of the input that is exchanged",
        ylabel="change of the action\n(distances between tasks)",
    )
    return panels(
        table,
        ["policy"],
        draw,
        title="What decides about the action on the way to an item",
        key=over_seeds(table, "bar"),
    )


def places(tables: Tables) -> Figure:
    """How far from the target the place is that a probe reads in swapped scenes, by block and by
    the scenes that it was fitted on."""
    table = tables["places"]
    table = table[table["scenes"] != CONTROL].copy()
    is_control = table["policy"] == CONTROL
    table["network"] = table["network"].mask(is_control & (table["network"] == POLICY), CONTROL)
    # The control's untrained network and shuffled places would be averaged with the policy's.
    table = table[~is_control | (table["network"] == CONTROL)]
    table["fitted"] = "fitted on " + table["fitted"]
    columns = ["scenes", "fitted", "network", "block", "seed"]
    by_seed = table.groupby(columns, sort=False)["error"].mean().reset_index()
    draw = lines(
        by_seed,
        "block",
        "error",
        "network",
        xlabel="after block",
        ylabel="error (cm)",
    )
    return panels(
        by_seed,
        ["scenes", "fitted"],
        draw,
        title="How far from the target the place is that a probe reads in swapped scenes",
        key=over_seeds(by_seed, "line", "band"),
        across=2,
    )


def patching(tables: Tables) -> Figure | None:
    """Where the task is carried: the share of the motion that goes over with each part."""
    table = tables["patching"]
    if table.empty:
        return None
    median = table.groupby(["policy", "block", "part", "seed"], sort=False)["share"].median()
    draw = cells(
        "part",
        "block",
        "share",
        xlabel="block",
        ylabel="positions",
        limits=(0, 1),
    )
    return panels(
        median.reset_index(),
        ["policy"],
        draw,
        title="Share of the motion that goes over to another task's with its residual stream",
        key="cell: mean over seeds of the median over frames",
    )


def ablation(tables: Tables) -> Figure:
    """Clean success and visits to the old place in swapped scenes, by the share of neurons that are
    ablated."""
    table = tables["ablation"]
    clean = table[table["arm"] == "clean"].assign(measure="clean success")
    swapped = table[table["arm"] == "swap"].assign(measure="old place, swapped")
    long = pd.concat(
        [clean.assign(value=clean["success"]), swapped.assign(value=swapped["old_place"])]
    )
    before = long[long["method"] == NOTHING]
    after = long[long["method"] != NOTHING]
    methods = after["method"].unique()
    # Without any ablation all methods have the same episodes: the first point of each line.
    joined = pd.concat([*(before.assign(method=name) for name in methods), after])
    columns = ["policy", "measure", "method", "fraction", "seed"]
    by_seed = joined.groupby(columns, sort=False)["value"].mean().reset_index()
    draw = lines(
        by_seed,
        "fraction",
        "value",
        "method",
        xlabel="share of the neurons that are ablated",
        ylabel="share of episodes",
    )
    return panels(
        by_seed,
        ["policy", "measure"],
        draw,
        title="What the ablation of neurons does to clean success and to the trap",
        key=over_seeds(by_seed, "line", "band"),
        across=2,
    )


FIGURES = {
    "arms": arms,
    "inputs": inputs,
    "places": places,
    "patching": patching,
    "ablation": ablation,
}
