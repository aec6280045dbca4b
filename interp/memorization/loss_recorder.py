"""Recorders of a `LossHistory`, which `fit` calls after each step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp.memorization.dynamics import LossHistory
from interp.subject.batch import Batch
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject, evaluating, token_losses
from interp.training.fit import Step

Rows = Int[Tensor, " rows"] | Int[np.ndarray, " rows"]


class CheckpointRecorder:
    """Records the loss and accuracy of all examples at some moments of a training, without dropout.

    It costs a forward of all examples at each moment.

    Args:
        subject: the model that is trained.
        examples: what it is trained on, one example per row.
        moments: numbers of optimizer steps after which to record; 0 is before the first.
        batch_size: batch size of the forwards.
        file: where to save the history after each moment but the first, so that a training that is
            stopped leaves what it has recorded; nowhere by default.

    Raises:
        ValueError: fewer than two moments, a negative one, or an example without a token that
            counts.

    Example:
        >>> from interp.memorization.loss_recorder import CheckpointRecorder
        >>> recorder = CheckpointRecorder(untrained, batch, moments=(0, 2, 4))
        >>> learner_history = interp.fit(untrained, [batch] * 4, 4, lr=1e-3, callback=recorder)
        >>> recorder.history.losses.shape, recorder.history.steps.tolist()
        ((3, 12), [0, 2, 4])
    """

    def __init__(
        self,
        subject: Subject,
        examples: Batch,
        moments: Collection[int],
        batch_size: int = 16,
        file: str | Path | None = None,
    ) -> None:
        if len(set(moments)) < 2 or min(moments) < 0:
            raise ValueError(
                f"moments={sorted(set(moments))}: expected at least two different numbers of "
                "steps, from 0 on, because all scores are about how the loss moves"
            )
        empty = (~examples.counted.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"example {empty[0]} has no token that counts, so that it has no loss: leave it out"
            )
        self._subject = subject
        self._examples = examples
        self._moments = frozenset(moments)
        self._batch_size = batch_size
        self._file = file
        self._steps: list[int] = []
        self._losses: list[np.ndarray] = []
        self._accuracy: list[np.ndarray] = []
        # `fit` calls only after a step, so what comes before the first one is recorded now.
        if 0 in self._moments:
            self._record(0)

    def __call__(self, step: Step) -> None:
        """Records, if this is one of the moments."""
        done = step.number + 1
        if done in self._moments:
            self._record(done)

    @property
    def history(self) -> LossHistory:
        """What was recorded so far."""
        return LossHistory(
            np.array(self._losses), np.array(self._steps), accuracy=np.array(self._accuracy)
        )

    def _record(self, step: int) -> None:
        losses: list[np.ndarray] = []
        accuracy: list[np.ndarray] = []
        limit = BatchLimit()
        with evaluating(self._subject):
            for batch in self._examples.split(self._batch_size):
                for part, logits in limit.run(self._subject.target_logits, batch):
                    losses.append(mean_losses(token_losses(logits, part), part))
                    hits = (logits.argmax(-1).cpu() == part.targets.cpu()) & part.counted.cpu()
                    accuracy.append((hits.sum(1) / part.counted.cpu().sum(1)).numpy())
        self._steps.append(step)
        self._losses.append(np.concatenate(losses))
        self._accuracy.append(np.concatenate(accuracy))
        # A `LossHistory` refuses a single moment.
        if self._file is not None and len(self._steps) > 1:
            self.history.save(self._file)


class PresentationRecorder:
    """Records the loss of each example whenever it is trained on, before the update.

    It costs no forward: the losses are those of the training itself, with its dropout.

    Args:
        rows: the numbers of the examples in the batch of each step, in the order of the steps, as
            `interp.training.fit.epoch_rows` gives them.
        examples: how many examples there are.

    Example:
        >>> from interp.memorization.loss_recorder import PresentationRecorder
        >>> from interp.training.fit import epoch_rows, epochs
        >>> recorder = PresentationRecorder(epoch_rows(len(batch), 4), len(batch))
        >>> trained = interp.fit(untrained, epochs(batch, 4), 6, lr=1e-3, callback=recorder)
        >>> recorder.history.losses.shape, recorder.history.recorded
        ((2, 12), 'presentations')
    """

    def __init__(self, rows: Iterable[Rows], examples: int) -> None:
        self._rows: Iterator[Rows] = iter(rows)
        self._next_step = 0
        self._losses: list[list[float]] = [[] for _ in range(examples)]

    def __call__(self, step: Step) -> None:
        """Records the losses of a step.

        Raises:
            ValueError: the step has another number of rows than was given (which examples they are
                is taken on trust), an objective of its own, or does not follow the one before, as
                where a training is continued.
        """
        if step.number != self._next_step:
            raise ValueError(
                f"step {step.number} comes where step {self._next_step} was expected: the "
                "presentations in between are not recorded; train from the start, or use "
                "CheckpointRecorder"
            )
        self._next_step += 1
        rows = next(self._rows, None)
        if step.losses is None:
            raise ValueError(
                "the training has an objective of its own, and no loss per example: use "
                "CheckpointRecorder"
            )
        if rows is None or len(rows) != len(step.batch):
            known = 0 if rows is None else len(rows)
            raise ValueError(
                f"step {step.number} has {len(step.batch)} rows, and the numbers of {known} "
                "examples were given for it: expected those of its batch"
            )
        losses = mean_losses(step.losses, step.batch)
        for number, loss in zip(rows.tolist(), losses.tolist(), strict=True):
            self._losses[number].append(loss)

    @property
    def history(self) -> LossHistory:
        """What was recorded so far: as many presentations as every example has.

        Raises:
            ValueError: an example was presented less than twice.
        """
        counts = [len(losses) for losses in self._losses]
        fewest = min(counts)
        if fewest < 2:
            raise ValueError(
                f"example {counts.index(fewest)} was presented {fewest} times: expected at least "
                "two presentations of each; train for more steps"
            )
        losses = np.array([own[:fewest] for own in self._losses]).T  # [presentations, examples]
        return LossHistory(losses, np.arange(fewest), "presentations")


def mean_losses(
    losses: Float[Tensor, "batch predicted"], batch: Batch
) -> Float[np.ndarray, " batch"]:
    """Returns the mean loss of each row over its targets that count, in nats.

    Args:
        losses: of each target; 0 where it does not count.
        batch: the rows.

    Example:
        >>> from interp.memorization.loss_recorder import mean_losses
        >>> padded = interp.Batch.pad([[5, 6, 7], [8, 9]])
        >>> mean_losses(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), padded)
        array([2., 5.])
    """
    # Not `mean`: targets that do not count are in the rows as zeros.
    counts = batch.counted.sum(1).to(losses.device)
    means = losses.double().sum(1) / counts
    return means.cpu().numpy()
