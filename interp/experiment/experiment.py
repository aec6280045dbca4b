"""What experiments are written with: presets, claims with their controls and verdicts, and the files they end in."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pandas as pd
import typer

from interp.errors import closest
from interp.files import replaced, writable
from interp.progress import track
from interp.reporting.plotting import save
from interp.reporting.stats import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source = Literal["found", "inferred", "chosen", "measured"]
T = TypeVar("T")
Verdict = Literal["reproduced", "not reproduced", "opposite", "not testable at this scale"]


@dataclass(frozen=True)
class Claim:
    """One statement, held against a measurement.

    Attributes:
        id: short and unique in its experiment.
        statement: what is claimed, with its threshold.
        source: where the claim is known from: `found` in a paper or its code, `inferred` from it, `chosen` by us, or `measured` in a pilot.
        paper: the figure that the source gives, if any.
        measured, low, high: ours, with its 95% interval.
        control: what the measurement is held against, with its figure.
        seeds: how many.
        verdict: whether the claim held.
        evidence: the table or figure to look at.
    """

    id: str
    statement: str
    source: Source
    paper: float | str | None
    measured: float
    low: float
    high: float
    control: str
    seeds: int
    verdict: Verdict
    evidence: str


def judged(interval: Interval, holds: Callable[[float], bool], opposite: Callable[[float], bool] | None = None) -> Verdict:
    """`reproduced` when all of the interval satisfies the claim, `opposite` when all of it satisfies its opposite, else `not reproduced`.

    To fall short of a threshold is not the opposite of a claim, so the opposite has to be said: for a rise of at least 5%, a fall.
    """
    values = (interval.low, interval.estimate, interval.high)
    if all(map(holds, values)):
        return "reproduced"
    return "opposite" if opposite is not None and all(map(opposite, values)) else "not reproduced"


@dataclass(frozen=True)
class Results:
    """What an experiment leaves: claims, tables by name, figures by name."""

    claims: Sequence[Claim]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]

    def save(self, out: str | Path, config: Mapping[str, Any]) -> None:
        """Writes claims.json, tables/*.parquet, figures/*.png and config.json (with versions)."""
        place = writable(out)
        for name, table in self.tables.items():
            with replaced(place / "tables" / f"{name}.parquet") as temporary:
                table.to_parquet(temporary)
        for name, figure in self.figures.items():
            save(figure, place / "figures" / f"{name}.png")
        _write_json(place / "config.json", {**config, "versions": versions()})
        _write_json(place / "claims.json", [asdict(claim) for claim in self.claims])


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


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    names = ("interp", "torch", "transformers", "numpy", "pandas", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _write_json(path: Path, data: object) -> None:
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


@dataclass(frozen=True)
class Experiment:
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
