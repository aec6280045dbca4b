"""Blocks in which no sum of module outputs is what leaves the block, each small and random."""

from __future__ import annotations

import blocks
import tiny
import torch
from blocks import WIDTH
from torch import Tensor, nn

STREAMS, PER_GROUP = 2, 12


class Streams(tiny.Language):
    """A decoder with several residual streams in one tensor: [batch, position, stream, width], with
    the streams in front of all, or side by side in the last axis."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        streams = torch.stack([x, 2 * x], 2)
        for block in self.trunk:
            streams = block(streams)
        return self.head(self.norm(streams.mean(2)))


class StreamsInFront(tiny.Language):
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        streams = torch.stack([x, 2 * x])
        for block in self.trunk:
            streams = block(streams)
        return self.head(self.norm(streams.mean(0)))


class StreamsSideBySide(tiny.Language):
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        streams = torch.cat([x, 2 * x], -1)
        for block in self.trunk:
            streams = block(streams)
        return self.head(self.norm(streams.unflatten(-1, (STREAMS, WIDTH)).mean(2)))


class Connection(nn.Module):
    """Reads one vector from the streams, and says with which weights to write one to them.

    As in a hyper-connection, streams are mixed by the weights of a softmax that is square, and that
    has nothing to do with attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(STREAMS * WIDTH, STREAMS * (STREAMS + 2))

    def forward(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        read, write, mix = self.weights(streams.flatten(2)).split([2, 2, 4], -1)
        mixed = mix.unflatten(-1, (2, 2)).softmax(-1) @ streams
        return write.sigmoid(), (read.sigmoid()[..., None] * streams).sum(2), mixed


class HyperConnected(blocks.Block):
    """Two streams that are read, written and mixed with weights that depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.to_attention, self.to_mlp = Connection(), Connection()

    def forward(self, streams: Tensor) -> Tensor:
        write, x, mixed = self.to_attention(streams)
        streams = write[..., None] * self.attention(x)[:, :, None] + mixed
        write, x, mixed = self.to_mlp(streams)
        return write[..., None] * self.second_half(x)[:, :, None] + mixed

    def second_half(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class GatedInput(HyperConnected):
    """What the MLP reads is gated by a projection of the stream's width."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def second_half(self, x: Tensor) -> Tensor:
        return self.mlp(self.gate(x).sigmoid() * x)


class SquareMLP(HyperConnected):
    """The MLP has as many neurons as the stream is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


class SharedInStreams(HyperConnected):
    """The MLP is a mixture with a shared expert."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = blocks.Mixture(shared=True)

    def second_half(self, x: Tensor) -> Tensor:
        return self.mixture(self.between(x))


class InFront(blocks.Block):
    """One stream of two is read; what the halves give is added to both, behind a norm. After the
    MLP, a few inputs of the layer are added too."""

    def __init__(self) -> None:
        super().__init__()
        self.after, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.branch = blocks.Expert(8)
        self.narrow, self.wide = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, streams: Tensor) -> Tensor:
        x = streams[0]
        read = self.before(x)
        x = (x + self.attn(read) + self.branch(read)) / 2**0.5
        given = self.after(self.down(nn.functional.gelu(self.up(self.between(x)))))
        streams = streams + torch.stack([0.5 * given, 0.8 * given])
        late = self.last(self.wide(self.narrow(streams[0]).tanh()))
        return streams + torch.stack([torch.zeros_like(late), late])


class SideBySide(HyperConnected):
    """The same as hyper-connections, with the streams side by side in the last axis."""

    def forward(self, streams: Tensor) -> Tensor:
        return super().forward(streams.unflatten(-1, (STREAMS, WIDTH))).flatten(2)


class Adapter(blocks.PostNorm):
    """Normalized after each addition, with an adapter behind the MLP that shares its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x + self.attn(x))
        x = self.between(x + self.down(nn.functional.gelu(self.up(x))))
        return self.between(x + self.wide(nn.functional.gelu(self.narrow(x))))


class FeedsMixer(blocks.Block):
    """Attention and an MLP in a row, whose output another mixer reads beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.mixer = nn.Linear(WIDTH, WIDTH), blocks.Convolution()
        self.last = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        given = self.mlp(self.attention(x))
        return x + self.mixer(self.last(x + self.linear(given)))


class NormedMixture(blocks.Block):
    """Routed experts and a shared one, with a norm behind their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture, self.after = blocks.Mixture(shared=True), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.after(self.mixture(self.between(x)))


class NormInside(blocks.Block):
    """The same, with the norm inside the module that holds the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = MixtureAndNorm(shared=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mixture(self.between(x))


class MixtureAndNorm(blocks.Mixture):
    def __init__(self, *, shared: bool) -> None:
        super().__init__(shared=shared)
        self.after = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x))


