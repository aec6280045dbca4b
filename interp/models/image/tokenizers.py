"""Image tokenizers: an image as a sequence of codes and back, and how a small one is trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.progress import track

_IDLE = 8  # steps without use after which a code is dead while fitting
_SETTLING = 0.7  # share of the steps after which no code is re-seeded: the last ones need the rest of the time to be learned
_WARM_UP = 10  # steps


class Quantized(NamedTuple):
    """Features as codes: `vectors` are what was looked up for each token, `features` the codes'
    own, with a straight-through gradient."""

    tokens: Int[Tensor, "batch length"]
    vectors: Float[Tensor, "batch length code_width"]
    features: Float[Tensor, "batch code_width grid grid"]
    loss: Float[Tensor, ""]


class Quantizer(nn.Module, ABC):
    """A codebook and how features are written with it."""

    def __init__(self, codes: int, code_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, code_width)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "... code_width"]) -> Int[Tensor, " ..."]:
        """The code with the smallest squared distance to each vector; the first of equal ones."""
        exact = torch.promote_types(
            vectors.dtype, torch.float32
        )  # half precision cannot tell near codes apart
        codes, vectors = self.embedding.weight.to(exact), vectors.to(exact)
        return (codes.square().sum(1) - 2 * vectors @ codes.T).argmin(
            -1
        )  # without |vector|^2, which is the same for all codes

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch code_width grid grid"]) -> Quantized: ...

    @abstractmethod
    def features(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        """What the tokens of whole images stand for."""


class ImageTokenizer(nn.Module, ABC):
    """Images as tokens and back.

    Attributes:
        channels: 1 for grey images, 3 for colour.
        side: pixels a side.
        length: tokens an image.
        quantize: the codebook and how features are written with it.
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
        """What is quantized of images in [0, 1]."""

    @abstractmethod
    def painted(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Images on the scale of [0, 1], which they may leave."""

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Int[Tensor, "batch length"]:
        """The tokens of images in [0, 1].

        Raises:
            ValueError: images of another shape, not floating, not finite or outside [0, 1].
        """
        return self.quantize(self.features(self.checked(images))).tokens

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch channels side side"]:
        """The images of tokens, in [0, 1].

        Raises:
            ValueError: tokens of another shape, not integers, or outside the codebook.
        """
        tokens = self.known(tokens)
        if tokens.shape[1] != self.length:
            raise ValueError(f"expected tokens [batch, {self.length}], got {list(tokens.shape)}")
        return self.painted(self.quantize.features(tokens)).clamp(0, 1)

    def trained(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Tensor, Float[Tensor, ""]]:
        """The reconstruction [batch, channels, side, side] before clamping, with a straight-through
        gradient; the quantization loss.

        Raises:
            ValueError: as `encode`.
        """
        painted, quantized = self.through(self.checked(images))
        return painted, quantized.loss

    def through(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Tensor, Quantized]:
        """As `trained`, of images that were checked, with all that quantization gives."""
        quantized: Quantized = self.quantize(self.features(images))
        return self.painted(quantized.features), quantized

    def checked(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Images that can be encoded, on the device and in the precision of the tokenizer."""
        expected = (self.channels, self.side, self.side)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"expected images [batch, {', '.join(map(str, expected))}], got {list(images.shape)}"
            )
        if images.numel():
            low, high = (float(end) for end in images.aminmax())
            if not (0 <= low <= high <= 1 and images.is_floating_point()):  # NaN is in no order
                raise ValueError(
                    f"expected floating images in [0, 1], got {images.dtype} from {low:.4g} to {high:.4g}; divide 0..255 by 255"
                )
        return images.to(self.codebook.weight)

    def known(self, tokens: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """Tokens that are in the codebook, on the device of the tokenizer."""
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ValueError(
                f"expected integer tokens [batch, length], got {list(tokens.shape)} of {tokens.dtype}"
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
    rows: int = 64,
    seed: int = 0,
) -> list[float]:
    """Trains a tokenizer in place, for squared error plus quantization loss, and freezes it;
    returns the loss of every step.

    The codebook begins as vectors that the first batch looks up. A code that was not used for some
    steps is dead, and re-seeded from the vectors of the current batch; in the last part of training
    none is. AdamW, with warm-up and a cosine down to 0.

    Args:
        tokenizer: trained from the weights it has; ends in eval mode without gradients.
        images: in [0, 1], drawn with replacement.
        steps: updates.
        lr: the largest learning rate.
        rows: images a step.
        seed: of the generator of all draws; the global one is left alone.

    Raises:
        ValueError: as `encode`; no image; steps or rows < 1.
    """
    if len(images) < 1 or steps < 1 or rows < 1:
        raise ValueError(
            f"expected at least 1 image, step and row, got {len(images)}, {steps} and {rows}"
        )
    images = tokenizer.checked(images)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    with _training(tokenizer), torch.enable_grad():
        optimizer = torch.optim.AdamW(tokenizer.parameters(), lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        idle = torch.zeros(tokenizer.codes, dtype=torch.int64, device=images.device)
        for step in track(range(steps), "fitting a tokenizer"):
            batch = images[
                torch.randint(len(images), (rows,), generator=generator).to(images.device)
            ]
            if not step:
                _begin(tokenizer, batch, generator)
            painted, quantized = tokenizer.through(batch)
            loss = F.mse_loss(painted, batch) + quantized.loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            idle = (idle + 1).index_fill(0, quantized.tokens.flatten(), 0)
            if step < _SETTLING * steps:
                idle = _revived(tokenizer.codebook, idle, quantized.vectors, generator)
    return losses


@contextmanager
def _training(tokenizer: ImageTokenizer) -> Generator[None]:
    """Trainable within, frozen after, however it ends."""
    try:
        tokenizer.train().requires_grad_(requires_grad=True)
        yield
    finally:
        tokenizer.eval().requires_grad_(requires_grad=False).zero_grad()


def _rate(step: int, steps: int) -> float:
    """The learning rate of a step as a share of the largest."""
    return min(1.0, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def _begin(
    tokenizer: ImageTokenizer,
    images: Float[Tensor, "batch channels side side"],
    generator: torch.Generator,
) -> None:
    """All codes from what the images look up. Again and again, because what finer scales look up
    depends on the codes of coarser ones."""
    tokenizer.codebook.weight.zero_()
    everything = torch.ones(tokenizer.codes, dtype=torch.bool, device=images.device)
    for _ in range(3):
        _seeded(
            tokenizer.codebook,
            everything,
            tokenizer.quantize(tokenizer.features(images)).vectors,
            generator,
        )


@torch.no_grad()
def _revived(
    codebook: nn.Embedding,
    idle: Int[Tensor, " codes"],
    vectors: Float[Tensor, "batch length code_width"],
    generator: torch.Generator,
) -> Int[Tensor, " codes"]:
    """How long each code is idle, after those that were for too long began anew."""
    dead = idle >= _IDLE
    _seeded(codebook, dead, vectors, generator)
    return idle.masked_fill(dead, 0)


def _seeded(
    codebook: nn.Embedding,
    which: Tensor,
    vectors: Float[Tensor, "batch length code_width"],
    generator: torch.Generator,
) -> None:
    """Some codes become vectors drawn from those given."""
    pool = vectors.flatten(0, 1)
    drawn = torch.randint(len(pool), (int(which.sum()),), generator=generator)
    codebook.weight[which] = pool[drawn.to(pool.device)]


def shape_of(state: Mapping[str, Tensor], key: str, kind: str) -> torch.Size:
    """The shape under a key of a state dict; ValueError where there is none."""
    if key not in state:
        raise ValueError(f"not a {kind} tokenizer: no key {key}")
    return state[key].shape


def numbered(state: Mapping[str, Tensor], pattern: str, start: int = 0) -> int:
    """How many keys there are of a pattern such as "down.{}.weight", counting up from `start`."""
    return next(n for n in count(start) if pattern.format(n) not in state) - start
