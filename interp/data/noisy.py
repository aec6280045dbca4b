"""Items: questions with one answer each, of which some are trained with a wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int

from interp.subject.batch import Batch


@dataclass(frozen=True, eq=False)
class Items:
    """Questions, and the answers that are true and that are trained.

    Attributes:
        question: [items, question] token ids.
        truth: [items, answer] token ids of the right answer.
        label: [items, answer] token ids of the answer that training shows: the truth, but for noisy
        items.
        variables: what a solver computes on its way, by name, each [items].
    """

    question: Int[np.ndarray, "items question"]
    truth: Int[np.ndarray, "items answer"]
    label: Int[np.ndarray, "items answer"]
    variables: Mapping[str, Int[np.ndarray, " items"]]

    def __post_init__(self) -> None:
        if self.truth.shape != self.label.shape or {
            len(self.truth),
            *map(len, self.variables.values()),
        } != {len(self.question)}:
            sizes = {
                "question": len(self.question),
                "truth": self.truth.shape,
                "label": self.label.shape,
            }
            raise ValueError(f"questions, answers and variables need one row an item; got {sizes}")

    def __len__(self) -> int:
        return len(self.question)

    @property
    def noisy(self) -> Bool[np.ndarray, " items"]:
        """Which items are trained with a wrong answer."""
        return (self.label != self.truth).any(1)

    def rows(self, chosen: np.ndarray) -> Items:
        """Some items, by index or mask."""
        variables = {name: values[chosen] for name, values in self.variables.items()}
        return Items(self.question[chosen], self.truth[chosen], self.label[chosen], variables)

    def batch(self, answer: Int[np.ndarray, "items answer"] | None = None) -> Batch:
        """Question and answer as one sequence, of which the answer is predicted: the label, or
        another answer."""
        tokens = np.concatenate([self.question, self.label if answer is None else answer], 1)
        return Batch(torch.tensor(tokens), self.question.shape[1])

    def frame(self) -> pd.DataFrame:
        """One row an item: `question`, `truth`, `label` (tuples of token ids), `noisy`, and the
        variables."""
        tokens = {
            name: list(map(tuple, getattr(self, name).tolist()))
            for name in ("question", "truth", "label")
        }
        return pd.DataFrame(tokens | {"noisy": self.noisy, **self.variables})


def noisy_rows(items: int, rate: float, rng: np.random.Generator) -> Int[np.ndarray, " noisy"]:
    """Which items get a wrong label: a share `rate` of them, drawn once, in increasing order.
    Raises ValueError outside [0, 1]."""
    if not 0 <= rate <= 1:
        raise ValueError(
            f"noise={rate}: expected the share of items with a wrong label, between 0 and 1"
        )
    return np.sort(rng.choice(items, round(rate * items), replace=False))
