"""Greedy decoding on the model's own KV cache, where it has one, and by whole forwards where it has not."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .batch import Batch


class Decodable(Protocol):
    """What can be decoded: the forward of a Subject."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def forward(self) -> Any: ...


class Decoder:
    """Feeds tokens to a model and gives the logits of what comes next; remembers, crops and selects what it has read."""

    def __init__(self, subject: Decodable, rows: int) -> None:
        self.subject = subject
        self.read: Tensor = torch.empty(rows, 0, dtype=torch.long)
        self.cache: Any = _new_cache(subject.module)

    def feed(self, tokens: Int[Tensor, "batch new"], keep: int = 1) -> Float[Tensor, "batch keep vocabulary"]:
        """Reads more tokens; returns the logits after each of the last `keep` of them."""
        self.read = torch.cat([self.read.to(tokens.device), tokens], dim=1)
        if self.cache is None:
            following = torch.cat([self.read, self.read[:, :1]], dim=1)  # one more position, whose logits are those wanted
            return self.subject.forward(self.subject.module, Batch(following, 0), keep)
        return self.subject.module(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=keep).logits

    def crop(self, length: int) -> None:
        """Forgets all but the first `length` positions."""
        surplus = self.read.shape[1] - length
        self.read = self.read[:, :length]
        if self.cache is not None and surplus > 0:
            self.cache.crop(-surplus)  # a negative count removes from the end

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keeps these rows of the batch only."""
        self.read = self.read[rows.to(self.read.device)]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    def greedy(self, prompt: Int[Tensor, "batch position"], length: int) -> Int[Tensor, "batch length"]:
        """The `length` most likely tokens, one after the other."""
        tokens = [self.feed(prompt)[:, -1].argmax(-1, keepdim=True)]
        while len(tokens) < length:
            tokens.append(self.feed(tokens[-1])[:, -1].argmax(-1, keepdim=True))
        return torch.cat(tokens, dim=1)


def _new_cache(module: nn.Module) -> Any:
    """An empty cache for Hugging Face models, None for others."""
    if not hasattr(module, "prepare_inputs_for_generation"):
        return None
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=module.config)  # pyright: ignore[reportArgumentType]
    if hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()  # else what slid out of an attention window could not come back on crop
    return cache
