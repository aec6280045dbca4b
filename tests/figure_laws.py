"""What holds of every figure that is shown: it says what it compares, and all of it can be read."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from interp.reporting.layout import DOTS_PER_INCH

MOST_HUES = 8
WIDEST = 1280  # pixels
# Laying out larger figures takes seconds each. They are made by the same helpers as smaller ones.
MOST_PANELS = 6
TALLEST = 12  # inches


def check(figure: Figure) -> None:
    """Checks the words, colours and limits of a figure, and of all but large ones that no text is
    cut off or covered by another."""
    assert figure.get_figwidth() * DOTS_PER_INCH <= WIDEST
    assert figure.get_suptitle(), "a figure says what it compares"
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    of_pictures = all(axes.images for axes in panels)
    if not of_pictures:
        check_legend(figure)
        for axes in panels:
            check_panel(axes)
    if len(panels) <= MOST_PANELS and figure.get_figheight() <= TALLEST:
        check_places(figure, panels)


def check_legend(figure: Figure) -> None:
    """There is one legend. It says what the marks are, and no two names have the same colour."""
    (legend,) = figure.legends
    assert legend.get_title().get_text(), "a legend says what the marks are"
    names = [text.get_text() for text in legend.get_texts()]
    assert not [name for name in names if "_" in name], f"identifiers for names: {names}"
    colours = [colour(handle) for handle in legend.legend_handles if not is_dashed(handle)]
    assert len(set(colours)) == len(colours), f"two names of {names} have the same colour"


def check_panel(axes: Any) -> None:
    """Both axes have names unless a neighbour shows them, bars end within them, and there are few
    enough hues to tell apart."""
    title = axes.get_title()
    for axis in (axes.xaxis, axes.yaxis):
        shown = any(label.get_visible() for label in axis.get_ticklabels())
        assert axis.get_label_text() or not shown, f"an axis of {title!r} has no name"
    low, high = axes.get_ylim()
    for bar in itertools.chain(*axes.containers):
        assert low <= bar.get_y() + bar.get_height() <= high, f"a bar of {title!r} is cut off"
    handles, names = axes.get_legend_handles_labels()
    drawn = zip(names, handles, strict=True)
    hues = {name for name, handle in drawn if not is_dashed(handle)}
    assert len(hues) <= MOST_HUES, f"{title!r} has {len(hues)} hues"


def check_places(figure: Figure, panels: list[Any]) -> None:
    """All texts are on the page, and none covers another."""
    engine = figure.get_layout_engine()
    if engine is None:
        figure.draw_without_rendering()
    else:  # drawing all of the figure takes twice as long
        engine.execute(figure)
    texts: list[Any] = [figure._suptitle]  # pyright: ignore[reportPrivateUsage]
    for legend in figure.legends:
        legend.draw(RendererAgg(*figure.bbox.size, figure.dpi))
        texts += [legend.get_title(), *legend.get_texts()]
    for axes in panels:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            # The box of a name that is turned is much larger than the name.
            texts += [tick.label1 for tick in ticks if tick.label1.get_rotation() in (0, 90)]
    shown = [text for text in texts if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]

    page = figure.bbox.padded(1)
    for words, box in boxes:
        corners = (box.x0, box.y0), (box.x1, box.y1)
        assert all(page.contains(*corner) for corner in corners), f"cut off: {words!r}"
    assert not overlapping(boxes), f"over each other: {overlapping(boxes)}"


def overlapping(boxes: list[tuple[str, Bbox]]) -> list[tuple[str, str]]:
    """The pairs of texts whose boxes cover each other by more than a pixel."""
    ends = np.array([box.extents for _, box in boxes])
    lowest = np.maximum(ends[:, None, :2], ends[None, :, :2])
    highest = np.minimum(ends[:, None, 2:], ends[None, :, 2:])
    cover = (highest - lowest > 1).all(axis=2)  # [text, other text]
    return [(boxes[one][0], boxes[other][0]) for one, other in np.argwhere(np.triu(cover, 1))]


def colour(handle: Any) -> str:
    """The colour of an entry of a legend, and whether its mark is hollow: that is seen too."""
    given = handle.get_facecolor() if hasattr(handle, "get_facecolor") else handle.get_color()
    shown = to_hex(given if isinstance(given, str) else np.ravel(given)[:4], keep_alpha=True)
    face = handle.get_markerfacecolor() if hasattr(handle, "get_markerfacecolor") else ""
    return f"hollow {shown}" if face == "white" else shown


def is_dashed(handle: Any) -> bool:
    """Whether an entry of a legend is a level to compare with."""
    return getattr(handle, "get_linestyle", lambda: "-")() == "--"
