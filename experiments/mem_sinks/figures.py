"""The figures: training, what dropping sinks changes, removal after training, and which methods
find sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.mem_sinks.build import NOTHING
from experiments.mem_sinks.measures import (
    CANARIES,
    HELD_OUT,
    REPEATED,
    gap_closure,
    isolation,
    losses,
)
from experiments.mem_sinks.presets import (
    DEDUPLICATED,
    NARROW,
    RESERVED,
    RESERVED_OFF,
    SAME_STEPS,
    SINKS,
    STANDARD,
)
from experiments.mem_sinks.study import DROPPED, OWN, PLAIN, SCALED
from interp.experiment.checks import Tables, of_each_seed
from interp.reporting.panels import lines, over_seeds, panels, ranges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NATS = "loss (nats per token)"

# Rows of the figure of losses: a run and the mode that it is measured in.
_COMPARED = (
    (STANDARD, PLAIN),
    (NARROW, PLAIN),
    (DEDUPLICATED, PLAIN),
    (SAME_STEPS, PLAIN),
    (SINKS, OWN),
    (SINKS, SCALED),
    (SINKS, DROPPED),
    (RESERVED, PLAIN),
    (RESERVED, DROPPED),
    (RESERVED_OFF, PLAIN),
    (RESERVED_OFF, DROPPED),
)


def training(tables: Tables) -> Figure:
    """The losses on repeated and held-out sequences during training."""
    table: Any = tables["curves"]
    shown = table.assign(
        line=[
            data if mode == PLAIN else f"{data}, {mode}"
            for data, mode in zip(table["data"], table["mode"], strict=True)
        ]
    )
    return panels(
        shown,
        ["run"],
        lines(shown, "step", "loss", "line", xlabel="optimizer steps", ylabel=_NATS),
        title="Losses during training",
        key=over_seeds(shown, "line", "band"),
    )


def losses_of_runs(tables: Tables) -> Figure:
    """The losses of every run that is compared, on repeated, once-seen and held-out sequences."""
    rows: list[dict[str, Any]] = []
    every: Any = tables["losses"]
    for run, mode in _COMPARED:
        for data in (REPEATED, "once", HELD_OUT):
            own = every[(every["run"] == run) & (every["mode"] == mode) & (every["data"] == data)]
            for seed, part in own.groupby("seed"):
                name = run if mode == PLAIN else f"{run}: {mode}"
                value = part["loss"].mean()
                rows.append({"training": name, "panel": data, "seed": seed, "value": value})
    frame = pd.DataFrame(rows)
    standard: Any = every[(every["run"] == STANDARD) & (every["mode"] == PLAIN)]
    before = standard.groupby("data")["loss"].mean().to_dict()
    return ranges(
        frame,
        "training",
        "panel",
        "value",
        label=_NATS,
        value_of_level={name: float(before[name]) for name in frame["panel"].unique()},
        level="standard training",
        title="Losses after training, with sinks and without",
    )


def isolated(tables: Tables) -> Figure:
    """Isolation, gap closure and held-out loss of all trainings with sinks."""
    every: Any = tables["losses"]
    runs = [run for run in every["run"].unique() if _has(every, run, OWN)]
    measures: dict[str, Callable[[str, Any], float]] = {
        "isolation": lambda run, own: _estimate(isolation(run), own),
        "gap closure": lambda run, own: _estimate(gap_closure(run), own),
        "held-out loss": lambda run, own: float(
            losses(own, run, DROPPED, HELD_OUT).mean()
            - losses(own, STANDARD, PLAIN, HELD_OUT).mean()
        ),
    }
    rows: list[dict[str, Any]] = []
    seeds = sorted(every["seed"].unique())
    for seed, own in of_each_seed(tables, seeds).items():
        for run in sorted(runs):
            for name, measure in measures.items():
                value = measure(run, own)
                rows.append({"training": run, "panel": name, "seed": seed, "value": value})
    return ranges(
        pd.DataFrame(rows),
        "training",
        "panel",
        "value",
        label={
            "isolation": "share of the way to held-out text",
            "gap closure": "share of the gap of standard training",
            "held-out loss": "above standard training (nats per token)",
        },
        value_of_level=0.0,
        level="standard training",
        title="What dropping the sinks removes, and what it costs",
    )


def _has(every: pd.DataFrame, run: str, mode: str) -> bool:
    return bool(((every["run"] == run) & (every["mode"] == mode)).any())


def _estimate(measure: Any, tables: Any) -> float:
    return float(measure(tables).estimate)


def post_hoc(tables: Tables) -> Figure:
    """The losses under removal after training, by the share of the neurons that is zeroed."""
    every: Any = tables["post_hoc"]
    # Those for repeated code; "nothing" was found for none.
    table = every[every["found_for"] != CANARIES]
    means = table.groupby(["seed", "method", "fraction", "data"], sort=False)["loss"].mean()
    frame = means.reset_index()
    start = frame[frame["method"] == NOTHING]
    methods: Sequence[str] = [name for name in frame["method"].unique() if name != NOTHING]
    # Every line begins at the model as it is.
    parts = [frame[frame["method"] != NOTHING]]
    parts += [start.assign(method=name) for name in methods]
    shown = pd.concat(parts, ignore_index=True)
    return panels(
        shown,
        ["data"],
        lines(
            shown,
            "fraction",
            "loss",
            "method",
            xlabel="share of the neurons that is zeroed",
            ylabel=_NATS,
        ),
        title="Removal from a standard model, by neurons that were found for repeated code",
        key=over_seeds(shown, "line", "band"),
        across=2,
    )


def recall(tables: Tables) -> Figure:
    """How many of the sinks each method finds, next to chance."""
    table: Any = tables["recall"]
    means = table.groupby(["seed", "selection", "truth", "method"], sort=False)["recall"].mean()
    frame = means.reset_index().rename(columns={"truth": "panel", "recall": "value"})
    highest = frame[frame["selection"] == "highest"]
    chance = frame[frame["selection"] == "random"].groupby("panel")["value"].mean().to_dict()
    return ranges(
        highest,
        "method",
        "panel",
        "value",
        label="recall",
        value_of_level={str(name): float(value) for name, value in chance.items()},
        level="chance",
        title="Which methods find the sinks of repeated sequences",
    )


FIGURES = {
    "training": training,
    "losses": losses_of_runs,
    "isolation": isolated,
    "post_hoc": post_hoc,
    "recall": recall,
}
