"""Figures of several panels, as experiments draw them from a table with one row per seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.reporting.plotting import gather_legends, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[[pd.DataFrame, "Axes"], None]
SEEDS = ("pi", 100)  # bands and bars reach from the lowest seed to the highest


def panels(
    frame: pd.DataFrame,
    by: list[str],
    draw: Draw,
    *,
    width: float = 5.0,
    height: float = 3.8,
    across: int = 3,
) -> Figure:
    """Draws one panel for each combination of values in some columns, with one legend.

    Args:
        frame: tidy, one row per point and seed.
        by: the columns whose combinations are the panels, in order of appearance.
        draw: draws the rows of one panel on its axes, such as `lines(...)` or `bars(...)`.
        width: of a panel, in inches.
        height: of a panel, in inches.
        across: how many panels stand in a row.

    Example:
        >>> from interp.reporting.panels import bars, panels
        >>> table = pd.DataFrame({"model": ["VAR", "RAR"], "set": "train", "share": [0.2, 0.3]})
        >>> table["method"] = "UnitMem"
        >>> figure = panels(table, ["model"], bars(table, "set", "share", "method"))
        >>> [axes.get_title() for axes in figure.axes]
        ['VAR', 'RAR']
    """
    from matplotlib.figure import Figure

    groups: Any = frame.groupby(by, sort=False)
    parts = [(" · ".join(map(str, key)), part) for key, part in groups]
    columns = min(across, len(parts))
    rows = -(-len(parts) // columns)
    with style():
        figure = Figure(figsize=(width * columns + 1.5, height * rows), layout="constrained")
        cells: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
        for axes, (title, part) in zip(cells, parts, strict=False):
            draw(part, axes)
            axes.set_title(title)
        for empty in cells[len(parts) :]:
            empty.remove()
        gather_legends(figure, cells[: len(parts)], loc="outside right upper")
    return figure


def lines(frame: pd.DataFrame, x: str, y: str, hue: str, label: str) -> Draw:
    """Returns a function for `panels` that draws lines with a band over the seeds.

    Args:
        frame: the whole table, which gives each line its colour.
        x: the column of the x axis.
        y: the column of the y axis.
        hue: the column that names the line.
        label: what to write on the x axis.
    """
    palette = colours(frame, hue)

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.lineplot(part, x=x, y=y, hue=hue, palette=palette, errorbar=SEEDS, marker="o", ax=axes)
        axes.set(xlabel=label, ylabel=y)

    return draw


def bars(frame: pd.DataFrame, x: str, y: str, hue: str) -> Draw:
    """Returns a function for `panels` that draws bars of shares with a range over the seeds.

    Args:
        frame: the whole table, which gives each bar its colour.
        x: the column of the groups of bars.
        y: the column of shares, 0 to 1.
        hue: the column that names the bar within its group.
    """
    palette = colours(frame, hue)

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.barplot(
            part,
            x=x,
            y=y,
            hue=hue,
            hue_order=list(palette),
            palette=palette,
            errorbar=SEEDS,
            ax=axes,
        )
        axes.set(xlabel="", ylabel=y, ylim=(0, 1.02))
        for tick in axes.get_xticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")

    return draw


def colours(frame: pd.DataFrame, hue: str) -> dict[str, Any]:
    """Returns a colour for each name in a column, the same in all panels of one table.

    Args:
        frame: the whole table.
        hue: the column of names, at most ten.
    """
    import seaborn as sns

    return dict(zip(frame[hue].unique(), sns.color_palette("colorblind"), strict=False))
