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


def test_a_single_path_needs_no_list(folder):
    file = folder / "b.txt"
    for path in (file, str(file)):
        assert list(read_texts(path)) == ["text of b.txt\n"]


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_after_an_error_the_rest_of_a_file_is_not_passed_over(tmp_path, name):
    """What goes on with the next file would measure a part of the texts as if it were all."""
    broken = {
        "a.jsonl": '{"text": "one"}\n{"text": 5}\n{"text": "three"}',
        "a.json": '[{"text": "one"}, {"text": 5}, {"text": "three"}]',
        "a.csv": 'text\none\n"tw\xf6\nthree',
    }[name]
    (tmp_path / name).write_text(broken, encoding="latin-1")
    (tmp_path / "b.txt").write_text("four")
    texts = read_texts([tmp_path])
    before = texts.state_dict()
    assert next(texts) == "one"
    place = texts.state_dict()
    for _ in range(3):
        with pytest.raises(ValueError, match=name):
            next(texts)
        assert texts.state_dict() == place
    texts.load_state_dict(before)
    assert next(texts) == "one"


def test_an_interrupted_reader_does_not_go_on_with_another_file(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    (tmp_path / "b.txt").write_text("three")
    texts = read_texts([tmp_path])
    assert next(texts) == "one"
    place = texts.state_dict()

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.data.text_formats._text", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            next(texts)
    monkeypatch.undo()
    texts.load_state_dict(place)
    assert list(texts) == ["two", "three"]


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


@pytest.mark.parametrize("name", ["a.txt", "b.MD", "c.log", "d.jsonl", "e.json"])
def test_line_ends_are_those_of_the_file(tmp_path, name):
    text = "one\r\ntwo\r\nthree\rfour\n\n"
    structured = name.endswith(("jsonl", "json"))
    (tmp_path / name).write_bytes((json.dumps({"text": text}) if structured else text).encode())
    assert list(read_texts([tmp_path / name])) == [text]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL", "a.ndjson", "a.NdJson", "a.json", "a.JSON"])
def test_json_lines_are_read_whatever_their_suffix_and_line_ends(tmp_path, name, end):
    lines = end.join(json.dumps({"text": text}) for text in ("first", "second"))
    (tmp_path / name).write_text(lines + end, newline="")
    assert list(read_texts([tmp_path])) == ["first", "second"]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["a", {"text": "b", "id": 3}], ["a", "b"]),
        ({"text": "a"}, ["a"]),
        ([], []),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_holds_texts_in_a_list_or_one_after_the_other(tmp_path, value, texts, indent):
    written = json.dumps(value, indent=indent)
    (tmp_path / "a.json").write_text(written)
    assert list(read_texts([tmp_path / "a.json"])) == texts
    (tmp_path / "a.json").write_text(f"\n{written}\n\n{written} ")
    assert list(read_texts([tmp_path / "a.json"])) == texts * 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            '[{"text": "a"},\n{"content": "b", "id": 1}]',
            "line 1, item 1: .* its fields are content",
        ),
        ('{"text": "a"}\n\n{"text": 5}', "line 3: expected a JSON object"),
        ('{\n"text": "a"\n}\n{"text"', "line 4: expected JSON"),
        ('{"name": "tool"}', "its fields are name: call the one to read text"),
    ],
)
def test_a_json_file_without_texts_is_named_with_its_line(tmp_path, content, match):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=rf"a\.json, {match}|{match}"):
        list(read_texts([tmp_path / "a.json"]))


def test_half_of_a_surrogate_pair_is_named_with_its_line(tmp_path):
    whole, half = json.dumps({"text": "a\U0001f600"}), '{"text": "ab\\ud83d"}'
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(f"{whole}\n{half}\n")
        texts = read_texts([tmp_path / name])
        assert next(texts) == "a\U0001f600"
        with pytest.raises(ValueError, match=rf"{name}, line 2: character 2 .* surrogate pair"):
            next(texts)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("\nhi".encode("utf-16"), r"\(byte 0\): it begins like UTF-16; save it as UTF-8"),
        ("a\nhi".encode("utf-16-le"), r"\(byte 1 is zero\) in line 1: it may be UTF-16 or binary"),
        (b"one\ntw\xf6", r"\(byte 6\) in line 2: save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_named_with_its_line_and_the_way_out(tmp_path, content, match):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        list(read_texts([tmp_path]))


def test_what_is_passed_over_in_folders_is_said_once_in_words(tmp_path):
    for name in (
        ".git/d.txt",
        ".e.txt",
        "B.TXT",
        "a.txt",
        "c.c",
        "C.C",
        "Makefile",
        "deep/.f/g.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "package.json").write_text('{"name": "tool", "version": 1}')
    (tmp_path / "texts.json").write_text('["of json"]')
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(UserWarning, match="passed over") as said:
        texts = list(read_texts([tmp_path, tmp_path / "Makefile", tmp_path]))
    assert texts == ["B.TXT", "a.txt", "of json", "Makefile"]
    (note,) = said
    assert str(note.message).startswith(
        "7 passed over (3 hidden, 2 .c, 1 linked folder, 1 .json): in folders only files"
    )


def test_nothing_is_said_where_nothing_is_passed_over(tmp_path, recwarn):
    (tmp_path / "a.txt").write_text("a")
    assert list(read_texts([tmp_path])) == ["a"]
    assert not recwarn.list


def test_a_hidden_folder_that_is_named_is_read(tmp_path):
    (tmp_path / ".notes").mkdir()
    (tmp_path / ".notes" / "a.txt").write_text("a")
    assert list(read_texts([tmp_path / ".notes"])) == ["a"]


def test_a_file_named_in_several_ways_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "sub/a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "sub", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    named = ["sub/a.txt", tmp_path / "link.txt", "sub/../b.txt", "linked", "sub", tmp_path / "sub"]
    assert list(read_texts(named)) == ["sub/a.txt", "b.txt"]


def test_a_pattern_names_the_files_that_match_it_in_name_order(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("b.txt", "a.txt", "c.md", "inner/d.txt", "x[1].txt"):
        (tmp_path / name).write_text(name)
    assert list(read_texts([tmp_path / "?.txt"])) == ["a.txt", "b.txt"]
    assert list(read_texts([tmp_path / "**" / "d*"])) == ["inner/d.txt"]
    # A file is not a pattern, whatever its name; nor is it read twice.
    assert list(read_texts([tmp_path / "x[1].txt"])) == ["x[1].txt"]
    assert list(read_texts([tmp_path / "a*", tmp_path / "a.txt"])) == ["a.txt"]
    with pytest.raises(ValueError, match=r"z\* matches no file"):
        read_texts([tmp_path / "z*"])
