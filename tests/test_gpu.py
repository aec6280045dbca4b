"""The whole path on an accelerator: its numbers are those of the CPU within the precision."""

from __future__ import annotations

from contextvars import ContextVar

import numpy as np
import pytest
import tiny
import torch
import whole_path

import interp
from interp.loading import devices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_preferred(monkeypatch):
    """Without the CPU that conftest.py prefers for all other tests."""
    monkeypatch.setattr(devices, "_preferred", ContextVar("device", default=None))


@pytest.mark.parametrize("step", whole_path.steps())
def test_numbers_are_those_of_the_cpu(step):
    expected = whole_path.run(step, whole_path.CPU)
    # recordings keep rows and maxima in single precision
    whole_path.assert_equal(whole_path.run(step, CUDA), expected, tolerance=1e-6)


@pytest.mark.parametrize("step", ["forwards-llama", "record-llama", "scan-var"])
def test_batches_may_be_on_the_device_too(step):
    expected = whole_path.run(step, whole_path.CPU)
    found = whole_path.run(step, CUDA, batches_on=CUDA)
    whole_path.assert_equal(found, expected, tolerance=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_files_are_read_to_the_device_in_their_precision(tmp_path, dtype, tolerance):
    tiny.model("llama").to(dtype).save_pretrained(tmp_path)
    subject = interp.load(tmp_path)
    assert subject.device.type == "cuda"
    weights = list(subject.module.parameters())
    assert {weight.dtype for weight in weights} == {dtype}
    assert {weight.device.type for weight in weights} == {"cuda"}
    batch = tiny.batch("llama", prompt=4)
    on_cpu = interp.load(tmp_path, device="cpu").losses(batch)
    torch.testing.assert_close(subject.losses(batch).cpu(), on_cpu, rtol=0, atol=tolerance)


def test_a_scan_fits_into_little_memory(capsys):
    """Real out-of-memory errors, by a cap on this process's share of the device."""
    torch.cuda.empty_cache()
    subject = tiny.wrapped(tiny.model("llama").to(CUDA))
    tokens = tiny.batch("llama", rows=4096, length=33).tokens.tolist()
    few = interp.scan(subject, tokens, 1, 32, batch_size=64)
    total = torch.cuda.get_device_properties(0).total_memory
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 * needed / total)
    try:
        many = interp.scan(subject, tokens, 1, 32, batch_size=4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 4096 rows" in capsys.readouterr().err
    assert many["tokens"].equals(few["tokens"])
    np.testing.assert_allclose(many["log_p"], few["log_p"], atol=1e-3)
