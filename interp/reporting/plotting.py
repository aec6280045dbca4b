"""Figures in one style: a tidy frame in, a matplotlib Figure out.

Nothing here opens a window, touches pyplot's list of figures, changes matplotlib's settings
permanently or draws from the global random generator. So figures can be made in a script, a
notebook, a thread, or on a machine without a display.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

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

# These names have the first colours of the palette (blue, orange, green) in every figure, whether
# the others are drawn or not.
KNOWN_HUES = ("selection", "random", "lowest")
BAND_ALPHA = 0.18
NO_TEXT: Mapping[str, str] = MappingProxyType({})
NO_LEVELS: Mapping[str, float] = MappingProxyType({})


@contextmanager
def style() -> Generator[None]:
    """Draws in the toolkit's style inside the block: colour-blind palette, light grid, 150 dpi.

    Example:
        >>> from matplotlib.figure import Figure
        >>> with interp.plotting.style():
        ...     axes = Figure().subplots()
        >>> axes.spines["top"].get_visible()
        False
    """
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
    """Writes a figure to a file, whole or not at all.

    Args:
        figure: the figure.
        path: where to write it; the ending says the format (png, pdf, svg). Missing folders are
            made.

    Returns:
        The path written.

    Raises:
        ValueError: the ending is missing, or is not a format that matplotlib writes.
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> figure = interp.plotting.matched_tokens(frame)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     interp.plotting.save(figure, f"{folder}/matched.svg").name
        'matched.svg'
    """
    target = Path(path)
    file_format = target.suffix[1:].lower()
    known_formats = figure.canvas.get_supported_filetypes()
    if file_format not in known_formats:
        expected = ", ".join(sorted(known_formats))
        raise ValueError(f"{target}: expected a name ending in one of {expected}")
    with replaced(target) as temporary, style():
        figure.savefig(temporary, format=file_format)
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
    """Draws lines with interval bands over a logarithmic x.

    There is one panel per measure, up to three side by side, and one line per hue.
    The bars at the points are the measured intervals; the band between them only guides the eye.

    Args:
        frame: tidy, one row per point, with columns `x` (> 0), `hue`, `measure`, `estimate`, `low`,
            `high`. Panels and lines come in order of appearance, except that the lines "selection",
            "random" and "lowest" come first and always have the same colours.
        x: the column of the dose, such as "fraction" or "k".
        hue: the text column that names the line.
        measure: the text column that names the panel.
        labels: what to write on the axes instead of the names of `x` and of the measures.
        before: for a measure, its value without intervention, drawn as a dashed line.
        scales: for a measure, matplotlib's scale of its y axis, such as "symlog" where one line is
            much higher than the others.

    Raises:
        ValueError: a missing column, no rows, a missing number, x <= 0, two rows for one point, or
            a name in `before` that is not a measure.

    Example:
        >>> points = pd.DataFrame({"fraction": [0.01, 0.1, 0.01, 0.1]})
        >>> points["hue"] = ["selection", "selection", "random", "random"]
        >>> points["measure"] = "extracted"
        >>> points["estimate"] = [0.4, 0.1, 1.0, 0.9]
        >>> points["low"] = points["estimate"] - 0.1
        >>> points["high"] = points["estimate"] + 0.1
        >>> figure = interp.plotting.dose_response(points, "fraction", before={"extracted": 1.0})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['selection', 'random', 'before']
    """
    _check_points(frame, x, hue, measure, before)
    palette = _palette(list(frame[hue].unique()))
    panels = [(str(name), points) for name, points in frame.groupby(measure, sort=False)]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // 3)
    with style():
        figure = _figure(width=4.6 * columns + 1.4, height=3.8 * rows)
        cells: list[Axes] = list(figure.subplots(rows, columns, sharex=True, squeeze=False).ravel())
        grid = cells[: len(panels)]
        for empty in cells[len(panels) :]:
            empty.remove()

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
        gather_legends(figure, grid, loc="outside right center")
    return figure


def ranked_scores(
    frame: pd.DataFrame, block: str = "block", score: str = "score", *, blocks: int | None = None
) -> Figure:
    """Draws in which blocks the top units are: their number per block above, their scores below.

    Args:
        frame: one row per top unit, with the index of its block and its score.
        block: the column of block indices, integers from 0.
        score: the column of scores, finite.
        blocks: how many blocks the model has, so that blocks without a top unit are shown empty; by
            default as many as are seen.

    Raises:
        ValueError: a missing column, no rows, a missing number, or a block outside 0 to `blocks` -
            1.

    Example:
        >>> scores = interp.localize(subject, memorized, control)
        >>> figure = interp.plotting.ranked_scores(scores.to_frame().head(10), blocks=2)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['top units', 'score']
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
    sns.lineplot(
        points,
        x=x,
        y="estimate",
        hue=hue,
        hue_order=order,
        palette=palette,
        style=hue,
        style_order=order,
        markers=True,
        dashes=False,
        estimator=None,
        errorbar=None,
        ax=axes,
    )
    for name, line in points.sort_values(x).groupby(hue):
        colour = palette[str(name)]
        doses = _numbers(line, x)
        low = _numbers(line, "low")
        high = _numbers(line, "high")
        axes.fill_between(doses, low, high, color=colour, alpha=BAND_ALPHA, linewidth=0)
        axes.vlines(doses, low, high, color=colour, linewidth=1)


