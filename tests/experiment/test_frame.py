"""Laws of the frame on a toy experiment: resuming, judging, presets, thresholds, the verdict
figure, and its commands."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import runpy
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from drawing import undrawn
from forks import fork
from hypothesis import given
from hypothesis import strategies as st
from joblib import parallel_config

import interp
from interp.cli.app import app
from interp.errors import LoadError
from interp.experiment.checks import (
    Check,
    Measure,
    above,
    at_least,
    at_most,
    below,
    claims,
    constant,
    mean,
    minus,
    over_items,
    verdicts,
)
from interp.experiment.claims import NOT_TESTABLE, committed_claims
from interp.experiment.experiment import Experiment, with_changes
from interp.experiment.jobs import finish_all, job, kept
from interp.experiment.verdict_figure import verdict_figure
from interp.reporting.stats import Interval, student_interval

CHECKOUT = Path(interp.__file__).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def module(root) -> Any:
    spec = importlib.util.spec_from_file_location(
        "toy_experiment", root / "experiments" / "toy" / "__init__.py"
    )
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["toy_experiment"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(autouse=True)
def nothing_drawn():
    """Nothing here looks at a figure's file: committed results are drawn in a test of their own."""
    with undrawn():
        yield


def interp_in(root: Path, *arguments: str) -> tuple[int, str, str]:
    """The command `interp ARGUMENTS` in a folder: its exit code, stdout and stderr."""

    def run() -> None:
        enter(root)
        app(list(arguments))

    return fork(run, root / "log").end()


