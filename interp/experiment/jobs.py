"""Jobs: the independent pieces of an experiment, run in parallel, each kept when it is done so that
a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.files import replaced, writable
from interp.progress import track

Frames = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Folder:
    """As an argument of a job: a folder of the run, such as `OUT/models`, for what a job keeps
    besides its tables."""

    name: str


@dataclass(frozen=True)
class Job:
    """`function(*arguments)`, which returns tables by name.

    The function is one of a module, and arguments are plain data: numbers, text, lists, mappings,
    frozen dataclasses, or a `Folder`.
    """

    function: Callable[..., Frames]
    arguments: tuple[Any, ...]

    def fingerprint(self, about: Mapping[str, Any]) -> str:
        """Differs with the function, its arguments, and whatever else `about` holds. Raises
        TypeError for arguments that are not plain."""
        called = {
            "function": f"{self.function.__module__}.{self.function.__qualname__}",
            "arguments": self.arguments,
        }
        text = json.dumps({**about, **called}, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


def job(function: Callable[..., Frames], *arguments: Any) -> Job:
    """A job. Raises ValueError for a function that other processes cannot import."""
    if "<" in function.__qualname__:
        raise ValueError(
            f"{function.__qualname__}: expected a function of a module, which other processes can import by name"
        )
    return Job(function, arguments)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: asdict(value)}
    raise TypeError(f"a job's argument has to be plain data, got {type(value).__name__}")


@dataclass(frozen=True)
class Kept:
    """Where the tables of a job are kept, and what says that they are of this job."""

    job: Job
    place: Path
    fingerprint: str

    @property
    def done(self) -> bool:
        """Whether the job has been finished, by this run or an earlier one."""
        file = self.place / "job.json"
        return file.exists() and json.loads(file.read_text())["fingerprint"] == self.fingerprint

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of a finished job, in the order in which it returned them."""
        names: list[str] = json.loads((self.place / "job.json").read_text())["tables"]
        return {name: pd.read_parquet(self.place / f"{name}.parquet") for name in names}

    def finish(self) -> None:
        """Runs the job and keeps its tables.

        They are written to a folder of another name, which is renamed when it is whole: a folder
        `place` is never one half written.
        """
        from threadpoolctl import threadpool_limits

        root = self.place.parent.parent
        arguments = [
            root / value.name if isinstance(value, Folder) else value
            for value in self.job.arguments
        ]
        # Sums round differently with the number of threads: one, so that a run has the same numbers
        # however many jobs go at a time.
        with threadpool_limits(1):
            found = self.job.function(*arguments)
        temporary = self.place.with_name(f".{self.place.name}.{os.getpid()}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        writable(temporary)
        for name, table in found.items():
            table.to_parquet(temporary / f"{name}.parquet")
        with replaced(temporary / "job.json") as file:
            file.write_text(json.dumps({"fingerprint": self.fingerprint, "tables": list(found)}))
        if self.place.exists() and not self.done:
            shutil.rmtree(self.place)
        try:
            temporary.rename(self.place)
        except OSError:
            # a worker that outlived a killed run has finished the same job meanwhile
            if not self.done:
                raise
        for left in self.place.parent.glob(f".{self.place.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)


def kept(work: Job, out: Path, about: Mapping[str, Any]) -> Kept:
    """Where a job of a run in `out` is kept: `out`/jobs/FUNCTION-DIGEST."""
    fingerprint = work.fingerprint(about)
    return Kept(work, out / "jobs" / f"{work.function.__name__}-{fingerprint[:12]}", fingerprint)


def finish_all(work: Sequence[Kept], jobs: int | None = None) -> None:
    """Runs the jobs that are not finished, `jobs` at a time (all cores by default), each process
    with one thread.

    Within a `joblib.parallel_config` of another backend, such as Ray's, that one serves instead.
    """
    from joblib import Parallel, cpu_count, delayed, parallel_config
    from joblib.parallel import get_active_backend

    left = [one for one in work if not one.done]
    if not left:
        return
    backend, outer_jobs = get_active_backend()
    calls = (delayed(one.finish)() for one in left)
    if type(backend).__name__ != "LokyBackend":
        _wait(Parallel(n_jobs=jobs, return_as="generator_unordered")(calls), len(left))
        return
    with parallel_config("loky", n_jobs=jobs or outer_jobs or cpu_count(), inner_max_num_threads=1):
        _wait(Parallel(return_as="generator_unordered")(calls), len(left))


def _wait(results: Any, count: int) -> None:
    for _ in track(results, "jobs", count):
        pass
