"""Robustness: how a policy does when its scene or its instruction changes, and whether it fails
because it repeats what it was trained on.

A policy may fail under a perturbation for many reasons. Memorization leaves a sign of its own, the
*trap*: the hand goes where the target was in training, or the policy completes the task that it was
trained on in that scene although another one was asked for. A failure counts as memorized only if
most failures are traps, and if a control policy that was trained on decorrelated scenes does better
under the same perturbation, with fewer traps. Without that control the perturbation may be
impossible.

Everything is computed from a table with one row per episode, see `robustness`. Episodes are paired
over arms: the same regime, task, seed and initial state, once in the clean scene and once in a
perturbed one.

Sources: Zhou et al. 2025, LIBERO-PRO (arXiv 2510.03827) for the perturbations; Wilson 1927 and
McNemar 1947, both as in scipy.stats, for intervals and tests; Sakoe & Chiba 1978 for the path
deviation.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from interp.errors import closest
from interp.files import replaced, writable, write_json
from interp.reporting.layout import LEVEL, finish, grid_of, name_panel, style
from interp.reporting.looks import in_words, looks
from interp.reporting.plotting import save
from interp.reporting.stats import Interval, bootstrap, clustered_interval, paired_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = "clean"
ALL = "all"  # the task of rows that are about all tasks together

# Measures that each episode has or has not; the others are means of numbers.
RATES = ("success", "old_goal", "old_place", "trap", "trap_of_failures")
MEASURES = (*RATES, "text_sensitivity", "path_deviation")

_REQUIRED = ("task", "perturbation", "seed", "initial_state", "success", "old_goal", "valid")
_PAIR = ["regime", "task", "seed", "initial_state"]
_PAIR_COLUMNS = [
    "regime",
    "perturbation",
    "task",
    "pairs",
    "clean",
    "perturbed",
    "change",
    "low",
    "high",
    "lost",
    "gained",
    "p",
]
_ONLY_REGIME = "policy"  # its name where the table has no column `regime`
_SIGNIFICANT = 0.05
_SHOWN = {
    "success": "success",
    "old_goal": "original goal reached",
    "old_place": "training place reached",
    "trap": "trap",
}
# How the verdict words what `RobustnessReport.outcome` returns, in this order.
_SAID = {
    "memorized": "repeats what it was trained on under",
    "trapped": "is trapped, which no control shows to be memorization, under",
    "fails": "fails for other or unknown reasons under",
    "unclear": "falls, though not beyond chance, under",
    "holds": "holds under",
    "ignores the change": "ignores the change under",
    "reacts": "reacts to",
    "no valid episodes": "has no valid pair of episodes under",
}


@dataclass(frozen=True)
class Perturbation:
    """What a perturbation changes, and with it which signs of memorization it can show.

    Attributes:
        moves_target: the target is not where it was in training.
        changes_goal: success is judged by another goal, so that reaching the old one is a mistake.
        changes_text: the policy is given another instruction than in training.
        success_wanted: whether a good policy succeeds. It is False where success means that the
            change was ignored, as with an instruction that means nothing.

    Example:
        >>> from interp.memorization.robustness import PERTURBATIONS
        >>> PERTURBATIONS["swap"].shows_traps, PERTURBATIONS["semantic"].shows_traps
        (True, False)
    """

    moves_target: bool = False
    changes_goal: bool = False
    changes_text: bool = False
    success_wanted: bool = True

    @property
    def shows_traps(self) -> bool:
        """Whether going to the training place differs from going to the target. Where neither the
        target nor the goal has changed, the right place and the training place are the same."""
        return self.moves_target or self.changes_goal


# The five dimensions of LIBERO-PRO (object, swap, semantic, task, environment), its graded shift of
# the target, and four that it shows as examples: a corrupted instruction, the instruction of
# another task, an item never seen in training in the place of the target, and two trained tasks in
# one instruction ("composition"; "sequence" asks for the same two one after the other). Another
# task's instruction in a scene that allows its goal is "task" if success is judged by that goal.
PERTURBATIONS: Mapping[str, Perturbation] = {
    CLEAN: Perturbation(),
    "object": Perturbation(),
    "swap": Perturbation(moves_target=True),
    "shift": Perturbation(moves_target=True),
    "semantic": Perturbation(changes_text=True),
    "task": Perturbation(changes_goal=True, changes_text=True),
    "environment": Perturbation(),
    "corrupted": Perturbation(changes_text=True, success_wanted=False),
    "other_task": Perturbation(changes_text=True, success_wanted=False),
    "unseen": Perturbation(success_wanted=False),
    "composition": Perturbation(changes_text=True),
    "sequence": Perturbation(changes_text=True),
}


def wilson_interval(count: int, n: int, *, level: float = 0.95) -> Interval:
    """Returns a share of n episodes with its Wilson interval.

    Source: Wilson (1927), as in scipy.stats.binomtest.

    Args:
        count: how many episodes count, 0 to n.
        n: how many there are, at least 1.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: no episodes, a count outside 0 to n, or a level outside (0, 1).

    Example:
        >>> from interp.memorization.robustness import wilson_interval
        >>> print(wilson_interval(39, 40))
        0.97 [0.87, 1.00]
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"{count} of {n} episodes: expected 0 to n of at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.95, got {level}")
    found = binomtest(count, n).proportion_ci(level, method="wilson")
    # Where all episodes or none count, an end of the interval is the share itself, but for
    # rounding.
    share = count / n
    return Interval(share, min(found.low, share), max(found.high, share), n)


