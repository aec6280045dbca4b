"""Every localization method on models that predict whole scales, or begin from a class: the calls
are those of text."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from quick import NAMES, QUICK, UNIT_BY_UNIT

import interp
from interp.localization import localize, localize_each
from interp.localization.predicting_positions import predicting_positions


@pytest.fixture(params=["var", "rar"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    ("site", "method"),
    [
        (site, method)
        for site in ("neurons", "heads")
        for method in NAMES
        # A method that pays a forward for every unit is shown on the few heads.
        if method != "causal_tracing" and (site == "heads" or method not in UNIT_BY_UNIT)
    ],
)
def test_every_method_scores_images_against_others_and_leaves_no_trace(name, method, site):
    subject = tiny.subject(name, torch.float64)
    ours, others = tiny.image_batch(name, rows=3), tiny.image_batch(name, rows=3, seed=1)
    sites = f"blocks.1.{site}" if method in UNIT_BY_UNIT else site
    with tiny.untouched(subject.module):
        scores = localize(subject, ours, others, method=method, site=sites, **QUICK.get(method, {}))
    assert len(scores) == len(subject.anatomy.units(sites))
    assert (
        method in ("lowest", "smallest") or np.ptp(np.concatenate(list(scores.values.values()))) > 0
    )


def test_there_is_nothing_to_spoil_in_a_class(name):
    subject, batch = tiny.subject(name, torch.float64), tiny.image_batch(name, rows=2)
    with pytest.raises(ValueError, match=r"nothing to disturb.*label \(torch.int64\)"):
        localize(subject, batch, method="causal_tracing", site="neurons")


@pytest.mark.parametrize("prompt", [0, 1, 5])
def test_activity_is_averaged_over_the_positions_that_predict_the_targets(name, prompt):
    """In VAR position t predicts token t, in RAR position t + 1."""
    subject, batch = tiny.subject(name, torch.float64), tiny.image_batch(name, rows=2)
    asked = interp.Batch(batch.tokens, prompt, groups=batch.groups, conditioning=batch.conditioning)
    site = interp.Site("neurons", 0)
    start = prompt + (name == "rar")
    assert predicting_positions(subject, asked, (site,)) == {"": start}
    raw = tiny.values_by_hand(subject, asked, site)[:, start : start + batch.length - prompt]
    writes = subject.anatomy.out_weight(subject.module, site).norm(dim=1)
    found = localize_each(subject, asked, method="activation", site="neurons")
    for row, scores in enumerate(found):
        np.testing.assert_allclose(
            scores[site], (raw[row].abs().mean(0) * writes).detach().numpy(), rtol=1e-9
        )
