"""Laws of a model that FSDP2 has sharded over two processes: each finds the numbers of the whole
model, trains as one process does, and what would read or write a part of a weight is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sharded_processes
import tiny
import torch
from launching import launch
from safetensors.torch import load_file

import interp

RANKS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("shards")
    launch(sharded_processes.main, out, len(RANKS))
    return out


@pytest.fixture(scope="module", params=sharded_processes.MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def facts(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"facts.{rank}.json").read_text())


@pytest.mark.parametrize("rank", RANKS)
def test_each_process_finds_the_numbers_of_the_whole_model_to_the_bit(
    folder: Path, name: str, rank: int
):
    whole = tiny.subject(name)
    found = load_file(folder / f"{name}.{rank}.safetensors")
    wanted = sharded_processes.numbers(whole)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    assert (
        facts(folder, rank)[name]
        | {
            "sites": [str(site) for site in whole.sites],
            "cached": whole.decoding.cached,
            "fingerprints": [whole.fingerprint, whole.fingerprint],
        }
        == facts(folder, rank)[name]
    )


@pytest.mark.parametrize("rank", RANKS)
def test_a_part_that_first_runs_without_gradients_can_be_differentiated(folder: Path, rank: int):
    found = load_file(folder / f"seldom.{rank}.safetensors")
    wanted = sharded_processes.of_a_part(sharded_processes.seldom())
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("rank", RANKS)
def test_projections_that_have_to_be_run_to_be_seen_are_found(folder: Path, rank: int):
    whole = interp.load(sharded_processes.adapted())
    assert facts(folder, rank)["adapted"] == [
        [str(site) for site in whole.sites],
        whole.fingerprint,
    ]


def test_the_first_process_writes_the_weights_of_all(folder: Path, name: str):
    written = load_file(folder / f"{name}.weights.safetensors")
    for key, value in tiny.model(name).named_parameters():
        assert torch.equal(written[f"module.{key}"], value)


@pytest.mark.parametrize("name", sharded_processes.STEPS)
def test_shards_are_trained_as_one_process_trains_the_whole(
    folder: Path, name: str, tmp_path: Path
):
    """With dropout, which all draw as the first does, and with tied weights."""
    subject, history = sharded_processes.trained(
        tiny.model(name, sharded_processes.PRECISE), sharded_processes.STEPS[name], tmp_path
    )
    found = load_file(folder / f"{name}.trained.safetensors")
    for key, value in subject.module.named_parameters():
        torch.testing.assert_close(found[f"module.{key}"], value.detach(), rtol=0, atol=1e-9)
    for rank in RANKS:
        of_rank = facts(folder, rank)[name]
        for column in ("loss", "held out"):
            given = torch.tensor(of_rank["history"][column])
            wanted = torch.tensor(history[column].to_list())
            torch.testing.assert_close(given, wanted, rtol=0, atol=1e-9, equal_nan=True)
        assert of_rank["read back"] == of_rank["trained"]
    first = load_file(folder / f"{name} whole" / "first.safetensors")
    for key, value in load_file(tmp_path / "first.safetensors").items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", RANKS)
def test_an_interrupted_training_of_shards_ends_as_one_that_was_not(folder: Path, rank: int):
    found = facts(folder, rank)
    assert found["resumed"] == found["gpt2"]["trained"]
    written = [
        (folder / f"{part}/state.safetensors").read_bytes() for part in ("gpt2 whole", "broken")
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("out_weight", "is sharded over processes, and is in place only while its module runs"),
        ("weights", "is sharded over processes, so it cannot be edited"),
        ("unit_parameters", "is sharded over processes: its gradient"),
        ("duplicate", "is sharded over processes: it cannot be copied"),
        ("bridge", "is sharded over processes: a bridge takes modules apart"),
        ("precision", "computes in another precision than its weights have"),
        ("offloaded", "its weights wait elsewhere"),
        ("two axes", "sharded over 2 axes of processes"),
        ("tensor parallel", "did not make, as in tensor parallelism"),
        ("scans apart", "their folders go on from text 1, the beginning: expected the same"),
        ("state", "sharded=True, now None"),
    ],
)
def test_what_needs_whole_weights_is_refused_by_each(
    folder: Path, rank: int, what: str, message: str
):
    assert message in facts(folder, rank)["refused"][what]
