"""Which neurons turn the reasoned answer into the memorized one? Measures how far their activations
are from those on clean items with the same inputs, and what the model answers when they are
reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from experiments.reason_to_rote.study import Studied, Study, Tables, answers_of
from interp.analysis.heuristics import (
    best_matches,
    digit_features,
    keep_matches,
    key_value,
    match,
    neurons_of,
)
from interp.analysis.neuron_shifts import (
    Groups,
    ReadOut,
    dose_curve,
    fit_groups,
    fixed_ranking,
    largest,
    random_choice,
)
from interp.interventions.kinds import Interchange, Zero
from interp.sites.site import Site
from interp.sites.units import Units

TOP = 10  # neurons of an item that count as its first contributors
_LEAST_COVERED = 0.05  # the share of items that a rule has to cover
Cover = Bool[np.ndarray, " items"]  # which items a heuristic applies to
Covers = dict[str, Cover]


@dataclass(frozen=True, eq=False)
class Shifts:
    """How the neurons of one block differ, on a set of items, from their mean on clean items with
    the same inputs (the group of the item)."""

    study: Study
    block: int
    items: Studied
    groups: Groups

    @cached_property
    def out(self) -> ReadOut:
        """The neurons at the position that is read."""
        return ReadOut(self.study.subject, self.items.batch, Site("neurons", self.block))

    @cached_property
    def own(self) -> Int[np.ndarray, " items"]:
        """The group of each item."""
        return self.items.group(self.study.reasoning.result_group)

    @cached_property
    def expected(self) -> Float[np.ndarray, "items neurons"]:
        """The mean activations of each item's group."""
        return self.groups.expected(self.own)

    @cached_property
    def z(self) -> Float[np.ndarray, "items neurons"]:
        """The shifts in standard deviations within groups; neurons that never vary are left out."""
        return self.groups.z(self.out.rows, self.own)[:, self.groups.spread > 0]

    def reset(self, chosen: Bool[np.ndarray, "items neurons"]) -> Interchange:
        """The plan that sets the chosen neurons of each item to the mean of its group."""
        return self.out.reset(self.expected, chosen)

    def contribution(
        self, towards: Int[np.ndarray, " items"]
    ) -> Float[np.ndarray, "items neurons"]:
        """What the shift of each neuron adds to the logit of an answer, minus what it adds to that
        of the true answer."""
        shift = self.out.rows - self.expected
        return self.out.contribution(shift, towards, self.items.true)


def outliers(study: Study, doses: tuple[int, ...], draws: int, seed: int) -> Tables:
    """The tables `outliers` and `doses`.

    `outliers` holds how far each item is from its group, see `_distances`. `doses` holds what the
    model answers with neurons reset to the mean of their group: those of a ranking (see
    `rankings`), random ones, or all. The wrong answer of a test item is a random one.

    Args:
        study: model and items.
        doses: numbers of neurons that are reset.
        draws: number of random choices of neurons.
        seed: seed of the wrong answers and of the groups that items are compared with.
    """
    distances: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for block in range(study.blocks):
        for name, shifts in shifts_of(study, block).items():
            items = shifts.items
            wrong = items.label if name == "memorized" else _random_wrong(study, items, seed)
            about = {"block": block, "set": name}
            by_name = rankings(shifts, wrong)
            distances += [row | about for row in _distances(shifts, by_name, seed)]
            curve = dose_curve(
                shifts.out,
                shifts.expected,
                by_name,
                {"true": items.true, "wrong": wrong},
                doses,
                seeds=draws,
            )
            curves.append(curve.rename(columns={"seed": "draw"}).assign(block=block, set=name))
    return {
        "outliers": study.table(distances),
        "doses": study.table(pd.concat(curves, ignore_index=True)),
    }


def rankings(
    shifts: Shifts, wrong: Int[np.ndarray, " items"]
) -> dict[str, Float[np.ndarray, "items neurons"]]:
    """By what neurons are chosen: values whose largest are reset.

    - "largest": for each item, what the shift adds to the wrong answer minus the true one. Both
      are known to the choice, and each item has neurons of its own.
    - "most written": for each item, the size of what the shift writes. No answer is known.
    - "fixed": the same neurons for all items of a half, those of "largest" on the other half; of a
      single item there is no other half.
    """
    contribution = shifts.contribution(wrong)
    found = {
        "largest": contribution,
        "most written": shifts.out.written(shifts.out.rows - shifts.expected),
    }
    if len(contribution) > 1:
        found["fixed"] = fixed_ranking(contribution)
    return found