def enter(root: Path) -> None:
    """Makes `root` the current folder, and its experiments those that are found."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    for name in list(sys.modules):
        if name.partition(".")[0] == "experiments":
            del sys.modules[name]


def test_a_run_writes_claims_over_seeds_and_on_each_with_tables_figures_and_settings(
    module, tmp_path
):
    results = module.EXPERIMENT.reproduce("small", 5, tmp_path, jobs=1)
    found = {claim["id"]: claim for claim in json.loads((tmp_path / "claims.json").read_text())}
    assert list(found) == [
        f"T{n}{seed}" for n in (1, 2, 3) for seed in ("", ", seed 5", ", seed 6", ", seed 7")
    ]
    numbers = pd.read_parquet(tmp_path / "tables" / "numbers.parquet")
    assert numbers["seed"].unique().tolist() == [5, 6, 7]
    by_seed = numbers[numbers["name"] == "up"].groupby("seed")["value"].mean()
    expected = student_interval(by_seed)
    assert [found["T1"][name] for name in ("measured", "low", "high")] == pytest.approx(
        [expected.estimate, expected.low, expected.high]
    )
    assert found["T1, seed 6"]["measured"] == by_seed[6]
    assert (found["T1"]["verdict"], found["T2"]["verdict"]) == ("reproduced", "opposite")
    assert (found["T3"]["low"], found["T3"]["high"]) == (by_seed.min(), by_seed.max())
    assert found["T1"]["control"].startswith("down: -1.0")
    assert found["T1"]["statement"] == "mean value in numbers (name up) is at least 0.5"
    assert found["T3"]["statement"] == "ups are at least 1"
    assert set(results.figures) == {"verdicts"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config["experiment"],
        config["preset"],
        config["seed"],
        config["seeds"],
        config["shift"],
    ) == ("toy", "small", 5, 3, 1.0)
    assert config["device"] == "cpu"
    assert {"python", "torch"} <= config["versions"].keys()


def test_one_seed_is_never_judged_and_has_no_interval_in_the_figure(module, tmp_path):
    results = module.EXPERIMENT.reproduce("smoke", 0, tmp_path, jobs=1)
    assert [claim.id for claim in results.claims] == ["T1", "T2", "T3"]
    assert {claim.verdict for claim in results.claims} == {NOT_TESTABLE}
    assert {claim.seeds for claim in results.claims} == {1}
    assert not any(
        len(line.get_xdata()) == 2 and line.get_linewidth() == 2.5
        for line in results.figures["verdicts"].axes[0].lines
    )
    assert any(line.get_linewidth() == 2.5 for line in drawn(module).axes[0].lines)


def drawn(module: Any) -> Any:
    checks = module.checks(None)
    frame = pd.DataFrame(
        {
            "name": ["up", "down"] * 3,
            "value": [1.0, -1, 1.2, -1.1, 0.9, -1],
            "seed": [0, 0, 1, 1, 2, 2],
        }
    )
    return verdict_figure(verdicts(checks, claims(checks, {"numbers": frame}, [0, 1, 2])))


def test_a_job_that_is_done_is_not_run_again_and_other_settings_are_other_jobs(module, tmp_path):
    experiment: Experiment = module.EXPERIMENT
    first = experiment.reproduce("small", 0, tmp_path, jobs=1)
    again = experiment.reproduce("small", 0, tmp_path, jobs=1)
    ran = (tmp_path / "log" / "ran.txt").read_text().split()
    assert Counter(ran) == dict.fromkeys(
        (f"{name}{seed}" for name in ("up", "down") for seed in range(3)), 1
    )
    assert first.claims == again.claims
    experiment.run(replace(experiment.presets["small"], shift=2.0), 0, tmp_path, 1)
    assert len((tmp_path / "log" / "ran.txt").read_text().split()) == 12
    assert len(list((tmp_path / "jobs").iterdir())) == 12


def test_a_half_written_job_is_run_again(module, tmp_path):
    experiment: Experiment = module.EXPERIMENT
    whole = experiment.reproduce("small", 0, tmp_path, jobs=1)
    one, other, *_ = sorted((tmp_path / "jobs").iterdir())
    (one / "job.json").unlink()
    (other / "job.json").write_text(json.dumps({"fingerprint": "of another job", "tables": []}))
    assert experiment.reproduce("small", 0, tmp_path, jobs=1).claims == whole.claims
    assert len((tmp_path / "log" / "ran.txt").read_text().split()) == 8
    assert not list((tmp_path / "jobs").glob(".*"))


@pytest.mark.parametrize("number", range(2))
def test_a_run_killed_at_a_random_moment_resumes_to_the_same_bytes(root, module, tmp_path, number):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    module.EXPERIMENT.reproduce("slow", 0, whole, jobs=1)

    def run() -> None:
        enter(root)
        sys.argv = ["toy", "--preset", "slow", "--jobs", "2", "--out", str(killed)]
        with parallel_config("multiprocessing"):  # whose workers are forks as well
            runpy.run_module("experiments.toy", run_name="__main__")

    running = fork(run, tmp_path / "log")
    log, deadline = killed / "log" / "ran.txt", time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random(os.getpid() + number).uniform(0, 0.4))
    os.killpg(running.pid, signal.SIGKILL)  # the run and its workers, which this test started
    code, _, _ = running.end()
    assert not (killed / "claims.json").exists() or code == 0
    done = len(list((killed / "jobs").glob("draw-*")))
    before = len(log.read_text().split())
    code, _, err = fork(run, tmp_path / "log").end()
    assert code == 0, err
    assert (killed / "claims.json").read_bytes() == (whole / "claims.json").read_bytes()
    assert len(log.read_text().split()) == before + 6 - done
    for place in (whole, killed):
        assert not list((place / "jobs").glob(".*"))


def test_the_number_of_jobs_at_a_time_changes_nothing(root, module, tmp_path):
    module.EXPERIMENT.reproduce("small", 1, tmp_path / "one", jobs=1)
    code, out, err = interp_in(
        root,
        "reproduce",
        "toy",
        "--preset",
        "small",
        "--seed",
        "1",
        "--jobs",
        "2",
        "--out",
        str(tmp_path / "two"),
    )
    assert code == 0, err
    assert "T1  reproduced" in out
    assert (tmp_path / "one" / "claims.json").read_bytes() == (
        tmp_path / "two" / "claims.json"
    ).read_bytes()


def test_a_job_runs_on_the_device_that_was_asked_for(tmp_path):
    """Also in a process of its own, which inherits nothing: the CPU where a GPU is there, too."""
    jobs = [kept(job(toy.where), tmp_path, {"number": number}) for number in range(2)]
    finish_all(jobs, jobs=2, device="cpu")
    assert {one.tables()["where"]["device"].item() for one in jobs} == {"cpu"}
    with pytest.raises(LoadError, match="device='xpu:7' is not there"):
        finish_all([kept(job(toy.where), tmp_path, {})], jobs=1, device="xpu:7")


def test_a_folder_is_continued_on_its_own_device_only(module, tmp_path, monkeypatch):
    """What was kept on one device never ends up in results that name another."""
    toy_of = module.EXPERIMENT
    here = toy_of.reproduce("small", 0, tmp_path, jobs=1, device="cpu")
    ran = tmp_path / "log" / "ran.txt"
    times = len(ran.read_text().split())
    monkeypatch.setattr("interp.experiment.experiment.choose_device", lambda _: "cuda:0")
    refused = "keeps what was computed on cpu, and this run is on cuda:0: .*--device cpu"
    for preset in ("small", "smoke"):
        with pytest.raises(ValueError, match=refused):
            toy_of.reproduce(preset, 0, tmp_path, jobs=1)
    (tmp_path / "device.txt").unlink()  # as earlier versions left a folder
    with pytest.raises(ValueError, match=refused):
        toy_of.run(module.PRESETS["small"], 0, tmp_path, 1, device="cuda:0")
    monkeypatch.undo()
    assert toy_of.reproduce("small", 0, tmp_path, jobs=1, device="cpu").claims == here.claims
    assert len(ran.read_text().split()) == times
    assert json.loads((tmp_path / "config.json").read_text())["device"] == "cpu"


def test_a_killed_job_leaves_the_device_of_what_it_kept(module, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.experiment.experiment.finish_all", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.EXPERIMENT.reproduce("smoke", 0, tmp_path, jobs=1, device="cpu")
    monkeypatch.setattr("interp.experiment.experiment.choose_device", lambda _: "cuda:0")
    with pytest.raises(ValueError, match="another folder with --out"):
        module.EXPERIMENT.reproduce("smoke", 0, tmp_path, jobs=1)


def test_a_job_has_one_thread_and_the_caller_gets_its_own_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one = kept(job(toy.threads), tmp_path, {})
        finish_all([one], jobs=1)
        assert one.tables()["threads"]["threads"].tolist() == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_outer_joblib_context_serves(module, tmp_path):
    from joblib import parallel_config

    with parallel_config("threading", n_jobs=2):
        module.EXPERIMENT.reproduce("small", 0, tmp_path)
    assert len((tmp_path / "log" / "ran.txt").read_text().split()) == 6


def test_a_typo_in_a_preset_fails_before_any_work(module, root, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match="preset 'smal': expected one of smoke, small, slow; nearest: small"
    ):
        module.EXPERIMENT.reproduce("smal", 0, out)
    code, _, err = interp_in(root, "reproduce", "toy", "--preset", "smal", "--out", str(out))
    assert code == 1
    assert "nearest: small" in err
    assert not out.exists()
    with pytest.raises(TypeError, match="paus"):
        module.Preset(paus=1)
    with pytest.raises(
        TypeError, match="preset 'smoke' of toy: expected a frozen dataclass, got dict"
    ):
        replace(module.EXPERIMENT, presets={"smoke": {"seeds": 1}})

    @dataclass(frozen=True)
    class Seedless:
        steps: int = 1

    with pytest.raises(ValueError, match="expected a field `seeds`"):
        replace(module.EXPERIMENT, presets={"smoke": Seedless()})


def test_a_field_of_a_preset_is_given_another_value(module, root, tmp_path):
    module.EXPERIMENT.reproduce("smoke", 0, tmp_path, 1, ["shift=2.5", "seeds=2"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["shift"], config["seeds"], config["pause"]) == (2.5, 2, 0.0)
    with pytest.raises(
        ValueError,
        match="'shfit=1': expected FIELD=VALUE with one of seeds, shift, pause; nearest: shift",
    ):
        module.EXPERIMENT.reproduce("smoke", 0, tmp_path, 1, ["shfit=1"])
    code, _, err = interp_in(
        root,
        "reproduce",
        "toy",
        "--set",
        "shift=much",
        "--out",
        str(tmp_path / "other"),
    )
    assert code == 1
    assert "expected a value like 1.0, got 'much'" in err
    assert not (tmp_path / "other").exists()


def test_another_value_has_the_type_of_the_field(module):
    settings = module.PRESETS["smoke"]
    assert with_changes(settings, []) == settings
    for wrong in ("seeds", "seeds=", "seeds=1.5", "seeds=0"):
        with pytest.raises(ValueError, match="seeds"):
            with_changes(settings, [wrong])


def test_jobs_have_functions_of_modules_and_plain_arguments(module, tmp_path):
    with pytest.raises(ValueError, match="expected a function of a module"):
        job(lambda: {"t": pd.DataFrame()})
    with pytest.raises(TypeError, match="has to be plain data, got object"):
        kept(job(module.draw, object()), tmp_path, {})
    finish_all([])


def test_a_table_that_was_not_declared_is_named(module, tmp_path):
    with pytest.raises(ValueError, match=r"table 'numbers' of draw: not declared; nearest: number"):
        replace(module.EXPERIMENT, tables=("number",)).reproduce("smoke", 0, tmp_path, jobs=1)


def test_experiments_are_found_where_one_stands(root, tmp_path):
    code, _, err = interp_in(root, "reproduce", "toi")
    assert code == 1
    assert "experiment 'toi': expected one of toy; nearest: toy" in err


def test_committed_claims_are_listed(root, module, tmp_path):
    place = tmp_path / "checkout"
    toy.write_toy(place)
    module.EXPERIMENT.reproduce(
        "small", 0, place / "experiments" / "toy" / "results" / "small", jobs=1
    )
    code, out, err = interp_in(place, "claims")
    assert code == 0, err
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["toy/small", "T1", "reproduced"], ["toy/small", "T2", "opposite"], ["toy/small", "T3", "not"]
    ]  # fmt: skip
    code, out, _ = interp_in(place, "claims", "toy", "--json")
    assert json.loads(out) == committed_claims(place / "experiments", "toy")
    assert len(json.loads(out)) == 12
    code, _, err = interp_in(place, "claims", "other")
    assert code == 1
    assert "no claims in" in err
    assert committed_claims(CHECKOUT / "experiments")


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_thresholds(value, bar):
    assert at_least(bar)(value) == (value >= bar) == (not below(bar)(value))
    assert at_most(bar)(value) == (value <= bar) == (not above(bar)(value))


def test_a_statement_is_made_from_measure_and_threshold_or_given():
    frame = pd.DataFrame({"a": [1.0, 3.0]})
    assert minus(mean("t", "a"), constant(1))({"t": frame}) == Interval(1.0, 1.0, 1.0, 1)
    made = Check(
        id="X", measure=Measure("the share", lambda _: 0.5), threshold=at_most(0.25), evidence=""
    )
    assert made.text == "the share is at most 0.25"
    with pytest.raises(ValueError, match="check 'X': expected a statement"):
        Check(id="X", measure=lambda _: 0.5, threshold=at_most(0.25), evidence="")
    with pytest.raises(LookupError, match="no rows with"):
        mean("t", "a", a=2.0)({"t": frame})


def test_a_mean_of_all_rows_is_said_to_be_one():
    assert mean("t", "value").label == "mean value in t"
    assert mean("t", "value", name="up", kind=1).label == "mean value in t (name up, kind 1)"


def test_a_measure_that_can_have_one_value_only_is_judged_without_a_p_value():
    measures = {
        "constant": constant(0.5),
        "difference": minus(constant(0.75), constant(0.25)),
        "bounded": Measure("m", lambda _: 0.5, (0.5, 0.5)),
    }
    for name, measure in measures.items():
        check = Check(id=name, measure=measure, threshold=above(0), evidence="", opposite=below(0))
        found, *_ = claims([check], {}, range(3))
        assert (found.measured, found.p_value, found.verdict) == (0.5, None, "reproduced")
        assert found.adjusted_verdict == "reproduced"


def test_what_is_not_testable_is_measured_and_a_failed_premise_is_not_reproduced():
    def verdict(**options: Any) -> Any:
        check = Check(
            id="X",
            measure=Measure("m", lambda t: float(t["t"]["a"].mean())),
            threshold=above(0),
            evidence="",
            **options,
        )
        (first, *_) = claims(
            [check], {"t": pd.DataFrame({"a": [1.0, 0.1], "seed": [0, 1]})}, [0, 1]
        )
        return first

    assert verdict().verdict == "not reproduced"  # two seeds: Student's interval reaches below
    assert verdict(over="every").verdict == "reproduced"
    assert (
        verdict(over="every", requires=lambda t: t["t"]["a"].iloc[0] < 0.5).verdict
        == "not reproduced"
    )
    found = verdict(over="every", testable=False)
    assert (found.verdict, found.measured) == (NOT_TESTABLE, pytest.approx(0.55))
    with pytest.raises(ValueError, match="ids have to be unique, got twice: X"):
        claims([Check(id="X", measure=constant(1), threshold=above(0), evidence="")] * 2, {}, [0])


def seeds_of(values: dict[int, list[float]], column: str = "a") -> pd.DataFrame:
    """One row per item of each seed."""
    parts = [
        pd.DataFrame({"item": range(len(items)), column: items, "seed": seed})
        for seed, items in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_the_interval_of_a_share_stays_within_its_bounds():
    """Student's interval of these seeds is 0.79 [0.40, 1.18]."""
    seeds = {seed: [1.0] * share + [0.0] * (100 - share) for seed, share in enumerate((90, 86, 61))}
    checks = [
        Check(id=name, measure=measure, threshold=at_least(0.5), evidence="")
        for name, measure in {
            "plain": mean("t", "a"),
            "bounded": mean("t", "a", bounds=(0, 1)),
            "difference": minus(mean("t", "a", bounds=(0, 1)), constant(0.5)),
        }.items()
    ]
    found = {claim.id: claim for claim in claims(checks, {"t": seeds_of(seeds)}, list(seeds))}
    assert found["plain"].high > 1
    assert found["bounded"].measured == found["plain"].measured
    assert 0 < found["bounded"].low < found["bounded"].high <= 1
    assert -0.5 < found["difference"].low < found["difference"].high <= 0.5


