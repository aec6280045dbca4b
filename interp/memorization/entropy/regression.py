"""A straight line through the levels, and how sure its correlation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike, NDArray

Response = Literal["entropy", "score"]
_FEWEST_LEVELS = 3
# With fewer texts, neighbouring windows are taken together instead of the windows of a text.
FEWEST_TEXTS = 20


@dataclass(frozen=True)
class Line:
    """An ordinary least-squares line through one point per level.

    Attributes:
        r: Pearson's correlation; NaN where there is no line.
        slope: change of the response per unit of the other variable.
        intercept: the response where the other variable is 0.
        levels: how many points the line is fitted to.
        reason: why there is no line; empty if there is one.
    """

    r: float
    slope: float
    intercept: float
    levels: int
    reason: str = ""


def fit_line(scores: ArrayLike, entropies: ArrayLike, response: Response = "entropy") -> Line:
    """Fits the Entropy-Memorization Law: entropy = intercept + slope * score.

    Levels count the same, however many windows they have (Huang et al. 2025, arXiv 2507.06056).

    Args:
        scores: memorization score of each level.
        entropies: entropy of each level, or another quantity.
        response: which of the two is predicted. "score" fits score = intercept + slope * entropy;
            r is the same.

    Raises:
        ValueError: arrays of different shapes, or an unknown response.

    Example:
        >>> from interp.memorization.entropy.regression import fit_line
        >>> fit_line([0, 1, 2], [1, 3, 2])
        Line(r=0.5, slope=0.5, intercept=1.5, levels=3, reason='')
        >>> fit_line([0], [1]).reason
        '1 level: a line needs at least 3'
    """
    x = np.asarray(scores, dtype=np.float64)
    y = np.asarray(entropies, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected one score and one entropy per level, got {x.shape}, {y.shape}")
    check_response(response)
    levels = len(x)
    if levels < _FEWEST_LEVELS:
        plural = "" if levels == 1 else "s"
        return _no_line(levels, f"{levels} level{plural}: a line needs at least {_FEWEST_LEVELS}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        what = "scores" if np.ptp(x) == 0 else "values"
        return _no_line(levels, f"the {what} of all levels are equal")
    if response == "score":
        x, y = y, x
    around_x = x - x.mean()
    around_y = y - y.mean()
    covariance = around_x @ around_y
    slope = covariance / (around_x @ around_x)
    r = covariance / np.sqrt((around_x @ around_x) * (around_y @ around_y))
    # Rounding may bring r above 1, where a perfect line is.
    return Line(
        r=float(np.clip(r, -1, 1)),
        slope=float(slope),
        intercept=float(y.mean() - slope * x.mean()),
        levels=levels,
    )


def check_response(response: str) -> None:
    """Raises ValueError for a response that `fit_line` does not know."""
    if response not in ("entropy", "score"):
        raise ValueError(f"response={response!r}: expected 'entropy' or 'score'")


def _no_line(levels: int, reason: str) -> Line:
    return Line(np.nan, np.nan, np.nan, levels, reason)


def groups_to_leave_out(
    texts: Int[ArrayLike, " windows"], groups: int = FEWEST_TEXTS, seed: int = 0
) -> list[Bool[np.ndarray, " windows"]]:
    """Returns masks of windows that are left out together, for `correlation_interval`.

    Windows of one text are not independent of each other, so they are left out together. Where
    there are fewer texts than groups, windows that follow each other make a group.

    Args:
        texts: number of each window's text.
        groups: how many groups; fewer where there are fewer windows.
        seed: seed of which texts come together.
    """
    of_window = np.asarray(texts)
    numbers, text_of_window = np.unique(of_window, return_inverse=True)
    if len(numbers) >= groups:
        # Groups of equally many texts, give or take one.
        group_of_text = np.random.default_rng(seed).permutation(len(numbers)) % groups  # [texts]
        labels = group_of_text[text_of_window]
    else:
        labels = blocks_in_order(of_window, groups)
    return [labels == label for label in np.unique(labels)]


def blocks_in_order(texts: Int[ArrayLike, " windows"], blocks: int) -> Int[np.ndarray, " windows"]:
    """Returns the number of each window's block, where windows that follow each other, text after
    text, are cut into blocks of equal size.

    Args:
        texts: number of each window's text.
        blocks: how many blocks; fewer where there are fewer windows.

    Example:
        >>> from interp.memorization.entropy.regression import blocks_in_order
        >>> blocks_in_order([1, 0, 0, 1], 2)
        array([1, 0, 0, 1])
    """
    of_window = np.asarray(texts)
    numbers = np.empty(len(of_window), dtype=np.int64)
    in_order = np.argsort(of_window, kind="stable")
    # The k-th of n windows is in block k * blocks // n: sizes differ by one at most.
    numbers[in_order] = np.arange(len(of_window)) * blocks // max(len(of_window), 1)
    return numbers


def correlation_interval(r: float, left_out: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Returns the interval of a correlation from a delete-a-group jackknife.

    A bootstrap would not do: it draws windows twice, and a bag with the same window twice has less
    entropy, the more so the fewer windows a level has. On Fisher's scale artanh(r) the interval has
    Student's quantiles with one degree of freedom less than there are groups.

    Source: Kott (2001), Journal of Official Statistics 17:521, for the delete-a-group jackknife.

    Args:
        r: the correlation of all windows.
        left_out: the correlation without each group of windows in turn; NaN where there is none.
        level: coverage.

    Returns:
        The two ends; NaN where fewer than two groups can be left out, or there is no r.
    """
    from scipy import stats

    values = np.asarray(left_out, dtype=np.float64)
    groups = len(values)
    if groups < 2 or not np.isfinite(values).all() or not np.isfinite(r):
        return np.nan, np.nan
    inside = 1 - 1e-12  # artanh(1) is infinite
    centre = np.arctanh(np.clip(r, -inside, inside))
    scaled = np.arctanh(np.clip(values, -inside, inside))
    # Samples without one group overlap almost wholly, so that the squares are summed, not averaged.
    variance = (groups - 1) / groups * np.square(scaled - scaled.mean()).sum()
    quantile = stats.t.ppf((1 + level) / 2, groups - 1)
    half_width = quantile * np.sqrt(variance)
    return float(np.tanh(centre - half_width)), float(np.tanh(centre + half_width))


