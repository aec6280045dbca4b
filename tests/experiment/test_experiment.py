"""Laws of experiments: claims in the form that others read, verdicts by their intervals, and what the planted leak claims of its runs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import interp
from experiments.planted_leak import __main__ as planted_leak
from interp.cli.demo import Recipe
from interp.experiment.claims import Claim, judged
from interp.experiment.experiment import Results
from interp.experiment.script import Script
from interp.mitigation.report import DropReport, EqualDamage, drop_figure
from interp.reporting.stats import Interval, student

FIELDS = ["id", "statement", "source", "paper", "measured", "low", "high", "control", "seeds", "verdict", "evidence"]
CLAIM = Claim("X1", "it holds", "found", 0.5, 0.6, 0.55, 0.65, "random: 0.1", 3, "reproduced", "tables/t.parquet")


def results(*_: object) -> Results:
    return Results([CLAIM], {"t": pd.DataFrame({"a": [1, 2]})}, {"f": drop_figure(over_seeds(), planted_leak.PANELS)})


@pytest.fixture
def experiment() -> Script:
    return Script("toy", "A toy.", {"smoke": {"seeds": 2}, "small": {"seeds": 3}}, results)


def test_claims_have_exactly_the_fields_that_others_read(experiment, tmp_path):
    experiment.reproduce("smoke", 7, tmp_path)
    (claim,) = json.loads((tmp_path / "claims.json").read_text())
    assert list(claim) == FIELDS
    assert claim == dict(
        zip(FIELDS, ("X1", "it holds", "found", 0.5, 0.6, 0.55, 0.65, "random: 0.1", 3, "reproduced", "tables/t.parquet"), strict=True)
    )


def test_results_are_claims_tables_figures_and_a_configuration_with_versions(experiment, tmp_path):
    experiment.reproduce("smoke", 7, tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"claims.json", "config.json", "tables/t.parquet", "figures/f.png"}
    config = json.loads((tmp_path / "config.json").read_text())
    versions = config.pop("versions")
    assert config == {"experiment": "toy", "preset": "smoke", "seed": 7, "seeds": 2}
    assert {"python", "torch", "transformers"} <= versions.keys()
    assert versions["interp"] == interp.__version__
    assert pd.read_parquet(tmp_path / "tables" / "t.parquet").equals(pd.DataFrame({"a": [1, 2]}))


def test_an_unknown_preset_offers_the_nearest(experiment, tmp_path):
    with pytest.raises(ValueError, match="preset 'smal': expected one of smoke, small; nearest: small"):
        experiment.reproduce("smal", 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_experiment_is_a_program(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["toy", "--preset", "small", "--seed", "5", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        experiment.command()
    assert ended.value.code == 0
    assert "X1  reproduced" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5


values = st.floats(-2, 2)


@given(st.lists(values, min_size=3, max_size=3).map(sorted), values)
def test_a_claim_is_reproduced_only_by_a_whole_interval_and_never_opposite_to_what_it_does_not_deny(ends, threshold):
    interval = Interval(ends[1], ends[0], ends[2], 3)
    verdict = judged(interval, lambda v: v >= threshold, lambda v: v < 0)
    assert (verdict == "reproduced") == (ends[0] >= threshold)
    assert (verdict == "opposite") == (ends[2] < 0 and ends[0] < threshold)
    assert judged(interval, lambda v: v >= threshold) in ("reproduced", "not reproduced")


RECIPE = Recipe(fraction=0.1, fractions=(0.1, 0.2))
SEEDS = 4
SHARES = {("record", "accuracy"): 0.95, ("twin", "accuracy"): 0.3, ("record", "exact"): 0.9, ("twin", "exact"): 0.0}
DROPS = {"selection": -0.7, "random": -0.02, "lowest": 0.0}


def drop_frame(seed: int, changes: dict[str, float]) -> pd.DataFrame:
    """What a report holds: accuracy falls as said, the loss rises a hundredth of that."""
    rows = []
    for fraction in RECIPE.fractions:
        for selection, change in changes.items():
            for data in ("memorized", "control", "held_out", "twin"):
                for measure, before, scale in (("exact", 0.9, 1.0), ("accuracy", 0.95, 1.0), ("loss", 2.0, -0.01)):
                    moved = scale * change + 1e-3 * seed
                    row = {"selection": selection, "fraction": fraction, "k": round(1000 * fraction), "data": data, "measure": measure}
                    interval = {"estimate": before + moved, "low": before + moved - 0.1, "high": before + moved + 0.1, "change": moved}
                    rows.append(row | {"before": before} | interval)
    return pd.DataFrame(rows)


def leak(seed: int, changes: dict[str, float], shares: dict[tuple[str, str], float], advantage: float, reached: bool) -> Any:  # noqa: FBT001
    equal = EqualDamage(50, reached, 0.9, Interval(advantage + 0.01 * seed, -1, 1, 8))
    scan = pd.DataFrame(
        [{"source": s, "accuracy": shares[s, "accuracy"], "exact": shares[s, "exact"], "tokens": [1]} for s in ("record", "twin")]
    )
    return SimpleNamespace(seed=seed, scan=scan, report=DropReport(drop_frame(seed, changes), 0.1, True, equal, "toy"))


def over_seeds(changes: dict[str, float] = DROPS) -> pd.DataFrame:
    return planted_leak.over_seeds(pd.concat([drop_frame(seed, changes).assign(seed=seed) for seed in range(SEEDS)]))


def verdicts(
    changes: dict[str, float] | None = None,
    shares: dict[tuple[str, str], float] | None = None,
    advantage: float = 0.6,
    *,
    reached: bool = True,
) -> dict[str, Claim]:
    changes, shares = DROPS | (changes or {}), SHARES | (shares or {})
    runs = [leak(seed, changes, shares, advantage, reached) for seed in range(SEEDS)]
    return {claim.id: claim for claim in planted_leak.claims(runs, over_seeds(changes), RECIPE)}


def test_over_seeds_is_students_interval_of_the_runs_estimates():
    table = over_seeds().set_index(["selection", "fraction", "data", "measure"])
    row = table.loc[("selection", 0.1, "memorized", "accuracy")]
    expected = student([-0.7 + 1e-3 * seed for seed in range(SEEDS)])
    np.testing.assert_allclose(row[["change", "change_low", "change_high"]].astype(float), [expected.estimate, expected.low, expected.high])
    assert row["seeds"] == SEEDS


def test_runs_as_they_should_be_reproduce_every_claim():
    found = verdicts()
    assert {name: claim.verdict for name, claim in found.items()} == dict.fromkeys(("P1", "P2", "P3", "P4", "P5", "P6"), "reproduced")
    assert all(claim.seeds == SEEDS for claim in found.values())
    assert all(claim.low <= claim.measured <= claim.high for claim in found.values())
    assert found["P2"].measured == pytest.approx(0.7 - 1e-3 * 1.5)
    assert "zeroing 100 neurons (10.0%)" in found["P2"].statement


@pytest.mark.parametrize(
    ("name", "wrong", "verdict"),
    [
        ("P1", {"shares": {("record", "accuracy"): 0.8}}, "not reproduced"),
        ("P2", {"changes": {"selection": -0.4}}, "not reproduced"),
        ("P2", {"changes": {"selection": 0.1}}, "opposite"),
        ("P3", {"changes": {"random": -0.2}}, "not reproduced"),
        ("P4", {"changes": {"selection": -20.0}}, "not reproduced"),
        ("P5", {"shares": {("twin", "exact"): 0.1}}, "not reproduced"),
        ("P6", {"advantage": -0.5}, "opposite"),
    ],
)
def test_each_claim_can_fail(name, wrong, verdict):
    assert verdicts(**wrong)[name].verdict == verdict


def test_a_control_that_never_hurt_as_much_is_said_so():
    assert "(hurt less)" in verdicts(reached=False)["P6"].control
    assert "(hurt less)" not in verdicts()["P6"].control


def test_the_presets_are_recipes():
    assert {"smoke", "small", "paper"} <= planted_leak.PRESETS.keys()
    for settings in planted_leak.PRESETS.values():
        recipe = Recipe(**settings["recipe"])
        assert recipe.fraction in recipe.fractions
        assert settings["seeds"] >= 2