def mcnemar(
    clean: Bool[np.ndarray, " pairs"] | ArrayLike, perturbed: Bool[np.ndarray, " pairs"] | ArrayLike
) -> float:
    """Returns the two-sided p-value of McNemar's exact test: whether success is as likely in both
    arms of paired episodes.

    Only pairs with different outcomes count; if both arms are alike, either one is the successful
    one with probability 1/2. Without such a pair the p-value is 1.

    Source: McNemar (1947) in its exact form, the binomial test of the discordant pairs, as in
    scipy.stats.binomtest.

    Args:
        clean: [pairs] whether the episode in the clean scene succeeded.
        perturbed: [pairs] whether the one that is paired with it did.

    Raises:
        ValueError: different numbers of episodes.

    Example:
        >>> from interp.memorization.robustness import mcnemar
        >>> mcnemar([True, True, True, True, True, True], [False, False, False, False, False, True])
        0.0625
    """
    from scipy.stats import binomtest

    before = np.asarray(clean, dtype=bool)
    after = np.asarray(perturbed, dtype=bool)
    if before.shape != after.shape:
        raise ValueError(
            f"clean and perturbed are pairs and need the same length, got {before.size} and "
            f"{after.size}"
        )
    lost = int((before & ~after).sum())
    gained = int((~before & after).sum())
    if lost + gained == 0:
        return 1.0
    return float(binomtest(lost, lost + gained, 0.5).pvalue)


def path_deviation(
    path: Float[np.ndarray, "time axes"] | ArrayLike,
    other: Float[np.ndarray, "other_time axes"] | ArrayLike,
) -> float:
    """Returns the mean distance between two paths of the hand, aligned in time.

    It is the time-normalized distance of dynamic time warping, in its symmetric form: with d(i, j)
    the distance between point i of one path and point j of the other,

        g(i, j) = min(g(i-1, j) + d(i, j), g(i-1, j-1) + 2 d(i, j), g(i, j-1) + d(i, j)),

    the deviation is g(n, m) / (n + m). An episode that fails runs to its limit, often with a hand
    that waits: waiting on the way costs nothing here, whereas paths compared at equal shares of
    their duration would appear to differ.

    Source: Sakoe & Chiba (1978), equations 18 to 20, without a slope constraint or a window.

    Args:
        path: [time, axes] positions of the hand, finite, in metres or any other unit.
        other: [other_time, axes] those of the other episode, in the same unit.

    Returns:
        The deviation in the unit of the paths, at least 0.

    Raises:
        ValueError: a path without points, points with different numbers of axes, or a number that
            is not finite.

    Example:
        >>> from interp.memorization.robustness import path_deviation
        >>> straight = np.array([[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]])
        >>> path_deviation(straight, straight + [0.0, 0.25])
        0.25
        >>> path_deviation(straight, straight[[0, 1, 1, 1, 2]])  # it waits on the way
        0.0
    """
    from scipy.spatial.distance import cdist

    first = _points(path, "path")
    second = _points(other, "other")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"path has {first.shape[1]} axes and other has {second.shape[1]}: expected the same"
        )
    distances: list[list[float]] = cdist(first, second).tolist()
    # One row of g at a time. The first step counts twice, as every step that moves on in both
    # paths, so that the weights of every alignment sum to n + m.
    before_first = 0.0
    above = [float("inf")] * len(second)
    for row in distances:
        current: list[float] = []
        left = float("inf")
        diagonal = before_first
        for distance, upper in zip(row, above, strict=True):
            left = min(upper + distance, diagonal + 2 * distance, left + distance)
            current.append(left)
            diagonal = upper
        above = current
        before_first = float("inf")
    return above[-1] / (len(first) + len(second))


def distance_between_tasks(
    actions: Float[np.ndarray, "observations axes"] | ArrayLike, tasks: ArrayLike
) -> float:
    """Returns the mean distance between the actions of different tasks, over all pairs of
    observations that belong to different tasks.

    It is the unit of `text_sensitivity`.

    Args:
        actions: [observations, axes] under the true instruction, finite.
        tasks: [observations] the task that each observation belongs to.

    Returns:
        The distance in the unit of the actions; NaN for a single task.

    Raises:
        ValueError: shapes that do not fit, no observations, or a number that is not finite.

    Example:
        >>> from interp.memorization.robustness import distance_between_tasks
        >>> distance_between_tasks([[0.0, 1.0], [0.0, -1.0]], tasks=["left", "right"])
        2.0
    """
    from scipy.spatial.distance import cdist

    given = _points(actions, "actions")
    labels = np.asarray(tasks)
    if labels.shape != (len(given),):
        raise ValueError(
            f"tasks have the shape {list(labels.shape)}: expected one for each of {len(given)} "
            "observations"
        )
    total = 0.0
    pairs = 0
    for task in np.unique(labels):
        own = given[labels == task]
        # Not `!=`: each pair of tasks counts once.
        others = given[labels > task]
        if len(others):
            total += float(cdist(own, others).sum())
            pairs += len(own) * len(others)
    return total / pairs if pairs else float("nan")


