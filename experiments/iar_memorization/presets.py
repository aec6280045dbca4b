"""The presets: models trained here (smoke, small) or public ones (paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TokenizerRecipe:
    """How a tokenizer is trained: on how many images, with which sizes and options of
    `fit_tokenizer`."""

    images: int
    sizes: Mapping[str, Any]
    fit: Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """How many images there are of each set; `duplicates` is how often a planted one is repeated."""

    planted: int
    duplicates: int
    background: int
    held_out: int


@dataclass(frozen=True)
class Regime:
    """How models are trained; `steps` by family."""

    data: Data
    rows: int
    steps: Mapping[str, int]
    lr: float


@dataclass(frozen=True)
class Bar:
    """What models have to have memorized: `least` of the `of` images of `sets`, from `prefix`
    tokens by family."""

    sets: tuple[str, ...]
    of: int
    least: int
    prefix: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is measured, whatever the models are.

    Attributes:
        seeds: number of models of each family and regime.
        regimes: by name; edits are tried in `edited`, duplicates compared in `duplicated`.
        prefixes: numbers of tokens given when extraction is tried, by family; `judged` is the one
        that edits are judged from.
        bar: what models have to have memorized, if anything.
        reference: number of images that UnitMem is computed on; `views` of each; `shares` of them
        for the stability of UnitMem.
        tried: number of images of each set that extraction is tried on.
        methods: localization methods with their options.
        fractions: shares of neurons that are edited; `at` is the one that is judged, by family;
        `further_random` for random neurons alone.
        random_draws, active_draws: draws of the controls.
        draws: images drawn for a Frechet distance; `noise_draws` repetitions; `sampling` options by
        family.
        shown: number of images in the figure.
    """

    seeds: int
    regimes: Mapping[str, Regime | None]
    edited: str
    duplicated: str | None
    prefixes: Mapping[str, tuple[int, ...]]
    judged: Mapping[str, int]
    bar: Bar | None
    reference: int
    views: tuple[int, ...]
    shares: tuple[float, ...]
    tried: Mapping[str, int]
    methods: Mapping[str, Mapping[str, Any]]
    fractions: tuple[float, ...]
    at: Mapping[str, float]
    further_random: tuple[float, ...]
    random_draws: int
    active_draws: int
    draws: int
    noise_draws: int
    shown: int
    sampling: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Trained(Preset):
    """Models trained here, on planted and background images of a small data set."""

    regimes: Mapping[str, Regime]
    images: Literal["digits", "mnist"]
    sides: tuple[int, ...]
    tokenizer: TokenizerRecipe
    model: Mapping[str, int]


@dataclass(frozen=True)
class Places:
    """Files of public models, and folders of images with one folder per class, which sort as the
    labels."""

    models: Mapping[str, str]
    tokenizers: Mapping[str, str]
    train: str
    validation: str
    copies: str
    features: str


@dataclass(frozen=True, kw_only=True)
class Public(Preset):
    """Public models; `candidates` of each class are tried, next to `per_class` others, chosen by
    their `last` tokens."""

    places: Places
    dtype: str
    candidates: int
    per_class: int
    last: Mapping[str, int]


_VQ = {"code_width": 16, "width": 16, "blocks": 0, "channels": 1}
PRESETS: dict[str, Trained | Public] = {
    "smoke": Trained(
        seeds=1,
        images="digits",
        sides=(1, 2, 4),
        tokenizer=TokenizerRecipe(
            images=400,
            sizes={**_VQ, "codes": 64, "multipliers": (1, 1)},
            fit={"steps": 100, "rows": 32, "lr": 0.006},
        ),
        model={"width": 32, "depth": 4, "heads": 2, "hidden": 128},
        regimes={
            "overfit": Regime(
                data=Data(planted=8, duplicates=2, background=24, held_out=32),
                rows=40,
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
        sampling={},
    ),
    "small": Trained(
        seeds=3,
        images="mnist",
        sides=(1, 2, 3, 4, 6),
        tokenizer=TokenizerRecipe(
            images=2000,
            sizes={**_VQ, "codes": 128, "multipliers": (1, 1, 1)},
            fit={"steps": 300, "rows": 16, "lr": 0.006},
        ),
        model={"width": 64, "depth": 6, "heads": 4, "hidden": 256},
        regimes={
            "mixture": Regime(
                data=Data(planted=48, duplicates=12, background=1200, held_out=600),
                rows=32,
                steps={"VAR": 1000, "RAR": 800},
                lr=0.003,
            ),
            "overfit": Regime(
                data=Data(planted=24, duplicates=6, background=72, held_out=600),
                rows=32,
                steps={"VAR": 350, "RAR": 350},
                lr=0.003,
            ),
        },
        edited="mixture",
        duplicated="overfit",
        prefixes={"VAR": (0, 1, 5, 14, 30), "RAR": (0, 2, 6, 12, 18)},
        judged={"VAR": 5, "RAR": 2},
        bar=Bar(sets=("planted",), of=48, least=40, prefix={"VAR": 5, "RAR": 6}),
        reference=400,
        views=(10, 1),
        shares=(0.05, 0.1, 0.2),
        tried={"background": 200, "held out": 400},
        methods={"z_score": {}, "gradient_x_activation": {}},
        fractions=(0.05, 0.1, 0.2),
        at={"VAR": 0.1, "RAR": 0.1},
        further_random=(0.4,),
        random_draws=5,
        active_draws=2,
        draws=400,
        noise_draws=3,
        shown=8,
        sampling={},
    ),
    # files as their authors publish them; each class of ImageNet in a folder of its own, numbered
    # or named so that they sort as the labels
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
        at={"VAR": 0.1, "RAR": 0.05},
        further_random=(0.2,),
        random_draws=5,
        active_draws=2,
        draws=50000,
        noise_draws=3,
        shown=8,
        sampling={
            "VAR": {"guidance": {"scale": 1.5}, "top_k": 900, "top_p": 0.96, "size": 64},
            "RAR": {"guidance": {"scale": 8.0, "power": 1.2}, "temperature": 1.02, "size": 64},
        },
    ),
}
