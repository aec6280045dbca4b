"""What plans do to windows: extraction, accuracy and loss of every window under every plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein

from interp.engine.sweeping import Logits, resumed
from interp.interventions.plan import Plan
from interp.progress import track
from interp.subject.batch import Batch, Batches, batches
from interp.subject.subject import Subject, token_losses

MEASURES = ("exact", "accuracy", "similarity", "loss")


def window_measures(logits: Logits, batch: Batch) -> dict[str, np.ndarray]:
    """For each window, teacher-forced: is every target the most likely token (`exact`), what share
    is (`accuracy`), how like the targets the most likely tokens are (`similarity`: 1 - edit
    distance / length, in tokens), and the mean `loss` in nats a token."""
    counted, targets = batch.counted.to(logits.device), batch.targets.to(logits.device)
    said = logits.argmax(-1)
    hits = (said == targets) | ~counted
    tokens = counted.sum(1)
    accuracy = (hits & counted).sum(1).double() / tokens
    loss = token_losses(logits, batch).sum(1) / tokens
    rows = zip(said.tolist(), targets.tolist(), tokens.tolist(), strict=True)
    similarity = np.array([Levenshtein.normalized_similarity(t[:n], s[:n]) for s, t, n in rows])
    measures = {"exact": hits.all(1).double().cpu().numpy(), "accuracy": accuracy.cpu().numpy()}
    return measures | {"similarity": similarity, "loss": loss.cpu().numpy()}


def effects(
    subject: Subject, plans: Sequence[Plan], data: Mapping[str, Batches], size: int = 16
) -> pd.DataFrame:
    """The `window_measures` of every window of every data set under every plan; an empty plan is
    the model as it is.

    One row for each `plan` (its number), `data` (name) and `window` (number).
    """
    rows: list[pd.DataFrame] = []
    work = [(name, batch) for name, source in data.items() for batch in batches(source, size)]
    seen: dict[str, int] = {}
    for name, batch in track(work, "ablating"):
        start = seen.get(name, 0)
        seen[name] = start + len(batch)
        measured = resumed(
            subject, batch, plans, window_measures
        )  # to the bit: no verdict may hang on how fast the machine is
        windows = np.arange(start, start + len(batch))
        rows += [
            pd.DataFrame({"plan": number, "data": name, "window": windows} | values)
            for number, values in enumerate(measured)
        ]
    return pd.concat(rows, ignore_index=True)


def beside_before(measured: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """Rows of `effects` under plans, with what each `plan` is `about` and the same measures without
    one (plan 0), as `accuracy_before`."""
    unchanged: Any = measured[measured["plan"] == 0]
    before: Any = unchanged.drop(columns="plan").rename(
        columns={name: f"{name}_before" for name in MEASURES}
    )
    rows: Any = (
        about.merge(measured, on="plan").merge(before, on=["data", "window"]).drop(columns="plan")
    )
    return rows
