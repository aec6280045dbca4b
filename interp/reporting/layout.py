"""What all figures have in common: their style and width, a title, and one legend that also says
what the marks are."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In inches; at 120 dots per inch a figure is at most 1,280 pixels wide, as wide as it is read.
WIDEST = 10.6
DOTS_PER_INCH = 120
# Widths in inches that a letter takes on average in the title, in the title of a panel, and in a
# legend or on an axis; and what an entry of the legend takes besides its letters.
_TITLE_LETTER = 0.088
_PANEL_LETTER = 0.085
_LETTER = 0.072
_LEGEND_MARK = 0.55
_MOST_LINES = 4  # of a name below an axis
# How a value to compare with, such as chance or a threshold, is drawn in every figure. `finish`
# recognizes it by its dashes, and lists it last in the legend.
LEVEL: dict[str, Any] = {"color": "0.35", "linestyle": "--", "linewidth": 1.0, "zorder": 1}


@contextmanager
def style() -> Generator[None]:
    """Draws in the toolkit's style inside the block: light grid, small type, 120 dpi.

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
        **sns.plotting_context("paper"),
        "axes.prop_cycle": cycler(color=sns.color_palette("colorblind")),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.titlesize": 11.5,
        "grid.alpha": 0.4,
        "legend.frameon": False,
        "savefig.dpi": DOTS_PER_INCH,
    }
    with mpl.rc_context(look):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure whose parts make room for each other.

    Args:
        width: width in inches, at most `WIDEST`.
        height: height in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(min(width, WIDEST), height), layout="constrained")


def grid_of(
    count: int, across: int, *, width: float, height: float, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with the given number of panels, and their axes row by row.

    Args:
        count: number of panels.
        across: largest number of panels in a row.
        width: width of a panel, in inches; less where a row of them would be wider than `WIDEST`.
        height: height of a panel, in inches.
        options: options of matplotlib's `Figure.subplots`.
    """
    columns = min(across, count)
    rows = math.ceil(count / columns)
    # Title and legend need some width even where there is a single small panel.
    figure = new_figure(max(width * columns, 6.0), height * rows + 0.9)
    cells: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for empty in cells[count:]:
        empty.remove()
    return figure, cells[:count]


def finish(figure: Figure, axes: Sequence[Axes], title: str, key: str) -> None:
    """Adds the title, and below the panels one legend with one entry per name.

    Args:
        figure: the figure.
        axes: its panels; their own legends are removed.
        title: what is compared, in words.
        key: what the marks, bars and bands are; it is written above the entries of the legend.
    """
    width = figure.get_size_inches()[0]
    figure.suptitle(textwrap.fill(title, int(width / _TITLE_LETTER)))
    entries: dict[str, Any] = {}
    for panel in axes:
        _fit_labels(panel)
        handles, names = panel.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
        legend = panel.get_legend()
        if legend is not None:
            legend.remove()
    dashed_last = sorted(entries, key=lambda name: _is_level(entries[name]))
    longest = max(map(len, entries), default=1)
    columns = int(width / (_LETTER * longest + _LEGEND_MARK))
    legend = figure.legend(
        [entries[name] for name in dashed_last],
        dashed_last,
        title=textwrap.fill(key, int(width / _LETTER)),
        loc="outside lower center",
        ncols=max(1, min(columns, len(entries))),
        fontsize=9,
    )
    legend.get_title().set_multialignment("center")


def _fit_labels(panel: Axes) -> None:
    """Breaks labels that are longer than their axis into lines, and thins out the numbers on it."""
    from matplotlib.ticker import AutoLocator

    figure: Any = panel.figure
    width, height = figure.get_size_inches()
    cells: Any = panel.get_gridspec()
    # Roughly the length of either axis: less the numbers beside it and, upwards, less the figure's
    # title and legend. It is not known exactly before the figure is laid out, which the labels
    # themselves decide.
    across = width / cells.ncols - 0.7
    upwards = (height - 1.2) / cells.nrows - 0.6
    panel.set_xlabel(wrapped(panel.get_xlabel(), across))
    panel.set_ylabel(wrapped(panel.get_ylabel(), upwards))
    panel.minorticks_off()  # they are not drawn, but finding their places takes long
    for axis, most in ((panel.xaxis, int(across / 0.6)), (panel.yaxis, 5)):
        locator = axis.get_major_locator()
        if isinstance(locator, AutoLocator):
            locator.set_params(nbins=min(max(most, 2), 6))


def _is_level(handle: Any) -> bool:
    return hasattr(handle, "get_linestyle") and handle.get_linestyle() == LEVEL["linestyle"]


def wrapped(text: str, inches: float, letter: float = _LETTER) -> str:
    """Returns a text with line breaks that keep it within about the given width."""
    letters = max(8, int(inches / letter))
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())


def name_panel(panel: Axes, name: str) -> None:
    """Writes the name of a panel above it, on several lines if it is long."""
    figure: Any = panel.figure
    cells: Any = panel.get_gridspec()
    width = figure.get_figwidth() / cells.ncols - 0.4
    panel.set_title(wrapped(name, width, _PANEL_LETTER), fontsize=10)


def fit_names(axes: Axes) -> None:
    """Breaks the names below the x axis, or turns them, where they would run into each other."""
    figure: Any = axes.figure
    cells: Any = axes.get_gridspec()
    width = figure.get_figwidth() / cells.ncols - 0.8
    labels = axes.get_xticklabels()
    names = [label.get_text() for label in labels]
    letters = int(width / len(names) / _LETTER) - 1
    words = " ".join(names).split()
    longest_word = max(map(len, words), default=0)
    if longest_word <= letters:
        broken = [textwrap.fill(name, letters) for name in names]
        if max(name.count("\n") for name in broken) < _MOST_LINES:
            axes.set_xticks(axes.get_xticks(), broken)
            return
    for label in labels:
        label.set(rotation=35, ha="right", rotation_mode="anchor")
