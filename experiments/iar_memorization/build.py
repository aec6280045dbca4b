"""One model under study: how it was trained, or where it was loaded from, and the images that
everything is measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import interp
from experiments.iar_memorization.presets import Preset, Regime, Trained
from interp.data.images import Images, Split, digits, mnist, plant
from interp.models.image.checkpoints import save_image_model
from interp.models.image.image_model import ImageModel
from interp.models.image.rar import RAR, RARConfig
from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig
from interp.models.image.streams import labels_dropped, orders_annealed
from interp.models.image.tokenizers import ImageTokenizer, fit_tokenizer
from interp.models.image.var import VAR, VARConfig
from interp.subject.batch import Batch
from interp.training.fit import Checkpoints, epochs, fit
from interp.training.state import load_weights, save_weights

Tables = dict[str, pd.DataFrame]
Alike = Callable[[Tensor, Tensor], np.ndarray]
ALIKE = 0.75  # of SSCD descriptors (Kowalczuk et al. 2025)
SETS = ("planted", "background", "held out")
_DATA = {"digits": digits, "mnist": mnist}


@dataclass(frozen=True, eq=False)
class Study:
    """A model with its images.

    Attributes:
        family, regime, seed: which one.
        images: by set: `planted` (trained most often), `background` (trained too) and `held out`.
        batches: the same as tokens, without a prompt.
        prefixes: how many tokens are given when extraction is tried.
        judged: the one of them from which edits are judged.
        history: of the training, where it was ours.
        alike: the similarity of two sets of images, above ALIKE of which one counts as extracted
            when edits are judged; where there is none, all tokens have to be the same.
    """

    family: str
    regime: str
    seed: int
    subject: interp.Subject
    images: Mapping[str, Images]
    batches: Mapping[str, Batch]
    prefixes: tuple[int, ...]
    judged: int
    history: pd.DataFrame | None
    alike: Alike | None = None

    @property
    def module(self) -> ImageModel:
        assert isinstance(self.subject.module, ImageModel)
        return self.subject.module

    def about(self) -> dict[str, Any]:
        return {"family": self.family, "regime": self.regime, "seed": self.seed}


def split(settings: Trained, regime: str, seed: int) -> Split:
    """The images of a regime and seed; those of the tokenizer are the same for all."""
    sizes = asdict(settings.regimes[regime].data)
    return plant(_DATA[settings.images](), **sizes, tokenizer=settings.tokenizer.images, seed=seed)


def tokenizer(settings: Trained, family: str, out: Path) -> ImageTokenizer:
    """The tokenizer of a family, trained once and then read."""
    made, file = (
        _untrained_tokenizer(settings, family),
        shared_file(settings, out, f"tokenizer-{family}"),
    )
    if not file.exists():
        pixels = split(settings, next(iter(settings.regimes)), 0).tokenizer.pixels
        fit_tokenizer(made, pixels, **settings.tokenizer.fit)
        save_weights(file, made)
    load_weights(file, made)
    return made.eval().requires_grad_(requires_grad=False)


def shared_file(settings: Trained, out: Path, name: str) -> Path:
    """The file of what all models of some settings share: other settings have another one."""
    digest = hashlib.sha256(json.dumps(_shared(settings)).encode()).hexdigest()
    return out / f"{name}-{digest[:8]}.safetensors"


def _shared(settings: Trained) -> dict[str, Any]:
    """What the tokenizer and the classifier depend on: the images, which of them are set apart, and
    how it is trained."""
    first = next(iter(settings.regimes.values()))
    return {
        "images": settings.images,
        "sides": settings.sides,
        "tokenizer": asdict(settings.tokenizer),
        "split": asdict(first.data),
    }


def _untrained_tokenizer(settings: Trained, family: str) -> ImageTokenizer:
    sizes = settings.tokenizer.sizes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "VAR":
            return ResidualVQ(ResidualVQConfig(sides=settings.sides, **sizes))
        return RasterVQ(RasterVQConfig(grid=settings.sides[-1], **sizes))


def network(settings: Trained, vq: ImageTokenizer, seed: int) -> ImageModel:
    """A fresh model, of the family that the tokenizer is of."""
    sizes = dict(settings.model) | {"codes": vq.codes, "classes": 10}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(vq, ResidualVQ):
            return VAR(
                VARConfig(sides=vq.config.sides, code_width=vq.config.code_width, **sizes), vq
            )
        assert isinstance(vq, RasterVQ)
        return RAR(RARConfig(grid=vq.config.grid, **sizes), vq)


def trained(settings: Trained, family: str, regime: str, seed: int, out: Path) -> Study:
    """A model trained on planted and background images. It stays in `out`, also as a folder for
    `interp.load`."""
    images, recipe, name = (
        split(settings, regime, seed),
        settings.regimes[regime],
        f"{family}-{regime}-seed{seed}",
    )
    subject = interp.load(network(settings, tokenizer(settings, family, out), seed))
    module = subject.module
    assert isinstance(module, ImageModel)
    trains = images.mixture()
    data = module.encode(trains.pixels, trains.labels)
    about = {
        "family": family,
        "regime": regime,
        "seed": seed,
        "recipe": asdict(recipe),
        "data": _shared(settings),
        "model": settings.model,
    }
    checkpoints = Checkpoints(out / name, every=250, about=about)
    stream = _stream(data, module, recipe, seed)
    steps = recipe.steps[family]
    history = fit(
        subject, stream, steps, recipe.lr, **_TRAINING, decay=steps, checkpoints=checkpoints
    )
    save_image_model(module.eval(), out / name / "model")
    chosen = {
        "planted": images.planted,
        "background": images.background,
        "held out": images.held_out,
    }
    return studied(family, regime, seed, subject, chosen, settings, history)


_TRAINING: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": 0.02, "warmup": 30, "clip": 1.0}


def _stream(data: Batch, module: ImageModel, recipe: Regime, seed: int) -> Iterator[Batch]:
    labelled = labels_dropped(epochs(data, recipe.rows, seed), module, seed=seed)
    return (
        orders_annealed(labelled, round(0.6 * recipe.steps["RAR"]), seed)
        if isinstance(module, RAR)
        else labelled
    )


def studied(
    family: str,
    regime: str,
    seed: int,
    subject: interp.Subject,
    images: Mapping[str, Images],
    settings: Preset,
    history: pd.DataFrame | None,
    alike: Alike | None = None,
) -> Study:
    """A model with the images that it is to be studied on."""
    module = subject.module
    assert isinstance(module, ImageModel)
    batches = {name: module.encode(part.pixels, part.labels) for name, part in images.items()}
    return Study(
        family,
        regime,
        seed,
        subject,
        images,
        batches,
        settings.prefixes[family],
        settings.judged[family],
        history,
        alike,
    )
