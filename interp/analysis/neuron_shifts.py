"""Whether a memory shifts existing patterns: how far neurons stand from their mean on clean items
of the same kind, and what that writes.

For claim 3 of "Reason to Rote" (arXiv 2507.04782): to fit noise, existing activation patterns are
shifted slightly. The protocol is our choice, as no published text gives one; its controls are as
many random neurons, and the whole layer, which is chosen without any label.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import SiteError
from interp.hooks.hooks import captured
from interp.interventions.kinds import Interchange
from interp.interventions.plan import Plan
from interp.localization.predicting_positions import predicting
from interp.localization.unit_values import values_at
from interp.localization.window_losses import differentiating
from interp.sites.site import Site
from interp.sites.units import all_units, ranked
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating

Rows = Float[np.ndarray, "items neurons"]
Chosen = Bool[np.ndarray, "items neurons"]
Tokens = Int[np.ndarray, " items"] | Int[Tensor, " items"] | Sequence[int]
_AT_ONCE = 256  # items in one graph of autograd: it holds every activation of the model


@dataclass(frozen=True, eq=False)
class Groups:
    """What neurons do on clean items: `means` of each group and `spread`, the standard deviation
    within groups, both [neurons]."""

    means: Mapping[Hashable, Float[np.ndarray, " neurons"]]
    spread: Float[np.ndarray, " neurons"]

    def expected(self, groups: Iterable[Hashable]) -> Rows:
        """The mean of each item's group. Raises ValueError that names groups never fitted."""
        keys = _keys(groups)
        unknown = [key for key in dict.fromkeys(keys) if key not in self.means]
        if unknown:
            raise ValueError(
                f"no clean item of {len(unknown)} groups: {unknown[:5]}; fitted were {len(self.means)}: {list(self.means)[:5]}"
            )
        return np.stack([self.means[key] for key in keys])

    def z(self, rows: Rows, groups: Iterable[Hashable]) -> Rows:
        """(h_n(i) - mean) / spread. For a neuron that never varied within a group: 0 where it still
        has the mean, else infinite, with the sign of the shift; its like is left out by `spread >
        0`."""
        shift = np.asarray(rows, np.float64) - self.expected(groups)
        still = np.where(shift == 0, 0.0, np.copysign(np.inf, shift))
        return np.divide(shift, self.spread, out=still, where=self.spread > 0)

    def profile(self, rows: Rows, groups: Iterable[Hashable]) -> Float[np.ndarray, " items"]:
        """Pearson's correlation over neurons of an item with the mean of its group; NaN where
        either is the same for all neurons."""
        own, mean = (
            _centered(np.asarray(value, np.float64)) for value in (rows, self.expected(groups))
        )
        size = np.linalg.norm(own, axis=1) * np.linalg.norm(mean, axis=1)
        return np.divide((own * mean).sum(1), size, out=np.full(len(size), np.nan), where=size > 0)


def fit_groups(rows: Rows, groups: Iterable[Hashable]) -> Groups:
    """Means and spread over clean items; `groups` gives each item's, any hashable or a row of an
    array.

    The variance is pooled over groups of at least two items: squared deviations from the group's
    mean, over the number of these items. Raises ValueError when there is no such group, or not one
    group an item.
    """
    keys, values = _keys(groups), np.asarray(rows, np.float64)
    if values.ndim != 2 or len(keys) != len(values):
        raise ValueError(
            f"expected rows [items, neurons] and a group for each item; got {values.shape} and {len(keys)} groups"
        )
    members: dict[Hashable, list[int]] = {}
    for item, key in enumerate(keys):
        members.setdefault(key, []).append(item)
    means = {key: _mean(values[items]) for key, items in members.items()}
    several = [
        (values[items] - means[key]) ** 2 for key, items in members.items() if len(items) > 1
    ]
    if not several:
        raise ValueError(f"no spread: none of {len(members)} groups has two items")
    return Groups(means, np.sqrt(np.concatenate(several).mean(0)))


def _mean(rows: Rows) -> Float[np.ndarray, " neurons"]:
    """The mean, exact for neurons that never vary: a rounding error would pass for a spread."""
    return rows[0] + (rows - rows[0]).mean(0)


