"""Names in figures: words, and colours that no two of a figure share; and the laws that figures are
checked by refuse what they should."""

from __future__ import annotations

import figure_laws
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.localization import methods
from interp.reporting import looks as module
from interp.reporting.looks import in_percent, in_words, looks
from interp.reporting.panels import bars, level, lines, over_seeds, panels, ranges
from interp.reporting.plotting import dose_response, matrix


def test_every_method_has_a_colour_of_its_own_in_all_figures():
    every = looks(methods())
    assert len({look.colour for look in every.values()}) == len(methods())
    for name in methods():
        assert looks(["something else", name])[name] == every[name]
        assert "_" not in every[name].words


def test_an_eleventh_name_has_a_colour_and_too_many_are_refused():
    assert len({look.colour for look in looks(map(str, range(11))).values()}) == 11
    with pytest.raises(ValueError, match="at most 12 names to tell apart by colour, got 13"):
        looks(map(str, range(13)))


def test_names_with_one_colour_of_their_own_get_two_in_one_figure():
    """What is drawn by chance is grey as random units are, but not next to them."""
    alone = looks(["by chance"])["by chance"]
    random = looks(["random"])["random"]
    assert alone.colour == random.colour
    for names in (["random", "by chance"], ["by chance", "random"]):
        both = looks(names)
        assert both["random"] == random
        assert both["by chance"].colour != random.colour


def test_no_two_names_of_a_figure_share_a_colour():
    named = [name for name in module._NAMED if name != "by chance"]
    assert len({look.colour for look in looks(named).values()}) == len(named)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [("z_score", "z-score", "z-score"), ("as active", "random, as active", "random, as active")],
)
def test_names_that_are_spelled_alike_are_refused(first: str, second: str, words: str):
    with pytest.raises(ValueError, match=f"'{first}' and '{second}' are both spelled '{words}'"):
        looks(["random", first, second])
    assert looks([first, first])[first].words == words


def test_panels_of_numbers_have_their_labels_titles_and_levels():
    """The panels may be given as numbers or as text; the column holds numbers."""
    table = pd.DataFrame({"size": [32, 64], "method": "loss", "auc": [0.6, 0.9], "seed": 0})
    for labels in ({32: "AUC of 32", 64: "AUC of 64"}, {"32": "AUC of 32", "64": "AUC of 64"}):
        levels = dict.fromkeys(labels, 0.5)
        figure = ranges(
            table,
            "method",
            "size",
            "auc",
            label=labels,
            value_of_level=levels,
            level="chance",
            title="Attacks by size",
        )
        assert [axes.get_xlabel() for axes in figure.axes] == ["AUC of 32", "AUC of 64"]
        assert [axes.get_title() for axes in figure.axes] == ["32", "64"]
        assert all(len(axes.get_lines()) == 2 for axes in figure.axes)
    one = {"label": "AUC", "value_of_level": 0.5, "level": "chance", "title": "Attacks by size"}
    figure = ranges(table, "method", "size", "auc", **one)
    assert [axes.get_xlabel() for axes in figure.axes] == ["AUC", "AUC"]
    assert all(len(axes.get_lines()) == 2 for axes in figure.axes)


def test_doses_of_numbered_measures_have_their_labels_and_levels():
    points = pd.DataFrame({"fraction": [0.1, 0.1], "hue": "selection", "measure": [32, 64]})
    points = points.assign(estimate=0.5, low=0.4, high=0.6)
    options = {"labels": {32: "first", 64: "second"}, "before": {32: 1.0, 64: 2.0}}
    figure = dose_response(points, "fraction", titles={32: "a", 64: "b"}, **options)
    assert [axes.get_ylabel() for axes in figure.axes] == ["first", "second"]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [axes.get_lines()[-1].get_ydata()[0] for axes in figure.axes] == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"before: .* are not among the measures"):
        dose_response(points, "fraction", before={128: 1.0})


