"""Scores of windows that come in parts, put together: stacked, concatenated or averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from interp.sites.site import Site

ByWindow = Mapping[Site, Float[np.ndarray, "windows units"]]


class RunningMean:
    """The mean over all windows seen so far, for each site; memory does not grow with the windows.

    Example:
        >>> site = interp.Site("neurons", 0)
        >>> mean = RunningMean()
        >>> mean.update({site: np.array([[1.0, 2.0], [3.0, 4.0]])})
        >>> mean.update({site: np.array([[5.0, 6.0]])})
        >>> mean.value()[site]
        array([3., 4.])
    """

    def __init__(self) -> None:
        self._totals: dict[Site, np.ndarray] = {}
        self._count = 0

    def update(self, rows: ByWindow) -> None:
        """Adds windows, the same number for every site."""
        for site, values in rows.items():
            total = self._totals.get(site, 0.0)
            self._totals[site] = total + values.sum(0)
        self._count += len(next(iter(rows.values())))

    def value(self) -> dict[Site, Float[np.ndarray, " units"]]:
        """Returns the mean over all windows so far."""
        return {site: total / self._count for site, total in self._totals.items()}


def stack_rows(
    rows: Sequence[Mapping[Site, Float[np.ndarray, " units"]]],
) -> dict[Site, Float[np.ndarray, "windows units"]]:
    """Returns the scores of single windows as one array for each site.

    Example:
        >>> site = interp.Site("neurons", 0)
        >>> stack_rows([{site: np.zeros(3)}, {site: np.ones(3)}])[site].shape
        (2, 3)
    """
    stacked: dict[Site, np.ndarray] = {}
    for site in rows[0]:
        stacked[site] = np.stack([row[site] for row in rows])
    return stacked


def concatenate_parts(parts: Sequence[ByWindow]) -> dict[Site, Float[np.ndarray, "windows units"]]:
    """Returns the scores of several batches of windows as one array for each site.

    Example:
        >>> site = interp.Site("neurons", 0)
        >>> concatenate_parts([{site: np.zeros((2, 3))}, {site: np.ones((1, 3))}])[site].shape
        (3, 3)
    """
    concatenated: dict[Site, np.ndarray] = {}
    for site in parts[0]:
        concatenated[site] = np.concatenate([part[site] for part in parts])
    return concatenated
