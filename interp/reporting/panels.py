"""Figures of several panels, as experiments draw them from a table with one row per seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.reporting.layout import LEVEL, finish, fit_names, grid_of, name_panel, style
from interp.reporting.looks import in_words, looks
from interp.reporting.plotting import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[[pd.DataFrame, "Axes"], None]
_MOST_MARKERS = 60  # of one line; more would hide it


def panels(
    frame: pd.DataFrame,
    by: list[str],
    draw: Draw,
    *,
    title: str,
    key: str,
    width: float = 3.5,
    height: float = 2.8,
    across: int = 3,
) -> Figure:
    """Draws one panel for each combination of values in some columns, with one legend.

    Args:
        frame: tidy, one row per point and seed.
        by: the columns whose combinations are the panels, in order of appearance.
        draw: draws the rows of one panel on its axes, such as `lines(...)` or `bars(...)`.
        title: what is compared.
        key: what the marks, bars and bands are; see `over_seeds`.
        width: width of a panel, in inches.
        height: height of a panel, in inches.
        across: largest number of panels in a row.

    Example:
        >>> from interp.reporting.panels import bars, over_seeds, panels
        >>> table = pd.DataFrame({"model": ["VAR", "RAR"], "set": "train", "share": [0.2, 0.3]})
        >>> table = table.assign(method="unitmem", seed=0)
        >>> draw = bars(table, "set", "share", "method", xlabel="images")
        >>> title = "Share of images by model"
        >>> figure = panels(table, ["model"], draw, title=title, key=over_seeds(table, "bar"))
        >>> [axes.get_title() for axes in figure.axes]
        ['VAR', 'RAR']
    """
    groups: Any = frame.groupby(by, sort=False)
    parts: list[tuple[str, pd.DataFrame]] = []
    for values, part in groups:
        name = " · ".join(map(in_words, values))
        parts.append((name, part))
    with style():
        figure, grid = grid_of(len(parts), across, width=width, height=height)
        for axes, (name, part) in zip(grid, parts, strict=True):
            draw(part, axes)
            name_panel(axes, name)
        finish(figure, grid, title, key)
    return figure


def over_seeds(frame: pd.DataFrame, mark: str, spread: str = "thin line") -> str:
    """Returns what a legend says of marks that are means over the seeds of a table.

    Args:
        frame: the table.
        mark: what shows the mean.
        spread: what reaches from the lowest seed to the highest.

    Example:
        >>> from interp.reporting.panels import over_seeds
        >>> over_seeds(pd.DataFrame({"seed": [0, 1, 2]}), "point", "band")
        'point: mean over 3 seeds; band: from the lowest seed to the highest'
    """
    seeds = len(frame["seed"].unique())
    if seeds == 1:
        return f"{mark}: one seed"
    return f"{mark}: mean over {seeds} seeds; {spread}: from the lowest seed to the highest"


def ranges(
    by_seed: pd.DataFrame,
    row: str,
    panel: str,
    value: str,
    *,
    label: str | Mapping[str, str],
    value_of_level: float | Mapping[str, float],
    level: str,
    title: str,
) -> Figure:
    """Draws means over seeds as points, each with a line from the lowest seed to the highest: one
    row per name, one panel per value of a column.

    Args:
        by_seed: tidy, one row per name, panel and seed.
        row: the column that names the row.
        panel: the column that names the panel.
        value: the column of the values.
        label: name and unit of the values; or those of each panel.
        value_of_level: what to compare with, drawn as a dashed line in every panel; or that of each
            panel.
        level: what that is.
        title: what is compared.

    Example:
        >>> from interp.reporting.panels import ranges
        >>> table = pd.DataFrame({"attack": ["loss", "ratio"], "data": "text", "seed": 0})
        >>> table["auc"] = [0.6, 0.9]
        >>> about = {"label": "AUC", "value_of_level": 0.5, "level": "chance"}
        >>> figure = ranges(table, "attack", "data", "auc", title="Attacks", **about)
        >>> [axes.get_title() for axes in figure.axes]
        ['text']
    """
    groups: Any = by_seed.groupby([panel, row], sort=False)[value]
    spread = groups.agg(estimate="mean", low="min", high="max").reset_index()
    # Panels go by their names as text, whatever the column holds.
    names = [str(name) for name in spread[panel].unique()]
    labels = dict.fromkeys(names, label) if isinstance(label, str) else label
    levels = value_of_level
    if not isinstance(levels, Mapping):
        levels = dict.fromkeys(names, levels)
    return intervals(
        spread,
        row,
        panel,
        labels=labels,
        titles={name: name for name in names},
        levels=levels,
        level=level,
        title=title,
        key=over_seeds(by_seed, "point", "line"),
    )


def level(axes: Axes, value: float, name: str) -> None:
    """Draws a value to compare with, such as chance, as a dashed line that the legend names."""
    axes.axhline(value, label=name, **LEVEL)


def with_level(draw: Draw, value: float, name: str) -> Draw:
    """Returns a function for `panels` that also draws the same level in every panel.

    Args:
        draw: what is drawn otherwise.
        value: the level, see `level`.
        name: its name in the legend.
    """

    def draw_both(part: pd.DataFrame, axes: Axes) -> None:
        draw(part, axes)
        level(axes, value, name)

    return draw_both


def lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    *,
    xlabel: str,
    ylabel: str | None = None,
    spread: Literal["band", "line"] = "band",
    ordinal: bool = False,
) -> Draw:
    """Returns a function for `panels` that draws lines through means over seeds.

    Args:
        frame: the whole table, which gives each line its colour.
        x: the column of the x axis.
        y: the column of the y axis.
        hue: the column that names the line.
        xlabel: name and unit of the x axis.
        ylabel: name and unit of the y axis, by default the column's name.
        spread: what reaches from the lowest seed to the highest: a band, or a thin line at each
            point. The lines are drawn next to each other, so that many of them can be
            distinguished.
        ordinal: whether the values of x are drawn at equal distances.
    """
    look_of = looks(frame[hue].unique())
    values = sorted(frame[x].unique())

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        found = set(map(str, part[hue]))
        drawn = [name for name in look_of if name in found]
        # The extent of the x axis, of which a step aside is a small share.
        reach = len(values) if ordinal else float(np.ptp(part[x]))
        for number, name in enumerate(drawn):
            words, colour, marker = look_of[name]
            own = part[part[hue].astype(str) == name]
            seeds = own.groupby(x)[y].agg(["mean", "min", "max"])
            lowest = seeds["min"]
            highest = seeds["max"]
            # Places among the values of the whole table: panels have the same axis.
            places = map(values.index, seeds.index) if ordinal else seeds.index
            at = np.array(list(places), dtype=float)
            if spread == "band":
                axes.fill_between(at, lowest, highest, color=colour, alpha=0.18, linewidth=0)
            else:
                # A little aside, in the order of the names around the true place: lines at the same
                # x would hide one another.
                from_centre = number - (len(drawn) - 1) / 2
                at = at + 0.012 * reach * from_centre
                axes.vlines(at, lowest, highest, color=colour, linewidth=1)
            axes.plot(
                at,
                seeds["mean"],
                color=colour,
                marker=marker if len(at) <= _MOST_MARKERS else None,
                markersize=4.5,
                linewidth=1.4,
                label=words,
            )
        if ordinal:
            texts = [f"{value:g}" for value in values]
            axes.set_xticks(range(len(values)), texts)
        axes.set(xlabel=xlabel, ylabel=ylabel or y)

    return draw


def bars(
    frame: pd.DataFrame, x: str, y: str, hue: str, *, xlabel: str, ylabel: str | None = None
) -> Draw:
    """Returns a function for `panels` that draws bars from 0 to the mean over seeds, with a thin
    line from the lowest seed to the highest.

    The axis of shares ends at 1, other axes just above the highest line.

    Args:
        frame: the whole table, which gives each bar its colour.
        x: the column of the groups of bars.
        y: the column of the heights.
        hue: the column that names the bar within its group.
        xlabel: name of the groups.
        ylabel: name and unit of the y axis, by default the column's name.
    """
    look_of = looks(frame[hue].unique())
    # Of the whole table, not of one panel: otherwise a panel with low bars would get another axis
    # than its neighbours, and equal heights would mean different shares.
    every: Any = frame[y]
    of_shares = bool(every.min() >= 0) and bool(every.max() <= 1)

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        groups = list(part[x].unique())
        found = set(map(str, part[hue]))
        drawn = [name for name in look_of if name in found]
        width = 0.8 / len(drawn)
        for number, name in enumerate(drawn):
            own = part[part[hue].astype(str) == name]
            seeds = own.groupby(x, sort=False)[y].agg(["mean", "min", "max"])
            places = [groups.index(group) for group in seeds.index]
            # The bars of a group stand next to each other, with the middle one at the group's tick.
            from_centre = number - (len(drawn) - 1) / 2
            at = np.array(places, dtype=float) + width * from_centre
            words, colour, _ = look_of[name]
            axes.bar(at, seeds["mean"], width, color=colour, label=words)
            axes.vlines(at, seeds["min"], seeds["max"], color="0.15", linewidth=1.2)
        texts = [in_words(group) for group in groups]
        axes.set_xticks(range(len(groups)), texts)
        fit_names(axes)
        axes.grid(visible=False, axis="x")
        axes.set(xlabel=xlabel, ylabel=ylabel or y)
        if of_shares:
            axes.set_ylim(0, 1.02)
        else:
            heights: Any = part[y]
            lowest = min(0, 1.08 * heights.min())
            highest = max(0, 1.08 * heights.max())
            axes.set_ylim(lowest, highest)

    return draw


def cells(
    row: str,
    column: str,
    value: str,
    *,
    xlabel: str,
    ylabel: str,
    limits: tuple[float | None, float | None] = (None, None),
) -> Draw:
    """Returns a function for `panels` that draws means over seeds as coloured cells with numbers.

    Args:
        row: the column of the rows, in order of appearance.
        column: the column of the columns.
        value: the column of the values.
        xlabel: name of the columns.
        ylabel: name of the rows.
        limits: the values with the first and the last colour, by default those of the panel.
    """

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        # The mean over seeds. Rows come sorted, and are put back in order of appearance below.
        wide: Any = part.pivot_table(index=row, columns=column, values=value)
        sns.heatmap(
            wide.loc[part[row].unique()],
            annot=True,
            fmt=".2f",
            annot_kws={"size": 7.5},
            cmap="crest",
            vmin=limits[0],
            vmax=limits[1],
            cbar=False,
            ax=axes,
        )
        axes.tick_params(axis="y", rotation=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)

    return draw
