"""VAR, the next-scale image model (Tian et al. 2024, arXiv 2404.02905), with the parameter names of
the public checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.image.image_model import (
    MLP,
    Gate,
    ImageModel,
    Segment,
    for_rows,
    modulate,
    modulator,
)
from interp.models.image.residual_vq import ResidualVQ

_EPS = 1e-6
_LARGEST_SCALE = math.log(100)


@dataclass(frozen=True)
class VARConfig:
    """The shape of a VAR.

    Attributes:
        sides: tokens per side of each scale, coarse to fine.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads per block.
        hidden: width of the MLP, its number of neurons.
        codes: number of codes in the tokenizer's codebook.
        code_width: width of a code.
        classes: number of classes.
        shared: whether one adaptive layer norm serves all blocks, as in the 512-pixel model.
    """

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
    """Predicts all tokens of a scale at once.

    They are predicted from the class and from the sum of what the scales before it decode to.
    Position t of the blocks is the one that predicts token t; attention reaches all positions of
    its own scale and of earlier ones.

    Raises:
        ValueError: the tokenizer is that of another model.

    Example:
        >>> from interp.models.image.residual_vq import ResidualVQ, ResidualVQConfig
        >>> from interp.models.image.var import VAR, VARConfig
        >>> shape = ResidualVQConfig(
        ...     sides=(1, 2, 4), codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1
        ... )
        >>> network = VARConfig(
        ...     sides=(1, 2, 4), width=16, depth=1, heads=2, hidden=32, codes=16, code_width=8,
        ...     classes=3,
        ... )
        >>> model = VAR(network, ResidualVQ(shape))
        >>> model.all_groups
        ((0, 1), (1, 5), (5, 21))
        >>> batch = model.encode(torch.rand(2, 3, 8, 8), torch.tensor([0, 2]))
        >>> list(interp.load(model).logits(batch).shape)
        [2, 21, 16]
    """

    lead = 0
    tokenizer: ResidualVQ
    lvl_1L: Tensor  # noqa: N815 - the public name
    attn_bias_for_masking: Tensor

    def __init__(self, config: VARConfig, tokenizer: ResidualVQ) -> None:
        own = tokenizer.config
        found = (tokenizer.codes, own.code_width, own.sides)
        if found != (config.codes, config.code_width, config.sides):
            raise ValueError(
                f"another model's tokenizer: it has {own.codes} codes {own.code_width} wide at "
                f"sides {own.sides}; this VAR predicts {config.codes} codes {config.code_width} "
                f"wide at sides {config.sides}"
            )
        super().__init__(tokenizer)
        self.config = config
        self.classes = config.classes
        counts = [side**2 for side in config.sides]
        self.all_groups = tuple(pairwise(accumulate(counts, initial=0)))
        segments: list[Segment] = []
        for number, (start, stop) in enumerate(self.all_groups, start=1):
            is_first = number == 1  # it reads the class alone
            segments.append(Segment(f"scale {number}", start, stop, degenerate=is_first))
        self.segments = tuple(segments)

        C = config.width
        L = sum(counts)
        self.pos_start = nn.Parameter(torch.empty(1, counts[0], C))
        self.pos_1LC = nn.Parameter(torch.empty(1, L, C))
        self.word_embed = nn.Linear(config.code_width, C)
        self.class_emb = nn.Embedding(config.classes + 1, C)
        self.lvl_embed = nn.Embedding(len(config.sides), C)
        if config.shared:
            self.shared_ada_lin = modulator(C, vectors=6)
        else:
            self.shared_ada_lin = nn.Identity()
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))

        level_of_token: list[int] = []
        for number, count in enumerate(counts):
            level_of_token += [number] * count
        level = torch.tensor(level_of_token)
        self.register_buffer("lvl_1L", level[None])
        sees = level[:, None] >= level  # [reading token, read token]
        bias = torch.where(sees, 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", bias[None, None])
        self.head_nm = Final(C)
        self.head = nn.Linear(C, config.codes)
        self._initialize()

    def forward(
        self,
        tokens: Int[Tensor, "batch read"],
        label: Int[Tensor, " batch"],
        past_key_values: Any = None,
    ) -> Float[Tensor, "batch new codes"]:
        # No scale stands in front of the first one, which reads the class instead:
        # [batch, 1, width] + [1, 1, width].
        condition = self.class_emb(label)
        first_scale = condition[:, None] + self.pos_start
        features = self.tokenizer.next_inputs(tokens).to(condition.dtype)
        later_scales = self.word_embed(features)
        x = torch.cat([first_scale, later_scales], dim=1)
        total = x.shape[1]
        known = 0 if past_key_values is None else past_key_values.get_seq_length()

        # The table of levels is indexed and not called. As a call it would look like a site, whose
        # output an intervention could change; but it sees no batch, only positions.
        level = self.lvl_embed.weight[self.lvl_1L[:, :total]]
        x = x + level + self.pos_1LC[:, :total]
        # What is in the cache is embedded with the rest, because a scale is made from the sum of
        # all earlier ones; but the blocks must not see it twice.
        x = x[:, known:]

        # New positions by all positions.
        bias = self.attn_bias_for_masking[:, :, known:total, :total]
        mask = bias.to(x.dtype)
        shared = self.shared_ada_lin(condition)
        for block in self.blocks:
            x = block(x, shared, mask, past_key_values=past_key_values)

        # The head is float32 where the rest is not: which code is the most likely depends on small
        # differences.
        precise = self.head.weight.dtype
        condition = for_rows(condition, x)
        normalized = self.head_nm(x.to(precise), condition.to(precise))
        return self.head(normalized)

    def positions(self, read: int) -> int:
        # The positions of the next scale hold only what was read; its tokens are predicted there.
        return read + self.ahead(read)

    def progress(self, group: int) -> float:
        last = len(self.all_groups) - 1
        return group / max(last, 1)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initializes much as the public code: head and last layer of each branch are small."""
        std = math.sqrt(1 / self.config.width / 3)
        for name, module in self.named_modules():
            is_own = not name.startswith("tokenizer")
            if is_own and isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
                bias = getattr(module, "bias", None)
                if isinstance(bias, Tensor):
                    bias.zero_()
        for position in (self.pos_start, self.pos_1LC):
            nn.init.trunc_normal_(position, std=std)
        self.head.weight.mul_(0.02)
        # Each block adds two branches to the residual: divided by the root of their number, their
        # sum is as large for any depth.
        branches = 2 * self.config.depth
        for block in self.blocks:
            own = cast("Block", block)
            own.shrink(math.sqrt(branches))


