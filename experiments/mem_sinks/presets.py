"""The presets: what is repeated, and how models are trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from interp.reporting.looks import in_percent

# Names of runs, as they stand in tables and figures.
STANDARD = "standard"
WIDE = "standard, wide"
NARROW = "standard, general neurons alone"
DEDUPLICATED = "deduplicated"
SAME_STEPS = "deduplicated, same steps"
SINKS = "sinks"
SMALL_POOL = "sinks, small pool"
LARGE_POOL = "sinks, large pool"
UNTIED = "untied masks"
PER_LAYER = "sinks, masks of each layer"
NO_DECAY = "sinks without weight decay"
RESERVED = "gradient masking"
RESERVED_OFF = "gradient masking, reserved neurons off for other text"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The sequences.

    Attributes:
        vocabulary: number of tokens.
        length: tokens of a sequence.
        repeated: number of repeated sequences of code.
        canaries: number of repeated sequences of random tokens.
        copies: how often each of these is presented.
        once: number of sequences that are presented once.
        held_out: number of sequences that no model is trained on.
        head: characters that are read of each file.
    """

    vocabulary: int
    length: int
    repeated: int
    canaries: int
    copies: int
    once: int
    held_out: int
    head: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """How every model is trained.

    Attributes:
        width, layers, heads: its sizes, but for the number of neurons.
        batch_size: sequences per step.
        lr: largest learning rate.
        warmup: steps over which it rises.
        weight_decay: AdamW's.
    """

    width: int
    layers: int
    heads: int = 4
    batch_size: int = 16
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        name: its name in tables.
        neurons: number of neurons of each MLP.
        general: number of them that are on for all text; None where there are no sinks.
        active: number of sinks that are on for a document.
        noise: share of the presentations that get a random id; with 1 masks are untied.
        data: what is presented: everything; each sequence once; or each once and further sequences,
            so that there are as many steps.
        reserve: of gradient masking, which limits what is trained and not what is computed:
            repeated sequences run through all neurons, and train the sinks alone. With "on for
            others" the sinks are on for all other text too; "off for others" turns them off there.
        per_layer: whether each block has masks of its own.
        sinks_decay: whether the weights of sinks decay.
    """

    name: str
    neurons: int
    general: int | None = None
    active: int = 0
    noise: float = 0.0
    data: Literal["all", "once", "once, same steps"] = "all"
    reserve: Literal["", "on for others", "off for others"] = ""
    per_layer: bool = False
    sinks_decay: bool = True


@dataclass(frozen=True, kw_only=True)
class PostHoc:
    """Removal from a standard model, by neurons that are found after training.

    Attributes:
        run: the training whose model it is.
        against: the training with sinks that it is compared with, of the same number of neurons.
        methods: localization methods.
        fractions: shares of the neurons that are zeroed.
        draws: number of random draws at each fraction.
        options: options of methods, by name.
    """

    run: str
    against: str
    methods: tuple[str, ...]
    fractions: tuple[float, ...]
    draws: int
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is run.

    Attributes:
        seeds: number of seeds, each with its own split of the text, weights and order.
        corpus, training: see these.
        runs: the trainings.
        post_hoc: see `PostHoc`.
        searched: number of repeated sequences whose sinks are searched for.
        search_options: options of localization methods, by name.
        not_searched: methods that are left out.
        drawn: the runs whose training curves are drawn.
        every: steps between two measurements of these.
    """

    seeds: int
    corpus: Corpus
    training: Training
    runs: tuple[Run, ...]
    post_hoc: PostHoc
    searched: int
    every: int
    search_options: Mapping[str, Mapping[str, Any]]
    drawn: tuple[str, ...] = (STANDARD, DEDUPLICATED, SINKS)
    not_searched: tuple[str, ...] = ("causal_tracing", "lowest", "smallest", "random", "zero_out")


def noisy(share: float) -> str:
    """The name of the run in which a share of the presentations has a random id."""
    return f"sinks, {in_percent(share)} random ids"


