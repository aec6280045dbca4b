"""Laws of interp.files: what is written is what was given, or nothing is."""

import json

import numpy as np
import pytest
import torch

from interp.files import replaced_folder, shared_folder, write_json


def test_numbers_of_numpy_and_torch_are_written_as_numbers(tmp_path):
    target = tmp_path / "about.json"
    write_json(target, {"a": np.int64(3), "b": np.float32(0.5), "c": torch.tensor(2), "d": [1]})
    assert json.loads(target.read_text()) == {"a": 3, "b": 0.5, "c": 2, "d": [1]}


@pytest.mark.parametrize("value", [np.array([3]), torch.tensor([3]), np.array([1, 2]), {1, 2}])
def test_what_is_no_number_is_refused_and_nothing_written(value, tmp_path):
    with pytest.raises(TypeError, match="JSON cannot hold a"):
        write_json(tmp_path / "about.json", {"a": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [False, True], ids=["meanwhile", "before"])
def test_of_two_processes_that_make_the_same_folder_the_first_one_stays(before, tmp_path):
    target = tmp_path / "model"

    def by_another():
        target.mkdir()
        (target / "config.json").write_text("theirs")

    if before:
        by_another()
    with shared_folder(target, "config.json") as temporary:
        (temporary / "config.json").write_text("ours")
        if not before:
            by_another()
    assert (target / "config.json").read_text() == "theirs"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def other_files(folder):
    folder.mkdir()
    (folder / "mine.txt").touch()


def shares(target, meanwhile):
    with shared_folder(target, "config.json") as temporary:
        (temporary / "config.json").touch()
        meanwhile(target)


def replaces(target, meanwhile):
    with replaced_folder(target) as temporary:
        (temporary / "config.json").touch()
        meanwhile(target)


@pytest.mark.parametrize("write", [shares, replaces])
def test_a_folder_of_other_files_is_refused_whenever_it_comes(write, tmp_path):
    before = tmp_path / "before"
    other_files(before)
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        write(before, lambda _: None)
    later = tmp_path / "later"
    with pytest.raises(OSError, match="not empty"):
        write(later, other_files)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["before", "later"]
    assert [file.name for file in later.iterdir()] == ["mine.txt"]


def test_a_model_that_another_job_converts_at_the_same_time_is_taken(tmp_path, monkeypatch):
    import tiny

    from interp.loading import pretrained

    module = tiny.model("llama")
    module.save_pretrained(tmp_path / "original")
    read = pretrained.read
    target = tmp_path / "cache" / "model"

    def meanwhile(source, dtype):
        module.save_pretrained(target)
        return read(source, dtype)

    monkeypatch.setattr(pretrained, "read", meanwhile)
    assert pretrained.convert(tmp_path / "original", target) == target
    assert (target / "model.safetensors").exists()
    assert [file.name for file in target.parent.iterdir()] == ["model"]
