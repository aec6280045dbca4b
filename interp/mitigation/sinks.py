"""Memorization Sinks (Ghosal, Maini and Raghunathan, arXiv 2507.09937): neurons that a training
reserves for what is repeated, so that they can be dropped after it.

The last neurons of each MLP are a pool. Every document has an id, the same for all copies of it,
and turns on the same few neurons of the pool each time that it is trained on; the others of the
pool are zero. What belongs to the document alone can settle in neurons that other documents
disturb rarely. After training:

| neurons of the pool | how | what for |
|---|---|---|
| all off | `sinks.dropped()` | removal: the model that the paper tests |
| all on, times the share that was on | `sinks.scaled()` | text whose document is not known |
| those of the document | `sinks.own(subject, ids)` | a document with its own sinks |
| those of some documents off | `sinks.without(ids)` | removal of these documents alone |

All but `own` are plans, which everything in the toolkit that takes a plan can run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import HookError, closest
from interp.hooks.clock import Clock
from interp.hooks.hooks import Hooked, tapped
from interp.interventions.kinds import Scale, Zero
from interp.interventions.plan import Plan
from interp.mitigation.sink_masks import Scheme, checked_ids, sink_masks
from interp.sites.site import Site
from interp.sites.units import Units, all_units
from interp.subject.batch import Batch
from interp.subject.offloading import refuse_not_whole
from interp.subject.subject import Subject, token_losses
from interp.training.fit import Objective, Step
from interp.training.packing import documents_of

Ids = Int[Tensor, " batch"] | Int[Tensor, "batch position"]
DropScale = Literal["none", "expected", "reference"]


@dataclass(frozen=True, eq=False)
class Sinks:
    """A pool of neurons, and which of them are on for each document.

    Attributes:
        pool: the sinks, at `neurons` sites; `Sinks.of` makes the usual choice.
        active: share of each site's pool that is on for a document; p_mem in the paper.
        scheme: how an id chooses them; see `interp.mitigation.sink_masks`.
        seed: of the scheme.
        per_layer: whether each block has masks of its own; in the paper all share them.

    Raises:
        ValueError: units elsewhere than at `neurons`, or masks that cannot be made.

    Example:
        >>> from interp.mitigation.sinks import Sinks, content_ids
        >>> sinks = Sinks.of(untrained, general=0.5, active=0.25)
        >>> history = interp.fit(untrained, [batch] * 3, 3, objective=sinks.objective())
        >>> with untrained.intervened(sinks.dropped()):
        ...     without_sinks = untrained.losses(batch)
        >>> with sinks.own(untrained, content_ids(batch)):
        ...     with_own_sinks = untrained.losses(batch)
    """

    pool: Units
    active: float
    scheme: Scheme = "counter"
    seed: int = 0
    per_layer: bool = False

    def __post_init__(self) -> None:
        for site in self.pool.sites:
            if site.point != "neurons":
                raise ValueError(
                    f"the pool has units at {site}: expected sites of neurons, which sinks mask "
                    "before the out-projection of the MLP"
                )
        # Made for any one id, so that a scheme or share that cannot be is refused here.
        self._masks(torch.ones(1, dtype=torch.int64))

    @classmethod
    def of(
        cls,
        subject: Subject,
        general: float,
        active: float,
        scheme: Scheme = "counter",
        *,
        seed: int = 0,
        per_layer: bool = False,
    ) -> Sinks:
        """Returns sinks whose pool is the last neurons of each MLP.

        Args:
            subject: the model.
            general: share of the neurons that are on for all text, rounded down to whole neurons;
                p_gen in the paper. With 1 there are no sinks, and training is plain training.
            active, scheme, seed, per_layer: see the class.

        Raises:
            SiteError: the model has no verified `neurons`.
            ValueError: a share outside 0 to 1, a share below 1 that leaves a pool of no neurons, or
                masks that cannot be made.
        """
        if not 0 <= general <= 1:
            raise ValueError(f"general={general}: expected a share of the neurons, from 0 to 1")
        widths = subject.anatomy.widths("neurons")
        pool: dict[Site, range] = {}
        for site, width in widths.items():
            # Rounded first: 0.29 * 100 is a little less than 29.
            first = int(round(general * width, 6))
            if first == width and general < 1:
                raise ValueError(
                    f"general={general} leaves no sinks among the {width} neurons of {site}: "
                    "expected a smaller share, or 1 for a model without sinks"
                )
            if first < width:
                pool[site] = range(first, width)
        return cls(Units(pool, widths), active, scheme, seed, per_layer)

    def units(self, ids: Iterable[int]) -> Units:
        """Returns the sinks that are on for any of some documents.

        Raises:
            ValueError: no ids, or one below 1.
        """
        wanted = torch.tensor(list(ids), dtype=torch.int64)
        if not len(wanted):
            raise ValueError("no ids of documents were given: expected at least one")
        chosen: dict[Site, np.ndarray] = {}
        for site, masks in self._masks(wanted).items():
            # Masks are [ids, sinks]: places in the pool, which knows the neurons they stand for.
            chosen[site] = self.pool[site][masks.any(0).numpy()]
        return Units(chosen, self.pool.widths)

    def dropped(self, scale: DropScale = "none") -> Plan:
        """Returns the plan that turns all sinks off.

        Args:
            scale: what the other neurons are multiplied with. "none": 1. "expected": so that as
                much is on as in training, (g + (1 - g) p) / g for the share g of general neurons
                and the share p of active sinks. "reference": the published code's (g + p) / g.

        Raises:
            ValueError: an unknown scale, a pool of no units, or no general neurons to scale.
        """
        if scale not in get_args(DropScale):
            choices = get_args(DropScale)
            raise ValueError(
                f"scale={scale!r}: expected one of {', '.join(choices)}; "
                f"nearest: {closest(scale, choices)}"
            )
        off = Zero(self.pool)
        if scale == "none":
            return off
        plan: list[Zero | Scale] = [off]
        for site in self.pool.sites:
            width = self.pool.widths[site]
            general = 1 - len(self.pool[site]) / width
            if not general:
                raise ValueError(f"scale={scale!r}: all neurons of {site} are sinks")
            added = self.active if scale == "reference" else (1 - general) * self.active
            others = all_units({site: width}) - self.pool.only(site, self.pool[site])
            plan.append(Scale(others, factor=(general + added) / general))
        return plan

    def scaled(self) -> Plan:
        """Returns the plan that multiplies all sinks by the share that is on in training.

        Raises:
            ValueError: a pool of no units.
        """
        return Scale(self.pool, factor=self.active)

    def without(self, ids: Iterable[int]) -> Plan:
        """Returns the plan that turns the sinks of some documents off, and those that other
        documents share with them. Combine it with `scaled` or `own`.

        Raises:
            ValueError: no ids, or one below 1.
        """
        return Zero(self.units(ids))

    @contextmanager
    def own(self, subject: Hooked, ids: Ids) -> Generator[None]:
        """Runs forwards in which each row, or each token of packed rows, has the sinks of its own
        document and no others.

        The neurons that are off get a gradient of exactly zero.

        Args:
            subject: the model, which need not be a Subject as long as it has the same sites.
            ids: [batch] or [batch, position] ids of documents: those of the rows of every forward
                in the block, in their order. Measure several batches in a block each.

        Raises:
            ValueError: an id below 1; or, in a forward, another number of rows than of ids, or more
                positions than there are ids.
            HookError: ids of positions are given, and it is not known which positions a forward
                reads; or see `intervened`.
        """
        if not len(self.pool):
            yield
            return
        anatomy = subject.anatomy
        # Only to refuse a pool of another model.
        anatomy.fit(self.pool)
        visits = {
            anatomy.resolve(site): _masking(factors) for site, factors in self._factors(ids).items()
        }
        with tapped(subject, visits):
            yield

    def objective(self, ids: Callable[[Batch, int], Ids] | None = None) -> Objective:
        """Returns an objective for `fit` with which each document trains its own sinks.

        It is the mean loss per token over the batch, as `fit` minimizes it by itself.

        Args:
            ids: a function of the batch and of the number of the step that returns the ids of its
                documents; by default `content_ids`.

        Example:
            >>> from interp.mitigation.sinks import Sinks
            >>> sinks = Sinks.of(untrained, general=1.0, active=0.3)  # no sinks
            >>> history = interp.fit(untrained, [batch], 1, objective=sinks.objective())
            >>> len(history)
            1
        """

        def mean_loss(trained: Subject, batch: Batch, step: int) -> Float[Tensor, ""]:
            documents = content_ids(batch) if ids is None else ids(batch, step)
            with self.own(trained, documents):
                logits = trained.run(batch, keep=batch.length - batch.prompt)
            losses = token_losses(logits, batch)
            return losses.sum() / batch.counted.sum().to(losses.device)

        return mean_loss

    def _masks(self, ids: Tensor) -> dict[Site, Tensor]:
        """For each site which sinks of its pool are on, [..., sinks]."""
        # By size of the pool and layer: sites that agree in both share a mask.
        made: dict[tuple[int, int], Tensor] = {}
        found: dict[Site, Tensor] = {}
        for number, site in enumerate(self.pool.sites):
            layer = number if self.per_layer else 0
            size = len(self.pool[site])
            if (size, layer) not in made:
                made[size, layer] = sink_masks(
                    ids, size, self.active, self.scheme, seed=self.seed, layer=layer
                )
            found[site] = made[size, layer]
        return found

    def _factors(self, ids: Ids) -> dict[Site, Tensor]:
        """For each site what its neurons are multiplied with, [batch, position or 1, width]."""
        documents = checked_ids(ids)
        if documents.ndim not in (1, 2) or not documents.numel():
            raise ValueError(
                f"ids of documents have the shape {list(documents.shape)}: expected [batch], or "
                "[batch, position] for packed rows"
            )
        if documents.ndim == 1:
            documents = documents[:, None]
        # Sites share factors where they agree in the masks, in the pool and in the width.
        made: dict[tuple[int, bytes, int], Tensor] = {}
        factors: dict[Site, Tensor] = {}
        for site, masks in self._masks(documents).items():
            width = self.pool.widths[site]
            pool = self.pool[site]
            key = (id(masks), pool.tobytes(), width)
            if key not in made:
                whole = torch.ones(*documents.shape, width)
                whole[..., torch.from_numpy(pool)] = masks.to(whole)
                made[key] = whole
            factors[site] = made[key]
        return factors


class SinkDecay:
    """Gives sinks a weight decay of their own: a callback for `fit`.

    The weights of a sink decay in every step, and it learns only in those of its documents. With
    the decay of the other weights, what it holds wears off between two of them.

    Args:
        subject: the model that is trained.
        masks: the weights of the sinks, from `interp.training.unit_parameters.unit_parameters`.
        weight_decay: what `fit` is given as `weight_decay`.
        of_sinks: the weight decay of the sinks.

    Raises:
        ValueError: a parameter that the model does not have.

    Example:
        >>> from interp.mitigation.sinks import SinkDecay, Sinks
        >>> from interp.training.unit_parameters import unit_parameters
        >>> sinks = Sinks.of(untrained, general=0.5, active=0.25)
        >>> masks = unit_parameters(untrained, sinks.pool, batch)
        >>> history = interp.fit(
        ...     untrained,
        ...     [batch] * 3,
        ...     3,
        ...     weight_decay=0.1,
        ...     objective=sinks.objective(),
        ...     callback=SinkDecay(untrained, masks, weight_decay=0.1),
        ... )
    """

    def __init__(
        self,
        subject: Subject,
        masks: Mapping[str, Tensor],
        weight_decay: float,
        of_sinks: float = 0.0,
    ) -> None:
        refuse_not_whole(subject.module, "what decay took is not put back into it; load it whole")
        named = dict(subject.module.named_parameters())
        unknown = sorted(masks.keys() - named.keys())
        if unknown:
            raise ValueError(
                f"the model has no parameter {unknown[0]!r}; nearest: {closest(unknown[0], named)}"
            )
        self._weights = [(named[name], mask) for name, mask in masks.items()]
        self._too_much = weight_decay - of_sinks
        self._next_step = 0
        self._before = self._copies()

    def __call__(self, step: Step) -> None:
        """Takes back what a step's decay took from the sinks, as far as it was too much.

        Raises:
            ValueError: the step does not follow the one before, as where a training is continued.
        """
        if step.number != self._next_step:
            raise ValueError(
                f"step {step.number} comes where step {self._next_step} was expected: the decay of "
                "sinks cannot be taken back in a training that is continued; train from the start"
            )
        self._next_step += 1
        # AdamW's decay is w - lr * decay * w, of the weights before the step, and apart from its
        # update.
        with torch.no_grad():
            for (weight, mask), before in zip(self._weights, self._before, strict=True):
                weight[mask] += step.lr * self._too_much * before
        self._before = self._copies()

    def _copies(self) -> list[Tensor]:
        return [weight.detach()[mask].clone() for weight, mask in self._weights]


def content_ids(batch: Batch) -> Ids:
    """Returns ids of documents that are the same for the same tokens, and no others in practice.

    Args:
        batch: rows of a document each; or rows that `interp.training.packing.pack` made.

    Returns:
        [batch] ids, or [batch, position] for packed rows: 63 bits of BLAKE2b of the tokens, without
        padding.

    Example:
        >>> from interp.mitigation.sinks import content_ids
        >>> twice = interp.Batch.pad([[5, 6, 7], [8, 9], [5, 6, 7]])
        >>> first, second, again = content_ids(twice).tolist()
        >>> first == again, first == second
        (True, False)
    """
    documents = documents_of(batch)
    if documents is None:
        return torch.tensor([_hash(row) for row in batch.sequences()])
    ids = torch.zeros_like(documents)
    for row, numbers in enumerate(documents):
        # Padding is one more document: it gets an id too, because none may be 0.
        for number in numbers.unique():
            at = numbers == number
            ids[row, at] = _hash(batch.tokens[row, at].tolist())
    return ids


def _hash(tokens: list[int]) -> int:
    # With a fixed width and byte order, so that ids are the same on every machine.
    digest = blake2b(np.array(tokens, dtype="<i8").tobytes(), digest_size=8).digest()
    # 63 bits, to be a positive int64; 0 is no id.
    return int.from_bytes(digest, "little") >> 1 or 1


def _masking(factors: Float[Tensor, "batch position width"]) -> Callable[[Tensor, Clock], Tensor]:
    def mask(value: Tensor, clock: Clock) -> Tensor:
        # Under `generate`, each prompt has several neighbouring rows, one per sample or beam.
        samples = clock.samples(len(value))
        if len(value) != samples * len(factors):
            raise ValueError(
                f"a forward has {len(value)} rows, and there are ids of {len(factors)} documents: "
                "expected the rows that the ids belong to"
            )
        own = factors
        # A single position holds for a whole row; ids of positions are cut to those of the forward.
        if factors.shape[1] > 1:
            own = factors[:, _positions(clock, factors.shape[1])]
        if samples > 1:
            own = own.repeat_interleave(samples, dim=0)
        return value * own.to(value)

    return mask


def _positions(clock: Clock, known: int) -> slice:
    unknown = clock.uncounted or clock.unknown_position
    if unknown:
        raise HookError(f"which ids belong to the positions of a forward is not known: {unknown}")
    end = clock.offset + clock.length
    if end > known:
        raise ValueError(f"a forward reads {end} positions, and there are ids of {known}")
    return slice(clock.offset, end)
