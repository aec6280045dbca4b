"""Runs a notebook from top to bottom, on models that other tests trained."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from drawing import undrawn
from forks import fork

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run_notebook(name: str, models: Path, seed: int, folder: Path) -> None:
    """Runs the cells of a notebook in IPython, in a fork: a kernel of its own would import
    everything anew.

    Args:
        name: of the notebook.
        models: the models that it finds trained, as `out/models`.
        seed: takes the place of the notebook's own, which is 0.
        folder: an empty folder to run in.
    """
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum(source.startswith("seed = 0\n") for source in sources) == 1
    (folder / "out").mkdir()
    (folder / "out" / "models").symlink_to(models)

    def run_cells() -> None:
        from IPython.terminal.interactiveshell import TerminalInteractiveShell

        os.chdir(folder)
        shell = TerminalInteractiveShell.instance(simple_prompt=True)
        for source in sources:
            shell.run_cell(source.replace("seed = 0\n", f"seed = {seed}\n")).raise_error()
            sys.stdout.write("a cell ended\n")

    with undrawn():
        code, out, err = fork(run_cells, folder / "log").end()
    assert code == 0, out[-3000:] + err[-3000:]
    assert out.count("a cell ended") == len(sources)
