"""Laws of interp.data.image_files: what is written reads back, pictures get their class, side and
channels, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from interp.data.image_files import read_classes, read_images, write_images
from interp.data.images import Images


def noise(n: int, side: int = 5, channels: int = 1, seed: int = 0) -> Images:
    draw = torch.Generator().manual_seed(seed)
    return Images(
        torch.rand(n, channels, side, side, generator=draw), torch.randint(7, (n,), generator=draw)
    )


def same(a: Images, b: Images) -> bool:
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


def save(array: np.ndarray, file, mode: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(file)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 3, 4]), st.integers(0, 99))
def test_what_is_written_reads_back_the_same(tmp_path_factory, n, side, channels, seed):
    file = tmp_path_factory.mktemp("images") / "new" / "some.npz"
    assert write_images(noise(n, side, channels, seed), file) == file
    assert same(read_images([file]), noise(n, side, channels, seed))
    assert [path.name for path in file.parent.iterdir()] == ["some.npz"]


def test_only_an_npz_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"some.zip: expected a name ending in .npz"):
        write_images(noise(1), tmp_path / "some.zip")


@pytest.mark.parametrize("axes", ["nhwc", "nchw", "nhw"])
@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_an_npz_may_have_its_channels_anywhere_and_bytes_or_floats(tmp_path, axes, kind):
    levels = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    stored = {"nhwc": levels.transpose(0, 2, 3, 1), "nchw": levels, "nhw": levels[:, 0]}[axes]
    np.savez(
        tmp_path / "a.npz",
        images=stored if kind == "bytes" else stored / 255,
        labels=np.array([3, 1, 2], np.uint16),
    )
    images = read_images(tmp_path / "a.npz", side=4)
    wanted = levels[:, :1] if axes == "nhw" else levels
    assert images.pixels.numpy() == pytest.approx(wanted / 255, abs=1e-7)
    assert images.labels.tolist() == [3, 1, 2]


def test_colours_of_an_npz_become_those_of_pil(tmp_path):
    levels = np.random.default_rng(1).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    levels[0, 0, 0] = 255
    np.savez(tmp_path / "a.npz", images=levels, labels=[0, 0])
    grey = read_images([tmp_path / "a.npz"], channels=1)
    pil = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in levels])
    assert grey.pixels.numpy()[:, 0] == pytest.approx(pil / 255, abs=0.51 / 255)
    write_images(grey, tmp_path / "grey.npz")
    assert torch.equal(
        read_images([tmp_path / "grey.npz"], channels=3).pixels, grey.pixels.expand(-1, 3, -1, -1)
    )


@pytest.fixture
def folder(tmp_path):
    """Two classes of 4x4 pictures, one of them nested, in grey; a picture's level is its number."""
    for number, name in enumerate(
        ["cat/b.png", "cat/a.PNG", "dog/deep/c.bmp", "dog/notes.txt", "dog/d.webp", "loose.png"]
    ):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("no picture")
        else:
            save(np.full((4, 4), number, np.uint8), tmp_path / name)
    return tmp_path


def test_a_folder_has_a_class_a_folder_in_sorted_order(folder):
    images = read_images([folder], channels=1)
    assert (images.pixels[:, 0, 0, 0] * 255).round().tolist()[:2] == [1, 0]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.pixels.shape == (4, 1, 4, 4)
    assert read_images([folder], channels=3).pixels.shape == (4, 3, 4, 4)


def test_names_that_are_whole_numbers_are_the_labels_over_all_folders(tmp_path):
    for name in ("one/10/a.png", "one/2/a.png", "two/7/a.png"):
        save(np.zeros((3, 3), np.uint8), tmp_path / name)
    assert read_images([tmp_path / "two", tmp_path / "one"]).labels.tolist() == [7, 10, 2]
    save(np.zeros((3, 3), np.uint8), tmp_path / "two" / "x" / "a.png")
    assert read_images([tmp_path / "two", tmp_path / "one"]).labels.tolist() == [2, 3, 0, 1]


