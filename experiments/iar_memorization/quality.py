"""Quality of what a model draws: the Frechet distance between features of its images and of real
ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.iar_memorization.build import Study, shared_file, split
from experiments.iar_memorization.presets import Preset, Public, Trained
from experiments.iar_memorization.public import scripted
from interp.data.images import Images
from interp.models.image.sampling import cosine_guidance, linear_guidance, sample
from interp.reporting.stats import frechet
from interp.training.state import load_weights, save_weights

_EPOCHS, _ROWS, _LR = 4, 32, 3e-3


Features = Callable[[Float[Tensor, "n channels side side"]], Tensor]


class Classifier(nn.Module):
    """A small convolutional network for grey images, whose last hidden layer gives 32 features."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * (-(-side // 4)) ** 2, 32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, classes)

    def forward(self, pixels: Float[Tensor, "n 1 side side"]) -> Float[Tensor, "n classes"]:
        return self.head(self.features(pixels))


def features_of(settings: Preset, out: Path) -> Features:
    """Of a scripted network where a file of one is named, else of a classifier that is trained
    once, on the images of the tokenizer, which no model is trained on."""
    if isinstance(settings, Public):
        return scripted(settings.places.features)
    assert isinstance(settings, Trained)
    images, file = (
        split(settings, next(iter(settings.regimes)), 0).tokenizer,
        shared_file(settings, out, "classifier"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier(images.pixels.shape[-1], 10)
        if not file.exists():
            _fit(network, images)
            save_weights(file, network)
    load_weights(file, network)
    return network.eval().features


def _fit(network: Classifier, images: Images) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LR)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(images)).split(_ROWS):
            nn.functional.cross_entropy(
                network(images.pixels[rows]), images.labels[rows]
            ).backward()
            optimizer.step()
            optimizer.zero_grad()


class Quality:
    """Draws images of the classes of held-out images, always with the same noise, and compares
    their features with those of the images."""

    def __init__(
        self, study: Study, features: Features, draws: int, sampling: Mapping[str, Any]
    ) -> None:
        held_out = study.images["held out"]
        self.study, self.features, self.sampling = (
            study,
            features,
            {"size": draws} | _settings(sampling),
        )
        self.label = held_out.labels.repeat(-(-draws // len(held_out)))[:draws]
        self.real = self.of(held_out.pixels)

    def of(self, pixels: Tensor) -> Float[np.ndarray, "n features"]:
        with torch.inference_mode():
            return self.features(pixels.cpu()).double().cpu().numpy()

    def distance(self, seed: int = 0) -> float:
        """The Frechet distance, under whatever interventions are active."""
        drawn = sample(self.study.subject, self.label, seed=seed, **self.sampling)
        return frechet(self.of(self.study.module.decode(drawn)), self.real)


def _settings(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's settings as `sample` takes them: guidance by its numbers."""
    found = dict(sampling)
    if guidance := found.pop("guidance", None):
        found["guidance"] = (
            cosine_guidance(**guidance) if "power" in guidance else linear_guidance(**guidance)
        )
    return found
