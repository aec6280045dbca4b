"""What interventions do to windows: extraction, accuracy and loss of every window under every
plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein

from interp.engine.sweeping import Logits, sweep_resuming
from interp.interventions.plan import Plan
from interp.progress import track
from interp.subject.batch import Batch, Batches, batches
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject, token_losses

MEASURES = ("exact", "accuracy", "similarity", "loss")


def window_measures(logits: Logits, batch: Batch) -> dict[str, np.ndarray]:
    """Returns the teacher-forced measures of each window, one value per window.

    - `exact`: 1 if every counted target is the most likely token, else 0;
    - `accuracy`: fraction of counted targets that are the most likely token;
    - `similarity`: 1 - edit distance / length between the most likely tokens and the targets, of
      those that count, in tokens;
    - `loss`: mean negative log-likelihood, in nats per token.

    Args:
        logits: [batch, predicted, vocabulary], aligned with `batch.targets`.
        batch: the windows.

    Raises:
        ValueError: a window without a target that counts.
    """
    _check_counted(batch, "row")
    counted = batch.counted.to(logits.device)
    targets = batch.targets.to(logits.device)
    most_likely = logits.argmax(-1)
    hits = (most_likely == targets) | ~counted  # what does not count cannot be missed
    tokens = counted.sum(1)
    counted_hits = (hits & counted).sum(1)
    accuracy = counted_hits.double() / tokens
    loss = token_losses(logits, batch).sum(1) / tokens

    similarity: list[float] = []
    # By the mask: what does not count may come before what does, where `scored` says so.
    arrays = [tensor.cpu().numpy() for tensor in (most_likely, targets, counted)]
    for predicted, true, is_counted in zip(*arrays, strict=True):
        wanted = true[is_counted].tolist()
        found = predicted[is_counted].tolist()
        similarity.append(Levenshtein.normalized_similarity(wanted, found))

    return {
        "exact": hits.all(1).double().cpu().numpy(),
        "accuracy": accuracy.cpu().numpy(),
        "similarity": np.array(similarity),
        "loss": loss.cpu().numpy(),
    }


def measure_under(
    subject: Subject, plans: Sequence[Plan], data: Mapping[str, Batches], batch_size: int = 16
) -> pd.DataFrame:
    """Measures every window of every data set under every plan (see `window_measures`).

    Args:
        subject: the model.
        plans: interventions; an empty plan is the unchanged model.
        data: windows by the name of their data set.
        batch_size: batch size, in windows.

    Returns:
        A frame with one row per `plan` (its number in `plans`), `data` (the name) and `window` (its
        number in the data set), and the measures as columns.

    Raises:
        ValueError: no plan, no window, or a window without a target that counts.

    Example:
        >>> no_heads = interp.Zero(subject.anatomy.units("heads"))
        >>> measured = measure_under(subject, [[], no_heads], {"memorized": memorized})
        >>> measured.groupby("plan")["exact"].mean().to_dict()
        {0: 1.0, 1: 0.0}
    """
    work: list[tuple[str, Batch]] = []
    for name, source in data.items():
        before = 0
        for batch in batches(source, batch_size):
            _check_counted(batch, f"window {name!r}", before)
            before += len(batch)
            work.append((name, batch))
    if not plans or not work:
        raise ValueError(
            f"{len(plans)} plans and {len(work)} batches of windows: expected at least one of each"
        )

    def measure(part: Batch) -> list[dict[str, np.ndarray]]:
        # `sweep_resuming` equals separate forwards bit for bit. `sweep` may choose a faster engine,
        # which rounds differently, by the size of the batch and the device: a verdict must not
        # depend on that.
        return sweep_resuming(subject, part, plans, window_measures)

    frames: list[pd.DataFrame] = []
    windows_seen = dict.fromkeys(data, 0)
    limit = BatchLimit()
    for name, batch in track(work, "ablating"):
        for part, measured in limit.run(measure, batch):
            start = windows_seen[name]
            windows_seen[name] += len(part)
            numbers = np.arange(start, start + len(part))
            for number, values in enumerate(measured):
                columns = {"plan": number, "data": name, "window": numbers} | values
                frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _check_counted(batch: Batch, what: str, before: int = 0) -> None:
    """Raises ValueError for a window of which nothing is measured."""
    without = (~batch.counted.any(1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"{what} {before + without[0]} has no target that counts: expected at least one after "
            "the prompt that is not padding and, where `scored` is given, is scored; leave it out"
        )


def with_unchanged(measured: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """Adds what each plan is, and the measures of the unchanged model, to rows of `measure_under`.

    Args:
        measured: a frame of `measure_under` whose plan 0 is the empty plan.
        about: one row per plan other than 0, with its number in the column `plan`.

    Returns:
        The rows of the plans in `about`, with its other columns in place of `plan`, and with the
        measures under plan 0 as `exact_before`, `accuracy_before` and so on.
    """
    is_unchanged = measured["plan"] == 0
    unchanged: Any = measured[is_unchanged].drop(columns="plan")
    names_before = {name: f"{name}_before" for name in MEASURES}
    before: Any = unchanged.rename(columns=names_before)
    changed: Any = about.merge(measured, on="plan").drop(columns="plan")
    return changed.merge(before, on=["data", "window"])
