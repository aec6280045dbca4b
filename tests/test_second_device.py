"""Every tensor that the toolkit makes follows the model: the whole path on a device that refuses
to mix with the CPU."""

from __future__ import annotations

import pytest
import torch
import whole_path
from second_device import guarding


@pytest.mark.parametrize("step", whole_path.few_steps())
def test_every_tensor_follows_the_model(step):
    expected = whole_path.run(step, whole_path.CPU)
    with guarding() as device:
        found = whole_path.run(step, device)
    # the attention is made of other operations, which round otherwise
    whole_path.assert_equal(found, expected, tolerance=1e-8)


@pytest.mark.parametrize(
    "step",
    [
        "forwards-llama",
        "scan-var",
        "record-llama",
        "training-rar",
        "paths_of_single_tokens-var",
        "removal-llama",
    ],
)
def test_batches_may_be_on_the_device_too(step):
    expected = whole_path.run(step, whole_path.CPU)
    with guarding() as device:
        found = whole_path.run(step, device, batches_on=device)
    whole_path.assert_equal(found, expected, tolerance=1e-8)


def test_the_device_is_as_strict_as_an_accelerator():
    rows, index = torch.ones(3, 2), torch.tensor([0, 2])
    with guarding() as device:
        there = rows.to(device)
        assert there.device == device != rows.device
        for mix in (
            lambda: there + rows,
            lambda: torch.cat([rows, there]),
            lambda: rows[index.to(device)],
        ):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mix()
        with pytest.raises(TypeError, match="copy it to the CPU"):
            there.numpy()
        with pytest.raises(RuntimeError, match="draws on the device"):
            torch.randn(2, device=device)
        assert torch.equal((there[index] * torch.tensor(2.0)).cpu(), 2 * rows[index])
        assert torch.equal(torch.tensor([1.0, 2.0], device=device).cpu(), torch.tensor([1.0, 2.0]))
