"""Reason to Rote end to end on its smoke preset, and laws of what its claims are made of."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rerun
import torch
from committed import check_columns, check_evidence
from drawing import undrawn
from hypothesis import given
from hypothesis import strategies as st

import interp
from experiments.reason_to_rote import EXPERIMENT, decoding, sweep
from experiments.reason_to_rote.checks import checks
from experiments.reason_to_rote.distributed import exchange_positions, participation
from experiments.reason_to_rote.erasing import _read_without_means, donors, random_part
from experiments.reason_to_rote.lookup import plant_lookup
from experiments.reason_to_rote.measures import survival
from experiments.reason_to_rote.neurons import (
    heuristics,
    rankings,
    shared_neurons,
    shifts_of,
    split_in_thirds,
)
from experiments.reason_to_rote.overlap import mean_by_position
from experiments.reason_to_rote.presets import PRESETS
from experiments.reason_to_rote.study import Study, answers_of, outcomes, study
from experiments.reason_to_rote.tasks import (
    GraphFacts,
    Learned,
    Transformer,
    exact,
    network,
    task,
    train_or_load,
)
from interp.analysis.concept_erasure import (
    containment,
    principal,
    random_subspace,
    variance_share,
)
from interp.analysis.probes import probe
from interp.experiment.checks import claims, verdicts
from interp.experiment.claims import NOT_TESTABLE
from interp.interventions.kinds import Patch
from interp.training.fit import epochs

SEED = 100
# The smoke preset with fewer steps and items: as much as every law below needs.
_FDA = PRESETS["smoke"].FDA
_THR = PRESETS["smoke"].THR
_THR_TRAINING = replace(_THR.training, steps=350, lr=4e-3, warmup=30, decay=175)
SMOKE = replace(
    PRESETS["smoke"],
    FDA=replace(_FDA, without_noise=replace(_FDA.without_noise, steps=250, decay=125)),
    THR=replace(
        _THR, training=_THR_TRAINING, without_noise=replace(_THR_TRAINING, steps=50, decay=25)
    ),
    clean=300,
    items=60,
    draws=2,
    circuit_items=12,
)


@pytest.fixture(scope="module", autouse=True)
def brief_probes():
    """Probes with a strong penalty. Fitting the others, of which there are hundreds, takes a
    multiple of the steps; what a probe is has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "probe", functools.partial(probe, strength=100.0))
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    with undrawn():
        # one job at a time, in this process: others would import everything anew
        experiment = replace(EXPERIMENT, presets={"smoke": SMOKE}, figures={})
        experiment.reproduce("smoke", SEED, folder, jobs=1)
    return folder


def of_model(out: Path, name: str) -> Learned:
    preset = SMOKE.recipe(name)
    return train_or_load(
        task(preset.data, SEED),
        preset.model,
        preset.training,
        SEED,
        out / "models" / f"{name}-seed{SEED}",
    )


@pytest.fixture(scope="module")
def studies(out) -> dict[str, Study]:
    known = {name: of_model(out, name) for name in ("FDA", "THR")}
    return {
        name: study(one.task, one.subject, "end", clean=SMOKE.clean, at_most=SMOKE.items)
        for name, one in known.items()
    }


@pytest.fixture(scope="module")
def tables(out) -> dict[str, pd.DataFrame]:
    return {
        file.stem: pd.read_parquet(file)
        for file in (out / "tables").glob("*.parquet")
        if file.stem != "verdicts"
    }


def test_every_claim_is_measured_and_has_something_to_look_at(out):
    found = json.loads((out / "claims.json").read_text())
    ids = [claim["id"] for claim in found]
    assert len(set(ids)) == len(ids)
    assert {name.split()[0][:2] for name in ids} == {f"C{n}" for n in range(1, 9)} | {
        f"K{n}" for n in range(1, 8)
    }
    assert {name for name in ids if "seed" not in name} == {
        name.partition(", seed")[0] for name in ids
    }
    for claim in found:
        check_evidence(EXPERIMENT, claim["evidence"])
        if claim["measured"] is not None:
            assert claim["low"] <= claim["measured"] <= claim["high"]


def test_tables_have_the_columns_that_figures_are_drawn_from(tables):
    check_columns(EXPERIMENT, tables)


