"""Committed results: their claims and their figures follow from their tables."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import figure_laws
import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, t, ttest_ind
from typer.testing import CliRunner

import interp
from interp.cli.app import app
from interp.experiment.checks import Check, above
from interp.experiment.claims import NOT_TESTABLE, Claim
from interp.experiment.experiment import Results, find_experiment
from interp.experiment.paper_pages import outdated_results
from interp.experiment.redraw import _without_tables, changed_verdicts, redraw

EXPERIMENTS = Path(interp.__file__).parents[1] / "experiments"
EVERY = sorted(file.parent for file in EXPERIMENTS.glob("*/results/*/claims.json"))
OUTDATED = [folder for folder in EVERY if folder.name in outdated_results(folder.parents[1])]
RESULTS = [folder for folder in EVERY if folder not in OUTDATED]


def current(folder: Path) -> Path:
    """A folder of results, unless they are outdated: then a law about them is skipped."""
    if folder in OUTDATED:
        pytest.skip(f"{folder.parts[-3]}/{folder.name}: {outdated_results(folder.parents[1])}")
    return folder


@pytest.mark.parametrize("folder", OUTDATED, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_an_outdated_result_says_so_and_how_it_is_made_again(folder):
    why = outdated_results(folder.parents[1])[folder.name]
    assert "interp reproduce" in why or "python -m" in why
    assert why in (EXPERIMENTS.parent / "docs/papers" / f"{folder.parts[-3]}.md").read_text()
    with pytest.raises(ValueError, match="only made again"):
        redraw(folder)


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


def test_numbers_that_differ_by_rounding_stay_as_they_are_written(tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(current(EXPERIMENTS / "planted_leak" / "results" / "small"), folder)
    claims = json.loads((folder / "claims.json").read_text())
    for claim in claims:
        for name in ("measured", "low", "high", "p_value", "adjusted_p_value"):
            if claim[name] is not None:
                claim[name] *= 1 + 1e-13  # as if another processor had rounded
    (folder / "claims.json").write_text(json.dumps(claims))
    found = [asdict(claim) for claim in redraw(folder).claims]
    assert found == claims
    claims[0]["high"] += 1e-6
    (folder / "claims.json").write_text(json.dumps(claims))
    with pytest.raises(ValueError, match="if the change is meant"):
        redraw(folder)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_every_table_that_claims_are_made_of_is_committed(folder):
    """Else a claim keeps the number of an earlier day, and nobody can compute it again."""
    config = json.loads((folder / "config.json").read_text())
    declared = set(find_experiment(config["experiment"]).tables)
    assert declared <= {file.stem for file in (folder / "tables").glob("*.parquet")}


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_adjusted_p_values_are_those_of_scipy_and_take_verdicts_away(folder):
    found = json.loads((folder / "claims.json").read_text())
    tested = [claim for claim in found if claim["p_value"] is not None]
    if tested:
        adjusted = false_discovery_control([claim["p_value"] for claim in tested])
        assert [claim["adjusted_p_value"] for claim in tested] == pytest.approx(list(adjusted))
    for claim in found:
        lost = (claim["adjusted_p_value"] or 0) > 0.05
        decided = claim["verdict"] in ("reproduced", "opposite")
        expected = "not reproduced" if lost and decided else claim["verdict"]
        assert claim["adjusted_verdict"] == expected
        assert claim["seeds"] > 1 or claim["verdict"] == NOT_TESTABLE


def over_seeds(table: pd.DataFrame, item: str, column: str) -> tuple[float, float]:
    """The mean over seeds of a share, and the lower end of its interval, by hand: the arcsine of
    the root, and the larger of the variance between seeds and the mean of those within them."""
    by_item = table.groupby(["seed", item])[column].mean()
    seeds = by_item.groupby("seed").mean().to_numpy()
    scaled = np.arcsin(np.sqrt(seeds))
    within: list[float] = []
    for _, values in by_item.groupby("seed"):
        mean, n = values.mean(), len(values)
        if mean in (0, 1):
            within.append(1 / (4 * n))
            continue
        # The error of the mean of items, on the scale whose slope is 1 / (2 sqrt(p (1 - p))).
        within.append(values.var(ddof=0) / n / (4 * mean * (1 - mean)))
    error = np.sqrt(max(scaled.var(ddof=1), np.mean(within)) / len(seeds))
    low = np.arcsin(np.sqrt(seeds.mean())) - t.ppf(0.975, len(seeds) - 1) * error
    return float(seeds.mean()), float(np.sin(np.clip(low, 0, np.pi / 2)) ** 2)


@pytest.mark.parametrize(
    ("experiment", "name", "table", "where", "item", "column"),
    [
        ("planted_leak", "P1", "scans", "source == 'record'", "text", "accuracy"),
        (
            "localization_benchmarks",
            "L0 unitmem",
            "lookup",
            "method == 'unitmem'",
            "window",
            "recall",
        ),
        (
            "localization_benchmarks",
            "L1 zero_out, 5%",
            "injection",
            "condition == '5%' and multiple == 1 and method == 'zero_out' and accuracy >= 0.9",
            "window",
            "recall",
        ),
    ],
)
def test_a_claim_is_recomputed_by_hand(experiment, name, table, where, item, column):
    folder = current(EXPERIMENTS / experiment / "results" / "small")
    rows = pd.read_parquet(folder / "tables" / f"{table}.parquet").query(where)
    (claim,) = (c for c in json.loads((folder / "claims.json").read_text()) if c["id"] == name)
    mean, low = over_seeds(rows, item, column)
    assert claim["measured"] == pytest.approx(mean)
    # The error within a seed is that of a bootstrap in the claim, and of a formula here.
    assert claim["low"] == pytest.approx(low, abs=0.05)


def test_the_claims_about_the_real_model_are_recomputed_by_hand():
    """Differences and Welch's intervals of one table, without the code that made the claims."""
    folder = current(EXPERIMENTS / "localization_benchmarks" / "results" / "real")
    texts = pd.read_parquet(folder / "tables" / "texts.parquet").query("fraction == 0.001")
    changes = ["accuracy_change", "loss_change"]
    texts = texts.astype(dict.fromkeys(changes, "float64"))  # kept in single precision
    found = {c["id"]: c for c in json.loads((folder / "claims.json").read_text())}
    unrelated = ["code", "prose"]
    in_folds = ["fold: code", "fold: prose"]
    compared = {
        "R3": (["paraphrased"], unrelated),
        "R4": (["fold: unstudied"], in_folds),
        "R5": (["fold: studied"], ["fold: unstudied"]),
        "R6": (["texts_test"], ["memorized", "rules"]),
    }
    methods = texts["method"].unique()
    assert len(found) == 6 * len(methods)
    for method in methods:
        wide = texts[texts["method"] == method].pivot_table(
            index=["data", "source"], columns="selected", values=changes
        )
        accuracy = wide["accuracy_change"].loc["texts_test"]
        for name, control in (("R1", "random"), ("R2", "as active")):
            expected = (accuracy["top"] - accuracy[control]).mean()
            assert found[f"{name} {method}"]["measured"] == pytest.approx(expected)
        excess = wide["loss_change"]["top"] - wide["loss_change"]["as active"]
        for name, (larger, smaller) in compared.items():
            one, other = excess.loc[larger], excess.loc[smaller]
            claim = found[f"{name} {method}"]
            assert claim["measured"] == pytest.approx(one.mean() - other.mean())
            interval = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
            assert (claim["low"], claim["high"]) == pytest.approx((interval.low, interval.high))


