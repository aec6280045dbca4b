"""Laws of the texts of tables, compressed files and data sets on the hub: what was written is read,
as a stream, and what is damaged is named."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data import hub_texts, text_formats
from interp.data.hub_texts import is_hub_id
from interp.data.texts import find_texts, read_texts

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
# What CSV, whose lines may end anyhow, can hold; text without zeros and surrogates.
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.lists(st.text(letters, max_size=20), max_size=5)


def json_lines(texts: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts).encode()


def in_csv(texts: list[str], delimiter: str = ",") -> bytes:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter)
    writer.writerows([("id", "text"), *enumerate(texts)])
    return written.getvalue().encode()


@settings(max_examples=40)
@given(texts)
def test_what_is_written_to_a_table_is_read(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tables")
    (folder / "a.csv").write_bytes(in_csv(texts))
    (folder / "b.TSV").write_bytes(in_csv(texts, "\t"))
    pd.DataFrame({"id": range(len(texts)), "text": pd.Series(texts, dtype="str")}).to_parquet(
        folder / "c.parquet"
    )
    assert list(read_texts([folder])) == texts * 3


def test_a_csv_is_read_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbftext,n\r\n"one\r\n, ""two""",1\r\n007,2\r\nNA,3\r\n,4\r\n\r\n"x\ry",5\r\n'
    )
    assert list(read_texts([tmp_path])) == ['one\r\n, "two"', "007", "NA", "", "x\ry"]


def test_a_field_may_be_long_and_the_limit_of_the_process_stays(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_bytes(in_csv(["long " * 100_000]))
    stream = read_texts([tmp_path])
    assert len(next(stream)) == 500_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_are_read_as_the_others(tmp_path, ending):
    parts = {
        "a.jsonl": json_lines(["one", "two"]),
        "b.csv": in_csv(["three"]),
        "c.txt": b"four\r\n",
        "d.json": b'["five"]',
    }
    for name, content in parts.items():
        (tmp_path / (name + ending)).write_bytes(COMPRESS[ending](content))
    assert list(read_texts([tmp_path])) == ["one", "two", "three", "four\r\n", "five"]
    twice = COMPRESS[ending](parts["a.jsonl"]) * 2  # as `cat` joins such files
    (tmp_path / f"a.jsonl{ending}").write_bytes(twice)
    assert list(read_texts([tmp_path / f"a.jsonl{ending}"])) == ["one", "two"] * 2


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_file_that_is_cut_short_is_named(tmp_path, name, ending):
    noise = [os.urandom(40).hex() for _ in range(2000)]
    content = in_csv(noise) if name == "a.csv" else json_lines(noise)
    whole = COMPRESS[ending](content)
    file = tmp_path / (name + ending)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name}{ending} cannot be decompressed .*: it is damag"):
        list(read_texts([file]))
    file.write_bytes(b"not compressed at all")
    with pytest.raises(ValueError, match=rf"cut short, or not a {ending} file; copy it again"):
        list(read_texts([file]))


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_compressed_file_without_a_byte_is_no_empty_text(tmp_path, ending):
    file = tmp_path / f"a.txt{ending}"
    file.write_bytes(COMPRESS[ending](b""))
    assert list(read_texts([file])) == [""]
    file.write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"a.txt{ending} cannot be decompressed \(it has no bytes"
    ):
        list(read_texts([file]))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_that_is_there_twice_is_not_chosen_from(tmp_path, name):
    file = tmp_path / name
    if name == "a.csv":
        file.write_text("text,id,text\none,1,two\n")
    else:
        columns = [pa.array(["one"]), pa.array(["two"])]
        pq.write_table(pa.table(columns, names=["text", "text"]), file)
    with pytest.raises(ValueError, match=rf"{name} has 2 columns 'text': expected one; rename"):
        find_texts([file])


