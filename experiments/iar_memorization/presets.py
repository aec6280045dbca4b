"""The presets: models trained here (`smoke`, `small`) or public ones (`paper`).

A preset is checked when it is made: a misspelled family, set or regime is an error with the nearest
valid name, not a surprise after hours of training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from interp.errors import closest

FAMILIES = ("VAR", "RAR")
SETS = ("planted", "background", "held out")

_Value = TypeVar("_Value")
ByFamily: TypeAlias = Mapping[str, _Value]


@dataclass(frozen=True, kw_only=True)
class TokenizerSize:
    """The shape of a tokenizer: fields of `ResidualVQConfig` and `RasterVQConfig`."""

    code_width: int = 16
    width: int = 16
    blocks: int = 0
    channels: int = 1
    codes: int
    multipliers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """Options of `fit_tokenizer`: number of steps, images per step and learning rate."""

    steps: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class TokenizerRecipe:
    """How a tokenizer is made: the number of images it is trained on, its shape, and how it is
    trained."""

    images: int
    sizes: TokenizerSize
    fit: TokenizerTraining


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """The shape of a network: fields that `VARConfig` and `RARConfig` share."""

    width: int
    depth: int
    heads: int
    hidden: int


@dataclass(frozen=True)
class Data:
    """The number of images in each set; a planted image occurs `duplicates` times in training."""

    planted: int
    duplicates: int
    background: int
    held_out: int


@dataclass(frozen=True)
class Regime:
    """How models are trained: on which data, with `batch_size` images per step, for how many
    `steps` (by family), with which learning rate."""

    data: Data
    batch_size: int
    steps: ByFamily[int]
    lr: float

    def __post_init__(self) -> None:
        _check_families("steps", self.steps)


@dataclass(frozen=True)
class Bar:
    """What a model must have memorized for its results to mean anything: at least `least` of the
    `of` images in `sets`, extracted from `prefix` tokens (by family)."""

    sets: tuple[str, ...]
    of: int
    least: int
    prefix: ByFamily[int]

    def __post_init__(self) -> None:
        _check_names("bar.sets", self.sets, SETS)
        _check_families("bar.prefix", self.prefix)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance up to `scale`: linear over the image, or RAR's cosine schedule where
    there is a `power`."""

    scale: float
    power: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of `interp.models.image.sampling.sample`; all images are drawn in one batch unless
    `batch_size` is given."""

    guidance: Guidance | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is measured, whatever the models are.

    Attributes:
        seeds: number of models of each family and regime.
        regimes: how models are trained, by name of the regime.
        edited: the regime whose models are edited.
        duplicated: the regime in which duplicates are compared with images seen once, if any.
        prefixes: numbers of tokens that are given when extraction is tried, by family.
        judged: the prefix from which edits are judged, by family.
        bar: what models must have memorized, if anything.
        reference: number of background images that UnitMem is computed on, next to all planted
            ones.
        views: number of shifted views of each image in a computation of UnitMem.
        shares: fractions of the reference images on which the stability of UnitMem is measured.
        tried: number of images of a set that extraction is tried on, where not all.
        methods: options of each localization method, by name of the method.
        fractions: fractions of neurons that are edited.
        at: the fraction that claims are about, by family.
        further_random: larger fractions, of random neurons only.
        random_draws: number of draws of random units.
        active_draws: number of draws of units that are as active as those selected.
        draws: number of images drawn for a Frechet distance.
        noise_draws: number of repetitions of that distance with other noise.
        shown: number of images in the figure.
        sampling: how images are drawn, by family; the defaults of `Sampling` where it is left out.

    Raises:
        ValueError: a family, set or regime that does not exist, or a family without a value.
    """

    seeds: int
    regimes: Mapping[str, Regime | None]
    edited: str
    duplicated: str | None
    prefixes: ByFamily[tuple[int, ...]]
    judged: ByFamily[int]
    bar: Bar | None
    reference: int
    views: tuple[int, ...]
    shares: tuple[float, ...]
    tried: Mapping[str, int]
    methods: Mapping[str, Mapping[str, Any]]
    fractions: tuple[float, ...]
    at: ByFamily[float]
    further_random: tuple[float, ...]
    random_draws: int
    active_draws: int
    draws: int
    noise_draws: int
    shown: int
    sampling: ByFamily[Sampling] = field(default_factory=dict[str, Sampling])

    def __post_init__(self) -> None:
        _check_families("prefixes", self.prefixes)
        _check_families("judged", self.judged)
        _check_families("at", self.at)
        _check_names("sampling", self.sampling, FAMILIES)
        _check_names("tried", self.tried, SETS)
        _check_names("edited", [self.edited], self.regimes)
        if self.duplicated is not None:
            _check_names("duplicated", [self.duplicated], self.regimes)


