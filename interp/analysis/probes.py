"""What can be read at a site, by a linear probe and by the model's own output head (the logit
lens)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from interp.hooks.hooks import Value
from interp.localization.unit_values import values_at
from interp.sites.anatomy import Sites
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Rows = Float[np.ndarray, "items width"]


Mask = Bool[np.ndarray, " items"]


_CONSTANT = 1e-6  # of the largest column's deviation: what rounding leaves of a column that was erased in float32


@dataclass(frozen=True, eq=False)
class Labelled:
    """The items of a batch, what is to be read of each, and optionally the group of each (a pair of
    operands, a fact).

    `labels` are [items], ints or anything hashable; or several by name, each of which a probe's
    predictions are compared with. Raises ValueError for another number of labels or groups than of
    items."""

    batch: Batch
    labels: ArrayLike | Mapping[str, ArrayLike]
    groups: ArrayLike | None = None

    def __post_init__(self) -> None:
        given = dict(self.readings) | ({} if self.groups is None else {"groups": self.groups})
        for name, labels in given.items():
            column(labels, len(self.batch), name)

    @property
    def readings(self) -> Mapping[str, ArrayLike]:
        """The labels by name; "label" where they have none."""
        return self.labels if isinstance(self.labels, Mapping) else {"label": self.labels}


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of rows in their own units: the class of the largest of `rows @ weights.T
    + biases`."""

    classes: np.ndarray
    weights: Float[np.ndarray, "classes width"]
    biases: Float[np.ndarray, " classes"]

    def predict(self, rows: Rows) -> np.ndarray:
        """The label of each row, [items]."""
        return self.classes[
            (np.asarray(rows, dtype=np.float64) @ self.weights.T + self.biases).argmax(1)
        ]

    def accuracy(self, rows: Rows, labels: ArrayLike) -> float:
        """The share of rows whose label is predicted."""
        return float((self.predict(rows) == column(labels, len(rows))).mean())


def column(labels: ArrayLike, items: int, name: str = "labels") -> np.ndarray:
    """Labels as an array [items]. Raises ValueError for another shape."""
    array = np.asarray(labels)
    if array.shape != (items,):
        raise ValueError(f"{name}: expected one a row, [{items}]; got shape {array.shape}")
    return array


