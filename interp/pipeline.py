"""The main job on texts or images, step by step, as the command line and the experiments run it: scan, halve, localize, ablate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.anatomy import Sites
from interp.batch import GIVEN, Batch
from interp.data.image_files import SUFFIXES as PICTURES
from interp.data.image_files import read_images
from interp.data.images import Images
from interp.data.texts import SUFFIXES as TEXTS
from interp.data.texts import read_texts
from interp.files import replaced
from interp.localization import localize
from interp.memorization.control import overlapping, split, unmemorized
from interp.memorization.extraction import scan
from interp.memorization.families import families, of_images
from interp.memorization.passages import passages
from interp.mitigation.drop import extraction_drop
from interp.mitigation.report import DropReport
from interp.models.image_model import ImageModel
from interp.pictures import image_grid
from interp.plotting import matched_tokens, ranked_scores, save
from interp.subject import Subject
from interp.units import Units, UnitScores

_HELD_OUT = 64  # windows: enough to see a loss change of a few percent
_SHOWN = 8  # images in a figure


@dataclass(frozen=True, eq=False)
class Halves:
    """Memorized windows and their controls, half to score units on and half to judge the ablation on; and `held_out` windows of neither.

    `apart` is False where all that was extracted is one wording in several texts: it is then judged on what it was scored on.
    """

    scored: tuple[pd.DataFrame, pd.DataFrame]
    judged: tuple[pd.DataFrame, pd.DataFrame]
    held_out: pd.DataFrame
    apart: bool


def scan_files(
    subject: Subject, paths: Iterable[str | Path], out: Path, prefix: int = 32, length: int = 32, stride: int | None = None, size: int = 16
) -> pd.DataFrame:
    """Scans the texts of files into `out`: windows.parquet, passages.csv, scan.png. What is there already is not measured again."""
    frame = scan(subject, read_texts(paths), prefix, length, stride=stride, size=size, folder=out / "parts")
    _write(frame, out)
    return frame


def scan_images(subject: Subject, paths: Iterable[str | Path], out: Path, prefix: int = 0, size: int = 16) -> pd.DataFrame:
    """Scans the images of files, each as one window, its class given, into `out`: as `scan_files` does, and images.png, the best of them.

    Raises ValueError when the model is of something else, has no such classes, or cannot go on after `prefix` tokens; and as `read_images`,
    which is asked for the side and channels of the model's tokenizer.
    """
    module = subject.module
    if not isinstance(module, ImageModel):
        raise ValueError(f"{subject.name} is no image model: expected a VAR or a RAR")
    places = [Path(path) for path in paths]
    module.before(prefix)
    images = read_images(places, module.tokenizer.side, module.tokenizer.channels)
    _check_classes(images, places, module.classes)
    frame = scan(subject, module.encode(images.pixels, images.labels, prefix), size=size, folder=out / "parts")
    _write(frame, out)
    save(_best(subject, module, images, frame), out / "images.png")
    return frame


def check_paths(paths: Iterable[Path], model: str, *, images: bool) -> None:
    """Raises ValueError for a path that does not exist, or holds texts where a model is of images, or images where it is of texts."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist: expected {'images' if images else 'a text file'} or a folder of them")
        pictures = (path.suffix.lower() in (".npz", *PICTURES)) if path.is_file() else _is_there(path.glob("*/**/*"), PICTURES)
        if images and not pictures:
            raise ValueError(
                f"{path} holds no images; {model}, weights without config.json, is read as an image model: expected an .npz of images and "
                f"labels, or a folder of one folder a class with {', '.join(PICTURES)}"
            )
        if not images and pictures and (path.is_file() or not _is_there(path.rglob("*"), TEXTS)):
            raise ValueError(f"{path} holds images, and {model} names no image model: expected texts, or the weights of a VAR or a RAR")


def _is_there(files: Iterable[Path], suffixes: Sequence[str]) -> bool:
    return any(file.suffix.lower() in suffixes for file in files)


def _check_classes(images: Images, places: Sequence[Path], classes: int) -> None:
    """Raises ValueError for labels that are no class, and for folders whose names do not tell which class they are."""
    if int(images.labels.max()) >= classes:
        raise ValueError(f"labels are {int(images.labels.min())} to {int(images.labels.max())}: this model has classes 0 to {classes - 1}")
    folders = [folder for place in places if place.is_dir() for folder in place.iterdir() if folder.is_dir()]
    names = sorted({folder.name for folder in folders if _is_there(folder.rglob("*"), PICTURES)})
    if not all(map(str.isdecimal, names)) and len(names) != classes:
        raise ValueError(
            f"{len(names)} folders with names such as {names[0]} do not tell which of {classes} classes they are: name them by the "
            "classes' numbers"
        )


