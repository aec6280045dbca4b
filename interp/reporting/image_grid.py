"""A grid of pictures: originals, what their tokens keep of them, and what a model generates."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from interp.reporting.layout import style
from interp.reporting.looks import in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches.
_PICTURE_SIDE = 0.95
_LETTER_WIDTH = 0.08
_CAPTION_LINE = 0.16
_TITLE_LETTER = 0.088
_TITLE_LINE = 0.22
_MARGIN = 0.1


def image_grid(
    rows: Mapping[str, Float[Tensor, "n channels side side"]],
    captions: Sequence[str] | None = None,
    title: str = "One image per column",
) -> Figure:
    """Draws one row of pictures for each name.

    One channel is drawn in grey, three as RGB. Picture i of every row belongs to the same original.

    Args:
        rows: for each name, which is written on the left, pictures in [0, 1]; all rows have the
            same number of pictures and the same shape.
        captions: what to write above each column.
        title: what is compared.

    Raises:
        ValueError: no row, no picture, rows of different shapes, pictures that are neither grey nor
            RGB or not in [0, 1], or another number of captions than of columns.

    Example:
        >>> from interp.reporting.image_grid import image_grid
        >>> pictures = torch.linspace(0, 1, 2 * 1 * 4 * 4).reshape(2, 1, 4, 4)
        >>> rows = {"original": pictures, "inverted": 1 - pictures}
        >>> figure = image_grid(rows, captions=["first", "second"])
        >>> len(figure.axes)
        4
    """
    count = _pictures_per_row(rows)
    if captions is not None and len(captions) != count:
        raise ValueError(f"captions: expected one for each of {count} columns, got {len(captions)}")

    names = [in_words(name) for name in rows]
    longest_name = max(map(len, names))
    left = _LETTER_WIDTH * longest_name + 2 * _MARGIN
    width = left + _PICTURE_SIDE * count + _MARGIN

    lines_of_captions = [caption.count("\n") + 1 for caption in captions or ()]
    caption_lines = max(lines_of_captions, default=0)
    above = _CAPTION_LINE * caption_lines + _MARGIN
    # The title is broken at the width of the figure, and its lines then add to the height.
    letters_per_line = int(width / _TITLE_LETTER)
    wrapped_title = textwrap.fill(title, letters_per_line)
    title_lines = wrapped_title.count("\n") + 1
    above += _TITLE_LINE * title_lines
    height = above + _PICTURE_SIDE * len(rows) + _MARGIN
    # Margins by hand: matplotlib's constrained layout takes longer than everything else for a grid
    # of many axes.
    spacing = {
        "left": left / width,
        "right": 1 - _MARGIN / width,
        "bottom": _MARGIN / height,
        "top": 1 - above / height,
        "wspace": 0.08,
        "hspace": 0.08,
    }

    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height))
        grid: Any = figure.subplots(len(rows), count, squeeze=False, gridspec_kw=spacing)
        figure.suptitle(wrapped_title, y=1 - _MARGIN / height, va="top")
        for row, name, pictures in zip(grid, names, rows.values(), strict=True):
            on_cpu = pictures.detach().cpu().float()
            for axes, picture in zip(row, on_cpu, strict=True):
                _draw_picture(axes, picture)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", size=10)
        for axes, caption in zip(grid[0], captions or (), strict=False):
            axes.set_title(caption, size=8)
    return figure


def _draw_picture(axes: Any, picture: Float[Tensor, "channels side side"]) -> None:
    channels_last = picture.movedim(0, -1).numpy()
    axes.imshow(channels_last, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _pictures_per_row(rows: Mapping[str, Tensor]) -> int:
    """How many pictures each row has; refuses what cannot be drawn."""
    shapes = {name: tuple(pictures.shape) for name, pictures in rows.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            "rows: expected pictures [n, channels, side, side] of one shape in each row, "
            f"got {shapes or 'no row'}"
        )
    shape, *_ = shapes.values()
    if len(shape) != 4 or 0 in shape or shape[1] not in (1, 3):
        raise ValueError(
            "rows: expected at least one picture [n, channels, side, side] with 1 or 3 channels, "
            f"got {list(shape)}"
        )
    for name, pictures in rows.items():
        lowest, highest = pictures.detach().aminmax()
        low = float(lowest)
        high = float(highest)
        in_range = 0 <= low <= high <= 1  # false for NaN too
        if not pictures.is_floating_point() or not in_range:
            raise ValueError(
                f"{name}: expected floats in [0, 1], got {pictures.dtype} from {low:g} to {high:g}"
            )
    return shape[0]