def test_models_are_kept_and_a_second_run_gives_the_same_tables_without_training(out, tables):
    states = {file: file.stat().st_mtime_ns for file in out.glob("models/*/state.safetensors")}
    assert len(states) == 4
    _, *others = (finished for _, finished in EXPERIMENT._work(SMOKE, [SEED], out))
    for finished in others:
        rerun.check_same(finished)
    # of the job of addition, which is the longest, what the others do not compute
    known = of_model(out, "FDA")
    end = study(known.task, known.subject, "end", clean=SMOKE.clean, at_most=SMOKE.items)
    again = heuristics(end, SMOKE.knocked_out) | shared_neurons(end, end.blocks - 1)
    for name, table in again.items():
        kept = tables[name].drop(columns="seed")
        pd.testing.assert_frame_equal(table.reset_index(drop=True), kept, check_exact=True)
    assert {file: file.stat().st_mtime_ns for file in states} == states


def test_claims_are_those_of_the_tables(out, tables):
    found = claims(checks(SMOKE), tables, [SEED])
    assert [asdict(claim) for claim in found] == json.loads((out / "claims.json").read_text())


def test_the_planted_look_up_is_rejected_and_looks_like_one(tables):
    """Bar and control at once: what the claims ask of memory fails on a table."""
    of = {check.id: check for check in checks(SMOKE)}
    assert of["C5c FDA"].controls["look-up"](tables).high <= 0.1
    assert of["K1 look-up, C5"].measure(tables).low >= 0.95
    assert of["C7c FDA"].controls["look-up"](tables).high < 0.3
    assert of["C7d FDA"].controls["look-up"](tables).high < 0.4
    kept: Any = tables["components"].query("stage == 'look-up' and set == 'memorized'")["kept"]
    assert kept.all()


def changed(
    tables: dict[str, pd.DataFrame], *ids: str, seeds: int = 4, **new: pd.DataFrame
) -> dict[str, Any]:
    """The claims of some checks, by default all, on several seeds with the same tables."""
    numbers = list(range(SEED, SEED + seeds))
    made = {
        name: pd.concat([table.assign(seed=seed) for seed in numbers])
        for name, table in (tables | new).items()
    }
    asked = [check for check in checks(SMOKE) if not ids or check.id in ids]
    return {claim.id: claim for claim in claims(asked, made, numbers)}


def test_claims_follow_from_their_tables(tables):
    erasure = tables["erasure"]
    target = (erasure["removed"] == "class means") & (erasure["stage"] == "end")
    for kept, verdict in ((False, "reproduced"), (True, "not reproduced")):
        found = changed(
            tables,
            "C5a FDA",
            "C5a THR",
            erasure=erasure.assign(kept=erasure["kept"].where(~target, kept)),
        )
        assert found["C5a FDA"].verdict == found["C5a THR"].verdict == verdict
    doses = tables["doses"]
    by_hand = doses.assign(true=(doses["selection"] != "random") & (doses["k"] > 0))
    assert changed(tables, "C8c FDA", doses=by_hand)["C8c FDA"].measured == 1.0
    outliers = tables["outliers"]
    twice = outliers.assign(mean_abs_z=np.where(outliers["set"] == "memorized", 2.0, 1.0))
    found = changed(tables, "C8a FDA", "K5 without noise", outliers=twice)
    assert found["C8a FDA"].measured == 2.0
    assert found["K5 without noise"].verdict == "not reproduced"
    dynamics = tables["dynamics"]
    late = dynamics.assign(
        memorized=np.where(dynamics["step"] == dynamics["step"].max(), 1.0, 0.0),
        test=1.0,
        corrected=1.0,
    )
    learning = ("C1a FDA", "C1b FDA", "C1c FDA", "C1a THR", "C1b THR")
    found = changed(tables, *learning, dynamics=late)
    assert {found[name].verdict for name in learning} == {"reproduced"}
    ratio = (dynamics.query("task == 'FDA' and stage == 'end'")["step"].max() + 1) / (
        dynamics["step"].min() + 1
    )
    assert found["C1c FDA"].measured == ratio


def test_over_seeds_a_claim_has_the_interval_of_its_seeds(tables):
    found = list(changed(tables, seeds=2).values())
    frame = verdicts(checks(SMOKE), found)
    assert list(frame["seed"].unique()) == ["all", str(SEED), str(SEED + 1)]
    assert len(frame) == 3 * frame["claim"].nunique() == len(found)
    for claim in found:
        if claim.measured is None:
            assert (claim.low, claim.high, claim.seeds) == (None, None, 0)
            assert claim.verdict == NOT_TESTABLE
        elif ", seed " not in claim.id:
            assert claim.low <= claim.measured <= claim.high
            assert claim.seeds == 2
        else:
            assert (claim.seeds, claim.verdict) == (1, NOT_TESTABLE)


