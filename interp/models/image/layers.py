"""The convolutional layers of the image tokenizers, named as in the public checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True) -> nn.Conv2d:
    """Returns a convolution that keeps the side of an image; `kernel` is odd."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a norm of 32 groups, as in both public tokenizers, or fewer for few channels.

    A state dict does not hold the number of groups, so it must follow from the channels.
    """
    groups = max(1, min(32, channels // 4))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def check_levels(blocks: int, multipliers: Sequence[int]) -> None:
    """Checks that a network can have these levels.

    Raises:
        ValueError: it cannot.
    """
    if not multipliers or min(multipliers) < 1 or blocks < 0:
        raise ValueError(
            "expected multipliers of 1 or more and blocks of 0 or more, "
            f"got {tuple(multipliers)} and {blocks}"
        )
    if not blocks and set(multipliers) != {1}:
        raise ValueError(
            "only blocks change the width: with blocks=0 all multipliers must be 1, "
            f"got {tuple(multipliers)}"
        )


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, added to the input.

    Where the width changes, a 1x1 convolution gives the input the new width before the sum.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = conv(inputs, outputs)
        self.norm2 = group_norm(outputs)
        self.conv2 = conv(outputs, outputs)
        self.nin_shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def branch(
        self, x: Float[Tensor, "batch inputs side side"]
    ) -> Float[Tensor, "batch outputs side side"]:
        x = F.silu(self.norm1(x))
        x = self.conv1(x)
        x = F.silu(self.norm2(x))
        return self.conv2(x)

    def forward(
        self, x: Float[Tensor, "batch inputs side side"]
    ) -> Float[Tensor, "batch outputs side side"]:
        return self.nin_shortcut(x) + self.branch(x)


class Attention(nn.Module):
    """Self-attention with one head over all places of the image; its result is added to the
    input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.proj_out = conv(channels, channels, 1)

    def forward(
        self, x: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch channels side side"]:
        # Places take the role of positions: [batch, places, 3 * channels] for the attention, and
        # back to an image for the convolution after it.
        maps = self.qkv(self.norm(x))
        qkv = maps.flatten(2).transpose(1, 2)
        query, key, value = qkv.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        image = mixed.transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(image)


class Middle(nn.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        x = self.attn_1(x)
        return self.block_2(x)


class Halved(nn.Module):
    """Halves the side by a strided convolution, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # As the public checkpoints were trained. Padding all around would have the same side, but
        # every output would see the pixels one place further up and left.
        padded = F.pad(x, (0, 1, 0, 1))
        return self.conv(padded)


class Doubled(nn.Module):
    """Doubles the side: every pixel becomes four, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(doubled)
