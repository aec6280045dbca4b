"""Figures hold the frame's numbers, carry their labels, leave nothing behind and reach the disk
whole or not at all."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from interp.reporting.looks import looks
from interp.reporting.plotting import (
    MOST_SHIFTED,
    dose_response,
    intervals,
    matrix,
    ranked_scores,
    save,
    style,
)

FRACTIONS = [1e-4, 1e-3, 1e-2]
HUES = ["lowest", "random", "selection"]
COLOURS = {name: to_rgb(look.colour) for name, look in looks(HUES).items()}


@pytest.fixture
def frame() -> pd.DataFrame:
    points = itertools.product(["accuracy", "loss"], HUES, FRACTIONS)
    table = pd.DataFrame(list(points), columns=["measure", "hue", "fraction"])
    table["estimate"] = np.random.default_rng(0).uniform(0.2, 0.8, len(table))
    return table.assign(low=table["estimate"] - 0.1, high=table["estimate"] + 0.15).sample(
        frac=1, random_state=1
    )


@pytest.fixture
def units() -> pd.DataFrame:
    return pd.DataFrame({"block": [0, 0, 2, 2, 2, 4], "score": [0.1, 0.5, 0.2, 0.9, 0.4, 0.3]})


def rows(frame: pd.DataFrame, measure: str, hue: str) -> pd.DataFrame:
    return frame[(frame["measure"] == measure) & (frame["hue"] == hue)].sort_values("fraction")


def with_colour(artists, colour):
    return [artist for artist in artists if np.allclose(rgb(artist.get_color()), colour)]


def rgb(colour):
    return to_rgb(colour if isinstance(colour, str) else np.ravel(colour)[:3])


def panels(figure: Figure, frame: pd.DataFrame):
    return zip(figure.axes, frame["measure"].unique(), strict=True)


def test_a_panel_a_measure_with_its_labels_and_a_log_axis(frame):
    figure = dose_response(
        frame, "fraction", labels={"fraction": "fraction zeroed", "loss": "control loss (nats)"}
    )
    assert isinstance(figure, Figure)
    assert {axes.get_ylabel() for axes in figure.axes} == {"accuracy", "control loss (nats)"}
    assert {axes.get_xlabel() for axes in figure.axes} == {"fraction zeroed"}
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_lines_go_through_the_estimates_in_fixed_colours(frame):
    for axes, measure in panels(dose_response(frame, "fraction"), frame):
        drawn = [line for line in axes.get_lines() if len(line.get_xdata()) == len(FRACTIONS)]
        assert len(drawn) == len(HUES)
        for hue in HUES:
            (line,) = with_colour(drawn, COLOURS[hue])
            # Lines stand side by side, a few percent from their dose.
            np.testing.assert_allclose(line.get_xdata(), FRACTIONS, rtol=0.06)
            np.testing.assert_allclose(line.get_ydata(), rows(frame, measure, hue)["estimate"])


def test_a_line_keeps_its_colour_when_others_are_missing(frame):
    figure = dose_response(frame[frame["hue"] == "lowest"].replace("accuracy", "only"), "fraction")
    assert with_colour(figure.axes[0].get_lines(), COLOURS["lowest"])
    assert not with_colour(figure.axes[0].get_lines(), COLOURS["selection"])


def test_lines_through_points_are_the_intervals_of_the_frame(frame):
    for axes, measure in panels(dose_response(frame, "fraction"), frame):
        bars = [c for c in axes.collections if isinstance(c, LineCollection)]
        assert len(bars) == len(axes.collections) == len(HUES)
        for hue in HUES:
            (bar,) = with_colour(bars, COLOURS[hue])
            expected = rows(frame, measure, hue)[["fraction", "low", "high"]].to_numpy()
            drawn = [[s[0, 0], s[0, 1], s[1, 1]] for s in bar.get_segments()]
            np.testing.assert_allclose(drawn, expected, rtol=0.06)


def test_lines_of_the_same_dose_do_not_cover_each_other(frame):
    (line, *others) = dose_response(frame, "fraction").axes[0].get_lines()
    assert all((line.get_xdata() != other.get_xdata()).all() for other in others)


def test_one_legend_selection_first_and_the_level_before_once(frame):
    figure = dose_response(frame, "fraction", before={"accuracy": 0.97, "loss": 4.5})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "selection",
        "random",
        "lowest",
        "before",
    ]
    assert all(axes.get_legend() is None for axes in figure.axes)
    levels = {
        axes.get_ylabel(): [
            line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"
        ]
        for axes in figure.axes
    }
    assert levels == {"accuracy": [0.97], "loss": [4.5]}


def test_a_single_dose_and_an_unknown_line_are_drawn(frame):
    point = frame[(frame["fraction"] == 1e-3) & (frame["measure"] == "loss")].replace(
        {"hue": {"random": "UnitMem"}}
    )
    figure = dose_response(point, "fraction")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "selection",
        "lowest",
        "UnitMem",
    ]


def test_the_frame_is_not_changed(frame):
    before = frame.copy(deep=True)
    dose_response(frame, "fraction")
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop(columns=["low"]), r"\['low'\] missing"),
        (lambda f: f.iloc[:0], "at least one row"),
        (lambda f: f.assign(high=np.nan), r"finite numbers.*\['high'\]"),
        (lambda f: f.assign(fraction=0.0), "fraction: expected numbers > 0.*before="),
        (lambda f: pd.concat([f, f]), "one row per point"),
    ],
)
def test_a_frame_that_cannot_be_drawn_is_refused(frame, spoil, message):
    with pytest.raises(ValueError, match=message):
        dose_response(spoil(frame), "fraction")


def test_a_level_for_no_panel_is_refused(frame):
    with pytest.raises(ValueError, match=r"before: \['typo'\]"):
        dose_response(frame, "fraction", before={"typo": 1.0})


def test_ranked_scores_counts_units_and_shows_every_score(units):
    figure = ranked_scores(units, blocks=6)
    above, below = figure.axes
    assert [bar.get_height() for bar in above.patches] == [2, 0, 3, 0, 1, 0]
    np.testing.assert_array_equal(below.get_lines()[0].get_xydata(), units[["block", "score"]])
    assert (below.get_xlabel(), below.get_ylabel(), above.get_ylabel()) == (
        "block",
        "score",
        "top units",
    )
    assert len(ranked_scores(units).axes[0].patches) == 5


@pytest.mark.parametrize("blocks", [4, 0])
def test_ranked_scores_refuses_a_block_the_model_has_not(units, blocks):
    with pytest.raises(ValueError, match="block: expected indices"):
        ranked_scores(units, blocks=blocks)


def test_nothing_global_is_left_behind(frame, units, tmp_path):
    settings, generator = dict(mpl.rcParams), np.random.get_state()[1].copy()  # noqa: NPY002
    save(dose_response(frame, "fraction"), tmp_path / "a.png")
    save(ranked_scores(units), tmp_path / "b.svg")
    with pytest.raises(KeyError), style():
        raise KeyError
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == []
    assert (np.random.get_state()[1] == generator).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("name", "head"), [("a.png", b"\x89PNG"), ("deep/er/a.PDF", b"%PDF"), ("a.svg", b"<?xml")]
)
def test_save_writes_the_format_the_name_says(units, tmp_path, name, head):
    path = save(ranked_scores(units), tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes().startswith(head)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_part(units, tmp_path, monkeypatch):
    path = save(ranked_scores(units), tmp_path / "figure.svg")
    old = path.read_bytes()

    def half_written(self, target, **_):
        target.write_bytes(old[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        save(ranked_scores(units), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.svg"]


@pytest.mark.parametrize("in_palette", [True, False])
def test_a_png_looks_as_drawn_and_takes_fewer_bytes(units, tmp_path, in_palette):
    figure = ranked_scores(units)
    if not in_palette:
        noise = np.random.default_rng(0).random((60, 60, 3))
        figure.axes[0].imshow(noise, extent=(0, 1, 0, 1), aspect="auto")
    with style():
        figure.savefig(tmp_path / "drawn.png")
    path = save(figure, tmp_path / "saved.png")
    drawn, saved = Image.open(tmp_path / "drawn.png"), Image.open(path)
    assert (saved.mode == "P") == in_palette
    assert saved.info["dpi"] == drawn.info["dpi"]
    difference = np.subtract(drawn.convert("RGBA"), saved.convert("RGBA"), dtype=int)
    assert np.abs(difference).max() <= (MOST_SHIFTED if in_palette else 0)
    assert path.stat().st_size < (tmp_path / "drawn.png").stat().st_size


def test_a_transparent_png_stays_transparent(units, tmp_path):
    figure = ranked_scores(units)
    figure.patch.set_alpha(0.5)
    with Image.open(save(figure, tmp_path / "figure.png")) as saved:
        assert saved.mode == "RGBA"
        assert saved.getpixel((0, 0)) == (255, 255, 255, 128)


@pytest.mark.parametrize("name", ["figure", "figure.xyz"])
def test_save_refuses_a_name_without_a_known_ending(units, tmp_path, name):
    with pytest.raises(ValueError, match=r"ending in one of .*png"):
        save(ranked_scores(units), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def methods() -> pd.DataFrame:
    table = pd.DataFrame(
        list(itertools.product(["INJ", "DEL"], ["b", "a", "c"])), columns=["panel", "method"]
    )
    table["estimate"] = [0.5, 0.2, 0.9, 0.1, 0.3, 0.4]
    return table.assign(low=table["estimate"] - 0.1, high=table["estimate"] + 0.05)


def test_intervals_draw_a_point_and_its_interval_for_each_name_in_its_row(methods):
    figure = intervals(methods, "method", levels={"DEL": 0.25}, labels={"INJ": "recall"})
    assert [axes.get_xlabel() for axes in figure.axes] == ["recall", "DEL"]
    for axes, panel in zip(figure.axes, ["INJ", "DEL"], strict=True):
        expected = methods[methods["panel"] == panel]
        points = axes.get_lines()[0]
        assert points.get_xdata().tolist() == expected["estimate"].tolist()
        assert points.get_ydata().tolist() == [0, 1, 2]
        (spans,) = (c for c in axes.collections if isinstance(c, LineCollection))
        assert [(s[0, 0], s[1, 0]) for s in spans.get_segments()] == list(
            zip(expected["low"], expected["high"], strict=True)
        )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "a", "c"]
    assert len(figure.axes[1].get_lines()) == len(figure.axes[0].get_lines()) + 1
    with pytest.raises(ValueError, match="missing or infinite"):
        intervals(methods.assign(low=np.nan), "method")


def test_a_matrix_shows_every_number():
    table = pd.DataFrame([[0.1, -0.2], [0.3, 0.45]], index=["p", "q"], columns=["r", "s"])
    table.index.name = "of"
    for center in (None, 0.0):
        figure = matrix(table, "fall", center=center)
        assert [text.get_text() for text in figure.axes[0].texts] == [
            "0.10",
            "-0.20",
            "0.30",
            "0.45",
        ]
        assert figure.axes[0].get_ylabel() == "of"
        assert figure.axes[1].get_ylabel() == "fall"
    with pytest.raises(ValueError, match="at least one cell"):
        matrix(pd.DataFrame(), "fall")
