"""What every method must beat, and what it must not resemble: random scores, and another method
upside down."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.localization.registry import Places, Scores, localize, localize_each, method
from interp.localization.windows import own_tokens
from interp.sites.site import Site
from interp.subject.batch import Batches, batches
from interp.subject.subject import Subject


def _random_each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,  # noqa: ARG001
    sites: Places,
    seed: int = 0,
) -> Scores:
    rows = [row for batch in batches(memorized) for row in own_tokens(batch)]
    draws = [_draw(subject, sites, np.random.default_rng([seed, *row])) for row in rows]
    return {site: np.stack([draw[site] for draw in draws]) for site in sites}


@method("random", each=_random_each)
def random(
    subject: Subject,
    memorized: Batches,  # noqa: ARG001
    reference: Batches | None,  # noqa: ARG001
    sites: Places,
    seed: int = 0,
) -> Scores:
    """Uniform scores from a seed; window by window from the seed and the window's tokens."""
    return _draw(subject, sites, np.random.default_rng(seed))


def _draw(subject: Subject, sites: Places, rng: np.random.Generator) -> dict[Site, np.ndarray]:
    return {site: rng.random(width) for site, width in subject.anatomy.widths(sites).items()}


def _lowest_each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    of: str = "gradient_x_activation",
    **options: Any,
) -> Scores:
    rows = localize_each(subject, memorized, reference, of, sites, **options)
    return {site: -np.stack([row[site] for row in rows]) for site in sites}


@method("lowest", each=_lowest_each)
def lowest(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    of: str = "gradient_x_activation",
    **options: Any,
) -> Scores:
    """The scores of method `of`, with its options, and with the sign turned: its lowest-scoring
    units come first, as a control."""
    scores = localize(subject, memorized, reference, of, sites, **options)
    return {site: -scores[site] for site in sites}
