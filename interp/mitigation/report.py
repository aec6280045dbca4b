"""The report of an extraction drop: a tidy table, a figure, and a verdict in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from interp.files import replaced, writable
from interp.memorization.evaluation import MEASURES
from interp.mitigation.equal_damage import EqualDamage
from interp.reporting.looks import in_percent, in_words
from interp.reporting.plotting import dose_response, save
from interp.reporting.stats import bootstrap, paired_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    ("memorized", "accuracy"): "suffix accuracy (fraction of tokens)",
    ("memorized", "exact"): "extracted exactly (fraction of windows)",
    ("control", "loss"): "loss on control text (nats per token)",
}


class Ablation(Protocol):
    """What the table needs to know about a trial."""

    @property
    def selection(self) -> str: ...
    @property
    def fraction(self) -> float: ...
    @property
    def k(self) -> int: ...


def tabulate(measured: pd.DataFrame, trials: Sequence[Ablation]) -> pd.DataFrame:
    """Returns one row per selection, fraction, data set and measure, with intervals over windows.

    The random draws of a control are averaged window by window before intervals are taken.

    Args:
        measured: what `measure_under` returns for no plan (plan 0) and then for each of the trials.
        trials: the trials, in that order.

    Returns:
        The columns that `DropReport.frame` has.
    """
    key = ["selection", "fraction", "k"]
    described = [
        (number, trial.selection, trial.fraction, trial.k)
        for number, trial in enumerate(trials, start=1)
    ]
    trial_of_plan = pd.DataFrame(described, columns=["plan", *key])
    unedited: Any = measured[measured["plan"] == 0]
    before = unedited.set_index(["data", "window"])
    # Plan 0 belongs to no trial: the inner join leaves it out. The random draws of one control
    # share their key and fall into one group.
    edited: Any = measured.merge(trial_of_plan, on="plan")
    groups = edited.groupby([*key, "data"], sort=False)

    rows: list[dict[str, Any]] = []
    for (*trial, data), group in groups:
        # The mean over the draws of a control, one row per window.
        after = group.groupby("window")[list(MEASURES)].mean()
        before_here = before.loc[data].loc[after.index]  # the same windows, in the same order
        trial_by_key = dict(zip(key, trial, strict=True))
        about = {**trial_by_key, "data": data}
        counts = {"windows": len(after), "seeds": group["plan"].nunique()}
        for measure in MEASURES:
            levels = _before_and_after(before_here[measure], after[measure])
            rows.append({**about, "measure": measure, **levels, **counts})
    return pd.DataFrame(rows)


def _before_and_after(before: Any, after: Any) -> dict[str, float]:
    """Means over windows, with the intervals of the mean after and of the mean change."""
    mean = bootstrap(after)
    change = paired_interval(after, before)
    return {
        "before": float(before.mean()),
        "estimate": mean.estimate,
        "low": mean.low,
        "high": mean.high,
        "change": change.estimate,
        "change_low": change.low,
        "change_high": change.high,
    }


@dataclass(frozen=True, eq=False)
class DropReport:
    """What ablating a selection did, compared with its controls.

    Attributes:
        frame: one row per `selection` (selection, random, lowest, smallest), `fraction`, `data`
            (memorized, control, held_out) and `measure` (exact, accuracy, similarity, loss in nats
            per token), with `before`, the value after (`estimate`, `low`, `high`), the `change` and
            its interval (`change_low`, `change_high`), and the number of `windows` and `seeds`.
        chosen: the fraction that the verdict is about.
        fixed: whether that fraction was chosen beforehand; if not, it was chosen on the windows
            that judge it.
        equal_damage: the comparison with random units at equal damage.
        model: name of the model.
    """

    frame: pd.DataFrame
    chosen: float
    fixed: bool
    equal_damage: EqualDamage
    model: str

    def row(self, selection: str, data: str, measure: str) -> pd.Series:
        """Returns one row of the frame, at the chosen fraction.

        Args:
            selection: "selection" or the name of a control.
            data: name of a data set.
            measure: name of a measure.

        Raises:
            LookupError: there is no such row. Units that were given without scores have no
                "lowest", for one.
        """
        frame: Any = self.frame
        found = frame[
            (frame["selection"] == selection)
            & (frame["fraction"] == self.chosen)
            & (frame["data"] == data)
            & (frame["measure"] == measure)
        ]
        if found.empty:
            selections = sorted(set(frame["selection"]))
            data_sets = sorted(set(frame["data"]))
            raise LookupError(
                f"no row for {selection}, {data}, {measure}; there are {selections} of {data_sets}"
            )
        return found.iloc[0]

    @property
    def beats_random(self) -> bool:
        """Whether the selection removes more than random units at equal damage; see
        `EqualDamage.beats_random`."""
        return self.equal_damage.beats_random

    @property
    def verdict(self) -> str:
        """What was found, in a few sentences, with its intervals."""
        own: Any = self.row("selection", "memorized", "accuracy")
        random: Any = self.row("random", "memorized", "accuracy")
        loss: Any = self.row("selection", "control", "loss")
        equal = self.equal_damage

        share = in_percent(self.chosen, 4)
        if not self.fixed:
            share += ", chosen on these windows"
        # A site with fewer units left than were selected there gives all of them.
        if int(random["k"]) == int(own["k"]):
            matched = "the same number at each site"
        else:
            matched = "the same number at each site or all that it has left"
        relation = "beats" if self.beats_random else "does not beat"

        accuracy = (
            f"Ablating {own['k']} units ({share}) takes suffix accuracy from {own['before']:.2f} "
            f"to {_interval(own)}; {random['k']} random units, {matched}, leave "
            f"{_interval(random)} ({random['seeds']} draws)."
        )
        price = (
            f"Control loss goes from {loss['before']:.2f} to {_interval(loss)} "
            f"({loss['change'] / loss['before']:+.1%})."
        )
        told = "" if equal.distinguishable else ", which is not distinguishable from none"
        comparison = (
            f"The selection raises held-out loss by {equal.damage} nats per token{told}. "
            f"{equal.random_units} (a rise of {equal.random_damage}) and leave a suffix "
            f"accuracy of {equal.accuracy:.2f}. The selection leaves {equal.difference}: "
            f"it {relation} random at equal damage."
        )
        return f"{accuracy} {price} {comparison}"

    def table(self) -> pd.DataFrame:
        """Returns the frame at a glance: one row per fraction and selection, one column per data
        set and measure, with the value after ablation."""
        column = self.frame["data"] + " " + self.frame["measure"]
        wide = self.frame.assign(column=column)
        return wide.pivot_table(
            index=["fraction", "k", "selection"], columns="column", values="estimate", sort=False
        )

    def plot(self) -> Figure:
        """Draws accuracy and extraction of the memorized windows, and control loss, against the
        fraction ablated."""
        return drop_figure(self.frame)

    def save(self, folder: str | Path) -> None:
        """Writes `drop.parquet`, `drop.png` and `drop.json` (the verdict and the comparison at
        equal damage)."""
        place = writable(folder)
        with replaced(place / "drop.parquet") as temporary:
            self.frame.to_parquet(temporary)
        about = {
            "model": self.model,
            "verdict": self.verdict,
            "chosen": self.chosen,
            "chosen_beforehand": self.fixed,
            "beats_random": self.beats_random,
            "equal_damage": asdict(self.equal_damage),
        }
        with replaced(place / "drop.json") as temporary:
            temporary.write_text(json.dumps(about, indent=2))
        save(self.plot(), place / "drop.png")


def _interval(row: pd.Series) -> str:
    estimate = row["estimate"]
    low = row["low"]
    high = row["high"]
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def drop_figure(
    frame: pd.DataFrame,
    panels: Mapping[tuple[str, str], str] = PANELS,
    *,
    title: str = "What is still extracted, and what it costs, by the share of units ablated",
    key: str = "points: means over windows; lines through them: 95% intervals",
) -> Figure:
    """Draws one panel per data set and measure, against the fraction ablated.

    A loss is drawn twice if there is the control "lowest": without it, so that the price of the
    selection can be seen, and with it. That control often costs a hundred times as much.

    Args:
        frame: rows as in `DropReport.frame`.
        panels: the (data, measure) pairs to draw, each with the label of its y axis.
        title: what is compared.
        key: what the points and the lines through them are.
    """
    keys = list(zip(frame["data"], frame["measure"], strict=True))
    parts: list[Any] = []
    before: dict[str, float] = {}
    titles: dict[str, str] = {}
    labels = {"fraction": "share of units ablated"}

    def add(part: pd.DataFrame, label: str, about: str) -> None:
        panel = f"{label}, {about}"
        parts.append(part.assign(panel=panel))
        # The same in all rows of a panel: that of the unedited model on one data set.
        before[panel] = float(part["before"].iloc[0])
        labels[panel] = label
        titles[panel] = about

    for panel, label in panels.items():
        in_panel = [key == panel for key in keys]
        part: Any = frame[in_panel]
        data, measure = panel
        about = f"{in_words(data)} windows"
        is_lowest = part["selection"] == "lowest"
        if measure == "loss" and is_lowest.any() and not is_lowest.all():
            add(part[~is_lowest], label, f"{about}, without the lowest-scoring units")
            add(part, label, f"{about}, with them")
        else:
            add(part, label, about)
    return dose_response(
        pd.concat(parts),
        "fraction",
        "selection",
        "panel",
        labels=labels,
        before=before,
        title=title,
        key=key,
        titles=titles,
        across=2,
    )
