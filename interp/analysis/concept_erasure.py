"""Linear subspaces of the residual that hold a label, and their erasure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from interp.analysis.probes import Rows, classified, fit_probe, majority
from interp.interventions.kinds import Project
from interp.sites.site import Site
from interp.subject.subject import Subject

_NUMERICAL = 1e-10  # of the rows' own size: directions that are shorter are rounding


@dataclass(frozen=True, eq=False)
class Subspace:
    """A subspace around a point: `basis` [rank, width] with orthonormal rows, `center` [width].
    Raises ValueError for another basis."""

    basis: Float[np.ndarray, "rank width"]
    center: Float[np.ndarray, " width"]

    def __post_init__(self) -> None:
        if self.basis.ndim != 2 or self.center.shape != self.basis.shape[1:]:
            raise ValueError(
                f"expected a basis [rank, width] and a center [width]; got {self.basis.shape} and {self.center.shape}"
            )
        if not np.allclose(self.basis @ self.basis.T, np.eye(self.rank), atol=1e-6):
            raise ValueError(
                "the rows of the basis are not orthonormal: orthogonalize them, by numpy.linalg.qr for one"
            )

    @property
    def rank(self) -> int:
        return len(self.basis)

    def first(self, rank: int) -> Subspace:
        """The span of the first rows of the basis: of what `inlp` removed, the first rounds."""
        return Subspace(self.basis[:rank], self.center)

    def remove(self, rows: Rows) -> Rows:
        """x - ((x - c) B^T) B for every row: within the subspace all rows are at its center."""
        return rows - (rows - self.center) @ self.basis.T @ self.basis


def class_means(rows: Rows, labels: ArrayLike) -> Subspace:
    """The span of the class means around the mean of rows, of at most classes - 1 dimensions;
    without it all classes have one mean.

    Raises ValueError for rows that are not finite, labels of one class, or of another number than
    rows.
    """
    table, numbers, classes = classified(rows, labels)
    center = table.mean(0)
    around = table - center
    means = np.stack([around[numbers == n].mean(0) for n in range(len(classes))])
    floor = np.linalg.norm(around) / np.sqrt(len(around))
    return Subspace(_orthonormal(means, floor)[: len(classes) - 1], center)


def _orthonormal(rows: Rows, size: float) -> Rows:
    """A basis of the span of rows; directions below rounding, given the size of the data, are none."""
    _, lengths, basis = np.linalg.svd(rows, full_matrices=False)
    return basis[lengths > _NUMERICAL * size]


def inlp(
    rows: Rows,
    labels: ArrayLike,
    *,
    rounds: int = 20,
    held_out: float = 0.25,
    slack: float = 2.0,
    seed: int = 0,
) -> tuple[Subspace, pd.DataFrame]:
    """Iterative nullspace projection (Ravfogel et al. 2020, arXiv 2004.07667): a linear classifier
    of what is left is fitted and the span of its weights removed, again and again, until it is no
    better on held-out rows than chance.

    Chance is the share of the commonest held-out label; no better is at most `slack` standard
    errors, sqrt(p (1 - p) / n), above. The frame has one row a classifier: `round`, `rank` removed
    before it, its held-out `accuracy`, `chance`. The last one is not removed; after `rounds`
    removals its accuracy says what is left. Where nothing is left at all it is chance. The basis is
    in order of the rounds.

    Raises ValueError as `class_means`, and for a share held out that leaves nothing on a side.
    """
    table, numbers, _ = classified(rows, labels)
    order, n = np.random.default_rng(seed).permutation(len(table)), round(held_out * len(table))
    if not 0 < n < len(table):
        raise ValueError(
            f"held_out={held_out} of {len(table)} rows leaves none on a side: expected a share between 0 and 1"
        )
    test, train = order[:n], order[n:]
    chance = majority(numbers[test])
    bound = chance + slack * np.sqrt(chance * (1 - chance) / n)
    space, seen = (
        Subspace(np.empty((0, table.shape[1])), table.mean(0)),
        list[tuple[int, int, float]](),
    )
    for number in range(rounds + 1):
        if space.rank == table.shape[1]:
            seen.append((number, space.rank, chance))
            break
        left = space.remove(table)
        probe = fit_probe(left[train], numbers[train])
        seen.append((number, space.rank, probe.accuracy(left[test], numbers[test])))
        if seen[-1][2] <= bound or number == rounds:
            break
        space = _wider(space, probe.weights)
    return space, pd.DataFrame(seen, columns=["round", "rank", "accuracy"]).assign(chance=chance)


def _wider(space: Subspace, directions: Rows) -> Subspace:
    """The subspace and some directions together."""
    new = directions - directions @ space.basis.T @ space.basis
    basis = np.concatenate([space.basis, _orthonormal(new, float(np.linalg.norm(directions)))])
    return Subspace(
        np.linalg.qr(basis.T)[0].T, space.center
    )  # once more, for rounding adds up over rounds


def random_subspace(like: Subspace, seed: int) -> Subspace:
    """A uniformly random subspace of the rank and around the center of another: the control of its
    removal."""
    drawn = np.random.default_rng(seed).normal(size=(like.basis.shape[1], like.rank))
    return Subspace(np.linalg.qr(drawn)[0].T, like.center)


def erasure(
    subject: Subject, site: Site | str, subspace: Subspace, positions: tuple[int, ...] | None = None
) -> Project:
    """The plan that removes a subspace at a site whose units are single columns, as the residual's
    are; at all positions when None.

    Raises ValueError for a subspace of another width or without dimensions.
    """
    where = subject.anatomy.resolve(site)
    width = subject.anatomy.widths(where)[where]
    if not subspace.rank or subspace.basis.shape[1] != width:
        raise ValueError(
            f"{where} has {width} columns; got a subspace of rank {subspace.rank} in {subspace.basis.shape[1]}"
        )
    return Project(
        subject.anatomy.units(where),
        positions,
        values={where: subspace.basis},
        center={where: subspace.center},
    )
