"""A mean over windows that come in parts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from interp.sites.site import Site


class RunningMean:
    """The mean over all rows seen so far, for each site; memory does not grow with the rows.

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

    def update(self, rows: Mapping[Site, Float[np.ndarray, "windows units"]]) -> None:
        """Adds rows, the same number for every site."""
        for site, values in rows.items():
            self._totals[site] = self._totals.get(site, 0.0) + values.sum(0)
        self._count += len(next(iter(rows.values())))

    def value(self) -> dict[Site, Float[np.ndarray, " units"]]:
        """Returns the mean over all rows so far."""
        return {site: total / self._count for site, total in self._totals.items()}
