"""Is the memorized answer lost when the reasoning is? Removing an intermediate result, and
replacing it with that of other items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from experiments.reason_to_rote.study import Studied, Study, Tables, outcomes
from interp.analysis.activation_patching import donor_plan
from interp.analysis.concept_erasure import (
    Subspace,
    class_means,
    erasure_plan,
    inlp,
    random_subspace,
)
from interp.analysis.probes import rows_at
from interp.interventions.plan import Plan
from interp.sites.site import Site

Residuals = Float[np.ndarray, "items width"]


def erase(study: Study, draws: int, rounds: int, seed: int) -> Tables:
    """The tables `erasure` and `inlp`.

    `erasure` holds what the model answers when a subspace of the residual stream is removed. It is
    the subspace of the intermediate result (the span of its class means, or what rounds of INLP
    find), or that of a control: an unrelated variable, the directions of most variance, or random
    subspaces of the same ranks. `inlp` holds how well a classifier still reads the intermediate
    result after each round.

    Args:
        study: model and items.
        draws: number of random subspaces.
        rounds: number of rounds of INLP.
        seed: seed of INLP and of the random subspaces.
    """
    rows: list[dict[str, Any]] = []
    progress: list[pd.DataFrame] = []
    position = study.reasoning.position
    # The last block is left out: what leaves it is the output itself.
    for block in range(study.blocks - 1):
        site = Site("resid_post", block)
        residuals = rows_at(study.subject, study.clean.batch, site, position)[site]
        subspaces, inlp_progress = _subspaces(study, residuals, draws, rounds, seed, block)
        progress.append(inlp_progress.assign(block=block))
        for removed, draw, subspace in subspaces:
            plan = erasure_plan(study.subject, site, subspace, (position,))
            rows += outcomes(
                study,
                lambda *_, plan=plan: plan,
                block=block,
                removed=removed,
                draw=draw,
                rank=subspace.rank,
                variance=_variance(subspace, residuals),
            )
    return {"erasure": study.table(rows), "inlp": study.table(pd.concat(progress))}


def _subspaces(
    study: Study, residuals: Residuals, draws: int, rounds: int, seed: int, block: int
) -> tuple[list[tuple[str, int, Subspace]], pd.DataFrame]:
    """The subspaces to remove, as (name, number of the draw, subspace), and the progress of
    INLP."""
    variables = study.clean.items.variables
    target = variables[study.reasoning.variable]
    unrelated = variables[study.reasoning.unrelated]
    means = class_means(residuals, target)
    null, progress = inlp(residuals, target, rounds=rounds, seed=seed)
    drawn = np.random.default_rng([seed, block]).integers(2**31, size=draws).tolist()

    # Where the unrelated variable cannot be read, its class means differ by chance only, along the
    # directions of most variance, and these are the target's. So both controls are also built from
    # residuals without the target's subspace.
    without_target = means.remove(residuals)
    found = [
        ("class means", 0, means),
        ("unrelated", 0, class_means(residuals, unrelated)),
        ("unrelated, apart", 0, class_means(without_target, unrelated)),
        ("most variance, apart", 0, principal(without_target, means.rank)),
    ]
    for draw, number in enumerate(drawn):
        found.append(("random", draw, random_subspace(means, number)))
    for rank in progress["rank"].iloc[1:]:
        removed = null.first(rank)
        found.append(("INLP", 0, removed))
        for draw, number in enumerate(drawn):
            found.append(("random for INLP", draw, random_subspace(removed, number + 1)))
    return found, progress


def principal(rows: Residuals, rank: int) -> Subspace:
    """The subspace of the `rank` directions of most variance, around the mean of the rows: the
    control that removes as much as possible, whatever it means."""
    center = rows.mean(0)
    _, _, directions = np.linalg.svd(rows - center, full_matrices=False)
    return Subspace(directions[:rank], center)


def _variance(subspace: Subspace, rows: Residuals) -> float:
    """The fraction of the variance of rows that lies in a subspace."""
    centered = rows - rows.mean(0)
    within = np.square(centered @ subspace.basis.T).sum()
    return float(within / np.square(centered).sum())


def patch_donors(study: Study, seed: int) -> Tables:
    """The table `donors`: what the model answers with the residual stream of a clean item in place
    of an item's own.

    The donor has the same intermediate result or another one. It replaces the position of the
    intermediate result alone, or this position and all inputs before it.
    """
    of = study.reasoning
    inputs_before = [position for position in of.inputs if position < of.position]
    places = {
        "intermediate": (of.position,),
        "and inputs": (*inputs_before, of.position),
    }
    rows: list[dict[str, Any]] = []
    for block in range(study.blocks - 1):
        site = Site("resid_post", block)
        for place, positions in places.items():
            for donor in ("same", "other"):
                plan = _donation(study, site, positions, same=donor == "same", seed=seed)
                rows += outcomes(study, plan, block=block, place=place, donor=donor)
    return {"donors": study.table(rows)}


def _donation(
    study: Study, site: Site, positions: tuple[int, ...], *, same: bool, seed: int
) -> Callable[[str, Studied], Plan]:
    """The plan for a set of items that gives each of them its donor's residual stream."""

    def plan(_: str, items: Studied) -> Plan:
        chosen = donors(study, items, same=same, seed=seed)
        return donor_plan(study.subject, site, study.clean.batch.rows(chosen), positions)

    return plan


def donors(study: Study, items: Studied, *, same: bool, seed: int) -> Int[np.ndarray, " items"]:
    """For each item the index of a random clean item to take the residual stream from.

    Args:
        study: model and items.
        items: the items that need a donor.
        same: whether the donor has the same intermediate result, but from other inputs; otherwise
            it has another intermediate result.
        seed: seed of the draws.

    Raises:
        ValueError: no clean item qualifies.
    """
    rng = np.random.default_rng(seed)
    of = study.reasoning
    results = study.clean.items.variables[of.variable]
    inputs = study.clean.group(of.group)
    own_results = items.items.variables[of.variable]
    own_inputs = items.group(of.group)
    chosen: list[int] = []
    for own_result, own_input in zip(own_results, own_inputs, strict=True):
        if same:
            qualifies = (results == own_result) & (inputs != own_input)
        else:
            qualifies = results != own_result
        pool = np.flatnonzero(qualifies)
        if not len(pool):
            raise ValueError(
                f"no clean item has {of.variable} = {own_result} from other inputs: "
                "more clean items are needed"
            )
        chosen.append(int(rng.choice(pool)))
    return np.array(chosen)
