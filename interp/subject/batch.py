"""Batch: the token sequences that a subject reads, and which part of them it predicts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

# Columns of a frame of windows that begin with this hold what the windows are conditioned on.
GIVEN = "given_"


@dataclass(frozen=True, eq=False)
class Batch:
    """Token sequences of one length, and which part of them is predicted.

    Attributes:
        tokens: [batch, position] token ids: text, image or action tokens.
        prompt: how many leading tokens are given; tokens from there on are predicted and measured.
            At least 1 for models without a start token.
        mask: [batch, position], False on padding, which must be on the right; None without padding.
        scored: [batch, position], True on the tokens that are measured; None when all tokens from
            `prompt` on are.
        groups: tokens that are predicted together, as (start, stop) pairs; None when each
            token is predicted by itself.
        conditioning: what the model sees in addition to tokens (class labels, camera images), each
            [batch, ...].

    Raises:
        ValueError: a shape or type is wrong, nothing is left to predict, or padding is not on the
            right.

    Example:
        >>> batch = interp.Batch(torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]), prompt=2)
        >>> batch.targets
        tensor([[7, 8],
                [3, 4]])
        >>> len(batch), batch.length
        (2, 4)
    """

    tokens: Int[Tensor, "batch position"]
    prompt: int = 1
    mask: Bool[Tensor, "batch position"] | None = None
    groups: tuple[tuple[int, int], ...] | None = None
    conditioning: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    scored: Bool[Tensor, "batch position"] | None = None

    def __post_init__(self) -> None:
        # Models of transformers take a count that is an integer of numpy for positions.
        object.__setattr__(self, "prompt", operator.index(self.prompt))
        self._check_tokens()
        if self.mask is not None:
            self._check_mask(self.mask)
        if self.scored is not None:
            self._check_scored(self.scored)

    def _check_tokens(self) -> None:
        tokens = self.tokens
        check_integer(tokens)
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(
                "tokens must be integers of shape [batch, position]; "
                f"got {tuple(tokens.shape)} of {tokens.dtype}"
            )
        if not 0 <= self.prompt < self.length:
            raise ValueError(
                f"prompt={self.prompt} leaves nothing to predict of {self.length} tokens"
            )

    def _check_mask(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean, False on padding; got {mask.dtype}")
        # Models run without the mask: they would read padding on the left, and count it as
        # positions.
        fits = mask.shape == self.tokens.shape
        is_padding = ~mask
        # A mask is False only at the end of a row exactly if no token follows right after padding.
        token_after_padding = mask[:, 1:] & is_padding[:, :-1]
        if not fits or bool(token_after_padding.any()):
            raise ValueError(
                "mask must have the shape of tokens and be False only on the right: "
                "pad sequences at their end"
            )

    def _check_scored(self, scored: Tensor) -> None:
        if scored.dtype != torch.bool or scored.shape != self.tokens.shape:
            raise ValueError(
                "scored must be boolean of the shape of tokens; "
                f"got {tuple(scored.shape)} of {scored.dtype}"
            )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """How many tokens each row has, prompt and padding included."""
        return self.tokens.shape[1]

    @property
    def targets(self) -> Int[Tensor, "batch predicted"]:
        """The tokens that are predicted: all from `prompt` on."""
        return self.tokens[:, self.prompt :]

    @property
    def counted(self) -> Bool[Tensor, "batch predicted"]:
        """Which targets are measured: those that are scored and not padding."""
        counted = torch.ones_like(self.targets, dtype=torch.bool)
        if self.mask is not None:
            counted = counted & self.mask[:, self.prompt :]
        if self.scored is not None:
            counted = counted & self.scored[:, self.prompt :]
        return counted

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""
        return self._map_rows(lambda tensor: tensor.to(device))

    def rows(self, chosen: Int[Tensor, " rows"] | Int[np.ndarray, " rows"] | slice) -> Batch:
        """Returns some rows, in the order given.

        Args:
            chosen: indices or a slice of rows; a row may be chosen several times.

        Example:
            >>> batch = interp.Batch(torch.tensor([[5, 6], [7, 8], [9, 10]]))
            >>> batch.rows(np.array([2, 0])).tokens
            tensor([[ 9, 10],
                    [ 5,  6]])
        """
        index = chosen if isinstance(chosen, slice) else owned(chosen)
        return self._map_rows(lambda tensor: tensor[index])

    def sequences(self) -> list[list[int]]:
        """Returns the tokens of each row, without padding.

        Example:
            >>> interp.Batch.pad([[5, 6, 7], [8, 9]]).sequences()
            [[5, 6, 7], [8, 9]]
        """
        found = self.tokens.tolist()
        if self.mask is None:
            return found
        lengths = self.mask.sum(1).tolist()
        return [tokens[:length] for tokens, length in zip(found, lengths, strict=True)]

    def split(self, batch_size: int) -> Iterator[Batch]:
        """Yields consecutive batches of at most `batch_size` rows.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected a number of rows, at least 1")
        for start in range(0, len(self), batch_size):
            yield self.rows(slice(start, start + batch_size))

    def until(self, stop: int) -> Batch:
        """Returns the first `stop` tokens of every row."""
        return replace(
            self,
            tokens=self.tokens[:, :stop],
            mask=None if self.mask is None else self.mask[:, :stop],
            scored=None if self.scored is None else self.scored[:, :stop],
        )

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Makes the same change to every tensor that has one row per sequence."""
        return replace(
            self,
            tokens=change(self.tokens),
            mask=None if self.mask is None else change(self.mask),
            scored=None if self.scored is None else change(self.scored),
            conditioning={name: change(value) for name, value in self.conditioning.items()},
        )

    @classmethod
    def pad(cls, sequences: Sequence[Sequence[int]], prompt: int = 1) -> Batch:
        """Returns sequences of any length as one batch, padded on the right with token 0.

        Args:
            sequences: token ids, at least one in each sequence.
            prompt: how many leading tokens are given.

        Raises:
            ValueError: no sequence, an empty one, or one that `token_ids` refuses.

        Example:
            >>> batch = interp.Batch.pad([[5, 6, 7], [8, 9]])
            >>> batch.tokens
            tensor([[5, 6, 7],
                    [8, 9, 0]])
            >>> batch.mask
            tensor([[ True,  True,  True],
                    [ True,  True, False]])
        """
        rows = [token_ids(sequence) for sequence in sequences]
        if not rows or not all(rows):
            raise ValueError("every sequence needs at least one token")
        width = max(map(len, rows))
        tokens: list[list[int]] = []
        mask: list[list[bool]] = []
        for sequence in rows:
            length = len(sequence)
            padding = width - length
            tokens.append([*sequence, *[0] * padding])
            mask.append([True] * length + [False] * padding)
        padded = torch.tensor(mask)
        # No mask where there is no padding: a model then runs without one, which is faster and
        # rounds as it does on a plain batch.
        needed = None if bool(padded.all()) else padded
        return cls(torch.tensor(tokens), prompt, needed)

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Returns several batches as one; the tokens that count are the same.

        Args:
            parts: batches of any lengths and prompts, padded or not; with groups or conditioning,
                all with the same groups, and with the same names of conditioning.

        Raises:
            ValueError: no batch, or batches with other groups or conditioning.

        Example:
            >>> one = interp.Batch(torch.tensor([[5, 6, 7]]), prompt=1)
            >>> two = interp.Batch(torch.tensor([[8, 9, 10, 11]]), prompt=3)
            >>> interp.Batch.join([one, two]).counted
            tensor([[ True,  True, False],
                    [False, False,  True]])
        """
        _check_joinable(parts)
        width = max(part.length for part in parts)
        prompt = min(part.prompt for part in parts)
        rows = sum(map(len, parts))
        tokens = parts[0].tokens.new_zeros(rows, width)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        # One batch has one prompt, the shortest. The further tokens that a part with a longer
        # prompt was given are then among the targets, and `scored` leaves them out.
        scored = torch.zeros_like(mask)

        start = 0
        for part in parts:
            own = slice(start, start + len(part))
            tokens[own, : part.length] = part.tokens
            mask[own, : part.length] = True if part.mask is None else part.mask
            scored[own, part.prompt : part.length] = part.counted
            start += len(part)
        conditioning: dict[str, Tensor] = {}
        for name in parts[0].conditioning:
            conditioning[name] = torch.cat([part.conditioning[name] for part in parts])
        # No mask where there is no padding, as in `pad`.
        needed = None if bool(mask.all()) else mask
        return cls(tokens, prompt, needed, parts[0].groups, conditioning, scored)

    @classmethod
    def from_frame(cls, windows: pd.DataFrame) -> Batch:
        """Returns the windows of a scan as one batch.

        Args:
            windows: one row per window, with columns `tokens` and `prefix`, and optionally `bos`
                (the start tokens that the window is measured behind), `groups` (of tokens that are
                predicted together) and `given_<name>` (conditioning).

        Returns:
            The tokens of each window behind its start tokens, which are part of the prompt.

        Raises:
            ValueError: no rows, a missing column, or windows with several prefix lengths or
                several start tokens.

        Example:
            >>> batch = interp.Batch.from_frame(memorized)
            >>> tuple(batch.tokens.shape), batch.prompt
            ((12, 16), 8)
        """
        missing = {"tokens", "prefix"} - set(windows.columns)
        if missing or windows.empty:
            got = f"{len(windows)} rows, missing columns {sorted(missing) or 'none'}"
            raise ValueError(f"expected a frame of windows as scan() returns, with rows; got {got}")
        prefixes = windows["prefix"].unique()
        if len(prefixes) != 1:
            raise ValueError(
                f"windows have several prefix lengths {sorted(prefixes)}: take one at a time"
            )

        bos: tuple[int, ...] = ()
        if "bos" in windows:
            starts = {tuple(map(int, start)) for start in windows["bos"]}
            if len(starts) != 1:
                raise ValueError(
                    f"windows are behind several start tokens {sorted(starts)}: "
                    "take those of one at a time"
                )
            (bos,) = starts

        sequences = [[*bos, *token_ids(tokens)] for tokens in windows["tokens"]]
        conditioning: dict[str, Tensor] = {}
        for name in map(str, windows):
            if name.startswith(GIVEN):
                values = torch.tensor(windows[name].tolist())
                conditioning[name.removeprefix(GIVEN)] = values
        groups: Any = None
        if "groups" in windows:
            first = windows["groups"].iloc[0]  # parquet gives them back as arrays
            groups = tuple((int(start), int(stop)) for start, stop in first)

        prompt = len(bos) + int(prefixes[0])
        batch = cls.pad(sequences, prompt)
        return replace(batch, groups=groups, conditioning=conditioning)


