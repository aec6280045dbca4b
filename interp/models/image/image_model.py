"""What VAR and RAR have in common: both predict the tokens of one image, group by group, from a
class, and carry the tokenizer that the tokens belong to."""

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

_BATCH_SIZE = 256  # images that go through the tokenizer together


class ImageModel(nn.Module, ABC):
    """An image autoregressive network with the tokenizer whose codes it predicts; a `Stepwise`.

    A group is a run of tokens that are predicted together. The model always reads whole groups.

    Attributes:
        tokenizer: images to tokens and back; frozen.
        classes: number of classes that condition it, numbered from 0.
        null: the label that means "no class", for classifier-free guidance and the labels
            dropped in training.
        all_groups: (start, stop) of the tokens of each group of an image.
        lead: number of positions that the blocks see before that of the first token.
        segments: the parts of what the blocks see.
    """

    classes: int
    all_groups: tuple[tuple[int, int], ...]
    lead: int
    segments: tuple[Segment, ...]

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(requires_grad=False)

    @property
    def length(self) -> int:
        """Tokens per image."""
        return self.all_groups[-1][1]

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
        """Returns the logits of all tokens up to the end of the group that follows those read.

        Args:
            tokens: [batch, read] the first tokens of each image.
            label: [batch] the class of each image.
            past_key_values: a cache; the logits of tokens in it are left out.
        """

    def groups(self, length: int) -> tuple[tuple[int, int], ...]:
        """Returns the groups that begin within the first `length` tokens."""
        return tuple(group for group in self.all_groups if group[0] < length)

    def ahead(self, read: int) -> int:
        """Returns how many tokens are predicted together after the first `read`, which are not
        all."""
        later_stops = [stop for _, stop in self.all_groups if stop > read]
        return later_stops[0] - read

    @abstractmethod
    def positions(self, read: int) -> int:
        """Returns how many positions of the blocks depend only on the first `read` tokens."""

    @abstractmethod
    def progress(self, group: int) -> float:
        """Returns how far a group is, by its number, from 0 to 1: guidance is scheduled by it."""

    def predict(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep codes"]:
        """Returns aligned logits of the last `keep` tokens of a batch of whole groups."""
        # The last group is not read: it is what the logits at the end predict.
        read = batch.tokens[:, : self.before(batch.length)]
        return self(read, **batch.conditioning)[:, -keep:]

    def before(self, length: int) -> int:
        """Returns where the last group of the first `length` tokens begins; 0 for no tokens.

        Raises:
            ValueError: with the nearest ends of groups, when `length` is within a group.
        """
        # (0, 0) stands for no tokens.
        for start, stop in ((0, 0), *self.all_groups):
            if stop == length:
                return start
        stops = [stop for _, stop in self.all_groups]
        by_distance = sorted([0, *stops], key=lambda end: abs(end - length))
        nearest = sorted(by_distance[:2])
        raise ValueError(
            f"{length} tokens are not a whole number of groups of this model "
            f"({len(self.all_groups)} groups, {self.length} tokens); "
            f"nearest: {' or '.join(map(str, nearest))}"
        )

    def check_prompt(self, prompt: int) -> None:
        """Checks that the model can continue from a prompt.

        Raises:
            ValueError: with the nearest ends of groups, when it ends within a group.
        """
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
        """Returns logits of the last `keep` tokens up to the end of the next group.

        What is in the cache is not computed again.
        """
        return self(read, **conditioning, past_key_values=cache)[:, -keep:]

    def example(self) -> Batch:
        """Returns two whole images of the first class."""
        # Two rows that differ, and in each as many codes as there are: what does not depend on the
        # tokens, or mixes the rows, would not show on equal ones.
        numbers = torch.arange(2 * self.length)
        tokens = numbers.reshape(2, -1) % self.tokenizer.codes
        label = torch.zeros(2, dtype=torch.long)
        return Batch(tokens, 0, conditioning={"label": label})

    def check(self, batch: Batch) -> None:
        """Checks that a batch is one of this model.

        Raises:
            ValueError: its labels or its length are not.
        """
        label = batch.conditioning.get("label")
        if label is None or label.shape != (len(batch),):
            given = "none" if label is None else f"shape {tuple(label.shape)}"
            raise ValueError(
                f"conditioning['label'] must hold one class for each of {len(batch)} images; "
                f"got {given}"
            )
        self.check_label(label)
        if batch.length > self.length:
            raise ValueError(
                f"an image has {self.length} tokens here; got {batch.length}: "
                "another model's tokens?"
            )
        self.before(batch.length)

    def check_label(self, label: Int[Tensor, " batch"]) -> None:
        """Checks that the model has these classes.

        Raises:
            ValueError: it does not.
        """
        low = int(label.min())
        high = int(label.max())
        if low < 0 or high > self.null:
            raise ValueError(
                f"labels must be classes 0 to {self.classes - 1} ({self.null} for none); "
                f"got {low} to {high}"
            )

    @torch.no_grad()
    def encode(
        self,
        images: Float[Tensor, "batch channels side side"],
        label: Int[Tensor, " batch"],
        prompt: int = 0,
    ) -> Batch:
        """Returns images and their classes as one batch.

        Args:
            images: [batch, channels, side, side] in [0, 1].
            label: [batch] the class of each.
            prompt: number of leading tokens that are given and not predicted.

        Raises:
            ValueError: images of another size or range, or classes that the model does not have.
        """
        tokens: list[Tensor] = []
        for part in images.split(_BATCH_SIZE):
            on_device = part.to(self._device)
            tokens.append(self.tokenizer.encode(on_device))
        # A batch says nothing of its groups where tokens are predicted one by one.
        one_by_one = len(self.all_groups) == self.length
        batch = Batch(
            torch.cat(tokens),
            prompt,
            groups=None if one_by_one else self.all_groups,
            conditioning={"label": label.to(self._device)},
        )
        self.check(batch)
        return batch

    def decode(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Returns the images, in [0, 1], that the tokens of whole images decode to."""
        images: list[Tensor] = []
        for part in tokens.split(_BATCH_SIZE):
            on_device = part.to(self._device)
            images.append(self.tokenizer.decode(on_device))
        return torch.cat(images)

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the codebook: its rows are the token ids that there are."""
        return self.tokenizer.codebook

    @property
    def _device(self) -> torch.device:
        return self.tokenizer.codebook.weight.device


def image_model(module: nn.Module) -> ImageModel:
    """Returns the module, which must be an image model.

    Raises:
        ValueError: it is another module.
    """
    if not isinstance(module, ImageModel):
        raise ValueError(f"{type(module).__name__} is not an image model: expected a VAR or a RAR")
    return module


def own_state(model: ImageModel) -> Mapping[str, Tensor]:
    """Returns the network's parameters and buffers by public name, without its tokenizer's."""
    state = model.state_dict()
    own_names = [name for name in state if not name.startswith("tokenizer.")]
    return {name: state[name] for name in own_names}


class Gate(nn.Module):
    """Multiplies by a gate.

    It is a module so that its output, which is what is added to the residual stream, can be hooked.
    """

    def forward(self, x: Float[Tensor, "batch position width"], gate: Tensor) -> Tensor:
        return x * gate


class MLP(nn.Module):
    """Two layers with GELU between them.

    The form of GELU, `approximate`, is "tanh" in VAR and "none" (exact) in RAR.
    """

    def __init__(self, width: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch position width"]) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def modulator(width: int, vectors: int) -> nn.Sequential:
    """Returns what computes the shifts, scales and gates of adaptive layer normalization from a
    condition: all vectors of a layer, one after the other."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


def modulate(x: Float[Tensor, "batch position width"], scale: Tensor, shift: Tensor) -> Tensor:
    """Returns what adaptive layer normalization makes of normalized values."""
    return x * (1 + scale) + shift


def for_rows(condition: Tensor, x: Tensor) -> Tensor:
    """Returns a condition for every row of x.

    A sweep runs many interventions in one batch, which it makes grow by whole copies of itself
    inside the blocks. The condition from before the blocks is repeated to match.
    """
    if len(condition) == len(x):
        return condition
    copies = len(x) // len(condition)
    return torch.cat([condition] * copies)