def text_sensitivity(
    actions: Float[np.ndarray, "observations axes"] | ArrayLike,
    changed: Float[np.ndarray, "observations axes"] | ArrayLike,
    between: float,
) -> float:
    """Returns how far another instruction moves the actions, as a multiple of the distance between
    the actions of different tasks.

    It is the mean over observations o of ||a(o, w) - a(o, w')|| / `between`, for the true
    instruction w and another one w', both on the same observation. 0 means that the text changes
    nothing; 1, that it moves the action as far as the actions of two tasks are apart on average,
    which differ in their observations too (see `distance_between_tasks`).

    Source: the claim of LIBERO-PRO (arXiv 2510.03827) that corrupted instructions leave the output
    unchanged, made a number. Its unit, the distance between tasks, is not from the paper.

    Args:
        actions: [observations, axes] under the true instruction, finite.
        changed: [observations, axes] on the same observations, under the other instruction.
        between: what `distance_between_tasks` returned, above 0.

    Raises:
        ValueError: shapes that differ, no observations, a number that is not finite, or a distance
            between tasks that is not above 0.

    Example:
        >>> from interp.memorization.robustness import text_sensitivity
        >>> text_sensitivity([[0.0, 1.0], [0.0, -1.0]], [[0.0, -1.0], [0.0, -1.0]], between=2.0)
        0.5
    """
    given = _points(actions, "actions")
    other = _points(changed, "changed")
    if given.shape != other.shape:
        raise ValueError(
            f"actions have the shape {list(given.shape)} and changed {list(other.shape)}: expected "
            "the same observations and axes"
        )
    if not between > 0:
        raise ValueError(
            f"between={between}: expected a distance above 0; it is 0 for actions that are the "
            "same in all tasks, and NaN for a single task"
        )
    return float(np.linalg.norm(given - other, axis=1).mean() / between)


