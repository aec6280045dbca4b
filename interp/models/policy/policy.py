"""A small transformer policy that writes actions token by token, a `Stepwise` of the toolkit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.errors import closest
from interp.subject.batch import Batch
from interp.subject.stepwise import Group, Segment

BINS = 21  # of an action's values on [-1, 1]
ACTION_TOKENS = 4  # x, y, z and suction
ITEM_FEATURES = 8  # position, colour, whether it is a box, whether it is there
STATE_FEATURES = 5  # position of the hand, whether it holds something, whether it sucks
# Words that are none, and those that are not in the vocabulary.
PAD = 0
UNKNOWN = 1
_OCTAVES = 3  # of sines and cosines of positions, as in NeRF


@dataclass(frozen=True)
class PolicyConfig:
    """The shape of a policy.

    Attributes:
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads per block.
        hidden: width of the MLP, its number of neurons.
        chunk: number of actions that are written after one observation.
        vocabulary: number of words, padding and the unknown word among them.
        words: the most words of an instruction.
        items: the most items of a scene.
        patches: side of the image in patches; 0 for a policy that is given the items instead.
        patch: side of a patch, in pixels.
    """

    width: int = 64
    depth: int = 3
    heads: int = 4
    hidden: int = 128
    chunk: int = 1
    vocabulary: int = 32
    words: int = 12
    items: int = 6
    patches: int = 0
    patch: int = 8

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide a width of {self.width}: expected a multiple"
            )

    @property
    def length(self) -> int:
        """Tokens of a chunk of actions."""
        return ACTION_TOKENS * self.chunk

    @property
    def scene(self) -> int:
        """Positions of the scene: one per item, or one per patch."""
        return self.patches**2 or self.items


class Policy(nn.Module):
    """Predicts the tokens of an action, or a chunk of them, from an instruction and what is seen.

    The blocks see the words, the items or the patches of an image, and the state of the hand, which
    all see each other; then the action tokens so far, each of which sees what comes before it.
    Words that pad an instruction and items that are not there are seen by none.

    What it is conditioned on (`conditioning` of a Batch): `words`, `items` and `state` as
    `interp.data.tabletop.observations.conditioning_of` returns them, or `image` [batch, 3, side,
    side] in [0, 1] in the place of `items`.

    Example:
        >>> from interp.models.policy.policy import Policy, PolicyConfig
        >>> shape = PolicyConfig(width=16, depth=1, heads=2, hidden=32)
        >>> policy = interp.load(Policy(shape, seed=0))
        >>> list(policy.logits(policy.stepwise.example()).shape)
        [2, 4, 21]
    """

    def __init__(self, config: PolicyConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.lead = config.words + config.scene + 1
        self.segments = _segments(config)
        C = config.width
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words = nn.Embedding(config.vocabulary, C, padding_idx=PAD)
            # Small beside the words, so that which word it is shows before where it stands.
            self.word_places = nn.Parameter(0.02 * torch.randn(config.words, C))
            if config.patches:
                self.scene = nn.Linear(3 * config.patch**2, C)
                self.patch_places = nn.Parameter(torch.randn(config.scene, C))
            else:
                self.scene = nn.Linear(ITEM_FEATURES + 6 * _OCTAVES, C)
            self.hand = nn.Linear(STATE_FEATURES + 6 * _OCTAVES, C)
            self.actions = nn.Embedding(BINS, C)
            self.action_places = nn.Parameter(torch.randn(config.length, C))
            self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
            self.norm = nn.LayerNorm(C)
            self.head = nn.Linear(C, BINS)

    def forward(
        self,
        tokens: Int[Tensor, "batch read"],
        words: Int[Tensor, "batch words"],
        state: Float[Tensor, "batch features"],
        items: Float[Tensor, "batch items features"] | None = None,
        image: Float[Tensor, "batch channels side side"] | None = None,
        past_key_values: Any = None,
    ) -> Float[Tensor, "batch new bins"]:
        """Returns the logits of the token after the state of the hand and after each token.

        Args:
            tokens: [batch, read] the first tokens of each chunk.
            words, state, items, image: what the policy is conditioned on.
            past_key_values: a cache; the logits of what is in it are left out.
        """
        known = 0 if past_key_values is None else past_key_values.get_seq_length()
        read = tokens.shape[1]
        # The table of actions is called in every forward, also while there are none to read, so
        # that a hook on it always runs.
        x = self.actions(tokens) + self.action_places[:read]
        if known:
            # The cache counts positions, with those in front of the tokens.
            x = x[:, known - self.lead :]
        else:
            x = torch.cat([self._prefix(words, state, items, image), x], dim=1)

        seen = self._seen(words, items, read)
        total = self.lead + read
        positions = torch.arange(total, device=x.device)
        is_prefix = positions < self.lead
        # [reading, read]. All see the hand, which is always there: no row of the softmax is empty.
        causal = (positions <= positions[:, None]) | is_prefix
        mask = (causal & seen[:, None])[:, None, known:]  # [batch, 1, new, position]
        for block in self.blocks:
            x = block(x, _for_rows(mask, x), past_key_values)
        # The hand predicts the first token; what is in front of it predicts nothing.
        first_predicting = max(0, self.lead - 1 - known)
        return self.head(self.norm(x)[:, first_predicting:])

    def _prefix(
        self, words: Tensor, state: Tensor, items: Tensor | None, image: Tensor | None
    ) -> Float[Tensor, "batch lead width"]:
        asked = self.words(words) + self.word_places
        state = state.to(asked.dtype)  # what is seen is not of the precision of the weights
        if self.config.patches:
            assert image is not None  # checked with the batch
            image = image.to(asked.dtype)
            patch = self.config.patch
            patches = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
            scene = self.scene(patches - 0.5) + self.patch_places
        else:
            assert items is not None
            items = items.to(asked.dtype)
            scene = self.scene(torch.cat([items, _waves(items[..., :3])], -1))
        hand = self.hand(torch.cat([state, _waves(state[..., :3])], -1))
        return torch.cat([asked, scene, hand[:, None]], dim=1)

    def _seen(
        self, words: Tensor, items: Tensor | None, read: int
    ) -> Bool[Tensor, "batch position"]:
        """Which positions hold anything."""
        is_word = words != PAD
        if items is None:
            is_there = is_word.new_ones(len(words), self.config.scene)
        else:
            is_there = items[..., -1] > 0
        rest = is_word.new_ones(len(words), 1 + read)
        return torch.cat([is_word, is_there, rest], dim=1)

    # What the toolkit asks: see `Stepwise`.

    def groups(self, length: int) -> tuple[Group, ...]:
        """Returns each token as a group of its own: they are written one after the other."""
        return tuple((token, token + 1) for token in range(length))

    def ahead(self, read: int) -> int:  # noqa: ARG002 - the protocol's signature
        return 1

    def positions(self, read: int) -> int:
        return self.lead + read

    def check_prompt(self, prompt: int) -> None:
        """Accepts every prompt: the first token is predicted from the observation."""

    def check(self, batch: Batch) -> None:
        """Checks that a batch is one of this policy.

        Raises:
            ValueError: more tokens than a chunk has, or conditioning that is missing, unknown, or
                of another shape.
        """
        if batch.length > self.config.length:
            raise ValueError(
                f"{batch.length} tokens: a chunk of this policy has {self.config.length} "
                f"({self.config.chunk} actions of {ACTION_TOKENS})"
            )
        shapes = self._shapes()
        for name in batch.conditioning:
            if name not in shapes:
                raise ValueError(
                    f"conditioning {name!r}: this policy reads {', '.join(shapes)}; nearest: "
                    f"{closest(name, list(shapes))}"
                )
        for name, shape in shapes.items():
            given = batch.conditioning.get(name)
            expected = (len(batch), *shape)
            if given is None or given.shape != expected:
                found = "none" if given is None else f"shape {tuple(given.shape)}"
                raise ValueError(
                    f"conditioning[{name!r}] must have the shape {expected}, got {found}"
                )
            if given.is_floating_point() and not bool(given.isfinite().all()):
                raise ValueError(f"conditioning[{name!r}] holds numbers that are not finite")
        words = batch.conditioning["words"]
        highest = self.config.vocabulary - 1
        if int(words.min()) < 0 or int(words.max()) > highest:
            raise ValueError(
                f"word ids are {int(words.min())} to {int(words.max())}: expected 0 to {highest}, "
                "as word_ids returns them"
            )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "words": (self.config.words,),
            "state": (STATE_FEATURES,),
        }
        if self.config.patches:
            side = self.config.patches * self.config.patch
            shapes["image"] = (3, side, side)
        else:
            shapes["items"] = (self.config.items, ITEM_FEATURES)
        return shapes

    def predict(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep bins"]:
        """Returns the logits that predict the last `keep` tokens of a batch."""
        return self(batch.tokens[:, :-1], **batch.conditioning)[:, -keep:]

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def feed(
        self,
        read: Tensor,
        new: int,  # noqa: ARG002
        cache: Any,
        conditioning: Mapping[str, Tensor],
        keep: int,
    ) -> Tensor:
        """Returns logits of the last `keep` tokens up to the next one.

        What is in the cache is not computed again.
        """
        return self(read, **conditioning, past_key_values=cache)[:, -keep:]

    def example(self) -> Batch:
        """Returns two chunks of different actions after different observations."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, BINS, (2, self.config.length), generator=generator)
        conditioning: dict[str, Tensor] = {}
        for name, shape in self._shapes().items():
            conditioning[name] = torch.rand(2, *shape, generator=generator)
        size = (2, self.config.words)
        conditioning["words"] = torch.randint(1, self.config.vocabulary, size, generator=generator)
        return Batch(tokens, 0, conditioning=conditioning)

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the table of actions: its rows are the token ids that there are."""
        return self.actions


def _segments(config: PolicyConfig) -> tuple[Segment, ...]:
    """The words, the scene, the hand and each action, as positions of the blocks.

    The state of the hand is where the first token is predicted.
    """
    words = config.words
    scene = words + config.scene
    segments = [
        Segment("words", 0, words),
        Segment("patches" if config.patches else "items", words, scene),
        Segment("hand", scene, scene + 1),
    ]
    for action in range(config.chunk):
        start = scene + 1 + ACTION_TOKENS * action
        # Nothing is predicted after the last token, which the blocks never see.
        stop = min(start + ACTION_TOKENS, scene + config.length)
        segments.append(Segment(f"action {action + 1}", start, stop))
    return tuple(segments)


def _waves(positions: Float[Tensor, "*any axes"]) -> Float[Tensor, "*any waves"]:
    """Sines and cosines of positions at several frequencies."""
    frequencies = torch.pi / 2 * 2.0 ** torch.arange(_OCTAVES, device=positions.device)
    angles = (positions[..., None] * frequencies).flatten(-2)  # [..., axes * octaves]
    return torch.cat([angles.sin(), angles.cos()], -1)


def _for_rows(mask: Tensor, x: Tensor) -> Tensor:
    """A mask for every row of x: a sweep makes the batch grow by whole copies inside the blocks."""
    return mask if len(mask) == len(x) else torch.cat([mask] * (len(x) // len(mask)))


class Attention(nn.Module):
    """Attention of several heads."""

    def __init__(self, config: PolicyConfig, index: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.index = index
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(
        self, x: Float[Tensor, "batch new width"], mask: Tensor, past_key_values: Any = None
    ) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x),
            "batch new (three head d) -> three batch head new d",
            three=3,
            head=self.heads,
        )
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.index)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(mixed, "batch head new d -> batch new (head d)"))


class MLP(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Float[Tensor, "batch position width"]) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A transformer block that normalizes what attention and MLP read."""

    def __init__(self, config: PolicyConfig, index: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = Attention(config, index)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(
        self, x: Float[Tensor, "batch new width"], mask: Tensor, past_key_values: Any = None
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), mask, past_key_values)
        return x + self.mlp(self.norm2(x))
