"""The results on screen, and for a whole run in `results.json` and `RESULTS.md`. Parts of a run are
not saved, so that the date and the machine in these files hold for all rows."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Row

FOLDER = Path(__file__).parent
PACKAGES = ("interp", "torch", "transformers", "transformer-lens", "nnsight", "numpy")
HEADINGS = ("benchmark", "variant", "cost", "ratio", "at most", "largest difference")
RULES = (
    "SmolLM2-135M, float32, one thread. CPU time, each part at the fastest of interleaved rounds; "
    "ratios are to the first variant."
)


def save(rows: Sequence[Row], folder: Path = FOLDER) -> None:
    """Writes the rows of a whole run, with its date, machine and versions of packages."""
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "versions": _versions(),
    }
    results = about | {"rows": [asdict(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "RESULTS.md").write_text(_markdown(about, rows))


def show(rows: Sequence[Row]) -> None:
    """Prints a table: green where a bar is met, red where it is not."""
    colours = {True: "green", False: "red", None: ""}
    console = Console() if sys.stdout.isatty() else Console(width=140)
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*_cells(row), style=colours[row.passed])
    console.print(table)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.benchmark,
        row.variant,
        f"{row.value:.3g} {row.unit}",
        f"{row.ratio:.2f}",
        "" if row.bar is None else f"{row.bar:.2f}",
        "" if row.difference is None else f"{row.difference:.1g}",
    )


def _markdown(about: dict[str, object], rows: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    heading = f"# Benchmarks\n\n{about['date']}, {about['machine']}; {versions}.\n\n{RULES}\n\n"
    separators = ("---",) * len(HEADINGS)
    table = [HEADINGS, separators, *map(_cells, rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return heading + "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _machine() -> str:
    """Number and model of the processors, as Linux gives them; else the architecture."""
    # After a run of many minutes, its results are not lost for want of a name.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()