def test_every_comparison_at_equal_cost_lies_within_what_random_units_reached():
    folder = current(EXPERIMENTS / "iar_memorization" / "results" / "small") / "tables"
    edits = pd.read_parquet(folder / "edits.parquet")
    compared = pd.read_parquet(folder / "equal cost.parquet").dropna(subset="advantage")
    assert len(compared)
    keys = ["family", "regime", "seed"]
    for row in compared.to_dict("records"):
        same = (edits[keys] == pd.Series({key: row[key] for key in keys})).all(axis=1)
        is_random = edits["selection"].str.startswith("random") & (edits["edit"] == row["edit"])
        random = edits[same & (is_random | (edits["selection"] == "none"))][row["cost"]]
        assert random.min() <= row[row["cost"]] <= random.max()


# The committed result that is read and drawn fastest.
COMMITTED = EXPERIMENTS / "planted_leak" / "results" / "small"


@pytest.fixture
def copied(tmp_path):
    """A copy of a committed result, with statements and a figure of an earlier day."""
    place = tmp_path / "small"
    shutil.copytree(current(COMMITTED), place)
    claims = json.loads((place / "claims.json").read_text())
    for claim in claims:
        claim["statement"] = "as it was once said"
    (place / "claims.json").write_text(json.dumps(claims))
    (place / "figures" / "drop.png").write_bytes(b"old")
    return place


