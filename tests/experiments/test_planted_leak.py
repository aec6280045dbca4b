"""What the planted leak claims of its runs, on reports made by hand and on the committed tables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.planted_leak import EXPERIMENT
from experiments.planted_leak.build import tables_of
from experiments.planted_leak.checks import _relative_rise, checks
from experiments.planted_leak.presets import PRESETS, Preset
from experiments.planted_leak.tables import over_seeds
from interp.cli.demo import Recipe
from interp.experiment.checks import claims
from interp.experiment.claims import NOT_TESTABLE, Claim
from interp.mitigation.equal_damage import EqualDamage
from interp.mitigation.report import DropReport
from interp.reporting.stats import Interval, MeanOverSeeds

RECIPE = Recipe(fraction=0.1, fractions=(0.1, 0.2))
SEEDS = 4
PRESET = Preset(SEEDS, RECIPE)
SHARES = {
    ("record", "accuracy"): 0.95,
    ("twin", "accuracy"): 0.3,
    ("record", "exact"): 0.9,
    ("twin", "exact"): 0.0,
}
DROPS = {"selection": -0.7, "random": -0.02, "lowest": 0.0}


def drop_frame(seed: int, changes: dict[str, float]) -> pd.DataFrame:
    """What a report holds: accuracy falls as said, the loss rises a hundredth of that."""
    rows = []
    for fraction in RECIPE.fractions:
        for selection, change in changes.items():
            for data in ("memorized", "control", "held_out", "twin"):
                for measure, before, scale in (
                    ("exact", 0.9, 1.0),
                    ("accuracy", 0.95, 1.0),
                    ("loss", 2.0, -0.01),
                ):
                    # No share can fall by more than there is.
                    moved = max(scale * change, -before) + 1e-3 * seed
                    row = {
                        "selection": selection,
                        "fraction": fraction,
                        "k": round(1000 * fraction),
                        "data": data,
                        "measure": measure,
                    }
                    interval = {
                        "estimate": before + moved,
                        "low": before + moved - 0.01,
                        "high": before + moved + 0.01,
                        "change": moved,
                        "change_low": moved - 0.01,
                        "change_high": moved + 0.01,
                    }
                    rows.append(row | {"before": before, "windows": 8} | interval)
    return pd.DataFrame(rows)


def leak(
    seed: int,
    changes: dict[str, float],
    shares: dict[tuple[str, str], float],
    advantage: float,
    reached: bool,  # noqa: FBT001
) -> Any:
    ends = advantage - 0.05, advantage + 0.05
    damage = Interval(0.2, 0.1, 0.3, 8)
    equal = EqualDamage(
        50, reached, 0.9, Interval(advantage + 0.01 * seed, *ends, 8), damage, damage
    )
    scan = pd.DataFrame(
        [
            {
                "source": s,
                "text": text,
                "accuracy": shares[s, "accuracy"],
                "exact": shares[s, "exact"],
                "tokens": [1],
            }
            for s in ("record", "twin")
            for text in range(8)
        ]
    )
    return SimpleNamespace(
        seed=seed, scan=scan, report=DropReport(drop_frame(seed, changes), 0.1, True, equal, "toy")
    )


def tables(
    changes: dict[str, float],
    shares: dict[tuple[str, str], float],
    advantage: float = 0.6,
    *,
    reached: bool = True,
) -> Any:
    runs = {
        seed: tables_of(leak(seed, changes, shares, advantage, reached)) for seed in range(SEEDS)
    }
    names = ("drops", "scans", "equal_damage")
    return {
        name: pd.concat([run[name].assign(seed=seed) for seed, run in runs.items()])
        for name in names
    }


def verdicts(
    changes: dict[str, float] | None = None,
    shares: dict[tuple[str, str], float] | None = None,
    advantage: float = 0.6,
    *,
    reached: bool = True,
) -> dict[str, Claim]:
    made = tables(DROPS | (changes or {}), SHARES | (shares or {}), advantage, reached=reached)
    found = claims(checks(PRESET), made, range(SEEDS))
    return {claim.id: claim for claim in found if ", seed" not in claim.id}


def test_a_run_is_judged_by_these_checks_and_has_its_figures():
    results = EXPERIMENT.judge(PRESET, range(SEEDS), tables(DROPS, SHARES))
    assert set(results.figures) == {"drop", "verdicts"}
    assert {claim.id: claim for claim in results.claims if ", seed" not in claim.id} == verdicts()


def test_over_seeds_is_the_interval_of_the_runs_estimates_over_seeds_and_windows():
    table = over_seeds(tables(DROPS, SHARES)["drops"]).set_index(
        ["selection", "fraction", "data", "measure"]
    )
    row = table.loc[("selection", 0.1, "memorized", "accuracy")]
    values = [-0.7 + 1e-3 * seed for seed in range(SEEDS)]
    seeds = [Interval(value, value - 0.01, value + 0.01, n=8) for value in values]
    expected = MeanOverSeeds(seeds, (-1, 1)).interval
    np.testing.assert_allclose(
        row[["change", "change_low", "change_high"]].astype(float),
        [expected.estimate, expected.low, expected.high],
    )
    assert row["seeds"] == SEEDS


def test_runs_as_they_should_be_reproduce_every_claim():
    found = verdicts()
    assert {name: claim.verdict for name, claim in found.items()} == dict.fromkeys(
        ("P1", "P2", "P3", "P4", "P5", "P6"), "reproduced"
    )
    assert all(claim.seeds == SEEDS for claim in found.values())
    assert all(claim.low <= claim.measured <= claim.high for claim in found.values())
    assert all(claim.low >= 0 for name, claim in found.items() if name != "P3")
    assert found["P1"].high <= 1
    assert found["P2"].measured == pytest.approx(0.7 - 1e-3 * 1.5)
    assert found["P2"].statement == (
        "zeroing 10% of the neurons, which were chosen on these records, lowers their suffix "
        "accuracy by at least 0.5"
    )


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


def test_the_price_is_the_rise_of_the_loss_on_control_prose():
    """Held-out text may rise by anything: it is the text on which equal damage is judged."""
    found = tables(DROPS, SHARES)
    found["drops"] = drops = found["drops"].reset_index(drop=True)
    loss_on = {
        data: (drops["data"] == data) & (drops["measure"] == "loss")
        for data in ("control", "held_out")
    }
    rise = _relative_rise("selection", 0.1)
    before = rise.of(found).estimate
    drops.loc[loss_on["held_out"], ["change", "change_high"]] = 5.0
    assert rise.of(found).estimate == before
    drops.loc[loss_on["control"], ["change", "change_high"]] = 1.0
    assert rise.of(found).estimate == pytest.approx(0.5)


def test_where_random_neurons_never_hurt_as_much_nothing_is_compared():
    found = verdicts(reached=False)["P6"]
    assert (found.measured, found.verdict) == (None, NOT_TESTABLE)
    assert f"seeds without a comparison: {SEEDS} of {SEEDS}" in found.control


def test_smoke_has_one_seed_and_so_no_verdict():
    """A seed that is used nowhere else."""
    one = {
        name: table[table["seed"] == 0].assign(seed=771)
        for name, table in tables(DROPS, SHARES).items()
    }
    assert PRESETS["smoke"].seeds == 1
    found = EXPERIMENT.judge(Preset(1, RECIPE), [771], one).claims
    assert {claim.verdict for claim in found} == {NOT_TESTABLE}
