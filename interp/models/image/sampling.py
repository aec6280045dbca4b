"""sample: images drawn from VAR and RAR, with classifier-free guidance and the usual cuts of the
distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks.hooks import prompt_length
from interp.models.image.image_model import ImageModel, image_model
from interp.progress import track
from interp.subject.decoding import Decoder
from interp.subject.subject import Subject, evaluating

Guidance = Callable[[float], float]


def linear_guidance(scale: float) -> Guidance:
    """VAR's schedule: the weight grows in proportion to the scales done, from 0 to `scale` (1.5 in
    the paper's evaluation)."""
    return lambda progress: scale * progress


def cosine_guidance(scale: float, power: float) -> Guidance:
    """RAR's schedule: the weight grows from 0 towards `scale` - 1 as (1 - cos(pi * progress^power))
    / 2 (for XXL 8.0 and 1.2)."""
    return lambda progress: (scale - 1) * (1 - math.cos(math.pi * progress**power)) / 2


def sample(
    subject: Subject,
    label: Int[Tensor, " images"],
    *,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    size: int = 64,
) -> Int[Tensor, "images length"]:
    """The tokens of one image for each class in `label`, drawn step by step on the KV cache;
    `subject.module.decode` makes them images.

    Args:
        guidance: maps the progress of a step, 0 to 1, to the weight w of logits + w * (logits -
        logits without a class); none by default.
        temperature: divides the logits; 0 takes the most likely token.
        top_k, top_p: keep the `top_k` most likely tokens (0: all), and of them the fewest that hold
        `top_p` of the probability.
        seed: of the draws; which images go together in a forward changes none of them.
        size: images a forward.

    Runs under whatever interventions are active. Raises ValueError for a model that is no image
    model, for classes that it has not, and for settings out of range.
    """
    module = image_model(subject.module)
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or label.ndim != 1 or not len(label):
        given = f"temperature={temperature}, top_k={top_k}, top_p={top_p} and labels of shape {tuple(label.shape)}"
        raise ValueError(
            f"expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and labels [images]; got {given}"
        )
    module.check_label(label)
    settings = (guidance, temperature, top_k, top_p)
    with evaluating(subject), prompt_length(module.lead):
        parts = track(torch.arange(len(label)).split(size), "sampling")
        return torch.cat(
            [
                _drawn(subject, module, label[rows], _gumbel(module, seed, rows), settings)
                for rows in parts
            ]
        )


def _gumbel(
    module: ImageModel, seed: int, rows: Int[Tensor, " rows"]
) -> Float[Tensor, "rows length codes"]:
    """Noise for some images, each from a generator of its own: all at once would be gigabytes."""
    noise: list[Tensor] = []
    for row in rows.tolist():
        own = torch.Generator().manual_seed(
            int(np.random.SeedSequence((seed, row)).generate_state(1)[0])
        )
        noise.append(
            -torch.empty(module.length, module.tokenizer.codes).exponential_(generator=own).log()
        )
    return torch.stack(noise)


def _drawn(
    subject: Subject,
    module: ImageModel,
    label: Tensor,
    gumbel: Tensor,
    settings: tuple[Guidance | None, float, int, float],
) -> Int[Tensor, "images length"]:
    guidance, temperature, top_k, top_p = settings
    label, gumbel = label.to(subject.device), gumbel.to(subject.device)
    both = label if guidance is None else torch.cat([label, torch.full_like(label, module.null)])
    decoder = Decoder(subject, len(both), {"label": both})
    said: list[Tensor] = []
    tokens = both.new_empty(len(both), 0)
    for step, (start, stop) in enumerate(module.steps):
        logits = decoder.feed(tokens).float()
        if guidance is not None:
            known, unknown = logits.chunk(2)
            logits = known + guidance(module.progress(step)) * (known - unknown)
        if temperature:  # the largest of logits with Gumbel noise is a draw from their softmax
            logits = truncated(logits / temperature, top_k, top_p) + gumbel[:, start:stop]
        said.append(logits.argmax(-1))
        tokens = said[-1] if guidance is None else torch.cat([said[-1], said[-1]])
    return torch.cat(said, dim=1)


def truncated(
    logits: Float[Tensor, "... codes"], top_k: int, top_p: float
) -> Float[Tensor, "... codes"]:
    """Logits with all but the `top_k` most likely (0: all stay) at -inf, and of these what is not
    needed for `top_p` of the probability."""
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        surplus = probability.cumsum(-1) - probability >= top_p
        logits = logits.masked_fill(surplus.scatter(-1, places, surplus), -torch.inf)
    return logits
