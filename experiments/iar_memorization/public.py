"""The paper's own setting: public checkpoints, ImageNet from folders of class folders, and scripted
networks for similarity and quality.

Memorized images are searched for as in Kowalczuk et al., ICML 2025 (arXiv 2502.02514): all training
images are scored by the fraction of their last tokens that the model predicts, and extraction is
tried on the best of each class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

import interp
from experiments.iar_memorization.build import Study, make_study
from experiments.iar_memorization.measures import read
from experiments.iar_memorization.presets import Public
from interp.data.image_files import read_classes
from interp.data.images import Images
from interp.models.image.image_model import ImageModel
from interp.progress import track

# What SSCD expects its input to be normalized by: mean and standard deviation of ImageNet's
# colours.
_MEAN = (0.485, 0.456, 0.406)
_SPREAD = (0.229, 0.224, 0.225)
_SSCD_SIDE = 320  # pixels


def public(settings: Public, family: str, regime: str, seed: int) -> Study:
    """A public model with its images.

    The `planted` images are the candidates for extraction, the `background` images are others of
    the same classes, and the held-out images are the candidates of the validation set, chosen in
    the same way.
    """
    place = settings.places
    subject = interp.load(
        place.models[family], tokenizer=place.tokenizers[family], dtype=settings.dtype
    )
    rng = np.random.default_rng(seed)
    last = settings.last[family]
    candidates, others = _candidates(subject, place.train, settings, last, rng)
    # Images that a model predicts well are easy ones. Only easy images that it was not trained on
    # show how many would count as extracted without any memory.
    held_out, _ = _candidates(subject, place.validation, settings, last, rng)
    sets = {"planted": candidates, "background": others, "held out": held_out}
    alike = copy_detection(place.copies)
    return make_study(family, regime, seed, subject, sets, settings, None, alike)


def _candidates(
    subject: interp.Subject, folder: str, settings: Public, last: int, rng: np.random.Generator
) -> tuple[Images, Images]:
    """The images of each class that the model predicts best, and some of the others."""
    tokenizer = _image_model(subject).tokenizer
    classes = read_classes(folder, tokenizer.side, tokenizer.channels)
    candidates: list[Images] = []
    others: list[Images] = []
    for images in track(classes, "classes"):
        best_first = np.argsort(-likeness(subject, images, last), kind="stable")
        rest = rng.permutation(best_first[settings.candidates :])
        candidates.append(images.rows(best_first[: settings.candidates]))
        others.append(images.rows(rest[: settings.per_class]))

    # Both are shuffled: the measures take the first images of a set, which would be those of the
    # first classes only.
    joined_candidates = Images.join(candidates)
    joined_others = Images.join(others)
    return (
        joined_candidates.rows(rng.permutation(len(joined_candidates))),
        joined_others.rows(rng.permutation(len(joined_others))),
    )


def likeness(subject: interp.Subject, images: Images, last: int) -> Float[np.ndarray, " images"]:
    """The fraction of each image's last tokens that are the most likely ones, given the true tokens
    before them."""
    batch = _image_model(subject).encode(images.pixels, images.labels)
    hits, _ = read(subject, batch, 32)
    return hits[:, -last:].mean(1)


def load_scripted(path: str) -> Callable[[Float[Tensor, "n 3 side side"]], Tensor]:
    """A network saved by TorchScript, on the CPU.

    It takes images in [0, 1] of the size that the model draws, and resizes and normalizes them
    itself.
    """
    network = torch.jit.load(path, map_location="cpu").eval()

    def features(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(pixels)

    return features


def copy_detection(path: str) -> Callable[[Tensor, Tensor], Float[np.ndarray, " n"]]:
    """The similarity of two sets of images, pair by pair: the cosine of their SSCD descriptors
    (Pizzi et al. 2022).

    Images are resized to 320 x 320 pixels, whatever their shape.
    """
    network = load_scripted(path)
    mean = torch.tensor(_MEAN).view(1, 3, 1, 1)
    spread = torch.tensor(_SPREAD).view(1, 3, 1, 1)

    def descriptors(pixels: Tensor) -> Tensor:
        resized = F.interpolate(
            pixels.float(), size=(_SSCD_SIDE, _SSCD_SIDE), mode="bilinear", antialias=True
        )
        return network((resized.cpu() - mean) / spread)

    def similarity(a: Tensor, b: Tensor) -> Float[np.ndarray, " n"]:
        return F.cosine_similarity(descriptors(a), descriptors(b)).double().numpy()

    return similarity


def _image_model(subject: interp.Subject) -> ImageModel:
    assert isinstance(subject.module, ImageModel)
    return subject.module
