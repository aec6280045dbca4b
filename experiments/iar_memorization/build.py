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
from interp.loading.devices import choose_device
from interp.models.image.checkpoints import save_image_model
from interp.models.image.image_model import ImageModel
from interp.models.image.rar import RAR, RARConfig
from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig
from interp.models.image.streams import anneal_orders, drop_labels
from interp.models.image.tokenizers import ImageTokenizer, fit_tokenizer
from interp.models.image.var import VAR, VARConfig
from interp.subject.batch import Batch
from interp.training.fit import Checkpoints, epochs, fit
from interp.training.state import load_weights, save_weights

Tables = dict[str, pd.DataFrame]
Alike = Callable[[Tensor, Tensor], np.ndarray]
ALIKE = (
    0.75  # similarity of SSCD descriptors above which an image is a copy (Kowalczuk et al. 2025)
)
_DATA = {"digits": digits, "mnist": mnist}
# Little weight decay: more of it lowers UnitMem (Wang et al. 2024), and with it what there is to
# find.
_TRAINING: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": 0.02, "warmup": 30, "clip": 1.0}
_ANNEALED = 0.6  # fraction of RAR's training over which the random order of tokens is phased out


@dataclass(frozen=True, eq=False)
class Study:
    """A model with its images.

    Attributes:
        family: family of the model, "VAR" or "RAR".
        regime: name of the regime that it was trained in.
        seed: seed of its training.
        subject: the model.
        images: the images of each set: `planted` (trained on most often), `background` (trained on
            too) and `held out`.
        batches: the same images as tokens, without a prompt.
        prefixes: numbers of tokens that are given when extraction is tried.
        judged: the one of them from which edits are judged.
        history: history of the training, where the model was trained here.
        alike: similarity of two sets of images, pair by pair. When edits are judged, an image
            counts as extracted above ALIKE; without such a function, all its tokens must be the
            same.
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
        """The subject's network."""
        return _image_model(self.subject)

    def about(self) -> dict[str, Any]:
        """The columns that name the model in a table."""
        return {"family": self.family, "regime": self.regime, "seed": self.seed}


def split(settings: Trained, regime: str, seed: int) -> Split:
    """The images of a regime and seed; those of the tokenizer are the same for all."""
    sizes = asdict(settings.regimes[regime].data)
    return plant(_DATA[settings.images](), **sizes, tokenizer=settings.tokenizer.images, seed=seed)


def tokenizer(settings: Trained, family: str, out: Path) -> ImageTokenizer:
    """The tokenizer of a family: trained and saved in `out` if it is not there yet, then loaded."""
    found = _untrained_tokenizer(settings, family)
    file = shared_file(settings, out, f"tokenizer-{family}")
    if not file.exists():
        # Any regime and seed would do: the tokenizer's images are drawn before all others, the same
        # for every seed.
        first_regime = next(iter(settings.regimes))
        pixels = split(settings, first_regime, 0).tokenizer.pixels
        training = settings.tokenizer.fit
        fit_tokenizer(found, pixels, training.steps, lr=training.lr, batch_size=training.batch_size)
        save_weights(file, found)
    # Also after training: the run that trains the tokenizer and one that finds it use the same
    # stored weights.
    load_weights(file, found)
    return found.eval().requires_grad_(requires_grad=False)


def shared_file(settings: Trained, out: Path, name: str) -> Path:
    """The file of something that all models of a preset share.

    Its name holds a digest of the settings it depends on, so that a run with other settings in the
    same folder does not read it.
    """
    digest = hashlib.sha256(json.dumps(_shared(settings)).encode()).hexdigest()
    return out / f"{name}-{digest[:8]}.safetensors"


def _shared(settings: Trained) -> dict[str, Any]:
    """What the tokenizer and the classifier depend on: the images, which of them are set apart, and
    how the tokenizer is trained."""
    first = next(iter(settings.regimes.values()))
    return {
        "images": settings.images,
        "sides": settings.sides,
        "tokenizer": asdict(settings.tokenizer),
        "split": asdict(first.data),
    }


