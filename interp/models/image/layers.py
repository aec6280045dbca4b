"""Convolutional layers that the image tokenizers are made of, under the names of the public
checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the side of an image; `kernel` is odd."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, as in both public tokenizers, fewer where channels are few: the state dict does
    not tell, so it is a rule."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=1e-6)


def check_levels(blocks: int, multipliers: Sequence[int]) -> None:
    """Raises ValueError where no network has these levels."""
    if not multipliers or min(multipliers) < 1 or blocks < 0:
        raise ValueError(
            f"expected multipliers of 1 or more and blocks of 0 or more, got {tuple(multipliers)} and {blocks}"
        )
    if not blocks and set(multipliers) != {1}:
        raise ValueError(
            f"only blocks change the width: with blocks=0 all multipliers must be 1, got {tuple(multipliers)}"
        )


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and convolution, added to what came in, through a 1x1 convolution where the
    width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = group_norm(outputs), conv(outputs, outputs)
        self.nin_shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def branch(
        self, x: Float[Tensor, "batch inputs side side"]
    ) -> Float[Tensor, "batch outputs side side"]:
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))

    def forward(
        self, x: Float[Tensor, "batch inputs side side"]
    ) -> Float[Tensor, "batch outputs side side"]:
        return self.nin_shortcut(x) + self.branch(x)


class Attention(nn.Module):
    """One head over all places of the image, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv, self.proj_out = conv(channels, 3 * channels, 1), conv(channels, channels, 1)

    def forward(
        self, x: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch channels side side"]:
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    """Two residual blocks, attention between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResidualBlock(channels, channels),
            Attention(channels),
            ResidualBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Halved(nn.Module):
    """Half the side, by a strided convolution padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Doubled(nn.Module):
    """Twice the side: every pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