def test_equal_seeds_of_few_items_are_not_exact():
    """3, 4 and 3 tokens of 512 in few passages: the passages vary, however equal the seeds are."""
    items = [1 / 32] * 3 + [0.0] * 13
    seeds = {0: items, 1: [1 / 32, *items[:-1]], 2: items}
    tables = {"t": seeds_of(seeds)}
    plain = Check(id="X", measure=mean("t", "a"), threshold=above(0.002), evidence="")
    with_items = replace(plain, measure=mean("t", "a", item="item", bounds=(0, 1)))
    assert claims([plain], tables, [0, 1, 2])[0].verdict == "reproduced"
    (over_both, *_) = claims([with_items], tables, [0, 1, 2])
    assert over_both.verdict == "not reproduced"
    assert over_both.low < 0.002


def test_a_difference_of_the_same_items_is_paired_and_of_others_is_not():
    frame = pd.DataFrame({"item": range(8), "kind": "a", "a": np.linspace(0, 0.7, 8)})
    moved = frame.assign(kind="b", a=frame["a"] + 0.25)
    others = moved.assign(kind="c", item=moved["item"] + 100)
    tables = {"t": pd.concat([frame, moved, others])}

    def of(kind: str) -> Measure:
        return mean("t", "a", item="item", bounds=(0, 1), kind=kind)

    paired = minus(of("b"), of("a"))
    apart = minus(of("c"), of("a"))
    assert paired.bounds == apart.bounds == (-1, 1)
    assert (paired(tables).low, paired(tables).high) == pytest.approx((0.25, 0.25))
    assert apart(tables).estimate == pytest.approx(0.25)
    assert apart(tables).low < 0.1


