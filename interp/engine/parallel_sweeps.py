"""A sweep in several processes: `sweep_in_processes`.

The plans of a sweep do not depend on each other, so that each process can run some of them on a
copy of the model. What has to stay as it is in one process is which plans share a forward, because
matrix products of another shape round differently: plans are divided between whole forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.parallel import get_active_backend
from torch import nn

from interp.engine.sweeping import (
    Measure,
    grows,
    mean_loss,
    order_of_growth,
    plans_per_forward,
    sweep_growing,
    sweep_resuming,
)
from interp.interventions.plan import Plan
from interp.subject.batch import Batch
from interp.subject.subject import Subject


def sweep_in_processes(
    subject: Subject,
    batch: Batch,
    plans: Sequence[Plan],
    measure: Measure = mean_loss,
    *,
    jobs: int | None = None,
) -> list[Any]:
    """Returns what `sweep` returns, value for value where that runs with one thread, as each of the
    processes does.

    Each process gets a copy of the model, and each runs a forward of its own that the plans start
    from: this pays where there are many more plans than processes. Inside a
    `joblib.parallel_config` of another backend, such as Ray's, that backend is used.

    Args:
        subject, batch, plans, measure: see `sweep`. They are pickled for the processes.
        jobs: how many processes, by default one per core.

    Raises:
        ValueError: no plan was given, less than one process, threads, which would share the model
            that each plan changes; or a model with hooks, such as those of an intervention that is
            active.
        HookError: see `sweep`.

    Example:
        >>> from interp.engine.parallel_sweeps import sweep_in_processes
        >>> plans = [interp.Zero(subject.units("heads", [head])) for head in range(4)]
        >>> sweep_in_processes(subject, batch, plans, jobs=1) == interp.sweep(subject, batch, plans)
        True
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: expected a number of processes, at least 1")
    active: Any = get_active_backend()
    backend, outer_jobs = active
    name = type(backend).__name__
    # As many as were asked for here, or in a context around it, or as there are.
    wanted: int = jobs or outer_jobs or -1
    processes: Any = effective_n_jobs(wanted)
    if name == "ThreadingBackend":
        raise ValueError(
            "a sweep cannot run in threads, which would share the model that each plan changes: "
            'expected processes, as by joblib.parallel_config("loky")'
        )
    _check_no_hooks(subject.module)

    growing = grows(subject, batch, plans)
    parts = _parts(subject, batch, plans, processes, growing=growing)
    run = sweep_growing if growing else sweep_resuming
    calls = [delayed(run)(subject, batch, [plans[k] for k in part], measure) for part in parts]
    if name == "LokyBackend":
        # One thread in each: as many threads as cores in every process would wait for each other.
        with parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
            found: Any = Parallel()(calls)
    else:
        found = Parallel(n_jobs=processes)(calls)

    results: dict[int, Any] = {}
    for part, of_part in zip(parts, found, strict=True):
        results.update(zip(part, of_part, strict=True))
    return [results[number] for number in range(len(plans))]


def _parts(
    subject: Subject, batch: Batch, plans: Sequence[Plan], processes: int, *, growing: bool
) -> list[list[int]]:
    """The numbers of the plans that each process runs; no process without any."""
    if not growing:
        # Plans at low blocks take longest, and neighbours often begin at the same one.
        dealt = [list(range(first, len(plans), processes)) for first in range(processes)]
        return [part for part in dealt if part]
    order = order_of_growth(subject, plans)
    together = plans_per_forward(batch)
    # Both divisions round up: the last forward may be smaller, and the last part shorter.
    forwards = -(-len(order) // together)
    in_a_part = -(-forwards // processes) * together
    return [order[start : start + in_a_part] for start in range(0, len(order), in_a_part)]


def _check_no_hooks(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if vars(child)["_forward_hooks"] or vars(child)["_forward_pre_hooks"]:
            raise ValueError(
                f"{name or 'the model'} has hooks, which stay in this process: leave the block of "
                "an active intervention and put it into each plan, or sweep in one process"
            )
