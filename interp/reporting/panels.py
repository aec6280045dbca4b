"""Figures of several panels over seeds, as experiments draw them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.reporting.plotting import style

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
    """One panel for each combination of some columns, with one legend."""
    from matplotlib.figure import Figure

    groups: Any = frame.groupby(by, sort=False)
    parts = [(" · ".join(map(str, key)), part) for key, part in groups]
    columns = min(across, len(parts))
    rows = -(-len(parts) // columns)
    with style():
        figure = Figure(figsize=(width * columns + 1.5, height * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, part) in zip(grid, parts, strict=False):
            draw(part, axes)
            axes.set_title(title)
        for axes in grid[len(parts) :]:
            axes.remove()
        _one_legend(figure, grid[: len(parts)])
    return figure


def _one_legend(figure: Figure, grid: Any) -> None:
    entries: dict[Any, Any] = {}
    for axes in grid:
        handles, names = axes.get_legend_handles_labels()
        entries = dict(zip(names, handles, strict=True)) | entries
        if (legend := axes.get_legend()) is not None:
            legend.remove()
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside right upper")


def lines(frame: pd.DataFrame, x: str, y: str, hue: str, label: str) -> Draw:
    """A line a `hue` of `y` over `x`, whose axis bears a label."""
    palette = colours(frame, hue)

    def draw(part: pd.DataFrame, axes: Axes) -> None:
        import seaborn as sns

        sns.lineplot(part, x=x, y=y, hue=hue, palette=palette, errorbar=SEEDS, marker="o", ax=axes)
        axes.set(xlabel=label, ylabel=y)

    return draw


def bars(frame: pd.DataFrame, x: str, y: str, hue: str) -> Draw:
    """Bars of shares, one a `hue` at each `x`."""
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
    """One colour a name, the same in all panels."""
    import seaborn as sns

    return dict(zip(frame[hue].unique(), sns.color_palette("colorblind"), strict=False))
