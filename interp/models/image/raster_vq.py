"""RAR's tokenizer: an image as one grid of codes in raster order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.image.layers import ResidualBlock, check_levels, conv, group_norm
from interp.models.image.tokenizers import ImageTokenizer, Quantized, Quantizer, numbered, shape_of

_CODEBOOK = 0.25  # weight of the part of the loss that moves codes to features, public value


@dataclass(frozen=True)
class RasterVQConfig:
    """The shape of a one-grid tokenizer; the defaults are RAR's public one, for images of 256
    pixels a side.

    Attributes:
        grid: codes a side.
        codes: in the codebook.
        code_width: of a code and of the features.
        width: channels of the first convolution.
        multipliers: of `width` at each level, at least 2; from one level to the next the side
        halves.
        blocks: residual blocks a level, and in the middle.
        channels: 1 for grey images, 3 for colour.
    """

    grid: int = 16
    codes: int = 1024
    code_width: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    channels: int = 3

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"expected a grid of at least 1, got {self.grid}")
        if len(self.multipliers) < 2:
            raise ValueError(f"expected at least 2 levels, got multipliers {self.multipliers}")
        check_levels(self.blocks, self.multipliers)

    @property
    def side(self) -> int:
        """Pixels a side."""
        return self.grid * 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, fine to coarse."""
        return tuple(self.width * m for m in self.multipliers)


def raster_vq_config(state: Mapping[str, Tensor], grid: int) -> RasterVQConfig:
    """The config of a state dict. It does not hold the grid.

    Raises:
        ValueError: a state dict of something else; a grid that no config has.
    """
    stem, book, last, above = (
        "encoder.conv_in.weight",
        "quantize.embedding.weight",
        "decoder.norm_out.weight",
        "decoder.up.{}.upsample_conv.weight",
    )
    shapes = {key: shape_of(state, key, "RAR") for key in (stem, book, last, above.format(1))}
    width, channels = shapes[stem][:2]
    codes, code_width = shapes[book]
    outputs = [
        shapes[last][0],
        *(state[above.format(n + 1)].shape[0] for n in range(numbered(state, above, 1))),
    ]
    multipliers = tuple(channels_out // width for channels_out in outputs)
    return RasterVQConfig(
        grid,
        codes,
        code_width,
        width,
        multipliers,
        numbered(state, "encoder.mid.{}.conv1.weight"),
        channels,
    )


class RasterVQ(ImageTokenizer):
    """MaskGIT's VQGAN as RAR uses it, with the state dict of its public checkpoint,
    maskgit-vqgan-imagenet-f16-256.bin.

    Source: Chang et al. 2022, arXiv 2202.04200; modeling/modules/maskgit_vqgan.py of
    github.com/bytedance/1d-tokenizer.
    """

    def __init__(self, config: RasterVQConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RasterVQConfig()
        self.channels, self.side, self.length = config.channels, config.side, config.grid**2
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.quantize = Grid(config)

    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        return self.encoder(images)

    def painted(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Float[Tensor, "batch channels side side"]:
        return self.decoder(features)


class Grid(Quantizer):
    """The codebook, one code a place."""

    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__(config.codes, config.code_width)
        self.grid = config.grid

    def features(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        return self.embedding(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def forward(self, features: Float[Tensor, "batch code_width grid grid"]) -> Quantized:
        vectors = features.detach().flatten(2).transpose(1, 2)
        tokens = self.nearest(vectors)
        codes = self.features(tokens)
        loss = F.mse_loss(features, codes.detach()) + _CODEBOOK * F.mse_loss(
            codes, features.detach()
        )
        return Quantized(tokens, vectors, features + (codes - features).detach(), loss)


class _Block(ResidualBlock):
    """Without biases, and where the width changes, the shortcut is of the branch's OUTPUT: what
    came in is not added at all."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.conv1, self.conv2 = (
            conv(inputs, outputs, bias=False),
            conv(outputs, outputs, bias=False),
        )
        self.nin_shortcut = (
            nn.Identity() if inputs == outputs else conv(outputs, outputs, 1, bias=False)
        )
        self.widens = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return branch + self.nin_shortcut(branch if self.widens else x)


def _blocks(inputs: int, outputs: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(outputs if n else inputs, outputs) for n in range(blocks))


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.block = _blocks(inputs, outputs, blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class _Up(_Level):
    def __init__(self, inputs: int, outputs: int, blocks: int, *, highest: bool) -> None:
        super().__init__(inputs, outputs, blocks)
        self.upsample_conv = None if highest else conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return (
            x
            if self.upsample_conv is None
            else self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        )


class _Encoder(nn.Module):
    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__()
        widths = (config.width, *config.widths)
        self.conv_in = conv(config.channels, config.width, bias=False)
        self.down = nn.ModuleList(_Level(a, b, config.blocks) for a, b in pairwise(widths))
        self.mid = _blocks(widths[-1], widths[-1], config.blocks)
        self.norm_out, self.conv_out = (
            group_norm(widths[-1]),
            conv(widths[-1], config.code_width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for n, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if n else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Decoder(nn.Module):
    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__()
        widths = (*config.widths, config.widths[-1])
        self.conv_in = conv(config.code_width, widths[-1])
        self.mid = _blocks(widths[-1], widths[-1], config.blocks)
        self.up = nn.ModuleList(
            _Up(b, a, config.blocks, highest=n == 0) for n, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out, self.conv_out = group_norm(widths[0]), conv(widths[0], config.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
