"""Image tokenizers: an image as a sequence of codes and back, and how a small one is trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.progress import track

_IDLE = 8  # steps without use after which a code counts as dead
# Share of the steps after which no code is seeded anew: the last ones that were need the rest of
# the time to be learned.
_SETTLING = 0.7
_WARM_UP = 10  # steps


class Quantized(NamedTuple):
    """Features written as codes.

    Attributes:
        tokens: [batch, length] which code each place has.
        vectors: [batch, length, code_width] what was looked up in the codebook.
        features: [batch, code_width, grid, grid] what the codes decode to, with the gradient of the
            features that were given (straight-through).
        loss: the quantization loss.
    """

    tokens: Int[Tensor, "batch length"]
    vectors: Float[Tensor, "batch length code_width"]
    features: Float[Tensor, "batch code_width grid grid"]
    loss: Float[Tensor, ""]


class Quantizer(nn.Module, ABC):
    """A codebook and the way in which features are written with it."""

    def __init__(self, codes: int, code_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, code_width)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "... code_width"]) -> Int[Tensor, " ..."]:
        """Returns the code with the smallest squared distance to each vector; the first of equal
        ones."""
        # Half precision cannot distinguish codes that are near each other.
        precise = torch.promote_types(vectors.dtype, torch.float32)
        codes = self.embedding.weight.to(precise)
        vectors = vectors.to(precise)
        # |code - vector|^2 without |vector|^2, which is the same for all codes.
        code_lengths = codes.square().sum(1)
        distances = code_lengths - 2 * vectors @ codes.T  # [..., codes]
        return distances.argmin(-1)

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch code_width grid grid"]) -> Quantized: ...

    @abstractmethod
    def features(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        """Returns the features that the tokens of whole images decode to."""


class ImageTokenizer(nn.Module, ABC):
    """Turns images into tokens and back.

    Attributes:
        channels: 1 for grey images, 3 for colour.
        side: pixels per side.
        length: tokens per image.
        quantize: the codebook and the way in which features are written with it.

    Example:
        >>> from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
        >>> shape = RasterVQConfig(
        ...     grid=4, codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1, channels=1
        ... )
        >>> tokenizer = RasterVQ(shape).eval()
        >>> tokens = tokenizer.encode(torch.rand(2, 1, 8, 8))
        >>> list(tokens.shape), list(tokenizer.decode(tokens).shape)
        ([2, 16], [2, 1, 8, 8])
    """

    channels: int
    side: int
    length: int
    quantize: Quantizer

    @property
    def codebook(self) -> nn.Embedding:
        return self.quantize.embedding

    @property
    def codes(self) -> int:
        return self.codebook.num_embeddings

    @abstractmethod
    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        """Returns the features of images in [0, 1] that are quantized."""

    @abstractmethod
    def paint(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Returns images on the scale of [0, 1], which values may leave."""

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Int[Tensor, "batch length"]:
        """Returns the tokens of images.

        Args:
            images: [batch, channels, side, side] in [0, 1].

        Raises:
            ValueError: the images have another shape, or are not floating, not finite or outside
                [0, 1].
        """
        features = self.features(self.validate_images(images))
        return self.quantize(features).tokens

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Returns the images of tokens.

        Args:
            tokens: [batch, length] of whole images.

        Returns:
            [batch, channels, side, side] in [0, 1].

        Raises:
            ValueError: the tokens have another shape, or are not integers or outside the codebook.
        """
        tokens = self.validate_tokens(tokens)
        if tokens.shape[1] != self.length:
            raise ValueError(f"expected tokens [batch, {self.length}], got {list(tokens.shape)}")
        features = self.quantize.features(tokens)
        return self.paint(features).clamp(0, 1)

    def reconstruct(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Tensor, Float[Tensor, ""]]:
        """Returns the reconstruction and the quantization loss, both with gradients.

        Args:
            images: [batch, channels, side, side] in [0, 1].

        Returns:
            The reconstruction [batch, channels, side, side], not clamped to [0, 1], with a
            straight-through gradient; and the loss.

        Raises:
            ValueError: see `encode`.
        """
        reconstruction, quantized = self.reconstruct_with_codes(self.validate_images(images))
        return reconstruction, quantized.loss

    def reconstruct_with_codes(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Tensor, Quantized]:
        """Like `reconstruct`, for images that were already checked; returns the reconstruction and
        the whole `Quantized`."""
        quantized: Quantized = self.quantize(self.features(images))
        return self.paint(quantized.features), quantized

    def validate_images(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Returns images on the device and in the precision of the tokenizer.

        Raises:
            ValueError: see `encode`.
        """
        expected = (self.channels, self.side, self.side)
        if images.ndim != 4 or images.shape[1:] != expected:
            sizes = ", ".join(map(str, expected))
            raise ValueError(f"expected images [batch, {sizes}], got {list(images.shape)}")
        if images.numel():
            low, high = (float(end) for end in images.aminmax())
            # One chain of comparisons, because every comparison with NaN is false.
            if not (0 <= low <= high <= 1 and images.is_floating_point()):
                raise ValueError(
                    f"expected floating images in [0, 1], got {images.dtype} "
                    f"from {low:.4g} to {high:.4g}; divide 0..255 by 255"
                )
        return images.to(self.codebook.weight)

    def validate_tokens(self, tokens: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """Returns tokens on the device of the tokenizer.

        Raises:
            ValueError: they are not integers [batch, length], or outside the codebook.
        """
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ValueError(
                "expected integer tokens [batch, length], "
                f"got {list(tokens.shape)} of {tokens.dtype}"
            )
        if tokens.numel():
            low, high = (int(end) for end in tokens.aminmax())
            if low < 0 or high >= self.codes:
                raise ValueError(f"expected tokens 0..{self.codes - 1}, got {low}..{high}")
        return tokens.to(self.codebook.weight.device, torch.int64)


def fit_tokenizer(
    tokenizer: ImageTokenizer,
    images: Float[Tensor, "images channels side side"],
    steps: int,
    *,
    lr: float = 3e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> list[float]:
    """Trains a tokenizer in place on squared error plus quantization loss, and freezes it.

    AdamW, with warm-up and a cosine down to 0. The codebook begins as vectors that the first batch
    looks up. A code that was not used for some steps is dead, and is seeded anew from the vectors
    of the current batch, except in the last part of training.

    Args:
        tokenizer: trained from the weights it has; ends in eval mode without gradients.
        images: [images, channels, side, side] in [0, 1], drawn with replacement.
        steps: number of optimizer steps.
        lr: the largest learning rate.
        batch_size: number of images per step.
        seed: seed of all draws; torch's global generator is left alone.

    Returns:
        The loss of every step.

    Raises:
        ValueError: see `encode`; or there is no image, or `steps` or `batch_size` is below 1.

    Example:
        >>> from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
        >>> from interp.models.image.tokenizers import fit_tokenizer
        >>> shape = RasterVQConfig(
        ...     grid=4, codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1, channels=1
        ... )
        >>> losses = fit_tokenizer(RasterVQ(shape), torch.rand(8, 1, 8, 8), steps=3, batch_size=4)
        >>> len(losses)
        3
    """
    if len(images) < 1 or steps < 1 or batch_size < 1:
        raise ValueError(
            "expected at least 1 image, step and image per step; "
            f"got {len(images)}, {steps} and {batch_size}"
        )
    images = tokenizer.validate_images(images)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    with _training(tokenizer), torch.enable_grad():
        optimizer = torch.optim.AdamW(tokenizer.parameters(), lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _lr_factor(step, steps)
        )
        idle = torch.zeros(tokenizer.codes, dtype=torch.int64, device=images.device)
        for step in track(range(steps), "fitting a tokenizer"):
            # Drawn on the CPU, so that every device trains on the same images.
            drawn = torch.randint(len(images), (batch_size,), generator=generator)
            batch = images[drawn.to(images.device)]
            if step == 0:
                _seed_codebook(tokenizer, batch, generator)

            reconstruction, quantized = tokenizer.reconstruct_with_codes(batch)
            loss = F.mse_loss(reconstruction, batch) + quantized.loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))

            # Every code is idle for one more step, except those that were used in this one.
            idle = (idle + 1).index_fill(0, quantized.tokens.flatten(), 0)
            if step < _SETTLING * steps:
                idle = _revive_dead_codes(tokenizer.codebook, idle, quantized.vectors, generator)
    return losses


