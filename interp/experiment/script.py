"""Experiments that are programs of their own: `run(settings, seed, out)` for each preset."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer

from interp.errors import closest
from interp.experiment.experiment import Results
from interp.files import writable
from interp.progress import track

T = TypeVar("T")


def in_parallel(function: Callable[..., T], work: Sequence[tuple[Any, ...]], label: str) -> list[T]:
    """`function(*arguments)` for each of `work`, on two processes of one thread each, in its order, with a bar.

    The function is one of a module and goes by its name, so that nothing of its module has to be pickled.
    """
    from joblib import Parallel, delayed, parallel_config

    module = function.__module__ if function.__module__ != "__main__" else sys.modules["__main__"].__spec__.name  # pyright: ignore[reportOptionalMemberAccess]
    jobs = (delayed(_called)(module, function.__name__, arguments) for arguments in work)
    with parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
        found: Any = Parallel(return_as="generator")(jobs)
        return list(track(found, label, len(work)))


def _called(module: str, name: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(importlib.import_module(module), name)(*arguments)


@dataclass(frozen=True)
class Script:
    """A named experiment: `run(settings, seed, out)` for each preset's settings; `command()` makes it a program."""

    name: str
    about: str
    presets: Mapping[str, Mapping[str, Any]]
    run: Callable[[Mapping[str, Any], int, Path], Results]

    def reproduce(self, preset: str, seed: int, out: Path) -> Results:
        """Runs a preset and writes its results. Raises ValueError for an unknown preset."""
        if preset not in self.presets:
            raise ValueError(f"preset {preset!r}: expected one of {', '.join(self.presets)}; nearest: {closest(preset, self.presets)}")
        results = self.run(self.presets[preset], seed, writable(out))
        results.save(out, {"experiment": self.name, "preset": preset, "seed": seed, **self.presets[preset]})
        return results

    def command(self) -> None:
        """`python -m experiments.NAME --preset small --seed 0 --out DIR`."""

        def main(preset: str = "smoke", seed: int = 0, out: Path = Path("out") / self.name) -> None:
            for claim in self.reproduce(preset, seed, out).claims:
                typer.echo(f"{claim.id}  {claim.verdict:15}  {claim.measured:.3f} [{claim.low:.3f}, {claim.high:.3f}]  {claim.statement}")

        example = f"python -m experiments.{self.name} --preset smoke --seed 0"
        main.__doc__ = f"{self.about}\n\nPresets: {', '.join(self.presets)}.\n\nExample: `{example}`"
        typer.run(main)
