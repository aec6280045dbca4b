"""Classifiers of pictures as subjects: a picture is what the model is conditioned on, and its label
the one token that it predicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

import interp
from experiments.informia.presets import Pictures
from interp.data.images import digits, mnist
from interp.memorization.membership.signals import label_log_p
from interp.subject.batch import Batch
from interp.subject.subject import evaluating
from interp.training.fit import epochs, fit
from interp.training.reference_pool import ReferencePool, train_pool

_DATA = {"digits": digits, "mnist": lambda: mnist(crop=0)}
_HIDDEN = 128
_ROWS_PER_FORWARD = 500


class Classifier(nn.Module):
    """A network with one hidden layer.

    Args:
        pixels: number of pixels of a picture.
        classes: number of classes.
    """

    def __init__(self, pixels: int, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(pixels, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes)
        )

    def forward(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch classes"]:
        return self.layers(pixels)


def subject(pixels: int, seed: int) -> interp.Subject:
    """An untrained classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Classifier(pixels)
    return interp.Subject(module, interp.Anatomy({}, {}), _predict)


def _predict(module: Any, batch: Batch, _: int) -> Tensor:
    return module(batch.conditioning["pixels"])[:, None]


def draw(settings: Pictures, seed: int) -> tuple[Batch, Batch]:
    """The pool and the population: different pictures, with noise on the labels of both."""
    images = _DATA[settings.data]()
    rng = np.random.default_rng([seed, 0])
    wanted = settings.pool + settings.population
    if len(images.labels) < wanted:
        raise ValueError(
            f"{settings.data} has {len(images.labels)} pictures; expected {wanted} for pool and "
            "population"
        )
    order = rng.permutation(len(images.labels))[:wanted]
    labels = images.labels[order].clone()
    is_noisy = torch.from_numpy(rng.random(wanted) < settings.noise)
    random_labels = torch.from_numpy(rng.integers(0, 10, wanted))
    labels[is_noisy] = random_labels[is_noisy]
    drawn = Batch(
        labels[:, None],
        prompt=0,
        conditioning={"pixels": images.pixels[order].flatten(1)},
    )
    return drawn.rows(slice(0, settings.pool)), drawn.rows(slice(settings.pool, None))


def trained(
    settings: Pictures, pool: ReferencePool, data: Batch, seed: int, folder: Path
) -> Iterator[interp.Subject]:
    """Every classifier of the pool, trained on its half."""
    pixels = data.conditioning["pixels"].shape[1]

    def make(number: int) -> interp.Subject:
        return subject(pixels, seed=1000 * seed + number)

    def train(learner: interp.Subject, members: np.ndarray, number: int) -> None:
        own = data.rows(members)
        steps = settings.epochs * (len(own) // settings.batch_size)
        stream = epochs(own, settings.batch_size, seed=1000 * seed + number)
        fit(learner, stream, steps, settings.lr)

    return train_pool(pool, make, train, folder)


def log_p(classifier: interp.Subject, data: Batch) -> np.ndarray:
    """The log-probability of each picture's label, in float64."""
    parts: list[np.ndarray] = []
    with evaluating(classifier):
        for part in data.split(_ROWS_PER_FORWARD):
            # In single precision a sure prediction has p = 1, at which LiRA's log(p / (1 - p)) is
            # infinite.
            logits = classifier.target_logits(part)[:, 0].double()
            parts.append(label_log_p(logits.numpy(), part.targets[:, 0].numpy()))
    return np.concatenate(parts)
