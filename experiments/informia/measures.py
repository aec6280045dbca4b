"""Attacks on one target model, from the log-probabilities of all examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interp.memorization.membership.attacks import (
    informia,
    lira_offline,
    offline_log_p,
    population_shift,
    rmia,
)
from interp.memorization.membership.roc import Roc, roc

Values = NDArray[np.float64]
_COLLAPSING_A = 0.3  # RMIA's `a` of pictures, which makes p(x) of texts nearly constant
_POINTS = 40  # of a curve that is drawn


@dataclass(frozen=True, eq=False)
class Signals:
    """Log-probabilities of the examples under a target and its reference models, in nats.

    Attributes:
        target: [examples] under the target.
        out: [references, examples] under models not trained on the example.
        population: [population] under the target.
        population_out: [references, population] under the same number of models, none of which was
            trained on any point: for each point one model of each reference pair, at random.
        members: [examples] whether the target was trained on the example.
    """

    target: Values
    out: Values
    population: Values
    population_out: Values
    members: NDArray[np.bool_]


def judged(
    attack: str,
    scores: Any,
    members: NDArray[np.bool_],
    *,
    forwards: int,
    population: int = 0,
    draw: int = 0,
) -> dict[str, Any]:
    """The row of one attack: its AUC, its true positive rates, and what it costs.

    Args:
        attack: its name.
        scores: one score per example.
        members: who is a member.
        forwards: how many examples pass through a model for it.
        population: how many points of the population it uses.
        draw: number of their draw.
    """
    curve = roc(scores, members)
    return {
        "attack": attack,
        "population": population,
        "draw": draw,
        "auc": curve.auc.estimate,
        "tpr_1_percent": _rate(curve, 0.01),
        "tpr_0.1_percent": _rate(curve, 0.001),
        "forwards": forwards,
        "certain": np.nan,
        "advantage": np.nan,
    }


def _rate(curve: Roc, fpr: float) -> float:
    return curve.tpr(fpr).estimate if curve.supports(fpr) else np.nan


def attacks(
    signals: Signals, populations: Sequence[int], draws: int, *, a: float, seed: int
) -> list[dict[str, Any]]:
    """One row per attack on whole examples.

    Args:
        signals: the log-probabilities.
        populations: sizes of the population, which is drawn at random.
        draws: how often each size is drawn.
        a: RMIA's offset.
        seed: seed of the draws.

    Returns:
        Rows of `judged`. For RMIA, `certain` is the share of non-members that beat the whole
        population, times its size plus 1 (1 if population and non-members are alike), and
        `advantage` the smallest difference, over all false positive rates, of InfoRMIA's true
        positive rate and RMIA's.
    """
    # The same log p(x) goes into both attacks: they differ in the population alone.
    log_ratio = signals.target - offline_log_p(signals.out, a)
    log_p_z = offline_log_p(signals.population_out, a)
    population_ratio = signals.population - log_p_z
    examples = len(signals.target)
    with_references = examples * (1 + len(signals.out))

    members = signals.members
    exact = informia(log_ratio)
    rows = [
        judged("loss", signals.target, members, forwards=examples),
        judged("informia_sequence", exact, members, forwards=with_references),
        judged(
            "lira", lira_offline(signals.target, signals.out), members, forwards=with_references
        ),
    ]
    collapsed = signals.target - offline_log_p(signals.out, _COLLAPSING_A)
    rows.append(judged("informia_a_0.3", collapsed, members, forwards=with_references))

    curve = roc(exact, members)
    rng = np.random.default_rng(seed)
    for wanted in populations:
        size = min(wanted, len(population_ratio))
        # Drawing all of them several times would give the same numbers again.
        for draw in range(draws if size < len(population_ratio) else 1):
            chosen = rng.choice(len(population_ratio), size, replace=False)
            forwards = with_references + size * (1 + len(signals.population_out))
            scores = rmia(log_ratio, population_ratio[chosen])
            row = judged("rmia", scores, members, forwards=forwards, population=size, draw=draw)
            # Of n points and one more like them, each is the largest with the chance 1 / (n + 1).
            row["certain"] = (scores[~members] == 1).mean() * (size + 1)
            row["advantage"] = _least_advantage(curve, roc(scores, members))
            rows.append(row)
            shift = population_shift(signals.population[chosen], log_p_z[chosen], normalized=False)
            shifted = informia(log_ratio, shift)
            rows.append(
                judged(
                    "informia_with_population",
                    shifted,
                    members,
                    forwards=forwards,
                    population=size,
                    draw=draw,
                )
            )
    return rows


def _least_advantage(one: Roc, other: Roc) -> float:
    """The smallest difference of true positive rates at the operating points of the other."""
    levels = other.frame["fpr"].to_numpy()
    return float((_tpr_at(one, levels) - _tpr_at(other, levels)).min())


def _tpr_at(curve: Roc, levels: Values) -> Values:
    """The largest true positive rate at or below each false positive rate."""
    # The rates of two curves are fractions of the same count: equal ones may differ in the last
    # bit.
    last = np.searchsorted(curve.frame["fpr"].to_numpy(), levels + 1e-12, side="right") - 1
    return curve.frame["tpr"].to_numpy()[last]


def curve_points(
    signals: Signals, populations: Sequence[int], a: float, about: dict[str, Any]
) -> pd.DataFrame:
    """Operating points to draw: one row per attack and false positive rate, on a logarithmic grid
    from a single false positive to all."""
    log_ratio = signals.target - offline_log_p(signals.out, a)
    population_ratio = signals.population - offline_log_p(signals.population_out, a)
    scores = {
        "LOSS": signals.target,
        "LiRA": lira_offline(signals.target, signals.out),
        "InfoRMIA": log_ratio,
    }
    for wanted in populations:
        count = f"{wanted}" if wanted < len(population_ratio) else "all"
        # The population is in random order, so that its first points are a random draw.
        scores[f"RMIA, {count} points"] = rmia(log_ratio, population_ratio[:wanted])
    non_members = int((~signals.members).sum())
    counts = np.unique(np.geomspace(1, non_members, _POINTS).round())
    levels = counts / non_members
    parts: list[pd.DataFrame] = []
    for name, values in scores.items():
        tpr = _tpr_at(roc(values, signals.members), levels)
        parts.append(pd.DataFrame({**about, "attack": name, "fpr": levels, "tpr": tpr}))
    return pd.concat(parts, ignore_index=True)


def token_auc(values: Values, mask: NDArray[np.bool_], members: NDArray[np.bool_]) -> float:
    """How often a token of a member scores above a token of a non-member.

    Args:
        values: [passages, tokens] a score per token.
        mask: [passages, tokens] which tokens are compared.
        members: [passages] who is a member.
    """
    of_member = np.broadcast_to(members[:, None], mask.shape)
    return roc(values[mask], of_member[mask]).auc.estimate
