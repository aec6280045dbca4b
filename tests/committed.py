"""What the run of a test has in common with a committed run of the same experiment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from interp.experiment.experiment import Experiment
from interp.experiment.paper_pages import outdated_results

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def check_columns(experiment: Experiment, tables: Mapping[str, pd.DataFrame]) -> None:
    """The tables have the columns of the committed ones, up to numbers in their names. So the figures, which are tested on those,
    can be drawn from these: drawing them here too would cost as much as all that they show."""
    if "small" in outdated_results(EXPERIMENTS / experiment.name):
        pytest.skip(f"the committed tables of {experiment.name} are to be made again")
    folder = EXPERIMENTS / experiment.name / "results" / "small" / "tables"
    for name in experiment.tables:
        committed = pd.read_parquet(folder / f"{name}.parquet")
        assert _names(tables[name]) == _names(committed), name


def _names(table: pd.DataFrame) -> set[str]:
    """The names of a table's columns without their numbers: `exact from 8` is a preset's own."""
    return {re.sub(r"\d+", "N", name) for name in table.columns}


def check_evidence(experiment: Experiment, evidence: str) -> None:
    """What a claim is seen in is a figure or a table of the experiment."""
    place = Path(evidence)
    names = {"figures": [*experiment.figures, "verdicts"], "tables": experiment.tables}
    assert place.stem in names[place.parent.name], evidence
