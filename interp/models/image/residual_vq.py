"""VAR's tokenizer: an image as a sum of maps of codes, coarse to fine.

Each map is looked up for what the sum of the coarser ones leaves of the features.
"""

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
from interp.models.image.tokenizers import (
    ImageTokenizer,
    Quantized,
    Quantizer,
    count_numbered,
    shape_of,
)

# Weight of the part of the loss that moves features to codes, as in the public code.
_COMMITMENT = 0.25


@dataclass(frozen=True)
class ResidualVQConfig:
    """The shape of a multi-scale residual tokenizer.

    The defaults are those of VAR's public tokenizer, for images of 256 pixels per side.

    Attributes:
        sides: codes per side of each map, coarse to fine; at least 2 maps, of increasing size. The
            last has the size of the feature map.
        codes: number of codes in the codebook, which all scales share.
        code_width: width of a code and of the features.
        width: channels of the first convolution.
        multipliers: the number of channels at each level, as a multiple of `width`; from one level
            to the next the side halves.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        phis: number of convolutions after up-sampling, shared by neighbouring scales.
        channels: 1 for grey images, 3 for colour.

    Raises:
        ValueError: no tokenizer can have this shape.

    Example:
        >>> from interp.models.image.residual_vq import ResidualVQConfig
        >>> ResidualVQConfig().side
        256
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
        increasing = all(side < next_side for side, next_side in pairwise(self.sides))
        if len(self.sides) < 2 or self.sides[0] < 1 or not increasing:
            raise ValueError(f"expected at least 2 increasing sides, got {self.sides}")
        if self.phis < 1:
            raise ValueError(f"expected at least 1 phi, got {self.phis}")
        check_levels(self.blocks, self.multipliers)

    @property
    def side(self) -> int:
        """Pixels per side."""
        halvings = len(self.multipliers) - 1
        return self.sides[-1] * 2**halvings

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, fine to coarse."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)


def residual_vq_config(state: Mapping[str, Tensor], sides: Sequence[int]) -> ResidualVQConfig:
    """Returns the config of a state dict.

    Args:
        state: state dict of a `ResidualVQ`.
        sides: codes per side of each map, which a state dict does not hold.

    Raises:
        ValueError: it is the state dict of something else, or no config has these sides.
    """
    phi = "quantize.quant_resi.qresi_ls.{}.weight"
    level = "decoder.up.{}.block.0.conv1.weight"
    block = "decoder.up.0.block.{}.conv1.weight"
    # All are looked up before any is used, so that a missing one is named.
    width, channels = shape_of(state, "encoder.conv_in.weight", "VAR")[:2]
    codes, code_width = shape_of(state, "quantize.embedding.weight", "VAR")
    shape_of(state, level.format(0), "VAR")
    shape_of(state, phi.format(0), "VAR")

    levels = [level.format(number) for number in range(count_numbered(state, level))]
    widths = [state[key].shape[0] for key in levels]
    return ResidualVQConfig(
        sides=tuple(sides),
        codes=codes,
        code_width=code_width,
        width=width,
        multipliers=tuple(level_width // width for level_width in widths),
        blocks=count_numbered(state, block) - 1,  # the decoder has one more than the encoder
        phis=count_numbered(state, phi),
        channels=channels,
    )


class ResidualVQ(ImageTokenizer):
    """VAR's multi-scale tokenizer, with the state dict of its public checkpoint.

    The checkpoint is vae_ch160v4096z32.pth. Source: Tian et al. 2024, arXiv 2404.02905, algorithms
    1 and 2.

    Attributes:
        scales: (start, stop) of each scale's tokens, coarse to fine.

    Example:
        >>> from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig
        >>> shape = ResidualVQConfig(
        ...     sides=(1, 2, 4), codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1
        ... )
        >>> tokenizer = ResidualVQ(shape).eval()
        >>> tokenizer.scales
        ((0, 1), (1, 5), (5, 21))
        >>> list(tokenizer.encode(torch.rand(2, 3, 8, 8)).shape)
        [2, 21]
    """

    quantize: MultiScale

    def __init__(self, config: ResidualVQConfig | None = None) -> None:
        super().__init__()
        config = config or ResidualVQConfig()
        places_per_scale = [side**2 for side in config.sides]
        starts = accumulate(places_per_scale, initial=0)
        self.config = config
        self.scales: tuple[tuple[int, int], ...] = tuple(pairwise(starts))
        self.channels = config.channels
        self.side = config.side
        self.length = self.scales[-1][1]
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = MultiScale(config)  # pyright: ignore[reportIncompatibleVariableOverride] - set once
        self.quant_conv = conv(config.code_width, config.code_width)
        self.post_quant_conv = conv(config.code_width, config.code_width)

    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        """Returns the features of images in [0, 1]; the network itself works on [-1, 1]."""
        return self.quant_conv(self.encoder(images * 2 - 1))

    def paint(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Float[Tensor, "batch channels side side"]:
        images = self.decoder(self.post_quant_conv(features))
        return (images + 1) / 2  # from [-1, 1] to [0, 1]

    @torch.no_grad()
    def next_inputs(
        self, tokens: Int[Tensor, "batch given"]
    ) -> Float[Tensor, "batch places code_width"]:
        """Returns what VAR reads at scales 2 to k + 1, given the tokens of scales 1 to k.

        That is the sum so far, area-pooled to the side of the next scale. Scale 1 is predicted from
        the class alone.

        Args:
            tokens: [batch, given] the tokens of the first k scales, where k is 0 or more and less
                than the number of scales.

        Returns:
            [batch, places, code_width], one place per token of scales 2 to k + 1; none if k is 0.

        Raises:
            ValueError: the tokens end within a scale or are those of all scales; or see `decode`.
        """
        tokens = self.validate_tokens(tokens)
        starts = [start for start, _ in self.scales]
        if tokens.shape[1] not in starts:
            raise ValueError(
                f"expected the tokens of the first scales, not of all: one of {starts} tokens, "
                f"got {tokens.shape[1]}"
            )
        n_given = starts.index(tokens.shape[1])
        # No place, so that the parts can be joined where no scale is given.
        inputs = [self.codebook.weight.new_zeros(len(tokens), 0, self.config.code_width)]
        summed = 0
        for scale, (start, stop) in enumerate(self.scales[:n_given]):
            own_tokens = tokens[:, start:stop]
            summed = summed + self.quantize.scale_features(own_tokens, scale)
            next_side = self.config.sides[scale + 1]
            inputs.append(_pooled(summed, next_side))
        return torch.cat(inputs, 1)


class MultiScale(Quantizer):
    """The codebook, and the sum over scales of up-sampled maps of codes."""

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__(config.codes, config.code_width)
        self.sides = config.sides
        self.quant_resi = _Phis(config)
        # Nothing reads this buffer, but the checkpoint has it, and files are loaded whole.
        hits = torch.zeros(len(config.sides), config.codes)
        self.register_buffer("ema_vocab_hit_SV", hits)

    def scale_features(
        self, tokens: Int[Tensor, "batch places"], scale: int
    ) -> Float[Tensor, "batch code_width grid grid"]:
        """Returns what the tokens of a scale, counted from 0, add to the sum."""
        side = self.sides[scale]
        grid = self.sides[-1]
        # From tokens in raster order to a map: [batch, code_width, side, side].
        codes = self.embedding(tokens)
        codes = codes.transpose(1, 2).unflatten(2, (side, side))
        if side != grid:
            codes = F.interpolate(codes, size=(grid, grid), mode="bicubic")
        return self.quant_resi(codes, scale)

    def features(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        places_per_scale = [side**2 for side in self.sides]
        added: list[Tensor] = []
        for scale, own_tokens in enumerate(tokens.split(places_per_scale, 1)):
            added.append(self.scale_features(own_tokens, scale))
        return torch.stack(added).sum(0)

    def descent(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Quantizes scale after scale; each scale encodes what the scales before it have left over.

        Yields:
            For each scale the vectors to look up [batch, places, code_width], their tokens [batch,
            places], and what these add to the sum [batch, code_width, grid, grid].
        """
        # What is looked up has no gradient; what is added keeps that of codes and convolutions.
        rest = features.detach()
        for scale, side in enumerate(self.sides):
            vectors = _pooled(rest, side)
            tokens = self.nearest(vectors)
            added = self.scale_features(tokens, scale)
            yield vectors, tokens, added
            rest = rest - added.detach()

    def forward(self, features: Float[Tensor, "batch code_width grid grid"]) -> Quantized:
        vectors, tokens, added = zip(*self.descent(features), strict=True)
        sums = list(accumulate(added))

        # The loss is that of every partial sum, so that the coarse scales alone already resemble
        # the image.
        losses: list[Tensor] = []
        for partial in sums:
            commitment = F.mse_loss(partial.detach(), features)
            codebook = F.mse_loss(partial, features.detach())
            losses.append(_COMMITMENT * commitment + codebook)

        # Straight-through: the value of the codes with the gradient of the features.
        difference = sums[-1] - features
        through = features + difference.detach()
        return Quantized(
            tokens=torch.cat(tokens, 1),
            vectors=torch.cat(vectors, 1),
            features=through,
            loss=torch.stack(losses).mean(),
        )


