"""Experiments: how one is declared, and what runs it, judges it and writes its files."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import typer

from interp.errors import closest
from interp.experiment.checks import Check, Tables, verdicts
from interp.experiment.checks import claims as claims_of
from interp.experiment.claims import Claim, both_verdicts, measured_in_words
from interp.experiment.jobs import Job, Kept, finish_all, kept
from interp.experiment.options import Changes, Jobs, Out, Preset, Seed
from interp.experiment.options import Device as DeviceOption
from interp.experiment.verdict_figure import verdict_figure
from interp.files import replaced, writable
from interp.loading.devices import Device, choose_device
from interp.reporting.plotting import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Results:
    """What an experiment produces.

    Attributes:
        claims: the claims, over all seeds and for each seed.
        tables: the tables, by name.
        figures: the figures, by name.
    """

    claims: Sequence[Claim]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]

    def save(self, out: str | Path, config: Mapping[str, Any]) -> None:
        """Writes config.json and what `write` writes.

        Args:
            out: folder of the files.
            config: what config.json says, besides the versions of packages.
        """
        place = writable(out)
        _write_json(place / "config.json", {**config, "versions": versions()})
        self.write(place)

    def write(self, place: Path) -> None:
        """Writes claims.json, tables/*.parquet and figures/*.png to a folder."""
        for name, table in self.tables.items():
            with replaced(place / "tables" / f"{name}.parquet") as temporary:
                table.to_parquet(temporary)
        for name, figure in self.figures.items():
            save(figure, place / "figures" / f"{name}.png")
        _write_json(place / "claims.json", [asdict(claim) for claim in self.claims])


def _check_device(out: Path, device: str) -> None:
    """Refuses a folder with what was kept on another device, and writes the device to
    `out`/device.txt before anything is kept: a job that is killed may leave a model behind."""
    file = out / "device.txt"
    config = out / "config.json"
    before = None
    if file.exists():
        before = file.read_text().strip()
    elif config.exists() and (out / "jobs").exists():
        # Kept by a version that did not write device.txt.
        before = json.loads(config.read_text()).get("device")
    if before not in (None, device):
        raise ValueError(
            f"{out} keeps what was computed on {before}, and this run is on {device}: continue it "
            f"with --device {before}, or give another folder with --out"
        )
    with replaced(file) as temporary:
        temporary.write_text(f"{device}\n")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("interp", "torch", "transformers", "numpy", "pandas", "scipy"):
        found[name] = version(name)
    return found


def _write_json(path: Path, data: object) -> None:
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


@dataclass(frozen=True)
class Experiment:
    """A paper as a declaration: what is run, what is measured and what is claimed. `reproduce` does
    the rest.

    Attributes:
        name: name of its folder in `experiments/`.
        question: the question that the paper answers, shown as the help of the command.
        presets: frozen dataclasses by name, each with a field `seeds`: the number of seeds of a
            run.
        jobs: maps a preset and a seed to independent jobs, each of which returns tables by name.
        tables: names of all tables that jobs return. They are joined over jobs, and a column `seed`
            is added.
        checks: maps a preset to its checks.
        figures: functions of the tables, by name; one that returns None draws nothing.
        prepare: maps a preset to jobs that are run before all others and leave files for them;
            their tables are not used.
        summaries: maps the joined tables to further tables, which are saved and drawn but not
            checked.

    Raises:
        TypeError: a preset that is not a frozen dataclass.
        ValueError: a preset without seeds.
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
                    f"preset {name!r} of {self.name}: "
                    f"expected a frozen dataclass, got {type(preset).__name__}"
                )
            if getattr(preset, "seeds", 0) < 1:
                raise ValueError(
                    f"preset {name!r} of {self.name}: expected a field `seeds` of at least 1"
                )

    def preset(self, name: str) -> Any:
        """Returns a preset by name. Raises ValueError for an unknown name."""
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
        *,
        device: Device | None = None,
    ) -> Results:
        """Runs a preset, writes its results and returns them.

        Finished jobs are kept in `out`/jobs and are not run again, so a run that was killed
        continues. It has to continue on the same device: what is kept in a folder, the models of
        jobs included, is never mixed with what another device computed.

        Args:
            preset: one of `presets`.
            seed: the first seed; the preset says how many seeds there are.
            out: folder of the results, by default out/NAME.
            jobs: how many jobs run at the same time, by default one per core.
            changes: fields of the preset that get another value, such as `model=PATH`.
            device: where models are trained and measured, such as `"cuda"`; by default on the best
                device that is there. config.json says which.

        Raises:
            ValueError: unknown preset or field, jobs that return tables other than `tables`, or
                a folder with what was kept on another device.
            LoadError: the device is not there.
        """
        place = str(choose_device(device))
        settings = with_changes(self.preset(preset), changes)
        folder = writable(out or Path("out") / self.name)
        results = self.run(settings, seed, folder, jobs, device=place)
        about = {"experiment": self.name, "preset": preset, "seed": seed, "device": place}
        results.save(folder, {**about, **asdict(settings)})
        return results

    def run(
        self,
        settings: Any,
        seed: int,
        out: Path,
        jobs: int | None = None,
        *,
        device: Device | None = None,
    ) -> Results:
        """Runs all jobs and returns the results, without writing them.

        Args:
            settings: the preset's dataclass.
            seed: the first seed.
            out: folder in which finished jobs are kept.
            jobs: how many jobs run at the same time, by default one per core.
            device: where models run; by default on the best device that is there.

        Raises:
            ValueError: jobs that return tables other than `tables`, or a folder with what was kept
                on another device.
            LoadError: the device is not there.
        """
        _check_device(writable(out), str(choose_device(device)))
        seeds = range(seed, seed + settings.seeds)
        if self.prepare is not None:
            about = self._about(settings)
            preparation = [kept(work, out, about) for work in self.prepare(settings)]
            # All of it before any other job: these read what it writes.
            finish_all(preparation, jobs, device)
        work_by_seed = self._work(settings, seeds, out)
        finish_all([work for _, work in work_by_seed], jobs, device)
        return self.judge(settings, seeds, self._join_tables(work_by_seed))

    def judge(self, settings: Any, seeds: Sequence[int], tables: Tables) -> Results:
        """Returns the claims and figures that follow from the tables, without running anything.

        Args:
            settings: the preset's dataclass.
            seeds: the seeds.
            tables: the joined tables of all seeds.
        """
        checks = self.checks(settings)
        found = claims_of(checks, tables, seeds)
        with_summaries = dict(tables)
        if self.summaries is not None:
            with_summaries |= self.summaries(tables)
        return self.draw(checks, found, with_summaries)

    def draw(self, checks: Sequence[Check], found: Sequence[Claim], tables: Tables) -> Results:
        """Returns claims with the figures of their tables and that of their verdicts.

        Args:
            checks: the checks.
            found: their claims.
            tables: the joined tables of all seeds, and the summaries.
        """
        all_tables = dict(tables)
        figures: dict[str, Figure] = {}
        for name, draw in self.figures.items():
            figure = draw(all_tables)
            if figure is not None:
                figures[name] = figure
        if checks:
            all_tables["verdicts"] = verdicts(checks, found)
            figures["verdicts"] = verdict_figure(all_tables["verdicts"], self.name)
        return Results(found, all_tables, figures)

    def _work(self, settings: Any, seeds: Sequence[int], out: Path) -> list[tuple[int, Kept]]:
        by_seed: dict[int, list[Kept]] = {}
        for seed in seeds:
            about = {**self._about(settings), "seed": seed}
            of_seed = self.jobs(settings, seed)
            by_seed[seed] = [kept(work, out, about) for work in of_seed]

        # The first job of each seed, then the second of each: experiments declare the longest jobs
        # first, and a long job that starts last would keep all other processes waiting.
        ordered: list[tuple[int, Kept]] = []
        most = max(map(len, by_seed.values()))
        for number in range(most):
            for seed, work in by_seed.items():
                if number < len(work):
                    ordered.append((seed, work[number]))
        return ordered

    def _about(self, settings: Any) -> dict[str, Any]:
        return {"experiment": self.name, "preset": asdict(settings)}

    def _join_tables(self, work_by_seed: Sequence[tuple[int, Kept]]) -> dict[str, pd.DataFrame]:
        parts: dict[str, list[pd.DataFrame]] = {}
        for seed, work in work_by_seed:
            for name, table in work.tables().items():
                if name not in self.tables:
                    nearest = closest(name, self.tables)
                    raise ValueError(
                        f"table {name!r} of {work.job.function.__name__}: "
                        f"not declared; nearest: {nearest}"
                    )
                frames = parts.setdefault(name, [])
                frames.append(table.assign(seed=seed))
        joined: dict[str, pd.DataFrame] = {}
        for name, frames in parts.items():
            joined[name] = pd.concat(frames, ignore_index=True)
        return joined

    def command(self) -> None:
        """Runs the experiment as a program: `python -m experiments.NAME --preset small --seed 0
        --out DIR --jobs 2`."""

        def main(
            preset: Preset = "smoke",
            seed: Seed = 0,
            out: Out = None,
            jobs: Jobs = None,
            changes: Changes = None,
            device: DeviceOption = None,
        ) -> None:
            results = self.reproduce(preset, seed, out, jobs, changes or (), device=device)
            for line in lines(results.claims):
                typer.echo(line)

        example = f"python -m experiments.{self.name} --preset smoke --seed 0"
        # typer shows it as the help of the command.
        main.__doc__ = (
            f"{self.question}\n\nPresets: {', '.join(self.presets)}.\n\nExample: `{example}`"
        )
        typer.run(main)


def with_changes(settings: Any, changes: Sequence[str]) -> Any:
    """Returns a preset's settings with other values for some fields.

    Args:
        settings: the preset's dataclass.
        changes: `FIELD=VALUE` each; only fields that are text or numbers can be changed.

    Raises:
        ValueError: a change of another form, a field that does not exist, or a value that is not of
            the field's type.

    Example:
        >>> from dataclasses import dataclass
        >>> from interp.experiment.experiment import with_changes
        >>> @dataclass(frozen=True)
        ... class Preset:
        ...     seeds: int = 1
        ...     model: str = "gpt2"
        >>> with_changes(Preset(), ["model=models/mine", "seeds=3"])
        Preset(seeds=3, model='models/mine')
    """
    plain = plain_fields(settings)
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in plain:
            known = ", ".join(plain)
            raise ValueError(
                f"{change!r}: expected FIELD=VALUE with one of {known}; "
                f"nearest: {closest(name, plain)}"
            )
        # The default says what kind of value is meant: a field keeps its type.
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


def plain_fields(settings: Any) -> dict[str, Any]:
    """Returns the fields of a preset's settings that are text or numbers."""
    plain: dict[str, Any] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        # Not isinstance: a truth value is an integer too, and bool("False") is True.
        if type(value) in (str, int, float):
            plain[each.name] = value
    return plain


def lines(claims: Iterable[Claim]) -> list[str]:
    """Returns the claims as text, one line each."""
    found: list[str] = []
    for claim in claims:
        measured = measured_in_words(asdict(claim), 3)
        verdict = both_verdicts(asdict(claim))
        cells = (claim.id, f"{verdict:15}", measured, claim.statement)
        found.append("  ".join(cells))
    return found


def experiments_folder() -> Path:
    """Returns the folder `experiments` of the current directory or, if it has none, of the checkout
    that this package is in.

    Raises:
        LookupError: there is no such folder.
    """
    for root in (Path.cwd(), Path(__file__).parents[2]):
        if (root / "experiments").is_dir():
            return root / "experiments"
    raise LookupError(
        f"no folder `experiments` in {Path.cwd()}: "
        "experiments come with a checkout of interp, run this inside one"
    )


def find_experiment(name: str) -> Any:
    """Returns the EXPERIMENT of `experiments.NAME`, which is imported now.

    Raises:
        LookupError: an unknown experiment (the message has the nearest name), or one without an
            EXPERIMENT.
    """
    folder = experiments_folder()
    known = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    if name.partition(".")[0] not in known:
        raise LookupError(
            f"experiment {name!r}: expected one of {', '.join(known)}; "
            f"nearest: {closest(name, known)}"
        )
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    module = f"experiments.{name}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Something is missing that the experiment itself imports.
        if error.name != module:
            raise
        raise LookupError(f"experiment {name!r}: there is no {module}") from error
    if not hasattr(found, "EXPERIMENT"):
        raise LookupError(f"{module} is a program of its own: run `python -m {module} --help`")
    return found.EXPERIMENT
