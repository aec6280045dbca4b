"""Greedy decoding: on the model's own KV cache where it has one, else by whole forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.subject.batch import Batch
from interp.subject.stepwise import Stepwise


class Decodable(Protocol):
    """What can be decoded: the part of a Subject that runs its model."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def forward(self) -> Any: ...

    @property
    def stepwise(self) -> Stepwise: ...


class Decoder:
    """Feeds tokens to a model and returns the logits of what comes next.

    It remembers what it has read, which may be cropped to fewer tokens or to some of the rows.

    Args:
        subject: the model under study.
        batch_size: how many sequences are decoded at once.
        conditioning: what the model sees in addition to tokens, one row per sequence.

    Example:
        >>> from interp.subject.decoding import Decoder
        >>> prompt = batch.tokens[:, : batch.prompt]
        >>> with torch.no_grad():
        ...     continuation = Decoder(subject, batch_size=len(batch)).greedy(prompt, length=8)
        >>> torch.equal(continuation, batch.targets)
        True
    """

    def __init__(
        self, subject: Decodable, batch_size: int, conditioning: Mapping[str, Tensor] | None = None
    ) -> None:
        self.subject = subject
        self.conditioning = dict(conditioning or {})
        self.read: Tensor = torch.empty(batch_size, 0, dtype=torch.long)
        self.stepwise = subject.stepwise
        self.cache: Any = self.stepwise.new_cache()

    def feed(
        self, tokens: Int[Tensor, "batch new"], keep: int | None = None
    ) -> Float[Tensor, "batch keep vocabulary"]:
        """Reads more tokens and returns the logits of what follows.

        Args:
            tokens: [batch, new] token ids, after all that was read before.
            keep: how many logits to return: those of the last `keep` tokens up to the end of the
                next group (the tokens that the model predicts together; one in text). By default
                those of the next group alone.
        """
        self.read = torch.cat([self.read.to(tokens.device), tokens], dim=1)
        ahead = self.stepwise.ahead(self.read.shape[1])
        keep = ahead if keep is None else keep
        if self.cache is not None:
            new = tokens.shape[1]
            return self.stepwise.feed(self.read, new, self.cache, self.conditioning, keep)

        # A forward returns the logits of the tokens that it is given, so the next group must be
        # there, as placeholders. No model sees a token before it predicts it, so their value does
        # not matter.
        placeholders = self.read.new_zeros(len(self.read), ahead)
        sequence = torch.cat([self.read, placeholders], dim=1)
        following = Batch(sequence, prompt=0, conditioning=self.conditioning)
        return self.subject.forward(self.subject.module, following, keep)

    def crop(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        self.read = self.read[:, :length]
        if self.cache is None:
            return
        # The cache counts positions of the blocks, of which a model may have more than tokens.
        surplus = self.cache.get_seq_length() - self.stepwise.positions(length)
        if surplus > 0:
            self.cache.crop(-surplus)  # a negative count removes from the end

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keeps only some rows, of what was read and of the cache.

        Args:
            rows: [kept] indices of the rows to keep.
        """
        self.read = self.read[rows.to(self.read.device)]
        self.conditioning = {
            name: value[rows.to(value.device)] for name, value in self.conditioning.items()
        }
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    def greedy(
        self, prompt: Int[Tensor, "batch position"], length: int
    ) -> Int[Tensor, "batch length"]:
        """Returns the most likely continuation, group after group.

        Args:
            prompt: [batch, position] token ids to start from.
            length: how many tokens to generate, up to the end of the last group.
        """
        groups = [self.feed(prompt).argmax(-1)]
        generated = groups[0].shape[1]
        while generated < length:
            group = self.feed(groups[-1]).argmax(-1)
            groups.append(group)
            generated += group.shape[1]
        return torch.cat(groups, dim=1)