def test_one_seed_gives_no_verdict(out):
    found = json.loads((out / "claims.json").read_text())
    assert {claim["verdict"] for claim in found} == {NOT_TESTABLE}


def test_probes_are_read_where_no_item_outside_a_set_has_the_same_inputs(studies, tables):
    for name, one in studies.items():
        of = one.reasoning
        for position in {of.read, *(position for _, position in of.probed)}:
            decoding.refuse_what_is_shared(one, position)
        probed: Any = tables["probes"].query(f"task == '{name}'")
        assert set(probed["position"]) <= {position for _, position in of.probed}


def test_the_bridge_is_not_read_where_memorized_questions_begin_like_clean_ones(studies):
    one = studies["THR"]
    with pytest.raises(ValueError, match=r"memorized items begin like .* read at position 2"):
        decoding.refuse_what_is_shared(one, one.reasoning.position)


def test_controls_hold_the_variance_that_they_are_to_hold(tables):
    of = ["task", "stage", "block"]
    share = tables["erasure"].groupby([*of, "removed", "draw"])[["variance", "of_result", "rank"]]
    by_name = share.first().reset_index().set_index(of)
    target, equal, parts, outside, apart = (
        by_name[by_name["removed"] == name]
        for name in (
            "class means",
            "random, same variance",
            "part of class means",
            "most variance, apart",
            "unrelated, apart",
        )
    )
    assert len(equal) == len(parts) == SMOKE.draws * len(target)
    expected = target.loc[equal.index]
    np.testing.assert_allclose(equal["variance"], expected["variance"], atol=1e-6)
    np.testing.assert_array_equal(equal["rank"], expected["rank"])
    np.testing.assert_allclose(parts["variance"], outside.loc[parts.index, "variance"], atol=1e-6)
    np.testing.assert_allclose(target["of_result"], 1)
    np.testing.assert_allclose(outside["of_result"], 0, atol=1e-9)
    np.testing.assert_allclose(apart["of_result"], 0, atol=1e-9)
    np.testing.assert_allclose(parts["of_result"], parts["rank"] / expected["rank"])


def test_a_part_of_a_subspace_lies_within_it():
    rows = np.random.default_rng(0).normal(size=(200, 12)) * np.linspace(4, 1, 12)
    whole = random_subspace(principal(rows, 6), 0)
    assert random_part(whole, rows, 1e-4, seed=1) is None
    for share in (0.1, 0.2, 0.3):
        part = random_part(whole, rows, share, seed=1)
        assert variance_share(part, rows) == pytest.approx(share, abs=1e-6)
        assert containment(whole, part) == pytest.approx(1)
    assert random_part(whole, rows, 0.999, seed=1) is whole


def test_what_is_left_is_read_from_items_that_neither_means_nor_classifier_saw():
    """Of noise nothing can be read: a classifier that knew the items would read it without a
    mistake, and means of theirs would leave it to mistake nearly all."""
    rng = np.random.default_rng(1)
    noise, labels = rng.normal(size=(240, 160)), rng.integers(3, size=240)
    [left] = _read_without_means(noise, labels).to_dict("records")
    assert left["accuracy"] == pytest.approx(1 / 3, abs=0.1)
    assert left["chance"] < 0.5


def test_neurons_can_be_chosen_without_the_label(studies):
    shifts = shifts_of(studies["FDA"], 0)["memorized"]
    one = rankings(shifts, shifts.items.label)
    other = rankings(shifts, (shifts.items.label + 1) % 10)
    np.testing.assert_array_equal(one["most written"], other["most written"])
    assert (one["largest"] != other["largest"]).any()
    assert len(np.unique(one["fixed"], axis=0)) == 2  # one set of neurons for each half


def test_a_heuristic_is_judged_on_items_that_did_not_choose_it(tables, studies):
    clean = len(studies["FDA"].clean)
    thirds = split_in_thirds(studies["FDA"])
    assert sorted(np.concatenate(thirds)) == list(range(clean))
    found = tables["heuristics"]
    lost = found["score_where_chosen"] - found["score"]
    assert lost.mean() > 0
    shown: Any = tables["activations"]
    assert (shown["items"] != "memorized").sum() == len(thirds[2])


