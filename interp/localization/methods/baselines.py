"""What every method must beat: random scores, and the units of another method with the lowest
scores or the smallest absolute ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.localization.registry import Places, Scores, localize, localize_each, method
from interp.localization.window_rows import stack_rows
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
    draws: list[dict[Site, np.ndarray]] = []
    for batch in batches(memorized):
        for tokens in own_tokens(batch):
            rng = np.random.default_rng([seed, *tokens])
            draws.append(_draw(subject, sites, rng))
    return stack_rows(draws)


@method("random", each=_random_each)
def random(
    subject: Subject,
    memorized: Batches,  # noqa: ARG001
    reference: Batches | None,  # noqa: ARG001
    sites: Places,
    seed: int = 0,
) -> Scores:
    """Draws uniform scores, as a baseline.

    `localize` draws from the seed alone; `localize_each` from the seed and each window's tokens.

    Example:
        >>> one = interp.localize(subject, memorized, method="random", seed=1)
        >>> other = interp.localize(subject, memorized, method="random", seed=1)
        >>> one.top(10) == other.top(10)
        True
    """
    rng = np.random.default_rng(seed)
    return _draw(subject, sites, rng)


def _draw(subject: Subject, sites: Places, rng: np.random.Generator) -> dict[Site, np.ndarray]:
    widths = subject.anatomy.widths(sites)
    return {site: rng.random(width) for site, width in widths.items()}


def _of_each_window(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    of: str,
    options: Mapping[str, Any],
) -> Scores:
    """The scores that another method gives to each window."""
    scores = localize_each(subject, memorized, reference, of, sites, **options)
    return stack_rows([one.values for one in scores])


def _lowest_each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    of: str = "gradient_x_activation",
    **options: Any,
) -> Scores:
    rows = _of_each_window(subject, memorized, reference, sites, of, options)
    return {site: -values for site, values in rows.items()}


@method("lowest", each=_lowest_each)
def lowest(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    of: str = "gradient_x_activation",
    **options: Any,
) -> Scores:
    """Turns the sign of another method's scores, so that its lowest-scoring units come first.

    Where scores have a sign, these units have a strong effect of the other sign; `smallest` puts
    those without effect first.

    Args:
        subject, memorized, reference, sites: see `method`.
        of: name of the other method.
        **options: options of the other method.

    Example:
        >>> scores = interp.localize(subject, memorized, method="activation")
        >>> turned = interp.localize(subject, memorized, method="lowest", of="activation")
        >>> site = "blocks.0.neurons"
        >>> bool((turned[site] == -scores[site]).all())
        True
    """
    scores = localize(subject, memorized, reference, of, sites, **options)
    return {site: -scores[site] for site in sites}


def _smallest_each(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    of: str = "gradient_x_activation",
    **options: Any,
) -> Scores:
    rows = _of_each_window(subject, memorized, reference, sites, of, options)
    sizes = {site: np.abs(values) for site, values in rows.items()}
    return {site: -size for site, size in sizes.items()}


@method("smallest", each=_smallest_each)
def smallest(
    subject: Subject,
    memorized: Batches,
    reference: Batches | None,
    sites: Places,
    of: str = "gradient_x_activation",
    **options: Any,
) -> Scores:
    """Puts the units first that have the smallest absolute scores by another method.

    Args:
        subject, memorized, reference, sites: see `method`.
        of: name of the other method.
        **options: options of the other method.

    Example:
        >>> scores = interp.localize(subject, memorized)
        >>> turned = interp.localize(subject, memorized, method="smallest")
        >>> turned.top(5) == scores.smallest(5)
        True
    """
    scores = localize(subject, memorized, reference, of, sites, **options)
    return {site: -np.abs(scores[site]) for site in sites}
