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

from interp.models.image.image_model import (
    MLP,
    Gate,
    ImageModel,
    Segment,
    for_rows,
    modulate,
    modulator,
)
from interp.models.image.raster_vq import RasterVQ
from interp.subject.batch import Batch

_EPS = 1e-6
_LEAD = 2  # the positions of cls and of the class
# Rows of the public tables beyond those in use.
SPARE_POSITIONS = 1024
SPARE_TIMES = 100


@dataclass(frozen=True)
class RARConfig:
    """The shape of a RAR.

    Attributes:
        grid: tokens per side.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads per block.
        hidden: width of the MLP, its number of neurons.
        codes: number of codes in the tokenizer's codebook.
        classes: number of classes.
    """

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

    The blocks see cls, the class, and the tokens before the one to predict. Position t + 1 is the
    one that predicts token t.

    Raises:
        ValueError: the tokenizer is that of another model.

    Example:
        >>> from interp.models.image.rar import RAR, RARConfig
        >>> from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
        >>> shape = RasterVQConfig(
        ...     grid=4, codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1
        ... )
        >>> network = RARConfig(
        ...     grid=4, width=16, depth=1, heads=2, hidden=32, codes=16, classes=3
        ... )
        >>> model = RAR(network, RasterVQ(shape))
        >>> batch = model.encode(torch.rand(2, 3, 8, 8), torch.tensor([0, 2]))
        >>> list(interp.load(model).logits(batch).shape)
        [2, 16, 16]
    """

    lead = _LEAD

    def __init__(self, config: RARConfig, tokenizer: RasterVQ) -> None:
        own = tokenizer.config
        if (tokenizer.codes, own.grid) != (config.codes, config.grid):
            raise ValueError(
                f"another model's tokenizer: it has {own.codes} codes on a grid of {own.grid}; "
                f"this RAR predicts {config.codes} codes on a grid of {config.grid}"
            )
        super().__init__(tokenizer)
        self.config = config
        self.classes = config.classes
        N = config.length
        C = config.width
        self.all_groups = tuple((token, token + 1) for token in range(N))
        self.segments = _segments(config.grid)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        # Codes, the mask, classes, and no class.
        rows = config.codes + 1 + config.classes + 1
        self.embeddings = nn.Embedding(rows, C)
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
        """Returns logits as `ImageModel.forward` does.

        Args:
            tokens: [batch, read] the first tokens of each image; whole images with `order`.
            label: [batch] the class of each image.
            past_key_values: a cache; the logits of tokens in it are left out.
            order: [batch, length] the order in which the tokens of whole images are read, for
                training in random orders. The logits are in the order of the image.
        """
        if order is None:
            raster = torch.arange(self.length, device=tokens.device)
            order = raster.expand(len(tokens), -1)
            return self._in_order(tokens, label, order, past_key_values)
        # Read in the given order, all but the last, after which nothing is left to predict.
        read = tokens.gather(1, order)[:, :-1]
        logits = self._in_order(read, label, order, None)
        # The logits at place i of the order go to the place in the image, order[i], of the token
        # that they predict.
        places = order[..., None].expand_as(logits)
        return torch.empty_like(logits).scatter(1, places, logits)

    def predict(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep codes"]:
        """Returns aligned logits of the last `keep` tokens, as in `ImageModel`.

        Images with an order of their own are read whole, because the token that is predicted last
        is not the last one of the image.
        """
        if "order" in batch.conditioning:
            return self(batch.tokens, **batch.conditioning)[:, -keep:]
        return super().predict(batch, keep)

    def _in_order(
        self,
        tokens: Int[Tensor, "batch read"],
        label: Int[Tensor, " batch"],
        order: Int[Tensor, "batch length"],
        past_key_values: Any,
    ) -> Float[Tensor, "batch new codes"]:
        """Logits in the order in which the tokens are read."""
        # The table of embeddings holds codes, the mask (which nothing predicts here), then classes.
        mask_id = self.config.codes
        class_id = (label + mask_id + 1)[:, None]
        # cls has no id: that of the mask holds its place until its own vector is put there.
        after_cls = torch.cat([class_id, tokens], dim=1)
        ids = F.pad(after_cls, (1, 0), value=mask_id)
        total = ids.shape[1]
        known = 0 if past_key_values is None else past_key_values.get_seq_length()

        x = self.embeddings(ids[:, known:])
        if not known:
            cls = self.cls_token.expand(len(tokens), -1, -1)
            x = torch.cat([cls, x[:, 1:]], dim=1)
        x = x + self._places(order)[:, known:total]

        # Each position is modulated by the class and by how far it is: [batch, 1, width] +
        # [1, new, width]. The table is indexed and not called: a second call would pass the hooks
        # on the embedding once more.
        of_class = self.embeddings.weight[class_id]
        of_time = self.timesteps_embeddings[:, known:total]
        condition = of_class + of_time

        # New positions by all positions: each sees itself and those before it.
        positions = torch.arange(total, device=x.device)
        mask = positions <= positions[known:, None]
        for block in self.blocks:
            x = block(x, condition, mask, past_key_values=past_key_values)

        normalized = self.adaln_before_head(x, for_rows(condition, x))
        first_predicting = max(0, 1 - known)  # cls predicts nothing
        return self.lm_head(normalized[:, first_predicting:])

    def _places(self, order: Int[Tensor, "batch length"]) -> Float[Tensor, "batch position width"]:
        """Each position's own embedding and, from that of the class on, the embedding of the place
        of the token that it predicts."""
        own = self.pos_embed[0]
        target = self.target_aware_pos_embed[0]
        lead = own[:_LEAD]
        lead = lead.expand(len(order), -1, -1)
        rows = _LEAD + order  # where the tables hold each token, in the order in which it is read
        own_places = torch.cat([lead, own[rows]], dim=1)
        # The padding shifts targets by one position against own places: the class is where the
        # first token is predicted. It puts zeros at cls, the first position, which predicts
        # nothing, and at the last one, at which all tokens are known.
        target_places = F.pad(target[rows], (0, 0, 1, 1))
        return own_places + target_places

    def positions(self, read: int) -> int:
        return _LEAD + read

    def progress(self, group: int) -> float:
        return group / self.length

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initializes as the public code: every gate and modulation begins at zero."""
        for name, module in self.named_modules():
            is_own = not name.startswith("tokenizer")
            if is_own and isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    module.bias.zero_()
        for table in (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        modulations = [cast("Block", block).adaLN_modulation for block in self.blocks]
        modulations.append(self.adaln_before_head.adaLN_modulation)
        for modulation in modulations:
            linear = cast("nn.Linear", modulation[1])
            linear.weight.zero_()


def _segments(grid: int) -> tuple[Segment, ...]:
    """cls, the class, and each row of the image, as positions of the blocks.

    A row is where its tokens are predicted, one position before they are read. So the first token
    is predicted at the class, and the first row begins after that.
    """
    segments = [
        Segment("cls", 0, 1, degenerate=True),
        Segment("class", 1, _LEAD, degenerate=True),
    ]
    for row in range(grid):
        start = max(_LEAD, 1 + row * grid)
        stop = 1 + (row + 1) * grid
        segments.append(Segment(f"row {row + 1}", start, stop))
    return tuple(segments)


class Attention(nn.Module):
    """Attention with queries and keys that are normalized in each head."""

    def __init__(self, config: RARConfig, index: int) -> None:
        super().__init__()
        C = config.width
        self.heads = config.heads
        self.index = index
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)
        head_width = C // config.heads
        self.q_norm = nn.LayerNorm(head_width, eps=_EPS)
        self.k_norm = nn.LayerNorm(head_width, eps=_EPS)

    def forward(
        self, x: Float[Tensor, "batch new width"], mask: Tensor, past_key_values: Any = None
    ) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x),
            "batch new (three head d) -> three batch head new d",
            three=3,
            head=self.heads,
        )
        q = self.q_norm(q)
        k = self.k_norm(k)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.index)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        joined = rearrange(mixed, "batch head new d -> batch new (head d)")
        return self.proj(joined)


