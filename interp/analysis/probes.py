"""Linear probes: what can be read from the activations at a site."""

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

# A column whose deviation is below this fraction of the largest one is constant: it is what
# rounding leaves of a column that was erased in float32. Standardizing it would blow it up.
_CONSTANT = 1e-6


@dataclass(frozen=True, eq=False)
class Labelled:
    """Items and what is to be read from them.

    Attributes:
        batch: the items.
        labels: one label per item, ints or anything hashable; or several sets of labels by name,
            which are called readings. The predictions of a probe are compared with each of them.
        groups: optionally the group of each item, such as a pair of operands or a fact.

    Raises:
        ValueError: not one label or group per item.
    """

    batch: Batch
    labels: ArrayLike | Mapping[str, ArrayLike]
    groups: ArrayLike | None = None

    def __post_init__(self) -> None:
        for name, labels in self.readings.items():
            column(labels, len(self.batch), name)
        if self.groups is not None:
            column(self.groups, len(self.batch), "groups")

    @property
    def readings(self) -> Mapping[str, ArrayLike]:
        """The labels by name; the name is "label" if none was given."""
        return self.labels if isinstance(self.labels, Mapping) else {"label": self.labels}


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier: the class with the largest of `rows @ weights.T + biases`.

    Attributes:
        classes: the label of each class.
        weights: [classes, width], for rows in their own units.
        biases: [classes].
    """

    classes: np.ndarray
    weights: Float[np.ndarray, "classes width"]
    biases: Float[np.ndarray, " classes"]

    def predict(self, rows: Rows) -> np.ndarray:
        """Returns the label that is predicted for each row, [items]."""
        table = np.asarray(rows, dtype=np.float64)
        logits = table @ self.weights.T + self.biases  # [items, classes]
        return self.classes[logits.argmax(1)]

    def accuracy(self, rows: Rows, labels: ArrayLike) -> float:
        """Returns the share of rows whose label is predicted."""
        is_right = self.predict(rows) == column(labels, len(rows))
        return float(is_right.mean())


def column(labels: ArrayLike, items: int, name: str = "labels") -> np.ndarray:
    """Returns labels as an array [items]. Raises ValueError for another shape."""
    array = np.asarray(labels)
    if array.shape != (items,):
        raise ValueError(f"{name}: expected one per row, [{items}]; got shape {array.shape}")
    return array


def classify(rows: Rows, labels: ArrayLike) -> tuple[Rows, Int[np.ndarray, " items"], np.ndarray]:
    """Returns the rows in float64, the number of the class of each, and the label of each class.

    Raises:
        ValueError: rows that are not finite, labels that are missing, or only one class.
    """
    table = np.asarray(rows, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        not_finite = int((~np.isfinite(table)).sum())
        raise ValueError(
            f"expected finite rows [items, width]; got shape {table.shape}, {not_finite} not finite"
        )
    numbers, classes = pd.factorize(column(labels, len(table)))
    missing = int((numbers < 0).sum())
    if len(classes) < 2 or missing:
        raise ValueError(
            "expected labels of at least two classes, none missing; "
            f"got {len(classes)} and {missing} missing"
        )
    return table, numbers, np.asarray(classes)


def fit_probe(rows: Rows, labels: ArrayLike, *, strength: float = 1.0) -> Probe:
    """Fits a multinomial logistic regression on standardized rows (lbfgs). Columns that do not vary
    get no weight.

    Args:
        rows: [items, width].
        labels: the class of each row.
        strength: weight of the penalty, which is `strength` times half the squared weights (1 /
            sklearn's C).

    Raises:
        ValueError: see `classify`; or a strength that is not positive.

    Example:
        >>> from interp.analysis.probes import fit_probe
        >>> rows = np.array([[0.0, 7.0], [0.1, 7.0], [0.9, 7.0], [1.0, 7.0]])
        >>> fit_probe(rows, ["low", "low", "high", "high"]).predict(np.array([[0.2, 7.0]]))
        array(['low'], dtype='<U4')
    """
    from sklearn.linear_model import LogisticRegression

    if not strength > 0:
        raise ValueError(f"strength={strength}: expected a positive weight of the penalty")
    table, numbers, classes = classify(rows, labels)
    mean, scale = _standard(table)
    standardized = (table - mean) / scale
    model: Any = LogisticRegression(C=1 / strength, max_iter=2000)
    model.fit(standardized, numbers)

    # Back to the rows' own units: (x - mean) / scale . w + b = x . (w / scale) + b - mean . (w /
    # scale).
    weights = model.coef_ / scale
    biases = model.intercept_
    # For two classes sklearn keeps one row, the difference of the two. Half of it for one class and
    # half of its negative for the other have that difference, and a sum of zero.
    if len(classes) == 2:
        both = np.concatenate([-weights, weights])
        both_biases = np.concatenate([-biases, biases])
        weights = both / 2
        biases = both_biases / 2
    shifted = biases - weights @ mean
    return Probe(classes, weights, shifted)


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """A linear probe of quantities such as a place: `rows @ weights.T + biases`.

    Attributes:
        weights: [quantities, width], for rows in their own units.
        biases: [quantities].
    """

    weights: Float[np.ndarray, "quantities width"]
    biases: Float[np.ndarray, " quantities"]

    def predict(self, rows: Rows) -> Float[np.ndarray, "items quantities"]:
        """Returns what is read of each row, [items, quantities]."""
        return np.asarray(rows, dtype=np.float64) @ self.weights.T + self.biases


def fit_ridge_probe(rows: Rows, values: ArrayLike, *, strength: float = 1.0) -> RidgeProbe:
    """Fits a ridge regression on standardized rows. Columns that do not vary get no weight.

    Args:
        rows: [items, width].
        values: [items, quantities] what is to be read of each row.
        strength: weight of the penalty, the sum of squared weights, beside the sum of squared
            errors (sklearn's alpha).

    Raises:
        ValueError: rows or values that are not finite, not one row of values for each, or a
            strength that is not positive.

    Example:
        >>> from interp.analysis.probes import fit_ridge_probe
        >>> rows = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
        >>> probe = fit_ridge_probe(rows, 10 * rows[:, :1], strength=1e-9)
        >>> probe.predict(np.array([[1.5, 7.0]])).round(3)
        array([[15.]])
    """
    from sklearn.linear_model import Ridge

    if not strength > 0:
        raise ValueError(f"strength={strength}: expected a positive weight of the penalty")
    table = np.asarray(rows, dtype=np.float64)
    wanted = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or wanted.ndim != 2 or len(table) != len(wanted):
        raise ValueError(
            "expected rows [items, width] and values [items, quantities]; got shapes "
            f"{table.shape} and {wanted.shape}"
        )
    if not (np.isfinite(table).all() and np.isfinite(wanted).all()):
        raise ValueError("expected finite rows and values; some are NaN or infinite")
    mean, scale = _standard(table)
    model: Any = Ridge(alpha=strength).fit((table - mean) / scale, wanted)
    weights = np.atleast_2d(model.coef_) / scale
    return RidgeProbe(weights, np.atleast_1d(model.intercept_) - weights @ mean)


def _standard(table: Rows) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, " width"]]:
    """The mean of each column and what to divide it by, which is infinity where it does not vary:
    divided by that, the column is 0."""
    deviation = table.std(0)
    varies = deviation > _CONSTANT * deviation.max(initial=0.0)
    return table.mean(0), np.where(varies, deviation, np.inf)


def shared_inputs(items: Batch, others: Batch, position: int) -> Mask:
    """Returns which items begin with the same tokens as one of other items, up to a position.

    A causal model has seen nothing else of such an item when it computes the activations at this
    position, so that they are the same as those of the other item: what is read there says nothing
    about the item itself.

    Args:
        items: the items.
        others: the items that they are compared with.
        position: the last position that is compared.

    Returns:
        [items] mask.

    Raises:
        ValueError: a position past the end of either, or tokens that are predicted together, whose
            activations depend on later tokens too.

    Example:
        >>> from interp.analysis.probes import shared_inputs
        >>> items = interp.Batch(torch.tensor([[1, 2, 3], [4, 5, 6]]))
        >>> others = interp.Batch(torch.tensor([[1, 2, 9]]))
        >>> shared_inputs(items, others, position=1), shared_inputs(items, others, position=2)
        (array([ True, False]), array([False, False]))
    """
    if items.groups is not None or others.groups is not None:
        raise ValueError(
            "expected tokens that are predicted one by one; got groups of tokens that are "
            "predicted together, which also see later tokens"
        )
    shortest = min(items.length, others.length)
    if not 0 <= position < shortest:
        raise ValueError(
            f"position={position}: expected one that all items have, 0 to {shortest - 1}"
        )
    known = set(_beginnings(others, position))
    return np.array([beginning in known for beginning in _beginnings(items, position)])


def _beginnings(batch: Batch, position: int) -> list[tuple[int, ...]]:
    """The tokens of each item up to a position."""
    beginnings = batch.tokens[:, : position + 1].tolist()
    return [tuple(tokens) for tokens in beginnings]


def refuse_shared_inputs(
    items: Batch, others: Batch, position: int, *, names: tuple[str, str] = ("items", "others")
) -> None:
    """Refuses a claim about what can be read of a set of items at a position, if the model cannot
    tell some of them there from items outside the set (see `shared_inputs`).

    Without this, a claim about memorized items can hold by construction: where their inputs so far
    are also those of items that are not memorized, nothing read there can depend on the memory.

    Args:
        items: the set that the claim is about.
        others: items outside the set.
        position: the position that is read.
        names: what the two are called in the message.

    Raises:
        ValueError: some of the items share their inputs up to the position with one of the others.
            The message says how many, shows the first, and names the first position at which none
            does.

    Example:
        >>> from interp.analysis.probes import refuse_shared_inputs
        >>> items = interp.Batch(torch.tensor([[1, 2, 3], [4, 5, 6]]))
        >>> refuse_shared_inputs(items, interp.Batch(torch.tensor([[1, 2, 9]])), position=2)
    """
    shared = shared_inputs(items, others, position)
    if not shared.any():
        return
    first = int(shared.argmax())
    tokens = list(_beginnings(items, position)[first])
    about, outside = names
    raise ValueError(
        f"position {position}: {int(shared.sum())} of {len(items)} {about} begin like one of "
        f"{outside} up to there (the first is number {first}, {tokens}), so that a causal model "
        f"has the same activations for both; {_way_out(items, others, position)}"
    )


def _way_out(items: Batch, others: Batch, position: int) -> str:
    """Where none of the items shares its inputs, as an advice."""
    for later in range(position + 1, min(items.length, others.length)):
        if not shared_inputs(items, others, later).any():
            return f"read at position {later}, the first where none does, or leave those items out"
    return "leave those items out: at no later position can all be told apart"


def rows_at(
    subject: Subject, batch: Batch, sites: Sites, position: int, batch_size: int = 256
) -> dict[Site, Rows]:
    """Returns the activations of every item at one position, [items, width] in float64 per site.

    Args:
        subject: the model.
        batch: the items.
        sites: where to read.
        position: where in the sequence.
        batch_size: number of items per batch.

    Raises:
        ValueError: a position that a site does not have.

    Example:
        >>> from interp.analysis.probes import rows_at
        >>> rows = rows_at(subject, batch, "blocks.*.resid_post", position=7)
        >>> {str(site): values.shape for site, values in rows.items()}
        {'blocks.0.resid_post': (12, 32), 'blocks.1.resid_post': (12, 32)}
    """
    chosen = subject.anatomy.expand(sites)
    # Cut to the position part by part, because the values of all positions of all items may be too
    # many for the memory.
    parts: list[dict[Site, Tensor]] = []
    for part in batch.split(batch_size):
        values = values_at(subject, part, chosen)
        parts.append(at_position(values, position))
    rows: dict[Site, Rows] = {}
    for site in chosen:
        at_site = torch.cat([part[site] for part in parts])
        rows[site] = at_site.double().cpu().numpy()
    return rows


def at_position(
    values: Mapping[Site, Value], position: int
) -> dict[Site, Float[Tensor, "items width"]]:
    """Returns the rows at one position of each site's values. Raises ValueError for a position that
    a site does not have."""
    for site, value in values.items():
        if not 0 <= position < value.shape[1]:
            raise ValueError(
                f"{site} has positions 0 to {value.shape[1] - 1}; got position={position}"
            )
    rows: dict[Site, Float[Tensor, "items width"]] = {}
    for site, value in values.items():
        at_site = value[:, position]
        rows[site] = at_site.clone()  # a view would keep the values of all positions in memory
    return rows


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
    """Returns what a probe that is trained at a site reads there on other items.

    accuracy - shuffled is a selectivity in the sense of Hewitt & Liang 2019 (arXiv 1909.03368).
    Their control gives each word type a random label, which a probe can learn and carry over to the
    test items; labels that are permuted over items carry over to nothing but the items trained on.

    With groups there are two probes, each trained on one half of the groups in `train`, and each
    item is tested by the probe that saw no item of its group. A probe then cannot be right by
    recalling what it was trained on. Without groups, the caller has to keep the test items apart
    from the training items.

    Args:
        subject: the model.
        train: the items to train on, with one set of labels.
        tests: the items to test on, by name.
        sites: where to read; one probe is trained per site.
        position: where in the sequence.
        strength: weight of the penalty: see `fit_probe`.
        seed: seed of the choice of groups and of the permutation of labels.

    Returns:
        One row per site, test set (`set`) and `reading`: `accuracy`, how often the prediction is
        that reading; `shuffled`, the same for a probe that was trained on the same rows with their
        labels permuted; `n`, the number of items; `chance`, the accuracy of always predicting the
        most common label.

    Raises:
        ValueError: several sets of labels in `train`; groups in some of the sets only; or fewer
            than two groups.

    Example:
        >>> from interp.analysis.probes import Labelled, probe
        >>> last_letter = Labelled(batch, batch.tokens[:, 7])
        >>> probe(subject, last_letter, {"train": last_letter}, "embed", position=7)["accuracy"]
        0    1.0
        Name: accuracy, dtype: float64
    """
    labels, *others = map(np.asarray, train.readings.values())
    if others:
        raise ValueError(
            f"a probe is trained on one set of labels; got {', '.join(train.readings)}"
        )
    parts = folds(train, tests, seed)
    train_rows = rows_at(subject, train.batch, sites, position)
    test_rows = {
        name: rows_at(subject, test.batch, sites, position) for name, test in tests.items()
    }

    found: list[dict[str, Any]] = []
    for site, rows in train_rows.items():
        # Row 0: predictions of the probe; row 1: of the probe with permuted labels.
        predicted: dict[str, np.ndarray] = {}
        for name, test in tests.items():
            shape = (2, len(test.batch))
            predicted[name] = np.empty(shape, dtype=labels.dtype)
        for trained_on, tested_on in parts:
            own_labels = labels[trained_on]
            # A new generator each time, so that a site gives the same whatever else is probed.
            permuted = np.random.default_rng(seed).permutation(own_labels)
            for number, shown in enumerate((own_labels, permuted)):
                trained = fit_probe(rows[trained_on], shown, strength=strength)
                for name, items in tested_on.items():
                    tested = test_rows[name][site][items]
                    predicted[name][number, items] = trained.predict(tested)
        for name, test in tests.items():
            about = {**described_site(site), "set": name}
            found += [{**about, **scores} for scores in _score_readings(predicted[name], test)]
    return pd.DataFrame(found)


def described_site(site: Site) -> dict[str, Any]:
    """Returns a site as columns of a table."""
    return {"site": str(site), "block": site.block, "point": site.point}


def _score_readings(predicted: np.ndarray, test: Labelled) -> Iterator[dict[str, Any]]:
    for reading, labels in test.readings.items():
        is_reading = predicted == np.asarray(labels)  # [2, items]
        accuracy, shuffled = is_reading.mean(1).tolist()
        yield {
            "reading": reading,
            "accuracy": accuracy,
            "shuffled": shuffled,
            "n": predicted.shape[1],
            "chance": majority(labels),
        }


def majority(labels: ArrayLike) -> float:
    """Returns the share of the most common label.

    Example:
        >>> from interp.analysis.probes import majority
        >>> majority(["a", "b", "a", "a"])
        0.75
    """
    numbers, _ = pd.factorize(np.asarray(labels))
    counts = np.bincount(numbers)
    return float(counts.max() / len(numbers))


def folds(
    train: Labelled, tests: Mapping[str, Labelled], seed: int
) -> list[tuple[Mask, dict[str, Mask]]]:
    """Returns which items a probe is trained on, and which items of each test set it is tested on,
    for each probe.

    Without groups there is one probe, trained and tested on all items. With groups there are two,
    such that each item is tested once, by the probe that is trained on no item of its group.

    Args:
        train: the items to train on.
        tests: the items to test on, by name.
        seed: seed of the choice of groups.

    Returns:
        For each probe a mask over the training items and a mask over each test set.

    Raises:
        ValueError: groups in some of the sets only, or fewer than two.
    """
    every_set = (train, *tests.values())
    has_groups = {each.groups is not None for each in every_set}
    if len(has_groups) > 1:
        raise ValueError("expected groups of the train and of every test set, or of none")
    if train.groups is None:
        all_tests = {name: _all_items(each) for name, each in tests.items()}
        return [(_all_items(train), all_tests)]

    names = pd.unique(np.asarray(train.groups))
    if len(names) < 2:
        raise ValueError(
            "expected at least two groups to train on one half and test on the other; "
            f"got {len(names)}"
        )
    shuffled = np.random.default_rng(seed).permutation(names)
    middle = len(names) // 2
    half = shuffled[:middle]
    train_in_half = _in_groups(train, half)
    tests_in_half = {name: _in_groups(each, half) for name, each in tests.items()}
    tests_outside = {name: ~in_half for name, in_half in tests_in_half.items()}
    # Each probe is tested on the half of the groups that it was not trained on.
    first = (train_in_half, tests_outside)
    second = (~train_in_half, tests_in_half)
    return [first, second]


def _all_items(items: Labelled) -> Mask:
    return np.ones(len(items.batch), dtype=bool)


def _in_groups(items: Labelled, groups: np.ndarray) -> Mask:
    own = pd.Series(np.asarray(items.groups))
    return own.isin(groups).to_numpy()
