"""Images from files and to files: `.npz` archives of arrays, and folders of pictures, one folder a
class."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.images import Images
from interp.errors import closest
from interp.files import replaced

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_images(
    paths: str | Path | Iterable[str | Path], side: int | None = None, channels: int | None = None
) -> Images:
    """The images of `.npz` files and of folders, in the order given, and within a folder by class
    and name.

    An `.npz` holds `images`, [n, side, side], [n, side, side, c] or [n, c, side, side], of uint8 or
    of floats in [0, 1], and `labels` [n], which are kept. A folder holds one folder a class with
    files ending in one of SUFFIXES, at any depth: names that are all whole numbers are the labels,
    other names are numbered from 0 in sorted order, over all folders given. Transparency is
    dropped.

    Args:
        paths: one path or several.
        side: of pictures in folders, the shorter side is resized to it (LANCZOS), then the centre
        is cut out; an `.npz` must have it.
        channels: 1 or 3: turns all images grey, or into RGB; as they are, where not said.

    Raises ValueError for a path that does not exist or holds no images, for what cannot be read,
    and for images of several sizes.
    """
    places = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if channels not in (None, 1, 3) or (side is not None and side < 1):
        raise ValueError(
            f"side={side}, channels={channels}: expected a side of at least 1, and 1 or 3 channels"
        )
    files = [found for place in places for found in _files(place)]
    labelled = zip(files, _labels(files), strict=True)
    parts = {
        f: _archive(f, side, channels) if name is None else _picture(f, label, side, channels)
        for (f, name), label in labelled
    }
    sizes = {tuple(part.pixels.shape[1:]): file for file, part in parts.items()}
    if len(sizes) != 1:
        found = ", ".join(f"{list(size)} in {file}" for size, file in sizes.items()) or "no path"
        raise ValueError(
            f"expected images of one [channels, side, side], got {found}; give side= or channels= to make them alike"
        )
    return Images.joined(list(parts.values()))


def read_classes(
    folder: str | Path, side: int | None = None, channels: int | None = None
) -> Iterator[Images]:
    """The images of a folder of class folders, one class at a time: for more than fits in memory.
    Arguments and errors are those of `read_images`."""
    files = list(_files(Path(folder)))
    for label, group in groupby(zip(files, _labels(files), strict=True), key=lambda pair: pair[1]):
        yield Images.joined([_picture(file, label, side, channels) for (file, _), _ in group])


def _labels(files: Sequence[tuple[Path, str | None]]) -> list[int]:
    """The class of each picture: its folder's name where all names are whole numbers, else its
    place among them; 0 for an archive."""
    names = sorted({name for _, name in files if name is not None})
    label = {
        name: int(name) if all(map(str.isdecimal, names)) else number
        for number, name in enumerate(names)
    }
    return [0 if name is None else label[name] for _, name in files]


def write_images(images: Images, path: str | Path) -> Path:
    """Writes an `.npz` that `read_images` reads back to the same float32; whole or not at all.
    Raises OSError, ValueError for the name."""
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"{target}: expected a name ending in .npz")
    # a handle, for numpy would add .npz to the temporary name
    with replaced(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, images=images.pixels.cpu().float().numpy(), labels=images.labels.cpu().numpy()
        )
    return target


def _files(place: Path) -> Iterator[tuple[Path, str | None]]:
    """An `.npz` with None, or the pictures of a folder, each with the name of its class."""
    missing = place
    while not missing.parent.is_dir():
        missing = missing.parent
    if not place.exists():
        beside = sorted(path.name for path in missing.parent.iterdir())
        raise ValueError(
            f"{place} does not exist; nearest: {missing.parent / (closest(missing.name, beside) if beside else '')}"
        )
    if place.suffix == ".npz" and place.is_file():
        yield place, None
        return
    classes = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    pictures = [
        (file, path.name)
        for path in classes
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not pictures:
        nearest = closest(
            "class/image.png",
            [str(path.relative_to(place)) for path in islice(place.rglob("*.*"), 1000)],
        )
        raise ValueError(
            f"{place} holds no images: expected an .npz, or one folder a class with {SUFFIXES}; nearest in it: {nearest}"
        )
    yield from pictures


def _archive(file: Path, side: int | None, channels: int | None) -> Images:
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no archive of arrays, as numpy.savez writes")
        with np.load(file, allow_pickle=False) as arrays:
            if {"images", "labels"} - set(arrays.files):
                raise ValueError(
                    f"expected the arrays images and labels; it has {', '.join(arrays.files) or 'none'}"
                )
            pixels, labels = arrays["images"], arrays["labels"]
        labels = torch.from_numpy(labels.astype(np.int64) if labels.dtype.kind in "iu" else labels)
        images = Images(_recoloured(_pixels(pixels), channels), labels)
    except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if side not in (None, images.pixels.shape[-1]):
        raise ValueError(
            f"{file} holds images of side {images.pixels.shape[-1]}, not side={side}: only pictures in folders are resized"
        )
    return images


def _pixels(images: np.ndarray) -> Float[Tensor, "n channels height width"]:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(
            f"images are {images.dtype}: expected uint8 from 0 to 255, or floats from 0 to 1"
        )
    pixels = torch.from_numpy(images.astype(np.float32)) / (255 if images.dtype == np.uint8 else 1)
    if pixels.ndim == 3:
        return pixels[:, None]
    # channels come last where only the first two lengths are equal
    last = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] != pixels.shape[3]
    return pixels.movedim(-1, 1) if last else pixels


def _recoloured(
    pixels: Float[Tensor, "n channels height width"], channels: int | None
) -> Float[Tensor, "n channels height width"]:
    """To grey with the weights of PIL (ITU-R 601-2), or to RGB by repeating."""
    if pixels.ndim != 4 or channels in (None, pixels.shape[1]):
        return pixels
    if pixels.shape[1] not in (1, 3):
        raise ValueError(
            f"images have {pixels.shape[1]} channels: expected 1 or 3, to make them {channels}"
        )
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    return (
        (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None])
        .sum(1, keepdim=True)
        .clamp(max=1)
    )


def _picture(file: Path, label: int, side: int | None, channels: int | None) -> Images:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            # 16 bits of grey, which convert() would cut off at 255
            picture = (
                Image.fromarray((np.asarray(opened) / 257).round().astype(np.uint8))
                if opened.mode.startswith("I")
                else opened
            )
            grey = channels == 1 or (channels is None and Image.getmodebase(picture.mode) == "L")
            picture = picture.convert("L" if grey else "RGB")
        if side is not None:
            width, height = (round(length * side / min(picture.size)) for length in picture.size)
            left, top = (width - side) // 2, (height - side) // 2
            picture = picture.resize((width, height), Image.Resampling.LANCZOS).crop(
                (left, top, left + side, top + side)
            )
        pixels = np.asarray(picture)
        return Images(
            torch.tensor(pixels.reshape(1, *pixels.shape[:2], -1)).movedim(-1, 1) / 255,
            torch.tensor([label]),
        )
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a square image: {error}") from error
