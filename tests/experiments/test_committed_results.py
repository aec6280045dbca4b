"""Committed results: their claims and their figures follow from their tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import figure_laws
import pytest

import interp
from interp.experiment.redraw import redraw

EXPERIMENTS = Path(interp.__file__).parents[1] / "experiments"
RESULTS = sorted(file.parent for file in EXPERIMENTS.glob("*/results/*/claims.json"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_committed_claims_and_figures_follow_from_committed_tables(folder):
    results = redraw(folder)
    claims = json.loads((folder / "claims.json").read_text())
    assert [asdict(claim) for claim in results.claims] == claims, "run `interp redraw`"
    drawn = {f"{name}.png" for name in results.figures}
    assert drawn == {file.name for file in (folder / "figures").iterdir()}
    for name, figure in results.figures.items():
        try:
            figure_laws.check(figure)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
