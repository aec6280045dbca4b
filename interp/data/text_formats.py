"""The texts in one file, by its format: plain text, JSON, CSV or parquet, also compressed.

All but plain text and `.json` are read as a stream, in memory that does not grow with the file.

Files here are read by what each format's own library gives, and not by `datasets`, which reads data
sets from the hub (see `hub_texts`). Measured with `datasets` 5.2: its CSV reader stops without a
word at the end of a truncated .zst file, finds no rows in a file with brackets in its name, fails
on a parquet file without rows, names neither file nor line of broken JSON, and leaves lock files in
the user's cache; and `load_dataset` sends a request to the hub before it opens a local file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from interp.errors import closest
from interp.subject.batch import check_text

SUFFIXES = (
    ".txt",
    ".md",
    ".rst",
    ".py",
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
)
# Each may follow one of SUFFIXES: .jsonl.zst
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

_JSON_LINES = (".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINE_END = re.compile(r"\r\n|\r|\n")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SPACE = re.compile(r"\s*")
# Few, because a text may be a whole book.
_ROWS_AT_ONCE = 64
# Bytes of a parquet file that are read at once: without a limit, a whole column of a row group is.
_BUFFER = 2**20
# Characters; the csv module's own limit of 131,072 is shorter than many documents.
_LONGEST_FIELD = 2**30


def has_text_name(file: Path) -> bool:
    """Returns whether a file's name ends in one of SUFFIXES, with or without a compression.

    Example:
        >>> from pathlib import Path
        >>> from interp.data.text_formats import has_text_name
        >>> [has_text_name(Path(name)) for name in ("a.jsonl.zst", "b.TXT", "c.tar.gz")]
        [True, True, False]
    """
    return _format(file) in SUFFIXES


def texts_of(file: Path, column: str, first: int = 0) -> Iterator[str]:
    """Yields the texts of a file, in the format that its name says.

    Args:
        file: the file.
        column: which column of a table, or field of a JSON object, holds the text.
        first: number of the first text. Groups of rows of a parquet file that come before it are
            not read; all else is read and left out.

    Raises:
        ValueError: the file is damaged or not UTF-8, or a part of it holds no text; the message
            gives file and line or row.

    Example:
        >>> import pathlib, tempfile
        >>> from interp.data.text_formats import texts_of
        >>> file = pathlib.Path(tempfile.mkdtemp(), "a.csv")
        >>> _ = file.write_text('id,text\\n1,one\\n2,"two, three"\\n')
        >>> list(texts_of(file, "text"))
        ['one', 'two, three']
    """
    if _format(file) == ".parquet":
        return _texts_of_parquet(file, column, first)
    return islice(_all_texts_of(file, column), first, None)


def _all_texts_of(file: Path, column: str) -> Iterator[str]:
    kind = _format(file)
    if kind in _JSON_LINES:
        yield from _texts_of_lines(file, column)
    elif kind == ".json":
        yield from _texts_of_json(file, column)
    elif kind in _DELIMITERS:
        yield from _texts_of_csv(file, column)
    else:
        yield content(file)


def missing_column(file: Path, column: str) -> str | None:
    """Returns what is wrong if a file is a table without a column; None if it is not.

    Args:
        file: the file.
        column: name of the column.

    Raises:
        ValueError: the table cannot be read.
    """
    kind = _format(file)
    if kind in _DELIMITERS:
        with closing(_lines(file)) as lines:
            _, header = _next_row(_rows(lines, kind), file)
    elif kind == ".parquet":
        with _parquet(file) as table:
            header = table.schema_arrow.names
    else:
        return None
    return no_such_column(str(file), column, header or [])


def no_such_column(place: str, column: str, columns: Sequence[str]) -> str | None:
    """Returns what is wrong if a column is not among those of a table, or is there twice; None if
    it is there once.

    Args:
        place: what the table is called in the message.
        column: name of the column.
        columns: names of all columns.

    Example:
        >>> from interp.data.text_formats import no_such_column
        >>> no_such_column("a.csv", "text", ["id", "texts"])
        "a.csv has no column 'text': its columns are id, texts; name one, such as 'texts', ..."
    """
    found = columns.count(column)
    if found > 1:
        return f"{place} has {found} columns {column!r}: expected one; rename the others"
    if found:
        return None
    if not columns:
        return f"{place} has no column {column!r}, and no other: expected a table of texts"
    nearest = closest(column, columns)
    return (
        f"{place} has no column {column!r}: its columns are {', '.join(columns)}; "
        f"name one, such as {nearest!r}, by column= (--column)"
    )


def is_other_json(file: Path, column: str) -> bool:
    """Returns whether a file is a `.json` file of something else than texts, such as the settings
    of a tool.

    Args:
        file: the file.
        column: which field of an object would hold a text.
    """
    if _format(file) != ".json":
        return False
    try:
        next(_texts_of_json(file, column), None)
    except ValueError:
        return True
    return False


def content(file: Path) -> str:
    """Returns what a text file holds, with its line ends as they are.

    Args:
        file: the file, also compressed.

    Raises:
        ValueError: the file is not UTF-8 text; the message gives byte and line.
    """
    with _opened(file) as stream:
        return _decoded(stream.read(), file)


def string_of(value: Any, place: str, column: str) -> str:
    """Returns a value of a table's column, which has to be a text.

    Args:
        value: the value.
        place: where it stands, for the message.
        column: name of the column.

    Raises:
        ValueError: it is not a text.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"{place}: expected a text in column {column!r}, got {value!r:.40}; "
            "leave out the rows that have none"
        )
    return _checked(value, place)


