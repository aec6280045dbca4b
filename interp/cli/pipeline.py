"""The main job on texts or images, as the command line and the experiments run it: scan, localize,
ablate. Each stage writes its tables and figures to a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interp.data.corpus_counts import Counts
from interp.data.image_files import SUFFIXES as PICTURES
from interp.data.image_files import ImageFiles, find_images
from interp.data.images import Images
from interp.data.tabletop.frames import load_frames
from interp.data.text_formats import has_text_name
from interp.data.tokenized import Share
from interp.files import replaced
from interp.localization import localize
from interp.memorization.corpus_scan import CorpusScan, keeps_some, scan_corpus
from interp.memorization.extraction import scan
from interp.memorization.halves import Halves
from interp.memorization.shards import merge
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

# Which units.json this is, and which windows its units were scored on.
_ORIGIN = "scored_on.json"

_IMAGES_SHOWN = 8
_SHARES = "shares"


def scan_texts(
    subject: Subject,
    texts: Iterable[str],
    out: Path,
    prefix: int = 32,
    length: int = 32,
    stride: int | None = None,
    batch_size: int = 16,
    *,
    bos: bool = True,
    counts: Counts | None = None,
    share: Share | None = None,
) -> pd.DataFrame:
    """Scans texts and writes windows.parquet, passages.csv and scan.png.

    Shards of the scan that are finished in `out` are not measured again.

    Args:
        subject: a language model.
        texts: the texts.
        out: folder of the files.
        prefix: number of tokens the model is given.
        length: number of tokens it has to continue with.
        stride: number of tokens from one window to the next; `length` by default.
        batch_size: batch size.
        bos: whether windows are measured behind the start tokens.
        counts: counts of the training data, for the columns `count` and `count_suffix`.
        share: which of the texts are scanned. Only their shards are written, in a folder of their
            own in `out`, for `merge_shares`.

    Returns:
        One row per window: see `interp.scan`.
    """
    frame = scan(
        subject,
        texts,
        prefix,
        length,
        stride=stride,
        batch_size=batch_size,
        folder=out / ("shards" if share is None else _folder_of(share)),
        bos=bos,
        counts=counts,
        share=share,
    )
    if share is None:
        _write_scan(frame, out)
    return frame


def count_texts(
    subject: Subject,
    texts: Iterable[str],
    out: Path,
    keep: str,
    prefix: int = 32,
    length: int = 32,
    stride: int | None = None,
    batch_size: int = 16,
    *,
    bos: bool = True,
    counts: Counts | None = None,
    share: Share | None = None,
) -> CorpusScan:
    """Scans texts in memory that does not grow with them, and writes documents.parquet,
    histograms.csv, windows.parquet (the windows that are kept), passages.csv and scan.png.

    Args:
        subject, texts, out, prefix, length, stride, batch_size, bos, counts, share: see
            `scan_texts`.
        keep: which windows are kept as rows: see `interp.scan_corpus`.

    Returns:
        The counts and the rows that are kept.
    """
    found = scan_corpus(
        subject,
        texts,
        out / ("shards" if share is None else _folder_of(share)),
        prefix,
        length,
        keep=keep,
        stride=stride,
        batch_size=batch_size,
        bos=bos,
        counts=counts,
        share=share,
    )
    if share is None:
        _write_counts(found, out)
    return found


def _folder_of(share: Share) -> str:
    return f"{_SHARES}/{share.index}-of-{share.of}"


def check_shares(out: Path) -> None:
    """Refuses to scan all texts where several processes share them.

    Args:
        out: folder of the files.

    Raises:
        ValueError: the folder holds shares that are not joined yet.
    """
    shares = sorted((out / _SHARES).glob("*-of-*"))
    if shares and not (out / "shards").exists():
        raise ValueError(
            f"{out} holds shares of a scan, such as {shares[0].name}: join them by `interp merge`; "
            "to go on with one, give --num-shards, the number of all, and --shard-index; to scan "
            "all texts at once, give another --out"
        )


def merge_shares(out: Path) -> pd.DataFrame | CorpusScan:
    """Joins the shares of a scan, and writes what one scan of all texts does.

    Args:
        out: the folder that all shares were scanned into.

    Returns:
        What `scan_texts` or `count_texts` does.

    Raises:
        ValueError: there are no shares, or see `interp.memorization.shards.merge`.
    """
    folders = sorted((out / _SHARES).glob("*-of-*"))
    if not folders:
        raise ValueError(f"{out} holds no shares: expected the --out of `interp scan --num-shards`")
    if keeps_some(folders[0]):
        found = CorpusScan.read(folders)
        _write_counts(found, out)
        return found
    frame = merge(folders, out / "shards")
    _write_scan(frame, out)
    return frame


def scan_images(
    subject: Subject, paths: Iterable[str | Path], out: Path, prefix: int = 0, batch_size: int = 16
) -> pd.DataFrame:
    """Scans images, each as one window that is conditioned on its class, and writes
    windows.parquet, passages.csv, scan.png and images.png (the best matches).

    Shards of the scan that are finished in `out` are not measured again.

    Args:
        subject: an image model.
        paths: .npz files, or folders with one folder per class.
        out: folder of the files.
        prefix: number of tokens the model is given.
        batch_size: batch size.

    Returns:
        One row per image: see `interp.scan`.

    Raises:
        ValueError: the model is not an image model, does not have these classes, or cannot continue
            after `prefix` tokens; or see `read_images`: images are read with the side and the
            channels of the model's tokenizer.
    """
    module = image_model(subject.module)
    module.before(prefix)
    found = find_images(paths)
    images = found.read(module.tokenizer.side, module.tokenizer.channels)
    _check_classes(images, found, module.classes)
    encoded = module.encode(images.pixels, images.labels, prefix)
    frame = scan(subject, encoded, batch_size=batch_size, folder=out / "shards")
    _write_scan(frame, out)
    save(_draw_best_matches(subject, module, images, frame), out / "images.png")
    return frame


def scan_frames(
    subject: Subject, source: Path, out: Path, prefix: int = 0, batch_size: int = 16
) -> pd.DataFrame:
    """Scans the frames of demonstrations, each as one window: does the policy continue what was
    seen and asked for with the action of the demonstration? It writes windows.parquet,
    passages.csv and scan.png.

    Shards of the scan that are finished in `out` are not measured again.

    Args:
        subject: a policy.
        source: a file that `interp.data.tabletop.frames.save_frames` wrote.
        out: folder of the files.
        prefix: number of action tokens that the policy is given.
        batch_size: batch size.

    Returns:
        One row per frame: see `interp.scan`.

    Raises:
        ValueError: the file holds no frames, or those of another policy.
    """
    frames = replace(load_frames(source), prompt=prefix)
    frame = scan(subject, frames, batch_size=batch_size, folder=out / "shards")
    _write_scan(frame, out)
    return frame


def check_paths(paths: Iterable[Path], model: str, *, images: bool) -> None:
    """Checks that the sources are of the kind that the model reads.

    Args:
        paths: files and folders.
        model: the model as it was given, for the message.
        images: whether it is an image model.

    Raises:
        ValueError: a path that does not exist or holds no images, for an image model; or that
            holds only images, for a language model.
    """
    for path in paths:
        if not path.exists():
            if images:
                raise ValueError(f"{path} does not exist: expected images or a folder of them")
            continue  # it may be a data set on the hub, which `find_texts` looks for
        if path.is_file():
            has_images = path.suffix.lower() in (".npz", *PICTURES)
        else:
            # Pictures count from one folder down, because the folder they are in is their class.
            has_images = _any_with_suffix(path.glob("*/**/*"), PICTURES)

        if images and not has_images:
            raise ValueError(
                f"{path} holds no images; {model}, weights without config.json, is read as an "
                "image model: expected an .npz of images and labels, or a folder of one folder per "
                f"class with {', '.join(PICTURES)}"
            )
        if not images and has_images:
            has_texts = path.is_dir() and any(map(has_text_name, path.rglob("*")))
            if not has_texts:
                raise ValueError(
                    f"{path} holds images, and {model} is not an image model: "
                    "expected texts, or the weights of a VAR or a RAR"
                )


def _any_with_suffix(files: Iterable[Path], suffixes: Sequence[str]) -> bool:
    return any(file.suffix.lower() in suffixes for file in files)


def _check_classes(images: Images, files: ImageFiles, classes: int) -> None:
    """Raises ValueError for labels outside the model's classes, and for folders whose names do not
    say which class they are."""
    low = int(images.labels.min())
    high = int(images.labels.max())
    last = classes - 1
    if high > last:
        raise ValueError(f"labels are {low} to {high}: this model has classes 0 to {last}")
    found = {file.class_name for file in files.files if file.class_name is not None}

    # Names that are not numbers are sorted and numbered, which is right only if all classes are
    # there.
    names = sorted(found)
    if not all(map(str.isdecimal, names)) and len(names) != classes:
        raise ValueError(
            f"{len(names)} folders with names such as {names[0]} do not say which of {classes} "
            "classes they are: name them by the classes' numbers"
        )


def _draw_best_matches(
    subject: Subject, module: ImageModel, images: Images, frame: pd.DataFrame
) -> Any:
    """The images that a model comes nearest to: the original, what the tokenizer makes of its
    tokens, and what the model generates from the prefix."""
    # Copies of one image would fill the figure: an image that was planted often may be in the files
    # as often.
    is_copy: Any = frame["tokens"].map(tuple).duplicated()
    distinct: Any = frame[~is_copy]
    ranking = ["exact", "matched", "log_p"]
    best = distinct.sort_values(ranking, ascending=False, kind="stable").head(_IMAGES_SHOWN)

    batch = Batch.from_frame(best)
    given = batch.tokens[:, : batch.prompt]
    continued = subject.generate(batch).to(batch.tokens.device)
    rows = {
        "original": images.pixels[best["text"].tolist()],
        "reconstruction": module.decode(batch.tokens),
        "generated": module.decode(torch.cat([given, continued], dim=1)),
    }
    described = zip(
        best["text"], best[f"{GIVEN}label"], best["matched"], best["length"], strict=True
    )
    titles = [
        f"image {image}\nclass {label}\n{matched} of {length}"
        for image, label, matched, length in described
    ]
    return image_grid(rows, titles)


def _write_scan(frame: pd.DataFrame, out: Path) -> None:
    with replaced(out / "windows.parquet") as temporary:
        frame.to_parquet(temporary)
    with replaced(out / "passages.csv") as temporary:
        passages(frame).to_csv(temporary, index=False)
    save(matched_tokens(frame), out / "scan.png")


def _write_counts(found: CorpusScan, out: Path) -> None:
    found.save(out)
    kept = found.kept()
    if len(kept):
        with replaced(out / "passages.csv") as temporary:
            passages(kept).to_csv(temporary, index=False)


def localize_files(
    subject: Subject,
    halves: Halves,
    out: Path,
    method: str,
    site: Sites,
    top: float,
    options: Mapping[str, Any] | None = None,
) -> UnitScores:
    """Scores units on the scored half and writes scores.parquet, units.json, scored_on.json,
    blocks.csv and units.png.

    Args:
        subject: the model.
        halves: the windows to score on and to judge on.
        out: folder of the files.
        method: name of a localization method.
        site: which units are scored.
        top: the share of all units that is written to units.json, above 0 and at most 1.
        options: options of the method.

    Returns:
        The scores of all units.
    """
    given = options or {}
    scores = localize(subject, *halves.scored, method=method, site=site, **given)
    scores.save(out / "scores.parquet")
    units = scores.top(top)
    units.save(out / "units.json")
    origin = {"units": _digest_of_file(out / "units.json"), "windows": _digest_of(halves)}
    with replaced(out / _ORIGIN) as temporary:
        temporary.write_text(json.dumps(origin))
    with replaced(out / "blocks.csv") as temporary:
        scores.by_block().to_csv(temporary, index=False)
    ranked: Any = scores.to_frame().head(len(units))
    all_in_blocks = ranked["block"].notna().all()
    stacks = {site.stack for site in units.sites}
    # The figure has one axis of blocks, on which those of two stacks would be counted together.
    if all_in_blocks and len(stacks) == 1:
        blocks = len(subject.anatomy.blocks(*stacks))
        figure = ranked_scores(ranked.astype({"block": int}), blocks=blocks)
        save(figure, out / "units.png")
    return scores


def judged_on_other_wording(halves: Halves, units: Path | None) -> bool | None:
    """Returns whether the windows that units are judged on are worded otherwise than those that
    they were scored on.

    Args:
        halves: the windows to score on and to judge on.
        units: the file of the units; None if they are scored on these halves.

    Returns:
        None where the file does not lie where `localize_files` wrote it, or was written for other
        windows: what the units were scored on is then not known.
    """
    if units is not None:
        origin = units.parent / _ORIGIN
        known = json.loads(origin.read_text()) if origin.exists() else None
        if known != {"units": _digest_of_file(units), "windows": _digest_of(halves)}:
            return None
    return halves.other_wording


def _digest_of(halves: Halves) -> str:
    """A digest of the memorized windows that units are scored on."""
    tokens = [list(map(int, window)) for window in halves.scored[0]["tokens"]]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _digest_of_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def ablate_files(
    subject: Subject,
    halves: Halves,
    selection: UnitScores | Units,
    out: Path,
    fractions: Sequence[float],
    *,
    at: float | None = None,
    seeds: int = 5,
    batch_size: int = 16,
) -> DropReport:
    """Measures the extraction drop on the judged half and writes drop.parquet, drop.json and
    drop.png.

    Where no text of the judged half is worded like one of the scored half, the scored windows are
    measured too, and reported as `scored`. Where the two halves are the same windows, they are not
    measured twice.

    Args:
        subject: the model.
        halves: the windows to score on and to judge on.
        selection: scores, whose top `fractions` are ablated; or units.
        out: folder of the files.
        fractions: shares of all scored units.
        at: the fraction that the verdict is about, if chosen beforehand.
        seeds: number of random controls.
        batch_size: batch size.
    """
    # Reported next to the judged half: how much more the windows lose that chose the units.
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
        batch_size=batch_size,
    )
    report.save(out)
    return report
