"""A grid shows the pictures it was given, as they are, each in its place, and refuses what would be
shown wrong."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interp.reporting.image_grid import image_grid
from interp.reporting.plotting import save


def noise(count: int = 3, channels: int = 1, side: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def shown(figure: Figure) -> np.ndarray:
    """[rows * columns, side, side, 3]: the colours on the figure, row by row."""
    pictures = [axes.get_images() for axes in figure.axes]
    assert all(len(one) == 1 for one in pictures)
    return np.stack([one.to_rgba(one.get_array(), norm=True)[..., :3] for (one,) in pictures])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_picture_stands_in_its_row_and_column_in_its_own_colours(channels, dtype):
    rows = {
        "original": noise(channels=channels).to(dtype),
        "extracted": noise(channels=channels, seed=1).to(dtype),
    }
    figure = image_grid(rows)
    wanted = torch.cat(list(rows.values())).expand(-1, 3, -1, -1).movedim(1, -1).float().numpy()
    assert np.abs(shown(figure) - wanted).max() <= 1 / 255
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 3)


def test_a_dim_picture_stays_dim():
    (picture,) = image_grid({"dim": noise() / 10}).axes[0].get_images()
    assert isinstance(picture.norm, Normalize)
    assert (picture.norm.vmin, picture.norm.vmax, picture.get_interpolation()) == (0, 1, "nearest")


def test_names_stand_on_the_left_captions_above_and_no_ticks_anywhere():
    figure = image_grid(
        {"original": noise(2), "after": noise(2, seed=1)}, ["image 7", "image 9\nclass 1"]
    )
    assert [axes.get_ylabel() for axes in figure.axes] == ["original", "", "after", ""]
    assert [axes.get_title() for axes in figure.axes] == ["image 7", "image 9\nclass 1", "", ""]
    assert not any(len(axes.get_xticks()) + len(axes.get_yticks()) for axes in figure.axes)


def test_pictures_do_not_overlap_and_all_is_on_the_page():
    figure = image_grid(
        {"one": noise(5), "two": noise(5)}, ["image 1234\nclass 999\n680 of 680"] * 5
    )
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(
        figure.bbox.x0 <= box.x0
        and box.x1 <= figure.bbox.x1
        and box.y0 >= 0
        and box.y1 <= figure.bbox.y1
        for box in boxes
    )
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_nothing_is_left_behind_and_what_was_given_is_not_changed(tmp_path):
    pictures = noise().requires_grad_()
    before, look, open_figures = pictures.detach().clone(), dict(plt.rcParams), plt.get_fignums()
    assert save(image_grid({"one": pictures}), tmp_path / "a.png").stat().st_size
    assert torch.equal(pictures, before)
    assert plt.get_fignums() == open_figures
    assert dict(plt.rcParams) == look


@pytest.mark.parametrize(
    ("rows", "captions", "match"),
    [
        ({}, None, "got no row"),
        (
            {"one": noise(2), "two": noise(3)},
            None,
            r"of one shape in each row, got .*\(2, 1, 4, 4\).*\(3, 1, 4, 4\)",
        ),
        ({"one": noise(2), "two": noise(2, side=5)}, None, "of one shape in each row"),
        ({"one": noise(2), "two": noise(2, channels=3)}, None, "of one shape in each row"),
        ({"one": noise(0)}, None, r"at least one picture .*got \[0, 1, 4, 4\]"),
        ({"one": noise()[0]}, None, r"expected at least one picture \[n, channels, side, side\]"),
        ({"one": noise(channels=2)}, None, "1 or 3 channels"),
        ({"one": noise() * 255}, None, "one: expected floats in .0, 1., got torch.float32 from"),
        ({"one": noise() - 1}, None, "one: expected floats in"),
        (
            {"one": (noise() > 0.5).to(torch.uint8)},
            None,
            "one: expected floats in .* got torch.uint8",
        ),
        (
            {"fine": noise(), "one": noise().index_fill(0, torch.tensor(1), torch.nan)},
            None,
            "one: expected floats in .*nan",
        ),
        ({"one": noise(2)}, ["a"], "expected one for each of 2 columns, got 1"),
        ({"one": noise(2)}, [], "expected one for each of 2 columns, got 0"),
    ],
)
def test_what_would_be_shown_wrong_is_refused(rows, captions, match):
    with pytest.raises(ValueError, match=match):
        image_grid(rows, captions)