def test_archives_and_folders_are_read_in_the_order_given(folder):
    write_images(noise(2, 4), folder / "more.npz")
    images = read_images([folder / "more.npz", folder], channels=1)
    assert same(images.rows(slice(0, 2)), noise(2, 4))
    assert images.labels[2:].tolist() == [0, 0, 1, 1]


def test_a_side_resizes_the_shorter_one_and_cuts_the_centre(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 24), dtype=np.uint8)
    save(picture, tmp_path / "0" / "wide.png")
    save(picture.T.copy(), tmp_path / "0" / "tall.png")
    tall, wide = read_images([tmp_path], side=6).pixels
    # PIL rounds to bytes after each of its two passes, and the picture on its side has them in the
    # other order
    assert tall[0].T.numpy() == pytest.approx(wide[0].numpy(), abs=4 / 255)
    resized = np.asarray(Image.fromarray(picture).resize((12, 6), Image.Resampling.LANCZOS))
    assert torch.equal(wide[0], torch.tensor(resized[:, 3:9]) / 255)
    assert torch.equal(
        read_images([tmp_path], side=12).pixels[1, 0], torch.tensor(picture[:, 6:18]) / 255
    )


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_a_picture_has_the_channels_of_its_mode_unless_told(tmp_path, mode, channels):
    save(np.full((4, 4, 3), 255, np.uint8), tmp_path / "0" / "a.png", mode)
    assert read_images([tmp_path]).pixels.shape == (1, channels, 4, 4)
    for wanted in (1, 3):
        assert (
            read_images([tmp_path], channels=wanted).pixels.tolist()
            == torch.ones(1, wanted, 4, 4).tolist()
        )


def test_sixteen_bits_of_grey_are_scaled_not_cut_off(tmp_path):
    save(np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16), tmp_path / "0" / "a.png")
    assert (read_images([tmp_path]).pixels * 255).round().flatten().tolist() == [0, 100, 200, 255]


def refused(message: str, *paths, **options) -> None:
    with pytest.raises(ValueError, match=message):
        read_images(paths, **options)


def test_a_path_that_does_not_exist_is_named_with_the_nearest_that_does(folder):
    write_images(noise(1), folder / "some.npz")
    refused(r"some.npy does not exist; nearest: .*/some.npz$", folder / "some.npy")
    refused(r"cta/deep/x.npz does not exist; nearest: .*/cat$", folder / "cta" / "deep" / "x.npz")
    refused(r"some.npz/x does not exist; nearest: .*/some.npz$", folder / "some.npz" / "x")


def test_a_place_without_images_is_named_with_what_comes_nearest(folder, tmp_path_factory):
    refused(
        r"cat holds no images: expected an .npz, or one folder per class .*; nearest in it: [ab].(png|PNG)$",
        folder / "cat",
    )
    refused(r"loose.png holds no images", folder / "loose.png")
    refused(r"holds no images.*nearest in it: none", tmp_path_factory.mktemp("empty"))
    refused("got no path")


def test_pictures_of_several_sizes_or_channels_are_named(tmp_path):
    save(np.zeros((3, 3), np.uint8), tmp_path / "0" / "a.png")
    save(np.zeros((4, 4, 3), np.uint8), tmp_path / "0" / "b.png")
    refused(
        r"got \[1, 3, 3\] in .*/a.png, \[3, 4, 4\] in .*/b.png; give side= or channels=", tmp_path
    )
    refused(r"got \[1, 2, 2\] in .*/a.png, \[3, 2, 2\]", tmp_path, side=2)
    assert read_images([tmp_path], side=3, channels=1).pixels.shape == (2, 1, 3, 3)
    save(np.zeros((3, 4), np.uint8), tmp_path / "0" / "a.png")
    refused(
        r"a.png cannot be read as a square image: images are 3 x 4: expected square ones .*side=",
        tmp_path,
    )