def test_redraw_writes_figures_and_statements_but_no_other_number(copied):
    ended = CliRunner().invoke(app, ["redraw", str(copied)])
    assert ended.exit_code == 0, ended.output
    claims = json.loads((COMMITTED / "claims.json").read_text())
    figures = list((COMMITTED / "figures").iterdir())
    assert f"{len(claims)} claims, {len(figures)} figures" in ended.output
    for name in ("claims.json", "config.json", "tables/verdicts.parquet"):
        assert (copied / name).read_bytes() == (COMMITTED / name).read_bytes()
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
    own |= {"measured": -0.5, "low": -0.5, "high": -0.5}
    (copied / "claims.json").write_text(json.dumps(claims))
    with pytest.raises(ValueError, match=r"P6 was .*'reproduced'.* give .*'(opposite|not)"):
        redraw(copied)


def a_claim(**fields) -> Claim:
    given = {"verdict": "reproduced", "adjusted_verdict": "not reproduced", "seeds": 3, **fields}
    empty = dict.fromkeys(("paper", "control", "evidence"), "")
    return Claim(
        id="X", statement="", source="chosen", measured=1.0, low=0.9, high=1.1, **empty, **given
    )


def test_without_tables_a_claim_that_lacks_a_seed_is_not_judged_unless_its_premise_failed():
    check = Check(id="X", measure=lambda _: 1.0, threshold=above(0), evidence="", statement="so")
    with_premise = replace(check, requires=lambda _: True)
    for seeds, verdict, own, expected in (
        (3, "reproduced", check, "reproduced"),
        (2, "reproduced", check, NOT_TESTABLE),
        (2, "not reproduced", with_premise, "not reproduced"),
        (2, "not reproduced", check, NOT_TESTABLE),
        (0, "not reproduced", with_premise, "not reproduced"),
    ):
        claim = a_claim(seeds=seeds, verdict=verdict)
        assert _without_tables(own, claim, seeds=3).verdict == expected


def test_redraw_refuses_tables_that_give_other_numbers(copied):
    claims = json.loads((copied / "claims.json").read_text())
    claims[4]["measured"] += 1e-6
    (copied / "claims.json").write_text(json.dumps(claims))
    ended = CliRunner().invoke(app, ["redraw", str(copied)])
    assert ended.exit_code == 1
    assert f"{claims[4]['id']} was" in ended.output
    assert (copied / "figures" / "drop.png").read_bytes() == b"old"


def test_redraw_refuses_claims_and_adjusted_numbers_that_are_not_in_the_file(copied):
    claims = json.loads((copied / "claims.json").read_text())
    (copied / "claims.json").write_text(json.dumps(claims[1:]))
    with pytest.raises(ValueError, match=f"also give {claims[0]['id']}, and claims.json has no"):
        redraw(copied)
    assert len(redraw(copied, rejudged=True).claims) == len(claims)
    claims[0]["adjusted_p_value"] += 1e-6
    (copied / "claims.json").write_text(json.dumps(claims))
    with pytest.raises(ValueError, match=f"{claims[0]['id']} was .*if the change is meant"):
        redraw(copied)


def test_only_verdicts_that_differ_are_listed_with_what_is_left_after_adjustment(tmp_path):
    lost = Claim("A", "", "chosen", None, 1, 0.9, 1.1, "", 3, "reproduced", "", 0.04, 0.08)
    lost = replace(lost, adjusted_verdict="not reproduced")
    kept = replace(lost, id="B", adjusted_p_value=0.04, adjusted_verdict="reproduced")
    results = Results([lost, kept], {}, {})
    results.write(tmp_path)
    assert changed_verdicts(tmp_path, results) == []
    now = [replace(lost, adjusted_verdict="reproduced"), replace(kept, id="C")]
    assert changed_verdicts(tmp_path, Results(now, {}, {})) == [
        "A: reproduced (adjusted: not reproduced) -> reproduced",
        "B: reproduced -> no claim",
        "C: no claim -> reproduced",
    ]