def _check_joinable(parts: Sequence[Batch]) -> None:
    if not parts:
        raise ValueError("there are no batches to join: expected at least one")
    first = parts[0]
    for part in parts:
        if part.groups != first.groups:
            raise ValueError(
                f"batches with the groups {first.groups} and {part.groups} cannot be joined: "
                "expected the same in all"
            )
        shapes, others = (
            {name: tuple(value.shape[1:]) for name, value in each.conditioning.items()}
            for each in (first, part)
        )
        if shapes != others:
            raise ValueError(
                f"batches with the conditioning {shapes} and {others} cannot be joined: "
                "expected the same names and shapes in all"
            )


def owned(values: Any) -> Tensor:
    """Returns numbers as a tensor; those of other libraries are copied.

    The arrays of pandas' columns cannot be written, which torch warns of when it takes them as they
    are.

    Args:
        values: a tensor, an array, a column, or a list of numbers.

    Example:
        >>> from interp.subject.batch import owned
        >>> owned(pd.Series([2, 0]))
        tensor([2, 0])
    """
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def token_ids(sequence: Iterable[int]) -> list[int]:
    """Returns token ids as a list of plain integers.

    Args:
        sequence: whole numbers of any kind: a list, an array, a tensor, a column.

    Raises:
        ValueError: it is something else that could be taken for numbers: a text, bytes, the row of
            a data set, fractions, truth values.

    Example:
        >>> from interp.subject.batch import token_ids
        >>> token_ids(np.array([5, 6]))
        [5, 6]
        >>> token_ids([5, 1.9])
        Traceback (most recent call last):
        ValueError: token 1 is 1.9, a float: expected token ids, which are whole numbers; ...
    """
    kind = type(sequence).__name__
    if isinstance(sequence, bytes | bytearray | memoryview):
        raise ValueError(f"got {kind}: expected a text (decode them) or a sequence of token ids")
    if isinstance(sequence, Mapping | Set):
        fields = ", ".join(repr(name) for name in islice(sequence, 4))
        raise ValueError(
            f"got a {kind} of {fields or 'nothing'}: expected a text or a sequence of token ids; "
            'take one field of each row, such as [row["text"] for row in rows]'
        )
    tolist = getattr(sequence, "tolist", None)
    ids: Any = sequence if tolist is None else tolist()
    if not isinstance(ids, Iterable):
        raise ValueError(
            f"a text is a string or a sequence of token ids; got {sequence!r}: "
            "to scan one sequence, pass [tokens]"
        )
    ids = list(ids)  # pyright: ignore[reportUnknownArgumentType]
    # Not isinstance: truth values are integers too, and are refused below.
    if all(type(token) is int for token in ids):
        return ids
    return [_token_id(position, token) for position, token in enumerate(ids)]


