"""VAR, the next-scale image model (Tian et al. 2024, arXiv 2404.02905), with the parameter names of
the public checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.image.image_model import MLP, Gate, ImageModel, Segment, for_rows, modulated
from interp.models.image.residual_vq import ResidualVQ

_EPS = 1e-6
_LARGEST_SCALE = math.log(100)


@dataclass(frozen=True)
class VARConfig:
    """Sizes of a VAR: `hidden` is the MLP's width, `shared` says that one adaptive layer norm
    serves all blocks (the 512-pixel model)."""

    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    width: int = 1024
    depth: int = 16
    heads: int = 16
    hidden: int = 4096
    codes: int = 4096
    code_width: int = 32
    classes: int = 1000
    shared: bool = False


class VAR(ImageModel):
    """Predicts all tokens of a scale at once, from the class and the sum of what the scales before
    it decode to.

    Position t of the blocks is that which predicts token t; attention reaches all of its own and of
    earlier scales.
    """

    lead = 0
    tokenizer: ResidualVQ
    lvl_1L: Tensor  # noqa: N815 - the public name
    attn_bias_for_masking: Tensor

    def __init__(self, config: VARConfig, tokenizer: ResidualVQ) -> None:
        if (tokenizer.codes, tokenizer.config.code_width, tokenizer.config.sides) != (
            config.codes,
            config.code_width,
            config.sides,
        ):
            own = tokenizer.config
            raise ValueError(
                f"another model's tokenizer: it has {own.codes} codes {own.code_width} wide at sides {own.sides}; "
                f"this VAR predicts {config.codes} codes {config.code_width} wide at sides {config.sides}"
            )
        super().__init__(tokenizer)
        self.config, self.classes = config, config.classes
        ends = list(accumulate(side**2 for side in config.sides))
        self.steps = tuple(zip([0, *ends[:-1]], ends, strict=True))
        self.segments = tuple(
            Segment(f"scale {n}", *step, degenerate=n == 1)
            for n, step in enumerate(self.steps, start=1)
        )
        C, L = config.width, ends[-1]
        self.pos_start = nn.Parameter(torch.empty(1, self.steps[0][1], C))
        self.pos_1LC = nn.Parameter(torch.empty(1, L, C))
        self.word_embed = nn.Linear(config.code_width, C)
        self.class_emb = nn.Embedding(config.classes + 1, C)
        self.lvl_embed = nn.Embedding(len(config.sides), C)
        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), nn.Linear(C, 6 * C)) if config.shared else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        level = torch.tensor(
            [number for number, side in enumerate(config.sides) for _ in range(side**2)]
        )
        self.register_buffer("lvl_1L", level[None])
        self.register_buffer(
            "attn_bias_for_masking",
            torch.where(level[:, None] >= level, 0.0, -torch.inf)[None, None],
        )
        self.head_nm = Final(C)
        self.head = nn.Linear(C, config.codes)
        self._initialize()

    def forward(
        self,
        tokens: Int[Tensor, "batch read"],
        label: Int[Tensor, " batch"],
        past_key_values: Any = None,
    ) -> Float[Tensor, "batch new codes"]:
        condition = self.class_emb(label)
        features = self.tokenizer.next_inputs(tokens).to(condition.dtype)
        x = torch.cat([condition[:, None] + self.pos_start, self.word_embed(features)], dim=1)
        known, total = (
            0 if past_key_values is None else past_key_values.get_seq_length(),
            x.shape[1],
        )
        level = self.lvl_embed.weight[
            self.lvl_1L[:, :total]
        ]  # no call: the module is no site, it sees no batch
        x = (x + level + self.pos_1LC[:, :total])[:, known:]
        mask = self.attn_bias_for_masking[:, :, known:total, :total].to(x.dtype)
        shared = self.shared_ada_lin(condition)
        for block in self.blocks:
            x = block(x, shared, mask, past_key_values=past_key_values)
        wide = (
            self.head.weight.dtype
        )  # float32 where the rest is not: the code that is said hangs on small differences
        return self.head(self.head_nm(x.to(wide), for_rows(condition, x).to(wide)))

    def positions(self, read: int) -> int:
        return read + self.ahead(read)

    def progress(self, step: int) -> float:
        return step / max(len(self.steps) - 1, 1)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Much as the public code does: the last layer of each branch is small, and so is the head."""
        std = math.sqrt(1 / self.config.width / 3)
        for name, module in self.named_modules():
            if not name.startswith("tokenizer") and isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(bias := getattr(module, "bias", None), Tensor):
                    bias.zero_()
        for position in (self.pos_start, self.pos_1LC):
            nn.init.trunc_normal_(position, std=std)
        self.head.weight.mul_(0.02)
        for block in self.blocks:
            cast("Block", block).shrink(math.sqrt(2 * self.config.depth))


