"""VAR's tokenizer: an image as the sum of ever finer maps of codes, each of what the coarser ones
left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.image.layers import (
    Attention,
    Doubled,
    Halved,
    Middle,
    ResidualBlock,
    check_levels,
    conv,
    group_norm,
)
from interp.models.image.tokenizers import ImageTokenizer, Quantized, Quantizer, numbered, shape_of

_COMMITMENT = 0.25  # weight of the part of the loss that moves features to codes, public value


@dataclass(frozen=True)
class ResidualVQConfig:
    """The shape of a multi-scale residual tokenizer; the defaults are VAR's public one, for images
    of 256 pixels a side.

    Attributes:
        sides: of the maps of codes, coarse to fine, at least 2, increasing; the last is the grid of
        the features.
        codes: in the codebook, which all scales share.
        code_width: of a code and of the features.
        width: channels of the first convolution.
        multipliers: of `width` at each level; from one level to the next the side halves.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        phis: convolutions after up-sampling, shared by neighbouring scales.
        channels: 1 for grey images, 3 for colour.
    """

    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    codes: int = 4096
    code_width: int = 32
    width: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    phis: int = 4
    channels: int = 3

    def __post_init__(self) -> None:
        if len(self.sides) < 2 or self.sides[0] < 1 or any(a >= b for a, b in pairwise(self.sides)):
            raise ValueError(f"expected at least 2 increasing sides, got {self.sides}")
        if self.phis < 1:
            raise ValueError(f"expected at least 1 phi, got {self.phis}")
        check_levels(self.blocks, self.multipliers)

    @property
    def side(self) -> int:
        """Pixels a side."""
        return self.sides[-1] * 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, fine to coarse."""
        return tuple(self.width * m for m in self.multipliers)


def residual_vq_config(state: Mapping[str, Tensor], sides: Sequence[int]) -> ResidualVQConfig:
    """The config of a state dict. It does not hold the sides of the maps.

    Raises:
        ValueError: a state dict of something else; sides that no config has.
    """
    stem, book, phi = (
        "encoder.conv_in.weight",
        "quantize.embedding.weight",
        "quantize.quant_resi.qresi_ls.{}.weight",
    )
    level, block = "decoder.up.{}.block.0.conv1.weight", "decoder.up.0.block.{}.conv1.weight"
    shapes = {
        key: shape_of(state, key, "VAR") for key in (stem, book, level.format(0), phi.format(0))
    }
    width, channels = shapes[stem][:2]
    codes, code_width = shapes[book]
    multipliers = tuple(
        state[level.format(n)].shape[0] // width for n in range(numbered(state, level))
    )
    blocks = numbered(state, block) - 1
    return ResidualVQConfig(
        tuple(sides), codes, code_width, width, multipliers, blocks, numbered(state, phi), channels
    )