def shifts_of(study: Study, block: int) -> dict[str, Shifts]:
    """The shifts of both sets by name, for the items whose group has a clean item."""
    inputs = study.reasoning.result_group
    clean_groups = study.clean.group(inputs)
    activations = ReadOut(study.subject, study.clean.batch, Site("neurons", block)).rows
    groups = fit_groups(activations, clean_groups)
    found: dict[str, Shifts] = {}
    for name, items in study.sets.items():
        # Without a clean item of the same inputs there is no mean to be compared with.
        has_clean_item = np.isin(items.group(inputs), clean_groups)
        found[name] = Shifts(study, block, items.rows(has_clean_item), groups)
    return found


def _distances(
    shifts: Shifts, by_name: Mapping[str, Float[np.ndarray, "items neurons"]], seed: int
) -> Iterator[dict[str, Any]]:
    """One row per item: the mean of |z| over neurons, the fraction of `outliers` (|z| > 3), the
    correlation with the mean of its group (`profile`) and of a group with another answer
    (`profile_of_other`), and the fraction of neurons above the mean of the group, of all neurons
    (`right`), of the first contributors to the wrong answer (`right_of_top`) and of those whose
    shift writes most (`right_of_written`)."""
    z = np.abs(shifts.z)
    activations = shifts.out.rows
    profile = shifts.groups.profile(activations, shifts.own)
    profile_of_other = shifts.groups.profile(activations, _other_group(shifts, seed))
    top = largest(by_name["largest"], TOP)  # [items, neurons], TOP of each row
    written = largest(by_name["most written"], TOP)
    right = activations > shifts.expected
    for item in range(len(z)):
        yield {
            "item": item,
            "mean_abs_z": z[item].mean(),
            "outliers": (z[item] > 3).mean(),
            "profile": profile[item],
            "profile_of_other": profile_of_other[item],
            "right_of_top": right[item, top[item]].mean(),
            "right_of_written": right[item, written[item]].mean(),
            "right": right[item].mean(),
        }


def _other_group(shifts: Shifts, seed: int) -> Int[np.ndarray, " items"]:
    """For each item the group of a random clean item with another true answer."""
    rng = np.random.default_rng([seed, shifts.block])
    clean = shifts.study.clean
    groups = clean.group(shifts.study.reasoning.result_group)
    return np.array([rng.choice(groups[clean.true != own]) for own in shifts.items.true])


def _random_wrong(study: Study, items: Studied, seed: int) -> Int[np.ndarray, " items"]:
    """A random wrong answer for each item, out of the true answers of clean items."""
    rng = np.random.default_rng(seed)
    answers = np.unique(study.clean.true)
    own = np.searchsorted(answers, items.true)
    # A shift by at least 1 and less than a whole turn never ends at the true answer itself.
    shift = rng.integers(1, len(answers), len(items))
    return answers[(own + shift) % len(answers)]


def shared_neurons(study: Study, block: int) -> Tables:
    """The table `shared`: for each neuron of a block, the number of memorized items whose first
    contributors it is among (`items`), and the same for neurons drawn at random (`by chance`)."""
    shifts = shifts_of(study, block)["memorized"]
    top = largest(shifts.contribution(shifts.items.label), TOP)
    items, neurons = top.shape
    drawn = random_choice((items, neurons), TOP, seed=block)
    rows = [
        {
            "neuron": neuron,
            "items": int(top[:, neuron].sum()),
            "by chance": int(drawn[:, neuron].sum()),
        }
        for neuron in range(neurons)
    ]
    return {"shared": study.table(rows).assign(block=block, memorized=items)}


