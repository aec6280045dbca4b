"""Concept erasure: find the linear subspace of the residual that holds a label, and remove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from interp.analysis.probes import Rows, classify, fit_probe, majority
from interp.interventions.kinds import Project
from interp.sites.site import Site
from interp.subject.subject import Subject

# A direction shorter than this fraction of the data's own size is rounding error.
_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class Subspace:
    """A linear subspace around a point.

    Attributes:
        basis: [rank, width], with orthonormal rows.
        center: [width]; removal moves all rows to this point within the subspace.

    Raises:
        ValueError: shapes that do not fit, or rows that are not orthonormal.

    Example:
        >>> from interp.analysis.concept_erasure import Subspace
        >>> first_axis = Subspace(np.array([[1.0, 0.0]]), np.array([5.0, 5.0]))
        >>> first_axis.remove(np.array([[1.0, 2.0], [3.0, 4.0]]))
        array([[5., 2.],
               [5., 4.]])
    """

    basis: Float[np.ndarray, "rank width"]
    center: Float[np.ndarray, " width"]

    def __post_init__(self) -> None:
        if self.basis.ndim != 2 or self.center.shape != self.basis.shape[1:]:
            raise ValueError(
                "expected a basis [rank, width] and a center [width]; "
                f"got {self.basis.shape} and {self.center.shape}"
            )
        products = self.basis @ self.basis.T
        if not np.allclose(products, np.eye(self.rank), atol=1e-6):
            raise ValueError(
                "the rows of the basis are not orthonormal: "
                "orthogonalize them, for example by numpy.linalg.qr"
            )

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.basis)

    def first(self, rank: int) -> Subspace:
        """Returns the span of the first `rank` rows of the basis: for a subspace from `inlp`, what
        its first rounds removed."""
        return Subspace(self.basis[:rank], self.center)

    def remove(self, rows: Rows) -> Rows:
        """Returns x - ((x - c) B^T) B for every row x: within the subspace all rows are then at its
        center c."""
        coordinates = (rows - self.center) @ self.basis.T  # [items, rank]
        return rows - coordinates @ self.basis


def class_means(rows: Rows, labels: ArrayLike) -> Subspace:
    """Returns the span of the class means around the mean of all rows. Once it is removed, all
    classes have the same mean.

    Args:
        rows: [items, width].
        labels: the class of each row.

    Returns:
        A subspace of at most (classes - 1) dimensions.

    Raises:
        ValueError: rows that are not finite, labels of one class only, or not one label per row.

    Example:
        >>> from interp.analysis.concept_erasure import class_means
        >>> rows = np.array([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]])
        >>> class_means(rows, ["a", "a", "b", "b"]).remove(rows)
        array([[2., 0.],
               [2., 2.],
               [2., 0.],
               [2., 2.]])
    """
    table, numbers, classes = classify(rows, labels)
    center = table.mean(0)
    around = table - center
    means: list[Rows] = []
    for number in range(len(classes)):
        members = around[numbers == number]
        means.append(members.mean(0))
    # The typical distance of a row from the center: means that are equal but for rounding differ by
    # a tiny part of it.
    size = np.linalg.norm(around) / np.sqrt(len(around))
    basis = _orthonormal(np.stack(means), size)
    # The means, weighted by the sizes of the classes, sum to 0: they span one dimension less.
    return Subspace(basis[: len(classes) - 1], center)


def _orthonormal(rows: Rows, size: float) -> Rows:
    """A basis of the span of rows, without the directions that are rounding error in data of this
    size."""
    _, lengths, basis = np.linalg.svd(rows, full_matrices=False)
    return basis[lengths > _ROUNDING * size]


def inlp(
    rows: Rows,
    labels: ArrayLike,
    *,
    rounds: int = 20,
    held_out: float = 0.25,
    slack: float = 2.0,
    seed: int = 0,
) -> tuple[Subspace, pd.DataFrame]:
    """Iterative nullspace projection: fits a linear classifier, removes the span of its weights and
    starts again on what is left, until the classifier is no better than chance on held-out rows.

    Source: Ravfogel et al. 2020 (arXiv 2004.07667). Chance is the share p of the most common label
    among the n held-out rows. A classifier is better than chance if its accuracy is more than
    `slack` standard errors, sqrt(p (1 - p) / n), above it.

    Args:
        rows: [items, width].
        labels: the class of each row.
        rounds: the largest number of removals.
        held_out: the share of rows that classifiers are tested on.
        slack: number of standard errors by which accuracy must exceed chance.
        seed: seed of the choice of held-out rows.

    Returns:
        The subspace that was removed, its basis in the order of the rounds; and a table with one
        row per classifier: `round`, the `rank` removed before it, its held-out `accuracy`, and
        `chance`. The weights of the last classifier are not removed: its accuracy says what is left
        after the removals. It is set to chance if no dimension is left.

    Raises:
        ValueError: see `class_means`; or a share held out that leaves one side empty.

    Example:
        >>> from interp.analysis.concept_erasure import inlp
        >>> rows = np.random.default_rng(0).normal(size=(200, 4))
        >>> removed, table = inlp(rows, rows[:, 0] > 0)
        >>> removed.rank, bool(table["accuracy"].iloc[0] > 0.9)
        (1, True)
    """
    table, numbers, _ = classify(rows, labels)
    order = np.random.default_rng(seed).permutation(len(table))
    n = round(held_out * len(table))
    if not 0 < n < len(table):
        raise ValueError(
            f"held_out={held_out} of {len(table)} rows leaves none to train or to test on: "
            "expected a share between 0 and 1"
        )
    test = order[:n]
    train = order[n:]
    chance = majority(numbers[test])
    standard_error = np.sqrt(chance * (1 - chance) / n)
    bound = chance + slack * standard_error

    width = table.shape[1]
    space = Subspace(np.empty((0, width)), table.mean(0))
    classifiers: list[tuple[int, int, float]] = []
    for number in range(rounds + 1):
        nothing_left = space.rank == width
        if nothing_left:
            classifiers.append((number, space.rank, chance))
            break
        left = space.remove(table)
        probe = fit_probe(left[train], numbers[train])
        accuracy = probe.accuracy(left[test], numbers[test])
        classifiers.append((number, space.rank, accuracy))
        if accuracy <= bound or number == rounds:
            break
        space = _extend(space, probe.weights)
    columns = ["round", "rank", "accuracy"]
    return space, pd.DataFrame(classifiers, columns=columns).assign(chance=chance)


def _extend(space: Subspace, directions: Rows) -> Subspace:
    """The span of a subspace and some directions."""
    coordinates = directions @ space.basis.T
    inside = coordinates @ space.basis
    outside = directions - inside
    size = float(np.linalg.norm(directions))
    new = _orthonormal(outside, size)
    basis = np.concatenate([space.basis, new])
    # Orthogonalized once more: the rounding error of one projection is small, but it would add up
    # over the rounds. QR works on columns, and keeps the span of the first ones, so that the rows
    # stay in the order of the rounds.
    orthonormal, _ = np.linalg.qr(basis.T)
    return Subspace(orthonormal.T, space.center)


def random_subspace(like: Subspace, seed: int) -> Subspace:
    """Returns a uniformly random subspace with the rank and the center of another one: the control
    for its removal.

    Example:
        >>> from interp.analysis.concept_erasure import Subspace, random_subspace
        >>> first_axes = Subspace(np.eye(5)[:2], np.zeros(5))
        >>> random_subspace(first_axes, seed=0).basis.shape
        (2, 5)
    """
    # Normal draws point in all directions alike, and so does their span.
    width = like.basis.shape[1]
    drawn = np.random.default_rng(seed).normal(size=(width, like.rank))
    orthonormal, _ = np.linalg.qr(drawn)
    return Subspace(orthonormal.T, like.center)


def variance_share(subspace: Subspace, rows: Rows) -> float:
    """Returns the share of the variance of rows that lies in a subspace, from 0 to 1.

    Args:
        subspace: the subspace.
        rows: [items, width].

    Example:
        >>> from interp.analysis.concept_erasure import Subspace, variance_share
        >>> first_axis = Subspace(np.eye(2)[:1], np.zeros(2))
        >>> variance_share(first_axis, np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]]))
        0.5
    """
    around = rows - rows.mean(0)
    within = around @ subspace.basis.T
    variance = np.square(around).sum()
    return float(np.square(within).sum() / variance)


def containment(subspace: Subspace, of: Subspace) -> float:
    """Returns how much of one subspace another contains, from 0 (orthogonal) to 1 (all of it): the
    mean squared length of unit vectors of the one, projected onto the other.

    Args:
        subspace: the subspace that contains.
        of: the subspace that is contained.

    Example:
        >>> from interp.analysis.concept_erasure import Subspace, containment
        >>> first_axis = Subspace(np.eye(2)[:1], np.zeros(2))
        >>> plane = Subspace(np.eye(2), np.zeros(2))
        >>> containment(plane, first_axis), containment(first_axis, plane)
        (1.0, 0.5)
    """
    cosines = of.basis @ subspace.basis.T
    return float(np.square(cosines).sum() / of.rank)


def principal(rows: Rows, rank: int) -> Subspace:
    """Returns the subspace of the `rank` directions of most variance, around the mean of the rows.

    Args:
        rows: [items, width].
        rank: number of dimensions.

    Example:
        >>> from interp.analysis.concept_erasure import principal
        >>> principal(np.array([[0.0, 0.0], [1.0, 9.0], [1.0, 0.0], [0.0, 9.0]]), 1).basis ** 2
        array([[0., 1.]])
    """
    center = rows.mean(0)
    return Subspace(_directions(rows - center)[:rank], center)


def _directions(around: Rows) -> Rows:
    """All directions of centered rows, [width, width], those of most variance first."""
    _, directions = np.linalg.eigh(around.T @ around)  # in increasing order
    return directions.T[::-1]


def random_subspace_of_variance(rows: Rows, rank: int, share: float, seed: int) -> Subspace:
    """Returns a random subspace that holds a given share of the variance of rows: the control for
    the removal of another subspace with that rank and share.

    A uniformly random subspace holds about rank / width of the variance, which is often much less
    than what is removed. From there, the subspace is turned towards the directions of most variance
    (or of least, if the share is smaller), along the shortest path between the two (the geodesic;
    Edelman, Arias & Smith 1998, section 2.5.1), until it holds the share. The share is continuous
    along the path, so that it is met exactly.

    Where nearly all variance is in `rank` directions, a subspace with a large share cannot differ
    much from them, and so neither from the one that it is a control for: report `containment` too.

    Args:
        rows: [items, width].
        rank: number of dimensions.
        share: share of the variance.
        seed: seed of the draw.

    Raises:
        ValueError: a share that no subspace of this rank holds.

    Example:
        >>> from interp.analysis.concept_erasure import random_subspace_of_variance, variance_share
        >>> rows = np.random.default_rng(0).normal(size=(100, 6)) * [9, 7, 5, 3, 1, 1]
        >>> drawn = random_subspace_of_variance(rows, 2, 0.6, seed=0)
        >>> drawn.rank, round(variance_share(drawn, rows), 6)
        (2, 0.6)
    """
    from scipy.optimize import brentq

    center = rows.mean(0)
    around = rows - center
    directions = _directions(around)
    most = Subspace(directions[:rank], center)
    least = Subspace(directions[::-1][:rank], center)
    low = variance_share(least, rows)
    high = variance_share(most, rows)
    if not low - _ROUNDING <= share <= high + _ROUNDING:
        raise ValueError(
            f"share={share:.4g}: subspaces of {rank} dimensions hold {low:.4g} to {high:.4g} of "
            "the variance of these rows"
        )
    drawn = random_subspace(most, seed)
    end = most if share > variance_share(drawn, rows) else least

    def excess(part: float) -> float:
        return variance_share(_turned(drawn, end, part), rows) - share

    # Rounding may put the share just past the end of the path.
    if excess(0.0) * excess(1.0) > 0:
        return end
    part: Any = brentq(excess, 0.0, 1.0)
    return _turned(drawn, end, float(part))


def _turned(start: Subspace, end: Subspace, part: float) -> Subspace:
    """The subspace at a part of the geodesic from one subspace to another of the same rank."""
    # In these bases the vectors of the same number are at the principal angles, and all other
    # pairs are orthogonal. Each pair is turned in its own plane.
    left, cosines, right = np.linalg.svd(start.basis @ end.basis.T)
    one = left.T @ start.basis
    other = right @ end.basis
    cosines = cosines.clip(-1, 1)[:, None]
    outwards = other - cosines * one
    lengths = np.linalg.norm(outwards, axis=1, keepdims=True)
    # A vector that both have in common stays.
    turned = lengths > _ROUNDING
    outwards = np.divide(outwards, lengths, out=np.zeros_like(outwards), where=turned)
    angles = part * np.arccos(cosines)
    along = np.cos(angles) * one
    away = np.sin(angles) * outwards
    return Subspace(along + away, start.center)


def erasure_plan(
    subject: Subject, site: Site | str, subspace: Subspace, positions: tuple[int, ...] | None = None
) -> Project:
    """Returns the plan that removes a subspace at a site.

    Args:
        subject: the model.
        site: a site whose units are single columns, as in the residual.
        subspace: what is removed.
        positions: where in the sequence; everywhere by default.

    Raises:
        ValueError: a subspace of another width, or without dimensions.

    Example:
        >>> from interp.analysis.concept_erasure import class_means, erasure_plan
        >>> from interp.analysis.probes import rows_at
        >>> rows = rows_at(subject, batch, "blocks.0.resid_post", position=7)
        >>> (here,) = rows.values()
        >>> halves = class_means(here, batch.tokens[:, 8].numpy() % 2)
        >>> with subject.intervened(erasure_plan(subject, "blocks.0.resid_post", halves)):
        ...     (erased,) = rows_at(subject, batch, "blocks.0.resid_post", position=7).values()
        >>> bool(np.allclose(erased, halves.remove(here), atol=1e-4))
        True
    """
    where = subject.anatomy.resolve(site)
    width = subject.anatomy.widths(where)[where]
    if not subspace.rank or subspace.basis.shape[1] != width:
        raise ValueError(
            f"{where} has {width} columns; "
            f"got a subspace of rank {subspace.rank} in {subspace.basis.shape[1]}"
        )
    return Project(
        subject.anatomy.units(where),
        positions,
        values={where: subspace.basis},
        center={where: subspace.center},
    )
