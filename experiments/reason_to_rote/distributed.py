"""Is a memory a look-up of the whole question, or spread over its parts? What the model answers
when one input token is exchanged, or the residual stream at its position ablated."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.reason_to_rote.overlap import mean_by_position
from experiments.reason_to_rote.study import Studied, Study, Tables, answers_of, outcomes
from experiments.reason_to_rote.tasks import Task
from interp.interventions.kinds import Patch
from interp.subject.batch import Batch


def perturb(study: Study, seed: int) -> Tables:
    """The table `perturbed`: what the model answers after one input token was exchanged for another
    one of its kind.

    One row per exchanged position and item: `kept` (still the old answer), `true_now` (the answer
    that is true for the changed question), `same` (whether these two answers are the same token).
    """
    rows: list[dict[str, Any]] = []
    for position in study.reasoning.inputs:
        for name, items in study.sets.items():
            question = exchange_positions(study.task, items.items.question, position, seed)
            solution = study.task.solve(question)
            true_now = solution[:, items.target]
            answers = answers_of(study.subject, _asked(items, question, solution))
            kept = answers == items.label
            true = answers == true_now
            same = true_now == items.label
            for item in range(len(items)):
                row = {"set": name, "position": position, "item": item}
                row |= {"kept": kept[item], "true_now": true[item], "same": same[item]}
                rows.append(row)
    return {"perturbed": study.table(rows)}


def _asked(
    items: Studied,
    question: Int[np.ndarray, "items question"],
    solution: Int[np.ndarray, "items answer"],
) -> Batch:
    """The items with their questions replaced, each followed by the true answer to the new question
    up to the token that is read."""
    batch = items.batch
    known = np.concatenate([question, solution[:, : items.target]], 1)
    tokens = batch.tokens.clone()
    tokens[:, : known.shape[1]] = tokens.new_tensor(known)
    return Batch(tokens, batch.prompt)


def exchange_positions(
    task: Task, question: Int[np.ndarray, "items question"], position: int, seed: int
) -> Int[np.ndarray, "items question"]:
    """The questions with the token at one position replaced by a different one.

    Args:
        task: the task.
        question: [items, question] token ids.
        position: the position to change.
        seed: seed of the draw.

    Returns:
        [items, question] token ids. The new token is drawn from all others that the training
        questions have at this position.
    """
    rng = np.random.default_rng([seed, position])
    known = np.unique(task.train.question[:, position])
    own = np.searchsorted(known, question[:, position])
    # A shift by at least 1 and less than a whole turn never ends at the token itself.
    shift = rng.integers(1, len(known), len(question))
    changed = question.copy()
    changed[:, position] = known[(own + shift) % len(known)]
    return changed


def positions(study: Study) -> Tables:
    """The table `positions`: what the model answers when the residual stream at one input position
    is its mean over clean items.

    One row per depth, position and item. Depth 0 is the embedding, depth n the output of block
    n - 1; the last block is left out.
    """
    rows: list[dict[str, Any]] = []
    subject = study.subject
    embed = next(site for site in subject.sites if site.point == "embed")
    # No attention follows the last block: its output at an input position is either read by nothing
    # or the answer itself.
    sites = [embed, *subject.anatomy.expand("resid_post")[:-1]]
    means = mean_by_position(study, sites)
    for depth, site in enumerate(sites):
        for position in study.reasoning.inputs:
            plan = Patch(subject.anatomy.units(site), (position,), values={site: means[site]})
            # The default value keeps the plan of this turn of the loop; without it the function
            # would look the name up when it is called.
            rows += outcomes(study, lambda *_, plan=plan: plan, depth=depth, position=position)
    return {"positions": study.table(rows)}


def participation(drops: Float[np.ndarray, " positions"]) -> float:
    """The effective number of positions, (sum e)^2 / sum e^2.

    Args:
        drops: the drops of accuracy e when each position is ablated; negative ones count as 0.

    Returns:
        The participation ratio; NaN where nothing drops, so that there is nothing to count.
    """
    drops = np.clip(drops, 0, None)
    if not drops.any():
        return np.nan
    square_of_sum = drops.sum() ** 2
    sum_of_squares = np.square(drops).sum()
    return float(square_of_sum / sum_of_squares)
