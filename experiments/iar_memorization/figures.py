"""The figures: where UnitMem is high, which images are extracted, what edits do and cost, and the
images themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.iar_memorization.measures import SAFE
from experiments.iar_memorization.mitigation import HALVED, ZEROED, average_over_draws
from interp.experiment.checks import Tables, rows
from interp.reporting.image_grid import image_grid
from interp.reporting.looks import in_percent, looks
from interp.reporting.panels import bars, cells, level, lines, over_seeds, panels, with_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODEL = ["family", "regime"]
# What the regimes of the presets are; a public model has another.
_REGIMES = {
    "mixture": "few planted images among many others",
    "overfit": "a small training set, seen many times",
}
_SMOOTHED = 25  # training steps whose losses are averaged
_COSTS = {
    "held out loss": "loss on held-out images (nats per token)",
    "distance": "Frechet distance to real images",
}
_ZEROED_COSTS = {"held out loss": _COSTS["held out loss"]}
# For each column of the table of edits: the panel, and its y axis.
_MEASURES = {
    "extracted": ("images extracted", "share of planted images"),
    "alike": ("images still recognizable", "share of planted images"),
    "held out loss": ("held-out loss", "nats per token"),
    "distance": ("Frechet distance", "distance to real images"),
}


def training(history: pd.DataFrame) -> Figure:
    """The loss on training batches."""
    binned = history.assign(step=history["step"] // _SMOOTHED * _SMOOTHED)
    groups = binned.groupby([*_MODEL, "seed", "step"], sort=False)
    smooth = groups["loss"].mean().reset_index()
    draw = lines(
        smooth, "step", "loss", "regime", xlabel="optimizer steps", ylabel="loss (nats per token)"
    )
    return panels(
        smooth,
        ["family"],
        draw,
        title="Loss on training batches, by training regime (each seed averaged over "
        f"{_SMOOTHED} steps)",
        key=_regimes(smooth) + over_seeds(smooth, "point", "band"),
        width=5.0,
    )


def extraction(table: pd.DataFrame) -> Figure:
    """The share of each set that is extracted exactly, by prefix."""
    groups = table.groupby([*_MODEL, "seed", "set", "prefix"], sort=False)
    share = groups["exact"].mean().reset_index()
    draw = lines(
        share,
        "prefix",
        "exact",
        "set",
        xlabel="first tokens given",
        ylabel="share of images extracted",
        spread="line",
    )
    return panels(
        share,
        _MODEL,
        draw,
        title="Images generated to the last token from their first tokens (extracted): planted "
        "(often in the training set), background (once in it), held out (not in it)",
        key=_regimes(share)
        + over_seeds(share, "point")
        + "; points side by side are at the same number of tokens",
        width=5.0,
        across=2,
    )


def correlation(table: pd.DataFrame) -> Figure:
    """The share of each set that counts as extracted by correlation of pixels, under a fixed
    threshold and under one set on held-out images."""
    fixed = f"fixed threshold, {SAFE}"
    named = table.assign(
        threshold=np.where(table["fixed"], fixed, "threshold from held-out images")
    )
    draw = lines(
        named,
        "prefix",
        "share",
        "set",
        xlabel="first tokens given",
        ylabel="share counted as extracted",
    )
    return panels(
        named,
        [*_MODEL, "threshold"],
        draw,
        title="Images that count as extracted because their pixels correlate with the completion, "
        "under two thresholds of the correlation",
        key=over_seeds(named, "point", "band"),
        across=4,
        height=2.7,
    )


def scale_by_block(table: pd.DataFrame) -> Figure:
    """Mean UnitMem, and the blocks of each segment's top 10%, over seeds."""
    # The first number of views is the paper's. How the pattern changes without augmentation is
    # shown by the figure of blocks.
    first = table[table["views"] == table["views"].iloc[0]]
    in_segment = first.groupby([*_MODEL, "seed", "segment"])["top"].transform("sum")
    shown = first.assign(top=first["top"] / in_segment)
    long = shown.melt(
        [*_MODEL, "segment", "block"], ["mean", "top"], var_name="what", value_name="value"
    )
    titles = {"mean": "mean UnitMem", "top": "share of the segment's top 10%"}
    long["what"] = long["what"].map(titles)
    draw = cells("segment", "block", "value", xlabel="block", ylabel="segment of the image")
    return panels(
        long,
        [*_MODEL, "what"],
        draw,
        title="Where neurons are selective for single images, by segment of the image and block: "
        "mean UnitMem, and the share of the segment's most selective 10% of neurons in each block",
        key=f"colour and number of a cell: mean over {table['seed'].nunique()} seeds",
        across=4,
        height=2.5,
    )


def blocks(table: pd.DataFrame) -> Figure:
    """The blocks of the top 10% of all neurons."""
    named = table.assign(views=_views(table))
    draw_lines = lines(
        named, "block", "share", "views", xlabel="block", ylabel="share of the top 10% of neurons"
    )

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        draw_lines(part, axes)
        level(axes, 1 / part["block"].nunique(), "evenly spread over blocks")
        # The distance from the even spread looks as large as it is only on an axis that begins at
        # 0.
        axes.set_ylim(bottom=0)

    return panels(
        named,
        _MODEL,
        draw,
        title="In which blocks the 10% of neurons with the highest UnitMem are, with and without "
        "augmented views of each image",
        key=over_seeds(named, "point", "band"),
        width=5.0,
        across=2,
    )


