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
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        label = batch.conditioning["label"]
        dropped = (torch.rand(len(label), generator=generator) < rate).to(label.device)
        label = label.masked_fill(dropped, model.null)
        yield replace(batch, conditioning={**batch.conditioning, "label": label})


def anneal_orders(batches: Iterable[Batch], until: int, seed: int = 0) -> Iterator[Batch]:
    """Gives images a random order of tokens with a probability that falls to 0, for training RAR.

    Source: Yu et al. 2024, arXiv 2411.00776, section 3.3.

    Args:
        batches: batches of whole images.
        until: number of batches over which the probability falls linearly from 1 to 0. Images are
            in raster order otherwise.
        seed: seed of the draws.

    Yields:
        The same batches with an `order` [batch, length] in their conditioning.
    """
    generator = torch.Generator().manual_seed(seed)
    for number, batch in enumerate(batches):
        raster = torch.arange(batch.length).expand(len(batch), -1)
        shuffled = torch.rand(len(batch), batch.length, generator=generator).argsort(1)
        is_random = torch.rand(len(batch), 1, generator=generator) < 1 - number / until
        order = torch.where(is_random, shuffled, raster).to(batch.tokens.device)
        yield replace(batch, conditioning={**batch.conditioning, "order": order})
