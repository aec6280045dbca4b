"""Items: questions with one answer each, some of which are trained with a wrong answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int

from interp.subject.batch import Batch


@dataclass(frozen=True, eq=False)
class Items:
    """Questions with their true answers and with the answers that training shows.

    Attributes:
        question: [items, question] token ids.
        truth: [items, answer] token ids of the right answer.
        label: [items, answer] token ids of the answer that training shows: the truth, except for
            noisy items.
        variables: [items] each, by name: intermediate values that a solver computes.

    Raises:
        ValueError: the parts do not have one row per item.

    Example:
        >>> from interp.data.noisy import Items
        >>> items = Items(
        ...     question=np.array([[1, 2], [3, 4]]),
        ...     truth=np.array([[5], [6]]),
        ...     label=np.array([[5], [0]]),
        ...     variables={},
        ... )
        >>> items.noisy.tolist()
        [False, True]
        >>> items.batch().tokens.tolist()
        [[1, 2, 5], [3, 4, 0]]
    """

    question: Int[np.ndarray, "items question"]
    truth: Int[np.ndarray, "items answer"]
    label: Int[np.ndarray, "items answer"]
    variables: Mapping[str, Int[np.ndarray, " items"]]

    def __post_init__(self) -> None:
        lengths = {len(self.truth), *map(len, self.variables.values())}
        one_row_per_item = lengths == {len(self.question)}
        if self.truth.shape != self.label.shape or not one_row_per_item:
            sizes = {
                "question": len(self.question),
                "truth": self.truth.shape,
                "label": self.label.shape,
            }
            raise ValueError(f"questions, answers and variables need one row per item; got {sizes}")

    def __len__(self) -> int:
        return len(self.question)

    @property
    def noisy(self) -> Bool[np.ndarray, " items"]:
        """Which items are trained with a wrong answer."""
        return (self.label != self.truth).any(1)

    @classmethod
    def join(cls, parts: Sequence[Items]) -> Items:
        """Returns the items of all parts, in their order.

        Args:
            parts: items of one length, with the same variables.
        """
        variables: dict[str, np.ndarray] = {}
        for name in parts[0].variables:
            variables[name] = np.concatenate([part.variables[name] for part in parts])
        return cls(
            question=np.concatenate([part.question for part in parts]),
            truth=np.concatenate([part.truth for part in parts]),
            label=np.concatenate([part.label for part in parts]),
            variables=variables,
        )

    def rows(self, chosen: np.ndarray) -> Items:
        """Returns some items, by index or mask."""
        return Items(
            question=self.question[chosen],
            truth=self.truth[chosen],
            label=self.label[chosen],
            variables={name: values[chosen] for name, values in self.variables.items()},
        )

    def batch(self, answer: Int[np.ndarray, "items answer"] | None = None) -> Batch:
        """Returns question and answer as one sequence, of which the answer is predicted.

        Args:
            answer: [items, answer] token ids; the labels by default.
        """
        answer = self.label if answer is None else answer
        tokens = np.concatenate([self.question, answer], axis=1)
        # The question is the prompt: no loss is taken on it, which could only be guessed.
        question_length = self.question.shape[1]
        return Batch(torch.tensor(tokens), prompt=question_length)

    def frame(self) -> pd.DataFrame:
        """Returns one row per item: `question`, `truth` and `label` (tuples of token ids), `noisy`,
        and the variables."""
        columns = {
            "question": _tuples(self.question),
            "truth": _tuples(self.truth),
            "label": _tuples(self.label),
            "noisy": self.noisy,
            **self.variables,
        }
        return pd.DataFrame(columns)


def noisy_rows(items: int, rate: float, rng: np.random.Generator) -> Int[np.ndarray, " noisy"]:
    """Draws which items get a wrong label.

    Args:
        items: number of items.
        rate: share of them that is drawn.
        rng: the generator.

    Returns:
        [noisy] indices in increasing order.

    Raises:
        ValueError: a rate outside [0, 1].

    Example:
        >>> from interp.data.noisy import noisy_rows
        >>> len(noisy_rows(100, 0.05, np.random.default_rng(0)))
        5
    """
    if not 0 <= rate <= 1:
        raise ValueError(
            f"noise={rate}: expected the share of items with a wrong label, between 0 and 1"
        )
    # A fixed number instead of a coin for each item: all seeds have the same share of noise.
    count = round(rate * items)
    chosen = rng.choice(items, count, replace=False)
    return np.sort(chosen)


def _tuples(tokens: Int[np.ndarray, "items tokens"]) -> list[tuple[int, ...]]:
    return list(map(tuple, tokens.tolist()))