def robustness(
    episodes: pd.DataFrame,
    *,
    control: str | None = None,
    trained: float = 0.9,
    tolerance: float = 0.05,
    level: float = 0.95,
    perturbations: Mapping[str, Perturbation] = PERTURBATIONS,
) -> RobustnessReport:
    """Returns how often a policy succeeds under perturbations, and whether its failures are
    memorization.

    An episode that is not valid (its scene did not load, its goal held at reset, the instruction
    did not reach the policy) says nothing about the policy. It is counted, and is part of no rate.

    Intervals treat the episodes of several seeds as independent. Where seeds are policies that were
    trained separately, pass one seed at a time to judge each of them.

    Args:
        episodes: one row per episode, with the columns

            - `task`, `seed`, `initial_state`: what is the same in paired episodes;
            - `perturbation`: its kind, one of `perturbations`, and after a space any detail, such
              as "shift 14 cm"; "clean" for the unchanged scene;
            - `success`: whether the goal was reached by which the episode is judged. It is that of
              the clean scene, but for kinds that change the goal, and but for "unseen", where the
              item that replaces the target counts as the target;
            - `old_goal`: whether the goal of the clean scene was reached; missing where it cannot
              be;
            - `valid`: whether the episode counts, and `reason`: why not. The latter may be left
              out if all are valid;

            and, where there are several or where it was measured,

            - `regime`: how the policy was trained;
            - `old_place`: whether the hand first went for the place where the target was in
              training, nearer to it than to the target;
            - `path`: [time, axes] positions of the hand, in metres;
            - `actions`: [observations, axes] actions on the observations of the clean episode,
              under the instruction of this one.
        control: the regime of the control policy, trained on decorrelated scenes; None for none,
            so that no failure is called memorized.
        trained: clean success that a policy needs for its failures to mean anything.
        tolerance: the fall of success that does not count.
        level: coverage of the intervals, between 0 and 1.
        perturbations: what each kind changes.

    Raises:
        ValueError: no episodes, a missing column, an unknown perturbation or control, a value that
            is not true or false, an invalid episode without a reason, an episode that is there
            twice, a perturbed one without its clean partner, a clean one whose success and old
            goal differ, or a path or actions that do not fit those of the partner.

    Example:
        >>> from interp.memorization.robustness import robustness
        >>> episodes = pd.DataFrame({"initial_state": [*range(20)] * 2, "task": "pick", "seed": 0})
        >>> episodes["perturbation"] = ["clean"] * 20 + ["swap"] * 20
        >>> episodes["success"] = episodes["perturbation"] == "clean"
        >>> episodes["old_goal"] = episodes["success"]
        >>> episodes["old_place"] = True
        >>> episodes["valid"] = True
        >>> report = robustness(episodes)
        >>> report.outcome("policy", "swap")
        'trapped'
        >>> print(report.interval("trap", "policy", "swap"))
        1.00 [0.84, 1.00]
    """
    table = _checked(episodes, perturbations)
    regimes = list(dict.fromkeys(table["regime"]))
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.95, got {level}")
    if control is not None and control not in regimes:
        raise ValueError(
            f"control={control!r}: expected one of {', '.join(regimes)}; "
            f"nearest: {closest(control, regimes)}"
        )
    measured = _measure(table, perturbations)
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for regime, perturbation, task, part in _cells(measured, perturbations):
        name = {"regime": regime, "perturbation": perturbation, "task": task}
        rows += [
            {**name, "measure": measure, **_summary(part, measure, level)} for measure in MEASURES
        ]
        if perturbation != CLEAN:
            pairs.append({**name, **_comparison(part, level)})
    invalid: Any = table[~table["valid"]].groupby(["regime", "perturbation", "task", "reason"])
    return RobustnessReport(
        frame=pd.DataFrame(rows),
        pairs=pd.DataFrame(pairs, columns=_PAIR_COLUMNS),
        invalid=invalid.size().rename("episodes").reset_index(),
        perturbations=perturbations,
        control=control,
        trained=trained,
        tolerance=tolerance,
    )


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """How a policy does under perturbations, and how its failures are to be read.

    Attributes:
        frame: one row per `regime`, `perturbation`, `task` ("all" for all together) and `measure`:
            its `estimate` with the interval `low` to `high` over its `n` episodes, and over whole
            tasks `task_low` to `task_high` (for all tasks, at least two); how many `episodes` were
            run, how many of them were `invalid`, and of how many `seeds`. What was not measured
            has n = 0 and no estimate. The measures are

            - `success`, `old_goal`, `old_place`: shares of the valid episodes, with Wilson's
              interval;
            - `trap`: the share in which the hand first went for the training place or, where the
              goal changed, the old goal was reached; only the latter if no `old_place` was given.
              It is measured where the target has moved or the goal has changed;
            - `trap_of_failures`: the share of failed episodes that are traps;
            - `text_sensitivity`: see the function of this name; mean over episodes, with a
              bootstrap interval, where the instruction changed;
            - `path_deviation`: from the clean path, as the function of this name; mean over
              episodes, in the unit of the paths, with a bootstrap interval.
        pairs: one row per `regime`, perturbation and `task`: over the `pairs` of valid episodes the
            share of success `clean` and `perturbed`, its `change` with a paired bootstrap interval
            `low` to `high` (without width where all pairs change alike), how many episodes were
            `lost` and `gained`, and McNemar's `p`.
        invalid: number of `episodes` per `regime`, `perturbation`, `task` and `reason`.
        perturbations: what each kind changes.
        control: the regime of the control policy; None for none.
        trained: clean success below which a policy counts as not trained.
        tolerance: the fall of success that does not count.

    Example:
        >>> from interp.memorization.robustness import robustness
        >>> episodes = pd.DataFrame({"initial_state": [*range(10)], "task": "pick", "seed": 0})
        >>> episodes["perturbation"] = "clean"
        >>> episodes["success"] = episodes["old_goal"] = [True] * 5 + [False] * 5
        >>> episodes["valid"] = True
        >>> print(robustness(episodes).verdict)
        policy is not trained: its clean success is 0.50 [0.24, 0.76] of 10 episodes, below 0.90; no
        episode was invalid.
    """

    frame: pd.DataFrame
    pairs: pd.DataFrame
    invalid: pd.DataFrame
    perturbations: Mapping[str, Perturbation]
    control: str | None = None
    trained: float = 0.9
    tolerance: float = 0.05

    @property
    def regimes(self) -> list[str]:
        """The regimes, sorted."""
        return list(dict.fromkeys(self.frame["regime"]))

    def interval(
        self, measure: str, regime: str, perturbation: str, task: str = ALL
    ) -> Interval | None:
        """Returns a measure with its interval; None where it was not measured.

        Args:
            measure, regime, perturbation, task: as in the frame.

        Raises:
            LookupError: there is no such row.
        """
        row = self._row(measure, regime, perturbation, task)
        if row["n"] == 0:
            return None
        return Interval(
            float(row["estimate"]), float(row["low"]), float(row["high"]), int(row["n"])
        )

    def is_trained(self, regime: str, task: str = ALL) -> bool:
        """Returns whether clean success is high enough for failures to mean anything.

        Args:
            regime, task: as in the frame.

        Raises:
            LookupError: there is no such regime or task.
        """
        clean = self.interval("success", regime, CLEAN, task)
        return clean is not None and clean.estimate >= self.trained

    def outcome(self, regime: str, perturbation: str, task: str = ALL) -> str:
        """Returns how a perturbation is to be read, in a word or two.

        - "not trained": clean success is below the threshold, or unknown;
        - "no valid episodes": there is no pair of valid episodes;
        - "holds": success falls by no more than the tolerance;
        - "unclear": it falls by more, but McNemar's test does not find it at 5%;
        - "memorized": it falls, the interval of the share of failures that are traps lies above a
          half, and the control succeeds more often, with fewer traps, beyond the intervals;
        - "trapped": the same without such a control;
        - "fails": it falls without that many traps, or traps were not measured.

        Where success is not wanted, as with an instruction that means nothing, the outcome is
        "ignores the change" instead of "holds", and "reacts" where success falls. A reaction is no
        evidence of understanding: input unlike any in training can cause it.

        Args:
            regime, perturbation, task: as in the frame.

        Raises:
            LookupError: there is no such row.
        """
        if not self.is_trained(regime, task):
            return "not trained"
        pair = self._pair(regime, perturbation, task)
        # `change` and `p` are NaN then, and would read as a fall beyond chance below.
        if pair["pairs"] == 0:
            return "no valid episodes"
        kind = self.perturbations[_kind(perturbation)]
        if pair["change"] >= -self.tolerance:
            return "holds" if kind.success_wanted else "ignores the change"
        if pair["p"] > _SIGNIFICANT:
            return "unclear"
        if not kind.success_wanted:
            return "reacts"
        traps = self.interval("trap_of_failures", regime, perturbation, task)
        if traps is None or traps.low <= 0.5:
            return "fails"
        return "memorized" if self._control_is_better(regime, perturbation) else "trapped"

    def changes_goal(self, perturbation: str) -> bool:
        """Returns whether success is judged by another goal than in the clean scene.

        Args:
            perturbation: its kind, with or without details.

        Raises:
            KeyError: there is no such kind.
        """
        return self.perturbations[_kind(perturbation)].changes_goal

    def outcomes(self) -> pd.DataFrame:
        """Returns the outcome of each perturbation, one row per regime, perturbation and task."""
        found: Any = self.pairs[["regime", "perturbation", "task"]].copy()
        found["outcome"] = [self.outcome(*name) for name in found.itertuples(index=False)]
        return found

    @property
    def verdict(self) -> str:
        """What was found over all tasks, in one sentence; of each perturbation, success with its
        interval."""
        clauses = [self._on_regime(regime) for regime in self.regimes]
        return f"{'; '.join(clauses)}; {self._on_invalid()}."

    def table(self) -> pd.DataFrame:
        """Returns the estimates at a glance: one row per regime, perturbation and task, one column
        per measure."""
        wide: Any = self.frame.pivot_table(
            index=["regime", "perturbation", "task"],
            columns="measure",
            values="estimate",
            sort=False,
        )
        there = [name for name in MEASURES if name in wide]
        return wide[there].rename_axis(columns=None)

    def plot(self) -> Figure:
        """Draws success, traps and the original goal under each perturbation, one panel per
        regime."""
        return _figure(self)

    def save(self, folder: str | Path) -> None:
        """Writes `robustness.parquet` (the frame), `robustness.png` and `robustness.json` (the
        verdict, the outcomes, the paired tests and the invalid episodes).

        Args:
            folder: where to; it is made if it does not exist.

        Raises:
            OSError: the folder cannot be written to.
        """
        place = writable(folder)
        with replaced(place / "robustness.parquet") as temporary:
            self.frame.to_parquet(temporary)
        # JSON has no NaN, and a column of numbers cannot hold None.
        paired: Any = self.pairs.astype(object)
        write_json(
            place / "robustness.json",
            {
                "verdict": self.verdict,
                "control": self.control,
                "trained": self.trained,
                "tolerance": self.tolerance,
                "outcomes": self.outcomes().to_dict("records"),
                "pairs": paired.where(paired.notna(), None).to_dict("records"),
                "invalid": self.invalid.to_dict("records"),
            },
        )
        save(self.plot(), place / "robustness.png")

    def _row(self, measure: str, regime: str, perturbation: str, task: str) -> Any:
        wanted = {
            "measure": measure,
            "regime": regime,
            "perturbation": perturbation,
            "task": task,
        }
        return _only_row(self.frame, wanted)

    def _pair(self, regime: str, perturbation: str, task: str) -> Any:
        wanted = {"regime": regime, "perturbation": perturbation, "task": task}
        return _only_row(self.pairs, wanted)

    def _control_is_better(self, regime: str, perturbation: str) -> bool:
        """Whether the control shows that the perturbation can be passed, and without traps."""
        # The control is compared over all tasks: those of another regime need not be the same.
        if self.control is None or self.control == regime or not self.is_trained(self.control):
            return False
        there: Any = self.pairs
        has_arm = (there["regime"] == self.control) & (there["perturbation"] == perturbation)
        if not has_arm.any():
            return False
        own_success = self.interval("success", regime, perturbation)
        own_traps = self.interval("trap", regime, perturbation)
        success = self.interval("success", self.control, perturbation)
        traps = self.interval("trap", self.control, perturbation)
        if own_success is None or own_traps is None or success is None or traps is None:
            return False
        return success.low > own_success.high and traps.high < own_traps.low

    def _on_regime(self, regime: str) -> str:
        clean = self.interval("success", regime, CLEAN)
        if clean is None:
            return f"{regime} cannot be judged: none of its clean episodes is valid"
        shown = f"its clean success is {clean} of {_counted(clean.n, 'episode')}"
        if not self.is_trained(regime):
            return f"{regime} is not trained: {shown}, below {self.trained:.2f}"
        arms: Any = self.pairs[(self.pairs["regime"] == regime) & (self.pairs["task"] == ALL)]
        by_outcome: dict[str, list[str]] = {}
        for perturbation in arms["perturbation"]:
            outcome = self.outcome(regime, perturbation)
            by_outcome.setdefault(outcome, []).append(self._on_perturbation(regime, perturbation))
        clauses = [f"{regime} is trained ({shown})"]
        for outcome, words in _SAID.items():
            if outcome in by_outcome:
                clauses.append(f"{words} {', '.join(by_outcome[outcome])}")
        return ", ".join(clauses)

    def _on_perturbation(self, regime: str, perturbation: str) -> str:
        name = in_words(perturbation)
        success = self.interval("success", regime, perturbation)
        if success is None:
            return name
        facts = [str(success)]
        traps = self.interval("trap_of_failures", regime, perturbation)
        if traps is not None:
            trapped = round(traps.estimate * traps.n)
            facts.append(f"{trapped} of {_counted(traps.n, 'failure')} trapped")
        return f"{name} ({', '.join(facts)})"

    def _on_invalid(self) -> str:
        invalid: Any = self.invalid
        count = int(invalid["episodes"].sum())
        if count == 0:
            return "no episode was invalid"
        by_reason = invalid.groupby("reason")["episodes"].sum()
        reasons = ", ".join(f"{reason}: {number}" for reason, number in by_reason.items())
        were = "was" if count == 1 else "were"
        return f"{_counted(count, 'episode')} {were} invalid and left out ({reasons})"


