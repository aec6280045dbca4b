"""Images from files and to files: `.npz` archives of arrays, and folders of pictures with one
folder per class."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.images import Images
from interp.errors import closest
from interp.files import find_files, passed_over_in_words, replaced

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601-2), as in PIL


class ImageFile(NamedTuple):
    """A picture with the name of its class, or an archive, whose class name is None."""

    path: Path
    class_name: str | None


@dataclass(frozen=True)
class ImageFiles:
    """The image files that some paths name, each of them once.

    Attributes:
        files: the files, in the order in which they are read.
        passed_over: files and folders in the named folders that are not read.
    """

    files: tuple[ImageFile, ...]
    passed_over: tuple[Path, ...]

    @property
    def note(self) -> str:
        """One line about what is passed over; empty if nothing is."""
        return passed_over_in_words(
            self.passed_over,
            "of folders only pictures inside class folders are read, which end in "
            + ", ".join(SUFFIXES),
        )

    def read(self, side: int | None = None, channels: int | None = None) -> Images:
        """Returns the images; see `read_images`."""
        parts: dict[Path, Images] = {}
        for file, label in zip(self.files, _labels(self.files), strict=True):
            if file.class_name is None:
                parts[file.path] = _archive(file.path, side, channels)
            else:
                parts[file.path] = _picture(file.path, label, side, channels)

        file_of_size: dict[tuple[int, ...], Path] = {}
        for file, part in parts.items():
            size = tuple(part.pixels.shape[1:])
            file_of_size[size] = file
        if len(file_of_size) != 1:
            sizes: list[str] = []
            for size, file in file_of_size.items():
                sizes.append(f"{list(size)} in {file}")
            raise ValueError(
                "expected images of one [channels, side, side], got "
                f"{', '.join(sizes) or 'no path'}; give side= or channels= to make them alike"
            )
        return Images.join(list(parts.values()))


def read_images(
    paths: str | Path | Iterable[str | Path], side: int | None = None, channels: int | None = None
) -> Images:
    """Reads the images of `.npz` files and of folders.

    An `.npz` holds `images`, [n, side, side], [n, side, side, c] or [n, c, side, side], of uint8 or
    of floats in [0, 1], and `labels` [n], which are kept.

    A folder holds one folder per class with files ending in one of SUFFIXES, at any depth. Class
    names that are all whole numbers are the labels; other names are numbered from 0 in sorted
    order, over all folders given. Transparency is dropped.

    Args:
        paths: one path or several.
        side: side of the result in pixels. A picture in a folder is resized so that its shorter
            side has this length (LANCZOS), then its centre is cut out. Images in an `.npz` must
            have this side already.
        channels: 1 makes all images grey, 3 makes them RGB; by default they stay as they are.

    Returns:
        The images in the order of `paths`, and within a folder by class and name.

    Raises:
        ValueError: a path does not exist, holds no images or cannot be read, or the images have
            several sizes.

    Example:
        >>> import tempfile
        >>> from interp.data import image_files, images
        >>> file = f"{tempfile.mkdtemp()}/digits.npz"
        >>> _ = image_files.write_images(images.digits().rows(slice(5)), file)
        >>> list(image_files.read_images(file, channels=3).pixels.shape)
        [5, 3, 8, 8]
    """
    if channels not in (None, 1, 3) or (side is not None and side < 1):
        raise ValueError(
            f"side={side}, channels={channels}: expected a side of at least 1, and 1 or 3 channels"
        )
    found = find_images(paths)
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return found.read(side, channels)


def find_images(paths: str | Path | Iterable[str | Path]) -> ImageFiles:
    """Returns the image files that paths name, without reading the images.

    Args:
        paths: `.npz` files, and folders as `read_images` reads them. Hidden files and folders are
            left out, as are links to folders inside a class folder. A file that is named several
            times, also through a folder or a link, is read once.

    Raises:
        ValueError: a path does not exist or holds no images, or a picture is in two classes.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data.image_files import find_images
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("cat/a.png", "cat/notes.txt", ".hidden/b.png"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     (folder / name).touch()
        >>> [file.class_name for file in find_images([folder, folder]).files]
        ['cat']
    """
    files: dict[Path, ImageFile] = {}  # by where it really is
    passed_over: dict[Path, Path] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        images, others = _look_into(Path(path))
        for file in images:
            first = files.setdefault(file.path.resolve(), file)
            if first.class_name != file.class_name:
                raise ValueError(
                    f"{first.path} and {file.path} are one picture in two classes, "
                    f"{first.class_name} and {file.class_name}: name folders that do not overlap"
                )
        for other in others:
            passed_over.setdefault(other.resolve(), other)
    not_read = [other for place, other in passed_over.items() if place not in files]
    return ImageFiles(tuple(files.values()), tuple(not_read))


def read_classes(
    folder: str | Path, side: int | None = None, channels: int | None = None
) -> Iterator[Images]:
    """Reads a folder of class folders one class at a time: for more images than fit in memory.

    Args:
        folder: as in `read_images`.
        side: as in `read_images`.
        channels: as in `read_images`.

    Yields:
        The images of one class.

    Raises:
        ValueError: see `read_images`.
    """
    files, _ = _look_into(Path(folder))
    labelled = zip(files, _labels(files), strict=True)
    for label, group in groupby(labelled, key=lambda pair: pair[1]):
        pictures = [_picture(file.path, label, side, channels) for file, _ in group]
        yield Images.join(pictures)


def write_images(images: Images, path: str | Path) -> Path:
    """Writes an `.npz` that `read_images` reads back to the same float32; whole or not at all.

    Args:
        images: the images.
        path: the file, whose name ends in `.npz`.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written.
        ValueError: the name ends otherwise.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"{target}: expected a name ending in .npz")
    pixels = images.pixels.cpu().float().numpy()
    labels = images.labels.cpu().numpy()
    # An open file, because numpy would add .npz to the temporary name.
    with replaced(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=pixels, labels=labels)
    return target