def _format(file: Path) -> str:
    """The suffix that says the format: of `a.jsonl.zst`, that is `.jsonl`."""
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED:
        return suffix
    inner = Path(file.stem).suffix.lower()
    # A parquet file is compressed within, and is not read from front to back.
    return suffix if inner == ".parquet" else inner


@contextmanager
def _opened(file: Path) -> Generator[BinaryIO]:
    """The bytes of a file, decompressed as they are read."""
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED:
        with file.open("rb") as plain:
            yield plain
        return

    import pyarrow as pa

    # Even an empty text has some bytes when it is compressed: this is an interrupted download.
    if not file.stat().st_size:
        raise ValueError(
            f"{file} cannot be decompressed (it has no bytes): it is damaged, cut short, or not a "
            f"{suffix} file; copy it again"
        )
    # pyarrow reports a file that ends too early; zstandard returns what there is, as if it were all
    with pa.input_stream(str(file), compression=COMPRESSED[suffix]) as compressed:
        stream: Any = io.BufferedReader(compressed)
        try:
            yield stream
        except OSError as error:
            raise ValueError(
                f"{file} cannot be decompressed ({error}): it is damaged, cut short, or not a "
                f"{suffix} file; copy it again"
            ) from error


def _decoded(raw: bytes, file: Path, first_byte: int = 0, first_line: int = 1) -> str:
    """Bytes of a file as text, of which the first has the number `first_byte` in the file."""
    way_out = "save it as UTF-8, or leave it out"
    if first_byte == 0 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{file} is not UTF-8 text (byte 0): it begins like UTF-16; {way_out}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        raise ValueError(
            f"{file} is not UTF-8 text (byte {first_byte + error.start}) in line {line}: {way_out}"
        ) from error
    # UTF-16 without a mark, and many binary files, are valid UTF-8 with zeros between letters.
    if "\0" in text:
        first_zero = raw.index(0)
        line = first_line + raw.count(b"\n", 0, first_zero)
        raise ValueError(
            f"{file} is not text (byte {first_byte + first_zero} is zero) in line {line}: it may "
            f"be UTF-16 or binary; {way_out}"
        )
    # A mark of UTF-8 at the start of a file is no part of its text.
    return text.removeprefix("\ufeff") if first_byte == 0 else text


def _lines(file: Path) -> Generator[str]:
    """Each line of a file with its end, read one after the other."""
    first_byte = 0
    number = 0
    with _opened(file) as stream:
        for raw in stream:
            text = _decoded(raw, file, first_byte, number + 1)
            first_byte += len(raw)
            # Not splitlines: a string in JSON may hold U+2028 and other characters at which it
            # would cut.
            for line in _LINE.findall(text):
                number += 1
                yield line


