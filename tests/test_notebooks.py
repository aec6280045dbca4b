"""Notebooks run from top to bottom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PAPERS = ("reason_to_rote", "iar_memorization")


@pytest.mark.slow
def test_the_notebooks_of_papers_run():
    """Both in one process, which is started once."""
    files = [str(NOTEBOOKS / f"{name}.ipynb") for name in PAPERS]
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "--nbmake-timeout=240", *files]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=NOTEBOOKS.parent
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert f"{len(PAPERS)} passed" in ended.stdout