def votes(table: pd.DataFrame) -> Figure:
    """How much more often neurons respond most to a planted image than its share of D'."""
    named = table.assign(views=_views(table))
    draw_bars = bars(
        named,
        "neurons",
        "enrichment",
        "views",
        xlabel="neurons",
        ylabel="share of planted images\nrelative to chance",
    )

    return panels(
        named,
        _MODEL,
        with_level(draw_bars, 1, "chance: the share of planted images in D'"),
        title="Do neurons respond most to planted images? How often the image with the strongest "
        "response is a planted one, relative to chance: all neurons, and the top 10% by UnitMem",
        key=over_seeds(named, "bar"),
        width=5.0,
        across=2,
    )


def members(table: pd.DataFrame) -> Figure:
    """UnitMem over planted, background and held-out images."""
    named = table.assign(views=_views(table))
    draw = bars(named, "set", "UnitMem", "views", xlabel="images", ylabel="mean UnitMem (0 to 1)")
    return panels(
        named,
        _MODEL,
        draw,
        title="Mean UnitMem, which is how much more a neuron responds to one image than to the "
        "others, by images: planted (often in the training set), background (once in it), held out",
        key=_regimes(named)
        + over_seeds(named, "bar")
        + "; views: shifted copies of an image, whose responses are averaged",
        width=5.0,
        across=2,
    )


def subsets(table: pd.DataFrame) -> Figure:
    """How well subsets of the reference images, and held-out images, rank the blocks, compared with
    the whole set."""
    held_out = np.where(table["set"] == "held out", ", held-out images", "")
    named = table.assign(views=_views(table) + held_out)
    draw_lines = lines(
        named,
        "share",
        "correlation",
        "views",
        xlabel="number of images, as a share of the reference set D'",
        ylabel="Spearman correlation over blocks",
        spread="line",
    )

    return panels(
        named,
        _MODEL,
        with_level(draw_lines, 1, "same order as the whole set D'"),
        title="Do parts of the reference set D' rank blocks by mean UnitMem as the whole set does, "
        "and do as many held-out images?",
        key=over_seeds(named, "point") + "; points side by side are at the same share",
        width=5.0,
        across=2,
    )


def edits(table: pd.DataFrame) -> Figure:
    """Extraction, held-out loss and Frechet distance by the share of units halved."""
    shown = _edited(table, HALVED)
    long = shown.melt(
        ["family", "seed", "selection", "fraction"],
        list(_MEASURES),
        var_name="measure",
        value_name="value",
    )
    long["panel"] = long["measure"].map({name: panel for name, (panel, _) in _MEASURES.items()})
    unedited = long[long["fraction"] == 0].groupby(["family", "measure"])["value"].mean()
    draw_lines = lines(
        long,
        "fraction",
        "value",
        "selection",
        xlabel="share of neurons whose in-weights are halved",
        spread="line",
    )

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        # Without the point at 0, which all selections share: the unedited model is drawn as a
        # level.
        draw_lines(part[part["fraction"] > 0], axes)
        measure = part["measure"].iloc[0]
        level(axes, unedited[part["family"].iloc[0], measure], "unedited model")
        axes.set(ylabel=_MEASURES[measure][1])

    # One column per family, one row per measure.
    by_measure = [long[long["measure"] == measure] for measure in _MEASURES]
    return panels(
        pd.concat(by_measure),
        ["panel", "family"],
        draw,
        title="What halving the in-weights of neurons removes and costs, by how the neurons are "
        "chosen: images extracted, images still recognizable, held-out loss, Frechet distance",
        key=over_seeds(long, "point") + "; points side by side are at the same share",
        width=5.3,
        height=2.7,
        across=2,
    )


def equal_cost(table: pd.DataFrame, edit: str, costs: Mapping[str, str]) -> Figure:
    """Extraction against the cost of an edit, for each selection, starting at the unedited
    model."""
    groups = _edited(table, edit).groupby(["family", "selection", "fraction"], sort=False)
    shown = groups.mean(numeric_only=True).reset_index()
    long = shown.melt(
        ["family", "selection", "fraction", "extracted"],
        list(costs),
        var_name="cost",
        value_name="value",
    )
    look_of = looks(long["selection"])
    unedited = long[long["fraction"] == 0]

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        for name, own in part.groupby("selection", sort=False):
            words, colour, marker = look_of[str(name)]
            # By the size of the edit, not by its cost: where a larger edit costs less, the line
            # turns back, as was measured.
            by_fraction = own.sort_values("fraction")
            axes.plot(
                by_fraction["value"],
                by_fraction["extracted"],
                color=colour,
                marker=marker,
                label=words,
                markersize=4.5,
                linewidth=1.3,
            )
        before = unedited[unedited["family"] == part["family"].iloc[0]]["extracted"].mean()
        level(axes, before, "unedited model")
        axes.set(xlabel=costs[part["cost"].iloc[0]], ylabel="share of planted images extracted")

    seeds = table["seed"].nunique()
    # The unedited model is the start of every line, not one of the shares that the legend lists.
    edited = sorted(long[long["fraction"] > 0]["fraction"].unique())
    shares = ", ".join(in_percent(fraction) for fraction in edited)
    what = "zeroing" if edit == ZEROED else "halving"
    return panels(
        long,
        ["family", "cost"],
        draw,
        title=f"Images extracted against what the edit costs: {what} the in-weights (those that "
        "a neuron reads with) of growing shares of neurons, by how the neurons are chosen",
        key=f"point: mean over {seeds} seeds for one share of neurons ({shares}); each line begins "
        "at the unedited model; lower and further left is better; lowest: those of lowest UnitMem",
        width=5.0,
        height=3.2,
        across=2,
    )


