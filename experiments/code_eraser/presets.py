"""The presets: how much code a model memorizes, and how it is unlearned."""

from __future__ import annotations

from dataclasses import dataclass

from interp.mitigation.removal.stress import Relearning

LOCALIZED = "CodeEraser in chosen neurons"
ABLATION = "ablation"
CURVATURE = "curvature edit"
NOISE = "noise in all weights"
# Not removals: the model before any, and the one that never read the files to be forgotten.
NONE = "none"
NEVER_READ = "never read"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained until it has memorized the repeated texts.

    Attributes:
        width, layers: its sizes.
        batch_size: rows per step while it reads the background once.
        lr: largest learning rate there.
        repeats: how often each repeated text is shown after that.
        texts_per_step: how many of them a step has.
        background_per_step: rows of background that are added, so that the model does not lose the
            language over them.
        repeated_lr: largest learning rate there.
    """

    width: int
    layers: int
    batch_size: int
    lr: float
    repeats: int
    texts_per_step: int
    background_per_step: int
    repeated_lr: float


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is memorized, and when unlearning ends.

    Attributes:
        forget: number of files whose secrets are to be forgotten.
        spare: number of further files with secrets, which join them where more are forgotten.
        others: number of files with secrets that are never forgotten.
        retained: number of pieces of code that unlearning is told to keep.
        memorized: number of other pieces of code to memorize.
        characters: the largest length of a piece of code.
        head: characters that are read of each file of the background.
        vocabulary: number of tokens.
        held_out: number of rows of held-out code.
        training: see `Training`.
        epochs: the most epochs of unlearning.
        row: tokens of a row of background.
        length: tokens that are kept of a repeated text.
        damage: the rise of the loss on held-out code at which removals are compared, in nats per
            token.
    """

    forget: int
    spare: int
    others: int
    retained: int
    memorized: int
    characters: int
    head: int
    vocabulary: int
    held_out: int
    training: Training
    epochs: int
    row: int = 128
    length: int = 256
    damage: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """A method of unlearning with its settings.

    Attributes:
        name: its name in tables and figures.
        method: its name in `interp.unlearn`.
        lr: learning rate.
        options: its options, as names and values.
    """

    name: str
    method: str
    lr: float
    options: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is run of the paper.

    Attributes:
        seeds: number of seeds, each with its own corpus, weights and order.
        setup: see `Setup`.
        methods: the methods of the paper, CodeEraser the last of them.
        lrs, gammas, counts: further learning rates of CodeEraser, weights of its context, and
            numbers of files that it forgets at once.
    """

    seeds: int
    setup: Setup
    methods: tuple[Unlearning, ...]
    lrs: tuple[float, ...]
    gammas: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RemovalsPreset:
    """How much is run of the comparison of removals.

    Attributes:
        seeds: number of seeds.
        setup: see `Setup`.
        methods: the methods of unlearning that train all weights.
        localized: the one that trains the out-weights of a few neurons.
        localized_neurons: how many.
        neurons: numbers of neurons that are ablated.
        masses: shares of the curvature that the curvature edit keeps.
        scales: sizes of the noise, as shares of the standard deviation of each weight matrix.
        draws: number of draws of each random control.
        relearning: how copies are fine-tuned to bring the secrets back.
    """

    seeds: int
    setup: Setup
    methods: tuple[Unlearning, ...]
    localized: Unlearning
    localized_neurons: int
    neurons: tuple[int, ...]
    masses: tuple[float, ...]
    scales: tuple[float, ...]
    draws: int
    relearning: Relearning

    @property
    def removals(self) -> tuple[str, ...]:
        """The names of all removals that are compared."""
        return (*(method.name for method in self.methods), LOCALIZED, ABLATION, CURVATURE)


def _of_paper(lr: float) -> tuple[Unlearning, ...]:
    """The paper's methods, at one learning rate."""
    return (
        Unlearning(name="GA", method="ga", lr=lr),
        Unlearning(name="CU", method="cu", lr=lr),
        Unlearning(name="SSGA", method="ssga", lr=lr),
        Unlearning(name="CodeEraser", method="codeeraser", lr=lr),
    )


def _all_methods(lr: float, others: float) -> tuple[Unlearning, ...]:
    """The paper's methods and others. Those whose ascent fades by itself take a larger learning
    rate; the `delta` of SimNPO is about the loss of never-read secrets, where its ascent ends."""
    return (
        *_of_paper(lr),
        Unlearning(name="GradDiff", method="graddiff", lr=lr),
        Unlearning(name="NPO", method="npo", lr=others),
        Unlearning(name="SimNPO", method="simnpo", lr=others, options=(("delta", 5.0),)),
        Unlearning(name="RMU", method="rmu", lr=others, options=(("coefficient", 20.0),)),
    )


_SMOKE = Setup(
    forget=3,
    spare=1,
    others=2,
    retained=3,
    memorized=3,
    characters=160,
    head=1_000,
    vocabulary=384,
    held_out=8,
    training=Training(
        width=64,
        layers=2,
        batch_size=16,
        lr=4e-3,
        repeats=80,
        texts_per_step=6,
        background_per_step=2,
        repeated_lr=3e-3,
    ),
    epochs=20,
)
_SMALL = Setup(
    forget=8,
    spare=8,
    others=8,
    retained=8,
    memorized=16,
    characters=160,
    head=8_000,
    vocabulary=1024,
    held_out=32,
    training=Training(
        width=128,
        layers=4,
        batch_size=32,
        lr=2e-3,
        repeats=70,
        texts_per_step=8,
        background_per_step=3,
        repeated_lr=1.5e-3,
    ),
    epochs=60,
)
PRESETS = {
    "smoke": Preset(
        seeds=1,
        setup=_SMOKE,
        methods=_of_paper(2e-4),
        lrs=(2e-4, 1e-3),
        gammas=(0.1, 0.5),
        counts=(2, 3),
    ),
    "small": Preset(
        seeds=3,
        setup=_SMALL,
        methods=_of_paper(3e-5),
        lrs=(1e-5, 3e-5, 3e-4),
        gammas=(0.1, 0.5, 1.0),
        counts=(2, 4, 8, 16),
    ),
}
REMOVALS = {
    "smoke": RemovalsPreset(
        seeds=1,
        setup=_SMOKE,
        methods=_all_methods(2e-4, others=1e-3),
        localized=Unlearning(name=LOCALIZED, method="codeeraser", lr=2e-3),
        localized_neurons=32,
        neurons=(2, 8, 32, 128),
        masses=(0.99, 0.9, 0.6, 0.3),
        scales=(0.05, 0.1, 0.2, 0.5, 1.0),
        draws=1,
        relearning=Relearning((0, 2, 5), lr=1e-3),
    ),
    "small": RemovalsPreset(
        seeds=3,
        setup=_SMALL,
        methods=_all_methods(3e-5, others=2e-4),
        localized=Unlearning(name=LOCALIZED, method="codeeraser", lr=2e-3),
        localized_neurons=100,
        # From 2 to 2048 neurons, two doses per doubling.
        neurons=tuple(round(2 ** (step / 2)) for step in range(2, 23)),
        masses=(0.9999, 0.9995, 0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3),
        scales=tuple(0.05 * 1.25**step for step in range(12)),
        draws=3,
        relearning=Relearning((0, 10, 50), lr=1e-4),
    ),
}