@contextmanager
def _training(tokenizer: ImageTokenizer) -> Generator[None]:
    """Trainable within, frozen after, however it ends."""
    try:
        tokenizer.train().requires_grad_(requires_grad=True)
        yield
    finally:
        tokenizer.eval().requires_grad_(requires_grad=False).zero_grad()


def _lr_factor(step: int, steps: int) -> float:
    """The learning rate of a step as a fraction of the largest."""
    rise = min(1.0, (step + 1) / _WARM_UP)
    angle = math.pi * step / steps
    return rise * (1 + math.cos(angle)) / 2


@torch.no_grad()
def _seed_codebook(
    tokenizer: ImageTokenizer,
    images: Float[Tensor, "batch channels side side"],
    generator: torch.Generator,
) -> None:
    """Makes all codes vectors that the images look up."""
    tokenizer.codebook.weight.zero_()
    all_codes = torch.ones(tokenizer.codes, dtype=torch.bool, device=images.device)
    # Several times, because what finer scales look up depends on the codes of coarser ones: the
    # first time there is nothing but zeros to subtract.
    for _ in range(3):
        features = tokenizer.features(images)
        quantized: Quantized = tokenizer.quantize(features)
        _redraw(tokenizer.codebook, all_codes, quantized.vectors, generator)