def _only_row(frame: pd.DataFrame, wanted: Mapping[str, str]) -> Any:
    chosen = np.ones(len(frame), dtype=bool)
    for column, value in wanted.items():
        known = list(dict.fromkeys(frame[column]))
        if value not in known:
            raise LookupError(
                f"no row with {column}={value!r}: expected one of {', '.join(known) or 'none'}; "
                f"nearest: {closest(value, known)}"
            )
        chosen &= (frame[column] == value).to_numpy()
    if not chosen.any():
        raise LookupError(f"no row for {' '.join(wanted.values())}: it was not run")
    return frame[chosen].iloc[0]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _kind(perturbation: str) -> str:
    return perturbation.split(" ", maxsplit=1)[0]


def _checked(episodes: pd.DataFrame, perturbations: Mapping[str, Perturbation]) -> pd.DataFrame:
    """The episodes in a fixed order, with all columns and flags that are true, false or missing."""
    missing = [name for name in _REQUIRED if name not in episodes]
    if missing:
        raise ValueError(
            f"episodes: expected the columns {', '.join(_REQUIRED)}; {', '.join(missing)} missing"
        )
    if episodes.empty:
        raise ValueError("episodes: expected at least one, got none")
    table: Any = episodes.reset_index(drop=True).copy()
    for name in ("task", "perturbation", "seed", "initial_state"):
        if table[name].isna().any():
            raise ValueError(f"{name}: {int(table[name].isna().sum())} of {len(table)} are missing")
    if "regime" not in table:
        table["regime"] = _ONLY_REGIME
    for name in ("regime", "task", "perturbation"):
        table[name] = table[name].astype(str)
    if (table["task"] == ALL).any():
        raise ValueError(f"task {ALL!r}: expected another name, this one is for all tasks together")
    for given in dict.fromkeys(table["perturbation"]):
        if _kind(given) not in perturbations or (_kind(given) == CLEAN and given != CLEAN):
            raise ValueError(
                f"perturbation {given!r}: expected one of {', '.join(perturbations)}, and, but "
                f"for {CLEAN}, after a space any detail; nearest: {closest(given, perturbations)}"
            )
    _check_flags(table)
    _check_pairs(table)
    # Resampling depends on the order of rows, and a report must not depend on how they came.
    return table.sort_values([*_PAIR, "perturbation"], kind="stable", ignore_index=True)