class Attention(nn.Module):
    """Cosine attention with a learned temperature for each head."""

    zero_k_bias: Tensor

    def __init__(self, config: VARConfig, index: int) -> None:
        super().__init__()
        C, self.heads, self.index = config.width, config.heads, index
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))
        self.mat_qkv = nn.Linear(C, 3 * C, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(C)), nn.Parameter(torch.zeros(C))
        self.register_buffer("zero_k_bias", torch.zeros(C))
        self.proj = nn.Linear(C, C)

    def forward(
        self, x: Float[Tensor, "batch new width"], mask: Tensor, past_key_values: Any = None
    ) -> Tensor:
        projected = self.mat_qkv(x) + torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = rearrange(
            projected,
            "batch new (three head d) -> three batch head new d",
            three=3,
            head=self.heads,
        )
        q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(_LARGEST_SCALE).exp()
        k = F.normalize(k, dim=-1)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.index)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(rearrange(mixed, "batch head new d -> batch new (head d)"))


class Block(nn.Module):
    """Attention and MLP, each normalized, scaled, shifted and gated by the class."""

    def __init__(self, config: VARConfig, index: int) -> None:
        super().__init__()
        C = config.width
        self.attn, self.ffn = Attention(config, index), MLP(config.width, config.hidden, "tanh")
        self.attn_norm, self.ffn_norm = (
            nn.LayerNorm(C, eps=_EPS, elementwise_affine=False) for _ in range(2)
        )
        self.attn_gate, self.ffn_gate = Gate(), Gate()
        self.shared = config.shared
        if self.shared:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, C) / math.sqrt(C))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(C, 6 * C))

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        condition: Tensor,
        mask: Tensor,
        past_key_values: Any = None,
    ) -> Tensor:
        given = condition if self.shared else self.ada_lin(condition)
        parts = rearrange(given, "batch (six width) -> batch 1 six width", six=6)
        gate1, gate2, scale1, scale2, shift1, shift2 = (
            parts + self.ada_gss if self.shared else parts
        ).unbind(2)
        x = x + self.attn_gate(
            self.attn(modulated(self.attn_norm(x), scale1, shift1), mask, past_key_values), gate1
        )
        return x + self.ffn_gate(self.ffn(modulated(self.ffn_norm(x), scale2, shift2)), gate2)

    def shrink(self, by: float) -> None:
        """Makes a fresh block begin near the identity."""
        self.attn.proj.weight.div_(by)
        self.ffn.fc2.weight.div_(by)
        if self.shared:
            self.ada_gss[:, :, 2:].mul_(0.5)
            self.ada_gss[:, :, :2].mul_(1e-5)
        else:
            weight, gates = (
                cast("nn.Linear", self.ada_lin[1]).weight,
                2 * self.attn.proj.out_features,
            )
            weight[gates:].mul_(0.5)
            weight[:gates].mul_(1e-5)


class Final(nn.Module):
    """The adaptive layer norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(
        self, x: Float[Tensor, "batch new width"], condition: Float[Tensor, "batch width"]
    ) -> Tensor:
        scale, shift = self.ada_lin(condition)[:, None].chunk(2, dim=-1)
        return modulated(F.layer_norm(x, x.shape[-1:], eps=_EPS), scale, shift)
