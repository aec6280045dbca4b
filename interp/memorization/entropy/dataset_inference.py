"""Was a model trained on a data set? Told from the intercept of the entropy law, and from the plain
means that it has to beat: `dataset_inference`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.files import replaced, writable
from interp.memorization.entropy.bags import entropies
from interp.memorization.entropy.level_sets import token_numbers
from interp.memorization.entropy.regression import fit_line
from interp.memorization.entropy.scored_windows import ScoredWindows
from interp.memorization.membership.roc import roc
from interp.reporting.layout import LEVEL, finish, grid_of, name_panel, style
from interp.reporting.plotting import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["member", "not a member", "cannot tell", "like the reference", "unlike it"]

# Each statistic of a set of windows, and whether data that a model was trained on has more of it.
STATISTICS: dict[str, bool] = {"intercept": True, "edit_distance": False, "loss": False}
_NAMES = {
    "intercept": "intercept of the entropy law (bits)",
    "edit_distance": "mean edit distance (tokens)",
    "loss": "mean loss (nats per token)",
}
_ROLES = ("reference", "candidate", "unseen")
_OUTSIDE = 0.05  # of the reference's own sets that lie on the wrong side of the threshold
_SEPARATES = 0.9  # AUC below which known members and known non-members count as not told apart


@dataclass(frozen=True, eq=False)
class DatasetInference:
    """How the candidate compares with data that the model was trained on.

    Attributes:
        sets: one row per `role` ("reference", "candidate" or "unseen") and random set of windows:
            its `intercept`, `edit_distance` and `loss`.
        table: one row per `statistic`: the mean over sets of each role, the `threshold`, the `auc`
            with which sets of the reference are told from those of the candidate, the same for the
            unseen data (`auc_unseen`), and the `verdict`.
        about: settings and counts.
    """

    sets: pd.DataFrame
    table: pd.DataFrame
    about: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        """What the intercept says."""
        return self.table.set_index("statistic").loc["intercept", "verdict"]  # pyright: ignore[reportReturnType]

    def save(self, folder: str | Path) -> None:
        """Writes sets.parquet, statistics.parquet, dataset_inference.json (verdict and settings)
        and dataset_inference.png."""
        place = writable(folder)
        for name, table in {"sets": self.sets, "statistics": self.table}.items():
            with replaced(place / f"{name}.parquet") as temporary:
                table.to_parquet(temporary)
        with replaced(place / "dataset_inference.json") as temporary:
            temporary.write_text(json.dumps({"verdict": self.verdict, **self.about}, indent=2))
        save(self.plot(), place / "dataset_inference.png")

    def plot(self) -> Figure:
        """Draws the three statistics of the sets, with the threshold of each."""
        with style():
            figure, grid = grid_of(len(STATISTICS), 3, width=3.5, height=2.8)
            rows = self.table.set_index("statistic")
            for axes, statistic in zip(grid, STATISTICS, strict=True):
                for role in _ROLES:
                    values: Any = self.sets.loc[self.sets["role"] == role, statistic]
                    if len(values):
                        axes.hist(values.dropna(), bins=20, alpha=0.6, label=role)
                axes.axvline(float(rows.loc[statistic, "threshold"]), label="threshold", **LEVEL)  # pyright: ignore[reportArgumentType]
                axes.set(xlabel=_NAMES[statistic], ylabel="sets")
                name_panel(axes, str(rows.loc[statistic, "verdict"]))
            finish(
                figure,
                grid,
                "Is the candidate like data that the model was trained on?",
                f"bars: random sets of {self.about['windows_per_set']} windows",
            )
        return figure


def dataset_inference(
    reference: ScoredWindows,
    candidate: ScoredWindows,
    unseen: ScoredWindows | None = None,
    *,
    windows_per_set: int = 300,
    sets: int = 60,
    seed: int = 0,
) -> DatasetInference:
    """Compares a data set with one that the model was certainly trained on.

    Random sets of windows are drawn from each. The intercept of the entropy law, H = a + b * score,
    is larger for data that was memorized: only there does text rich in tokens reach a score of 0.
    The threshold is the 5th percentile of the reference's own sets. The mean edit distance and the
    mean loss are judged in the same way, at the 95th percentile: they cost no law, and often tell
    as much.

    A difference between two data sets may come from what they are about. Without `unseen` the
    verdict only says whether the candidate is like the reference. With it, the verdict is "cannot
    tell" wherever the statistic does not tell reference and unseen data apart (AUC below 0.9).

    Source: Huang et al. 2025 (arXiv 2507.06056), whose threshold is not public; this one is ours.

    Args:
        reference: scored windows of data that the model was trained on.
        candidate: scored windows of the data set in question, of the same kind.
        unseen: scored windows of data of the same kind that it was not trained on.
        windows_per_set: windows in a set.
        sets: how many sets are drawn.
        seed: seed of the sets.

    Raises:
        ValueError: windows of different lengths, fewer windows than twice a set, or scores for
            which there is no line.

    Example:
        >>> from interp.memorization.entropy.dataset_inference import dataset_inference
        >>> from interp.memorization.entropy.scored_windows import score_all
        >>> trained_on = score_all(subject, texts[:4], prefix=4, length=8)
        >>> others = score_all(subject, texts[4:], prefix=4, length=8)
        >>> found = dataset_inference(trained_on, others, windows_per_set=6)
        >>> found.table.set_index("statistic").loc["edit_distance", "verdict"]
        'unlike it'
    """
    given = {"reference": reference, "candidate": candidate}
    if unseen is not None:
        given["unseen"] = unseen
    _check(given, windows_per_set, sets)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for role, windows in given.items():
        tokens, types = token_numbers(windows.suffixes)
        for _ in range(sets):
            chosen = rng.choice(len(windows), windows_per_set, replace=False)
            rows.append(
                {
                    "role": role,
                    "intercept": _intercept(windows.scores[chosen], tokens[chosen], types),
                    "edit_distance": float(windows.scores[chosen].mean()),
                    "loss": float(-windows.log_p[chosen].mean() / tokens.shape[1]),
                }
            )
    frame = pd.DataFrame(rows)
    table = pd.DataFrame([_judge(frame, statistic) for statistic in STATISTICS])
    about = {
        "windows_per_set": windows_per_set,
        "sets": sets,
        "seed": seed,
        **{f"{role}_windows": len(windows) for role, windows in given.items()},
    }
    return DatasetInference(frame, table, about)


def _check(given: dict[str, ScoredWindows], windows_per_set: int, sets: int) -> None:
    if windows_per_set < 3 or sets < 2:
        raise ValueError(
            f"windows_per_set={windows_per_set}, sets={sets}: expected at least 3 and 2"
        )
    lengths = {role: windows.suffixes.shape[1] for role, windows in given.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"suffixes have different lengths: {lengths}; score them in the same way")
    for role, windows in given.items():
        # Sets that are nearly all of the windows would hardly differ from one another.
        if len(windows) < 2 * windows_per_set:
            raise ValueError(
                f"{role}: {len(windows)} windows; expected at least {2 * windows_per_set}, twice "
                f"windows_per_set={windows_per_set}: give more text, or smaller sets"
            )


def _intercept(scores: np.ndarray, tokens: np.ndarray, types: int) -> float:
    """The intercept of one set; NaN where its windows have fewer than three levels."""
    levels, of_window = np.unique(scores, return_inverse=True)
    cells = of_window[:, None] * types + tokens
    counts = np.bincount(cells.ravel(), minlength=len(levels) * types).reshape(len(levels), types)
    bits, _ = entropies(counts)
    return fit_line(levels, bits).intercept


def _judge(sets: pd.DataFrame, statistic: str) -> dict[str, Any]:
    """The row of one statistic."""
    members_have_more = STATISTICS[statistic]
    sign = 1.0 if members_have_more else -1.0
    values: dict[str, np.ndarray] = {}
    for role in _ROLES:
        values[role] = sets.loc[sets["role"] == role, statistic].to_numpy()
    row: dict[str, Any] = {"statistic": statistic}
    for role, of_role in values.items():
        row[role] = float(np.mean(of_role)) if len(of_role) else np.nan
    without_line = {role: int(np.isnan(each).sum()) for role, each in values.items()}
    if any(without_line.values()):
        # A model that reproduces everything, or nothing, has hardly any levels.
        row |= {"threshold": np.nan, "auc": np.nan, "auc_unseen": np.nan, "verdict": "cannot tell"}
        row["reason"] = f"sets with fewer than three levels: {without_line}"
        return row
    threshold = float(np.quantile(sign * values["reference"], _OUTSIDE))
    is_like = bool(np.median(sign * values["candidate"]) >= threshold)
    row["threshold"] = sign * threshold
    row["auc"] = _auc(sign, values["reference"], values["candidate"])
    row["auc_unseen"] = np.nan
    row["reason"] = ""
    row["verdict"] = "like the reference" if is_like else "unlike it"
    if len(values["unseen"]):
        row["auc_unseen"] = _auc(sign, values["reference"], values["unseen"])
        row["verdict"] = "member" if is_like else "not a member"
        if row["auc_unseen"] < _SEPARATES:
            row["verdict"] = "cannot tell"
            row["reason"] = "it does not tell the reference from the unseen data"
    return row


def _auc(sign: float, first: np.ndarray, second: np.ndarray) -> float:
    is_first = [True] * len(first) + [False] * len(second)
    return roc(sign * np.concatenate([first, second]), is_first).auc.estimate
