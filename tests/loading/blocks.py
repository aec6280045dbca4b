"""Blocks that are put together in other ways than most, each small and random."""

from __future__ import annotations

import tiny
import torch
from torch import Tensor, nn

WIDTH, NEURONS = 32, 64


class Block(tiny.Block):
    """The ordinary block, with its two halves as methods."""

    def __init__(self) -> None:
        super().__init__(WIDTH, tiny.HEADS, causal=True)

    def attention(self, x: Tensor) -> Tensor:
        return self.attn(self.before(x))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.between(x))))


class MLPFirst(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        return x + self.attention(x)


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x) + self.attention(x)


class Scaled(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.3 * self.attention(x)
        return (x + 0.7 * self.mlp(x)) * 1.5


class PostNorm(Block):
    """The first transformer's: the stream itself is normalized after each addition."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x + self.attn(x))
        return self.between(x + self.down(nn.functional.gelu(self.up(x))))


class Alone(Block):
    """Attention, and nothing else, in which every position sees only itself."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x + self.attention(x.reshape(batch * length, 1, width)).reshape(x.shape)


class Convolution(nn.Module):
    """A causal convolution over positions: a mixer that is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.Conv1d(WIDTH, WIDTH, 4, padding=3, groups=WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.over(x.transpose(1, 2))[..., : x.shape[1]]
        return self.out(mixed.transpose(1, 2).sigmoid())


class Convolving(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Convolution()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Both(Convolving):
    """Attention and another mixer side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = tiny.Attention(WIDTH, tiny.HEADS, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x) + self.beside(self.before(x))
        return x + self.mlp(x)


class AttentionThenMixer(Both):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.beside(self.before(x)) + self.attention(x)
        return x + self.mlp(x)


class OnlyMLP(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class Expert(nn.Module):
    def __init__(self, neurons: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, neurons), nn.Linear(neurons, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Mixture(nn.Module):
    """Four experts, each token goes to one, and a shared one, behind a gate, for all."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(Expert() for _ in range(4))
        self.shared = Expert(24) if shared else None
        self.gate = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        chosen = self.router(rows).argmax(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(rows[chosen == number])
        if self.shared is not None:
            out = out + self.gate(rows).sigmoid() * self.shared(rows)
        return out.reshape(x.shape)


class Routed(Block):
    shared = False

    def __init__(self) -> None:
        super().__init__()
        self.mixture = Mixture(shared=self.shared)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mixture(self.between(x))


class Shared(Routed):
    shared = True


class SilentExpert(Expert):
    """An expert that gives zeros for some tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down((x[..., :1] > 0) * nn.functional.gelu(self.up(x)))


class SilentShared(Routed):
    """The shared expert gives zeros for some tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture.shared = SilentExpert(24)


class NarrowExperts(nn.Module):
    """Experts that work in a narrow space, from which one projection leads back for all of them.

    Their weights stand apart, or in one tensor.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.mixture = Mixture(shared=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        if fused:
            self.mixture.experts = FusedExperts()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.mixture.experts, FusedExperts):
            return self.out(self.mixture.experts(x, self.mixture.router(x).argmax(-1)))
        return self.out(self.mixture(x))


class FusedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 16, WIDTH) / 4)
        self.down = nn.Parameter(torch.randn(4, WIDTH, 16) / 4)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        inner = nn.functional.gelu(torch.einsum("bpw,bpnw->bpn", x, self.up[chosen]))
        return torch.einsum("bpn,bpwn->bpw", inner, self.down[chosen])


class Narrow(Block):
    fused = False

    def __init__(self) -> None:
        super().__init__()
        self.mixture = NarrowExperts(fused=self.fused)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mixture(self.between(x))


class NarrowFused(Narrow):
    fused = True


class Listed(Block):
    """A dense MLP whose layers are a list, which is no mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, 24), nn.Linear(24, 24), nn.Linear(24, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        inner = self.between(x)
        for layer in self.layers[:-1]:
            inner = nn.functional.gelu(layer(inner))
        return x + self.layers[-1](inner)


class LowRank(nn.Module):
    """A linear layer with a low-rank branch beside it (LoRA)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 3, bias=False)
        self.up = nn.Linear(3, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Adapted(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attn.out, self.down = LowRank(self.attn.out), LowRank(self.down)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Unused(Adapted):
    """An adapter as it is before training: its branch adds nothing yet."""

    def __init__(self) -> None:
        super().__init__()
        for part in (self.attn.out, self.down):
            nn.init.zeros_(part.up.weight)


class Quantized(nn.Module):
    """A linear layer whose weight is whole numbers, with a scale beside them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        scale = base.weight.detach().abs().amax(1, keepdim=True) / 127
        whole = (base.weight.detach() / scale).round().to(torch.int8)
        self.register_buffer("weight", whole)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).T


class InWholeNumbers(Adapted):
    def __init__(self) -> None:
        Block.__init__(self)
        self.attn.out, self.down = Quantized(self.attn.out), Quantized(self.down)


class Beside(Block):
    """A second, nonlinear branch beside the MLP: the MLP's neurons are not all that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Expert(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.both(self.between(x))

    def both(self, x: Tensor) -> Tensor:
        return self.joined(self.down(nn.functional.gelu(self.up(x))) + self.branch(x))

    def joined(self, x: Tensor) -> Tensor:
        return x


class Gated(Block):
    """The attention's output behind a gate that a projection of the same width makes."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = GatedAttention()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class GatedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.Attention(WIDTH, tiny.HEADS, causal=True)
        self.gate, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.inner.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.inner(x)
        return self.out(mixed) * self.gate(x).sigmoid()


class InStreams(tiny.Language):
    """A decoder with two residual streams in one tensor, [batch, position, stream, width]."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = torch.stack([x, 2 * x], 2)
        for block in self.trunk:
            x = block(x)
        return self.head(self.norm(x.mean(2)))


class Streams(Block):
    def forward(self, x: Tensor) -> Tensor:
        read = x.mean(2)
        return x + torch.stack([self.attention(read), self.mlp(read)], 2)
