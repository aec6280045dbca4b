"""When unlearning stops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from interp.memorization.recitation import levels, recitation
from interp.subject.batch import Batch
from interp.subject.subject import Subject


@dataclass(frozen=True)
class Stop:
    """The rule by which unlearning ends.

    It ends when no measure of the forget set is above its threshold (equation 7 of arXiv
    2509.13755), or after `epochs`. A level that equals its threshold is met: the EL_10 of small
    models, and so its threshold, is exactly 0, and with "below" training would go on until the
    model is destroyed.

    Attributes:
        thresholds: the level of `ma`, and of any `el_<n>`, at which the forget set counts as
            forgotten: what `interp.memorization.recitation.levels` gives for unseen data. Without
            any, training runs for all epochs.
        epochs: the largest number of epochs.
        every: number of epochs between measurements; the last one is always measured.
        margin: EL_n takes decoding, and is left out (NaN) while MA is above its threshold by more
            than this difference of shares. It saves time alone: until MA is at most its threshold,
            training goes on whatever EL_n is. Without a threshold of MA, EL_n is always measured.

    Raises:
        ValueError: a threshold of something else, or one that is not a fraction; a number of epochs
            below 1.

    Example:
        >>> from interp.mitigation.unlearning.stopping import Stop
        >>> stop = Stop({"ma": 0.3, "el_10": 0.0}, epochs=20)
        >>> stop.met({"ma": 0.3, "el_10": 0.0}), stop.met({"ma": 0.3, "el_10": 0.1})
        (True, False)
    """

    thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    epochs: int = 100
    every: int = 1
    margin: float = 0.3

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.every < 1:
            raise ValueError(
                f"epochs={self.epochs} and every={self.every}: expected numbers of epochs, at "
                "least 1"
            )
        for name, value in self.thresholds.items():
            if name != "ma" and _ngram(name) is None:
                raise ValueError(
                    f"a threshold of {name!r}: expected 'ma' or 'el_<n>', such as 'el_10'"
                )
            if not 0 <= value <= 1:
                raise ValueError(f"the threshold of {name} is {value}: expected 0 to 1")

    @property
    def ngrams(self) -> tuple[int, ...]:
        """The n of each EL_n that has a threshold."""
        found = map(_ngram, self.thresholds)
        return tuple(n for n in found if n is not None)

    def met(self, measured: Mapping[str, float]) -> bool:
        """Returns whether no measure is above its threshold; False without thresholds.

        Args:
            measured: the level of each measure; NaN where it was not measured, which is not met.
        """
        if not self.thresholds:
            return False
        return all(measured[name] <= most for name, most in self.thresholds.items())

    def measure(self, subject: Subject, forget: Batch, batch_size: int = 16) -> dict[str, float]:
        """Returns the levels of the forget set: `ma`, and each `el_<n>` that has a threshold.

        Args:
            subject: the model.
            forget: what is to be forgotten.
            batch_size: batch size.

        Returns:
            The levels; EL_n is NaN while MA is above its threshold by more than the margin.
        """
        # Without n-grams nothing is decoded: one forward gives MA.
        found = levels(recitation(subject, forget, ngrams=(), batch_size=batch_size))
        if not self.ngrams:
            return found
        # Where MA has no threshold, no MA is above this, and EL_n is always measured.
        near = self.thresholds.get("ma", 1.0) + self.margin
        if found["ma"] > near:
            return found | {f"el_{n}": math.nan for n in self.ngrams}
        return levels(recitation(subject, forget, self.ngrams, batch_size=batch_size))


def _ngram(name: str) -> int | None:
    """The n of `el_<n>`; None for another name."""
    prefix, _, number = name.partition("el_")
    if prefix or not number.isdecimal() or int(number) < 1:
        return None
    return int(number)
