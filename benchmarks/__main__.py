"""`python -m benchmarks [--only NAME]`: runs the benchmarks and prints their results; results of
all of them are also saved. Exits with 1 when one of them costs more than it may."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from rich.console import Console

from benchmarks import report
from benchmarks.timing import Row

NAMES = (
    "imports",
    "memory",
    "recording",
    "extraction",
    "membership",
    "sweeping",
    "masks",
    "training",
)
ALONE = ("screens", "coverage", "streaming", "corpus_scan", "workbench")  # run only when asked for


def main() -> int:
    """Runs the benchmarks asked for, by default all of `NAMES`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        choices=(*NAMES, *ALONE),
        action="append",
        help="run this benchmark (may be given several times)",
    )
    names = tuple(parser.parse_args().only or NAMES)
    console = Console(stderr=True)
    rows: list[Row] = []
    for number, name in enumerate(names, start=1):
        title = f"{number} of {len(names)}: {name}"
        began = time.perf_counter()
        with console.status(title):
            rows += importlib.import_module(f"benchmarks.{name}").run()
        console.print(f"{title}, {time.perf_counter() - began:.0f} s")
    if rows:
        report.show(rows)
    if names == NAMES:
        report.save(rows)
    return int(any(row.passed is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
