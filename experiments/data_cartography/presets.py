"""The presets: which texts and canaries, which models, and what is pruned or re-weighted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# Scores by which examples are pruned, as tables and figures name them.
FORGET = "forget events"
RANDOM = "random"
DIFFICULTY = "difficulty"
DROP = "loss drop"
ORACLE = "canaries (oracle)"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What the models are trained on, in rows of tokens, and what is kept from them.

    Attributes:
        vocabulary: number of tokens.
        length: tokens per row; the second half of a row is what is extracted.
        once: rows of natural text that are there once.
        repeated: rows of natural text that are there as often as the most frequent canaries.
        copies: numbers of copies of the canaries, increasing.
        canaries: number of canaries with each of them. A canary is a row of random tokens.
        held_out: rows of natural text that no model is trained on.
        references: canaries that no model is trained on.
    """

    vocabulary: int
    length: int
    once: int
    repeated: int
    canaries: int
    held_out: int
    references: int
    copies: tuple[int, ...] = (1, 4, 16)

    @property
    def rows(self) -> int:
        """Number of rows that models are trained on."""
        of_canaries = self.canaries * sum(self.copies)
        return self.once + self.repeated * max(self.copies) + of_canaries


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model, its training, and what is changed in a second training.

    Attributes:
        name: "GPT" or "LSTM".
        width, layers: its sizes.
        epochs: of the first training; every other one has the same number of steps.
        batch_size: rows per step.
        lr: largest learning rate.
        pruned: the scores by which rows are pruned, each with the share of rows.
        reweighted: whether rows with a high published score are also down-weighted, and the whole
            policy is run.
        moments: how often per epoch the loss of all rows is recorded.
    """

    name: Literal["GPT", "LSTM"]
    width: int
    layers: int
    epochs: int
    batch_size: int
    lr: float
    pruned: tuple[tuple[str, float], ...]
    reweighted: bool
    moments: int = 2


@dataclass(frozen=True, kw_only=True)
class Convex:
    """The convex model on which the two bounds are checked.

    Attributes:
        samples: number of training samples.
        dimensions: number of features.
        steps: number of SGD steps.
        batch_size: samples per step where influence is measured.
        lr: learning rate.
        ridge: strength of the ridge of influence.
        draws: data sets over which the generalization gap is averaged.
    """

    samples: int = 40
    dimensions: int = 10
    steps: int = 60
    batch_size: int = 4
    lr: float = 0.5
    ridge: float = 0.01
    draws: int = 400


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is run.

    Attributes:
        seeds: number of seeds, each with its own text, canaries and weights.
        corpus: see `Corpus`.
        networks: the models.
        convex: see `Convex`.
    """

    seeds: int
    corpus: Corpus
    networks: tuple[Network, ...]
    convex: Convex = field(default_factory=Convex)


_PAPERS_SHARE = 0.05  # of the LSTM
_LARGER_SHARE = 0.10  # of the abstract

_PRUNED = (
    (FORGET, _PAPERS_SHARE),
    (RANDOM, _PAPERS_SHARE),
    (DROP, _PAPERS_SHARE),
    (ORACLE, _PAPERS_SHARE),
    (FORGET, _LARGER_SHARE),
    (RANDOM, _LARGER_SHARE),
    (DROP, _LARGER_SHARE),
    (ORACLE, _LARGER_SHARE),
    (DIFFICULTY, _LARGER_SHARE),
)

PRESETS = {
    "smoke": Preset(
        seeds=1,
        corpus=Corpus(
            vocabulary=300,
            length=16,
            once=64,
            repeated=2,
            canaries=2,
            held_out=16,
            references=16,
            copies=(1, 4, 8),
        ),
        networks=(
            Network(
                name="GPT",
                width=32,
                layers=1,
                epochs=5,
                batch_size=8,
                lr=1e-2,
                pruned=((FORGET, 0.1), (RANDOM, 0.1), (DROP, 0.1), (ORACLE, 0.1)),
                reweighted=True,
            ),
            Network(
                name="LSTM",
                width=32,
                layers=1,
                epochs=4,
                batch_size=8,
                lr=2e-2,
                pruned=((FORGET, 0.05), (RANDOM, 0.05)),
                reweighted=False,
            ),
        ),
        convex=Convex(draws=20),
    ),
    "small": Preset(
        seeds=3,
        corpus=Corpus(
            vocabulary=1024,
            length=64,
            once=864,
            repeated=6,
            canaries=6,
            held_out=200,
            references=200,
        ),
        networks=(
            Network(
                name="GPT",
                width=96,
                layers=2,
                epochs=5,
                batch_size=8,
                lr=2e-3,
                pruned=_PRUNED,
                reweighted=True,
                moments=3,
            ),
            Network(
                name="LSTM",
                width=128,
                layers=1,
                epochs=6,
                batch_size=16,
                lr=1e-2,
                pruned=_PRUNED,
                reweighted=False,
            ),
        ),
    ),
}