def test_identifiers_become_words_and_words_stay():
    assert in_words("absolute_gradient_x_activation: top") == "absolute gradient x activation: top"
    assert in_words("unitmem, 5%") == "UnitMem, 5%"
    assert in_words("share of D'") == "share of D'"


TABLE = pd.DataFrame(
    {"set": ["a", "b"] * 2, "method": ["z_score", "unitmem"] * 2, "value": [0.5, 2.2, 0.7, 1.9]}
).assign(seed=[0, 0, 1, 1], model="VAR", step=[1, 1, 2, 2])


def drawn(draw, **options):
    words = {"title": "Values of two methods", "key": over_seeds(TABLE, "bar")}
    return panels(TABLE, ["model"], draw, **{**words, **options})


def test_bars_end_within_their_axis_and_lines_of_seeds_reach_from_lowest_to_highest():
    figure = drawn(bars(TABLE, "set", "value", "method", xlabel="set"))
    figure_laws.check(figure)
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.6, 2.05])
    assert axes.get_ylim()[1] > 2.2
    (first, *_) = axes.collections
    assert first.get_segments()[0][:, 1].tolist() == [0.5, 0.7]


def test_seeds_are_counted_in_the_key_and_one_seed_has_no_spread():
    assert over_seeds(TABLE, "bar").startswith("bar: mean over 2 seeds")
    assert over_seeds(TABLE[TABLE["seed"] == 0], "bar") == "bar: one seed"


def test_points_at_equal_distances_are_named_by_their_values():
    draw = lines(TABLE, "step", "value", "method", xlabel="step", spread="line", ordinal=True)
    figure = drawn(draw)
    figure_laws.check(figure)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["1", "2"]


def cut_off(figure):
    figure.axes[0].set_ylim(0, 1)


def unnamed(figure):
    figure.axes[0].set_ylabel("")


def same_colour(figure):
    for patch in figure.legends[0].legend_handles:
        patch.set_facecolor("red")


def covered(figure):
    figure.axes[0].set_xticks([0, 0.01], ["one name", "another name"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_off, "cut off"),
        (unnamed, "has no name"),
        (same_colour, "same colour"),
        (covered, "over each other"),
        (lambda figure: figure.suptitle(""), "what it compares"),
        (lambda figure: figure.legends[0].set_title(""), "what the marks are"),
    ],
)
def test_a_figure_that_cannot_be_read_is_refused(spoil, message):
    figure = drawn(bars(TABLE, "set", "value", "method", xlabel="set"))
    spoil(figure)
    with pytest.raises(AssertionError, match=message):
        figure_laws.check(figure)


def test_levels_are_named_and_may_share_a_colour():
    draw_bars = bars(TABLE, "set", "value", "method", xlabel="set")

    def draw(part, axes):
        draw_bars(part, axes)
        level(axes, 1.0, "chance")
        level(axes, 2.0, "before")

    figure = drawn(draw)
    figure_laws.check(figure)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["z-score", "UnitMem", "chance", "before"]


def test_small_numbers_of_a_matrix_are_not_rounded_away():
    table = pd.DataFrame([[0.0078, 0.0]], index=["a"], columns=["b", "c"])
    assert [text.get_text() for text in matrix(table, "fall").axes[0].texts] == ["0.0078", "0.0000"]


@given(st.floats(1e-9, 1.0))
def test_a_share_above_zero_is_never_shown_as_none(share: float):
    for digits in (1, 2, 6):
        shown = float(in_percent(share, digits).removesuffix("%"))
        assert shown == pytest.approx(100 * share, rel=0.5 * 10 ** (1 - digits))
    assert in_percent(0.0) == "0%"


def test_settings_are_shown_as_they_were_given():
    given_as = {0.001: "0.1%", 0.005: "0.5%", 0.05: "5%", 1 - 0.99: "1%", 0.9995: "99.95%"}
    assert {share: in_percent(share) for share in given_as} == given_as
