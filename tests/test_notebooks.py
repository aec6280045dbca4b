"""The notebooks that train their own model in seconds run from top to bottom, with another seed than
their own. `make notebooks` runs all of them."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from drawing import undrawn
from forks import fork

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SEED = 7


def sources(name: str) -> list[str]:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", ["iar_memorization", "reason_to_rote"])
def test_it_runs(name: str, tmp_path: Path):
    """In a fork: a kernel of its own would import everything anew."""
    cells = sources(name)
    assert sum(source.startswith("seed = 0\n") for source in cells) == 1

    def run_cells() -> None:
        from IPython.terminal.interactiveshell import TerminalInteractiveShell

        os.chdir(tmp_path)
        shell = TerminalInteractiveShell.instance(simple_prompt=True)
        for source in cells:
            shell.run_cell(source.replace("seed = 0\n", f"seed = {SEED}\n")).raise_error()
            sys.stdout.write("a cell ended\n")

    with undrawn():
        code, out, err = fork(run_cells, tmp_path / "log").end()
    assert code == 0, out[-3000:] + err[-3000:]
    assert out.count("a cell ended") == len(cells)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_imports_what_is_installed_with_interp_and_not_an_experiment(path: Path):
    imported: set[str] = set()
    for source in sources(path.stem):
        lines = [line for line in source.splitlines() if not line.startswith(("%", "!"))]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    assert "interp" in imported
    assert not imported & {"experiments", "tests", "benchmarks"}
