"""What VAR and RAR have in common: a class and, step by step, the tokens of one image; and the
tokenizer that those tokens are of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.image.tokenizers import ImageTokenizer
from interp.subject.batch import Batch
from interp.subject.stepwise import Segment

_ROWS = 256  # images that go through the tokenizer together


class ImageModel(nn.Module, ABC):
    """An image autoregressive network with the tokenizer whose codes it predicts; a `Stepwise`.

    Attributes:
        tokenizer: images to tokens and back; frozen.
        classes: how many classes condition it, numbered from 0.
        null: the label that stands for none, for classifier-free guidance and the labels dropped in
        training.
        steps: which tokens are predicted together, as (start, stop) pairs.
        lead: how many positions the blocks see before that of the first token.
        segments: the parts of what the blocks see.
    """

    classes: int
    steps: tuple[tuple[int, int], ...]
    lead: int
    segments: tuple[Segment, ...]

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(requires_grad=False)

    @property
    def length(self) -> int:
        """Tokens an image."""
        return self.steps[-1][1]

    @property
    def null(self) -> int:
        return self.classes

    @abstractmethod
    def forward(
        self,
        tokens: Int[Tensor, "batch read"],
        label: Int[Tensor, " batch"],
        past_key_values: Any = None,
    ) -> Float[Tensor, "batch new codes"]:
        """Logits of all tokens up to the end of the step that follows the tokens read (whole
        steps); those in the cache are left out."""

    def groups(self, length: int) -> tuple[tuple[int, int], ...]:
        """The steps that begin within the first `length` tokens."""
        return tuple(step for step in self.steps if step[0] < length)

    def ahead(self, read: int) -> int:
        """How many tokens come next, together, once `read` (whole steps, not all) are known."""
        return next(stop for _, stop in self.steps if stop > read) - read

    @abstractmethod
    def positions(self, read: int) -> int:
        """How many positions of the blocks depend on nothing but the first `read` tokens (whole
        steps, not all)."""

    @abstractmethod
    def progress(self, step: int) -> float:
        """How far a step is, from 0 to 1: what classifier-free guidance grows with."""

    def predicted(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep codes"]:
        """Aligned logits of the last `keep` tokens of a batch of whole steps."""
        return self(batch.tokens[:, : self.before(batch.length)], **batch.conditioning)[:, -keep:]

    def before(self, length: int) -> int:
        """Where the last step of the first `length` tokens begins, 0 for none. Raises ValueError,
        with the nearest ends, within a step."""
        for start, stop in ((0, 0), *self.steps):
            if stop == length:
                return start
        ends = [0, *(stop for _, stop in self.steps)]
        near = sorted(sorted(ends, key=lambda end: abs(end - length))[:2])
        raise ValueError(
            f"{length} tokens are no whole number of steps of this model ({len(self.steps)} steps, {self.length} tokens); "
            f"nearest: {' or '.join(map(str, near))}"
        )

    def check_prompt(self, prompt: int) -> None:
        """Raises ValueError, with the nearest ends, for a prompt that ends within a step."""
        self.before(prompt)

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
        """Logits of the last `keep` tokens up to the end of the next step; what is in the cache is
        not computed again."""
        return self(read, **conditioning, past_key_values=cache)[:, -keep:]

    def example(self) -> Batch:
        """Two whole images of the first class."""
        tokens = torch.arange(2 * self.length).reshape(2, -1) % self.tokenizer.codes
        return Batch(tokens, 0, conditioning={"label": torch.zeros(2, dtype=torch.long)})

    def check(self, batch: Batch) -> None:
        """Raises ValueError for a batch that is not of this model: by its labels, or its length."""
        label = batch.conditioning.get("label")
        if label is None or label.shape != (len(batch),):
            given = "none" if label is None else f"shape {tuple(label.shape)}"
            raise ValueError(
                f"conditioning['label'] must hold one class for each of {len(batch)} images; got {given}"
            )
        self.check_label(label)
        if batch.length > self.length:
            raise ValueError(
                f"an image has {self.length} tokens here; got {batch.length}: another model's tokens?"
            )
        self.before(batch.length)

    def check_label(self, label: Int[Tensor, " batch"]) -> None:
        """Raises ValueError for classes that the model has not."""
        low, high = int(label.min()), int(label.max())
        if low < 0 or high > self.null:
            raise ValueError(
                f"labels must be classes 0 to {self.classes - 1} ({self.null} for none); got {low} to {high}"
            )

    @torch.no_grad()
    def encode(
        self,
        images: Float[Tensor, "batch channels side side"],
        label: Int[Tensor, " batch"],
        prompt: int = 0,
    ) -> Batch:
        """Images in [0, 1] and their classes as one batch. Raises ValueError for images of another
        size or range, and other classes."""
        tokens = torch.cat(
            [self.tokenizer.encode(part.to(self._device)) for part in images.split(_ROWS)]
        )
        together = self.steps if len(self.steps) < self.length else None
        batch = Batch(
            tokens, prompt, steps=together, conditioning={"label": label.to(self._device)}
        )
        self.check(batch)
        return batch

    def decode(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch channels side side"]:
        """The images, in [0, 1], that tokens stand for."""
        return torch.cat(
            [self.tokenizer.decode(part.to(self._device)) for part in tokens.split(_ROWS)]
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """The codebook: its rows are the token ids that there are."""
        return self.tokenizer.codebook

    @property
    def _device(self) -> torch.device:
        return self.tokenizer.codebook.weight.device


def image_model(module: nn.Module) -> ImageModel:
    """The module as an image model. Raises ValueError for any other."""
    if not isinstance(module, ImageModel):
        raise ValueError(f"{type(module).__name__} is no image model: expected a VAR or a RAR")
    return module


def own_state(model: ImageModel) -> Mapping[str, Tensor]:
    """The network's parameters and buffers by their public names, without the tokenizer's."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("tokenizer.")
    }


class Gate(nn.Module):
    """Multiplies by a gate. A module, so that what it gives, which is what is added to the residual
    stream, can be hooked."""

    def forward(self, x: Float[Tensor, "batch position width"], gate: Tensor) -> Tensor:
        return x * gate


class MLP(nn.Module):
    """Two layers with GELU between them, whose form is `approximate`: "tanh" in VAR, "none" (exact)
    in RAR."""

    def __init__(self, width: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch position width"]) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def modulated(x: Float[Tensor, "batch position width"], scale: Tensor, shift: Tensor) -> Tensor:
    """What adaptive layer normalization does after normalizing."""
    return x * (1 + scale) + shift


def for_rows(condition: Tensor, x: Tensor) -> Tensor:
    """A condition for every row of x, which a sweep grows by whole copies of the batch."""
    return (
        condition
        if len(condition) == len(x)
        else torch.cat([condition] * (len(x) // len(condition)))
    )