class Block(nn.Module):
    """A transformer block: the input of attention and of MLP is normalized, then scaled and shifted
    by class and position; the output is gated by them."""

    def __init__(self, config: RARConfig, index: int) -> None:
        super().__init__()
        C = config.width
        self.norm1 = nn.LayerNorm(C, eps=_EPS)
        self.norm2 = nn.LayerNorm(C, eps=_EPS)
        self.attn = Attention(config, index)
        self.mlp = MLP(C, config.hidden, "none")
        self.attn_gate = Gate()
        self.mlp_gate = Gate()
        self.adaLN_modulation = modulator(C, vectors=6)

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        condition: Tensor,
        mask: Tensor,
        past_key_values: Any = None,
    ) -> Tensor:
        # In the order of the checkpoint, attention first; VAR's has another.
        modulation = self.adaLN_modulation(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)

        # The gates are modules, and not products written here, so that what leaves them is a site:
        # it is what attention and MLP add to the residual.
        attn_in = modulate(self.norm1(x), scale1, shift1)
        attn_out = self.attn(attn_in, mask, past_key_values)
        x = x + self.attn_gate(attn_out, gate1)
        mlp_in = modulate(self.norm2(x), scale2, shift2)
        mlp_out = self.mlp(mlp_in)
        return x + self.mlp_gate(mlp_out, gate2)


class Final(nn.Module):
    """The adaptive layer norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.adaLN_modulation = modulator(width, vectors=2)

    def forward(self, x: Float[Tensor, "batch new width"], condition: Tensor) -> Tensor:
        # Scale first, unlike in the blocks: so it is in the checkpoint.
        modulation = self.adaLN_modulation(condition)
        scale, shift = modulation.chunk(2, dim=-1)
        normalized = F.layer_norm(x, x.shape[-1:], eps=_EPS)
        return modulate(normalized, scale, shift)