def _runs(
    general: int,
    pools: tuple[int, int, int],
    active: int,
    noise: tuple[float, ...] = (0.1,),
    *,
    variants: bool = False,
) -> tuple[Run, ...]:
    """All trainings.

    Args:
        general: number of general neurons.
        pools: sizes of a small, a usual and a large pool beside them.
        active: number of sinks that are on for a document.
        noise: shares of presentations with a random id.
        variants: whether to train with masks of each layer and without decay of the sinks too.
    """
    small, usual, large = (general + pool for pool in pools)

    def sinks(name: str, neurons: int = usual, **options: Any) -> Run:
        return Run(name=name, neurons=neurons, general=general, active=active, **options)

    further = (
        sinks(PER_LAYER, per_layer=True),
        sinks(NO_DECAY, sinks_decay=False),
    )
    return (
        Run(name=STANDARD, neurons=usual),
        Run(name=WIDE, neurons=large),
        Run(name=NARROW, neurons=general),
        Run(name=DEDUPLICATED, neurons=usual, data="once"),
        Run(name=SAME_STEPS, neurons=usual, data="once, same steps"),
        sinks(SINKS),
        sinks(SMALL_POOL, small),
        sinks(LARGE_POOL, large),
        sinks(UNTIED, noise=1.0),
        *(sinks(noisy(share), noise=share) for share in noise),
        *(further if variants else ()),
        Run(name=RESERVED, neurons=usual, general=general, reserve="on for others"),
        Run(name=RESERVED_OFF, neurons=usual, general=general, reserve="off for others"),
    )


_METHODS = ("absolute_gradient_x_activation", "integrated_gradients", "activation")

PRESETS = {
    "smoke": Preset(
        seeds=1,
        corpus=Corpus(
            vocabulary=300,
            length=32,
            repeated=4,
            canaries=2,
            copies=16,
            once=64,
            held_out=16,
            head=2_000,
        ),
        training=Training(width=32, layers=2, warmup=5, lr=1e-2, batch_size=8),
        runs=_runs(32, (8, 32, 64), 8, variants=True),
        post_hoc=PostHoc(
            run=WIDE, against=LARGE_POOL, methods=_METHODS[:2], fractions=(0.2, 1.0), draws=1
        ),
        searched=2,
        every=10,
        search_options={
            "slimming": {"steps": 5},
            "hard_concrete": {"steps": 5},
            "integrated_gradients": {"points": 2},
            "neuron_flipping": {"at_most": 2},
        },
    ),
    "small": Preset(
        seeds=3,
        corpus=Corpus(
            vocabulary=2048,
            length=64,
            repeated=32,
            canaries=16,
            copies=64,
            once=4096,
            held_out=256,
            head=20_000,
        ),
        training=Training(width=128, layers=2),
        runs=_runs(512, (154, 512, 1536), 51),
        post_hoc=PostHoc(
            run=WIDE,
            against=LARGE_POOL,
            methods=_METHODS,
            fractions=(0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0),
            draws=2,
            options={"integrated_gradients": {"points": 3, "rule": "gauss"}},
        ),
        searched=8,
        every=56,
        search_options={
            "slimming": {"pressure": 0.1, "steps": 50},
            "hard_concrete": {"pressure": 0.1, "steps": 100},
            "integrated_gradients": {"points": 3, "rule": "gauss"},
            "attribution_patching": {"points": 4},
            "neuron_flipping": {"at_most": 20},
        },
    ),
    # As published where that is known: a model of about 344M, 100 stories that come 128 times among
    # 20,000 that come once, 30% of the neurons sinks, and 30% of these active.
    "paper": Preset(
        seeds=3,
        corpus=Corpus(
            vocabulary=32_000,
            length=512,
            repeated=100,
            canaries=100,
            copies=128,
            once=20_000,
            held_out=1_000,
            head=10_000_000,
        ),
        training=Training(width=1024, layers=24, heads=16, batch_size=64, lr=3e-4, warmup=100),
        runs=_runs(2867, (400, 1229, 3687), 369, (0.05, 0.1, 0.2, 0.5), variants=True),
        post_hoc=PostHoc(
            run=WIDE,
            against=LARGE_POOL,
            methods=_METHODS,
            fractions=(0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
            draws=3,
        ),
        searched=32,
        every=50,
        search_options={},
    ),
}