def _keys(groups: Iterable[Any]) -> list[Hashable]:
    listed = (
        groups.tolist() if isinstance(groups, (np.ndarray, Tensor, pd.Series)) else list(groups)
    )
    return [tuple(key) if isinstance(key, list) else key for key in listed]


def _centered(rows: Rows) -> Rows:
    return rows - _mean(rows.T)[:, None]


@dataclass(frozen=True, eq=False)
class ReadOut:
    """The neurons of `site` on every item of a batch, at the position that predicts target number
    `step`.

    Raises SiteError for a site that holds no neurons, ValueError for a step past the targets, and,
    on use, for models whose targets do not depend on one position alone.
    """

    subject: Subject
    batch: Batch
    site: Site
    step: int = 0

    def __post_init__(self) -> None:
        site = self.subject.anatomy.resolve(self.site)
        if site.point != "neurons":
            raise SiteError(
                f"{site} holds no neurons: expected a site such as {Site('neurons', site.block or 0, site.stack)}"
            )
        if not 0 <= self.step < self.batch.length - self.batch.prompt:
            raise ValueError(
                f"step={self.step}: the batch has targets 0 to {self.batch.length - self.batch.prompt - 1}"
            )
        object.__setattr__(self, "site", site)

    @cached_property
    def position(self) -> int:
        """The absolute position that is read."""
        start = predicting(self.subject, self.batch, (self.site,))[self.site.stack]
        if start is None or start + self.step < 0:
            raise ValueError(
                f"{self.site}: no single position predicts target {self.step}, so there is none to read neurons at"
            )
        return start + self.step

    @cached_property
    def rows(self) -> Rows:
        """What the neurons are."""
        found = values_at(self.subject, self.batch, (self.site,))[self.site]
        return found[:, self.position].double().cpu().numpy()

    def direct_effects(self, towards: Tokens, away: Tokens | None = None) -> Rows:
        """w_out[n] . g_i, g = d (logit of `towards` - logit of `away`) / d residual leaving the
        last block: what one more unit of a neuron adds to the logit difference (of the logit itself
        without `away`) of item i, past all later blocks, to first order.

        g is differentiated, not read off the unembedding with the final norm's scale frozen as in
        direct logit attribution: one rule for every final norm, and true to first order. The two
        differ by the part of w_out along the normalized residual, which the norm takes out again. A
        norm between the out-projection and the residual (Gemma 3) is not seen.
        """
        written = self.subject.anatomy.out_weight(self.subject.module, self.site).detach().double()
        return (self._gradient(towards, away).double() @ written.T).cpu().numpy()

    def contribution(self, shift: Rows, towards: Tokens, away: Tokens | None = None) -> Rows:
        """d_{n,i} = shift_n(i) * w_out[n] . g_i (see `direct_effects`), in logits: the direct
        contribution of a shift to `towards`."""
        effects = self.direct_effects(towards, away)
        if np.shape(shift) != effects.shape:
            raise ValueError(
                f"expected a shift of {effects.shape} [items, neurons]; got {np.shape(shift)}"
            )
        return shift * effects

    def reset(self, expected: Rows, chosen: Chosen) -> Interchange:
        """Sets the chosen neurons of each item, at the read position, to what is expected; all
        others stay as they are there.

        For forwards of the whole batch, in its order.
        """
        if np.shape(expected) != self.rows.shape or np.shape(chosen) != self.rows.shape:
            raise ValueError(
                f"expected {self.rows.shape} [items, neurons]; got means {np.shape(expected)} and chosen {np.shape(chosen)}"
            )
        donors = np.where(chosen, expected, self.rows)[:, None].repeat(self.position + 1, axis=1)
        units = all_units({self.site: self.rows.shape[1]})
        return Interchange(units, positions=(self.position,), values={self.site: donors})

    def answered(self, *plans: Plan) -> Int[np.ndarray, " items"]:
        """The likeliest token of each item, under plans if any."""
        with evaluating(self.subject), self.subject.intervened(*plans):
            return self.subject.target_logits(self.batch)[:, self.step].argmax(-1).cpu().numpy()

    def _gradient(self, towards: Tokens, away: Tokens | None) -> Float[Tensor, "items d_model"]:
        signs = [(1, _ids(towards, len(self.batch)))] + (
            [] if away is None else [(-1, _ids(away, len(self.batch)))]
        )
        parts = self.batch.split(_AT_ONCE)
        split = [
            [(sign, ids[start : start + _AT_ONCE]) for sign, ids in signs]
            for start in range(0, len(self.batch), _AT_ONCE)
        ]
        return torch.cat(
            [self._gradient_of(part, answers) for part, answers in zip(parts, split, strict=True)]
        )

    def _gradient_of(
        self, part: Batch, answers: list[tuple[int, Tensor]]
    ) -> Float[Tensor, "items d_model"]:
        blocks = self.subject.anatomy.blocks(self.site.stack)
        last = Site("resid_post", len(blocks) - 1, self.site.stack)
        with differentiating(self.subject):
            with captured(self.subject, (last,)) as values:
                logits = self.subject.target_logits(part)[:, self.step]
            chosen = [
                sign * logits.gather(1, ids[:, None].to(logits.device)).sum()
                for sign, ids in answers
            ]
            return torch.autograd.grad(torch.stack(chosen).sum(), values[last])[0][:, self.position]


