"""Reducers: what `record` keeps of the activations at a site.

A reducer sees the activations batch by batch and ends as a few arrays. Sums are kept in float64, so
that long streams do not drift. Memory grows with units and not with tokens, except for `rows` and
`raw`.

What is kept stays on the device of the activations until the end: a copy to the CPU would make an
accelerator wait at every site of every batch. Only `raw` writes at once.

Two reducers that saw the two halves of a stream, in processes of their own, become by `merge` the
one that saw all of it. They hold sums and not means, so that nothing is lost: sums are added.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import closest
from interp.files import writable
from interp.sites.site import Site

Value = Float[Tensor, "batch position width"]
Mask = Bool[Tensor, "batch position"]
Arrays = dict[str, np.ndarray]


class Reducer(ABC):
    """Reduces the activations at one site; only positions under the mask count.

    Attributes:
        outputs: names of the arrays that `result` returns, the main one first.
        views: how many consecutive rows are views (augmentations) of one example. Whatever is kept
            per example is kept of the mean over its views.
    """

    outputs: ClassVar[tuple[str, ...]]
    views: int = 1

    @abstractmethod
    def update(self, value: Value, mask: Mask) -> None:
        """Takes in one batch.

        Args:
            value: activations, [batch, position, width].
            mask: [batch, position], True on the positions that count.
        """

    @abstractmethod
    def result(self) -> Arrays:
        """Returns the arrays, by name; the last axis is [width]."""

    def mark(self) -> Mapping[str, Any]:
        """Returns what has been taken in so far, for `rewind`."""
        # Not a deep copy: `update` gives attributes new values, and keeps the old ones.
        return dict(vars(self))

    def rewind(self, mark: Mapping[str, Any]) -> None:
        """Forgets what came after a mark: a batch whose forward failed half-way."""
        vars(self).update(mark)

    def end_batch(self) -> None:  # noqa: B027 - most reducers have nothing to do here
        """Called after each batch whose forward succeeded."""

    def merge(self, other: Reducer) -> Self:
        """Returns the reducer that has seen what both have seen; neither of the two is changed.

        Examples of `other` are numbered on from the last of this one. A reducer that has seen
        nothing changes nothing.

        Args:
            other: of the same kind and settings, at the same site.

        Raises:
            ValueError: reducers of other kinds, settings or widths, or of a kind that cannot be
                merged.

        Example:
            >>> from interp.engine.reducers import Mean
            >>> first, second = Mean(), Mean()
            >>> first.update(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[True, True]]))
            >>> second.update(torch.tensor([[[6.0]]]), torch.tensor([[True]]))
            >>> first.merge(second).result()
            {'mean': array([3.])}
        """
        if type(other) is not type(self):
            raise ValueError(
                f"a {type(self).__name__} cannot take in a {type(other).__name__}: expected "
                "recordings with the same `reduce`"
            )
        if other.views != self.views:
            raise ValueError(
                f"one recording has {self.views} views of each example and the other "
                f"{other.views}: expected the same number"
            )
        widths = self.width, other.width
        if None not in widths and widths[0] != widths[1]:
            raise ValueError(
                f"one recording is {widths[0]} wide and the other {widths[1]}: expected two of the "
                "same site of one model"
            )
        merged = copy.copy(self)
        if self.width is None:
            vars(merged).update(vars(other))
        elif other.width is not None:
            merged._add(other)
        for name, value in vars(merged).items():
            if isinstance(value, list):
                setattr(merged, name, [*value])  # further batches go into a list of its own
        return merged

    @property
    @abstractmethod
    def width(self) -> int | None:
        """How many numbers an activation has; None while nothing has been seen."""

    @abstractmethod
    def _add(self, other: Any) -> None:
        """Takes in another reducer of the same kind; both have seen something.

        Attributes are given new values and never changed in place: a copy shares them.
        """

    def to_cpu(self) -> None:
        """Moves what is kept to the CPU, so that another process can read it."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.cpu())


def _identity(value: Tensor) -> Tensor:
    return value


def _square(value: Tensor) -> Tensor:
    return value.double().square()


