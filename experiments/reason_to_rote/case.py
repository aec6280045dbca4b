"""A task as the checks ask about it: which rows of the tables are about it, and where its reasoning
is looked for."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.reason_to_rote.measures import Rows
from experiments.reason_to_rote.study import Reasoning


@dataclass(frozen=True, kw_only=True)
class Case:
    """A task and its model.

    Attributes:
        name: FDA or THR.
        reasoning: where its reasoning is looked for.
        blocks: number of blocks of the model.
        neurons: number of neurons of each MLP.
        circuit_items: number of items of each set that circuits are found on.
    """

    name: str
    reasoning: Reasoning
    blocks: int
    neurons: int
    circuit_items: int

    @property
    def end(self) -> Rows:
        """Rows about the model at the end of training on wrong labels."""
        return {"task": self.name, "stage": "end"}

    @property
    def untrained(self) -> Rows:
        """Rows about the untrained model."""
        return {"task": self.name, "stage": "untrained"}

    @property
    def noise_free(self) -> Rows:
        """Rows about the model that was trained on right labels only."""
        return {"task": self.name, "stage": "without noise"}
