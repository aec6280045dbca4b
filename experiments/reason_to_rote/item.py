"""One item under several plans, compared with all items of its set: what the notebook shows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

import interp
from experiments.reason_to_rote.study import Studied, answers_of
from interp.data.arithmetic import text
from interp.interventions.plan import Plan
from interp.reporting.stats import bootstrap


def under(
    subject: interp.Subject, items: Studied, plans: Mapping[str, Plan], number: int
) -> pd.DataFrame:
    """What a model answers to one item of FDA under several plans, and to all items of its set.

    Args:
        subject: the model.
        items: the set.
        plans: plans by name.
        number: the index of the item in the set.

    Returns:
        One row per plan: `says` is the item's whole answer, `digit` the one at the token that is
        read, `all: memorized` and `all: true` the fractions of the set that get the memorized and
        the true digit there, with bootstrap intervals over items.
    """
    questions = torch.from_numpy(items.items.question)
    length = items.items.truth.shape[1]
    rows: dict[str, dict[str, object]] = {}
    for name, plan in plans.items():
        digits = answers_of(subject, items.batch, plan)
        with subject.intervened(plan):
            answer = subject.generate(questions, length)[number]
        rows[name] = {
            "says": text(answer.tolist()),
            "digit": digits[number],
            "all: memorized": str(bootstrap(digits == items.label)),
            "all: true": str(bootstrap(digits == items.true)),
        }
    return pd.DataFrame(rows).T
