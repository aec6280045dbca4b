"""The options of running an experiment, with their help: `interp reproduce NAME` and `python -m
experiments.NAME` take the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Preset = Annotated[
    str,
    typer.Option(
        help="Size of the run: smoke (minutes; shows that it runs), small (what the committed "
        "results are from, for two cores) or paper (the paper's own models and data). An "
        "experiment may have others; a wrong name lists them."
    ),
]
Seed = Annotated[
    int, typer.Option(help="The first seed; the preset says how many seeds follow from it.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the results, by default out/NAME. An unfinished run in it is continued, "
        "on the same device."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(help="Number of jobs that run at the same time, by default one per core.", min=1),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="FIELD=VALUE: another value for a field of the preset that is text or a number, such "
        "as model=PATH or seeds=5. May be given several times.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where the model runs: cpu, cuda, cuda:1, ... By default on the best device that is "
        "there. Batches that do not fit into its memory are halved."
    ),
]
