"""The steps of the study: a first training that is recorded, scores, second trainings, leakage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import interp
from experiments.data_cartography.corpus import CANARY, TEXT, Rows
from experiments.data_cartography.models import untrained
from experiments.data_cartography.presets import (
    DIFFICULTY,
    DROP,
    FORGET,
    ORACLE,
    RANDOM,
    Network,
)
from interp.memorization.dynamics import LossHistory
from interp.memorization.exposure import exposure
from interp.memorization.loss_recorder import CheckpointRecorder, PresentationRecorder
from interp.memorization.membership.roc import roc
from interp.mitigation.reweighting import weighted
from interp.subject.batch import Batch
from interp.training.fit import Step, epoch_rows, epochs, fit

HELD_OUT = "held-out text"
REFERENCE = "held-out canary"
# What a score is asked to tell apart, as tables and figures name it.
CANARIES = "repeated canaries, from text seen once"
REPEATED = "repeated text, from text seen once"
SINGLE = "canaries seen once, from text seen once"
AMONG_CANARIES = "repeated canaries, from canaries seen once"
EARLY = "early loss"
DUPLICATES = "duplicate count (oracle)"

_BATCH_SIZE = 64  # of forwards
_MEMBERS = 200  # rows of text seen once whose membership is tested
_WARMUP = 50  # steps
_DECAY = 0.5  # share of the steps in which the learning rate falls to a tenth of the largest
_FLOOR = 0.1
_CLIP = 1.0
_QUANTILES = (0.25, 0.5, 0.75)  # of all losses: further thresholds of forget events
_HYSTERESIS = 0.2  # nats per token

Scores = Float[np.ndarray, " rows"]


@dataclass(frozen=True, eq=False)
class Probe:
    """A first training and what was recorded of it.

    Attributes:
        subject: the trained model.
        at_checkpoints: losses of all rows at the same moments.
        at_presentations: losses of each row when it was trained on.
    """

    subject: interp.Subject
    at_checkpoints: LossHistory
    at_presentations: LossHistory


def steps_of(network: Network, rows: Rows) -> int:
    """Returns the number of steps of every training: that of the epochs over all rows. Trainings on
    fewer rows take the same number, and so see each row more often."""
    return network.epochs * (len(rows.numbers) // network.batch_size)


def first_training(network: Network, rows: Rows, seed: int) -> Probe:
    """Trains a model on all rows and records their losses at checkpoints and at presentations."""
    train = rows.train
    steps = steps_of(network, rows)
    moments = np.linspace(0, steps, network.epochs * network.moments + 1).round().astype(int)[1:]
    learner = untrained(network, rows.vocabulary, train.length, seed)
    checkpoints = CheckpointRecorder(learner, train, moments.tolist(), _BATCH_SIZE)
    # The numbers of the rows that `epochs` draws below, by the same seed: a batch does not say
    # which rows are in it.
    order = epoch_rows(len(train), network.batch_size, seed)
    presentations = PresentationRecorder(order, len(train))

    def record(step: Step) -> None:
        presentations(step)
        checkpoints(step)

    stream = epochs(train, network.batch_size, seed)
    fit(learner, stream, steps, network.lr, callback=record, **_schedule(steps))
    return Probe(learner, checkpoints.history, presentations.history)


def second_training(
    network: Network,
    rows: Rows,
    seed: int,
    *,
    kept: Bool[np.ndarray, " rows"] | None = None,
    weights: Scores | None = None,
) -> interp.Subject:
    """Trains a fresh model with the same seed and the same number of steps, without some rows or
    with other weights on them.

    Args:
        network: the model and its training.
        rows: what the first training was on.
        seed: that of the first training.
        kept: which rows are left; by default all.
        weights: of each row that is left; by default none, which is plain training.
    """
    train = rows.train
    if kept is not None:
        train = train.rows(np.flatnonzero(kept))
    learner = untrained(network, rows.vocabulary, train.length, seed)
    objective = None
    if weights is not None:
        # The same order as that of `stream`: a batch does not say which rows are in it.
        objective = weighted(weights, epoch_rows(len(train), network.batch_size, seed))
    stream = epochs(train, network.batch_size, seed)
    # Of all rows, also where some are pruned: the others are then seen more often.
    steps = steps_of(network, rows)
    fit(learner, stream, steps, network.lr, objective=objective, **_schedule(steps))
    return learner


def _schedule(steps: int) -> dict[str, Any]:
    # Without decay and clipping, trainings on nearly the same rows end up to 0.4 nats apart on
    # held-out text, which is more than what pruning does.
    return {
        "warmup": min(_WARMUP, steps // 5),
        "decay": round(_DECAY * steps),
        "floor": _FLOOR,
        "clip": _CLIP,
    }


def scores_to_prune_by(probe: Probe, rows: Rows, seed: int) -> dict[str, Scores]:
    """Returns a score for each training row by name; the highest are pruned first."""
    history = probe.at_checkpoints
    of_sequences = rows.table.iloc[rows.numbers]
    is_canary = (of_sequences["kind"] == CANARY).to_numpy()
    rng = np.random.default_rng([seed, 2])
    return {
        FORGET: history.forget_events(),
        RANDOM: rng.random(len(rows.numbers)),
        DIFFICULTY: history.difficulty(),
        DROP: history.loss_drop,
        ORACLE: np.where(is_canary, of_sequences["copies"], 0).astype(float),
    }


def first_copies(rows: Rows) -> Bool[np.ndarray, " rows"]:
    """Returns which rows are left when one copy of each sequence is kept."""
    kept = np.zeros(len(rows.numbers), dtype=bool)
    # The index that `unique` returns is that of the first copy.
    kept[np.unique(rows.numbers, return_index=True)[1]] = True
    return kept


def all_scores(probe: Probe, rows: Rows) -> pd.DataFrame:
    """Returns every score of each sequence, a column per score. Copies have the mean of theirs:
    each is presented at other moments."""
    history = probe.at_checkpoints
    presented = probe.at_presentations
    by_row: dict[str, Any] = {
        FORGET: history.forget_events(),
        "forget events, with hysteresis": history.forget_events(hysteresis=_HYSTERESIS),
    }
    for quantile in _QUANTILES:
        threshold = float(np.quantile(history.losses, quantile))
        name = f"forget events, threshold at {quantile:.0%} of losses"
        by_row[name] = history.forget_events(threshold)
    by_row |= {
        "forget events, at presentations": presented.forget_events(),
        "relative forget events": history.relative_forget_events(),
        "relative forget events, at presentations": presented.relative_forget_events(),
        "forgetfulness": history.forgetfulness(),
        "variability": history.variability,
        "confidence": history.confidence,
        DIFFICULTY: history.difficulty(),
        EARLY: history.difficulty(1),
        "final loss, negated": -history.losses[-1],
        DROP: history.loss_drop,
    }
    copies = rows.table["copies"].to_numpy()
    by_sequence: dict[str, Any] = {}
    for name, values in by_row.items():
        # The sum over the copies of each sequence, [sequences].
        by_sequence[name] = np.bincount(rows.numbers, weights=values) / copies
    by_sequence[DUPLICATES] = copies.astype(float)
    return pd.DataFrame(by_sequence)


def separations(scores: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """Returns how well each score tells one kind of sequence from another: the AUC, with its
    interval over sequences, of each score and contrast."""
    is_canary = (rows.table["kind"] == CANARY).to_numpy()
    is_once = (rows.table["copies"] == 1).to_numpy()
    single_text = ~is_canary & is_once
    contrasts = {
        CANARIES: (is_canary & ~is_once, single_text),
        REPEATED: (~is_canary & ~is_once, single_text),
        SINGLE: (is_canary & is_once, single_text),
        AMONG_CANARIES: (is_canary & ~is_once, is_canary & is_once),
    }
    found: list[dict[str, Any]] = []
    for contrast, (wanted, others) in contrasts.items():
        either = wanted | others
        for name in scores.columns:
            auc = roc(scores[name].to_numpy()[either], wanted[either]).auc
            row = {"score": name, "contrast": contrast, "auc": auc.estimate}
            found.append({**row, "low": auc.low, "high": auc.high, "n": auc.n})
    return pd.DataFrame(found)


def trajectories(history: LossHistory, rows: Rows) -> pd.DataFrame:
    """Returns the mean loss of each kind of row at each moment."""
    kinds = rows.table["kind"] + ", " + rows.table["copies"].map(times)
    of_rows = kinds.to_numpy()[rows.numbers]
    parts: list[pd.DataFrame] = []
    for kind in kinds.unique():
        losses = history.losses[:, of_rows == kind].mean(1)
        parts.append(pd.DataFrame({"step": history.steps, "rows": kind, "loss": losses}))
    return pd.concat(parts, ignore_index=True)


def times(copies: int) -> str:
    """Returns a number of copies in words."""
    return "seen once" if copies == 1 else f"{copies} copies"


def leakage(subject: interp.Subject, rows: Rows) -> tuple[pd.DataFrame, dict[str, float]]:
    """Returns what a model leaks.

    Args:
        subject: the model.
        rows: what it was trained on, and what not.

    Returns:
        One row per sequence with its `kind`, `copies`, number (`sequence`) and mean `loss` in nats
        per token; for canaries also whether the second half is extracted after the first
        (`exact`), the share of its tokens that are the most likely ones (`accuracy`), and the
        `exposure` in bits. And AUCs of membership, by name: of canaries and of text, by the loss
        and by Min-K%.
    """
    members = _tested_members(rows)
    of_members = rows.table.iloc[members]
    parts: list[tuple[str, Int[Tensor, "rows length"], pd.DataFrame]] = [
        ("", rows.sequences[torch.from_numpy(members)], of_members),
        (HELD_OUT, rows.held_out, _outside(HELD_OUT, len(rows.held_out))),
        (REFERENCE, rows.references, _outside(REFERENCE, len(rows.references))),
    ]
    tokens = torch.cat([part for _, part, _ in parts])
    table = pd.concat([about for _, _, about in parts])
    # Members keep their numbers, and what is held out is numbered from 0 again: a sequence is named
    # by its kind and its number together.
    table = table.rename_axis("sequence").reset_index()
    scored = interp.membership(subject, Batch(tokens), batch_size=_BATCH_SIZE)
    # The score "loss" is the mean log-probability per token.
    table["loss"] = -scored["loss"].to_numpy()
    table["min_k"] = scored["min_k"].to_numpy()

    # Canaries alone are extracted: their exposure is a rank among canaries that were not planted.
    is_random = table["kind"].isin([CANARY, REFERENCE]).to_numpy()
    table = table.join(_extraction(subject, tokens, is_random))
    references = (table["kind"] == REFERENCE).to_numpy()
    table["exposure"] = exposure(
        table["log_p"].to_numpy(), table.loc[references, "log_p"].to_numpy()
    )
    summary: dict[str, float] = {}
    for name, member, other in (("canaries", CANARY, REFERENCE), ("text", TEXT, HELD_OUT)):
        tested = table[table["kind"].isin([member, other])]
        is_member = tested["kind"] == member
        summary[f"auc_{name}"] = roc(-tested["loss"], is_member).auc.estimate
        summary[f"auc_{name}_min_k"] = roc(tested["min_k"], is_member).auc.estimate
    return table.drop(columns=["min_k", "log_p"]), summary


def _tested_members(rows: Rows) -> Int[np.ndarray, " sequences"]:
    """The sequences that are measured: some of the text that is there once, and all others."""
    is_single_text = (rows.table["kind"] == TEXT) & (rows.table["copies"] == 1)
    single = np.flatnonzero(is_single_text)
    return np.concatenate([single[:_MEMBERS], np.flatnonzero(~is_single_text)])


def _outside(kind: str, count: int) -> pd.DataFrame:
    return pd.DataFrame({"kind": [kind] * count, "copies": [0] * count})


def _extraction(
    subject: interp.Subject, tokens: Int[Tensor, "rows length"], chosen: Bool[np.ndarray, " rows"]
) -> pd.DataFrame:
    """Extraction of the second half of some rows; NaN for the others."""
    half = tokens.shape[1] // 2
    windows = Batch(tokens[torch.from_numpy(np.flatnonzero(chosen))], prompt=half)
    # Nothing is decoded: whether a row is extracted is known without.
    scanned = interp.scan(subject, windows, batch_size=_BATCH_SIZE, decode_from=1.1)
    found = pd.DataFrame(np.nan, index=range(len(tokens)), columns=["exact", "accuracy", "log_p"])
    for name in found.columns:
        found.loc[chosen, name] = scanned[name].to_numpy(dtype=float)
    return found
