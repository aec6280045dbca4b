"""The corpus of licence headers: the same texts as files and as a table, each licence in two
formats."""

from __future__ import annotations

import json

import pytest

from experiments.licence_headers import EXPERIMENT
from experiments.licence_headers.build import as_comment, code
from experiments.licence_headers.presets import PRESETS


def test_texts_are_written_as_files_that_a_scan_reads(tmp_path):
    pytest.importorskip("faker")
    preset = PRESETS["smoke"]
    table = EXPERIMENT.reproduce("smoke", 3, tmp_path, jobs=1).tables["texts"]
    files = sorted((tmp_path / "corpus" / "seed3").glob("*.jsonl"))
    assert (
        [file.stem for file in files]
        == list(table["kind"].unique())
        == ["1-headers", "2-licences", "3-code", "4-prose"]
    )
    for file in files:
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        assert texts == list(table[table["kind"] == file.stem]["text"])
    counts = table["kind"].value_counts()
    assert counts["2-licences"] == 2 * preset.licences
    assert counts["4-prose"] == preset.prose


def test_code_is_cut_to_its_length():
    assert all(len(body) <= 500 for body in code(500, ["numpy"]))


def test_a_comment_has_a_mark_on_each_line_and_no_trailing_blanks():
    assert as_comment("a\n\nb\n", "hash") == "# a\n#\n# b\n"
    assert as_comment("a\nb", "star") == "/*\n * a\n * b\n */\n"
    assert as_comment("a\nb", "plain") == "a\nb\n"