class ResidualVQ(ImageTokenizer):
    """VAR's multi-scale tokenizer, with the state dict of its public checkpoint,
    vae_ch160v4096z32.pth.

    `scales` are the (start, stop) of each scale's tokens, coarse to fine.

    Source: Tian et al. 2024, arXiv 2404.02905, algorithms 1 and 2.
    """

    quantize: MultiScale

    def __init__(self, config: ResidualVQConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ResidualVQConfig()
        self.scales: tuple[tuple[int, int], ...] = tuple(
            pairwise(accumulate((side**2 for side in config.sides), initial=0))
        )
        self.channels, self.side, self.length = config.channels, config.side, self.scales[-1][1]
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.quantize = MultiScale(config)  # pyright: ignore[reportIncompatibleVariableOverride] - set once
        self.quant_conv = conv(config.code_width, config.code_width)
        self.post_quant_conv = conv(config.code_width, config.code_width)

    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        """What is quantized of images in [0, 1]; the network itself works on [-1, 1]."""
        return self.quant_conv(self.encoder(images * 2 - 1))

    def painted(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Float[Tensor, "batch channels side side"]:
        return (self.decoder(self.post_quant_conv(features)) + 1) / 2

    @torch.no_grad()
    def next_inputs(
        self, tokens: Int[Tensor, "batch given"]
    ) -> Float[Tensor, "batch places code_width"]:
        """What VAR reads at scales 2 to k + 1, given the tokens of scales 1 to k: the sum so far,
        area-pooled to the side of the next.

        Of no tokens it is [batch, 0, code_width]. Scale 1 is predicted from the class alone.

        Raises:
            ValueError: tokens of no whole number of scales or of all; as `decode`.
        """
        tokens, starts = self.known(tokens), [start for start, _ in self.scales]
        if tokens.shape[1] not in starts:
            raise ValueError(
                f"expected the tokens of whole scales, and not of all: one of {starts} tokens, got {tokens.shape[1]}"
            )
        given = starts.index(tokens.shape[1])
        inputs = [self.codebook.weight.new_zeros(len(tokens), 0, self.config.code_width)]
        summed = 0
        for scale, (start, stop) in enumerate(self.scales[:given]):
            summed = summed + self.quantize.added(tokens[:, start:stop], scale)
            inputs.append(_pooled(summed, self.config.sides[scale + 1]))
        return torch.cat(inputs, 1)


class MultiScale(Quantizer):
    """The codebook, and the sum over scales of up-sampled maps of codes."""

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__(config.codes, config.code_width)
        self.sides = config.sides
        self.quant_resi = _Phis(config)
        self.register_buffer(
            "ema_vocab_hit_SV", torch.zeros(len(config.sides), config.codes)
        )  # in the checkpoint; nothing reads it

    def added(
        self, tokens: Int[Tensor, "batch places"], scale: int
    ) -> Float[Tensor, "batch code_width grid grid"]:
        """What the tokens of a scale (from 0) add to the sum."""
        side, grid = self.sides[scale], self.sides[-1]
        codes = self.embedding(tokens).transpose(1, 2).unflatten(2, (side, side))
        return self.quant_resi(
            codes if side == grid else F.interpolate(codes, size=(grid, grid), mode="bicubic"),
            scale,
        )

    def features(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        parts = tokens.split([side**2 for side in self.sides], 1)
        return torch.stack([self.added(part, scale) for scale, part in enumerate(parts)]).sum(0)

    def descent(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Scale after scale, of what the ones before left: the vectors to look up, their tokens,
        and what these add to the sum."""
        rest = features.detach()
        for scale, side in enumerate(self.sides):
            vectors = _pooled(rest, side)
            tokens = self.nearest(vectors)
            added = self.added(tokens, scale)
            yield vectors, tokens, added
            rest = rest - added.detach()

    def forward(self, features: Float[Tensor, "batch code_width grid grid"]) -> Quantized:
        vectors, tokens, added = zip(*self.descent(features), strict=True)
        sums = list(accumulate(added))
        losses = [
            _COMMITMENT * F.mse_loss(s.detach(), features) + F.mse_loss(s, features.detach())
            for s in sums
        ]
        through = features + (sums[-1] - features).detach()
        return Quantized(
            torch.cat(tokens, 1), torch.cat(vectors, 1), through, torch.stack(losses).mean()
        )


class _Phis(nn.Module):
    """phi(h) = h / 2 + conv(h) / 2, the convolution that of the nearest of evenly spaced ticks."""

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(
            conv(config.code_width, config.code_width) for _ in range(config.phis)
        )
        margin = (
            1 / (3 if config.phis == 4 else 2) / config.phis
        )  # the public rule; in float64, because some scales lie midway
        ticks = np.linspace(margin, 1 - margin, config.phis)
        self.of_scale = [
            int(np.abs(ticks - n / (len(config.sides) - 1)).argmin())
            for n in range(len(config.sides))
        ]

    def forward(
        self, h: Float[Tensor, "batch code_width grid grid"], scale: int
    ) -> Float[Tensor, "batch code_width grid grid"]:
        return h / 2 + self.qresi_ls[self.of_scale[scale]](h) / 2


class _Level(nn.Module):
    """Residual blocks, each with attention at the lowest level."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, lowest: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(outputs if n else inputs, outputs) for n in range(blocks)
        )
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks if lowest else 0))

    def forward(self, x: Tensor) -> Tensor:
        for n, block in enumerate(self.block):
            x = self.attn[n](block(x)) if len(self.attn) else block(x)
        return x


class _Down(_Level):
    def __init__(self, inputs: int, outputs: int, blocks: int, *, lowest: bool) -> None:
        super().__init__(inputs, outputs, blocks, lowest=lowest)
        self.downsample = nn.Identity() if lowest else Halved(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class _Up(_Level):
    def __init__(
        self, inputs: int, outputs: int, blocks: int, *, lowest: bool, highest: bool
    ) -> None:
        super().__init__(inputs, outputs, blocks, lowest=lowest)
        self.upsample = nn.Identity() if highest else Doubled(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class _Encoder(nn.Module):
    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        widths = (config.width, *config.widths)
        lowest = len(config.multipliers) - 1
        self.conv_in = conv(config.channels, config.width)
        self.down = nn.ModuleList(
            _Down(a, b, config.blocks, lowest=n == lowest)
            for n, (a, b) in enumerate(pairwise(widths))
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = group_norm(widths[-1]), conv(widths[-1], config.code_width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        widths = (*config.widths, config.widths[-1])
        lowest = len(config.multipliers) - 1
        self.conv_in = conv(config.code_width, widths[-1])
        self.mid = Middle(widths[-1])
        levels = enumerate(pairwise(widths))
        self.up = nn.ModuleList(
            _Up(b, a, config.blocks + 1, lowest=n == lowest, highest=n == 0) for n, (a, b) in levels
        )
        self.norm_out, self.conv_out = group_norm(widths[0]), conv(widths[0], config.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _pooled(
    features: Float[Tensor, "batch width grid grid"], side: int
) -> Float[Tensor, "batch places width"]:
    """Area means over side x side cells, in raster order."""
    return F.interpolate(features, size=(side, side), mode="area").flatten(2).transpose(1, 2)