def _labels(files: Sequence[ImageFile]) -> list[int]:
    """The class of each picture; 0 for an archive, which brings its own labels."""
    names = sorted({file.class_name for file in files if file.class_name is not None})
    # Folders that are named by numbers say which classes they are, also where some are missing.
    if all(map(str.isdecimal, names)):
        numbers = [int(name) for name in names]
    else:
        numbers = list(range(len(names)))
    label_of: dict[str | None, int] = {None: 0}
    label_of |= dict(zip(names, numbers, strict=True))
    return [label_of[file.class_name] for file in files]


def _look_into(place: Path) -> tuple[list[ImageFile], list[Path]]:
    """An `.npz` alone, or the pictures of a folder; and all else in the folder."""
    if not place.exists():
        raise ValueError(f"{place} does not exist; nearest: {_nearest_path(place)}")
    if place.suffix.lower() == ".npz" and place.is_file():
        return [ImageFile(place, None)], []

    pictures: list[ImageFile] = []
    others: list[Path] = []
    for entry in sorted(place.iterdir()) if place.is_dir() else ():
        # A class folder may be a link, into a larger collection.
        if not entry.is_dir() or entry.name.startswith("."):
            others.append(entry)
            continue
        found, left_out = find_files(entry)
        others += left_out
        for file in found:
            if file.suffix.lower() in SUFFIXES:
                pictures.append(ImageFile(file, entry.name))
            else:
                others.append(file)
    if not pictures:
        # For the message alone, and a folder may hold millions.
        some_files = islice(place.rglob("*.*"), 1000)
        present = [str(path.relative_to(place)) for path in some_files]
        raise ValueError(
            f"{place} holds no images: expected an .npz, or one folder per class with {SUFFIXES}; "
            f"nearest in it: {closest('class/image.png', present)}"
        )
    return pictures, others


def _nearest_path(place: Path) -> Path:
    """The existing path most like a missing one, in the deepest folder of it that exists."""
    missing = place
    while not missing.parent.is_dir():
        missing = missing.parent
    siblings = sorted(path.name for path in missing.parent.iterdir())
    if not siblings:
        return missing.parent
    return missing.parent / closest(missing.name, siblings)


