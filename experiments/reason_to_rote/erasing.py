"""Is the memorized answer lost with the reasoning? Removing an intermediate result, and giving
items that of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from experiments.reason_to_rote.study import Studied, Study, Tables, outcomes
from interp.analysis.activation_patching import donated
from interp.analysis.concept_erasure import Subspace, class_means, erasure, inlp, random_subspace
from interp.analysis.probes import rows_at
from interp.interventions.plan import Plan
from interp.sites.site import Site


def erased(study: Study, draws: int, rounds: int, seed: int) -> Tables:
    """`erasure`: what items say without the subspace of the intermediate result, by class means and
    by so many rounds of INLP, and without
    controls: that of an unrelated variable, and random ones of the same ranks. `inlp`: what a
    classifier still reads after each round."""
    rows: list[dict[str, Any]] = []
    rounds_taken: list[pd.DataFrame] = []
    at = study.reasoning.position
    for block in range(
        study.blocks - 1
    ):  # after the last block it would be the output itself that is removed
        site = Site("resid_post", block)
        found = rows_at(study.subject, study.clean.batch, site, at)[site]
        for removed, draw, space, progress in _subspaces(
            study, found, draws, rounds, [seed, block]
        ):
            plan = erasure(study.subject, site, space, (at,))
            about = {
                "block": block,
                "removed": removed,
                "draw": draw,
                "rank": space.rank,
                "variance": _variance(space, found),
            }
            rows += outcomes(study, lambda *_, plan=plan: plan, **about)
            rounds_taken += [] if progress is None else [progress.assign(block=block)]
    return {"erasure": study.table(rows), "inlp": study.table(pd.concat(rounds_taken))}


def _subspaces(
    study: Study, rows: np.ndarray, draws: int, rounds: int, seed: list[int]
) -> Iterator[tuple[str, int, Subspace, pd.DataFrame | None]]:
    of, variables = study.reasoning, study.clean.items.variables
    means = class_means(rows, variables[of.variable])
    null, progress = inlp(rows, variables[of.variable], rounds=rounds, seed=seed[0])
    yield "class means", 0, means, progress
    # Where the unrelated variable cannot be read, its class means differ by chance, along the
    # directions of most variance: the target's.
    yield "unrelated", 0, class_means(rows, variables[of.unrelated]), None
    yield "unrelated, apart", 0, class_means(means.remove(rows), variables[of.unrelated]), None
    yield "most variance, apart", 0, principal(means.remove(rows), means.rank), None
    drawn = np.random.default_rng(seed).integers(2**31, size=draws).tolist()
    for draw, number in enumerate(drawn):
        yield "random", draw, random_subspace(means, number), None
    for rank in progress["rank"].iloc[1:]:
        yield "INLP", 0, null.first(rank), None
        for draw, number in enumerate(drawn):
            yield "random for INLP", draw, random_subspace(null.first(rank), number + 1), None


def principal(rows: Float[np.ndarray, "items width"], rank: int) -> Subspace:
    """The directions of most variance: what the removal of as much as possible does, whatever it
    means."""
    center = rows.mean(0)
    _, _, directions = np.linalg.svd(rows - center, full_matrices=False)
    return Subspace(directions[:rank], center)


def _variance(space: Subspace, rows: Float[np.ndarray, "items width"]) -> float:
    """The share of the variance of rows that lies in a subspace."""
    around = rows - rows.mean(0)
    return float(np.square(around @ space.basis.T).sum() / np.square(around).sum())


def patched(study: Study, seed: int) -> Tables:
    """`donors`: what items say with the residual of another item at the position of the
    intermediate result, or there and at all inputs before it; the donor has the same intermediate
    result, or another."""
    of = study.reasoning
    places = {
        "intermediate": (of.position,),
        "and inputs": tuple(sorted({*of.inputs, of.position} & set(range(of.position + 1)))),
    }
    rows: list[dict[str, Any]] = []
    for block in range(study.blocks - 1):
        for place, positions in places.items():
            for same in (True, False):
                plan = _given(study, Site("resid_post", block), positions, same=same, seed=seed)
                rows += outcomes(
                    study, plan, block=block, place=place, donor="same" if same else "other"
                )
    return {"donors": study.table(rows)}


def _given(
    study: Study, site: Site, positions: tuple[int, ...], *, same: bool, seed: int
) -> Callable[[str, Studied], Plan]:
    return lambda _, items: donated(
        study.subject,
        site,
        study.clean.batch.rows(donors(study, items, same=same, seed=seed)),
        positions,
    )


def donors(study: Study, items: Studied, *, same: bool, seed: int) -> Int[np.ndarray, " items"]:
    """For each item a clean one, drawn at random, with the same intermediate result from other
    inputs, or with another result.

    Raises ValueError where there is none.
    """
    rng, of = np.random.default_rng(seed), study.reasoning
    result, inputs = study.clean.items.variables[of.variable], study.clean.group(of.group)
    chosen: list[int] = []
    for own, source in zip(items.items.variables[of.variable], items.group(of.group), strict=True):
        pool = np.flatnonzero((result == own) & (inputs != source) if same else result != own)
        if not len(pool):
            raise ValueError(
                f"no clean item has {of.variable} = {own} from other inputs: more clean items are needed"
            )
        chosen.append(int(rng.choice(pool)))
    return np.array(chosen)
