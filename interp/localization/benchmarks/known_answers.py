"""Whether a localization method can be trusted, by benchmarks with known answers.

`injection` (INJ) hides a sequence in units known by construction and asks which method finds them;
`deletion` (DEL) zeroes what a method found for one memorized sequence and asks what else is lost.
Both are Chang et al. 2024 (arXiv 2311.09060), section 2. `planted_lookup` is a memory that is a
table look-up on one exact prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from interp.interventions.kinds import Zero
from interp.localization.benchmarks.injected_memory import Injection, Training, injected
from interp.localization.benchmarks.planted_lookup import Lookup, planted_lookup
from interp.localization.registry import localize, localize_each
from interp.memorization.evaluation import beside_before, effects
from interp.progress import track
from interp.sites.units import Units, UnitScores, ranked
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject

__all__ = [
    "Choice",
    "Injection",
    "Lookup",
    "Training",
    "by_target",
    "deletion",
    "injected",
    "injection",
    "planted_lookup",
    "recall",
    "related",
    "scored_each",
    "single_block",
]


@dataclass(frozen=True)
class Choice:
    """A method as a benchmark runs it: its name, its options, and whether it sees the reference
    (`compares`)."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    compares: bool = False


def injection(
    subject: Subject,
    windows: Batch,
    methods: Mapping[str, Choice],
    fraction: float,
    reference: Batches | None = None,
    *,
    multiples: Sequence[float] = (1, 2, 5),
    seed: int = 0,
    training: Training | None = None,
) -> pd.DataFrame:
    """INJ: hides each window in a `fraction` of the neurons (see `injected`) and asks every method
    where it is.

    Args:
        methods: by the name that the result gives them.
        multiples: how many units are predicted in each block, as multiples of the injected share.
        seed: window n is hidden in units drawn from `seed` + n.

    Returns one row for each `window`, `method` and `multiple`: `recall`, and of the injection the
    `loss` (nats a token), the loss `before`, the `steps` taken and how many times `longer` its rows
    became.
    """
    if not 0 < max(multiples) * fraction <= 1:
        raise ValueError(
            f"{max(multiples)} times {fraction} of the neurons is no share of them: give a smaller fraction or multiple"
        )
    rows: list[dict[str, Any]] = []
    for number, window in enumerate(track(list(windows.split(1)), "injection")):
        with injected(subject, window, fraction, seed + number, training or Training()) as hidden:
            about = {name: value for name, value in asdict(hidden).items() if name != "units"}
            for name, choice in methods.items():
                beside = reference if choice.compares else None
                scores = localize(
                    subject, window, beside, choice.method, "neurons", **choice.options
                )
                found = [
                    (multiple, recall(scores, hidden.units, multiple * fraction))
                    for multiple in multiples
                ]
                rows += [
                    {"window": number, "method": name, "multiple": m, "recall": share} | about
                    for m, share in found
                ]
    return pd.DataFrame(rows)


def recall(scores: UnitScores, truth: Units, fraction: float) -> float:
    """The share of `truth` among the highest-scoring `fraction` of the units of each site (Chang et
    al. 2024, section 2.1)."""
    return len(scores.top_per_site(fraction) & truth) / len(truth)


def scored_each(
    subject: Subject,
    memorized: Batches,
    methods: Mapping[str, Choice],
    reference: Batches | None = None,
) -> dict[str, list[UnitScores]]:
    """The scores of all neurons by every method, for each memorized window by itself."""
    return {
        name: localize_each(
            subject,
            memorized,
            reference if choice.compares else None,
            choice.method,
            "neurons",
            **choice.options,
        )
        for name, choice in methods.items()
    }


def deletion(
    subject: Subject,
    memorized: Batch,
    held_out: Batches,
    scores: Mapping[str, Sequence[UnitScores]],
    fractions: Sequence[float] = (0.001, 0.005),
    *,
    spare_first: bool = True,
    size: int = 16,
) -> pd.DataFrame:
    """DEL: for each memorized window and method, zeroes the window's own highest-scoring neurons
    and measures all memorized windows and the held-out ones. Chang et al. 2024, section 2.2.

    Args:
        scores: as `scored_each` gives them.
        fractions: shares of each block's neurons to zero.
        spare_first: leaves the first block of each stack alone, as they do.

    Returns one row for each `method`, `fraction`, `target` (the window whose neurons went; `k` of
    them), `data` (memorized, held_out) and `window`: the measures of `effects`, and each of them
    before, as `accuracy_before`.
    """
    trials = [
        (name, share, target, _dropped(one, share, spare_first))
        for name, each in scores.items()
        for share in fractions
        for target, one in enumerate(each)
    ]
    data = {
        "memorized": memorized,
        "held_out": held_out if hasattr(held_out, "__len__") else list(batches(held_out)),
    }
    measured = effects(subject, [[], *(Zero(units) for *_, units in trials)], data, size)
    about = [
        (number, name, share, target, len(units))
        for number, (name, share, target, units) in enumerate(trials, start=1)
    ]
    return beside_before(
        measured, pd.DataFrame(about, columns=["plan", "method", "fraction", "target", "k"])
    )