def _palette(hues: Sequence[str]) -> dict[str, Any]:
    """The colour of each name in `hues`, in drawing order."""
    import seaborn as sns

    known = len(KNOWN_HUES)
    others = [name for name in hues if name not in KNOWN_HUES]
    colour_blind = sns.color_palette("colorblind")
    # The colour-blind palette has ten colours and would start again after them.
    enough = known + len(others) <= len(colour_blind)
    palette_of_others = "colorblind" if enough else "husl"
    colours = [
        *colour_blind[:known],
        *sns.color_palette(palette_of_others, known + len(others))[known:],
    ]
    every = dict(zip([*KNOWN_HUES, *others], colours, strict=True))
    return {name: colour for name, colour in every.items() if name in hues}


def _figure(*, width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def gather_legends(
    figure: Figure,
    grid: Sequence[Axes],
    loc: Literal["outside right center", "outside right upper"],
) -> None:
    """Replaces the legends of several panels by one for the figure, with one entry per name."""
    entries: dict[Any, Any] = {}
    for axes in grid:
        handles, names = axes.get_legend_handles_labels()
        entries = dict(zip(names, handles, strict=True)) | entries
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
    if entries:
        figure.legend(list(entries.values()), list(entries), loc=loc)


def _check_points(
    frame: pd.DataFrame, x: str, hue: str, measure: str, before: Mapping[str, float]
) -> None:
    _check_columns(
        frame, [x, hue, measure, "estimate", "low", "high"], numbers=[x, "estimate", "low", "high"]
    )
    smallest = _numbers(frame, x).min()
    if smallest <= 0:
        raise ValueError(
            f"{x}: expected numbers > 0 for a logarithmic axis, got {smallest}; "
            "the value without intervention goes in before="
        )
    repeated = frame[frame.duplicated([x, hue, measure])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"expected one row per point, got several for {x}={first[x]}, {hue}={first[hue]!r}, "
            f"{measure}={first[measure]!r}"
        )
    measures = set(frame[measure])
    unknown = sorted(set(before) - measures)
    if unknown:
        raise ValueError(f"before: {unknown} are not among the measures {sorted(measures)}")


def _check_columns(frame: pd.DataFrame, names: list[str], *, numbers: list[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(
            f"frame: expected columns {names}, got {list(frame.columns)}: {missing} missing"
        )
    if frame.empty:
        raise ValueError("frame: expected at least one row, got none")
    not_finite = [name for name in numbers if not np.isfinite(_numbers(frame, name)).all()]
    if not_finite:
        raise ValueError(
            f"frame: expected finite numbers, got missing or infinite ones in {not_finite}"
        )


def _numbers(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return np.asarray(frame[column], dtype=np.float64)


def matched_tokens(frame: pd.DataFrame) -> Figure:
    """Draws a histogram of how many tokens each window of a scan matched before its first miss.

    The count is logarithmic; windows that are extracted exactly have their own colour.

    Args:
        frame: the windows of a scan, with columns `matched`, `length` and `exact`.

    Raises:
        ValueError: a missing column, or no rows.

    Example:
        >>> figure = interp.plotting.matched_tokens(frame)
        >>> figure.axes[0].get_xlabel()
        'true tokens before the first miss'
    """
    import seaborn as sns

    _check_columns(frame, ["matched", "length", "exact"], numbers=["matched"])
    extracted = np.asarray(frame["exact"], dtype=bool)
    shown = frame.assign(window=np.where(extracted, "extracted exactly", "not extracted"))
    with style():
        figure = _figure(width=6.0, height=3.6)
        axes = figure.subplots()
        first, second, *_ = sns.color_palette("colorblind")
        palette = {"not extracted": first, "extracted exactly": second}
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
    """Draws estimates with their intervals, one row per name and one panel per measure.

    It shows which of many is best, and by how much.

    Args:
        frame: tidy, one row per point, with columns `name`, `panel`, `estimate`, `low`, `high`.
            Names and panels come in order of appearance.
        name: the column that names the row.
        panel: the column that names the panel.
        labels: what to write below a panel instead of its name.
        levels: for a panel, a level to compare with, such as chance, drawn as a dashed line.

    Raises:
        ValueError: a missing column, no rows, or a missing number.

    Example:
        >>> found = pd.DataFrame({"method": ["gradient", "random"], "panel": "precision"})
        >>> found["estimate"] = [0.9, 0.1]
        >>> found["low"] = [0.8, 0.0]
        >>> found["high"] = [1.0, 0.2]
        >>> figure = interp.plotting.intervals(found, "method", levels={"precision": 0.1})
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['gradient', 'random']
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
            rows = [names.index(found) for found in points[name]]
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
    """Draws a table of numbers, such as a confusion matrix, as coloured cells.

    The numbers are written into the cells of a table of up to 200.

    Args:
        table: the numbers; its row and column labels, and the names of both axes, are written next
            to it.
        label: of the colour bar.
        center: the value that gets the neutral colour, for numbers of both signs.

    Raises:
        ValueError: no cells.

    Example:
        >>> table = pd.DataFrame([[0.9, 0.1], [0.2, 0.8]], index=["a", "b"], columns=["A", "B"])
        >>> figure = interp.plotting.matrix(table, "share")
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.90', '0.10', '0.20', '0.80']
    """
    import seaborn as sns

    if table.empty:
        raise ValueError("table: expected at least one cell, got none")
    rows, columns = table.shape
    with style():
        figure = _figure(width=min(0.62 * columns, 16.0) + 3.4, height=min(0.42 * rows, 12.0) + 1.8)
        axes = figure.subplots()
        sns.heatmap(
            table,
            cmap="crest" if center is None else "vlag",
            center=center,
            annot=table.size <= 200,
            fmt=".2f",
            annot_kws={"size": 8},
            cbar_kws={"label": label},
            ax=axes,
        )
        for tick in axes.get_xticklabels():
            tick.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.set(xlabel=str(table.columns.name or ""), ylabel=str(table.index.name or ""))
    return figure
