"""Which neurons turn the reasoned answer into the memorized one? Outliers among the activations of
their group, and what resetting does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from experiments.reason_to_rote.study import Studied, Study, Tables, said
from interp.analysis.heuristics import digit_features, key_value, match, matched, neurons_of
from interp.analysis.neuron_shifts import (
    Groups,
    ReadOut,
    dose_curve,
    fit_groups,
    largest,
    random_choice,
)
from interp.interventions.kinds import Interchange, Zero
from interp.sites.site import Site
from interp.sites.units import Units

TOP = 10
Cover = Bool[np.ndarray, " items"]
Covers = dict[str, Cover]


@dataclass(frozen=True, eq=False)
class Shifts:
    """The neurons of one block on one set of items, against the groups of clean items that have the
    same inputs."""

    study: Study
    block: int
    items: Studied
    groups: Groups

    @cached_property
    def out(self) -> ReadOut:
        return ReadOut(self.study.subject, self.items.batch, Site("neurons", self.block))

    @cached_property
    def own(self) -> Int[np.ndarray, " items"]:
        return self.items.group(self.study.reasoning.result_group)

    @cached_property
    def expected(self) -> Float[np.ndarray, "items neurons"]:
        return self.groups.expected(self.own)

    @cached_property
    def z(self) -> Float[np.ndarray, "items neurons"]:
        return self.groups.z(self.out.rows, self.own)[:, self.groups.spread > 0]

    def reset(self, chosen: Bool[np.ndarray, "items neurons"]) -> Interchange:
        """The plan that sets the chosen neurons of each item to its group's mean."""
        return self.out.reset(self.expected, chosen)

    def contribution(self, towards: np.ndarray) -> Float[np.ndarray, "items neurons"]:
        return self.out.contribution(self.out.rows - self.expected, towards, self.items.true)


def outliers(study: Study, doses: tuple[int, ...], draws: int, seed: int) -> Tables:
    """`outliers`: how far items are from their group, item by item; `doses`: what they say with
    neurons reset to their group's mean, for test items with the neurons that contribute most to a
    random wrong answer."""
    about: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for block in range(study.blocks):
        for name, shifts in shifts_of(study, block).items():
            wrong = shifts.items.label if name == "memorized" else _wrong(study, shifts.items, seed)
            about += [
                row | {"block": block, "set": name} for row in _distances(shifts, wrong, seed)
            ]
            answers = {"true": shifts.items.true, "wrong": wrong}
            curve = dose_curve(
                shifts.out, shifts.expected, shifts.contribution(wrong), answers, doses, seeds=draws
            )
            curves.append(curve.rename(columns={"seed": "draw"}).assign(block=block, set=name))
    return {
        "outliers": study.table(about),
        "doses": study.table(pd.concat(curves, ignore_index=True)),
    }


def shifts_of(study: Study, block: int) -> dict[str, Shifts]:
    """The shifts of both sets, of items whose group has a clean item."""
    clean = study.clean.group(study.reasoning.result_group)
    rows = ReadOut(study.subject, study.clean.batch, Site("neurons", block)).rows
    groups = fit_groups(rows, clean)
    known = {
        name: items.rows(np.isin(items.group(study.reasoning.result_group), clean))
        for name, items in study.sets.items()
    }
    return {name: Shifts(study, block, items, groups) for name, items in known.items()}


def _distances(
    shifts: Shifts, wrong: Int[np.ndarray, " items"], seed: int
) -> Iterator[dict[str, Any]]:
    """How far each item is from its group, and how like it and like a group with another answer;
    `right` is the share of neurons above their expected activation, `right_of_top` that of the
    first contributors to a wrong answer."""
    z, rows = shifts.z, shifts.out.rows
    profile, other = (
        shifts.groups.profile(rows, shifts.own),
        shifts.groups.profile(rows, _other_group(shifts, seed)),
    )
    top = largest(shifts.contribution(wrong), TOP)
    right = rows > shifts.expected
    for item in range(len(z)):
        yield {
            "item": item,
            "mean_abs_z": np.abs(z[item]).mean(),
            "outliers": (np.abs(z[item]) > 3).mean(),
            "profile": profile[item],
            "profile_of_other": other[item],
            "right_of_top": right[item, top[item]].mean(),
            "right": right[item].mean(),
        }


def _other_group(shifts: Shifts, seed: int) -> Int[np.ndarray, " items"]:
    """For each item the group of a random clean item with another true answer."""
    rng, clean = np.random.default_rng([seed, shifts.block]), shifts.study.clean
    groups = clean.group(shifts.study.reasoning.result_group)
    return np.array([rng.choice(groups[clean.true != own]) for own in shifts.items.true])