def _best(subject: Subject, module: ImageModel, images: Images, frame: pd.DataFrame) -> Any:
    """The images that a model comes nearest to: as they were, as their tokens are, and as the model goes on from the prefix."""
    distinct: Any = frame[~frame["tokens"].map(tuple).duplicated()]
    best = distinct.sort_values(["exact", "matched", "log_p"], ascending=False, kind="stable").head(_SHOWN)
    batch = Batch.from_frame(best)
    said = torch.cat([batch.tokens[:, : batch.prompt], subject.generate(batch).to(batch.tokens.device)], dim=1)
    rows = {
        "original": images.pixels[best["text"].tolist()],
        "reconstruction": module.decode(batch.tokens),
        "generated": module.decode(said),
    }
    named = zip(best["text"], best[f"{GIVEN}label"], best["matched"], best["length"], strict=True)
    return image_grid(rows, [f"image {image}\nclass {label}\n{matched} of {length}" for image, label, matched, length in named])


def _write(frame: pd.DataFrame, out: Path) -> None:
    with replaced(out / "windows.parquet") as temporary:
        frame.to_parquet(temporary)
    with replaced(out / "passages.csv") as temporary:
        passages(frame).to_csv(temporary, index=False)
    save(matched_tokens(frame), out / "scan.png")


def halve(frame: pd.DataFrame) -> Halves:
    """Splits a scan so that no unit is judged on what it was scored on.

    The memorized halves share no wording (see `families`) or, where one text holds all that was extracted, no token of it. Controls and
    held-out windows match less than half of their suffix; none shares a token of a text, or all its tokens, with those of another set.
    Each image is a text of its own, and images of the same tokens are one wording.

    Raises ValueError when nothing was extracted, controls are short (see `split`), or no window is left to hold out.
    """
    # of the same tokens given several classes, those that are extracted count
    frame = frame.sort_values("exact", ascending=False, kind="stable")
    memorized: Any = split(frame)[0]
    first, second, apart = _memorized_halves(memorized)
    distinct: Any = frame[~frame["tokens"].map(tuple).duplicated()]
    pool = unmemorized(distinct, frame)
    scored = split(pd.concat([first, pool], ignore_index=True))
    pool = _without(pool, scored[1])
    judged = split(pd.concat([second, pool], ignore_index=True))
    return Halves(scored, judged, _spread(_without(pool, judged[1])), apart)


def _memorized_halves(memorized: Any) -> tuple[Any, Any, bool]:
    """Alternate wordings, the largest first; of a single text, its first half and what does not overlap it; else all of it, twice."""
    if memorized["text"].nunique() == 1:
        first = (memorized["start"] < memorized["start"].mean()).to_numpy()
        second = ~first & ~overlapping(memorized, memorized[first])
        if not (first.any() and second.any()):
            raise ValueError(
                f"{len(memorized)} windows were extracted, all in one place; scoring units and judging them needs two that share no token: "
                f"scan more {_kind(memorized)}"
            )
        return memorized[first], memorized[second], True
    wording = families(memorized)
    first = np.isin(wording, pd.Series(wording).value_counts().index[::2])
    return (memorized[first], memorized[~first], True) if not first.all() else (memorized, memorized, False)


def _without(windows: Any, used: pd.DataFrame) -> Any:
    """Windows that neither share a token of a text with the used ones nor repeat their tokens."""
    repeated = windows["tokens"].map(tuple).isin(set(used["tokens"].map(tuple)))
    return windows[~overlapping(windows, used) & ~repeated]


def _spread(pool: Any) -> pd.DataFrame:
    if pool.empty:
        raise ValueError(f"no window is left to judge damage on: scan more {_kind(pool)} that is not memorized")
    return pool.iloc[np.unique(np.linspace(0, len(pool) - 1, min(_HELD_OUT, len(pool))).astype(int))].reset_index(drop=True)


def _kind(windows: pd.DataFrame) -> str:
    return "images" if of_images(windows) else "text"


def localize_files(
    subject: Subject, halves: Halves, out: Path, method: str, site: Sites, top: float, options: Mapping[str, Any] | None = None
) -> UnitScores:
    """Scores units on the first half and writes scores.parquet, units.json (the top share), blocks.csv and units.png."""
    scores = localize(subject, *halves.scored, method=method, site=site, **(options or {}))
    units = scores.top(top)
    scores.save(out / "scores.parquet")
    units.save(out / "units.json")
    with replaced(out / "blocks.csv") as temporary:
        scores.by_block().to_csv(temporary, index=False)
    ranked: Any = scores.to_frame().head(len(units))
    if ranked["block"].notna().all():
        save(ranked_scores(ranked.astype({"block": int}), blocks=max(map(len, subject.anatomy.stacks.values()))), out / "units.png")
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
    """Measures the extraction drop on the second half, the scored windows beside it; writes drop.parquet, drop.json and drop.png."""
    also = {"scored": halves.scored[0]} if halves.apart else None
    report = extraction_drop(subject, selection, *halves.judged, halves.held_out, fractions, seeds=seeds, at=at, also=also, size=size)
    report.save(out)
    return report
