"""What is run on one seed: for each model a training that is recorded and trainings that follow
from it, and the two bounds on a convex model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

import interp
from experiments.data_cartography import bounds
from experiments.data_cartography.corpus import Rows, draw
from experiments.data_cartography.presets import (
    DROP,
    FORGET,
    RANDOM,
    Convex,
    Corpus,
    Network,
    Preset,
)
from experiments.data_cartography.study import (
    Probe,
    all_scores,
    first_copies,
    first_training,
    leakage,
    scores_to_prune_by,
    second_training,
    separations,
    trajectories,
)
from interp.experiment.jobs import Job, job
from interp.mitigation.reweighting import (
    HOTSPOT,
    OUTLIER,
    keep_after_pruning,
    policy_weights,
    quadrants,
)

TABLES = ("separation", "map", "trajectories", "runs", "sequences", "influence", "stability")
# What is done in a second training, as tables and figures name it.
NOTHING = "nothing"
PRUNE = "pruned"
DEDUPLICATE = "one copy of each row"
HALVE = "halved"
POLICY = "whole policy"
HALF = 0.5
Tables = dict[str, pd.DataFrame]


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job per model, and one for the bounds."""
    for network in preset.networks:
        yield job(of_network, preset.corpus, network, seed)
    yield job(of_bounds, preset.convex, seed)


def of_bounds(settings: Convex, seed: int) -> Tables:
    """The two bounds on convex models of one seed."""
    return {
        "influence": bounds.influence(settings, seed),
        "stability": bounds.stability(settings, seed),
    }


def of_network(settings: Corpus, network: Network, seed: int) -> Tables:
    """A training that is recorded, what its scores find, and what trainings without the rows that
    they find leak."""
    rows = draw(settings, seed)
    probe = first_training(network, rows, seed)
    scores = all_scores(probe, rows)
    tables: Tables = {
        "separation": separations(scores, rows),
        "map": _map(probe, scores, rows),
        "trajectories": trajectories(probe.at_checkpoints, rows),
    }
    runs: list[dict[str, Any]] = []
    sequences: list[pd.DataFrame] = []

    def measure(subject: interp.Subject, **about: Any) -> None:
        leaked, summary = leakage(subject, rows)
        runs.append({**about, **summary})
        sequences.append(leaked.assign(**about))

    measure(probe.subject, action=NOTHING, by="", share=0.0, changed=0)
    for about, options in _second_trainings(network, probe, rows, seed):
        measure(second_training(network, rows, seed, **options), **about)
    tables |= {
        "runs": pd.DataFrame(runs),
        "sequences": pd.concat(sequences, ignore_index=True),
    }
    return {name: table.assign(model=network.name) for name, table in tables.items()}


def _second_trainings(
    network: Network, probe: Probe, rows: Rows, seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What tables say of each second training, and which rows it keeps or how it weighs them."""
    difficulty = probe.at_checkpoints.difficulty()
    scores = scores_to_prune_by(probe, rows, seed)
    for name, share in network.pruned:
        kept = keep_after_pruning(scores[name], share, difficulty)
        about = {"action": PRUNE, "by": name, "share": share, "changed": int((~kept).sum())}
        # Rows with a score of 0 are pruned by the rule for ties: the easiest first.
        above_zero = float((scores[name][~kept] > 0).mean())
        yield {**about, "above_zero": above_zero}, {"kept": kept}
    kept = first_copies(rows)
    about = {"action": DEDUPLICATE, "by": "", "share": float((~kept).mean())}
    yield {**about, "changed": int((~kept).sum())}, {"kept": kept}
    if not network.reweighted:
        return

    regions = quadrants(difficulty, scores[FORGET])
    # The paper halves the weight of samples with a high score: both quadrants that have one.
    memorized = np.isin(regions, [HOTSPOT, OUTLIER])
    count = int(memorized.sum())
    chosen = {
        FORGET: memorized,
        RANDOM: _highest(scores[RANDOM], count),
        DROP: _highest(scores[DROP], count),
    }
    for name, halved in chosen.items():
        # All three halve the same number of rows: what differs is which.
        weights = np.where(halved, HALF, 1.0)
        about = {"action": HALVE, "by": name, "share": count / len(regions), "changed": count}
        yield about, {"weights": weights}
    weights = policy_weights(regions)
    about = {"action": POLICY, "by": FORGET, "share": float((weights != 1).mean())}
    yield {**about, "changed": int((weights != 1).sum())}, {"weights": weights}


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen


def _map(probe: Probe, scores: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """Where each sequence is on the map, and the weight that the policy gives it."""
    # Of all rows, as the thresholds are those of the training set, and then of their first copies.
    history = probe.at_checkpoints
    regions = quadrants(history.difficulty(), history.forget_events())[first_copies(rows)]
    return pd.DataFrame(
        {
            "sequence": np.arange(len(rows.table)),
            "kind": rows.table["kind"],
            "copies": rows.table["copies"],
            "difficulty": scores["difficulty"],
            "forget_events": scores[FORGET],
            "loss_drop": scores[DROP],
            "quadrant": regions,
            "weight": policy_weights(regions),
        }
    )