class _Sums(Reducer):
    """Sums of functions of the value over all counted positions."""

    functions: ClassVar[tuple[Callable[[Tensor], Tensor], ...]]

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.sums: list[Tensor] = []

    def update(self, value: Value, mask: Mask) -> None:
        sums: list[Tensor] = []
        ignored = ~mask[..., None]
        for function in self.functions:
            # Not a product: padding may hold infinities, and infinity times 0 is NaN.
            counted = function(value).masked_fill(ignored, 0)
            sums.append(counted.sum((0, 1), dtype=torch.float64))

        counts = mask.sum()
        if self.counts is not None:
            counts = self.counts + counts
            pairs = zip(self.sums, sums, strict=True)
            sums = [total + new for total, new in pairs]
        # New tensors, not sums in place: a mark holds the old ones, to which `rewind` goes back.
        self.sums = sums
        self.counts = counts

    @property
    def width(self) -> int | None:
        return len(self.sums[0]) if self.sums else None

    def _add(self, other: _Sums) -> None:
        assert self.counts is not None
        assert other.counts is not None
        pairs = zip(self.sums, other.sums, strict=True)
        self.sums = [mine + theirs for mine, theirs in pairs]
        self.counts = self.counts + other.counts

    def to_cpu(self) -> None:
        super().to_cpu()
        self.sums = [total.cpu() for total in self.sums]

    @property
    def count(self) -> int:
        """The number of positions that were counted."""
        return 0 if self.counts is None else int(self.counts)

    def means(self) -> list[np.ndarray]:
        """The mean of each function over all counted positions."""
        return [_to_array(total / self.count) for total in self.sums]


class Mean(_Sums):
    """`mean`: the mean activation, [width]."""

    outputs = ("mean",)
    functions = (_identity,)

    def result(self) -> Arrays:
        return {"mean": self.means()[0]}


class MeanAbs(_Sums):
    """`mean_abs`: the mean absolute activation, [width]."""

    outputs = ("mean_abs",)
    functions = (torch.abs,)

    def result(self) -> Arrays:
        return {"mean_abs": self.means()[0]}


class Moments(_Sums):
    """`moments`: mean, population variance and number of positions, each [width]."""

    outputs = ("mean", "variance", "count")
    functions = (_identity, _square)

    def result(self) -> Arrays:
        mean, mean_square = self.means()
        return {
            "mean": mean,
            "variance": np.maximum(mean_square - mean**2, 0),
            "count": np.full(mean.shape, self.count),
        }


class TopK(Reducer):
    """`top`: the `k` largest per-example means, and which examples have them, each [k, width]."""

    outputs = ("top", "example")
    k: ClassVar[int] = 5

    def __init__(self) -> None:
        self.seen = 0
        self.best: Tensor | None = None
        self.example: Tensor | None = None

    def update(self, value: Value, mask: Mask) -> None:
        means = _per_example(value, mask, self.views)
        # Each unit has its own ranking, so that the numbers of the examples are kept for each of
        # them: [examples, width].
        numbers = torch.arange(len(means), device=means.device)
        examples = numbers[:, None].expand(means.shape)
        self._take(means, examples, len(means))

    def _take(self, means: Tensor, examples: Tensor, seen: int) -> None:
        """Ranks the means of further examples, which are numbered from 0, among those before."""
        examples = examples + self.seen
        self.seen = self.seen + seen
        if self.best is not None and self.example is not None:
            means = torch.cat([self.best, means])
            examples = torch.cat([self.example, examples])

        # The sort is stable and earlier examples come first: they win ties, however the stream is
        # cut into batches.
        ordered, order = means.sort(dim=0, descending=True, stable=True)
        self.best = ordered[: self.k]
        self.example = examples.gather(0, order)[: self.k]

    @property
    def width(self) -> int | None:
        return None if self.best is None else self.best.shape[1]

    def _add(self, other: TopK) -> None:
        assert other.best is not None
        assert other.example is not None
        self._take(other.best, other.example, other.seen)

    def result(self) -> Arrays:
        assert self.best is not None
        assert self.example is not None
        return {"top": _to_array(self.best), "example": _to_array(self.example)}


