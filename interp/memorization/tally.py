"""Counts of a scan that is larger than memory: per document and as histograms; and which windows
are kept as rows."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import closest

_MEASURES = (
    "exact",
    "matched",
    "run",
    "accuracy",
    "log_p",
    "log_ratio",
    "count",
    "count_suffix",
)
_RELATIONS: dict[str, Callable[[Any, float], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|==|>|<)\s*(\S+)\s*")

# Bins of the log-probability, in nats per token: what is less likely than the last is in it.
_BIN = 0.25
_BINS = 81


@dataclass(frozen=True)
class Keep:
    """Which windows of a scan are kept as rows: those of which a measure is large, or small.

    Attributes:
        measure: a measure of `interp.scan`, such as "accuracy" or "log_p".
        relation: ">=", "<=", "==", ">" or "<".
        value: what the measure is compared with, in its own unit.

    Example:
        >>> from interp.memorization.tally import Keep
        >>> Keep.parse("accuracy>=0.5")
        Keep(measure='accuracy', relation='>=', value=0.5)
    """

    measure: str
    relation: str
    value: float

    @classmethod
    def parse(cls, condition: str) -> Keep:
        """Reads a condition, such as "accuracy>=0.5" or "log_p > -20".

        Args:
            condition: a measure, a relation, and a number.

        Raises:
            ValueError: it is not a condition, or of something that a scan does not measure.
        """
        found = _CONDITION.fullmatch(condition)
        value = None if found is None else _number(found[3])
        if found is None or value is None:
            raise ValueError(
                f"keep {condition!r}: expected a measure, a relation and a number, such as "
                "'accuracy>=0.5' or 'log_p>-20'"
            )
        if found[1] not in _MEASURES:
            raise ValueError(
                f"keep {condition!r}: a scan does not measure {found[1]!r}, only "
                f"{', '.join(_MEASURES)}; did you mean {closest(found[1], _MEASURES)!r}?"
            )
        return cls(found[1], found[2], value)

    def __str__(self) -> str:
        # All digits: a scan is continued where this is the same.
        value = repr(self.value).removesuffix(".0")
        return f"{self.measure}{self.relation}{value}"

    def check(self, *, reference: bool, counts: bool) -> None:
        """Checks that the measure is there.

        Args:
            reference: whether the scan has a reference model.
            counts: whether it has counts of the training data.

        Raises:
            ValueError: the measure needs what the scan does not have.
        """
        if self.measure == "log_ratio" and not reference:
            raise ValueError(f"keep {self}: log_ratio needs a reference model (reference=)")
        if self.measure in ("count", "count_suffix") and not counts:
            raise ValueError(f"keep {self}: {self.measure} needs counts of texts (counts=)")

    def __call__(self, rows: pd.DataFrame) -> np.ndarray:
        """Returns whether each row is kept, [rows].

        Args:
            rows: measured windows, as in `interp.scan`.
        """
        values = rows[self.measure].to_numpy().astype(np.float64)
        return _RELATIONS[self.relation](values, self.value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # No measure is larger or smaller than NaN: nothing would be kept.
    return None if np.isnan(value) else value


DOCUMENT_COLUMNS = ["text", "windows", "exact", "right", "longest", "log_p", "kept"]

Document = tuple[int, int, int, int, int, float, int]
"""Counts of one document, in the order of DOCUMENT_COLUMNS."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of the windows of a scan, which are never changed: a new one is made for each batch.

    Attributes:
        keep: which windows are kept as rows.
        length: tokens of the suffix of each window.
        windows: how many windows there are, by measure: [values] for `matched`, `run` and `right`
            (tokens that are the most likely ones), from 0 to `length`; [bins] for `log_p` in nats
            per token, in bins of 0.25, the last of which has no end.
        complete: documents of which all windows are counted, and that are not written yet.
        begun: the document whose windows came last; None if there is none.
    """

    keep: Keep
    length: int
    windows: Mapping[str, np.ndarray]
    complete: tuple[Document, ...] = ()
    begun: Document | None = None

    @classmethod
    def empty(cls, keep: Keep, length: int) -> Tally:
        """Returns the counts of no window."""
        zeros = np.zeros(length + 1, dtype=np.int64)
        windows = {"matched": zeros, "run": zeros, "right": zeros}
        return cls(keep, length, windows | {"log_p": np.zeros(_BINS, dtype=np.int64)})

    def plus(self, rows: pd.DataFrame) -> Tally:
        """Returns the counts with those of more windows, in the order of the corpus.

        Args:
            rows: measured windows, as in `interp.scan`.
        """
        # The accuracy is a number of hits divided by the length; rounding takes that number back.
        right = np.rint(rows["accuracy"].to_numpy() * self.length).astype(np.int64)
        per_token = -rows["log_p"].to_numpy() / self.length
        # Rounding can bring a log-probability slightly above 0.
        bins = np.clip(np.floor(per_token / _BIN), 0, _BINS - 1).astype(np.int64)
        values = {
            "matched": rows["matched"].to_numpy(),
            "run": rows["run"].to_numpy(),
            "right": right,
            "log_p": bins,
        }
        windows: dict[str, np.ndarray] = {}
        for measure, found in values.items():
            before = self.windows[measure]
            windows[measure] = before + np.bincount(found, minlength=len(before))

        complete = list(self.complete)
        begun = self.begun
        measured = zip(
            rows["text"].tolist(),
            rows["exact"].tolist(),
            right.tolist(),
            rows["matched"].tolist(),
            rows["log_p"].tolist(),
            self.keep(rows).tolist(),
            strict=True,
        )
        for text, exact, hits, matched, log_p, kept in measured:
            # Windows come in the order of the corpus: a document is complete when the next begins.
            if begun is not None and begun[0] == text:
                _, count, all_exact, all_right, longest, total, all_kept = begun
                begun = (
                    text,
                    count + 1,
                    all_exact + exact,
                    all_right + hits,
                    max(longest, matched),
                    total + log_p,
                    all_kept + kept,
                )
                continue
            if begun is not None:
                complete.append(begun)
            begun = (text, 1, int(exact), hits, matched, log_p, int(kept))
        return replace(self, windows=windows, complete=tuple(complete), begun=begun)

    def ended(self) -> Tally:
        """Returns the counts, given that no window follows of the document that came last."""
        last = () if self.begun is None else (self.begun,)
        return replace(self, complete=(*self.complete, *last), begun=None)

    def documents(self) -> pd.DataFrame:
        """Returns the documents that are complete and not written yet, one in a row."""
        return pd.DataFrame(list(self.complete), columns=DOCUMENT_COLUMNS)

    def without_documents(self) -> Tally:
        """Returns the counts, given that the documents are written."""
        return replace(self, complete=())

    def joined(self, other: Tally) -> Tally:
        """Returns the counts of the windows of two scans, without their documents."""
        windows = {name: counts + other.windows[name] for name, counts in self.windows.items()}
        return replace(self, windows=windows, complete=(), begun=None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts, without documents that are complete, as JSON can hold them."""
        windows = {measure: counts.tolist() for measure, counts in self.windows.items()}
        return {"windows": windows, "begun": self.begun}

    def with_counts(self, fields: Mapping[str, Any]) -> Tally:
        """Returns a tally of the same windows to keep with the counts that `to_dict` returned."""
        windows = {measure: np.array(counts) for measure, counts in fields["windows"].items()}
        begun = None if fields["begun"] is None else tuple(fields["begun"])
        return replace(self, windows=windows, begun=begun)


def histograms(tally: Tally) -> pd.DataFrame:
    """Returns the histograms of a tally as one table.

    Returns:
        One row per value or bin: `measure`, `low` and `high` (its limits; the same number for
        measures that are counts of tokens), and how many `windows`.
    """
    tables: list[pd.DataFrame] = []
    for measure, counts in tally.windows.items():
        if measure == "log_p":
            # Bins count nats downwards from 0, so that `high` falls from row to row.
            high = -_BIN * np.arange(_BINS)
            low = np.append(high[1:], -np.inf)
            name = "log_p per token"
        else:
            high = np.arange(tally.length + 1, dtype=np.float64)
            low = high
            name = measure
        tables.append(pd.DataFrame({"measure": name, "low": low, "high": high, "windows": counts}))
    return pd.concat(tables, ignore_index=True)
