"""Whether a localization method can be trusted: benchmarks with known answers.

`injection` (INJ) hides a sequence in known units and asks which method finds them. `deletion` (DEL)
zeroes what a method found for one memorized sequence and measures what else is lost. Both are from
Chang et al. 2024 (arXiv 2311.09060), section 2. `planted_lookup` plants a memory that is a table
look-up on one exact prompt.
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
from interp.memorization.evaluation import measure_under, with_unchanged
from interp.progress import track
from interp.sites.units import Units, UnitScores, rank_units
from interp.subject.batch import Batch, Batches, reusable
from interp.subject.subject import Subject

__all__ = [
    "Choice",
    "Injection",
    "Lookup",
    "Training",
    "by_target",
    "deletion",
    "falls_by_category",
    "injected",
    "injection",
    "planted_lookup",
    "recall",
    "scored_each",
    "single_block",
]

_ALL_BLOCKS = -1  # the number that stands for all blocks in the table of `single_block`


@dataclass(frozen=True)
class Choice:
    """A localization method as a benchmark runs it.

    Attributes:
        method: its name.
        options: its options.
        compares: whether it is given the reference.
    """

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
    """INJ: hides each window in some neurons (see `injected`) and asks every method where it is.

    Args:
        subject: the model.
        windows: the sequences to hide, one at a time.
        methods: the methods, by the name that they have in the result.
        fraction: fraction of the neurons in which each window is hidden.
        reference: windows that are given to the methods that compare.
        multiples: how many units each method predicts in each block, as multiples of `fraction`.
        seed: window n is hidden in units drawn from `seed` + n.
        training: see `Training`; the default if None.

    Returns:
        A frame with one row per `window`, `method` and `multiple`: `recall`; and of the injection
        the `loss` (nats per token), the loss `before`, the `accuracy` on the window's targets, the
        `steps` taken and the factor by which its rows became `longer`. A window that was not
        memorized is not hidden anywhere: look at `accuracy` first.

    Raises:
        ValueError: if the largest multiple of `fraction` is more than all neurons.

    Example:
        >>> windows = interp.Batch.from_frame(control[:1])
        >>> methods = {"gradient": Choice("gradient_x_activation")}
        >>> found = injection(
        ...     subject, windows, methods, fraction=0.1, training=Training(steps=5)
        ... )
        >>> found[["window", "method", "multiple"]]
           window    method  multiple
        0       0  gradient         1
        1       0  gradient         2
        2       0  gradient         5
    """
    if not 0 < max(multiples) * fraction <= 1:
        raise ValueError(
            f"{max(multiples)} times {fraction} of the neurons is more than all of them: "
            "give a smaller fraction or multiple"
        )
    reference = None if reference is None else reusable(reference)
    rows: list[dict[str, Any]] = []
    for number, window in enumerate(track(list(windows.split(1)), "injection")):
        with injected(subject, window, fraction, seed + number, training or Training()) as hidden:
            about = asdict(hidden)
            del about["units"]
            for name, choice in methods.items():
                against = reference if choice.compares else None
                scores = localize(
                    subject, window, against, choice.method, "neurons", **choice.options
                )
                for multiple in multiples:
                    row = {"window": number, "method": name, "multiple": multiple}
                    row["recall"] = recall(scores, hidden.units, multiple * fraction)
                    rows.append(row | about)
    return pd.DataFrame(rows)


def recall(scores: UnitScores, truth: Units, fraction: float) -> float:
    """Returns the fraction of the true units that are among the highest-scoring ones of each site.

    Chang et al. 2024 (arXiv 2311.09060), section 2.1.

    Args:
        scores: the scores that a method gave.
        truth: the units to find.
        fraction: fraction of each site's units that the method predicts: its highest-scoring ones.

    Example:
        >>> scores = interp.localize(subject, memorized, method="activation")
        >>> recall(scores, truth=scores.top_per_site(0.1), fraction=0.1)
        1.0
    """
    predicted = scores.top_per_site(fraction)
    return len(predicted & truth) / len(truth)


def scored_each(
    subject: Subject,
    memorized: Batches,
    methods: Mapping[str, Choice],
    reference: Batches | None = None,
) -> dict[str, list[UnitScores]]:
    """Scores all neurons by every method, for each memorized window by itself.

    Args:
        subject: the model.
        memorized: the windows.
        methods: the methods, by the name that they have in the result.
        reference: windows that are given to the methods that compare.

    Returns:
        For each method a list with the scores of each window, in the order of the windows.

    Example:
        >>> scores = scored_each(subject, memorized[:2], {"by activation": Choice("activation")})
        >>> len(scores["by activation"])
        2
    """
    # A stream can be read once, and every method reads it.
    memorized = reusable(memorized)
    reference = None if reference is None else reusable(reference)
    scores: dict[str, list[UnitScores]] = {}
    for name, choice in methods.items():
        against = reference if choice.compares else None
        scores[name] = localize_each(
            subject, memorized, against, choice.method, "neurons", **choice.options
        )
    return scores


def deletion(
    subject: Subject,
    memorized: Batch,
    held_out: Batches,
    scores: Mapping[str, Sequence[UnitScores]],
    fractions: Sequence[float] = (0.001, 0.005),
    *,
    spare_first: bool = True,
    batch_size: int = 16,
) -> pd.DataFrame:
    """DEL: zeroes the neurons that a method found for one memorized window, and measures all
    windows.

    Chang et al. 2024 (arXiv 2311.09060), section 2.2.

    Args:
        subject: the model.
        memorized: the memorized windows.
        held_out: other windows, to judge damage on.
        scores: for each method the scores of each memorized window, as `scored_each` returns them.
        fractions: fractions of each block's neurons to zero.
        spare_first: whether to leave the first block of each stack alone, as Chang et al. do.
        batch_size: batch size, in windows.

    Returns:
        A frame with one row per `method`, `fraction`, `target` (the window whose neurons are
        zeroed, `k` of them), `data` (memorized, held_out) and `window`: the measures of
        `window_measures`, and the same measures of the unchanged model, as `accuracy_before` and so
        on.

    Example:
        >>> scores = scored_each(subject, memorized[:2], {"by activation": Choice("activation")})
        >>> measured = deletion(subject, batch.rows(slice(2)), control[:3], scores, [0.1])
        >>> len(measured)  # 2 targets, each measured on 2 + 3 windows
        10
    """
    about: list[dict[str, Any]] = []
    plans: list[Any] = [[]]  # plan 0: the unchanged model
    for name, each in scores.items():
        for fraction in fractions:
            for target, one in enumerate(each):
                units = _highest_per_block(one, fraction, spare_first)
                about.append(
                    {
                        "plan": len(plans),
                        "method": name,
                        "fraction": fraction,
                        "target": target,
                        "k": len(units),
                    }
                )
                plans.append(Zero(units))

    # A stream can be read once, and is measured under every plan.
    data = {"memorized": memorized, "held_out": reusable(held_out)}
    measured = measure_under(subject, plans, data, batch_size)
    # Named, so that a frame without targets has these columns too.
    columns = ["plan", "method", "fraction", "target", "k"]
    return with_unchanged(measured, pd.DataFrame(about, columns=columns))


def _highest_per_block(
    scores: UnitScores,
    fraction: float,
    spare_first: bool,  # noqa: FBT001 - deletion's own
) -> Units:
    highest = scores.top_per_site(fraction)
    # The first block has number 0, which is false.
    kept_sites = [site for site in highest.sites if site.block or not spare_first]
    kept = {site: highest[site] for site in kept_sites}
    return Units(kept, highest.widths)


def by_target(frame: pd.DataFrame, length: int) -> pd.DataFrame:
    """Returns the table of DEL: what zeroing a target's neurons changes, for it and for the rest.

    Args:
        frame: rows of `deletion`.
        length: length of the suffix, in tokens.

    Returns:
        A frame with one row per `method`, `fraction` and `target`, with the number `k` of zeroed
        neurons and the changes of

        - `self_accuracy`, `self_distance`: teacher-forced accuracy and edit distance (in tokens) of
          the target itself;
        - `negative_accuracy`, `negative_distance`: their means over the other memorized windows;
        - `loss`: mean loss of the held-out windows, in nats per token;
        - `perplexity`: e^loss;
        - `perplexity_base_2`: 2^loss, which the released code of Chang et al. computes.

    Example:
        >>> scores = scored_each(subject, memorized[:2], {"by activation": Choice("activation")})
        >>> measured = deletion(subject, batch.rows(slice(2)), control[:3], scores, [0.1])
        >>> by_target(measured, length=8)[["method", "target", "k"]]
                  method  target  k
        0  by activation       0  5
        1  by activation       1  5
    """
    rows: list[dict[str, Any]] = []
    groups: Any = frame.groupby(["method", "fraction", "target"], sort=False)
    for (method, fraction, target), group in groups:
        memorized = group[group["data"] == "memorized"]
        is_target = memorized["window"] == target
        row: dict[str, Any] = {
            "method": method,
            "fraction": fraction,
            "target": target,
            "k": group["k"].iloc[0],
        }
        for name, part in (("self", memorized[is_target]), ("negative", memorized[~is_target])):
            accuracy_change = part["accuracy"] - part["accuracy_before"]
            # Similarity is 1 - distance / length.
            similarity_loss = part["similarity_before"] - part["similarity"]
            row[f"{name}_accuracy"] = accuracy_change.mean()
            row[f"{name}_distance"] = length * similarity_loss.mean()

        held_out = group["data"] == "held_out"
        after, before = group.loc[held_out, ["loss", "loss_before"]].mean()
        row["loss"] = after - before
        row["perplexity"] = np.exp(after) - np.exp(before)
        row["perplexity_base_2"] = 2**after - 2**before
        rows.append(row)
    return pd.DataFrame(rows)


def falls_by_category(frame: pd.DataFrame, categories: Sequence[str]) -> pd.DataFrame:
    """Returns how far windows of each category lose accuracy together: the confusion matrix of DEL.

    Args:
        frame: rows of `deletion`.
        categories: category of each memorized window.

    Returns:
        A frame with one row per `method`, `fraction`, `target` (with its `category`) and
        `evaluated` category: the mean `fall` of accuracy over that category's windows, without the
        target itself, and whether the two categories are the `same`.

    Example:
        >>> scores = scored_each(subject, memorized[:2], {"by activation": Choice("activation")})
        >>> measured = deletion(subject, batch.rows(slice(2)), control[:3], scores, [0.1])
        >>> falls = falls_by_category(measured, ["poem", "code"])
        >>> falls[["target", "category", "evaluated", "same"]]
           target category evaluated   same
        0       0     poem      code  False
        1       1     code      poem  False
    """
    is_other = frame["target"] != frame["window"]
    others: Any = frame[(frame["data"] == "memorized") & is_other]
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
    batch_size: int = 16,
) -> pd.DataFrame:
    """Compares zeroing neurons of one block with zeroing the same number spread over all blocks.

    Chang et al. 2024 (arXiv 2311.09060), section 5.

    Args:
        subject: the model.
        memorized: the memorized windows.
        scores: one per memorized window.
        fraction: fraction of all neurons to zero. That number is taken from the top of one block,
            or the same fraction from the top of every block.
        batch_size: batch size, in windows.

    Returns:
        A frame with one row per `target`, `block` of a `stack` (-1 for all blocks of all stacks)
        and `window`: the `fall` of accuracy, and the number `k` of zeroed neurons.

    Raises:
        ValueError: if that many neurons do not fit in one block, or the scores are not of one site
            in each block.

    Example:
        >>> scores = interp.localization.localize_each(subject, memorized[:1], method="activation")
        >>> single_block(subject, batch.rows(slice(1)), scores, 0.1)[["block", "k"]]
           block   k
        0     -1  10
        1      0  10
        2      1  10
    """
    about: list[dict[str, Any]] = []
    plans: list[Any] = [[]]  # plan 0: the unchanged model
    for target, one in enumerate(scores):
        for (stack, block), units in _same_budget(one, fraction).items():
            row = {"plan": len(plans), "target": target, "stack": stack, "block": block}
            about.append({**row, "k": len(units)})
            plans.append(Zero(units))

    measured = measure_under(subject, plans, {"memorized": memorized}, batch_size)
    columns = ["plan", "target", "stack", "block", "k"]
    rows: Any = with_unchanged(measured, pd.DataFrame(about, columns=columns))
    fall = rows["accuracy_before"] - rows["accuracy"]
    return rows.assign(fall=fall)[["target", "stack", "block", "k", "window", "fall"]]


def _same_budget(scores: UnitScores, fraction: float) -> dict[tuple[str, int], Units]:
    """The same number of units from all blocks and from each block alone, by stack and block."""
    spread = scores.top_per_site(fraction)
    budget = len(spread)
    choices = {("", _ALL_BLOCKS): spread}
    for site, values in scores.values.items():
        if site.block is None or (site.stack, site.block) in choices:
            raise ValueError(
                f"scores at {site}: expected those of one site in each block, such as all neurons"
            )
        if budget > values.size:
            raise ValueError(
                f"a budget of {budget} neurons does not fit in {site}, which has {values.size}: "
                "give a smaller fraction"
            )
        highest = rank_units(values)[:budget]
        choices[site.stack, site.block] = Units({site: highest}, scores.widths)
    return choices
