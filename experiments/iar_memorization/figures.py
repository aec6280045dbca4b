"""The figures: where UnitMem is high, who is extracted, what edits do and cost, and the pictures
themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from experiments.iar_memorization.mitigation import COSTS, HALVED, ZEROED, averaged
from interp.experiment.checks import Tables, rows
from interp.reporting.image_grid import image_grid
from interp.reporting.panels import Draw, bars, colours, lines, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODEL = ["family", "regime"]


def training(history: pd.DataFrame) -> Figure:
    """The loss on training batches."""
    smooth = (
        history.assign(step=history["step"] // 25 * 25)
        .groupby([*_MODEL, "seed", "step"], sort=False)["loss"]
        .mean()
        .reset_index()
    )
    return panels(smooth, ["family"], lines(smooth, "step", "loss", "regime", "steps"))


def extraction(table: pd.DataFrame) -> Figure:
    """Extracted exactly, by prefix, of each set."""
    share = (
        table.groupby([*_MODEL, "seed", "set", "prefix"], sort=False)["exact"]
        .mean()
        .rename("share extracted")
        .reset_index()
    )
    return panels(
        share, _MODEL, lines(share, "prefix", "share extracted", "set", "tokens given"), across=2
    )


def correlation(table: pd.DataFrame) -> Figure:
    """What passes for extracted by correlation of pixels, under a fixed threshold and under one set
    on images held out."""
    named = table.assign(
        threshold=np.where(table["fixed"], "fixed at .9", "set on half of the images held out")
    )
    return panels(
        named,
        [*_MODEL, "threshold"],
        lines(named, "prefix", "share", "set", "tokens given"),
        across=4,
        width=4.0,
    )


def scale_by_block(table: pd.DataFrame) -> Figure:
    """Mean UnitMem, and the blocks of the top 10% of each segment, over seeds."""
    first = table[table["views"] == table["views"].iloc[0]]
    shown = first.assign(
        top=first["top"] / first.groupby([*_MODEL, "seed", "segment"])["top"].transform("sum")
    )
    long = shown.melt(
        [*_MODEL, "segment", "block"], ["mean", "top"], var_name="what", value_name="value"
    )
    long["what"] = long["what"].map(
        {"mean": "mean UnitMem", "top": "share of the segment's top 10%"}
    )
    return panels(long, [*_MODEL, "what"], _cells("segment", "block", "value"), across=4, width=4.2)


def blocks(table: pd.DataFrame) -> Figure:
    """The blocks of the top 10% of all neurons."""
    named = table.assign(views=_views(table)).rename(columns={"share": "share of the top 10%"})
    return panels(
        named, _MODEL, lines(named, "block", "share of the top 10%", "views", "block"), across=2
    )


def votes(table: pd.DataFrame) -> Figure:
    """How much more often neurons respond most to a planted image than its share of D'."""
    named = table.assign(views=_views(table))

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        bars(named, "neurons", "enrichment", "views")(part, axes)
        axes.axhline(1, color="0.4", linestyle="--", linewidth=1)
        axes.set(ylim=(0, None))

    return panels(named, _MODEL, draw, across=2)


def members(table: pd.DataFrame) -> Figure:
    """UnitMem over planted, background and held-out images."""
    named = table.assign(views=_views(table))
    return panels(named, _MODEL, bars(named, "set", "UnitMem", "views"), across=2)


def subsets(table: pd.DataFrame) -> Figure:
    """How like the whole D' its parts rank blocks."""
    named = table.assign(views=_views(table))
    return panels(
        named, _MODEL, lines(named, "share", "correlation", "views", "share of D'"), across=2
    )


def edits(table: pd.DataFrame) -> Figure:
    """Extraction, held-out loss and Frechet distance by how many units are halved."""
    shown = _edited(table, HALVED)
    long = shown.melt(
        ["family", "seed", "selection", "fraction"],
        ["extracted", "alike", *COSTS],
        var_name="measure",
        value_name="value",
    )
    return panels(
        long,
        ["family", "measure"],
        lines(long, "fraction", "value", "selection", "share of neurons halved"),
        across=4,
        width=4.0,
    )


def equal_cost(table: pd.DataFrame, edit: str, costs: Sequence[str]) -> Figure:
    """Extraction against quality, for each selection under an edit, from the model as it is on."""
    shown = (
        _edited(table, edit)
        .groupby(["family", "selection", "fraction"], sort=False)
        .mean(numeric_only=True)
        .reset_index()
    )
    long = shown.melt(
        ["family", "selection", "fraction", "extracted"],
        list(costs),
        var_name="cost",
        value_name="value",
    )
    palette = colours(long, "selection")

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        for name, own in part.groupby("selection", sort=False):
            marked = own.sort_values("fraction")
            axes.plot(
                marked["value"],
                marked["extracted"],
                "o-",
                color=palette[str(name)],
                label=str(name),
                markersize=4,
            )
        axes.set(xlabel=str(part["cost"].iloc[0]), ylabel="share extracted")

    return panels(long, ["family", "cost"], draw, across=2)


def kinds(table: pd.DataFrame) -> Figure:
    """What is done to the units of the fraction that is judged: UnitMem's against random ones."""
    judged = (
        table.loc[~table["edit"].isin([HALVED, ZEROED, "none"])]
        .groupby("family")["fraction"]
        .first()
    )
    means = averaged(
        table[(table["fraction"] == table["family"].map(judged)) | (table["edit"] == "none")]
    )
    shown = means[means["selection"].isin(["none", "UnitMem", "random"])]
    return panels(
        shown, ["family"], bars(shown, "edit", "extracted", "selection"), across=2, width=6.0
    )


def pictures(table: pd.DataFrame) -> Figure:
    """The same planted images: as they are, as tokens, as extracted, and after edits."""
    pixels = {str(name): torch.tensor(np.stack([np.array(p).reshape(s) for p, s in zip(part["pixels"], part["shape"], strict=True)]))
            for name, part in table[table["seed"] == table["seed"].iloc[0]].groupby("row", sort=False)}  # fmt: skip
    return image_grid(pixels)


def _edited(table: pd.DataFrame, edit: str) -> pd.DataFrame:
    """One edit, each selection beginning at the model as it is."""
    means = averaged(table[table["edit"].isin([edit, "none"])])
    before = means[means["selection"] == "none"]
    return pd.concat(
        [
            pd.concat([before.assign(selection=name), part])
            for name, part in means.groupby("selection", sort=False)
            if name != "none"
        ]
    )


def _views(table: pd.DataFrame) -> pd.Series:
    return table["views"].map(lambda n: "no augmentation" if n == 1 else f"{n} views")


def _cells(row: str, column: str, value: str) -> Draw:
    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        order = list(part[row].unique())
        wide: Any = part.pivot_table(index=row, columns=column, values=value).loc[order]
        sns.heatmap(
            wide, annot=True, fmt=".2f", annot_kws={"size": 7}, cmap="crest", cbar=False, ax=axes
        )

    return draw


def _of(
    name: str, draw: Callable[..., Figure], *arguments: Any
) -> Callable[[Tables], Figure | None]:
    """Draws one table; nothing where there is no such table."""
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
    "equal_cost": _of("edits", equal_cost, HALVED, COSTS),
    "zeroed": _of("edits", equal_cost, ZEROED, COSTS[:1]),
    "kinds": _of("edits", kinds),
    "training": _of("training", training),
    "images_VAR": _pictures_of("VAR"),
    "images_RAR": _pictures_of("RAR"),
}
