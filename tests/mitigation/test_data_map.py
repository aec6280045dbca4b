"""The data map: what it marks, where its thresholds are, and what it refuses."""

from __future__ import annotations

import figure_laws
import numpy as np
import pytest

from interp.mitigation.data_map import data_map
from interp.mitigation.reweighting import quadrants

RNG = np.random.default_rng(0)
DIFFICULTY = RNG.normal(5, 1, 200)
DROP = RNG.normal(2, 1, 200)
CANARIES = np.arange(200) < 10


def test_the_map_shows_every_example_its_thresholds_and_its_quadrants():
    figure = data_map(DIFFICULTY, DROP, (50, 90), canaries=CANARIES, score="loss drop (nats)")
    figure_laws.check(figure)
    [axes] = figure.axes
    others, canaries = [np.asarray(marks.get_offsets()) for marks in axes.collections]
    assert np.array_equal(canaries, np.stack([DIFFICULTY, DROP], 1)[CANARIES])
    assert len(others) == 190
    vertical, horizontal = axes.lines
    assert vertical.get_xdata()[0] == np.percentile(DIFFICULTY, 50)
    assert horizontal.get_ydata()[0] == np.percentile(DROP, 90)
    regions = quadrants(DIFFICULTY, DROP, (50, 90))
    names, counts = np.unique(regions, return_counts=True)
    expected = {f"{name}: {count}" for name, count in zip(names, counts, strict=True)}
    assert {text.get_text() for text in axes.texts} == expected


def test_without_canaries_nothing_is_marked():
    figure = data_map(DIFFICULTY, np.zeros(200))
    figure_laws.check(figure)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["training examples", "thresholds of the quadrants"]


def test_marks_of_other_examples_are_refused():
    with pytest.raises(ValueError, match="marks of 3 examples: expected 200"):
        data_map(DIFFICULTY, DROP, canaries=CANARIES[:3])
    with pytest.raises(ValueError, match="scores of 200 and of 3"):
        data_map(DIFFICULTY, DROP[:3])
