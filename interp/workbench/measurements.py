"""What a workbench measures, in small pieces.

Between two pieces a page can answer, and the selection can change. Nothing stays on the model: each
piece sets the interventions and takes them off again. What is measured is kept for as long as the
model is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions.kinds import Intervention
from interp.memorization.evaluation import window_measures
from interp.memorization.membership.token_map import token_map
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating

Key = str  # what decides what is measured: see `State.key`
Piece = tuple[str, int]  # what is measured, and of which passage or part
Windows = pd.DataFrame | Batch
Measures = dict[str, dict[str, np.ndarray]]

_AT_A_TIME = 4  # windows
_KEPT = 200  # states whose measures are kept: dragging makes many of them


@dataclass(frozen=True, eq=False)
class TokenValues:
    """What a model gives the tokens of one passage.

    Attributes:
        log_p: [length] log-probability of each token, in nats; NaN where nothing predicts it.
        most_likely: [length] the most likely token in its place; -1 where nothing predicts it.
    """

    log_p: Float[np.ndarray, " length"]
    most_likely: np.ndarray


class Measurements:
    """The pieces that are measured, by the key of the state and the piece.

    Args:
        subject: the model.
        data: windows by the name of their set; "memorized" are the passages.
        reference, film: see `Workspace`.
    """

    def __init__(
        self,
        subject: Subject,
        data: Mapping[str, Batch],
        reference: Subject | None,
        film: Callable[[], Tensor] | None,
    ) -> None:
        self.subject = subject
        self.data = data
        self.reference = reference
        self.film = film
        self._found: dict[tuple[Key, Piece], Any] = {}

    def pieces(self, passage: int) -> list[Piece]:
        """Returns all pieces of a state while a passage is shown, the most wanted first."""
        found: list[Piece] = [("tokens", passage)]
        if self.reference is not None:
            found.append(("membership", passage))
        for name in self.data:
            found += self._parts(name)
        found.append(("continuation", passage))
        if self.film is not None:
            found.append(("film", 0))
        return found

    def _parts(self, name: str) -> list[Piece]:
        count = -(-len(self.data[name]) // _AT_A_TIME)
        return [(name, part) for part in range(count)]

    def has(self, key: Key, piece: Piece) -> bool:
        """Whether a piece is measured."""
        return (key, piece) in self._found

    def get(self, key: Key, piece: Piece) -> Any:
        """Returns a piece; None where it is not measured yet."""
        return self._found.get((key, piece))

    def windows(self, key: Key) -> Measures:
        """Returns the measures of every window of the sets that are complete: {set: {measure:
        [windows]}}; see `window_measures`."""
        found: Measures = {}
        for name in self.data:
            parts = [self.get(key, piece) for piece in self._parts(name)]
            if any(part is None for part in parts):
                continue
            found[name] = {
                measure: np.concatenate([part[measure] for part in parts]) for measure in parts[0]
            }
        return found

    def measure(self, key: Key, piece: Piece, plan: Sequence[Intervention]) -> None:
        """Measures a piece under a plan and keeps it."""
        with self.subject.intervened(tuple(plan)), evaluating(self.subject), torch.no_grad():
            self._found[key, piece] = self._compute(piece)

    def _compute(self, piece: Piece) -> Any:
        name, number = piece
        if name == "film":
            assert self.film is not None
            return self.film()
        if name == "tokens":
            return self._token_values(self.passage(number))
        if name == "membership":
            return self._membership(self.passage(number))
        if name == "continuation":
            return self.subject.generate(self.passage(number))[0].tolist()
        first = number * _AT_A_TIME
        part = self.data[name].rows(slice(first, first + _AT_A_TIME))
        return window_measures(self.subject.target_logits(part), part)

    def passage(self, number: int) -> Batch:
        """Returns a passage as a batch of one row."""
        return self.data["memorized"].rows(slice(number, number + 1))

    def _token_values(self, window: Batch) -> TokenValues:
        logits = self.subject.logits(window)[0].double()  # [length, vocabulary]
        tokens = window.tokens[0].to(logits.device)
        of_all = logits.log_softmax(-1)
        log_p = of_all.gather(1, tokens[:, None])[:, 0].cpu().numpy()
        most_likely = logits.argmax(-1).cpu().numpy()
        # All zeros stand for a position that nothing predicts.
        if window.prompt and not bool(logits[0].any()):
            log_p[0] = np.nan
            most_likely[0] = -1
        return TokenValues(log_p, most_likely)

    def _membership(self, window: Batch) -> Float[np.ndarray, " length"]:
        assert self.reference is not None
        ids = window.tokens[0].tolist()
        mapped = token_map(self.subject, ids, self.reference, bos=False)
        return mapped.frame["score"].to_numpy(dtype=float)

    def forget_old(self, keep: set[Key]) -> None:
        """Drops the oldest states where there are too many."""
        # In the order in which the states were first measured.
        keys = dict.fromkeys(key for key, _ in self._found)
        old = [key for key in keys if key not in keep]
        dropped = set(old[: max(0, len(keys) - _KEPT)])
        self._found = {
            entry: found for entry, found in self._found.items() if entry[0] not in dropped
        }

    def forget_all(self) -> None:
        """Drops everything: for a model that has changed."""
        self._found.clear()


def first_windows(name: str, source: Any, count: int) -> tuple[Batch, np.ndarray]:
    """Returns the first windows of a set as one batch, and the text of each.

    Args:
        name: of the set, for messages.
        source: rows of a scan, or a Batch.
        count: how many windows, at most.

    Raises:
        ValueError: an empty set, or something else.
    """
    if isinstance(source, pd.DataFrame):
        if source.empty:
            raise ValueError(f"the {name} set is empty: expected at least one window")
        rows: Any = source.iloc[:count]
        texts = rows["text"].to_numpy() if "text" in rows else np.arange(len(rows))
        return Batch.from_frame(rows), texts
    if not isinstance(source, Batch):
        raise ValueError(
            f"the {name} set is a {type(source).__name__}: expected rows of a scan, or a Batch"
        )
    batch = source.rows(slice(0, count))
    return batch, np.arange(len(batch))


def in_words(piece: Piece) -> str:
    """Returns what is measured, for a progress bar."""
    name, number = piece
    if name == "tokens":
        return f"passage {number + 1}"
    if name == "membership":
        return f"membership of passage {number + 1}"
    if name == "continuation":
        return f"what follows in passage {number + 1}"
    if name == "film":
        return "what the model does"
    return f"{name.replace('_', '-')} windows"
