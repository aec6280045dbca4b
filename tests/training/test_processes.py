"""Laws of fit in several processes: they take the steps that one process takes, each on rows of its
own."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import several_processes
import torch
from launching import launch
from safetensors.torch import load_file

RANKS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("processes")
    several_processes.trained("gpt2", out / "of one")
    launch(several_processes.main, out, len(RANKS))
    return out


@pytest.fixture(scope="module", params=several_processes.MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def facts(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"{name}.{rank}.json").read_text())


def test_two_processes_end_in_the_weights_of_one(folder: Path, name: str, tmp_path: Path):
    """Also where rows are unequal in number (2 and 1) and in targets, and where an expert got rows
    from one process only, or from none."""
    subject, history, _ = several_processes.trained(name, tmp_path)
    one = dict(subject.module.named_parameters())
    first, second = (load_file(folder / f"{name}.{rank}.safetensors") for rank in RANKS)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in one.items():
        torch.testing.assert_close(first[f"module.{key}"], value.detach(), rtol=0, atol=1e-9)
    for rank in RANKS:
        assert facts(folder, name, rank)["history"]["loss"] == pytest.approx(
            history["loss"].tolist(), abs=1e-10
        )


def test_every_row_is_trained_on_by_one_process(folder: Path, name: str):
    seen = [facts(folder, name, rank)["seen"] for rank in RANKS]
    for ours, theirs, batch in zip(
        *seen, islice(several_processes.stream(), several_processes.STEPS), strict=True
    ):
        assert ours
        assert theirs
        assert ours + theirs == batch.tokens.tolist()


def test_the_routed_model_meets_every_case(folder: Path):
    """Batches whose expert is used by both processes, by one and by none."""
    seen = [facts(folder, "routed", rank)["seen"] for rank in RANKS]
    users = {
        sum(any(row[0] % 3 == 0 for row in rows) for rows in step)
        for step in zip(*seen, strict=True)
    }
    assert users == {0, 1, 2}


def test_the_first_process_measures_and_writes_and_all_know_what_it_found(folder: Path, name: str):
    ours, theirs = (facts(folder, name, rank) for rank in RANKS)
    assert (ours["measured"], theirs["measured"]) == (3, 0)
    assert str(ours["history"]) == str(theirs["history"])
    assert sorted(path.name for path in (folder / name).iterdir()) == [
        "first.safetensors",
        "state.safetensors",
    ]


@pytest.mark.parametrize("rank", RANKS)
def test_an_interrupted_training_of_two_ends_as_one_that_was_not(folder: Path, rank: int):
    whole, broken = (
        load_file(folder / f"{part}.{rank}.safetensors") for part in ("whole", "broken")
    )
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
    assert (folder / "whole/state.safetensors").read_bytes() == (
        folder / "broken/state.safetensors"
    ).read_bytes()


def test_the_state_of_two_processes_is_refused_by_one(folder: Path):
    with pytest.raises(ValueError, match="processes=2, now None"):
        several_processes.trained("gpt2", folder / "gpt2")


@pytest.mark.parametrize("rank", RANKS)
def test_what_several_processes_cannot_do_is_refused_by_each(folder: Path, rank: int):
    refused = json.loads((folder / f"refused.{rank}.json").read_text())
    assert refused["few rows"] == (
        "a batch of 1 rows for 2 processes: expected at least one row each"
    )
    assert "processes=None, now 2" in refused["state of one"]


@pytest.mark.parametrize("rank", RANKS)
def test_accumulated_batches_of_two_processes_are_one_batch_of_one(folder: Path, rank: int):
    found = load_file(folder / f"accumulated.{rank}.safetensors")
    whole = several_processes.accumulated(joined=True).module
    for key, value in whole.named_parameters():
        torch.testing.assert_close(found[f"module.{key}"], value.detach(), rtol=0, atol=1e-9)