def _archive(file: Path, side: int | None, channels: int | None) -> Images:
    """The images of an `.npz`."""
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not an archive of arrays, as numpy.savez writes")
        with np.load(file, allow_pickle=False) as arrays:
            if {"images", "labels"} - set(arrays.files):
                raise ValueError(
                    "expected the arrays images and labels; "
                    f"it has {', '.join(arrays.files) or 'none'}"
                )
            pixels = arrays["images"]
            labels = arrays["labels"]
        # Other labels than integers stay as they are, for Images to refuse.
        if labels.dtype.kind in "iu":
            labels = labels.astype(np.int64)
        coloured = _recoloured(_pixels(pixels), channels)
        images = Images(coloured, torch.from_numpy(labels))
    except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error

    own_side = images.pixels.shape[-1]
    if side not in (None, own_side):
        raise ValueError(
            f"{file} holds images of side {own_side}, not side={side}: "
            "only pictures in folders are resized"
        )
    return images


def _pixels(images: np.ndarray) -> Float[Tensor, "n channels height width"]:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(
            f"images are {images.dtype}: expected uint8 from 0 to 255, or floats from 0 to 1"
        )
    largest = 255 if images.dtype == np.uint8 else 1
    levels = torch.from_numpy(images.astype(np.float32))
    pixels = levels / largest
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim == 4:
        # Images are square: channels are last where the second and third axis are the equal ones.
        _, second, third, last = pixels.shape
        if second == third != last:
            return pixels.movedim(-1, 1)
    return pixels


def _recoloured(
    pixels: Float[Tensor, "n channels height width"], channels: int | None
) -> Float[Tensor, "n channels height width"]:
    """Images in grey or in RGB. Those of another shape stay as they are, for Images to refuse."""
    if pixels.ndim != 4 or channels in (None, pixels.shape[1]):
        return pixels
    if pixels.shape[1] not in (1, 3):
        raise ValueError(
            f"images have {pixels.shape[1]} channels: expected 1 or 3, to make them {channels}"
        )
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    weights = torch.tensor(_GREY_WEIGHTS)[:, None, None]
    weighted = pixels * weights
    grey = weighted.sum(1, keepdim=True)
    # The weights add up to 1, but their rounded products with white may not.
    return grey.clamp(max=1)


def _picture(file: Path, label: int, side: int | None, channels: int | None) -> Images:
    """One picture of a folder."""
    import PIL.Image

    try:
        with PIL.Image.open(file) as opened:
            # PIL opens pictures of 16 bits of grey as I or as I;16.
            has_16_bits = opened.mode.startswith("I")
            picture = _with_8_bits(opened) if has_16_bits else opened
            as_grey = channels == 1
            if channels is None:
                # Also of grey with transparency, and of black and white.
                as_grey = PIL.Image.getmodebase(picture.mode) == "L"
            picture = picture.convert("L" if as_grey else "RGB")
        if side is not None:
            picture = _centre(picture, side)
        levels = np.asarray(picture)
        # Grey pictures have no axis of channels, which a set of images needs: [1, channels, height,
        # width].
        height, width = levels.shape[:2]
        channels_last = levels.reshape(1, height, width, -1)
        channels_first = torch.tensor(channels_last).movedim(-1, 1)
        return Images(channels_first / 255, torch.tensor([label]))
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a square image: {error}") from error


def _with_8_bits(picture: Image) -> Image:
    """A picture of 16 bits of grey, which PIL's conversion would cut off at 255, in 8 bits."""
    import PIL.Image

    levels = np.asarray(picture) / 257  # 65535 / 257 = 255
    rounded = levels.round().astype(np.uint8)
    return PIL.Image.fromarray(rounded)


def _centre(picture: Image, side: int) -> Image:
    """The centre of a picture whose shorter side is resized to `side`."""
    import PIL.Image

    shorter = min(picture.size)
    width = round(picture.width * side / shorter)
    height = round(picture.height * side / shorter)
    left = (width - side) // 2
    top = (height - side) // 2
    right = left + side
    bottom = top + side
    resized = picture.resize((width, height), PIL.Image.Resampling.LANCZOS)
    return resized.crop((left, top, right, bottom))
