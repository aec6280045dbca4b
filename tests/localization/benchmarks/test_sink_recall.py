"""The recall of sinks by hand, on scores that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import interp
from interp.localization import registry
from interp.localization.benchmarks.known_answers import Choice
from interp.localization.benchmarks.sinks import sink_recall
from interp.mitigation.sinks import Sinks

FIRST = 3  # the neurons that each window's score is highest at begin with this


@pytest.fixture
def known_scores():
    """A method that scores neurons by their distance from the first true one, downwards."""

    @registry.window_method("known")
    def known(subject, batch, sites):
        widths = subject.anatomy.widths(sites)
        scores = {}
        for site, width in widths.items():
            row = -np.abs(np.arange(width) - FIRST).astype(float)
            scores[site] = np.tile(row, (len(batch), 1))
        return {site: torch.tensor(value) for site, value in scores.items()}

    yield
    del registry._METHODS["known"]


def test_recall_is_that_of_the_highest_scores_by_hand(known_scores):
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=2)
    sinks = Sinks.of(subject, general=0.0, active=0.5)
    # Of the first window the four neurons around the highest score, of the second none of them.
    site = subject.anatomy.expand("neurons")[0]
    near = subject.units(site, [2, 3, 4, 10])
    far = subject.units(site, [30, 31, 46, 47])
    found = sink_recall(
        subject, sinks.scaled(), sinks.pool, [near, far], batch, {"known": Choice("known")}
    )
    own = found[found["truth"] == "own sinks"].set_index(["window", "selection"])["recall"]
    assert own[0, "highest"] == pytest.approx(3 / 4)  # 1, 2, 3, 4 or 2, 3, 4, 5 are predicted
    assert own[1, "highest"] == 0
    assert own[0, "lowest"] == 0
    assert own[1, "lowest"] == pytest.approx(2 / 4)
    # All neurons are sinks here, so that any prediction finds the pool.
    pool = found[found["truth"] == "pool"]
    assert pool["recall"].to_numpy() == pytest.approx(1)


def test_chance_is_the_share_of_true_neurons(known_scores):
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=8)
    sinks = Sinks.of(subject, general=0.5, active=0.25)
    own = [sinks.units([number + 1]) for number in range(8)]
    found = sink_recall(subject, sinks.scaled(), sinks.pool, own, batch, {"known": Choice("known")})
    random = found[found["selection"] == "random"].groupby("truth")["recall"].mean()
    assert random["own sinks"] == pytest.approx(6 / 48, abs=0.03)
    assert random["own sinks, among sinks"] == pytest.approx(6 / 24, abs=0.04)
    assert random["pool"] == pytest.approx(0.5, abs=0.04)


def test_the_model_is_searched_under_the_plan_and_is_as_before():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=2)
    sinks = Sinks.of(subject, general=0.5, active=0.25)
    own = [sinks.units([1]), sinks.units([2])]
    methods = {"gradient": Choice("gradient_x_activation")}
    before = subject.fingerprint
    found = sink_recall(subject, sinks.scaled(), sinks.pool, own, batch, methods)
    assert subject.fingerprint == before
    with subject.intervened(sinks.scaled()):
        scores = interp.localize(subject, batch, method="gradient_x_activation")
    predicted = scores.top_per_site(0.5)
    expected = len(predicted & sinks.pool) / len(sinks.pool)
    of_pool = found[(found["truth"] == "pool") & (found["selection"] == "highest")]
    assert of_pool["recall"].item() == pytest.approx(expected, abs=0.02)


def test_a_reference_that_can_be_read_once_is_read_by_every_method():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=2)
    sinks = Sinks.of(subject, general=0.5, active=0.25)
    own = [sinks.units([number + 1]) for number in range(2)]
    choice = Choice("activation", compares=True)
    arguments = (subject, sinks.scaled(), sinks.pool, own, batch, {"a": choice, "b": choice})
    reference = tiny.batch("llama", rows=3, seed=1)
    found = sink_recall(*arguments, iter([reference]))
    pd.testing.assert_frame_equal(found, sink_recall(*arguments, reference))


def test_sinks_of_other_windows_are_refused():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=2)
    sinks = Sinks.of(subject, general=0.5, active=0.25)
    with pytest.raises(ValueError, match="sinks of 1 documents were given for 2 windows"):
        sink_recall(subject, sinks.scaled(), sinks.pool, [sinks.units([1])], batch, {})