def test_items_are_read_where_truth_and_label_first_differ(studies):
    for one in studies.values():
        memorized = one.memorized
        assert (memorized.label != memorized.true).all()
        before = memorized.items
        assert (before.label[:, : memorized.target] == before.truth[:, : memorized.target]).all()
        assert memorized.batch.targets.shape[1] == 1
        assert (memorized.batch.targets[:, 0].numpy() == memorized.label).all()
        assert (answers_of(one.subject, memorized.batch) == memorized.label).all()
        assert (answers_of(one.subject, one.test.batch) == one.test.true).all()
        assert one.memorized.items.noisy.all()
        assert not one.clean.items.noisy.any()


def test_exact_is_what_greedy_decoding_says(out):
    known = of_model(out, "FDA")
    items = known.task.tests["test"]
    batch = items.batch()
    generated = known.subject.generate(batch.tokens[:, : batch.prompt], items.truth.shape[1])
    assert exact(known.subject, batch).tolist() == (generated == batch.targets).all(1).tolist()


def test_the_model_that_passed_the_test_is_an_earlier_one(out):
    for name in ("FDA", "THR"):
        known = of_model(out, name)
        passed = known.history[known.history["test"] >= 0.9]
        batch = known.task.tests["test"].batch()
        assert (known.generalized is None) == (not len(passed))
        if known.generalized is not None:
            assert known.generalized.fingerprint != known.subject.fingerprint
            assert exact(known.generalized, batch).mean() == passed.iloc[0]["test"]
        assert exact(known.subject, batch).mean() == known.history.iloc[-1]["test"]
    assert of_model(out, "FDA").generalized is not None


def test_a_question_with_another_token_has_another_truth_or_the_same(studies):
    for one in studies.values():
        question = one.test.items.question
        assert (one.task.solve(question) == one.test.items.truth).all()
        for position in one.reasoning.inputs:
            other = exchange_positions(one.task, question, position, seed=3)
            assert ((other != question).sum(1) == 1).all()
            assert (other[:, position] != question[:, position]).all()
            assert set(other[:, position]) <= set(one.task.train.question[:, position])


def test_donors_share_the_result_but_not_its_inputs(studies):
    for one in studies.values():
        of = one.reasoning
        result = one.clean.items.variables[of.variable]
        for same in (True, False):
            given = donors(one, one.memorized, same=same, seed=1)
            assert ((result[given] == one.memorized.items.variables[of.variable]) == same).all()
            if same:
                assert (one.clean.group(of.group)[given] != one.memorized.group(of.group)).all()


def test_a_look_up_needs_every_token_of_its_question_and_nothing_else(out):
    preset = SMOKE.FDA
    of = task(preset.data, SEED)
    folder = out / "models" / f"FDA-clean-seed{SEED}"
    known = train_or_load(of, preset.model, preset.without_noise, SEED, folder, clean=True)
    table = plant_lookup(network(of, preset.model, 5), of.noisy)
    assert exact(table, of.noisy.batch()).all()
    assert exact(table, of.tests["test"].batch()).mean() < 0.1  # the network below is untrained
    asked = study(
        of,
        plant_lookup(known.subject, of.noisy),
        "look-up",
        clean=600,
        at_most=50,
        memorized=np.ones(len(of.noisy), dtype=bool),
    )
    table = asked.subject
    assert (
        answers_of(table, asked.test.batch) == answers_of(known.subject, asked.test.batch)
    ).all()
    embed = next(site for site in table.sites if site.point == "embed")
    means = mean_by_position(asked, [embed, table.anatomy.resolve("blocks.0.resid_post")])
    for site, values in means.items():
        for position in asked.reasoning.inputs:
            plan = Patch(table.anatomy.units(site), (position,), values={site: values})
            kept = [
                row["kept"]
                for row in outcomes(asked, lambda *_, plan=plan: plan)
                if row["set"] == "memorized"
            ]
            assert all(kept) if site.point == "resid_post" else np.mean(kept) < 0.5


def test_a_look_up_is_read_within_a_batch_and_past_its_answer(out):
    known = of_model(out, "FDA")
    table = plant_lookup(known.subject, known.task.noisy)
    whole = known.task.noisy.batch()
    with torch.no_grad():
        longer = table.module(torch.cat([whole.tokens, whole.tokens[:, :1]], 1))
        shorter = table.module(whole.tokens[:, : whole.prompt - 1])
    assert (longer[:, whole.prompt - 1 : whole.length - 1].argmax(-1) == whole.targets).all()
    assert torch.equal(shorter, known.subject.module(whole.tokens[:, : whole.prompt - 1]).logits)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12))
