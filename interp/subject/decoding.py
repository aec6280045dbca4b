"""Greedy decoding on the model's own KV cache, where it has one, and by whole forwards where it has
not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.subject.batch import Batch
from interp.subject.stepwise import Stepwise


class Decodable(Protocol):
    """What can be decoded: the forward of a Subject."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def forward(self) -> Any: ...

    @property
    def stepwise(self) -> Stepwise: ...


class Decoder:
    """Feeds tokens to a model and gives the logits of what comes next; remembers, crops and selects
    what it has read.

    `conditioning` is what the model sees beside tokens, a row for each sequence.
    """

    def __init__(
        self, subject: Decodable, rows: int, conditioning: Mapping[str, Tensor] | None = None
    ) -> None:
        self.subject, self.conditioning = subject, dict(conditioning or {})
        self.read: Tensor = torch.empty(rows, 0, dtype=torch.long)
        self.stepwise = subject.stepwise
        self.cache: Any = self.stepwise.new_cache()

    def feed(
        self, tokens: Int[Tensor, "batch new"], keep: int | None = None
    ) -> Float[Tensor, "batch keep vocabulary"]:
        """Reads more tokens; returns the logits of the last `keep` tokens up to the end of the next
        step, by default of that step alone:
        one token, or all that the model predicts together."""
        self.read = torch.cat([self.read.to(tokens.device), tokens], dim=1)
        ahead = self.stepwise.ahead(self.read.shape[1])
        keep = ahead if keep is None else keep
        if self.cache is None:
            # A forward gives the logits of tokens that it is given, so those wanted need
            # placeholders; no model sees them before it predicts them.
            placeholders = self.read.new_zeros(len(self.read), ahead)
            following = Batch(
                torch.cat([self.read, placeholders], dim=1), 0, conditioning=self.conditioning
            )
            return self.subject.forward(self.subject.module, following, keep)
        return self.stepwise.feed(self.read, tokens.shape[1], self.cache, self.conditioning, keep)

    def crop(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        self.read = self.read[:, :length]
        if self.cache is None:
            return
        surplus = self.cache.get_seq_length() - self.stepwise.positions(length)
        if surplus > 0:
            self.cache.crop(-surplus)  # a negative count removes from the end

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keeps these rows of the batch only."""
        self.read = self.read[rows.to(self.read.device)]
        self.conditioning = {
            name: value[rows.to(value.device)] for name, value in self.conditioning.items()
        }
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    def greedy(
        self, prompt: Int[Tensor, "batch position"], length: int
    ) -> Int[Tensor, "batch length"]:
        """The `length` most likely tokens, step after step."""
        tokens = [self.feed(prompt).argmax(-1)]
        while sum(step.shape[1] for step in tokens) < length:
            tokens.append(self.feed(tokens[-1]).argmax(-1))
        return torch.cat(tokens, dim=1)