@pytest.mark.parametrize("bad", ["[" * 100_000, '{"text": "a", "n": ' + "1" * 5000 + "}"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_python_cannot_hold_is_named_with_its_line(tmp_path, name, bad):
    file = tmp_path / name
    file.write_text('{"text": "fine"}\n' + bad)
    texts = read_texts([file])
    assert next(texts) == "fine"
    with pytest.raises(ValueError, match=rf"{name}, line 2: expected "):
        next(texts)


@pytest.mark.parametrize("column", ["body", "meta.text"])
def test_another_column_is_read_where_it_is_named(tmp_path, column):
    rows = {"text": ["no"], column: ["yes"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "b.csv", index=False)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "no", column: "yes"}))
    (tmp_path / "d.json").write_text(json.dumps([{column: "yes"}, "yes"]))
    assert list(read_texts([tmp_path], column=column)) == ["yes"] * 5


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_a_table_without_the_column_is_named_at_once(tmp_path, name):
    frame = pd.DataFrame({"id": [1], "content": ["x"], "texts": ["y"]})
    file = tmp_path / name
    if name == "a.parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False)
    without = r"has no column 'text': its columns are id, content, texts; name one, such as 'texts'"
    with pytest.raises(ValueError, match=without):
        find_texts([file])
    # Of a folder, only tables with the column are read.
    with pytest.raises(ValueError, match=rf"holds no text file: .* it holds 1 \S+; \S+ {without}"):
        find_texts([tmp_path])
    (tmp_path / "b.txt").write_text("other")
    with pytest.warns(UserWarning, match="1 passed over"):
        assert list(read_texts([tmp_path])) == ["other"]


def test_formats_in_one_folder_are_read_each_by_its_own(tmp_path):
    pd.DataFrame({"text": ["two"]}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "a.jsonl").write_bytes(json_lines(["one"]))
    (tmp_path / "c[1] #.csv").write_bytes(in_csv(["three"]))
    assert list(read_texts([tmp_path])) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"text,n\na,1\nb,2,3\n", r"line 3: expected 2 fields, as in the first line, got 3"),
        (b"n,text\n1,a\n2\n", r"line 3: expected 2 fields, as in the first line, got 1"),
        (b'text,n\n"a\nb",1\n"c,2\n', r"line 4: unexpected end of data; expected fields with ','"),
        (b'text,n\n"a" b,1\n', r"line 2: .* expected after '\"'; expected fields with ','"),
        (b"text,n\na,1\ncaf\xe9,2\n", r"is not UTF-8 text \(byte 14\) in line 3: save it as UTF-8"),
        ("text,n\n".encode("utf-16"), r"it begins like UTF-16"),
        (b"", r"has no column 'text', and no other: expected a table of texts"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(tmp_path, content, match):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.csv.*{match}"):
        list(read_texts([file]))


def test_a_csv_with_a_header_alone_and_a_parquet_without_rows_hold_no_text(tmp_path):
    (tmp_path / "a.csv").write_text("text\n")
    pd.DataFrame({"text": pd.Series([], dtype="str")}).to_parquet(tmp_path / "b.parquet")
    pq.ParquetWriter(tmp_path / "c.parquet", pa.schema({"text": pa.string()})).close()
    assert list(read_texts([tmp_path])) == []


def test_what_is_no_text_in_a_parquet_is_named(tmp_path):
    file = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["a", None]}).to_parquet(file)
    texts = read_texts([file])
    assert next(texts) == "a"
    with pytest.raises(
        ValueError, match=r"a.parquet, row 1: expected a text in column 'text', got"
    ):
        next(texts)
    pd.DataFrame({"text": [1, 2]}).to_parquet(file)
    with pytest.raises(ValueError, match="expected texts in column 'text', got int64"):
        list(read_texts([file]))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.parquet is not a whole parquet file"):
        find_texts([file])


def test_categories_are_texts(tmp_path):
    pd.DataFrame({"text": pd.Categorical(["a", "b", "a"])}).to_parquet(tmp_path / "a.parquet")
    assert list(read_texts([tmp_path])) == ["a", "b", "a"]


