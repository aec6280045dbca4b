"""Jobs: the independent pieces of an experiment. They run in parallel, and the tables of each are
kept when it is done, so that a run that was killed can continue."""

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
from interp.loading.devices import Device, preferring
from interp.progress import track

Frames = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Folder:
    """An argument of a job that becomes the path of a folder of the run, such as `OUT/models`. A
    job keeps there what it makes in addition to its tables.

    Attributes:
        name: name of the folder.
    """

    name: str


def folder_of(folder: Path, settings: Any, seed: int) -> Path:
    """Returns the folder for what jobs keep of a seed, such as models that several of them use.

    Its name holds a digest of the settings, so that a run with other settings in the same folder
    does not take these models for its own.

    Args:
        folder: what a `Folder` became.
        settings: a frozen dataclass: all that the models depend on, but the seed.
        seed: the seed.

    Example:
        >>> from dataclasses import dataclass
        >>> from interp.experiment.jobs import folder_of
        >>> @dataclass(frozen=True)
        ... class Model:
        ...     width: int
        >>> narrow, wide = (folder_of(Path("models"), Model(width), 0) for width in (8, 16))
        >>> narrow.name, narrow == wide
        ('model-...-seed0', False)
    """
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode()).hexdigest()
    return folder / f"{type(settings).__name__.lower()}-{digest[:8]}-seed{seed}"


@dataclass(frozen=True)
class Job:
    """A call `function(*arguments)` that returns tables by name.

    Attributes:
        function: a function of a module, which other processes can import by name.
        arguments: plain data: numbers, text, lists, mappings, frozen dataclasses, or a `Folder`.
    """

    function: Callable[..., Frames]
    arguments: tuple[Any, ...]

    def fingerprint(self, about: Mapping[str, Any]) -> str:
        """Returns a digest that changes with the function, its arguments, and whatever else
        `about` contains.

        Raises:
            TypeError: arguments that are not plain data.
        """
        called = {
            "function": f"{self.function.__module__}.{self.function.__qualname__}",
            "arguments": self.arguments,
        }
        text = json.dumps({**about, **called}, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


def job(function: Callable[..., Frames], *arguments: Any) -> Job:
    """Returns a job.

    Args:
        function: a function of a module.
        arguments: its arguments, as plain data.

    Raises:
        ValueError: a function that other processes cannot import.
    """
    if "<" in function.__qualname__:
        raise ValueError(
            f"{function.__qualname__}: expected a function of a module, "
            "which other processes can import by name"
        )
    return Job(function, arguments)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: asdict(value)}
    raise TypeError(f"a job's argument has to be plain data, got {type(value).__name__}")


@dataclass(frozen=True)
class Kept:
    """A job and the place where its tables are kept.

    Attributes:
        job: the job.
        place: the folder of its tables.
        fingerprint: digest of the job, stored with the tables to show which job made them.
    """

    job: Job
    place: Path
    fingerprint: str

    @property
    def done(self) -> bool:
        """Whether the job has been finished, by this run or an earlier one."""
        file = self.place / "job.json"
        if not file.exists():
            return False
        about = json.loads(file.read_text())
        return about["fingerprint"] == self.fingerprint

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns the tables of a finished job, in the order in which it returned them."""
        about = json.loads((self.place / "job.json").read_text())
        found: dict[str, pd.DataFrame] = {}
        for name in about["tables"]:
            file = self.place / f"{name}.parquet"
            found[name] = pd.read_parquet(file)
        return found

    def finish(self, device: Device | None = None) -> None:
        """Runs the job and keeps its tables.

        Args:
            device: where its models run; by default on the best device that is there.
        """
        from threadpoolctl import threadpool_limits

        # `place` is OUT/jobs/FUNCTION-DIGEST.
        root = self.place.parent.parent
        arguments = [
            root / value.name if isinstance(value, Folder) else value
            for value in self.job.arguments
        ]
        # Sums round differently with the number of threads. With one thread, a run has the same
        # numbers however many jobs run at the same time.
        with threadpool_limits(1), preferring(device):
            found = self.job.function(*arguments)

        # Written to a folder of another name, which is renamed when it is complete: a run that is
        # killed never leaves half of a job in `place`.
        unique = f".{self.place.name}.{os.getpid()}.part"
        temporary = self.place.with_name(unique)
        shutil.rmtree(temporary, ignore_errors=True)
        writable(temporary)
        for name, table in found.items():
            table.to_parquet(temporary / f"{name}.parquet")
        about = {"fingerprint": self.fingerprint, "tables": list(found)}
        with replaced(temporary / "job.json") as file:
            file.write_text(json.dumps(about))
        # A folder is not renamed to one that holds files, and what is there is no result of this
        # job.
        if self.place.exists() and not self.done:
            shutil.rmtree(self.place)
        try:
            temporary.rename(self.place)
        except OSError:
            # A worker that outlived a killed run has finished the same job in the meantime.
            if not self.done:
                raise
        # What runs that were killed have left behind.
        for left in self.place.parent.glob(f".{self.place.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)


def kept(work: Job, out: Path, about: Mapping[str, Any]) -> Kept:
    """Returns a job with the place where a run in `out` keeps it: `out`/jobs/FUNCTION-DIGEST.

    Args:
        work: the job.
        out: folder of the run.
        about: what else its result depends on, such as the preset.
    """
    fingerprint = work.fingerprint(about)
    folder = f"{work.function.__name__}-{fingerprint[:12]}"
    # Absolute, because the processes of a cluster have other current folders.
    return Kept(work, out.absolute() / "jobs" / folder, fingerprint)


def finish_all(work: Sequence[Kept], jobs: int | None = None, device: Device | None = None) -> None:
    """Runs the jobs that are not finished, in processes with one thread each.

    Inside a `joblib.parallel_config` of another backend, such as Ray's, that backend is used.

    Args:
        work: the jobs.
        jobs: how many run at the same time, by default one per core.
        device: where their models run; by default on the best device that is there.
    """
    from joblib import Parallel, cpu_count, delayed, parallel_config
    from joblib.parallel import get_active_backend

    left = [one for one in work if not one.done]
    if not left:
        return
    backend, outer_jobs = get_active_backend()
    calls = (delayed(one.finish)(device) for one in left)
    if type(backend).__name__ != "LokyBackend":
        # Not every backend hands results over one by one: Ray's and multiprocessing's do not.
        one_by_one = getattr(backend, "supports_return_generator", False)
        return_as = "generator_unordered" if one_by_one else "list"
        _wait(Parallel(n_jobs=jobs, return_as=return_as)(calls), len(left))
        return
    # One thread in each: as many threads as cores in every process would wait for each other.
    processes = jobs or outer_jobs or cpu_count()
    with parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
        _wait(Parallel(return_as="generator_unordered")(calls), len(left))


def _wait(results: Any, count: int) -> None:
    for _ in track(results, "jobs", count):
        pass