def _check_flags(table: Any) -> None:
    table["valid"] = _flags(table["valid"], "valid")
    if table["valid"].isna().any():
        raise ValueError("valid: expected true or false for every episode, got missing values")
    table["valid"] = table["valid"].astype(bool)
    for name in ("success", "old_goal", "old_place"):
        # Without the column nothing was measured; an empty one says the same.
        values = table[name] if name in table else pd.Series(None, table.index, dtype=object)
        table[name] = _flags(values, name)
    unknown = table["valid"] & table["success"].isna()
    if unknown.any():
        raise ValueError(
            f"success is missing in {int(unknown.sum())} valid episodes, the first one "
            f"{_name_of(table[unknown])}: expected true or false, or valid = False with a reason"
        )
    if "reason" not in table:
        table["reason"] = None
    stated = table["reason"].notna() & (table["reason"].astype(str).str.strip() != "")
    unexplained = ~table["valid"] & ~stated
    if unexplained.any():
        raise ValueError(
            f"{int(unexplained.sum())} invalid episodes have no reason, the first one "
            f"{_name_of(table[unexplained])}: expected why in the column `reason`"
        )
    clean = table["valid"] & (table["perturbation"] == CLEAN) & table["old_goal"].notna()
    differs = clean & (table["old_goal"] != table["success"]).fillna(value=False)
    if differs.any():
        raise ValueError(
            f"{int(differs.sum())} clean episodes differ in success and old_goal, the first one "
            f"{_name_of(table[differs])}: expected the same, a clean scene has only its own goal"
        )


def _check_pairs(table: Any) -> None:
    twice = table.duplicated([*_PAIR, "perturbation"])
    if twice.any():
        raise ValueError(
            f"{int(twice.sum())} episodes are there twice, the first one {_name_of(table[twice])}: "
            "expected one for each regime, task, seed, initial state and perturbation; tell "
            "policies apart by the column `regime`"
        )
    is_clean = table["perturbation"] == CLEAN
    if not is_clean.any():
        known = ", ".join(dict.fromkeys(table["perturbation"]))
        raise ValueError(
            f"no clean episodes, only {known}: expected perturbation = {CLEAN!r} in those that the "
            "others are compared with"
        )
    partners = set(table[is_clean][_PAIR].itertuples(index=False, name=None))
    keys: Iterable[Any] = table[_PAIR].itertuples(index=False, name=None)
    # Clean episodes are their own partners, and are never alone.
    alone = np.array([key not in partners for key in keys], dtype=bool)
    if alone.any():
        raise ValueError(
            f"{int(alone.sum())} perturbed episodes have no clean partner, the first one "
            f"{_name_of(table[alone])}: expected a clean episode of the same regime, task, seed "
            "and initial state"
        )


