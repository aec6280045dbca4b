"""Reference models for membership tests: a pool of models trained in complementary halves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.files import writable, write_json
from interp.subject.subject import Subject
from interp.training.state import load_weights, save_weights


@dataclass(frozen=True, eq=False)
class ReferencePool:
    """Which model of a pool is trained on which examples.

    Models 2i and 2i + 1 are a pair: each example is trained on by exactly one of the two. So for
    every target and every example, each other pair has exactly one model that was not trained on
    the example.

    Attributes:
        members: [models, examples] whether a model is trained on an example.

    Raises:
        ValueError: models that are not pairs of complementary halves.

    Example:
        >>> from interp.training.reference_pool import complementary_halves
        >>> pool = complementary_halves(examples=6, pairs=2, seed=0)
        >>> pool.members.sum(axis=0).tolist()
        [2, 2, 2, 2, 2, 2]
        >>> pool.untrained_on(target=0, count=1)[0].tolist() == [
        ...     3 if trained else 2 for trained in pool.members[2]
        ... ]
        True
    """

    members: Bool[np.ndarray, "models examples"]

    def __post_init__(self) -> None:
        first, second = self.members[::2], self.members[1::2]
        # Exactly one of the two for each example, as the exclusive or says.
        if len(first) != len(second) or not (first ^ second).all():
            raise ValueError(
                "members: expected models 2i and 2i + 1 to be trained on complementary halves"
            )

    @property
    def models(self) -> int:
        """How many models there are."""
        return len(self.members)

    def other_pairs(self, target: int, count: int) -> list[int]:
        """Returns the numbers of `count` pairs to which a target does not belong: those that come
        after its own, so that not all targets are compared with the same models.

        Raises:
            ValueError: there are not that many.
        """
        pairs = self.models // 2
        if not 1 <= count < pairs:
            raise ValueError(
                f"count={count}: expected 1 to {pairs - 1} of the other pairs of models"
            )
        return [(target // 2 + step) % pairs for step in range(1, count + 1)]

    def untrained_on(self, target: int, count: int) -> Int[np.ndarray, "count examples"]:
        """Returns, for each example, `count` models of other pairs that were not trained on it.

        Args:
            target: number of the model under test; it and its complement are left out.
            count: how many reference models.
        """
        pairs = self.other_pairs(target, count)
        # True counts as 1: where the first of a pair was trained on an example, the second was not.
        return np.stack([2 * pair + self.members[2 * pair] for pair in pairs])

    def untrained_on_population(
        self, target: int, count: int, points: int, seed: int
    ) -> Int[np.ndarray, "count points"]:
        """Returns, for each point that no model was trained on, `count` models of other pairs.

        Of each pair it is one of the two, drawn at random, as it is for an example. With the mean
        over both, a population would have a less noisy p(z) than examples have a p(x), and too many
        of these would beat all of it.

        Args:
            target, count: see `untrained_on`.
            points: how many points there are.
            seed: seed of the draws.
        """
        pairs = np.array(self.other_pairs(target, count))
        halves = np.random.default_rng(seed).integers(0, 2, (count, points))
        return 2 * pairs[:, None] + halves  # [count, points]

    def choose(
        self, values: Float[np.ndarray, "models examples"], target: int, count: int
    ) -> Float[np.ndarray, "count examples"]:
        """Returns the values of each example under models that were not trained on it.

        Args:
            values: [models, examples].
            target, count: see `untrained_on`.
        """
        return np.take_along_axis(values, self.untrained_on(target, count), axis=0)


def complementary_halves(examples: int, pairs: int, seed: int) -> ReferencePool:
    """Returns a pool in which every pair of models divides the examples into random halves.

    Args:
        examples: how many examples there are.
        pairs: how many pairs of models.
        seed: seed of the halves.

    Raises:
        ValueError: fewer than two examples, or no pair.
    """
    if examples < 2 or pairs < 1:
        raise ValueError(f"expected at least 2 examples and 1 pair; got {examples} and {pairs}")
    rng = np.random.default_rng(seed)
    members = np.zeros((2 * pairs, examples), dtype=bool)
    for pair in range(pairs):
        half = rng.permutation(examples)[: examples // 2]
        members[2 * pair, half] = True
        members[2 * pair + 1] = ~members[2 * pair]
    return ReferencePool(members)


def train_pool(
    pool: ReferencePool,
    make: Callable[[int], Subject],
    train: Callable[[Subject, Int[np.ndarray, " members"], int], None],
    folder: str | Path,
) -> Iterator[Subject]:
    """Yields every model of a pool, trained on its half. A model whose weights are in the folder
    already is not trained again, so an interrupted pool continues with the next one.

    Args:
        pool: who is trained on what; a folder with the models of another pool is refused.
        make: makes the untrained model of a number.
        train: trains a model, in place, on the examples with the given numbers; its last argument
            is the number of the model.
        folder: where weights are kept, one file per model. That these are of the same examples and
            the same training cannot be seen: give each a folder of its own.

    Raises:
        ValueError: the folder holds the models of another pool.
    """
    place = writable(folder)
    _check_same(place / "pool.json", pool)
    for number in range(pool.models):
        subject = make(number)
        weights = place / f"model{number:03d}.safetensors"
        # It is written whole or not at all, so that a file is a model whose training ended.
        if weights.exists():
            load_weights(weights, subject.module)
        else:
            train(subject, np.flatnonzero(pool.members[number]), number)
            save_weights(weights, subject.module)
        yield subject


def _check_same(file: Path, pool: ReferencePool) -> None:
    """Writes who is trained on what, or raises ValueError if the file says something else."""
    halves = hashlib.sha256(np.packbits(pool.members).tobytes()).hexdigest()
    about = {"models": pool.models, "examples": pool.members.shape[1], "halves": halves}
    if not file.exists():
        write_json(file, about)
        return
    before = json.loads(file.read_text())
    if before != about:
        raise ValueError(
            f"{file.parent} holds the models of another pool ({before['models']} of "
            f"{before['examples']} examples): give another folder, or remove it"
        )
