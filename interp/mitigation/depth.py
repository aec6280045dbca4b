"""How deep a removal goes: the Unlearning Depth Score (Lee et al., arXiv 2605.24614).

A model that no longer says what it knew may still have it inside. To see it, the residual stream of
the edited model is put into the original one, after one block at a time and only where the
memorized tokens are predicted. If the original model then still predicts them, they can be read
from the states of the edited model. The fall of their log p is the `drop` of the block.

How large a drop can be is measured in the same way with a reference: a model that was never trained
on these texts. The score is the share of the reference's drop that the edited model reaches, over
the blocks where there is one: 0 when nothing was removed inside, 1 when the states are like those
of a model that never knew.

Two things to know when reading it. Any loss of log p counts as erasure, also a secret that is
pushed far below what a model thinks of texts that it has never seen: `unclipped` shows it by values
above 1. And a deep removal need not be a lasting one: report it with relearning.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.engine.sweeping import Logits, sweep_resuming
from interp.hooks.hooks import Value
from interp.interventions.kinds import Interchange
from interp.interventions.plan import Plan
from interp.localization.predicting_positions import position_weights, stack_of
from interp.localization.unit_values import values_at
from interp.progress import track
from interp.reporting.stats import Interval, bootstrap
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
from interp.subject.batch_limit import BatchLimit
from interp.subject.subject import Subject, evaluating, token_losses, vocabulary_size

_THRESHOLD = 0.05  # in nats per token; that of the paper's code


@dataclass(frozen=True, eq=False)
class UnlearningDepth:
    """How much of what a reference model lacks inside is gone from an edited model too.

    Attributes:
        frame: one row per item and site: `item`, `site`, `block`, `log_p` (of the original model,
            mean over the item's tokens), `drop` and `reference_drop` in nats per token, `encodes`
            (whether the reference's drop is above the threshold) and `ratio` (of the two drops,
            clipped to [0, 1]; NaN where the site does not encode the item).
        threshold: the drop above which a site encodes an item, in nats per token.

    Example:
        >>> from interp.mitigation.depth import unlearning_depth
        >>> half = interp.Scale(subject.units("neurons"), factor=0.5)
        >>> depth = unlearning_depth(subject, half, untrained, memorized)
        >>> 0 < depth.score.estimate < 1
        True
        >>> depth.items.columns.tolist()
        ['item', 'sites', 'depth', 'unclipped']
    """

    frame: pd.DataFrame
    threshold: float = _THRESHOLD

    @property
    def items(self) -> pd.DataFrame:
        """One row per item: `item`, `sites` (how many encode it), `depth` and `unclipped`.

        Both are means over these sites, weighted by the reference's drop; NaN without such a site.
        """
        encodes = self.frame["encodes"]
        # With d1 the drop of the reference and d2 that of the edited model, the sums of an item
        # over its sites will be d1, d1 * clip(d2 / d1, 0, 1) and d2. A site that does not encode it
        # adds 0 to each.
        known = self.frame["reference_drop"].where(encodes, 0.0)
        erased = (known * self.frame["ratio"]).where(encodes, 0.0)
        dropped = self.frame["drop"].where(encodes, 0.0)
        by_site = pd.DataFrame(
            {
                "item": self.frame["item"],
                "sites": encodes.astype(int),
                "known": known,
                "erased": erased,
                "dropped": dropped,
            }
        )
        sums: Any = by_site.groupby("item", as_index=False).sum()
        # 0 / 0 where no site encodes an item, which is NaN in pandas.
        depth = sums["erased"] / sums["known"]
        unclipped = sums["dropped"] / sums["known"]
        return sums[["item", "sites"]].assign(depth=depth, unclipped=unclipped)

    @property
    def score(self) -> Interval:
        """The Unlearning Depth Score, from 0 to 1: the mean over the items that are encoded at some
        site, with its 95% interval."""
        return bootstrap(self.items["depth"].dropna())

    @property
    def unclipped(self) -> Interval:
        """The same with ratios that are not clipped: above 1 where the edited model is further from
        the tokens than the reference, below 0 where it is closer than the original."""
        return bootstrap(self.items["unclipped"].dropna())

    @classmethod
    def from_drops(
        cls, drops: pd.DataFrame, reference_drops: pd.DataFrame, threshold: float = _THRESHOLD
    ) -> UnlearningDepth:
        """Returns the depth from drops of the edited model and of the reference.

        The drops of the reference, once measured, serve for any number of edits.

        Args:
            drops: drops of the edited model, from `log_p_drops`.
            reference_drops: drops of the reference, of the same original model, items and sites.
            threshold: the drop above which a site encodes an item, in nats per token.

        Raises:
            ValueError: a threshold below 0, drops of other items or sites, or no item that is
                encoded at any site.

        Example:
            >>> from interp.mitigation.depth import UnlearningDepth, log_p_drops
            >>> reference_drops = log_p_drops(subject, untrained, memorized)
            >>> for units in (subject.units("heads"), subject.units("neurons")):
            ...     drops = log_p_drops(subject, interp.Zero(units), memorized)
            ...     depth = UnlearningDepth.from_drops(drops, reference_drops)
            ...     print(depth.score.estimate > 0.3)
            True
            False
        """
        if not threshold >= 0:
            raise ValueError(f"threshold={threshold}: expected a drop in nats per token, from 0 on")
        keys = ["item", "site"]
        # Both tables have log p of the original: the two may differ by rounding alone.
        same_rows = drops[keys].equals(reference_drops[keys])
        if not same_rows or not np.allclose(drops["log_p"], reference_drops["log_p"], atol=1e-3):
            raise ValueError(
                "these drops are not of the same original model, items and sites: measure both "
                "with log_p_drops(before, ...) on the same texts"
            )
        reference_drop = reference_drops["drop"]
        encodes = reference_drop > threshold
        if not encodes.to_numpy().any():
            raise ValueError(
                f"no item is encoded at any site: the reference's states cost at most "
                f"{reference_drop.max():.3g} nats per token, the threshold is {threshold}. Does "
                "the original model know these texts, and does the reference not?"
            )
        ratio = (drops["drop"] / reference_drop).clip(0, 1)
        frame = drops.assign(
            reference_drop=reference_drop, encodes=encodes, ratio=ratio.where(encodes)
        )
        return cls(frame, threshold)


def unlearning_depth(
    before: Subject,
    after: Subject | Plan,
    reference: Subject | Plan,
    forget: Batches,
    sites: Sites = "resid_post",
    *,
    threshold: float = _THRESHOLD,
    batch_size: int = 8,
) -> UnlearningDepth:
    """Returns how deep a removal goes, compared with a model that never knew.

    Source: Lee et al., arXiv 2605.24614, and its code.

    Args:
        before: the original model, which knows the texts.
        after: the edited model; or a plan, which is then run on the original one.
        reference: a model of the same anatomy that was never trained on the texts.
        forget: the texts. Each row is an item; the tokens that are removed are its scored targets.
        sites: where states are put in, one site at a time.
        threshold: the drop above which a site encodes an item, in nats per token.
        batch_size: largest number of rows in one forward.

    Raises:
        SiteError: a site is unknown.
        ValueError: models of different anatomies or tokenizers, a row without scored targets, or
            texts that the original does not know better than the reference.

    Example:
        >>> from interp.mitigation.depth import unlearning_depth
        >>> print(unlearning_depth(subject, untrained, untrained, memorized).score)
        1.00 [1.00, 1.00]
        >>> print(unlearning_depth(subject, subject, untrained, memorized).score)
        0.00 [0.00, 0.00]
    """
    reference_drops = log_p_drops(before, reference, forget, sites, batch_size=batch_size)
    drops = log_p_drops(before, after, forget, sites, batch_size=batch_size)
    return UnlearningDepth.from_drops(drops, reference_drops, threshold)


def log_p_drops(
    before: Subject,
    source: Subject | Plan,
    forget: Batches,
    sites: Sites = "resid_post",
    *,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Returns how much log p tokens lose when the states of another model are put in at one site.

    States are replaced only at the positions that predict an item's scored targets. Memory grows
    with the sites and the batch, and not with the number of items.

    Args:
        before: the model whose predictions are measured.
        source: the model whose states are put in; or a plan, under which `before` then gives them.
        forget: the texts: a Batch, the windows of a scan, or an iterable of batches. Each row is an
            item; its targets that count (see `Batch.counted`) are measured.
        sites: where states are put in, one site at a time.
        batch_size: largest number of rows in one forward.

    Returns:
        One row per item and site: `item`, `site`, `block`, `log_p` (mean over the item's targets,
        without other states) and `drop` (how much it falls), in nats per token.

    Raises:
        SiteError: a site is unknown.
        ValueError: models of different anatomies or tokenizers, no texts, or a row without scored
            targets.
        HookError: a plan that never applied.

    Example:
        >>> from interp.mitigation.depth import log_p_drops
        >>> drops = log_p_drops(subject, untrained, memorized)
        >>> drops.columns.tolist(), len(drops)
        (['item', 'site', 'block', 'log_p', 'drop'], 24)
        >>> bool(drops["drop"].mean() > 1)
        True
    """
    chosen = before.anatomy.expand(sites)
    if isinstance(source, Subject):
        _check_alike(before, source, chosen)

    def drops(part: Batch) -> tuple[np.ndarray, np.ndarray]:
        return _drops(before, source, part, chosen)

    tables: list[pd.DataFrame] = []
    items_seen = 0
    limit = BatchLimit()
    for batch in track(batches(forget, batch_size), "depth"):
        _check_scored(batch, items_seen)
        for part, (log_p, dropped) in limit.run(drops, batch):
            items = items_seen + np.arange(len(part))
            # Item after item, each at all sites: the order in which `dropped` is flattened.
            columns = {
                "item": np.repeat(items, len(chosen)),
                "site": [str(site) for site in chosen] * len(part),
                "block": [site.block for site in chosen] * len(part),
                "log_p": np.repeat(log_p, len(chosen)),
                "drop": dropped.reshape(-1),
            }
            tables.append(pd.DataFrame(columns))
            items_seen += len(part)
    if not tables:
        raise ValueError("no texts to measure: the source has no batches")
    return pd.concat(tables, ignore_index=True)


def _drops(
    before: Subject, source: Subject | Plan, batch: Batch, sites: tuple[Site, ...]
) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, "items sites"]]:
    """The log p of each item, and how much it falls with the states of the source at each site."""
    own = values_at(before, batch, sites)
    is_model = isinstance(source, Subject)
    with nullcontext() if is_model else before.intervened(source):
        states = values_at(source if is_model else before, batch, sites)
    masks = _predicting(before, batch, sites, own)
    plans = [_transplant(before, site, own[site], states[site], masks[site]) for site in sites]

    with evaluating(before):
        clean = _mean_log_p(before.target_logits(batch), batch)
    # Not `sweep`, which may run several plans in one batch and round differently: here a model's
    # own states must change nothing, to the bit.
    patched = sweep_resuming(before, batch, plans, _mean_log_p)
    return clean, clean[:, None] - np.stack(patched, axis=1)  # [items], [items, sites]


