"""The paper's own setting: public checkpoints, ImageNet from folders of class folders, similarity
and quality by scripted networks.

Kowalczuk et al., ICML 2025 (arXiv 2502.02514), score all training images by the share of their last
tokens that the model hits, and try to extract the best of each class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

import interp
from experiments.iar_memorization.build import Study, studied
from experiments.iar_memorization.measures import read
from experiments.iar_memorization.presets import Public
from interp.data.image_files import read_classes
from interp.data.images import Images
from interp.models.image.image_model import ImageModel
from interp.progress import track

_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as SSCD expects


def public(settings: Public, family: str, regime: str, seed: int) -> Study:
    """A public model. Its `planted` images are the candidates, of which the paper extracts some,
    its `background` others of the same classes, and the images held out are the candidates of the
    validation set, chosen likewise."""
    place = settings.places
    subject = interp.load(
        place.models[family], tokenizer=place.tokenizers[family], dtype=settings.dtype
    )
    subject.module.to("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(seed)
    best, others = _chosen(subject, place.train, settings, settings.last[family], rng)
    held_out, _ = _chosen(subject, place.validation, settings, settings.last[family], rng)
    chosen = {"planted": best, "background": others, "held out": held_out}
    return studied(
        family, regime, seed, subject, chosen, settings, None, copy_detection(place.copies)
    )


def _chosen(
    subject: interp.Subject, folder: str, settings: Public, last: int, rng: np.random.Generator
) -> tuple[Images, Images]:
    """Of each class the images that the model hits most, and some of the others; both shuffled, for
    what follows takes the first ones."""
    module = subject.module
    assert isinstance(module, ImageModel)
    best: list[Images] = []
    others: list[Images] = []
    for images in track(
        read_classes(folder, module.tokenizer.side, module.tokenizer.channels), "classes"
    ):
        order = np.argsort(-likeness(subject, images, last), kind="stable")
        best.append(images.rows(order[: settings.candidates]))
        others.append(
            images.rows(rng.permutation(order[settings.candidates :])[: settings.per_class])
        )
    both = [Images.joined(part) for part in (best, others)]
    first, second = (part.rows(rng.permutation(len(part))) for part in both)
    return first, second


def likeness(subject: interp.Subject, images: Images, last: int) -> Float[np.ndarray, " images"]:
    """The share of each image's last tokens that are the most likely ones, given the true ones
    before."""
    module = subject.module
    assert isinstance(module, ImageModel)
    return read(subject, module.encode(images.pixels, images.labels), 32)[0][:, -last:].mean(1)


def scripted(path: str) -> Callable[[Float[Tensor, "n 3 side side"]], Tensor]:
    """A network saved by TorchScript, on the processor. It takes images in [0, 1] of the model's
    size, whatever it needs to do to them."""
    network = torch.jit.load(path, map_location="cpu").eval()

    def features(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(pixels)

    return features


def copy_detection(path: str) -> Callable[[Tensor, Tensor], Float[np.ndarray, " n"]]:
    """SSCD (Pizzi et al. 2022): the cosine of descriptors of images resized to 320 pixels, whatever
    their shape."""
    network = scripted(path)

    def descriptors(pixels: Tensor) -> Tensor:
        large = F.interpolate(pixels.float(), size=(320, 320), mode="bilinear", antialias=True)
        mean, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _SPREAD))
        return network((large.cpu() - mean) / spread)

    return lambda a, b: F.cosine_similarity(descriptors(a), descriptors(b)).double().numpy()