def _token_id(position: int, token: Any) -> int:
    try:
        # Not int(), which would cut off what is behind the point and read digits in a string.
        if not _is_truth_value(token):
            return operator.index(token)
    except TypeError:
        pass
    raise ValueError(
        f"token {position} is {token!r}, a {type(token).__name__}: expected token ids, which "
        "are whole numbers; convert them, or give the text itself"
    )


def _is_truth_value(token: Any) -> bool:
    if isinstance(token, bool | np.bool_):
        return True
    return getattr(token, "dtype", None) == torch.bool


def check_integer(tokens: Tensor) -> None:
    """Checks that a tensor can hold token ids.

    Raises:
        ValueError: it holds fractions or truth values.
    """
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(
            "tokens must be integers of shape [batch, position]; "
            f"got {tuple(tokens.shape)} of {tokens.dtype}"
        )


def check_text(text: object) -> None:
    """Checks that an object is a string that can be encoded.

    Raises:
        ValueError: it is not a string, or it holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        beginning = str(text)[:40]
        raise ValueError(f"expected a text, got {type(text).__name__}: {beginning!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is {text[error.start]!r}, half of a surrogate "
            "pair, which is not text: write both halves, or U+FFFD"
        ) from error


Batches = Batch | pd.DataFrame | Iterable[Batch]


def batches(source: Batches, batch_size: int = 8) -> Iterator[Batch]:
    """Yields any source of examples as batches of at most `batch_size` rows.

    Args:
        source: a Batch, the windows of a scan, or an iterable of batches.
        batch_size: largest number of rows.

    Raises:
        ValueError: one of several batches is something else.

    Example:
        >>> from interp.subject.batch import batches
        >>> [len(part) for part in batches(memorized, batch_size=5)]
        [5, 5, 2]
    """
    if isinstance(source, pd.DataFrame):
        source = Batch.from_frame(source)
    if isinstance(source, Batch):
        source = [source]
    for batch in source:
        if not isinstance(batch, Batch):
            raise ValueError(f"expected batches of examples; got a {type(batch).__name__} in them")
        yield from batch.split(batch_size)


def reusable(source: Batches) -> Batches:
    """Returns a source of examples that can be read several times: a stream is read into a list.

    Args:
        source: a Batch, the windows of a scan, or an iterable of batches.

    Example:
        >>> from interp.subject.batch import reusable
        >>> source = reusable(iter([batch]))
        >>> len(list(source)), len(list(source))
        (1, 1)
    """
    if isinstance(source, Batch | pd.DataFrame) or hasattr(source, "__len__"):
        return source
    return list(source)