def _ids(tokens: Tokens, items: int) -> Int[Tensor, " items"]:
    ids = torch.as_tensor(tokens).long()
    if ids.shape != (items,):
        raise ValueError(
            f"expected a token id for each of {items} items; got shape {tuple(ids.shape)}"
        )
    return ids


def largest(contribution: Rows, k: int) -> Chosen:
    """The k largest of each item; equal ones in an arbitrary order, always the same. Raises
    ValueError for more than there are."""
    values = np.asarray(contribution)
    if not 0 <= k <= values.shape[1]:
        raise ValueError(f"cannot take {k} of {values.shape[1]} neurons")
    chosen = np.zeros(values.shape, dtype=bool)
    for row, mask in zip(values, chosen, strict=True):
        mask[ranked(row)[:k]] = True
    return chosen


def random_choice(shape: tuple[int, int], k: int, seed: int) -> Chosen:
    """k random neurons of each item, another draw for each.

    A mask with a row per item, whereas the controls of `interp.mitigation` are units that are the
    same for the whole batch. Like those of `largest`, they are drawn among all neurons: some of the
    largest may be among them.
    """
    return largest(np.random.default_rng(seed).random(shape), k)


def dose_curve(
    out: ReadOut,
    expected: Rows,
    contribution: Rows,
    answers: Mapping[str, Tokens],
    doses: Sequence[int],
    *,
    seeds: int = 5,
) -> pd.DataFrame:
    """What items answer when some neurons are reset to what is expected (see `ReadOut.reset`).

    Returns a row for each item and `selection`: "largest" and "random" (`seed` 0 to `seeds` - 1)
    for `k` neurons of each dose, 0 being no change, and "all" for the whole layer. Each name of
    `answers` is a column: whether that token is the likeliest.
    """
    wanted = {name: _ids(tokens, len(out.batch)).numpy() for name, tokens in answers.items()}
    frames: list[pd.DataFrame] = []
    for selection, k, seed, chosen in _selections(np.asarray(contribution), doses, seeds):
        said = out.answered(out.reset(expected, chosen))
        right = {name: said == tokens for name, tokens in wanted.items()}
        frames.append(
            pd.DataFrame(
                {
                    "selection": selection,
                    "k": k,
                    "seed": seed,
                    "item": np.arange(len(said)),
                    **right,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _selections(
    contribution: Rows, doses: Sequence[int], seeds: int
) -> Iterator[tuple[str, int, int, Chosen]]:
    shape = contribution.shape[0], contribution.shape[1]
    for k in doses:
        yield "largest", k, 0, largest(contribution, k)
        for seed in range(seeds):
            yield "random", k, seed, random_choice(shape, k, seed)
    yield "all", shape[1], 0, np.ones(shape, dtype=bool)
