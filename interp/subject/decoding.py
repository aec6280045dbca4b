"""Greedy decoding: on the model's own cache where that is verified, else by whole forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.subject.batch import Batch
from interp.subject.stepwise import Stepwise


@dataclass(frozen=True)
class Decoding:
    """How a model is decoded, as decided when it was loaded.

    Attributes:
        cached: whether new tokens are fed to the model's own cache. Otherwise every new token, or
            group of tokens, takes a whole forward over all tokens so far.
        reason: what was verified of the cache, or why it is not used.
        conditioned: whether the cache is used for batches with conditioning too.

    Example:
        >>> subject.decoding.cached
        True
    """

    cached: bool
    reason: str
    conditioned: bool = False

    def uses_cache(self, conditioning: Mapping[str, Tensor]) -> bool:
        """Returns whether the cache is used for sequences with this conditioning."""
        return self.cached and (self.conditioned or not conditioning)


class Decodable(Protocol):
    """What can be decoded: the part of a Subject that runs its model."""

    @property
    def decoding(self) -> Decoding: ...

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
        uses_cache = subject.decoding.uses_cache(self.conditioning)
        self.cache: Any = self.stepwise.new_cache() if uses_cache else None

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
        # What was read is empty at first, and on the CPU.
        self.read = torch.cat([self.read.to(tokens.device), tokens], dim=1)
        ahead = self.stepwise.ahead(self.read.shape[1])
        keep = ahead if keep is None else keep
        if self.cache is not None:
            new = tokens.shape[1]
            return self.stepwise.feed(self.read, new, self.cache, self.conditioning, keep)

        # A forward returns the logits of the tokens that it is given, so the next group must be
        # there, as placeholders. Causality was verified when the model was loaded, so their value
        # does not matter.
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

        Raises:
            ValueError: a logit is NaN or infinite.
        """
        groups: list[Tensor] = []
        largest: list[Tensor] = []
        generated = 0
        new_tokens = prompt
        while generated < length:
            logits = self.feed(new_tokens)  # [batch, next group, vocabulary]
            new_tokens = logits.argmax(-1)
            groups.append(new_tokens)
            largest.append(at_tokens(logits, new_tokens))
            generated += new_tokens.shape[1]
        # Once, at the end: looking at a number of a GPU waits for it.
        check_finite(torch.cat(largest, dim=1), first=prompt.shape[1])
        return torch.cat(groups, dim=1)


def at_tokens(
    logits: Float[Tensor, "batch position vocabulary"], tokens: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position"]:
    """Returns the logit of one token at each position."""
    chosen = logits.gather(-1, tokens[..., None])
    return chosen[..., 0]


def check_finite(largest: Float[Tensor, "batch position"], first: int) -> None:
    """Checks that logits are finite, by the largest logit of each position.

    The largest is NaN if any logit there is NaN, and infinite if any is +infinity or all are
    -infinity. Single logits of -infinity are accepted: some models forbid tokens that way.

    Args:
        largest: [batch, position] the largest logit over the vocabulary.
        first: the token that the logits at position 0 of `largest` predict.

    Raises:
        ValueError: with the first row and position where it is not.

    Example:
        >>> from interp.subject.decoding import check_finite
        >>> check_finite(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]), first=4)
        Traceback (most recent call last):
        ValueError: the logits that predict token 5 of row 1 are nan ...
    """
    finite = largest.isfinite()
    if bool(finite.all()):
        return
    row, position = (~finite).nonzero()[0].tolist()
    value = largest[row, position].item()
    raise ValueError(
        f"the logits that predict token {first + position} of row {row} are {value} "
        f"(the first of {int((~finite).sum())} such places), so that nothing can be measured "
        f"there: half precision overflows (the model computes in {largest.dtype}; load it with "
        "dtype='float32'), or an intervention is too large"
    )