class Max(Reducer):
    """`max`: the largest activation at any position, [width]."""

    outputs = ("max",)

    def __init__(self) -> None:
        self.best: Tensor | None = None

    def update(self, value: Value, mask: Mask) -> None:
        ignored = ~mask[..., None]
        counted = value.masked_fill(ignored, -torch.inf)  # below any activation
        best = counted.amax((0, 1)).float()
        if self.best is not None:
            best = torch.maximum(self.best, best)
        self.best = best

    @property
    def width(self) -> int | None:
        return None if self.best is None else len(self.best)

    def _add(self, other: Max) -> None:
        assert self.best is not None
        assert other.best is not None
        self.best = torch.maximum(self.best, other.best)

    def result(self) -> Arrays:
        assert self.best is not None
        return {"max": _to_array(self.best)}


class Selectivity(Reducer):
    """`selectivity`: what UnitMem needs of the per-example means of |activation|, each [width].

    Their sum, the largest, the example that has it, and the number of examples: Wang et al. 2024
    (arXiv 2409.19069), equations 5-8. Ties go to the first example.
    """

    outputs = ("sum", "max", "argmax", "count")

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | None = None
        self.max: Tensor | None = None
        self.argmax: Tensor | None = None

    def update(self, value: Value, mask: Mask) -> None:
        means = _per_example(value.abs(), mask, self.views)
        best, where = means.max(0)
        self._take(means.sum(0), best, where, len(means))

    def _take(self, total: Tensor, best: Tensor, where: Tensor, count: int) -> None:
        """Adds further examples: the sum of their means, the largest, and which of them has it."""
        if self.sum is None or self.max is None or self.argmax is None:
            self.sum = torch.zeros_like(best)
            self.max = torch.full_like(best, -1)  # below any mean of absolute values
            self.argmax = torch.zeros_like(where)

        # Strictly better, so that the first of equal examples stays. `where` counts from 0;
        # `self.count` examples came before.
        better = best > self.max
        self.sum = self.sum + total
        self.argmax = torch.where(better, where + self.count, self.argmax)
        self.max = torch.where(better, best, self.max)
        self.count = self.count + count

    @property
    def width(self) -> int | None:
        return None if self.sum is None else len(self.sum)

    def _add(self, other: Selectivity) -> None:
        assert other.sum is not None
        assert other.max is not None
        assert other.argmax is not None
        self._take(other.sum, other.max, other.argmax, other.count)

    def result(self) -> Arrays:
        assert self.sum is not None
        assert self.max is not None
        assert self.argmax is not None
        return {
            "sum": _to_array(self.sum),
            "max": _to_array(self.max),
            "argmax": _to_array(self.argmax),
            "count": np.full(self.sum.shape, self.count),
        }


class Rows(Reducer):
    """`rows`: each example's mean activation, [examples, width]. Memory grows with examples."""

    outputs = ("rows",)

    def __init__(self) -> None:
        self.of_batch: tuple[Tensor, ...] = ()
        self.rows: list[Tensor] = []

    def update(self, value: Value, mask: Mask) -> None:
        # A new tuple: a mark holds the one before.
        self.of_batch = (*self.of_batch, _per_example(value, mask, self.views).float())

    def end_batch(self) -> None:
        # Rows grow with the examples, and leave the device before they fill it.
        self.rows += [rows.cpu() for rows in self.of_batch]
        self.of_batch = ()

    @property
    def width(self) -> int | None:
        return self.rows[0].shape[1] if self.rows else None

    def _add(self, other: Rows) -> None:
        self.rows = [*self.rows, *other.rows]

    def result(self) -> Arrays:
        joined = torch.cat(self.rows)
        self.rows = [joined]  # whose memory the array shares: there may be room for it only once
        return {"rows": joined.numpy()}


class RowsAbs(Rows):
    """`rows_abs`: each example's mean absolute activation, [examples, width].

    Memory grows with examples.
    """

    outputs = ("rows_abs",)

    def update(self, value: Value, mask: Mask) -> None:
        super().update(value.abs(), mask)

    def result(self) -> Arrays:
        return {"rows_abs": super().result()["rows"]}


