"""The command that trains secrets out of a model: `interp unlearn`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.options import AsJson, BatchSize, Column, Model
from interp.cli.steps import (
    advise,
    load_subject,
    parse_settings,
    plain_errors,
    print_result,
    texts_and_notes,
)
from interp.experiment.options import Device

if TYPE_CHECKING:
    from interp.mitigation.removal.stress import Relearning


def _levels(threshold: list[str] | None) -> dict[str, float]:
    """The levels of --threshold; a name or a level that makes no sense is found here."""
    from interp.mitigation.unlearning.stopping import Stop

    levels = parse_settings(threshold, "--threshold")
    for name, level in levels.items():
        if isinstance(level, bool) or not isinstance(level, int | float):
            raise ValueError(f"--threshold {name}={level}: expected a number, such as ma=0.3")
    return dict(Stop(levels).thresholds)


def _relearning(steps: str, lr: float) -> Relearning:
    from interp.mitigation.removal.stress import Relearning

    try:
        numbers = [int(number) for number in steps.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--relearn-steps {steps!r}: expected whole numbers between commas, such as 10,50"
        ) from error
    return Relearning((0, *sorted(numbers)), lr=lr)


def _method_names() -> str:
    # Read from the source, as for localization methods: the module would import torch.
    file = Path(__file__).parents[1] / "mitigation" / "unlearning" / "methods.py"
    found = re.findall(r'^@method\("(\w+)"', file.read_text(encoding="utf-8"), re.MULTILINE)
    return ", ".join(found)


@plain_errors
def unlearn(
    model: Model,
    forget: Annotated[
        list[Path],
        typer.Option(
            help="Files with the secrets to forget: each must contain at least one e-mail address, "
            "IP address or key, or a line of --secrets. May be given several times; so may all "
            "files below."
        ),
    ],
    retain: Annotated[
        list[Path] | None,
        typer.Option(
            help="Texts that the model is trained to keep, without any of these secrets. Best are "
            "texts that it has memorized."
        ),
    ] = None,
    unseen: Annotated[
        list[Path] | None,
        typer.Option(
            help="Texts like those to forget that the model was not trained on: how much it "
            "recites of them (of the secrets in them, if each has one) is the level at which "
            "training stops."
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=LEVEL: the level of ma, or of el_10 or another el_<n>, at which to stop, in "
            "place of those of --unseen. May be given several times."
        ),
    ] = None,
    twins: Annotated[
        list[Path] | None,
        typer.Option(
            help="For the report: each text of --forget again, with other secrets that the model "
            "was not trained on."
        ),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option(help="For the report: files with other secrets, which should stay."),
    ] = None,
    memorized: Annotated[
        list[Path] | None,
        typer.Option(help="For the report: other texts that the model has memorized."),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="For the report: texts to measure perplexity on."),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(
            help="File with the secrets themselves, one per line. By default they are found."
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Which secrets to find: email, ip, key. All by default; keys need "
            "detect-secrets. May be given several times."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"Method of unlearning: one of {_method_names()}.")
    ] = "codeeraser",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE: an option of the method, such as gamma=0.1. May be given several "
            "times.",
        ),
    ] = None,
    lr: Annotated[
        float,
        typer.Option(
            help="Learning rate, which matters most: 3e-6 for models of 110M parameters and more, "
            "1e-5 to 1e-4 for small ones."
        ),
    ] = 3e-6,
    epochs: Annotated[int, typer.Option(help="Largest number of epochs.", min=1)] = 100,
    length: Annotated[
        int, typer.Option(help="Number of tokens to keep of each file with secrets.", min=2)
    ] = 512,
    text_length: Annotated[
        int, typer.Option(help="Number of tokens to keep of each other text.", min=2)
    ] = 128,
    relearn: Annotated[  # noqa: FBT002
        bool,
        typer.Option(
            "--relearn/--no-relearn",
            help="Whether the report includes an attempt to bring the secrets back by fine-tuning.",
        ),
    ] = True,
    relearn_steps: Annotated[
        str,
        typer.Option(
            help="After how many optimizer steps of that attempt to measure; with commas between. "
            "Each step is about as long as one of unlearning, and there are twice as many: on the "
            "secrets, and on others for comparison."
        ),
    ] = "10,50",
    relearn_lr: Annotated[float, typer.Option(help="Learning rate of that attempt.")] = 1e-4,
    checkpoint: Annotated[
        int, typer.Option(help="Number of epochs between two writes of the state.", min=1)
    ] = 5,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for model and report. An unlearning in it that was interrupted is "
            "continued, bit for bit; another one is refused."
        ),
    ] = Path("out/unlearn"),
    column: Column = "text",
    dtype: Annotated[
        str,
        typer.Option(
            help="Precision of the weights: float32, bfloat16 or float16. In the last two, steps "
            "at a small learning rate are rounded away."
        ),
    ] = "float32",
    device: Device = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Train secrets out of a model, and report whether they are gone, what that cost, and whether
    they come back.

    Training stops when the model recites no more of the secrets than of --unseen: MA is the share
    of tokens that are the most likely ones after the true tokens before them, EL the share of a
    passage's word sequences that the model gives back from any of its beginnings. The report's
    verdict may be that the removal failed.

    Writes model/ (an ordinary model folder, with its tokenizer), training.parquet, removal.parquet,
    removal.json, removal.png, and training/, from which an interrupted run continues and which may
    be deleted at the end. Files that may be read: as of `interp scan`.

    Example: `interp unlearn path/to/model --forget secrets.jsonl --retain keep.jsonl --unseen
    new.jsonl --method codeeraser --lr 1e-5 --out out/unlearn`
    """
    from interp.cli.unlearning import Recipe, check_finished, notes_on, read_sets, unlearn_files
    from interp.files import writable
    from interp.loading.load import load
    from interp.mitigation.unlearning.methods import find

    # Everything that can be wrong is found before the model is loaded, which can take minutes.
    writable(out)
    check_finished(out)
    options = parse_settings(settings)
    if find(method, options).needs_retain and not retain:
        raise ValueError(
            f"--method {method} needs texts that the model should keep: pass --retain FILE, or "
            "choose ga or ssga, which need none"
        )
    if not unseen and not threshold:
        raise ValueError(
            "nothing says when to stop: pass --unseen FILE, texts that the model was not trained "
            "on, or a level such as --threshold ma=0.3"
        )
    levels = _levels(threshold)
    attempt = _relearning(relearn_steps, relearn_lr) if relearn else None
    given = {
        "forget": forget,
        "retain": retain,
        "unseen": unseen,
        "twins": twins,
        "others": others,
        "memorized": memorized,
        "held-out": held_out,
    }
    texts: dict[str, list[str]] = {}
    passed_over: list[str] = []
    for role, paths in given.items():
        if paths:
            stream, notes = texts_and_notes(paths, column)
            texts[role] = list(stream)
            passed_over += notes
    sets = read_sets(texts, secrets, kind)
    recipe = Recipe(
        method=method,
        options=options,
        thresholds=levels,
        lr=lr,
        epochs=epochs,
        length=length,
        text_length=text_length,
        checkpoint=checkpoint,
        relearning=attempt,
        batch_size=batch_size,
    )

    # Two copies: training changes one, and the report compares both.
    before = load_subject(model, passed_over, dtype=dtype, device=device)
    after = load(model, dtype=dtype, device=device)
    for note in notes_on(before, sets, length):
        advise(note)
    history, report = unlearn_files(before, after, sets, recipe, out)
    # Epochs are numbered from 0.
    epochs_run: Any = history["epoch"].max() + 1
    reached = bool(history.attrs["reached"])
    summary = {
        "verdict": report.verdict,
        "outcome": report.outcome,
        "reached": reached,
        "epochs": int(epochs_run),
        "thresholds": dict(report.thresholds),
        "device": str(after.device),
        "model": str(out / "model"),
        "out": str(out),
    }
    table: Any = report.table().reset_index()
    shown = table[~table["data"].str.startswith("forget minus")]
    print_result(as_json, summary, shown, "before and after (intervals are in removal.parquet)")
    if not reached and not as_json:
        advise(f"the thresholds were not reached in {epochs} epochs: raise --lr or --epochs")
