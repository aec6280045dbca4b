"""The data map: each training example by how hard it is and how strongly it is memorized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from interp.mitigation.reweighting import HARD, HOTSPOT, OUTLIER, STABLE, Scores, quadrants
from interp.reporting.layout import LEVEL, finish, new_figure, style
from interp.reporting.looks import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CANARY = "canaries"
# Where each quadrant is named: a corner of the axes, as shares of them.
_CORNERS = {
    STABLE: (0.01, 0.02),
    HARD: (0.99, 0.02),
    HOTSPOT: (0.01, 0.98),
    OUTLIER: (0.99, 0.98),
}


def data_map(
    difficulty: Scores,
    memorization: Scores,
    percentiles: tuple[float, float] = (50.0, 90.0),
    *,
    canaries: Bool[np.ndarray, " examples"] | None = None,
    score: str = "share of moments with a forget event",
    title: str = "Training examples by difficulty and memorization",
) -> Figure:
    """Draws examples by difficulty and by a memorization score, with the four quadrants.

    Source: Patel and Shanbhag, GenDataCarto (arXiv 2509.00083), whose axes are not given there.

    Args:
        difficulty: of each example, in nats per token.
        memorization: of each example, any score that is higher for what is memorized.
        percentiles: of difficulty and of memorization, as in `quadrants`; the dashed lines.
        canaries: which examples were planted, marked in another colour; None for no marks.
        score: name and unit of the memorization score.
        title: what is compared.

    Raises:
        ValueError: as `quadrants`; or marks for another number of examples.

    Example:
        >>> from interp.mitigation.data_map import data_map
        >>> difficulty = np.array([2.0, 3.0, 5.0, 6.0])
        >>> drop = np.array([0.1, 2.5, 0.2, 4.0])
        >>> figure = data_map(difficulty, drop, canaries=drop > 3, score="loss drop (nats)")
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['training examples', 'canaries', 'thresholds of the quadrants']
    """
    regions = quadrants(difficulty, memorization, percentiles)
    marked = np.zeros(len(difficulty), dtype=bool) if canaries is None else np.asarray(canaries)
    if marked.shape != difficulty.shape:
        raise ValueError(
            f"canaries are marks of {len(marked)} examples: expected {len(difficulty)}, one for "
            "each"
        )
    with style():
        figure = new_figure(7.4, 5.4)
        axes = figure.subplots()
        names = {"training examples": ~marked, _CANARY: marked}
        for name, look in looks(names).items():
            chosen = names[name]
            if not chosen.any():
                continue
            axes.scatter(
                difficulty[chosen],
                memorization[chosen],
                s=30 if name == _CANARY else 12,
                color=look.colour,
                marker="^" if name == _CANARY else "o",
                alpha=0.9 if name == _CANARY else 0.45,
                linewidths=0,
                label=look.words,
            )
        lines = {**LEVEL, "zorder": 3}
        axes.axvline(
            float(np.percentile(difficulty, percentiles[0])),
            label="thresholds of the quadrants",
            **lines,
        )
        axes.axhline(float(np.percentile(memorization, percentiles[1])), **lines)
        axes.set(xlabel="difficulty: mean loss early in training (nats per token)", ylabel=score)
        axes.margins(0.08, 0.14)  # the names of the quadrants stand where no example is
        _name_quadrants(axes, regions)
        finish(
            figure,
            [axes],
            title,
            "marks: one example each; of each quadrant, its name and number of examples",
        )
    return figure


def _name_quadrants(axes: Axes, regions: np.ndarray) -> None:
    for name, (x, y) in _CORNERS.items():
        count = int((regions == name).sum())
        axes.text(
            x,
            y,
            f"{name}: {count:,}",
            transform=axes.transAxes,
            ha="left" if x < 0.5 else "right",
            va="bottom" if y < 0.5 else "top",
            fontsize=9,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
        )