def _texts_of_lines(file: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            item: Any = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or with a huge number or nested too deeply
            item = None
        yield _text(item, place, line.rstrip("\r\n"), column)


def _texts_of_json(file: Path, column: str) -> Iterator[str]:
    """The texts of JSON values that follow one another, each an object, a string, or a list."""
    values = content(file)
    decoder = json.JSONDecoder()
    line = 1
    end = 0
    while True:
        position = _after_space(values, end)
        line += len(_LINE_END.findall(values, end, position))
        if position == len(values):
            return
        place = f"{file}, line {line}"
        try:
            value, end = decoder.raw_decode(values, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: expected JSON, got {error}") from error
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield _text_or_string(item, f"{place}, item {number}", column)
        else:
            yield _text_or_string(value, place, column)
        line += len(_LINE_END.findall(values, position, end))


def _after_space(values: str, position: int) -> int:
    """The position of the first character from a position on that is not white space."""
    found = _SPACE.match(values, position)
    return position if found is None else found.end()


def _text_or_string(item: Any, place: str, column: str) -> str:
    named = {column: item} if isinstance(item, str) else item
    return _text(named, place, repr(item), column)


def _text(item: Any, place: str, shown: str, column: str) -> str:
    """The text of a JSON object."""
    text = item.get(column) if isinstance(item, dict) else None
    if not isinstance(text, str):
        fields = ""
        if isinstance(item, dict) and column not in item:
            fields = (
                f"; its fields are {', '.join(item) or 'none'}: call the one to read {column}, or "
                "name it by column= (--column)"
            )
        raise ValueError(
            f'{place}: expected a JSON object with a string "{column}", got {shown[:40]!r}{fields}'
        )
    return _checked(text, place)


def _checked(text: str, place: str) -> str:
    try:
        check_text(text)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return text


def _texts_of_csv(file: Path, column: str) -> Iterator[str]:
    with closing(_lines(file)) as lines:
        rows = _rows(lines, _format(file))
        _, header = _next_row(rows, file)
        _refuse(no_such_column(str(file), column, header or []))
        assert header is not None  # a file without a header has no such column
        wanted = header.index(column)
        while True:
            line, row = _next_row(rows, file)
            if row is None:
                return
            if len(row) != len(header):
                raise ValueError(
                    f"{file}, line {line}: expected {len(header)} fields, as in the first line, "
                    f"got {len(row)}; put a field that holds the delimiter in quotation marks"
                )
            yield _checked(row[wanted], f"{file}, line {line}")


def _rows(lines: Iterator[str], kind: str) -> Any:
    return csv.reader(lines, delimiter=_DELIMITERS[kind], strict=True)


def _next_row(rows: Any, file: Path) -> tuple[int, list[str] | None]:
    """The next row that is not empty, with the number of its first line; None at the end."""
    # The csv module gives an empty list for an empty line.
    row: list[str] | None = []
    line = 0
    while row == []:
        # Counts lines of the file, not rows: a field in quotation marks may hold several.
        line = rows.line_num + 1
        # The limit is one for the whole process, so it is set for no longer than it is needed.
        limit = csv.field_size_limit(_LONGEST_FIELD)
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {line}: {error}; expected fields with "
                f"{rows.dialect.delimiter!r} between, and quotation marks that are closed"
            ) from error
        finally:
            csv.field_size_limit(limit)
    return line, row


def _texts_of_parquet(file: Path, column: str, first: int) -> Iterator[str]:
    import pyarrow as pa

    with _parquet(file) as table:
        schema = table.schema_arrow
        _refuse(no_such_column(str(file), column, schema.names))
        kind = schema.field(column).type
        value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value_kind) or pa.types.is_large_string(value_kind)):
            raise ValueError(f"{file}: expected texts in column {column!r}, got {kind}")
        groups, row = _groups_from(table, first)
        for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[column]):
            for value in batch.column(0).to_pylist():
                if row >= first:
                    yield string_of(value, f"{file}, row {row}", column)
                row += 1


def _groups_from(table: Any, first: int) -> tuple[list[int], int]:
    """The groups of rows of a parquet file without those before a row, and the number of the first
    row in them."""
    row = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if row + rows > first:
            return list(range(group, table.num_row_groups)), row
        row += rows
    return [], row


@contextmanager
def _parquet(file: Path) -> Generator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open("rb") as stream:
        try:
            yield pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{file} is not a whole parquet file ({error}): copy or write it again"
            ) from error


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise ValueError(problem)