def heuristics(study: Study, knocked_out: int) -> Tables:
    """The tables `heuristics`, `knock_out` and `activations`.

    The clean items are split into thirds. `heuristics` holds the rule over digits that describes
    each neuron best on the first third, by how much its score exceeds chance; its `score` is that
    on the second third, which did not choose it. `knock_out` holds the accuracy on the last third
    with the neurons of a rule set to zero, on items that the rule covers and on others.
    `activations` holds those of the neuron of the last block that is described best on the first
    third, on the last third and on memorized items.

    Args:
        study: model and items.
        knocked_out: number of rules per block that are knocked out, those of most neurons first.
    """
    choosing, judging, tested = (Rules.of(study, third) for third in split_in_thirds(study))
    described: list[pd.DataFrame] = []
    knocked: list[dict[str, Any]] = []
    for block in range(study.blocks):
        chosen = choosing.scores(block)
        best = best_matches(chosen, judging.scores(block))
        described.append(best.assign(block=block))
        fits = keep_matches(best)
        most_frequent = fits["heuristic"].value_counts().index  # sorted by the number of neurons
        for rule in most_frequent[:knocked_out]:
            units = neurons_of(fits, rule, Site("neurons", block), len(best))
            about = {"block": block, "heuristic": rule, "neurons": len(units)}
            cover = tested.covers[rule]
            knocked += [about | row for row in _knock_out(study, tested.items, units, cover)]

    last = described[-1]
    above_chance = last["score_where_chosen"] - last["chance"]
    shown = _activations(study, last.loc[above_chance.idxmax()], tested)
    return {
        "heuristics": study.table(pd.concat(described)),
        "knock_out": study.table(knocked),
        "activations": study.table(shown),
    }


@dataclass(frozen=True, eq=False)
class Rules:
    """Rules over digits, and which of some items they cover.

    Attributes:
        study: model and items.
        items: the items.
        operands: rules over the digits of the question, and which items they cover.
        result: rules over the digit of the answer.
    """

    study: Study
    items: Studied
    operands: Covers
    result: Covers

    @classmethod
    def of(cls, study: Study, items: np.ndarray) -> Rules:
        """The rules over the clean items with these numbers.

        Only rules are kept that cover at least 5% of each third of the clean items, so that all
        thirds have the same rules and no match is due to a few items.
        """
        of = study.reasoning
        variables = study.clean.items.variables
        operands = {name: variables[name] for name, _ in of.probed if name != of.result}
        thirds = split_in_thirds(study)

        def kept(covers: Covers) -> Covers:
            found: Covers = {}
            for name, cover in covers.items():
                if min(cover[third].mean() for third in thirds) >= _LEAST_COVERED:
                    found[name] = cover[items]
            return found

        return cls(
            study,
            study.clean.rows(items),
            kept(digit_features(operands)),
            kept(digit_features({of.result: variables[of.result]})),
        )

    @property
    def covers(self) -> Covers:
        """All rules."""
        return self.operands | self.result

    def scores(self, block: int) -> pd.DataFrame:
        """How well each rule describes each neuron of a block. Rules over operands are compared
        with its activations, rules over the result with what it adds to the logit of the
        result."""
        out = ReadOut(self.study.subject, self.items.batch, Site("neurons", block))
        by_operands = match(out.rows, self.operands).assign(map="operands")
        by_result = match(key_value(out, self.items.true), self.result).assign(map="result")
        return pd.concat([by_operands, by_result], ignore_index=True)


def split_in_thirds(study: Study) -> list[Int[np.ndarray, " items"]]:
    """The numbers of the clean items, which are in random order, in three parts."""
    return np.array_split(np.arange(len(study.clean)), 3)


def _knock_out(
    study: Study, items: Studied, units: Units, cover: Cover
) -> Iterator[dict[str, Any]]:
    """The accuracy with the units set to zero and, where there are enough others, with the same
    number of random ones set to zero."""
    plans = {"matched": Zero(units)}
    # A rule that most neurons match leaves too few others for a control of the same size.
    others = ~units
    if len(others) >= len(units):
        plans["random"] = Zero(units.draw_matched(0, among=others))
    for name, plan in plans.items():
        right = answers_of(study.subject, items.batch, plan) == items.true
        for covered in (True, False):
            among = right[cover == covered]
            row = {"knocked_out": name, "covered": covered, "n": len(among)}
            yield {**row, "right": among.mean() if len(among) else np.nan}


def _activations(study: Study, best: Any, rules: Rules) -> pd.DataFrame:
    """The activations of one neuron on clean items that its rule covers, on other clean items, and
    on memorized items; `best` is its row of `heuristics`."""
    block = best["block"]
    neuron = best["neuron"]
    rule = best["heuristic"]

    def activation(items: Studied) -> np.ndarray:
        return ReadOut(study.subject, items.batch, Site("neurons", block)).rows[:, neuron]

    kind = np.where(rules.covers[rule], f"clean, {rule}", "clean, other")
    clean = pd.DataFrame({"activation": activation(rules.items), "items": kind})
    memorized = pd.DataFrame({"activation": activation(study.memorized), "items": "memorized"})
    frame = pd.concat([clean, memorized], ignore_index=True)
    return frame.assign(block=block, neuron=neuron, heuristic=rule, score=best["score"])