def test_items_are_paired_by_name_and_not_by_place():
    values = np.arange(8.0)
    one = pd.DataFrame({"item": range(8), "kind": "one", "a": values + 1})
    other = pd.DataFrame({"item": range(8), "kind": "other", "a": values})[::-1]
    of_one, of_other = (mean("t", "a", item="item", kind=kind) for kind in ("one", "other"))
    found = minus(of_one, of_other)({"t": pd.concat([one, other])})
    assert (found.estimate, found.low, found.high) == (1, 1, 1)


def test_a_difference_of_differences_of_the_same_items_is_paired():
    """What a - before and b - before have in common cancels: it is a - b, item by item."""
    rng = np.random.default_rng(0)
    before, rise = rng.normal(0, 5, (2, 12))
    kinds = {"before": before, "a": before + rise, "b": before + rise - rng.normal(1, 0.1, 12)}
    parts = [
        pd.DataFrame({"item": range(12), "kind": kind, "a": values})
        for kind, values in kinds.items()
    ]
    others = parts[0].assign(kind="others", item=range(100, 112))
    tables = {"t": pd.concat([*parts, others])}

    def of(kind: str) -> Measure:
        return mean("t", "a", item="item", kind=kind)

    rises = minus(minus(of("a"), of("before")), minus(of("b"), of("before")))
    direct = minus(of("a"), of("b"))(tables)
    found = rises(tables)
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx(
        (direct.estimate, direct.low, direct.high, 12)
    )
    assert 0.9 < found.low < found.high < 1.1
    # A difference of others has no items of its own, and errors are joined.
    of_others = minus(of("others"), of("before"))
    found = minus(of_others, minus(of("b"), of("before")))(tables)
    assert found.high - found.low > of_others(tables).high - of_others(tables).low > 1
    # Where one part has no rows to measure, nothing is measured.
    nothing = minus(over_items("none", lambda _: pd.Series(dtype=float)), of("b"))
    assert minus(nothing, minus(of("b"), of("before")))(tables) is None


