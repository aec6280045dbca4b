"""The report of an extraction drop: a tidy table, a figure, and a verdict in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd

from interp.files import replaced, writable
from interp.mitigation.effects import MEASURES
from interp.plotting import dose_response, save
from interp.stats import Interval, bootstrap, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {("memorized", "accuracy"): "suffix accuracy, memorized", ("memorized", "exact"): "extracted exactly", ("control", "loss"): "control loss (nats/token)"}


class Ablation(Protocol):
    """What the table needs to know of a trial."""

    @property
    def selection(self) -> str: ...
    @property
    def fraction(self) -> float: ...
    @property
    def k(self) -> int: ...


@dataclass(frozen=True)
class EqualDamage:
    """Random units that hurt held-out text at least as much as the selection.

    Attributes:
        k: how many it took.
        reached: whether any number of random units hurt as much; if not, these are the most that were tried.
        accuracy: mean suffix accuracy of the memorized windows under them.
        advantage: accuracy under random minus accuracy under the selection, paired by window: above 0 the selection removes more.
    """

    k: int
    reached: bool
    accuracy: float
    advantage: Interval


def tabulated(measured: pd.DataFrame, trials: Sequence[Ablation]) -> pd.DataFrame:
    """One row for each selection, fraction, data set and measure, with intervals over windows (seeds of a random control are averaged first)."""
    about = pd.DataFrame([(n, t.selection, t.fraction, t.k) for n, t in enumerate(trials, start=1)], columns=["plan", "selection", "fraction", "k"])
    before = measured[measured["plan"] == 0].set_index(["data", "window"])[list(MEASURES)]
    rows: list[dict[str, object]] = []
    for (selection, fraction, k, data), group in measured.merge(about, on="plan").groupby(["selection", "fraction", "k", "data"], sort=False):
        means = group.groupby("window")[list(MEASURES)].mean()
        base = before.loc[data].loc[means.index]
        for measure in MEASURES:
            after, change = bootstrap(means[measure]), paired(means[measure], base[measure])
            rows.append(
                {"selection": selection, "fraction": fraction, "k": k, "data": data, "measure": measure, "before": base[measure].mean()}
                | {"estimate": after.estimate, "low": after.low, "high": after.high}
                | {"change": change.estimate, "change_low": change.low, "change_high": change.high}
                | {"windows": len(means), "seeds": group["plan"].nunique()}
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class DropReport:
    """What ablating a selection did, beside its controls.

    Attributes:
        frame: one row for each `selection` (selection, random, lowest), `fraction`, `data` (memorized, control, held_out) and `measure` (exact,
            accuracy, loss in nats a token): `before`, after (`estimate`, `low`, `high`), `change` with interval, `windows`, `seeds`.
        chosen: the fraction that the verdict is about.
        fixed: whether it was chosen beforehand.
        equal_damage: the comparison with random units that hurt as much.
        model: its name.
    """

    frame: pd.DataFrame
    chosen: float
    fixed: bool
    equal_damage: EqualDamage
    model: str

    def row(self, selection: str, data: str, measure: str) -> pd.Series:
        """The row of the frame at the chosen fraction."""
        f = self.frame
        found = f[(f["selection"] == selection) & (f["fraction"] == self.chosen) & (f["data"] == data) & (f["measure"] == measure)]
        return found.iloc[0]

    @property
    def beats_random(self) -> bool:
        """Whether the selection lowers accuracy more than random units at equal damage: the interval of the difference lies above 0."""
        return self.equal_damage.advantage.low > 0

    @property
    def verdict(self) -> str:
        """What was found, in a few sentences, with its intervals."""
        own, random = self.row("selection", "memorized", "accuracy"), self.row("random", "memorized", "accuracy")
        loss, equal = self.row("selection", "control", "loss"), self.equal_damage
        how = "" if self.fixed else ", chosen on these windows"
        reach = "hurt held-out text as much" if equal.reached else "is the most tried and still hurts held-out text less"
        word = "beats" if self.beats_random else "does not beat"
        return (
            f"Ablating {own['k']} units ({self.chosen:.2%}{how}) takes suffix accuracy from {own['before']:.2f} to {_interval(own)}; "
            f"{random['k']} random units a site-matched draw leave {_interval(random)} ({random['seeds']} draws). "
            f"Control loss goes from {loss['before']:.2f} to {_interval(loss)} ({loss['change'] / loss['before']:+.1%}). "
            f"At equal damage - {equal.k} random units {reach} - random leaves {equal.accuracy:.2f}, "
            f"{equal.advantage} above the selection: the selection {word} random."
        )

    def table(self) -> pd.DataFrame:
        """The frame at a glance: accuracy, extraction and losses after, by fraction and selection."""
        wide = self.frame.assign(column=self.frame["data"] + " " + self.frame["measure"])
        return wide.pivot_table(index=["fraction", "k", "selection"], columns="column", values="estimate", sort=False)

    def plot(self) -> Figure:
        """Accuracy and extraction of the memorized windows, and control loss, against the fraction ablated."""
        keys = list(zip(self.frame["data"], self.frame["measure"], strict=True))
        points = self.frame[[key in PANELS for key in keys]].copy()
        points["panel"] = [PANELS[key] for key in zip(points["data"], points["measure"], strict=True)]
        points = points.sort_values("panel", key=lambda names: names.map(list(PANELS.values()).index), kind="stable")
        before = {str(name): float(level) for name, level in points.groupby("panel")["before"].first().items()}
        return dose_response(points, "fraction", "selection", "panel", labels={"fraction": "share of units ablated"}, before=before)

    def save(self, folder: str | Path) -> None:
        """Writes `drop.parquet`, `drop.png` and `drop.json` (the verdict and the comparison at equal damage)."""
        place = writable(folder)
        with replaced(place / "drop.parquet") as temporary:
            self.frame.to_parquet(temporary)
        about = {"model": self.model, "verdict": self.verdict, "chosen": self.chosen, "chosen_beforehand": self.fixed}
        with replaced(place / "drop.json") as temporary:
            temporary.write_text(json.dumps(about | {"beats_random": self.beats_random, "equal_damage": asdict(self.equal_damage)}, indent=2))
        save(self.plot(), place / "drop.png")


def _interval(row: pd.Series) -> str:
    return f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