def _untrained_tokenizer(settings: Trained, family: str) -> ImageTokenizer:
    sizes = asdict(settings.tokenizer.sizes)
    # The seed is fixed: all models share one tokenizer, whatever their own seed. The fork leaves
    # the global generator as it was.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "VAR":
            return ResidualVQ(ResidualVQConfig(sides=settings.sides, **sizes))
        return RasterVQ(RasterVQConfig(grid=settings.sides[-1], **sizes))


def network(settings: Trained, vq: ImageTokenizer, seed: int) -> ImageModel:
    """An untrained model of the tokenizer's family."""
    sizes = asdict(settings.model) | {"codes": vq.codes, "classes": 10}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(vq, ResidualVQ):
            config = VARConfig(sides=vq.config.sides, code_width=vq.config.code_width, **sizes)
            return VAR(config, vq)
        assert isinstance(vq, RasterVQ)
        return RAR(RARConfig(grid=vq.config.grid, **sizes), vq)


def train_or_load(settings: Trained, family: str, regime: str, seed: int, out: Path) -> Study:
    """A model trained on planted and background images.

    Its training state is kept in `out`, where a later call finds it, and so is the model itself as
    a folder for `interp.load`.
    """
    images = split(settings, regime, seed)
    recipe = settings.regimes[regime]
    steps = recipe.steps[family]
    place = out / f"{family}-{regime}-seed{seed}"

    untrained = network(settings, tokenizer(settings, family, out), seed)
    subject = interp.load(untrained.to(choose_device()))
    module = _image_model(subject)
    # The mixture repeats the planted images.
    mixture = images.mixture()
    data = module.encode(mixture.pixels, mixture.labels)

    # Kept with the checkpoint, so that a training with other settings in the same folder is refused
    # instead of continued.
    about = {
        "family": family,
        "regime": regime,
        "seed": seed,
        "recipe": asdict(recipe),
        "data": _shared(settings),
        "model": asdict(settings.model),
    }
    history = fit(
        subject,
        _stream(data, module, recipe, seed),
        steps,
        recipe.lr,
        **_TRAINING,
        decay=steps,
        checkpoints=Checkpoints(place, every=250, about=about),
    )
    save_image_model(module.eval(), place / "model")
    # RAR's gates begin at zero, so that its blocks add nothing before training. What attention and
    # MLP add is seen only now.
    subject = interp.load(module)

    sets = {
        "planted": images.planted,
        "background": images.background,
        "held out": images.held_out,
    }
    return make_study(family, regime, seed, subject, sets, settings, history)


def _stream(data: Batch, module: ImageModel, recipe: Regime, seed: int) -> Iterator[Batch]:
    """The training batches: some labels are dropped, and RAR's tokens come in random orders with a
    probability that falls to 0."""
    labelled = drop_labels(epochs(data, recipe.batch_size, seed), module, seed=seed)
    if isinstance(module, RAR):
        # Everything is measured in raster order: the last steps train in that order alone, so that
        # what is memorized are the sequences that extraction asks for.
        return anneal_orders(labelled, round(_ANNEALED * recipe.steps["RAR"]), seed)
    return labelled


def make_study(
    family: str,
    regime: str,
    seed: int,
    subject: interp.Subject,
    images: Mapping[str, Images],
    settings: Preset,
    history: pd.DataFrame | None,
    alike: Alike | None = None,
) -> Study:
    """A model with the images that it is studied on, which are encoded here; see `Study`."""
    module = _image_model(subject)
    batches = {name: module.encode(part.pixels, part.labels) for name, part in images.items()}
    return Study(
        family=family,
        regime=regime,
        seed=seed,
        subject=subject,
        images=images,
        batches=batches,
        prefixes=settings.prefixes[family],
        judged=settings.judged[family],
        history=history,
        alike=alike,
    )


def _image_model(subject: interp.Subject) -> ImageModel:
    assert isinstance(subject.module, ImageModel)
    return subject.module
