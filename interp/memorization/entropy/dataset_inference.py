"""Was a model trained on a data set? Told from the intercept of the entropy law, and from the plain
means that it has to beat: `dataset_inference`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.files import replaced, writable, write_json
from interp.memorization.entropy.bags import entropies
from interp.memorization.entropy.level_sets import token_numbers
from interp.memorization.entropy.regression import FEWEST_TEXTS, blocks_in_order, fit_line
from interp.memorization.entropy.scored_windows import ScoredWindows
from interp.memorization.membership.roc import roc
from interp.reporting.layout import finish, grid_of, name_panel, style
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
# AUC from which two data sets count as different. Sets hold half of the texts, so that two sets of
# one data set differ as much as two data sets of one kind do: the AUC of such two is anywhere from
# 0 to 1 with the same chance, and is above this for 5% of them.
_DIFFERENT = 0.95
# With fewer texts, sets are made of blocks of windows, which differ less than texts do: two data
# sets of one kind, of 5 texts each, would count as different in 27% of cases.


@dataclass(frozen=True, eq=False)
class DatasetInference:
    """How the candidate compares with data that the model was trained on.

    Attributes:
        sets: one row per `role` ("reference", "candidate" or "unseen") and random set of windows:
            its `intercept`, `edit_distance` and `loss`.
        table: one row per `statistic`: the mean over sets of each role; `auc`, how often a set of
            the reference looks more memorized than one of the candidate; `auc_unseen`, the same
            against the unseen data, and `auc_candidate_unseen`, of the candidate against the unseen
            data; the `verdict`, and the `reason` where it cannot be told.
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
        write_json(place / "dataset_inference.json", {"verdict": self.verdict, **self.about})
        save(self.plot(), place / "dataset_inference.png")

    def plot(self) -> Figure:
        """Draws the three statistics of the sets."""
        with style():
            figure, grid = grid_of(len(STATISTICS), 3, width=3.5, height=2.8)
            verdicts = self.table.set_index("statistic")["verdict"]
            for axes, statistic in zip(grid, STATISTICS, strict=True):
                for role in _ROLES:
                    values: Any = self.sets.loc[self.sets["role"] == role, statistic]
                    if len(values):
                        axes.hist(values.dropna(), bins=20, alpha=0.6, label=role)
                axes.set(xlabel=_NAMES[statistic], ylabel="sets")
                name_panel(axes, str(verdicts[statistic]))
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
    The mean edit distance and the mean loss are compared in the same way: they need no law, and
    often tell as much.

    A set holds windows of random texts that have half of all windows. Sets of windows from all
    texts would differ too little from one another: any two data sets could be told apart by them,
    whatever the model was trained on, because every text has something of its own. For the same
    reason there is no verdict on data with fewer than 20 texts.

    A difference between two data sets may come from what they are about. Without `unseen` the
    verdict only says whether the candidate is like the reference. With it, the candidate is a
    member where it is like the reference and unlike the unseen data, not a member where it is the
    other way round, and "cannot tell" everywhere else.

    Source: Huang et al. 2025 (arXiv 2507.06056), of which only the statistic is public; the sets
    and the rule are ours.

    Args:
        reference: scored windows of data that the model was trained on.
        candidate: scored windows of the data set in question, of the same kind.
        unseen: scored windows of data of the same kind that it was not trained on.
        windows_per_set: windows in a set.
        sets: how many sets are drawn.
        seed: seed of the sets.

    Raises:
        ValueError: windows of different lengths or without a finite log-probability, or too few
            windows.

    Example:
        >>> from interp.memorization.entropy.dataset_inference import dataset_inference
        >>> from interp.memorization.entropy.scored_windows import score_all
        >>> trained_on = score_all(subject, texts[:4], prefix=4, length=8)
        >>> others = score_all(subject, texts[4:], prefix=4, length=8)
        >>> found = dataset_inference(trained_on, others, windows_per_set=6)
        >>> found.table.set_index("statistic")["auc"]["edit_distance"]
        np.float64(1.0)
        >>> found.table["reason"].iloc[1]
        'too few texts (reference 4, candidate 4): a verdict needs at least 20 of each'
    """
    given = {"reference": reference, "candidate": candidate}
    if unseen is not None:
        given["unseen"] = unseen
    _check(given, windows_per_set, sets)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for role, windows in given.items():
        tokens, types = token_numbers(windows.suffixes)
        units = _units(windows.texts)
        for _ in range(sets):
            chosen = _draw(units, windows_per_set, role, rng)
            rows.append(
                {
                    "role": role,
                    "intercept": _intercept(windows.scores[chosen], tokens[chosen], types),
                    "edit_distance": float(windows.scores[chosen].mean()),
                    "loss": float(-windows.log_p[chosen].mean() / tokens.shape[1]),
                }
            )
    frame = pd.DataFrame(rows)
    texts = {role: len(np.unique(windows.texts)) for role, windows in given.items()}
    table = pd.DataFrame([_judge(frame, statistic, texts) for statistic in STATISTICS])
    about = {
        "windows_per_set": windows_per_set,
        "sets": sets,
        "seed": seed,
        **{f"{role}_windows": len(windows) for role, windows in given.items()},
        **{f"{role}_texts": number for role, number in texts.items()},
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
        infinite = int((~np.isfinite(windows.log_p)).sum())
        if infinite:
            raise ValueError(
                f"{role}: {infinite} of {len(windows)} windows have no finite log-probability, so "
                "that there is no mean loss: leave out texts with tokens that the model never "
                "generates"
            )


def _units(texts: np.ndarray) -> list[np.ndarray]:
    """The numbers of the windows of each text; where there are few texts, of blocks of windows that
    follow each other."""
    numbers, unit_of = np.unique(texts, return_inverse=True)
    if len(numbers) < FEWEST_TEXTS:
        unit_of = blocks_in_order(texts, FEWEST_TEXTS)
    order = np.argsort(unit_of, kind="stable")
    starts = np.flatnonzero(np.diff(unit_of[order])) + 1
    return np.split(order, starts)


def _draw(
    units: list[np.ndarray], windows_per_set: int, role: str, rng: np.random.Generator
) -> np.ndarray:
    """A random set of windows from units that are drawn until they hold half of the windows."""
    total = sum(map(len, units))
    if total < 2 * windows_per_set:
        raise ValueError(
            f"{role}: {total} windows; expected at least {2 * windows_per_set}, twice "
            f"windows_per_set={windows_per_set}: give more text, or smaller sets"
        )
    drawn: list[np.ndarray] = []
    held = 0
    for number in rng.permutation(len(units)):
        drawn.append(units[number])
        held += len(units[number])
        if 2 * held >= total:
            break
    # Half of all windows is enough for a set, since there are at least two sets' worth.
    return rng.choice(np.concatenate(drawn), windows_per_set, replace=False)


def _intercept(scores: np.ndarray, tokens: np.ndarray, types: int) -> float:
    """The intercept of one set; NaN where its windows have fewer than three levels."""
    levels, of_window = np.unique(scores, return_inverse=True)
    # [windows, length]: a number for each pair of level and token, so that one count gives the
    # bags of all levels.
    cells = of_window[:, None] * types + tokens
    counts = np.bincount(cells.ravel(), minlength=len(levels) * types).reshape(len(levels), types)
    bits, _ = entropies(counts)
    return fit_line(levels, bits).intercept


def _judge(sets: pd.DataFrame, statistic: str, texts: dict[str, int]) -> dict[str, Any]:
    """The row of one statistic, given how many texts each role has."""
    members_have_more = STATISTICS[statistic]
    # `roc` expects a score that is higher for members.
    sign = 1.0 if members_have_more else -1.0
    values: dict[str, np.ndarray] = {}
    for role in _ROLES:
        values[role] = sets.loc[sets["role"] == role, statistic].to_numpy()
    row: dict[str, Any] = {"statistic": statistic}
    for role, of_role in values.items():
        row[role] = float(np.mean(of_role)) if len(of_role) else np.nan
    row |= {"auc": np.nan, "auc_unseen": np.nan, "auc_candidate_unseen": np.nan, "reason": ""}
    without_line = {role: int(np.isnan(each).sum()) for role, each in values.items()}
    if any(without_line.values()):
        # A model that reproduces everything, or nothing, has hardly any levels.
        row["verdict"] = "cannot tell"
        row["reason"] = f"sets with fewer than three levels: {without_line}"
        return row
    row["auc"] = _auc(sign, values["reference"], values["candidate"])
    if len(values["unseen"]):
        row["auc_unseen"] = _auc(sign, values["reference"], values["unseen"])
        row["auc_candidate_unseen"] = _auc(sign, values["candidate"], values["unseen"])
    if min(texts.values()) < FEWEST_TEXTS:
        row["verdict"] = "cannot tell"
        counted = ", ".join(f"{role} {number}" for role, number in texts.items())
        row["reason"] = (
            f"too few texts ({counted}): a verdict needs at least {FEWEST_TEXTS} of each"
        )
        return row
    is_like_reference = row["auc"] < _DIFFERENT
    if not len(values["unseen"]):
        row["verdict"] = "like the reference" if is_like_reference else "unlike it"
        return row
    is_like_unseen = row["auc_candidate_unseen"] < _DIFFERENT
    if row["auc_unseen"] < _DIFFERENT:
        row["verdict"] = "cannot tell"
        row["reason"] = "it does not tell the reference from the unseen data"
    elif is_like_reference == is_like_unseen:
        row["verdict"] = "cannot tell"
        between = "like both" if is_like_reference else "between the two"
        row["reason"] = f"the candidate is {between}"
    else:
        row["verdict"] = "member" if is_like_reference else "not a member"
    return row


def _auc(sign: float, first: np.ndarray, second: np.ndarray) -> float:
    is_first = [True] * len(first) + [False] * len(second)
    return roc(sign * np.concatenate([first, second]), is_first).auc.estimate
