"""Committed results: their claims and their figures follow from their tables."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import figure_laws
import pytest
from typer.testing import CliRunner

import interp
from interp.cli.app import app
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


@pytest.fixture
def copied(tmp_path):
    """A copy of a committed result, with statements and a figure of an earlier day."""
    place = tmp_path / "small"
    shutil.copytree(EXPERIMENTS / "planted_leak" / "results" / "small", place)
    claims = json.loads((place / "claims.json").read_text())
    for claim in claims:
        claim["statement"] = "as it was once said"
    (place / "claims.json").write_text(json.dumps(claims))
    (place / "figures" / "drop.png").write_bytes(b"old")
    return place


def test_redraw_writes_figures_and_statements_but_no_other_number(copied):
    ended = CliRunner().invoke(app, ["redraw", str(copied)])
    assert ended.exit_code == 0, ended.output
    assert "24 claims, 2 figures" in ended.output
    committed = EXPERIMENTS / "planted_leak" / "results" / "small"
    for name in ("claims.json", "config.json", "tables/verdicts.parquet"):
        assert (copied / name).read_bytes() == (committed / name).read_bytes()
    assert (copied / "figures" / "drop.png").read_bytes().startswith(b"\x89PNG")


def test_claims_whose_tables_were_not_kept_stay_as_they_are(copied):
    (copied / "tables" / "equal_damage.parquet").unlink()
    found = {claim.id: claim for claim in redraw(copied).claims}
    assert found["P6"].statement != "as it was once said"
    assert found["P6"].verdict == "reproduced"


def test_a_claim_without_tables_is_judged_from_its_own_numbers(copied):
    (copied / "tables" / "equal_damage.parquet").unlink()
    claims = json.loads((copied / "claims.json").read_text())
    (own,) = [claim for claim in claims if claim["id"] == "P6"]
    assert own["verdict"] == "reproduced"
    own |= {"measured": -1.0, "low": -1.0, "high": -1.0}
    (copied / "claims.json").write_text(json.dumps(claims))
    with pytest.raises(ValueError, match=r"P6 was .*'reproduced'.* give .*'opposite'"):
        redraw(copied)


def test_redraw_refuses_tables_that_give_other_numbers(copied):
    claims = json.loads((copied / "claims.json").read_text())
    claims[4]["measured"] += 1e-6
    (copied / "claims.json").write_text(json.dumps(claims))
    ended = CliRunner().invoke(app, ["redraw", str(copied)])
    assert ended.exit_code == 1
    assert "P2 was" in ended.output
    assert (copied / "figures" / "drop.png").read_bytes() == b"old"
