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
from interp.reporting.plotting import dose_response, save
from interp.reporting.stats import Interval, bootstrap, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    ("memorized", "accuracy"): "suffix accuracy, memorized",
    ("memorized", "exact"): "extracted exactly",
    ("control", "loss"): "control loss (nats/token)",
}


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
        reached: whether any number of random units hurt as much; if not, these are the most that
        were tried.
        accuracy: mean suffix accuracy of the memorized windows under them.
        advantage: accuracy under random minus accuracy under the selection, paired by window: above
        0 the selection removes more.
    """

    k: int
    reached: bool
    accuracy: float
    advantage: Interval


def tabulated(measured: pd.DataFrame, trials: Sequence[Ablation]) -> pd.DataFrame:
    """One row for each selection, fraction, data set and measure, with intervals over windows;
    draws of a control are averaged first.

    `measured` is what `effects` gave for no plan and then each of the trials.
    """
    key = ["selection", "fraction", "k"]
    about = pd.DataFrame(
        [(n, t.selection, t.fraction, t.k) for n, t in enumerate(trials, start=1)],
        columns=["plan", *key],
    )
    before: Any = measured[measured["plan"] == 0].set_index(["data", "window"])
    groups: Any = measured.merge(about, on="plan").groupby([*key, "data"], sort=False)
    rows: list[dict[str, Any]] = []
    for (*trial, data), group in groups:
        means = group.groupby("window")[list(MEASURES)].mean()
        base = before.loc[data].loc[means.index]
        about_group = dict(zip(key, trial, strict=True)) | {"data": data}
        counts = {"windows": len(means), "seeds": group["plan"].nunique()}
        rows += [
            about_group | {"measure": m} | _before_and_after(base[m], means[m]) | counts
            for m in MEASURES
        ]
    return pd.DataFrame(rows)


def _before_and_after(before: Any, after: Any) -> dict[str, float]:
    """Means over windows, with the intervals of the mean after and of the mean change."""
    mean, change = bootstrap(after), paired(after, before)
    levels = {
        "before": float(before.mean()),
        "estimate": mean.estimate,
        "low": mean.low,
        "high": mean.high,
    }
    return levels | {
        "change": change.estimate,
        "change_low": change.low,
        "change_high": change.high,
    }


@dataclass(frozen=True, eq=False)
class DropReport:
    """What ablating a selection did, beside its controls.

    Attributes:
        frame: one row for each `selection` (selection, random, lowest), `fraction`, `data`
            (memorized, control, held_out) and `measure` (exact, accuracy, similarity, loss in nats
            a token): `before`, after (`estimate`, `low`, `high`), `change` and its interval,
            `windows`, `seeds`.
        chosen: the fraction that the verdict is about.
        fixed: whether it was chosen beforehand, not on the windows that judge it.
        equal_damage: the comparison with random units that hurt as much.
        model: its name.
    """

    frame: pd.DataFrame
    chosen: float
    fixed: bool
    equal_damage: EqualDamage
    model: str

    def row(self, selection: str, data: str, measure: str) -> pd.Series:
        """The row of the frame at the chosen fraction. Raises LookupError when there is none, as
        for `lowest` of units."""
        f: Any = self.frame
        found = f[
            (f["selection"] == selection)
            & (f["fraction"] == self.chosen)
            & (f["data"] == data)
            & (f["measure"] == measure)
        ]
        if found.empty:
            raise LookupError(
                f"no row for {selection}, {data}, {measure}; there are {sorted(set(f['selection']))} of {sorted(set(f['data']))}"
            )
        return found.iloc[0]

    @property
    def beats_random(self) -> bool:
        """Whether the selection lowers accuracy more than random units that hurt as much: the
        interval of the difference lies above 0.

        Never where no number of random units hurt as much: then nothing was compared at equal
        damage.
        """
        return self.equal_damage.reached and self.equal_damage.advantage.low > 0

    @property
    def verdict(self) -> str:
        """What was found, in a few sentences, with its intervals."""
        own: Any = self.row("selection", "memorized", "accuracy")
        random: Any = self.row("random", "memorized", "accuracy")
        loss, equal = self.row("selection", "control", "loss"), self.equal_damage
        how = "" if self.fixed else ", chosen on these windows"
        reach = (
            "which hurt held-out text as much"
            if equal.reached
            else "the most there are, which still hurt held-out text less"
        )
        word = "beats" if self.beats_random else "does not beat"
        as_many = (
            "as many at each site"
            if int(random["k"]) == int(own["k"])
            else "all that these sites have left"
        )
        return (
            f"Ablating {own['k']} units ({self.chosen:.2%}{how}) takes suffix accuracy from {own['before']:.2f} to {_interval(own)}; "
            f"{random['k']} random units, {as_many}, leave {_interval(random)} ({random['seeds']} draws). "
            f"Control loss goes from {loss['before']:.2f} to {_interval(loss)} ({loss['change'] / loss['before']:+.1%}). "
            f"At equal damage - {equal.k} random units, {reach} - random leaves {equal.accuracy:.2f}, "
            f"{equal.advantage} above the selection: the selection {word} random."
        )

    def table(self) -> pd.DataFrame:
        """The frame at a glance: accuracy, extraction and losses after, by fraction and selection."""
        wide = self.frame.assign(column=self.frame["data"] + " " + self.frame["measure"])
        return wide.pivot_table(
            index=["fraction", "k", "selection"], columns="column", values="estimate", sort=False
        )

    def plot(self) -> Figure:
        """Accuracy and extraction of the memorized windows, and control loss, against the fraction
        ablated."""
        return drop_figure(self.frame, PANELS)

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
        }
        with replaced(place / "drop.json") as temporary:
            result = {"beats_random": self.beats_random, "equal_damage": asdict(self.equal_damage)}
            temporary.write_text(json.dumps(about | result, indent=2))
        save(self.plot(), place / "drop.png")


def _interval(row: pd.Series) -> str:
    return f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def drop_figure(
    frame: pd.DataFrame,
    panels: Mapping[tuple[str, str], str],
    scales: Mapping[str, str] | None = None,
) -> Figure:
    """A panel for each (data, measure) that `panels` names, against the fraction ablated; rows as
    in `DropReport.frame`."""
    keys = list(zip(frame["data"], frame["measure"], strict=True))
    parts: list[Any] = [
        frame[[key == panel for key in keys]].assign(panel=name) for panel, name in panels.items()
    ]
    before = {str(part["panel"].iloc[0]): float(part["before"].iloc[0]) for part in parts}
    labels = {"fraction": "share of units ablated"}
    return dose_response(
        pd.concat(parts),
        "fraction",
        "selection",
        "panel",
        labels=labels,
        before=before,
        scales=scales or {},
    )
