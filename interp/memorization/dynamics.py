"""How the loss of each training example moves during training, and the scores that are read off it.

A `LossHistory` holds the loss of every example at every moment at which it was recorded. From it
come the scores of two papers, each under its own name, and alternatives to them:

- GenDataCarto (Patel and Shanbhag, arXiv 2509.00083): `difficulty`, the mean loss early on, and
  `forget_events`, how often an example is learned and then lost again, which the paper reads as
  memorization.
- Dataset Cartography (Swayamdipta et al., arXiv 2009.10795): `confidence`, `variability`,
  `correctness`, and `forgetfulness`, which is that of Toneva et al. (arXiv 1812.05159).
- `loss_drop`, how far the loss falls in all: an example that is learned once and stays learned, as
  repeated ones may be, has no forget event and a large drop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.errors import closest
from interp.files import replaced

Recorded = Literal["checkpoints", "presentations"]
Scores = Float[np.ndarray, " examples"]

_EARLY = 0.2  # share of the moments that difficulty is a mean over; the paper does not say
_NEVER_LEARNED = 1000  # the forgetfulness of an example that was never right, as in the code
_KIND = "interp loss history"  # in the metadata of a saved file


@dataclass(frozen=True, eq=False)
class LossHistory:
    """The loss of each training example over training.

    Attributes:
        losses: [moments, examples] mean loss per token, in nats.
        steps: [moments] the number of optimizer steps before each moment, increasing. For
            presentations, which come at another step for each example, their numbers from 0.
        recorded: "checkpoints", where all examples are measured at the same moments; or
            "presentations", where each is measured when it is trained on, before the update.
        accuracy: [moments, examples] the share of an example's tokens that are the most likely
            ones, where it was recorded.

    Raises:
        ValueError: fewer than two moments, no examples, shapes that do not fit, steps that do not
            increase, or losses that are not finite.

    Example:
        >>> from interp.memorization.dynamics import LossHistory
        >>> history = LossHistory(np.array([[5.0, 5.0], [1.0, 4.0]]), steps=np.array([0, 10]))
        >>> history.loss_drop
        array([4., 1.])
    """

    losses: Float[np.ndarray, "moments examples"]
    steps: Int[np.ndarray, " moments"]
    recorded: Recorded = "checkpoints"
    accuracy: Float[np.ndarray, "moments examples"] | None = None

    def __post_init__(self) -> None:
        if self.recorded not in get_args(Recorded):
            choices = get_args(Recorded)
            raise ValueError(
                f"recorded={self.recorded!r}: expected one of {', '.join(choices)}; "
                f"nearest: {closest(self.recorded, choices)}"
            )
        shape = self.losses.shape
        if self.losses.ndim != 2 or shape[0] < 2 or shape[1] < 1:
            raise ValueError(
                f"losses have the shape {list(shape)}: expected [moments, examples] with at least "
                "two moments, because all scores are about how the loss moves"
            )
        if self.accuracy is not None and self.accuracy.shape != shape:
            raise ValueError(
                f"accuracy has the shape {list(self.accuracy.shape)}: expected that of the losses, "
                f"{list(shape)}"
            )
        if len(self.steps) != shape[0] or not (np.diff(self.steps) > 0).all():
            raise ValueError(
                f"{len(self.steps)} steps of {shape[0]} moments: expected one for each, increasing"
            )
        finite = np.isfinite(self.losses)
        if not finite.all():
            moment, example = np.argwhere(~finite)[0]
            raise ValueError(
                f"the loss of example {example} at step {self.steps[moment]} is "
                f"{self.losses[moment, example]}: expected finite losses; lower the learning rate, "
                "or keep only the moments before"
            )

    def save(self, path: str | Path) -> Path:
        """Writes the history to one file, whole or not at all; `load` reads it.

        Args:
            path: the file, such as `history.safetensors`; folders that do not exist are made.

        Returns:
            The path written.

        Raises:
            OSError: the file cannot be written.

        Example:
            >>> import tempfile
            >>> from interp.memorization.dynamics import LossHistory
            >>> history = LossHistory(np.array([[5.0, 5.0], [1.0, 4.0]]), steps=np.array([0, 10]))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     file = history.save(f"{folder}/history.safetensors")
            ...     LossHistory.load(file).loss_drop
            array([4., 1.])
        """
        from safetensors.numpy import save_file

        arrays = {"losses": self.losses, "steps": self.steps}
        if self.accuracy is not None:
            arrays["accuracy"] = self.accuracy
        # safetensors writes the memory of an array: that of a transposed one is in another order.
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        target = Path(path)
        with replaced(target) as temporary:
            save_file(arrays, temporary, {"kind": _KIND, "recorded": self.recorded})
        return target

    @classmethod
    def load(cls, path: str | Path) -> LossHistory:
        """Returns the history that `save` wrote to a file.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a history, or one of them is damaged.
        """
        from safetensors import SafetensorError, safe_open

        file = Path(path)
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist: expected a saved LossHistory")
        refused = ValueError(
            f"{file} is not a loss history: expected a file that LossHistory.save wrote"
        )
        try:
            with safe_open(file, framework="numpy") as stored:
                about = stored.metadata() or {}
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise refused from error
        if about.get("kind") != _KIND or not {"losses", "steps"} <= arrays.keys():
            raise refused
        # The constructor checks the rest, as for a history that was not read from a file.
        return cls(
            arrays["losses"],
            arrays["steps"],
            "presentations" if about.get("recorded") == "presentations" else "checkpoints",
            arrays.get("accuracy"),
        )

    def frame(self) -> pd.DataFrame:
        """Returns all scores with their default settings, one row per example.

        Returns:
            A frame with the columns

            - `example`: the number of the example;
            - `first_loss`, `last_loss`: at the first and at the last moment, in nats per token;
            - `loss_drop`, `difficulty`, `forget_events`, `relative_forget_events`, `confidence`,
              `variability`: see the methods of these names;
            - `correctness`, `forgetfulness`: the same, where accuracy was recorded.

        Example:
            >>> from interp.memorization.dynamics import LossHistory
            >>> history = LossHistory(np.array([[5.0, 5.0], [1.0, 4.0]]), steps=np.array([0, 10]))
            >>> history.frame()[["example", "first_loss", "loss_drop", "forget_events"]]
               example  first_loss  loss_drop  forget_events
            0        0         5.0        4.0            0.0
            1        1         5.0        1.0            0.0
        """
        columns: dict[str, np.ndarray] = {
            "example": np.arange(self.losses.shape[1]),
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
            "loss_drop": self.loss_drop,
            "difficulty": self.difficulty(),
            "forget_events": self.forget_events(),
            "relative_forget_events": self.relative_forget_events(),
            "confidence": self.confidence,
            "variability": self.variability,
        }
        if self.accuracy is not None:
            columns["correctness"] = self.correctness()
            columns["forgetfulness"] = self.forgetfulness()
        return pd.DataFrame(columns)

    def difficulty(self, moments: int | None = None) -> Scores:
        """Returns the mean loss of each example over the first moments, in nats per token.

        Args:
            moments: how many; by default a fifth of all, at least one. The paper averages over the
                first epochs and does not say how many.

        Raises:
            ValueError: no moments, or more than there are.
        """
        count = max(1, round(_EARLY * len(self.losses))) if moments is None else moments
        if not 1 <= count <= len(self.losses):
            raise ValueError(
                f"moments={count}: expected 1 to {len(self.losses)}, as many as were recorded"
            )
        return self.losses[:count].mean(0)

    def forget_events(
        self, threshold: float | None = None, hysteresis: float = 0.0
    ) -> Float[np.ndarray, " examples"]:
        """Returns how often the loss of each example rises above a threshold, as a share of the
        moments at which it could.

        This is the paper's memorization score. One threshold for all examples makes it a score of
        entropy as well: only an example whose loss is near the threshold can cross it.

        Args:
            threshold: in nats per token; by default the median over examples of the loss at one
                moment, the last of those that `difficulty` averages by default, so that half of the
                examples count as learned early. The paper does not say.
            hysteresis: a rise counts only from below the threshold minus half of it to above the
                threshold plus half of it, with any number of moments between.

        Raises:
            ValueError: a hysteresis below 0.
        """
        if hysteresis < 0:
            raise ValueError(f"hysteresis={hysteresis}: expected a number of nats, from 0 on")
        level = self._early_median() if threshold is None else threshold
        is_low = self.losses < level - hysteresis / 2
        is_high = self.losses > level + hysteresis / 2
        return self._share(_falls_back(is_low, is_high))

    def relative_forget_events(self, rise: float = 0.2) -> Float[np.ndarray, " examples"]:
        """Returns how often the loss of each example is above its own lowest one so far by more
        than `rise`, as a share of the moments at which it could.

        Every such moment counts: a loss that rises once and stays there counts at each later
        moment, where `forget_events` counts the rise once.

        Args:
            rise: in nats per token.
        """
        # Each moment is compared with the lowest loss before it, which the first one does not have.
        lowest_before = np.minimum.accumulate(self.losses, axis=0)[:-1]
        return self._share((self.losses[1:] > lowest_before + rise).sum(0))

    @property
    def loss_drop(self) -> Scores:
        """How far the loss of each example falls from the first moment to the last, in nats per
        token."""
        return self.losses[0] - self.losses[-1]

    @property
    def confidence(self) -> Scores:
        """The mean over moments of the probability of an example's tokens: their geometric mean, so
        that it does not depend on the number of tokens."""
        return np.exp(-self.losses).mean(0)

    @property
    def variability(self) -> Scores:
        """The standard deviation of that probability over moments, as of a whole population."""
        return np.exp(-self.losses).std(0)

    def correctness(self, least: float = 0.5) -> Int[np.ndarray, " examples"]:
        """Returns at how many moments each example was right.

        Args:
            least: an example is right where more than this share of its tokens is.

        Raises:
            ValueError: accuracy was not recorded.
        """
        return self._is_right(least).sum(0)

    def forgetfulness(self, least: float = 0.5) -> Int[np.ndarray, " examples"]:
        """Returns how often each example was right and then wrong at the next moment; 1000 for one
        that was never right.

        Args:
            least: as of `correctness`.

        Raises:
            ValueError: accuracy was not recorded.
        """
        is_right = self._is_right(least)
        forgotten = (is_right[:-1] & ~is_right[1:]).sum(0)
        return np.where(is_right.any(0), forgotten, _NEVER_LEARNED)

    def _is_right(self, least: float) -> Bool[np.ndarray, "moments examples"]:
        if self.accuracy is None:
            raise ValueError(
                "accuracy was not recorded, so that no example can be called right: record it with "
                "the losses, or use confidence"
            )
        return self.accuracy > least

    def _early_median(self) -> float:
        # The last of the moments that `difficulty` is a mean over by default.
        last_early = max(1, round(_EARLY * len(self.losses))) - 1
        return float(np.median(self.losses[last_early]))

    def _share(self, events: Int[np.ndarray, " examples"]) -> Float[np.ndarray, " examples"]:
        # Nothing can have risen at the first moment.
        return events / (len(self.losses) - 1)


def _falls_back(
    is_low: Bool[np.ndarray, "moments examples"], is_high: Bool[np.ndarray, "moments examples"]
) -> Int[np.ndarray, " examples"]:
    """How often each example is high after it was low, counted once for each time it was low."""
    events = np.zeros(is_low.shape[1], dtype=np.int64)
    was_low = is_low[0]
    for low, high in zip(is_low[1:], is_high[1:], strict=True):
        events += was_low & high
        # Between the two limits an example stays what it was.
        was_low = low | (was_low & ~high)
    return events
