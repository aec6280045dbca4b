"""Reducers: what `record` keeps of the activations at a site.

A reducer sees the activations batch by batch and ends as a few arrays. Sums are kept in float64, so
that long streams do not drift. Memory grows with units and not with tokens, except for `rows` and
`raw`.

What is kept stays on the device of the activations until the end: a copy to the CPU would make an
accelerator wait at every site of every batch. Only `raw` writes at once.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

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
        return dict(vars(self))

    def rewind(self, mark: Mapping[str, Any]) -> None:
        """Forgets what came after a mark: a batch whose forward failed half-way."""
        vars(self).update(mark)

    def end_batch(self) -> None:  # noqa: B027 - most reducers have nothing to do here
        """Called after each batch whose forward succeeded."""


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
        for function in self.functions:
            counted = function(value) * mask[..., None]
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
        seen = self.seen + len(means)
        numbers = torch.arange(self.seen, seen, device=means.device)
        examples = numbers[:, None].expand(means.shape)
        self.seen = seen
        if self.best is not None and self.example is not None:
            means = torch.cat([self.best, means])
            examples = torch.cat([self.example, examples])

        # The sort is stable and earlier examples come first: they win ties, however the stream is
        # cut into batches.
        ordered, order = means.sort(dim=0, descending=True, stable=True)
        self.best = ordered[: self.k]
        self.example = examples.gather(0, order)[: self.k]

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
        if self.sum is None or self.max is None or self.argmax is None:
            self.sum = torch.zeros_like(best)
            self.max = torch.full_like(best, -1)  # below any mean of absolute values
            self.argmax = torch.zeros_like(where)

        # Strictly better, so that the first of equal examples stays. `where` counts within the
        # batch; `self.count` examples came before it.
        better = best > self.max
        self.sum = self.sum + means.sum(0)
        self.argmax = torch.where(better, where + self.count, self.argmax)
        self.max = torch.where(better, best, self.max)
        self.count += len(means)

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
        self.of_batch = (*self.of_batch, _per_example(value, mask, self.views).float())

    def end_batch(self) -> None:
        # Rows grow with the examples, and leave the device before they fill it.
        self.rows += [rows.cpu() for rows in self.of_batch]
        self.of_batch = ()

    def result(self) -> Arrays:
        return {"rows": torch.cat(self.rows).numpy()}


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

    def result(self) -> Arrays:
        return {"raw": np.memmap(self.file, np.float32, "r", shape=self.shape)}


def _to_array(value: Tensor) -> np.ndarray:
    return value.cpu().numpy()


def _per_example(value: Value, mask: Mask, views: int) -> Float[Tensor, "examples width"]:
    """The mean activation of each example, over its counted positions and then over its views."""
    counts = mask.sum(1, keepdim=True)
    counted = value * mask[..., None]
    sums = counted.sum(1, dtype=torch.float64)
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
