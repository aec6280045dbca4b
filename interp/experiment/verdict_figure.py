"""One figure for all claims of an experiment: each seed, the interval over seeds, the threshold,
and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.experiment.claims import NOT_TESTABLE
from interp.reporting.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Numbers in seaborn's colour-blind palette: green, grey, vermilion, light blue.
_COLOURS = {"reproduced": 2, "not reproduced": 7, "opposite": 3, NOT_TESTABLE: 9}


def verdict_figure(table: pd.DataFrame) -> Figure:
    """Draws one row per claim.

    Claims are in different units, so each row has its own scale: 0 is the threshold, the claim
    holds to the right of it, and the value or end of an interval that is furthest from the
    threshold is at 1 or -1. The numbers themselves are written on the right.

    Args:
        table: what `checks.verdicts` returns.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    palette: Any = sns.color_palette("colorblind")
    names = list(table["claim"].unique())
    with style():
        figure = Figure(figsize=(9.5, 0.32 * len(names) + 1.6), layout="constrained")
        axes = figure.subplots()
        for height, name in enumerate(names):
            part: Any = table[table["claim"] == name]
            _draw_claim(_add_scaled_columns(part), height, axes, palette)
        axes.axvline(0, color="0.3", linestyle="--", linewidth=1)
        axes.set(
            xlim=(-1.08, 1.08),
            ylim=(len(names) - 0.5, -0.5),
            yticks=range(len(names)),
            yticklabels=names,
            xlabel="distance from the threshold, each claim on its own scale "
            "(right: the claim holds)",
            title="claims and verdicts",
        )
        axes.tick_params(axis="y", labelsize=8)
        over_seeds = table["seed"] == "all"
        marks = _legend(set(table.loc[over_seeds, "verdict"]), palette)
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8)
    return figure


def _draw_claim(part: pd.DataFrame, height: int, axes: Axes, palette: Any) -> None:
    overall: Any = part[part["seed"] == "all"].iloc[0]
    each: Any = part[part["seed"] != "all"]
    colour = palette[_COLOURS[overall["verdict"]]]
    axes.plot(each["measured_at"], [height] * len(each), "|", color="0.45", markersize=9)
    if overall["seeds"] > 1:
        ends = [overall["low_at"], overall["high_at"]]
        axes.plot(ends, [height, height], color=colour, linewidth=2.5)
    axes.plot([overall["measured_at"]], [height], "o", color=colour, markersize=6)
    axes.annotate(
        _numbers(overall),
        (1.02, height),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
    )


def _legend(verdicts: set[str], palette: Any) -> list[Line2D]:
    from matplotlib.lines import Line2D

    marks: list[Line2D] = []
    for name, number in _COLOURS.items():
        if name in verdicts:
            marks.append(Line2D([], [], marker="o", color=palette[number], label=name))
    marks.append(
        Line2D([], [], marker="|", linestyle="", color="0.45", markersize=9, label="one seed")
    )
    marks.append(Line2D([], [], linestyle="--", color="0.3", label="threshold"))
    return marks


def _add_scaled_columns(part: pd.DataFrame) -> pd.DataFrame:
    """The rows of one claim with the columns `measured_at`, `low_at` and `high_at`: distances from
    the threshold, of size 1 at most."""
    direction = 1 if part["upwards"].iloc[0] else -1
    # The interval of a single seed is not drawn, so it does not count for the scale.
    several = part["seeds"] > 1
    drawn = pd.concat([part["measured"], part.loc[several, "low"], part.loc[several, "high"]])
    furthest = (drawn - part["threshold"].iloc[0]).abs().max() or 1.0
    scaled: dict[str, Any] = {}
    for column in ("measured", "low", "high"):
        scaled[f"{column}_at"] = direction * (part[column] - part["threshold"]) / furthest
    return part.assign(**scaled)


def _numbers(row: Any) -> str:
    bar = f"{'≥' if row['upwards'] else '≤'} {row['threshold']:.3g}"
    if row["seeds"] == 1:
        return f"{row['measured']:.3g} ({bar})"
    return f"{row['measured']:.3g} [{row['low']:.3g}, {row['high']:.3g}] ({bar})"