def kinds(table: pd.DataFrame) -> Figure:
    """What is left by each kind of edit, of UnitMem's units and of random ones, at the fraction
    that claims are about."""
    # All kinds of edits but the first two are tried at that fraction alone.
    every_kind = table[~table["edit"].isin([HALVED, ZEROED, "none"])]
    judged = every_kind.groupby("family")["fraction"].first()
    at_judged = table["fraction"] == table["family"].map(judged)
    means = average_over_draws(table[at_judged | (table["edit"] == "none")])
    unedited = means[means["edit"] == "none"].groupby("family")["extracted"].mean()
    shown = means[means["selection"].isin(["UnitMem", "random"])]
    draw_bars = bars(
        shown,
        "edit",
        "extracted",
        "selection",
        xlabel="kind of edit",
        ylabel="share of planted images extracted",
    )

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        draw_bars(part, axes)
        level(axes, unedited[part["family"].iloc[0]], "unedited model")

    share = ", ".join(f"{in_percent(fraction)} ({family})" for family, fraction in judged.items())
    return panels(
        shown,
        ["family"],
        draw,
        title=f"Images extracted after each kind of edit of the same share of neurons: {share}",
        key=over_seeds(shown, "bar"),
        across=2,
        width=5.3,
        height=3.4,
    )


def pictures(table: pd.DataFrame) -> Figure:
    """The same planted images: the originals, their tokens decoded, and what is extracted before
    and after edits."""
    first_seed = table[table["seed"] == table["seed"].iloc[0]]
    by_row = first_seed.groupby("row", sort=False)
    family = table["family"].iloc[0]
    return image_grid(
        {str(name): _pixels(part) for name, part in by_row},
        title=f"{family}: planted images, and what the model generates from their first tokens "
        "before and after edits (one seed)",
    )


def _pixels(part: pd.DataFrame) -> Tensor:
    """The images of some rows; the table stores their pixels as flat lists."""
    images = [
        np.array(pixels).reshape(shape)
        for pixels, shape in zip(part["pixels"], part["shape"], strict=True)
    ]
    return torch.tensor(np.stack(images))


def _edited(table: pd.DataFrame, edit: str) -> pd.DataFrame:
    """The rows of one edit, with the unedited model as the first row of each selection."""
    means = average_over_draws(table[table["edit"].isin([edit, "none"])])
    unedited = means[means["selection"] == "none"]
    parts: list[pd.DataFrame] = []
    for name, part in means.groupby("selection", sort=False):
        if name != "none":
            parts += [unedited.assign(selection=name), part]
    return pd.concat(parts)


def _regimes(table: pd.DataFrame) -> str:
    """What a legend says of the regimes that occur in a table."""
    found = [name for name in table["regime"].unique() if name in _REGIMES]
    return "".join(f"{name}: {_REGIMES[name]}; " for name in found)


def _views(table: pd.DataFrame) -> pd.Series:
    return table["views"].map(lambda count: "no augmentation" if count == 1 else f"{count} views")


def _of(
    name: str, draw: Callable[..., Figure], *arguments: Any
) -> Callable[[Tables], Figure | None]:
    """Turns a function that draws one table into one that is given all tables, and draws nothing
    where that table is missing."""
    return lambda tables: draw(tables[name], *arguments) if name in tables else None


def _pictures_of(family: str) -> Callable[[Tables], Figure]:
    return lambda tables: pictures(rows(tables["pictures"], {"family": family}))


FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "extraction": _of("extraction", extraction),
    "correlation": _of("correlation", correlation),
    "map": _of("map", scale_by_block),
    "blocks": _of("blocks", blocks),
    "votes": _of("votes", votes),
    "members": _of("members", members),
    "subsets": _of("subsets", subsets),
    "edits": _of("edits", edits),
    "equal_cost": _of("edits", equal_cost, HALVED, _COSTS),
    "zeroed": _of("edits", equal_cost, ZEROED, _ZEROED_COSTS),
    "kinds": _of("edits", kinds),
    "training": _of("training", training),
    "images_VAR": _pictures_of("VAR"),
    "images_RAR": _pictures_of("RAR"),
}
