"""Stepwise: which tokens a model predicts together and what stands before the first, so that the
core knows no kind of model.

A network that predicts several tokens at once, or whose blocks see more than its tokens, implements
the protocol itself, as VAR and RAR do. Every other module predicts one token at a time: `OneByOne`
says that of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import LoadError
from interp.subject.batch import Batch

Group = tuple[int, int]  # (start, stop) of tokens that are predicted together


@dataclass(frozen=True)
class Segment:
    """Positions `start` to `stop` of what the blocks see, as one part of the example: a scale, or a
    row, of an image.

    `degenerate` says that they are the same for all examples with one conditioning: what a unit
    does there tells the class, not the image.
    """

    name: str
    start: int
    stop: int
    degenerate: bool = False


@runtime_checkable
class Stepwise(Protocol):
    """What the core has to know of a model's steps.

    Attributes:
        lead: how many positions the blocks see before that of the first token.
        segments: the parts of what the blocks see; none where examples have no parts.
    """

    lead: int
    segments: tuple[Segment, ...]

    def groups(self, length: int) -> tuple[Group, ...]:
        """Which of the first `length` tokens are predicted together."""
        ...

    def ahead(self, read: int) -> int:
        """How many tokens come next, together, once `read` are known."""
        ...

    def positions(self, read: int) -> int:
        """How many positions of the blocks depend on nothing but the first `read` tokens."""
        ...

    def check(self, batch: Batch) -> None:
        """Raises ValueError for a batch that is not of this model."""
        ...

    def check_prompt(self, prompt: int) -> None:
        """Raises ValueError for a number of tokens from which the model cannot go on."""
        ...

    def predicted(self, batch: Batch, keep: int) -> Float[Tensor, "batch keep vocabulary"]:
        """The logits that predict the last `keep` tokens of a batch."""
        ...

    def new_cache(self) -> Any:
        """An empty cache with `get_seq_length`, `crop` and `batch_select_indices`; None where there
        is none."""
        ...

    def feed(
        self,
        read: Int[Tensor, "batch read"],
        new: int,
        cache: Any,
        conditioning: Mapping[str, Tensor],
        keep: int,
    ) -> Float[Tensor, "batch keep vocabulary"]:
        """Reads the last `new` of all tokens `read`, the rest being in the cache; the logits of the
        last `keep` tokens up to the end of the next group."""
        ...

    def example(self) -> Batch:
        """A tiny valid batch of at least two rows, on which sites are found and verified."""
        ...


class OneByOne:
    """The default: one token at a time, each predicted from those before it, nothing before the
    first.

    A Hugging Face causal language model keeps its own KV cache; any other module `module(tokens)`
    is run whole.
    """

    lead = 0
    segments: tuple[Segment, ...] = ()

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def _generates(self) -> bool:
        return hasattr(self.module, "prepare_inputs_for_generation")

    def groups(self, length: int) -> tuple[Group, ...]:
        return tuple((token, token + 1) for token in range(length))

    def ahead(self, read: int) -> int:  # noqa: ARG002 - the protocol's signature
        return 1

    def positions(self, read: int) -> int:
        return read

    def check(self, batch: Batch) -> None:
        """Every batch will do: token ids are checked for all models alike."""

    def check_prompt(self, prompt: int) -> None:
        if prompt < 1:
            raise ValueError(
                "prompt=0: this model sees nothing before the first token; expected at least 1"
            )

    def predicted(self, batch: Batch, keep: int) -> Tensor:
        if self._generates:
            return language_forward(self.module, batch, keep)
        return plain_forward(self.module, batch, keep)

    def new_cache(self) -> Any:
        if not self._generates:
            return None
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self.module.config)  # pyright: ignore[reportArgumentType]
        if hasattr(cache, "activate_past_recording"):
            cache.activate_past_recording()  # else what slid out of an attention window could not come back on crop
        return cache

    def feed(
        self,
        read: Tensor,
        new: int,
        cache: Any,
        conditioning: Mapping[str, Tensor],  # noqa: ARG002
        keep: int,
    ) -> Tensor:
        return self.module(
            read[:, read.shape[1] - new :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits

    def example(self) -> Batch:
        """A few tokens that every embedding of the module knows. Raises LoadError where there is
        none."""
        sizes = [m.num_embeddings for m in self.module.modules() if isinstance(m, nn.Embedding)]
        if not sizes:
            raise LoadError(
                f"{type(self.module).__name__} has no token embedding (nn.Embedding): pass example= and forward= to interp.load"
            )
        return Batch(torch.arange(22).reshape(2, 11) % min(sizes))


def stepwise_of(module: nn.Module) -> Stepwise:
    """What a module says of its own steps, or that it takes one token at a time."""
    return module if isinstance(module, Stepwise) else OneByOne(module)


def language_forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """The forward of a Hugging Face causal language model; its head runs on the kept positions
    only, or on all of them."""
    everything = keep >= batch.length - 1
    return module(
        batch.tokens, use_cache=False, logits_to_keep=0 if everything else keep + 1
    ).logits[:, -keep - 1 : -1]


def plain_forward(module: nn.Module, batch: Batch, keep: int) -> Tensor:
    """The forward of any module that maps token ids to next-token logits [batch, position,
    vocabulary]."""
    output = module(batch.tokens, **batch.conditioning)
    return getattr(output, "logits", output)[:, -keep - 1 : -1]
