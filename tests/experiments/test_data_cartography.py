"""The study of data cartography end to end on small models, and laws of what its claims are made
of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import figure_laws
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from experiments.data_cartography import EXPERIMENT, bounds
from experiments.data_cartography.build import DEDUPLICATE, NOTHING, PRUNE, of_network
from experiments.data_cartography.corpus import CANARY, draw
from experiments.data_cartography.presets import DROP, FORGET, ORACLE, PRESETS, RANDOM, Convex
from experiments.data_cartography.study import (
    CANARIES,
    all_scores,
    first_copies,
    first_training,
    leakage,
    scores_to_prune_by,
    second_training,
)

SMOKE = PRESETS["smoke"]
GPT, LSTM = SMOKE.networks
SEED = 7


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out: Path = tmp_path_factory.mktemp("data_cartography")
    return EXPERIMENT.run(SMOKE, SEED, out, jobs=1, device="cpu")


@pytest.fixture(scope="module")
def rows() -> Any:
    return draw(SMOKE.corpus, SEED)


@pytest.fixture(scope="module")
def probe(rows: Any) -> Any:
    return first_training(GPT, rows, SEED)


def test_every_claim_is_measured_and_every_figure_can_be_read(results: Any):
    assert not [claim.id for claim in results.claims if claim.measured is None]
    wanted = {"B1, 10%, GPT", "B2, 10%, GPT", "B3 leakage, GPT", "B4 GPT", "B5", "B6 gap", "B7 GPT"}
    assert wanted <= {claim.id for claim in results.claims}
    assert set(results.figures) == {*EXPERIMENT.figures, "verdicts"}
    for name, figure in results.figures.items():
        try:
            figure_laws.check(figure)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_claims_are_read_from_the_tables(results: Any):
    by_id = {claim.id: claim for claim in results.claims}
    sequences = results.tables["sequences"]
    most = sequences.query("model == 'GPT' and kind == 'canary' and copies == 8")
    pruned = most[(most["action"] == PRUNE) & (most["by"] == FORGET)]["exact"].mean()
    random = most[(most["action"] == PRUNE) & (most["by"] == RANDOM)]["exact"].mean()
    assert by_id["B1, 10%, GPT"].measured == pytest.approx(pruned - 0.6 * random)
    held_out = sequences.query("model == 'GPT' and kind == 'held-out text'")
    after = held_out[(held_out["action"] == PRUNE) & (held_out["by"] == FORGET)]["loss"].mean()
    before = held_out[held_out["action"] == NOTHING]["loss"].mean()
    assert by_id["B2, 10%, GPT"].measured == pytest.approx(after - before)


def test_a_run_without_pruning_is_extracted_and_what_was_never_planted_is_not(results: Any):
    sequences = results.tables["sequences"]
    plain = sequences[sequences["action"] == NOTHING]
    for model in ("GPT", "LSTM"):
        of_model = plain[plain["model"] == model]
        assert of_model.query("kind == 'canary' and copies == 8")["exact"].mean() == 1
        assert of_model.query("kind == 'held-out canary'")["exact"].mean() == 0
        once = sequences[(sequences["action"] == DEDUPLICATE) & (sequences["model"] == model)]
        assert once.query("kind == 'canary'")["exact"].mean() == 0


def test_every_run_changes_the_share_of_rows_that_it_says(results: Any):
    runs = results.tables["runs"]
    pruned = runs[runs["action"] == PRUNE]
    assert len(pruned) == len(GPT.pruned) + len(LSTM.pruned)
    assert (pruned["changed"] == np.floor(pruned["share"] * SMOKE.corpus.rows)).all()
    assert pruned["above_zero"].between(0, 1).all()
    assert (pruned[pruned["by"] == RANDOM]["above_zero"] == 1).all()
    copied = SMOKE.corpus.rows - SMOKE.corpus.once - SMOKE.corpus.repeated
    copied -= SMOKE.corpus.canaries * len(SMOKE.corpus.copies)
    assert (runs[runs["action"] == DEDUPLICATE]["changed"] == copied).all()


def test_rows_are_what_the_table_says_of_them(rows: Any):
    table = rows.table
    assert len(rows.train) == SMOKE.corpus.rows
    counted = np.bincount(rows.numbers)
    assert counted.tolist() == table["copies"].tolist()
    canaries = table[table["kind"] == CANARY]["copies"]
    assert canaries.tolist() == [1, 1, 4, 4, 8, 8]
    everything = torch.cat([rows.sequences, rows.held_out, rows.references])
    assert len(torch.unique(everything, dim=0)) == len(everything)
    assert first_copies(rows).sum() == len(rows.sequences)
    with pytest.raises(ValueError, match="expected at least 1000018"):
        draw(replace(SMOKE.corpus, once=10**6), SEED)


def test_recording_and_weights_of_one_change_nothing(rows: Any, probe: Any):
    """To the bit: what a second training does differently is due to its weights alone."""
    weights = np.ones(SMOKE.corpus.rows)
    everything = np.ones(SMOKE.corpus.rows, dtype=bool)
    for options in ({}, {"weights": weights}, {"kept": everything}):
        found = second_training(GPT, rows, SEED, **options).module.state_dict()
        for name, value in probe.subject.module.state_dict().items():
            assert torch.equal(found[name], value), (name, options.keys())


@pytest.mark.parametrize("network", [GPT, LSTM], ids=["GPT", "LSTM"])
def test_both_models_predict_from_the_tokens_before_alone(network: Any, rows: Any):
    from experiments.data_cartography.models import untrained
    from interp.subject.batch import Batch

    subject = untrained(network, rows.vocabulary, SMOKE.corpus.length, SEED)
    tokens = rows.sequences[:3].clone()
    before = subject.losses(Batch(tokens))[:, :9]
    tokens[:, 10:] = 0
    assert torch.allclose(subject.losses(Batch(tokens))[:, :9], before, atol=1e-5)


def test_scores_of_sequences_are_those_of_their_rows(rows: Any, probe: Any):
    scores = all_scores(probe, rows)
    by_row = probe.at_checkpoints.loss_drop
    assert scores[DROP].to_numpy()[rows.numbers] == pytest.approx(by_row, abs=1e-4)
    assert scores[FORGET].between(0, 1).all()
    to_prune_by = scores_to_prune_by(probe, rows, SEED)
    assert set(np.unique(to_prune_by[ORACLE])) == {0, 1, 4, 8}
    moments = probe.at_presentations.losses.shape[0]
    assert 2 <= moments <= GPT.epochs  # rows that fill no batch are left out of an epoch


def test_an_auc_is_that_of_scikit_learn(results: Any, rows: Any, probe: Any):
    table = results.tables["separation"]
    chosen = table[(table["contrast"] == CANARIES) & (table["score"] == DROP)]
    chosen = chosen[chosen["model"] == "GPT"]
    scores = all_scores(probe, rows)[DROP]
    repeated = (rows.table["kind"] == CANARY) & (rows.table["copies"] > 1)
    once = (rows.table["kind"] != CANARY) & (rows.table["copies"] == 1)
    either = repeated | once
    assert chosen["auc"].item() == pytest.approx(roc_auc_score(repeated[either], scores[either]))


def test_leakage_of_a_model_that_knows_nothing_is_none(rows: Any):
    from experiments.data_cartography.models import untrained

    subject = untrained(LSTM, rows.vocabulary, SMOKE.corpus.length, SEED)
    table, summary = leakage(subject, rows)
    assert table["exact"].sum() == 0
    assert table[table["kind"] == "text"]["exact"].isna().all()
    assert 0.2 < summary["auc_canaries"] < 0.8
    assert table["loss"].mean() == pytest.approx(np.log(rows.vocabulary), abs=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_influence_is_never_below_its_bound(seed: int):
    found = bounds.influence(Convex(samples=20, dimensions=5), seed)
    assert not found["violated"].any()
    assert (found["bound"] > 0).any()  # a bound of 0 cannot be violated
    assert (found["events"] <= found["published"]).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_gap_is_below_its_bound_and_falls_with_the_weights(seed: int):
    table = bounds.stability(Convex(samples=20, dimensions=5, draws=200), seed)
    groups: Any = table.groupby("weights")
    gap, bound = groups["gap"].mean(), groups["bound"].mean()
    assert (gap < bound).all()
    order = [bounds.PLAIN, bounds.HALVED, bounds.REMOVED]
    assert gap[order].is_monotonic_decreasing
    assert bound[order].is_monotonic_decreasing
    # The bound of uniform stability by hand: 12 of 40 lengths are 2, the rates add up to 30.
    plain: Any = bounds.stability(Convex(draws=2), seed)
    by_hand = plain[plain["weights"] == bounds.PLAIN]["bound"]
    assert by_hand.tolist() == pytest.approx([2 * 2 / 40 * 30 * (12 * 2 + 28) / 40] * 2)


def test_a_learning_rate_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="lr=2"):
        bounds.stability(Convex(lr=2.0, draws=2), 0)


def test_the_same_seed_gives_the_same_tables(results: Any):
    small = replace(LSTM, pruned=LSTM.pruned[:1])
    again = of_network(SMOKE.corpus, small, SEED)
    table = results.tables["runs"].query("model == 'LSTM'")
    found = again["runs"].merge(table, on=list(again["runs"].columns))
    assert len(found) == len(again["runs"])
