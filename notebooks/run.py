"""Runs every notebook, two at a time: `make notebooks`. Fails where a cell fails or writes to
stderr. The notebooks as they ran, with all outputs, are in out/notebooks."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from interp.progress import tell, track

HERE = Path(__file__).parent
OUT = HERE.parent / "out" / "notebooks"


def run(path: Path) -> str:
    """Runs a notebook and returns what is wrong with it; "" for nothing."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(HERE.parent)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{path.name}: {error.ename}: {error.evalue}"
    finally:
        OUT.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, OUT / path.name)
    written = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
    return f"{path.name} writes to stderr: {written[0][:300]}" if written else ""


def main() -> int:
    """Runs all, or those whose names are given."""
    wanted = sys.argv[1:]
    paths = [path for path in sorted(HERE.glob("*.ipynb")) if not wanted or path.stem in wanted]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        problems = list(filter(None, track(pool.map(run, paths), "notebooks", len(paths))))
    for problem in problems:
        tell(problem)
    return int(bool(problems) or not paths)


if __name__ == "__main__":
    sys.exit(main())
