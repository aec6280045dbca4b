"""The report of a removal: a tidy table, a figure, and a verdict in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.files import replaced, writable, write_json
from interp.reporting.layout import LEVEL, finish, name_panel, new_figure, style
from interp.reporting.looks import in_percent, looks
from interp.reporting.plotting import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Measures of which each file, or each secret in it, has or has not.
SHARES = ("exact", "discoverable", "parsed")

# How the rows of the figure, and the verdict, name what is measured.
_NAMES = {
    ("forget", "ma"): "MA",
    ("forget", "exact"): "extracted exactly",
    ("forget", "discoverable"): "discoverable",
    ("twins", "ma"): "MA of never-seen twins",
    ("twins", "exact"): "never-seen twins, extracted exactly",
    ("context", "accuracy"): "accuracy around the secrets",
    ("retain", "ma"): "MA of retained data",
    ("memorized", "ma"): "MA of other memorized data",
    ("others", "ma"): "MA of other secrets",
    ("held_out", "perplexity"): "held-out perplexity",
    ("completions", "parsed"): "completed code that can be parsed",
    ("forget and twins", "auc"): "membership AUC against twins",
    ("forget", "depth"): "depth",
}
_MODELS = ("before", "after", "control")
_RELEARNED = (
    "forget, trained on",
    "forget, not trained on",
    "never seen, trained on",
    "never seen, not trained on",
)


@dataclass(frozen=True, eq=False)
class RemovalReport:
    """Whether something was removed from a model, what that cost, and whether it comes back.

    Attributes:
        frame: one row per `group` (forgetting, damage, membership, rounding, relearning, depth),
            `data`, `measure`, `at` (optimizer steps of relearning, or bits of rounding; else 0) and
            `model` (before, after, control): its `estimate` with the 95% interval `low` to `high`,
            and its `change` from before, file by file, with `change_low` and `change_high`.
            `files` is how many files of that row's data the interval is over: of two sets that
            are not paired, those of the smaller one; of completed code, those that can be parsed
            themselves; of a depth, what it was given with. A bootstrap over fewer than 10 files is
            too short.
        thresholds: the level of `ma` and of each `el_<n>` at which the forget set counts as
            forgotten.
        source: what the thresholds come from.
        tolerance: the change that does not count: see `removal_report`.
        about: the model's name, the number of files, how it was relearned and what that is
            compared with.
    """

    frame: pd.DataFrame
    thresholds: Mapping[str, float]
    source: str
    tolerance: float = 0.05
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def row(
        self, group: str, data: str, measure: str, at: int = 0, model: str = "after"
    ) -> pd.Series:
        """Returns one row of the frame.

        Args:
            group, data, measure, at, model: as in the frame.

        Raises:
            LookupError: there is no such row.
        """
        found = self._rows(group=group, data=data, measure=measure, at=at, model=model)
        if found.empty:
            there = self.frame[["group", "data", "measure"]].drop_duplicates()
            known = "; ".join(" ".join(each) for each in there.to_numpy().tolist())
            raise LookupError(
                f"no row for {group} {data} {measure}, at {at}, {model}; there are {known}"
            )
        return found.iloc[0]

    @property
    def above(self) -> dict[str, float]:
        """The levels of the forget set that are still above their thresholds."""
        return self._above("after")

    @property
    def forgotten(self) -> bool:
        """Whether no measure of the forget set is above its threshold."""
        return not self.above

    @property
    def beats_control(self) -> bool | None:
        """Whether less of the forget set is recited than after the control's removal, beyond the
        interval; None without a control."""
        difference = self._rows(data="after minus control", measure="ma")
        return None if difference.empty else bool(difference["high"].iloc[0] < 0)

    @property
    def damage(self) -> pd.DataFrame:
        """The rows of what was damaged: shares that fell, or perplexity that rose, by more than the
        tolerance."""
        rows = self._rows(group="damage", model="after")
        fall = -rows["change"]
        # Perplexity has no upper end: its rise is a fraction of what it was.
        relative_rise = rows["change"] / self._before_damage(rows)
        is_perplexity = rows["measure"] == "perplexity"
        loss = fall.where(~is_perplexity, relative_rise)
        return rows[loss > self.tolerance]

    @property
    def returned(self) -> pd.DataFrame:
        """The rows in which the forget set comes back: relearning or rounding of the weights takes
        its MA above the threshold. For relearning it must also be above that of never-seen data, by
        more than the tolerance and beyond the interval. Empty without a threshold of MA."""
        # What is still above its threshold cannot come back, and no MA is above 1.
        limit = 1.0 if "ma" in self.above else self.thresholds.get("ma", 1.0)
        rounded = self._rows(group="rounding", measure="ma", model="after")
        found = [rounded[rounded["estimate"] > limit]]
        relearned = self._rows(group="relearning", model="after")
        for part in ("trained on", "not trained on"):
            level = relearned[relearned["data"] == f"forget, {part}"].set_index("at")["estimate"]
            advantage = relearned[relearned["data"] == f"forget minus never seen, {part}"]
            # As an array, because `level` is indexed by steps and `advantage` by rows of the frame.
            is_back = (level.loc[advantage["at"]] > limit).to_numpy()
            # Step 0 is before any relearning, so that nothing can have come back by it.
            is_trained = advantage["at"] > 0
            found.append(advantage[is_back & is_trained & (advantage["low"] > self.tolerance)])
        return pd.concat(found)

    @property
    def leaves_trace(self) -> bool:
        """Whether what was removed can be told from what was never seen, beyond the interval: it is
        still more likely, or it was made less likely. False without twins."""
        rows = self._rows(group="membership", model="after")
        return bool(((rows["low"] > 0.5) | (rows["high"] < 0.5)).any())

    @property
    def outcome(self) -> str:
        """The verdict in a word or two, the worst that is true: "nothing to remove", "failed", "no
        better than its control", "comes back", "leaves a trace", "costly" or "removed"."""
        if not self._above("before"):
            return "nothing to remove"
        if not self.forgotten:
            return "failed"
        if self.beats_control is False:
            return "no better than its control"
        if not self.returned.empty:
            return "comes back"
        if self.leaves_trace:
            return "leaves a trace"
        return "removed" if self.damage.empty else "costly"

    @property
    def verdict(self) -> str:
        """What was found, in one sentence, with its intervals."""
        beginnings = {
            "nothing to remove": "The removal cannot be judged, because there was nothing to "
            "remove",
            "failed": "The removal failed",
            "no better than its control": "The removal is no better than its control",
            "comes back": "The removal only hides what it removes",
            "leaves a trace": "The removal leaves a trace",
            "costly": "The removal worked, and did damage",
            "removed": "The removal worked",
        }
        clauses = [
            *self._on_forgetting(),
            *self._on_control(),
            *self._on_return(),
            *self._on_membership(),
            *self._on_depth(),
            *self._on_damage(),
        ]
        return f"{beginnings[self.outcome]}: {'; '.join(clauses)}."

    def table(self) -> pd.DataFrame:
        """Returns the frame at a glance: one row per group, data, measure and number of steps or
        bits, one column per model."""
        wide: Any = self.frame.pivot_table(
            index=["group", "data", "measure", "at"],
            columns="model",
            values="estimate",
            sort=False,
        )
        models = [name for name in _MODELS if name in wide]
        return wide[models].rename_axis(columns=None)

    def plot(self) -> Figure:
        """Draws every share before and after, held-out perplexity, and what is relearned by the
        number of steps."""
        return _figure(self)

    def save(self, folder: str | Path) -> None:
        """Writes `removal.parquet`, `removal.png` and `removal.json` (the verdict, the thresholds
        and what they come from)."""
        place = writable(folder)
        with replaced(place / "removal.parquet") as temporary:
            self.frame.to_parquet(temporary)
        write_json(
            place / "removal.json",
            {
                **self.about,
                "verdict": self.verdict,
                "outcome": self.outcome,
                "forgotten": self.forgotten,
                "thresholds": dict(self.thresholds),
                "thresholds from": self.source,
                "tolerance": self.tolerance,
            },
        )
        save(self.plot(), place / "removal.png")

    def _rows(self, **wanted: Any) -> Any:
        """The rows of the frame with these values."""
        chosen = np.ones(len(self.frame), dtype=bool)
        for column, value in wanted.items():
            chosen &= (self.frame[column] == value).to_numpy()
        return self.frame[chosen]

    def _before_damage(self, rows: Any) -> Any:
        """The estimate of the same measures before."""
        # Not "estimate - change", which is NaN for a perplexity that became infinite: such a model,
        # the most damaged of all, would count as not damaged.
        found: list[float] = []
        for _, row in rows.iterrows():
            before: Any = self.row("damage", row["data"], row["measure"], model="before")
            found.append(float(before["estimate"]))
        return pd.Series(found, index=rows.index, dtype=float)

    def _above(self, model: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, most in self.thresholds.items():
            row: Any = self.row("forgetting", "forget", name, model=model)
            level = float(row["estimate"])
            # Not "level > most", which is false for NaN.
            if not level <= most:
                found[name] = level
        return found

    def _on_forgetting(self) -> list[str]:
        # Of what is forgotten MA says enough; of what is not, everything that shows it.
        shown = [name for name in self.thresholds if name == "ma" or name in self.above]
        clauses: list[str] = []
        # With no threshold of MA, and nothing above, the first measure stands for all.
        for name in shown or list(self.thresholds)[:1]:
            before: Any = self.row("forgetting", "forget", name, model="before")["estimate"]
            after: Any = self.row("forgetting", "forget", name)
            relation = "above" if name in self.above else "at most"
            limit = f"{self.thresholds[name]:.2f}"
            files = "1 file" if after["files"] == 1 else f"{after['files']} files"
            source = "as given" if self.source == "given" else f"that of {self.source}"
            clauses.append(
                f"{_name_of(after)} of the forget set ({files}) goes from "
                f"{before:.2f} to {_shown(after)}, {relation} {limit} ({source})"
            )
        return clauses

    def _on_control(self) -> list[str]:
        if self.beats_control is None:
            return []
        difference = self.row("forgetting", "after minus control", "ma")
        relation = "less" if self.beats_control else "not less"
        return [
            f"it recites {relation} than after the control's (a difference of {_shown(difference)})"
        ]

    def _on_return(self) -> list[str]:
        if not self.forgotten:
            return []  # what is still there cannot come back
        if self.thresholds.get("ma", 1.0) >= 1:
            # An MA that may be anything is never too high: that none was would be no evidence.
            return self._on_untested_return()
        tested: list[str] = []
        relearned = self._rows(group="relearning", model="after")
        # Step 0 is before any relearning and shows nothing.
        relearned = relearned[relearned["at"] > 0]
        if not relearned.empty:
            tested.append(f"in {relearned['at'].max()} steps of relearning")
        # Only of bits to which the model before can be rounded and still recite: where rounding
        # alone destroys what was memorized, nothing could come back.
        rounded = self._rows(group="rounding", measure="ma", model="before")
        rounded = rounded[rounded["estimate"] > self.thresholds["ma"]]
        if not rounded.empty:
            tested.append(f"in weights rounded to {rounded['at'].min()} bits")
        if not tested:
            return []
        if self.returned.empty:
            return [f"there is no sign that it comes back {' or '.join(tested)}"]

        clauses: list[str] = []
        came_back: Any = self.returned
        # Fewest steps first; at the same number the files trained on, which `returned` has first.
        advantages: Any = came_back[came_back["group"] == "relearning"].sort_values(
            "at", kind="stable"
        )
        if len(advantages):
            first = advantages.iloc[0]
            part = "trained on" if first["data"].endswith(", trained on") else "not trained on"
            clauses.append(
                f"after {first['at']} steps of relearning its MA on files {part} is "
                f"{_shown(first)} above that of {self.about['relearning compared with']}"
            )
        for _, row in came_back[came_back["group"] == "rounding"].iterrows():
            clauses.append(f"in weights rounded to {row['at']} bits its MA is {_shown(row)}")
        return clauses

    def _on_untested_return(self) -> list[str]:
        tests: Any = self.frame["group"].isin(["relearning", "rounding"])
        if not tests.any():
            return []
        return ["whether it comes back was not judged, because MA has no threshold below 1"]

    def _on_membership(self) -> list[str]:
        rows = self._rows(group="membership", model="after")
        if rows.empty:
            return []
        row = rows.iloc[0]
        auc = f"AUC {_shown(row)}"
        if row["low"] > 0.5:
            return [f"its secrets are still more likely than never-seen ones ({auc})"]
        if row["high"] < 0.5:
            return [f"its secrets stand out as less likely than never-seen ones ({auc})"]
        return [f"its secrets cannot be told from never-seen ones ({auc})"]

    def _on_depth(self) -> list[str]:
        rows = self._rows(group="depth", model="after")
        return [] if rows.empty else [f"its depth is {_shown(rows.iloc[0])} of 1"]

    def _on_damage(self) -> list[str]:
        measured = self._rows(group="damage", model="after")
        if measured.empty:
            return ["its damage was not measured"]
        damage: Any = self.damage
        if damage.empty:
            return [f"no measure of damage is worse by more than {in_percent(self.tolerance)}"]
        parts: list[str] = []
        for (_, row), before in zip(damage.iterrows(), self._before_damage(damage), strict=True):
            parts.append(f"{_name_of(row)} from {before:.2f} to {_shown(row)}")
        return [f"it changes {', '.join(parts)}"]


def _name_of(row: Any) -> str:
    """What is measured, in words."""
    measure = str(row["measure"])
    name = _NAMES.get((str(row["data"]), measure))
    if name is None:
        name = measure.replace("el_", "EL ")
    return f"{name}, {row['at']} bits" if row["group"] == "rounding" else name


def _shown(row: Any) -> str:
    # The interval of a single file has no width, which would look like certainty.
    if row["files"] == 1:
        return f"{row['estimate']:.2f} (1 file, so no interval)"
    return f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _figure(report: RemovalReport) -> Figure:
    frame: Any = report.frame
    is_perplexity = frame["measure"] == "perplexity"
    is_relearned = frame["group"] == "relearning"
    is_difference = frame["data"] == "after minus control"
    # A difference of shares may be below 0, where the axis of shares does not reach.
    shares = frame[~is_perplexity & ~is_relearned & ~is_difference]
    perplexity = frame[is_perplexity]
    relearned = frame[is_relearned & (frame["model"] == "after")]

    names = list(dict.fromkeys(_name_of(row) for _, row in shares.iterrows()))
    models = [name for name in _MODELS if name in set(frame["model"])]
    curves = [name for name in _RELEARNED if name in set(relearned["data"])]
    look_of = looks([*models, *curves])
    below = [part for part in (perplexity, relearned) if len(part)]
    with style():
        height = 0.3 * len(names) + 1.6
        figure = new_figure(8.0, height + (3.2 if below else 0.0))
        if below:
            # One wide panel above; below, one for each of perplexity and relearning that is there.
            parts: Any = figure.add_gridspec(2, len(below), height_ratios=[height, 2.8])
            top = figure.add_subplot(parts[0, :])
            others = [figure.add_subplot(parts[1, number]) for number in range(len(below))]
        else:
            top = figure.subplots()
            others = []
        _draw_models(top, shares, names, models, look_of)
        limit = report.thresholds.get("ma")
        if limit is not None:
            _draw_limit(top, limit, names)
        top.set(xlabel="share, AUC or depth", ylabel="measure", xlim=(-0.03, 1.03))
        free = iter(others)
        if len(perplexity):
            axes = next(free)
            _draw_models(axes, perplexity, ["held-out perplexity"], models, look_of)
            axes.set(xlabel="perplexity", ylabel="held-out text", yticklabels=[""])
        if len(relearned):
            axes = next(free)
            _draw_relearned(axes, relearned, curves, look_of)
            if limit is not None:
                axes.axhline(limit, label="threshold of MA", **LEVEL)
        finish(
            figure,
            [top, *others],
            "What is left of the forget set after its removal, and of everything else",
            "points: means over files; lines through them: 95% intervals",
        )
    return figure


def _draw_models(
    axes: Axes, rows: Any, names: list[str], models: list[str], look_of: Mapping[str, Any]
) -> None:
    """One line per name, with a point per model."""
    for number, model in enumerate(models):
        own = rows[rows["model"] == model]
        # A little above each other, so that equal values do not hide one another.
        aside = 0.22 * (number - (len(models) - 1) / 2)
        places = [names.index(_name_of(row)) + aside for _, row in own.iterrows()]
        look = look_of[model]
        axes.hlines(places, own["low"], own["high"], color=look.colour, linewidth=1.2)
        axes.plot(
            own["estimate"],
            places,
            look.marker,
            color=look.colour,
            markersize=5,
            label=look.words,
        )
    # The axis is turned round, so that the first name is at the top.
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))


def _draw_limit(axes: Axes, limit: float, names: list[str]) -> None:
    """The threshold, at the rows that it is about."""
    for row, name in enumerate(names):
        is_of_forget_set = name == "MA" or name.startswith("MA, ")
        if is_of_forget_set:
            bottom = row - 0.45
            top = row + 0.45
            axes.plot([limit, limit], [bottom, top], label="threshold of MA", **LEVEL)


def _draw_relearned(axes: Axes, rows: Any, curves: list[str], look_of: Mapping[str, Any]) -> None:
    for curve in curves:
        own = rows[rows["data"] == curve].sort_values("at")
        look = look_of[curve]
        axes.plot(own["at"], own["estimate"], color=look.colour, marker=look.marker, label=curve)
        axes.vlines(own["at"], own["low"], own["high"], color=look.colour, linewidth=1)
    axes.set(
        xlabel="optimizer steps of relearning",
        ylabel="MA",
        ylim=(-0.03, 1.03),
        xticks=sorted(set(rows["at"])),
    )
    name_panel(axes, "relearning on every second file")
