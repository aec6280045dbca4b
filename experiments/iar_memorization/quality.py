"""Quality of the images that a model draws: the Frechet distance between features of its images and
of real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.iar_memorization.build import Study, shared_file, split
from experiments.iar_memorization.presets import Preset, Public, Sampling, Trained
from experiments.iar_memorization.public import load_scripted
from interp.data.images import Images
from interp.models.image.sampling import Guidance, cosine_guidance, linear_guidance, sample
from interp.reporting.stats import frechet
from interp.training.state import load_weights, save_weights

# Enough for 92% accuracy in a pilot: the features have to be about digits, not perfect.
_EPOCHS = 4
_BATCH_SIZE = 32
_LR = 3e-3

Features = Callable[[Float[Tensor, "n channels side side"]], Tensor]


class Classifier(nn.Module):
    """A small convolutional network for grey images, whose last hidden layer has 32 features."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        # Rounded up, as a convolution with stride 2 and padding 1 does.
        halved_twice = -(-side // 4)
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * halved_twice**2, 32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, classes)

    def forward(self, pixels: Float[Tensor, "n 1 side side"]) -> Float[Tensor, "n classes"]:
        return self.head(self.features(pixels))


def features_of(settings: Preset, out: Path) -> Features:
    """The network whose features are compared.

    For public models it is the scripted network that the preset names. Otherwise it is a
    classifier, which is trained once and kept in `out`. It learns from the images that the
    tokenizer is fitted to, none of which a model is trained on.
    """
    if isinstance(settings, Public):
        return load_scripted(settings.places.features)
    assert isinstance(settings, Trained)
    first_regime = next(iter(settings.regimes))
    images = split(settings, first_regime, 0).tokenizer
    file = shared_file(settings, out, "classifier")
    # Both the initial weights and the order of the training images come from this seed; the fork
    # leaves the global generator as it was.
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
        for rows in torch.randperm(len(images)).split(_BATCH_SIZE):
            logits = network(images.pixels[rows])
            nn.functional.cross_entropy(logits, images.labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()


class Quality:
    """The quality of a study's model: the Frechet distance between images that it draws and the
    held-out ones.

    The drawn images have the classes of the held-out ones, and the same seed always gives the same
    noise: two distances with one seed differ only by what was done to the model.

    Args:
        study: the model and its images.
        features: maps images [n, channels, side, side] to features [n, features].
        draws: number of images drawn.
        sampling: how they are drawn; by default as `Sampling` says.
    """

    def __init__(
        self, study: Study, features: Features, draws: int, sampling: Sampling | None = None
    ) -> None:
        held_out = study.images["held out"]
        # The classes of the held-out images are taken in turn, over and over until there are
        # enough: another mixture of classes would be a distance by itself.
        times = -(-draws // len(held_out))
        self.study = study
        self.features = features
        self.sampling = _options(sampling or Sampling(), draws)
        self.label = held_out.labels.repeat(times)[:draws]
        self.real = self.of(held_out.pixels)

    def of(self, pixels: Tensor) -> Float[np.ndarray, "n features"]:
        """The features of images."""
        with torch.inference_mode():
            return self.features(pixels.cpu()).double().cpu().numpy()

    def distance(self, seed: int = 0) -> float:
        """The Frechet distance under the active interventions; `seed` is the seed of the noise."""

        drawn = sample(self.study.subject, self.label, seed=seed, **self.sampling)
        return frechet(self.of(self.study.module.decode(drawn)), self.real)


def _options(sampling: Sampling, draws: int) -> dict[str, Any]:
    """The arguments of `sample`."""
    return {
        "guidance": _guidance(sampling),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "batch_size": sampling.batch_size or draws,
    }


def _guidance(sampling: Sampling) -> Guidance | None:
    guidance = sampling.guidance
    if guidance is None:
        return None
    if guidance.power is None:
        return linear_guidance(guidance.scale)
    return cosine_guidance(guidance.scale, guidance.power)
