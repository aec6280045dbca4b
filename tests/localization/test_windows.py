"""Laws of localize_each and localize: no window sees another, and a set scores the mean over its
windows, less the reference's."""

from __future__ import annotations

from typing import Any

import memory
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from quick import NAMES, NEEDY, QUICK, UNIT_BY_UNIT

import interp
from interp.localization import localize, localize_each

MEMORIZED, REFERENCE = (
    memory.frame(memory.random_tokens(3, 1)),
    memory.frame(memory.random_tokens(2, 2)),
)
ALONE = tuple(
    name for name in NAMES if name != "unitmem"
)  # which alone compares the windows of a set


def heads(subject: interp.Subject, method: str) -> tuple[interp.Site, ...]:
    """The heads of every block, or those of the last alone for a method that pays for each."""
    every = subject.anatomy.expand("heads")
    return every[-1:] if method in UNIT_BY_UNIT else every


@pytest.mark.parametrize("method", ALONE)
@pytest.mark.parametrize("name", ["gpt2", "policy"])
def test_a_window_scores_the_same_in_any_company(name, method):
    subject = tiny.subject(name, torch.float64)
    batch, reference = (
        tiny.batch(name, rows, prompt=4, seed=rows, padded=True, dtype=torch.float64)
        for rows in (3, 2)
    )
    options: dict[str, Any] = {"site": heads(subject, method)} | QUICK.get(method, {})
    sized = (
        [{}] if method in ("neuron_flipping", "random") else [{"batch_size": 2}, {"batch_size": 16}]
    )
    runs = [localize_each(subject, batch, reference, method, **options, **size) for size in sized]
    runs.append(
        [
            localize_each(subject, window, reference, method, **options)[0]
            for window in batch.split(1)
        ]
    )
    runs.append(
        localize_each(subject, list(batch.split(2)), iter(reference.split(1)), method, **options)
    )
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            for site in options["site"]:
                np.testing.assert_allclose(one[site], other[site], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ALONE)
def test_a_window_scores_the_same_beside_longer_ones(method):
    subject = tiny.subject("gpt2", torch.float64)
    tokens = memory.random_tokens(3, 5).tolist()
    frame = pd.DataFrame(
        {"tokens": [tokens[0][:8], tokens[1], tokens[2][:9]], "prefix": memory.PREFIX}
    )
    options: dict[str, Any] = {"site": heads(subject, method)} | QUICK.get(method, {})
    together = localize_each(subject, frame, REFERENCE, method, **options)
    for row, scores in enumerate(together):
        (alone,) = localize_each(subject, frame.iloc[[row]], REFERENCE, method, **options)
        for site in options["site"]:
            np.testing.assert_allclose(scores[site], alone[site], rtol=1e-5, atol=1e-7)


# What is linear in the windows: random scores depend on none, and the absolute value of a mean
# (`smallest`) is no mean of absolute values.
LINEAR = tuple(name for name in ALONE if name not in ("random", "smallest"))


@pytest.mark.parametrize("method", LINEAR)
def test_a_set_scores_the_mean_over_its_windows(method):
    subject = tiny.subject("gpt2", torch.float64)
    options: dict[str, Any] = {"site": heads(subject, method)} | QUICK.get(method, {})
    for reference in (REFERENCE,) if method in NEEDY else (None, REFERENCE):
        each = localize_each(subject, MEMORIZED, reference, method, **options)
        group = localize(subject, MEMORIZED, reference, method, **options)
        for site in options["site"]:
            np.testing.assert_allclose(
                group[site],
                np.mean([scores[site] for scores in each], axis=0),
                rtol=1e-9,
                atol=1e-12,
            )


@pytest.mark.parametrize("method", [name for name in LINEAR if name not in NEEDY])
def test_what_the_reference_scores_is_taken_off(method):
    subject = tiny.subject("gpt2", torch.float64)
    options: dict[str, Any] = {"site": heads(subject, method)} | QUICK.get(method, {})
    against, ours, theirs = (
        localize(subject, *sets, method=method, **options)
        for sets in ((MEMORIZED, REFERENCE), (MEMORIZED,), (REFERENCE,))
    )
    each = localize_each(subject, MEMORIZED, REFERENCE, method, **options)
    plain = localize_each(subject, MEMORIZED, method=method, **options)
    for site in options["site"]:
        assert np.abs(theirs[site]).max() > 0
        np.testing.assert_allclose(against[site], ours[site] - theirs[site], rtol=1e-9, atol=1e-12)
        for scores, alone in zip(each, plain, strict=True):
            np.testing.assert_allclose(
                scores[site], alone[site] - theirs[site], rtol=1e-9, atol=1e-12
            )
