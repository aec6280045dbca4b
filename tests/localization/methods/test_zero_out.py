"""Laws of Zero-Out: what zeroing each unit alone does, as a plain ablation measures it."""

from __future__ import annotations

import pytest
import tiny
import torch

import interp
from interp.localization import localize_each
from interp.localization.methods.zero_out import exact


def loss(subject: interp.Subject, window: interp.Batch) -> float:
    with torch.no_grad():
        return float(subject.losses(window).sum() / window.counted.sum())


@pytest.mark.parametrize("point", ["neurons", "heads", "blocks"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "policy"])
def test_it_is_the_loss_under_each_ablation_less_the_loss_without(name, point):
    subject = tiny.subject(name, torch.float64)
    batch = tiny.batch(name, 2, prompt=4, padded=True, dtype=torch.float64)
    places = subject.anatomy.expand("block_out" if point == "blocks" else point)
    few = interp.Units(
        {s: {0, subject.anatomy.place(s).units - 1} for s in places}, subject.anatomy.widths(places)
    )
    scores = localize_each(subject, batch, method="zero_out", site=places[1:2], exhaustive=True)
    for row, window in zip(scores, batch.split(1), strict=True):
        found, clean = exact(subject, window, few), loss(subject, window)
        for site, unit in few:
            place = subject.anatomy.place(site)
            columns = torch.arange(place.width).chunk(place.units)[unit]
            with tiny.by_hand(
                subject.module, place, lambda v, columns=columns: v.index_fill(-1, columns, 0)
            ):
                effect = loss(subject, window) - clean
            assert float(found[site][unit]) == pytest.approx(effect, rel=1e-6, abs=1e-9)
            if site == places[1]:
                assert row[site][unit] == pytest.approx(effect, rel=1e-6, abs=1e-9)


def test_units_that_were_not_asked_for_have_no_effect():
    subject = tiny.subject("llama")
    units = tiny.units(subject, "blocks.1.neurons", [3, 5])
    found = exact(subject, tiny.batch("llama", 1, prompt=4), units)
    row = found[interp.Site("neurons", 1)]
    assert row.nonzero().flatten().tolist() == [3, 5]


def test_what_a_window_does_not_verify_scores_0_whatever_the_reference_says(monkeypatch):
    monkeypatch.setitem(exact.__globals__, "FEW", 0)
    subject, batch = tiny.subject("llama"), tiny.batch("llama", 2, prompt=4)
    reference, site = tiny.batch("llama", 1, prompt=4, seed=7), interp.Site("neurons", 1)
    rows = localize_each(subject, batch, reference, "zero_out", site=site, share=0.1)
    scored = [set(row[site].nonzero()[0].tolist()) for row in rows]
    few = round(0.1 * subject.anatomy.place(site).units)
    assert [len(units) for units in scored] == [few, few]
    assert scored[0] != scored[1]
