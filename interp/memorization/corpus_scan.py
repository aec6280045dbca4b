"""A scan of a corpus that is larger than memory: counts per document, histograms, and the rows of
the windows that are memorized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.data.corpus_counts import Counts
from interp.data.tokenized import Share
from interp.files import replaced, writable
from interp.memorization.scan_windows import CorpusWindows, Cut
from interp.memorization.shards import FinishedScan, finished_scan, no_rows, shares_of
from interp.memorization.tally import DOCUMENT_COLUMNS, Keep, Tally, histograms
from interp.memorization.window_scanner import WindowScanner, check_sizes
from interp.reporting.plotting import matched_histogram, save
from interp.subject.subject import Subject
from interp.subject.text_rows import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scan_corpus(
    subject: Subject,
    texts: Iterable[Text],
    folder: str | Path,
    prefix: int = 32,
    length: int = 32,
    *,
    keep: str = "accuracy>=0.5",
    stride: int | None = None,
    batch_size: int = 16,
    decode_from: float = 2.0,
    bos: bool = True,
    reference: Subject | None = None,
    counts: Counts | None = None,
    share: Share | None = None,
) -> CorpusScan:
    """Measures what `interp.scan` does, in memory that does not grow with the corpus.

    The windows of which `keep` is true are kept as rows; all others are counted, per document and
    in histograms. What is finished is in the folder: the same call goes on where an interrupted one
    was, without reading again what a stream can skip.

    Args:
        subject: the model.
        texts: see `interp.scan`; read one at a time. A streamed data set of `datasets` is continued
            at the row by its own state.
        folder: where counts and rows are kept.
        prefix: tokens given to the model.
        length: tokens of the suffix.
        keep: a measure of `interp.scan`, a relation and a number, such as "log_p>-20" (nats per
            suffix).
        decode_from: see `interp.scan`. By default no window is decoded, which only `similarity`
            needs: in text that is easy to predict it would take longer than all else.
        stride, batch_size, bos, reference, counts, share: see `interp.scan`. Shares are joined by
            `CorpusScan.read`.

    Returns:
        The finished scan, which reads its tables from the folder.

    Raises:
        ValueError: as in `interp.scan`; or `keep` is not a condition on something that is measured.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> found = interp.scan_corpus(subject, texts, folder, prefix=8, length=8, keep="exact==1")
        >>> found.windows, found.exact, len(found.kept())
        (24, 12, 12)
        >>> [list(documents["exact"]) for documents in found.documents()]
        [[3, 3, 3, 3, 0, 0, 0, 0]]
    """
    check_sizes(prefix, length, stride, batch_size)
    condition = Keep.parse(keep)
    condition.check(reference=reference is not None, counts=counts is not None)
    start_tokens = subject.bos if bos else ()
    cut = Cut(prefix + length, length if stride is None else stride, start_tokens, share)
    scanner = WindowScanner(
        subject, cut, prefix, decode_from, batch_size, reference=reference, counts=counts
    )
    corpus = CorpusWindows(subject, texts, cut)
    scanner.run(corpus, folder, Tally.empty(condition, length))
    return CorpusScan((finished_scan(Path(folder)),))


def keeps_some(folder: str | Path) -> bool:
    """Returns whether a folder holds a finished scan that keeps some rows only.

    Args:
        folder: the folder of a scan.

    Raises:
        ValueError: it holds no finished scan.
    """
    return "keep" in finished_scan(Path(folder)).about


@dataclass(frozen=True)
class CorpusScan:
    """What `scan_corpus` found, in one folder or in those of several shares.

    Attributes:
        scans: the scans, in the order of their shares.

    Example:
        >>> import tempfile
        >>> from interp.data.tokenized import Share
        >>> folders = [tempfile.mkdtemp() for _ in range(2)]
        >>> for index, folder in enumerate(folders):
        ...     share = Share(index, of=2)
        ...     _ = interp.scan_corpus(subject, texts, folder, prefix=8, length=8, share=share)
        >>> found = interp.CorpusScan.read(folders)
        >>> found.texts, found.windows, found.exact
        (8, 24, 12)
    """

    scans: tuple[FinishedScan, ...]

    @classmethod
    def read(cls, folders: Iterable[str | Path]) -> CorpusScan:
        """Returns the scan that several processes have made of their shares.

        Args:
            folders: those of all shares, in any order.

        Raises:
            ValueError: they are not all shares of one finished scan, see
                `interp.memorization.shards.merge`; or they hold all rows.
        """
        scans = shares_of(folders)
        if "keep" not in scans[0].about:
            raise ValueError(
                f"{scans[0].folder} holds all rows: join the shares by "
                "interp.memorization.shards.merge"
            )
        return cls(tuple(scans))

    @property
    def about(self) -> dict[str, Any]:
        """The settings of the scan."""
        return {name: value for name, value in self.scans[0].about.items() if name != "model parts"}

    @property
    def texts(self) -> int:
        """How many texts were read."""
        return sum(scan.end["texts"] for scan in self.scans)

    @property
    def skipped(self) -> int:
        """How many of them are shorter than one window."""
        return sum(scan.end["skipped"] for scan in self.scans)

    @property
    def windows(self) -> int:
        """How many windows were measured."""
        return int(self._tally.windows["matched"].sum())

    @property
    def exact(self) -> int:
        """How many windows are extracted: their greedy continuation is the whole suffix."""
        # The last count is of windows that match to the end of the suffix.
        return int(self._tally.windows["matched"][-1])

    @property
    def accuracy(self) -> float:
        """The share of tokens that are the most likely ones; NaN if there is no window."""
        right = self._tally.windows["right"]
        tokens = self.windows * self._tally.length
        # `right[k]` windows have k right tokens each.
        return float((right * range(len(right))).sum()) / tokens if tokens else float("nan")

    @property
    def histograms(self) -> pd.DataFrame:
        """How many windows there are by value of each measure.

        One row per value or bin: `measure` (`matched`, `run` and `right`, in tokens; `log_p per
        token`, in nats), its limits `low` and `high`, and `windows`.
        """
        return histograms(self._tally)

    @property
    def _tally(self) -> Tally:
        empty = Tally.empty(Keep.parse(self.about["keep"]), self.about["length"])
        total = empty
        for scan in self.scans:
            # A share may have no window at all.
            if scan.tally is not None:
                total = total.joined(empty.with_counts(scan.tally))
        return total

    def kept(self) -> pd.DataFrame:
        """Returns the rows of the windows that are kept, as `interp.scan` does, in memory."""
        tables = [table for scan in self.scans for table in scan.tables("shard")]
        if not tables:
            return no_rows()
        frame = pd.concat(tables, ignore_index=True)
        # Shares take turns with the texts, so that the rows of several folders interleave.
        return frame.sort_values(["text", "start"], kind="stable", ignore_index=True)

    def documents(self) -> Iterator[pd.DataFrame]:
        """Yields the counts of all documents that have a window, some at a time, in the order of
        the corpus.

        Yields:
            Frames with one row per document: its number (`text`), how many `windows` it has and how
            many are `exact` and are `kept`, how many of all tokens are `right` (the most likely
            ones), the most tokens before the first miss (`longest`), and the sum of `log_p` over
            its windows, in nats.
        """
        tables = [scan.tables("documents") for scan in self.scans]
        waiting = [next(of_scan, None) for of_scan in tables]
        while any(table is not None for table in waiting):
            # Up to here all scans are read: what follows in each has larger numbers.
            read_to = min(int(table["text"].iloc[-1]) for table in waiting if table is not None)
            taken: list[pd.DataFrame] = []
            for number, table in enumerate(waiting):
                if table is None:
                    continue
                count = int(table["text"].searchsorted(read_to, side="right"))
                taken.append(table.iloc[:count])
                rest = table.iloc[count:]
                waiting[number] = rest if len(rest) else next(tables[number], None)
            joined = pd.concat(taken, ignore_index=True)
            yield joined.sort_values("text", ignore_index=True)

    def plot(self) -> Figure:
        """Draws how many windows were continued how far without a mistake.

        Raises:
            ValueError: there is no window.
        """
        return matched_histogram(self._tally.windows["matched"])

    def save(self, folder: str | Path) -> None:
        """Writes windows.parquet (the rows that are kept), documents.parquet, histograms.csv and
        scan.png.

        Args:
            folder: where to; it is made if it does not exist.

        Raises:
            OSError: the folder cannot be written to.
            ValueError: there is no window.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        place = writable(folder)
        save(self.plot(), place / "scan.png")
        with replaced(place / "windows.parquet") as temporary:
            self.kept().to_parquet(temporary)
        with replaced(place / "histograms.csv") as temporary:
            self.histograms.to_csv(temporary, index=False)
        empty = pd.DataFrame(columns=DOCUMENT_COLUMNS).astype("int64").astype({"log_p": "float64"})
        schema = pa.Schema.from_pandas(empty, preserve_index=False)
        with (
            replaced(place / "documents.parquet") as temporary,
            pq.ParquetWriter(temporary, schema) as writer,
        ):
            for documents in self.documents():
                writer.write_table(pa.Table.from_pandas(documents, schema, preserve_index=False))
