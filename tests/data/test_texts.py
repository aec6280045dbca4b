"""Laws of read_texts: every text once, in name order, and one clear error for what is no text."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from interp.data.texts import SUFFIXES, read_texts


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.py", "sub/deep/d.rst", "x.bin", "y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    return tmp_path


def test_a_folder_gives_its_text_files_in_name_order_and_no_others(folder):
    assert list(read_texts([folder])) == [
        f"text of {name}\n" for name in ("a.md", "b.txt", "sub/c.py", "sub/deep/d.rst")
    ]


def test_paths_come_in_the_order_given_and_a_named_file_is_read_whatever_its_ending(folder):
    assert list(read_texts([folder / "x.bin", str(folder / "b.txt")])) == [
        "text of x.bin\n",
        "text of b.txt\n",
    ]


@settings(deadline=None, max_examples=50)
@example(texts=["a\u2028b\x85c\x0bd"], ascii_only=False, blank_lines=False)
@given(st.lists(st.text(), max_size=5), st.booleans(), st.booleans())
def test_each_line_of_jsonl_is_one_text_whatever_it_holds(
    tmp_path_factory, texts, ascii_only, blank_lines
):
    file = tmp_path_factory.mktemp("texts") / "all.jsonl"
    lines = [
        json.dumps({"text": text, "id": n}, ensure_ascii=ascii_only) for n, text in enumerate(texts)
    ]
    file.write_text(("\n\n" if blank_lines else "\n").join(lines), encoding="utf-8")
    assert list(read_texts([file])) == texts


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, content, text in (
        ("a.txt", "hello", "hello"),
        ("b.jsonl", '{"text": "hello"}', "hello"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert list(read_texts([tmp_path / name])) == [text]


def test_files_are_opened_as_they_come(folder):
    texts = read_texts([folder / "a.md", folder / "b.txt"])
    next(texts)
    (folder / "b.txt").write_text("changed")
    assert list(texts) == ["changed"]


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "{}", '{"text": null}', '{"text": 5}', "3"])
def test_a_line_without_a_text_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    texts = read_texts([tmp_path])
    assert next(texts) == "fine"
    with pytest.raises(
        ValueError, match=r'a.jsonl, line 2: expected a JSON object with a string "text", got'
    ):
        next(texts)


def test_what_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8 text \(byte 3\)"):
        list(read_texts([tmp_path]))


def test_a_path_that_is_not_there_or_holds_nothing_is_named_before_any_reading(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.txt does not exist"):
        read_texts([tmp_path / "nothing.txt"])
    with pytest.raises(
        ValueError, match=rf"holds no text file: expected names ending in {SUFFIXES[0]}"
    ):
        read_texts([tmp_path])
