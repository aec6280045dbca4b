"""What the commands have in common: reading texts, telling the user, printing results."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from interp.subject.subject import Subject


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
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


def texts_and_notes(sources: list[Path], column: str) -> tuple[Iterator[str], list[str]]:
    """Returns the texts of files, and notes of what was passed over.

    A bad path raises now; the files are read only when their texts are asked for.
    """
    from interp.data.texts import read_texts

    # The warnings are printed once the model is loaded, see `load_subject`.
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        texts = read_texts(sources, column)
    return texts, [str(note.message) for note in found]


def parse_settings(
    settings: list[str] | None, option: str = "--set", example: str = "steps=50"
) -> dict[str, Any]:
    """Returns NAME=VALUE settings as a dictionary: `steps=50` as {"steps": 50}.

    Args:
        settings: the settings; a value that is not JSON is text.
        option: name of the option, for the message.
        example: one setting, for the message.

    Raises:
        ValueError: a setting without a name or a value.

    Example:
        >>> from interp.cli.steps import parse_settings
        >>> parse_settings(["steps=50", "site=neurons"])
        {'steps': 50, 'site': 'neurons'}
    """
    found: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not name or not equals:
            raise ValueError(f"{option} {setting!r}: expected name=value, such as {example}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def load_subject(
    model: str,
    notes: Iterable[str],
    *,
    tokenizer: Path | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    max_memory: list[str] | None = None,
    offload_folder: Path | None = None,
) -> Subject:
    """Loads the model that a command is about, and then says what the user should know and did not
    ask for: what was passed over, and whether another precision is faster here.

    Args:
        model, tokenizer, dtype, device, device_map, offload_folder: see `interp.load`.
        max_memory: `DEVICE=SIZE` each.
        notes: what was passed over; empty ones say nothing.
    """
    from interp.loading.load import load

    subject = load(
        model,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        device_map=device_map,
        max_memory=parse_settings(max_memory, "--max-memory", "cpu=60GiB") or None,
        offload_folder=offload_folder,
    )
    for note in filter(None, notes):
        advise(note)
    _advise_on_precision(subject)
    return subject


def advise(message: str) -> None:
    """Prints a note on stderr, away from what scripts read."""
    typer.secho(f"note: {message}", fg="yellow", err=True)


def _advise_on_precision(subject: Subject) -> None:
    """Names the faster precision before the work begins, where the stored one is slow here."""
    import torch

    from interp.cli.precision import cpu_emulates_bfloat16

    precision = next(subject.module.parameters()).dtype
    is_slow = subject.device.type == "cpu" and cpu_emulates_bfloat16()
    if precision == torch.bfloat16 and is_slow:
        advise(
            "this processor has no bfloat16 instructions: --dtype float32 is several times faster"
        )


def print_result(as_json: bool, summary: dict[str, Any], table: pd.DataFrame, title: str) -> None:  # noqa: FBT001 - the command's own flag
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


def _cell(value: Any) -> str:
    if isinstance(value, str):
        without_quotes = repr(value)[1:-1]
        return without_quotes[:40]
    return f"{value:.3f}" if isinstance(value, float) else str(value)