def classified(rows: Rows, labels: ArrayLike) -> tuple[Rows, Int[np.ndarray, " items"], np.ndarray]:
    """Rows in float64, the class of each by number, and the classes. Raises ValueError for rows
    that are not finite or of one class."""
    table = np.asarray(rows, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(
            f"expected finite rows [items, width]; got shape {table.shape}, {int((~np.isfinite(table)).sum())} not finite"
        )
    numbers, classes = pd.factorize(column(labels, len(table)))
    if len(classes) < 2 or (numbers < 0).any():
        raise ValueError(
            f"expected labels of at least two classes, none missing; got {len(classes)} and {int((numbers < 0).sum())} missing"
        )
    return table, numbers, np.asarray(classes)


def fit_probe(rows: Rows, labels: ArrayLike, *, strength: float = 1.0) -> Probe:
    """Multinomial logistic regression on standardized rows (lbfgs), with `strength` (1 / sklearn's
    C) times half the squared weights as penalty. Columns that do not vary weigh nothing. Raises
    ValueError as `classified`, and for a strength that is not positive."""
    from sklearn.linear_model import LogisticRegression

    if strength <= 0:
        raise ValueError(f"strength={strength}: expected a positive weight of the penalty")
    table, numbers, classes = classified(rows, labels)
    mean, deviation = table.mean(0), table.std(0)
    scale = np.where(deviation > _CONSTANT * deviation.max(initial=0.0), deviation, np.inf)
    model: Any = LogisticRegression(C=1 / strength, max_iter=2000).fit(
        (table - mean) / scale, numbers
    )
    weights, biases = model.coef_ / scale, model.intercept_
    if len(classes) == 2:
        weights, biases = (
            np.concatenate([-weights, weights]) / 2,
            np.concatenate([-biases, biases]) / 2,
        )
    return Probe(classes, weights, biases - weights @ mean)


def rows_at(
    subject: Subject, batch: Batch, sites: Sites, position: int, size: int = 256
) -> dict[Site, Rows]:
    """The activations of every item at one position, [items, width] in float64, from forwards of
    `size` items. Raises ValueError for a position that a site does not have."""
    chosen = subject.anatomy.expand(sites)
    parts = [at_position(values_at(subject, part, chosen), position) for part in batch.split(size)]
    return {
        site: torch.cat([part[site] for part in parts]).double().cpu().numpy() for site in chosen
    }


def at_position(
    values: Mapping[Site, Value], position: int
) -> dict[Site, Float[Tensor, "items width"]]:
    """The rows at one position of each site's values."""
    for site, value in values.items():
        if not 0 <= position < value.shape[1]:
            raise ValueError(
                f"{site} has positions 0 to {value.shape[1] - 1}; got position={position}"
            )
    return {site: value[:, position].clone() for site, value in values.items()}


def probe(
    subject: Subject,
    train: Labelled,
    tests: Mapping[str, Labelled],
    sites: Sites,
    position: int,
    *,
    strength: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """What a probe trained at each site reads at one position of other items.

    One row for each site, test set and reading: `accuracy`, how often the prediction is that
    reading (of wrongly labelled items "true" and "noisy", say); `shuffled`, the same of a probe
    trained on the same rows with their labels permuted; `n` items; `chance`, the accuracy of always
    saying the commonest. accuracy - shuffled is a selectivity in the sense of Hewitt & Liang 2019
    (arXiv 1909.03368). Their control gives each word type one random label, which a probe can learn
    and carry over to the test; permuted labels carry over to nothing but the items trained on.

    With groups there are two probes, each trained on half of the train's groups, drawn by the seed,
    and each item is tested with the one that saw none of its group: it cannot be right by recalling
    what it was trained on. Without, keeping the tests apart from the train is the caller's
    business.

    Raises ValueError for a train of several readings, and groups in some of the sets only or fewer
    than two.
    """
    labels, *others = map(np.asarray, train.readings.values())
    if others:
        raise ValueError(f"a probe is trained on one reading; got {', '.join(train.readings)}")
    parts = folds(train, tests, seed)
    known = rows_at(subject, train.batch, sites, position)
    seen = {name: rows_at(subject, test.batch, sites, position) for name, test in tests.items()}
    found: list[dict[str, Any]] = []
    for site, rows in known.items():
        said = {
            name: np.empty((2, len(test.batch)), dtype=labels.dtype) for name, test in tests.items()
        }
        for items, asked in parts:
            for number, shown in enumerate(
                (labels[items], np.random.default_rng(seed).permutation(labels[items]))
            ):
                trained = fit_probe(rows[items], shown, strength=strength)
                for name, chosen in asked.items():
                    said[name][number, chosen] = trained.predict(seen[name][site][chosen])
        found += [
            described_site(site) | {"set": name} | read
            for name, test in tests.items()
            for read in _readings(said[name], test)
        ]
    return pd.DataFrame(found)


def described_site(site: Site) -> dict[str, Any]:
    """A site as columns of a table."""
    return {"site": str(site), "block": site.block, "point": site.point}


def _readings(said: np.ndarray, test: Labelled) -> Iterator[dict[str, Any]]:
    for reading, labels in test.readings.items():
        accuracy, shuffled = (said == np.asarray(labels)).mean(1).tolist()
        yield {
            "reading": reading,
            "accuracy": accuracy,
            "shuffled": shuffled,
            "n": said.shape[1],
            "chance": majority(labels),
        }


def majority(labels: ArrayLike) -> float:
    """The share of the commonest label."""
    numbers = pd.factorize(np.asarray(labels))[0]
    return float(np.bincount(numbers).max() / len(numbers))


def folds(
    train: Labelled, tests: Mapping[str, Labelled], seed: int
) -> list[tuple[Mask, dict[str, Mask]]]:
    """Which items to train on and which of each set to test then, as masks: all of them, once,
    where there are no groups; else twice, so that each item is tested once, by a probe trained on
    no item of its group."""
    if len({each.groups is None for each in (train, *tests.values())}) > 1:
        raise ValueError("expected groups of the train and of every test set, or of none")
    if train.groups is None:
        return [
            (
                np.ones(len(train.batch), dtype=bool),
                {name: np.ones(len(each.batch), dtype=bool) for name, each in tests.items()},
            )
        ]
    names = pd.unique(np.asarray(train.groups))
    if len(names) < 2:
        raise ValueError(
            f"expected at least two groups to train on one half and test on the other; got {len(names)}"
        )
    half = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    ours, theirs = _within(train, half), {name: _within(each, half) for name, each in tests.items()}
    return [(ours, {name: ~taken for name, taken in theirs.items()}), (~ours, theirs)]


def _within(items: Labelled, groups: np.ndarray) -> Mask:
    return pd.Series(np.asarray(items.groups)).isin(groups).to_numpy()
