"""Figures in one style: a tidy frame in, a matplotlib Figure out.

Nothing here opens a window, touches pyplot's list of figures, changes matplotlib's settings
permanently or draws from the global random generator. So figures can be made in a script, a
notebook, a thread, or on a machine without a display.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from interp.files import replaced
from interp.reporting.layout import (
    LEVEL,
    finish,
    fit_names,
    grid_of,
    name_panel,
    new_figure,
    style,
)
from interp.reporting.looks import Look, in_words, looks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "dose_response",
    "intervals",
    "matched_histogram",
    "matched_tokens",
    "matrix",
    "ranked_scores",
    "save",
    "style",
]

T = TypeVar("T")
NO_TEXT: Mapping[str, str] = MappingProxyType({})
NO_LEVELS: Mapping[str, float] = MappingProxyType({})
INTERVALS = "points: estimates; lines through them: 95% intervals"
# How far a palette may move a channel of a pixel, of 255 levels. At 7, neighbouring shades of a map
# merge, and light grid lines get a tint.
MOST_SHIFTED = 4


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
        if file_format == "png":
            _save_png(figure, temporary)
        else:
            figure.savefig(temporary, format=file_format)
    return target


def _save_png(figure: Figure, path: Path) -> None:
    """Writes a PNG in as few bytes as it takes without a visible difference."""
    from PIL import Image

    drawn = BytesIO()
    # This copy is only read back: compressing it well would be lost work.
    figure.savefig(drawn, format="png", pil_kwargs={"compress_level": 1})
    with Image.open(drawn) as image:
        in_full = image.convert("RGBA")
        dots_per_inch = image.info["dpi"]

    # Text and few colours, as in a figure of verdicts, fit into a palette of 256 and then take a
    # third of the bytes. No dithering, which would put dots into even areas. MAXCOVERAGE, because
    # the median cut gives the palette to what is frequent and moves the colours of small marks.
    in_palette = in_full.convert("RGB").quantize(
        256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    before = np.asarray(in_full, dtype=np.int16)
    after = np.asarray(in_palette.convert("RGBA"), dtype=np.int16)
    # Photographs, maps and overlapping bands have more shades than a palette, and transparency
    # would be lost: these stay as they are.
    looks_same = np.abs(before - after).max() <= MOST_SHIFTED
    smallest = in_palette if looks_same else in_full
    smallest.save(path, format="png", optimize=True, dpi=dots_per_inch)


def dose_response(
    frame: pd.DataFrame,
    x: str,
    hue: str = "hue",
    measure: str = "measure",
    *,
    labels: Mapping[str, str] = NO_TEXT,
    before: Mapping[str, float] = NO_LEVELS,
    scales: Mapping[str, str] = NO_TEXT,
    title: str | None = None,
    key: str = INTERVALS,
    titles: Mapping[str, str] = NO_TEXT,
    across: int = 3,
) -> Figure:
    """Draws lines through points with intervals, over a logarithmic x.

    There is one panel per measure and one line per hue. Points of the same dose are drawn next to
    each other, so that their intervals do not cover each other.

    Args:
        frame: tidy, one row per point, with columns `x` (> 0), `hue`, `measure`, `estimate`, `low`,
            `high`. Panels and lines come in order of appearance, except that the lines "selection",
            "random", "lowest" and "smallest" come first.
        x: the column of the dose, such as "fraction" or "k".
        hue: the text column that names the line.
        measure: the text column that names the panel.
        labels: what to write on the axes instead of the names of `x` and of the measures.
        before: for a measure, its value without intervention, drawn as a dashed line.
        scales: for a measure, matplotlib's scale of its y axis, such as "symlog" where one line is
            much higher than the others.
        title: what is compared; by default it is put together from the names.
        key: what the points and the lines through them are.
        titles: for a measure, what to write above its panel.
        across: largest number of panels in a row.

    Raises:
        ValueError: a missing column, no rows, a missing number, x <= 0, two rows for one point,
            more hues than there are colours, or a name in `before` that is not a measure.

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
    labels = _by_name(labels)
    before = _by_name(before)
    scales = _by_name(scales)
    titles = _by_name(titles)
    _check_points(frame, x, hue, measure, before)
    look_of = looks(_first_come_first(frame[hue].unique()))
    panels = _panels(frame, measure)
    dose = labels.get(x, in_words(x))
    with style():
        width = 3.5 if min(across, len(panels)) > 2 else 4.8
        figure, grid = grid_of(len(panels), across, width=width, height=2.7)
        for axes, (name, points) in zip(grid, panels, strict=True):
            _draw_lines(axes, points, x, hue, look_of)
            if name in before:
                axes.axhline(before[name], label="before", **LEVEL)
            axes.set(
                xscale="log",
                xlabel=dose,
                ylabel=labels.get(name, in_words(name)),
                yscale=scales.get(name, "linear"),
            )
            name_panel(axes, titles.get(name, ""))
            doses = np.unique(_numbers(points, x))  # in increasing order
            smallest = doses[0]
            largest = doses[-1]
            if largest < 10 * smallest:  # within a decade matplotlib's own ticks overlap
                axes.set_xticks(doses, [f"{dose:.3g}" for dose in doses])
                axes.set_xticks([], minor=True)
                axes.set_xlim(smallest / 2, largest * 2)
        if len(look_of) > 1:
            key = f"{key}; points side by side are at the same {dose}"
        finish(figure, grid, title or f"{_listed(panels, labels)} by {dose}", key)
    return figure