def _name_of(rows: Any) -> str:
    first = rows.iloc[0]
    return (
        f"{first['perturbation']!r} of task {first['task']!r}, regime {first['regime']!r}, "
        f"seed {first['seed']}, initial state {first['initial_state']}"
    )


def _flags(values: Any, name: str) -> Any:
    """A column of true, false and missing values; numbers 0 and 1 count as such."""
    found: list[bool | None] = []
    for value in values:
        if pd.isna(value):
            found.append(None)
        elif value in (0, 1):
            found.append(bool(value))
        else:
            raise ValueError(f"{name}: expected true, false or missing values, got {value!r}")
    return pd.Series(found, values.index, dtype="boolean")


def _points(points: Any, name: str) -> Float[np.ndarray, "points axes"]:
    # An array that was stored in a table comes back as rows of objects.
    data = np.array([np.asarray(point, dtype=np.float64) for point in points])
    if data.ndim != 2 or not data.size or not np.isfinite(data).all():
        raise ValueError(
            f"{name}: expected finite numbers of shape [points, axes], at least one point, got "
            f"shape {list(data.shape)}"
        )
    return data


def _measure(table: Any, perturbations: Mapping[str, Perturbation]) -> pd.DataFrame:
    """The episodes with all measures as numbers, NaN where there is none, and with the success of
    the clean partner as `clean_success`."""
    kinds = [perturbations[_kind(name)] for name in table["perturbation"]]
    shows_traps = np.array([kind.shows_traps for kind in kinds])
    changes_goal = np.array([kind.changes_goal for kind in kinds])
    has_old_place = table["old_place"].notna().any()

    # Missing | True is True, and Missing | False is missing: three-valued logic of pandas.
    of_goal = table["old_goal"].where(changes_goal, other=False)
    # Without places a trap can be told only where the goal has changed.
    trap = of_goal | table["old_place"] if has_old_place else of_goal.where(changes_goal)
    measured = table.copy()
    measured["trap"] = trap.where(shows_traps)
    # An episode without a known success is no failure.
    measured["trap_of_failures"] = measured["trap"].where(~table["success"].fillna(value=True))
    for name in RATES:
        known = measured[name].where(table["valid"])
        measured[name] = known.to_numpy(dtype=np.float64, na_value=np.nan)

    clean = measured[measured["perturbation"] == CLEAN].set_index(_PAIR)
    # One row per episode, in the same order: its clean partner. Labels differ, so that the two
    # tables are compared by place and not by index.
    partners = clean.reindex(pd.MultiIndex.from_frame(measured[_PAIR]))
    measured["clean_success"] = partners["success"].to_numpy()
    both_valid = measured["success"].notna() & measured["clean_success"].notna()
    compared = both_valid & (measured["perturbation"] != CLEAN)
    measured["path_deviation"] = _path_deviations(measured, partners, compared)
    changes_text = np.array([kind.changes_text for kind in kinds])
    measured["text_sensitivity"] = _text_sensitivities(measured, partners, compared & changes_text)
    return measured


