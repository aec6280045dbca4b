"""RAR, the next-token image model (Yu et al. 2024, arXiv 2411.00776), with the parameter names of
the public checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.image.image_model import MLP, Gate, ImageModel, Segment, for_rows, modulated
from interp.models.image.raster_vq import RasterVQ
from interp.subject.batch import Batch

_EPS = 1e-6
_LEAD = 2  # the positions of cls and of the class
SPARE_POSITIONS, SPARE_TIMES = 1024, 100  # rows of the public tables beyond those in use


@dataclass(frozen=True)
class RARConfig:
    """Sizes of a RAR: `grid` tokens a side, `hidden` is the MLP's width."""

    grid: int = 16
    width: int = 768
    depth: int = 24
    heads: int = 16
    hidden: int = 3072
    codes: int = 1024
    classes: int = 1000

    @property
    def length(self) -> int:
        return self.grid**2


class RAR(ImageModel):
    """Predicts one token after the other in raster order or, in training, in any order.

    The blocks see cls, the class, and the tokens before the one to predict; position t + 1 is that
    which predicts token t.
    """

    lead = _LEAD

    def __init__(self, config: RARConfig, tokenizer: RasterVQ) -> None:
        if (tokenizer.codes, tokenizer.config.grid) != (config.codes, config.grid):
            own = tokenizer.config
            raise ValueError(
                f"another model's tokenizer: it has {own.codes} codes on a grid of {own.grid}; "
                f"this RAR predicts {config.codes} codes on a grid of {config.grid}"
            )
        super().__init__(tokenizer)
        self.config, self.classes, N, C = config, config.classes, config.length, config.width
        self.steps = tuple((t, t + 1) for t in range(N))
        rows = [
            (max(_LEAD, 1 + row * config.grid), 1 + (row + 1) * config.grid)
            for row in range(config.grid)
        ]
        self.segments = (
            Segment("cls", 0, 1, degenerate=True),
            Segment("class", 1, _LEAD, degenerate=True),
            *(Segment(f"row {n}", *row) for n, row in enumerate(rows, start=1)),
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.embeddings = nn.Embedding(config.codes + 1 + config.classes + 1, C)
        self.pos_embed = nn.Parameter(torch.empty(1, N + SPARE_POSITIONS, C))
        self.target_aware_pos_embed = nn.Parameter(torch.empty(1, N + SPARE_POSITIONS, C))
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, N + SPARE_TIMES, C))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.adaln_before_head = Final(C)
        self.lm_head = nn.Linear(C, config.codes)
        self._initialize()

    def forward(
        self,
        tokens: Int[Tensor, "batch read"],
        label: Int[Tensor, " batch"],
        past_key_values: Any = None,
        order: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch new codes"]:
        """Logits as in `ImageModel.forward`. `order` says for whole images in which order their
        tokens are read, for training in random orders; the logits come in that of the image."""
        if order is None:
            order = torch.arange(self.length, device=tokens.device).expand(len(tokens), -1)
            return self._in_order(tokens, label, order, past_key_values)
        logits = self._in_order(tokens.gather(1, order)[:, :-1], label, order, None)
        return torch.empty_like(logits).scatter(1, order[..., None].expand_as(logits), logits)

    def predicted(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep codes"]:
        """As in `ImageModel`; images with an order of their own are read whole, for what is
        predicted last is not the last token."""
        if "order" in batch.conditioning:
            return self(batch.tokens, **batch.conditioning)[:, -keep:]
        return super().predicted(batch, keep)

    def _in_order(
        self,
        tokens: Tensor,
        label: Tensor,
        order: Int[Tensor, "batch length"],
        past_key_values: Any,
    ) -> Tensor:
        given = (label + self.config.codes + 1)[:, None]
        ids = F.pad(
            torch.cat([given, tokens], dim=1), (1, 0), value=self.config.codes
        )  # cls has no id: the mask's holds its place
        known, total = (
            0 if past_key_values is None else past_key_values.get_seq_length(),
            ids.shape[1],
        )
        x = self.embeddings(ids[:, known:])
        if not known:
            x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), x[:, 1:]], dim=1)
        x = x + self._places(order)[:, known:total]
        condition = self.embeddings.weight[given] + self.timesteps_embeddings[:, known:total]
        rows = torch.arange(known, total, device=x.device)
        mask = torch.arange(total, device=x.device) <= rows[:, None]
        for block in self.blocks:
            x = block(x, condition, mask, past_key_values=past_key_values)
        first = max(0, 1 - known)  # cls predicts nothing
        return self.lm_head(self.adaln_before_head(x, for_rows(condition, x))[:, first:])

    def _places(self, order: Int[Tensor, "batch length"]) -> Float[Tensor, "batch position width"]:
        """Each position's own embedding and, from that of the class on, the one of the token that
        it predicts."""
        own, target = self.pos_embed[0], self.target_aware_pos_embed[0]
        lead = own[:_LEAD].expand(len(order), -1, -1)
        places = torch.cat([lead, own[_LEAD + order]], dim=1)
        return places + F.pad(target[_LEAD + order], (0, 0, 1, 1))

    def positions(self, read: int) -> int:
        return _LEAD + read

    def progress(self, step: int) -> float:
        return step / self.length

    @torch.no_grad()
    def _initialize(self) -> None:
        """As the public code does: every gate and modulation begins at zero."""
        for name, module in self.named_modules():
            if not name.startswith("tokenizer") and isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    module.bias.zero_()
        for table in (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        for modulation in (
            *(cast("Block", block).adaLN_modulation for block in self.blocks),
            self.adaln_before_head.adaLN_modulation,
        ):
            cast("nn.Linear", modulation[1]).weight.zero_()


class Attention(nn.Module):
    """Attention with queries and keys normalized in each head."""

    def __init__(self, config: RARConfig, index: int) -> None:
        super().__init__()
        C, self.heads, self.index = config.width, config.heads, index
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.q_norm, self.k_norm = (nn.LayerNorm(C // config.heads, eps=_EPS) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "batch new width"], mask: Tensor, past_key_values: Any = None
    ) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x),
            "batch new (three head d) -> three batch head new d",
            three=3,
            head=self.heads,
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.index)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(mixed, "batch head new d -> batch new (head d)"))


class Block(nn.Module):
    """Attention and MLP, each normalized, then scaled, shifted and gated by the class and the
    position."""

    def __init__(self, config: RARConfig, index: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.width, eps=_EPS) for _ in range(2))
        self.attn, self.mlp = Attention(config, index), MLP(config.width, config.hidden, "none")
        self.attn_gate, self.mlp_gate = Gate(), Gate()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        condition: Tensor,
        mask: Tensor,
        past_key_values: Any = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(
            6, dim=-1
        )
        x = x + self.attn_gate(
            self.attn(modulated(self.norm1(x), scale1, shift1), mask, past_key_values), gate1
        )
        return x + self.mlp_gate(self.mlp(modulated(self.norm2(x), scale2, shift2)), gate2)


class Final(nn.Module):
    """The adaptive layer norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "batch new width"], condition: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return modulated(F.layer_norm(x, x.shape[-1:], eps=_EPS), scale, shift)