def test_a_difference_of_estimates_with_intervals_alone_joins_their_errors():
    """Newcombe's: each side is the root of the sum of squares. A 3-4-5 triangle."""
    one = Measure("one", lambda _: Interval(0.9, 0.6, 0.95, 8))
    other = Measure("other", lambda _: Interval(0.5, 0.38, 0.9, 8))
    found = minus(one, other)({})
    assert (found.estimate, found.low, found.high) == pytest.approx((0.4, -0.1, 0.53))


def test_verdicts_are_adjusted_within_their_family():
    """One claim of twenty passes by chance: its p-value of 0.03 does not survive the nineteen."""
    rng = np.random.default_rng(0)
    values = {"true": [1.0, 1.1, 0.9, 1.0], "chance": [0.5, 1.6, 1.1, 0.8]}
    values |= {f"noise {n}": [*rng.normal(0, 1, 4)] for n in range(10)}
    frame = pd.concat([pd.DataFrame({"a": v, "k": k, "seed": range(4)}) for k, v in values.items()])

    def verdicts_with(family: str) -> dict[str, Any]:
        checks = [
            Check(
                id=name,
                measure=mean("t", "a", k=name),
                threshold=above(0),
                evidence="",
                family=family if name == "chance" else "",
            )
            for name in values
        ]
        return {claim.id: claim for claim in claims(checks, {"t": frame}, range(4))}

    together = verdicts_with("")
    assert together["true"].adjusted_verdict == together["true"].verdict == "reproduced"
    assert together["chance"].verdict == "reproduced"
    assert together["chance"].adjusted_verdict == "not reproduced"
    assert together["chance"].adjusted_p_value > 0.05 >= together["chance"].p_value
    alone = verdicts_with("of its own")
    assert alone["chance"].adjusted_verdict == "reproduced"
    assert alone["chance, seed 0"].p_value is None


