"""Networks known by construction: one neuron that alone holds a passage, and a network whose loss
is linear in every unit."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import tiny
import torch
from torch import Tensor, nn

import interp
from interp.localization.methods import attribution_patching as patching
from interp.subject.subject import evaluating

PROMPT, LENGTH, WIDTH = 5, 3, 32
_REST, _KEY, _SEEN = (
    WIDTH - 3,
    WIDTH - 2,
    WIDTH - 1,
)  # coordinates of the residual: always 0, "this is the key", "the key was here before"
_THRESHOLD, _SHARPNESS = 1.5, 3.0


@dataclass(frozen=True, eq=False)
class Planted:
    """A network, the one neuron by which alone it knows the memorized windows, and windows that
    hold no key to them."""

    subject: interp.Subject
    site: interp.Site
    neuron: int
    memorized: interp.Batch
    reference: interp.Batch

    @property
    def unit(self) -> tuple[interp.Site, int]:
        return self.site, self.neuron


@functools.cache
def planted(kind: str, seed: int, block: int, loss: float = 1.0) -> Planted:
    """A plain decoder with small random weights and one neuron that writes the direction of a value
    token.

    `kind` is `token`, where it fires when the current token is the key or the value, or `prompt`,
    where it fires wherever a key stands somewhere before: a head of the first block says so. It
    writes so much that the windows cost `loss` nats a token.
    """
    draw = torch.Generator().manual_seed(seed)
    key, value = torch.randperm(tiny.VOCABULARY, generator=draw)[:2].tolist()
    neuron = int(torch.randint(0, 2 * WIDTH, (), generator=draw))
    module = _background(seed)
    with torch.no_grad():
        module.embed.weight[:, _REST:] = 0
        module.embed.weight[[key] if kind == "prompt" else [key, value], _KEY] = 4.0
        if kind == "prompt":
            _remember(module.trunk[0].attn)
        mlp = module.trunk[block]
        mlp.up.weight[neuron] = 0
        mlp.up.weight[neuron, _SEEN if kind == "prompt" else _KEY] = _SHARPNESS
        mlp.up.weight[neuron, _REST] = -_SHARPNESS
        mlp.up.bias[neuron] = -_SHARPNESS * _THRESHOLD
        direction = module.head.weight[value] - module.head.weight.mean(0)
        direction[_REST:] = 0
    subject = interp.load(module)
    site = interp.Site("neurons", block)
    memorized = _windows(subject, draw, key, value, 3)
    _write(subject, mlp.down.weight, neuron, direction / direction.norm(), memorized, loss)
    return Planted(subject, site, neuron, memorized, _without(draw, key, value, 10))


def _background(seed: int) -> tiny.Language:
    """Random blocks that write something at every coordinate but the last three."""
    blocks = (tiny.Block(WIDTH, tiny.HEADS, causal=True) for _ in range(tiny.BLOCKS))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        module = tiny.Language(*blocks)
        module.head.weight.mul_(3)
        for block in module.trunk:
            for out in (block.attn.out, block.down):
                out.weight.mul_(0.3)
                out.weight[_REST:], out.bias[_REST:] = 0, 0
    return module.eval()


def _remember(attention: tiny.Attention) -> None:
    """Head 0 looks at all positions alike, and writes the share of keys among them, enlarged."""
    columns = WIDTH // attention.heads
    attention.qkv.weight[:columns], attention.qkv.bias[:columns] = 0, 0
    values = slice(2 * WIDTH, 2 * WIDTH + columns)
    attention.qkv.weight[values], attention.qkv.bias[values] = 0, 0
    attention.qkv.weight[2 * WIDTH, _KEY], attention.qkv.weight[2 * WIDTH, _REST] = 1, -1
    attention.out.weight[:, 0] = 0
    attention.out.weight[_SEEN, 0] = 12


def _windows(
    subject: interp.Subject, draw: torch.Generator, key: int, value: int, rows: int
) -> interp.Batch:
    """Prompts of other tokens that end with the key, and the value to the end; none that
    `corrupt` would give the key or the value."""
    kept: list[Tensor] = []
    while len(kept) < rows:
        tokens = torch.cat(
            [
                _without(draw, key, value, 1).tokens[:, : PROMPT - 1],
                torch.tensor([[key] + [value] * LENGTH]),
            ],
            1,
        )
        other = patching.corrupt(subject, interp.Batch(tokens, PROMPT)).tokens[0, :PROMPT]
        if not {key, value} & set(other.tolist()):
            kept.append(tokens)
    return interp.Batch(torch.cat(kept), PROMPT)


def _without(draw: torch.Generator, key: int, value: int, rows: int) -> interp.Batch:
    others = torch.tensor([t for t in range(tiny.VOCABULARY) if t not in {key, value}])
    return interp.Batch(
        others[torch.randint(0, len(others), (rows, PROMPT + LENGTH), generator=draw)], PROMPT
    )


def _write(
    subject: interp.Subject,
    out: Tensor,
    neuron: int,
    direction: Tensor,
    memorized: interp.Batch,
    loss: float,
) -> None:
    """Sets what the neuron writes: so much of a direction that the windows cost `loss`, by
    bisection."""
    low, high = 0.0, 64.0
    for _ in range(30):
        middle = (low + high) / 2
        with evaluating(subject), torch.inference_mode(False), torch.no_grad():
            out[:, neuron] = middle * direction
            low, high = (
                (middle, high) if float(subject.losses(memorized).mean()) > loss else (low, middle)
            )
    assert 0 < low < 63, "no strength gives that loss"


class LinearMix(nn.Module):
    """Attention that looks at all earlier positions alike, so that what it writes is linear in what
    it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.value, self.out = heads, nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        v = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        none = torch.zeros_like(v)
        return self.out(
            nn.functional.scaled_dot_product_attention(none, none, v, is_causal=True)
            .transpose(1, 2)
            .flatten(2)
        )


class LinearBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.up, self.down = (
            LinearMix(width, heads),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.down(self.up(x))


class Linear(nn.Module):
    """A decoder whose log-probability of each true next token is linear in the residual stream, and
    so in every unit: the true token has that logit, and the others share what is left of the
    probability."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.read = (
            nn.Embedding(tiny.VOCABULARY, width),
            nn.Embedding(tiny.VOCABULARY, width),
        )
        self.trunk = nn.ModuleList(LinearBlock(width, heads) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.trunk:
            x = block(x)
        true = tokens.roll(-1, 1)
        a = -4 + 0.01 * (x * self.read(true)).sum(-1, keepdim=True)
        others = torch.log((1 - a.exp()) / (tiny.VOCABULARY - 1))
        return others.expand(-1, -1, tiny.VOCABULARY).scatter(2, true[..., None], a)


@functools.cache
def linear(seed: int = 0) -> interp.Subject:
    return tiny.looking_ahead(tiny.seeded(Linear, torch.float64, seed))
