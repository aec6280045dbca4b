"""Results on screen, and `results.json` and `RESULTS.md` of a whole run, so that one date and one
machine are true of all rows."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Row

FOLDER = Path(__file__).parent
PACKAGES = ("interp", "torch", "transformers", "transformer-lens", "nnsight", "numpy")
HEADINGS = ("benchmark", "variant", "cost", "ratio", "at most", "largest difference")


def save(rows: Sequence[Row], folder: Path = FOLDER) -> None:
    """Writes the rows of a whole run."""
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "versions": _versions(),
    }
    (folder / "results.json").write_text(
        json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n"
    )
    (folder / "RESULTS.md").write_text(_markdown(about, rows))


def show(rows: Sequence[Row]) -> None:
    """Prints a table: green where a bar is met, red where it is not."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*_cells(row), style={True: "green", False: "red", None: ""}[row.passed])
    console.print(table)


def _cells(row: Row) -> tuple[str, ...]:
    bar = "" if row.bar is None else f"{row.bar:.2f}"
    return (
        row.benchmark,
        row.variant,
        f"{row.value:.3g} {row.unit}",
        f"{row.ratio:.2f}",
        bar,
        _gap(row),
    )


def _gap(row: Row) -> str:
    return "" if row.difference is None else f"{row.difference:.1g}"


def _markdown(about: dict[str, object], rows: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    head = f"# Benchmarks\n\n{about['date']}, {about['machine']}; {versions}.\n\n"
    rules = (
        "SmolLM2-135M, float32, one thread. CPU time, each part at the fastest of interleaved "
        "rounds; ratios are to the first variant.\n\n"
    )
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *map(_cells, rows)]
    return head + rules + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0]}" if names else platform.machine()
