"""Notebooks run from top to bottom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reason_to_rote", "iar_memorization"])
def test_the_notebook_of_a_paper_runs(name):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbmake",
        "--nbmake-timeout=240",
        str(NOTEBOOKS / f"{name}.ipynb"),
    ]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=NOTEBOOKS.parent
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
