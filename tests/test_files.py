"""Laws of interp.files: what is written is what was given, or nothing is."""

import json

import numpy as np
import pytest
import torch

from interp.files import write_json


def test_numbers_of_numpy_and_torch_are_written_as_numbers(tmp_path):
    target = tmp_path / "about.json"
    write_json(target, {"a": np.int64(3), "b": np.float32(0.5), "c": torch.tensor(2), "d": [1]})
    assert json.loads(target.read_text()) == {"a": 3, "b": 0.5, "c": 2, "d": [1]}


@pytest.mark.parametrize("value", [np.array([3]), torch.tensor([3]), np.array([1, 2]), {1, 2}])
def test_what_is_no_number_is_refused_and_nothing_written(value, tmp_path):
    with pytest.raises(TypeError, match="JSON cannot hold a"):
        write_json(tmp_path / "about.json", {"a": value})
    assert not list(tmp_path.iterdir())
