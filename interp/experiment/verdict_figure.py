"""One figure for all claims of an experiment: what each says, each seed, the interval over seeds,
the threshold, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.experiment.claims import NOT_TESTABLE, both_verdicts
from interp.reporting.layout import LEVEL, WIDEST, finish, new_figure, style, wrapped
from interp.reporting.looks import in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour and marker of each verdict. They differ in lightness too, for readers who see no colours.
_MARKS = {
    "reproduced": ("#009E73", "o"),
    "not reproduced": ("#E69F00", "X"),
    "opposite": ("#882255", "v"),
    NOT_TESTABLE: ("#777777", "D"),
}
# Widths and heights in inches.
_STATEMENT = 4.7
_LETTER = 0.058
_LINE = 0.145
_ROW_MARGIN = 0.09


def verdict_figure(table: pd.DataFrame, name: str = "the experiment") -> Figure:
    """Draws one row per claim.

    Claims are in different units, so each row has its own scale: 0 is the threshold, the claim
    holds to the right of it, and the value or end of an interval that is furthest from the
    threshold is at 1 or -1. The numbers themselves are written on the right.

    Args:
        table: what `checks.verdicts` returns.
        name: name of the experiment.
    """
    claims = list(table.groupby("claim", sort=False))
    texts: list[str] = []
    for claim, part in claims:
        statement = in_words(part["statement"].iloc[0])
        texts.append(wrapped(f"{claim}: {statement}", _STATEMENT, _LETTER))
    heights: list[float] = []
    for text in texts:
        text_lines = text.count("\n") + 1
        heights.append(_LINE * text_lines + _ROW_MARGIN)

    with style():
        figure = new_figure(WIDEST, sum(heights) + 1.6)
        axes = figure.subplots()
        top = 0.0
        centres: list[float] = []
        for (_, part), height in zip(claims, heights, strict=True):
            centres.append(top + height / 2)
            _draw_claim(_add_scaled_columns(part), centres[-1], axes)
            top += height
            axes.axhline(top, color="0.9", linewidth=0.6, zorder=0)
        axes.axvline(0, label="threshold", **LEVEL)
        axes.grid(visible=False, axis="y")
        axes.set(
            xlim=(-1.08, 1.08),
            ylim=(top, 0),
            xlabel="distance from the threshold\n(each claim on its own scale; right of 0: holds)",
            ylabel="claim",
        )
        axes.set_yticks(centres, texts, fontsize=7.5, ha="left")
        # In points, of which an inch has 72.
        axes.tick_params(axis="y", pad=_STATEMENT * 72 + 4, length=0)
        experiment = in_words(name.replace(".", ", "))
        title = f"Claims of {experiment}: what was measured against each threshold"
        seeds = max(table["seeds"])
        spread = (
            f"thick lines: over {seeds} seeds, as each claim is judged (95% interval or range)"
            if seeds > 1
            else "one seed, so no interval"
        )
        adjusted = "hollow: the verdict is lost when adjusted for the number of claims"
        finish(figure, [axes], title, f"large marks: means, by verdict ({adjusted}); {spread}")
    return figure


def _draw_claim(part: pd.DataFrame, height: float, axes: Axes) -> None:
    overall: Any = part[part["seed"] == "all"].iloc[0]
    each: Any = part[part["seed"] != "all"]
    colour, marker = _MARKS[overall["verdict"]]
    if len(each):
        axes.plot(
            each["measured_at"],
            [height] * len(each),
            "|",
            color="0.35",
            markersize=8,
            label="one seed",
        )
    if overall["seeds"] > 1:
        ends = [overall["low_at"], overall["high_at"]]
        axes.plot(ends, [height, height], color=colour, linewidth=2.5)
    lost = overall["adjusted_verdict"] != overall["verdict"]
    axes.plot(
        [overall["measured_at"]],
        [height],
        marker,
        color=colour,
        markerfacecolor="white" if lost else colour,
        markersize=6.5,
        label=both_verdicts(overall),
    )
    axes.annotate(
        _numbers(overall),
        (1.02, height),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=7.5,
    )


def _add_scaled_columns(part: pd.DataFrame) -> pd.DataFrame:
    """The rows of one claim with the columns `measured_at`, `low_at` and `high_at`: distances from
    the threshold, of size 1 at most."""
    direction = 1 if part["upwards"].iloc[0] else -1
    # The interval of a single seed is not drawn, so it does not count for the scale.
    of_several: Any = part[part["seeds"] > 1]
    drawn = pd.concat([part["measured"], of_several["low"], of_several["high"]])
    distances = drawn - part["threshold"].iloc[0]
    # All may be at the threshold, or not measured.
    furthest = distances.abs().max()
    furthest = furthest if furthest > 0 else 1.0
    scaled: dict[str, Any] = {}
    for column in ("measured", "low", "high"):
        distance = part[column] - part["threshold"]
        scaled[f"{column}_at"] = direction * distance / furthest
    return part.assign(**scaled)


def _numbers(row: Any) -> str:
    # Adding 0.0 turns -0.0 into 0.0, which is what people would write.
    numbers = row[["measured", "low", "high", "threshold"]].astype(float)
    rounded = numbers.round(6) + 0.0
    threshold = f"(threshold {rounded['threshold']:.3g})"
    if np.isnan(rounded["measured"]):
        return f"not measured\n{threshold}"
    measured = f"{rounded['measured']:.3g}"
    if row["seeds"] < 2:
        return f"{measured}\n{threshold}"
    interval = f"[{rounded['low']:.3g}, {rounded['high']:.3g}]"
    return f"{measured} {interval}\n{threshold}"