class NormAtStart(blocks.Block):
    """The stream is normalized once, as it enters."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + self.attention(x)
        return x + self.mlp(x)


class RMSNormAtStart(NormAtStart):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.RMSNorm(WIDTH)


class InGroups(nn.Linear):
    """A projection from groups of heads to a few columns for each."""

    def __init__(self) -> None:
        super().__init__(WIDTH // 2, 2 * PER_GROUP, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bpgw,grw->bpgr", x, self.weight.unflatten(0, (2, PER_GROUP)))


class GroupedAttention(tiny.Attention):
    """Attention whose heads lead back to the stream in two projections, the first in groups."""

    def __init__(self) -> None:
        super().__init__(WIDTH, tiny.HEADS, causal=True)
        self.first, self.out = InGroups(), nn.Linear(2 * PER_GROUP, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        by_group = mixed.transpose(1, 2).flatten(2).unflatten(-1, (2, -1))
        return self.out(self.first(by_group).flatten(2))


class Grouped(HyperConnected):
    def __init__(self) -> None:
        super().__init__()
        self.attn = GroupedAttention()


class OtherSoftmax(blocks.Block):
    """Three earlier values are mixed by a softmax that is square, and so looks like attention."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, 9)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mix(x).unflatten(-1, (3, 3)).softmax(-1)
        earlier = torch.stack([x, x.roll(1, -1), 2 * x], 2)
        read = (weights @ earlier).mean(2)
        x = read + 0.5 * self.attention(read).tanh()
        return 2 * x.sin() + self.mlp(x)


class Rotated(HyperConnected):
    """Between attention and its projection, columns of different heads are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = RotatedAttention(WIDTH, tiny.HEADS, causal=True)


class RotatedAttention(tiny.Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        by_token = mixed.transpose(1, 2).flatten(2)
        return self.out(by_token + by_token.roll(5, -1))


class Bypassed(HyperConnected):
    """A part of what attention gives goes around its projection."""

    def attention(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = self.attn.out.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        given = self.attn(self.before(x))
        handle.remove()
        return given + 0.3 * kept[0]


class TwoAttentions(HyperConnected):
    def __init__(self) -> None:
        super().__init__()
        self.second = tiny.Attention(WIDTH, tiny.HEADS, causal=True)

    def second_half(self, x: Tensor) -> Tensor:
        return self.second(self.mlp(x))


class TwoMLPs(HyperConnected):
    """Two MLPs beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = blocks.Expert(16)

    def second_half(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.branch(x)


class OneAfterTheOther(HyperConnected):
    """Two MLPs, of which the second has as many neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = blocks.Expert(blocks.NEURONS)

    def second_half(self, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        return x + self.branch(x)


class Multiplied(HyperConnected):
    """What the MLP gives is a factor on the stream, and is added to nothing."""

    def second_half(self, x: Tensor) -> Tensor:
        return self.mlp(x).sigmoid() * x


class BesideAttention(HyperConnected):
    """The MLP reads what attention reads, not what it gives: nothing tells it from the attention's
    own projections."""

    def forward(self, streams: Tensor) -> Tensor:
        write, x, mixed = self.to_attention(streams)
        given = self.attention(x) + self.mlp(x)
        return write[..., None] * given[:, :, None] + mixed


class RoutedThenAdapter(HyperConnected):
    """Routed experts alone, whose neurons are not the input of one projection, and an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture, self.branch = blocks.Mixture(shared=False), blocks.Expert(8)

    def second_half(self, x: Tensor) -> Tensor:
        x = x + self.mixture(self.between(x))
        return x + self.branch(x)


class HiddenBranch(HyperConnected):
    """The module of the MLP has a second branch, whose weights are in no module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.both = TwoBranches()

    def second_half(self, x: Tensor) -> Tensor:
        return self.both(self.between(x))


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.wide = nn.Parameter(torch.randn(WIDTH, 12) / 4)
        self.back = nn.Parameter(torch.randn(12, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        beside = nn.functional.gelu(x @ self.wide) @ self.back
        return self.down(nn.functional.gelu(self.up(x))) + beside


class ToAnotherSequence(HyperConnected):
    """Attention to something that does not enter the block as its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = AttentionToFixed(WIDTH, tiny.HEADS, causal=True)


class AttentionToFixed(tiny.Attention):
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__(width, heads, causal=causal)
        self.keys = nn.Parameter(torch.randn(heads, 7, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        queries = self.qkv(x)[..., :WIDTH].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys = self.keys.expand(len(x), -1, -1, -1)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, keys)
        return self.out(mixed.transpose(1, 2).flatten(2))
