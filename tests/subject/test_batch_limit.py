"""A batch that does not fit is halved: the numbers are those of the smaller batch, and nothing of the
forward that failed is left."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import tiny
import torch

import interp
from interp.engine.recording import record
from interp.engine.reducers import REDUCERS
from interp.engine.sweeping import sweep_growing
from interp.localization import localize, localize_each
from interp.memorization.evaluation import measure_under
from interp.subject.batch_limit import BatchLimit

FITS = 2  # rows
ROWS = 8


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect() -> None:
    """Each time memory runs out, the garbage collector goes through all objects. Those that earlier
    tests have imported and kept are set aside: they would take most of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def subject() -> interp.Subject:
    """A model whose last MLP runs out of memory for more rows than `fits`, once a test sets it."""
    made = tiny.wrapped(tiny.model("llama"))
    mlp = made.module.model.layers[-1].mlp
    original = mlp.forward

    def limited(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[0] > getattr(made, "fits", 10**9):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(hidden)

    mlp.forward = limited
    return made


def windows(rows: int = ROWS, seed: int = 0) -> interp.Batch:
    return tiny.batch("llama", rows, prompt=4, seed=seed)


def record_all(subject, size, folder) -> Iterator[np.ndarray]:
    for reduce in (*REDUCERS, "raw"):
        kept = record(
            subject,
            windows(),
            ["neurons", "heads"],
            reduce,
            folder=folder,
            batch_size=size,
            views=2,
        )
        for parts in kept.parts.values():
            yield from map(np.array, parts.values())


def scan_all(subject, size, folder) -> Iterator[np.ndarray]:
    frame = interp.scan(subject, windows(), batch_size=size, decode_from=0.0, folder=folder)
    again = interp.scan(subject, windows(), batch_size=size, decode_from=0.0, folder=folder)
    assert frame.equals(again)
    yield from (frame[name].to_numpy() for name in ("text", "matched", "log_p", "similarity"))


def localize_all(subject, size, folder) -> Iterator[np.ndarray]:
    for method in ("gradient_x_activation", "activation", "slimming", "z_score", "unitmem"):
        options = {"steps": 2} if method == "slimming" else {}
        for call in (localize, localize_each):
            found = call(subject, windows(), windows(seed=1), method, batch_size=size, **options)
            for scores in found if isinstance(found, list) else [found]:
                yield from scores.values.values()


def measure_all(subject, size, folder) -> Iterator[np.ndarray]:
    plans = [[], interp.Zero(subject.anatomy.units("blocks.1.neurons"))]
    data = {"ours": windows(), "others": windows(ROWS - 1, seed=1)}
    frame = measure_under(subject, plans, data, size)
    yield from (frame[name].to_numpy() for name in ("plan", "window", "exact", "loss"))
    assert list(frame["data"].drop_duplicates()) == ["ours", "others"]


USERS = (record_all, scan_all, localize_all, measure_all)


@pytest.mark.parametrize("user", USERS)
def test_numbers_are_those_of_the_batch_that_fits(user, subject, tmp_path, capsys):
    (tmp_path / "small").mkdir()
    expected = list(user(subject, FITS, tmp_path / "small"))
    assert not capsys.readouterr().err.count("out of memory")

    subject.fits = FITS
    with tiny.untouched(subject.module):
        found = list(user(subject, ROWS, tmp_path / "large"))
    said = capsys.readouterr().err
    assert "out of memory with 8 rows in a batch: continuing with 4" in said
    assert "out of memory with 4 rows in a batch: continuing with 2" in said
    if user is measure_all:  # rows are in another order: window by window of each batch
        order = [np.lexsort(rows[:2]) for rows in (expected, found)]
        expected = [array[order[0]] for array in expected]
        found = [array[order[1]] for array in found]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_forks_of_a_sweep_are_halved_too(subject, capsys):
    plans = [interp.Zero(tiny.units(subject, "blocks.1.neurons", [unit])) for unit in range(6)]
    expected = sweep_growing(subject, windows(1), plans)
    subject.fits = 4
    assert sweep_growing(subject, windows(1), plans) == pytest.approx(expected, rel=1e-6)
    assert "with 6 rows in a batch: continuing with 3" in capsys.readouterr().err


@pytest.mark.parametrize("user", USERS)
def test_what_never_fits_raises_and_leaves_no_hook(user, subject, tmp_path):
    subject.fits = 0
    with tiny.untouched(subject.module), pytest.raises(torch.OutOfMemoryError):
        list(user(subject, ROWS, tmp_path))


def test_a_size_is_tried_once_and_views_stay_together():
    tried: list[int] = []

    def run(part: list[int]) -> list[int]:
        tried.append(len(part))
        if len(part) > 5:
            raise torch.OutOfMemoryError
        return part

    limit = BatchLimit(multiple=3)
    numbers = list(range(12)), list(range(12, 21))
    found = [rows for batch in numbers for _, rows in limit.run(run, batch)]
    assert list(itertools.chain(*found)) == list(range(21))
    assert tried == [12, 6, *[3] * 7]


def test_other_errors_are_not_swallowed():
    def run(_: list[int]) -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        list(BatchLimit().run(run, [1, 2]))