def _panels(frame: pd.DataFrame, by: str) -> list[tuple[str, pd.DataFrame]]:
    """The name and the rows of each panel, in order of appearance."""
    return [(str(name), rows) for name, rows in frame.groupby(by, sort=False)]


def _by_name(of_panels: Mapping[Any, T]) -> dict[str, T]:
    """What is given for some panels, by their names in `_panels`: the values of the column may be
    numbers, and be given as numbers."""
    return {str(name): value for name, value in of_panels.items()}


def _listed(panels: list[tuple[str, pd.DataFrame]], labels: Mapping[str, str]) -> str:
    """The names of panels as a title lists them."""
    return ", ".join(labels.get(name, in_words(name)) for name, _ in panels)


def _first_come_first(names: Iterable[str]) -> list[str]:
    """The names in order, after those that every report of an ablation has."""
    given = list(names)
    reported = [name for name in ("selection", "random", "lowest", "smallest") if name in given]
    others = [name for name in given if name not in reported]
    return [*reported, *others]


def ranked_scores(
    frame: pd.DataFrame, block: str = "block", score: str = "score", *, blocks: int | None = None
) -> Figure:
    """Draws in which blocks the top units are: their number per block above, their scores below.

    Args:
        frame: one row per top unit, with the index of its block and its score.
        block: the column of block indices, integers from 0.
        score: the column of scores, finite.
        blocks: how many blocks the model has, so that blocks without a top unit are shown empty; by
            default the last block with a top unit is the last one.

    Raises:
        ValueError: a missing column, no rows, a missing number, or a block outside 0 to `blocks` -
            1.

    Example:
        >>> scores = interp.localize(subject, memorized, control)
        >>> figure = interp.plotting.ranked_scores(scores.to_frame().head(10), blocks=2)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['top units', 'score']
    """
    _check_columns(frame, [block, score], numbers=[block, score])
    indices = _numbers(frame, block).astype(int)
    first = int(indices.min())
    last = int(indices.max())
    total = last + 1 if blocks is None else blocks
    if first < 0 or last >= total:
        raise ValueError(f"{block}: expected indices 0 to {total - 1}, got {first} to {last}")
    with style():
        wide_enough_for_blocks = 0.28 * total + 2
        figure = new_figure(width=max(6.0, wide_enough_for_blocks), height=5.2)
        above, below = figure.subplots(2, 1, sharex=True)
        (look,) = looks([score]).values()
        counts = np.bincount(indices, minlength=total)
        above.bar(range(total), counts, color=look.colour, label="number of units in the block")
        above.set(ylabel="top units")
        below.plot(
            indices,
            _numbers(frame, score),
            "o",
            color=look.colour,
            alpha=0.5,
            markersize=4,
            label="one unit",
        )
        below.set(
            xlabel="block",
            ylabel=in_words(score),
            xlim=(-0.6, total - 0.4),  # also the blocks without any of these units
        )
        above.set(xlabel="block")
        for axis in (above.yaxis, below.xaxis):
            axis.get_major_locator().set_params(integer=True)
        title = f"Where the {len(frame)} highest-scoring units are, block by block"
        finish(figure, [above, below], title, "bars: how many; points: their scores")
    return figure


