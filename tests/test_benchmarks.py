"""Laws of the benchmarks: what is compared is compared, and a run of many minutes is not lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.timing import Row, compared, difference

NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(3), torch.tensor([1.0, NAN, 1.0])),
        ([NAN], [NAN]),
        ({"a": 0.5, "b": 1.0}, {"a": 0.0, "b": NAN}),
        ({"a": 1.0, "b": 0.5}, {"a": NAN, "b": 0.0}),
        ([math.inf], [1.0]),
        ([math.inf], [-math.inf]),
    ],
)
def test_a_result_that_is_not_a_number_equals_nothing(one: Any, other: Any):
    with pytest.raises(AssertionError, match="away from the first result"):
        compared("work", {"one": lambda: one, "other": lambda: other}, rounds=1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, 3.0], [1.5, 3.0], 0.5),
        ([-math.inf, 1.0], [-math.inf, 1.25], 0.25),
        ({"a": 1.0, "b": [2.0], "c": []}, {"a": 1.0, "b": [2.5], "c": []}, 0.5),
        ([], [], None),
        (None, [1.0], None),
    ],
)
def test_the_difference_of_two_results(one: Any, other: Any, expected: float | None):
    assert difference(one, other) == expected


def test_a_run_is_saved_on_a_machine_that_lacks_a_peer_and_a_name_for_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read_text = Path.read_text

    def missing(path: Path, *args: Any, **options: Any) -> str:
        if path == Path("/proc/cpuinfo"):
            raise FileNotFoundError(path)
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(report, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    report.save([Row("work", "one", 1.0, "CPU s", 1.0)], tmp_path)
    monkeypatch.undo()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["machine"] == "arm64"
    assert results["versions"].keys() == {"python", "torch"}
    assert "arm64" in (tmp_path / "RESULTS.md").read_text()
