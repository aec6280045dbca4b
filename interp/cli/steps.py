"""The main job on texts or images, step by step, as the command line and the experiments run it:
scan, halve, localize, ablate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interp.data.image_files import SUFFIXES as PICTURES
from interp.data.image_files import read_images
from interp.data.images import Images
from interp.data.texts import SUFFIXES as TEXTS
from interp.files import replaced
from interp.localization import localize
from interp.memorization.extraction import scan
from interp.memorization.halves import Halves
from interp.memorization.spans import passages
from interp.mitigation.extraction_drop import extraction_drop
from interp.mitigation.report import DropReport
from interp.models.image.image_model import ImageModel, image_model
from interp.reporting.image_grid import image_grid
from interp.reporting.plotting import matched_tokens, ranked_scores, save
from interp.sites.anatomy import Sites
from interp.sites.units import Units, UnitScores
from interp.subject.batch import GIVEN, Batch
from interp.subject.subject import Subject

_SHOWN = 8  # images in a figure


def scan_texts(
    subject: Subject,
    texts: Iterable[str],
    out: Path,
    prefix: int = 32,
    length: int = 32,
    stride: int | None = None,
    size: int = 16,
) -> pd.DataFrame:
    """Scans texts into `out`: windows.parquet, passages.csv, scan.png. What is there already is not
    measured again."""
    frame = scan(subject, texts, prefix, length, stride=stride, size=size, folder=out / "parts")
    _write(frame, out)
    return frame


def scan_images(
    subject: Subject, paths: Iterable[str | Path], out: Path, prefix: int = 0, size: int = 16
) -> pd.DataFrame:
    """Scans the images of files, each as one window, its class given, into `out`: as `scan_texts`
    does, and images.png, the best of them.

    Raises ValueError when the model is of something else, has no such classes, or cannot go on
    after `prefix` tokens; and as `read_images`, which is asked for the side and channels of the
    model's tokenizer.
    """
    module = image_model(subject.module)
    places = [Path(path) for path in paths]
    module.before(prefix)
    images = read_images(places, module.tokenizer.side, module.tokenizer.channels)
    _check_classes(images, places, module.classes)
    frame = scan(
        subject,
        module.encode(images.pixels, images.labels, prefix),
        size=size,
        folder=out / "parts",
    )
    _write(frame, out)
    save(_best(subject, module, images, frame), out / "images.png")
    return frame


def check_paths(paths: Iterable[Path], model: str, *, images: bool) -> None:
    """Raises ValueError for a path that does not exist, or holds texts where a model is of images,
    or images where it is of texts."""
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: expected {'images' if images else 'a text file'} or a folder of them"
            )
        pictures = (
            (path.suffix.lower() in (".npz", *PICTURES))
            if path.is_file()
            else _is_there(path.glob("*/**/*"), PICTURES)
        )
        if images and not pictures:
            raise ValueError(
                f"{path} holds no images; {model}, weights without config.json, is read as an image model: expected an .npz of images and "
                f"labels, or a folder of one folder a class with {', '.join(PICTURES)}"
            )
        if not images and pictures and (path.is_file() or not _is_there(path.rglob("*"), TEXTS)):
            raise ValueError(
                f"{path} holds images, and {model} names no image model: expected texts, or the weights of a VAR or a RAR"
            )


def _is_there(files: Iterable[Path], suffixes: Sequence[str]) -> bool:
    return any(file.suffix.lower() in suffixes for file in files)


def _check_classes(images: Images, places: Sequence[Path], classes: int) -> None:
    """Raises ValueError for labels that are no class, and for folders whose names do not tell which
    class they are."""
    if int(images.labels.max()) >= classes:
        raise ValueError(
            f"labels are {int(images.labels.min())} to {int(images.labels.max())}: this model has classes 0 to {classes - 1}"
        )
    folders = [
        folder
        for place in places
        if place.is_dir()
        for folder in place.iterdir()
        if folder.is_dir()
    ]
    names = sorted({folder.name for folder in folders if _is_there(folder.rglob("*"), PICTURES)})
    if not all(map(str.isdecimal, names)) and len(names) != classes:
        raise ValueError(
            f"{len(names)} folders with names such as {names[0]} do not tell which of {classes} classes they are: name them by the "
            "classes' numbers"
        )


def _best(subject: Subject, module: ImageModel, images: Images, frame: pd.DataFrame) -> Any:
    """The images that a model comes nearest to: as they were, as their tokens are, and as the model
    goes on from the prefix."""
    distinct: Any = frame[~frame["tokens"].map(tuple).duplicated()]
    best = distinct.sort_values(["exact", "matched", "log_p"], ascending=False, kind="stable").head(
        _SHOWN
    )
    batch = Batch.from_frame(best)
    said = torch.cat(
        [batch.tokens[:, : batch.prompt], subject.generate(batch).to(batch.tokens.device)], dim=1
    )
    rows = {
        "original": images.pixels[best["text"].tolist()],
        "reconstruction": module.decode(batch.tokens),
        "generated": module.decode(said),
    }
    named = zip(best["text"], best[f"{GIVEN}label"], best["matched"], best["length"], strict=True)
    return image_grid(
        rows,
        [
            f"image {image}\nclass {label}\n{matched} of {length}"
            for image, label, matched, length in named
        ],
    )


def _write(frame: pd.DataFrame, out: Path) -> None:
    with replaced(out / "windows.parquet") as temporary:
        frame.to_parquet(temporary)
    with replaced(out / "passages.csv") as temporary:
        passages(frame).to_csv(temporary, index=False)
    save(matched_tokens(frame), out / "scan.png")


def localize_files(
    subject: Subject,
    halves: Halves,
    out: Path,
    method: str,
    site: Sites,
    top: float,
    options: Mapping[str, Any] | None = None,
) -> UnitScores:
    """Scores units on the first half and writes scores.parquet, units.json (the top share),
    blocks.csv and units.png."""
    scores = localize(subject, *halves.scored, method=method, site=site, **(options or {}))
    units = scores.top(top)
    scores.save(out / "scores.parquet")
    units.save(out / "units.json")
    with replaced(out / "blocks.csv") as temporary:
        scores.by_block().to_csv(temporary, index=False)
    ranked: Any = scores.to_frame().head(len(units))
    if ranked["block"].notna().all():
        save(
            ranked_scores(
                ranked.astype({"block": int}), blocks=max(map(len, subject.anatomy.stacks.values()))
            ),
            out / "units.png",
        )
    return scores


def ablate_files(
    subject: Subject,
    halves: Halves,
    selection: UnitScores | Units,
    out: Path,
    fractions: Sequence[float],
    *,
    at: float | None = None,
    seeds: int = 5,
    size: int = 16,
) -> DropReport:
    """Measures the extraction drop on the second half, the scored windows beside it; writes
    drop.parquet, drop.json and drop.png."""
    also = {"scored": halves.scored[0]} if halves.apart else None
    report = extraction_drop(
        subject,
        selection,
        *halves.judged,
        halves.held_out,
        fractions,
        seeds=seeds,
        at=at,
        also=also,
        size=size,
    )
    report.save(out)
    return report