def _draw_lines(
    axes: Axes, points: pd.DataFrame, x: str, hue: str, look_of: Mapping[str, Look]
) -> None:
    by_name: dict[str, pd.DataFrame] = {}
    for name, part in points.groupby(hue):
        by_name[str(name)] = part.sort_values(x)
    drawn = [name for name in look_of if name in by_name]
    for number, name in enumerate(drawn):
        line = by_name[name]
        words, colour, marker = look_of[name]
        # A little aside, by a factor because the axis is logarithmic: lines at the same dose would
        # hide one another.
        from_centre = number - (len(drawn) - 1) / 2
        aside = 1.05**from_centre
        doses = _numbers(line, x) * aside
        estimate = _numbers(line, "estimate")
        low = _numbers(line, "low")
        high = _numbers(line, "high")
        axes.plot(
            doses,
            estimate,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            label=words,
        )
        axes.vlines(doses, low, high, color=colour, linewidth=1)


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
    measures = set(map(str, frame[measure]))
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
    not_finite: list[str] = []
    for name in numbers:
        is_finite = np.isfinite(_numbers(frame, name))
        if not is_finite.all():
            not_finite.append(name)
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
    _check_columns(frame, ["matched", "length", "exact"], numbers=["matched"])
    matched = _numbers(frame, "matched").astype(int)
    extracted = np.asarray(frame["exact"], dtype=bool)
    bars = int(_numbers(frame, "length").max()) + 1
    others = np.bincount(matched[~extracted], minlength=bars)
    return _matched(others, np.bincount(matched[extracted], minlength=bars))


def matched_histogram(windows: NDArray[np.int64]) -> Figure:
    """Draws what `matched_tokens` does, of windows that are counted already.

    Args:
        windows: [length + 1] how many windows matched so many tokens before their first miss; those
            that matched all are extracted.

    Raises:
        ValueError: there is no window.

    Example:
        >>> figure = interp.plotting.matched_histogram(np.array([7, 2, 1]))
        >>> [int(bar.get_height()) for bar in figure.axes[0].containers[0]]
        [7, 2, 0]
    """
    counts = np.asarray(windows)
    if counts.sum() == 0:
        raise ValueError("nothing to draw: there is no window")
    is_extracted = np.arange(len(counts)) == len(counts) - 1
    return _matched(np.where(is_extracted, 0, counts), np.where(is_extracted, counts, 0))


def _matched(others: NDArray[np.int64], extracted: NDArray[np.int64]) -> Figure:
    """Bar k counts the windows that match k tokens, from 0 to the whole suffix."""
    bars = len(others)
    names = ("not extracted", "extracted exactly")
    with style():
        figure = new_figure(width=7.0, height=4.0)
        axes = figure.subplots()
        # The bars of the second set stand on those of the first.
        below = np.zeros(bars, dtype=int)
        for look, counts in zip(looks(names).values(), (others, extracted), strict=True):
            axes.bar(range(bars), counts, bottom=below, color=look.colour, label=look.words)
            below += counts
        axes.set(
            xlabel="true tokens before the first miss",
            ylabel="windows",
            yscale="log",
            xlim=(-0.6, bars - 0.4),
            ylim=(0.7, 1.5 * below.max()),  # a single window can be seen
        )
        title = f"How far the model continues {below.sum():,} windows without a mistake"
        finish(figure, [axes], title, "bars: number of windows, on a logarithmic scale")
    return figure


