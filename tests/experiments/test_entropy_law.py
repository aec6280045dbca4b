"""The study of the entropy law end to end on models of a moment, and laws of its corpus."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import figure_laws
import numpy as np
import pandas as pd
import pytest
import torch

from experiments.entropy_law import EXPERIMENT, build, corpus
from experiments.entropy_law.checks import _beats_shuffles, slope, step_below
from experiments.entropy_law.presets import PRESETS, Network, Strings
from interp.memorization.entropy.scored_windows import ScoredWindows

TINY = replace(
    PRESETS["smoke"],
    network=Network(architecture="llama", width=16, layers=1, lr=4e-3),
    other=Network(architecture="gpt2", width=16, layers=1, lr=4e-3),
    copies=(2, 8),
    gibberish=6,
    gibberish_copies=2,
    strings=Strings(alphabets=(2, 16), per_alphabet=3, steps=40, every=20),
)
SEED = 7


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return EXPERIMENT.run(TINY, SEED, tmp_path_factory.mktemp("entropy_law"), jobs=1, device="cpu")


@pytest.fixture(scope="module")
def texts() -> corpus.Corpus:
    return corpus.build(TINY, SEED)


def test_every_claim_is_measured_and_every_figure_can_be_read(results: Any):
    assert len({claim.id for claim in results.claims}) == len(results.claims)
    assert not [claim.id for claim in results.claims if claim.measured is None]
    assert set(results.figures) == {*EXPERIMENT.figures, "verdicts"}
    for figure in results.figures.values():
        figure_laws.check(figure)


def test_claims_are_read_from_the_tables(results: Any):
    by_id = {claim.id: claim for claim in results.claims}
    fits: Any = results.tables["fits"]
    twice = fits[fits["data"] == "seen twice"].set_index("quantity")
    assert by_id["A1 raw"].measured == twice.loc["entropy", "r"]
    assert by_id["A1 equal size"].measured == twice.loc["rarefied", "r"]
    assert by_id["C1"].measured == twice.loc["entropy", "null_mean"]
    expected = twice.loc["normalized", "r"] - twice.loc["normalized", "null_mean"]
    assert by_id["A4"].measured == pytest.approx(expected)
    kinds: Any = results.tables["kinds"]
    last = kinds[kinds["step"] == kinds["step"].max()].groupby("kind")["score"].mean()
    assert by_id["P1"].measured == pytest.approx(last["gibberish"] - last["code"])
    strings: Any = results.tables["strings"]
    at = step_below(strings, 0.9)
    assert by_id["P3"].measured == slope(strings[strings["step"] == at])


def test_the_slope_by_hand():
    table = pd.DataFrame({"alphabet": [2, 4, 8], "score": [1.0, 3.0, 5.0]})
    assert slope(table) == pytest.approx(2.0)


def test_strings_are_judged_by_their_score():
    table = pd.DataFrame({"step": [0, 0, 10, 20, 30], "score": [10.0, 10.0, 9.5, 6.0, 1.0]})
    assert [step_below(table, share) for share in (0.96, 0.7, 0.25, 0.05)] == [10, 20, 30, 30]


def test_no_document_is_in_two_parts(texts: corpus.Corpus):
    parts = [texts.once, texts.twice, texts.unseen]
    documents = [tuple(map(tuple, rows)) for part in parts for rows in part]
    assert len(set(documents)) == len(documents)
    assert len(texts.in_packages) == len(texts.twice)


def test_the_training_rows_hold_everything_as_often_as_they_say(texts: corpus.Corpus):
    width = TINY.prefix + TINY.length
    rows = Counter(tuple(window) for window in texts.rows.reshape(-1, width).tolist())
    for copies, passages in texts.planted.items():
        # the last row of planted passages may be cut off
        assert max({rows[tuple(passage)] for passage in passages}) == copies
        assert sum(rows[tuple(p)] for p in passages) >= copies * len(passages) - 1
    for kind in ("gibberish", "code"):
        assert {rows[tuple(string)] for string in texts.kinds[kind]} <= {
            TINY.gibberish_copies,
            TINY.gibberish_copies - 1,
        }
        assert not any(rows[tuple(string)] for string in texts.kinds[f"{kind}, unseen"])
    whole = Counter(tuple(row) for row in texts.rows.tolist())
    for documents, times in ((texts.once, 1), (texts.twice, 2), (texts.unseen, 0)):
        assert {whole[tuple(row)] for rows in documents for row in rows} == {times}


@pytest.mark.parametrize("length", [16, 32, 48, 64])
def test_what_counts_as_seen_was_trained_on(texts: corpus.Corpus, length: int, monkeypatch: Any):
    """Every window is a part of one row of a batch of the training, also those of other lengths."""
    given: list[list[int]] = []

    def score(model: Any, windows: list[list[int]], prefix: int) -> Any:
        assert {len(window) for window in windows} == {prefix + length}
        given.extend(windows)
        return scored

    scored = ScoredWindows.__new__(ScoredWindows)
    monkeypatch.setattr(build, "_score", score)
    monkeypatch.setattr(build, "replace", lambda found, texts: found)
    everything = replace(TINY, windows=10_000)
    build._scored(everything, None, texts.twice, SEED, prefix=length, length=length)
    rows = [row for batch in corpus.training_batches(texts, 7) for row in batch.tokens.tolist()]
    assert len(rows) == len(texts.rows)
    text_of_rows = "\n".join(f" {' '.join(map(str, row))} " for row in rows)
    assert len(given) > 20
    assert all(f" {' '.join(map(str, window))} " in text_of_rows for window in given)


def test_a_slice_that_is_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="at most 64 each"):
        replace(TINY, slice_lengths=(16, 65))


def test_a_fit_without_an_interval_has_failed_no_premise():
    fits = {"quantity": "rarefied", "data": ["a", "b", "c"], "low": [np.nan, 0.5, 0.5]}
    tables = {"fits": pd.DataFrame({**fits, "p": [np.nan, np.nan, 0.01]})}
    assert [_beats_shuffles("rarefied", data)(tables) for data in "abc"] == [True, False, True]


def test_gibberish_is_random_and_as_wide_as_a_window(texts: corpus.Corpus):
    strings = texts.kinds["gibberish"] + texts.kinds["gibberish, unseen"]
    assert len({tuple(string) for string in strings}) == len(strings)
    assert {len(string) for string in strings} == {TINY.prefix + TINY.length}


def test_the_same_seed_gives_the_same_corpus(texts: corpus.Corpus):
    again = corpus.build(TINY, SEED)
    assert torch.equal(again.rows, texts.rows)
    assert not torch.equal(corpus.build(TINY, SEED + 1).rows[:9], texts.rows[:9])


def test_a_row_that_windows_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="row=100: expected a multiple of 64"):
        replace(TINY, row=100)


def test_too_few_passages_are_refused():
    with pytest.raises(ValueError, match="lower `passages`"):
        corpus.build(replace(TINY, passages=10_000), SEED)


def test_random_strings_are_scored_before_and_after(results: Any):
    table: Any = results.tables["strings"]
    assert sorted(table["step"].unique()) == [0, 20, 40]
    assert np.isfinite(table["score"]).all()
    assert table.groupby("step").size().tolist() == [6, 6, 6]
