"""A selection of units compared with random units that hurt the model as much.

Any ablation that hurts a model enough also removes what it has memorized. So a selection counts
only for what it removes beyond random units that raise the loss on held-out text equally. Both the
damage and the effect are means over windows, and noisy. They are resampled together here: windows
of held-out text, memorized windows and draws of random units. Otherwise the comparison could turn
on the noise of a mean: a selection whose damage came out at 0.03 nats per token by chance was once
matched with ten times as many random units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.memorization.evaluation import measure_under
from interp.mitigation.controls import Selection
from interp.reporting.stats import Interval
from interp.subject.batch import Batches, reusable
from interp.subject.subject import Subject

Resampled = Float[np.ndarray, " resamples"]

_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class EqualDamage:
    """A selection compared with random units at equal damage, which is a rise of the mean loss on
    held-out text, in nats per token.

    Attributes:
        k: number of random units: the fewest tried that raise the loss at least as much as the
            selection; or, where the selection's damage cannot be distinguished from none, the most
            tried whose damage cannot be either.
        reached: whether there is such a number, also when windows and draws are resampled (in all
            but 2.5% of the resamples). If not, `k` is the largest number tried.
        accuracy: mean suffix accuracy of the memorized windows when the random units are ablated.
        advantage: accuracy under the random units minus accuracy under the selection, with the
            interval over windows of both texts and over draws. Above 0, the selection removes more.
        damage: the damage of the selection.
        random_damage: the damage of the random units.
    """

    k: int
    reached: bool
    accuracy: float
    advantage: Interval
    damage: Interval
    random_damage: Interval

    @property
    def distinguishable(self) -> bool:
        """Whether the damage of the selection can be distinguished from none."""
        return self.damage.low > 0

    @property
    def beats_random(self) -> bool:
        """Whether the selection removes more than random units at equal damage: the whole interval
        of the advantage is above 0, and there was something to compare with."""
        return self.reached and self.advantage.low > 0

    @property
    def random_units(self) -> str:
        """The random units in words: how many, and how their damage compares."""
        if not self.reached:
            return f"{self.k} random units, the most tried, still hurt held-out text less"
        if self.distinguishable:
            return f"{self.k} random units hurt held-out text as much"
        if self.random_damage.low > 0:
            return f"{self.k} random units, the fewest tried, hurt held-out text more"
        return (
            f"{self.k} random units are the most tried whose damage is not distinguishable either"
        )

    @property
    def difference(self) -> str:
        """What the selection leaves of the suffix accuracy, compared with the random units."""
        advantage = self.advantage
        if advantage.estimate > 0:
            return f"{advantage} less than they do"
        if advantage.estimate == 0:
            return "as much as they do"
        # The other way round, so that the ends of the interval change places.
        more = Interval(
            -advantage.estimate, low=-advantage.high, high=-advantage.low, n=advantage.n
        )
        return f"{more} more than they do"


@dataclass(frozen=True, eq=False)
class Step:
    """Random units of one number.

    Attributes:
        k: the number.
        rise: rise of the loss of each held-out window, in nats per token, under each draw.
        accuracy: suffix accuracy of each memorized window under each draw.
    """

    k: int
    rise: Float[np.ndarray, "draws held_out"]
    accuracy: Float[np.ndarray, "draws memorized"]


class Resampling:
    """Weights of resampled windows and draws, the same ones for every number that is compared."""

    def __init__(self, held_out: int, memorized: int, draws: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def weights(count: int) -> Float[np.ndarray, "resamples count"]:
            # How often each of `count` things is drawn in `count` draws: a mean over a resample is
            # then a product with its weights.
            equal_chances = np.full(count, 1 / count)
            times_drawn = rng.multinomial(count, equal_chances, _RESAMPLES)
            return times_drawn / count

        self.held_out = weights(held_out)
        self.memorized = weights(memorized)
        self.draws = weights(draws)

    def rise(self, step: Step) -> Resampled:
        """The mean rise of the loss under a number of random units, on each resample."""
        over_draws = self.draws @ step.rise  # [resamples, held_out]
        return (over_draws * self.held_out).sum(1)

    def accuracy(self, step: Step) -> Resampled:
        """The mean accuracy under a number of random units, on each resample."""
        over_draws = self.draws @ step.accuracy  # [resamples, memorized]
        return (over_draws * self.memorized).sum(1)


def compare_at_equal_damage(
    subject: Subject,
    selection: Selection,
    unedited: pd.DataFrame,
    under_selection: pd.DataFrame,
    data: Mapping[str, Batches],
    seeds: Iterable[int],
    batch_size: int = 16,
) -> EqualDamage:
    """Compares a selection with random units that raise the loss on held-out text as much, or, if
    its own damage cannot be distinguished from none, with the most whose damage cannot be either.

    Args:
        subject: the model.
        selection: the selection.
        unedited: rows of `measure_under` for the unedited model.
        under_selection: rows of `measure_under` with the selection ablated, of the same windows.
        data: the windows that both were measured on: `memorized`, and `held_out`, text that is
            neither memorized nor chosen to resemble what is.
        seeds: seeds of the draws of random units.
        batch_size: batch size.
    """
    # First the damage of the selection, then that of more and more random units. The number of them
    # that does as much is chosen by the means, and once more on each resample by itself.
    seeds = list(seeds)
    before = _by_window(unedited, "held_out", "loss")
    own_rise = _by_window(under_selection, "held_out", "loss") - before
    own_accuracy = _by_window(under_selection, "memorized", "accuracy")
    resampling = Resampling(len(own_rise), len(own_accuracy), len(seeds))
    own_rises = resampling.held_out @ own_rise  # [resamples]
    damage = _interval(own_rise.mean(), own_rises, len(own_rise))
    is_distinguishable = damage.low > 0

    # A stream can be read once, and is measured under more and more random units.
    measured = {name: reusable(data[name]) for name in ("held_out", "memorized")}
    steps: list[Step] = []
    rises: list[Resampled] = []
    for trials in selection.growing(seeds):
        plans = [trial.plan for trial in trials]
        table = measure_under(subject, plans, measured, batch_size)
        step = Step(
            trials[0].k,
            _by_draw(table, "held_out", "loss") - before,
            _by_draw(table, "memorized", "accuracy"),
        )
        steps.append(step)
        rises.append(resampling.rise(step))
        lowest, _ = np.quantile(rises[-1], _tails())
        # More units would not be chosen on any resample that counts.
        if lowest > (damage.high if is_distinguishable else 0):
            break

    if is_distinguishable:
        chosen = _first_at_least([step.rise.mean() for step in steps], own_rise.mean())
        on_resamples = _first_on_resamples(rises, own_rises)
        is_missed = on_resamples == len(steps)
        missed = float(is_missed.mean())
        most_missed = (1 - _LEVEL) / 2
        reached = chosen < len(steps) and missed <= most_missed
    else:
        chosen = _last_indistinguishable(rises)
        on_resamples = np.full(_RESAMPLES, chosen)
        reached = True
    last = len(steps) - 1
    step = steps[min(chosen, last)]
    # The resamples on which no number does as much damage take the largest: they are too few to
    # count, or the comparison is reported as not reached.
    accuracies = np.stack([resampling.accuracy(each) for each in steps])  # [steps, resamples]
    number_on_resample = np.minimum(on_resamples, last)
    picked = accuracies[number_on_resample, np.arange(_RESAMPLES)]
    own_accuracies = resampling.memorized @ own_accuracy
    gains = picked - own_accuracies
    gain = step.accuracy.mean() - own_accuracy.mean()
    return EqualDamage(
        k=step.k,
        reached=reached,
        accuracy=float(step.accuracy.mean()),
        advantage=_interval(gain, gains, len(own_accuracy)),
        damage=damage,
        random_damage=_interval(step.rise.mean(), resampling.rise(step), len(own_rise)),
    )


def _first_at_least(rises: list[float], wanted: float) -> int:
    """The number of the first step that does a damage; the number of steps where none does."""
    for number, rise in enumerate(rises):
        if rise >= wanted:
            return number
    return len(rises)


def _first_on_resamples(rises: list[Resampled], wanted: Resampled) -> np.ndarray:
    """`_first_at_least` on each resample."""
    enough = np.stack(rises) >= wanted  # [steps, resamples]
    # argmax finds the first True, and is 0 as well where there is none.
    return np.where(enough.any(0), enough.argmax(0), len(rises))


def _last_indistinguishable(rises: list[Resampled]) -> int:
    """The number of the last step before the first whose damage can be distinguished from none; 0
    where the first one's can be."""
    for number, rise in enumerate(rises):
        lowest, _ = np.quantile(rise, _tails())
        if lowest > 0:
            return max(number - 1, 0)
    return len(rises) - 1


def _tails() -> list[float]:
    outside = (1 - _LEVEL) / 2  # at either end
    return [outside, (1 + _LEVEL) / 2]


def _interval(estimate: Any, resampled: Resampled, n: int) -> Interval:
    lowest, highest = np.quantile(resampled, _tails())
    value = float(estimate)
    # On the resamples another number of random units may do as much damage, so that nearly all of
    # them can lie on one side of the estimate.
    low = min(float(lowest), value)
    high = max(float(highest), value)
    return Interval(value, low, high, n)


def _by_window(rows: Any, data: str, measure: str) -> Float[np.ndarray, " windows"]:
    chosen = rows[rows["data"] == data].sort_values("window")
    return chosen[measure].to_numpy(dtype=float)


def _by_draw(table: Any, data: str, measure: str) -> Float[np.ndarray, "draws windows"]:
    chosen = table[table["data"] == data]
    # Plans and windows come out in ascending order: the same windows as in `_by_window`.
    wide = chosen.pivot_table(index="plan", columns="window", values=measure)
    return wide.to_numpy(dtype=float)