def _dropped(scores: UnitScores, fraction: float, spare_first: bool) -> Units:  # noqa: FBT001 - deletion's own
    top = scores.top_per_site(fraction)
    return Units(
        {site: top[site] for site in top.sites if site.block or not spare_first}, top.widths
    )


def by_target(frame: pd.DataFrame, length: int) -> pd.DataFrame:
    """The table of DEL, one row for each `method`, `fraction` and `target` of `deletion`: the
    changes of

    - `self_accuracy`, `self_distance`: the target's own teacher-forced accuracy, and its edit
    distance (in tokens of a suffix of `length`);
    - `negative_accuracy`, `negative_distance`: the mean of both over the other memorized windows;
    - `loss`: the mean loss of the held-out windows (nats a token); `perplexity`: e^loss;
      `perplexity_base_2`: 2^loss, which the released code of Chang et al. computes.
    """
    rows: list[dict[str, Any]] = []
    groups: Any = frame.groupby(["method", "fraction", "target"], sort=False)
    for (method, fraction, target), group in groups:
        ours = group[group["data"] == "memorized"]
        own = ours["window"] == target
        row: dict[str, Any] = {
            "method": method,
            "fraction": fraction,
            "target": target,
            "k": group["k"].iloc[0],
        }
        for name, part in (("self", ours[own]), ("negative", ours[~own])):
            row[f"{name}_accuracy"] = (part["accuracy"] - part["accuracy_before"]).mean()
            row[f"{name}_distance"] = (
                length * (part["similarity_before"] - part["similarity"]).mean()
            )
        after, before = group.loc[group["data"] == "held_out", ["loss", "loss_before"]].mean()
        row |= {
            "loss": after - before,
            "perplexity": np.exp(after) - np.exp(before),
            "perplexity_base_2": 2**after - 2**before,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def related(frame: pd.DataFrame, categories: Sequence[str]) -> pd.DataFrame:
    """Whether windows of one category fall together: the confusion matrix of DEL, target by target.

    Args:
        frame: rows of `deletion`.
        categories: of each memorized window.

    Returns the mean `fall` of accuracy, for each `method`, `fraction`, `target` with its
    `category`, over the windows of each `evaluated` category, and whether they are the `same`. The
    target itself is left out.
    """
    others: Any = frame[(frame["data"] == "memorized") & (frame["target"] != frame["window"])]
    kind = np.asarray(categories)
    named = others.assign(
        category=kind[others["target"]],
        evaluated=kind[others["window"]],
        fall=others["accuracy_before"] - others["accuracy"],
    )
    keys = ["method", "fraction", "target", "category", "evaluated"]
    means: Any = named.groupby(keys, sort=False)["fall"].mean().reset_index()
    return means.assign(same=means["category"] == means["evaluated"])


def single_block(
    subject: Subject,
    memorized: Batch,
    scores: Sequence[UnitScores],
    fraction: float,
    size: int = 16,
) -> pd.DataFrame:
    """One block against all with the same budget, `fraction` of all neurons: the highest-scoring
    ones of one block, or the highest-scoring share of every block.

    Returns one row for each `target`, `block` (-1: all blocks) and `window`: the fall of
    `accuracy`, and `k`. Chang et al. 2024, section 5.
    """
    trials = [
        (target, block, units)
        for target, one in enumerate(scores)
        for block, units in _same_budget(one, fraction)
    ]
    measured = effects(
        subject, [[], *(Zero(units) for *_, units in trials)], {"memorized": memorized}, size
    )
    about = [
        (number, target, block, len(units))
        for number, (target, block, units) in enumerate(trials, start=1)
    ]
    rows: Any = beside_before(
        measured, pd.DataFrame(about, columns=["plan", "target", "block", "k"])
    )
    return rows.assign(fall=rows["accuracy_before"] - rows["accuracy"])[
        ["target", "block", "k", "window", "fall"]
    ]


def _same_budget(scores: UnitScores, fraction: float) -> list[tuple[int, Units]]:
    spread = scores.top_per_site(fraction)
    rows = [(-1, spread)]
    for site, values in scores.values.items():
        if len(spread) > values.size:
            raise ValueError(
                f"a budget of {len(spread)} neurons does not fit in {site}, which has {values.size}: give a smaller fraction"
            )
        rows.append(
            (int(site.block or 0), Units({site: ranked(values)[: len(spread)]}, scores.widths))
        )
    return rows