@dataclass(frozen=True, kw_only=True)
class Trained(Preset):
    """Models trained here, on planted and background images of a small data set.

    Attributes:
        images: the data set.
        sides: tokens per side of each scale of VAR, coarse to fine; RAR's grid has the last of
            them.
        tokenizer: how the tokenizers of both families are made.
        model: the shape of the networks of both families.
    """

    regimes: Mapping[str, Regime]
    images: Literal["digits", "mnist"]
    sides: tuple[int, ...]
    tokenizer: TokenizerRecipe
    model: NetworkSize


@dataclass(frozen=True)
class Places:
    """Paths of public files.

    Attributes:
        models: checkpoints, by family.
        tokenizers: checkpoints, by family.
        train: folder of training images, with one folder per class; folders sort as the labels.
        validation: folder of held-out images, of the same form.
        copies: the copy detector SSCD, saved by TorchScript.
        features: the network whose features the Frechet distance compares, saved by TorchScript.
    """

    models: ByFamily[str]
    tokenizers: ByFamily[str]
    train: str
    validation: str
    copies: str
    features: str

    def __post_init__(self) -> None:
        _check_families("places.models", self.models)
        _check_families("places.tokenizers", self.tokenizers)


@dataclass(frozen=True, kw_only=True)
class Public(Preset):
    """Public models, whose training images are searched for memorized ones.

    Attributes:
        places: where the files are.
        dtype: precision of the weights.
        candidates: number of images per class that are most likely memorized; they are the planted
            set.
        per_class: number of other images per class; they are the background set.
        last: number of an image's last tokens that candidates are chosen by, by family.
    """

    places: Places
    dtype: str
    candidates: int
    per_class: int
    last: ByFamily[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_families("last", self.last)


def _check_names(field_name: str, given: Iterable[str], valid: Collection[str]) -> None:
    for name in given:
        if name not in valid:
            expected = ", ".join(valid)
            nearest = closest(name, valid)
            raise ValueError(f"{field_name}: {name!r} is not one of {expected}; nearest: {nearest}")


def _check_families(field_name: str, by_family: Mapping[str, object]) -> None:
    """Raises ValueError unless there is a value for each family, and for nothing else."""
    _check_names(field_name, by_family, FAMILIES)
    for family in FAMILIES:
        if family not in by_family:
            given = ", ".join(by_family) or "none"
            raise ValueError(
                f"{field_name}: expected a value for each of {', '.join(FAMILIES)}, got {given}"
            )


PRESETS: dict[str, Trained | Public] = {
    "smoke": Trained(
        seeds=1,
        images="digits",
        sides=(1, 2, 4),
        tokenizer=TokenizerRecipe(
            images=400,
            sizes=TokenizerSize(codes=64, multipliers=(1, 1)),
            fit=TokenizerTraining(steps=100, batch_size=32, lr=0.006),
        ),
        model=NetworkSize(width=32, depth=4, heads=2, hidden=128),
        regimes={
            "overfit": Regime(
                data=Data(planted=8, duplicates=2, background=24, held_out=32),
                batch_size=40,
                steps={"VAR": 160, "RAR": 160},
                lr=0.008,
            )
        },
        edited="overfit",
        duplicated="overfit",
        prefixes={"VAR": (0, 1, 5), "RAR": (0, 2, 4, 8)},
        judged={"VAR": 5, "RAR": 2},
        bar=Bar(sets=("planted", "background"), of=32, least=20, prefix={"VAR": 5, "RAR": 8}),
        reference=24,
        views=(10, 1),
        shares=(0.5,),
        tried={"background": 24, "held out": 32},
        methods={"gradient_x_activation": {}},
        fractions=(0.1,),
        at={"VAR": 0.1, "RAR": 0.1},
        further_random=(),
        random_draws=5,
        active_draws=1,
        draws=32,
        noise_draws=2,
        shown=6,
    ),
    "small": Trained(
        seeds=3,
        images="mnist",
        sides=(1, 2, 3, 4, 6),
        tokenizer=TokenizerRecipe(
            images=2000,
            sizes=TokenizerSize(codes=128, multipliers=(1, 1, 1)),
            fit=TokenizerTraining(steps=300, batch_size=16, lr=0.006),
        ),
        model=NetworkSize(width=64, depth=6, heads=4, hidden=256),
        # In "mixture" models still generalize, so that held-out loss and distance measure what an
        # edit costs. In "overfit" nearly everything is memorized, and their quality means nothing.
        regimes={
            "mixture": Regime(
                data=Data(planted=48, duplicates=12, background=1200, held_out=600),
                batch_size=32,
                steps={"VAR": 1000, "RAR": 800},
                lr=0.003,
            ),
            "overfit": Regime(
                data=Data(planted=24, duplicates=6, background=72, held_out=600),
                batch_size=32,
                steps={"VAR": 350, "RAR": 350},
                lr=0.003,
            ),
        },
        edited="mixture",
        duplicated="overfit",
        prefixes={"VAR": (0, 1, 5, 14, 30), "RAR": (0, 2, 6, 12, 18)},
        # Pilots extracted 47 of 48 planted images from 5 tokens of VAR and 32 from 2 of RAR: many
        # to lose, from prefixes that are far from giving the image away.
        judged={"VAR": 5, "RAR": 2},
        bar=Bar(sets=("planted",), of=48, least=40, prefix={"VAR": 5, "RAR": 6}),
        reference=400,
        views=(10, 1),
        shares=(0.05, 0.1, 0.2),
        tried={"background": 200, "held out": 400},
        methods={"z_score": {}, "gradient_x_activation": {}},
        fractions=(0.05, 0.1, 0.2),
        at={"VAR": 0.1, "RAR": 0.1},
        further_random=(0.4, 0.7),
        random_draws=5,
        active_draws=2,
        draws=400,
        noise_draws=3,
        shown=8,
    ),
    # Files as their authors publish them. Each class of ImageNet is a folder of its own; folders
    # are numbered or named so that they sort as the labels.
    "paper": Public(
        seeds=1,
        places=Places(
            models={"VAR": "models/var_d30.pth", "RAR": "models/rar_xxl.bin"},
            tokenizers={
                "VAR": "models/vae_ch160v4096z32.pth",
                "RAR": "models/maskgit-vqgan-imagenet-f16-256.bin",
            },
            train="data/imagenet/train",
            validation="data/imagenet/validation",
            copies="models/sscd_disc_mixup.torchscript.pt",
            features="models/inception_v3.torchscript.pt",
        ),
        dtype="bfloat16",
        # As in the public code of Kowalczuk et al.: five candidates per class, chosen by the last
        # scale of VAR and the last 99 tokens of RAR.
        candidates=5,
        per_class=8,
        last={"VAR": 256, "RAR": 99},
        regimes={"public": None},
        edited="public",
        duplicated=None,
        prefixes={"VAR": (0, 1, 5, 14, 30), "RAR": (0, 1, 5, 14, 30)},
        judged={"VAR": 30, "RAR": 30},
        bar=None,
        reference=8000,
        views=(10, 1),
        shares=(0.05, 0.1, 0.2, 0.5),
        tried={"background": 5000, "held out": 5000},
        methods={"z_score": {}, "gradient_x_activation": {}},
        fractions=(0.01, 0.05, 0.1),
        # The fractions at which the paper reports what is left (notes).
        at={"VAR": 0.1, "RAR": 0.05},
        further_random=(0.2,),
        random_draws=5,
        active_draws=2,
        draws=50000,
        noise_draws=3,
        shown=8,
        # With these settings the authors of the models report Frechet distances of 1.97 and 1.48.
        # The paper's unedited models have the same, so that it probably used them.
        sampling={
            "VAR": Sampling(guidance=Guidance(1.5), top_k=900, top_p=0.96, batch_size=64),
            "RAR": Sampling(guidance=Guidance(8.0, power=1.2), temperature=1.02, batch_size=64),
        },
    ),
}
