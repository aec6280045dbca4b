"""What VAR and RAR are trained on beside plain images: labels that are dropped now and then, and
tokens in random orders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from interp.models.image.image_model import ImageModel
from interp.subject.batch import Batch


def labels_dropped(
    batches: Iterable[Batch], model: ImageModel, rate: float = 0.1, seed: int = 0
) -> Iterator[Batch]:
    """The same batches with each label replaced, at this rate, by the one that stands for none:
    what guidance needs."""
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        label = batch.conditioning["label"]
        dropped = (torch.rand(len(label), generator=generator) < rate).to(label.device)
        yield replace(
            batch,
            conditioning={**batch.conditioning, "label": label.masked_fill(dropped, model.null)},
        )


def orders_annealed(batches: Iterable[Batch], until: int, seed: int = 0) -> Iterator[Batch]:
    """The same batches for RAR, each image in a random order with a probability that falls from 1
    to 0 over the first `until` batches, and in raster order otherwise (Yu et al. 2024, arXiv
    2411.00776, section 3.3)."""
    generator = torch.Generator().manual_seed(seed)
    for number, batch in enumerate(batches):
        raster = torch.arange(batch.length).expand(len(batch), -1)
        shuffled = torch.rand(len(batch), batch.length, generator=generator).argsort(1)
        random = torch.rand(len(batch), 1, generator=generator) < 1 - number / until
        order = torch.where(random, shuffled, raster).to(batch.tokens.device)
        yield replace(batch, conditioning={**batch.conditioning, "order": order})
