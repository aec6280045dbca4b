"""One item under plans, beside all of its kind: what the notebook shows."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

import interp
from experiments.reason_to_rote.study import Studied, said
from interp.data.arithmetic import text
from interp.interventions.plan import Plan
from interp.reporting.stats import bootstrap


def under(
    subject: interp.Subject, items: Studied, plans: Mapping[str, Plan], number: int
) -> pd.DataFrame:
    """One row a plan: the whole answer to the question of item `number`, its token at the read-out,
    and which shares of all items say the memorized and the true one there, with bootstrap
    intervals."""
    questions, length = torch.from_numpy(items.items.question), items.items.truth.shape[1]
    rows: dict[str, dict[str, object]] = {}
    for name, plan in plans.items():
        answers = said(subject, items.batch, plan)
        with subject.intervened(plan):
            whole = subject.generate(questions, length)[number]
        shares = {"memorized": items.label, "true": items.true}
        rows[name] = {"says": text(whole.tolist()), "digit": answers[number]}
        rows[name] |= {
            f"all: {kind}": str(bootstrap(answers == digit)) for kind, digit in shares.items()
        }
    return pd.DataFrame(rows).T
