"""Is the memorized answer lost when the reasoning is? Removing an intermediate result, and
replacing it with that of other items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from experiments.reason_to_rote.study import Studied, Study, Tables, outcomes
from interp.analysis.activation_patching import donor_plan
from interp.analysis.concept_erasure import (
    Subspace,
    class_means,
    containment,
    erasure_plan,
    inlp,
    principal,
    random_subspace,
    random_subspace_of_variance,
    variance_share,
)
from interp.analysis.probes import fit_probe, majority, rows_at
from interp.interventions.plan import Plan
from interp.sites.site import Site

Residuals = Float[np.ndarray, "items width"]


def erase(study: Study, draws: int, rounds: int, seed: int) -> Tables:
    """The tables `erasure` and `inlp`.

    `erasure` holds what the model answers when a subspace of the residual stream is removed. It is
    the subspace of the intermediate result (the span of its class means, or what rounds of INLP
    find), or that of a control, see `_subspaces`. `variance` is the share of the variance of clean
    items that the subspace holds, `of_result` how much of the subspace of the intermediate result
    it contains. `inlp` holds how well a classifier still reads the intermediate result without
    what was removed: after each round of INLP, and without the span of its class means.

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
                variance=variance_share(subspace, residuals),
                of_result=containment(subspace, subspaces[0].subspace),
            )
    return {"erasure": study.table(rows), "inlp": study.table(pd.concat(progress))}


class Removed(NamedTuple):
    """A subspace to remove: its name, the number of the draw if it is random, and itself."""

    name: str
    draw: int
    subspace: Subspace


def _subspaces(
    study: Study, residuals: Residuals, draws: int, rounds: int, seed: int, block: int
) -> tuple[list[Removed], pd.DataFrame]:
    """The subspaces to remove, that of the intermediate result first, and how well it can still be
    read.

    - "class means": the span of the class means of the intermediate result.
    - "unrelated": the same of a variable that the intermediate result does not depend on;
      "unrelated, apart" is built from residuals without the subspace of the intermediate result.
    - "most variance, apart": the directions of most variance outside that subspace.
    - "random", "random, same variance": of the same rank; the second also holds as much variance.
    - "part of class means": random parts of "class means" with the variance of "most variance,
      apart", so that two disjoint subspaces of equal variance can be compared.
    - "INLP", "random for INLP": what each round has removed, and random subspaces of that rank.
    """
    variables = study.clean.items.variables
    target = variables[study.reasoning.variable]
    unrelated = variables[study.reasoning.unrelated]
    means = class_means(residuals, target)

    # Where the unrelated variable cannot be read, its class means differ by chance only, along the
    # directions of most variance, and these are the target's. So both controls are also built from
    # residuals without the target's subspace.
    without_target = means.remove(residuals)
    largest_apart = principal(without_target, means.rank)
    found = [
        Removed("class means", 0, means),
        Removed("unrelated", 0, class_means(residuals, unrelated)),
        Removed("unrelated, apart", 0, class_means(without_target, unrelated)),
        Removed("most variance, apart", 0, largest_apart),
    ]
    share = variance_share(means, residuals)
    share_apart = variance_share(largest_apart, residuals)
    seeds = np.random.default_rng([seed, block]).integers(2**31, size=draws).tolist()
    for draw, number in enumerate(seeds):
        found.append(Removed("random", draw, random_subspace(means, number)))
        equal = random_subspace_of_variance(residuals, means.rank, share, number)
        found.append(Removed("random, same variance", draw, equal))
        part = random_part(means, residuals, share_apart, number)
        if part is not None:
            found.append(Removed("part of class means", draw, part))

    null, progress = inlp(residuals, target, rounds=rounds, seed=seed)
    # The first row is that of the classifier before any removal.
    for rank in progress["rank"].iloc[1:]:
        removed = null.first(rank)
        found.append(Removed("INLP", 0, removed))
        for draw, number in enumerate(seeds):
            # Another seed than that of the random subspaces above, so that these are further draws
            # and not the same directions again.
            found.append(Removed("random for INLP", draw, random_subspace(removed, number + 1)))
    left = pd.concat([progress.assign(removed="INLP"), _read_without_means(residuals, target)])
    return found, left


def random_part(of: Subspace, rows: Residuals, share: float, seed: int) -> Subspace | None:
    """A random subspace within another one that holds a share of the variance of rows; None if no
    part holds it, because each direction within holds more.

    Its rank is the one at which a part would hold the share if all directions held the same, or
    the nearest rank that can hold it.

    Args:
        of: the subspace that it is a part of.
        rows: [items, width].
        share: share of the variance of rows; the whole of `of` is returned where it has no more.
        seed: seed of the draw.
    """
    inside = (rows - of.center) @ of.basis.T  # [items, rank], within the subspace
    share_inside = share / variance_share(of, rows)
    if share_inside >= 1:
        return of
    for rank in _ranks_nearest(share_inside * of.rank, of.rank):
        try:
            part = random_subspace_of_variance(inside, rank, share_inside, seed)
        except ValueError:
            continue
        # From coordinates within the subspace back to those of the residual stream.
        return Subspace(part.basis @ of.basis, of.center)
    return None


def _ranks_nearest(wanted: float, largest: int) -> list[int]:
    """The ranks below the largest, those nearest to the wanted one first."""
    return sorted(range(1, largest), key=lambda rank: abs(rank - wanted))


def _read_without_means(
    residuals: Residuals, labels: Int[np.ndarray, " items"], folds: int = 4
) -> pd.DataFrame:
    """How well a new classifier reads a label without the span of its class means, on one part of
    the items; means and classifier are those of the others."""
    held_out = np.arange(len(residuals)) % folds == 0
    means = class_means(residuals[~held_out], labels[~held_out])
    left = means.remove(residuals)
    again = fit_probe(left[~held_out], labels[~held_out])
    row = {
        "removed": "class means",
        "round": 1,
        "rank": means.rank,
        "accuracy": again.accuracy(left[held_out], labels[held_out]),
        "chance": majority(labels[held_out]),
    }
    return pd.DataFrame([row])


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