@contextmanager
def _named(measured: Any, row: int) -> Generator[None]:
    """Says which episode it is that an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{_name_of(measured[row:])}: {error}") from error


def _path_deviations(measured: Any, partners: Any, compared: Any) -> np.ndarray:
    found = np.full(len(measured), np.nan)
    for row, own, clean in _both(measured, partners, "path", compared):
        with _named(measured, row):
            found[row] = path_deviation(clean, own)
    return found


def _text_sensitivities(measured: Any, partners: Any, compared: Any) -> np.ndarray:
    found = np.full(len(measured), np.nan)
    between = _between_tasks_by_regime(measured)
    for row, own, clean in _both(measured, partners, "actions", compared):
        unit = between[measured["regime"][row]]
        # With one task, or actions that are the same in all, there is nothing to compare with.
        if unit > 0:
            with _named(measured, row):
                found[row] = text_sensitivity(clean, own, unit)
    return found


def _between_tasks_by_regime(measured: Any) -> dict[str, float]:
    if "actions" not in measured:
        return {}
    is_used = (measured["perturbation"] == CLEAN) & measured["valid"] & measured["actions"].notna()
    found = dict.fromkeys(measured["regime"], float("nan"))
    for regime, part in measured[is_used].groupby("regime"):
        actions = [_points(each, "actions") for each in part["actions"]]
        tasks = np.repeat(part["task"].to_numpy(dtype=str), [len(each) for each in actions])
        axes = {each.shape[1] for each in actions}
        if len(axes) > 1:
            raise ValueError(
                f"actions of regime {regime!r} have {sorted(axes)} axes: expected the same in all"
            )
        found[str(regime)] = distance_between_tasks(np.concatenate(actions), tasks)
    return found


def _both(measured: Any, partners: Any, column: str, compared: Any) -> list[tuple[int, Any, Any]]:
    """Row number, own value and that of the clean partner, where both have one."""
    if column not in measured:
        return []
    there = compared.to_numpy() & measured[column].notna().to_numpy()
    there &= partners[column].notna().to_numpy()
    own = measured[column]
    clean = partners[column]
    return [(int(row), own.iloc[row], clean.iloc[row]) for row in np.flatnonzero(there)]


def _cells(
    measured: Any, perturbations: Mapping[str, Perturbation]
) -> list[tuple[str, str, str, pd.DataFrame]]:
    """Regime, perturbation, task and its episodes: all tasks first, then each of them."""
    kinds = list(perturbations)

    def place(perturbation: str) -> tuple[int, list[tuple[int, str]]]:
        # "shift 7 cm" comes before "shift 14 cm"
        parts = re.findall(r"\d+|\D+", perturbation)
        # In pairs, because a number and a word cannot be compared with each other.
        detail = [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
        return kinds.index(_kind(perturbation)), detail

    cells: list[tuple[str, str, str, pd.DataFrame]] = []
    for regime, of_regime in measured.groupby("regime"):
        for perturbation in sorted(of_regime["perturbation"].unique(), key=place):
            part = of_regime[of_regime["perturbation"] == perturbation]
            cells.append((str(regime), perturbation, ALL, part))
            for task, of_task in part.groupby("task"):
                cells.append((str(regime), perturbation, str(task), of_task))
    return cells


def _summary(part: Any, measure: str, level: float) -> dict[str, Any]:
    known = part[part[measure].notna()]
    values = known[measure].to_numpy(dtype=np.float64)
    tasks = known["task"].to_numpy(dtype=str)
    found: dict[str, Any] = {
        "estimate": np.nan,
        "low": np.nan,
        "high": np.nan,
        "task_low": np.nan,
        "task_high": np.nan,
        "n": len(values),
        "episodes": len(part),
        "invalid": int((~part["valid"]).sum()),
        "seeds": int(part["seed"].nunique()),
    }
    if not len(values):
        return found
    if measure in RATES:
        interval = wilson_interval(int(values.sum()), len(values), level=level)
    else:
        interval = bootstrap(values, level=level)
    found |= {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    if len(set(tasks)) > 1:
        over_tasks = clustered_interval(values, tasks, level=level)
        found |= {"task_low": over_tasks.low, "task_high": over_tasks.high}
    return found


def _comparison(part: Any, level: float) -> dict[str, Any]:
    paired = part[part["success"].notna() & part["clean_success"].notna()]
    # The columns after regime, perturbation, task and pairs.
    found: dict[str, Any] = dict.fromkeys(_PAIR_COLUMNS[4:], np.nan)
    found |= {"pairs": len(paired), "lost": 0, "gained": 0}
    if paired.empty:
        return found
    clean = paired["clean_success"].to_numpy(dtype=np.float64)
    perturbed = paired["success"].to_numpy(dtype=np.float64)
    change = paired_interval(perturbed, clean, level=level)
    return found | {
        "clean": clean.mean(),
        "perturbed": perturbed.mean(),
        "change": change.estimate,
        "low": change.low,
        "high": change.high,
        "lost": int((clean > perturbed).sum()),
        "gained": int((clean < perturbed).sum()),
        "p": mcnemar(clean, perturbed),
    }


def _figure(report: RobustnessReport) -> Figure:
    rows: Any = report.frame[report.frame["task"] == ALL]
    # Unless the goal has changed, the original goal is the one that success is judged by.
    is_goal_again = (rows["measure"] == "old_goal") & ~rows["perturbation"].map(report.changes_goal)
    known: Any = rows[(rows["n"] > 0) & ~is_goal_again]
    measures = [name for name in _SHOWN if (known["measure"] == name).any()]
    look_of = looks(_SHOWN[name] for name in measures)
    most = max(part["perturbation"].nunique() for _, part in rows.groupby("regime"))
    with style():
        regimes = report.regimes
        figure, grid = grid_of(len(regimes), 3, width=4.2, height=0.48 * most + 1.0)
        for axes, regime in zip(grid, regimes, strict=True):
            own: Any = rows[rows["regime"] == regime]
            names = list(own["perturbation"].unique())
            for number, measure in enumerate(measures):
                points: Any = known[(known["regime"] == regime) & (known["measure"] == measure)]
                # A little above each other, so that equal values do not hide one another.
                aside = 0.18 * (number - (len(measures) - 1) / 2)
                places = [names.index(name) + aside for name in points["perturbation"]]
                look = look_of[_SHOWN[measure]]
                axes.hlines(places, points["low"], points["high"], color=look.colour, linewidth=1.2)
                axes.plot(
                    points["estimate"],
                    places,
                    look.marker,
                    color=look.colour,
                    markersize=4.5,
                    label=look.words,
                )
            axes.axvline(report.trained, label="clean success that a trained policy needs", **LEVEL)
            counts = own[own["measure"] == "success"].set_index("perturbation")
            labels = [_row_label(name, counts.loc[name]) for name in names]
            axes.set(
                xlabel="share of valid episodes",
                ylabel="perturbation",
                xlim=(-0.04, 1.04),
                ylim=(len(names) - 0.5, -0.5),  # upside down: the first one is on top
            )
            axes.set_yticks(range(len(names)), labels)
            trained = "" if report.is_trained(regime) else ", not trained"
            name_panel(axes, f"{in_words(regime)}{trained}")
        finish(
            figure,
            grid,
            "Success under perturbations, and signs of what was trained",
            "points: shares of episodes; lines through them: Wilson intervals",
        )
    return figure


def _row_label(perturbation: str, counts: Any) -> str:
    label = f"{in_words(perturbation)}\nn = {counts['n']}"
    return f"{label}, {counts['invalid']} invalid" if counts["invalid"] else label