class Raw(Reducer):
    """`raw`: every activation, also on padding, [examples, position, width], as float32.

    The array is a memory-mapped file. All batches must have one length.
    """

    outputs = ("raw",)

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shape = (0, 0, 0)
        # Batches are appended, so a file from an earlier recording must not be there.
        self.file.unlink(missing_ok=True)

    def update(self, value: Value, mask: Mask) -> None:  # noqa: ARG002 - padding is kept too
        examples, *shape = self.shape
        new_examples, length, width = value.shape
        if examples and shape != [length, width]:
            raise ValueError(
                "raw recording needs batches of one length; "
                f"got {length} after {shape[0]} positions"
            )
        array = value.detach().float().cpu().contiguous().numpy()
        with self.file.open("ab") as out:
            out.write(array.tobytes())
        self.shape = (examples + new_examples, length, width)

    def rewind(self, mark: Mapping[str, Any]) -> None:
        super().rewind(mark)
        if self.file.exists():
            values = int(np.prod(self.shape))
            bytes_per_value = np.dtype(np.float32).itemsize
            os.truncate(self.file, values * bytes_per_value)

    @property
    def width(self) -> int | None:
        return self.shape[-1] or None

    def merge(self, other: Reducer) -> Self:  # noqa: ARG002 - refused whatever it is
        raise ValueError(
            f"raw recordings are not merged: {self.file.name} would be written a second time; read "
            "the arrays one after the other, or record with another `reduce`"
        )

    def _add(self, other: Raw) -> None:
        self.merge(other)  # which refuses

    def result(self) -> Arrays:
        return {"raw": np.memmap(self.file, np.float32, "r", shape=self.shape)}


def _to_array(value: Tensor) -> np.ndarray:
    """An array of its own: who changes it does not change what a later `merge` adds up."""
    return value.cpu().numpy().copy()


def _per_example(value: Value, mask: Mask, views: int) -> Float[Tensor, "examples width"]:
    """The mean activation of each example, over its counted positions and then over its views."""
    counts = mask.sum(1, keepdim=True)
    # Not a product, as in `_Sums`.
    counted = value.masked_fill(~mask[..., None], 0)
    sums = counted.sum(1, dtype=torch.float64)
    # No count is 0: `record` refuses a row that is padding alone.
    means = sums / counts
    if len(means) % views:
        raise ValueError(
            f"{len(means)} rows are not a whole number of examples of {views} views: "
            "give batches that hold all views of each"
        )
    if views == 1:
        return means
    by_example = means.unflatten(0, (-1, views))  # [examples, views, width]
    return by_example.mean(1)


REDUCERS: Mapping[str, Callable[[], Reducer]] = {
    "mean": Mean,
    "mean_abs": MeanAbs,
    "moments": Moments,
    "max": Max,
    "top": TopK,
    "selectivity": Selectivity,
    "rows": Rows,
    "rows_abs": RowsAbs,
}


def reducer(name: str, site: Site, folder: str | Path | None, views: int = 1) -> Reducer:
    """Returns a new reducer for one site.

    Args:
        name: one of `REDUCERS`, or `raw`.
        site: where the activations come from; it names the file of a raw recording.
        folder: where `raw` writes its files; not used by the others.
        views: how many consecutive rows are views of one example.

    Raises:
        ValueError: an unknown name, or `raw` without a folder.
        OSError: the folder cannot be written.

    Example:
        >>> from interp.engine.reducers import reducer
        >>> largest = reducer("max", interp.Site.parse("blocks.0.neurons"), folder=None)
        >>> values = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]])
        >>> largest.update(values, torch.tensor([[True, False]]))
        >>> largest.result()
        {'max': array([ 1., -2.], dtype=float32)}
    """
    if name == "raw":
        if folder is None:
            raise ValueError(
                'reduce="raw" keeps every activation: give folder= for its memory-mapped files'
            )
        file = f"{site}.f32".replace(":", "_")  # a colon is not allowed everywhere in file names
        return Raw(writable(folder) / file)
    if name not in REDUCERS:
        names = [*REDUCERS, "raw"]
        raise ValueError(
            f"reduce={name!r}: expected one of {', '.join(names)}; nearest: {closest(name, names)}"
        )
    made = REDUCERS[name]()
    made.views = views
    return made
