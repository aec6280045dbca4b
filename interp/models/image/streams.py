"""Changes to a stream of training batches that VAR and RAR need: labels that are dropped now and
then, and tokens in random orders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from interp.models.image.image_model import ImageModel
from interp.subject.batch import Batch


def drop_labels(
    batches: Iterable[Batch], model: ImageModel, rate: float = 0.1, seed: int = 0
) -> Iterator[Batch]:
    """Replaces some labels by the one that means "no class", as classifier-free guidance needs.

    Args:
        batches: batches of images with labels.
        model: the model whose null label is used.
        rate: probability with which each label is replaced.
        seed: seed of the draws.

    Yields:
        The same batches with other labels.

    Raises:
        ValueError: a rate that is no probability, when the first batch is asked for.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate}: expected a probability, from 0 to 1")
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        label = batch.conditioning["label"]
        # Drawn on the CPU, so that a seed drops the same labels on every device.
        is_dropped = torch.rand(len(label), generator=generator) < rate
        label = label.masked_fill(is_dropped.to(label.device), model.null)
        conditioning = {**batch.conditioning, "label": label}
        yield replace(batch, conditioning=conditioning)


def anneal_orders(batches: Iterable[Batch], until: int, seed: int = 0) -> Iterator[Batch]:
    """Gives images a random order of tokens with a probability that falls to 0, for training RAR.

    Source: Yu et al. 2024, arXiv 2411.00776, section 3.3.

    Args:
        batches: batches of whole images.
        until: number of batches over which the probability falls linearly from 1 to 0. Images are
            in raster order otherwise; with 0 all are.
        seed: seed of the draws.

    Yields:
        The same batches with an `order` [batch, length] in their conditioning.

    Raises:
        ValueError: a number below 0, when the first batch is asked for.
    """
    if until < 0:
        raise ValueError(f"until={until}: expected a number of batches, at least 0")
    generator = torch.Generator().manual_seed(seed)
    for number, batch in enumerate(batches):
        raster = torch.arange(batch.length).expand(len(batch), -1)
        # The order of random numbers is a random order, another one in each row.
        keys = torch.rand(len(batch), batch.length, generator=generator)
        shuffled = keys.argsort(1)
        # One draw for each image, [batch, 1], decides about its whole row. No draw is below 0.
        chance = 1 - number / until if number < until else 0
        is_random = torch.rand(len(batch), 1, generator=generator) < chance
        order = torch.where(is_random, shuffled, raster)
        conditioning = {**batch.conditioning, "order": order.to(batch.tokens.device)}
        yield replace(batch, conditioning=conditioning)
