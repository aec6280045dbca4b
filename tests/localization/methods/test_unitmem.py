"""Laws of UnitMem: what a naive reading of its formula gives, streamed."""

from __future__ import annotations

import memory
import numpy as np
import pytest
import tiny
import torch

import interp
from interp.localization import localize, localize_each
from interp.localization.methods.unitmem import unitmem


@pytest.fixture(params=tiny.ALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def naive(rows: np.ndarray) -> np.ndarray:
    """[examples, columns] mean |activation| to selectivity [columns], one column after the other."""
    scores = []
    for column in rows.T:
        top = column.argmax()
        largest, rest = column[top], np.delete(column, top).mean()
        scores.append((largest - rest) / (largest + rest) if largest > 0 else 0.0)
    return np.array(scores)


def examples(name: str, rows: int = 6) -> interp.Batch:
    return tiny.batch(name, rows=rows, padded=True, dtype=torch.float64)


def test_it_is_the_formula_on_recorded_rows_and_lies_between_0_and_1(name):
    subject, batch = tiny.subject(name, torch.float64), examples(name)
    sites = subject.anatomy.expand(
        ("neurons", "heads", "mlp_out")
        if interp.Site("neurons", 0) in subject.sites
        else ("heads", "mlp_out")
    )
    rows = interp.record(subject, batch, sites, reduce="rows_abs")
    for site, (scores, example) in unitmem(subject, batch, sites).items():
        units = subject.anatomy.place(site).units
        columns = rows[site].reshape(len(batch), -1)
        np.testing.assert_allclose(
            scores, naive(columns).reshape(units, -1).mean(1), rtol=1e-4, atol=1e-7
        )
        assert ((scores >= 0) & (scores <= 1)).all()
        strongest = columns.max(0).reshape(units, -1).argmax(1) + np.arange(units) * (
            columns.shape[1] // units
        )
        assert (example == columns.argmax(0)[strongest]).all()


@pytest.mark.parametrize("size", [1, 4])
def test_the_size_of_a_batch_changes_nothing(size):
    subject = tiny.subject("llama", torch.float64)
    batch = examples("llama")
    sites = subject.anatomy.expand("neurons")
    whole, parts = unitmem(subject, batch, sites), unitmem(subject, batch.split(size), sites)
    for site in sites:
        np.testing.assert_allclose(whole[site][0], parts[site][0], rtol=1e-9)
        assert (whole[site][1] == parts[site][1]).all()


def test_dead_units_score_0():
    subject = tiny.subject("llama", torch.float64)
    site = interp.Site("neurons", 1)
    dead = tiny.units(subject, site, [0, 7])
    with subject.intervened(interp.Zero(dead)):
        scores, _ = unitmem(subject, examples("llama"), (site,))[site]
    assert scores[[0, 7]].tolist() == [0, 0]
    assert (np.delete(scores, [0, 7]) > 0).all()


def test_units_that_a_control_moves_most_score_0_and_others_as_over_all_windows():
    subject = tiny.subject("llama", torch.float64)
    memorized, control = memory.random_tokens(4, 1), memory.random_tokens(4, 2)
    scores = localize(
        subject, memory.frame(memorized), memory.frame(control), method="unitmem", site="neurons"
    )
    sites = subject.anatomy.expand("neurons")
    together = unitmem(subject, interp.Batch(torch.cat([memorized, control]), memory.PREFIX), sites)
    ours = np.concatenate([example < 4 for _, example in together.values()])
    assert 0 < ours.sum() < len(ours)
    for site, (value, example) in together.items():
        np.testing.assert_allclose(scores[site], np.where(example < 4, value, 0), rtol=1e-9)


@pytest.mark.parametrize("with_reference", [False, True])
def test_a_set_scores_the_largest_score_of_its_windows_and_each_unit_belongs_to_one(with_reference):
    subject = tiny.subject("llama", torch.float64)
    memorized, control = (
        memory.frame(memory.random_tokens(4, 1)),
        memory.frame(memory.random_tokens(4, 2)) if with_reference else None,
    )
    group, each = (
        call(subject, memorized, control, "unitmem") for call in (localize, localize_each)
    )
    assert len(each) == 4
    for site in subject.anatomy.expand("neurons"):
        rows = np.stack([scores[site] for scores in each])
        np.testing.assert_array_equal(rows.max(0), group[site])
        assert ((rows > 0).sum(0) == (group[site] > 0)).all()
        if not with_reference:
            activity = interp.record(subject, memorized, site, reduce="rows_abs")[site]
            assert (rows.argmax(0) == activity.argmax(0)).all()


def test_one_example_cannot_be_compared():
    subject = tiny.subject("llama")
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        unitmem(subject, examples("llama", rows=1), subject.anatomy.expand("neurons"))
    for call in (localize, localize_each):
        with (
            tiny.untouched(subject.module),
            pytest.raises(ValueError, match="expected at least 2, got 1"),
        ):
            call(subject, memory.frame(memory.random_tokens(1, 1)), method="unitmem")