class Attention(nn.Module):
    """Cosine attention with a learned temperature for each head."""

    zero_k_bias: Tensor

    def __init__(self, config: VARConfig, index: int) -> None:
        super().__init__()
        C = config.width
        self.heads = config.heads
        self.index = index
        initial_scale = torch.full((1, config.heads, 1, 1), math.log(4))
        self.scale_mul_1H11 = nn.Parameter(initial_scale)
        self.mat_qkv = nn.Linear(C, 3 * C, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(C))
        self.v_bias = nn.Parameter(torch.zeros(C))
        # Keys have no bias. The public checkpoint holds zeros in its place, as a buffer.
        self.register_buffer("zero_k_bias", torch.zeros(C))
        self.proj = nn.Linear(C, C)

    def forward(
        self, x: Float[Tensor, "batch new width"], mask: Tensor, past_key_values: Any = None
    ) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = rearrange(
            self.mat_qkv(x) + bias,
            "batch new (three head d) -> three batch head new d",
            three=3,
            head=self.heads,
        )
        # The similarity of q and k is their cosine times the temperature of the head, which is
        # multiplied into q. Attention must not scale it once more, by the root of the width.
        scale = self.scale_mul_1H11.clamp_max(_LARGEST_SCALE).exp()
        q = F.normalize(q, dim=-1) * scale
        k = F.normalize(k, dim=-1)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.index)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        joined = rearrange(mixed, "batch head new d -> batch new (head d)")
        return self.proj(joined)


class Block(nn.Module):
    """A transformer block: the input of attention and of MLP is normalized, then scaled and shifted
    by the class; the output is gated by it."""

    def __init__(self, config: VARConfig, index: int) -> None:
        super().__init__()
        C = config.width
        self.attn = Attention(config, index)
        self.ffn = MLP(C, config.hidden, "tanh")
        self.attn_norm = nn.LayerNorm(C, eps=_EPS, elementwise_affine=False)
        self.ffn_norm = nn.LayerNorm(C, eps=_EPS, elementwise_affine=False)
        self.attn_gate = Gate()
        self.ffn_gate = Gate()
        self.shared = config.shared
        if self.shared:
            initial = torch.randn(1, 1, 6, C) / math.sqrt(C)
            self.ada_gss = nn.Parameter(initial)
        else:
            self.ada_lin = modulator(C, vectors=6)

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        condition: Tensor,
        mask: Tensor,
        past_key_values: Any = None,
    ) -> Tensor:
        # Six vectors for each image, the same at all of its positions. The shared layer norm gives
        # all blocks the same six, to which each block adds its own.
        modulation = condition if self.shared else self.ada_lin(condition)
        modulation = rearrange(modulation, "batch (six width) -> batch 1 six width", six=6)
        if self.shared:
            modulation = modulation + self.ada_gss
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)

        # The gates are modules, and not products written here, so that what leaves them is a site:
        # it is what attention and MLP add to the residual.
        attn_in = modulate(self.attn_norm(x), scale1, shift1)
        attn_out = self.attn(attn_in, mask, past_key_values)
        x = x + self.attn_gate(attn_out, gate1)
        ffn_in = modulate(self.ffn_norm(x), scale2, shift2)
        ffn_out = self.ffn(ffn_in)
        return x + self.ffn_gate(ffn_out, gate2)

    def shrink(self, by: float) -> None:
        """Makes a fresh block begin near the identity."""
        self.attn.proj.weight.div_(by)
        self.ffn.fc2.weight.div_(by)
        # Of the six modulations the two gates come first, and begin almost closed.
        if self.shared:
            self.ada_gss[:, :, 2:].mul_(0.5)
            self.ada_gss[:, :, :2].mul_(1e-5)
        else:
            weight = cast("nn.Linear", self.ada_lin[1]).weight
            gate_rows = 2 * self.attn.proj.out_features
            weight[gate_rows:].mul_(0.5)
            weight[:gate_rows].mul_(1e-5)


class Final(nn.Module):
    """The adaptive layer norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = modulator(width, vectors=2)

    def forward(
        self, x: Float[Tensor, "batch new width"], condition: Float[Tensor, "batch width"]
    ) -> Tensor:
        modulation = self.ada_lin(condition)[:, None]  # the same at all positions
        scale, shift = modulation.chunk(2, dim=-1)
        normalized = F.layer_norm(x, x.shape[-1:], eps=_EPS)
        return modulate(normalized, scale, shift)
