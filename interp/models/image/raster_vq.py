"""RAR's tokenizer: an image as one grid of codes in raster order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.image.layers import ResidualBlock, check_levels, conv, group_norm
from interp.models.image.tokenizers import (
    ImageTokenizer,
    Quantized,
    Quantizer,
    count_numbered,
    shape_of,
)

# Weight of the part of the loss that moves codes to features, as in the public code.
_CODEBOOK = 0.25


@dataclass(frozen=True)
class RasterVQConfig:
    """The shape of a one-grid tokenizer.

    The defaults are those of RAR's public tokenizer, for images of 256 pixels per side.

    Attributes:
        grid: codes per side.
        codes: number of codes in the codebook.
        code_width: width of a code and of the features.
        width: channels of the first convolution.
        multipliers: the number of channels at each level, as a multiple of `width`; at least 2
            levels. From one level to the next the side halves.
        blocks: residual blocks per level, and in the middle.
        channels: 1 for grey images, 3 for colour.

    Raises:
        ValueError: no tokenizer can have this shape.

    Example:
        >>> from interp.models.image.raster_vq import RasterVQConfig
        >>> RasterVQConfig().side
        256
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
        """Pixels per side."""
        halvings = len(self.multipliers) - 1
        return self.grid * 2**halvings

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, fine to coarse."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)


def raster_vq_config(state: Mapping[str, Tensor], grid: int) -> RasterVQConfig:
    """Returns the config of a state dict.

    Args:
        state: state dict of a `RasterVQ`.
        grid: codes per side, which a state dict does not hold.

    Raises:
        ValueError: it is the state dict of something else, or no config has this grid.
    """
    above = "decoder.up.{}.upsample_conv.weight"
    # All are looked up before any is used, so that a missing one is named.
    width, channels = shape_of(state, "encoder.conv_in.weight", "RAR")[:2]
    codes, code_width = shape_of(state, "quantize.embedding.weight", "RAR")
    finest_width = shape_of(state, "decoder.norm_out.weight", "RAR")[0]
    shape_of(state, above.format(1), "RAR")

    # The finest level of the decoder does not up-sample, so its width is that of the last norm.
    levels_above = range(1, 1 + count_numbered(state, above, 1))
    widths_above = [state[above.format(level)].shape[0] for level in levels_above]
    widths = [finest_width, *widths_above]
    return RasterVQConfig(
        grid=grid,
        codes=codes,
        code_width=code_width,
        width=width,
        multipliers=tuple(level_width // width for level_width in widths),
        blocks=count_numbered(state, "encoder.mid.{}.conv1.weight"),
        channels=channels,
    )


class RasterVQ(ImageTokenizer):
    """MaskGIT's VQGAN as RAR uses it, with the state dict of its public checkpoint.

    The checkpoint is maskgit-vqgan-imagenet-f16-256.bin. Source: Chang et al. 2022, arXiv
    2202.04200; modeling/modules/maskgit_vqgan.py of github.com/bytedance/1d-tokenizer.

    Example:
        >>> from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
        >>> shape = RasterVQConfig(
        ...     grid=4, codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1
        ... )
        >>> list(RasterVQ(shape).eval().encode(torch.rand(2, 3, 8, 8)).shape)
        [2, 16]
    """

    def __init__(self, config: RasterVQConfig | None = None) -> None:
        super().__init__()
        config = config or RasterVQConfig()
        self.config = config
        self.channels = config.channels
        self.side = config.side
        self.length = config.grid**2
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = Grid(config)

    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        return self.encoder(images)

    def paint(
        self, features: Float[Tensor, "batch code_width grid grid"]
    ) -> Float[Tensor, "batch channels side side"]:
        return self.decoder(features)


class Grid(Quantizer):
    """The codebook, and one code per place of the grid."""

    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__(config.codes, config.code_width)
        self.grid = config.grid

    def features(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch code_width grid grid"]:
        # From tokens in raster order to a map: [batch, code_width, grid, grid].
        codes = self.embedding(tokens).transpose(1, 2)
        return codes.unflatten(2, (self.grid, self.grid))

    def forward(self, features: Float[Tensor, "batch code_width grid grid"]) -> Quantized:
        # From a map to vectors in raster order: [batch, places, code_width]. The look-up has no
        # gradient; the losses below pull features and codes together.
        vectors = features.detach().flatten(2).transpose(1, 2)
        tokens = self.nearest(vectors)
        codes = self.features(tokens)
        commitment = F.mse_loss(features, codes.detach())
        codebook = F.mse_loss(codes, features.detach())
        # Straight-through: the value of the codes with the gradient of the features.
        difference = codes - features
        through = features + difference.detach()
        loss = commitment + _CODEBOOK * codebook
        return Quantized(tokens, vectors, through, loss)


class _Block(ResidualBlock):
    """A residual block without biases.

    Where the width changes, the shortcut is of the branch's output, and the input is not added at
    all. So it is in the public code.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.conv1 = conv(inputs, outputs, bias=False)
        self.conv2 = conv(outputs, outputs, bias=False)
        self.widens = inputs != outputs
        if self.widens:
            self.nin_shortcut = conv(outputs, outputs, 1, bias=False)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        source = branch if self.widens else x
        return branch + self.nin_shortcut(source)


def _blocks(inputs: int, outputs: int, blocks: int) -> nn.ModuleList:
    # Only the first block changes the width.
    return nn.ModuleList(_Block(outputs if number else inputs, outputs) for number in range(blocks))


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
        if self.upsample_conv is None:
            return x
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.upsample_conv(doubled)


class _Encoder(nn.Module):
    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__()
        widths = (config.width, *config.widths)
        self.conv_in = conv(config.channels, config.width, bias=False)
        self.down = nn.ModuleList(
            _Level(inputs, outputs, config.blocks) for inputs, outputs in pairwise(widths)
        )
        coarsest = widths[-1]
        self.mid = _blocks(coarsest, coarsest, config.blocks)
        self.norm_out = group_norm(coarsest)
        self.conv_out = conv(coarsest, config.code_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            if number > 0:
                x = F.avg_pool2d(x, 2)
            x = level(x)
        for block in self.mid:
            x = block(x)
        activated = F.silu(self.norm_out(x))
        return self.conv_out(activated)


class _Decoder(nn.Module):
    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__()
        widths = (*config.widths, config.widths[-1])
        coarsest = widths[-1]
        self.conv_in = conv(config.code_width, coarsest)
        self.mid = _blocks(coarsest, coarsest, config.blocks)
        # Listed fine to coarse, as in the checkpoint, and run coarse to fine.
        self.up = nn.ModuleList(
            _Up(inputs, outputs, config.blocks, highest=level == 0)
            for level, (outputs, inputs) in enumerate(pairwise(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv(widths[0], config.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        activated = F.silu(self.norm_out(x))
        return self.conv_out(activated)