def _wrong(study: Study, items: Studied, seed: int) -> Int[np.ndarray, " items"]:
    """A random wrong answer for each item, of those that are answers."""
    rng, answers = np.random.default_rng(seed), np.unique(study.clean.true)
    return answers[
        (np.searchsorted(answers, items.true) + rng.integers(1, len(answers), len(items)))
        % len(answers)
    ]


def shared(study: Study, block: int) -> Tables:
    """`shared`: of how many memorized items each neuron is among the first contributors, beside as
    many drawn at random."""
    shifts = shifts_of(study, block)["memorized"]
    top = largest(shifts.contribution(shifts.items.label), TOP)
    chance = random_choice((top.shape[0], top.shape[1]), TOP, seed=block)
    rows = [
        {"neuron": n, "items": int(top[:, n].sum()), "by chance": int(chance[:, n].sum())}
        for n in range(top.shape[1])
    ]
    return {"shared": study.table(rows).assign(block=block, memorized=len(top))}


def heuristics(study: Study, knocked_out: int) -> Tables:
    """`heuristics`: the rule over digits that describes each neuron best, by how much it exceeds
    chance, on half of the clean items; `knock_out`: what the other half says without the neurons of
    a rule, items that it covers and others, for the rules that are the best of most neurons of each
    block; `activations`: of the neuron of the last block that is described best."""
    of, clean = study.reasoning, study.clean
    operands = _common(
        digit_features(
            {name: clean.items.variables[name] for name, _ in of.probed if name != of.result}
        )
    )
    results = _common(digit_features({of.result: clean.items.variables[of.result]}))
    half = np.arange(len(clean)) < len(clean) // 2
    found: list[pd.DataFrame] = []
    knocked: list[dict[str, Any]] = []
    for block in range(study.blocks):
        best = _described(
            study,
            block,
            clean.rows(half),
            *({name: c[half] for name, c in of.items()} for of in (operands, results)),
        )
        found.append(best.assign(block=block))
        fits = matched(best)
        for rule in fits["heuristic"].value_counts().index[:knocked_out]:
            units = neurons_of(fits, rule, Site("neurons", block), len(best))
            cover = (operands | results)[rule][~half]
            knocked += _knock_out(
                study,
                clean.rows(~half),
                units,
                cover,
                {"block": block, "heuristic": rule, "neurons": len(units)},
            )
    last = found[-1].assign(above=found[-1]["score"] - found[-1]["chance"])
    shown = _activations(study, last.loc[last["above"].idxmax()], operands | results)
    return {
        name: study.table(rows)
        for name, rows in {
            "heuristics": pd.concat(found),
            "knock_out": knocked,
            "activations": shown,
        }.items()
    }


def _described(
    study: Study, block: int, items: Studied, operands: Covers, results: Covers
) -> pd.DataFrame:
    """The best rule of each neuron of a block."""
    out = ReadOut(study.subject, items.batch, Site("neurons", block))
    maps = {"operands": (out.rows, operands), "result": (key_value(out, items.true), results)}
    scored = pd.concat(
        [match(map_, covers).assign(map=name) for name, (map_, covers) in maps.items()],
        ignore_index=True,
    )
    return scored.loc[
        (scored["score"] - scored["chance"]).groupby(scored["neuron"]).idxmax()
    ].reset_index(drop=True)


def _common(covers: Covers) -> Covers:
    """Rules that cover a twentieth of the items or more, so that a match is not a matter of a few."""
    return {name: cover for name, cover in covers.items() if cover.mean() >= 0.05}


def _knock_out(
    study: Study, items: Studied, units: Units, cover: Cover, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    plans = {"matched": Zero(units)}
    if len(~units) >= len(units):
        plans["random"] = Zero(units.matched(0, among=~units))
    for name, plan in plans.items():
        right = said(study.subject, items.batch, plan) == items.true
        for covered in (True, False):
            yield about | {
                "knocked_out": name,
                "covered": covered,
                "right": right[cover == covered].mean(),
            }


def _activations(study: Study, best: Any, covers: Covers) -> pd.DataFrame:
    """The activations of one neuron: on clean items that its rule covers and others, and on
    memorized items."""
    neuron, rule = best["neuron"], best["heuristic"]

    def activation(of: Studied) -> np.ndarray:
        return ReadOut(study.subject, of.batch, Site("neurons", best["block"])).rows[:, neuron]

    kind = np.where(covers[rule], f"clean, {rule}", "clean, other")
    frames = [
        pd.DataFrame({"activation": activation(study.clean), "items": kind}),
        pd.DataFrame({"activation": activation(study.memorized), "items": "memorized"}),
    ]
    return pd.concat(frames, ignore_index=True).assign(
        block=best["block"], neuron=neuron, heuristic=rule, score=best["score"]
    )
