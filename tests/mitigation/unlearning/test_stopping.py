"""Laws of the stop rule."""

from __future__ import annotations

import math

import letters
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.memorization.recitation import levels, recitation
from interp.mitigation.unlearning.stopping import Stop


def test_a_level_at_its_threshold_is_met():
    """The EL_10 of small models, and so its threshold, is exactly 0: with "below" no training would
    ever stop."""
    stop = Stop({"ma": 0.2, "el_10": 0.0})
    assert stop.met({"ma": 0.2, "el_10": 0.0})
    assert not stop.met({"ma": 0.2001, "el_10": 0.0})
    assert not stop.met({"ma": 0.1, "el_10": 1e-9})
    assert not stop.met({"ma": 0.1, "el_10": math.nan})


def test_without_thresholds_nothing_is_met():
    assert not Stop().met({"ma": 0.0})


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_met_is_equation_7(ma, el, most_ma, most_el):
    stop = Stop({"ma": most_ma, "el_3": most_el})
    assert stop.met({"ma": ma, "el_3": el}) == (ma <= most_ma and el <= most_el)


def test_el_is_measured_near_the_threshold_of_ma():
    subject = letters.subject()
    forget = subject.encode_all(letters.noise(3, 14, seed=0))
    found = levels(recitation(subject, forget, (2, 3)))
    far, near = (Stop({"ma": 0.0, "el_2": 0.1, "el_3": 0.0}, margin=m) for m in (0.0, 1.0))
    assert near.measure(subject, forget) == found
    assert Stop().measure(subject, forget) == {"ma": found["ma"]}
    interp.fit(subject, [forget] * 30, 30, lr=1e-2)
    measured = far.measure(subject, forget)
    assert measured["ma"] > 0
    assert math.isnan(measured["el_2"])
    assert math.isnan(measured["el_3"])


def test_measuring_leaves_no_trace():
    subject = tiny.subject("gpt2")
    batch = tiny.batch("gpt2", rows=3, length=8, padded=True)
    with tiny.untouched(subject.module):
        Stop({"ma": 1.0, "el_2": 0.0}).measure(subject, batch, batch_size=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0 and every=1: expected numbers of epochs"),
        ({"every": 0}, "epochs=100 and every=0"),
        ({"thresholds": {"accuracy": 0.1}}, "a threshold of 'accuracy': expected 'ma' or 'el_<n>'"),
        ({"thresholds": {"el_0": 0.1}}, "a threshold of 'el_0'"),
        ({"thresholds": {"ma": 30.0}}, "the threshold of ma is 30.0: expected 0 to 1"),
        ({"thresholds": {"ma": math.nan}}, "the threshold of ma is nan"),
    ],
)
def test_what_is_no_rule_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Stop(**arguments)
