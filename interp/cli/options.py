"""The arguments and options that several commands share, with their help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="Model folder, .gguf file, hub id, or the name of an installed package that contains "
        "a GGUF file. For image models: the weights of a VAR or RAR, as a file, a folder, or a "
        "file on the hub."
    ),
]
Sources = Annotated[
    list[Path],
    typer.Argument(
        help="Text files, .jsonl files with a `text` field, or folders of them. For image models: "
        ".npz files with `images` and `labels`, or folders that hold one folder per class."
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="File of an image model's tokenizer, if it is not in the same folder as the model."
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder for tables and figures. A finished scan in it is used again; an unfinished "
        "one is continued."
    ),
]
Prefix = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens that the model is given: 32 by default for texts; for images none "
        "by default, only the class.",
        min=0,
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens that the model has to generate after the prefix, 32 by default.",
        min=1,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens from the start of one window of a text to the start of the next; "
        "the value of `--length` by default.",
        min=1,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision: float32, or bfloat16 (about four times faster on recent processors). By "
        "default as the weights are stored."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where the model runs: cpu, cuda, cuda:1, ... By default on the best device that is "
        "there. Batches that do not fit into its memory are halved."
    ),
]
BatchSize = Annotated[int, typer.Option(help="Batch size, in windows.", min=1)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else, for scripts.")
]


def _method_names() -> str:
    # Read from the source lines that register the methods: asking the registry would import torch
    # for every `--help`.
    folder = Path(__file__).parents[1] / "localization" / "methods"
    registration = re.compile(r'^@(?:window_)?method\(\s*"(\w+)"', re.MULTILINE)
    names: list[str] = []
    for file in sorted(folder.glob("*.py")):
        names += registration.findall(file.read_text(encoding="utf-8"))
    return ", ".join(names)


MethodName = Annotated[str, typer.Option(help=f"Localization method: one of {_method_names()}.")]
SiteName = Annotated[
    str,
    typer.Option(
        "--site",
        help="Which units are scored: neurons, heads, blocks, or a pattern such as "
        "blocks.3.neurons.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="NAME=VALUE: an option of the method, such as steps=50. May be given several times.",
    ),
]
Top = Annotated[
    float, typer.Option(help="Share of all units to select, from 0 to 1.", min=0.0, max=1.0)
]
