"""The Entropy-Memorization Law of a model on a corpus: `entropy_law`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.files import replaced, writable, write_json
from interp.memorization.entropy.baselines import is_trivial, text_baselines
from interp.memorization.entropy.level_bags import RAREFIED, RAW, LevelBags
from interp.memorization.entropy.level_sets import LevelSets
from interp.memorization.entropy.regression import (
    FEWEST_TEXTS,
    Null,
    Response,
    check_response,
    compare_with_null,
    correlation_interval,
    fit_line,
    groups_to_leave_out,
)
from interp.memorization.entropy.scored_windows import ScoredWindows, score_windows
from interp.progress import track
from interp.reporting.layout import finish, grid_of, name_panel, style
from interp.reporting.plotting import save
from interp.subject.subject import Subject
from interp.subject.text_rows import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE = "windows"
_NULL_BAND = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class EntropyLaw:
    """How the entropy of the levels depends on their memorization score.

    Attributes:
        levels: one row per quantity and level: `quantity`, `score`, `windows` (how many of the
            level are kept, see `LevelSets`; `entropy`, `miller_madow`, `normalized` and `log_types`
            are nevertheless those of all its windows), `value`, and `null_low` and `null_high`,
            between which 95% of the shuffles are.
        fits: one row per quantity: `quantity`; the line's `r` with its 95% interval `low`, `high`,
            its `slope`, `intercept` and number of `levels`; `null_mean`, `null_sd`, `null_max` of r
            over shuffles of the scores, and its two-sided `p`; `reason` says what is missing. The
            quantity `windows` is how many windows of the level are kept. Shuffles and interval take
            the windows of a text together: they are not independent of each other.
        baselines: see `text_baselines`; empty if it was not asked for.
        about: settings and counts.
    """

    levels: pd.DataFrame
    fits: pd.DataFrame
    baselines: pd.DataFrame
    about: dict[str, Any]

    def fit(self, quantity: str) -> pd.Series:
        """Returns the row of `fits` of one quantity.

        Raises:
            ValueError: there is no such quantity.
        """
        found: Any = self.fits[self.fits["quantity"] == quantity]
        if found.empty:
            raise ValueError(
                f"quantity {quantity!r}: expected one of {', '.join(self.fits['quantity'])}"
            )
        return found.iloc[0]

    def save(self, folder: str | Path) -> None:
        """Writes levels.parquet, fits.parquet, baselines.parquet, entropy_law.json (settings and
        counts) and entropy_law.png."""
        place = writable(folder)
        tables = {"levels": self.levels, "fits": self.fits, "baselines": self.baselines}
        for name, table in tables.items():
            with replaced(place / f"{name}.parquet") as temporary:
                table.to_parquet(temporary)
        write_json(place / "entropy_law.json", self.about)
        save(self.plot(), place / "entropy_law.png")

    def plot(self) -> Figure:
        """Draws entropy against score: as it is, normalized, and at equal size, each with the band
        of shuffled scores."""
        names = RAW | RAREFIED
        shown = ("entropy", "normalized", "rarefied")
        with style():
            figure, grid = grid_of(len(shown), 3, width=3.5, height=3.0)
            for axes, quantity in zip(grid, shown, strict=True):
                part: Any = self.levels[self.levels["quantity"] == quantity]
                fit = self.fit(quantity)
                axes.fill_between(
                    part["score"],
                    part["null_low"],
                    part["null_high"],
                    color="0.6",
                    alpha=0.35,
                    linewidth=0,
                    label="shuffled scores",
                )
                axes.scatter(part["score"], part["value"], s=14, label="level")
                if np.isfinite(fit["r"]):
                    # From the first to the last level, or, where the fit predicts the score, from
                    # the lowest entropy to the highest: the score is on the x axis all the same.
                    predicts_score = self.about["response"] == "score"
                    given: Any = part["value" if predicts_score else "score"]
                    ends = np.array([given.min(), given.max()])
                    predicted = fit["intercept"] + fit["slope"] * ends
                    line = (predicted, ends) if predicts_score else (ends, predicted)
                    axes.plot(*line, linewidth=1.2, label="line")
                axes.set(xlabel="memorization score (edit distance)", ylabel=names[quantity])
                name_panel(axes, _correlation_in_words(fit))
            title = f"Entropy against memorization score, {self.about['windows']:,} windows"
            finish(
                figure,
                grid,
                title,
                "points: levels, the windows with one score; band: where 95% of shuffled scores "
                "are; at equal size: bags of the same number of windows from each level",
            )
        return figure


def _correlation_in_words(fit: Any) -> str:
    if not np.isfinite(fit["r"]):
        return str(fit["reason"])
    words = f"r = {fit['r']:.2f}"
    if np.isfinite(fit["p"]):
        words += f" (shuffled {fit['null_mean']:.2f}, p = {fit['p']:.2g})"
    return words


def entropy_law(
    subject: Subject,
    texts: Iterable[Text],
    prefix: int = 32,
    length: int = 32,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    bos: bool = True,
    distinct: bool = True,
    keep_trivial: bool = True,
    min_windows: int = 5,
    rarefied_to: int = 5,
    shuffles: int = 200,
    subsamples: int = 50,
    response: Response = "entropy",
    kept: int = 300_000,
    seed: int = 0,
) -> EntropyLaw:
    """Measures how the entropy of what stands in a corpus depends on how well a model reproduces
    it.

    The plug-in entropy of a level grows with the number of its windows, and levels of a high score
    usually have far more of them: shuffled scores alone give a correlation of 0.8 to 0.95. Read
    `rarefied`, which compares levels at equal size, and hold `entropy` against its shuffles.

    What is measured is how *predictable* texts of an entropy are. The law holds for texts that the
    model has never seen too; compare the two before you speak of memorization.

    Args:
        subject, texts, prefix, length, stride, batch_size, bos, distinct: see `score_windows`.
        keep_trivial: whether windows stay whose suffix can be copied from the prompt, see
            `is_trivial`.
        min_windows: levels with fewer windows are left out.
        rarefied_to: number of windows in the bags that are compared at equal size.
        shuffles: how often the scores are shuffled.
        subsamples: how many bags of equal size are averaged.
        response: see `fit_line`.
        kept: see `LevelSets`.
        seed: of shuffles and samples.

    Raises:
        ValueError: as `score_windows`; a setting out of range; no text as long as one window.

    Source: Huang et al. 2025 (arXiv 2507.06056). Shuffles and equal sizes are additions.

    Example:
        >>> law = interp.entropy_law(subject, texts, prefix=8, length=8, shuffles=20)
        >>> int(law.about["windows"]), law.fit("rarefied")["reason"]
        (24, ...)
    """
    # Scoring may take hours, so settings are checked first.
    _check_settings(min_windows, rarefied_to, shuffles, subsamples, response)
    levels = LevelSets(kept, seed)
    counts: dict[str, int] = {"trivial": 0}
    parts = score_windows(
        subject,
        texts,
        prefix,
        length,
        stride=stride,
        batch_size=batch_size,
        bos=bos,
        distinct=distinct,
        counts=counts,
    )
    # Nothing is scored before windows are asked for here; `counts` is complete afterwards.
    levels.update(_without_trivial(parts, counts, keep_trivial=keep_trivial))
    if not levels.windows:
        raise ValueError(
            f"nothing to measure: of {counts['texts']} texts {counts['skipped']} are shorter than "
            f"{prefix + length} tokens, {counts['repeated']} windows stand there twice and "
            f"{counts['trivial']} can be copied from their prompt"
        )
    law = law_of(
        levels,
        min_windows=min_windows,
        rarefied_to=rarefied_to,
        shuffles=shuffles,
        subsamples=subsamples,
        response=response,
        seed=seed,
    )
    settings = {
        "model": subject.name,
        "prefix": prefix,
        "length": length,
        "stride": length if stride is None else stride,
        "distinct": distinct,
        "keep_trivial": keep_trivial,
        "bos": list(subject.bos) if bos else [],
    }
    baselines = text_baselines(levels.sample, subject.decode if subject.tokenizer else None)
    return EntropyLaw(law.levels, law.fits, baselines, settings | counts | law.about)


def _without_trivial(
    parts: Iterable[ScoredWindows], counts: dict[str, int], *, keep_trivial: bool
) -> Iterator[ScoredWindows]:
    """The windows, of which the trivial ones are counted, and left out if asked for."""
    for part in parts:
        trivial = is_trivial(part.prompts, part.suffixes)
        counts["trivial"] += int(trivial.sum())
        rest = part if keep_trivial else part.rows(~trivial)
        if len(rest):
            yield rest


def law_of(
    levels: LevelSets,
    *,
    min_windows: int = 5,
    rarefied_to: int = 5,
    shuffles: int = 200,
    subsamples: int = 50,
    groups: int = FEWEST_TEXTS,
    response: Response = "entropy",
    seed: int = 0,
) -> EntropyLaw:
    """Fits the law to level sets, with shuffled scores beside each fit.

    Args:
        levels: the level sets.
        min_windows, rarefied_to, shuffles, subsamples, response, seed: see `entropy_law`.
        groups: into how many groups texts are put, each of which is left out once for the interval
            of r. Where there are fewer texts, neighbouring windows make a group.

    Raises:
        ValueError: a setting out of range.
    """
    _check_settings(min_windows, rarefied_to, shuffles, subsamples, response)
    if groups < 2:
        raise ValueError(f"groups={groups}: expected at least 2")
    sample = levels.sample
    rng = np.random.default_rng(seed)
    bags = LevelBags(sample, min_windows, rarefied_to, subsamples, rng)
    measured = bags.measure()
    # The raw quantities grow with the number of windows, so they are taken from the counts of all.
    if not levels.is_complete:
        measured |= _of_all_windows(levels, bags.scores)

    shuffled = [bags.measure_shuffled(rng) for _ in track(range(shuffles), "shuffling scores")]
    groups_of_windows = groups_to_leave_out(sample.texts, groups, seed)
    left_out = [bags.measure(~group) for group in groups_of_windows]

    level_rows: list[pd.DataFrame] = []
    fit_rows: list[dict[str, Any]] = []
    for quantity, values in measured.items():
        # Shuffles and left-out groups are measured on the windows that were kept. A raw quantity of
        # all windows comes from larger bags than theirs; only equal bag sizes can be compared then.
        is_comparable = quantity in RAREFIED or levels.is_complete
        null_values = np.array([each[quantity] for each in shuffled])  # [shuffles, levels]
        replicates = [each[quantity] for each in left_out]
        if not is_comparable:
            null_values = np.full((0, len(values)), np.nan)
            replicates = []
        level_rows.append(_level_rows(quantity, bags, values, null_values))
        fit_rows.append(_fit_row(quantity, bags.scores, values, null_values, replicates, response))
        if not is_comparable:
            fit_rows[-1]["reason"] = (
                f"only {len(sample):,} of {levels.windows:,} windows are kept, and shuffling needs "
                "all: raise `kept`"
            )
    size = fit_line(bags.scores, bags.sizes, response)
    fit_rows.append({"quantity": _SIZE, **vars(size)})
    about = {
        "windows": levels.windows,
        "windows_kept": len(sample),
        "min_windows": min_windows,
        "rarefied_to": rarefied_to,
        "shuffles": shuffles,
        "subsamples": subsamples,
        "response": response,
        "seed": seed,
    }
    return EntropyLaw(
        pd.concat(level_rows, ignore_index=True), pd.DataFrame(fit_rows), pd.DataFrame(), about
    )


def _check_settings(
    min_windows: int, rarefied_to: int, shuffles: int, subsamples: int, response: str
) -> None:
    if not 1 <= rarefied_to <= min_windows:
        raise ValueError(
            f"rarefied_to={rarefied_to}, min_windows={min_windows}: expected at least 1, and no "
            "more windows in a bag than the smallest level has"
        )
    if min(shuffles, subsamples) < 1:
        raise ValueError(f"shuffles={shuffles}, subsamples={subsamples}: expected at least 1")
    check_response(response)


def _of_all_windows(levels: LevelSets, scores: Int[np.ndarray, " levels"]) -> dict[str, np.ndarray]:
    """The raw quantities of some levels, from the counts of all windows."""
    table = levels.table().set_index("score").loc[scores]
    return {
        "entropy": table["entropy"].to_numpy(),
        "miller_madow": table["miller_madow"].to_numpy(),
        "normalized": table["normalized"].to_numpy(),
        "log_types": np.log2(table["types"].to_numpy(dtype=np.float64)),
    }


def _level_rows(
    quantity: str, bags: LevelBags, values: np.ndarray, null_values: np.ndarray
) -> pd.DataFrame:
    low, high = np.full((2, len(values)), np.nan)
    if len(null_values) and len(values):
        low, high = np.quantile(null_values, _NULL_BAND, axis=0)
    return pd.DataFrame(
        {
            "quantity": quantity,
            "score": bags.scores,
            "windows": bags.sizes,
            "value": values,
            "null_low": low,
            "null_high": high,
        }
    )


def _fit_row(
    quantity: str,
    scores: np.ndarray,
    values: np.ndarray,
    null_values: np.ndarray,
    left_out: list[np.ndarray],
    response: Response,
) -> dict[str, Any]:
    line = fit_line(scores, values, response)
    null = Null(np.nan, np.nan, np.nan, np.nan)
    low, high = np.nan, np.nan
    reason = line.reason
    if not line.reason:
        shuffled = np.array([fit_line(scores, each, response).r for each in null_values])
        null = compare_with_null(line.r, shuffled)
        replicates: list[float] = []
        for each in left_out:
            # Without the group a level may have fewer windows than fill a bag; it is then NaN.
            is_left = np.isfinite(each)
            replicates.append(fit_line(scores[is_left], each[is_left], response).r)
        low, high = correlation_interval(line.r, replicates)
        missing: list[str] = []
        if np.isnan(null.p):
            missing.append("no p, because some shuffles have no line")
        if np.isnan(low):
            missing.append("no interval, because some parts of the windows have no line")
        reason = "; ".join(missing)
    return {
        "quantity": quantity,
        **vars(line),
        "reason": reason,
        "low": low,
        "high": high,
        "null_mean": null.mean,
        "null_sd": null.sd,
        "null_max": null.max,
        "p": null.p,
    }
