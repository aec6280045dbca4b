"""The figures: the paper's methods over training, what they cost, and CodeEraser's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.code_eraser.paths import FORGETTING
from experiments.code_eraser.presets import NEVER_READ, NONE
from interp.experiment.checks import Tables
from interp.reporting.panels import Draw, lines, over_seeds, panels
from interp.reporting.plotting import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEASURES = {
    "ma": "secrets",
    "context": "code around them",
    "retained": "retained code",
    "memorized": "other memorized code",
    "other_secrets": "other secrets",
}
# MA is a mean over the runs of tokens that count in a file, accuracy one over its tokens: around
# secrets there are several runs of different lengths, and the two differ.
MA = "MA (share of tokens)"
_LABELS = {"ma": MA, "accuracy": "accuracy (share of tokens)", "loss": "nats per token"}
# What is measured of each set of files, and its name above a panel.
_COSTS = {
    "context": ("accuracy", "code around the secrets"),
    "retained": ("ma", "retained code"),
    "memorized": ("ma", "other memorized code"),
    "others": ("ma", "other secrets"),
    "held out": ("loss", "held-out code"),
}


def of_shares(draw: Draw) -> Draw:
    """Returns a function for `panels` whose axis has all shares, the same in every panel."""

    def draw_shares(part: pd.DataFrame, axes: Axes) -> None:
        draw(part, axes)
        axes.set_ylim(0, 1.02)

    return draw_shares


def training(tables: Tables) -> Figure:
    """What the paper's methods do, epoch by epoch."""
    table = tables["paths"]
    named = table.rename(columns=_MEASURES)
    long = named.melt(["removal", "dose", "seed"], list(_MEASURES.values()), "data", "share")
    draw = lines(long, "dose", "share", "data", xlabel="epochs", ylabel=MA)
    return panels(
        long,
        ["removal"],
        of_shares(draw),
        title="What is recited while secrets are unlearned",
        key=over_seeds(long, "line", "band"),
        across=4,
        width=3.2,
    )


def costs(tables: Tables) -> Figure:
    """What is left of everything else where the secrets have just been forgotten, and before."""
    table = tables["files"]
    # Models without a removal have an empty point.
    shown: Any = table[table["point"].isin([FORGETTING, ""]) & table["data"].isin(_COSTS)]
    rows: list[dict[str, Any]] = []
    groups: Any = shown.groupby(["removal", "data", "seed"], sort=False)
    for (removal, data, seed), files in groups:
        column, name = _COSTS[data]
        value = float(files[column].mean())
        rows.append({"removal": removal, "panel": name, "seed": seed, "value": value})
    by_seed = pd.DataFrame(rows)
    levels = by_seed[by_seed["removal"] == NONE].groupby("panel")["value"].mean()
    removals = by_seed[~by_seed["removal"].isin([NONE, NEVER_READ])]
    grouped: Any = removals.groupby(["panel", "removal"], sort=False)["value"]
    spread = grouped.agg(estimate="mean", low="min", high="max").reset_index()
    names = [name for _, name in _COSTS.values()]
    return intervals(
        spread,
        "removal",
        labels={name: _LABELS[column] for column, name in _COSTS.values()},
        titles={name: name for name in names},
        levels=levels.to_dict(),
        level="before",
        title="What is left where the secrets have just been forgotten",
        key=over_seeds(by_seed, "point", "line"),
        across=5,
    )


def settings(tables: Tables) -> Figure:
    """What the settings of CodeEraser do to the cost of forgetting."""
    table = tables["settings"]
    names = [
        f"{setting} {value:g}"
        for setting, value in zip(table["setting"], table["value"], strict=True)
    ]
    shown = {"rise": "held-out code", "epochs": "epochs", "other_secrets": "other secrets"}
    long = table.assign(row=names).rename(columns=shown)
    by_seed = long.melt(["row", "seed"], list(shown.values()), "panel", "cost")
    groups: Any = by_seed.groupby(["panel", "row"], sort=False)["cost"]
    spread = groups.agg(estimate="mean", low="min", high="max").reset_index()
    return intervals(
        spread.rename(columns={"row": "setting"}),
        "setting",
        labels={
            "held-out code": "rise of the loss (nats per token)",
            "epochs": "epochs until forgotten",
            "other secrets": MA,
        },
        titles={name: name for name in shown.values()},
        title="What forgetting costs by the settings of CodeEraser",
        key=over_seeds(by_seed, "point", "line"),
    )


FIGURES = {"training": training, "costs": costs, "settings": settings}
