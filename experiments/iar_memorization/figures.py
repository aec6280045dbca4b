"""The figures: where UnitMem is high, which images are extracted, what edits do and cost, and the
images themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.iar_memorization.measures import SAFE
from experiments.iar_memorization.mitigation import COSTS, HALVED, ZEROED, average_over_draws
from interp.experiment.checks import Tables, rows
from interp.reporting.image_grid import image_grid
from interp.reporting.panels import Draw, bars, colours, lines, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODEL = ["family", "regime"]
_SMOOTHED = 25  # training steps whose losses are averaged


def training(history: pd.DataFrame) -> Figure:
    """The loss on training batches."""
    binned = history.assign(step=history["step"] // _SMOOTHED * _SMOOTHED)
    groups = binned.groupby([*_MODEL, "seed", "step"], sort=False)
    smooth = groups["loss"].mean().reset_index()
    return panels(smooth, ["family"], lines(smooth, "step", "loss", "regime", "steps"))


def extraction(table: pd.DataFrame) -> Figure:
    """The share of each set that is extracted exactly, by prefix."""
    groups = table.groupby([*_MODEL, "seed", "set", "prefix"], sort=False)
    share = groups["exact"].mean().rename("share extracted").reset_index()
    draw = lines(share, "prefix", "share extracted", "set", "tokens given")
    return panels(share, _MODEL, draw, across=2)


def correlation(table: pd.DataFrame) -> Figure:
    """The share of each set that counts as extracted by correlation of pixels, under a fixed
    threshold and under one set on held-out images."""
    fixed = f"fixed at {SAFE}"
    named = table.assign(
        threshold=np.where(table["fixed"], fixed, "set on half of the held-out images")
    )
    draw = lines(named, "prefix", "share", "set", "tokens given")
    return panels(named, [*_MODEL, "threshold"], draw, across=4, width=4.0)


def scale_by_block(table: pd.DataFrame) -> Figure:
    """Mean UnitMem, and the blocks of each segment's top 10%, over seeds."""
    first = table[table["views"] == table["views"].iloc[0]]
    in_segment = first.groupby([*_MODEL, "seed", "segment"])["top"].transform("sum")
    shown = first.assign(top=first["top"] / in_segment)
    long = shown.melt(
        [*_MODEL, "segment", "block"], ["mean", "top"], var_name="what", value_name="value"
    )
    titles = {"mean": "mean UnitMem", "top": "share of the segment's top 10%"}
    long["what"] = long["what"].map(titles)
    return panels(long, [*_MODEL, "what"], _cells("segment", "block", "value"), across=4, width=4.2)


def blocks(table: pd.DataFrame) -> Figure:
    """The blocks of the top 10% of all neurons."""
    named = table.assign(views=_views(table)).rename(columns={"share": "share of the top 10%"})
    draw = lines(named, "block", "share of the top 10%", "views", "block")
    return panels(named, _MODEL, draw, across=2)


def votes(table: pd.DataFrame) -> Figure:
    """How much more often neurons respond most to a planted image than its share of D'."""
    named = table.assign(views=_views(table))
    draw_bars = bars(named, "neurons", "enrichment", "views")

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        draw_bars(part, axes)
        axes.axhline(1, color="0.4", linestyle="--", linewidth=1)
        axes.set(ylim=(0, None))

    return panels(named, _MODEL, draw, across=2)


def members(table: pd.DataFrame) -> Figure:
    """UnitMem over planted, background and held-out images."""
    named = table.assign(views=_views(table))
    return panels(named, _MODEL, bars(named, "set", "UnitMem", "views"), across=2)


def subsets(table: pd.DataFrame) -> Figure:
    """How well parts of D' rank blocks as the whole does."""
    named = table.assign(views=_views(table))
    draw = lines(named, "share", "correlation", "views", "share of D'")
    return panels(named, _MODEL, draw, across=2)


def edits(table: pd.DataFrame) -> Figure:
    """Extraction, held-out loss and Frechet distance by the share of units halved."""
    shown = _edited(table, HALVED)
    long = shown.melt(
        ["family", "seed", "selection", "fraction"],
        ["extracted", "alike", *COSTS],
        var_name="measure",
        value_name="value",
    )
    draw = lines(long, "fraction", "value", "selection", "share of neurons halved")
    return panels(long, ["family", "measure"], draw, across=4, width=4.0)


def equal_cost(table: pd.DataFrame, edit: str, costs: Sequence[str]) -> Figure:
    """Extraction against the cost of an edit, for each selection, from the unedited model on."""
    groups = _edited(table, edit).groupby(["family", "selection", "fraction"], sort=False)
    shown = groups.mean(numeric_only=True).reset_index()
    long = shown.melt(
        ["family", "selection", "fraction", "extracted"],
        list(costs),
        var_name="cost",
        value_name="value",
    )
    palette = colours(long, "selection")

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        for name, own in part.groupby("selection", sort=False):
            by_fraction = own.sort_values("fraction")
            axes.plot(
                by_fraction["value"],
                by_fraction["extracted"],
                "o-",
                color=palette[str(name)],
                label=str(name),
                markersize=4,
            )
        axes.set(xlabel=str(part["cost"].iloc[0]), ylabel="share extracted")

    return panels(long, ["family", "cost"], draw, across=2)


def kinds(table: pd.DataFrame) -> Figure:
    """What is left by each kind of edit, of UnitMem's units and of random ones, at the fraction
    that claims are about."""
    # All kinds of edits but the first two are tried at that fraction alone.
    every_kind = table[~table["edit"].isin([HALVED, ZEROED, "none"])]
    judged = every_kind.groupby("family")["fraction"].first()
    at_judged = table["fraction"] == table["family"].map(judged)
    means = average_over_draws(table[at_judged | (table["edit"] == "none")])
    shown = means[means["selection"].isin(["none", "UnitMem", "random"])]
    draw = bars(shown, "edit", "extracted", "selection")
    return panels(shown, ["family"], draw, across=2, width=6.0)


def pictures(table: pd.DataFrame) -> Figure:
    """The same planted images: as they are, as tokens, as extracted, and after edits."""
    first_seed = table[table["seed"] == table["seed"].iloc[0]]
    by_row = first_seed.groupby("row", sort=False)
    return image_grid({str(name): _pixels(part) for name, part in by_row})


def _pixels(part: pd.DataFrame) -> Tensor:
    """The images of some rows, which a table holds flat."""
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


def _views(table: pd.DataFrame) -> pd.Series:
    return table["views"].map(lambda count: "no augmentation" if count == 1 else f"{count} views")


def _cells(row: str, column: str, value: str) -> Draw:
    """Draws a heat map with a number in each cell."""

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
