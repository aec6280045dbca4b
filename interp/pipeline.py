"""The main job on a corpus, step by step, as the command line and the experiments run it: scan, halve, localize, ablate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from interp.memorization.families import families
from interp.memorization.passages import passages
from interp.mitigation.drop import extraction_drop
from interp.mitigation.report import DropReport
from interp.plotting import matched_tokens, ranked_scores, save
from interp.subject import Subject
from interp.units import Units, UnitScores

_HELD_OUT = 64  # windows: enough to see a loss change of a few percent


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
    with replaced(out / "windows.parquet") as temporary:
        frame.to_parquet(temporary)
    with replaced(out / "passages.csv") as temporary:
        passages(frame).to_csv(temporary, index=False)
    save(matched_tokens(frame), out / "scan.png")
    return frame


def halve(frame: pd.DataFrame) -> Halves:
    """Splits a scan so that no unit is judged on what it was scored on.

    The memorized halves share no wording (see `families`) or, where one text holds all that was extracted, no token of it. Controls and
    held-out windows match less than half of their suffix; none shares a token of a text, or all its tokens, with those of another set.

    Raises ValueError when nothing was extracted, controls are short (see `split`), or no window is left to hold out.
    """
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
                "scan more text"
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
        raise ValueError("no window is left to judge damage on: scan more text that is not memorized")
    return pool.iloc[np.unique(np.linspace(0, len(pool) - 1, min(_HELD_OUT, len(pool))).astype(int))].reset_index(drop=True)


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
