"""Which weights belong to neurons: by running the model, against the names that tests know."""

from __future__ import annotations

import pytest
import tiny
import torch

import interp
from interp.training.unit_parameters import unit_parameters

# The parameters of the first MLP, and the axis along which they have one slice per neuron.
NAMES = {
    "llama": {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1},
    "gpt2": {"c_fc.weight": 1, "c_fc.bias": 0, "c_proj.weight": 0},
    "neox": {"dense_h_to_4h.weight": 0, "dense_h_to_4h.bias": 0, "dense_4h_to_h.weight": 1},
    "phi": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1},
}


@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_rows_and_columns_of_the_mlp(name):
    subject = tiny.subject(name)
    chosen = [1, 4, 7]
    found = unit_parameters(subject, subject.units("blocks.1.neurons", chosen), tiny.batch(name))
    block = subject.anatomy.blocks()[1]
    assert all(path.startswith(block) for path in found)
    by_end = {path.split(".", path.count(".") - 1)[-1]: mask for path, mask in found.items()}
    assert by_end.keys() == NAMES[name].keys()
    parameters = dict(subject.module.named_parameters())
    for path, mask in found.items():
        axis = NAMES[name][path.split(".", path.count(".") - 1)[-1]]
        expected = torch.zeros(parameters[path].shape, dtype=torch.bool)
        expected.index_fill_(axis, torch.tensor(chosen), True)
        assert torch.equal(mask, expected)


def test_neurons_at_several_sites_have_weights_at_each():
    subject = tiny.subject("llama")
    units = subject.units({"blocks.0.neurons": [0], "blocks.2.neurons": [5, 6]})
    found = unit_parameters(subject, units, tiny.batch("llama"))
    assert len(found) == 6
    assert sum(int(mask.sum()) for mask in found.values()) == 3 * 3 * 32


def test_what_belongs_to_no_one_unit_is_refused():
    subject = tiny.subject("llama")
    with pytest.raises(ValueError, match="all 48 neurons"):
        unit_parameters(subject, subject.units("blocks.0.neurons"), tiny.batch("llama"))
    with pytest.raises(ValueError, match="no units"):
        unit_parameters(subject, interp.Units({}), tiny.batch("llama"))
    frozen = interp.load(tiny.model("llama"))
    frozen.module.requires_grad_(False)
    frozen.module.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match=r"belong to neurons of blocks\.0\.neurons alone"):
        unit_parameters(frozen, frozen.units("blocks.0.neurons", [3]), tiny.batch("llama"))