def test_a_claim_over_every_seed_has_no_p_value_and_keeps_its_verdict():
    frame = pd.DataFrame({"a": [1.0, 2.0], "seed": [0, 1]})
    check = Check(id="X", measure=mean("t", "a"), threshold=above(0), evidence="", over="every")
    (found, *_) = claims([check], {"t": frame}, [0, 1])
    assert (found.verdict, found.p_value) == ("reproduced", None)
    assert found.adjusted_verdict == "reproduced"


def test_what_was_not_measured_on_a_seed_is_counted_and_the_claim_is_not_judged():
    check = Check(
        id="X",
        measure=Measure("m", lambda t: None if t["t"]["a"].iloc[0] < 0 else 1.0, (-1, 1)),
        threshold=above(0),
        evidence="",
    )

    def found(*values: float) -> list[Any]:
        frame = pd.DataFrame({"a": values, "seed": range(len(values))})
        return claims([check], {"t": frame}, range(len(values)))

    assert found(1, 1, 1)[0].verdict == "reproduced"
    over_seeds, *each = found(1, -1, 1)
    assert (over_seeds.measured, over_seeds.seeds, over_seeds.verdict) == (1, 2, NOT_TESTABLE)
    assert over_seeds.control == "seeds without a comparison: 1 of 3"
    assert [one.measured for one in each] == [1, None, 1]
    nowhere = found(-1, -1)
    assert [one.measured for one in nowhere] == [None] * 3
    texts = verdict_figure(verdicts([check], nowhere)).axes[0].texts
    assert [text.get_text() for text in texts] == ["not measured\n(threshold 0)"]


