"""Is a memory a look-up of the whole question, or spread over it? What is left when one input is
changed, or its place ablated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from experiments.reason_to_rote.overlap import mean_by_position
from experiments.reason_to_rote.study import Study, Tables, outcomes, said
from experiments.reason_to_rote.tasks import Task
from interp.interventions.kinds import Patch
from interp.subject.batch import Batch


def perturbed(study: Study, seed: int) -> Tables:
    """`perturbed`: what items say after one input token was exchanged for another of its kind:
    still the `label`, or what is `true` now."""
    rows: list[dict[str, Any]] = []
    for position in study.reasoning.inputs:
        for name, items in study.sets.items():
            question = exchanged(study.task, items.items.question, position, seed)
            batch = items.batch
            tokens = batch.tokens.clone()
            solved = study.task.solve(question)
            known = np.concatenate([question, solved[:, : items.step]], 1)
            tokens[:, : known.shape[1]] = tokens.new_tensor(known)
            answers, now = said(study.subject, Batch(tokens, batch.prompt)), solved[:, items.step]
            found = zip(answers == items.label, answers == now, now == items.label, strict=True)
            about = {"set": name, "position": position}
            rows += [
                about | {"item": n, "kept": kept, "true_now": true, "same": same}
                for n, (kept, true, same) in enumerate(found)
            ]
    return {"perturbed": study.table(rows)}


def exchanged(
    task: Task, question: Int[np.ndarray, "items question"], position: int, seed: int
) -> Int[np.ndarray, "items question"]:
    """Each question with another token at one position, drawn from those that training shows there."""
    rng = np.random.default_rng([seed, position])
    known = np.unique(task.train.question[:, position])
    place = np.searchsorted(known, question[:, position])
    changed = question.copy()
    changed[:, position] = known[(place + rng.integers(1, len(known), len(question))) % len(known)]
    return changed


def positions(study: Study) -> Tables:
    """`positions`: what items say when the residual at one input position is its mean over clean
    items, at the embedding and after each block but the last."""
    rows: list[dict[str, Any]] = []
    embed = next(site for site in study.subject.sites if site.point == "embed")
    sites = [embed, *study.subject.anatomy.expand("resid_post")[:-1]]
    means = mean_by_position(study, sites)
    for depth, site in enumerate(sites):
        for position in study.reasoning.inputs:
            plan = Patch(study.subject.anatomy.units(site), (position,), values={site: means[site]})
            rows += outcomes(study, lambda *_, plan=plan: plan, depth=depth, position=position)
    return {"positions": study.table(rows)}


def participation(drops: Float[np.ndarray, " positions"]) -> float:
    """The effective number of positions, (sum e)^2 / sum e^2, e = drops of accuracy, negative ones
    0; 0 where nothing drops."""
    e = np.clip(drops, 0, None)
    return float(e.sum() ** 2 / np.square(e).sum()) if e.any() else 0.0


def effective_positions(table: pd.DataFrame) -> float:
    """`participation` of a set's items at one depth, from rows of `positions`; every item was right
    before."""
    kept: Any = table.groupby("position")["kept"].mean()
    return participation(1 - kept.to_numpy())
