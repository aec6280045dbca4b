"""Batch: what a subject reads and predicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Token sequences of one length, and which part of them is predicted.

    Attributes:
        tokens: [batch, position] token ids: text, image or action tokens.
        prompt: how many leading tokens are given; tokens from there on are predicted and measured. At least 1 for models without a start
            token.
        mask: [batch, position], False on padding, which must stand on the right; None when there is none.
        steps: which tokens are predicted together, as (start, stop) pairs; None when one by one.
        conditioning: what the model sees beside tokens (class labels, camera images), each [batch, ...].
    """

    tokens: Int[Tensor, "batch position"]
    prompt: int = 1
    mask: Bool[Tensor, "batch position"] | None = None
    steps: tuple[tuple[int, int], ...] | None = None
    conditioning: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.is_floating_point() or not self.tokens.numel():
            raise ValueError(f"tokens must be integers of shape [batch, position]; got {tuple(self.tokens.shape)} of {self.tokens.dtype}")
        if not 0 <= self.prompt < self.tokens.shape[1]:
            raise ValueError(f"prompt={self.prompt} leaves nothing to predict of {self.tokens.shape[1]} tokens")
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean, False on padding; got {self.mask.dtype}")
        if self.mask is not None and (self.mask.shape != self.tokens.shape or bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any())):
            raise ValueError("mask must have the shape of tokens and be False only on the right: pad sequences at their end")

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    @property
    def targets(self) -> Int[Tensor, "batch predicted"]:
        """The tokens that are predicted and measured."""
        return self.tokens[:, self.prompt :]

    @property
    def counted(self) -> Bool[Tensor, "batch predicted"]:
        """Which targets are real, not padding."""
        return torch.ones_like(self.targets, dtype=torch.bool) if self.mask is None else self.mask[:, self.prompt :]

    def to(self, device: torch.device) -> Batch:
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, tokens=self.tokens.to(device), mask=mask, conditioning={k: v.to(device) for k, v in self.conditioning.items()})

    def split(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` rows."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            mask = None if self.mask is None else self.mask[rows]
            yield replace(self, tokens=self.tokens[rows], mask=mask, conditioning={k: v[rows] for k, v in self.conditioning.items()})

    @classmethod
    def pad(cls, sequences: Sequence[Sequence[int]], prompt: int = 1) -> Batch:
        """One batch of sequences of any length, padded on the right with token 0."""
        if not sequences or not all(len(s) for s in sequences):
            raise ValueError("every sequence needs at least one token")
        width = max(map(len, sequences))
        tokens = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])
        mask = torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in sequences])
        return cls(tokens, prompt, None if bool(mask.all()) else mask)

    @classmethod
    def from_frame(cls, windows: pd.DataFrame) -> Batch:
        """The windows of a scan (columns `tokens` and `prefix`) as one batch."""
        missing = {"tokens", "prefix"} - set(windows.columns)
        if missing or windows.empty:
            got = f"{len(windows)} rows, missing columns {sorted(missing) or 'none'}"
            raise ValueError(f"expected a frame of windows as scan() returns, with rows; got {got}")
        prefixes = windows["prefix"].unique()
        if len(prefixes) != 1:
            raise ValueError(f"windows have several prefix lengths {sorted(prefixes)}: take one at a time")
        return cls.pad([list(map(int, t)) for t in windows["tokens"]], int(prefixes[0]))


Batches = Batch | pd.DataFrame | Iterable[Batch]


def batches(source: Batches, size: int = 8) -> Iterator[Batch]:
    """Any source of examples - a Batch, the windows of a scan, a stream of batches - as batches of at most `size` rows."""
    if isinstance(source, pd.DataFrame):
        source = Batch.from_frame(source)
    if isinstance(source, Batch):
        source = [source]
    for batch in source:
        yield from batch.split(size)
