"""One figure of all claims of an experiment: each seed, the interval over seeds, the threshold, and
the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.experiment.claims import NOT_TESTABLE
from interp.reporting.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# places in the colour-blind palette: green, grey, vermilion, light blue
_COLOURS = {"reproduced": 2, "not reproduced": 7, "opposite": 3, NOT_TESTABLE: 9}


def verdict_figure(table: pd.DataFrame) -> Figure:
    """One row per claim, `table` as `checks.verdicts` gives it.

    Claims are in different units, so each row has a scale of its own: 0 is the threshold, the right
    side is where the claim holds, and the value or interval end furthest from the threshold is at 1
    or -1. The numbers themselves are written at the right.
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
            _draw_claim(_scaled(part), height, axes, palette)
        axes.axvline(0, color="0.3", linestyle="--", linewidth=1)
        axes.set(
            xlim=(-1.08, 1.08),
            ylim=(len(names) - 0.5, -0.5),
            yticks=range(len(names)),
            yticklabels=names,
        )
        axes.set(
            xlabel="distance from the threshold, each claim on its own scale (right: the claim holds)",
            title="claims and verdicts",
        )
        axes.tick_params(axis="y", labelsize=8)
        marks = _legend(set(table.loc[table["seed"] == "all", "verdict"]), palette)
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8)
    return figure


def _draw_claim(part: pd.DataFrame, height: int, axes: Axes, palette: Any) -> None:
    overall: Any = part[part["seed"] == "all"].iloc[0]
    each: Any = part[part["seed"] != "all"]
    colour = palette[_COLOURS[overall["verdict"]]]
    axes.plot(each["measured_at"], [height] * len(each), "|", color="0.45", markersize=9)
    if overall["seeds"] > 1:
        axes.plot(
            [overall["low_at"], overall["high_at"]], [height, height], color=colour, linewidth=2.5
        )
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

    marks = [
        Line2D([], [], marker="o", color=palette[at], label=name)
        for name, at in _COLOURS.items()
        if name in verdicts
    ]
    marks.append(
        Line2D([], [], marker="|", linestyle="", color="0.45", markersize=9, label="one seed")
    )
    marks.append(Line2D([], [], linestyle="--", color="0.3", label="threshold"))
    return marks


def _scaled(part: pd.DataFrame) -> pd.DataFrame:
    """The rows of one claim with `measured_at`, `low_at` and `high_at`: distances from the
    threshold, at most 1 in size."""
    direction = 1 if part["upwards"].iloc[0] else -1
    several = part["seeds"] > 1
    ends = pd.concat([part["measured"], part.loc[several, "low"], part.loc[several, "high"]])
    furthest = (ends - part["threshold"].iloc[0]).abs().max() or 1.0
    places = {
        f"{column}_at": direction * (part[column] - part["threshold"]) / furthest
        for column in ("measured", "low", "high")
    }
    return part.assign(**places)


def _numbers(row: Any) -> str:
    bar = f"{'≥' if row['upwards'] else '≤'} {row['threshold']:.3g}"
    if row["seeds"] == 1:
        return f"{row['measured']:.3g} ({bar})"
    return f"{row['measured']:.3g} [{row['low']:.3g}, {row['high']:.3g}] ({bar})"