@torch.no_grad()
def _revive_dead_codes(
    codebook: nn.Embedding,
    idle: Int[Tensor, " codes"],
    vectors: Float[Tensor, "batch length code_width"],
    generator: torch.Generator,
) -> Int[Tensor, " codes"]:
    """Redraws codes that were idle for too long; the steps for which each code is idle then."""
    dead = idle >= _IDLE
    _redraw(codebook, dead, vectors, generator)
    return idle.masked_fill(dead, 0)


def _redraw(
    codebook: nn.Embedding,
    which: Tensor,
    vectors: Float[Tensor, "batch length code_width"],
    generator: torch.Generator,
) -> None:
    """Replaces some codes by vectors drawn from those given."""
    pool = vectors.flatten(0, 1)  # all places of all images
    count = int(which.sum())
    drawn = torch.randint(len(pool), (count,), generator=generator)
    codebook.weight[which] = pool[drawn.to(pool.device)]


def shape_of(state: Mapping[str, Tensor], key: str, kind: str) -> torch.Size:
    """Returns the shape under a key of a state dict.

    Raises:
        ValueError: the key is not there, so that this is not the tokenizer of a `kind`.
    """
    if key not in state:
        raise ValueError(f"not a {kind} tokenizer: no key {key}")
    return state[key].shape


def count_numbered(state: Mapping[str, Tensor], pattern: str, start: int = 0) -> int:
    """Returns how many keys of a state dict match a pattern, with numbers that count up from
    `start` without a gap.

    Args:
        state: the state dict.
        pattern: a key with `{}` in the place of the number.
        start: the first number.

    Example:
        >>> from interp.models.image.tokenizers import count_numbered
        >>> state = {"down.0.weight": torch.ones(1), "down.1.weight": torch.ones(1)}
        >>> count_numbered(state, "down.{}.weight")
        2
    """
    number = start
    while pattern.format(number) in state:
        number += 1
    return number - start
