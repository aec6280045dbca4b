"""sample: draws images from VAR and RAR, with classifier-free guidance, top-k and top-p."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks.clock import prompt_length
from interp.models.image.image_model import ImageModel, image_model
from interp.progress import track
from interp.subject.decoding import Decoder
from interp.subject.subject import Subject, evaluating

Guidance = Callable[[float], float]


def linear_guidance(scale: float) -> Guidance:
    """Returns VAR's schedule: the weight grows linearly with the progress, from 0 to `scale`.

    Args:
        scale: the last weight (not one more than it, as in `cosine_guidance`); 1.5 in the paper's
            evaluation.

    Example:
        >>> from interp.models.image.sampling import linear_guidance
        >>> linear_guidance(1.5)(0.5)
        0.75
    """
    return lambda progress: scale * progress


def cosine_guidance(scale: float, power: float) -> Guidance:
    """Returns RAR's schedule: the weight is (`scale` - 1) * (1 - cos(pi * progress^power)) / 2, and
    grows from 0 to `scale` - 1.

    Args:
        scale: one more than the last weight, as RAR's code counts it; 8.0 for RAR-XXL.
        power: the larger, the later it grows; 1.2 for RAR-XXL.

    Example:
        >>> from interp.models.image.sampling import cosine_guidance
        >>> cosine_guidance(8.0, 1.2)(1.0)
        7.0
    """

    def weight(progress: float) -> float:
        angle = math.pi * progress**power
        largest = scale - 1
        return largest * (1 - math.cos(angle)) / 2

    return weight


@dataclass(frozen=True)
class _Settings:
    """How a token is drawn from its logits."""

    guidance: Guidance | None
    temperature: float
    top_k: int
    top_p: float


def sample(
    subject: Subject,
    label: Int[Tensor, " images"],
    *,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Int[Tensor, "images length"]:
    """Draws one image for each class in `label`, group by group with a KV cache.

    Runs under whatever interventions are active.

    Args:
        subject: a VAR or RAR.
        label: [images] classes.
        guidance: maps the progress of a group of tokens, 0 to 1, to the weight w in logits + w *
            (logits - logits without a class); no guidance by default.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps this many of the most likely tokens; 0 keeps all.
        top_p: keeps the fewest of those that together hold this share of the probability.
        seed: seed of the draws. They do not depend on which images are run together.
        batch_size: number of images per forward (batch size).

    Returns:
        [images, length] tokens; `subject.module.decode` turns them into images.

    Raises:
        ValueError: the model is not an image model, it does not have these classes, or a setting is
            out of range.

    Example:
        >>> from interp.models.image.rar import RAR, RARConfig
        >>> from interp.models.image.raster_vq import RasterVQ, RasterVQConfig
        >>> from interp.models.image.sampling import sample
        >>> shape = RasterVQConfig(
        ...     grid=4, codes=16, code_width=8, width=8, multipliers=(1, 1), blocks=1, channels=1
        ... )
        >>> network = RARConfig(
        ...     grid=4, width=16, depth=1, heads=2, hidden=32, codes=16, classes=3
        ... )
        >>> painter = interp.load(RAR(network, RasterVQ(shape)))
        >>> tokens = sample(painter, torch.tensor([0, 2]), top_k=5)
        >>> list(painter.module.decode(tokens).shape)
        [2, 1, 8, 8]
    """
    module = image_model(subject.module)
    # Each is false of NaN as well.
    good_setting = temperature >= 0 and top_k >= 0 and 0 < top_p <= 1
    bad_label = label.ndim != 1 or not len(label)
    if not good_setting or bad_label:
        raise ValueError(
            "expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and labels [images]; "
            f"got temperature={temperature}, top_k={top_k}, top_p={top_p} "
            f"and labels of shape {tuple(label.shape)}"
        )
    module.check_label(label)
    settings = _Settings(guidance, temperature, top_k, top_p)
    drawn: list[Tensor] = []
    with evaluating(subject), prompt_length(module.lead):
        for rows in track(torch.arange(len(label)).split(batch_size), "sampling"):
            noise = _gumbel(module, seed, rows)
            drawn.append(_draw(subject, module, label[rows], noise, settings))
        return torch.cat(drawn)


def _gumbel(
    module: ImageModel, seed: int, rows: Int[Tensor, " rows"]
) -> Float[Tensor, "rows length codes"]:
    """Gumbel noise for some images.

    Each image has a generator of its own, so that its noise does not depend on the batch size, and
    the noise of all images, gigabytes, is never there at once.
    """
    noise: list[Tensor] = []
    for row in rows.tolist():
        seeds = np.random.SeedSequence((seed, row))
        (seed_of_row,) = seeds.generate_state(1)
        generator = torch.Generator().manual_seed(int(seed_of_row))
        exponential = torch.empty(module.length, module.tokenizer.codes)
        exponential.exponential_(generator=generator)
        noise.append(-exponential.log())  # -log of an exponential draw is a Gumbel draw
    return torch.stack(noise)


def _draw(
    subject: Subject,
    module: ImageModel,
    label: Tensor,
    gumbel: Float[Tensor, "images length codes"],
    settings: _Settings,
) -> Int[Tensor, "images length"]:
    label = label.to(subject.device)
    gumbel = gumbel.to(subject.device)
    guidance = settings.guidance
    if guidance is not None:
        # The second half of the batch draws the same images without a class.
        no_class = torch.full_like(label, module.null)
        label = torch.cat([label, no_class])
    decoder = Decoder(subject, len(label), {"label": label})

    drawn: list[Tensor] = []
    tokens = label.new_empty(len(label), 0)
    for group, (start, stop) in enumerate(module.all_groups):
        logits = decoder.feed(tokens).float()
        if guidance is not None:
            with_class, without_class = logits.chunk(2)
            weight = guidance(module.progress(group))
            towards_class = with_class - without_class
            logits = with_class + weight * towards_class
        if settings.temperature:
            # The largest of logits with Gumbel noise is a draw from their softmax.
            tempered = logits / settings.temperature
            truncated = truncate(tempered, settings.top_k, settings.top_p)
            logits = truncated + gumbel[:, start:stop]
        tokens = logits.argmax(-1)
        drawn.append(tokens)
        if guidance is not None:
            # Both halves of the batch read the same tokens: they differ by the class alone.
            tokens = torch.cat([tokens, tokens])
    return torch.cat(drawn, dim=1)


def truncate(
    logits: Float[Tensor, "... codes"], top_k: int, top_p: float
) -> Float[Tensor, "... codes"]:
    """Returns logits with the unlikely tokens at -inf.

    Args:
        logits: [..., codes].
        top_k: number of most likely tokens that are kept; 0 keeps all.
        top_p: keeps the fewest of those that together hold this share of the probability.

    Example:
        >>> from interp.models.image.sampling import truncate
        >>> truncate(torch.tensor([1.0, 3.0, 2.0]), top_k=2, top_p=1.0).tolist()
        [-inf, 3.0, 2.0]
    """
    if top_k:
        k = min(top_k, logits.shape[-1])
        highest = logits.topk(k, dim=-1).values  # in descending order
        least_kept = highest[..., -1:]
        logits = logits.masked_fill(logits < least_kept, -torch.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # A token is not needed when the more likely ones already hold top_p.
        more_likely = probability.cumsum(-1) - probability
        surplus = more_likely >= top_p
        # Back from the sorted order, in which `places` names the codes, to the order of the codes.
        # Every code is written, so that it does not matter what they are scattered into.
        is_surplus = surplus.scatter(-1, places, surplus)
        logits = logits.masked_fill(is_surplus, -torch.inf)
    return logits
