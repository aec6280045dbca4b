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
        help="Text files; .jsonl, .ndjson, .json, .csv, .tsv or .parquet files with a `text` field "
        "or column; any of them as .gz, .bz2 or .zst; folders of them; patterns in quotes, such as "
        "'corpus/*.parquet'; or data sets on the hub, as user/name, user/name:configuration or "
        "user/name@split. For image models: .npz files with `images` and "
        "`labels`, or folders that hold one folder per class."
    ),
]
Column = Annotated[
    str,
    typer.Option(help="Which column of a table, or field of a JSON object, holds the text."),
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
        help="Folder for tables and figures. A finished scan in it is used again, an unfinished "
        "one is continued; a scan of another model, of other texts or with other options is "
        "refused."
    ),
]
Prefix = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens at the start of each window that the model is given: 32 by default "
        "for texts; 0 by default for images, where the class alone is given.",
        min=0,
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens after the prefix, which the model has to generate: 32 by default "
        "for texts. Fewer are extracted more easily. Not for images, whose tokens are generated to "
        "the end.",
        min=1,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens from the start of one window of a text to the start of the next; "
        "by default the value of `--length`, so that each token has to be generated once. A "
        "smaller stride finds more, in more time. Not for images.",
        min=1,
    ),
]
ShardIndex = Annotated[
    int,
    typer.Option(
        help="Which of them this process takes, from 0; by default the number that SLURM (an array "
        "of jobs) or torchrun gives it.",
        envvar=["SLURM_ARRAY_TASK_ID", "RANK"],
        show_envvar=False,
    ),
]
NumShards = Annotated[
    int,
    typer.Option(
        help="Number of processes that share the texts, each of which writes to its own folder in "
        "--out; when all are done, `interp merge` joins them. By default the number of jobs or "
        "processes that SLURM or torchrun has started.",
        envvar=["SLURM_ARRAY_TASK_COUNT", "WORLD_SIZE"],
        show_envvar=False,
    ),
]
KeepRows = Annotated[
    str | None,
    typer.Option(
        help="For a corpus larger than memory: which windows are kept as rows, such as "
        "'accuracy>=0.5', 'log_p>-20' (nats per suffix) or 'exact==1'. All others are counted, per "
        "document and in histograms. By default all are kept, in memory. Not for images.",
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision of the model: float32, bfloat16 or float16. By default float32 for a GGUF, "
        "and else as the weights are stored, often bfloat16. On processors with bfloat16 "
        "instructions that is about four times as fast as float32, on others several times slower."
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="How a model that is larger than a device is divided: `auto` fills the accelerators, "
        "then the memory of the CPU, then the disk; or `balanced`, `balanced_low_0`, `sequential`. "
        "For Hugging Face models."
    ),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        help="DEVICE=SIZE: how much of a divided model a device may hold, such as 0=20GiB for the "
        "first accelerator, or cpu=60GiB. May be given several times; devices that are not named "
        "are not used, and what does not fit waits on disk."
    ),
]
OffloadFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the weights that wait on disk and cannot be read in the model's files as "
        "they are, as in most mixtures of experts."
    ),
]
BatchSize = Annotated[int, typer.Option(help="Batch size, in windows.", min=1)]
Bos = Annotated[
    bool,
    typer.Option(
        "--bos/--no-bos",
        help="Whether every window of a text is measured behind the start tokens that the model's "
        "tokenizer puts in front of a text.",
    ),
]
Counted = Annotated[
    list[Path] | None,
    typer.Option(
        "--counts",
        help="Texts that the model was trained on, in the same forms: each window is counted in "
        "them, which adds the columns `count` and `count_suffix` to windows.parquet. May be given "
        "several times. Not for images.",
    ),
]
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


def _check_top(top: float) -> float:
    # Not by min= and max=, which let 0 and nan pass.
    if not 0 < top <= 1:
        raise typer.BadParameter(f"expected a share above 0, and at most 1, got {top:g}")
    return top


Top = Annotated[
    float,
    typer.Option(
        help="Share of all units, above 0 and at most 1, that is written to units.json: the "
        "highest-scoring.",
        callback=_check_top,
    ),
]
