"""How well a score separates members from non-members: `roc`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from interp.reporting.stats import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Roc:
    """The operating points of a membership score.

    Attributes:
        members: scores of the members.
        non_members: scores of the others.
        frame: one row per threshold, from none accepted to all: `threshold`, `fpr` (the share of
            non-members with at least that score) and `tpr` (the same of members).

    Example:
        >>> from interp.memorization.membership.roc import roc
        >>> curve = roc([5, 4, 3, 1, 4.5, 2, 0.5, 0], [True] * 4 + [False] * 4)
        >>> curve.auc.estimate, curve.tpr(0.25).estimate
        (0.75, 0.75)
    """

    members: Float[np.ndarray, " members"]
    non_members: Float[np.ndarray, " non_members"]
    frame: pd.DataFrame

    @property
    def auc(self) -> Interval:
        """The area under the curve: how often a member scores above a non-member, ties counting
        half; with its 95% interval, see `auc_interval`."""
        from sklearn.metrics import auc

        area = float(auc(self.frame["fpr"], self.frame["tpr"]))
        # A share of pairs, in halves: what rounding adds to 1 would count as better than 1.
        halves_of_pairs = 2 * len(self.members) * len(self.non_members)
        estimate = round(area * halves_of_pairs) / halves_of_pairs
        return auc_interval(estimate, len(self.members), len(self.non_members))

    def tpr(self, fpr: float) -> Interval:
        """Returns the true positive rate at the smallest threshold that keeps the false positive
        rate at or below a level, without interpolation; ties are accepted together.

        The 95% interval is Clopper and Pearson's for a fixed threshold. That the threshold depends
        on the highest non-members is not in it.

        Args:
            fpr: the level; 0 means no false positive.

        Raises:
            ValueError: a level outside [0, 1), or one that is too small for the number of
                non-members: it would mean the same as 0.

        Source: Clopper & Pearson (1934), Biometrika 26:404.
        """
        from scipy.stats import binomtest

        self._check_level(fpr)
        rates = self.frame["fpr"].to_numpy()
        within = rates <= fpr + 1e-12  # 3 of 10 and 0.3 may differ in the last bit
        largest = float(self.frame["tpr"].to_numpy()[within].max())
        # The rate is a count divided by the members; the exact interval needs the count.
        accepted = round(largest * len(self.members))
        found = binomtest(accepted, len(self.members)).proportion_ci(0.95, "exact")
        share = accepted / len(self.members)
        return Interval(share, float(found.low), float(found.high), n=len(self.members))

    def supports(self, fpr: float) -> bool:
        """Returns whether there are enough non-members to measure at a false positive rate: the
        level allows at least one of them. 0 is always supported."""
        return fpr == 0 or fpr * len(self.non_members) >= 1 - 1e-9

    def _check_level(self, fpr: float) -> None:
        if not 0 <= fpr < 1:
            raise ValueError(f"fpr={fpr}: expected a rate from 0 to below 1")
        if not self.supports(fpr):
            needed = int(np.ceil(1 / fpr))
            raise ValueError(
                f"fpr={fpr:g} cannot be told from 0 with {len(self.non_members)} non-members: "
                f"expected at least {needed} of them, or fpr=0"
            )

    def plot(self, name: str = "score") -> Figure:
        """Draws the curve on logarithmic axes, with chance."""
        return roc_figure({name: self})


def roc(scores: ArrayLike, members: ArrayLike) -> Roc:
    """Returns the operating points of a score that is higher for members.

    Args:
        scores: [examples] the scores, finite.
        members: [examples] whether each example is a member.

    Raises:
        ValueError: arrays of different lengths, scores that are NaN or infinite, no member or no
            non-member.

    Example:
        >>> interp.roc([1, 1, 0.5, 1, 0, 0], [1, 1, 1, 0, 0, 0]).tpr(0).estimate
        0.0
    """
    from sklearn.metrics import roc_curve

    values = np.asarray(scores, dtype=np.float64)
    labels = _labels(members)
    if values.shape != labels.shape:
        raise ValueError(
            f"scores and members: expected one of each per example, "
            f"got {values.shape} and {labels.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"scores: {int((~np.isfinite(values)).sum())} are NaN or infinite")
    if labels.all() or not labels.any():
        kind = "members" if labels.any() else "non-members"
        raise ValueError(f"members: all {len(labels)} examples are {kind}; expected both kinds")
    # By default sklearn drops points on a straight line; `tpr`, without interpolation, needs all.
    fpr, tpr, thresholds = roc_curve(labels, values, drop_intermediate=False)
    frame = pd.DataFrame({"threshold": thresholds, "fpr": fpr, "tpr": tpr})
    return Roc(values[labels], values[~labels], frame)


def auc_standard_error(auc: float, members: int, non_members: int) -> float:
    """Returns the standard error of an AUC of which only the value and the numbers of examples are
    known, as of a published one.

    Source: Hanley & McNeil (1982), Radiology 143:29.

    Args:
        auc: the area under the curve.
        members: how many members it is over.
        non_members: how many others.

    Example:
        >>> from interp.memorization.membership.roc import auc_standard_error
        >>> round(auc_standard_error(0.822, 500, 500), 4)
        0.0133
    """
    spread = _spread(auc, members - 1, non_members - 1)
    return float(np.sqrt(spread / (members * non_members)))


def auc_interval(auc: float, members: int, non_members: int) -> Interval:
    """Returns an AUC with its 95% interval: all values from which it is less than 1.96 of their own
    standard errors away.

    So it stays within 0 and 1, and has a width where all members score above all others, which
    standard errors of the estimate itself do not give.

    Source: Newcombe (2006), Statistics in Medicine 25:559, method 5.

    Args:
        auc: the area under the curve.
        members: how many members it is over.
        non_members: how many others.

    Example:
        >>> from interp.memorization.membership.roc import auc_interval
        >>> print(auc_interval(1.0, 20, 20))
        1.00 [0.90, 1.00]
    """
    from scipy.optimize import brentq

    # Method 5 takes the mean of the two numbers for each of them.
    others = (members + non_members) / 2 - 1

    def distance(true: float) -> float:
        error = np.sqrt(_spread(true, others, others) / (members * non_members))
        return abs(auc - true) - 1.96 * error

    # An AUC of 0 or 1 is a root itself, and not the one that is wanted: start beside it.
    inside = min(max(auc, 1e-9), 1 - 1e-9)
    solve: Any = brentq
    low = 0.0 if auc == 0 else float(solve(distance, 0.0, inside))
    high = 1.0 if auc == 1 else float(solve(distance, inside, 1.0))
    return Interval(auc, min(low, auc), max(high, auc), n=min(members, non_members))


def _spread(auc: float, other_members: float, other_non_members: float) -> float:
    """The variance of an AUC times the number of pairs of a member and a non-member, if scores are
    exponential."""
    # Q1 - AUC^2 and Q2 - AUC^2 of Hanley and McNeil, both divided by AUC (1 - AUC).
    two_members = (1 - auc) / (2 - auc)
    two_non_members = auc / (1 + auc)
    return auc * (1 - auc) * (1 + other_members * two_members + other_non_members * two_non_members)


def roc_figure(curves: dict[str, Roc], title: str = "Members found, by false alarms") -> Figure:
    """Draws several curves on logarithmic axes, with chance.

    Args:
        curves: the curves by name.
        title: what is compared.
    """
    from interp.reporting.layout import LEVEL, finish, new_figure, style
    from interp.reporting.looks import looks

    with style():
        figure = new_figure(6.4, 5.0)
        axes = figure.subplots()
        # A rate of 0 has no place on a logarithmic axis: curves begin at the smallest rate that
        # the examples can show.
        smallest = min(1 / len(curve.non_members) for curve in curves.values())
        least = min(1 / len(curve.members) for curve in curves.values())
        for name, look in looks(curves).items():
            points = curves[name].frame
            axes.step(
                points["fpr"].clip(lower=smallest),
                points["tpr"].clip(lower=least),
                where="post",
                color=look.colour,
                label=look.words,
            )
        chance = [smallest, 1]
        axes.plot(chance, chance, label="chance", **LEVEL)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="false positive rate (share of non-members accepted)",
            ylabel="true positive rate (share of members accepted)",
            xlim=(smallest, 1),
            ylim=(min(least, smallest), 1.05),
        )
        finish(figure, [axes], title, "lines: operating points, from few accepted to all")
    return figure


def _labels(members: ArrayLike) -> Bool[np.ndarray, " examples"]:
    labels = np.asarray(members)
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise ValueError("members: expected one truth value per example, or 0 and 1")
    return labels.astype(bool)
