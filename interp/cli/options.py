"""The arguments and options that several commands share, with their help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="Model folder, .gguf file, hub id, or installed package that carries a GGUF. Of images: the weights of a VAR or a RAR, as a "
        "file, a folder, or a file on the hub."
    ),
]
Sources = Annotated[
    list[Path],
    typer.Argument(
        help="Text files, .jsonl files with a `text` field, or folders of them. For an image model: .npz files of `images` and `labels`, "
        "or folders of one folder a class."
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="File of an image model's tokenizer, where it does not stand beside the model."
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder for tables and figures; a scan found there is used, an unfinished one goes on."
    ),
]
Prefix = Annotated[
    int | None,
    typer.Option(
        help="Tokens the model is given; by default 32 of a text, and of an image none but its class.",
        min=0,
    ),
]
Length = Annotated[
    int | None, typer.Option(help="Tokens of a text it must continue with; by default 32.", min=1)
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Tokens of a text from one window to the next; by default `--length`.", min=1
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32 or bfloat16 (about four times faster on recent processors); as stored by default."
    ),
]
Size = Annotated[int, typer.Option(help="Windows a forward.", min=1)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else, for scripts.")
]


def _method_names() -> str:
    """The localization methods, read off the lines that register them: asking the registry would
    import torch for every `--help`."""
    folder = Path(__file__).parents[1] / "localization" / "methods"
    registered = re.compile(r'^@(?:window_)?method\(\s*"(\w+)"', re.MULTILINE)
    return ", ".join(
        name
        for file in sorted(folder.glob("*.py"))
        for name in registered.findall(file.read_text(encoding="utf-8"))
    )


Method = Annotated[str, typer.Option(help=f"One of {_method_names()}.")]
SiteName = Annotated[
    str,
    typer.Option(
        "--site",
        help="Where units are: neurons, heads, blocks, or a pattern such as blocks.3.neurons.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="An option of the method, such as steps=50; may be given several times."
    ),
]
Top = Annotated[float, typer.Option(help="Share of all units to select.", min=0.0, max=1.0)]
