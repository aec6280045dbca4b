"""Where a model goes: what is read from files to the device that is asked for or the best one, what is
in memory nowhere."""

from __future__ import annotations

import re
from contextvars import ContextVar

import pytest
import tiny
import torch
from second_device import guarding
from transformers import AutoModelForCausalLM

import interp
from interp import LoadError
from interp.loading import devices
from interp.loading.devices import available_devices, choose_device, preferring
from interp.models.image.checkpoints import save_image_model
from interp.training.fit import epochs, fit

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", 0), torch.device("cuda", 1)]


@pytest.fixture(autouse=True)
def nothing_preferred(monkeypatch):
    """Without the CPU that conftest.py prefers for all other tests."""
    monkeypatch.setattr(devices, "_preferred", ContextVar("device", default=None))


@pytest.fixture
def folder(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, of which there is no more than the names, that cannot compute in bfloat16."""
    monkeypatch.setattr(devices, "available_devices", lambda: [CPU, *GPUS])

    def missing(device, dtype):
        cannot = device.type == "cuda" and dtype == torch.bfloat16
        return dtype if cannot else None

    monkeypatch.setattr(devices, "_missing_precision", missing)


def test_the_best_device_is_the_first_that_has_the_precision(two_gpus):
    assert choose_device() == GPUS[0]
    assert choose_device(None, torch.float32) == GPUS[0]
    assert choose_device(None, torch.bfloat16) == CPU
    assert choose_device("cuda:1") == GPUS[1]
    assert choose_device("cpu", torch.bfloat16) == CPU


def test_a_device_may_be_preferred_for_a_while(two_gpus):
    with preferring("cpu"):
        assert choose_device() == CPU
        assert choose_device("cuda:1") == GPUS[1]
        with preferring(None):
            assert choose_device() == CPU
    assert choose_device() == GPUS[0]


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda:2", None, "device='cuda:2' is not there: this machine has cpu, cuda:0, cuda:1"),
        ("mps", None, "device='mps' is not there: this machine has cpu, cuda:0, cuda:1"),
        ("cida", None, "expected one of cpu, cuda:0, cuda:1; nearest: cuda"),
        ("cuda", torch.bfloat16, "cannot compute in torch.bfloat16; expected one that can"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_with_those_that_are_there(
    two_gpus, device, dtype, message
):
    with pytest.raises(LoadError, match=re.escape(message)):
        choose_device(device, dtype)


def test_a_device_without_float64_is_refused_and_never_the_default(monkeypatch):
    """As mps: log-probabilities and activations are summed in float64."""
    ones = torch.ones

    def without_float64(*shape, dtype=None, device=None):
        if torch.device(device).type == "mps" and dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return ones(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "ones", without_float64)
    monkeypatch.setattr(devices, "available_devices", lambda: [CPU, torch.device("mps", 0)])
    assert choose_device() == CPU
    with pytest.raises(LoadError, match=r"device='mps' cannot compute in torch.float64"):
        choose_device("mps")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is there")
def test_without_an_accelerator_everything_is_on_the_cpu(folder):
    assert available_devices() == [CPU]
    for device in (None, "cpu", CPU):
        subject = interp.load(folder, device=device)
        assert subject.device == CPU
        assert "parameters on cpu" in repr(subject)
    with pytest.raises(LoadError, match=r"device='cuda' is not there: this machine has cpu"):
        interp.load(folder, device="cuda")


def test_weights_are_read_straight_to_an_accelerator(folder, two_gpus, monkeypatch):
    """Not to the CPU first; on the CPU, transformers is called as it always was."""
    asked = []
    read = AutoModelForCausalLM.from_pretrained

    def note(*args, device_map=None, **options):
        asked.append(device_map)
        return read(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", note)
    interp.load(folder)
    interp.load(folder, device="cuda:1")
    interp.load(folder, device="cpu")
    assert asked == [{"": GPUS[0]}, {"": GPUS[1]}, None]


def test_a_model_that_does_not_fit_says_what_to_do(folder, two_gpus, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(LoadError, match=r"out of memory.*pass device='cpu'"):
        interp.load(folder, device="cuda")


def test_what_is_in_memory_is_not_moved(two_gpus):
    module = tiny.model("llama")
    subject = interp.load(module)
    for held, name in ((module, "LlamaForCausalLM"), (subject, "LlamaForCausalLM")):
        with pytest.raises(LoadError, match=rf"{name} is in memory on cpu already.*\.to\('cuda'\)"):
            interp.load(held, device="cuda")
    assert interp.load(module, device="cpu").module is module
    assert interp.load(subject, device=CPU) is subject


@pytest.mark.parametrize("name", tiny.IMAGE)
def test_an_image_model_goes_where_the_tokenizer_that_is_held_is(name, tmp_path, two_gpus):
    module = tiny.image_model(name)
    save_image_model(module, tmp_path)
    network = next(file for file in tmp_path.iterdir() if "tokenizer" not in file.name)
    subject = interp.load(network, tokenizer=module.tokenizer)
    assert subject.device == CPU
    with pytest.raises(LoadError, match="VQ is in memory on cpu already"):
        interp.load(network, tokenizer=module.tokenizer, device="cuda")


def test_an_image_model_is_whole_on_its_device(tmp_path):
    save_image_model(tiny.image_model("rar"), tmp_path)
    subject = interp.load(tmp_path, device="cpu")
    parts = (*subject.module.parameters(), *subject.module.buffers())
    assert {part.device for part in parts} == {CPU}


def test_training_stays_where_the_model_is(monkeypatch):
    """Also where accelerate would choose another device."""
    module = tiny.model("llama")
    with guarding() as device:
        there = interp.load(module.to(device))
        fit(there, epochs(tiny.batch("llama", prompt=4), 2), steps=1)
        assert {parameter.device for parameter in module.parameters()} == {device}