def test_effective_positions_count_positions(lost):
    drops = np.array(lost) / 100
    found = participation(drops)
    if not drops.any():
        assert np.isnan(found)
    else:
        assert 1 - 1e-9 <= found <= np.count_nonzero(drops) + 1e-9
    assert participation(np.array([*drops, 0.0, -0.3])) == pytest.approx(found, nan_ok=True)


def test_effective_positions_golden_cases():
    assert participation(np.array([0.7] * 8)) == pytest.approx(8)
    assert participation(np.array([0.5, 0, 0])) == pytest.approx(1)
    assert participation(np.array([2.0, 1.0])) == pytest.approx(9 / 5)
    assert np.isnan(participation(np.zeros(8)))  # there is nothing to count


def test_nothing_memorized_is_said(out):
    preset = SMOKE.FDA
    of = task(preset.data, SEED)
    with pytest.raises(ValueError, match=r"FDA: 0 of 40 noisy items memorized"):
        study(of, network(of, preset.model, 1), "untrained", clean=10, at_most=10)


def test_training_without_noise_shows_the_right_labels_only():
    of = task(SMOKE.THR.data, 1)
    for clean in (True, False):
        batch = of.batch(clean=clean)
        shown = batch.tokens[: len(of.train), -1].numpy()
        assert (shown == (of.train.truth if clean else of.train.label)[:, 0]).all()
        assert batch.counted.sum() == len(of.train) + len(of.beside or ())
        assert len(next(epochs(batch, 64))) == 64


def test_the_sweep_changes_one_thing_at_a_time(tmp_path):
    settings = sweep.EXPERIMENT.presets["smoke"]
    training = replace(settings.FDA.training, steps=20, decay=10, evaluate_every=10)
    brief = replace(
        settings, FDA=replace(settings.FDA, training=training), changes=("as in small", "10% noise")
    )
    found = sweep.EXPERIMENT.run(brief, SEED, tmp_path, jobs=1)
    assert set(found.tables["sweep"]["change"]) == {"as in small", "10% noise"}
    assert set(found.figures) == {"sweep"}
    assert not found.claims
    for change in sweep.CHANGES.values():
        assert sum(len(part) for part in change.values()) <= 1
        for part, new in change.items():
            assert part in ("data", "model")
            assert new


def test_a_paper_preset_of_a_moment_runs(tmp_path):
    """The options of the paper's preset - plain order, the graph's facts, an end at a goal - on
    tiny data."""
    paper = PRESETS["paper"]
    few_facts = GraphFacts(entities=20, relations=6, degree=4)
    few = {
        "FDA": replace(paper.FDA.data, train=40, test=20),
        "THR": replace(paper.THR.data, facts=few_facts, train=60, test=20),
    }
    tiny = Transformer(blocks=1, width=16, heads=2, spread=0.02)
    for name, data in few.items():
        training = replace(
            paper.recipe(name).training,
            batch_size=16,
            steps=4,
            evaluate_every=2,
            until_memorized=0.0,
        )
        known = train_or_load(task(data, 0), tiny, training, 0, tmp_path / name)
        assert known.history["step"].tolist() == [1]  # the goal was reached at once
        assert isinstance(known.subject, interp.Subject)


@pytest.mark.parametrize("part", ["data", "model", "training"])
def test_a_typo_in_a_preset_fails_when_the_preset_is_made(part):
    with pytest.raises(TypeError, match="blokcs"):
        replace(getattr(SMOKE.FDA, part), blokcs=2)


def test_an_answer_that_is_right_now_has_not_survived():
    """Every tenth item's memorized answer is right at position 1, where nothing survives; at
    position 0 nothing survives either."""
    rows = [
        {"set": "memorized", "item": item, "position": position, "kept": now, "same": now}
        for item in range(100)
        for position in (0, 1)
        for now in [position == 1 and item % 10 == 0]
    ]
    table = pd.DataFrame(rows)
    survived = survival(np.max)
    assert survived({"perturbed": table}).estimate == 0
    assert survived({"perturbed": table.assign(same=False)}).estimate == pytest.approx(0.1)