def _transplant(
    before: Subject,
    site: Site,
    own: Value,
    states: Value,
    mask: Bool[Tensor, "items position"],
) -> Interchange:
    """The plan that puts states in at a site, under the mask."""
    if own.shape != states.shape:
        raise ValueError(
            f"{site} has the shape {tuple(states.shape)} in the source and {tuple(own.shape)} "
            "here: the two models do not see the same positions"
        )
    # A plan has the same positions in all rows. Where the mask leaves some out in one row, that
    # row gets its own states, which changes nothing.
    mixed = torch.where(mask[..., None], states.to(own), own)
    positions = mask.any(0).nonzero().flatten().tolist()
    # numpy has no bfloat16.
    precise = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
    values = {site: precise.cpu().numpy()}
    return Interchange(before.anatomy.units(site), tuple(positions), values=values)


def _predicting(
    before: Subject, batch: Batch, sites: Sequence[Site], own: dict[Site, Value]
) -> dict[Site, Bool[Tensor, "items position"]]:
    """Where the targets that count are predicted; everywhere in a stack that all targets depend on,
    such as an encoder of images, and outside all stacks."""
    weights = position_weights(before, batch, tuple(sites))
    masks: dict[Site, Tensor] = {}
    for site in sites:
        shape = own[site].shape[:2]
        mask = torch.ones(shape, dtype=torch.bool, device=own[site].device)
        at_positions = weights.get(stack_of(before, site))
        if at_positions is not None:
            # Blocks can see fewer positions than there are tokens, or more.
            known = min(shape[1], at_positions.shape[1])
            mask[:] = False
            mask[:, :known] = at_positions[:, :known].to(mask.device) > 0
        masks[site] = mask
    return masks