def test_a_bad_byte_far_into_json_lines_is_named_with_its_line(tmp_path):
    good = json_lines(["fine"] * 1000)
    (tmp_path / "a.jsonl").write_bytes(good + b'{"text": "caf\xe9"}\n')
    texts = read_texts([tmp_path])
    assert len(list(itertools.islice(texts, 1000))) == 1000
    with pytest.raises(ValueError, match=rf"not UTF-8 text \(byte {len(good) + 13}\) in line 1001"):
        next(texts)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.zst", "a.csv.gz"])
def test_a_file_is_read_no_further_than_its_texts_are_asked_for(tmp_path, name, monkeypatch):
    """The bad line at the end is not met, and the bytes that were read are few."""
    count = 100_000
    lines = ["a text of no importance"] * count
    content = in_csv(lines) if ".csv" in name else json_lines(lines)
    packed = COMPRESS.get(Path(name).suffix, bytes)(content + b"\xff\xff\n")
    (tmp_path / name).write_bytes(packed)
    read: list[int] = []
    decoded = text_formats._decoded

    def noted(raw: bytes, *rest: Any) -> str:
        read.append(len(raw))
        return decoded(raw, *rest)

    monkeypatch.setattr(text_formats, "_decoded", noted)
    texts = read_texts([tmp_path / name])
    assert next(texts) == lines[0]
    assert sum(read) < 1000
    with pytest.raises(
        ValueError, match=rf"not UTF-8 text .* in line {count + 1 + ('csv' in name)}"
    ):
        list(texts)


def test_a_parquet_is_read_in_batches(tmp_path, monkeypatch):
    pd.DataFrame({"text": list(map(str, range(1000)))}).to_parquet(tmp_path / "a.parquet")
    batches: list[int] = []
    whole = pq.ParquetFile.iter_batches

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        for batch in whole(self, *args, **kwargs):
            batches.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    texts = read_texts([tmp_path])
    next(texts)
    assert batches == [64]
    assert len(list(texts)) == 999


def test_local_files_open_no_socket_and_leave_no_cache(tmp_path):
    (tmp_path / "a.csv").write_bytes(in_csv(["one"]))
    pd.DataFrame({"text": ["two"]}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.jsonl.zst").write_bytes(COMPRESS[".zst"](json_lines(["three"])))
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from interp.data.texts import read_texts\n"
        "print(*read_texts([sys.argv[1]]), 'datasets' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HOME": str(tmp_path / "home")},
    )
    assert (done.stdout, done.stderr) == ("one two three False\n", "")
    assert not (tmp_path / "home").exists()


# The hub


class Rows:
    """Stands for a streaming data set of `datasets`."""

    def __init__(self, rows: list[dict[str, Any]], columns: list[str] | None = None) -> None:
        self.rows = rows
        self.column_names = columns
        self.read = 0

    def __iter__(self):
        for row in self.rows:
            self.read += 1
            yield row

    def load_state_dict(self, state: None) -> None:
        assert state is None  # the beginning

    def select_columns(self, columns: list[str]) -> Rows:
        self.rows = [{name: row[name] for name in columns} for row in self.rows]
        return self


@pytest.fixture
def hub(monkeypatch) -> dict[tuple[str, str | None], dict[str, Rows]]:
    """Data sets by id and configuration; all else is not on the hub."""
    import datasets
    import huggingface_hub

    sets: dict[tuple[str, str | None], dict[str, Rows]] = {}

    def info(self: Any, name: str, **_: Any) -> None:
        if name not in {known for known, _ in sets}:
            raise OSError("404 Client Error.\n\nRepository Not Found")

    def loaded(name: str, configuration: str | None = None, *, streaming: bool) -> Any:
        assert streaming
        assert datasets.utils.are_progress_bars_disabled()
        if (name, configuration) not in sets:
            raise ValueError("Config name is missing.\nPlease pick one among ['en']")
        return sets[name, configuration]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    return sets