class _Phis(nn.Module):
    """phi(h) = h / 2 + conv(h) / 2, with the convolution whose tick is nearest to the scale.

    The ticks are spaced evenly between the first scale, at 0, and the last one, at 1.
    """

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(
            conv(config.code_width, config.code_width) for _ in range(config.phis)
        )
        # The rule of the public code. It must be computed in float64 as there: some scales lie
        # midway between two ticks, and rounding decides which is nearest.
        share_of_gap = 1 / (3 if config.phis == 4 else 2)
        margin = share_of_gap / config.phis
        ticks = np.linspace(margin, 1 - margin, config.phis)
        self.of_scale: list[int] = []
        last = len(config.sides) - 1
        for scale in range(len(config.sides)):
            distances = np.abs(ticks - scale / last)
            self.of_scale.append(int(distances.argmin()))

    def forward(
        self, h: Float[Tensor, "batch code_width grid grid"], scale: int
    ) -> Float[Tensor, "batch code_width grid grid"]:
        convolution = self.qresi_ls[self.of_scale[scale]]
        return h / 2 + convolution(h) / 2


class _Level(nn.Module):
    """Residual blocks, each with attention after it at the lowest level."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, lowest: bool) -> None:
        super().__init__()
        # Only the first block changes the width.
        self.block = nn.ModuleList(
            ResidualBlock(outputs if number else inputs, outputs) for number in range(blocks)
        )
        attentions = blocks if lowest else 0
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(attentions))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
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
            _Down(inputs, outputs, config.blocks, lowest=level == lowest)
            for level, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv(widths[-1], config.code_width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        activated = F.silu(self.norm_out(x))
        return self.conv_out(activated)


class _Decoder(nn.Module):
    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        widths = (*config.widths, config.widths[-1])
        lowest = len(config.multipliers) - 1
        self.conv_in = conv(config.code_width, widths[-1])
        self.mid = Middle(widths[-1])
        # Listed fine to coarse, as in the checkpoint, and run coarse to fine.
        self.up = nn.ModuleList(
            _Up(inputs, outputs, config.blocks + 1, lowest=level == lowest, highest=level == 0)
            for level, (outputs, inputs) in enumerate(pairwise(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv(widths[0], config.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        x = self.mid(x)
        for level in reversed(self.up):
            x = level(x)
        activated = F.silu(self.norm_out(x))
        return self.conv_out(activated)


def _pooled(
    features: Float[Tensor, "batch width grid grid"], side: int
) -> Float[Tensor, "batch places width"]:
    """Area means over side x side cells, in raster order."""
    maps = F.interpolate(features, size=(side, side), mode="area")
    return maps.flatten(2).transpose(1, 2)
