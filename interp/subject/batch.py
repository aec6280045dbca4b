"""Batch: what a subject reads and predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

GIVEN = "given_"  # begins the columns of a frame that hold what its windows are conditioned on


@dataclass(frozen=True, eq=False)
class Batch:
    """Token sequences of one length, and which part of them is predicted.

    Attributes:
        tokens: [batch, position] token ids: text, image or action tokens.
        prompt: how many leading tokens are given; tokens from there on are predicted and measured.
            At least 1 for models without a start token.
        mask: [batch, position], False on padding, which must stand on the right; None when there is
        none.
        scored: [batch, position], True on the tokens that are measured, where those are not all
        from `prompt` on; None when they are.
        steps: which tokens are predicted together, as (start, stop) pairs; None when one by one.
        conditioning: what the model sees beside tokens (class labels, camera images), each [batch,
        ...].
    """

    tokens: Int[Tensor, "batch position"]
    prompt: int = 1
    mask: Bool[Tensor, "batch position"] | None = None
    steps: tuple[tuple[int, int], ...] | None = None
    conditioning: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    scored: Bool[Tensor, "batch position"] | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.is_floating_point() or not self.tokens.numel():
            raise ValueError(
                f"tokens must be integers of shape [batch, position]; got {tuple(self.tokens.shape)} of {self.tokens.dtype}"
            )
        if not 0 <= self.prompt < self.tokens.shape[1]:
            raise ValueError(
                f"prompt={self.prompt} leaves nothing to predict of {self.tokens.shape[1]} tokens"
            )
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean, False on padding; got {self.mask.dtype}")
        if self.mask is not None and (
            self.mask.shape != self.tokens.shape
            or bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any())
        ):
            raise ValueError(
                "mask must have the shape of tokens and be False only on the right: pad sequences at their end"
            )
        if self.scored is not None and (
            self.scored.dtype != torch.bool or self.scored.shape != self.tokens.shape
        ):
            raise ValueError(
                f"scored must be boolean of the shape of tokens; got {tuple(self.scored.shape)} of {self.scored.dtype}"
            )

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
        """Which targets are measured: real, not padding, and scored."""
        counted = torch.ones_like(self.targets, dtype=torch.bool)
        for given in (self.mask, self.scored):
            counted = counted if given is None else counted & given[:, self.prompt :]
        return counted

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, chosen: Int[Tensor, " rows"] | Int[np.ndarray, " rows"] | slice) -> Batch:
        """Some rows, in the order given; a row may be chosen several times."""
        index = chosen if isinstance(chosen, slice) else torch.as_tensor(chosen)
        return self._each(lambda tensor: tensor[index])

    def split(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` rows."""
        return (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def until(self, stop: int) -> Batch:
        """The first `stop` tokens of every row."""
        mask, scored = (
            None if given is None else given[:, :stop] for given in (self.mask, self.scored)
        )
        return replace(self, tokens=self.tokens[:, :stop], mask=mask, scored=scored)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same change to everything that has a row for each sequence."""
        mask, scored = (
            None if given is None else change(given) for given in (self.mask, self.scored)
        )
        beside = {name: change(value) for name, value in self.conditioning.items()}
        return replace(
            self, tokens=change(self.tokens), mask=mask, scored=scored, conditioning=beside
        )

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
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """One batch of several without padding or conditioning, of any lengths and prompts: what
        counts in each counts in it."""
        if not parts or any(
            part.mask is not None or part.conditioning or part.steps is not None for part in parts
        ):
            raise ValueError("expected batches without mask, steps and conditioning, at least one")
        joined = cls.pad(
            [row for part in parts for row in part.tokens.tolist()],
            min(part.prompt for part in parts),
        )
        scored = torch.zeros_like(joined.tokens, dtype=torch.bool)
        for part, rows in zip(parts, scored.split([len(part) for part in parts]), strict=True):
            rows[:, part.prompt : part.length] = part.counted
        return replace(joined, scored=scored)

    @classmethod
    def from_frame(cls, windows: pd.DataFrame) -> Batch:
        """The windows of a scan as one batch: `tokens` and `prefix`, and where there are such
        columns `steps` and `given_<name>`."""
        missing = {"tokens", "prefix"} - set(windows.columns)
        if missing or windows.empty:
            got = f"{len(windows)} rows, missing columns {sorted(missing) or 'none'}"
            raise ValueError(f"expected a frame of windows as scan() returns, with rows; got {got}")
        prefixes = windows["prefix"].unique()
        if len(prefixes) != 1:
            raise ValueError(
                f"windows have several prefix lengths {sorted(prefixes)}: take one at a time"
            )
        batch = cls.pad([list(map(int, t)) for t in windows["tokens"]], int(prefixes[0]))
        beside = {
            name.removeprefix(GIVEN): torch.tensor(windows[name].tolist())
            for name in windows
            if str(name).startswith(GIVEN)
        }
        steps = (
            tuple((int(start), int(stop)) for start, stop in windows["steps"].iloc[0])
            if "steps" in windows
            else None
        )
        return replace(batch, steps=steps, conditioning=beside)


Batches = Batch | pd.DataFrame | Iterable[Batch]


def batches(source: Batches, size: int = 8) -> Iterator[Batch]:
    """Any source of examples - a Batch, the windows of a scan, a stream of batches - as batches of
    at most `size` rows."""
    if isinstance(source, pd.DataFrame):
        source = Batch.from_frame(source)
    if isinstance(source, Batch):
        source = [source]
    for batch in source:
        yield from batch.split(size)