def _mean_log_p(logits: Logits, batch: Batch) -> Float[np.ndarray, " items"]:
    losses = token_losses(logits, batch).double().sum(1)
    counts = batch.counted.sum(1).to(losses.device)
    return -(losses / counts).cpu().numpy()


def _check_scored(batch: Batch, items_before: int) -> None:
    without = (~batch.counted.any(1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"item {items_before + without[0]} has no scored target: expected at least one token "
            "after the prompt that counts"
        )


def _check_alike(before: Subject, source: Subject, sites: Sequence[Site]) -> None:
    """Raises ValueError unless the states of one model can be put into the other."""
    difference = _difference(before, source, sites)
    if difference:
        raise ValueError(
            f"the states of {source.name} cannot be put into {before.name}: {difference}. Compare "
            "a model with an edited, fine-tuned or retrained copy of itself"
        )


def _difference(before: Subject, source: Subject, sites: Sequence[Site]) -> str | None:
    """What two models differ in that states of one mean nothing in the other."""
    blocks = {stack: len(paths) for stack, paths in before.anatomy.stacks.items()}
    source_blocks = {stack: len(paths) for stack, paths in source.anatomy.stacks.items()}
    if blocks != source_blocks:
        return f"it has {_in_words(source_blocks)} and not {_in_words(blocks)}"
    for site in sites:
        width = before.anatomy.place(site).width
        source_width = source.anatomy.place(site).width
        if width != source_width:
            return f"its {site} is {source_width} wide and not {width}"
    size = vocabulary_size(before.module)
    source_size = vocabulary_size(source.module)
    if size != source_size:
        return f"it has a vocabulary of {source_size} tokens and not {size}"
    if before.lead != source.lead:
        return f"its blocks see {source.lead} positions before the tokens and not {before.lead}"
    return _tokenizer_difference(before, source)


def _in_words(blocks: dict[str, int]) -> str:
    parts = [
        f"{count} blocks in {stack}" if stack else f"{count} blocks"
        for stack, count in blocks.items()
    ]
    return " and ".join(parts)


def _tokenizer_difference(before: Subject, source: Subject) -> str | None:
    one = before.tokenizer
    other = source.tokenizer
    both_known = hasattr(one, "get_vocab") and hasattr(other, "get_vocab")
    if one is other or not both_known:
        return None
    names: dict[str, int] = one.get_vocab()
    source_names: dict[str, int] = other.get_vocab()
    for name, number in names.items():
        if source_names.get(name) != number:
            return (
                f"its tokenizer is another one: {name!r} is token {source_names.get(name)} there "
                f"and {number} here"
            )
    return None
