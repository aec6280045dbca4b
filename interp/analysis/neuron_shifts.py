"""Whether a memory shifts existing patterns: how far neurons are from their mean on clean items of
the same group, and what that shift writes into the prediction.

Made for claim 3 of "Reason to Rote" (arXiv 2507.04782): to fit noise, a model slightly shifts
existing activation patterns. No published text gives a protocol, so the protocol is our choice. Its
controls are the same number of random neurons, and the whole layer, which needs no labels to
choose.
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
from interp.localization.predicting_positions import predicting_positions
from interp.localization.unit_values import values_at
from interp.localization.window_losses import differentiating
from interp.sites.site import Site
from interp.sites.units import all_units, rank_units
from interp.subject.batch import Batch, owned
from interp.subject.offloading import stored_out_weight
from interp.subject.subject import Subject, evaluating

Rows = Float[np.ndarray, "items neurons"]
Chosen = Bool[np.ndarray, "items neurons"]
Tokens = Int[np.ndarray, " items"] | Int[Tensor, " items"] | Sequence[int]

# Items that are differentiated at once: the autograd graph holds every activation of the model.
_ITEMS_PER_GRAPH = 256


@dataclass(frozen=True, eq=False)
class Groups:
    """What neurons do on clean items, group by group.

    Attributes:
        means: the mean of each neuron in each group, [neurons] by group.
        spread: the standard deviation of each neuron within groups, [neurons].
    """

    means: Mapping[Hashable, Float[np.ndarray, " neurons"]]
    spread: Float[np.ndarray, " neurons"]

    def expected(self, groups: Iterable[Hashable]) -> Rows:
        """Returns the mean of each item's group, [items, neurons].

        Raises:
            ValueError: groups that had no clean item.
        """
        keys = _group_keys(groups)
        unknown = [key for key in dict.fromkeys(keys) if key not in self.means]
        if unknown:
            raise ValueError(
                f"no clean item of {len(unknown)} groups: {unknown[:5]}; "
                f"fitted were {len(self.means)}: {list(self.means)[:5]}"
            )
        return np.stack([self.means[key] for key in keys])

    def z(self, rows: Rows, groups: Iterable[Hashable]) -> Rows:
        """Returns (h_n(i) - mean) / spread of every neuron n and item i.

        A neuron that never varied within a group has no spread. Its z is 0 where it still has the
        mean, and otherwise infinite with the sign of the shift; filter such neurons by `spread >
        0`.

        Args:
            rows: [items, neurons] activations.
            groups: the group of each item.
        """
        values = np.asarray(rows, np.float64)
        shift = values - self.expected(groups)
        infinite = np.copysign(np.inf, shift)
        without_spread = np.where(shift == 0, 0.0, infinite)
        # Where `divide` is not to divide, it leaves what `out` holds.
        return np.divide(shift, self.spread, out=without_spread, where=self.spread > 0)

    def profile(self, rows: Rows, groups: Iterable[Hashable]) -> Float[np.ndarray, " items"]:
        """Returns Pearson's correlation, over neurons, of each item with the mean of its group; NaN
        where either has the same value for all neurons.

        Args:
            rows: [items, neurons] activations.
            groups: the group of each item.
        """
        # sum_n (h - mean h)(m - mean m) / (|h - mean h| |m - mean m|), each term [items]
        values = np.asarray(rows, np.float64)
        expected = np.asarray(self.expected(groups), np.float64)
        own = _center_each_row(values)
        mean = _center_each_row(expected)
        own_length = np.linalg.norm(own, axis=1)
        mean_length = np.linalg.norm(mean, axis=1)
        norms = own_length * mean_length
        products = (own * mean).sum(1)
        undefined = np.full(len(norms), np.nan)
        return np.divide(products, norms, out=undefined, where=norms > 0)


def fit_groups(rows: Rows, groups: Iterable[Hashable]) -> Groups:
    """Returns the means and the spread of neurons over clean items.

    The variance is pooled over groups of at least two items: the squared deviations from the
    group's mean, summed and divided by the number of these items.

    Args:
        rows: [items, neurons] activations.
        groups: the group of each item: anything hashable, or a row of an array.

    Raises:
        ValueError: no group has two items, or there is not one group per item.

    Example:
        >>> from interp.analysis.neuron_shifts import fit_groups
        >>> fitted = fit_groups(np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 0.0]]), ["a", "a", "b"])
        >>> fitted.spread
        array([1., 0.])
        >>> fitted.z(np.array([[4.0, 6.0]]), ["a"])
        array([[ 2., inf]])
    """
    keys = _group_keys(groups)
    values = np.asarray(rows, np.float64)
    if values.ndim != 2 or len(keys) != len(values):
        raise ValueError(
            "expected rows [items, neurons] and a group for each item; "
            f"got {values.shape} and {len(keys)} groups"
        )
    members: dict[Hashable, list[int]] = {}
    for item, key in enumerate(keys):
        members.setdefault(key, []).append(item)

    means: dict[Hashable, Float[np.ndarray, " neurons"]] = {}
    deviations: list[Rows] = []
    for key, items in members.items():
        means[key] = _exact_mean(values[items])
        if len(items) > 1:
            deviations.append(values[items] - means[key])
    if not deviations:
        raise ValueError(f"no spread: none of {len(members)} groups has two items")
    squares = np.concatenate(deviations) ** 2
    variance = squares.mean(0)
    return Groups(means, np.sqrt(variance))


def _exact_mean(rows: Rows) -> Float[np.ndarray, " neurons"]:
    """The mean of each column, without rounding error in columns that do not vary: the error would
    look like a spread."""
    # The mean of equal numbers may be rounded to another number; the mean of zeros is 0.
    from_first = rows - rows[0]  # exactly 0 in columns that do not vary
    return rows[0] + from_first.mean(0)


def _group_keys(groups: Iterable[Any]) -> list[Hashable]:
    is_array = isinstance(groups, (np.ndarray, Tensor, pd.Series))
    keys = groups.tolist() if is_array else list(groups)
    # A row of an array has become a list, which cannot be a key.
    return [tuple(key) if isinstance(key, list) else key for key in keys]


def _center_each_row(rows: Rows) -> Rows:
    means = _exact_mean(rows.T)  # of each row
    return rows - means[:, None]


@dataclass(frozen=True, eq=False)
class ReadOut:
    """The neurons of a site on every item of a batch, at the position that predicts one target.

    Attributes:
        subject: the model.
        batch: the items.
        site: a site of neurons.
        target: which of `batch.targets` is predicted.

    Raises:
        SiteError: a site that holds no neurons.
        ValueError: a target past the last one; or, on first use, a model whose targets are not
            predicted by one position alone.

    Example:
        >>> from interp.analysis.neuron_shifts import ReadOut
        >>> out = ReadOut(subject, batch, interp.Site("neurons", 1))
        >>> out.position, out.rows.shape
        (7, (12, 48))
        >>> bool((out.answers() == batch.targets[:, 0].numpy()).all())
        True
    """

    subject: Subject
    batch: Batch
    site: Site
    target: int = 0

    def __post_init__(self) -> None:
        site = self.subject.anatomy.resolve(self.site)
        if site.point != "neurons":
            nearest = Site("neurons", site.block or 0, site.stack)
            raise SiteError(f"{site} holds no neurons: expected a site such as {nearest}")
        targets = self.batch.length - self.batch.prompt
        if not 0 <= self.target < targets:
            raise ValueError(f"target={self.target}: the batch has targets 0 to {targets - 1}")
        # A frozen dataclass can be completed only this way. All methods can rely on a site in full,
        # however it was named.
        object.__setattr__(self, "site", site)

    @cached_property
    def position(self) -> int:
        """The absolute position that is read."""
        positions = predicting_positions(self.subject, self.batch, (self.site,))
        first = positions[self.site.stack]
        if first is None or first + self.target < 0:
            raise ValueError(
                f"{self.site}: no single position predicts target {self.target}, "
                "so there is no position to read neurons at"
            )
        return first + self.target

    @cached_property
    def rows(self) -> Rows:
        """The activations, [items, neurons] in float64."""
        values = values_at(self.subject, self.batch, (self.site,))[self.site]
        return values[:, self.position].double().cpu().numpy()

    def direct_effects(self, towards: Tokens, away: Tokens | None = None) -> Rows:
        """Returns what one more unit of each neuron adds to a logit difference, past all later
        blocks and to first order: w_out[n] . g_i for neuron n and item i.

        g_i = d (logit of `towards` - logit of `away`) / d (residual that leaves the last block).
        Direct logit attribution instead reads g off the unembedding, with the scale of the final
        norm frozen. Differentiating works for every final norm and is right to first order; the two
        differ by the part of w_out along the normalized residual, which the norm takes out again. A
        norm between the out-projection and the residual (Gemma 3) is not seen.

        Args:
            towards: one token id per item.
            away: the token id whose logit is subtracted; nothing is subtracted by default.

        Returns:
            [items, neurons], in logits per unit of activation.
        """
        out_weight = stored_out_weight(self.subject.module, self.subject.anatomy, self.site)
        gradient = self._logit_gradient(towards, away).double()
        written = out_weight.double().to(gradient.device)
        effects = gradient @ written.T  # w_out[n] . g_i, [items, neurons]
        return effects.cpu().numpy()

    def contribution(self, shift: Rows, towards: Tokens, away: Tokens | None = None) -> Rows:
        """Returns what a shift of the neurons adds directly to the logit difference: shift_n(i) *
        w_out[n] . g_i (see `direct_effects`), in logits.

        Args:
            shift: [items, neurons] change of activation.
            towards: one token id per item.
            away: the token id whose logit is subtracted.

        Raises:
            ValueError: a shift of another shape.
        """
        effects = self.direct_effects(towards, away)
        if np.shape(shift) != effects.shape:
            raise ValueError(
                f"expected a shift of {effects.shape} [items, neurons]; got {np.shape(shift)}"
            )
        return shift * effects

    def written(self, shift: Rows) -> Rows:
        """Returns how much a shift of the neurons changes what they write into the residual:
        |shift_n(i)| |w_out[n]|. Unlike `contribution`, this depends on no answer.

        Args:
            shift: [items, neurons] change of activation.

        Raises:
            ValueError: a shift of another shape.
        """
        out_weight = stored_out_weight(self.subject.module, self.subject.anatomy, self.site)
        precise = out_weight.double()
        lengths = precise.norm(dim=1).cpu().numpy()
        if np.shape(shift) != self.rows.shape:
            raise ValueError(
                f"expected a shift of {self.rows.shape} [items, neurons]; got {np.shape(shift)}"
            )
        return np.abs(shift) * lengths

    def reset(self, expected: Rows, chosen: Chosen) -> Interchange:
        """Returns the plan that sets the chosen neurons of each item, at the position that is read,
        to their expected value. The other neurons keep the value they have there.

        The plan fits forward passes over the whole batch, in its order.

        Args:
            expected: [items, neurons] values, such as `Groups.expected`.
            chosen: [items, neurons], True for the neurons to set.

        Raises:
            ValueError: arguments of another shape.
        """
        shape = self.rows.shape
        if np.shape(expected) != shape or np.shape(chosen) != shape:
            raise ValueError(
                f"expected {shape} [items, neurons]; "
                f"got means {np.shape(expected)} and chosen {np.shape(chosen)}"
            )
        # An Interchange takes a value for every position up to the last one it changes: [items,
        # positions, neurons], of which only the last position is read.
        at_position = np.where(chosen, expected, self.rows)
        positions = self.position + 1
        donors = at_position[:, None].repeat(positions, axis=1)
        units = all_units({self.site: shape[1]})
        return Interchange(units, positions=(self.position,), values={self.site: donors})

    def answers(self, *plans: Plan) -> Int[np.ndarray, " items"]:
        """Returns the likeliest token of each item, under plans if there are any."""
        with evaluating(self.subject), self.subject.intervened(*plans):
            logits = self.subject.target_logits(self.batch)[:, self.target]
        return logits.argmax(-1).cpu().numpy()

    def _logit_gradient(
        self, towards: Tokens, away: Tokens | None
    ) -> Float[Tensor, "items d_model"]:
        items = len(self.batch)
        signed = [(1, _token_ids(towards, items))]
        if away is not None:
            signed.append((-1, _token_ids(away, items)))

        gradients: list[Tensor] = []
        for number, part in enumerate(self.batch.split(_ITEMS_PER_GRAPH)):
            start = number * _ITEMS_PER_GRAPH
            in_part = slice(start, start + _ITEMS_PER_GRAPH)
            own = [(sign, ids[in_part]) for sign, ids in signed]
            gradients.append(self._logit_gradient_of(part, own))
        return torch.cat(gradients)

    def _logit_gradient_of(
        self, part: Batch, signed: list[tuple[int, Tensor]]
    ) -> Float[Tensor, "items d_model"]:
        blocks = self.subject.anatomy.blocks(self.site.stack)
        last = Site("resid_post", len(blocks) - 1, self.site.stack)
        with differentiating(self.subject):
            with captured(self.subject, (last,)) as values:
                logits = self.subject.target_logits(part)[:, self.target]
            # One backward for all items and both tokens, of the sum over items of logit(towards) -
            # logit(away). No item's logits depend on another item, so that each row of the
            # gradient is that of its own item.
            terms: list[Tensor] = []
            for sign, ids in signed:
                columns = ids[:, None].to(logits.device)
                chosen = logits.gather(1, columns)
                terms.append(sign * chosen.sum())
            total = torch.stack(terms).sum()
            (gradient,) = torch.autograd.grad(total, values[last])
            return gradient[:, self.position]


def _token_ids(tokens: Tokens, items: int) -> Int[Tensor, " items"]:
    ids = owned(tokens).long()
    if ids.shape != (items,):
        raise ValueError(
            f"expected a token id for each of {items} items; got shape {tuple(ids.shape)}"
        )
    return ids


def largest(contribution: Rows, k: int) -> Chosen:
    """Returns a mask of the k largest values of each item. Equal values are chosen in an arbitrary
    but reproducible order.

    Args:
        contribution: [items, neurons].
        k: how many neurons to choose for each item.

    Raises:
        ValueError: k is negative, or larger than the number of neurons.

    Example:
        >>> from interp.analysis.neuron_shifts import largest
        >>> largest(np.array([[0.1, 0.5, 0.3], [0.9, 0.0, 0.2]]), 1)
        array([[False,  True, False],
               [ True, False, False]])
    """
    values = np.asarray(contribution)
    if not 0 <= k <= values.shape[1]:
        raise ValueError(f"cannot take {k} of {values.shape[1]} neurons")
    chosen = np.zeros(values.shape, dtype=bool)
    for row, mask in zip(values, chosen, strict=True):
        highest = rank_units(row)[:k]
        mask[highest] = True  # a row of `chosen` itself, not a copy
    return chosen


def random_choice(shape: tuple[int, int], k: int, seed: int) -> Chosen:
    """Returns a mask of k random neurons of each item, drawn anew for each item.

    The controls in `interp.mitigation` are units that are the same for the whole batch; here every
    item has its own. They are drawn from all neurons, so some may be among the largest.

    Args:
        shape: number of items and of neurons.
        k: how many neurons to choose for each item.
        seed: seed of the draw.
    """
    random = np.random.default_rng(seed).random(shape)
    return largest(random, k)


def fixed_ranking(values: Rows) -> Rows:
    """Returns values that are the same for all items of a half: for each item the mean over the
    items of the other half. Ranked by them, one fixed set of neurons serves a whole half, and no
    item had a part in choosing its own.

    The halves are the items with even and with odd numbers.

    Args:
        values: [items, neurons], at least 2 items.

    Raises:
        ValueError: fewer than 2 items.

    Example:
        >>> from interp.analysis.neuron_shifts import fixed_ranking
        >>> fixed_ranking(np.array([[1.0, 0.0], [5.0, 2.0], [3.0, 0.0]]))
        array([[5., 2.],
               [2., 0.],
               [5., 2.]])
    """
    rows = np.asarray(values, np.float64)
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 items, one for each half; got {len(rows)}")
    is_odd = np.arange(len(rows)) % 2 == 1
    of_odd = rows[is_odd].mean(0)
    of_even = rows[~is_odd].mean(0)
    return np.where(is_odd[:, None], of_even, of_odd)


def dose_curve(
    out: ReadOut,
    expected: Rows,
    rankings: Mapping[str, Rows],
    answers: Mapping[str, Tokens],
    doses: Sequence[int],
    *,
    seeds: int = 5,
) -> pd.DataFrame:
    """Measures what items answer when some of their neurons are reset (see `ReadOut.reset`).

    Args:
        out: the items and the neurons.
        expected: [items, neurons] values to reset to.
        rankings: [items, neurons] values by name, such as the contributions; of each ranking the
            neurons with the largest values are reset.
        answers: token ids by name, one per item.
        doses: numbers of neurons to reset; 0 changes nothing.
        seeds: number of random draws.

    Returns:
        One row per item and choice of neurons: `selection` is the name of a ranking, "random" (with
        `seed` 0 to `seeds` - 1) or "all" for the whole layer; `k` is the number of neurons; `item`
        the number of the item. Each name in `answers` is a column: whether that token is the
        likeliest.

    Example:
        >>> from interp.analysis.neuron_shifts import ReadOut, dose_curve
        >>> out = ReadOut(subject, batch, interp.Site("neurons", 1))
        >>> right = {"right": batch.targets[:, 0]}
        >>> rankings = {"largest": out.rows}
        >>> curve = dose_curve(out, out.rows, rankings, right, [0, 4], seeds=1)
        >>> curve.groupby(["selection", "k"], sort=False)["right"].mean()
        selection  k
        largest    0     1.0
        random     0     1.0
        largest    4     1.0
        random     4     1.0
        all        48    1.0
        Name: right, dtype: float64
    """
    items = len(out.batch)
    wanted: dict[str, np.ndarray] = {}
    for name, tokens in answers.items():
        wanted[name] = _token_ids(tokens, items).numpy()

    frames: list[pd.DataFrame] = []
    for selection, k, seed, chosen in _selections(out.rows.shape, rankings, doses, seeds):
        reset = out.reset(expected, chosen)
        answered = out.answers(reset)
        columns: dict[str, Any] = {
            "selection": selection,
            "k": k,
            "seed": seed,
            "item": np.arange(len(answered)),
        }
        for name, tokens in wanted.items():
            columns[name] = answered == tokens
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _selections(
    shape: tuple[int, int], rankings: Mapping[str, Rows], doses: Sequence[int], seeds: int
) -> Iterator[tuple[str, int, int, Chosen]]:
    for k in doses:
        for name, values in rankings.items():
            yield name, k, 0, largest(values, k)
        for seed in range(seeds):
            yield "random", k, seed, random_choice(shape, k, seed)
    yield "all", shape[1], 0, np.ones(shape, dtype=bool)
