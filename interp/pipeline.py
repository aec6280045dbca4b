"""The main job on a corpus, step by step, as the command line and the experiments run it: scan, halve, localize, ablate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.anatomy import Sites
from interp.data.texts import read_texts
from interp.files import replaced
from interp.localization import localize
from interp.memorization.control import overlapping, split, unmemorized
from interp.memorization.extraction import scan
from interp.memorization.passages import passages
from interp.mitigation.drop import extraction_drop
from interp.mitigation.report import DropReport
from interp.plotting import matched_tokens, ranked_scores, save
from interp.subject import Subject
from interp.units import Units, UnitScores

_HELD_OUT = 64  # windows: enough to see a loss change of a few percent


@dataclass(frozen=True, eq=False)
class Halves:
    """Memorized windows and their controls, half to score units on and half to judge the ablation on; and `held_out` windows of neither."""

    scored: tuple[pd.DataFrame, pd.DataFrame]
    judged: tuple[pd.DataFrame, pd.DataFrame]
    held_out: pd.DataFrame


def scan_files(
    subject: Subject, paths: Iterable[str | Path], out: Path, prefix: int = 32, length: int = 32, stride: int | None = None, size: int = 16
) -> pd.DataFrame:
    """Scans the texts of files into `out`: windows.parquet, passages.csv, scan.png. What is there already is not measured again."""
    frame = scan(subject, read_texts(paths), prefix, length, stride=stride, size=size, folder=out / "parts")
    with replaced(out / "windows.parquet") as temporary:
        frame.to_parquet(temporary)
    with replaced(out / "passages.csv") as temporary:
        passages(frame).to_csv(temporary, index=False)
    save(matched_tokens(frame), out / "scan.png")
    return frame


def halve(frame: pd.DataFrame) -> Halves:
    """Splits a scan so that no unit is judged on what it was scored on.

    The halves share no memorized text - alternate texts go to each - or, where one text holds all that was extracted, no token of it.
    Held-out windows match less than half of their suffix and share no token of a text with the windows of either half.

    Raises ValueError when fewer than two windows apart were extracted, controls are short (see `split`), or no window is left to hold out.
    """
    found: tuple[Any, Any] = split(frame)
    memorized, control = found
    scored = _scored(memorized)
    judged = ~scored & ~overlapping(memorized, memorized[scored])
    if not judged.any():
        raise ValueError(
            f"{len(memorized)} windows were extracted, all in one place; scoring units and judging them needs two that share no token: "
            "scan more text"
        )
    halves: list[Any] = [(memorized[rows].reset_index(drop=True), control[rows].reset_index(drop=True)) for rows in (scored, judged)]
    return Halves(halves[0], halves[1], _others(frame, pd.concat([memorized, control])))


def _scored(memorized: Any) -> np.ndarray:
    """[windows]: those to score units on: of every other text, or the first half of the only one."""
    texts = list(dict.fromkeys(memorized["text"]))
    if len(texts) > 1:
        return memorized["text"].isin(texts[::2]).to_numpy()
    return (memorized["start"] <= memorized["start"].quantile(0.5, interpolation="lower")).to_numpy()


def _others(frame: pd.DataFrame, used: pd.DataFrame) -> pd.DataFrame:
    pool = unmemorized(frame, frame)
    pool = pool.iloc[np.flatnonzero(~overlapping(pool, used))]
    if pool.empty:
        raise ValueError("no window is left to judge damage on: scan more text that is not memorized")
    return pool.iloc[np.unique(np.linspace(0, len(pool) - 1, min(_HELD_OUT, len(pool))).astype(int))].reset_index(drop=True)


def localize_files(subject: Subject, halves: Halves, out: Path, method: str, site: Sites, top: float) -> UnitScores:
    """Scores units on the first half and writes scores.parquet, units.json (the top share) and units.png."""
    scores = localize(subject, *halves.scored, method=method, site=site)
    units = scores.top(top)
    scores.save(out / "scores.parquet")
    units.save(out / "units.json")
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
    """Measures the extraction drop on the second half and writes drop.parquet, drop.json and drop.png."""
    report = extraction_drop(subject, selection, *halves.judged, halves.held_out, fractions, seeds=seeds, at=at, size=size)
    report.save(out)
    return report
