"""What `record` keeps of a stream of activations. Each reducer sees the values at one site, batch
by batch, and ends as arrays.

Sums are kept in float64, so that long streams do not drift; memory grows with units, not with
tokens - but for `rows` and `raw`, which say so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

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
    """Sees `update(value, mask)` for every batch; only positions under the mask count.

    `views` consecutive rows are views of one example: what is kept of examples is kept of the mean
    over their views.
    """

    outputs: ClassVar[tuple[str, ...]]
    views: int = 1

    @abstractmethod
    def update(self, value: Value, mask: Mask) -> None: ...

    @abstractmethod
    def result(self) -> Arrays: ...


class _Sums(Reducer):
    """Sums of functions of the value over all counted positions."""

    functions: ClassVar[tuple[Callable[[Tensor], Tensor], ...]]

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def update(self, value: Value, mask: Mask) -> None:
        sums = [
            (f(value) * mask[..., None]).sum((0, 1), dtype=torch.float64).cpu()
            for f in self.functions
        ]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.count += int(mask.sum())

    def means(self) -> list[np.ndarray]:
        return [(s / max(self.count, 1)).numpy() for s in self.sums]


class Mean(_Sums):
    """`mean`: the mean activation, [width]."""

    outputs, functions = ("mean",), (lambda v: v,)

    def result(self) -> Arrays:
        return {"mean": self.means()[0]}


class MeanAbs(_Sums):
    """`mean_abs`: the mean absolute activation, [width]."""

    outputs, functions = ("mean_abs",), (torch.abs,)

    def result(self) -> Arrays:
        return {"mean_abs": self.means()[0]}


class Moments(_Sums):
    """`moments`: mean, variance (population) and count, [width]."""

    outputs, functions = ("mean", "variance", "count"), (lambda v: v, lambda v: v.double().square())

    def result(self) -> Arrays:
        mean, square = self.means()
        return {
            "mean": mean,
            "variance": np.maximum(square - mean**2, 0),
            "count": np.full(mean.shape, self.count),
        }


class TopK(Reducer):
    """`top`: the largest mean activations over examples and which examples they are, [k, width].
    The k largest of the per-example means."""

    outputs = ("top", "example")
    k: ClassVar[int] = 5

    def __init__(self) -> None:
        self.seen = 0
        self.best: Tensor | None = None
        self.example: Tensor | None = None

    def update(self, value: Value, mask: Mask) -> None:
        means = _per_example(value, mask, self.views)
        ids = torch.arange(self.seen, self.seen + len(means))[:, None].expand(means.shape)
        pool = means if self.best is None else torch.cat([self.best, means])
        names = ids if self.example is None else torch.cat([self.example, ids])
        self.best, order = pool.sort(dim=0, descending=True, stable=True)
        self.best, self.example = self.best[: self.k], names.gather(0, order)[: self.k]
        self.seen += len(means)

    def result(self) -> Arrays:
        assert self.best is not None
        assert self.example is not None
        return {"top": self.best.numpy(), "example": self.example.numpy()}


class Max(Reducer):
    """`max`: the largest activation at any position, [width]."""

    outputs = ("max",)

    def __init__(self) -> None:
        self.best: Tensor | None = None

    def update(self, value: Value, mask: Mask) -> None:
        here = value.masked_fill(~mask[..., None], -torch.inf).amax((0, 1)).float().cpu()
        self.best = here if self.best is None else torch.maximum(self.best, here)

    def result(self) -> Arrays:
        assert self.best is not None
        return {"max": self.best.numpy()}


class Selectivity(Reducer):
    """`selectivity`: what UnitMem needs of the per-example means of |activation|: their sum, the
    largest and whose it is, [width].

    Wang et al. 2024 (arXiv 2409.19069), equations 5-8; ties go to the first example.
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
            self.sum, self.max, self.argmax = (
                torch.zeros_like(best),
                torch.full_like(best, -1),
                torch.zeros_like(where),
            )
        better = best > self.max
        self.sum += means.sum(0)
        self.argmax = torch.where(better, where + self.count, self.argmax)
        self.max = torch.where(better, best, self.max)
        self.count += len(means)

    def result(self) -> Arrays:
        assert self.sum is not None
        assert self.max is not None
        assert self.argmax is not None
        return {
            "sum": self.sum.numpy(),
            "max": self.max.numpy(),
            "argmax": self.argmax.numpy(),
            "count": np.full(self.sum.shape, self.count),
        }


class Rows(Reducer):
    """`rows`: each example's mean activation, [examples, width]. Memory grows with examples."""

    outputs = ("rows",)

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def update(self, value: Value, mask: Mask) -> None:
        self.rows.append(_per_example(value, mask, self.views).float())

    def result(self) -> Arrays:
        return {"rows": torch.cat(self.rows).numpy()}


class RowsAbs(Rows):
    """`rows_abs`: each example's mean absolute activation, [examples, width]. Memory grows with
    examples."""

    outputs = ("rows_abs",)

    def update(self, value: Value, mask: Mask) -> None:
        super().update(value.abs(), mask)

    def result(self) -> Arrays:
        return {"rows_abs": super().result()["rows"]}


class Raw(Reducer):
    """`raw`: every activation, padding too, [examples, position, width], float32, in a
    memory-mapped file. All batches of one length."""

    outputs = ("raw",)

    def __init__(self, file: Path) -> None:
        self.file, self.shape = file, (0, 0, 0)
        self.file.unlink(missing_ok=True)

    def update(self, value: Value, mask: Mask) -> None:  # noqa: ARG002 - every activation is every activation
        examples, length, width = self.shape
        if examples and (length, width) != tuple(value.shape[1:]):
            raise ValueError(
                f"raw recording needs batches of one length; got {value.shape[1]} after {length} positions"
            )
        with self.file.open("ab") as out:
            out.write(value.detach().float().cpu().contiguous().numpy().tobytes())
        self.shape = (examples + value.shape[0], value.shape[1], value.shape[2])

    def result(self) -> Arrays:
        return {"raw": np.memmap(self.file, np.float32, "r", shape=self.shape)}


def _per_example(value: Value, mask: Mask, views: int) -> Float[Tensor, "examples width"]:
    counts = mask.sum(1, keepdim=True).clamp(min=1)
    means = ((value * mask[..., None]).sum(1, dtype=torch.float64) / counts).cpu()
    if len(means) % views:
        raise ValueError(
            f"{len(means)} rows are no whole number of examples of {views} views: give batches that hold all views of each"
        )
    return means if views == 1 else means.unflatten(0, (-1, views)).mean(1)


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
    """A fresh reducer. Raises ValueError for an unknown name, and for `raw` without a folder to
    write to."""
    if name == "raw":
        if folder is None:
            raise ValueError(
                'reduce="raw" keeps every activation: give folder= for its memory-mapped files'
            )
        return Raw(writable(folder) / f"{site}.f32".replace(":", "_"))
    if name not in REDUCERS:
        raise ValueError(
            f"reduce={name!r}: expected one of {', '.join([*REDUCERS, 'raw'])}; nearest: {closest(name, [*REDUCERS, 'raw'])}"
        )
    made = REDUCERS[name]()
    made.views = views
    return made
