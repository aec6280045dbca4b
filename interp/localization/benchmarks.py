"""Whether a localization method can be trusted, by benchmarks with known answers.

`injection` (INJ) hides a sequence in units known by construction and asks which method finds them; `deletion` (DEL) zeroes what a method
found for one memorized sequence and asks what else is lost. Both are Chang et al. 2024 (arXiv 2311.09060), section 2. `planted_lookup` is a
memory that is a table look-up on one exact prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from interp.batch import Batch, Batches, batches
from interp.interventions import Zero
from interp.localization.injecting import Injection, Training, injected
from interp.localization.lookup import Lookup, planted_lookup
from interp.localization.registry import localize, localize_each
from interp.memorization.effects import MEASURES, effects
from interp.progress import track
from interp.stats import Interval, bootstrap
from interp.subject import Subject
from interp.units import Units, UnitScores

__all__ = [
    "Choice",
    "Injection",
    "Lookup",
    "Training",
    "as_active",
    "deletion",
    "deletion_summary",
    "injected",
    "injection",
    "planted_lookup",
    "recall",
    "related",
    "single_block",
]


@dataclass(frozen=True)
class Choice:
    """A method as a benchmark runs it: its name, its options, and whether it sees the reference (`compares`)."""

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
    """INJ: hides each window in a `fraction` of the neurons (see `injected`) and asks every method where it is.

    Args:
        methods: by the name that the result gives them.
        multiples: how many units are predicted in each block, as multiples of the injected share.
        seed: window n is hidden in units drawn from `seed` + n.

    Returns one row for each `window`, `method` and `multiple`: `recall`, and of the injection the `loss` (nats a token), the loss `before`,
    the `steps` taken and how many times `longer` its rows became.
    """
    rows: list[dict[str, Any]] = []
    for number, window in enumerate(track(list(windows.split(1)), "injection")):
        with injected(subject, window, fraction, seed + number, training or Training()) as hidden:
            about = {name: value for name, value in asdict(hidden).items() if name != "units"}
            for name, choice in methods.items():
                beside = reference if choice.compares else None
                scores = localize(subject, window, beside, choice.method, "neurons", **choice.options)
                found = [(multiple, recall(scores, hidden.units, multiple * fraction)) for multiple in multiples]
                rows += [{"window": number, "method": name, "multiple": m, "recall": share} | about for m, share in found]
    return pd.DataFrame(rows)


def recall(scores: UnitScores, truth: Units, fraction: float) -> float:
    """The share of `truth` among the highest-scoring `fraction` of the units of each site (Chang et al. 2024, section 2.1)."""
    return len(scores.top_per_site(fraction) & truth) / len(truth)


def deletion(
    subject: Subject,
    memorized: Batch,
    held_out: Batches,
    methods: Mapping[str, Choice],
    fractions: Sequence[float] = (0.001, 0.005),
    reference: Batches | None = None,
    *,
    size: int = 16,
) -> tuple[pd.DataFrame, dict[str, list[UnitScores]]]:
    """DEL: for each memorized window and method, zeroes the window's own highest-scoring neurons and measures all memorized windows and the
    held-out ones.

    As in Chang et al. 2024, section 2.2, a `fraction` of each block's neurons is zeroed, but for the first block's.

    Returns one row for each `method`, `fraction`, `target` (the window whose neurons went; `k` of them), `data` (memorized, held_out) and
    `window`: the measures of `effects`, and each `before`, as `accuracy_before`; and the scores, by method and target.
    """
    scores = {
        name: localize_each(subject, memorized, reference if choice.compares else None, choice.method, "neurons", **choice.options)
        for name, choice in methods.items()
    }
    trials = [(name, share, n, _above_first(s, share)) for name, each in scores.items() for share in fractions for n, s in enumerate(each)]
    data = {"memorized": memorized, "held_out": held_out if hasattr(held_out, "__len__") else list(batches(held_out))}
    measured = effects(subject, [[], *(Zero(units) for *_, units in trials)], data, size)
    about = [(number, name, share, target, len(units)) for number, (name, share, target, units) in enumerate(trials, start=1)]
    return _beside_before(measured, pd.DataFrame(about, columns=["plan", "method", "fraction", "target", "k"])), scores


def _above_first(scores: UnitScores, fraction: float) -> Units:
    """The top units of each block but the first of its stack."""
    top = scores.top_per_site(fraction)
    return Units({site: top[site] for site in top.sites if site.block}, top.widths)


def _beside_before(measured: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """Rows of `effects` under a plan, with what the plan is and the same measures without one."""
    columns = {name: f"{name}_before" for name in MEASURES}
    before: Any = measured[measured["plan"] == 0].drop(columns="plan").rename(columns=columns)
    rows: Any = about.merge(measured, on="plan").merge(before, on=["data", "window"]).drop(columns="plan")
    return rows


def deletion_summary(frame: pd.DataFrame, length: int) -> pd.DataFrame:
    """The table of DEL: for each `method` and `fraction` the mean change, over targets, of

    - `self_accuracy`, `self_distance`: the target's own teacher-forced accuracy, and its edit distance (in tokens of a suffix of `length`);
    - `negative_accuracy`, `negative_distance`: the same of the other memorized windows;
    - `perplexity`: e^loss of the held-out windows, and `perplexity_base_2`: 2^loss, which the released code of Chang et al. computes;

    one row each, as `measure`, `estimate`, `low`, `high` (95% bootstrap over targets) and `targets`.
    """
    rows: list[dict[str, Any]] = []
    for (method, fraction), group in frame.groupby(["method", "fraction"], sort=False):
        for measure, values in _changes(group, length).items():
            found = bootstrap(values)
            about = {"method": method, "fraction": fraction, "measure": measure, "targets": found.n}
            rows.append(about | {"estimate": found.estimate, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def _changes(group: Any, length: int) -> dict[str, np.ndarray]:
    """[targets] of each measure of the table."""
    ours: Any = group[group["data"] == "memorized"]
    own: Any = ours["target"] == ours["window"]
    others: Any = group[group["data"] == "held_out"].groupby("target")[["loss", "loss_before"]].mean()
    found: dict[str, np.ndarray] = {}
    for name, part in (("self", ours[own]), ("negative", ours[~own])):
        by_target: Any = part.groupby("target")[["accuracy", "accuracy_before", "similarity", "similarity_before"]].mean()
        found[f"{name}_accuracy"] = (by_target["accuracy"] - by_target["accuracy_before"]).to_numpy()
        found[f"{name}_distance"] = length * (by_target["similarity_before"] - by_target["similarity"]).to_numpy()
    for name, base in (("perplexity", np.e), ("perplexity_base_2", 2.0)):
        found[name] = (base ** others["loss"] - base ** others["loss_before"]).to_numpy()
    return found


def related(frame: pd.DataFrame, categories: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Interval]]:
    """Whether windows of one category fall together: the confusion matrix of DEL, and its means.

    Args:
        frame: rows of `deletion`, of one method and fraction.
        categories: of each memorized window.

    Returns the mean fall of accuracy by category of the `target` and of the `evaluated` window, targets themselves left out; and the falls
    `within` a category, `across` categories and their `difference`, with 95% intervals over targets.
    """
    others: Any = frame[(frame["data"] == "memorized") & (frame["target"] != frame["window"])]
    fall = others["accuracy_before"] - others["accuracy"]
    kind = np.asarray(categories)
    pairs = pd.DataFrame({"fall": fall, "target": kind[others["target"]], "evaluated": kind[others["window"]], "number": others["target"]})
    same: Any = pairs["target"] == pairs["evaluated"]
    both: Any = pairs.assign(same=same).pivot_table(index="number", columns="same", values="fall").dropna()
    if both.shape != (len(both), 2) or both.empty:
        raise ValueError("every window has a category of its own, or all have one: expected categories of several windows each")
    found = {"within": bootstrap(both[True]), "across": bootstrap(both[False]), "difference": bootstrap(both[True] - both[False])}
    return pairs.pivot_table(index="target", columns="evaluated", values="fall"), found


def single_block(subject: Subject, memorized: Batch, scores: Sequence[UnitScores], fraction: float, size: int = 16) -> pd.DataFrame:
    """One block against all with the same budget, `fraction` of all neurons: the highest-scoring ones of one block, or the
    highest-scoring share of every block.

    Returns one row for each `target`, `block` (-1: all blocks) and `window`: the fall of `accuracy`, and `k`. Chang et al. 2024, section 5.
    """
    trials = [(target, block, units) for target, one in enumerate(scores) for block, units in _same_budget(one, fraction)]
    measured = effects(subject, [[], *(Zero(units) for *_, units in trials)], {"memorized": memorized}, size)
    about = [(number, target, block, len(units)) for number, (target, block, units) in enumerate(trials, start=1)]
    rows: Any = _beside_before(measured, pd.DataFrame(about, columns=["plan", "target", "block", "k"]))
    return rows.assign(fall=rows["accuracy_before"] - rows["accuracy"])[["target", "block", "k", "window", "fall"]]


def _same_budget(scores: UnitScores, fraction: float) -> list[tuple[int, Units]]:
    spread = scores.top_per_site(fraction)
    rows = [(-1, spread)]
    for site, values in scores.values.items():
        if len(spread) > values.size:
            raise ValueError(f"a budget of {len(spread)} neurons does not fit in {site}, which has {values.size}: give a smaller fraction")
        rows.append((int(site.block or 0), Units({site: np.argsort(-values, kind="stable")[: len(spread)]}, scores.widths)))
    return rows


def as_active(units: Units, activity: UnitScores, seed: int, near: int = 10) -> Units:
    """As many other units at each site, each drawn among the `near` unused ones whose activity is nearest to that of the unit it stands
    for: the control for "these units are merely active". `activity` is any score, such as that of the method `activation`.

    Raises ValueError where a site has not as many other units.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[Any, list[int]] = {}
    for site in units.sites:
        level, free = activity[site], np.setdiff1d(np.arange(units.widths[site]), units[site])
        if len(free) < len(units[site]):
            raise ValueError(f"{site} has {len(free)} other units, too few for {len(units[site])}")
        for unit in units[site]:
            nearest = free[np.argsort(np.abs(level[free] - level[unit]), kind="stable")[:near]]
            taken = rng.choice(nearest)
            drawn.setdefault(site, []).append(int(taken))
            free = free[free != taken]
    return Units(drawn, units.widths)