@dataclass(frozen=True)
class Null:
    """Correlations of shuffled scores.

    Attributes:
        mean, sd, max: of the shuffles; max is the largest.
        p: two-sided: twice the smaller of two shares of the shuffles, the real order among them:
            those with a correlation of at least r, and those with one of at most r.
    """

    mean: float
    sd: float
    max: float
    p: float


def compare_with_null(r: float, shuffled: NDArray[np.float64]) -> Null:
    """Compares a correlation with those of shuffled scores.

    Args:
        r: the correlation of the real scores.
        shuffled: one per shuffle.

    Source: Phipson & Smyth (2010), Statistical Applications in Genetics 9:39, for counting the real
    order among the shuffles.

    Example:
        >>> from interp.memorization.entropy.regression import compare_with_null
        >>> compare_with_null(0.9, np.array([0.1, 0.2, 0.3])).p
        0.5
    """
    if not np.isfinite(r) or not np.isfinite(shuffled).all() or not len(shuffled):
        return Null(np.nan, np.nan, np.nan, np.nan)
    shuffles = len(shuffled)
    above = (1 + int((shuffled >= r).sum())) / (shuffles + 1)
    below = (1 + int((shuffled <= r).sum())) / (shuffles + 1)
    return Null(
        mean=float(shuffled.mean()),
        sd=float(shuffled.std()),
        max=float(shuffled.max()),
        p=min(1.0, 2 * min(above, below)),
    )