def test_a_premise_that_fails_where_nothing_is_measured_is_a_failure():
    """A method that does not get there on one seed: there is no number, but the claim is false."""

    def verdict(seeds: list[int], **options: Any) -> Any:
        check = Check(
            id="X",
            measure=Measure("m", lambda t: None if t["t"]["a"].isna().any() else 1.0),
            threshold=above(0),
            evidence="",
            **options,
        )
        table = pd.DataFrame({"a": [1.0, np.nan, 1.0, np.nan], "seed": [0, 1, 2, 3]})
        (first, *each) = claims([check], {"t": table}, seeds)
        assert {claim.verdict for claim in each} <= {NOT_TESTABLE}
        return first.verdict

    def gets_there(tables: Any) -> bool:
        return bool(tables["t"]["a"].notna().all())

    assert verdict([0, 1, 2], requires=gets_there) == "not reproduced"
    assert verdict([1, 3], requires=gets_there) == "not reproduced"  # on no seed
    assert verdict([0, 2], requires=gets_there) == "reproduced"
    assert verdict([0, 1, 2], requires=lambda _: True) == NOT_TESTABLE
    assert verdict([0, 1, 2]) == NOT_TESTABLE
    assert verdict([0, 1, 2], requires=gets_there, testable=False) == NOT_TESTABLE
    assert verdict([1], requires=gets_there) == NOT_TESTABLE  # one seed is never judged


def test_measures_with_intervals_keep_them_on_a_single_seed():
    own = Interval(0.5, 0.4, 0.7, 9)
    (only,) = claims(
        [Check(id="X", measure=Measure("m", lambda _: own), threshold=above(0), evidence="")],
        {},
        [3],
    )
    assert (only.measured, only.low, only.high, only.verdict) == (0.5, 0.4, 0.7, NOT_TESTABLE)
    assert np.isfinite(only.measured)