def test_data_sets_on_the_hub_are_read_among_files_and_as_asked_for(hub, tmp_path):
    import datasets

    rows = Rows([{"text": "one", "id": 1}, {"text": "two", "id": 2}], ["text", "id"])
    hub["user/name", None] = {"test": Rows([]), "train": rows}
    hub["user/many", "en"] = {"validation": Rows([{"body": "four", "text": "no"}])}
    (tmp_path / "a.txt").write_text("three")
    shown = datasets.utils.are_progress_bars_disabled()
    found = find_texts(["user/name", tmp_path, "user/name"])
    assert rows.read == 0
    texts = found.read()
    assert next(texts) == "one"
    assert rows.read == 1
    assert list(texts) == ["two", "three"]
    assert list(read_texts(["user/many:en"], column="body")) == ["four"]
    assert datasets.utils.are_progress_bars_disabled() == shown


def test_what_the_hub_cannot_give_is_named(hub):
    hub["user/name", None] = {"a": Rows([]), "b": Rows([])}
    hub["user/many", "en"] = {}
    hub["user/other", None] = {"train": Rows([{"content": "x"}])}
    hub["user/none", None] = {"train": Rows([{"text": None}], ["text"])}
    for name, match in {
        "no/such": r"no/such does not exist: expected a text file or a folder of them; and the hub "
        r"gave no data set no/such \(404 Client Error. Repository Not Found\)",
        "user/many": r"Please pick one among \['en'\]",
        "user/name": "has the splits a, b: expected train or only one; name one, as in user/name@a",
        "user/name@c": "has the splits a, b: expected one of these, not c",
        "user/other": "the data set user/other has no column 'text': its columns are content",
    }.items():
        with pytest.raises(ValueError, match=match):
            find_texts([name])
    with pytest.raises(ValueError, match=r"user/none, row 0: expected a text in column 'text'"):
        list(read_texts(["user/none"]))


def test_a_split_is_read_by_its_name(hub):
    hub["user/name", None] = {"a": Rows([{"text": "of a"}]), "train": Rows([{"text": "of train"}])}
    hub["user/many", "en"] = {"a": Rows([{"text": "of a"}]), "b": Rows([{"text": "of b"}])}
    assert list(read_texts(["user/name@a", "user/name", "user/many:en@b"])) == [
        "of a",
        "of train",
        "of b",
    ]


def test_a_data_set_on_the_hub_is_continued_by_its_own_state(hub):
    import datasets

    read: list[str] = []

    def noted(row: dict[str, str]) -> dict[str, str]:
        read.append(row["text"])
        return row

    texts = [str(number) for number in range(8)]
    rows = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=4)
    hub["user/name", None] = {"train": rows.map(noted, features=rows.features)}
    reader = read_texts(["user/name"])
    assert [next(reader) for _ in range(5)] == texts[:5]
    state = json.loads(json.dumps(reader.state_dict()))
    read.clear()
    again = read_texts(["user/name"])
    again.load_state_dict(state)
    assert list(again) == texts[5:]
    assert len(read) <= 4


def test_a_hub_id_is_told_from_a_mistyped_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_texts, "_splits", lambda *_: pytest.fail("the hub was asked"))
    (tmp_path / "corpus").mkdir()
    for path in ("corpus/part", "other/a.txt", "a/b.jsonl.zst", "/a/b", "../a", "a", "a/b/c", "a/"):
        assert not is_hub_id(path)
        with pytest.raises(ValueError, match="does not exist: expected a text file or a folder of"):
            find_texts([path])
    assert is_hub_id("user/some-name_2.0")
    assert is_hub_id("user/name:2023.en")


def test_the_real_hub_library_offline_is_one_clear_error(tmp_path):
    code = "from interp.data.texts import find_texts\nfind_texts(['nobody/nothing'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ValueError: nobody/nothing does not exist: expected a text file or a folder of them; and "
        "the hub gave no data set nobody/nothing (Cannot reach"
    )
    assert not (tmp_path / "home").exists()
