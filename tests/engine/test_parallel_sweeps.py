"""Laws of sweeps in several processes: value for value those of one process."""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import interp
from interp import HookError
from interp.engine.parallel_sweeps import _parts, sweep_in_processes
from interp.engine.sweeping import plans_per_forward, sweep

BATCHES = {"grows": {"rows": 1}, "resumes": {"rows": 3, "length": 30}}


def losses(logits: Tensor, batch: interp.Batch) -> np.ndarray:
    return logits.log_softmax(-1).gather(-1, batch.targets[..., None]).numpy()


def plans(subject: interp.Subject) -> list[Any]:
    """Each unit of two kinds, mixed up, and one plan that shares no forward."""
    stack = f"{list(subject.anatomy.stacks)[-1]}." if len(subject.anatomy.stacks) > 1 else ""
    every: list[Any] = []
    for block in (2, 0, 1):
        for unit in range(4):
            every.append(interp.Zero(subject.units(f"{stack}blocks.{block}.neurons", [unit])))
            every.append(
                interp.Scale(subject.units(f"{stack}blocks.{block}.heads", [unit]), factor=0.5)
            )
    every.insert(5, interp.Scale(subject.units(f"{stack}final"), factor=0.5))
    return every


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes: sums round differently with the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "policy"])
def test_values_are_those_of_one_process(name: str, kind: str):
    subject = tiny.subject(name)
    shape = {"rows": BATCHES[kind]["rows"]} if name == "policy" else BATCHES[kind]
    batch = tiny.batch(name, **shape)
    wanted = sweep(subject, batch, plans(subject), losses)
    with tiny.untouched(subject.module):
        found = sweep_in_processes(subject, batch, plans(subject), losses, jobs=2)
    assert len(found) == len(wanted) == 25
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(not np.array_equal(wanted[0], other) for other in wanted)


@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("tokens", [60, 300, 600, 1030])
def test_every_plan_is_run_once_and_forwards_stay_whole(
    tokens: int,
    processes: int,
    growing: bool,  # noqa: FBT001
):
    subject = tiny.subject("llama")
    batch = tiny.batch("llama", rows=tokens // 10, length=10)
    parts = _parts(subject, batch, plans(subject), processes, growing=growing)
    assert sorted(number for part in parts for number in part) == list(range(25))
    assert len(parts) <= processes
    assert all(parts)
    if growing:
        assert all(len(part) % plans_per_forward(batch) == 0 for part in parts[:-1])


def test_another_backend_serves():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=1)
    with joblib.parallel_config("multiprocessing", n_jobs=2):
        found = sweep_in_processes(subject, batch, plans(subject))
    assert found == sweep(subject, batch, plans(subject))


def test_what_cannot_be_divided_is_refused():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=1)
    some = plans(subject)
    with pytest.raises(ValueError, match="nothing to sweep over"):
        sweep_in_processes(subject, batch, [], jobs=2)
    with pytest.raises(ValueError, match="jobs=0: expected a number of processes"):
        sweep_in_processes(subject, batch, some, jobs=0)
    with (
        joblib.parallel_config("threading", n_jobs=2),
        pytest.raises(ValueError, match="cannot run in threads"),
    ):
        sweep_in_processes(subject, batch, some)
    with subject.intervened(interp.Zero(subject.units("blocks.0.neurons", [1]))):
        subject.logits(batch)
        with pytest.raises(ValueError, match="has hooks, which stay in this process"):
            sweep_in_processes(subject, batch, some, jobs=2)


def test_a_plan_that_never_applies_is_an_error_in_any_process():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=1)
    never = interp.Zero(subject.units("blocks.1.neurons", [0]), positions=(90,))
    with pytest.raises(HookError):
        sweep_in_processes(subject, batch, [*plans(subject), never], jobs=2)
