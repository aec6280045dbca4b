"""Experiments: what is declared of one, and the frame that runs it, judges it and writes its files."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import typer

from interp.errors import closest
from interp.experiment.checks import Check, Tables, verdicts
from interp.experiment.checks import claims as claims_of
from interp.experiment.claims import Claim
from interp.experiment.jobs import Job, Kept, finish_all, kept
from interp.experiment.verdict_figure import verdict_figure
from interp.files import replaced, writable
from interp.reporting.plotting import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SET = "FIELD=VALUE: another value of a field of the preset that is text or a number, such as model=PATH. May be given more than once."


@dataclass(frozen=True)
class Results:
    """What an experiment produces: claims, tables by name, figures by name."""

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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    names = ("interp", "torch", "transformers", "numpy", "pandas", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _write_json(path: Path, data: object) -> None:
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


@dataclass(frozen=True)
class Experiment:
    """A paper as a declaration: what runs, what is measured and what is claimed. The frame does the
    rest.

    Attributes:
        name: of its folder in `experiments/`.
        question: what is asked, as its help says it.
        presets: frozen dataclasses by name, each with a field `seeds`: how many seeds a run has.
        jobs: maps a preset and a seed to independent jobs, each of which returns tables by name.
        tables: names of all tables that jobs return. The frame joins them over jobs and adds the
        column `seed`.
        checks: maps a preset to its checks.
        figures: functions of the tables by name; one that returns None draws nothing.
        prepare: maps a preset to jobs that are run before all others and share their work by files;
        their tables are not used.
        summaries: maps the joined tables to further ones, which are saved and drawn but not
        checked.
    """

    name: str
    question: str
    presets: Mapping[str, Any]
    jobs: Callable[[Any, int], Iterable[Job]]
    tables: Sequence[str]
    checks: Callable[[Any], Sequence[Check]]
    figures: Mapping[str, Callable[[Tables], Figure | None]] = field(default_factory=dict)
    prepare: Callable[[Any], Iterable[Job]] | None = None
    summaries: Callable[[Tables], Tables] | None = None

    def __post_init__(self) -> None:
        for name, preset in self.presets.items():
            if not is_dataclass(preset) or not type(preset).__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
                raise TypeError(
                    f"preset {name!r} of {self.name}: expected a frozen dataclass, got {type(preset).__name__}"
                )
            if getattr(preset, "seeds", 0) < 1:
                raise ValueError(
                    f"preset {name!r} of {self.name}: expected a field `seeds` of at least 1"
                )

    def preset(self, name: str) -> Any:
        """A preset by name. Raises ValueError for an unknown one."""
        if name not in self.presets:
            nearest = closest(name, self.presets)
            raise ValueError(
                f"preset {name!r}: expected one of {', '.join(self.presets)}; nearest: {nearest}"
            )
        return self.presets[name]

    def reproduce(
        self,
        preset: str,
        seed: int = 0,
        out: str | Path | None = None,
        jobs: int | None = None,
        changes: Sequence[str] = (),
    ) -> Results:
        """Runs a preset and writes its results.

        A run that was killed resumes: finished jobs are kept in `out`/jobs and are not run again.

        Args:
            preset: one of `presets`.
            seed: the first seed; the preset says how many follow.
            out: folder of the results, by default out/NAME.
            jobs: how many jobs run at a time, by default one per core.
            changes: fields of the preset that have another value, such as `model=PATH`.

        Raises:
            ValueError: unknown preset or field, or jobs that return tables other than `tables`.
        """
        settings = changed(self.preset(preset), changes)
        results = self.run(settings, seed, writable(out or Path("out") / self.name), jobs)
        results.save(
            out or Path("out") / self.name,
            {"experiment": self.name, "preset": preset, "seed": seed, **_plain_settings(settings)},
        )
        return results

    def run(self, settings: Any, seed: int, out: Path, jobs: int | None = None) -> Results:
        """The results of a preset's settings, on seeds from `seed` on; finished jobs are kept in
        `out`."""
        seeds = range(seed, seed + settings.seeds)
        if self.prepare is not None:
            finish_all(
                [kept(one, out, self._about(settings)) for one in self.prepare(settings)], jobs
            )
        work = self._work(settings, seeds, out)
        finish_all([one for _, one in work], jobs)
        return self.judge(settings, seeds, self._joined(work))

    def judge(self, settings: Any, seeds: Sequence[int], tables: Tables) -> Results:
        """Claims and figures from the joined tables of all seeds: what a run ends in, without
        running anything."""
        checks = self.checks(settings)
        found = claims_of(checks, tables, seeds)
        whole = {**tables, **(self.summaries(tables) if self.summaries is not None else {})}
        figures = {name: draw(whole) for name, draw in self.figures.items()}
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        if not checks:
            return Results(found, whole, drawn)
        table = verdicts(checks, found)
        return Results(
            found, {**whole, "verdicts": table}, {**drawn, "verdicts": verdict_figure(table)}
        )

    def _work(self, settings: Any, seeds: Sequence[int], out: Path) -> list[tuple[int, Kept]]:
        """The jobs of all seeds: the first job of each seed, then the second of each, because the
        longest are declared first."""
        of_seed = {
            seed: [
                kept(one, out, self._about(settings) | {"seed": seed})
                for one in self.jobs(settings, seed)
            ]
            for seed in seeds
        }
        most = max(map(len, of_seed.values()))
        return [
            (seed, work[number])
            for number in range(most)
            for seed, work in of_seed.items()
            if number < len(work)
        ]

    def _about(self, settings: Any) -> dict[str, Any]:
        return {"experiment": self.name, "preset": _plain_settings(settings)}

    def _joined(self, work: Sequence[tuple[int, Kept]]) -> dict[str, pd.DataFrame]:
        parts: dict[str, list[pd.DataFrame]] = {}
        for seed, one in work:
            for name, table in one.tables().items():
                if name not in self.tables:
                    nearest = closest(name, self.tables)
                    raise ValueError(
                        f"table {name!r} of {one.job.function.__name__}: not declared; nearest: {nearest}"
                    )
                parts.setdefault(name, []).append(table.assign(seed=seed))
        return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}

    def command(self) -> None:
        """Runs the experiment as a program: `python -m experiments.NAME --preset small --seed 0
        --out DIR --jobs 2`."""

        def main(
            preset: str = "smoke",
            seed: int = 0,
            out: Path = Path("out") / self.name,
            jobs: int | None = None,
            changes: Annotated[list[str] | None, typer.Option("--set", help=SET)] = None,
        ) -> None:
            for line in lines(self.reproduce(preset, seed, out, jobs, changes or ()).claims):
                typer.echo(line)

        example = f"python -m experiments.{self.name} --preset smoke --seed 0"
        main.__doc__ = (
            f"{self.question}\n\nPresets: {', '.join(self.presets)}.\n\nExample: `{example}`"
        )
        typer.run(main)


def changed(settings: Any, changes: Sequence[str]) -> Any:
    """A preset's settings with other values of some fields, each given as `FIELD=VALUE`; only
    fields that are text or numbers.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Preset:
    ...     seeds: int = 1
    ...     model: str = "gpt2"
    >>> changed(Preset(), ["model=models/mine", "seeds=3"])
    Preset(seeds=3, model='models/mine')

    Raises:
        ValueError: not of this form, no such field, or a value that is not of the field's type.
    """
    values = {one.name: getattr(settings, one.name) for one in fields(settings)}
    plain = {name: value for name, value in values.items() if type(value) in (str, int, float)}
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in plain:
            known = ", ".join(plain)
            raise ValueError(
                f"{change!r}: expected FIELD=VALUE with one of {known}; nearest: {closest(name, plain)}"
            )
        kind = type(plain[name])
        try:
            found[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"{change!r}: expected a value like {plain[name]!r}, got {text!r}"
            ) from error
    if found.get("seeds", 1) < 1:
        raise ValueError(f"seeds: expected at least 1, got {found['seeds']}")
    return replace(settings, **found)


def lines(claims: Iterable[Claim]) -> list[str]:
    """The claims as text, one line each."""
    return [
        f"{claim.id}  {claim.verdict:15}  {claim.measured:.3f} [{claim.low:.3f}, {claim.high:.3f}]  {claim.statement}"
        for claim in claims
    ]


def _plain_settings(settings: Any) -> dict[str, Any]:
    return asdict(settings)


def experiments_folder() -> Path:
    """The folder `experiments` of the current directory, else of the checkout that this package is
    in. Raises LookupError without one."""
    for root in (Path.cwd(), Path(__file__).parents[2]):
        if (root / "experiments").is_dir():
            return root / "experiments"
    raise LookupError(
        f"no folder `experiments` in {Path.cwd()}: experiments come with a checkout of interp, run this inside one"
    )


def find_experiment(name: str) -> Any:
    """The EXPERIMENT of `experiments.NAME`, imported at run time. Raises LookupError for an unknown
    one, with the nearest name."""
    folder = experiments_folder()
    known = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    if name.partition(".")[0] not in known:
        raise LookupError(
            f"experiment {name!r}: expected one of {', '.join(known)}; nearest: {closest(name, known)}"
        )
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    module = f"experiments.{name}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise LookupError(f"experiment {name!r}: there is no {module}") from error
    if not hasattr(found, "EXPERIMENT"):
        raise LookupError(f"{module} is a program of its own: run `python -m {module} --help`")
    return found.EXPERIMENT