@pytest.mark.parametrize("content", ["text", "truncated"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "0" / "bad.png"
    save(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8), file)
    file.write_bytes(b"no picture" if content == "text" else file.read_bytes()[:500])
    refused("bad.png cannot be read", tmp_path)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            {"x": np.ones(2), "labels": np.ones(2)},
            "expected the arrays images and labels; it has x, labels",
        ),
        (
            {"images": np.ones((1, 2, 2), np.int64), "labels": np.array([0])},
            "images are int64: expected uint8",
        ),
        (
            {"images": np.full((1, 2, 2), 9.0), "labels": np.array([0])},
            "from 9 to 9: .*divide bytes by 255",
        ),
        ({"images": np.ones((1, 2, 2)), "labels": np.array(["cat"])}, "can't convert"),
        ({"images": np.ones((1, 2, 2)), "labels": np.array([0.5])}, "labels are torch.float64"),
        (
            {"images": np.ones((1, 2, 3)), "labels": np.array([0])},
            "images are 2 x 3: expected square",
        ),
        ({"images": np.ones(4), "labels": np.array([0])}, r"pixels are \[4\]"),
        (
            {"images": np.ones((1, 2, 2, 2)), "labels": np.array([0])},
            "images have 2 channels: expected 1 or 3, to make them 3",
        ),
        (
            {"images": np.array([{"a": 1}], dtype=object), "labels": np.array([0])},
            "allow_pickle=False",
        ),
    ],
)
def test_an_npz_that_holds_something_else_is_named(tmp_path, stored, message):
    np.savez(tmp_path / "bad.npz", **stored)
    refused(f"bad.npz cannot be read: .*{message}", tmp_path / "bad.npz", channels=3)


@pytest.mark.parametrize("damage", ["text", "cut", "flipped"])
def test_a_damaged_npz_is_named(tmp_path, damage):
    file = write_images(noise(40), tmp_path / "bad.npz")
    content = file.read_bytes()
    middle = len(content) // 2
    broken = {
        "text": b"text",
        "cut": content[:middle],
        "flipped": content[:middle] + b"\0" * 20 + content[middle + 20 :],
    }
    file.write_bytes(broken[damage])
    refused("bad.npz cannot be read", file)


def test_sides_and_channels_that_cannot_be_are_named(tmp_path):
    file = write_images(noise(2), tmp_path / "a.npz")
    refused(
        r"a.npz holds images of side 5, not side=4: only pictures in folders are resized",
        file,
        side=4,
    )
    refused("side=0, channels=None: expected", file, side=0)
    refused("side=None, channels=2: expected .* 1 or 3 channels", file, channels=2)


def test_class_by_class_is_the_whole_folder_in_parts(folder):
    whole, parts = read_images(folder, channels=1), list(read_classes(folder, channels=1))
    assert same(Images.join(parts), whole)
    assert all(len(part.labels.unique()) == 1 for part in parts)
    assert len(parts) == len(whole.labels.unique()) > 1


def test_a_picture_named_in_several_ways_is_read_once(folder, monkeypatch):
    once = read_images(folder, channels=1)
    monkeypatch.chdir(folder.parent)
    link = folder.parent / f"link to {folder.name}"
    link.symlink_to(folder, target_is_directory=True)
    assert same(read_images([folder, folder.name, link, folder / "cat" / ".."], channels=1), once)
    write_images(once, folder / "all.npz")
    assert len(read_images([folder / "all.npz", f"{folder.name}/all.npz"])) == 4


def test_a_picture_in_two_classes_is_refused(folder):
    with pytest.raises(ValueError, match="one picture in two classes, dog and deep"):
        read_images([folder, folder / "dog"])


def test_hidden_files_and_folders_are_no_pictures_and_no_classes(folder):
    visible = read_images(folder, channels=1)
    for name in (".checkpoints/a.png", "cat/._a.png", "cat/.old/b.png"):
        save(np.zeros((4, 4), np.uint8), folder / name)
    with pytest.warns(
        UserWarning, match=r"5 passed over \(3 hidden, 1 \.txt, 1 \.png\): of folders"
    ):
        assert same(read_images(folder, channels=1), visible)
    assert [part.labels.tolist() for part in read_classes(folder, channels=1)] == [[0, 0], [1, 1]]


def test_a_class_folder_may_be_a_link(folder, tmp_path_factory):
    some = tmp_path_factory.mktemp("some")
    (some / "cat").symlink_to(folder / "cat", target_is_directory=True)
    assert len(read_images(some)) == 2
