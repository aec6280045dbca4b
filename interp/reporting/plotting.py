"""Figures in one style: tidy frame in, matplotlib Figure out.

Nothing here opens a window, touches pyplot's list of figures, changes matplotlib's settings for
good or draws from the global random generator, so figures can be made in a script, a notebook, a
thread or a machine without a display.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interp.files import replaced

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "dose_response",
    "intervals",
    "matched_tokens",
    "matrix",
    "ranked_scores",
    "save",
    "style",
]

# A name keeps its place in the colour-blind palette, and so its colour, in every figure: blue,
# orange, green, then the rest.
KNOWN_HUES = ("selection", "random", "lowest")
BAND_ALPHA = 0.18
NO_TEXT: Mapping[str, str] = MappingProxyType({})
NO_LEVELS: Mapping[str, float] = MappingProxyType({})


@contextmanager
def style() -> Generator[None]:
    """The toolkit's look, inside `with` only: colour-blind palette, light grid, 150 dpi."""
    import matplotlib as mpl
    import seaborn as sns
    from matplotlib.rcsetup import cycler

    look: dict[Any, Any] = {
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("notebook"),
        "axes.prop_cycle": cycler(color=sns.color_palette("colorblind")),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.alpha": 0.4,
        "legend.frameon": False,
        "savefig.dpi": 150,
    }
    with mpl.rc_context(look):
        yield


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write `figure` to `path` whole or not at all; missing folders are made. The ending names the
    format (png, pdf, svg).

    Returns:
        The path written.

    Raises:
        ValueError: the ending is missing or names no format matplotlib writes.
        OSError: the folder cannot be made or written.
    """
    target = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    if target.suffix[1:].lower() not in formats:
        raise ValueError(f"{target}: expected a name ending in one of {', '.join(sorted(formats))}")
    with replaced(target) as part, style():
        figure.savefig(part, format=target.suffix[1:].lower())
    return target


def dose_response(
    frame: pd.DataFrame,
    x: str,
    hue: str = "hue",
    measure: str = "measure",
    *,
    labels: Mapping[str, str] = NO_TEXT,
    before: Mapping[str, float] = NO_LEVELS,
    scales: Mapping[str, str] = NO_TEXT,
) -> Figure:
    """Lines with interval bands over a logarithmic x: one panel a measure, three side by side, one
    line a hue.

    The bars at the points are the intervals measured; the band between them is a guide for the eye.

    Args:
        frame: tidy; one row a point, with columns `x` (> 0), `hue`, `measure`, `estimate`, `low`,
            `high`. Panels and lines come in order of appearance, the lines "selection", "random"
            and "lowest" first and always in the same colours.
        x: the column of the dose, such as "fraction" or "k".
        hue: the column that names the line, text.
        measure: the column that names the panel, text.
        labels: what to write on the axes instead of the names of `x` and of the measures.
        before: measure -> its value without intervention, drawn as a dashed line.
        scales: measure -> matplotlib's scale of its y axis, such as "symlog" where one line dwarfs
        the others.

    Raises:
        ValueError: a missing column, no rows, a number that is missing, x <= 0, two rows for one
        point, or `before` naming no panel.
    """
    _check_points(frame, x, hue, measure, before)
    palette = _palette(list(frame[hue].unique()))
    panels = [(str(name), points) for name, points in frame.groupby(measure, sort=False)]
    with style():
        columns, rows = min(len(panels), 3), -(-len(panels) // 3)
        figure = _figure(width=4.6 * columns + 1.4, height=3.8 * rows)
        every: list[Axes] = list(figure.subplots(rows, columns, sharex=True, squeeze=False).ravel())
        grid = every[: len(panels)]
        for axes in every[len(panels) :]:
            axes.remove()
        for axes, (name, points) in zip(grid, panels, strict=True):
            _draw_lines(axes, points, x, hue, palette)
            if name in before:
                axes.axhline(
                    before[name], color="0.4", linestyle="--", linewidth=1, label="before", zorder=1
                )
            axes.set(
                xscale="log",
                xlabel=labels.get(x, x),
                ylabel=labels.get(name, name),
                yscale=scales.get(name, "linear"),
            )
            doses = np.unique(_numbers(points, x))
            if doses[-1] < 10 * doses[0]:  # within a decade matplotlib's own ticks overlap
                axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
                axes.set_xticks([], minor=True)
        _shared_legend(figure, grid)
    return figure


def ranked_scores(
    frame: pd.DataFrame, block: str = "block", score: str = "score", *, blocks: int | None = None
) -> Figure:
    """Where the top units sit: their number in each block above, their scores below, on one shared
    block axis.

    Args:
        frame: one row a top unit, with its block's index and its score.
        block: the column of block indices, integers from 0.
        score: the column of scores, finite.
        blocks: how many blocks the model has, so that blocks without a top unit show as empty;
        without it, up to the last one seen.

    Raises:
        ValueError: a missing column, no rows, a missing number, or a block outside 0 to `blocks` -
        1.
    """
    import seaborn as sns

    _check_columns(frame, [block, score], numbers=[block, score])
    indices = _numbers(frame, block).astype(int)
    total = int(indices.max()) + 1 if blocks is None else blocks
    if indices.min() < 0 or indices.max() >= total:
        raise ValueError(
            f"{block}: expected indices 0 to {total - 1}, got {indices.min()} to {indices.max()}"
        )
    with style():
        figure = _figure(width=max(5.0, 0.28 * total + 2), height=4.6)
        above, below = figure.subplots(2, 1, sharex=True)
        colour = sns.color_palette("colorblind")[0]
        above.bar(range(total), np.bincount(indices, minlength=total), color=colour)
        above.set(ylabel="top units")
        below.plot(indices, _numbers(frame, score), "o", color=colour, alpha=0.5, markersize=4)
        below.set(xlabel="block", ylabel=score, xlim=(-0.6, total - 0.4))
        for axis in (above.yaxis, below.xaxis):
            axis.get_major_locator().set_params(integer=True)
    return figure


def _draw_lines(
    axes: Axes, points: pd.DataFrame, x: str, hue: str, palette: dict[str, Any]
) -> None:
    import seaborn as sns

    order = list(palette)
    shape: dict[str, Any] = {"style": hue, "style_order": order, "markers": True, "dashes": False}
    sns.lineplot(
        points,
        x=x,
        y="estimate",
        hue=hue,
        hue_order=order,
        palette=palette,
        estimator=None,
        errorbar=None,
        ax=axes,
        **shape,
    )
    for name, line in points.sort_values(x).groupby(hue):
        at, low, high = (_numbers(line, column) for column in (x, "low", "high"))
        axes.fill_between(at, low, high, color=palette[str(name)], alpha=BAND_ALPHA, linewidth=0)
        axes.vlines(at, low, high, color=palette[str(name)], linewidth=1)


def _palette(hues: Sequence[str]) -> dict[str, Any]:
    """The colour of each name in `hues`, in drawing order."""
    import seaborn as sns

    others = [name for name in hues if name not in KNOWN_HUES]
    many = len(KNOWN_HUES) + len(others) > len(sns.color_palette("colorblind"))
    colours = (
        sns.color_palette("colorblind")[: len(KNOWN_HUES)]
        + sns.color_palette("husl" if many else "colorblind", len(others) + 3)[3:]
    )
    return {
        name: colour
        for name, colour in zip([*KNOWN_HUES, *others], colours, strict=True)
        if name in hues
    }


def _figure(*, width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _shared_legend(figure: Figure, grid: Sequence[Axes]) -> None:
    entries: dict[Any, Any] = {}
    for axes in grid:
        handles, names = axes.get_legend_handles_labels()
        entries = dict(zip(names, handles, strict=True)) | entries
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
    figure.legend(list(entries.values()), list(entries), loc="outside right center")


def _check_points(
    frame: pd.DataFrame, x: str, hue: str, measure: str, before: Mapping[str, float]
) -> None:
    _check_columns(
        frame, [x, hue, measure, "estimate", "low", "high"], numbers=[x, "estimate", "low", "high"]
    )
    smallest = _numbers(frame, x).min()
    if smallest <= 0:
        raise ValueError(
            f"{x}: expected numbers > 0 for a logarithmic axis, got {smallest}; the value without intervention goes in before="
        )
    repeated = frame[frame.duplicated([x, hue, measure])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"expected one row a point, got several for {x}={first[x]}, {hue}={first[hue]!r}, {measure}={first[measure]!r}"
        )
    strangers = sorted(set(before) - set(frame[measure]))
    if strangers:
        raise ValueError(
            f"before: {strangers} are not among the measures {sorted(set(frame[measure]))}"
        )


def _check_columns(frame: pd.DataFrame, names: list[str], *, numbers: list[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(
            f"frame: expected columns {names}, got {list(frame.columns)}: {missing} missing"
        )
    if frame.empty:
        raise ValueError("frame: expected at least one row, got none")
    holes = [name for name in numbers if not np.isfinite(_numbers(frame, name)).all()]
    if holes:
        raise ValueError(f"frame: expected finite numbers, got missing or infinite ones in {holes}")


def _numbers(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return np.asarray(frame[column], dtype=np.float64)


def matched_tokens(frame: pd.DataFrame) -> Figure:
    """How many tokens each window of a scan matched before its first miss: a histogram with a
    logarithmic count, extracted windows apart.

    Raises ValueError for a missing column or no rows.
    """
    import seaborn as sns

    _check_columns(frame, ["matched", "length", "exact"], numbers=["matched"])
    shown = frame.assign(
        window=np.where(
            np.asarray(frame["exact"], dtype=bool), "extracted exactly", "not extracted"
        )
    )
    with style():
        figure = _figure(width=6.0, height=3.6)
        axes = figure.subplots()
        palette = dict(
            zip(
                ["not extracted", "extracted exactly"],
                sns.color_palette("colorblind")[:2],
                strict=True,
            )
        )
        sns.histplot(
            shown,
            x="matched",
            hue="window",
            hue_order=list(palette),
            palette=palette,
            discrete=True,
            multiple="stack",
            ax=axes,
        )
        axes.set(
            xlabel="true tokens before the first miss",
            ylabel="windows",
            yscale="log",
            xlim=(-0.6, _numbers(frame, "length").max() + 0.6),
        )
    return figure


def intervals(
    frame: pd.DataFrame,
    name: str,
    panel: str = "panel",
    *,
    labels: Mapping[str, str] = NO_TEXT,
    levels: Mapping[str, float] = NO_LEVELS,
) -> Figure:
    """Estimates with their intervals, one line a name and one panel a column of figures: which of
    many is best, and by how much.

    Args:
        frame: tidy; one row a point, with columns `name`, `panel`, `estimate`, `low`, `high`. Names
        and panels come in order of appearance.
        labels: what to write below a panel instead of its name.
        levels: panel -> a level to compare with, such as chance, drawn as a dashed line.

    Raises:
        ValueError: a missing column, no rows, or a number that is missing.
    """
    import seaborn as sns

    _check_columns(
        frame, [name, panel, "estimate", "low", "high"], numbers=["estimate", "low", "high"]
    )
    names = list(frame[name].unique())
    panels = [(str(key), points) for key, points in frame.groupby(panel, sort=False)]
    with style():
        figure = _figure(width=3.4 * len(panels) + 2.4, height=0.3 * len(names) + 1.2)
        grid: Sequence[Axes] = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        colour = sns.color_palette("colorblind")[0]
        for axes, (key, points) in zip(grid, panels, strict=True):
            rows = [names.index(n) for n in points[name]]
            axes.hlines(rows, _numbers(points, "low"), _numbers(points, "high"), color=colour)
            axes.plot(_numbers(points, "estimate"), rows, "o", color=colour, markersize=5)
            if key in levels:
                axes.axvline(levels[key], color="0.4", linestyle="--", linewidth=1, zorder=1)
            axes.set(
                xlabel=labels.get(key, key),
                yticks=range(len(names)),
                yticklabels=names,
                ylim=(len(names) - 0.5, -0.5),
            )
    return figure


def matrix(table: pd.DataFrame, label: str, *, center: float | None = None) -> Figure:
    """A table of numbers as coloured cells, with their values where there are up to 200: rows by
    columns, such as a confusion matrix.

    Args:
        table: numbers; the names of its rows and columns, and of its index and columns, are written
        beside it.
        label: of the colour bar.
        center: the value that gets the neutral colour, for numbers of both signs.

    Raises:
        ValueError: no cells.
    """
    import seaborn as sns

    if table.empty:
        raise ValueError("table: expected at least one cell, got none")
    rows, columns = table.shape
    with style():
        figure = _figure(width=min(0.62 * columns, 16.0) + 3.4, height=min(0.42 * rows, 12.0) + 1.8)
        axes = figure.subplots()
        look: dict[str, Any] = (
            {"cmap": "crest"} if center is None else {"cmap": "vlag", "center": center}
        )
        small = {"size": 8}
        sns.heatmap(
            table,
            annot=table.size <= 200,
            fmt=".2f",
            annot_kws=small,
            cbar_kws={"label": label},
            ax=axes,
            **look,
        )
        for tick in axes.get_xticklabels():
            tick.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.set(xlabel=str(table.columns.name or ""), ylabel=str(table.index.name or ""))
    return figure