def intervals(
    frame: pd.DataFrame,
    name: str,
    panel: str = "panel",
    *,
    labels: Mapping[str, str] = NO_TEXT,
    levels: Mapping[str, float] = NO_LEVELS,
    level: str = "chance",
    title: str | None = None,
    key: str = INTERVALS,
    titles: Mapping[str, str] = NO_TEXT,
    across: int = 4,
) -> Figure:
    """Draws estimates with their intervals, one row per name and one panel per measure.

    It shows which of many is best, and by how much.

    Args:
        frame: tidy, one row per point, with columns `name`, `panel`, `estimate`, `low`, `high`.
            Names and panels come in order of appearance.
        name: the column that names the row.
        panel: the column that names the panel.
        labels: what to write below a panel instead of its name.
        levels: for a panel, a level to compare with, drawn as a dashed line.
        level: what that level is.
        title: what is compared; by default it is put together from the names.
        key: what the points and the lines through them are.
        titles: for a panel, what to write above it.
        across: largest number of panels in a row.

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
    _check_columns(
        frame, [name, panel, "estimate", "low", "high"], numbers=["estimate", "low", "high"]
    )
    labels = _by_name(labels)
    levels = _by_name(levels)
    titles = _by_name(titles)
    names = list(frame[name].unique())
    panels = _panels(frame, panel)
    with style():
        figure, grid = grid_of(
            len(panels), across, width=3.6, height=0.22 * len(names) + 0.9, sharey=True
        )
        (look,) = looks([name]).values()
        for axes, (part, points) in zip(grid, panels, strict=True):
            rows = [names.index(found) for found in points[name]]
            estimate = _numbers(points, "estimate")
            low = _numbers(points, "low")
            high = _numbers(points, "high")
            axes.hlines(rows, low, high, color=look.colour)
            axes.plot(estimate, rows, "o", color=look.colour, markersize=5)
            if part in levels:
                axes.axvline(levels[part], label=level, **LEVEL)
            axes.set(
                xlabel=labels.get(part, in_words(part)),
                yticks=range(len(names)),
                yticklabels=[in_words(each) for each in names],
                ylim=(len(names) - 0.5, -0.5),  # upside down: the first name is on top
            )
            name_panel(axes, titles.get(part, ""))
            place: Any = axes.get_subplotspec()
            if place.is_first_col():  # the others share its axis
                axes.set_ylabel(in_words(name))
        title = title or f"{_listed(panels, labels)} by {in_words(name)}"
        finish(figure, grid, title, key)
    return figure


def matrix(
    table: pd.DataFrame,
    label: str,
    *,
    center: float | None = None,
    title: str | None = None,
    key: str = "colour and number of a cell: the value",
) -> Figure:
    """Draws a table of numbers, such as a confusion matrix, as coloured cells.

    The numbers are written into the cells of a table of up to 200.

    Args:
        table: the numbers; its row and column labels, and the names of both axes, are written next
            to it.
        label: label of the colour bar.
        center: the value that gets the neutral colour, for numbers of both signs.
        title: what is compared; by default the label.
        key: what a cell is.

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
    shown = table.rename(index=in_words, columns=in_words)
    largest = table.abs().to_numpy().max()
    # With two digits a table of small numbers would read 0.00 throughout.
    digits = 2 if largest >= 0.1 else 4
    with style():
        figure = new_figure(
            width=max(0.62 * columns + 3.6, 7.5), height=min(0.36 * rows, 12.0) + 2.6
        )
        axes = figure.subplots()
        sns.heatmap(
            shown,
            cmap="crest" if center is None else "vlag",
            center=center,
            annot=table.size <= 200,
            fmt=f".{digits}f",
            annot_kws={"size": 8},
            cbar_kws={"label": label},
            ax=axes,
        )
        name_of_columns = table.columns.name or ""
        name_of_rows = table.index.name or ""
        axes.set(xlabel=str(name_of_columns), ylabel=str(name_of_rows))
        axes.tick_params(axis="y", rotation=0)
        fit_names(axes)
        finish(figure, [axes], title or label, key)
    return figure
