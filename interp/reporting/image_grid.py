"""Pictures beside each other: what an image was, what its tokens keep of it, and what a model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from interp.reporting.plotting import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 0.95  # of one picture a side
_LETTER, _LINE = 0.095, 0.16  # inches: of a name's letter, of a caption's line


def image_grid(
    rows: Mapping[str, Float[Tensor, "n channels side side"]], captions: Sequence[str] | None = None
) -> Figure:
    """One row of pictures for each name, in order: grey for one channel, RGB for three; picture i
    of each row is about the same image.

    Args:
        rows: pictures in [0, 1], as many of one shape in each row; the name stands on the left.
        captions: one a column, above it.

    Raises:
        ValueError: no row, no picture, rows of several shapes, pictures that are neither grey nor
            RGB or leave [0, 1], or a caption too few or too many.
    """
    count = _count(rows)
    if captions is not None and len(captions) != count:
        raise ValueError(f"captions: expected one for each of {count} columns, got {len(captions)}")
    with style():
        from matplotlib.figure import Figure

        left = _LETTER * max(map(len, rows)) + 0.2
        above = (
            _LINE * max((caption.count("\n") + 1 for caption in captions or ()), default=0) + 0.1
        )
        width, height = left + _INCHES * count + 0.1, above + _INCHES * len(rows) + 0.1
        figure = Figure(figsize=(width, height))
        # margins by hand: matplotlib's constrained layout takes longer than all else for as many
        # axes
        margins = {
            "left": left / width,
            "right": 1 - 0.1 / width,
            "bottom": 0.1 / height,
            "top": 1 - above / height,
        }
        grid: Any = figure.subplots(
            len(rows), count, squeeze=False, gridspec_kw=margins | {"wspace": 0.08, "hspace": 0.08}
        )
        for line, (name, pictures) in zip(grid, rows.items(), strict=True):
            for axes, picture in zip(line, pictures.detach().cpu().float(), strict=True):
                axes.imshow(
                    picture.movedim(0, -1).numpy(),
                    cmap="gray",
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                )
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", size=10)
        for axes, caption in zip(grid[0], captions or (), strict=False):
            axes.set_title(caption, size=8)
    return figure


def _count(rows: Mapping[str, Tensor]) -> int:
    """How many pictures each row has, after everything that is wrong with them is refused."""
    shapes = {name: tuple(pictures.shape) for name, pictures in rows.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            f"rows: expected pictures [n, channels, side, side] of one shape in each row, got {shapes or 'no row'}"
        )
    shape = next(iter(shapes.values()))
    if len(shape) != 4 or 0 in shape or shape[1] not in (1, 3):
        raise ValueError(
            f"rows: expected at least one picture [n, channels, side, side] with 1 or 3 channels, got {list(shape)}"
        )
    for name, pictures in rows.items():
        low, high = (float(end) for end in pictures.detach().aminmax())
        if not (pictures.is_floating_point() and 0 <= low <= high <= 1):  # NaN is in no order
            raise ValueError(
                f"{name}: expected floats in [0, 1], got {pictures.dtype} from {low:g} to {high:g}"
            )
    return shape[0]
